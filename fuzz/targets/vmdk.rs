//! VMDK images of an attacker: reading ends, in bounded memory, with bytes or an error. What lies
//! beside them is not opened.
//!
//! The first byte says how many times 64 bytes are the image; the rest is `x`, the file of its
//! extents or its parent. With 0 all of it is the image.
#![no_main]

use diskvault::monitor::Silent;
use diskvault::source::{ImageFormat, ImageOptions, open_image};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;

/// Larger disks are walked, and read at their start and their end.
const READ_BYTES_MAX: u64 = 4 << 20;

fuzz_target!(|input: &[u8]| {
    let folder = PathBuf::from(format!("/dev/shm/fuzz-vmdk-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let Some((split, input)) = input.split_first() else { return };
    let at = if *split == 0 { input.len() } else { input.len().min(usize::from(*split) * 64) };
    let (image, other) = input.split_at(at);
    let path = folder.join("image");
    std::fs::write(&path, image).unwrap();
    std::fs::write(folder.join("x"), other).unwrap();
    let format = Some(ImageFormat::Vmdk);
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
