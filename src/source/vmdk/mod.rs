//! VMDK images: the guest's view of one, with its extents and its chain of parents (VMware, Virtual
//! Disk Format 5.0; for COWD and seSparse deltas what the reader in QEMU's block/vmdk.c knows).
//!
//! Invariants: nothing is read that no image of the chain allocates; what a table says is checked
//! against the file before it is followed; memory is bounded whatever the image says.

mod cache;
mod cowd;
mod descriptor;
mod grains;
mod inflate;
mod open;
mod sesparse;
mod sparse;

pub use descriptor::Parent;
pub use open::{Image, content_id};

pub(super) use open::begins_as_vmdk;

use super::extents::Merger;
use super::{DiskSource, Extent, ExtentKind, changed_over, newest_change};
use crate::error::{Error, ErrorKind, Result};
use cache::Tables;
use grains::{Grains, Packing, Place};
use open::{Budget, Bytes, Piece};
use std::ops::Range;

/// The guest's view of a VMDK image.
pub struct VmdkSource {
    /// The path of the file that the image was opened by.
    name: String,
    cid: u32,
    /// The descriptor's file, if it is no extent.
    descriptor: Option<Box<dyn DiskSource>>,
    /// They cover the disk, in order.
    pieces: Vec<Piece>,
    /// What shows through where nothing is allocated.
    parent: Option<Box<VmdkSource>>,
    tables: Tables,
}

/// What a run of the disk is.
enum Run<'a> {
    /// In the parent, or nowhere.
    Below,
    /// They are zeros.
    Zero,
    /// At this place in a file that may have holes.
    Flat(&'a dyn DiskSource, u64),
    /// At this place in the file of an extent.
    Grains(&'a Grains, u64),
    /// In the compressed grain at this place, from this place of the extent on.
    Packed(&'a Grains, (u64, Packing), u64),
}

/// An error about a file of an image.
fn bad(file: &dyn DiskSource, text: impl std::fmt::Display) -> Error {
    bad_at(&file.describe(), text)
}

fn bad_at(name: &str, text: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Source, format!("cannot read vmdk image {name}: {text}"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads `bytes` bytes of a file of the image; `what` is for the error if they are not there.
fn read(file: &dyn DiskSource, at: u64, bytes: usize, what: &str) -> Result<Vec<u8>> {
    if at.checked_add(bytes as u64).is_none_or(|end| end > file.size()) {
        return Err(bad(file, format!("{what} lies beyond the end of the file")));
    }
    let mut buffer = vec![0; bytes];
    file.read_at(at, &mut buffer)?;
    Ok(buffer)
}

impl VmdkSource {
    fn new(
        name: String,
        cid: u32,
        descriptor: Option<Box<dyn DiskSource>>,
        pieces: Vec<Piece>,
        parent: Option<VmdkSource>,
    ) -> VmdkSource {
        let (parent, tables) = (parent.map(Box::new), Tables::default());
        VmdkSource { name, cid, descriptor, pieces, parent, tables }
    }

    /// The content id of the image itself, without its parents: see [`content_id`].
    pub const fn cid(&self) -> u32 {
        self.cid
    }

    /// What the run that begins at `at` is, and where it ends; at most `end`, which is at most the
    /// size and beyond `at`.
    fn locate(&self, at: u64, end: u64) -> Result<(Run<'_>, u64)> {
        let number = self.pieces.partition_point(|piece| piece.range.end <= at);
        let piece = &self.pieces[number];
        let end = end.min(piece.range.end);
        let offset = at - piece.range.start;
        Ok(match &piece.bytes {
            Bytes::Zero => (Run::Zero, end),
            Bytes::Flat(file, start) => (Run::Flat(file.as_ref(), start + offset), end),
            Bytes::Sparse(grains) => {
                let range = offset..offset + (end - at);
                let (place, bytes) = grains.run(&self.tables, number, range)?;
                let run = match place {
                    Place::Below => Run::Below,
                    Place::Zero => Run::Zero,
                    Place::Host(host) => Run::Grains(grains, host),
                    Place::Packed(host, packing) => Run::Packed(grains, (host, packing), offset),
                };
                (run, at + bytes)
            }
        })
    }

    fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            buffer.fill(0);
            return Ok(());
        };
        // A parent that is shorter goes on with zeros.
        let there = parent.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { parent.read_at(offset, there) }
    }

    /// The files of the image and of its parents.
    fn files(&self) -> Vec<&dyn DiskSource> {
        let extents = self.pieces.iter().filter_map(|piece| match &piece.bytes {
            Bytes::Zero => None,
            Bytes::Flat(file, _) => Some(file.as_ref()),
            Bytes::Sparse(grains) => Some(grains.file()),
        });
        let parent = self.parent.iter().map(|parent| &**parent as &dyn DiskSource);
        self.descriptor.iter().map(AsRef::as_ref).chain(extents).chain(parent).collect()
    }
}

impl DiskSource for VmdkSource {
    fn size(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.range.end)
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn format(&self) -> &'static str {
        "vmdk"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let mut merger = Merger::new(each);
        let end = range.end.min(self.size());
        let mut at = range.start;
        while at < end {
            let (run, stop) = self.locate(at, end)?;
            match (run, &self.parent) {
                (Run::Below, Some(parent)) => {
                    let shown = stop.min(parent.size()).max(at);
                    if at < shown {
                        parent.extents_in(at..shown, &mut |extent| merger.add(extent))?;
                    }
                    merger.add_range(shown, stop, ExtentKind::Hole)?;
                }
                (Run::Below | Run::Zero, _) => merger.add_range(at, stop, ExtentKind::Hole)?,
                (Run::Flat(file, host), _) => {
                    file.extents_in(host..host + (stop - at), &mut |extent| {
                        let start = at + (extent.start - host);
                        merger.add_range(start, start + extent.bytes, extent.kind)
                    })?;
                }
                (Run::Grains(..) | Run::Packed(..), _) => {
                    merger.add_range(at, stop, ExtentKind::Data)?;
                }
            }
            at = stop;
        }
        merger.flush()
    }

    fn allocation_known(&self) -> bool {
        let is_known = |piece: &Piece| match &piece.bytes {
            Bytes::Flat(file, _) => file.allocation_known(),
            Bytes::Zero | Bytes::Sparse(_) => true,
        };
        self.pieces.iter().all(is_known)
            && self.parent.as_ref().is_none_or(|parent| parent.allocation_known())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        let Some(end) = end else {
            return Err(bad_at(&self.name, format!("a read at {offset} reaches beyond its end")));
        };
        let mut at = offset;
        let mut rest = buffer;
        while at < end {
            let (run, stop) = self.locate(at, end)?;
            let (now, later) = rest.split_at_mut((stop - at) as usize);
            match run {
                Run::Below => self.read_below(at, now)?,
                Run::Zero => now.fill(0),
                Run::Flat(file, host) => file.read_at(host, now)?,
                Run::Grains(grains, host) => grains.read_host(host, now)?,
                Run::Packed(grains, place, offset) => grains.read_packed(place, offset, now)?,
            }
            rest = later;
            at = stop;
        }
        Ok(())
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.size());
        let mut at = offset;
        while at < end {
            let Ok((run, stop)) = self.locate(at, end) else { return };
            match (run, &self.parent) {
                (Run::Below, Some(parent)) => parent.prefetch(at, stop - at),
                (Run::Flat(file, host), _) => file.prefetch(host, stop - at),
                (Run::Grains(grains, host), _) => grains.file().prefetch(host, stop - at),
                (Run::Packed(grains, (host, _), _), _) => {
                    grains.file().prefetch(host, grains.grain_bytes());
                }
                (Run::Below | Run::Zero, _) => {}
            }
            at = stop;
        }
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.files().into_iter().try_for_each(DiskSource::check_unchanged_size)
    }

    fn identity(&self) -> Vec<u8> {
        self.files().into_iter().flat_map(DiskSource::identity).collect()
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        newest_change(self.files())
    }

    fn written_by_machine(&self) -> Option<String> {
        self.files().into_iter().find_map(DiskSource::written_by_machine)
    }

    fn changed_over(
        &self,
        is_base: &dyn Fn(&dyn DiskSource) -> bool,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<bool> {
        let below = self.parent.as_ref().map(|parent| &**parent as &dyn DiskSource);
        changed_over((self.size(), below), is_base, each, &|at| {
            let (run, stop) = self.locate(at, self.size())?;
            Ok((!matches!(run, Run::Below), stop))
        })
    }
}
