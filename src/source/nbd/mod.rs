//! Exports of NBD servers as disks: those of QEMU, libvirt, qemu-nbd and nbdkit with all its plugins.
//!
//! Reads are cut into requests that are on their way at the same time, over several connections if the
//! server can have them; what will be read soon is asked for ahead. The protocol is in `handshake.rs`
//! and `client.rs`; threads that speak it in `connection.rs`.
//!
//! Invariants: what the server calls zeros is not read; memory for what is read ahead is bounded.

mod address;
mod client;
mod connection;
mod handshake;
mod link;
mod numbers;
mod queue;
mod transport;
mod trouble;

pub use address::{Address, is_address};
pub use client::{Answer, Client, Ranges, Request};
pub use handshake::Export;
pub use trouble::Trouble;

use super::extents::Merger;
use super::{DiskSource, Extent, ExtentKind};
use crate::error::{Error, ErrorKind, Result};
use client::Answer as Answered;
use connection::{Reply, Way};
use crossbeam_channel::Receiver;
use handshake::{ALLOCATION, DIRTY};
use link::{Link, is_timeout};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Flag of [`ALLOCATION`]: it reads as zeros.
const IS_ZERO: u32 = 2;
/// Flag of a bitmap of QEMU: it has changed.
const IS_DIRTY: u32 = 1;

/// Bytes of one read: with 16 of them on their way a connection is never idle.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes that are read ahead: the batches of a backup with eight threads.
const AHEAD_BYTES_MAX: u64 = 48 << 20;
/// Extents that are kept, 8 bytes each: one each 256 KiB of a disk of 1 TiB.
const EXTENTS_MAX: usize = 4 << 20;
/// How long a server that went away is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A read that was asked for ahead.
struct Piece {
    bytes: u64,
    state: Mutex<State>,
}

/// How far a piece has come.
enum State {
    OnItsWay(Receiver<Reply>),
    Here(Vec<u8>),
    Failed,
}

/// Reads that were asked for ahead, by their place. A piece stays until its last byte was read: who reads
/// ahead in large pieces may read in small ones.
#[derive(Default)]
struct Ahead {
    pieces: BTreeMap<u64, Arc<Piece>>,
    bytes: u64,
}

impl Ahead {
    fn remove(&mut self, start: u64) {
        if let Some(piece) = self.pieces.remove(&start) {
            self.bytes -= piece.bytes;
        }
    }
}

/// What is kept of the allocation: the start of each extent times two, and one more if it is data.
type Extents = Arc<Vec<u64>>;

/// An export of an NBD server.
pub struct NbdSource {
    /// The address, for messages.
    text: String,
    link: Link,
    ahead: Mutex<Ahead>,
    /// None before they are known, and nothing within it if they are too many.
    extents: Mutex<Option<Option<Extents>>>,
}

/// Opens an export, which is waited for up to 30 s when its server goes away meanwhile.
///
/// # Errors
/// `Source` if there is no such server or export, or it does not keep to the protocol.
pub fn open_nbd(address: Address) -> Result<NbdSource> {
    open_with_patience(address, PATIENCE)
}

/// As [`open_nbd`], with a time that a server that went away is waited for.
///
/// # Errors
/// As [`open_nbd`].
pub fn open_with_patience(address: Address, patience: Duration) -> Result<NbdSource> {
    let way = Way { address, patience };
    let text = way.address.text.clone();
    let link = Link::open(way)?;
    Ok(NbdSource { text, link, ahead: Mutex::default(), extents: Mutex::default() })
}

impl NbdSource {
    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces that a range is read in.
    fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let (least, most) = self.link.export.blocks;
        let most = 1_u64 << most.max(least).ilog2();
        let step = PIECE_BYTES.min(most);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = at;
            at = range.end.min((at / step + 1) * step);
            (start < at).then_some(start..at)
        })
    }

    /// What the server is asked for to have a piece.
    fn around(&self, piece: &Range<u64>) -> (u64, u32) {
        let least = u64::from(self.link.export.blocks.0);
        let start = piece.start - piece.start % least;
        // A size that is no multiple ends with a shorter block.
        let end = piece.end.next_multiple_of(least).min(self.size());
        (start, (end - start) as u32)
    }

    fn ask(&self, piece: &Range<u64>) -> Receiver<Reply> {
        let (start, bytes) = self.around(piece);
        self.link.ask(Request::Read(start, bytes))
    }

    /// Fills `buffer` from what was asked for ahead; false if it was not, or could not be read.
    fn read_ahead(&self, range: &Range<u64>, buffer: &mut [u8]) -> bool {
        let mut ahead = self.ahead();
        let found = ahead.pieces.range(..=range.start).next_back();
        let found = found.filter(|(start, piece)| *start + piece.bytes >= range.end);
        let Some((start, piece)) = found.map(|(start, piece)| (*start, piece.clone())) else {
            return false;
        };
        if start + piece.bytes == range.end {
            ahead.remove(start);
        }
        drop(ahead);
        let mut state = piece.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::OnItsWay(answer) = &*state {
            let whole = start..start + piece.bytes;
            let read = self.link.wait(answer, "read", start);
            *state = match read {
                Ok(Answered::Data(mut data)) => {
                    data.drain(..(start - self.around(&whole).0) as usize);
                    State::Here(data)
                }
                // Asked again, it fails by itself, or does not.
                _ => State::Failed,
            };
        }
        let State::Here(data) = &*state else { return false };
        let from = (range.start - start) as usize;
        buffer.copy_from_slice(&data[from..from + buffer.len()]);
        true
    }

    /// What the server says of a range.
    fn walk(&self, range: Range<u64>, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let mut merger = Merger::new(each);
        self.link.walk_status(ALLOCATION, range, &mut |range, flags| {
            let kind = if flags & IS_ZERO != 0 { ExtentKind::Hole } else { ExtentKind::Data };
            merger.add_range(range.start, range.end, kind)
        })?;
        merger.flush()
    }

    /// All extents, read once, unless they are too many.
    fn kept_extents(&self) -> Result<Option<Extents>> {
        let mut kept = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*kept {
            return Ok(kept.clone());
        }
        let mut all = Some(Vec::new());
        self.walk(0..self.size(), &mut |extent| {
            if let Some(extents) = &mut all {
                extents.push(extent.start << 1 | u64::from(extent.kind == ExtentKind::Data));
            }
            if all.as_ref().is_some_and(|extents| extents.len() > EXTENTS_MAX) {
                all = None;
            }
            Ok(())
        })?;
        let all = all.map(Arc::new);
        *kept = Some(all.clone());
        Ok(all)
    }
}

impl DiskSource for NbdSource {
    fn size(&self) -> u64 {
        self.link.export.size
    }

    fn describe(&self) -> String {
        self.text.clone()
    }

    fn format(&self) -> &'static str {
        "nbd"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.size());
        if !self.allocation_known() {
            let mut merger = Merger::new(each);
            merger.add_range(range.start, end, ExtentKind::Data)?;
            return merger.flush();
        }
        let Some(extents) = self.kept_extents()? else { return self.walk(range.start..end, each) };
        let first = extents.partition_point(|extent| extent >> 1 <= range.start).saturating_sub(1);
        for (number, extent) in extents.iter().enumerate().skip(first) {
            let start = (extent >> 1).max(range.start);
            let stop = extents.get(number + 1).map_or(end, |next| (next >> 1).min(end));
            if start >= stop {
                break;
            }
            let kind = if extent & 1 == 1 { ExtentKind::Data } else { ExtentKind::Hole };
            each(Extent { start, bytes: stop - start, kind })?;
        }
        Ok(())
    }

    fn allocation_known(&self) -> bool {
        self.link.has_context(ALLOCATION)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        let Some(end) = end else {
            let (text, bytes) = (self.describe(), buffer.len());
            let text = format!("cannot read disk {text} at offset {offset}: {bytes} bytes");
            let text = format!("{text} reach beyond its end at {}", self.size());
            return Err(Error::new(ErrorKind::Source, text));
        };
        // All are on their way before the first one is waited for.
        let mut asked = Vec::new();
        let mut rest = buffer;
        for piece in self.pieces(offset..end) {
            let (now, later) = rest.split_at_mut((piece.end - piece.start) as usize);
            rest = later;
            if !self.read_ahead(&piece, now) {
                asked.push((self.ask(&piece), piece, now));
            }
        }
        for (answer, piece, now) in asked {
            let Answered::Data(data) = self.link.wait(&answer, "read", piece.start)? else {
                let text = format!("cannot read disk {}: it is answered oddly", self.describe());
                return Err(Error::new(ErrorKind::Source, text));
            };
            let from = (piece.start - self.around(&piece).0) as usize;
            now.copy_from_slice(&data[from..from + now.len()]);
        }
        Ok(())
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.size());
        for piece in self.pieces(offset..end.max(offset)) {
            let mut ahead = self.ahead();
            let bytes = piece.end - piece.start;
            if ahead.pieces.contains_key(&piece.start) {
                continue;
            }
            while ahead.bytes + bytes > AHEAD_BYTES_MAX {
                // What was not fetched for so long is not wanted any more.
                let Some(first) = ahead.pieces.keys().next().copied() else { break };
                ahead.remove(first);
            }
            let state = Mutex::new(State::OnItsWay(self.ask(&piece)));
            ahead.pieces.insert(piece.start, Arc::new(Piece { bytes, state }));
            ahead.bytes += bytes;
        }
    }

    /// The server keeps the size of an export, and each new connection was compared.
    fn check_unchanged_size(&self) -> Result<()> {
        Ok(())
    }

    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Those of QEMU that the server tells, up to 64.
    fn bitmaps(&self) -> Result<Vec<String>> {
        let names = self.link.export.contexts.iter();
        Ok(names.filter_map(|(_, name)| name.strip_prefix(DIRTY)).map(String::from).collect())
    }

    fn changed_by_bitmap(&self, name: &str) -> Result<Option<Vec<Range<u64>>>> {
        let context = format!("{DIRTY}{name}");
        if !self.link.has_context(&context) {
            return Ok(None);
        }
        let mut changed: Vec<Range<u64>> = Vec::new();
        self.link.walk_status(&context, 0..self.size(), &mut |range, flags| {
            if flags & IS_DIRTY == 0 {
                return Ok(());
            }
            match changed.last_mut().filter(|last| last.end == range.start) {
                Some(last) => last.end = range.end,
                None => changed.push(range),
            }
            Ok(())
        })?;
        Ok(Some(changed))
    }
}

/// Why a connection ended, for people.
fn in_words(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the connection".into(),
        _ if is_timeout(cause) => "it does not answer".into(),
        _ => cause.to_string(),
    }
}
