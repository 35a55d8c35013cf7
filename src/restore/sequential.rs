//! Reading a part from front to back: streams, `dump`, digests, allocation lists.
//!
//! Invariant: memory is one window, whatever the part's size; zeros are written out.

use super::fetch::{Fetcher, Wanted};
use super::part::Part;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::lock;
use crate::repository::map_reader::MapReader;
use crate::repository::objects::refused;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::{DiskRecord, StreamReference};
use diskvault_format::map::{LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::StreamEntry;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Bytes of chunks gathered before they are fetched and put into order.
const WINDOW_BYTES: u64 = 32 << 20;

/// Receives a part's bytes, in order.
pub trait Output {
    /// The next bytes.
    ///
    /// # Errors
    /// Whatever the output says; it ends the reading.
    fn data(&mut self, data: &[u8]) -> Result<()>;

    /// The next bytes are so many zeros.
    ///
    /// # Errors
    /// As [`Output::data`].
    fn zeros(&mut self, bytes: u64) -> Result<()> {
        static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
        let mut left = bytes;
        while left > 0 {
            let step = left.min(ZEROS.len() as u64);
            self.data(&ZEROS[..step as usize])?;
            left -= step;
        }
        Ok(())
    }
}

struct Window<'a, 'o> {
    fetcher: &'a Fetcher<'a>,
    output: &'o mut dyn Output,
    wanted: Vec<Wanted>,
    bytes: u64,
    written: u64,
}

impl Window<'_, '_> {
    fn add(&mut self, wanted: Wanted) -> Result<()> {
        self.bytes += u64::from(wanted.bytes);
        self.wanted.push(wanted);
        if self.bytes >= WINDOW_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let wanted = std::mem::take(&mut self.wanted);
        let pieces: Mutex<BTreeMap<u64, Vec<u8>>> = Mutex::new(BTreeMap::new());
        self.fetcher.fetch(wanted, &|offset, data| {
            lock(&pieces).insert(offset, data.to_vec());
            Ok(())
        })?;
        let pieces = std::mem::take(&mut *lock(&pieces));
        for (offset, data) in pieces {
            self.zeros_up_to(offset)?;
            self.output.data(&data)?;
            self.written += data.len() as u64;
        }
        Ok(())
    }

    fn zeros_up_to(&mut self, offset: u64) -> Result<()> {
        if offset > self.written {
            self.fetcher.monitor.check_cancelled()?;
            self.output.zeros(offset - self.written)?;
            self.fetcher.monitor.advance(offset - self.written);
            self.written = offset;
        }
        Ok(())
    }
}

fn start<'a, 'o>(fetcher: &'a Fetcher<'a>, output: &'o mut dyn Output) -> Window<'a, 'o> {
    Window { fetcher, output, wanted: Vec::new(), bytes: 0, written: 0 }
}

/// Reads a part from front to back.
///
/// # Errors
/// `Damage` for what does not verify, or what the output says.
pub fn read_part(fetcher: &Fetcher<'_>, part: Part<'_>, output: &mut dyn Output) -> Result<()> {
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    match part {
        Part::Disk(disk) => read_disk(fetcher, &reader, disk, output),
        Part::Stream(stream) => read_stream(fetcher, &reader, &stream.content, output),
    }
}

fn read_disk(
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    disk: &DiskRecord,
    output: &mut dyn Output,
) -> Result<()> {
    let Some(chunk_bytes) = disk.chunking.grid() else {
        let content = StreamReference {
            bytes: disk.size,
            chunking: disk.chunking.clone(),
            root: disk.root,
            top: disk.top,
        };
        return read_stream(fetcher, reader, &content, output);
    };
    let keys = fetcher.repository.keys();
    if map_root(keys, disk.size, &disk.chunking, disk.top) != disk.root {
        let text = "cannot use the disk's map: its root does not fit (rule F-9)";
        return Err(Error::new(ErrorKind::Damage, text));
    }
    let shape =
        MapShape::new(disk.size, chunk_bytes).map_err(|cause| refused("the disk's map", cause))?;
    let mut window = start(fetcher, output);
    reader.walk_disk(shape, disk.top, &mut |number, leaf| {
        for (slot, content) in leaf.slots.iter().enumerate() {
            if let LeafSlot::Chunk { id, .. } = content {
                let slot = number * LEAF_SLOTS as u64 + slot as u64;
                let offset = slot * u64::from(chunk_bytes);
                window.add(Wanted { offset, bytes: shape.bytes_in_slot(slot), id: *id })?;
            }
        }
        Ok(())
    })?;
    window.flush()?;
    window.zeros_up_to(disk.size)
}

/// Reads a stream from front to back.
///
/// # Errors
/// As [`read_part`].
pub fn read_stream(
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    stream: &StreamReference,
    output: &mut dyn Output,
) -> Result<()> {
    reader.verify_stream_root(stream)?;
    let mut window = start(fetcher, output);
    reader.walk_stream(stream.bytes, stream.top, &mut |offset, entry| match entry {
        StreamEntry::Chunk { bytes, id } => window.add(Wanted { offset, bytes, id }),
        StreamEntry::Zeros(_) => Ok(()),
    })?;
    window.flush()?;
    window.zeros_up_to(stream.bytes)
}

struct Gathered(Vec<u8>);

impl Output for Gathered {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}

/// Reads a short stream into memory.
///
/// # Errors
/// `Damage` if it is longer than `bytes_max` or does not verify.
pub fn read_bytes(
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    stream: &StreamReference,
    bytes_max: u64,
) -> Result<Vec<u8>> {
    if stream.bytes > bytes_max {
        let text =
            format!("cannot read a list of {} bytes: expected at most {bytes_max}", stream.bytes);
        return Err(Error::new(ErrorKind::Damage, text));
    }
    let quiet = Fetcher { monitor: &crate::monitor::Silent, ..*fetcher };
    let mut gathered = Gathered(Vec::new());
    read_stream(&quiet, reader, stream, &mut gathered)?;
    Ok(gathered.0)
}
