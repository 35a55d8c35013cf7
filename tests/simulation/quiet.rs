//! Knows when no other thread of this process runs.
//!
//! Invariant: [`Quiet::wait`] returns only if there was a moment at which every other thread slept;
//! then all sleep on until something that is no thread of this process wakes one. It looks at all
//! threads twice: first at how often and how long each had a processor, then at whether it is
//! asleep, and at the same numbers again. A thread that ran, or was about to run, at the moment
//! between these looks is not asleep yet, or its numbers have grown.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Where the threads of this process are listed.
const TASKS: &str = "/proc/self/task";

/// What is known of one thread.
struct Thread {
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

    /// Waits until no other thread runs; false if that has not come after so long.
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
                    let (state, turns) = (open("syscall")?, open("schedstat")?);
                    new.insert(Thread { state, turns, is_there: true })
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

/// What a thread is in that sleeps for a time: it goes on by itself, so it counts as running. The
/// first word of the system's answer, for nanosleep and clock_nanosleep.
const NAPS: [&[u8]; 2] =
    if cfg!(target_arch = "x86_64") { [b"35 ", b"230 "] } else { [b"101 ", b"115 "] };

/// Whether a thread is asleep, and not for a time only. The system tells what it sleeps in, and for
/// that sees to it that the thread has left its processor.
fn is_asleep(thread: &Thread, buffer: &mut [u8]) -> bool {
    let Ok(length) = thread.state.read_at(buffer, 0) else { return false };
    let told = &buffer[..length];
    let is_napping = NAPS.iter().any(|nap| told.starts_with(nap));
    !told.is_empty() && !told.starts_with(b"running") && !is_napping
}

/// How often and how long a thread had a processor, in the words of the system; nothing if it is no
/// more.
fn had_turns(thread: &Thread) -> Option<[u8; 48]> {
    let mut turns = [0; 48];
    thread.turns.read_at(&mut turns, 0).ok()?;
    Some(turns)
}
