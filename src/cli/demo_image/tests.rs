//! Tests of the demo image: its bytes, its tables and what each day leaves in it.

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
            database[start..start + PAGE_BYTES as usize].copy_from_slice(&database_page(page, 2));
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

impl DemoImage {
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

    fn read<T>(&self, verb: &str, work: impl FnOnce(&Dir<'_>) -> io::Result<T>) -> Result<T> {
        let read = || -> io::Result<T> {
            let volume = Volume::new(self.window(&self.data, false)?, FsOptions::new())?;
            work(&volume.root_dir())
        };
        read().map_err(failed(ErrorKind::Source, verb, &self.path))
    }
}
