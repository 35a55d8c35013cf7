//! The second reader, `repo-format/reader/restore.py`, restores what the program backed up: it
//! was written from the specification alone, so where the two agree the specification is right.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skipped")]
#![allow(missing_docs, reason = "nobody but the tests uses it")]

#[path = "support/files.rs"]
mod files;
#[path = "support/lab.rs"]
mod lab;

use diskvault::backup::{ChunkerChoice, InputRequest};
use diskvault::storage::local::LocalStorage;
use files::{noise, punch};
use lab::{Lab, disk, stream};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

const MODULES: &str = "import blake3, zstandard, nacl, argon2";
/// What opens the repository of the test vectors.
const VECTOR_PASSWORD: &str = "correct horse battery staple";

fn format_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-format")
}

/// The reader, or none, after a line on stderr, where it cannot run. With
/// `DISKVAULT_REQUIRE_READER`, as in CI, a reader that cannot run is a failure.
fn find_reader() -> Option<PathBuf> {
    let skip = |why: String| {
        assert!(std::env::var_os("DISKVAULT_REQUIRE_READER").is_none(), "{why}");
        eprintln!("skipped: {why}");
        None
    };
    let reader = format_folder().join("reader/restore.py");
    if !reader.is_file() {
        return skip(format!("there is no {}", reader.display()));
    }
    match Command::new("python3").args(["-c", MODULES]).output() {
        Ok(output) if output.status.success() => Some(reader),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let why = text.lines().last().unwrap_or_default();
            skip(format!("{why}; `pip install blake3 zstandard pynacl argon2-cffi` helps"))
        }
        Err(error) => skip(format!("cannot run python3: {error}")),
    }
}

/// A repository as the reader sees it.
struct Reading<'a> {
    reader: &'a Path,
    repository: &'a Path,
    password: &'a str,
}

impl Reading<'_> {
    fn run(&self, series: &str, part: &str, target: &Path, point: Option<&str>) -> Output {
        let mut command = Command::new("python3");
        command.arg(self.reader).arg(self.repository).args([series, part]).arg(target);
        if let Some(point) = point {
            command.args(["--point", point]);
        }
        command.env("DISKVAULT_PASSWORD", self.password).output().unwrap()
    }

    /// Asserts that the part comes back as `expected`.
    fn assert_restores(&self, (series, part): (&str, &str), point: Option<&str>, expected: &[u8]) {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("restored");
        let output = self.run(series, part, &target, point);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{series}/{part}: {error}");
        assert!(fs::read(&target).unwrap() == expected, "{series}/{part}: other bytes");
    }
}

/// All files below `folder`, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A disk with data, written zeros, holes and an end inside of a chunk; two days of it.
fn write_disk(path: &Path, day: u64) {
    let file = File::create(path).unwrap();
    file.set_len((6 << 20) + 1536).unwrap();
    file.write_all_at(&noise(1, 900_000), 0).unwrap();
    file.write_all_at(&vec![0; 300_000], 1 << 20).unwrap();
    file.write_all_at(&noise(2, 200_000), 5_000_000).unwrap();
    file.write_all_at(&noise(3, 1000), 6 << 20).unwrap();
    file.write_all_at(&b"the same line again\n".repeat(20_000), 2 << 20).unwrap();
    punch(&file, 65_536, 131_072);
    if day == 2 {
        file.write_all_at(&noise(4, 70_000), 3 << 20).unwrap();
        punch(&file, 5_000_000 / 4096 * 4096, 16_384);
    }
}

/// Parts in the order of `inputs`: a grid disk and a stream, and a disk cut by content.
struct Written {
    lab: Lab,
    root: PathBuf,
    /// Of each day: the point of series `grid`, that of series `content`, and the bytes of the
    /// disk and the stream.
    days: Vec<(String, String, Vec<u8>, Vec<u8>)>,
}

fn write_repository(folder: &Path) -> Written {
    let root = folder.join("repository");
    let lab = Lab::make(Arc::new(LocalStorage::create(&root).unwrap()), 65_536, 2);
    let (sda, dump) = (lab.path("sda"), lab.path("dump"));
    let mut days = Vec::new();
    for day in [1, 2] {
        write_disk(&sda, day);
        let text = [noise(day, 5000), noise(8, 700_000), vec![0; 200_000], noise(9, 99)].concat();
        fs::write(&dump, &text).unwrap();
        let inputs: [InputRequest; 2] = [disk("sda", &sda), stream("dump", &dump)];
        let grid = lab.backup("grid", &inputs, ChunkerChoice::Fixed, &[]);
        let content = lab.backup("content", &inputs[..1], ChunkerChoice::Content, &[]);
        let bytes = fs::read(&sda).unwrap();
        days.push((grid.point.to_hex(), content.point.to_hex(), bytes, text));
    }
    lab.assert_sound();
    Written { lab, root, days }
}

#[test]
fn the_second_reader_restores_every_part_of_every_point() {
    let Some(reader) = find_reader() else { return };
    let folder = tempfile::tempdir().unwrap();
    let written = write_repository(folder.path());
    let reading = Reading { reader: &reader, repository: &written.root, password: lab::PASSWORD };
    for (grid, content, sda, dump) in &written.days {
        reading.assert_restores(("grid", "sda"), Some(grid), sda);
        reading.assert_restores(("grid", "dump"), Some(&grid[..12]), dump);
        reading.assert_restores(("content", "sda"), Some(content), sda);
    }
    let (_, _, sda, dump) = written.days.last().unwrap();
    reading.assert_restores(("grid", "sda"), None, sda);
    reading.assert_restores(("grid", "dump"), None, dump);
    reading.assert_restores(("content", "sda"), None, sda);
    let wrong = Reading { password: "another", ..reading };
    let target = folder.path().join("restored");
    assert!(!wrong.run("grid", "sda", &target, None).status.success());
    assert!(!target.exists());
    // It has changed nothing.
    written.lab.assert_sound();
}

#[test]
fn the_second_reader_passes_on_no_damage() {
    let Some(reader) = find_reader() else { return };
    let folder = tempfile::tempdir().unwrap();
    let written = write_repository(folder.path());
    let reading = Reading { reader: &reader, repository: &written.root, password: lab::PASSWORD };
    let (_, _, sda, _) = written.days.last().unwrap();
    let packs = files_below(&written.root.join("packs"));
    assert!(packs.len() >= 4, "{} packs", packs.len());
    let target = folder.path().join("restored");
    let mut refused = 0;
    for pack in &packs {
        let whole = fs::read(pack).unwrap();
        let mut flipped = whole.clone();
        // In a sealed segment, or in the padding of a pack with little in it.
        flipped[whole.len() / 5] ^= 0x10;
        fs::set_permissions(pack, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(pack, &flipped).unwrap();
        if reading.run("grid", "sda", &target, None).status.success() {
            assert!(fs::read(&target).unwrap() == *sda, "wrong bytes were restored");
            fs::remove_file(&target).unwrap();
        } else {
            assert!(!target.exists(), "a part of a disk was left");
            refused += 1;
        }
        fs::write(pack, &whole).unwrap();
    }
    assert!(refused > 0, "none of {} damaged packs was refused", packs.len());
    reading.assert_restores(("grid", "sda"), None, sda);
}

/// What [`digest_of`] says of each frozen repository. A format that was released never changes, so
/// no line here ever does; a new version gets another one.
const FROZEN: [(&str, &str); 1] =
    [("v1", "3f8d83b6078ba98dcf9901f515f8eddb9b7ab0d768aa18dac9d7eeef6552f1c7")];

/// Folders with a repository and what its points restore to: as this version makes it, and as each
/// released version of the format did.
fn folders_with_a_repository() -> Vec<PathBuf> {
    let frozen = FROZEN.iter().map(|(version, _)| format_folder().join("frozen").join(version));
    [format_folder().join("vectors")].into_iter().chain(frozen).collect()
}

/// BLAKE3 over the names and bytes of all files.
fn digest_of(folder: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut files = files_below(folder);
    files.sort();
    for file in files {
        let name = file.strip_prefix(folder).unwrap().to_str().unwrap();
        let bytes = fs::read(&file).unwrap();
        hasher.update(format!("{name} {}\n", bytes.len()).as_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize().to_string()
}

#[test]
fn frozen_repositories_are_never_changed() {
    let frozen = format_folder().join("frozen");
    for (version, digest) in FROZEN {
        assert_eq!(digest_of(&frozen.join(version)), digest, "{version}");
    }
    assert_eq!(fs::read_dir(frozen).unwrap().count(), FROZEN.len());
    assert_eq!(FROZEN.len(), usize::from(diskvault_format::limits::FORMAT_VERSION));
}

#[test]
fn the_second_reader_restores_the_frozen_repositories() {
    let Some(reader) = find_reader() else { return };
    for folder in folders_with_a_repository() {
        let repository = folder.join("repository");
        let reading =
            Reading { reader: &reader, repository: &repository, password: VECTOR_PASSWORD };
        let expected = |name: &str| fs::read(folder.join("expected").join(name)).unwrap();
        let mut days = Vec::new();
        for object in files_below(&repository.join("points")) {
            let id = object.file_name().unwrap().to_str().unwrap();
            if id.ends_with(".ok") {
                continue;
            }
            // Which day a point is shows by its disk.
            let target = tempfile::tempdir().unwrap();
            let target = target.path().join("disk");
            assert!(reading.run("tiny", "disk", &target, Some(id)).status.success());
            let bytes = fs::read(&target).unwrap();
            let day = if bytes == expected("day-1/disk") { 1 } else { 2 };
            assert!(bytes == expected(&format!("day-{day}/disk")), "point {id}: other bytes");
            let xml = expected(&format!("day-{day}/vm.xml"));
            reading.assert_restores(("tiny", "vm.xml"), Some(id), &xml);
            if day == 2 {
                reading.assert_restores(("tiny", "moved"), Some(id), &expected("day-2/moved"));
            }
            days.push(day);
        }
        days.sort_unstable();
        assert_eq!(days, [1, 2], "{}", folder.display());
        reading.assert_restores(("tiny", "disk"), None, &expected("day-2/disk"));
    }
}

/// What opens the key slot of the writer in `vectors/writers`.
const WRITER_PASSWORD: &str = "write and never read";

/// The object in a file of the vectors: behind an empty line, without the runs of zeros that the
/// line `zeros` names.
fn object_in(file: &[u8]) -> Vec<u8> {
    let end = file.windows(2).position(|pair| pair == b"\n\n").unwrap();
    let mut rest = &file[end + 2..];
    let header = std::str::from_utf8(&file[..end]).unwrap();
    let places = header.lines().find_map(|line| line.strip_prefix("zeros: ")).unwrap_or_default();
    let mut object = Vec::new();
    for place in places.split_whitespace() {
        let (offset, length) = place.split_once('+').unwrap();
        let (offset, length): (usize, usize) = (offset.parse().unwrap(), length.parse().unwrap());
        let (before, after) = rest.split_at(offset - object.len());
        object.extend_from_slice(before);
        object.resize(offset + length, 0);
        rest = after;
    }
    object.extend_from_slice(rest);
    object
}

/// Writes the repository of the vectors with what a writer that may not read has added.
fn write_with_a_writer(root: &Path) {
    let vectors = format_folder().join("vectors");
    for (folder, is_vector) in [("repository", false), ("writers/repository", true)] {
        let folder = vectors.join(folder);
        for file in files_below(&folder) {
            let target = root.join(file.strip_prefix(&folder).unwrap());
            let bytes = fs::read(&file).unwrap();
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, if is_vector { object_in(&bytes) } else { bytes }).unwrap();
        }
    }
}

#[test]
fn the_second_reader_restores_what_a_writer_stored_that_may_not_read() {
    let Some(reader) = find_reader() else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    write_with_a_writer(&root);
    let reading = Reading { reader: &reader, repository: &root, password: VECTOR_PASSWORD };
    let vectors = format_folder().join("vectors");
    for part in ["disk", "vm.xml"] {
        let expected = fs::read(vectors.join("writers/expected/kvm2").join(part)).unwrap();
        reading.assert_restores(("kvm2", part), None, &expected);
        let expected = fs::read(vectors.join("expected/day-2").join(part)).unwrap();
        reading.assert_restores(("tiny", part), None, &expected);
    }
    let target = folder.path().join("restored");
    let writer = Reading { password: WRITER_PASSWORD, ..reading };
    let refused = writer.run("kvm2", "disk", &target, None);
    assert!(!refused.status.success() && !target.exists());
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("the secret of a write-only key"), "{error}");
    // Without its record the writer is nobody, and what it made counts for nothing.
    fs::remove_dir_all(root.join("writers")).unwrap();
    let reading = Reading { password: VECTOR_PASSWORD, ..writer };
    let refused = reading.run("kvm2", "disk", &target, None);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("refused by O-6"), "{error}");
    assert!(!target.exists());
}

/// The program restores them too, with the same result.
#[test]
fn the_program_restores_the_frozen_repositories() {
    let cache = tempfile::tempdir().unwrap();
    let parts = [("day-1", "disk"), ("day-1", "vm.xml"), ("day-2", "disk"), ("day-2", "moved")];
    for folder in folders_with_a_repository() {
        for (day, part) in parts.into_iter().chain([("day-2", "vm.xml")]) {
            let point = if day == "day-2" { "tiny@latest" } else { "tiny@latest~1" };
            let output = Command::new(env!("CARGO_BIN_EXE_diskvault"))
                .args(["dump", &format!("{point}/{part}")])
                .env("DISKVAULT_REPOSITORY", folder.join("repository"))
                .env("DISKVAULT_PASSWORD", VECTOR_PASSWORD)
                .env("DISKVAULT_CACHE_DIR", cache.path())
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let what = format!("{}: {point}/{part}", folder.display());
            assert!(output.status.success(), "{what}: {error}");
            let expected = fs::read(folder.join("expected").join(day).join(part)).unwrap();
            assert!(output.stdout == expected, "{what}: other bytes");
        }
    }
}
