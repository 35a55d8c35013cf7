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
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crossbeam_channel::{Receiver, Sender, bounded};
use diskvault_format::manifest::StreamReference;
use std::ops::Range;
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
    /// Where it ends; the last chunk may reach beyond.
    end: u64,
}

impl Writer<'_, '_> {
    fn write(&mut self, window: &Window) -> Result<()> {
        let mut start = 0;
        for wanted in &window.wanted {
            self.zeros_up_to(wanted.offset)?;
            let behind = start + wanted.bytes as usize;
            // The first chunk may begin before what is read, and the last end behind it.
            let from = (self.written - wanted.offset) as usize;
            let until = (wanted.offset + u64::from(wanted.bytes)).min(self.end);
            let data = &window.data[start + from..start + (until - wanted.offset) as usize];
            self.output.data(data)?;
            self.written = until;
            start = behind;
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

/// Reads a range of what a cursor stands at the beginning of.
fn read(
    fetcher: &Fetcher<'_>,
    output: &mut dyn Output,
    range: Range<u64>,
    mut cursor: Cursor<'_>,
) -> Result<()> {
    let (give_empty, empty) = bounded(WINDOWS);
    for _ in 0..WINDOWS {
        // Filled once; a full channel cannot happen, since it holds exactly so many.
        let _ = give_empty.send(Window::default());
    }
    let (filled, take_filled) = bounded::<Window>(WINDOWS);
    let mut writer = Writer { fetcher, output, written: range.start, end: range.end };
    std::thread::scope(|scope| {
        let filling = scope.spawn(move || {
            let mut filler = Filler { fetcher, empty, filled, wanted: Vec::new(), bytes: 0 };
            let mut at = range.start;
            while at < range.end {
                let run = cursor.run_from(at)?;
                if let Some((id, offset)) = run.chunk {
                    filler.add(Wanted { offset, bytes: (run.end - offset) as u32, id })?;
                }
                at = run.end;
            }
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
    writer.zeros_up_to(writer.end)
}

/// Reads a part from front to back.
///
/// # Errors
/// `Damage` for what does not verify, or what the output says.
pub fn read_part(fetcher: &Fetcher<'_>, part: Part<'_>, output: &mut dyn Output) -> Result<()> {
    read_range(fetcher, part, 0..part.bytes(), output)
}

/// Reads a range of a part, which lies within it, from front to back.
///
/// # Errors
/// As [`read_part`].
pub fn read_range(
    fetcher: &Fetcher<'_>,
    part: Part<'_>,
    range: Range<u64>,
    output: &mut dyn Output,
) -> Result<()> {
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let cursor = match part {
        Part::Disk(disk) => Cursor::new(&reader, disk)?,
        Part::Stream(stream) => Cursor::of_stream(&reader, &stream.content)?,
    };
    read(fetcher, output, range, cursor)
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
    read(fetcher, output, 0..stream.bytes, Cursor::of_stream(reader, stream)?)
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
