//! A server that does as it is told: a few lines of the protocol, so that it can break each of them.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// How the server behaves, and what it saw.
#[derive(Default)]
pub struct Plan {
    pub disk: Mutex<Vec<u8>>,
    /// Reads that touch it fail with this error number.
    pub bad: Mutex<Option<(Range<u64>, u32)>>,
    /// The next so many reads fail with EIO.
    pub failing: AtomicU64,
    /// The connection ends instead of each answer of this number, counted over all connections.
    pub breaks_at: Mutex<Vec<u64>>,
    /// Every connection ends at the first request.
    pub always_breaks: Mutex<bool>,
    /// Answers wait until so many requests are there.
    pub gathers: AtomicUsize,
    /// Bytes that replace the reply to a read.
    pub says: Mutex<Option<Vec<u8>>>,
    pub connections: AtomicU64,
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub flags: AtomicU64,
}

/// Listens until the process ends.
pub fn serve(folder: &Path, plan: Arc<Plan>) -> PathBuf {
    let socket = folder.join("made.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let plan = plan.clone();
            std::thread::spawn(move || {
                plan.connections.fetch_add(1, Ordering::SeqCst);
                let _ = talk(stream.unwrap(), &plan);
            });
        }
    });
    socket
}

fn number(stream: &mut impl Read, bytes: usize) -> io::Result<u64> {
    let mut buffer = [0; 8];
    stream.read_exact(&mut buffer[8 - bytes..])?;
    Ok(u64::from_be_bytes(buffer))
}

fn talk(mut stream: UnixStream, plan: &Plan) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    number(&mut stream, 4)?;
    loop {
        number(&mut stream, 8)?;
        let option = number(&mut stream, 4)? as u32;
        let mut data = vec![0; number(&mut stream, 4)? as usize];
        stream.read_exact(&mut data)?;
        let mut answer = |kind: u32, data: &[u8]| {
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            for number in [option, kind, data.len() as u32] {
                reply.extend(number.to_be_bytes());
            }
            reply.extend(data);
            stream.write_all(&reply)
        };
        match option {
            8 => answer(1, &[])?,
            7 => {
                let mut export = vec![0, 0];
                export.extend((plan.disk.lock().unwrap().len() as u64).to_be_bytes());
                export.extend((1 | plan.flags.load(Ordering::SeqCst) as u16).to_be_bytes());
                answer(3, &export)?;
                answer(1, &[])?;
                break;
            }
            _ => answer(1 << 31 | 1, &[])?,
        }
    }
    let mut gathered = Vec::new();
    loop {
        number(&mut stream, 6)?;
        let (kind, cookie) = (number(&mut stream, 2)?, number(&mut stream, 8)?);
        let (offset, bytes) = (number(&mut stream, 8)?, number(&mut stream, 4)?);
        if kind != 0 {
            return Ok(());
        }
        let count = plan.reads.fetch_add(1, Ordering::SeqCst);
        plan.read_bytes.fetch_add(bytes, Ordering::SeqCst);
        let mut breaks_at = plan.breaks_at.lock().unwrap();
        let is_last = breaks_at.iter().position(|at| *at == count);
        if let Some(found) = is_last {
            breaks_at.remove(found);
        }
        drop(breaks_at);
        if is_last.is_some() || *plan.always_breaks.lock().unwrap() {
            return Ok(());
        }
        gathered.push((cookie, offset, bytes));
        if gathered.len() < plan.gathers.load(Ordering::SeqCst) {
            continue;
        }
        // In another order than they were asked in.
        while let Some((cookie, offset, bytes)) = gathered.pop() {
            reply(&mut stream, plan, cookie, offset, bytes)?;
        }
    }
}

fn reply(
    stream: &mut UnixStream,
    plan: &Plan,
    cookie: u64,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    if let Some(says) = &*plan.says.lock().unwrap() {
        return stream.write_all(says);
    }
    let mut head = vec![0x66, 0x8e, 0x33, 0xef, 0, 1];
    let failing = plan.failing.load(Ordering::SeqCst);
    let bad = plan.bad.lock().unwrap().clone();
    let bad = bad.filter(|(range, _)| range.start < offset + bytes && offset < range.end);
    if failing > 0 || bad.is_some() {
        plan.failing.store(failing.saturating_sub(1), Ordering::SeqCst);
        let error = bad.map_or(5, |(_, error)| error);
        head.extend([0x80, 1]);
        head.extend(cookie.to_be_bytes());
        head.extend(6_u32.to_be_bytes());
        head.extend(error.to_be_bytes());
        head.extend([0, 0]);
        return stream.write_all(&head);
    }
    head.extend([0, 1]);
    head.extend(cookie.to_be_bytes());
    head.extend((8 + bytes as u32).to_be_bytes());
    head.extend(offset.to_be_bytes());
    head.extend(&plan.disk.lock().unwrap()[offset as usize..(offset + bytes) as usize]);
    stream.write_all(&head)
}
