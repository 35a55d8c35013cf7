//! Files and folders of a disk as a tar stream.
//!
//! Invariant: the stream is one that tar reads to its end, whatever is wrong with a file: what
//! could not be read of one whose header is out is zeros, and the monitor and the report tell.

use super::copy::CopyReport;
use super::tree::{At, Go, Resolved, Step, walk};
use super::volume::{Entry, Volume};
use super::{Kind, Name};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use std::io::{self, Write};
use tar::{EntryType, Header};

/// A tar consists of blocks of so many bytes.
const BLOCK_BYTES: u64 = 512;
/// Sizes from here on do not fit into the header: 11 octal digits.
const SIZE_MAX: u64 = 1 << 33;
/// Ids from here on do not fit: 7 octal digits.
const ID_MAX: u32 = 1 << 21;

/// Writes a file, or a folder with all that is in it, as a tar. Owners, permissions and times are
/// those of the file system, names are relative to the folder of the start.
///
/// # Errors
/// `Failed` if nobody reads it; `Cancelled`. What else goes wrong is told to the monitor and is in
/// the report.
pub fn archive(
    volume: &Volume,
    start: &Resolved<'_>,
    output: &mut dyn Write,
    monitor: &dyn Monitor,
) -> Result<CopyReport> {
    let base = Some(start.entry.name.clone()).filter(|name| !name.0.is_empty());
    let mut work = Archive { volume, base, output, monitor, report: CopyReport::default() };
    monitor.start("writing a tar", None);
    walk(volume, start, &mut |at, step| {
        monitor.check_cancelled()?;
        let done = match step {
            Step::Entry(entry) => work.entry(&at, entry),
            Step::Leave(_) => Ok(()),
            Step::Trouble(error) => Err(Stop::Here(error)),
        };
        match done {
            Ok(()) => Ok(Go::In),
            Err(Stop::Here(error)) => work.report.fail(error, monitor).map(|()| Go::Past),
            Err(Stop::All(error)) => Err(error),
        }
    })?;
    // Two blocks of zeros are the end.
    work.output.write_all(&[0; 2 * BLOCK_BYTES as usize]).map_err(cannot_write)?;
    work.output.flush().map_err(cannot_write)?;
    monitor.finish();
    Ok(work.report)
}

fn cannot_write(cause: io::Error) -> Error {
    Error::io(ErrorKind::Failed, "cannot write to standard output", cause)
}

/// What ends with an error.
enum Stop {
    /// This entry.
    Here(Error),
    /// Everything.
    All(Error),
}

struct Archive<'a> {
    volume: &'a Volume,
    base: Option<Name>,
    output: &'a mut dyn Write,
    monitor: &'a dyn Monitor,
    report: CopyReport,
}

impl Archive<'_> {
    fn entry(&mut self, at: &At<'_>, entry: &Entry<'_>) -> Result<(), Stop> {
        let names: Vec<&Name> = self.base.iter().chain(at.names).collect();
        if let Some(name) = names.iter().find(|name| !name.is_safe()) {
            let text = format!("cannot archive a file called {name:?}: it would leave the folder");
            return Err(Stop::Here(Error::new(ErrorKind::Damage, text)));
        }
        let empty = Name(Vec::new());
        let mut path = names.iter().fold(empty, |path, name| path.join(name));
        if path.0.is_empty() {
            path = Name(b".".to_vec());
        }
        match entry.facts.kind {
            Kind::Folder => {
                path.0.push(b'/');
                self.header(&path, entry, EntryType::Directory, None)?;
                self.report.folders += 1;
            }
            Kind::Link => {
                let target = self.volume.target(entry, at.path).map_err(Stop::Here)?;
                self.header(&path, entry, EntryType::Symlink, Some(&target))?;
                self.report.links += 1;
            }
            Kind::Special(_) => self.report.skipped += 1,
            Kind::File => self.file(&path, at, entry)?,
        }
        Ok(())
    }

    fn file(&mut self, path: &Name, at: &At<'_>, entry: &Entry<'_>) -> Result<(), Stop> {
        let bytes = entry.facts.bytes;
        let mut written = None;
        let mut lost = None;
        let read = self.volume.read(entry, at.path, &mut |data| {
            self.monitor.check_cancelled().inspect_err(|_| lost = Some(()))?;
            self.monitor.advance(data.len() as u64);
            // The header waits for the first byte: files that cannot be read at all are left out.
            if written.is_none() {
                let header = head(path, entry, EntryType::Regular, None);
                self.output
                    .write_all(&header)
                    .map_err(cannot_write)
                    .inspect_err(|_| lost = Some(()))?;
                written = Some(0);
            }
            let done = written.get_or_insert(0);
            if *done + data.len() as u64 > bytes {
                let text = format!("cannot read {}: it is longer than it says", at.path);
                return Err(Error::new(ErrorKind::Damage, text));
            }
            *done += data.len() as u64;
            self.output.write_all(data).map_err(cannot_write).inspect_err(|_| lost = Some(()))
        });
        let short = || {
            let text = format!("cannot read {}: it is shorter than it says", at.path);
            Error::new(ErrorKind::Damage, text)
        };
        let trouble = match (read, written) {
            (Err(error), _) if lost.is_some() => return Err(Stop::All(error)),
            (Err(error), None) => return Err(Stop::Here(error)),
            (Err(error), Some(_)) => Some(error),
            (Ok(streams), _) => {
                self.report.left_out_streams += streams;
                (written.unwrap_or(0) < bytes).then(short)
            }
        };
        if written.is_none() {
            self.header(path, entry, EntryType::Regular, None)?;
        }
        let padded = bytes.next_multiple_of(BLOCK_BYTES);
        let zeros = io::copy(
            &mut io::Read::take(io::repeat(0), padded - written.unwrap_or(0)),
            &mut self.output,
        );
        zeros.map_err(|cause| Stop::All(cannot_write(cause)))?;
        self.report.files += 1;
        self.report.bytes += bytes;
        match trouble {
            None => Ok(()),
            Some(error) => {
                let text = format!("{}; the rest of it is zeros in the tar", error.full_text());
                Err(Stop::Here(Error::new(error.kind(), text)))
            }
        }
    }

    fn header(
        &mut self,
        path: &Name,
        entry: &Entry<'_>,
        kind: EntryType,
        link: Option<&Name>,
    ) -> Result<(), Stop> {
        let bytes = head(path, entry, kind, link);
        self.output.write_all(&bytes).map_err(|cause| Stop::All(cannot_write(cause)))
    }
}

/// The header of an entry; before it one with records of pax for what does not fit.
fn head(path: &Name, entry: &Entry<'_>, kind: EntryType, link: Option<&Name>) -> Vec<u8> {
    let facts = &entry.facts;
    let bytes = if kind == EntryType::Regular { facts.bytes } else { 0 };
    let (mode, (user, group)) = match facts.owner {
        Some(owner) => (owner.mode, owner.ids),
        None => (if kind == EntryType::Directory { 0o755 } else { 0o644 }, (0, 0)),
    };
    let (seconds, nanoseconds) = facts.modified;
    let mut header = Header::new_ustar();
    let mut records = Vec::new();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.min(SIZE_MAX - 1));
    header.set_mtime(u64::try_from(seconds).unwrap_or(0).min(SIZE_MAX - 1));
    header.set_uid(u64::from(user.min(ID_MAX - 1)));
    header.set_gid(u64::from(group.min(ID_MAX - 1)));
    let mut names = vec![("path", path, 0_usize)];
    names.extend(link.map(|link| ("linkpath", link, 157)));
    for (key, name, at) in names {
        let is_plain = name.0.len() <= 100;
        let kept = name.0.len().min(100);
        header.as_mut_bytes()[at..at + kept].copy_from_slice(&name.0[..kept]);
        if !is_plain {
            if std::str::from_utf8(&name.0).is_err() {
                record(&mut records, "hdrcharset", b"BINARY");
            }
            record(&mut records, key, &name.0);
        }
    }
    if bytes >= SIZE_MAX {
        record(&mut records, "size", bytes.to_string().as_bytes());
    }
    for (key, id) in [("uid", user), ("gid", group)] {
        if id >= ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if nanoseconds != 0 || !(0..SIZE_MAX as i64).contains(&seconds) {
        let time = (i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)).unsigned_abs();
        let sign = if seconds < 0 { "-" } else { "" };
        let text = format!("{sign}{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
        record(&mut records, "mtime", text.as_bytes());
    }
    header.set_cksum();
    let mut head = Vec::new();
    if !records.is_empty() {
        let mut before = Header::new_ustar();
        before.set_entry_type(EntryType::XHeader);
        before.set_size(records.len() as u64);
        before.set_mode(0o644);
        before.as_mut_bytes()[..7].copy_from_slice(b"records");
        before.set_cksum();
        head.extend_from_slice(before.as_bytes());
        records.resize(records.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        head.append(&mut records);
    }
    head.extend_from_slice(header.as_bytes());
    head
}

/// `LENGTH KEY=VALUE` and a line end; the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} {key}=").bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}
