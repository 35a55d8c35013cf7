//! Disk images of every format against the tools that wrote them: the guest's view is what they
//! convert to, what is not allocated is not read, and what is hostile is refused.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

use diskvault::error::{Error, ErrorKind, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::source::{Changes, DiskSource, ExtentKind, ImageFormat, ImageOptions, open_image};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use tempfile::TempDir;

#[path = "formats/ova.rs"]
mod ova;
#[path = "support/ova.rs"]
mod ova_made;
#[path = "formats/qcow2.rs"]
mod qcow2;
#[path = "formats/qcow2_bitmaps.rs"]
mod qcow2_bitmaps;
#[path = "formats/vhd.rs"]
mod vhd;
#[path = "formats/vhd_made.rs"]
mod vhd_made;
#[path = "formats/vhdx.rs"]
mod vhdx;
#[path = "formats/vhdx_bad.rs"]
mod vhdx_bad;
#[path = "formats/vhdx_made.rs"]
mod vhdx_made;
#[path = "formats/vmdk.rs"]
mod vmdk;
#[path = "formats/vmdk_bad.rs"]
mod vmdk_bad;
#[path = "formats/vmdk_made.rs"]
mod vmdk_made;

/// A folder for images, and the program that makes them.
struct Workshop(TempDir);

impl Workshop {
    /// Nothing, with a message, where there is no qemu-img.
    fn new() -> Option<Workshop> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: there is no qemu-img");
            return None;
        }
        Some(Workshop(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program in the folder; its output.
    fn run(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let output =
            Command::new(program).args(arguments).current_dir(self.0.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        output.stdout
    }

    fn qemu_img(&self, arguments: &[&str]) -> Vec<u8> {
        self.run("qemu-img", arguments)
    }

    /// Writes to an image as a guest would: each command is one of qemu-io.
    fn write(&self, image: &str, commands: &[&str]) {
        let mut arguments = vec![];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(image);
        self.run("qemu-io", &arguments);
    }

    fn open_with(&self, name: &str, options: &ImageOptions) -> Result<Box<dyn DiskSource>> {
        open_image(&self.path(name), options, &Silent)
    }

    fn open(&self, name: &str) -> Result<Box<dyn DiskSource>> {
        self.open_with(name, &ImageOptions::default())
    }

    /// The view is what qemu-img makes of the image, in pieces of any size, and what it says of
    /// allocation is what qemu-img says.
    fn assert_same_view(&self, name: &str) -> Box<dyn DiskSource> {
        let source = self.assert_same_bytes(name);
        assert_eq!(data_of(source.as_ref()), self.allocation(&[name]), "{name}: allocation");
        source
    }

    /// The view is what qemu-img makes of the image, in pieces of any size.
    fn assert_same_bytes(&self, name: &str) -> Box<dyn DiskSource> {
        self.qemu_img(&["convert", "-O", "raw", name, "converted"]);
        let expected = fs::read(self.path("converted")).unwrap();
        let source = self.open(name).unwrap();
        assert_view(source.as_ref(), &expected, name);
        source
    }

    /// What `top` tells as changed over the image `base` that it lies over: outside of that the two
    /// have the same bytes, as far as both go.
    fn changed_over(&self, top: &str, base: &str) -> Vec<Range<u64>> {
        let (source, below) = (self.open(top).unwrap(), self.open(base).unwrap());
        let mut changes = Changes::default();
        let is_base = |disk: &dyn DiskSource| disk.describe().ends_with(base);
        let mut add = |range| {
            changes.add(range);
            Ok(())
        };
        assert!(source.changed_over(&is_base, &mut add).unwrap(), "{top} over {base}");
        assert!(!source.changed_over(&|_| false, &mut |_| Ok(())).unwrap());
        assert!(!below.changed_over(&is_base, &mut |_| Ok(())).unwrap());
        let told = changes.finish();
        let (mut new, mut old) = (vec![0; source.size() as usize], vec![0; below.size() as usize]);
        source.read_at(0, &mut new).unwrap();
        below.read_at(0, &mut old).unwrap();
        assert!(new.len() <= old.len() || told.last().unwrap().end >= source.size());
        let ends = told.iter().map(|range| range.start).chain([source.size()]);
        for (start, end) in std::iter::once(0).chain(told.iter().map(|range| range.end)).zip(ends) {
            let range = start as usize..(end.max(start) as usize).min(new.len()).min(old.len());
            assert!(
                new.get(range.clone()) == old.get(range.clone()),
                "{top} over {base}: {range:?}"
            );
        }
        told
    }

    /// The ranges that qemu-img calls data of an image; or of raw files, one behind the other.
    fn allocation(&self, names: &[&str]) -> Vec<Range<u64>> {
        let (mut data, mut behind): (Vec<Range<u64>>, _) = (Vec::new(), 0);
        for name in names {
            let is_raw = names.len() > 1 || name.contains("-f");
            let format: &[&str] = if is_raw { &["-f", "raw"] } else { &[] };
            let arguments = [&["map", "--output=json"], format, &[name]].concat();
            behind = Workshop::add_allocation(&self.qemu_img(&arguments), behind, &mut data);
        }
        data
    }

    /// Adds what a map calls data, with so many bytes in front; the end of the map.
    fn add_allocation(map: &[u8], behind: u64, data: &mut Vec<Range<u64>>) -> u64 {
        let map: serde_json::Value = serde_json::from_slice(map).unwrap();
        let mut end = behind;
        for entry in map.as_array().unwrap() {
            let start = behind + entry["start"].as_u64().unwrap();
            end = start + entry["length"].as_u64().unwrap();
            if !entry["data"].as_bool().unwrap() {
                continue;
            }
            match data.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => data.push(start..end),
            }
        }
        end
    }
}

/// The ranges that qemu-img calls data.
fn data_of_map(map: &[u8]) -> Vec<Range<u64>> {
    let mut data = Vec::new();
    Workshop::add_allocation(map, 0, &mut data);
    data
}

/// The ranges that have to be read; the extents cover the disk.
fn data_of(source: &dyn DiskSource) -> Vec<Range<u64>> {
    let (mut at, mut data) = (0, Vec::new());
    source
        .extents(&mut |extent| {
            assert_eq!(extent.start, at);
            at += extent.bytes;
            if extent.kind == ExtentKind::Data {
                data.push(extent.start..at);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(at, source.size());
    data
}

fn assert_view(source: &dyn DiskSource, expected: &[u8], what: &str) {
    assert_eq!(source.size(), expected.len() as u64, "{what}: size");
    for step in [3_000_001, 65_536, 4096 * 3 + 512] {
        let mut found = vec![0xaa; expected.len()];
        for (number, piece) in found.chunks_mut(step).enumerate() {
            source.read_at((number * step) as u64, piece).unwrap();
        }
        assert!(found == expected, "{what}: in steps of {step}");
    }
    let mut hole = 0;
    for range in data_of(source) {
        let before = &expected[hole as usize..range.start as usize];
        assert!(before.iter().all(|byte| *byte == 0), "{what}: a hole in front of {range:?}");
        hole = range.end;
    }
    assert!(expected[hole as usize..].iter().all(|byte| *byte == 0), "{what}: the last hole");
}

/// The error of what must not open or must not be read.
fn refused(workshop: &Workshop, name: &str) -> Error {
    let read = |source: Box<dyn DiskSource>| -> Result<()> {
        source.extents(&mut |_| Ok(()))?;
        let mut buffer = vec![0; 1 << 20];
        for at in (0..source.size().min(64 << 20)).step_by(buffer.len()) {
            let bytes = (source.size() - at).min(buffer.len() as u64) as usize;
            source.read_at(at, &mut buffer[..bytes])?;
        }
        Ok(())
    };
    workshop.open(name).and_then(read).expect_err(name)
}

/// Remembers what it is warned of.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
}
