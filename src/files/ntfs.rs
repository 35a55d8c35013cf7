//! Files of NTFS, through the crate `ntfs`.
//!
//! Invariants: the system files (records below 16) are not shown; what the crate would read
//! wrongly, as compressed and encrypted data, is refused; what lies behind the initialised part of
//! a file is zeros.

use super::guard::{Trouble, guarded};
use super::reparse::{Reparse, interix, parse_reparse, wtf8};
use super::volume::{ENTRIES_MAX, Entry, Handle, Listing, READ_BYTES};
use super::window::Window;
use super::{Facts, Kind, Name};
use crate::error::Result;
use ::ntfs::attribute_value::NtfsAttributeValue;
use ::ntfs::indexes::NtfsFileNameIndex;
use ::ntfs::structured_values::{
    NtfsAttributeList, NtfsFileAttributeFlags, NtfsFileName, NtfsFileNamespace, NtfsIndexRoot,
    NtfsStandardInformation,
};
use ::ntfs::{
    NtfsAttribute, NtfsAttributeFlags, NtfsAttributeType, NtfsError, NtfsFile, NtfsFileFlags,
    NtfsIndexEntry, NtfsReadSeek,
};

/// The record of the root directory.
const ROOT: u64 = 5;
/// Records below are of the file system itself.
const SYSTEM_RECORDS: u64 = 16;
/// Records and nodes of directories are larger nowhere.
const RECORD_BYTES_MAX: u32 = 64 << 10;
/// What looking at one file or one entry of a directory may read.
const LOOK_LIMIT: u64 = 16 << 20;
/// What finding all parts of one file may read.
const LIST_LIMIT: u64 = 256 << 20;
/// Pieces of a file: NTFS has fewer, for their list has at most 256 KiB.
const RUNS_MAX: usize = 4 << 20;
/// A reparse point has at most 16 KiB.
const REPARSE_BYTES_MAX: u64 = 16 << 10;
/// Seconds from 1601 to 1970.
const SECONDS_TO_UNIX: i64 = 11_644_473_600;

/// An NTFS.
pub struct Ntfs {
    file_system: ::ntfs::Ntfs,
    window: Window,
}

/// The content of a file.
struct Content {
    /// All of it, if it is small.
    resident: Option<Vec<u8>>,
    /// Where it is, none for a hole, and bytes.
    runs: Vec<(Option<u64>, u64)>,
    bytes: u64,
    /// What lies behind is zeros.
    initialised: u64,
    flags: NtfsAttributeFlags,
}

/// What is known of one file.
struct Looked {
    facts: Facts,
    target: Option<Name>,
    /// Why its content cannot be read.
    unreadable: Option<String>,
}

impl Ntfs {
    /// Opens the file system in a window.
    ///
    /// # Errors
    /// `Damage`.
    pub fn open(window: Window) -> Result<Ntfs> {
        let what = || "open the file system".to_string();
        let mut disk = window.clone();
        let file_system = guarded(&window, LOOK_LIMIT, &what, || {
            let opened = ::ntfs::Ntfs::new(&mut disk).map_err(trouble)?;
            if opened.file_record_size() > RECORD_BYTES_MAX {
                return Err(Trouble::damage("its file records are too large"));
            }
            Ok(opened)
        })?;
        Ok(Ntfs { file_system, window })
    }

    /// The label; empty without one or where it cannot be read.
    pub fn label(&self) -> Name {
        let what = || "read the label".to_string();
        let label = guarded(&self.window, LOOK_LIMIT, &what, || {
            let mut disk = self.window.clone();
            let Some(label) = self.file_system.volume_name(&mut disk) else {
                return Ok(Vec::new());
            };
            Ok(wtf8(label.map_err(trouble)?.name().u16_iter()))
        });
        Name(label.unwrap_or_default())
    }

    /// The root directory.
    pub fn root(&self) -> Result<Entry<'_>> {
        let what = || "read the root directory".to_string();
        let found = guarded(&self.window, LOOK_LIMIT, &what, || self.look(ROOT, None))?;
        let handle = Handle::Ntfs(ROOT);
        Ok(Entry { name: Name(Vec::new()), facts: found.facts, trouble: None, handle })
    }

    /// A file by the number of its record, which is of use `sequence` if that is given.
    fn file(&self, record: u64, sequence: Option<u16>) -> Result<NtfsFile<'_>, Trouble> {
        let file = self.file_system.file(&mut self.window.clone(), record).map_err(trouble)?;
        let is_other = sequence.is_some_and(|sequence| sequence != file.sequence_number());
        if is_other || !file.flags().contains(NtfsFileFlags::IN_USE) {
            return Err(Trouble::damage("its record is of another file"));
        }
        Ok(file)
    }

    fn look(&self, record: u64, sequence: Option<u16>) -> Result<Looked, Trouble> {
        let file = self.file(record, sequence)?;
        let information = file.info().map_err(trouble)?;
        let kind = if file.is_directory() { Kind::Folder } else { Kind::File };
        let mut facts = Facts { kind, bytes: 0, modified: modified(&information), owner: None };
        let known = |facts: Facts| Looked { facts, target: None, unreadable: None };
        let flags = information.file_attributes();
        if flags.contains(NtfsFileAttributeFlags::REPARSE_POINT) {
            let bytes = self.reparse_point(&file)?;
            return Ok(match parse_reparse(&bytes) {
                Reparse::Link(target) => {
                    facts.kind = Kind::Link;
                    facts.bytes = target.0.len() as u64;
                    Looked { facts, target: Some(target), unreadable: None }
                }
                Reparse::Special(letter) => {
                    facts.kind = Kind::Special(letter);
                    known(facts)
                }
                Reparse::Elsewhere(why) => {
                    facts.bytes = self.data_bytes(&file)?;
                    Looked { facts, target: None, unreadable: Some(why) }
                }
            });
        }
        if kind == Kind::Folder {
            return Ok(known(facts));
        }
        facts.bytes = self.data_bytes(&file)?;
        if flags.contains(NtfsFileAttributeFlags::SYSTEM)
            && let Some(found) = self.interix(&file, facts.bytes)?
        {
            let (kind, target) = found;
            facts.kind = kind;
            return Ok(Looked { facts, target, unreadable: None });
        }
        Ok(known(facts))
    }

    fn data_bytes(&self, file: &NtfsFile<'_>) -> Result<u64, Trouble> {
        let (content, _) = self.content(file, false)?;
        Ok(content.map_or(0, |content| content.bytes))
    }

    fn reparse_point(&self, file: &NtfsFile<'_>) -> Result<Vec<u8>, Trouble> {
        let mut disk = self.window.clone();
        let mut attributes = file.attributes();
        while let Some(item) = attributes.next(&mut disk) {
            let item = item.map_err(trouble)?;
            let attribute = item.to_attribute().map_err(trouble)?;
            if attribute.ty().map_err(trouble)? == NtfsAttributeType::ReparsePoint {
                return self.small_value(&attribute, REPARSE_BYTES_MAX);
            }
        }
        Err(Trouble::damage("it has no reparse point, but the mark of one"))
    }

    /// All of a small attribute.
    fn small_value(&self, attribute: &NtfsAttribute<'_, '_>, max: u64) -> Result<Vec<u8>, Trouble> {
        let bytes = attribute.value_length();
        if bytes > max {
            return Err(Trouble::damage(format!("an attribute cannot have {bytes} bytes")));
        }
        let mut disk = self.window.clone();
        let mut value = attribute.value(&mut disk).map_err(trouble)?;
        let mut content = vec![0; bytes as usize];
        let count = read_full(&mut value, &mut disk, &mut content)?;
        content.truncate(count);
        Ok(content)
    }

    /// Links and special files as ntfs-3g makes them: small system files that begin with a mark.
    fn interix(
        &self,
        file: &NtfsFile<'_>,
        bytes: u64,
    ) -> Result<Option<(Kind, Option<Name>)>, Trouble> {
        if !(8..=REPARSE_BYTES_MAX).contains(&bytes) {
            return Ok(None);
        }
        let (content, _) = self.content(file, false)?;
        Ok(content.and_then(|content| content.resident).and_then(|data| interix(&data)))
    }

    /// What is in a directory.
    pub fn list(&self, record: u64, what: &dyn Fn() -> String) -> Listing<'_> {
        let mut entries = Vec::new();
        let listed = self.list_into(record, what, &mut entries);
        Listing { entries, identity: Some(record), trouble: listed.err() }
    }

    fn list_into<'v>(
        &'v self,
        record: u64,
        what: &dyn Fn() -> String,
        entries: &mut Vec<Entry<'v>>,
    ) -> Result<()> {
        let mut disk = self.window.clone();
        let file = guarded(&self.window, LOOK_LIMIT, what, || {
            let file = self.file(record, None)?;
            check_nodes(&file)?;
            Ok(file)
        })?;
        let index = guarded(&self.window, LOOK_LIMIT, what, || {
            file.directory_index(&mut disk).map_err(trouble)
        })?;
        let mut found = index.entries();
        loop {
            let entry = guarded(&self.window, LOOK_LIMIT, what, || {
                let Some(entry) = found.next(&mut disk) else { return Ok(None) };
                if entries.len() >= ENTRIES_MAX {
                    return Err(Trouble::damage(format!("it has over {ENTRIES_MAX} entries")));
                }
                self.entry(&entry.map_err(trouble)?).map(Some)
            })?;
            match entry {
                None => return Ok(()),
                Some(entry) => entries.extend(entry),
            }
        }
    }

    /// `None` for system files and for short names beside long ones.
    fn entry(
        &self,
        entry: &NtfsIndexEntry<'_, NtfsFileNameIndex>,
    ) -> Result<Option<Entry<'_>>, Trouble> {
        let Some(key) = entry.key() else { return Ok(None) };
        let key: NtfsFileName = key.map_err(trouble)?;
        let reference = entry.file_reference();
        let record = reference.file_record_number();
        let name = Name(wtf8(key.name().u16_iter()));
        let is_hidden = record < SYSTEM_RECORDS || key.namespace() == NtfsFileNamespace::Dos;
        if is_hidden || matches!(&name.0[..], b"." | b"..") {
            return Ok(None);
        }
        let (facts, trouble) = match self.look(record, Some(reference.sequence_number())) {
            Ok(looked) => (looked.facts, None),
            Err(trouble) => {
                let kind = if key.is_directory() { Kind::Folder } else { Kind::File };
                let modified = unix_time(key.modification_time().nt_timestamp());
                (Facts { kind, bytes: key.data_size(), modified, owner: None }, Some(trouble.text))
            }
        };
        Ok(Some(Entry { name, facts, trouble, handle: Handle::Ntfs(record) }))
    }

    /// Where a link points to.
    pub fn target(&self, record: u64, what: &dyn Fn() -> String) -> Result<Name> {
        guarded(&self.window, LOOK_LIMIT, what, || {
            let target = self.look(record, None)?.target;
            target.ok_or_else(|| Trouble::damage("it is no link"))
        })
    }

    /// Calls `each` with the content of a file, in order; gives the number of its other streams.
    pub fn read(
        &self,
        record: u64,
        what: &dyn Fn() -> String,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<u64> {
        let file = guarded(&self.window, LOOK_LIMIT, what, || {
            if let Some(why) = self.look(record, None)?.unreadable {
                return Err(Trouble::unsupported(why));
            }
            self.file(record, None)
        })?;
        let (content, streams) =
            guarded(&self.window, LIST_LIMIT, what, || self.content(&file, true))?;
        let Some(content) = content else { return Ok(streams) };
        guarded(&self.window, LOOK_LIMIT, what, || self.check_content(&content))?;
        if let Some(data) = content.resident {
            each(&data)?;
            return Ok(streams);
        }
        let mut buffer = vec![0; READ_BYTES];
        let (mut done, mut runs) = (0, content.runs.iter());
        while done < content.bytes {
            // What the runs do not reach is refused below.
            let (position, length) = runs.next().copied().unwrap_or((None, 0));
            let end = done.saturating_add(length).min(content.bytes);
            if length == 0 {
                let text = format!("it ends after {done} of its {} bytes", content.bytes);
                return guarded(&self.window, LOOK_LIMIT, what, || Err(Trouble::damage(text)));
            }
            let start = done;
            while done < end {
                let count = (end - done).min(READ_BYTES as u64) as usize;
                let written = content.initialised.saturating_sub(done).min(count as u64) as usize;
                let from_disk = if position.is_some() { written } else { 0 };
                let at = position.unwrap_or(0).saturating_add(done - start);
                guarded(&self.window, LOOK_LIMIT, what, || {
                    let piece = &mut buffer[..from_disk];
                    self.window.read_exact_at(at, piece).map_err(Trouble::damage)
                })?;
                buffer[from_disk..count].fill(0);
                each(&buffer[..count])?;
                done += count as u64;
            }
        }
        Ok(streams)
    }

    /// The content of a file, with its runs if they are wanted, and the number of its other
    /// streams. The crate would take a later part of a content in several records for all of it,
    /// so the list of parts is read here.
    fn content(
        &self,
        file: &NtfsFile<'_>,
        with_runs: bool,
    ) -> Result<(Option<Content>, u64), Trouble> {
        let mut disk = self.window.clone();
        let (mut content, mut streams) = (None, 0);
        let mut list = None;
        for attribute in file.attributes_raw() {
            let attribute = attribute.map_err(trouble)?;
            match attribute.ty().map_err(trouble)? {
                NtfsAttributeType::AttributeList => {
                    let found =
                        attribute.structured_value::<_, NtfsAttributeList<'_, '_>>(&mut disk);
                    list = Some(found.map_err(trouble)?);
                }
                NtfsAttributeType::Data => {
                    self.add_part(&attribute, 0, with_runs, &mut content, &mut streams)?;
                }
                _ => {}
            }
        }
        let Some(list) = list else { return Ok((content, streams)) };
        (content, streams) = (None, 0);
        let mut entries = list.entries();
        while let Some(entry) = entries.next(&mut disk) {
            let entry = entry.map_err(trouble)?;
            if entry.ty().map_err(trouble)? == NtfsAttributeType::Data {
                let part = entry.to_file(&self.file_system, &mut disk).map_err(trouble)?;
                let attribute = entry.to_attribute(&part).map_err(trouble)?;
                let first = entry.lowest_vcn().value();
                self.add_part(&attribute, first, with_runs, &mut content, &mut streams)?;
            }
        }
        Ok((content, streams))
    }

    /// Adds a part of the content, which begins at cluster `first` of it.
    fn add_part(
        &self,
        attribute: &NtfsAttribute<'_, '_>,
        first: i64,
        with_runs: bool,
        content: &mut Option<Content>,
        streams: &mut u64,
    ) -> Result<(), Trouble> {
        if !attribute.name().map_err(trouble)?.is_empty() {
            *streams += u64::from(first == 0);
            return Ok(());
        }
        let found = match (content.as_mut(), first) {
            (None, 0) => {
                let bytes = attribute.value_length();
                let initialised = self.initialised(attribute, bytes)?;
                let flags = attribute.flags();
                content.insert(Content {
                    resident: None,
                    runs: Vec::new(),
                    bytes,
                    initialised,
                    flags,
                })
            }
            (Some(found), _) => found,
            (None, _) => return Err(Trouble::damage("the first part of its content is missing")),
        };
        match attribute.value(&mut self.window.clone()).map_err(trouble)? {
            NtfsAttributeValue::Resident(value) => found.resident = Some(value.data().to_vec()),
            NtfsAttributeValue::NonResident(value) if with_runs => {
                let runs = found.runs.iter();
                let before = runs.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
                let clusters = before / u64::from(self.file_system.cluster_size());
                if i64::try_from(clusters) != Ok(first) {
                    return Err(Trouble::damage("the parts of its content do not fit together"));
                }
                for run in value.data_runs() {
                    let run = run.map_err(trouble)?;
                    if found.runs.len() >= RUNS_MAX {
                        return Err(Trouble::damage("its content is in too many pieces"));
                    }
                    let position = run.data_position().value().map(|position| position.get());
                    found.runs.push((position, run.allocated_size()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_content(&self, content: &Content) -> Result<(), Trouble> {
        let (flags, bytes) = (content.flags, content.bytes);
        if flags.contains(NtfsAttributeFlags::ENCRYPTED) {
            return Err(Trouble::unsupported("it is encrypted"));
        }
        if flags.contains(NtfsAttributeFlags::COMPRESSED) && content.resident.is_none() {
            return Err(Trouble::unsupported("it is compressed, which cannot be read"));
        }
        if !flags.contains(NtfsAttributeFlags::SPARSE) && bytes > self.window.size() {
            return Err(Trouble::damage(format!("it cannot have {bytes} bytes")));
        }
        Ok(())
    }

    /// How much of a value was ever written. The crate does not say: the number is read from the
    /// record on the disk, where the last two bytes of each sector are others (the fixups); they
    /// would be the upper ones of this number, which are zeros below 2^48.
    fn initialised(&self, attribute: &NtfsAttribute<'_, '_>, bytes: u64) -> Result<u64, Trouble> {
        const OFFSET: u64 = 56;
        if attribute.is_resident() {
            return Ok(bytes);
        }
        let Some(position) = attribute.position().value() else { return Ok(bytes) };
        let mut number = [0; 8];
        let at = position.get().saturating_add(OFFSET);
        self.window.read_exact_at(at, &mut number).map_err(Trouble::damage)?;
        if at % 512 == 512 - 8 {
            number[6..].fill(0);
        }
        Ok(u64::from_le_bytes(number).min(bytes))
    }
}

fn trouble(error: NtfsError) -> Trouble {
    Trouble::damage(error)
}

fn modified(information: &NtfsStandardInformation) -> (i64, u32) {
    unix_time(information.modification_time().nt_timestamp())
}

/// From steps of 100 ns since 1601.
fn unix_time(steps: u64) -> (i64, u32) {
    let seconds = i64::try_from(steps / 10_000_000).unwrap_or(0) - SECONDS_TO_UNIX;
    (seconds, (steps % 10_000_000) as u32 * 100)
}

/// The crate takes as much memory for a node of a directory as its root says.
fn check_nodes(file: &NtfsFile<'_>) -> Result<(), Trouble> {
    for attribute in file.attributes_raw() {
        let attribute = attribute.map_err(trouble)?;
        if attribute.ty().map_err(trouble)? == NtfsAttributeType::IndexRoot {
            let root =
                attribute.resident_structured_value::<NtfsIndexRoot<'_>>().map_err(trouble)?;
            if root.index_record_size() > RECORD_BYTES_MAX {
                return Err(Trouble::damage("its nodes are too large"));
            }
        }
    }
    Ok(())
}

/// Fills the buffer as far as the value goes.
fn read_full(
    value: &mut NtfsAttributeValue<'_, '_>,
    disk: &mut Window,
    buffer: &mut [u8],
) -> Result<usize, Trouble> {
    let mut filled = 0;
    while filled < buffer.len() {
        match value.read(disk, &mut buffer[filled..]).map_err(trouble)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
