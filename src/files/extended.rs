//! Files of ext2, ext3 and ext4, through the crate `ext4-view`, which also replays the journal in
//! memory.
//!
//! Invariants: a file is known by its path, and no part of it is a link, for the crate would follow
//! it: each is looked at before, by the same way as the crate's. Sizes are looked at before the
//! crate takes memory for them.

use super::guard::{Trouble, guarded};
use super::volume::{ENTRIES_MAX, Entry, Handle, Listing, READ_BYTES};
use super::window::Window;
use super::{Facts, Kind, Name, Owner};
use crate::error::Result;
use ext4_view::{Ext4, Ext4Error, File, FileType, Metadata, Path};

/// Links are as long as a path may be.
const LINK_BYTES_MAX: u64 = 4096;
/// Linux lets a directory grow to 2 GiB, and to more only where that is asked for.
const FOLDER_BYTES_MAX: u64 = 4 << 30;
/// The descriptor of a group has so many bytes at least.
const GROUP_BYTES_MIN: u64 = 32;
/// Groups that memory is taken for: those of a pebibyte.
const GROUPS_MAX: u64 = 8 << 20;
/// What listing a directory may read, with all of its inodes.
const LIST_LIMIT: u64 = 64 << 30;
/// What looking at a single inode may read.
const LOOK_LIMIT: u64 = 64 << 20;

/// One of these file systems.
pub struct Extended {
    file_system: Ext4,
    window: Window,
    kind: &'static str,
    folders: u64,
}

impl Extended {
    /// Opens the file system in a window.
    ///
    /// # Errors
    /// `Damage`, or `Failed` if it has features that are not known.
    pub fn open(window: Window) -> Result<Extended> {
        // The journal is at most as large as the file system, and read twice.
        let limit = window.size().saturating_mul(3).saturating_add(LOOK_LIMIT);
        let reader = window.clone();
        let what = || "open the file system".to_string();
        let mut superblock = [0; 1024];
        let file_system = guarded(&window, limit, &what, || {
            reader.read_exact_at(1024, &mut superblock).map_err(Trouble::damage)?;
            check_groups(&superblock, reader.size())?;
            Ext4::load(Box::new(reader)).map_err(trouble)
        })?;
        let kind = kind_of(&superblock);
        let folders = guarded(&window, limit, &what, || count_folders(&superblock, &window))?;
        Ok(Extended { file_system, window, kind, folders })
    }

    /// More directories than there can be: inodes have no number outside of the crate, so this is
    /// what ends a loop that nothing else ends. Twice what the groups count, and some more, for
    /// what the journal may add to them.
    pub fn folders_max(&self) -> u64 {
        self.folders.saturating_mul(2).saturating_add(1024)
    }

    /// `ext2`, `ext3` or `ext4`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The label; empty without one.
    pub fn label(&self) -> Name {
        let bytes = self.file_system.label().as_bytes();
        Name(bytes.iter().copied().take_while(|byte| *byte != 0).collect())
    }

    /// The root directory.
    pub fn root(&self) -> Result<Entry<'_>> {
        let what = || "read the root directory".to_string();
        let found = guarded(&self.window, LOOK_LIMIT, &what, || self.look(b"/"))?;
        let handle = Handle::Extended(b"/".to_vec());
        Ok(Entry { name: Name(Vec::new()), facts: facts(&found), trouble: None, handle })
    }

    fn look(&self, path: &[u8]) -> Result<Metadata, Trouble> {
        let path = Path::try_from(path).map_err(Trouble::damage)?;
        self.file_system.symlink_metadata(path).map_err(trouble)
    }

    /// What is in a directory.
    pub fn list<'v>(&'v self, path: &[u8], what: &dyn Fn() -> String) -> Listing<'v> {
        let mut entries = Vec::new();
        let listed = guarded(&self.window, LIST_LIMIT, what, || {
            self.check_place(path)?;
            let at = Path::try_from(path).map_err(Trouble::damage)?;
            for entry in self.file_system.read_dir(at).map_err(trouble)? {
                let entry = entry.map_err(trouble)?;
                let name = Name(entry.file_name().as_ref().to_vec());
                if matches!(&name.0[..], b"." | b"..") {
                    continue;
                }
                if entries.len() >= ENTRIES_MAX {
                    return Err(Trouble::damage(format!("it has over {ENTRIES_MAX} entries")));
                }
                let (facts, trouble) = match entry.metadata() {
                    Ok(metadata) => (facts(&metadata), None),
                    Err(error) => {
                        let kind = entry.file_type().map_or(Kind::File, kind_of_file);
                        let unknown = Facts { kind, bytes: 0, modified: (0, 0), owner: None };
                        (unknown, Some(trouble(error).text))
                    }
                };
                let handle = Handle::Extended(entry.path().as_ref().to_vec());
                entries.push(Entry { name, facts, trouble, handle });
            }
            Ok(())
        });
        // Inodes have no number outside of the crate: `check_place` stands for it.
        Listing { entries, identity: None, trouble: listed.err() }
    }

    /// Refuses a directory that is in another one than it says, or one too large to be true.
    fn check_place(&self, path: &[u8]) -> Result<(), Trouble> {
        let found = self.look(path)?;
        if !found.is_dir() {
            return Err(Trouble::damage("its name stands for something else, too"));
        }
        if found.len() > FOLDER_BYTES_MAX.min(self.window.size()) {
            return Err(Trouble::damage(format!("it cannot have {} bytes", found.len())));
        }
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/').filter(|_| path.len() > 1)
        else {
            return Ok(());
        };
        let parent = self.look(&path[..slash.max(1)])?;
        let stated = self.look(&[path, b"/.."].concat())?;
        if parent != stated {
            return Err(Trouble::damage("its .. is another directory: a loop"));
        }
        Ok(())
    }

    /// Where a link points to.
    pub fn target(&self, path: &[u8], what: &dyn Fn() -> String) -> Result<Name> {
        guarded(&self.window, LOOK_LIMIT, what, || {
            let found = self.look(path)?;
            if !found.is_symlink() || found.len() > LINK_BYTES_MAX {
                return Err(Trouble::damage(format!("a link cannot have {} bytes", found.len())));
            }
            let path = Path::try_from(path).map_err(Trouble::damage)?;
            let target = self.file_system.read_link(path).map_err(trouble)?;
            Ok(Name(target.as_ref().to_vec()))
        })
    }

    /// Calls `each` with the content of a file, in order.
    pub fn read(
        &self,
        path: &[u8],
        what: &dyn Fn() -> String,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut file: File = guarded(&self.window, LOOK_LIMIT, what, || {
            if !self.look(path)?.file_type().is_regular_file() {
                return Err(Trouble::damage("its name stands for something else, too"));
            }
            let path = Path::try_from(path).map_err(Trouble::damage)?;
            self.file_system.open(path).map_err(trouble)
        })?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let filled = guarded(&self.window, LOOK_LIMIT, what, || {
                let mut filled = 0;
                // The crate gives a block at a time.
                while filled < buffer.len() {
                    match file.read_bytes(&mut buffer[filled..]).map_err(trouble)? {
                        0 => break,
                        count => filled += count,
                    }
                }
                Ok(filled)
            })?;
            if filled == 0 {
                return Ok(());
            }
            each(&buffer[..filled])?;
        }
    }
}

fn trouble(error: Ext4Error) -> Trouble {
    match &error {
        Ext4Error::Encrypted => Trouble::unsupported("it is encrypted"),
        Ext4Error::PathTooLong => Trouble::unsupported("its path is longer than 4096 bytes"),
        Ext4Error::Incompatible(_) => Trouble::unsupported(error),
        other => {
            let text = other.to_string();
            // The crate takes a hole that a whole block of pointers would lead to for damage.
            if text.contains(" from block 0 ") {
                return Trouble::unsupported(
                    "it has a large hole without extents, which cannot be read",
                );
            }
            Trouble::damage(text)
        }
    }
}

fn facts(found: &Metadata) -> Facts {
    let modified = found.modified();
    Facts {
        kind: kind_of_file(found.file_type()),
        bytes: found.len(),
        modified: (modified.seconds(), modified.nanoseconds()),
        owner: Some(Owner {
            mode: u32::from(found.mode()) & 0o7777,
            ids: (found.uid(), found.gid()),
        }),
    }
}

fn kind_of_file(file_type: FileType) -> Kind {
    match file_type {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        FileType::BlockDevice => Kind::Special('b'),
        FileType::CharacterDevice => Kind::Special('c'),
        FileType::Fifo => Kind::Special('p'),
        FileType::Socket => Kind::Special('s'),
    }
}

/// The crate takes memory for each group of blocks: there are as many as fit in the window.
fn check_groups(superblock: &[u8; 1024], bytes: u64) -> Result<(), Trouble> {
    let blocks = u64::from(word(superblock, 0x4)) | u64::from(word(superblock, 0x150)) << 32;
    let groups = blocks / u64::from(word(superblock, 0x20)).max(1);
    if groups.saturating_mul(GROUP_BYTES_MIN) > bytes || groups > GROUPS_MAX {
        return Err(Trouble::damage(format!("it cannot have {blocks} blocks")));
    }
    Ok(())
}

/// The directories that the descriptors of all groups count. The crate opens none whose descriptors
/// are scattered over the file system.
fn count_folders(superblock: &[u8; 1024], window: &Window) -> Result<u64, Trouble> {
    const WIDE: u32 = 0x80;
    let [inodes, first, per_group, features] = [0, 0x14, 0x20, 0x60].map(|at| word(superblock, at));
    let block_bytes = 1024_u64 << word(superblock, 0x18).min(6);
    let wide = (word(superblock, 0xfc) >> 16) as usize;
    let bytes = if features & WIDE != 0 { wide.clamp(32, 1024) } else { 32 };
    let blocks = u64::from(word(superblock, 0x4)) | u64::from(word(superblock, 0x150)) << 32;
    let groups = blocks.saturating_sub(u64::from(first)).div_ceil(u64::from(per_group.max(1)));
    let mut descriptor = vec![0; bytes];
    let (mut count, mut at) = (0, (u64::from(first) + 1) * block_bytes);
    for _ in 0..groups {
        window.read_exact_at(at, &mut descriptor).map_err(Trouble::damage)?;
        let half = |at: usize| {
            let half = descriptor.get(at..).and_then(|rest| rest.first_chunk::<2>());
            half.map_or(0, |half| u64::from(u16::from_le_bytes(*half)))
        };
        count += half(0x10) | half(0x30) << 16;
        at += bytes as u64;
    }
    Ok(count.min(u64::from(inodes)))
}

fn word(superblock: &[u8; 1024], at: usize) -> u32 {
    let bytes = superblock.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// By the three words of features, as `blkid` tells them apart.
fn kind_of(superblock: &[u8; 1024]) -> &'static str {
    let [compatible, incompatible, read_only] = [0x5c, 0x60, 0x64].map(|at| word(superblock, at));
    // Of ext3: file types, recovery, a journal device, meta block groups; and sparse superblocks,
    // large files and directory trees.
    let is_newer = incompatible & !0x1e != 0 || read_only & !0x7 != 0;
    match (is_newer, compatible & 0x4 != 0) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    }
}
