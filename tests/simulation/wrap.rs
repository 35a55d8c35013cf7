//! Storage and environment of one actor, both of which stop at the stage.
//!
//! A put or delete is two steps: first it is seen by everybody, then it is durable. Between them
//! everything can happen, a power cut too, which undoes it.

use super::stage::{ActorId, Stage, Stop, Verdict};
use diskvault::environment::{Bell, Environment, SystemEnvironment};
use diskvault::error::{Error, ErrorKind, Result};
use diskvault::storage::memory::{Fault, FaultKind, Operation};
use diskvault::storage::{Folder, ObjectEntry, ObjectName, Storage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The day on which every simulation begins.
const BEGINNING_UNIX_NS: i64 = 1_800_000_000_000_000_000;

/// The storage as one actor sees it.
pub struct StagedStorage {
    stage: Arc<Stage>,
    actor: ActorId,
}

impl StagedStorage {
    /// For this actor.
    pub fn new(stage: &Arc<Stage>, actor: ActorId) -> StagedStorage {
        StagedStorage { stage: stage.clone(), actor }
    }

    /// Stops, and then does `work` with the fault that was decided on. The flag says whether what
    /// it changes is to be made durable in a step of its own.
    fn stop<T>(
        &self,
        operation: Operation,
        text: String,
        work: impl FnOnce(bool) -> Result<T>,
    ) -> Result<T> {
        let is_free = self.stage.is_free();
        match self.stage.stop(self.actor, Stop::Operation(operation), text) {
            Verdict::Go => work(!is_free),
            Verdict::Dead => Err(dead()),
            Verdict::Fault(kind) => {
                self.next(kind);
                let result = work(false);
                self.stage.storage().clear_faults();
                result
            }
        }
    }

    /// The next operation goes wrong in this way.
    fn next(&self, kind: FaultKind) {
        let storage = self.stage.storage();
        storage.set_fault(Fault { at_operation: storage.operations(), kind, once: true });
    }

    /// Does `work`, which changes something, in two steps.
    fn change(
        &self,
        operation: Operation,
        name: &ObjectName,
        work: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut in_two = false;
        self.stop(operation, format!("{operation:?} {name}"), |is_in_two| {
            in_two = is_in_two;
            if in_two {
                self.next(FaultKind::LoseUnsynced);
            }
            let result = work();
            if in_two {
                self.stage.storage().clear_faults();
            }
            result
        })?;
        if !in_two {
            return Ok(());
        }
        let failed = || {
            let cause = std::io::Error::from_raw_os_error(5);
            Error::io(ErrorKind::Storage, format!("cannot {operation} {name}"), cause)
        };
        match self.stage.stop(self.actor, Stop::Sync, format!("Sync {name}")) {
            Verdict::Go => {
                if self.stage.storage().has_power() {
                    self.stage.storage().sync();
                    return Ok(());
                }
                Err(failed())
            }
            Verdict::Dead => Err(dead()),
            Verdict::Fault(FaultKind::LostReply) => {
                self.stage.storage().sync();
                Err(failed())
            }
            Verdict::Fault(_) => Err(failed()),
        }
    }
}

fn dead() -> Error {
    Error::new(ErrorKind::Cancelled, "the process was killed")
}

impl Storage for StagedStorage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.change(Operation::Put, name, || self.stage.storage().put_new(name, data))
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.stop(Operation::Get, format!("Get {name}"), |_| {
            self.stage.storage().get(name, bytes_max)
        })
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let text = format!("Range {name} {offset} {}", buffer.len());
        self.stop(Operation::Range, text, |_| self.stage.storage().get_range(name, offset, buffer))
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.stop(Operation::Range, format!("Tail {name} {bytes}"), |_| {
            self.stage.storage().get_tail(name, bytes)
        })
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.stop(Operation::Size, format!("Size {name}"), |_| self.stage.storage().size(name))
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        self.stop(Operation::List, format!("List {folder}"), |_| self.stage.storage().list(folder))
    }

    fn foreign(&self) -> Result<Vec<String>> {
        self.stop(Operation::List, "List what is foreign".into(), |_| {
            self.stage.storage().foreign()
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.change(Operation::Delete, name, || self.stage.storage().delete(name))
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.change(Operation::Rename, from, || self.stage.storage().rename(from, to))
    }

    fn location(&self) -> String {
        "the stage".into()
    }
}

/// Clock and randomness of one actor.
pub struct StagedEnvironment {
    stage: Arc<Stage>,
    actor: ActorId,
    seed: [u8; 32],
    /// What its host's clock of the day is wrong by, in seconds.
    offset_seconds: i64,
    /// How many were drawn, by their length: threads of one actor draw different lengths.
    drawn: Mutex<BTreeMap<usize, u64>>,
}

impl StagedEnvironment {
    /// For this actor.
    pub fn new(
        stage: &Arc<Stage>,
        actor: ActorId,
        seed: u64,
        offset_seconds: i64,
    ) -> StagedEnvironment {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&actor.to_le_bytes());
        let seed = *hasher.finalize().as_bytes();
        StagedEnvironment {
            stage: stage.clone(),
            actor,
            seed,
            offset_seconds,
            drawn: Mutex::default(),
        }
    }
}

impl Environment for StagedEnvironment {
    fn now_unix_ns(&self) -> i64 {
        let now = i64::try_from(self.stage.now().as_nanos()).unwrap_or(i64::MAX);
        BEGINNING_UNIX_NS + now + self.offset_seconds * 1_000_000_000
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        let number = {
            let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
            let number = drawn.entry(buffer.len()).or_default();
            *number += 1;
            *number
        };
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&number.to_le_bytes()).update(&buffer.len().to_le_bytes());
        hasher.finalize_xof().fill(buffer);
        Ok(())
    }

    fn monotonic(&self) -> Duration {
        self.stage.now()
    }

    fn wait(&self, bell: &Bell, longest: Duration) -> bool {
        if self.stage.is_free() {
            return SystemEnvironment.wait(bell, longest);
        }
        let until = self.stage.now() + longest;
        let stop = Stop::Wait(until, Some(bell.clone()));
        self.stage.stop(self.actor, stop, "Wait for a bell".into()) == Verdict::Dead
            || bell.is_rung()
    }

    fn pause(&self, duration: Duration, look: &dyn Fn() -> Result<()>) -> Result<()> {
        look()?;
        if self.stage.is_free() {
            self.stage.pass(duration);
            return Ok(());
        }
        let until = self.stage.now() + duration;
        match self.stage.stop(self.actor, Stop::Wait(until, None), "Pause".into()) {
            Verdict::Dead => Err(dead()),
            _ => look(),
        }
    }
}
