//! `demo`: the main job, on a disk made for it, with every command printed.
//!
//! Invariant: it runs this very program as a user would; nothing is done behind the scenes but
//! making and changing the disk image.

use super::context::Context;
use super::demo_image::{DEMO_IMAGE_BYTES, DemoImage};
use super::output::line;
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Options of `demo`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Work in this new folder and leave it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// The dates of the three points.
const DAYS: [&str; 3] = ["2026-11-01T03:00:00Z", "2026-11-02T03:00:00Z", "2026-11-03T03:00:00Z"];
/// A password that protects nothing but the demo.
const PASSWORD: &str = "demo";

/// Runs `demo`.
///
/// # Errors
/// Fails at the first step that does not do what it should.
pub fn run(_context: &Context, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    match &arguments.keep {
        Some(folder) => {
            let cannot = |cause| {
                Error::io(ErrorKind::Target, format!("cannot make {}", folder.display()), cause)
            };
            fs::create_dir(folder).map_err(cannot)?;
            let folder = fs::canonicalize(folder).map_err(cannot)?;
            steps(&folder)?;
            line(&format!("\nEverything is in {}.", folder.display()))?;
        }
        None => {
            let folder = tempfile::tempdir().map_err(|cause| {
                Error::io(ErrorKind::Failed, "cannot make a temporary folder", cause)
            })?;
            steps(folder.path())?;
            line("\nThe folder is removed again; `diskvault demo --keep DIR` leaves it.")?;
        }
    }
    line(&format!("Done in {:.1} s.", began.elapsed().as_secs_f64()))
}

struct Session {
    program: PathBuf,
    folder: PathBuf,
}

fn steps(folder: &Path) -> Result<()> {
    let program = std::env::current_exe()
        .map_err(|cause| Error::io(ErrorKind::Failed, "cannot find this program", cause))?;
    let session = Session { program, folder: folder.to_path_buf() };
    line(&format!("A demo in {}. To repeat it there:\n", folder.display()))?;
    line(&format!("$ cd {}", folder.display()))?;
    for (name, value) in session.environment() {
        line(&format!("$ export {name}={value}"))?;
    }
    session.diskvault(&["init", "--recovery-key-file", "recovery-key.txt"])?;

    let disk = folder.join("web01.raw");
    let image = DemoImage::create(&disk, DEMO_IMAGE_BYTES)?;
    let backup = |day: usize| {
        session.diskvault(&["backup", "--name", "web01", "--time", DAYS[day], "web01.raw"])
    };
    session
        .tell("Day 1: a machine is installed on a partitioned disk (GPT, two FAT file systems).")?;
    image.install()?;
    backup(0)?;
    session.tell("Day 2: an upgrade. The disk of this day is kept aside, for comparison.")?;
    image.upgrade()?;
    backup(1)?;
    copy_sparse(&disk, &folder.join("day2.raw"))?;
    session.tell("Day 3: an accident: files are gone, the database is noise. Nobody noticed.")?;
    image.accident()?;
    backup(2)?;

    session.tell("What there is:")?;
    session.diskvault(&["list"])?;
    session.tell("Back to noon of day 2, into a new file:")?;
    session.diskvault(&["restore", "web01@2026-11-02T12:00:00Z", "restored.raw"])?;
    compare(&session, "day2.raw", "restored.raw")?;
    session.tell("The digest of the restored disk, from the map alone:")?;
    session.diskvault(&["digest", "web01@latest~1"])?;
    let digest = digest_of(&folder.join("restored.raw"))?;
    line(&format!("(b3sum restored.raw would print {digest})"))?;
    session.tell("Is everything that is stored whole?")?;
    session.diskvault(&["check", "--read-data"])?;
    let stored = folder_bytes(&folder.join("repository"))?;
    let seen = 3 * DEMO_IMAGE_BYTES;
    session.tell(&format!(
        "Three points of {} in a repository of {}.",
        format_bytes(seen / 3),
        format_bytes(stored)
    ))
}

impl Session {
    fn environment(&self) -> [(&'static str, &'static str); 3] {
        [
            ("DISKVAULT_REPOSITORY", "repository"),
            ("DISKVAULT_PASSWORD", PASSWORD),
            ("DISKVAULT_CACHE_DIR", "cache"),
        ]
    }

    fn tell(&self, text: &str) -> Result<()> {
        line(&format!("\n{text}"))
    }

    /// Prints a command, runs it and prints what it says.
    fn diskvault(&self, arguments: &[&str]) -> Result<()> {
        line(&format!("\n$ diskvault {}", arguments.join(" ")))?;
        let output = Command::new(&self.program)
            .args(arguments)
            .current_dir(&self.folder)
            .env_remove("DISKVAULT_REPOSITORY_FILE")
            .envs(self.environment())
            .output()
            .map_err(|cause| Error::io(ErrorKind::Failed, "cannot run diskvault", cause))?;
        for bytes in [&output.stderr, &output.stdout] {
            let text = String::from_utf8_lossy(bytes);
            if !text.trim_end().is_empty() {
                line(text.trim_end())?;
            }
        }
        if !output.status.success() {
            let text = format!("`diskvault {}` ended with {}", arguments.join(" "), output.status);
            return Err(Error::new(ErrorKind::Failed, text));
        }
        Ok(())
    }
}

/// Copies only what is allocated; the standard library's copy keeps no holes.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let source = crate::source::open_disk(from)?;
    let options = crate::target::OpenTarget { size: source.size(), force: false };
    let target = crate::target::open_target(to, options)?;
    let mut buffer = vec![0; 1 << 20];
    source.extents(&mut |extent| {
        if extent.kind == crate::source::ExtentKind::Hole {
            return Ok(());
        }
        let mut done = 0;
        while done < extent.bytes {
            let step = (extent.bytes - done).min(buffer.len() as u64) as usize;
            source.read_at(extent.start + done, &mut buffer[..step])?;
            target.write_at(extent.start + done, &buffer[..step])?;
            done += step as u64;
        }
        Ok(())
    })?;
    target.finish()
}

fn compare(session: &Session, one: &str, two: &str) -> Result<()> {
    line(&format!("\n$ cmp {one} {two}"))?;
    let cannot = |cause| Error::io(ErrorKind::Failed, format!("cannot compare {one}"), cause);
    let open = |name: &str| fs::File::open(session.folder.join(name)).map_err(cannot);
    let (mut first, mut second) = (open(one)?, open(two)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let count = first.read(&mut left).map_err(cannot)?;
        if count == 0 {
            break;
        }
        second.read_exact(&mut right[..count]).map_err(cannot)?;
        if left[..count] != right[..count] {
            let text = format!("{one} and {two} differ after byte {offset}");
            return Err(Error::new(ErrorKind::Damage, text));
        }
        offset += count;
    }
    line(&format!("(no output: {} are the same)", format_bytes(offset as u64)))
}

fn digest_of(path: &Path) -> Result<String> {
    let cannot = |cause| Error::io(ErrorKind::Failed, "cannot read the restored disk", cause);
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path).map_err(cannot)?;
    std::io::copy(&mut file, &mut hasher).map_err(cannot)?;
    Ok(hasher.finalize().to_string())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let cannot = |cause| Error::io(ErrorKind::Failed, "cannot look into the repository", cause);
    let mut sum = 0;
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let kind = entry.metadata().map_err(cannot)?;
        sum += if kind.is_dir() { folder_bytes(&entry.path())? } else { kind.len() };
    }
    Ok(sum)
}
