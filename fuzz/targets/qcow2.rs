//! qcow2 images of an attacker: reading ends, in bounded memory, with bytes or an error. What lies
//! beside them is not opened.
#![no_main]

use diskvault::monitor::Silent;
use diskvault::source::{ImageFormat, ImageOptions, open_image};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;

/// Larger disks are walked, and read at their start and their end.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Bitmaps of one image that are read.
const BITMAPS_MAX: usize = 4;

fuzz_target!(|input: &[u8]| {
    let folder = PathBuf::from(format!("/dev/shm/fuzz-qcow2-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("image");
    std::fs::write(&path, input).unwrap();
    for snapshot in [None, Some("1".to_string())] {
        let format = Some(ImageFormat::Qcow2);
        let options = ImageOptions { format, snapshot, ..ImageOptions::default() };
        let Ok(source) = open_image(&path, &options, &Silent) else { continue };
        let mut at = 0;
        let walked = source.extents(&mut |extent| {
            assert_eq!(extent.start, at);
            at += extent.bytes;
            Ok(())
        });
        assert!(walked.is_err() || at == source.size());
        for name in source.bitmaps().unwrap_or_default().iter().take(BITMAPS_MAX) {
            let Ok(Some(changed)) = source.changed_by_bitmap(name) else { continue };
            let mut at = 0;
            for range in changed {
                assert!(at <= range.start && range.start < range.end && range.end <= source.size());
                at = range.end + 1;
            }
        }
        let bytes = source.size().min(READ_BYTES_MAX);
        let mut buffer = vec![0; bytes as usize];
        let _ = source.read_at(0, &mut buffer);
        let _ = source.read_at(source.size() - bytes, &mut buffer);
    }
});
