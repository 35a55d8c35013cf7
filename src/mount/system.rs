//! What the kernel asks of a mount, and the answers.

use super::catalogue::{Catalogue, Found, Node, REFRESH};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::lock;
use crate::restore::find_part;
use crate::view::{Extent, Reader, Vault, View};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, Request,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Files do not change, so the kernel need not ask again soon.
const FILES_KEPT: Duration = Duration::from_secs(3600);
/// A hole or data is looked for in so much of a map at once.
const SEEK_BYTES: u64 = 1 << 30;
/// What the kernel may read ahead: as much as it takes.
const READ_AHEAD_BYTES: u32 = 4 << 20;
/// Requests that the kernel may have under way.
const REQUESTS_MAX: u16 = 64;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// A file that is open.
struct Open {
    view: Arc<View>,
    /// For who reads from front to back; whoever finds it taken reads without.
    reader: Mutex<Reader>,
}

/// The file system.
pub struct System {
    catalogue: Catalogue,
    vault: Arc<Vault>,
    monitor: Arc<dyn Monitor + Send + Sync>,
    open: Mutex<OpenFiles>,
    owner: (u32, u32),
}

#[derive(Default)]
struct OpenFiles {
    last: u64,
    files: HashMap<u64, Arc<Open>>,
}

impl System {
    /// Shows what the catalogue has.
    pub fn new(
        catalogue: Catalogue,
        vault: Arc<Vault>,
        monitor: Arc<dyn Monitor + Send + Sync>,
    ) -> System {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        System { catalogue, vault, monitor, open: Mutex::default(), owner }
    }

    fn attributes(&self, found: &Found) -> (FileAttr, Duration) {
        let time = time_of(found.time_unix_ns);
        let is_file = matches!(found.node, Node::Part(..));
        let may_change = matches!(found.node, Node::Root | Node::Series(_));
        let attributes = FileAttr {
            ino: INodeNo(found.number),
            size: found.bytes,
            blocks: found.allocated.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o444 } else { 0o555 },
            nlink: if is_file { 1 } else { 2 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 64 << 10,
            flags: 0,
        };
        (attributes, if may_change { REFRESH } else { FILES_KEPT })
    }

    fn open_file(&self, number: u64) -> Result<Option<u64>> {
        let Some((point, name)) = self.catalogue.part(number) else { return Ok(None) };
        let view = Arc::new(View::open(&self.vault, find_part(&point, &name)?)?);
        let reader = Mutex::new(Reader::new(view.clone()));
        let mut open = lock(&self.open);
        open.last += 1;
        let handle = open.last;
        open.files.insert(handle, Arc::new(Open { view, reader }));
        Ok(Some(handle))
    }

    fn file(&self, handle: FileHandle) -> Option<Arc<Open>> {
        lock(&self.open).files.get(&u64::from(handle)).cloned()
    }

    /// The kernel hears of a failed read, the user of why.
    fn tell(&self, error: &Error) -> Errno {
        self.monitor.warn(&error.full_text());
        Errno::EIO
    }
}

fn time_of(unix_ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(unix_ns.unsigned_abs());
    let time = if unix_ns < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// The first place from `offset` on that has storage, or has none.
fn seek(view: &View, offset: u64, wants_data: bool) -> Result<Option<u64>> {
    let size = view.size();
    let mut start = offset;
    while start < size {
        let end = start.saturating_add(SEEK_BYTES).min(size);
        let mut found = None;
        view.extents(start..end, &mut |extent: Extent| {
            if extent.is_allocated == wants_data {
                found.get_or_insert(extent.start);
            }
            Ok(())
        })?;
        if found.is_some() {
            return Ok(found);
        }
        start = end;
    }
    // Behind the end is a hole.
    Ok((!wants_data).then_some(size))
}

impl Filesystem for System {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What is too much is answered with what is not.
        if let Err(most) = config.set_max_readahead(READ_AHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(REQUESTS_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = name.to_str().and_then(|name| self.catalogue.look_up(parent.0, name));
        match found {
            Some(found) => {
                let (attributes, kept) = self.attributes(&found);
                reply.entry(&kept, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.catalogue.get(number.0) {
            Some(found) => {
                let (attributes, kept) = self.attributes(&found);
                reply.attr(&kept, &attributes);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(entries) = self.catalogue.list(number.0) else {
            return reply.error(Errno::ENOENT);
        };
        let dots = [".", ".."].map(|name| (name.to_string(), number.0, FileType::Directory));
        let entries = entries.into_iter().map(|(name, found)| {
            let is_file = matches!(found.node, Node::Part(..));
            let kind = if is_file { FileType::RegularFile } else { FileType::Directory };
            (name, found.number, kind)
        });
        for (next, (name, number, kind)) in (1..).zip(dots.into_iter().chain(entries)) {
            if next > offset && reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number.0) {
            Ok(Some(handle)) => {
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.tell(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(handle) else { return reply.error(Errno::EBADF) };
        let left = file.view.size().saturating_sub(offset);
        let mut buffer = vec![0; u64::from(size).min(left) as usize];
        if buffer.is_empty() {
            return reply.data(&buffer);
        }
        let read = match file.reader.try_lock() {
            Ok(mut reader) => reader.read_at(offset, &mut buffer),
            Err(_) => file.view.read_at(offset, &mut buffer),
        };
        match read {
            Ok(()) => reply.data(&buffer),
            Err(error) => reply.error(self.tell(&error)),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.open).files.remove(&u64::from(handle));
        reply.ok();
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(file) = self.file(handle) else { return reply.error(Errno::EBADF) };
        let offset = u64::try_from(offset).ok().filter(|offset| *offset < file.view.size());
        let found = match (offset, whence) {
            (None, _) => return reply.error(Errno::ENXIO),
            (Some(offset), SEEK_DATA) => seek(&file.view, offset, true),
            (Some(offset), SEEK_HOLE) => seek(&file.view, offset, false),
            _ => Err(Error::new(ErrorKind::Usage, "cannot seek that way")),
        };
        match found {
            Ok(Some(place)) => match i64::try_from(place) {
                Ok(place) => reply.offset(place),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(self.tell(&error)),
        }
    }
}
