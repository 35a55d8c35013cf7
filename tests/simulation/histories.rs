//! Histories: several hosts do several things at once, in an order that follows from a seed, while
//! processes are killed, the power goes off and the storage fails.

use super::actions::{Action, Outcome, act, name};
use super::chance::Chance;
use super::director::{Blow, Director, Planned};
use super::stage::ActorId;
use super::world::{Host, Saved, Seat, World, contents};
use crate::support::vault::{Parts, copy_folder, noise};
use diskvault::error::ErrorKind;
use diskvault::storage::memory::FaultKind;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The machines.
pub const HOSTS: [&str; 3] = ["ann", "ben", "cat"];
/// The series they back up into: one is shared.
const SERIES: [&str; 3] = ["web", "mail", "web"];
/// About how many operations a round has: what goes wrong does so before.
const ROUND_OPERATIONS: u64 = 350;
/// The same of a duel.
const DUEL_OPERATIONS: u64 = 150;

/// What was done, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// By name.
    pub counts: BTreeMap<String, u64>,
}

impl Figures {
    /// Counts something.
    pub fn add(&mut self, what: &str, many: u64) {
        *self.counts.entry(what.into()).or_default() += many;
    }

    /// Counts what went wrong.
    pub fn add_struck(&mut self, struck: &[Planned]) {
        for planned in struck {
            let what = match planned.blow {
                Blow::Fault { kind: FaultKind::NoSpace, .. } => "writes without space",
                Blow::Fault { kind: FaultKind::LostReply, .. } => "lost replies",
                Blow::Fault { .. } => "I/O errors",
                Blow::Kill => "processes killed",
                Blow::Cut { .. } => "power cuts",
                Blow::ServerCut => "power cuts of the storage alone",
                Blow::Freeze { .. } => "processes that stood still",
            };
            self.add(what, 1);
        }
    }

    /// Counts an outcome.
    pub fn add_outcome(&mut self, action: &Action, outcome: &Outcome) {
        let verb = name(action);
        let verb = verb.split(' ').next().unwrap_or_default().to_lowercase();
        self.add(&format!("{verb} runs"), 1);
        self.add("points made", outcome.made);
        self.add("points restored by actors", outcome.restored);
        self.add("backups that lost their lease and started over", outcome.fenced);
        if outcome.lost_race {
            self.add(&format!("{verb} runs that met what was being deleted"), 1);
        }
        if let Some(report) = &outcome.pruned {
            self.add("packs deleted", report.deleted_packs);
            self.add("packs kept by the second mark", report.kept_packs);
            self.add("leases fenced", report.fenced_leases);
            self.add("prunes that left a list", u64::from(report.is_waiting));
            self.add("points finished for dead writers", report.resolved.finished);
            self.add("manifests of dead writers deleted", report.resolved.deleted);
            self.add("bytes copied by prunes", report.copied_bytes);
        }
        if let Some(error) = &outcome.error {
            self.add(&format!("{verb} runs ended by {:?}", error.kind()), 1);
        }
    }
}

/// The world in which histories begin: three series, some of it forgotten, one host that knows it
/// all, one that saw the beginning, and one that saw nothing.
pub fn beginning() -> Result<Saved, String> {
    let mut world = World::new(1, &HOSTS);
    let mut chance = Chance::new(1, "beginning");
    let hosts = world.hosts.clone();
    for (host, series) in [(0, "web"), (1, "mail"), (0, "web"), (0, "mail"), (0, "web")] {
        let action = Action::Backup { series: series.into(), given: contents(&mut chance) };
        alone(&mut world, &hosts[host], &action, Director::new(1))?;
    }
    alone(&mut world, &hosts[0], &Action::Forget { chance: 3 }, Director::new(1))?;
    Ok(world.save())
}

/// One actor does one thing, and nobody else anything.
///
/// # Errors
/// It failed.
pub fn alone(
    world: &mut World,
    host: &Host,
    action: &Action,
    director: Director,
) -> Result<Outcome, String> {
    let seat = world.seat(host);
    world.stage.open(director);
    let script = vec![(seat, action.clone())];
    let (mut outcomes, _) = play(world, vec![script])?;
    let (_, outcome) = outcomes.pop().ok_or("nothing was done")?;
    match (&outcome.error, &outcome.broken) {
        (_, Some(text)) => Err(text.clone()),
        (Some(error), _) => Err(format!("{}: {}", name(action), error.full_text())),
        _ => Ok(outcome),
    }
}

type Script = Vec<(Seat, Action)>;

/// What came of each action, and what went wrong.
type Played = (Vec<(Action, Outcome)>, Vec<Planned>);

/// Plays these scripts beside each other; what came of each action, and what went wrong.
///
/// # Errors
/// They wait for each other, or one panicked.
pub fn play(world: &World, scripts: Vec<Script>) -> Result<Played, String> {
    let caches: BTreeMap<ActorId, PathBuf> =
        scripts.iter().flatten().map(|(seat, _)| (seat.actor, seat.cache.clone())).collect();
    let is_alone = |cache: &PathBuf| {
        scripts.iter().filter(|script| script.iter().any(|(seat, _)| seat.cache == *cache)).count()
            < 2
    };
    let alone: Vec<PathBuf> = caches.values().filter(|cache| is_alone(cache)).cloned().collect();
    let outcomes = Mutex::new(Vec::new());
    let stage = world.stage.clone();
    for script in &scripts {
        script.first().into_iter().for_each(|(seat, _)| stage.announce(seat.actor));
    }
    let grave = |actor: ActorId| world.folder().join(format!("grave-{actor}"));
    let mut buried = |actor: ActorId| {
        // What a process that is killed leaves is what it had written by then.
        if let Some(cache) = caches.get(&actor).filter(|cache| alone.contains(cache)) {
            let _ = std::fs::create_dir_all(grave(actor));
            if cache.exists() {
                copy_folder(cache, &grave(actor));
            }
        }
    };
    let played = std::thread::scope(|scope| {
        let threads: Vec<_> = scripts
            .iter()
            .map(|script| {
                let (stage, outcomes, grave) = (&stage, &outcomes, &grave);
                scope.spawn(move || {
                    for (number, (seat, action)) in script.iter().enumerate() {
                        // Also if it panics.
                        let next = script.get(number + 1).map(|(seat, _)| seat.actor);
                        let _leaves = Leaves { stage, actor: seat.actor, next };
                        if !stage.storage().has_power() {
                            break;
                        }
                        let outcome = act(seat, action);
                        let grave = grave(seat.actor);
                        if grave.exists() {
                            let _ = std::fs::remove_dir_all(&seat.cache);
                            let _ = std::fs::rename(&grave, &seat.cache);
                        }
                        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                        outcomes.push((action.clone(), outcome));
                    }
                })
            })
            .collect();
        let played = stage.play(&mut buried);
        if let Err(text) = &played {
            // Nothing can end threads that wait for each other.
            eprintln!("{text}\n{}", stage.with_record(|record| record.tail()));
            std::process::abort();
        }
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        if panicked > 0 { Err(format!("{panicked} actors panicked")) } else { played }
    });
    let director = played?;
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((action, outcome)) = outcomes.iter().find(|(_, outcome)| outcome.broken.is_some()) {
        return Err(format!("{}: {}", name(action), outcome.broken.clone().unwrap_or_default()));
    }
    Ok((outcomes, director.struck))
}

/// Takes an actor off the stage and puts the next of its host onto it.
struct Leaves<'a> {
    stage: &'a Arc<super::stage::Stage>,
    actor: ActorId,
    next: Option<ActorId>,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let has_next = self.stage.storage().has_power() && !std::thread::panicking();
        if let Some(next) = self.next.filter(|_| has_next) {
            self.stage.announce(next);
        }
        self.stage.leave(self.actor);
    }
}

/// A backup of something new, or of what some backup had before, whether or not its point is still
/// there: then it meets what nobody else needs any more.
fn any_backup(world: &World, chance: &mut Chance, series: &str) -> Action {
    let known: Vec<Parts> = world.book().given.values().cloned().collect();
    let is_known = chance.percent(60);
    let given = if is_known { chance.pick(&known).clone() } else { contents(chance) };
    Action::Backup { series: series.into(), given }
}

fn any_action(world: &World, chance: &mut Chance, series: &str) -> Action {
    match chance.below(100) {
        0..35 => any_backup(world, chance, series),
        35..50 => Action::Forget { chance: chance.next() },
        50..58 => Action::Undo { chance: chance.next() },
        58..88 => Action::Prune {
            waits: chance.percent(70),
            stands_still: *chance.pick(&[1, 15, 90, 200, 3600]),
            unused: *chance.pick(&[0, 0, 0, 20_000]),
            keeps: chance.percent(15).then_some(3600),
        },
        88..95 => Action::Restore { chance: chance.next() },
        _ => Action::Check,
    }
}

fn any_blows(chance: &mut Chance, until: u64) -> Vec<Planned> {
    let many = *chance.pick(&[0, 0, 1, 1, 1, 2, 3, 4]);
    let one = |_| {
        let blow = match chance.below(100) {
            0..30 => Blow::Kill,
            30..45 => Blow::Cut { keeps: chance.percent(50) },
            45..50 => Blow::ServerCut,
            50..75 => {
                Blow::Freeze { time: Duration::from_secs(*chance.pick(&[10, 100, 1000, 20_000])) }
            }
            _ => Blow::Fault {
                kind: *chance.pick(&[FaultKind::Error, FaultKind::NoSpace, FaultKind::LostReply]),
                times: *chance.pick(&[1, 1, 3, 1000]),
            },
        };
        Planned { of: None, at: chance.below(until), blow }
    };
    (0..many).map(one).collect()
}

/// Some hosts do anything at once.
fn any_scripts(world: &mut World, chance: &mut Chance) -> Vec<Script> {
    let mut scripts = Vec::new();
    for _ in 0..chance.below(3) + 2 {
        // Now and then two of them are on one host.
        let number = chance.below(HOSTS.len() as u64) as usize;
        let host = world.hosts[number].clone();
        let mut script = Script::new();
        for _ in 0..chance.below(3) + 1 {
            let action = any_action(world, chance, SERIES[number]);
            script.push((world.seat(&host), action));
        }
        scripts.push(script);
    }
    scripts
}

/// One or two backups against one or two impatient prunes, after something was forgotten; any of
/// them may stand still somewhere. The backups have what was forgotten, or something else.
fn duel(world: &mut World, chance: &mut Chance) -> Result<(Vec<Script>, Vec<Planned>), String> {
    let before = world.book().doomed.clone();
    for _ in 0..=chance.below(2) {
        let host = world.hosts[chance.below(HOSTS.len() as u64) as usize].clone();
        let forget = Action::Forget { chance: chance.next() };
        alone(world, &host, &forget, Director::new(chance.next()))?;
    }
    let forgotten: Vec<Parts> = {
        let book = world.book();
        let runs = book.doomed.difference(&before).filter_map(|id| book.made_by.get(id));
        runs.filter_map(|run| book.given.get(run).cloned()).collect()
    };
    let mut actions = Vec::new();
    for _ in 0..=chance.below(2) {
        let is_forgotten = chance.percent(80) && !forgotten.is_empty();
        actions.push(match is_forgotten {
            true => {
                let given = chance.pick(&forgotten).clone();
                Action::Backup { series: "mail".into(), given }
            }
            false => any_backup(world, chance, "mail"),
        });
    }
    for _ in 0..=chance.below(2) {
        let stands_still = *chance.pick(&[1, 5, 90]);
        let (waits, unused, keeps) = (chance.percent(80), 0, None);
        actions.push(Action::Prune { waits, stands_still, unused, keeps });
    }
    let first = chance.below(HOSTS.len() as u64) as usize;
    let (mut scripts, mut naps) = (Vec::new(), Vec::new());
    for (number, action) in actions.into_iter().enumerate() {
        let host = world.hosts[(first + number) % HOSTS.len()].clone();
        let seat = world.seat(&host);
        if chance.percent(50) {
            // Mostly somewhere between its registration and its end, and long enough to be taken
            // for dead.
            let time = Duration::from_secs(*chance.pick(&[30, 1000, 20_000]));
            let at = 8 + chance.below(DUEL_OPERATIONS / 3);
            naps.push(Planned { of: Some(seat.actor), at, blow: Blow::Freeze { time } });
        }
        scripts.push(vec![(seat, action)]);
    }
    Ok((scripts, naps))
}

/// One round: some hosts do some things at once.
fn round(world: &mut World, chance: &mut Chance, figures: &mut Figures) -> Result<(), String> {
    let is_duel = chance.percent(50);
    let (scripts, mut planned, until) = if is_duel {
        let (scripts, naps) = duel(world, chance)?;
        (scripts, naps, DUEL_OPERATIONS)
    } else {
        (any_scripts(world, chance), Vec::new(), ROUND_OPERATIONS)
    };
    planned.extend(any_blows(chance, until));
    let director = Director::new(chance.next()).with(planned);
    world.stage.open(director);
    let (outcomes, struck) = play(world, scripts)?;
    figures.add("operations", world.stage.with_record(|record| record.operations));
    figures.add_struck(&struck);
    let is_harmless = |planned: &Planned| matches!(planned.blow, Blow::Freeze { .. });
    let is_smooth = struck.iter().all(is_harmless);
    for (action, outcome) in &outcomes {
        figures.add_outcome(action, outcome);
        if let Some(error) = &outcome.error
            && !may_fail(action, error.kind(), is_smooth)
        {
            return Err(format!("{}: {}", name(action), error.full_text()));
        }
    }
    world.stage.storage().restore_power();
    let host = world.hosts[chance.below(HOSTS.len() as u64) as usize].clone();
    figures.add("points restored", world.verify(&[host])?);
    Ok(())
}

/// What may come of an action beside success; when all goes smoothly, and when not.
fn may_fail(action: &Action, kind: ErrorKind, is_smooth: bool) -> bool {
    let beside_others = match action {
        Action::Backup { .. } => kind == ErrorKind::Fenced,
        Action::Undo { .. } => {
            matches!(kind, ErrorKind::Fenced | ErrorKind::NotFound | ErrorKind::Usage)
        }
        // Another one of the same host.
        Action::Prune { .. } => kind == ErrorKind::Failed,
        Action::Forget { .. }
        | Action::ForgetAll { .. }
        | Action::Restore { .. }
        | Action::Check => false,
    };
    let by_faults = matches!(kind, ErrorKind::Storage | ErrorKind::NoSpace | ErrorKind::Cancelled);
    beside_others || (by_faults && !is_smooth)
}

/// Brings everything to an end: all hosts prune, nothing is left behind, all go on.
///
/// # Errors
/// The first promise that was broken.
pub fn settle(world: &mut World, chance: &mut Chance, figures: &mut Figures) -> Result<(), String> {
    let mut hosts = world.hosts.clone();
    hosts.push(hosts[0].clone());
    // Something to be deleted: without it a prune does not look at leases.
    let disk = Parts::from([("vda".into(), noise(chance.next(), 64 << 10))]);
    let unique = Action::Backup { series: "unique".into(), given: disk };
    alone(world, &hosts[1], &unique, Director::new(chance.next()))?;
    alone(world, &hosts[1], &Action::ForgetAll { series: "unique".into() }, Director::new(0))?;
    for host in &hosts {
        let prune = Action::Prune { waits: true, stands_still: 1, unused: 0, keeps: None };
        let outcome = alone(world, host, &prune, Director::new(chance.next()))?;
        figures.add_outcome(&prune, &outcome);
    }
    world.verify_clear()?;
    let given = contents(chance);
    let host = hosts[chance.below(HOSTS.len() as u64) as usize].clone();
    let action = Action::Backup { series: "web".into(), given };
    let outcome = alone(world, &host, &action, Director::new(chance.next()))?;
    figures.add_outcome(&action, &outcome);
    figures.add("points restored", world.verify(&world.hosts)?);
    Ok(())
}

/// The history of a seed; a hash of all that happened, and the last steps.
///
/// # Errors
/// The first promise that was broken, and what happened before.
pub fn history(
    beginning: &Saved,
    seed: u64,
    figures: &mut Figures,
) -> Result<(String, String), (String, String)> {
    let mut chance = Chance::new(seed, "history");
    let mut world = World::restore(beginning, seed);
    for host in &mut world.hosts {
        if chance.percent(15) {
            host.offset_seconds = *chance.pick(&[-90, 3700, 20 * 365 * 86_400, -400 * 86_400]);
        }
    }
    let mut run = || -> Result<(), String> {
        for _ in 0..chance.below(4) + 1 {
            if chance.percent(10) {
                let host = *chance.pick(&HOSTS);
                world.drop_cache(host);
            }
            round(&mut world, &mut chance, figures)?;
        }
        settle(&mut world, &mut chance, figures)
    };
    let result = run();
    figures.add("histories", 1);
    world.stage.with_record(|record| match result {
        Ok(()) => Ok((record.hash(), record.tail())),
        Err(text) => Err((text, record.tail())),
    })
}
