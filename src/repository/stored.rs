//! How a chunk is stored: by its bytes, or as pieces of others, in packs that count.
//!
//! Invariant: a splice counts only if the chunk of each of its pieces is stored by its bytes in a
//! pack that counts as well.

use super::entries::{Place, places_of};
use super::locate::Locator;
use crate::error::Result;
use diskvault_format::id::ChunkId;
use diskvault_format::splice::Splice;

/// How a chunk is stored in packs that count.
pub enum Stored {
    /// By its bytes.
    Whole(Place),
    /// As a splice, and where the chunk of each of its pieces is by its bytes.
    Spliced {
        /// Where the splice is.
        place: Place,
        /// What it says.
        splice: Splice,
        /// Where each piece's chunk is.
        pieces: Vec<Place>,
    },
}

/// How a chunk is stored in packs for which `counts` holds; nothing if it is not. By its bytes if
/// there is a choice.
///
/// # Errors
/// What the index or the storage say. `Damage` if the only way to it may be a splice that cannot be
/// read: then nobody knows which pieces it needs.
pub fn find_stored(
    locator: &Locator,
    id: ChunkId,
    counts: &dyn Fn(&Place) -> bool,
) -> Result<Option<Stored>> {
    let places = places_of(locator.index(), &id.0)?;
    if let Some(place) = places.iter().find(|place| !place.is_splice && counts(place)) {
        return Ok(Some(Stored::Whole(*place)));
    }
    let mut unreadable = None;
    for place in places.iter().filter(|place| place.is_splice && counts(place)) {
        let splice = match locator.splices().read(id, place) {
            Ok(splice) => splice,
            Err(error) if error.kind().is_finding() => {
                unreadable = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut pieces = Vec::new();
        for piece in splice.pieces() {
            pieces.extend(find_whole(locator, piece.chunk, counts)?);
        }
        if pieces.len() == splice.pieces().len() {
            return Ok(Some(Stored::Spliced { place: *place, splice, pieces }));
        }
    }
    match unreadable {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// As [`find_stored`] in packs for which `prefers` holds, or else in any.
///
/// # Errors
/// As [`find_stored`].
pub fn find_stored_rather(
    locator: &Locator,
    id: ChunkId,
    prefers: &dyn Fn(&Place) -> bool,
) -> Result<Option<Stored>> {
    match find_stored(locator, id, prefers) {
        Ok(None) => find_stored(locator, id, &|_| true),
        Err(error) if error.kind().is_finding() => find_stored(locator, id, &|_| true),
        found => found,
    }
}

/// Where a chunk is by its bytes, or a page, in packs for which `counts` holds.
///
/// # Errors
/// What the index says.
pub fn find_whole(
    locator: &Locator,
    id: ChunkId,
    counts: &dyn Fn(&Place) -> bool,
) -> Result<Option<Place>> {
    let places = places_of(locator.index(), &id.0)?;
    Ok(places.into_iter().find(|place| !place.is_splice && counts(place)))
}
