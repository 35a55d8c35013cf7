//! The protocol of repo-format/spec/40-protocol.md, checked in every order of steps, with crashes
//! and fences at any moment; and each change of it that must not be made, which has to break it.
//!
//! With `DISKVAULT_LARGE_MODEL=1` it checks more actors at once: minutes, and some GiB of memory.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "the large run tells how much it has seen")]

#[path = "model/steps.rs"]
mod steps;
#[path = "model/sync.rs"]
mod sync;
#[path = "model/world.rs"]
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{
    A, ACTORS, Action, Actor, B, Mutation, PACKS, POINTS, Point, Role, SPLICE_B, WHOLE_A, WHOLE_B,
    World,
};

/// Points and packs that are there, and who acts.
#[derive(Clone)]
struct Protocol {
    packs: Vec<u8>,
    points: Vec<u8>,
    roles: Vec<Role>,
    /// Packs on the list of the first actor, a pruner that went away while it waited for nobody.
    left_list: Option<u8>,
    /// Packs that only the source of a sync has, as a bit set.
    elsewhere: u8,
    mutation: Mutation,
}

/// The step of a pruner that waits.
const WAITS: u8 = 4;

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            contents: [0; PACKS],
            existing: 0,
            next_pack: 0,
            points: [Point::default(); POINTS],
            next_point: self.points.len() as u8,
            leases: 0,
            next_lease: 0,
            lists: [None; ACTORS],
            actors: [Actor::default(); ACTORS],
        };
        self.packs.iter().for_each(|content| world.put_pack(*content));
        world.existing &= !self.elsewhere;
        for (point, needs) in world.points.iter_mut().zip(&self.points) {
            *point = Point { needs: *needs, has_manifest: true, has_ok: true, ..Point::default() };
            point.is_reported = true;
        }
        if let Some(own) = self.left_list {
            world.lists[0] = Some(own);
            world.actors[0] = Actor { step: WAITS, is_over: true, own, ..Actor::default() };
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(steps::actions(world, &self.roles, self.mutation));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        steps::apply(&mut next, &self.roles, self.mutation, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "every visible point is complete",
                |model: &Protocol, world: &World| world.is_complete(model.mutation),
            ),
            Property::always(
                "what was reported stays until it is forgotten",
                |_, world: &World| {
                    let stays = |point: &Point| point.has_manifest && point.has_ok;
                    let is_owed = |point: &&Point| point.is_reported && !point.is_forgotten;
                    world.points.iter().filter(is_owed).all(stays)
                },
            ),
            Property::always("garbage can be freed", |model: &Protocol, world: &World| {
                let mut quiet = world.clone();
                quiet.quiet_prune();
                let needed = quiet.needed(Mutation::None);
                quiet.is_complete(model.mutation) && (needed != 0 || quiet.existing == 0)
            }),
        ]
    }
}

/// Two points, one of which is forgotten: it names B, and A is there for the splice of it.
fn world_with(roles: &[Role], mutation: Mutation) -> Protocol {
    let packs = vec![WHOLE_A, SPLICE_B];
    let (roles, left_list, elsewhere) = (roles.to_vec(), None, 0);
    Protocol { packs, points: vec![B], roles, left_list, elsewhere, mutation }
}

fn check(model: Protocol) -> usize {
    let checker = model.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    checker.unique_state_count()
}

fn breaks(model: Protocol) -> bool {
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    !checker.discoveries().is_empty()
}

const SMALL: [&[Role]; 3] = [
    &[Role::Writer(B), Role::Pruner, Role::Forgetter(0)],
    &[Role::Writer(A | B), Role::Pruner, Role::Resolver],
    &[Role::Pruner, Role::Pruner, Role::Forgetter(0)],
];

#[test]
fn a_writer_beside_a_prune_is_safe_in_every_order() {
    for roles in SMALL {
        let states = check(world_with(roles, Mutation::None));
        assert!(states > 1000, "{roles:?}: only {states} states");
    }
}

/// The same with chunks that are held twice, by their bytes.
#[test]
fn chunks_that_are_held_twice_are_safe_in_every_order() {
    for packs in [vec![WHOLE_A | WHOLE_B, WHOLE_B], vec![WHOLE_A, WHOLE_A | SPLICE_B]] {
        for roles in SMALL {
            let mut model = world_with(roles, Mutation::None);
            model.packs.clone_from(&packs);
            check(model);
        }
    }
}

/// An owner that comes back, and another with a copy of its cache.
fn with_returned(mutation: Mutation) -> [Protocol; 2] {
    let clones =
        [Role::Pruner, Role::Returned(0), Role::Returned(0), Role::Writer(B), Role::Forgetter(0)];
    let one = [Role::Pruner, Role::Returned(0), Role::Writer(B)];
    let left =
        Protocol { left_list: Some(1), packs: vec![WHOLE_B], ..world_with(&clones, mutation) };
    [left, Protocol { packs: vec![WHOLE_B], ..world_with(&one, mutation) }]
}

#[test]
fn an_owner_that_comes_back_is_safe_in_every_order_also_twice() {
    for model in with_returned(Mutation::None) {
        let states = check(model);
        assert!(states > 1000, "only {states} states");
    }
    let mutations =
        [Mutation::ReturnsToOldList, Mutation::LooksBeforeNewList, Mutation::TrustsOldLeases];
    for mutation in mutations {
        let is_broken = with_returned(mutation).into_iter().any(breaks);
        assert!(is_broken, "{mutation:?} goes unnoticed");
    }
}

/// Replicas into which a sync brings a point that names B, beside others: what they hold was brought by a
/// sync before, or is to come from the source alone.
fn with_syncs(count: usize, roles: &[Role], mutation: Mutation) -> Vec<Protocol> {
    // What the replica and its source have, what the source alone has of it, and points of the replica.
    let worlds: [(&[u8], u8, &[u8]); 4] = [
        (&[WHOLE_B], 0, &[]),
        (&[WHOLE_B], 1, &[]),
        (&[WHOLE_A, SPLICE_B], 0, &[B]),
        (&[WHOLE_A, SPLICE_B], 2, &[A]),
    ];
    let made = worlds.into_iter().map(|(packs, elsewhere, points)| {
        let sync = Role::Sync(B, (1 << packs.len()) - 1);
        let roles: Vec<Role> =
            std::iter::repeat_n(sync, count).chain(roles.iter().copied()).collect();
        let (packs, points) = (packs.to_vec(), points.to_vec());
        Protocol { packs, points, elsewhere, ..world_with(&roles, mutation) }
    });
    // Only where there is a point can it be forgotten.
    let has_points = |model: &Protocol| !model.points.is_empty();
    made.filter(|model| !roles.contains(&Role::Forgetter(0)) || has_points(model)).collect()
}

#[test]
fn a_sync_is_safe_beside_one_prune_in_every_order() {
    // With both chunks there are too many states for a test that runs each time.
    let all: [(usize, &[Role], usize); 4] = [
        (1, &[Role::Pruner, Role::Forgetter(0)], 2),
        (2, &[Role::Pruner], 2),
        (1, &[Role::Pruner, Role::Returned(1)], 4),
        (1, &[Role::Pruner, Role::Writer(B)], 1),
    ];
    for (count, roles, worlds) in all {
        for model in with_syncs(count, roles, Mutation::None).into_iter().take(worlds) {
            let states = check(model);
            assert!(states > 1000, "{count} syncs beside {roles:?}: only {states} states");
        }
    }
    for mutation in
        [Mutation::SyncBesideLists, Mutation::SyncRefusesFirst, Mutation::FencedPublishes]
    {
        let is_broken = with_syncs(1, &[Role::Pruner], mutation).into_iter().any(breaks);
        assert!(is_broken, "{mutation:?} goes unnoticed");
    }
}

/// What the specification warns of: no list shows that somebody stands in front of his last delete.
#[test]
fn a_sync_is_not_safe_beside_what_the_specification_warns_of() {
    for roles in [&[Role::Pruner, Role::Pruner][..], &[Role::Pruner, Role::Resolver]] {
        let is_broken = with_syncs(1, roles, Mutation::None).into_iter().any(breaks);
        assert!(is_broken, "{roles:?} need no warning any more");
    }
}

/// Minutes and some GiB of memory, so only when asked for.
#[test]
fn more_actors_at_once_are_safe_in_every_order() {
    if std::env::var_os("DISKVAULT_LARGE_MODEL").is_none() {
        println!("skipped: DISKVAULT_LARGE_MODEL is not set");
        return;
    }
    let large: [&[Role]; 4] = [
        &[Role::Writer(B), Role::Writer(A | B), Role::Pruner, Role::Forgetter(0)],
        &[Role::Writer(B), Role::Pruner, Role::Pruner, Role::Forgetter(0)],
        &[Role::Writer(B), Role::Pruner, Role::Resolver, Role::Forgetter(0)],
        &[Role::Writer(B), Role::Pruner, Role::Pruner, Role::Resolver],
    ];
    for roles in large {
        let states = check(world_with(roles, Mutation::None));
        println!("{roles:?}: {states} states");
    }
    for (count, roles) in [(2, &[Role::Pruner][..]), (1, &[Role::Pruner, Role::Writer(B)])] {
        let models = with_syncs(count, roles, Mutation::None).into_iter();
        let states: usize = models.map(check).sum();
        println!("{count} syncs beside {roles:?}: {states} states");
    }
}

#[test]
fn each_change_of_the_protocol_breaks_it() {
    let writer: &[Role] = &[Role::Writer(B), Role::Pruner, Role::Forgetter(0)];
    let pruners: &[Role] = &[Role::Pruner, Role::Pruner];
    let both: &[Role] = &[Role::Writer(B), Role::Pruner, Role::Pruner];
    let cases = [
        (Mutation::NoSecondMark, writer),
        (Mutation::PointsBeforeLists, writer),
        (Mutation::PacksBeforeLists, writer),
        (Mutation::FootersAfterPoints, writer),
        (Mutation::LookBeforeManifest, writer),
        (Mutation::LeasesBeforeList, writer),
        (Mutation::OwnListHolds, writer),
        (Mutation::OtherListsHold, pruners),
        (Mutation::ForeignListDropped, both),
        (Mutation::ListDroppedFirst, writer),
        (Mutation::VisibleWithoutOk, writer),
        (Mutation::FencedPublishes, writer),
        (Mutation::OnlyVisibleAreRoots, writer),
        (Mutation::SpliceHoldsAlone, writer),
        (Mutation::PiecesAreNotKept, writer),
    ];
    for (mutation, roles) in cases {
        let worlds: [(&[u8], &[u8]); 4] = [
            // Nobody needs them: whoever takes them over has to be waited for.
            (&[WHOLE_B], &[]),
            (&[WHOLE_A, SPLICE_B], &[B]),
            (&[WHOLE_A, WHOLE_B], &[B]),
            (&[WHOLE_A | WHOLE_B, WHOLE_B], &[B]),
        ];
        let is_broken = worlds.into_iter().any(|(packs, points)| {
            let mut model = world_with(roles, mutation);
            (model.packs, model.points) = (packs.to_vec(), points.to_vec());
            breaks(model)
        });
        assert!(is_broken, "{mutation:?} goes unnoticed");
    }
}
