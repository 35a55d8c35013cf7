//! Backing up what is cut by content: streams, misaligned disks and allocation lists.
//!
//! `content` is the pipeline; this file feeds it and writes the records.
//!
//! Invariant: map and digest depend on the bytes alone, not on how they arrived.

use super::Context;
use super::content::{Cut, Cutting, cut};
use super::digests::Digests;
use super::disk::{DiskRequest, allocation_of, record};
use super::hinted;
use super::read_ahead::ReadAhead;
use crate::chunking::ContentParameters;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::objects::cannot_make;
use crate::source::{DiskSource, ExtentKind};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::manifest::{DiskRecord, StreamRecord, StreamReference};
use diskvault_format::pack::PackKind;
use std::io::Read;

/// Bytes read from a disk at a time.
const READ_BYTES: usize = 1 << 20;

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
    let digests = Digests::new(true, context.digests);
    let parameters = ContentParameters::default();
    let (cut, ()) = cut(context, parameters, digests, PackKind::Data, |cutting| {
        let mut reader = ReadAhead::start(reader, monitor, cutting.stopped());
        loop {
            monitor.check_cancelled()?;
            // A wait that the user ended looks like a failed read.
            let filled = cutting.fill_from(&mut reader);
            match filled.map_err(|error| monitor.check_cancelled().err().unwrap_or(error))? {
                0 => return Ok(()),
                read => monitor.advance(read as u64),
            }
        }
    })?;
    let Cut { content, digests, mut statistics } = cut;
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
    let source = request.source.clone();
    let monitor = context.monitor;
    let size = source.size();
    let tracking = hinted::of_content(context, &request)?;
    monitor.start(&format!("disk {}", request.name.escape_debug()), Some(size));
    let digests = Digests::new(true, context.digests);
    let parameters = ContentParameters::default();
    let (cut, fed) = cut(context, parameters, digests, PackKind::Data, |cutting| {
        let mut allocation = AllocationWriter::new();
        let mut hole_bytes = 0;
        let mut buffer = vec![0_u8; READ_BYTES];
        source.extents(&mut |extent| {
            allocation.push(extent.bytes, extent.kind == ExtentKind::Data);
            if extent.kind == ExtentKind::Hole {
                hole_bytes += extent.bytes;
                monitor.advance(extent.bytes);
                return cutting.push_zeros(extent.bytes);
            }
            let mut done = 0;
            while done < extent.bytes {
                monitor.check_cancelled()?;
                let left = extent.bytes - done;
                let step = left.min(READ_BYTES as u64);
                let piece = &mut buffer[..step as usize];
                let offset = extent.start + done;
                source.prefetch(offset + step, (4 * READ_BYTES as u64).min(left - step));
                source.read_at(offset, piece)?;
                cutting.push(piece)?;
                monitor.advance(step);
                done += step;
            }
            Ok(())
        })?;
        Ok((allocation, hole_bytes))
    })?;
    let Cut { content, digests, mut statistics } = cut;
    let (allocation, hole_bytes) = fed;
    source.check_unchanged_size()?;
    statistics.virtual_bytes = size;
    statistics.hole_bytes = hole_bytes;
    statistics.allocated_bytes = size - hole_bytes;
    statistics.read_bytes = size - hole_bytes;
    statistics.zero_bytes = statistics.zero_bytes.saturating_sub(hole_bytes);
    let allocation = allocation_of(context, source.as_ref(), allocation)?;
    monitor.finish();
    let values = digests.finish();
    let mut made = record(request.name, source.as_ref(), content, values, allocation, statistics);
    if let Some(tracking) = tracking {
        let extension = tracking.to_extension().map_err(|cause| cannot_make("a record", cause))?;
        made.extensions.push(extension);
    }
    Ok(made)
}

/// Stores a byte string of the repository's own in map packs.
///
/// # Errors
/// What the writer says.
pub fn store_bytes(context: &mut Context<'_>, bytes: &[u8]) -> Result<StreamReference> {
    let digests = Digests::new(false, &[]);
    let parameters = ContentParameters::default();
    let feed = |cutting: &mut Cutting| cutting.push(bytes);
    let (cut, ()) = cut(context, parameters, digests, PackKind::Map, feed)?;
    if cut.content.bytes != bytes.len() as u64 {
        let text = "cannot store an allocation list: the cut lost bytes";
        return Err(Error::new(ErrorKind::Failed, text));
    }
    Ok(cut.content)
}
