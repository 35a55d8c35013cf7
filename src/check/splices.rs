//! Putting every splice together and hashing it: that its pieces are whole does not say that they
//! are the right ones.
//!
//! Invariant: memory is a window of splices and what a restore of them needs, whatever their
//! number.

use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::entries::places_of;
use crate::repository::locate::Locator;
use crate::repository::objects::refused;
use crate::repository::pack_reader::OpenPack;
use crate::restore::fetch::{Fetcher, Refused, Wanted};
use crate::restore::joining::Joining;
use diskvault_format::footer::FooterSegment;
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::{EntryKind, SegmentDecoder};
use diskvault_format::splice::Splice;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Splices that are put together while the packs are read; some 50 MiB of memory. What is beyond
/// reads the segments again.
const JOINED_MAX: usize = 128 << 10;
/// Splices that are put together at once afterwards: 2 GiB of chunks at 32 KiB.
const WINDOW_SPLICES: usize = 64 << 10;

type Window = Vec<(Wanted, Splice)>;

/// Walks over the splices of the chosen packs, window by window.
pub(super) struct Splices<'a> {
    fetcher: &'a Fetcher<'a>,
    packs: std::slice::Iter<'a, PackId>,
    /// The pack that was begun, and its next segment.
    begun: Option<(Arc<OpenPack>, u32)>,
}

impl<'a> Splices<'a> {
    /// Those in the packs among `chosen`.
    pub fn new(fetcher: &'a Fetcher<'a>, chosen: &'a [PackId]) -> Splices<'a> {
        Splices { fetcher, packs: chosen.iter(), begun: None }
    }

    /// Begins with the splices that are put together while the packs are read.
    ///
    /// # Errors
    /// `Cancelled`, or what the index or the storage say.
    pub fn join(&mut self) -> Result<Joining<'a>> {
        Joining::new(self.fetcher, self.window(JOINED_MAX)?)
    }

    /// Puts together what was not, and then all that are left. Tells which that did not work for.
    ///
    /// # Errors
    /// As [`Splices::join`].
    pub fn finish(mut self, joining: Joining<'_>) -> Result<Refused> {
        let nothing = |_, _: &[u8]| Ok(());
        let (mut refused, mut window) = joining.finish();
        loop {
            refused.extend(self.fetcher.put_together(window, &nothing)?);
            window = self.window(WINDOW_SPLICES)?;
            if window.is_empty() {
                return Ok(refused);
            }
        }
    }

    /// The splices of the next segments, until there are `most`.
    fn window(&mut self, most: usize) -> Result<Window> {
        let mut decoder = SegmentDecoder::new().map_err(|cause| refused("a segment", cause))?;
        let mut data = Vec::new();
        let mut window = Window::new();
        while window.len() < most {
            self.fetcher.monitor.check_cancelled()?;
            let Some((pack, ordinal)) = self.next_segment() else { break };
            let segment = &pack.footer.segments[ordinal as usize];
            if segment.entries.iter().all(|entry| entry.kind != EntryKind::Splice) {
                continue;
            }
            let storage = self.fetcher.repository.storage().as_ref();
            // What does not open is reported where whole packs are read.
            if pack.read_segment(storage, ordinal, &mut decoder, &mut data).is_ok() {
                add_splices(segment, &data, &mut window);
            }
        }
        Ok(window)
    }

    fn next_segment(&mut self) -> Option<(Arc<OpenPack>, u32)> {
        loop {
            if let Some((pack, ordinal)) = &mut self.begun
                && (*ordinal as usize) < pack.footer.segments.len()
            {
                *ordinal += 1;
                return Some((pack.clone(), *ordinal - 1));
            }
            let id = self.packs.next()?;
            let opened = self.fetcher.locator.pack(self.fetcher.repository, *id);
            self.begun =
                opened.ok().filter(|pack| pack.kind == PackKind::Map).map(|pack| (pack, 0));
        }
    }
}

fn add_splices(segment: &FooterSegment, data: &[u8], window: &mut Window) {
    let mut start = 0;
    for entry in &segment.entries {
        let bytes = &data[start..start + entry.bytes as usize];
        start += entry.bytes as usize;
        if entry.kind == EntryKind::Splice
            && let Ok(splice) = Splice::decode(bytes)
        {
            let (id, bytes) = (ChunkId(entry.id), splice.chunk_bytes());
            window.push((Wanted { offset: 0, bytes, id }, splice));
        }
    }
}

/// Looks once more at splices that could not be put together while packs were taken away: a prune
/// has copied what is needed first. Tells what is wrong with those that are still there, and where
/// things are now if that has changed.
///
/// # Errors
/// As [`Splices::join`].
pub(super) fn look_again(
    fetcher: &Fetcher<'_>,
    mut refused: Refused,
    monitor: &dyn Monitor,
) -> Result<(Refused, Option<Locator>)> {
    let mut newer: Option<Locator> = None;
    for _ in 0..super::LOOKS_MAX {
        let locator = newer.as_ref().unwrap_or(fetcher.locator);
        if refused.is_empty() || !locator.is_outdated(fetcher.repository)? {
            break;
        }
        let ids: BTreeSet<ChunkId> = refused.drain(..).map(|(id, _)| id).collect();
        let locator = Locator::open_fresh(fetcher.repository, monitor)?;
        let fetcher = Fetcher { locator: &locator, ..*fetcher };
        let mut window = Window::new();
        for id in ids {
            for place in places_of(locator.index(), &id.0)?.iter().filter(|it| it.is_splice) {
                match locator.splices().read(id, place) {
                    Ok(splice) => {
                        let bytes = splice.chunk_bytes();
                        window.push((Wanted { offset: 0, bytes, id }, splice));
                    }
                    Err(error) if error.kind().is_finding() => refused.push((id, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        refused.extend(fetcher.put_together(window, &|_, _: &[u8]| Ok(()))?);
        newer = Some(locator);
    }
    Ok((refused, newer))
}

/// Hears of an interruption and tells no progress: what is put together was counted when it was
/// read.
pub(super) struct Quiet<'a>(pub &'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
