//! What each actor can do next, and what becomes of the world.

use super::sync::sync;
use super::world::{
    A, Action, Actor, B, Kind, Mutation, Role, SPLICE_B, WHOLE_A, WHOLE_B, World, bits, holds,
};

/// A writer that was fenced begins again, but not for ever.
const ATTEMPTS_MAX: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    PutLease,
    ReadLists,
    ListPacks,
    ReadFooters,
    ListPoints,
    StorePack,
    PutManifest,
    Look,
    PutOk,
    DeleteLease,
    DeleteManifest,
}

/// The writer's steps in order; those behind `DeleteLease` are reached by a jump.
fn writer(mutation: Mutation) -> [Write; 11] {
    use Write::{
        DeleteLease, DeleteManifest, ListPacks, ListPoints, Look, PutLease, PutManifest, PutOk,
        ReadFooters, ReadLists, StorePack,
    };
    let reading = match mutation {
        Mutation::PointsBeforeLists => [ListPoints, ReadLists, ListPacks, ReadFooters],
        Mutation::PacksBeforeLists => [ListPacks, ReadLists, ReadFooters, ListPoints],
        Mutation::FootersAfterPoints => [ReadLists, ListPacks, ListPoints, ReadFooters],
        _ => [ReadLists, ListPacks, ReadFooters, ListPoints],
    };
    let [one, two, three, four] = reading;
    let (five, six) = match mutation {
        Mutation::LookBeforeManifest => (Look, PutManifest),
        _ => (PutManifest, Look),
    };
    let head = [PutLease, one, two, three, four, StorePack, five, six];
    let [a, b, c, d, e, f, g, h] = head;
    [a, b, c, d, e, f, g, h, PutOk, DeleteLease, DeleteManifest]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prune {
    Choose,
    CopyOut,
    PutList,
    ListLeases,
    Wait,
    ReadLists,
    ListPacks,
    Mark,
    Delete,
    DropList,
}

fn pruner(mutation: Mutation) -> [Prune; 10] {
    use Prune::{
        Choose, CopyOut, Delete, DropList, ListLeases, ListPacks, Mark, PutList, ReadLists, Wait,
    };
    let (one, two) = match mutation {
        Mutation::LeasesBeforeList => (ListLeases, PutList),
        _ => (PutList, ListLeases),
    };
    let (nine, ten) = match mutation {
        Mutation::ListDroppedFirst => (DropList, Delete),
        _ => (Delete, DropList),
    };
    [Choose, CopyOut, one, two, Wait, ReadLists, ListPacks, Mark, nine, ten]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Return {
    PutList,
    LookForOld,
    ListLeases,
    DropOld,
    Prune(Prune),
}

fn returned(mutation: Mutation) -> Vec<Return> {
    use Return::{DropOld, ListLeases, LookForOld, PutList};
    let begin = match mutation {
        Mutation::ReturnsToOldList => vec![LookForOld],
        Mutation::LooksBeforeNewList => vec![LookForOld, PutList, ListLeases, DropOld],
        _ => vec![PutList, LookForOld, ListLeases, DropOld],
    };
    let rest = [Prune::Wait, Prune::ReadLists, Prune::ListPacks, Prune::Mark, Prune::Delete];
    let rest = rest.into_iter().chain([Prune::DropList]).map(Return::Prune);
    begin.into_iter().chain(rest).collect()
}

/// True if a pruner has put its list and listed the leases, and is gone.
fn has_left(world: &World, number: u8, mutation: Mutation) -> bool {
    let actor = &world.actors[number as usize];
    let wait = pruner(mutation).iter().position(|step| *step == Prune::Wait);
    actor.is_over && wait.is_some_and(|wait| actor.step as usize >= wait)
}

/// Everything that can happen next.
pub fn actions(world: &World, roles: &[Role], mutation: Mutation) -> Vec<Action> {
    let mut actions = Vec::new();
    for (number, role) in roles.iter().enumerate() {
        let actor = &world.actors[number];
        if actor.is_over {
            continue;
        }
        let mut add = |kind| actions.push(Action { actor: number as u8, kind });
        match role {
            Role::Writer(wanted) => writer_actions(world, actor, *wanted, mutation, &mut add),
            Role::Pruner => pruner_actions(world, actor, number, mutation, &mut add),
            Role::Returned(first) => {
                if actor.step == 0 && !has_left(world, *first, mutation) {
                    continue;
                }
                match returned(mutation)[actor.step as usize] {
                    Return::Prune(Prune::Wait) => wait_actions(world, actor, &mut add),
                    _ => add(Kind::Step),
                }
            }
            Role::Resolver if actor.step == 0 => {
                let is_open = |point: &usize| {
                    world.points[*point].has_manifest && !world.points[*point].has_ok
                };
                (0..world.points.len()).filter(is_open).for_each(|p| add(Kind::Choose(p as u8)));
            }
            Role::Resolver | Role::Sync(..) => add(Kind::Step),
            Role::Forgetter(point) => {
                if actor.step > 0 || world.is_visible(*point as usize, Mutation::None) {
                    add(Kind::Step);
                }
            }
        }
        if actor.step > 0 {
            add(Kind::Crash);
        }
    }
    actions
}

fn writer_actions(
    world: &World,
    actor: &Actor,
    wanted: u8,
    mutation: Mutation,
    add: &mut dyn FnMut(Kind),
) {
    match writer(mutation)[actor.step as usize] {
        Write::ListPoints => {
            add(Kind::Choose(0));
            for point in 0..world.points.len() {
                if world.is_visible(point, mutation) {
                    add(Kind::Choose(point as u8 + 1));
                }
            }
        }
        Write::StorePack => {
            let absent = world.absent(actor, wanted);
            let a = if absent & A != 0 { WHOLE_A } else { 0 };
            if absent & B == 0 {
                return add(Kind::Choose(a));
            }
            add(Kind::Choose(a | WHOLE_B));
            // A piece may be taken of what could be named as a chunk.
            if a != 0 || holds(A, world.content(actor.seen & !actor.listed), Mutation::None) {
                add(Kind::Choose(a | SPLICE_B));
            }
        }
        _ => add(Kind::Step),
    }
}

fn pruner_actions(
    world: &World,
    actor: &Actor,
    number: usize,
    mutation: Mutation,
    add: &mut dyn FnMut(Kind),
) {
    match pruner(mutation)[actor.step as usize] {
        Prune::Choose => {
            let all = world.existing;
            let garbage = all & !world.kept(all, 0, Mutation::None);
            let mut choices: Vec<u8> = bits(all).map(|pack| 1 << pack).collect();
            choices.extend([all, garbage, world.all_lists() & all]);
            choices.sort_unstable();
            choices.dedup();
            choices.into_iter().filter(|choice| *choice != 0).for_each(|c| add(Kind::Choose(c)));
        }
        Prune::CopyOut => {
            add(Kind::Choose(0));
            let needed = copied(world, actor.own);
            if needed != 0 {
                add(Kind::Choose(needed));
            }
        }
        Prune::Wait => wait_actions(world, actor, add),
        _ => add(Kind::Step),
    }
    debug_assert!(world.lists[number].is_none() || actor.step > 0);
}

fn wait_actions(world: &World, actor: &Actor, add: &mut dyn FnMut(Kind)) {
    let waited = actor.leases & world.leases;
    if waited == 0 {
        add(Kind::Step);
    }
    bits(waited).for_each(|lease| add(Kind::Fence(lease)));
}

/// What is to be copied out of packs that are to go.
fn copied(world: &World, own: u8) -> u8 {
    let stays = world.content(world.existing & !own);
    let goes = world.content(own);
    let needed = world.needed(Mutation::None);
    let mut copied = 0;
    if needed & A != 0 && !holds(A, stays, Mutation::None) {
        copied |= goes & WHOLE_A;
    }
    if needed & B != 0 && !holds(B, stays, Mutation::None) {
        if goes & WHOLE_B != 0 {
            copied |= WHOLE_B;
        } else {
            copied |= goes & SPLICE_B & !stays;
            copied |= goes & WHOLE_A & !stays;
        }
    }
    copied
}

/// The world after an action.
pub fn apply(world: &mut World, roles: &[Role], mutation: Mutation, action: Action) {
    let number = action.actor as usize;
    let choice = match action.kind {
        Kind::Crash => {
            world.actors[number].is_over = true;
            return;
        }
        Kind::Fence(lease) => {
            world.leases &= !(1 << lease);
            return;
        }
        Kind::Choose(choice) => choice,
        Kind::Step => 0,
    };
    let mut actor = world.actors[number];
    match roles[number] {
        Role::Writer(wanted) => write(world, &mut actor, wanted, choice, mutation),
        Role::Pruner => {
            let step = pruner(mutation)[actor.step as usize];
            prune(world, &mut actor, number, step, choice, mutation);
        }
        Role::Returned(first) => {
            come_back(world, &mut actor, number, first as usize, choice, mutation);
        }
        Role::Resolver => resolve(world, &mut actor, choice),
        Role::Forgetter(point) => forget(world, &mut actor, point as usize),
        Role::Sync(needs, from) => sync(world, &mut actor, needs, from, mutation),
    }
    world.actors[number] = actor;
}

fn write(world: &mut World, actor: &mut Actor, wanted: u8, choice: u8, mutation: Mutation) {
    let program = writer(mutation);
    let step_of = |wanted| program.iter().position(|step| *step == wanted).unwrap() as u8;
    let lease = 1_u8 << actor.leases;
    actor.step += 1;
    match program[actor.step as usize - 1] {
        Write::PutLease => {
            actor.leases = world.next_lease;
            world.leases |= 1 << world.next_lease;
            world.next_lease += 1;
        }
        Write::ReadLists => actor.listed = world.all_lists(),
        Write::ListPacks => actor.seen = world.existing,
        Write::ReadFooters => {
            actor.condemned_hold = world.content(actor.listed & world.existing);
        }
        Write::ListPoints => {
            let parent = choice.checked_sub(1).map(|point| world.points[point as usize]);
            actor.inherited = parent.map_or(0, |parent| parent.needs);
        }
        Write::StorePack => world.put_pack(choice),
        Write::PutManifest => {
            actor.point = world.next_point;
            let point = &mut world.points[world.next_point as usize];
            (point.needs, point.lease, point.has_manifest) = (wanted, Some(actor.leases), true);
            world.next_point += 1;
            if mutation == Mutation::LookBeforeManifest && !actor.looked {
                actor.step = step_of(Write::DeleteManifest);
            }
        }
        Write::Look => {
            actor.looked = world.leases & lease != 0;
            let goes_on = actor.looked
                || mutation == Mutation::FencedPublishes
                || mutation == Mutation::LookBeforeManifest;
            if !goes_on {
                actor.step = step_of(Write::DeleteManifest);
            }
        }
        Write::PutOk => {
            let point = &mut world.points[actor.point as usize];
            (point.has_ok, point.is_reported) = (true, true);
        }
        Write::DeleteLease => {
            world.leases &= !lease;
            actor.is_over = true;
        }
        Write::DeleteManifest => {
            world.points[actor.point as usize].has_manifest = false;
            let own = actor.own + 1;
            *actor = Actor { own, is_over: own == ATTEMPTS_MAX, ..Actor::default() };
        }
    }
}

fn come_back(
    world: &mut World,
    actor: &mut Actor,
    number: usize,
    first: usize,
    choice: u8,
    mutation: Mutation,
) {
    if actor.step == 0 {
        (actor.own, actor.leases) = (world.actors[first].own, world.actors[first].leases);
    }
    // With the mutation its list is the old one.
    let list = if mutation == Mutation::ReturnsToOldList { first } else { number };
    match returned(mutation)[actor.step as usize] {
        Return::Prune(step) => return prune(world, actor, list, step, choice, mutation),
        Return::PutList => world.lists[number] = Some(actor.own),
        Return::LookForOld => {
            actor.looked = world.lists[first].is_some();
            actor.is_over = mutation == Mutation::ReturnsToOldList && !actor.looked;
        }
        Return::ListLeases => {
            if !actor.looked && mutation != Mutation::TrustsOldLeases {
                actor.leases = world.leases;
            }
        }
        Return::DropOld => world.lists[first] = None,
    }
    actor.step += 1;
}

fn prune(
    world: &mut World,
    actor: &mut Actor,
    number: usize,
    step: Prune,
    choice: u8,
    mutation: Mutation,
) {
    actor.step += 1;
    match step {
        Prune::Choose => actor.own = choice,
        Prune::CopyOut => world.put_pack(choice),
        Prune::PutList => world.lists[number] = Some(actor.own),
        Prune::ListLeases => actor.leases = world.leases,
        Prune::Wait => {}
        Prune::ReadLists => {
            let others = world.lists.iter().enumerate().filter(|(other, _)| *other != number);
            actor.listed = others.filter_map(|(_, list)| *list).fold(0, |all, list| all | list);
        }
        Prune::ListPacks => actor.seen = world.existing,
        Prune::Mark => {
            let mut holders = actor.seen & !(actor.own | actor.listed);
            if mutation == Mutation::OtherListsHold {
                holders = actor.seen & !actor.own;
            }
            if mutation == Mutation::OwnListHolds {
                holders = actor.seen & !actor.listed;
            }
            let listed = actor.own | actor.listed;
            let kept = match mutation {
                Mutation::NoSecondMark => 0,
                _ => world.kept(listed, holders, mutation),
            };
            actor.seen = actor.own & !kept;
        }
        Prune::Delete => {
            // One at a time, the first there is.
            actor.seen &= world.existing;
            let Some(pack) = bits(actor.seen).next() else {
                actor.is_over = mutation == Mutation::ListDroppedFirst;
                return;
            };
            world.existing &= !(1 << pack);
            actor.seen &= !(1 << pack);
            actor.step -= 1;
        }
        Prune::DropList => {
            world.lists[number] = None;
            for list in &mut world.lists {
                // Anybody may drop a list of which no pack exists.
                let is_empty = list.is_some_and(|list| list & world.existing == 0);
                if is_empty || mutation == Mutation::ForeignListDropped {
                    *list = None;
                }
            }
            actor.is_over = mutation != Mutation::ListDroppedFirst;
        }
    }
}

fn resolve(world: &mut World, actor: &mut Actor, choice: u8) {
    actor.step += 1;
    match actor.step {
        1 => actor.point = choice,
        2 => {
            let lease = world.points[actor.point as usize].lease;
            actor.is_over = lease.is_some_and(|lease| world.leases >> lease & 1 == 1);
        }
        3 => actor.listed = world.all_lists(),
        4 => actor.seen = world.existing,
        _ => {
            let (all, unlisted) = (actor.seen, actor.seen & !actor.listed);
            let (all, unlisted) = (world.content(all), world.content(unlisted));
            let point = &mut world.points[actor.point as usize];
            let chunks = [A, B].into_iter().filter(|chunk| point.needs & chunk != 0);
            if chunks.clone().all(|chunk| holds(chunk, unlisted, Mutation::None)) {
                point.has_ok = true;
            } else if !chunks.clone().all(|chunk| holds(chunk, all, Mutation::None)) {
                point.has_manifest = false;
            }
            actor.is_over = true;
        }
    }
}

fn forget(world: &mut World, actor: &mut Actor, point: usize) {
    actor.step += 1;
    let point = &mut world.points[point];
    match actor.step {
        1 => point.is_forgotten = true,
        2 => point.has_manifest = false,
        _ => {
            point.has_ok = false;
            actor.is_over = true;
        }
    }
}
