//! A realistic small VM disk image, made and changed without root and without external programs.
//!
//! The demo and the tests need a guest disk whose content is known: a protective MBR, a GPT, an
//! EFI system partition and a data partition with files that grow, move and vanish the way they
//! do in a machine. Invariant of this file: the same calls give the same bytes, on every machine
//! and at any time, so identifiers, volume ids and clocks are all fixed, and every "random" byte
//! comes from BLAKE3 in its extendable output mode.

mod guest;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::StreamSlice;
use gpt::GptConfig;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types;

use crate::error::{Error, ErrorKind, Result};
use guest::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
/// The size of the image the demo makes.
pub const DEMO_IMAGE_BYTES: u64 = 256 * MIB;
/// Below this the third day's data would not fit.
const IMAGE_BYTES_MIN: u64 = 160 * MIB;
/// Above this formatting would write more file allocation table than the demo writes data.
const IMAGE_BYTES_MAX: u64 = 64 << 30;
const ESP_BYTES: u64 = 64 * MIB;
/// A FAT is FAT32 exactly if it has 65525 clusters or more; the rest is for the tables themselves.
const FAT32_CLUSTERS_MIN: u64 = 70_000;

const DISK_GUID: &str = "6b1de5a0-7d0c-4c6e-9d57-d15c0a110001";
const ESP_GUID: &str = "6b1de5a0-7d0c-4c6e-9d57-d15c0a110002";
const DATA_GUID: &str = "6b1de5a0-7d0c-4c6e-9d57-d15c0a110003";

/// A file system inside the image. No `BufStream` around the slice: fatfs seeks before every
/// access, which empties that buffer each time, and its last flush, on drop, hides errors.
type Volume = FileSystem<StreamSlice<File>>;
type Dir<'a> = fatfs::Dir<'a, StreamSlice<File>>;

/// A partitioned disk image with a FAT file system, made and changed without root.
pub struct DemoImage {
    path: PathBuf,
    esp: Range<u64>,
    data: Range<u64>,
}

impl DemoImage {
    /// Makes a sparse image of `size` bytes with an EFI system partition and an empty data
    /// partition, both on 1 MiB boundaries. The file must not exist.
    pub fn create(path: &Path, size: u64) -> Result<DemoImage> {
        if !size.is_multiple_of(MIB) || !(IMAGE_BYTES_MIN..=IMAGE_BYTES_MAX).contains(&size) {
            let text = format!("cannot make a demo image of {size} bytes");
            return Err(Error::new(ErrorKind::Usage, text)
                .hint("use whole mebibytes, from 160 MiB to 64 GiB"));
        }
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let mut file = file.map_err(failed(ErrorKind::Target, "create", path))?;
        file.set_len(size).map_err(failed(ErrorKind::Target, "create", path))?;
        write_partition_table(&mut file, size).map_err(|cause| {
            let text = format!("cannot write the partition table of {}", path.display());
            Error::new(ErrorKind::Target, text).because(cause)
        })?;
        let image = DemoImage::open(path)?;
        let format = || -> io::Result<()> {
            format_volume(image.window(&image.esp, true)?, FatType::Fat16, 2 * KIB, 0xd15c_0001)?;
            let cluster_bytes = fat32_cluster_bytes(image.data.end - image.data.start);
            let window = image.window(&image.data, true)?;
            format_volume(window, FatType::Fat32, cluster_bytes, 0xd15c_0002)
        };
        format().map_err(failed(ErrorKind::Target, "format", path))?;
        Ok(image)
    }

    /// Opens an image that [`DemoImage::create`] made.
    pub fn open(path: &Path) -> Result<DemoImage> {
        let mut file = File::open(path).map_err(failed(ErrorKind::Source, "open", path))?;
        let table = GptConfig::new().open_from_device(&mut file).map_err(|cause| {
            let text = format!("cannot read the partition table of {}", path.display());
            Error::new(ErrorKind::Source, text).because(cause)
        })?;
        let find = |kind: partition_types::Type, name: &str| {
            let mut partitions = table.partitions().values();
            let found = partitions.find(|partition| partition.part_type_guid == kind);
            let range = found.map(|p| p.first_lba * SECTOR_BYTES..(p.last_lba + 1) * SECTOR_BYTES);
            range.ok_or_else(|| {
                let text = format!("cannot find the {name} partition in {}", path.display());
                Error::new(ErrorKind::Source, text)
            })
        };
        let esp = find(partition_types::EFI, "EFI system")?;
        let data = find(partition_types::BASIC, "data")?;
        Ok(DemoImage { path: path.to_owned(), esp, data })
    }

    /// Day 1: installs a guest: settings, programs, a log, a database, swap and a video.
    pub fn install(&self) -> Result<()> {
        self.change(&self.esp, &DAY_1, |root| write_boot_files(root, 1))?;
        self.change(&self.data, &DAY_1, |root| {
            for (name, text) in SETTINGS {
                write_file(root, name, text.as_bytes())?;
            }
            write_file(root, OS_RELEASE, os_release(1).as_bytes())?;
            for (name, kib, _) in PROGRAMS {
                write_file(root, name, &program(name, kib, 1))?;
            }
            write_file(root, LOG, &log_lines(1, LOG_LINES))?;
            write_file(root, DATABASE, &database())?;
            // Zeros that are written, not holes: a disk has both.
            write_file(root, SWAP, &vec![0; SWAP_BYTES as usize])?;
            write_file(root, MEDIA, &noise(MEDIA, MEDIA_BYTES))
        })?;
        let repair = || -> io::Result<()> {
            repair_folders(self.window(&self.esp, true)?, FatType::Fat16)?;
            repair_folders(self.window(&self.data, true)?, FatType::Fat32)
        };
        repair().map_err(failed(ErrorKind::Target, "repair", &self.path))
    }

    /// Day 2: replaces the kernel and some programs, grows the log, changes database pages.
    pub fn upgrade(&self) -> Result<()> {
        self.change(&self.esp, &DAY_2, |root| write_boot_files(root, 2))?;
        self.change(&self.data, &DAY_2, |root| {
            write_file(root, OS_RELEASE, os_release(2).as_bytes())?;
            for (name, kib, _) in PROGRAMS.into_iter().filter(|(_, _, upgraded)| *upgraded) {
                write_file(root, name, &program(name, kib, 2))?;
            }
            let mut log = root.open_file(LOG)?;
            log.seek(SeekFrom::End(0))?;
            log.write_all(&log_lines(2, LOG_LINES / 4))?;
            log.flush()?;
            let mut database = root.open_file(DATABASE)?;
            for page in changed_pages() {
                database.seek(SeekFrom::Start(page * PAGE_BYTES))?;
                database.write_all(&database_page(page, 2))?;
            }
            database.flush()
        })
    }

    /// Day 3: an accident. `/etc` is gone and the database is noise; day 2 is wanted back.
    pub fn accident(&self) -> Result<()> {
        self.change(&self.data, &DAY_3, |root| {
            for (path, _) in walk(&root.open_dir("etc")?, "etc")? {
                root.remove(&path)?;
            }
            root.remove("etc")?;
            // In place and at its old length, as a program gone wild does it.
            let mut database = root.open_file(DATABASE)?;
            database.write_all(&noise("accident", DATABASE_PAGES * PAGE_BYTES))?;
            database.flush()
        })
    }

    /// The bytes of one partition as a stream of their own.
    fn window(&self, range: &Range<u64>, write: bool) -> io::Result<StreamSlice<File>> {
        let file = File::options().read(true).write(write).open(&self.path)?;
        StreamSlice::new(file, range.start, range.end)
    }

    fn change(
        &self,
        range: &Range<u64>,
        day: &'static Day,
        work: impl FnOnce(&Dir<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let change = || -> io::Result<()> {
            let options = FsOptions::new().time_provider(day);
            let volume = Volume::new(self.window(range, true)?, options)?;
            work(&volume.root_dir())?;
            volume.unmount()
        };
        change().map_err(failed(ErrorKind::Target, "change", &self.path))
    }
}

fn failed(kind: ErrorKind, verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let text = format!("cannot {verb} demo image {}", path.display());
    move |cause| {
        let kind = match cause.kind() {
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => kind,
        };
        Error::io(kind, text, cause)
    }
}

/// The clock of the guest's file system: it stands still all day.
#[derive(Debug)]
struct Day(u16);

static DAY_1: Day = Day(1);
static DAY_2: Day = Day(2);
static DAY_3: Day = Day(3);

impl fatfs::TimeProvider for Day {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 2026, month: 3, day: self.0 }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        let time = fatfs::Time { hour: 3, min: 0, sec: 0, millis: 0 };
        fatfs::DateTime { date: self.get_current_date(), time }
    }
}

/// What the gpt crate reports in several types.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn write_partition_table(file: &mut File, size: u64) -> Result<(), AnyError> {
    // The MBR counts 32 bits of sectors; a larger disk says so by the greatest number.
    let sectors = u32::try_from(size / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(file)?;
    let guid = Some(DISK_GUID.parse()?);
    let mut table = GptConfig::new().writable(true).create_from_device(file, guid)?;
    // Set by hand and not by `add_partition`, which draws a random id for each.
    let esp = Partition {
        part_type_guid: partition_types::EFI,
        part_guid: ESP_GUID.parse()?,
        name: "esp".to_owned(),
        first_lba: MIB / SECTOR_BYTES,
        last_lba: (MIB + ESP_BYTES) / SECTOR_BYTES - 1,
        flags: 0,
    };
    let data = Partition {
        part_type_guid: partition_types::BASIC,
        part_guid: DATA_GUID.parse()?,
        name: "data".to_owned(),
        first_lba: esp.last_lba + 1,
        // The last mebibyte belongs to the backup table.
        last_lba: (size - MIB) / SECTOR_BYTES - 1,
        flags: 0,
    };
    table.update_partitions(BTreeMap::from([(1, esp), (2, data)]))?;
    table.write()?;
    Ok(())
}

fn format_volume(
    mut window: StreamSlice<File>,
    fat_type: FatType,
    cluster_bytes: u64,
    volume_id: u32,
) -> io::Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(fat_type)
        .bytes_per_cluster(cluster_bytes as u32)
        .volume_id(volume_id);
    fatfs::format_volume(&mut window, options)?;
    // Asking for the free clusters counts them; unmounting writes the count down.
    let volume = Volume::new(window, FsOptions::new())?;
    volume.stats()?;
    volume.unmount()
}

/// The greatest cluster that still leaves enough clusters to count as FAT32.
fn fat32_cluster_bytes(partition_bytes: u64) -> u64 {
    let mut cluster_bytes = 32 * KIB;
    while cluster_bytes > SECTOR_BYTES && partition_bytes / cluster_bytes < FAT32_CLUSTERS_MIN {
        cluster_bytes /= 2;
    }
    cluster_bytes
}

/// Replaces the content of a file, and makes it and its folders where they are missing.
fn write_file(root: &Dir<'_>, name: &str, content: &[u8]) -> io::Result<()> {
    for (slash, _) in name.match_indices('/') {
        root.create_dir(&name[..slash])?;
    }
    let mut file = root.create_file(name)?;
    file.truncate()?;
    file.write_all(content)?;
    // Dropping the file would write its directory entry too, but swallow the error.
    file.flush()
}

/// Everything below a folder, with sizes of files; a folder comes after its content.
fn walk(dir: &Dir<'_>, path: &str) -> io::Result<Vec<(String, Option<u64>)>> {
    let mut entries = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        let full = format!("{path}/{name}");
        match entry.is_dir() {
            true if name == "." || name == ".." => {}
            true => {
                entries.append(&mut walk(&entry.to_dir(), &full)?);
                entries.push((full, None));
            }
            false => entries.push((full, Some(entry.len()))),
        }
    }
    Ok(entries)
}

/// Name and attributes of the two entries each folder begins with.
const DOT: &[u8; 12] = b".          \x10";
const DOT_DOT: &[u8; 12] = b"..         \x10";

/// Puts `.` and `..` where a checker wants them. fatfs 0.3 gives both a long name as well and
/// lets `..` name the root by its cluster, where the format wants 0; fsck calls either damage.
/// Folders are found by these very entries, which saves walking the file allocation table.
fn repair_folders(mut window: StreamSlice<File>, fat_type: FatType) -> io::Result<()> {
    let end = window.seek(SeekFrom::End(0))?;
    let mut block = vec![0; MIB as usize];
    for offset in (0..end).step_by(MIB as usize) {
        window.seek(SeekFrom::Start(offset))?;
        window.read_exact(&mut block)?;
        for (index, sector) in block.chunks_exact(SECTOR_BYTES as usize).enumerate() {
            if !sector[32..].starts_with(DOT) || !sector[96..].starts_with(DOT_DOT) {
                continue;
            }
            let mut entries = [sector[32..64].to_vec(), sector[96..128].to_vec()].concat();
            // In FAT32 the root is cluster 2; in FAT16 it has none, and 2 is a folder.
            if fat_type == FatType::Fat32 && entries[52..54] == [0, 0] && entries[58..60] == [2, 0]
            {
                entries[58] = 0;
            }
            entries.resize(128, 0);
            // Two free slots where the short names were.
            (entries[64], entries[96]) = (0xe5, 0xe5);
            window.seek(SeekFrom::Start(offset + index as u64 * SECTOR_BYTES))?;
            window.write_all(&entries)?;
        }
    }
    Ok(())
}

/// Kernel and initrd are compressed in a real guest too: nothing is left to compress.
fn write_boot_files(root: &Dir<'_>, version: u32) -> io::Result<()> {
    write_file(root, "EFI/debian/vmlinuz", &noise(&format!("kernel {version}"), 8 * MIB))?;
    write_file(root, "EFI/debian/initrd.img", &noise(&format!("initrd {version}"), 12 * MIB))
}

#[cfg(test)]
mod tests;
