//! What the processor does to each byte, part by part, on one core and on all: the functions
//! that backups and restores call, over test data in memory.

use super::{Benchmark, data};
use crate::chunking::{ContentCutter, ContentParameters, Gear, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::objects::cannot_make;
use diskvault_format::crypto::{Keys, PackCipher, Secret};
use diskvault_format::digest::chaining_value;
use diskvault_format::id::{LeaseId, RepositoryId};
use diskvault_format::limits::{CHUNK_BYTES_DEFAULT, SEGMENT_BYTES_DEFAULT};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentDecoder, SegmentEncoder};
use rayon::prelude::*;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Compression levels that are measured.
pub const LEVELS: [i32; 3] = [1, 3, 6];

/// Data that the parts run over: more than the caches of most processors.
const SAMPLE_BYTES_MAX: u64 = 48 << 20;
/// Segments by which ratios are measured, and of which a pack is made.
const SOME_SEGMENTS: usize = 4;
/// A buffer of zeros larger than a core's own caches.
const ZERO_BYTES: usize = 16 << 20;
const CHUNK: usize = CHUNK_BYTES_DEFAULT as usize;

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Copying memory, for comparison.
    MemoryCopy,
    /// The zero test, over zeros; over data it ends at once.
    ZeroTest,
    /// Chunk ids: keyed BLAKE3.
    ChunkId,
    /// Chaining values of chunks, for the digest of the disk.
    ChainingValue,
    /// Cuts by content.
    ContentCut,
    /// Segments at this zstd level.
    Compress(i32),
    /// Sealing: ChaCha20-Poly1305.
    Seal,
    /// Whole packs: sealing, laying out and hashing, over compressed bytes.
    Pack,
    /// Opening what was sealed.
    Open,
    /// Decompressing segments, over the bytes that come out.
    Decode,
}

impl Part {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Part::MemoryCopy => "memory copy".into(),
            Part::ZeroTest => "zero test".into(),
            Part::ChunkId => "chunk id".into(),
            Part::ChainingValue => "chaining value".into(),
            Part::ContentCut => "FastCDC".into(),
            Part::Compress(level) => format!("zstd {level}"),
            Part::Seal => "seal".into(),
            Part::Pack => "pack".into(),
            Part::Open => "open".into(),
            Part::Decode => "decode".into(),
        }
    }
}

/// How fast a part is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartRate {
    /// Which.
    pub part: Part,
    /// Bytes a second of one thread alone.
    pub one_core: f64,
    /// Bytes a second of all threads together.
    pub all_cores: f64,
    /// For compression: what the bytes become, of 1.
    pub ratio: Option<f64>,
}

/// Bytes handled by a step, and the seconds that count.
struct Step(usize, f64);

type Steps<'a> = Box<dyn FnMut() -> Result<Step> + 'a>;
/// Makes the steps of one thread, which starts at this piece.
type Maker<'a> = dyn Fn(usize) -> Result<Steps<'a>> + Sync + 'a;

/// What all parts run over.
struct Sample {
    pieces: Vec<Vec<u8>>,
    /// The entries of the segment that each piece becomes, and its plaintext at the level in use.
    segments: Vec<(Vec<Entry>, Vec<u8>)>,
    keys: Keys,
}

/// Measures all parts.
///
/// # Errors
/// `Cancelled`; others are not possible.
pub(super) fn measure(benchmark: &Benchmark<'_>) -> Result<Vec<PartRate>> {
    benchmark.monitor.start("processor", None);
    let bytes = benchmark.options.bytes.min(SAMPLE_BYTES_MAX);
    let sample = benchmark.pool.install(|| Sample::new(bytes))?;
    let mut rates = Vec::new();
    let mut parts = vec![
        Part::MemoryCopy,
        Part::ZeroTest,
        Part::ChunkId,
        Part::ChainingValue,
        Part::ContentCut,
    ];
    parts.extend(LEVELS.map(Part::Compress));
    parts.extend([Part::Seal, Part::Pack, Part::Open, Part::Decode]);
    for part in parts {
        let make = |start| sample.steps(part, start);
        let ratio = match part {
            Part::Compress(level) => Some(sample.ratio(level)?),
            _ => None,
        };
        let one_core = rate(benchmark, 1, &make)?;
        let all_cores = match benchmark.threads() {
            1 => one_core,
            threads => rate(benchmark, threads, &make)?,
        };
        rates.push(PartRate { part, one_core, all_cores, ratio });
    }
    benchmark.monitor.finish();
    Ok(rates)
}

/// Bytes a second of so many threads that start together.
fn rate(benchmark: &Benchmark<'_>, threads: usize, make: &Maker<'_>) -> Result<f64> {
    let seconds = benchmark.options.seconds / 20.0;
    let barrier = Barrier::new(threads);
    let run = |number: usize| -> Result<f64> {
        // Once before it counts: contexts and buffers are made, pages are there.
        let prepared = make(number * 7).and_then(|mut steps| steps().map(|_| steps));
        barrier.wait();
        let mut steps = prepared?;
        let (mut bytes, mut counted) = (0, 0.0);
        let began = Instant::now();
        loop {
            benchmark.monitor.check_cancelled()?;
            let Step(step_bytes, step_seconds) = steps()?;
            bytes += step_bytes;
            counted += step_seconds;
            if began.elapsed().as_secs_f64() >= seconds {
                benchmark.monitor.advance(bytes as u64);
                return Ok(bytes as f64 / counted.max(1e-9));
            }
        }
    };
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || run(number))).collect();
        let rates = running.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Failed, "cannot measure: a thread panicked"))
            })
        });
        // All are joined before the first error is returned.
        rates.collect::<Vec<_>>().into_iter().sum()
    })
}

/// Runs `work` over so many bytes, all of which counts.
fn timed(bytes: usize, work: impl FnOnce()) -> Step {
    let began = Instant::now();
    work();
    Step(bytes, began.elapsed().as_secs_f64())
}

impl Sample {
    fn new(bytes: u64) -> Result<Sample> {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let each = u64::from(SEGMENT_BYTES_DEFAULT) / data::PIECE_BYTES as u64;
        let count = (bytes / u64::from(SEGMENT_BYTES_DEFAULT)).max(1);
        // Each is a segment's worth.
        let gather = |number| -> Vec<Vec<u8>> {
            (number * each..(number + 1) * each).map(data::piece).collect()
        };
        let pieces: Vec<Vec<u8>> =
            (0..count).into_par_iter().map(|number| gather(number).concat()).collect();
        let segments: Result<Vec<_>> = pieces
            .par_iter()
            .map(|piece| {
                let entries = entries_of(&keys, piece);
                let mut plaintext = Vec::new();
                let level = crate::repository::compression::ZSTD_LEVEL;
                encoder(level)?.encode(&entries, piece, &mut plaintext).map_err(cannot_encode)?;
                plaintext.shrink_to_fit();
                Ok((entries, plaintext))
            })
            .collect();
        Ok(Sample { pieces, segments: segments?, keys })
    }

    /// What some segments become at a level, of 1.
    fn ratio(&self, level: i32) -> Result<f64> {
        let mut encoder = encoder(level)?;
        let (mut before, mut after) = (0, 0);
        let mut plaintext = Vec::new();
        for (piece, (entries, _)) in self.pieces.iter().zip(&self.segments).take(SOME_SEGMENTS) {
            encoder.encode(entries, piece, &mut plaintext).map_err(cannot_encode)?;
            before += piece.len();
            after += plaintext.len();
        }
        Ok(after as f64 / before.max(1) as f64)
    }

    fn steps(&self, part: Part, start: usize) -> Result<Steps<'_>> {
        match part {
            Part::ZeroTest => Ok(zero_steps()),
            Part::ContentCut => self.cutting(start),
            Part::Compress(level) => self.compressing(level, start),
            Part::Seal | Part::Open => Ok(self.sealing(part, start)),
            Part::Pack => Ok(self.packing()),
            Part::Decode => self.decoding(start),
            Part::MemoryCopy => {
                let mut pieces = self.pieces.iter().cycle().skip(start % self.pieces.len());
                let mut copies = self.pieces.clone();
                let mut next = 0;
                Ok(Box::new(move || {
                    let piece = pieces.next().map_or(&[][..], Vec::as_slice);
                    next = (next + 1) % copies.len();
                    let copy = &mut copies[next];
                    Ok(timed(piece.len(), || copy.copy_from_slice(black_box(piece))))
                }))
            }
            Part::ChunkId | Part::ChainingValue => {
                let mut pieces = self.pieces.iter().cycle().skip(start % self.pieces.len());
                Ok(Box::new(move || {
                    let piece = pieces.next().map_or(&[][..], Vec::as_slice);
                    Ok(timed(piece.len(), || {
                        for (number, chunk) in piece.chunks(CHUNK).enumerate() {
                            if part == Part::ChunkId {
                                black_box(self.keys.chunk_id(chunk));
                            } else {
                                black_box(chaining_value((number * CHUNK) as u64, chunk));
                            }
                        }
                    }))
                }))
            }
        }
    }

    fn cutting(&self, start: usize) -> Result<Steps<'_>> {
        let gear = Gear::from_key(self.keys.gear_key());
        let mut cutter = ContentCutter::new(ContentParameters::default(), gear)?;
        let mut pieces = self.pieces.iter().cycle().skip(start % self.pieces.len());
        Ok(Box::new(move || {
            let piece = pieces.next().map_or(&[][..], Vec::as_slice);
            let began = Instant::now();
            cutter.push(piece, &mut |cut| {
                black_box(cut);
                Ok(())
            })?;
            Ok(Step(piece.len(), began.elapsed().as_secs_f64()))
        }))
    }

    fn compressing(&self, level: i32, start: usize) -> Result<Steps<'_>> {
        let mut encoder = encoder(level)?;
        let segments = self.pieces.iter().zip(&self.segments).cycle();
        let mut segments = segments.skip(start % self.pieces.len());
        let mut plaintext = Vec::new();
        Ok(Box::new(move || {
            let Some((piece, (entries, _))) = segments.next() else { return Ok(Step(0, 0.0)) };
            let began = Instant::now();
            encoder.encode(entries, piece, &mut plaintext).map_err(cannot_encode)?;
            Ok(Step(piece.len(), began.elapsed().as_secs_f64()))
        }))
    }

    /// Seals a piece and opens it again; one of the two counts.
    fn sealing(&self, part: Part, start: usize) -> Steps<'_> {
        let cipher = PackCipher::new(&Secret::new([3; 32]));
        let mut sealed = self.pieces[start % self.pieces.len()].clone();
        Box::new(move || {
            let bytes = sealed.len();
            let mut tag = [0; 16];
            let seal = timed(bytes, || tag = cipher.seal(1, b"benchmark", &mut sealed));
            sealed.extend_from_slice(&tag);
            let mut is_open = false;
            let open = timed(bytes, || {
                is_open = cipher.open(1, b"benchmark", &mut sealed, "P-9").is_ok();
            });
            sealed.truncate(bytes);
            if !is_open {
                let text = "cannot open what was sealed a moment ago: processor or memory fail";
                return Err(Error::new(ErrorKind::Damage, text));
            }
            Ok(if part == Part::Seal { seal } else { open })
        })
    }

    fn packing(&self) -> Steps<'_> {
        Box::new(move || {
            let segments: Vec<PreparedSegment> = self
                .segments
                .iter()
                .take(SOME_SEGMENTS)
                .map(|(entries, plaintext)| PreparedSegment {
                    anchors: Vec::new(),
                    entries: entries.clone(),
                    plaintext: plaintext.clone(),
                })
                .collect();
            let bytes = segments.iter().map(|segment| segment.plaintext.len()).sum();
            let secrets =
                PackSecrets { key: Secret::new([7; 32]), wrap_random: [8; 32], own_copy: None };
            let began = Instant::now();
            let pack = assemble(&self.keys, PackKind::Data, LeaseId([5; 16]), &secrets, segments);
            black_box(pack.map_err(|cause| cannot_make("a pack", cause))?);
            Ok(Step(bytes, began.elapsed().as_secs_f64()))
        })
    }

    fn decoding(&self, start: usize) -> Result<Steps<'_>> {
        let cannot = |cause| cannot_make("a decoder", cause);
        let mut decoder = SegmentDecoder::new().map_err(cannot)?;
        let mut segments = self.segments.iter().cycle().skip(start % self.segments.len());
        let mut output = Vec::new();
        Ok(Box::new(move || {
            let Some((_, plaintext)) = segments.next() else { return Ok(Step(0, 0.0)) };
            let began = Instant::now();
            black_box(decoder.decode(plaintext, &mut output).map_err(cannot)?);
            Ok(Step(output.len(), began.elapsed().as_secs_f64()))
        }))
    }
}

fn zero_steps<'a>() -> Steps<'a> {
    // Written to, because pages that nobody wrote are all the same one.
    let mut zeros = vec![1_u8; ZERO_BYTES];
    zeros.fill(0);
    let mut at = 0;
    Box::new(move || {
        at = (at + data::PIECE_BYTES) % ZERO_BYTES;
        let piece = &zeros[at..at + data::PIECE_BYTES];
        Ok(timed(piece.len(), || {
            for chunk in piece.chunks(CHUNK) {
                black_box(is_zero(black_box(chunk)));
            }
        }))
    })
}

fn entries_of(keys: &Keys, piece: &[u8]) -> Vec<Entry> {
    let entry = |chunk: &[u8]| Entry {
        id: keys.chunk_id(chunk).0,
        kind: EntryKind::Chunk,
        bytes: chunk.len() as u32,
    };
    piece.chunks(CHUNK).map(entry).collect()
}

fn encoder(level: i32) -> Result<SegmentEncoder> {
    SegmentEncoder::new(level).map_err(cannot_encode)
}

fn cannot_encode(cause: diskvault_format::error::FormatError) -> Error {
    cannot_make("a segment", cause)
}
