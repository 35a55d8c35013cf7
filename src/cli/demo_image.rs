//! A realistic small VM disk image, made and changed without root and without external programs.
//!
//! The demo and the tests need a guest disk whose content is known: a protective MBR, a GPT, an
//! EFI system partition and a data partition with files that grow, move and vanish the way they
//! do in a machine. Invariant of this file: the same calls give the same bytes, on every machine
//! and at any time, so identifiers, volume ids and clocks are all fixed, and every "random" byte
//! comes from BLAKE3 in its extendable output mode.

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

const MEDIA: &str = "srv/media/launch.mp4";
const MEDIA_BYTES: u64 = 20 * MIB;
const DATABASE: &str = "var/lib/shop/orders.db";
const DATABASE_PAGES: u64 = 2048;
const PAGE_BYTES: u64 = 4 * KIB;
const LOG: &str = "var/log/syslog";
const LOG_LINES: u32 = 40_000;
const SWAP: &str = "var/swap";
const SWAP_BYTES: u64 = 4 * MIB;

/// Name, size in KiB, and whether the second day's upgrade replaces it.
const PROGRAMS: [(&str, u64, bool); 10] = [
    ("usr/bin/bash", 1236, false),
    ("usr/bin/nginx", 1247, false),
    ("usr/bin/openssl", 998, true),
    ("usr/bin/perl", 3702, false),
    ("usr/bin/python3.11", 6612, true),
    ("usr/bin/sshd", 1391, true),
    ("usr/bin/vim", 3661, false),
    ("usr/lib/libc.so.6", 1878, false),
    ("usr/lib/libcrypto.so.3", 4610, true),
    ("usr/lib/libstdc++.so.6", 2135, false),
];

const OS_RELEASE: &str = "etc/os-release";
const SETTINGS: [(&str, &str); 7] = [
    ("etc/hostname", "web01\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 web01\n"),
    ("etc/fstab", "PARTLABEL=data / vfat defaults 0 1\nPARTLABEL=esp /boot vfat umask=0077 0 2\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/bin/false\n"),
    ("etc/ssh/sshd_config", "PermitRootLogin no\nPasswordAuthentication no\nX11Forwarding no\n"),
    ("etc/nginx/sites-enabled/shop.conf", "server {\n  listen 80;\n  root /srv/media;\n}\n"),
    ("etc/shop/secrets.env", "ORDERS=/var/lib/shop/orders.db\nSESSION_KEY=not-a-real-one\n"),
];

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

    /// Every file of the data partition as absolute path and size, sorted by path.
    pub fn files(&self) -> Result<Vec<(String, u64)>> {
        let entries = self.read("list", |root| walk(root, ""))?;
        let files = entries.into_iter().filter_map(|(path, bytes)| Some((path, bytes?)));
        let mut files: Vec<(String, u64)> = files.collect();
        files.sort();
        Ok(files)
    }

    /// The content of one file of the data partition.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.read(&format!("read {path} in"), |root| {
            let mut content = Vec::new();
            root.open_file(path.trim_start_matches('/'))?.read_to_end(&mut content)?;
            Ok(content)
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

    fn read<T>(&self, verb: &str, work: impl FnOnce(&Dir<'_>) -> io::Result<T>) -> Result<T> {
        let read = || -> io::Result<T> {
            let volume = Volume::new(self.window(&self.data, false)?, FsOptions::new())?;
            work(&volume.root_dir())
        };
        read().map_err(failed(ErrorKind::Source, verb, &self.path))
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

/// `bytes` bytes nobody can compress, always the same for one name.
fn noise(name: &str, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; bytes as usize];
    let mut hasher = blake3::Hasher::new_derive_key("diskvault demo image 2026-03-01 noise");
    hasher.update(name.as_bytes()).finalize_xof().fill(&mut content);
    content
}

/// Something like machine code: short words, the first ones more often, that compress by about
/// a half. A new version changes every other 64 KiB.
fn program(name: &str, kib: u64, version: u32) -> Vec<u8> {
    let words = noise("machine words", 16 * KIB);
    let mut content = Vec::with_capacity((kib * KIB) as usize);
    for section in 0..kib.div_ceil(64) {
        let built = if section % 2 == 0 { version } else { 1 };
        let draws = noise(&format!("{name} {section} {built}"), 64 * KIB);
        let end = (kib.min((section + 1) * 64) * KIB) as usize;
        for draw in draws.chunks_exact(2) {
            let start = (usize::from(draw[0]) * usize::from(draw[1])) >> 2;
            let length = (3 + usize::from(draw[1] & 7)).min(end - content.len());
            content.extend_from_slice(&words[start..start + length]);
        }
    }
    content
}

fn os_release(version: u32) -> String {
    format!("PRETTY_NAME=\"Demo Linux 12.{version}\"\nID=demo\nVERSION_ID=12.{version}\n")
}

/// One day of syslog.
fn log_lines(day: u32, lines: u32) -> Vec<u8> {
    const SENTENCES: [&str; 5] = [
        "sshd[812]: Connection closed by authenticating user root port",
        "nginx[907]: GET /launch.mp4 HTTP/1.1 206",
        "systemd[1]: shop-worker.service: Consumed CPU milliseconds:",
        "cron[655]: (www-data) CMD (cd /var/lib/shop && ./rotate) pid",
        "shop[1031]: stored order",
    ];
    let mut log = String::with_capacity(lines as usize * 96);
    for (line, draw) in noise(&format!("log {day}"), u64::from(lines) * 8).chunks(8).enumerate() {
        let second = line as u64 * 86_400 / u64::from(lines);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let sentence = SENTENCES[usize::from(draw[0]) % SENTENCES.len()];
        let value = u32::from_le_bytes([draw[1], draw[2], draw[3], draw[4]]);
        log += &format!("Mar  {day} {hour:02}:{minute:02}:{second:02} web01 {sentence} {value}\n");
    }
    log.into_bytes()
}

fn database() -> Vec<u8> {
    (0..DATABASE_PAGES).flat_map(|page| database_page(page, 1)).collect()
}

/// A page of records and, at its end, the free space a database leaves.
fn database_page(page: u64, version: u32) -> Vec<u8> {
    let draws = noise(&format!("page {page} {version}"), 48 * 8);
    let mut content = format!("PAGE {page:08} {version}\n").into_bytes();
    for (row, draw) in draws.chunks_exact(8).enumerate() {
        let key = page * 48 + row as u64;
        let customer = u32::from_le_bytes([draw[0], draw[1], draw[2], draw[3]]);
        let total = u16::from_le_bytes([draw[4], draw[5]]);
        let record = format!("order={key} customer={customer:08x} total={total} state=paid\n");
        content.extend_from_slice(record.as_bytes());
    }
    content.resize(PAGE_BYTES as usize, 0);
    content
}

/// The pages the second day writes: a few hot ones at the front, the rest all over the file.
fn changed_pages() -> impl Iterator<Item = u64> {
    (0..8).chain((100..DATABASE_PAGES).step_by(61))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = 192 * MIB;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo.raw");
        (dir, path)
    }

    fn digest(path: &Path) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path).unwrap()).unwrap();
        hasher.finalize()
    }

    /// Day 1 or day 2, file by file, as it should be.
    fn expected(day: u32) -> BTreeMap<String, Vec<u8>> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut put = |name: &str, content: Vec<u8>| files.insert(format!("/{name}"), content);
        for (name, text) in SETTINGS {
            put(name, text.as_bytes().to_vec());
        }
        put(OS_RELEASE, os_release(day).into_bytes());
        for (name, kib, upgraded) in PROGRAMS {
            put(name, program(name, kib, if upgraded { day } else { 1 }));
        }
        let (mut log, mut database) = (log_lines(1, LOG_LINES), database());
        if day == 2 {
            log.extend(log_lines(2, LOG_LINES / 4));
            for page in changed_pages() {
                let start = (page * PAGE_BYTES) as usize;
                database[start..start + PAGE_BYTES as usize]
                    .copy_from_slice(&database_page(page, 2));
            }
        }
        put(LOG, log);
        put(DATABASE, database);
        put(SWAP, vec![0; SWAP_BYTES as usize]);
        put(MEDIA, noise(MEDIA, MEDIA_BYTES));
        files
    }

    fn assert_files(image: &DemoImage, expected: &BTreeMap<String, Vec<u8>>) {
        let sizes: Vec<(String, u64)> =
            expected.iter().map(|(name, content)| (name.clone(), content.len() as u64)).collect();
        assert_eq!(image.files().unwrap(), sizes);
        for (name, content) in expected {
            assert!(image.read_file(name).unwrap() == *content, "{name} differs");
        }
    }

    #[test]
    fn each_day_holds_exactly_its_files() {
        let (_dir, path) = scratch();
        let image = DemoImage::create(&path, SIZE).unwrap();
        assert_files(&image, &BTreeMap::new());
        image.install().unwrap();
        assert_files(&image, &expected(1));
        DemoImage::open(&path).unwrap().upgrade().unwrap();
        assert_files(&image, &expected(2));
        image.accident().unwrap();
        let mut after = expected(2);
        after.retain(|name, _| !name.starts_with("/etc/"));
        after.insert(format!("/{DATABASE}"), noise("accident", DATABASE_PAGES * PAGE_BYTES));
        assert_files(&image, &after);
        assert_eq!(image.read_file("/etc/hosts").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn both_tables_are_valid_and_partitions_start_on_mebibytes() {
        let (_dir, path) = scratch();
        DemoImage::create(&path, SIZE).unwrap();
        let table = GptConfig::new().only_valid_headers(true).open(&path).unwrap();
        assert_eq!(table.guid().to_string(), DISK_GUID);
        let partitions: Vec<&Partition> = table.partitions().values().collect();
        assert_eq!(partitions.len(), 2);
        for partition in partitions {
            assert_eq!(partition.first_lba * SECTOR_BYTES % MIB, 0);
            assert_eq!((partition.last_lba + 1) * SECTOR_BYTES % MIB, 0);
            assert!(partition.last_lba <= table.header().last_usable);
        }
        let mut file = File::open(&path).unwrap();
        let mbr = ProtectiveMBR::from_disk(&mut file, gpt::disk::DEFAULT_SECTOR_SIZE).unwrap();
        assert_eq!(mbr.partition(0).unwrap().os_type, 0xee);
    }

    #[test]
    fn the_same_calls_give_the_same_bytes_and_little_is_allocated() {
        let (_dir, first) = scratch();
        let second = first.with_extension("again");
        let images = [&first, &second].map(|path| DemoImage::create(path, SIZE).unwrap());
        assert!(first.metadata().unwrap().blocks() * 512 < 4 * MIB, "formatting is not sparse");
        for step in [DemoImage::install, DemoImage::upgrade, DemoImage::accident] {
            for image in &images {
                step(image).unwrap();
            }
            assert_eq!(digest(&first), digest(&second));
        }
        let metadata = first.metadata().unwrap();
        assert_eq!(metadata.len(), SIZE);
        assert!(metadata.blocks() * 512 < SIZE * 2 / 3);
    }

    #[test]
    fn the_data_partition_is_fat32_at_every_size() {
        for size in [IMAGE_BYTES_MIN, DEMO_IMAGE_BYTES, 1 << 30, 8 << 30] {
            let (_dir, path) = scratch();
            let image = DemoImage::create(&path, size).unwrap();
            let window = image.window(&image.data, false).unwrap();
            assert_eq!(Volume::new(window, FsOptions::new()).unwrap().fat_type(), FatType::Fat32);
        }
    }

    #[test]
    fn folders_begin_as_a_checker_wants_them() {
        let (_dir, path) = scratch();
        let image = DemoImage::create(&path, SIZE).unwrap();
        image.install().unwrap();
        let mut bytes = Vec::new();
        image.window(&image.data, false).unwrap().read_to_end(&mut bytes).unwrap();
        let sectors = || bytes.chunks_exact(SECTOR_BYTES as usize);
        let folders = sectors().filter(|s| s.starts_with(DOT) && s[32..].starts_with(DOT_DOT));
        // etc, usr, var and srv lie in the root, which `..` names as cluster 0.
        assert_eq!(folders.filter(|s| s[52..54] == [0, 0] && s[58..60] == [0, 0]).count(), 4);
        assert!(!sectors().any(|s| s[32..].starts_with(DOT) && s[96..].starts_with(DOT_DOT)));
    }

    #[test]
    fn nothing_is_overwritten_and_odd_sizes_are_refused() {
        let (_dir, path) = scratch();
        let refused = |size| DemoImage::create(&path, size).err().unwrap().kind();
        assert_eq!(refused(SIZE + 512), ErrorKind::Usage);
        assert_eq!(refused(IMAGE_BYTES_MIN - MIB), ErrorKind::Usage);
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(refused(SIZE), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
