//! VHD images of an attacker, with checksums that are right: reading ends, in bounded memory, with
//! bytes or an error. What lies beside them is not opened but as a parent.
#![no_main]

use diskvault::monitor::Silent;
use diskvault::source::{ImageFormat, ImageOptions, open_image};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;

/// Larger disks are walked, and read at their start and their end.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Makes the checksum at `at` of a structure right, if it is there.
fn mend(bytes: Option<&mut [u8]>, cookie: &[u8], at: usize) {
    let Some(bytes) = bytes else { return };
    bytes[..cookie.len()].copy_from_slice(cookie);
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    let end = image.len().saturating_sub(512);
    mend(image.get_mut(..512), b"conectix", 64);
    mend(image.get_mut(512..1536), b"cxsparse", 36);
    mend(image.get_mut(end..end + 512), b"conectix", 64);
    let folder = PathBuf::from(format!("/dev/shm/fuzz-vhd-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("image");
    std::fs::write(&path, image).unwrap();
    let format = Some(ImageFormat::Vhd);
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
