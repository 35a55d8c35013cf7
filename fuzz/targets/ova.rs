//! OVA archives of an attacker: their listing ends, in bounded memory, with parts or an error, and so
//! does reading the disks in them. What lies beside them is not opened.
//!
//! Checksums of headers are made right as long as they follow each other. Where the first byte is odd,
//! the rest is the OVF of an archive that has what `DISKS` names.
#![no_main]

use diskvault::monitor::Silent;
use diskvault::source::{DiskSource, ImageOptions, open_image, ova};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tar::{Builder, EntryType, Header};

/// Larger disks are walked, and read at their start and their end.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Files beside an OVF.
const DISKS: [&str; 4] = ["a.vmdk", "b.raw", "c d", "e.mf"];

/// An archive around an OVF.
fn around(ovf: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    add("m.ovf", ovf);
    for name in DISKS {
        add(name, &[1; 700]);
    }
    builder.into_inner().unwrap()
}

/// Makes the checksums right of headers that follow each other.
fn mend(archive: &mut [u8]) {
    let mut at = 0_usize;
    while let Some(block) = archive.get_mut(at..at.saturating_add(512)) {
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0).min(archive.len() as u64) as usize;
        at += 512 + size.next_multiple_of(512);
    }
}

fn read(source: &dyn DiskSource) {
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
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else { return };
    let archive = if kind & 1 == 1 {
        around(input)
    } else {
        let mut archive = input.to_vec();
        mend(&mut archive);
        archive
    };
    let folder = PathBuf::from(format!("/dev/shm/fuzz-ova-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("m.ova");
    std::fs::write(&path, &archive).unwrap();
    let Ok(contents) = ova::read(&path, &Silent) else { return };
    let disks = contents.disks.iter().map(|(window, _)| window);
    let mut names = BTreeSet::new();
    for window in disks.chain(&contents.others) {
        assert!(window.range.end <= archive.len() as u64);
        assert!(names.insert(&window.member), "two parts are one file");
        let mut bytes = Vec::new();
        window.open_stream(&path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, archive[window.range.start as usize..window.range.end as usize]);
    }
    for (window, format) in contents.disks {
        let (format, window) = (Some(format), Some(window));
        let options = ImageOptions { format, window, ..ImageOptions::default() };
        if let Ok(source) = open_image(&path, &options, &Silent) {
            read(source.as_ref());
        }
    }
});
