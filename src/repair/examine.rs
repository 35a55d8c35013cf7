//! Reading packs to find out which are damaged.
//!
//! Invariant: a pack counts as damaged only if two readings say so: a medium that failed once may
//! be well again.

use super::DamagedPack;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::known_bytes;
use crate::repository::locate::Locator;
use crate::repository::lock;
use crate::repository::pack_reader::pack_name;
use crate::repository::salvage::{Remains, load};
use crate::repository::verify::verify_pack;
use diskvault_format::id::PackId;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::collections::HashSet;
use std::sync::Mutex;

/// What was found.
pub(super) struct Examined {
    /// Packs that were read.
    pub read: u64,
    /// Those that are whole.
    pub whole: HashSet<PackId>,
    /// Those that are not.
    pub damaged: Vec<DamagedPack>,
    /// Those of which nothing at all can be read just now.
    pub unreadable: Vec<DamagedPack>,
}

/// Reads these packs, or all if there are none.
///
/// # Errors
/// `NotFound` for a wanted pack that is not there; `Cancelled`; what the storage says.
pub(super) fn examine(
    repository: &Repository,
    locator: &Locator,
    wanted: &[PackId],
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<Examined> {
    let listed = locator.listed();
    if let Some(missing) = wanted.iter().find(|id| !listed.contains(id)) {
        let text = format!("cannot repair pack {missing}: there is no such pack");
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    let chosen: Vec<PackId> =
        if wanted.is_empty() { listed.iter().copied().collect() } else { wanted.to_vec() };
    let mut total = 0;
    for id in &chosen {
        total += known_bytes(locator.index(), *id)?.unwrap_or(0);
    }
    monitor.start("reading packs", Some(total));
    let suspects: Mutex<Vec<(PackId, Error)>> = Mutex::default();
    let whole: Mutex<HashSet<PackId>> = Mutex::default();
    pool.install(|| {
        chosen.par_iter().with_max_len(1).try_for_each(|id| {
            monitor.check_cancelled()?;
            match verify_pack(repository, *id, &|_, _, _, _| Ok(())) {
                Ok(bytes) => {
                    monitor.advance(bytes);
                    lock(&whole).insert(*id);
                }
                // A prune has deleted it.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Whole, and by nobody whose signature counts: evidence, not damage.
                Err(error) if error.kind() == ErrorKind::Unlisted => {
                    monitor.warn(&format!("{}; it is left alone", error.full_text()));
                }
                Err(error) => lock(&suspects).push((*id, error)),
            }
            Ok::<(), Error>(())
        })
    })?;
    monitor.finish();
    let mut suspects = std::mem::take(&mut *lock(&suspects));
    suspects.sort_by_key(|(id, _)| *id);
    let mut examined = Examined {
        read: chosen.len() as u64,
        whole: std::mem::take(&mut *lock(&whole)),
        damaged: Vec::new(),
        unreadable: Vec::new(),
    };
    for (id, error) in suspects {
        match look_again(repository, id, &error)? {
            Looked::Damaged(damaged) => examined.damaged.push(damaged),
            Looked::Unreadable(damaged) => {
                monitor.warn(&format!("{}; pack {id} stays where it is", damaged.text));
                examined.unreadable.push(damaged);
            }
            Looked::Whole => {
                monitor
                    .warn(&format!("{}; the second time pack {id} was whole", error.full_text()));
                examined.whole.insert(id);
            }
            Looked::Gone => {}
        }
    }
    Ok(examined)
}

/// What a pack is when it is read for the second time.
enum Looked {
    Damaged(DamagedPack),
    /// Nothing of it, not one sector; or it is longer than any pack.
    Unreadable(DamagedPack),
    Whole,
    /// A prune has deleted it.
    Gone,
}

fn look_again(repository: &Repository, id: PackId, error: &Error) -> Result<Looked> {
    let loaded = match load(repository.storage().as_ref(), &pack_name(id)?) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Looked::Gone),
        Err(error) if error.kind() == ErrorKind::Damage => {
            let text = error.full_text();
            let (readable_segments, segments) = (0, 0);
            let damaged = DamagedPack { id, text, readable_segments, segments, has_footer: false };
            return Ok(Looked::Unreadable(damaged));
        }
        other => other?,
    };
    let has_its_name =
        loaded.unreadable.is_empty() && *blake3::hash(&loaded.bytes).as_bytes() == id.0;
    // What the medium said of it, or another process that wrote to it, is over.
    if has_its_name && verify_pack(repository, id, &|_, _, _, _| Ok(())).is_ok() {
        return Ok(Looked::Whole);
    }
    let remains = Remains::of_bytes(repository.keys(), loaded.bytes);
    let extent = remains.read(&mut |_| Ok(()))?;
    Ok(Looked::Damaged(DamagedPack {
        id,
        text: error.full_text(),
        readable_segments: extent.readable,
        segments: extent.segments,
        has_footer: remains.footer().is_some(),
    }))
}
