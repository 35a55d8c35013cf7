//! The files in the tar of an OVA.
//!
//! Invariants: only headers are read, and no more than a budget of them; a member's range lies in the
//! file; each has a name of its own that leads nowhere else.

use crate::source::DiskSource;
use diskvault_format::limits::PARTS_MAX;
use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use tar::{Archive, Entry, EntryType};

/// Files and folders of an archive: a point has no more parts.
const MEMBERS_MAX: usize = PARTS_MAX;
/// Bytes of headers, long names and pax records that are read.
const HEADERS_BYTES_MAX: u64 = 16 << 20;

/// A file in the archive.
pub(super) struct Member {
    /// Its path in the archive, without a leading `./`.
    pub name: String,
    /// Its bytes in the archive.
    pub range: Range<u64>,
}

/// What is in an archive.
pub(super) struct Listing {
    pub members: Vec<Member>,
    /// False if the file ends where a further header could be.
    pub has_end: bool,
}

/// True for the name of an OVF descriptor.
pub(super) fn is_ovf(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("ovf"))
}

/// True if `file`, whose first 512 bytes are `start`, begins as a tar whose first member is an OVF
/// descriptor.
pub(in crate::source) fn begins_as_ova(start: &[u8], file: &dyn DiskSource) -> bool {
    // A cheap look first: this is asked of every disk.
    if start.get(257..262) != Some(b"ustar") {
        return false;
    }
    let mut archive = Archive::new(Headers::new(file));
    let Ok(mut entries) = archive.entries_with_seek() else { return false };
    let Some(Ok(first)) = entries.next() else { return false };
    std::str::from_utf8(&first.path_bytes()).is_ok_and(is_ovf)
}

/// All files of an archive, or why it is refused.
pub(super) fn list(file: &dyn DiskSource) -> Result<Listing, String> {
    let no_tar = |cause: io::Error| format!("cannot read its headers: {cause}");
    if compression(file).map_err(no_tar)? {
        return Err("it is compressed, and a tar was expected".into());
    }
    let mut archive = Archive::new(Headers::new(file));
    let mut listing = Listing { members: Vec::new(), has_end: false };
    let mut names = BTreeSet::new();
    let mut count = 0;
    for entry in archive.entries_with_seek().map_err(no_tar)? {
        count += 1;
        if count > MEMBERS_MAX {
            return Err(format!("it has more than {MEMBERS_MAX} members"));
        }
        let Some(member) = examine(entry.map_err(no_tar)?, file.size())? else { continue };
        if !names.insert(member.name.clone()) {
            return Err(format!("it has two members named {}", member.name.escape_debug()));
        }
        listing.members.push(member);
    }
    listing.has_end = !archive.into_inner().met_end;
    Ok(listing)
}

/// True if a file begins as gzip, bzip2, xz or zstd write it.
fn compression(file: &dyn DiskSource) -> io::Result<bool> {
    let mut start = [0; 6];
    let bytes = file.size().min(start.len() as u64) as usize;
    let start = &mut start[..bytes];
    file.read_at(0, start).map_err(|error| io::Error::other(error.full_text()))?;
    let magics: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    Ok(magics.iter().any(|magic| start.starts_with(magic)))
}

/// What an entry is; nothing for a folder and for remarks about all entries.
fn examine<R: Read>(mut entry: Entry<'_, R>, file_bytes: u64) -> Result<Option<Member>, String> {
    let path = entry.path_bytes().into_owned();
    let shown = String::from_utf8_lossy(&path).escape_debug().to_string();
    let Ok(path) = String::from_utf8(path) else {
        return Err(format!("the name of its member {shown} is no UTF-8"));
    };
    let kind = entry.header().entry_type();
    match kind {
        EntryType::Directory | EntryType::XGlobalHeader => return Ok(None),
        EntryType::Regular | EntryType::Continuous => {}
        EntryType::GNUSparse => return Err(format!("its member {shown} is sparse")),
        EntryType::Link | EntryType::Symlink => {
            return Err(format!("its member {shown} is a link"));
        }
        _ => return Err(format!("its member {shown} is no file")),
    }
    if is_pax_sparse(&mut entry).map_err(|cause| format!("its member {shown}: {cause}"))? {
        return Err(format!("its member {shown} is sparse"));
    }
    let mut name = path.as_str();
    while let Some(rest) = name.strip_prefix("./") {
        name = rest;
    }
    if name.is_empty() || name.starts_with('/') || name.split('/').any(|it| it == "..") {
        return Err(format!("the name of its member {shown} leads out of it"));
    }
    let start = entry.raw_file_position();
    let end = start.checked_add(entry.size()).filter(|end| *end <= file_bytes);
    let Some(end) = end else {
        let bytes = entry.size();
        return Err(format!("its member {shown} of {bytes} bytes reaches beyond its end"));
    };
    Ok(Some(Member { name: name.to_string(), range: start..end }))
}

/// True if pax records say that a file has holes.
fn is_pax_sparse<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<bool> {
    let Some(records) = entry.pax_extensions()? else { return Ok(false) };
    for record in records {
        if record?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file as the tar reader reads it, which skips what is in members.
struct Headers<'a> {
    file: &'a dyn DiskSource,
    at: u64,
    /// Bytes that may still be read.
    left: u64,
    /// True once there was nothing to read.
    met_end: bool,
}

impl Headers<'_> {
    fn new(file: &dyn DiskSource) -> Headers<'_> {
        Headers { file, at: 0, left: HEADERS_BYTES_MAX, met_end: false }
    }
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.size().saturating_sub(self.at).min(buffer.len() as u64);
        if self.left < bytes {
            let most = HEADERS_BYTES_MAX >> 20;
            return Err(io::Error::other(format!("they are longer than {most} MiB")));
        }
        self.met_end |= bytes == 0 && !buffer.is_empty();
        let read = self.file.read_at(self.at, &mut buffer[..bytes as usize]);
        read.map_err(|error| io::Error::other(error.full_text()))?;
        self.at += bytes;
        self.left -= bytes;
        Ok(bytes as usize)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.size().checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::other("a member ends beyond 2^64"))?;
        Ok(self.at)
    }
}
