//! Reading a part from front to back: streams, `dump`, digests, allocation lists.
//!
//! One thread walks the map and fetches a window of chunks, on all cores; the calling thread
//! hands the window before it to the output.
//!
//! Invariant: memory is two windows, used again and again, whatever the part's size; zeros are
//! written out.

use super::fetch::{Fetcher, Wanted};
use super::part::Part;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::lock;
use crate::repository::map_reader::MapReader;
use crate::repository::objects::refused;
use crossbeam_channel::{Receiver, Sender, bounded};
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::{DiskRecord, StreamReference};
use diskvault_format::map::{LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::StreamEntry;
use std::sync::Mutex;

/// Bytes of chunks gathered before they are fetched and put into order.
const WINDOW_BYTES: usize = 16 << 20;
/// One is fetched while the other is handed out.
const WINDOWS: usize = 2;

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

/// Chunks that follow each other in the part, and their bytes, one behind the other.
#[derive(Default)]
struct Window {
    wanted: Vec<Wanted>,
    data: Vec<u8>,
}

/// Fills windows and passes them on.
struct Filler<'a> {
    fetcher: &'a Fetcher<'a>,
    empty: Receiver<Window>,
    filled: Sender<Window>,
    wanted: Vec<Wanted>,
    bytes: usize,
}

impl Filler<'_> {
    fn add(&mut self, wanted: Wanted) -> Result<()> {
        self.bytes += wanted.bytes as usize;
        self.wanted.push(wanted);
        if self.bytes >= WINDOW_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let stopped = || Error::new(ErrorKind::Failed, "the output stopped");
        let mut window = self.empty.recv().map_err(|_| stopped())?;
        window.wanted = std::mem::take(&mut self.wanted);
        self.bytes = 0;
        fetch_in_order(self.fetcher, &window.wanted, &mut window.data)?;
        self.filled.send(window).map_err(|_| stopped())
    }
}

/// Fetches chunks, which ascend, into `data`, one behind the other; it is made as long as they are.
///
/// # Errors
/// As [`Fetcher::fetch`].
pub fn fetch_in_order(fetcher: &Fetcher<'_>, wanted: &[Wanted], data: &mut Vec<u8>) -> Result<()> {
    data.resize(wanted.iter().map(|wanted| wanted.bytes as usize).sum(), 0);
    let mut rest = &mut data[..];
    // Each place is written once, by whichever thread decoded the chunk; nobody ever waits.
    let places: Vec<Mutex<&mut [u8]>> = wanted
        .iter()
        .map(|wanted| {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(wanted.bytes as usize);
            rest = behind;
            Mutex::new(place)
        })
        .collect();
    fetcher.fetch(wanted.to_vec(), &|offset, data| {
        let mut rest = data;
        let first = wanted.partition_point(|wanted| wanted.offset < offset);
        for place in &places[first..] {
            let mut place = lock(place);
            let Some((chunk, behind)) = rest.split_at_checked(place.len()) else { break };
            place.copy_from_slice(chunk);
            rest = behind;
        }
        Ok(())
    })
}

/// Hands out windows and the zeros between them.
struct Writer<'a, 'o> {
    fetcher: &'a Fetcher<'a>,
    output: &'o mut dyn Output,
    written: u64,
}

impl Writer<'_, '_> {
    fn write(&mut self, window: &Window) -> Result<()> {
        let mut start = 0;
        for wanted in &window.wanted {
            self.zeros_up_to(wanted.offset)?;
            let end = start + wanted.bytes as usize;
            self.output.data(&window.data[start..end])?;
            self.written += u64::from(wanted.bytes);
            start = end;
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

/// Reads a part of `bytes` bytes whose chunks `walk` gives, ascending.
fn read(
    fetcher: &Fetcher<'_>,
    output: &mut dyn Output,
    bytes: u64,
    walk: impl FnOnce(&mut dyn FnMut(Wanted) -> Result<()>) -> Result<()> + Send,
) -> Result<()> {
    let (give_empty, empty) = bounded(WINDOWS);
    for _ in 0..WINDOWS {
        // Filled once; a full channel cannot happen, since it holds exactly so many.
        let _ = give_empty.send(Window::default());
    }
    let (filled, take_filled) = bounded::<Window>(WINDOWS);
    let mut writer = Writer { fetcher, output, written: 0 };
    std::thread::scope(|scope| {
        let filling = scope.spawn(move || {
            let mut filler = Filler { fetcher, empty, filled, wanted: Vec::new(), bytes: 0 };
            walk(&mut |wanted| filler.add(wanted))?;
            filler.flush()
        });
        let mut hand_out = || {
            for window in &take_filled {
                writer.write(&window)?;
                // The filler is gone once it has filled the last one.
                let _ = give_empty.send(window);
            }
            Ok(())
        };
        let written = hand_out();
        // Ends a filler that waits.
        drop((give_empty, take_filled));
        let walked = filling.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Failed, "cannot read a part: a thread panicked"))
        });
        // The output's error is the cause; the filler only notices that it stopped.
        written.and(walked)
    })?;
    writer.zeros_up_to(bytes)
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
    read(fetcher, output, disk.size, |add| {
        reader.walk_disk(shape, disk.top, &mut |number, leaf| {
            for (slot, content) in leaf.slots.iter().enumerate() {
                if let LeafSlot::Chunk { id, .. } = content {
                    let slot = number * LEAF_SLOTS as u64 + slot as u64;
                    let offset = slot * u64::from(chunk_bytes);
                    add(Wanted { offset, bytes: shape.bytes_in_slot(slot), id: *id })?;
                }
            }
            Ok(())
        })
    })
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
    read(fetcher, output, stream.bytes, |add| {
        reader.walk_stream(stream.bytes, stream.top, &mut |offset, entry| match entry {
            StreamEntry::Chunk { bytes, id } => add(Wanted { offset, bytes, id }),
            StreamEntry::Zeros(_) => Ok(()),
        })
    })
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
