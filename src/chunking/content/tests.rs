//! Tests of the cutter: against a plain reading of the rule over the whole stream in memory,
//! and against recorded cut points.

use super::*;
use proptest::prelude::*;

const BLOCK: usize = ZERO_BLOCK_BYTES;

/// Small chunks, so that a block holds many.
const SMALL: ContentParameters =
    ContentParameters { bytes_min: 256, bytes_average: 1024, bytes_max: 4096 };

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Chunk(Vec<u8>),
    Zeros(u64),
}

fn collect(into: &mut Vec<Owned>) -> impl FnMut(Piece<'_>) -> Result<()> + '_ {
    |piece| {
        into.push(match piece {
            Piece::Chunk(bytes) => Owned::Chunk(bytes.to_vec()),
            Piece::Zeros(bytes) => Owned::Zeros(bytes),
        });
        Ok(())
    }
}

fn gear() -> Gear {
    Gear::from_key(&[0x42; 32])
}

fn random(bytes: usize, seed: u8) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut data);
    data
}

/// The rule, word by word, over the whole stream.
fn reference(data: &[u8], parameters: ContentParameters) -> Vec<Owned> {
    fn zeros(into: &mut Vec<Owned>, bytes: usize) {
        match into.last_mut() {
            Some(Owned::Zeros(count)) => *count += bytes as u64,
            _ => into.push(Owned::Zeros(bytes as u64)),
        }
    }
    let (min, average, max) = parameters.sizes();
    let (small, large) = select_masks(average, Normalization::Level1);
    let gear = gear();
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let block_is_zero =
            |at: usize| data[at..data.len().min(at + BLOCK)].iter().all(|&byte| byte == 0);
        let mut end = at;
        let kind = block_is_zero(at);
        while end < data.len() && block_is_zero(end) == kind {
            end = data.len().min(end + BLOCK);
        }
        if kind {
            zeros(&mut pieces, end - at);
        }
        let mut rest = if kind { &[] } else { &data[at..end] };
        while !rest.is_empty() {
            let (table, shifted) = (&gear.table, &gear.table_shifted);
            let (_, count) = cut_gear(
                rest,
                min,
                average,
                max,
                small,
                large,
                small << 1,
                large << 1,
                table,
                shifted,
            );
            let (piece, later) = rest.split_at(count);
            if piece.iter().all(|&byte| byte == 0) {
                zeros(&mut pieces, count);
            } else {
                pieces.push(Owned::Chunk(piece.to_vec()));
            }
            rest = later;
        }
        at = end;
    }
    pieces
}

/// Cuts in portions; whole zero blocks at aligned offsets go by `push_zeros` if `holes`.
fn cut(data: &[u8], parameters: ContentParameters, portions: &[usize], holes: bool) -> Vec<Owned> {
    let mut cutter = ContentCutter::new(parameters, gear()).unwrap();
    let mut pieces = Vec::new();
    let mut each = collect(&mut pieces);
    let mut at = 0;
    let mut portion = portions.iter().cycle();
    while at < data.len() {
        let block_end = data.len().min(at + BLOCK);
        if holes
            && at.is_multiple_of(BLOCK)
            && block_end - at == BLOCK
            && is_zero(&data[at..block_end])
        {
            cutter.push_zeros(BLOCK as u64, &mut each).unwrap();
            at = block_end;
            continue;
        }
        let mut end = data.len().min(at + portion.next().unwrap());
        if holes {
            end = end.min((at / BLOCK + 1) * BLOCK);
        }
        cutter.push(&data[at..end], &mut each).unwrap();
        at = end;
    }
    cutter.finish(&mut each).unwrap();
    drop(each);
    pieces
}

fn lengths(pieces: &[Owned]) -> Vec<i64> {
    let length = |piece: &Owned| match piece {
        Owned::Chunk(bytes) => bytes.len() as i64,
        Owned::Zeros(bytes) => -(*bytes as i64),
    };
    pieces.iter().map(length).collect()
}

#[test]
fn cut_points_are_the_recorded_ones() {
    // A change here means that nothing deduplicates against what is already stored.
    let data = random((2 << 20) + 1234, 1);
    let pieces = cut(&data, ContentParameters::default(), &[100_000], false);
    assert_eq!(lengths(&pieces), GOLDEN);
    let small = cut(&data, SMALL, &[100_000], false);
    let mut hasher = blake3::Hasher::new();
    for length in lengths(&small) {
        hasher.update(&length.to_le_bytes());
    }
    assert_eq!((small.len(), hasher.finalize().to_hex().as_str()), GOLDEN_SMALL);
}

const GOLDEN: [i64; 26] = [
    39317, 75019, 105585, 71746, 84581, 77357, 73739, 63903, 66507, 93602, 49599, 177887, 99350,
    99825, 189970, 83624, 72239, 141466, 50843, 71659, 95485, 67730, 73199, 39589, 27882, 6683,
];
const GOLDEN_SMALL: (usize, &str) =
    (1679, "abb9a52a6cc3c113800eb77687c3c6857d4861deb0c3d0accc83589ed842d722");

#[test]
fn the_gear_table_is_the_recorded_one() {
    let gear = gear();
    let output = blake3::Hasher::new_keyed(&[0x42; 32]).finalize();
    let first = u64::from_le_bytes(output.as_bytes()[..8].try_into().unwrap());
    assert_eq!(gear.table[0], first);
    assert_eq!(gear.table_shifted[0], first << 1);
    assert_ne!(gear.table[255], 0);
    assert_ne!(gear.table, Gear::from_key(&[0x43; 32]).table);
}

#[test]
fn an_empty_stream_and_tiny_ones() {
    let parameters = ContentParameters::default();
    assert!(cut(&[], parameters, &[1], false).is_empty());
    assert_eq!(cut(&[0], parameters, &[1], false), [Owned::Zeros(1)]);
    assert_eq!(cut(&[0, 7], parameters, &[1], false), [Owned::Chunk(vec![0, 7])]);
}

#[test]
fn huge_holes_cost_nothing() {
    let mut cutter = ContentCutter::new(ContentParameters::default(), gear()).unwrap();
    let mut pieces = Vec::new();
    let mut each = collect(&mut pieces);
    cutter.push_zeros(1 << 50, &mut each).unwrap();
    cutter.push(&[1; 10], &mut each).unwrap();
    // At an odd offset: fills the block, then goes by blocks, then leaves a tail.
    cutter.push_zeros((1 << 50) + 5, &mut each).unwrap();
    assert_eq!(cutter.offset(), (1 << 51) + 15);
    cutter.finish(&mut each).unwrap();
    drop(each);
    assert_eq!(lengths(&pieces), [-(1 << 50), 65536, -((1 << 50) + 15 - 65536)]);
}

#[test]
fn a_reader_gives_the_same_pieces() {
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(IoErrorKind::Interrupted.into());
            }
            let count = buffer.len().min(self.1 * 777).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let mut data = random(8 << 20, 2);
    data[1 << 20..3 << 20].fill(0);
    let mut cutter = ContentCutter::new(ContentParameters::default(), gear()).unwrap();
    let mut pieces = Vec::new();
    let mut each = collect(&mut pieces);
    let mut slow = Slow(&data, 0);
    while cutter.fill_from(&mut slow, &mut each).unwrap() > 0 {}
    cutter.finish(&mut each).unwrap();
    drop(each);
    assert!(pieces == reference(&data, ContentParameters::default()));
}

#[test]
fn a_failing_reader_is_a_source_error() {
    struct Broken(Option<&'static str>);
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(match self.0 {
                Some(text) => std::io::Error::other(text),
                None => std::io::Error::from_raw_os_error(5),
            })
        }
    }
    for (words, text) in [
        (Some("cannot read /x at offset 0: gone"), "cannot read /x at offset 0: gone"),
        (None, "cannot read stream at offset 0: Input/output error (os error 5)"),
    ] {
        let mut cutter = ContentCutter::new(ContentParameters::default(), gear()).unwrap();
        let error = cutter.fill_from(&mut Broken(words), &mut |_| Ok(())).unwrap_err();
        assert_eq!((error.kind(), error.full_text().as_str()), (ErrorKind::Source, text));
    }
}

#[test]
fn an_error_of_the_receiver_ends_the_cutting() {
    let mut cutter = ContentCutter::new(SMALL, gear()).unwrap();
    let mut fail = |_: Piece<'_>| Err(Error::new(ErrorKind::Cancelled, "interrupted"));
    let error = cutter.push(&random(BLOCK, 3), &mut fail).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn parameters_outside_the_limits_are_refused() {
    let with = |bytes_min, bytes_average, bytes_max| {
        ContentParameters { bytes_min, bytes_average, bytes_max }.validate().is_ok()
    };
    assert!(with(64, 256, 1024));
    assert!(with(1 << 20, 4 << 20, 16 << 20));
    assert!(!with(62, 256, 1024));
    assert!(!with(65, 256, 1024));
    assert!(!with(64, 300, 1024));
    assert!(!with(64, 256, 1025));
    assert!(!with(64, 256, (16 << 20) + 2));
    assert!(!with(512, 256, 1024));
    assert!(!with(64, 2048, 1024));
    assert!(!with(0, 0, 0));
}

/// A stream of random, zero and nearly zero stretches.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![1_usize..5000, Just(BLOCK), 1_usize..4 * BLOCK];
    let stretch = (0_u8..4, length, any::<u8>());
    prop::collection::vec(stretch, 0..7).prop_map(|stretches| {
        let mut data = Vec::new();
        for (kind, length, seed) in stretches {
            match kind {
                0 | 1 => data.extend(random(length, seed)),
                2 => data.extend(std::iter::repeat_n(0, length)),
                _ => {
                    data.extend(std::iter::repeat_n(0, length - 1));
                    data.push(seed);
                }
            }
        }
        data
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn pieces_depend_on_the_bytes_alone(
        data in streams(),
        portions in prop::collection::vec(prop_oneof![1_usize..70, 1_usize..200_000], 1..5),
        holes in any::<bool>(),
        small in any::<bool>(),
    ) {
        let parameters = if small { SMALL } else { ContentParameters::default() };
        let pieces = cut(&data, parameters, &portions, holes);
        prop_assert!(pieces == reference(&data, parameters), "{:?}", lengths(&pieces));
        let joined: u64 = lengths(&pieces).iter().map(|length| length.unsigned_abs()).sum();
        prop_assert_eq!(joined, data.len() as u64);
    }
}
