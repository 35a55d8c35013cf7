//! Putting every splice together and hashing it: that its pieces are whole does not say that they
//! are the right ones.
//!
//! Invariant: memory is a window of splices and what a restore of them needs, whatever their
//! number.

use super::CheckReport;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::objects::refused;
use crate::repository::pack_reader::OpenPack;
use crate::restore::fetch::{Fetcher, Wanted};
use crate::restore::joining::Joining;
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::{EntryKind, SegmentDecoder};
use diskvault_format::splice::Splice;

/// Splices that are put together while the packs are read; some 50 MiB of memory. What is beyond
/// reads the segments again.
const JOINED_MAX: usize = 128 << 10;
/// Splices that are put together at once afterwards: 2 GiB of chunks at 32 KiB.
const WINDOW_SPLICES: usize = 64 << 10;

type Window = Vec<(Wanted, Option<Splice>)>;

/// Walks over the splices of the chosen packs, window by window.
pub(super) struct Splices<'a> {
    fetcher: &'a Fetcher<'a>,
    packs: std::slice::Iter<'a, PackId>,
}

impl<'a> Splices<'a> {
    /// Those in the packs among `chosen`.
    pub fn new(fetcher: &'a Fetcher<'a>, chosen: &'a [PackId]) -> Splices<'a> {
        Splices { fetcher, packs: chosen.iter() }
    }

    /// The splices to be put together while the packs are read.
    ///
    /// # Errors
    /// `Cancelled`, or what the index says.
    pub fn join(&mut self) -> Result<Joining<'a>> {
        let window = self.window(JOINED_MAX)?;
        match Joining::new(self.fetcher, window.clone()) {
            // A piece is in no pack: it is named with the rest, one by one.
            Err(error) if is_finding(&error) => Joining::deferring(self.fetcher, window),
            other => other,
        }
    }

    /// Puts together and names what was not, and then all that are left.
    ///
    /// # Errors
    /// As [`Splices::join`].
    pub fn finish(mut self, joining: Joining<'_>, report: &mut CheckReport) -> Result<()> {
        let mut rest = joining.rest();
        while !rest.is_empty() {
            let window = rest.split_off(rest.len().saturating_sub(WINDOW_SPLICES));
            self.check(window, report)?;
        }
        loop {
            let window = self.window(WINDOW_SPLICES)?;
            if window.is_empty() {
                return Ok(());
            }
            self.check(window, report)?;
        }
    }

    /// The splices of the next packs, until there are `most`.
    fn window(&mut self, most: usize) -> Result<Window> {
        let mut window = Window::new();
        while window.len() < most {
            let Some(id) = self.packs.next() else { break };
            self.fetcher.monitor.check_cancelled()?;
            // One that does not open is reported when it is read.
            match self.fetcher.locator.pack(self.fetcher.repository, *id) {
                Ok(pack) if pack.kind == PackKind::Map => self.add_pack(&pack, &mut window)?,
                _ => {}
            }
        }
        Ok(window)
    }

    fn add_pack(&self, pack: &OpenPack, window: &mut Window) -> Result<()> {
        let mut decoder = SegmentDecoder::new().map_err(|cause| refused("a segment", cause))?;
        let mut data = Vec::new();
        for (ordinal, segment) in (0..).zip(&pack.footer.segments) {
            if segment.entries.iter().all(|entry| entry.kind != EntryKind::Splice) {
                continue;
            }
            let storage = self.fetcher.repository.storage().as_ref();
            if pack.read_segment(storage, ordinal, &mut decoder, &mut data).is_err() {
                continue;
            }
            let mut start = 0;
            for entry in &segment.entries {
                let bytes = &data[start..start + entry.bytes as usize];
                start += entry.bytes as usize;
                if entry.kind == EntryKind::Splice
                    && let Ok(splice) = Splice::decode(bytes)
                {
                    let (id, bytes) = (ChunkId(entry.id), splice.chunk_bytes());
                    window.push((Wanted { offset: 0, bytes, id }, Some(splice)));
                }
            }
        }
        Ok(())
    }

    /// Puts a window together; one by one if that fails, so that each is named.
    fn check(&self, window: Window, report: &mut CheckReport) -> Result<()> {
        let nothing = |_, _: &[u8]| Ok(());
        match self.fetcher.fetch_all(window.clone(), &nothing) {
            Err(error) if is_finding(&error) => {}
            other => return other,
        }
        for item in window {
            let id = item.0.id;
            match self.fetcher.fetch_all(vec![item], &nothing) {
                Err(error) if is_finding(&error) => {
                    let text = error.full_text();
                    report.damage(format!("chunk {id} cannot be put together: {text}"));
                }
                other => other?,
            }
        }
        Ok(())
    }
}

fn is_finding(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound)
}

/// Hears of an interruption and tells no progress: what is put together was counted when it was
/// read.
pub(super) struct Quiet<'a>(pub &'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
