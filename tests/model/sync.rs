//! A sync: a writer that puts packs and a manifest of another copy under the names that they have there,
//! and so may put names again that were deleted.

use super::world::{A, Actor, B, Mutation, POINTS, World, bits, holds};

/// A sync that was fenced is run again, but not for ever.
const ATTEMPTS_MAX: u8 = 2;

/// The place of the point that is brought over: its name is the same each time.
const POINT: usize = POINTS - 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    PutLease,
    ReadLists,
    ListPacks,
    /// Looks for lists again, and gives up if there is one.
    Refuse,
    StorePacks,
    PutManifest,
    Look,
    PutOk,
    DeleteLease,
}

fn program(mutation: Mutation) -> [Step; 9] {
    use Step::{
        DeleteLease, ListPacks, Look, PutLease, PutManifest, PutOk, ReadLists, Refuse, StorePacks,
    };
    let begin = match mutation {
        Mutation::SyncRefusesFirst => [Refuse, PutLease, ReadLists, ListPacks],
        _ => [PutLease, ReadLists, ListPacks, Refuse],
    };
    let [a, b, c, d] = begin;
    [a, b, c, d, StorePacks, PutManifest, Look, PutOk, DeleteLease]
}

/// One step of a sync of a point that names `needs`, from a source that has it in the packs `from`.
pub fn sync(world: &mut World, actor: &mut Actor, needs: u8, from: u8, mutation: Mutation) {
    let lease = 1_u8 << actor.leases;
    actor.step += 1;
    match program(mutation)[actor.step as usize - 1] {
        Step::PutLease => {
            actor.leases = world.next_lease;
            world.leases |= 1 << world.next_lease;
            world.next_lease += 1;
        }
        Step::ReadLists => actor.listed = world.all_lists(),
        Step::ListPacks => actor.seen = world.existing,
        Step::Refuse => {
            let is_listed = world.lists.iter().any(Option::is_some);
            if is_listed && mutation != Mutation::SyncBesideLists {
                // It has taken its lease back.
                world.leases &= !if mutation == Mutation::SyncRefusesFirst { 0 } else { lease };
                again(actor);
            }
        }
        Step::StorePacks => {
            let there = actor.seen & !actor.listed;
            let have = world.content(there);
            let is_absent = |chunk: &u8| needs & chunk != 0 && !holds(*chunk, have, Mutation::None);
            let absent = if [A, B].iter().any(is_absent) { from & !there } else { 0 };
            // One at a time. A name that is taken is taken by these very bytes.
            if let Some(pack) = bits(absent).next() {
                world.existing |= 1 << pack;
                actor.seen |= 1 << pack;
                actor.listed &= !(1 << pack);
                actor.step -= 1;
            }
        }
        Step::PutManifest => {
            let point = &mut world.points[POINT];
            (point.needs, point.has_manifest) = (needs, true);
        }
        Step::Look => {
            if world.leases & lease == 0 && mutation != Mutation::FencedPublishes {
                again(actor);
            }
        }
        Step::PutOk => {
            let point = &mut world.points[POINT];
            (point.has_ok, point.is_reported) = (true, true);
        }
        Step::DeleteLease => {
            world.leases &= !lease;
            actor.is_over = true;
        }
    }
}

/// The user runs it again.
fn again(actor: &mut Actor) {
    let own = actor.own + 1;
    *actor = Actor { own, is_over: own == ATTEMPTS_MAX, ..Actor::default() };
}
