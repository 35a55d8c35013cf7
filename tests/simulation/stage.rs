//! The stage: every operation on the storage and every wait of every actor stops here, and goes on
//! one at a time, in an order that follows from a seed.
//!
//! An actor is what a process is outside: one run of the library's backup, prune and so on, with
//! all its threads. Invariants: a call is let go only when all threads are asleep, so that between
//! two calls of one actor nothing else runs; what is let go, when it is and what becomes of it
//! follows from the director's seed alone; time passes only here.

use super::director::{Blow, Director};
use super::quiet::Quiet;
use diskvault::environment::Bell;
use diskvault::storage::memory::{FaultKind, MemoryStorage, Operation};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The last steps that are told when something has failed.
const TOLD_STEPS: usize = 2000;
/// Longest time, of the real clock, in which all threads have to fall asleep.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time, of the real clock, between two looks at whether somebody is left who can go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A process of the simulation.
pub type ActorId = u64;

/// What an actor stops for.
#[derive(Clone)]
pub enum Stop {
    /// To begin.
    Begin,
    /// For an operation on the storage.
    Operation(Operation),
    /// To make durable what it has put or deleted.
    Sync,
    /// Until a time, or until a bell is rung.
    Wait(Duration, Option<Bell>),
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Go,
    /// It is done with this fault.
    Fault(FaultKind),
    /// Its process is dead.
    Dead,
}

type Answer = Arc<(Mutex<Option<Verdict>>, Condvar)>;

struct Stopped {
    stop: Stop,
    answer: Answer,
}

/// What has happened so far.
#[derive(Default)]
pub struct Record {
    hasher: blake3::Hasher,
    told: VecDeque<String>,
    /// Operations on the storage.
    pub operations: u64,
    /// By number: what the operation was; nothing for a sync.
    pub kinds: Vec<Option<Operation>>,
}

impl Record {
    fn add(&mut self, text: String) {
        self.hasher.update(text.as_bytes()).update(b"\n");
        if self.told.len() == TOLD_STEPS {
            self.told.pop_front();
        }
        self.told.push_back(text);
    }

    /// A hash of everything that happened, and in which order.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// The last steps.
    pub fn tail(&self) -> String {
        self.told.iter().map(|text| format!("{text}\n")).collect()
    }
}

struct State {
    /// Nothing stops: for whoever only looks, when no actor is there.
    is_free: bool,
    now: Duration,
    /// By actor and what the call is; the number is for calls that are the same.
    stopped: BTreeMap<(ActorId, String, u64), Stopped>,
    calls: u64,
    alive: BTreeSet<ActorId>,
    dead: BTreeSet<ActorId>,
    frozen: BTreeMap<ActorId, Duration>,
    own_operations: BTreeMap<ActorId, u64>,
    director: Director,
    record: Record,
}

/// The stage. Actors hold it together with whoever directs.
pub struct Stage {
    storage: MemoryStorage,
    state: Mutex<State>,
    /// Somebody has stopped or left.
    changed: Condvar,
}

/// Called with each process that is killed, while nobody runs.
pub type Buried<'a> = &'a mut dyn FnMut(ActorId);

impl Stage {
    /// A free one before this storage.
    pub fn new(storage: MemoryStorage) -> Arc<Stage> {
        let state = State {
            is_free: true,
            now: Duration::ZERO,
            stopped: BTreeMap::new(),
            calls: 0,
            alive: BTreeSet::new(),
            dead: BTreeSet::new(),
            frozen: BTreeMap::new(),
            own_operations: BTreeMap::new(),
            director: Director::new(0),
            record: Record::default(),
        };
        Arc::new(Stage { storage, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// What the actors work on.
    pub fn storage(&self) -> &MemoryStorage {
        &self.storage
    }

    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// Lets time pass while nothing is played.
    pub fn pass(&self, time: Duration) {
        self.lock().now += time;
    }

    /// True while nothing is played.
    pub fn is_free(&self) -> bool {
        self.lock().is_free
    }

    /// Gives what was recorded.
    pub fn with_record<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.lock().record)
    }

    /// A line of the record that is no step.
    pub fn remark(&self, text: String) {
        self.lock().record.add(text);
    }

    /// True once the actor was killed.
    pub fn is_dead(&self, actor: ActorId) -> bool {
        self.lock().dead.contains(&actor)
    }

    /// Announces an actor, which is then awaited until it has left.
    pub fn announce(&self, actor: ActorId) {
        self.lock().alive.insert(actor);
    }

    /// The actor is done.
    pub fn leave(&self, actor: ActorId) {
        self.lock().alive.remove(&actor);
        self.changed.notify_one();
    }

    /// Stops until it is this call's turn.
    pub fn stop(&self, actor: ActorId, stop: Stop, text: String) -> Verdict {
        let answer = Answer::default();
        {
            let mut state = self.lock();
            if state.dead.contains(&actor) {
                return Verdict::Dead;
            }
            if state.is_free {
                return Verdict::Go;
            }
            state.calls += 1;
            let key = (actor, text, state.calls);
            state.stopped.insert(key, Stopped { stop, answer: answer.clone() });
            self.changed.notify_one();
        }
        let mut verdict = answer.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(verdict) = *verdict {
                return verdict;
            }
            verdict = answer.1.wait(verdict).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From here on everything stops, until [`Stage::play`] is over.
    pub fn open(&self, director: Director) {
        let mut state = self.lock();
        state.is_free = false;
        state.director = director;
        state.record.operations = 0;
        state.record.kinds.clear();
        state.dead.clear();
        state.frozen.clear();
    }

    /// Lets all announced actors play until they have left. The director comes back.
    ///
    /// # Errors
    /// All actors that are left wait for each other, or somebody never sleeps.
    pub fn play(&self, buried: Buried<'_>) -> Result<Director, String> {
        let mut quiet = Quiet::new().ok_or("this system does not tell which threads sleep")?;
        loop {
            self.wait_for_somebody();
            if !quiet.wait(PATIENCE) {
                return Err("a thread never falls asleep".into());
            }
            let mut state = self.lock();
            if state.alive.is_empty() && state.stopped.is_empty() {
                state.is_free = true;
                return Ok(std::mem::replace(&mut state.director, Director::new(0)));
            }
            if state.let_others_go() {
                continue;
            }
            if !self.step(state, buried) {
                return Err("all wait for each other".into());
            }
        }
    }

    /// Saves looks at all threads while nobody has stopped yet.
    fn wait_for_somebody(&self) {
        let is_busy = |state: &mut State| state.stopped.is_empty() && !state.alive.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), LOOK_INTERVAL, is_busy));
    }

    /// Lets one call go; false if there is none and none will come.
    fn step(&self, mut state: MutexGuard<'_, State>, buried: Buried<'_>) -> bool {
        let state = &mut *state;
        let now = state.now;
        state.frozen.retain(|_, until| *until > now);
        let is_ready = |(key, stopped): &(&(ActorId, String, u64), &Stopped)| {
            let is_due = match &stopped.stop {
                Stop::Wait(until, _) => *until <= now,
                _ => true,
            };
            is_due && !state.frozen.contains_key(&key.0)
        };
        let ready: Vec<_> = state.stopped.iter().filter(is_ready).map(|(key, _)| key).collect();
        if ready.is_empty() {
            return state.jump();
        }
        let actors: Vec<ActorId> = ready.iter().map(|key| key.0).collect();
        let key = ready[state.director.choose(&actors)].clone();
        let (number, operation) = (state.record.operations, operation_of(&state.stopped[&key]));
        let blow = operation.and_then(|operation| {
            let strikes = |kind: FaultKind| strikes(kind, operation);
            let own_number = state.own_operations.get(&key.0).copied().unwrap_or(0);
            state.director.blow(number, (key.0, own_number), &strikes)
        });
        state.now += state.director.time();
        let text = format!("{number} {:?} {} {}: {blow:?}", state.now, key.0, key.1);
        state.record.add(text);
        let verdict = match blow {
            None => Verdict::Go,
            Some(Blow::Fault { kind, .. }) => Verdict::Fault(kind),
            Some(Blow::Freeze { time }) => {
                state.frozen.insert(key.0, state.now + time);
                return true;
            }
            Some(Blow::Kill) => {
                state.kill(key.0, buried);
                return true;
            }
            Some(Blow::Cut { keeps }) => {
                if keeps {
                    self.storage.sync();
                }
                self.storage.power_cut();
                let all: Vec<ActorId> = state.alive.iter().copied().collect();
                all.into_iter().for_each(|actor| state.kill(actor, buried));
                return true;
            }
            Some(Blow::ServerCut) => {
                self.storage.power_cut();
                Verdict::Go
            }
        };
        if let Some(operation) = operation {
            state.record.operations += 1;
            state.record.kinds.push(operation);
            *state.own_operations.entry(key.0).or_default() += 1;
        }
        state.answer(&key, verdict);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets calls go that are no step: those of the dead, and waits whose bell was rung.
    fn let_others_go(&mut self) -> bool {
        let of_dead = |key: &(ActorId, String, u64)| self.dead.contains(&key.0);
        let dead: Vec<_> = self.stopped.keys().filter(|key| of_dead(key)).cloned().collect();
        if !dead.is_empty() {
            dead.iter().for_each(|key| self.answer(key, Verdict::Dead));
            return true;
        }
        let is_rung = |stopped: &Stopped| match &stopped.stop {
            Stop::Wait(_, Some(bell)) => bell.is_rung(),
            _ => false,
        };
        let mut rung = self.stopped.iter().filter(|(_, stopped)| is_rung(stopped));
        let Some(key) = rung.next().map(|(key, _)| key.clone()) else { return false };
        self.answer(&key, Verdict::Go);
        true
    }

    /// Goes to the next moment at which something can happen.
    fn jump(&mut self) -> bool {
        let waits = self.stopped.iter().map(|(key, stopped)| {
            let until = match &stopped.stop {
                Stop::Wait(until, _) => *until,
                _ => self.now,
            };
            self.frozen.get(&key.0).map_or(until, |thaws| until.max(*thaws))
        });
        let Some(next) = waits.min() else { return false };
        self.now = self.now.max(next);
        true
    }

    fn kill(&mut self, actor: ActorId, buried: Buried<'_>) {
        if self.alive.contains(&actor) && self.dead.insert(actor) {
            buried(actor);
        }
    }

    fn answer(&mut self, key: &(ActorId, String, u64), verdict: Verdict) {
        if let Some(stopped) = self.stopped.remove(key) {
            *stopped.answer.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
            stopped.answer.1.notify_one();
        }
    }
}

/// What a call does to the storage: nothing, a sync, or an operation.
fn operation_of(stopped: &Stopped) -> Option<Option<Operation>> {
    match stopped.stop {
        Stop::Operation(operation) => Some(Some(operation)),
        Stop::Sync => Some(None),
        Stop::Begin | Stop::Wait(..) => None,
    }
}

/// Whether an operation can go wrong in this way.
pub fn strikes(kind: FaultKind, operation: Option<Operation>) -> bool {
    let changes = matches!(operation, None | Some(Operation::Put | Operation::Delete));
    match kind {
        FaultKind::Error => true,
        FaultKind::NoSpace => operation == Some(Operation::Put),
        FaultKind::LostReply => changes,
        FaultKind::TornPut { .. } | FaultKind::LoseUnsynced | FaultKind::PowerCut => false,
    }
}
