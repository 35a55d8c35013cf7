//! Files of FAT12, FAT16 and FAT32, through the crate `fatfs`.
//!
//! Invariant: the crate may follow a chain of clusters without end; the window's limit ends that.

use super::guard::{Trouble, guarded};
use super::volume::{ENTRIES_MAX, Entry, Handle, Listing, READ_BYTES};
use super::window::Window;
use super::{Facts, Kind, Name};
use crate::error::Result;
use fatfs::{DateTime, DirEntry, FatType, FileSystem, FsOptions, OemCpConverter};
use jiff::tz::TimeZone;
use std::io::Read;

/// A directory has at most 65,536 entries of 32 bytes, which are read field by field.
const LIST_LIMIT: u64 = 128 << 20;
/// What one piece of a file may read: more than the piece and its part of the table.
const PIECE_LIMIT: u64 = 16 << 20;

/// Characters of code page 437 from 0x80 on, as Linux takes short names by default.
const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// A file of the crate.
pub type FatEntry<'v> = DirEntry<'v, Window>;

/// Short names in code page 437.
#[derive(Debug)]
struct CodePage;

static CODE_PAGE: CodePage = CodePage;

impl OemCpConverter for CodePage {
    fn decode(&self, byte: u8) -> char {
        match byte.checked_sub(0x80) {
            None => char::from(byte),
            Some(place) => CODE_PAGE_437.chars().nth(usize::from(place)).unwrap_or('\u{fffd}'),
        }
    }

    fn encode(&self, character: char) -> Option<u8> {
        if character.is_ascii() {
            return u8::try_from(character).ok();
        }
        let place = CODE_PAGE_437.chars().position(|known| known == character)?;
        u8::try_from(place + 0x80).ok()
    }
}

/// One of these file systems.
pub struct Fat {
    file_system: FileSystem<Window>,
    window: Window,
}

impl Fat {
    /// Opens the file system in a window.
    ///
    /// # Errors
    /// `Damage`.
    pub fn open(window: Window) -> Result<Fat> {
        let disk = window.clone();
        let what = || "open the file system".to_string();
        let file_system = guarded(&window, PIECE_LIMIT, &what, || {
            let options = FsOptions::new().oem_cp_converter(&CODE_PAGE);
            FileSystem::new(disk, options).map_err(Trouble::damage)
        })?;
        Ok(Fat { file_system, window })
    }

    /// `fat12`, `fat16` or `fat32`.
    pub fn kind(&self) -> &'static str {
        match self.file_system.fat_type() {
            FatType::Fat12 => "fat12",
            FatType::Fat16 => "fat16",
            FatType::Fat32 => "fat32",
        }
    }

    /// The label; empty without one or where it cannot be read.
    pub fn label(&self) -> Name {
        let what = || "read the label".to_string();
        let label = guarded(&self.window, LIST_LIMIT, &what, || {
            let found = self.file_system.read_volume_label_from_root_dir();
            Ok(found.ok().flatten().unwrap_or_else(|| self.file_system.volume_label()))
        });
        let label = label.unwrap_or_default();
        Name(if label == "NO NAME" { Vec::new() } else { label.trim_end().as_bytes().to_vec() })
    }

    /// The root directory.
    pub fn root(&self) -> Entry<'_> {
        let facts = Facts { kind: Kind::Folder, bytes: 0, modified: (0, 0), owner: None };
        Entry { name: Name(Vec::new()), facts, trouble: None, handle: Handle::Fat(None) }
    }

    /// What is in a directory; `None` is the root.
    pub fn list<'v>(
        &'v self,
        folder: Option<&FatEntry<'v>>,
        what: &dyn Fn() -> String,
    ) -> Listing<'v> {
        let mut entries = Vec::new();
        let listed = guarded(&self.window, LIST_LIMIT, what, || {
            let folder = folder.map_or_else(|| self.file_system.root_dir(), |entry| entry.to_dir());
            for entry in folder.iter() {
                let entry = entry.map_err(Trouble::damage)?;
                let name = Name(entry.file_name().into_bytes());
                if matches!(&name.0[..], b"." | b"..") {
                    continue;
                }
                if entries.len() >= ENTRIES_MAX {
                    return Err(Trouble::damage(format!("it has over {ENTRIES_MAX} entries")));
                }
                let kind = if entry.is_dir() { Kind::Folder } else { Kind::File };
                let modified = unix_time(entry.modified());
                let facts = Facts { kind, bytes: entry.len(), modified, owner: None };
                entries.push(Entry {
                    name,
                    facts,
                    trouble: None,
                    handle: Handle::Fat(Some(entry)),
                });
            }
            Ok(())
        });
        // A directory is where its first entry is.
        Listing { entries, identity: self.window.first_read(), trouble: listed.err() }
    }

    /// Calls `each` with the content of a file, in order.
    pub fn read(
        &self,
        entry: &FatEntry<'_>,
        what: &dyn Fn() -> String,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let bytes = entry.len();
        let mut file = guarded(&self.window, PIECE_LIMIT, what, || {
            if bytes > self.window.size() {
                return Err(Trouble::damage(format!("it cannot have {bytes} bytes")));
            }
            Ok(entry.to_file())
        })?;
        let mut buffer = vec![0; READ_BYTES];
        let mut done = 0;
        while done < bytes {
            let filled = guarded(&self.window, PIECE_LIMIT, what, || {
                let mut filled = 0;
                // The crate gives a cluster at a time.
                while filled < buffer.len() {
                    match file.read(&mut buffer[filled..]).map_err(Trouble::damage)? {
                        0 => break,
                        count => filled += count,
                    }
                }
                if filled == 0 {
                    let text = format!("it ends after {done} of its {bytes} bytes");
                    return Err(Trouble::damage(text));
                }
                Ok(filled)
            })?;
            done += filled as u64;
            each(&buffer[..filled])?;
        }
        Ok(())
    }
}

/// FAT has the time of a clock without a zone: it counts as UTC. What is no time is 0.
fn unix_time(found: DateTime) -> (i64, u32) {
    let small = |number: u16| i8::try_from(number).ok();
    let civil = || {
        let (date, time) = (&found.date, &found.time);
        jiff::civil::DateTime::new(
            i16::try_from(date.year).ok()?,
            small(date.month)?,
            small(date.day)?,
            small(time.hour)?,
            small(time.min)?,
            small(time.sec)?,
            0,
        )
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()
    };
    (civil().map_or(0, |zoned| zoned.timestamp().as_second()), 0)
}
