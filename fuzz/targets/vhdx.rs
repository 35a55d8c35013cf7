//! VHDX images of an attacker, with checksums that are right: reading ends, in bounded memory, with
//! bytes or an error. The input is edits of an image, each a window, an offset, a length and bytes.
#![no_main]

use crc::{CRC_32_ISCSI, Crc};
use diskvault::monitor::Silent;
use diskvault::source::{ImageFormat, ImageOptions, open_image};
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Larger disks are walked, and read at their start and their end.
const READ_BYTES_MAX: u64 = 4 << 20;
const FILE_BYTES: u64 = 6 << 20;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Where the parts of the image are that matter, and their bytes.
const HEADER: usize = 0;
const REGIONS: usize = 1;
const LOG: usize = 2;
const WINDOWS: [(u64, usize); 6] = [
    (64 << 10, 4096),
    (192 << 10, 64 << 10),
    (1 << 20, 64 << 10),
    (2 << 20, 1024),
    ((2 << 20) + (64 << 10), 1024),
    (3 << 20, 1024),
];
const REGION_IDS: [[u8; 16]; 2] = [
    *b"\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08",
    *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e",
];
const ITEM_IDS: [[u8; 16]; 5] = [
    *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b",
    *b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8",
    *b"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f",
    *b"\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56",
    *b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c",
];

fn set(bytes: &mut [u8], at: usize, value: u64, count: usize) {
    bytes[at..at + count].copy_from_slice(&value.to_le_bytes()[..count]);
}

fn template() -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = WINDOWS.iter().map(|(_, bytes)| vec![0; *bytes]).collect();
    parts[HEADER][..4].copy_from_slice(b"head");
    set(&mut parts[HEADER], 64, 1 << 16, 4);
    set(&mut parts[HEADER], 68, WINDOWS[LOG].1.next_multiple_of(1 << 20) as u64, 4);
    set(&mut parts[HEADER], 72, 1 << 20, 8);
    parts[REGIONS][..4].copy_from_slice(b"regi");
    set(&mut parts[REGIONS], 8, 2, 4);
    for (number, (id, at)) in REGION_IDS.into_iter().zip([3_u64 << 20, 2 << 20]).enumerate() {
        let entry = 16 + 32 * number;
        parts[REGIONS][entry..entry + 16].copy_from_slice(&id);
        set(&mut parts[REGIONS], entry + 16, at, 8);
        set(&mut parts[REGIONS], entry + 24, 1 << 20, 4);
    }
    parts[3][..8].copy_from_slice(b"metadata");
    set(&mut parts[3], 10, ITEM_IDS.len() as u64, 2);
    for (number, id) in ITEM_IDS.into_iter().enumerate() {
        let entry = 32 + 32 * number;
        parts[3][entry..entry + 16].copy_from_slice(&id);
        set(&mut parts[3], entry + 16, (64 << 10) + 16 * number as u64, 4);
        set(&mut parts[3], entry + 20, if number == 4 { 512 } else { 8 }, 4);
    }
    for (number, value) in [1 << 20, 4 << 20, 512, 512].into_iter().enumerate() {
        set(&mut parts[4], 16 * number, value, 8);
    }
    set(&mut parts[5], 0, 4 << 20 | 6, 8);
    parts
}

/// Makes the checksum of a structure right.
fn mend(bytes: &mut [u8]) {
    set(bytes, 4, 0, 4);
    let sum = CRC.checksum(bytes);
    set(bytes, 4, u64::from(sum), 4);
}

fuzz_target!(|input: &[u8]| {
    let mut parts = template();
    let mut rest = input;
    while let [window, low, high, count, more @ ..] = rest {
        let (now, later) = more.split_at(more.len().min(usize::from(*count)));
        let part = &mut parts[usize::from(*window) % WINDOWS.len()];
        let at = (usize::from(*high) << 8 | usize::from(*low)) % part.len();
        let count = now.len().min(part.len() - at);
        part[at..at + count].copy_from_slice(&now[..count]);
        rest = later;
    }
    mend(&mut parts[HEADER]);
    mend(&mut parts[REGIONS]);
    let log_id: [u8; 16] = parts[HEADER][48..64].try_into().unwrap();
    let log = &mut parts[LOG];
    for at in (0..log.len()).step_by(4096).rev() {
        let bytes = u32::from_le_bytes(log[at + 8..at + 12].try_into().unwrap()) as usize;
        if log[at..].starts_with(b"loge") && bytes >= 64 && bytes <= log.len() - at {
            log[at + 32..at + 48].copy_from_slice(&log_id);
            mend(&mut log[at..at + bytes]);
        }
    }
    let folder = PathBuf::from(format!("/dev/shm/fuzz-vhdx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("image");
    let file = File::create(&path).unwrap();
    file.set_len(FILE_BYTES).unwrap();
    file.write_all_at(b"vhdxfile", 0).unwrap();
    for ((at, _), part) in WINDOWS.iter().zip(&parts) {
        file.write_all_at(part, *at).unwrap();
    }
    let format = Some(ImageFormat::Vhdx);
    let options = ImageOptions { format, ..ImageOptions::default() };
    let Ok(source) = open_image(&path, &options, &Silent) else { return };
    let mut at = 0;
    let walked = source.extents(&mut |extent| {
        assert_eq!(extent.start, at);
        at += extent.bytes;
        Ok(())
    });
    assert!(walked.is_err() || at == source.size());
    let bytes = source.size().min(READ_BYTES_MAX);
    let mut buffer = vec![0; bytes as usize];
    let _ = source.read_at(0, &mut buffer);
    let _ = source.read_at(source.size() - bytes, &mut buffer);
});
