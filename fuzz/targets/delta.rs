//! Deltas of an attacker: applying one ends with the disk that it tells, or with an error; a base that is
//! not the one it is about stays as it is.
//!
//! By the first byte: a file as it is; frames whose checks are made right; or changes of a disk that
//! is known here, which must all arrive.
#![no_main]

use diskvault::delta::apply::{Applied, Apply};
use diskvault::monitor::Silent;
use diskvault_format::delta::{Change, Description, Frames, Head, Payload};
use libfuzzer_sys::fuzz_target;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Bytes of the base.
const BASE_BYTES: usize = 64 << 10;
/// The disk after is at most so much longer.
const MORE_BYTES: u64 = 4096;

fn base() -> Vec<u8> {
    (0..BASE_BYTES).map(|at| (at / 7) as u8).collect()
}

fn pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| ThreadPoolBuilder::new().num_threads(1).build().unwrap())
}

/// A plain delta of these payloads.
fn file_of(payloads: &[Vec<u8>]) -> Vec<u8> {
    let head = Head { cost: None, salt: [5; 32] };
    let mut frames = Frames::new(&head, None).unwrap();
    let mut file = head.encode().to_vec();
    for (number, payload) in payloads.iter().enumerate() {
        file.extend(frames.seal(payload, number + 1 == payloads.len()));
    }
    file
}

fn description(new: &[u8]) -> Description {
    Description {
        old_point: "a".into(),
        new_point: "b".into(),
        disk: "vda".into(),
        old_bytes: BASE_BYTES as u64,
        new_bytes: new.len() as u64,
        old_digest: *blake3::hash(&base()).as_bytes(),
        new_digest: *blake3::hash(new).as_bytes(),
    }
}

/// Payloads of bytes: each behind its length.
fn pieces(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let (piece, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        found.push(piece.to_vec());
        input = rest;
    }
    found
}

/// Changes, and the disk after them.
fn changes(input: &[u8]) -> (Vec<Change>, Vec<u8>) {
    let (first, input) = input.split_at(input.len().min(2));
    let more = first.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) % (2 * MORE_BYTES);
    let mut disk = base();
    disk.resize((BASE_BYTES as u64 + more - MORE_BYTES.min(more)) as usize, 0);
    let (mut found, mut at) = (Vec::new(), 0);
    for step in input.chunks_exact(4) {
        at += usize::from(u16::from_le_bytes([step[0], step[1]]) % 5000);
        let bytes = usize::from(step[2]) + 1;
        let Some(place) = disk.get_mut(at..at + bytes) else { break };
        place.fill(step[3]);
        let data = (step[3] != 0).then(|| place.to_vec());
        found.push(Change { offset: at as u64, bytes: bytes as u32, data });
        at += bytes;
    }
    (found, disk)
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else { return };
    let mut expected = None;
    let file = match kind % 3 {
        0 => input.to_vec(),
        1 => file_of(&pieces(input)),
        _ => {
            let (changes, disk) = changes(input);
            let count = changes.len() as u64;
            let about = Payload::Description(description(&disk));
            let mut payloads = vec![about.encode().unwrap()];
            payloads.extend(changes.chunks(9).map(|some| Payload::Changes(some.to_vec()).encode().unwrap()));
            payloads.push(Payload::End(count).encode().unwrap());
            expected = Some(disk);
            file_of(&payloads)
        }
    };
    let folder = PathBuf::from(format!("/dev/shm/fuzz-delta-{}", std::process::id()));
    let journal = folder.join("journal");
    std::fs::create_dir_all(&journal).unwrap();
    let (path, target) = (folder.join("delta"), folder.join("base"));
    std::fs::write(&path, &file).unwrap();
    std::fs::write(&target, base()).unwrap();
    let apply = Apply {
        file: &path,
        passphrase: None,
        base: &target,
        force: false,
        journal: &journal,
        pool: pool(),
        monitor: &Silent,
    };
    let done = apply.run();
    let found = std::fs::read(&target).unwrap();
    match &done {
        Ok((description, applied)) => {
            assert_eq!(*blake3::hash(&found).as_bytes(), description.new_digest);
            assert_eq!(found.len() as u64, description.new_bytes);
            assert!(found == base() || matches!(applied, Applied::Done { .. }));
        }
        // What is about another disk, or is damaged anywhere, was never written.
        Err(error) if !error.full_text().contains("it is not the disk after the delta") => {
            assert!(found == base(), "{}", error.full_text());
        }
        Err(_) => {}
    }
    if let Some(expected) = expected {
        assert!(done.is_ok() && found == expected, "{done:?}");
    }
    // The base that a broken delta was begun on is no longer remembered.
    std::fs::remove_dir_all(&folder).unwrap();
});
