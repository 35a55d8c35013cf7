//! The parts of backup and restore, each as a ratio to its limit in the same run.
//!
//! `cargo bench --bench parts`. One thread; medians of five runs.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

mod support;

use diskvault::chunking::{ContentCutter, ContentParameters, Gear, is_zero};
use diskvault::index::ChunkIndex;
use diskvault::repository::parity::{encode, heal};
use diskvault_format::crypto::{Keys, PackCipher, Secret};
use diskvault_format::digest::chaining_value;
use diskvault_format::id::{LeaseId, PackId, RepositoryId};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentDecoder, SegmentEncoder};
use std::hint::black_box;
use support::{Table, compressible, median_seconds, print_machine, random};

const MIB: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
const RUNS: usize = 5;
const GB: f64 = 1e9;

fn main() {
    print_machine();
    let mut table = Table::default();
    let data = compressible(64 * MIB, 1);
    bytes(&mut table, &data);
    segments(&mut table, &data);
    parity(&mut table);
    index(&mut table);
    table.print();
}

/// GB/s of something that handles all of `data`.
fn rate(data: &[u8], mut work: impl FnMut(&[u8])) -> f64 {
    data.len() as f64 / GB / median_seconds(RUNS, || work(data))
}

fn bytes(table: &mut Table, data: &[u8]) {
    let mut copy = vec![0_u8; data.len()];
    let memory = rate(data, |data| copy.copy_from_slice(black_box(data)));
    table.limit("memory copy", memory, "GB/s");
    let zeros = vec![0_u8; data.len()];
    let test = |data: &[u8]| {
        for chunk in data.chunks(CHUNK) {
            black_box(is_zero(black_box(chunk)));
        }
    };
    table.row("zero test, 64 KiB of zeros", rate(&zeros, test), "GB/s", "memory copy", memory);
    table.row(
        "zero test, 64 KiB of data, ends at once",
        rate(data, test),
        "GB/s",
        "memory copy",
        memory,
    );
    let plain = rate(data, |data| {
        for piece in data.chunks(MIB) {
            black_box(blake3::hash(piece));
        }
    });
    table.limit("BLAKE3, 1 MiB", plain, "GB/s");
    let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
    let ids = rate(data, |data| {
        for chunk in data.chunks(CHUNK) {
            black_box(keys.chunk_id(chunk));
        }
    });
    table.row("chunk ids, 64 KiB", ids, "GB/s", "BLAKE3", plain);
    let values = rate(data, |data| {
        for (number, chunk) in data.chunks(CHUNK).enumerate() {
            black_box(chaining_value((number * CHUNK) as u64, chunk));
        }
    });
    table.row("chaining values, 64 KiB", values, "GB/s", "BLAKE3", plain);
    let gear = Gear::from_key(keys.gear_key());
    let cut = rate(data, |data| {
        let mut cutter = ContentCutter::new(ContentParameters::default(), gear.clone()).unwrap();
        let mut count = 0;
        let mut each = |_: diskvault::chunking::Piece<'_>| {
            count += 1;
            Ok(())
        };
        cutter.push(data, &mut each).unwrap();
        cutter.finish(&mut each).unwrap();
        black_box(count);
    });
    table.row("FastCDC with a keyed gear table", cut, "GB/s", "BLAKE3", plain);
}

fn entries_of(keys: &Keys, data: &[u8]) -> Vec<Entry> {
    data.chunks(CHUNK)
        .map(|chunk| Entry {
            id: keys.chunk_id(chunk).0,
            kind: EntryKind::Chunk,
            bytes: chunk.len() as u32,
        })
        .collect()
}

fn segments(table: &mut Table, data: &[u8]) {
    let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    let mut buffer = vec![0_u8; 2 * MIB];
    let limit = rate(data, |data| {
        for piece in data.chunks(MIB) {
            black_box(compressor.compress_to_buffer(piece, &mut buffer[..]).unwrap());
        }
    });
    table.limit("zstd -3, 1 MiB", limit, "GB/s");
    let mut encoder = SegmentEncoder::new(3).unwrap();
    let mut plaintext = Vec::new();
    let tables: Vec<Vec<Entry>> = data.chunks(MIB).map(|piece| entries_of(&keys, piece)).collect();
    let mut encoded = Vec::new();
    let built = rate(data, |data| {
        encoded.clear();
        for (piece, entries) in data.chunks(MIB).zip(&tables) {
            encoder.encode(entries, piece, &mut plaintext).unwrap();
            encoded.push(plaintext.clone());
        }
    });
    table.row("segment building", built, "GB/s", "zstd -3", limit);
    let stored: usize = encoded.iter().map(Vec::len).sum();
    let cipher = PackCipher::new(&Secret::new([3; 32]));
    let mut noise = random(16 * MIB, 2);
    let length = noise.len();
    let seal = length as f64
        / GB
        / median_seconds(RUNS, || {
            for piece in noise.chunks_mut(MIB) {
                black_box(cipher.seal(1, b"aad", piece));
            }
        });
    table.limit("ChaCha20-Poly1305, 1 MiB", seal, "GB/s");
    let packed = stored as f64
        / GB
        / median_seconds(RUNS, || {
            let prepared = encoded
                .iter()
                .zip(&tables)
                .map(|(plaintext, entries)| PreparedSegment {
                    anchors: Vec::new(),
                    entries: entries.clone(),
                    plaintext: plaintext.clone(),
                })
                .collect();
            let secrets =
                PackSecrets { key: Secret::new([7; 32]), wrap_random: [8; 32], own_copy: None };
            let writer = LeaseId([5; 16]);
            black_box(assemble(&keys, PackKind::Data, writer, &secrets, prepared).unwrap());
        });
    table.row("pack: seal, lay out, hash", packed, "GB/s", "ChaCha20-Poly1305", seal);
    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
    let frames: Vec<Vec<u8>> =
        data.chunks(MIB).map(|piece| zstd::bulk::compress(piece, 3).unwrap()).collect();
    let limit = rate(data, |_| {
        for frame in &frames {
            black_box(decompressor.decompress_to_buffer(frame, &mut buffer[..]).unwrap());
        }
    });
    table.limit("zstd -d, 1 MiB", limit, "GB/s");
    let mut decoder = SegmentDecoder::new().unwrap();
    let mut output = Vec::new();
    let decoded = rate(data, |_| {
        for plaintext in &encoded {
            black_box(decoder.decode(plaintext, &mut output).unwrap());
        }
    });
    table.row("segment decoding", decoded, "GB/s", "zstd -d", limit);
}

/// Bytes of packs a second, for parity of 1, 2 and 5 %, and for a pack with a damaged sector.
fn parity(table: &mut Table) {
    let pack = random(33 * MIB, 4);
    let id = PackId(*blake3::hash(&pack).as_bytes());
    let limit = rate(&pack, |pack| _ = black_box(blake3::hash(pack)));
    table.limit("BLAKE3, 33 MiB", limit, "GB/s");
    for per_mille in [10, 20, 50, 500] {
        let coded = rate(&pack, |pack| _ = black_box(encode(id, pack, per_mille).unwrap()));
        let name = format!("parity of {}.{} %", per_mille / 10, per_mille % 10);
        table.row(&name, coded, "GB/s", "BLAKE3", limit);
    }
    let parity = encode(id, &pack, 20).unwrap();
    let mut damaged = pack.clone();
    damaged[20 * MIB..20 * MIB + 4096].fill(0);
    let healed = rate(&pack, |_| {
        black_box(heal(id, damaged.clone(), &[], &parity).unwrap());
    });
    table.row("healing by parity of 2 %", healed, "GB/s", "BLAKE3", limit);
}

/// The prefix of entry `number`: what a keyed hash looks like.
fn prefix(number: u64) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    prefix
}

fn index(table: &mut Table) {
    const PACKS: u64 = 1000;
    const PER_PACK: u64 = 1500;
    let folder = tempfile::tempdir().unwrap();
    let page_file = folder.path().join("pages");
    std::fs::write(&page_file, random(32 * MIB, 3)).unwrap();
    let pages = std::fs::File::open(&page_file).unwrap();
    let probes: Vec<[u8; 16]> = (0..200_000).map(|n| prefix(n * 7 % (PACKS * PER_PACK))).collect();
    let absent: Vec<[u8; 16]> = (0..200_000).map(|n| prefix(u64::MAX - n)).collect();
    let mut page = [0_u8; 4096];
    let million = 1e6;
    let limit = probes.len() as f64
        / million
        / median_seconds(RUNS, || {
            for probe in &probes {
                let number = u64::from(probe[0]) << 5 | u64::from(probe[1]) >> 3;
                std::os::unix::fs::FileExt::read_exact_at(&pages, &mut page, number * 4096)
                    .unwrap();
                black_box(page[0]);
            }
        });
    table.limit("4 KiB pread, cached", limit, "M/s");
    let index = ChunkIndex::open_temporary(folder.path()).unwrap();
    let began = std::time::Instant::now();
    for pack in 0..PACKS {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&pack.to_le_bytes());
        let mut entries = (0..PER_PACK).map(|entry| {
            (prefix(pack * PER_PACK + entry), (entry / 16) as u32, (entry % 16) as u32)
        });
        index.add_pack(&id, 1, &mut entries).unwrap();
    }
    index.flush().unwrap();
    let inserts = (PACKS * PER_PACK) as f64 / million / began.elapsed().as_secs_f64();
    table.row("index: insert (1.5 M entries)", inserts, "M/s", "pread", limit);
    for (name, probes, expected) in [("index: hit", &probes, true), ("index: miss", &absent, false)]
    {
        let found = probes.len() as f64
            / million
            / median_seconds(RUNS, || {
                for probe in probes {
                    assert_eq!(index.contains(probe).unwrap(), expected);
                }
            });
        table.row(name, found, "M/s", "pread", limit);
    }
}
