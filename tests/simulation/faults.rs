//! Scripts: one host does one thing after the other, and each of them is done again and again, with
//! every fault at every operation, until the run is clean. After each fault every promise is looked
//! at, and the host goes on.

use super::actions::{Action, name};
use super::chance::Chance;
use super::director::{Blow, Director, Planned};
use super::histories::{Figures, HOSTS, alone, play, settle};
use super::stage::strikes;
use super::world::{Host, Saved, World, contents};
use diskvault::error::ErrorKind;
use diskvault::storage::memory::{FaultKind, Operation};

/// What can go wrong at an operation. A process that is killed and a power cut are not the same:
/// after a cut, what was not yet durable is gone.
const BLOWS: [Blow; 9] = [
    Blow::Cut { keeps: false },
    Blow::Cut { keeps: true },
    Blow::Kill,
    Blow::ServerCut,
    Blow::Fault { kind: FaultKind::Error, times: 1 },
    Blow::Fault { kind: FaultKind::Error, times: u64::MAX },
    Blow::Fault { kind: FaultKind::NoSpace, times: 1 },
    Blow::Fault { kind: FaultKind::NoSpace, times: u64::MAX },
    Blow::Fault { kind: FaultKind::LostReply, times: 1 },
];

/// In how many cases of a hundred all hosts prune in the end, and nothing may be left behind.
const SETTLED_PERCENT: u64 = 5;

/// Which faults are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Only power cuts.
    pub only_cuts: bool,
    /// Only every so many operations; 1 for all.
    pub stride: u64,
    /// Only the first so many things of the script.
    pub actions: usize,
}

/// What the host does, one after the other.
fn script(seed: u64) -> Vec<Action> {
    let mut chance = Chance::new(seed, "script");
    let series = |chance: &mut Chance| (*chance.pick(&["web", "mail"])).to_string();
    let backup = |chance: &mut Chance| {
        let series = series(chance);
        Action::Backup { series, given: contents(chance) }
    };
    let keeps = chance.percent(30).then_some(3600);
    let prune = |unused, keeps| Action::Prune { waits: true, stands_still: 1, unused, keeps };
    vec![
        backup(&mut chance),
        Action::Forget { chance: chance.next() },
        prune(0, keeps),
        backup(&mut chance),
        Action::Forget { chance: chance.next() },
        Action::Undo { chance: chance.next() },
        Action::Forget { chance: chance.next() },
        prune(0, None),
        backup(&mut chance),
    ]
}

/// Whether a blow at such an operation (nothing: at a sync) is not the same as one elsewhere.
fn is_of_its_own(blow: Blow, operation: Option<Operation>) -> bool {
    match blow {
        Blow::Cut { keeps: false } | Blow::Kill | Blow::ServerCut | Blow::Freeze { .. } => true,
        // Only between a change and its sync is there something to keep.
        Blow::Cut { keeps: true } => operation.is_none(),
        Blow::Fault { kind, .. } => strikes(kind, operation),
    }
}

/// The script of a seed with every fault at every operation, as far as `extent` goes.
///
/// # Errors
/// The first promise that was broken, and what happened before.
pub fn every_fault(
    beginning: &Saved,
    seed: u64,
    extent: Extent,
    figures: &mut Figures,
) -> Result<(), (String, String)> {
    let mut world = World::restore(beginning, seed);
    let host = world.hosts[(seed % HOSTS.len() as u64) as usize].clone();
    for (number, action) in script(seed).iter().take(extent.actions).enumerate() {
        let saved = world.save();
        let told = |world: &World, text: String| {
            (text, world.stage.with_record(super::stage::Record::tail))
        };
        let outcome = alone(&mut world, &host, action, Director::new(seed));
        let outcome = outcome.map_err(|text| told(&world, text))?;
        figures.add_outcome(action, &outcome);
        let kinds = world.stage.with_record(|record| record.kinds.clone());
        for (at, operation) in (0..).zip(kinds) {
            if !(at + seed).is_multiple_of(extent.stride) {
                continue;
            }
            let is_tried = |blow: &Blow| {
                let is_cut = matches!(blow, Blow::Cut { .. });
                is_of_its_own(*blow, operation) && (is_cut || !extent.only_cuts)
            };
            for blow in BLOWS.into_iter().filter(is_tried) {
                let planned = Planned { of: None, at, blow };
                let mut other = World::restore(&saved, seed);
                if let Err(text) = one_fault(&mut other, &host, action, planned, seed, figures) {
                    let text = format!("step {number}, {planned:?}: {text}");
                    return Err(told(&other, text));
                }
            }
        }
        figures.add("things done with every fault at every operation", 1);
    }
    Ok(())
}

/// The action with one fault, then a look at everything, then the action again and what follows.
fn one_fault(
    world: &mut World,
    host: &Host,
    action: &Action,
    planned: Planned,
    seed: u64,
    figures: &mut Figures,
) -> Result<(), String> {
    world.stage.open(Director::new(seed).with(vec![planned]));
    let seat = world.seat(host);
    let (outcomes, struck) = play(world, vec![vec![(seat, action.clone())]])?;
    if struck.is_empty() {
        return Err("the fault did not strike".into());
    }
    figures.add("faults", 1);
    figures.add_struck(&struck[..1]);
    figures.add("operations", world.stage.with_record(|record| record.operations));
    for (action, outcome) in &outcomes {
        figures.add_outcome(action, outcome);
        let kind = outcome.error.as_ref().map(|error| error.kind());
        if let Some(kind) = kind
            && !matches!(kind, ErrorKind::Storage | ErrorKind::NoSpace | ErrorKind::Cancelled)
        {
            let text = outcome.error.as_ref().map(|error| error.full_text());
            return Err(format!("{}: {}", name(action), text.unwrap_or_default()));
        }
    }
    world.stage.storage().restore_power();
    let own = std::slice::from_ref(host);
    figures.add("points restored", world.verify(own)?);
    // The next run goes on, of the same host or of another one; what is gone already is no fault.
    let mut chance = Chance::new(seed, &format!("{planned:?}"));
    let next = world.hosts[chance.below(HOSTS.len() as u64) as usize].clone();
    world.stage.open(Director::new(chance.next()));
    let seat = world.seat(&next);
    let (outcomes, _) = play(world, vec![vec![(seat, action.clone())]])?;
    for (action, outcome) in &outcomes {
        figures.add_outcome(action, outcome);
        if let Some(error) = &outcome.error {
            let is_done = matches!(action, Action::Undo { .. })
                && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage);
            if !is_done {
                return Err(format!("the next {}: {}", name(action), error.full_text()));
            }
        }
    }
    if chance.percent(SETTLED_PERCENT) {
        return settle(world, &mut chance, figures);
    }
    figures.add("points restored", world.verify_known(host)?);
    Ok(())
}
