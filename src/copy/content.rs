//! Copying what is cut by content: streams and misaligned disks. Where cuts are follows from a
//! secret of each repository, so the bytes are cut anew.
//!
//! Invariant: what was read has the digest that the source recorded (rule F-11).

use super::place::Base;
use crate::backup::content::{Cut, Cutting, cut};
use crate::backup::{Context, Digests};
use crate::chunking::ContentParameters;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_reader::MapReader;
use crate::restore::fetch::Fetcher;
use crate::restore::sequential::{Output, read_stream};
use diskvault_format::manifest::{DiskRecord, Statistics, StreamRecord, StreamReference};
use diskvault_format::pack::PackKind;

/// Something cut by content, with its digest.
type Known = (StreamReference, [u8; 32]);

/// Copies a stream.
///
/// # Errors
/// `Damage` for what does not verify; what the writer says.
pub(super) fn copy_stream(
    context: &mut Context<'_>,
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    base: &Base,
    stream: &StreamRecord,
) -> Result<StreamRecord> {
    let known = base.point.iter().flat_map(|point| &point.manifest.streams);
    let known = known.filter(|_| base.is_complete).find(|known| known.name == stream.name);
    let known = known.map(|known| (known.content.clone(), known.digest));
    let own = (stream.content.clone(), stream.digest);
    let (content, mut statistics) =
        copy(context, fetcher, reader, known, &own, &stream.statistics)?;
    statistics.allocated_bytes = stream.statistics.allocated_bytes;
    Ok(StreamRecord { content, statistics, extensions: Vec::new(), ..stream.clone() })
}

/// Copies a disk that is cut by content.
///
/// # Errors
/// As [`copy_stream`].
pub(super) fn copy_disk(
    context: &mut Context<'_>,
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    base: &Base,
    disk: &DiskRecord,
) -> Result<DiskRecord> {
    let content = |disk: &DiskRecord| StreamReference {
        bytes: disk.size,
        chunking: disk.chunking.clone(),
        root: disk.root,
        top: disk.top,
    };
    let Some(digest) = disk.digest else {
        let text = "cannot use the disk's record: its digest is missing (rule F-10)";
        return Err(Error::new(ErrorKind::Damage, text));
    };
    let known = base.point.iter().flat_map(|point| &point.manifest.disks);
    let known = known.filter(|_| base.is_complete).find(|known| known.name == disk.name);
    let known = known.and_then(|known| Some((content(known), known.digest?)));
    let own = (content(disk), digest);
    let (copied, mut statistics) = copy(context, fetcher, reader, known, &own, &disk.statistics)?;
    statistics.allocated_bytes = disk.statistics.allocated_bytes;
    statistics.hole_bytes = disk.statistics.hole_bytes;
    statistics.zero_bytes = disk.statistics.zero_bytes;
    let allocation = super::disk::copy_allocation(context, fetcher, reader, disk)?;
    Ok(DiskRecord {
        chunking: copied.chunking,
        root: copied.root,
        top: copied.top,
        allocation,
        statistics,
        extensions: Vec::new(),
        ..disk.clone()
    })
}

fn copy(
    context: &mut Context<'_>,
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    known: Option<Known>,
    (content, digest): &Known,
    recorded: &Statistics,
) -> Result<(StreamReference, Statistics)> {
    let is_same = |(known, known_digest): &Known| {
        let (bytes, chunking) = (&content.bytes, &content.chunking);
        (&known.bytes, &known.chunking, known_digest) == (bytes, chunking, digest)
    };
    if let Some((known, _)) = known.filter(is_same) {
        let data = [recorded.unchanged_bytes, recorded.deduplicated_bytes, recorded.new_bytes];
        let statistics = Statistics {
            virtual_bytes: content.bytes,
            zero_bytes: recorded.zero_bytes,
            unchanged_bytes: data.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
            ..Statistics::default()
        };
        context.monitor.advance(content.bytes);
        return Ok((known, statistics));
    }
    let parameters = parameters_of(content)?;
    let digests = Digests::new(true, &[]);
    let (cut, ()) = cut(context, parameters, digests, PackKind::Data, |cutting| {
        read_stream(fetcher, reader, content, &mut Feed(cutting))
    })?;
    let Cut { content: copied, digests, mut statistics } = cut;
    if digests.finish().blake3 != Some(*digest) {
        let text = "cannot copy it: its bytes have another digest than was recorded (rule F-11)";
        return Err(Error::new(ErrorKind::Damage, text));
    }
    statistics.virtual_bytes = content.bytes;
    statistics.read_bytes = statistics.new_bytes.saturating_add(statistics.deduplicated_bytes);
    Ok((copied, statistics))
}

/// The numbers by which the source was cut.
fn parameters_of(content: &StreamReference) -> Result<ContentParameters> {
    let Some((bytes_min, bytes_average, bytes_max)) = content.chunking.cuts() else {
        return Err(Error::new(ErrorKind::Damage, "cannot use a stream that was cut on a grid"));
    };
    let parameters = ContentParameters { bytes_min, bytes_average, bytes_max };
    // Another program may have cut by numbers that this one does not.
    Ok(if parameters.validate().is_ok() { parameters } else { ContentParameters::default() })
}

/// Hands what is read to the cutter.
struct Feed<'a>(&'a mut Cutting);

impl Output for Feed<'_> {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.0.push(data)
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        self.0.push_zeros(bytes)
    }
}
