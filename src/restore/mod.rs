//! Bringing a point back: `restore` and `dump`.
//!
//! `reads` plans which segments are read, and for what; `fetch` gets chunks in any order; `disk` writes them to a target out of order and decides what
//! zeros become; `sequential` puts them into order for streams, pipes and digests. `image` makes images of other
//! formats by either way, `overlay` those over a base.
//!
//! Invariant: nothing unverified is written, and a target that is new appears under its name only
//! when it is complete.

pub(crate) mod allocated;
mod disk;
pub mod fetch;
mod image;
pub mod in_place;
pub mod joining;
pub mod keep;
mod overlay;
mod part;
mod reads;
pub mod remembered;
pub mod sequential;

pub use disk::{RestoreReport, SparseMode, restore_disk};
pub use image::{restore_in_order, restore_packed};
pub use overlay::{Base, restore_overlay};
pub use part::{Part, find_part, only_part, part_of, parts};
