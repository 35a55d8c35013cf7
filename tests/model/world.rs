//! The protocol of repo-format/spec/40-protocol.md as a state machine: what is stored, and one step
//! of each writer, pruner, resolver and forgetter at a time.
//!
//! There are two chunks, A and B. A pack holds any of: A by its bytes, B by its bytes, a splice of
//! B that takes a piece of A. Every step is one operation on the storage; a list of objects is
//! atomic, as is reading the footers of the packs that are listed.

/// A by its bytes.
pub const WHOLE_A: u8 = 1;
/// B by its bytes.
pub const WHOLE_B: u8 = 2;
/// B as a splice of A.
pub const SPLICE_B: u8 = 4;

/// The chunk A.
pub const A: u8 = 1;
/// The chunk B.
pub const B: u8 = 2;

pub const PACKS: usize = 8;
pub const POINTS: usize = 6;
pub const ACTORS: usize = 5;

/// A change of the protocol that must not go unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// The pruner deletes what it chose.
    NoSecondMark,
    /// The writer lists points first.
    PointsBeforeLists,
    /// The writer lists packs before it reads the lists.
    PacksBeforeLists,
    /// The writer reads the footers of condemned packs after it listed the points.
    FootersAfterPoints,
    /// The writer looks for its lease before it puts the manifest.
    LookBeforeManifest,
    /// The pruner lists the leases before it puts its list.
    LeasesBeforeList,
    /// In the second mark, packs on the own list hold something.
    OwnListHolds,
    /// In the second mark, packs on other lists hold something.
    OtherListsHold,
    /// A pruner drops the list of another whose packs still exist.
    ForeignListDropped,
    /// A pruner drops its list before it deletes the packs.
    ListDroppedFirst,
    /// A manifest counts without `ok`.
    VisibleWithoutOk,
    /// A writer whose lease is gone publishes all the same.
    FencedPublishes,
    /// A manifest without `ok` is no root.
    OnlyVisibleAreRoots,
    /// A splice holds its chunk whether or not the piece's chunk is there.
    SpliceHoldsAlone,
    /// The second mark does not keep what a splice takes a piece of.
    PiecesAreNotKept,
    /// An owner that comes back acts on its old list, without a new one.
    ReturnsToOldList,
    /// An owner that comes back looks for its old list before it puts the new one.
    LooksBeforeNewList,
    /// An owner that comes back waits for the leases it remembers though its old list is gone.
    TrustsOldLeases,
    /// A sync goes on although there are lists.
    SyncBesideLists,
    /// A sync looks for lists before it puts its lease.
    SyncRefusesFirst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Point {
    /// Chunks it names.
    pub needs: u8,
    /// The lease of its writer; none for points that were there.
    pub lease: Option<u8>,
    pub has_manifest: bool,
    pub has_ok: bool,
    /// Its writer was told that it is done.
    pub is_reported: bool,
    /// Somebody began to forget it.
    pub is_forgotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Actor {
    /// The step it is about to make.
    pub step: u8,
    pub is_over: bool,
    /// Packs on the lists it has read, as a bit set.
    pub listed: u8,
    /// Packs that a listing showed. Pruner, after its second mark: packs that are to go.
    pub seen: u8,
    /// Writer: what the condemned packs hold whose footers it could read.
    pub condemned_hold: u8,
    /// Writer: chunks it may take over from a point.
    pub inherited: u8,
    /// Writer: its lease. Pruner: leases it waits for, as a bit set.
    pub leases: u8,
    /// Writer: its manifest. Resolver and forgetter: the point.
    pub point: u8,
    /// Writer: how often it began. Pruner: packs on its own list.
    pub own: u8,
    /// Writer with a mutation: its lease was there when it looked too early. Returned pruner: its old
    /// list was there.
    pub looked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Backs up these chunks.
    Writer(u8),
    Pruner,
    /// The pruner of that number, come back after it went away while it waited; of two, one has a
    /// copy of the other's cache.
    Returned(u8),
    Resolver,
    /// Forgets this point.
    Forgetter(u8),
    /// Brings over a point that names these chunks, from a source that has it in these packs, as a bit
    /// set.
    Sync(u8, u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// What each pack holds, or held.
    pub contents: [u8; PACKS],
    /// Packs that exist, as a bit set.
    pub existing: u8,
    pub next_pack: u8,
    pub points: [Point; POINTS],
    pub next_point: u8,
    /// Leases that exist, as a bit set.
    pub leases: u8,
    pub next_lease: u8,
    /// The list of each actor, as a bit set of packs.
    pub lists: [Option<u8>; ACTORS],
    pub actors: [Actor; ACTORS],
}

/// What an actor does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    pub actor: u8,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The next step.
    Step,
    /// The next step, with a choice.
    Choose(u8),
    /// It dies.
    Crash,
    /// A pruner takes a lease that it waits for away.
    Fence(u8),
}

/// True if packs that hold `have` between them give chunk `chunk` back.
pub fn holds(chunk: u8, have: u8, mutation: Mutation) -> bool {
    let piece_is_there = have & WHOLE_A != 0 || mutation == Mutation::SpliceHoldsAlone;
    match chunk {
        A => have & WHOLE_A != 0,
        _ => have & WHOLE_B != 0 || (have & SPLICE_B != 0 && piece_is_there),
    }
}

/// All that a chunk may be put together of.
fn parts_of(chunk: u8) -> u8 {
    if chunk == A { WHOLE_A } else { WHOLE_A | WHOLE_B | SPLICE_B }
}

pub fn bits(set: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |bit| set >> bit & 1 == 1)
}

impl World {
    /// What these packs hold between them.
    pub fn content(&self, packs: u8) -> u8 {
        bits(packs).fold(0, |have, pack| have | self.contents[pack as usize])
    }

    /// Packs on all lists.
    pub fn all_lists(&self) -> u8 {
        self.lists.iter().flatten().fold(0, |all, list| all | list)
    }

    pub fn is_visible(&self, point: usize, mutation: Mutation) -> bool {
        let point = &self.points[point];
        point.has_manifest && (point.has_ok || mutation == Mutation::VisibleWithoutOk)
    }

    /// Puts a pack, unless there is nothing to put.
    pub fn put_pack(&mut self, content: u8) {
        if content != 0 {
            self.contents[self.next_pack as usize] = content;
            self.existing |= 1 << self.next_pack;
            self.next_pack += 1;
        }
    }

    /// Chunks that some manifest names.
    pub fn needed(&self, mutation: Mutation) -> u8 {
        let counts = |point: &&Point| {
            point.has_manifest && (point.has_ok || mutation != Mutation::OnlyVisibleAreRoots)
        };
        self.points.iter().filter(counts).fold(0, |all, point| all | point.needs)
    }

    /// Packs among `listed` that a second mark keeps, if the packs in `unlisted` hold something.
    pub fn kept(&self, listed: u8, unlisted: u8, mutation: Mutation) -> u8 {
        let have = self.content(unlisted);
        let needed = self.needed(mutation);
        let mut keep = 0;
        for chunk in [A, B].into_iter().filter(|chunk| needed & chunk != 0) {
            if holds(chunk, have, mutation) {
                continue;
            }
            let mut parts = if chunk == A { WHOLE_A } else { WHOLE_B | SPLICE_B };
            let is_spliced = chunk == B && self.content(listed | unlisted) & SPLICE_B != 0;
            if is_spliced && mutation != Mutation::PiecesAreNotKept {
                parts |= WHOLE_A;
            }
            for pack in bits(listed) {
                if self.contents[pack as usize] & parts != 0 {
                    keep |= 1 << pack;
                }
            }
        }
        keep
    }

    /// What the writer finds absent of `wanted`, by what it has read.
    pub fn absent(&self, actor: &Actor, wanted: u8) -> u8 {
        let have = self.content(actor.seen & !actor.listed);
        let mut absent = 0;
        for chunk in [A, B].into_iter().filter(|chunk| wanted & chunk != 0) {
            let is_held = holds(chunk, have, Mutation::None);
            let is_taken_over =
                actor.inherited & chunk != 0 && actor.condemned_hold & parts_of(chunk) == 0;
            if !is_held && !is_taken_over {
                absent |= chunk;
            }
        }
        absent
    }

    /// A prune that nobody disturbs, after all writers are gone.
    pub fn quiet_prune(&mut self) {
        // One pack after the other, as long as the rest holds everything.
        for pack in bits(self.existing) {
            if self.kept(1 << pack, self.existing & !(1 << pack), Mutation::None) == 0 {
                self.existing &= !(1 << pack);
            }
        }
        self.lists = [None; ACTORS];
    }

    /// True if all that visible points name is there.
    pub fn is_complete(&self, mutation: Mutation) -> bool {
        let have = self.content(self.existing);
        (0..POINTS).filter(|point| self.is_visible(*point, mutation)).all(|point| {
            let needs = self.points[point].needs;
            [A, B].iter().all(|chunk| needs & chunk == 0 || holds(*chunk, have, Mutation::None))
        })
    }
}
