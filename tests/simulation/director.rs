//! Decides who goes on, how much time passes, and what goes wrong: all by a seed.

use super::chance::Chance;
use super::stage::ActorId;
use diskvault::storage::memory::FaultKind;
use std::collections::BTreeMap;
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Operations go wrong, so many from here on that this can happen to.
    Fault {
        /// How.
        kind: FaultKind,
        /// How many.
        times: u64,
    },
    /// The process that is about to do the operation is killed.
    Kill,
    /// The power goes off everywhere before the operation.
    Cut {
        /// True if what was done and not yet made durable survives.
        keeps: bool,
    },
    /// The storage's machine alone loses its power: the others meet errors from then on.
    ServerCut,
    /// The process that is about to do the operation stands still for a time.
    Freeze {
        /// How long.
        time: Duration,
    },
}

/// Something that goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Whose operations are counted; nothing for all together.
    pub of: Option<ActorId>,
    /// Number of the operation, from 0.
    pub at: u64,
    /// What happens.
    pub blow: Blow,
}

/// In which order calls go on.
#[derive(Clone)]
enum Order {
    /// Any, each time.
    Any,
    /// The same actor mostly.
    Sticky,
    /// The actor of the highest rank; ranks change now and then.
    Ranked(BTreeMap<ActorId, u64>),
}

/// Decides.
pub struct Director {
    chance: Chance,
    order: Order,
    last: Option<ActorId>,
    /// Most milliseconds that a step takes.
    pace_ms: u64,
    planned: Vec<Planned>,
    lasting: Vec<(FaultKind, u64)>,
    /// What went wrong so far.
    pub struck: Vec<Planned>,
}

impl Director {
    /// One that lets nothing go wrong.
    pub fn new(seed: u64) -> Director {
        let mut chance = Chance::new(seed, "director");
        let order = match chance.below(4) {
            0 => Order::Any,
            1 => Order::Sticky,
            _ => Order::Ranked(BTreeMap::new()),
        };
        let pace_ms = *chance.pick(&[20, 400, 4000, 12_000]);
        let (planned, lasting, struck) = (Vec::new(), Vec::new(), Vec::new());
        Director { chance, order, last: None, pace_ms, planned, lasting, struck }
    }

    /// With these things to go wrong.
    pub fn with(mut self, planned: Vec<Planned>) -> Director {
        self.planned = planned;
        self
    }

    /// Which of these calls goes on, by their actors.
    pub fn choose(&mut self, actors: &[ActorId]) -> usize {
        let any = self.chance.below(actors.len() as u64) as usize;
        let wanted = match &mut self.order {
            Order::Any => return any,
            Order::Sticky => {
                let stays = self.chance.percent(90);
                self.last.filter(|_| stays)
            }
            Order::Ranked(ranks) => {
                let chance = &mut self.chance;
                if chance.percent(3) {
                    ranks.insert(actors[any], chance.next());
                }
                let mut rank = |actor| *ranks.entry(actor).or_insert_with(|| chance.next());
                actors.iter().copied().max_by_key(|actor| rank(*actor))
            }
        };
        let of_actor = |actor| {
            let calls = actors.iter().enumerate().filter(move |(_, of)| **of == actor);
            calls.map(|(number, _)| number).collect::<Vec<_>>()
        };
        let own = wanted.map(of_actor).unwrap_or_default();
        let chosen = if own.is_empty() { any } else { *self.chance.pick(&own) };
        self.last = Some(actors[chosen]);
        chosen
    }

    /// How long a step takes.
    pub fn time(&mut self) -> Duration {
        Duration::from_millis(self.chance.below(self.pace_ms) + 1)
    }

    /// What goes wrong with operation `number` of all, if something does. It is operation
    /// `own_number` of its actor.
    pub fn blow(
        &mut self,
        number: u64,
        (actor, own_number): (ActorId, u64),
        strikes: &dyn Fn(FaultKind) -> bool,
    ) -> Option<Blow> {
        let is_due = |planned: &Planned| match planned.of {
            None => planned.at <= number,
            Some(of) => of == actor && planned.at <= own_number,
        };
        while let Some(due) = self.planned.iter().position(is_due) {
            let Planned { of, blow, .. } = self.planned.remove(due);
            if let Blow::Fault { kind, times } = blow {
                self.lasting.push((kind, times));
            } else {
                self.struck.push(Planned { of, at: number, blow });
                return Some(blow);
            }
        }
        let found = self.lasting.iter_mut().find(|(kind, times)| *times > 0 && strikes(*kind));
        let (kind, times) = found?;
        *times -= 1;
        let blow = Blow::Fault { kind: *kind, times: 1 };
        self.struck.push(Planned { of: None, at: number, blow });
        Some(blow)
    }
}
