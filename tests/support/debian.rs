//! A disk image with a real Debian in it, for tests that want a guest nobody invented.
//!
//! Built once per machine (debootstrap needs root, a mirror and about a minute) and kept; each
//! caller gets a sparse copy of its own. Where anything is missing the caller skips its test.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::StreamSlice;
use gpt::GptConfig;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const RELEASE: &str = "bookworm";
const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
const IMAGE_BYTES: u64 = 2048 * MIB;
const ESP_BYTES: u64 = 128 * MIB;
const ROOT_START: u64 = MIB + ESP_BYTES;
/// The last mebibyte belongs to the backup partition table.
const ROOT_BYTES: u64 = IMAGE_BYTES - MIB - ROOT_START;
const ROOT_GUID: &str = "6b1de5a0-7d0c-4c6e-9d57-d15c0a120003";

/// Puts a 2 GiB Debian disk image into `dir` and returns its path; the caller owns it.
///
/// The image is built on the first call and kept in `target/test-images`, or where
/// `DISKVAULT_TEST_IMAGES` says. `None`, after a line on stderr, if this machine cannot build it.
#[allow(clippy::print_stderr)] // Test harnesses show it; a skipped test must not be silent.
pub fn debian_image(dir: &Path) -> Option<PathBuf> {
    let place = || -> Result<PathBuf> {
        let kept = kept_image()?;
        let path = dir.join("debian.raw");
        run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(kept).arg(&path))?;
        Ok(path)
    };
    place().inspect_err(|reason| eprintln!("skipped: {reason}")).ok()
}

/// The path of the kept image, built if it is not there yet.
fn kept_image() -> Result<PathBuf> {
    let folder = match env::var_os("DISKVAULT_TEST_IMAGES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-images"),
    };
    fs::create_dir_all(&folder)?;
    // Tests run side by side, in threads and in processes: the first one builds, the rest wait.
    let lock = File::create(folder.join("debian.lock"))?;
    lock.lock()?;
    let kept = folder.join(format!("debian-{RELEASE}.raw"));
    if !kept.exists() {
        if !rustix::process::geteuid().is_root() {
            return Err("debootstrap needs root".into());
        }
        for tool in ["debootstrap", "unshare", "mkfs.ext4", "cp"] {
            find_tool(tool)?;
        }
        let mirror = apt_mirror().ok_or(format!("apt knows no mirror of {RELEASE}"))?;
        // In the same folder, so that the finished image appears by a rename.
        let work = tempfile::tempdir_in(&folder)?;
        let image = work.path().join("debian.raw");
        build(work.path(), &image, &mirror)?;
        fs::rename(&image, &kept)?;
    }
    Ok(kept)
}

fn find_tool(name: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if found { Ok(()) } else { Err(format!("{name} is not installed").into()) }
}

/// Runs a program; its output appears only in the error, as the last lines of it.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let tail: Vec<&str> = text.lines().rev().take(3).collect();
    Err(format!("{name} failed ({}): {}", output.status, tail.join(" / ")).into())
}

/// The first mirror in apt's own configuration that carries the release.
fn apt_mirror() -> Option<String> {
    let apt = Path::new("/etc/apt");
    let mut lists = vec![apt.join("sources.list")];
    let mut more: Vec<PathBuf> = fs::read_dir(apt.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    more.sort();
    lists.append(&mut more);
    lists.iter().find_map(|list| {
        let text = fs::read_to_string(list).ok()?;
        match list.extension()?.to_str()? {
            "list" => text.lines().find_map(mirror_of_line),
            "sources" => text.split("\n\n").find_map(mirror_of_stanza),
            _ => None,
        }
    })
}

/// `deb [options] URI suite component...`
fn mirror_of_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    let mut words = rest.split_whitespace();
    let uri = words.next()?;
    (words.next()? == RELEASE && uri.starts_with("http")).then(|| uri.to_owned())
}

/// A deb822 stanza: `Types`, `URIs` and `Suites` on lines of their own.
fn mirror_of_stanza(stanza: &str) -> Option<String> {
    let field = |name: &str| {
        let value = stanza.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().split_whitespace()
    };
    let carries = field("Types:").any(|kind| kind == "deb")
        && field("Suites:").any(|suite| suite == RELEASE)
        && field("Enabled:").all(|value| value != "no");
    let mut uris = field("URIs:").filter(|uri| uri.starts_with("http"));
    if carries { uris.next().map(str::to_owned) } else { None }
}

fn build(work: &Path, image: &Path, mirror: &str) -> Result<()> {
    let root = work.join("root");
    // debootstrap mounts /proc and /sys below the folder; with mounts of its own none of them is
    // left when it fails and the folder is deleted.
    run(Command::new("unshare")
        .args([
            "--mount",
            "debootstrap",
            "--variant=minbase",
            "--include=linux-image-cloud-amd64",
            RELEASE,
        ])
        .args([root.as_os_str(), mirror.as_ref()]))?;
    fs::write(root.join("etc/fstab"), format!("PARTUUID={ROOT_GUID} / ext4 defaults 0 1\n"))?;
    fs::write(root.join("etc/hostname"), "debian\n")?;
    // What apt downloaded is in the packages' files already.
    let _ = fs::remove_dir_all(root.join("var/cache/apt/archives"));

    let file = File::options().read(true).write(true).create_new(true).open(image)?;
    file.set_len(IMAGE_BYTES)?;
    // Without discard: mkfs would punch a hole where everything is one already. The size is
    // given, since the partition ends before the file does.
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "root", "-E", &format!("offset={ROOT_START},nodiscard"), "-d"])
        .args([root.as_os_str(), image.as_os_str()])
        .arg(format!("{}k", ROOT_BYTES / 1024)))?;
    write_partition_table(&file)?;
    write_esp(file, &root)
}

fn write_partition_table(mut file: &File) -> Result<()> {
    let sectors = u32::try_from(IMAGE_BYTES / SECTOR_BYTES - 1)?;
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file)?;
    let mut table = GptConfig::new()
        .writable(true)
        .create_from_device(file, Some("6b1de5a0-7d0c-4c6e-9d57-d15c0a120001".parse()?))?;
    let esp = Partition {
        part_type_guid: partition_types::EFI,
        part_guid: "6b1de5a0-7d0c-4c6e-9d57-d15c0a120002".parse()?,
        first_lba: MIB / SECTOR_BYTES,
        last_lba: ROOT_START / SECTOR_BYTES - 1,
        flags: 0,
        name: "esp".to_owned(),
    };
    let root = Partition {
        part_type_guid: partition_types::LINUX_FS,
        part_guid: ROOT_GUID.parse()?,
        first_lba: ROOT_START / SECTOR_BYTES,
        last_lba: (ROOT_START + ROOT_BYTES) / SECTOR_BYTES - 1,
        flags: 0,
        name: "root".to_owned(),
    };
    table.update_partitions(BTreeMap::from([(1, esp), (2, root)]))?;
    table.write()?;
    Ok(())
}

/// Kernel, initrd and a script for the UEFI shell, which starts the kernel by its EFI stub. All
/// in the root folder: fatfs 0.3 makes folders that fsck finds fault with.
fn write_esp(file: File, root: &Path) -> Result<()> {
    let mut window = StreamSlice::new(file, MIB, ROOT_START)?;
    let options = FormatVolumeOptions::new().volume_id(0xd15c_0003);
    fatfs::format_volume(&mut window, options)?;
    let volume = FileSystem::new(window, FsOptions::new())?;
    for (name, prefix) in [("vmlinuz", "vmlinuz-"), ("initrd.img", "initrd.img-")] {
        let mut boot = fs::read_dir(root.join("boot"))?.flatten().map(|entry| entry.path());
        let path = boot.find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
        let path = path.ok_or(format!("debootstrap left no {name}"))?;
        let mut target = volume.root_dir().create_file(name)?;
        io::copy(&mut File::open(path)?, &mut target)?;
        io::Write::flush(&mut target)?;
    }
    let script = format!(
        "fs0:\\vmlinuz initrd=\\initrd.img root=PARTUUID={ROOT_GUID} rw console=ttyS0 init=/bin/sh\n"
    );
    let mut target = volume.root_dir().create_file("startup.nsh")?;
    io::Write::write_all(&mut target, script.as_bytes())?;
    io::Write::flush(&mut target)?;
    drop(target);
    volume.unmount()?;
    Ok(())
}
