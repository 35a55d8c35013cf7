//! Knows when no other thread of this process runs.
//!
//! Invariant: [`Quiet::wait`] returns only if there was a moment at which every other thread waited
//! for another one; then all wait on until something that is no thread of this process wakes one.
//! It looks at all threads twice: first at how often and how long each had a processor, then at
//! whether it waits, and at the same numbers again. A thread that ran, or was about to run, at the
//! moment between these looks does not wait yet, or its numbers have grown.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Where the threads of this process are listed.
const TASKS: &str = "/proc/self/task";

/// What is known of one thread.
struct Thread {
    call: File,
    state: File,
    turns: File,
    is_there: bool,
}

/// Looks at the threads of this process.
pub struct Quiet {
    own: u32,
    threads: BTreeMap<u32, Thread>,
    buffer: Vec<u8>,
    /// Who was not asleep last time: asked first.
    suspect: Option<u32>,
}

impl Quiet {
    /// For the thread that will wait; nothing where the system does not tell.
    pub fn new() -> Option<Quiet> {
        let own = std::fs::read_link("/proc/thread-self").ok()?;
        let own = own.file_name()?.to_str()?.parse().ok()?;
        std::fs::metadata(format!("{TASKS}/{own}/schedstat")).ok()?;
        File::open(format!("{TASKS}/{own}/syscall")).ok()?;
        Some(Quiet { own, threads: BTreeMap::new(), buffer: vec![0; 256], suspect: None })
    }

    /// Waits until no other thread runs or will; false if that has not come after so long.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let mut began = None;
        loop {
            for _ in 0..64 {
                if self.is_quiet() {
                    return true;
                }
                std::thread::yield_now();
            }
            if began.get_or_insert_with(Instant::now).elapsed() > patience {
                return false;
            }
        }
    }

    fn is_quiet(&mut self) -> bool {
        if let Some(thread) = self.suspect.and_then(|suspect| self.threads.get(&suspect))
            && !is_asleep(thread, &mut self.buffer)
            && had_turns(thread).is_some()
        {
            return false;
        }
        let Some(first) = self.look(false) else { return false };
        self.look(true).is_some_and(|second| second == first)
    }

    /// How often each other thread had a processor. Nothing if threads came or went meanwhile, or,
    /// if that is asked for, if one is not asleep.
    fn look(&mut self, asks: bool) -> Option<Vec<(u32, [u8; 48])>> {
        self.threads.values_mut().for_each(|thread| thread.is_there = false);
        let mut turns = Vec::with_capacity(self.threads.len() + 1);
        for entry in std::fs::read_dir(TASKS).ok()? {
            let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            if id == self.own {
                continue;
            }
            let thread = match self.threads.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let open = |what: &str| File::open(format!("{TASKS}/{id}/{what}")).ok();
                    let (call, state, turns) =
                        (open("syscall")?, open("stat")?, open("schedstat")?);
                    new.insert(Thread { call, state, turns, is_there: true })
                }
            };
            thread.is_there = true;
            // In this order: a thread that was woken before the first question has to run to be
            // asleep again, and then it had a processor once more when the second one is asked.
            let is_asleep = !asks || is_asleep(thread, &mut self.buffer);
            let Some(had) = had_turns(thread) else {
                // It may be another one of the same number by now.
                self.threads.remove(&id);
                return None;
            };
            if !is_asleep {
                self.suspect = Some(id);
                return None;
            }
            turns.push((id, had));
        }
        self.threads.retain(|_, thread| thread.is_there);
        self.suspect = None;
        Some(turns)
    }
}

/// What a thread sleeps in that waits for another thread: futex. The first word of the system's
/// answer. In every other call it goes on by itself: a nap ends, and a disk answers (a cache's
/// fsync takes tens of milliseconds when the disk has other work).
const WAIT_FOR_THREADS: &[u8] = if cfg!(target_arch = "x86_64") { b"202 " } else { b"98 " };

/// Whether a thread waits for others. The system tells what it sleeps in, and for that sees to it
/// that the thread has left its processor; but it also says so of a thread that was woken while
/// another processor has yet to take it (Linux: TASK_WAKING), whose state it calls running.
fn is_asleep(thread: &Thread, buffer: &mut [u8]) -> bool {
    let mut told = |file: &File| file.read_at(buffer, 0).map(|length| buffer[..length].to_vec());
    told(&thread.call).is_ok_and(|call| call.starts_with(WAIT_FOR_THREADS))
        && told(&thread.state).is_ok_and(|text| state_of(&text) == Some(b'S'))
}

/// The letter of a thread's state: it follows the name in brackets, which may hold brackets.
fn state_of(text: &[u8]) -> Option<u8> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    text.get(end + 2).copied()
}

/// How often and how long a thread had a processor, in the words of the system; nothing if it is no
/// more.
fn had_turns(thread: &Thread) -> Option<[u8; 48]> {
    let mut turns = [0; 48];
    thread.turns.read_at(&mut turns, 0).ok()?;
    Some(turns)
}
