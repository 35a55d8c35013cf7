//! Backing up what is cut by content: streams, misaligned disks and allocation lists.
//!
//! One thread cuts and hashes, in order; compression and sealing run on all cores behind it.
//!
//! Invariant: map and digest depend on the bytes alone, not on how they arrived.

use super::Context;
use super::digests::Digests;
use super::disk::{DiskRequest, allocation_of, record};
use super::read_ahead::ReadAhead;
use crate::chunking::{ContentCutter, ContentParameters, Gear, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ExtentKind;
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::crypto::Keys;
use diskvault_format::limits::DISK_BYTES_MAX;
use diskvault_format::manifest::{Chunking, DiskRecord, Statistics, StreamRecord, StreamReference};
use diskvault_format::map::map_root;
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::stream_map::{StreamEntry, StreamMapBuilder};
use std::io::Read;

/// Bytes read from a disk at a time.
const READ_BYTES: usize = 1 << 20;

/// Gathers the pieces of one stream.
struct Gatherer<'a, 'b> {
    context: &'a mut Context<'b>,
    keys: &'a Keys,
    map: StreamMapBuilder,
    digests: Digests,
    statistics: Statistics,
    packs: PackKind,
}

impl Gatherer<'_, '_> {
    fn take(&mut self, piece: Piece<'_>) -> Result<()> {
        let entry = match piece {
            Piece::Zeros(bytes) => {
                self.digests.update_zeros(bytes);
                self.statistics.zero_bytes += bytes;
                StreamEntry::Zeros(bytes)
            }
            Piece::Chunk(data) => {
                self.digests.update(data);
                let id = self.keys.chunk_id(data);
                let bytes = data.len() as u32;
                if self.context.writer.push(self.packs, EntryKind::Chunk, id.0, data)? {
                    self.statistics.new_bytes += u64::from(bytes);
                    self.statistics.new_chunks += 1;
                } else {
                    self.statistics.deduplicated_bytes += u64::from(bytes);
                }
                StreamEntry::Chunk { bytes, id }
            }
        };
        if self.map.size() + entry.bytes() > DISK_BYTES_MAX {
            return Err(Error::new(ErrorKind::Source, "cannot store a stream beyond 2^60 bytes"));
        }
        let writer = &mut self.context.writer;
        self.map.push(self.keys, entry, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })
    }

    fn finish(self, chunking: Chunking) -> Result<(StreamReference, Digests, Statistics)> {
        let bytes = self.map.size();
        let writer = &mut self.context.writer;
        let top = self.map.finish(self.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        let root = map_root(self.keys, bytes, &chunking, top);
        Ok((StreamReference { bytes, chunking, root, top }, self.digests, self.statistics))
    }
}

fn recorded(parameters: ContentParameters) -> Chunking {
    Chunking::content(parameters.bytes_min, parameters.bytes_average, parameters.bytes_max)
}

fn start<'a, 'b>(
    context: &'a mut Context<'b>,
    keys: &'a Keys,
    digests: Digests,
    packs: PackKind,
) -> Result<(Gatherer<'a, 'b>, ContentCutter, Chunking)> {
    let parameters = ContentParameters::default();
    let cutter = ContentCutter::new(parameters, Gear::from_key(keys.gear_key()))?;
    let statistics = Statistics::default();
    let map = StreamMapBuilder::new();
    let gatherer = Gatherer { context, keys, map, digests, statistics, packs };
    Ok((gatherer, cutter, recorded(parameters)))
}

/// Backs up a stream.
///
/// # Errors
/// `Source` if it cannot be read to its end, or what the writer says.
pub fn backup_stream(
    context: &mut Context<'_>,
    name: String,
    reader: Box<dyn Read + Send>,
) -> Result<StreamRecord> {
    let monitor = context.monitor;
    monitor.start(&format!("stream {}", name.escape_debug()), None);
    let keys = context.repository.keys().clone();
    let digests = Digests::new(true, context.digests);
    let (mut gatherer, mut cutter, chunking) = start(context, &keys, digests, PackKind::Data)?;
    let mut reader = ReadAhead::start(reader, monitor);
    loop {
        monitor.check_cancelled()?;
        let filled = cutter.fill_from(&mut reader, &mut |piece| gatherer.take(piece));
        // A wait that the user ended looks like a failed read.
        let read = match filled {
            Ok(read) => read,
            Err(error) => return Err(monitor.check_cancelled().err().unwrap_or(error)),
        };
        if read == 0 {
            break;
        }
        monitor.advance(read as u64);
    }
    cutter.finish(&mut |piece| gatherer.take(piece))?;
    let (content, digests, mut statistics) = gatherer.finish(chunking)?;
    statistics.virtual_bytes = content.bytes;
    statistics.allocated_bytes = content.bytes;
    statistics.read_bytes = content.bytes;
    monitor.finish();
    let values = digests.finish();
    Ok(StreamRecord {
        name,
        content,
        digest: values.blake3.unwrap_or_default(),
        digests: values.others,
        statistics,
        extensions: Vec::new(),
    })
}

/// Backs up a disk whose partitions lie off the grid.
///
/// # Errors
/// As [`backup_stream`].
pub fn backup_disk_by_content(
    context: &mut Context<'_>,
    request: DiskRequest<'_>,
) -> Result<DiskRecord> {
    let source = request.source;
    let monitor = context.monitor;
    let size = source.size();
    monitor.start(&format!("disk {}", request.name.escape_debug()), Some(size));
    let keys = context.repository.keys().clone();
    let digests = Digests::new(true, context.digests);
    let mut allocation = AllocationWriter::new();
    let mut hole_bytes = 0;
    let (mut gatherer, mut cutter, chunking) = start(context, &keys, digests, PackKind::Data)?;
    let mut buffer = vec![0_u8; READ_BYTES];
    source.extents(&mut |extent| {
        allocation.push(extent.bytes, extent.kind == ExtentKind::Data);
        if extent.kind == ExtentKind::Hole {
            hole_bytes += extent.bytes;
            monitor.advance(extent.bytes);
            return cutter.push_zeros(extent.bytes, &mut |piece| gatherer.take(piece));
        }
        let mut done = 0;
        while done < extent.bytes {
            monitor.check_cancelled()?;
            let step = (extent.bytes - done).min(READ_BYTES as u64);
            let piece = &mut buffer[..step as usize];
            let offset = extent.start + done;
            source.prefetch(offset + step, (4 * READ_BYTES as u64).min(extent.bytes - done - step));
            source.read_at(offset, piece)?;
            cutter.push(piece, &mut |piece| gatherer.take(piece))?;
            monitor.advance(step);
            done += step;
        }
        Ok(())
    })?;
    cutter.finish(&mut |piece| gatherer.take(piece))?;
    let (content, digests, mut statistics) = gatherer.finish(chunking)?;
    source.check_unchanged_size()?;
    statistics.virtual_bytes = size;
    statistics.hole_bytes = hole_bytes;
    statistics.allocated_bytes = size - hole_bytes;
    statistics.read_bytes = size - hole_bytes;
    statistics.zero_bytes = statistics.zero_bytes.saturating_sub(hole_bytes);
    let allocation = allocation_of(context, source.as_ref(), allocation)?;
    monitor.finish();
    let values = digests.finish();
    Ok(record(request.name, source.as_ref(), content, values, allocation, statistics))
}

/// Stores a byte string of the repository's own in map packs.
///
/// # Errors
/// What the writer says.
pub fn store_bytes(context: &mut Context<'_>, bytes: &[u8]) -> Result<StreamReference> {
    let keys = context.repository.keys().clone();
    let digests = Digests::new(false, &[]);
    let (mut gatherer, mut cutter, chunking) = start(context, &keys, digests, PackKind::Map)?;
    cutter.push(bytes, &mut |piece| gatherer.take(piece))?;
    cutter.finish(&mut |piece| gatherer.take(piece))?;
    let (reference, ..) = gatherer.finish(chunking)?;
    if reference.bytes != bytes.len() as u64 {
        let text = "cannot store an allocation list: the cut lost bytes";
        return Err(Error::new(ErrorKind::Failed, text));
    }
    Ok(reference)
}
