//! Streams that grow and shrink in the middle, over several points.

use crate::cases_of;
use crate::files::noise;
use crate::lab::{Lab, stream};
use crate::model::{assert_adds_up, sizes};
use diskvault::backup::{ChunkerChoice, DigestKind};
use diskvault::check::CheckOptions;
use diskvault::monitor::Silent;
use diskvault::repository::map_reader::{MapReader, StreamPlace};
use diskvault_format::id::PageId;
use diskvault_format::stream_map::StreamPage;
use proptest::prelude::*;
use sha2::Digest;
use std::collections::BTreeSet;

/// A change of a stream: at a share of its length so many bytes go and others come.
#[derive(Clone, Debug)]
struct Splice {
    at: u32,
    removed: usize,
    /// Seed and length; seed 0 stands for zeros.
    inserted: (u64, usize),
}

fn splices() -> impl Strategy<Value = Splice> {
    let removed = prop_oneof![Just(0_usize), 0_usize..100_000];
    let inserted = prop_oneof![0_usize..2_000, 0_usize..400_000];
    (any::<u32>(), removed, (0_u64..4, inserted)).prop_map(|(at, removed, inserted)| Splice {
        at,
        removed,
        inserted,
    })
}

fn apply(bytes: &mut Vec<u8>, splice: &Splice) {
    let at = (bytes.len() as u64 * u64::from(splice.at) / u64::from(u32::MAX)) as usize;
    let end = (at + splice.removed).min(bytes.len());
    let (seed, count) = splice.inserted;
    let new = if seed == 0 { vec![0; count] } else { noise(seed, count) };
    bytes.splice(at..end, new);
}

fn run(size: usize, changes: &[Vec<Splice>]) {
    let (lab, storage) = Lab::in_memory(4096, 4);
    let alone = Lab::open(std::sync::Arc::new(storage), 3, 1);
    let path = lab.path("source");
    let mut bytes = noise(7, size);
    let mut days = Vec::new();
    for splices in changes {
        for splice in splices {
            apply(&mut bytes, splice);
        }
        std::fs::write(&path, &bytes).unwrap();
        let input = [stream("dump", &path)];
        let report = lab.backup("vm", &input, ChunkerChoice::Auto, &[DigestKind::Sha256]);
        let counts = report.statistics;
        assert_adds_up(&counts);
        assert_eq!(counts.hole_bytes, 0);
        let seen = counts.zero_bytes + counts.deduplicated_bytes + counts.new_bytes;
        assert_eq!(seen, bytes.len() as u64);
        let again = lab.backup("vm", &input, ChunkerChoice::Auto, &[]);
        let record = &report.manifest.streams[0];
        assert_eq!(again.manifest.streams[0].content, record.content);
        assert_eq!(again.statistics.new_chunks, 0);
        let other = alone.backup("other", &input, ChunkerChoice::Auto, &[]);
        assert_eq!(other.manifest.streams[0].content, record.content);
        days.push((report.point, bytes.clone()));
    }
    let locator = lab.locator();
    for (id, bytes) in &days {
        let point = lab.point(*id);
        assert!(lab.read(&locator, &point, "dump") == *bytes, "other bytes came back");
        let digest = |kind| lab.digest(&locator, &point, "dump", kind);
        assert_eq!(digest(None), blake3::hash(bytes).as_bytes());
        assert_eq!(digest(Some(DigestKind::Sha256))[..], sha2::Sha256::digest(bytes)[..]);
        assert_eq!(digest(Some(DigestKind::Md5))[..], md5::Md5::digest(bytes)[..]);
    }
    drop(locator);
    lab.assert_sound();
}

proptest! {
    #![proptest_config(cases_of(24))]

    #[test]
    fn streams_with_insertions(
        size in sizes(),
        changes in prop::collection::vec(prop::collection::vec(splices(), 0..4), 1..4),
    ) {
        run(size, &changes);
    }
}

fn gather(reader: &MapReader, id: PageId, bytes: u64, pages: &mut Vec<PageId>) {
    pages.push(id);
    let place = StreamPlace { bytes, level: None };
    if let StreamPage::Inner(_, below) = reader.decode_stream_page(id, place).unwrap() {
        for (bytes, id) in below {
            gather(reader, id, bytes, pages);
        }
    }
}

/// `check` looks at each page of a stream's map once, however many points share it.
#[test]
fn check_costs_the_distinct_pages_of_a_stream() {
    let (lab, _) = Lab::in_memory(4096, 2);
    let path = lab.path("source");
    let mut bytes = noise(11, 40 << 20);
    let mut pages = Vec::new();
    for day in 0..4 {
        bytes[20 << 20] = day;
        std::fs::write(&path, &bytes).unwrap();
        let report = lab.backup("vm", &[stream("dump", &path)], ChunkerChoice::Auto, &[]);
        let content = &report.manifest.streams[0].content;
        let locator = lab.locator();
        let reader = MapReader::new(&lab.repository, &locator);
        gather(&reader, content.top.unwrap(), content.bytes, &mut pages);
    }
    let distinct = pages.iter().collect::<BTreeSet<_>>().len() as u64;
    assert!(pages.len() as u64 > 2 * distinct, "{distinct} of {} pages", pages.len());
    let options = CheckOptions { data: None };
    let report = diskvault::check::run(&lab.repository, &options, &lab.pool, &Silent).unwrap();
    assert_eq!((report.damage_count(), report.pages), (0, distinct));
}
