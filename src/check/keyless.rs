//! What a host without a key can verify: that every object whose name is the BLAKE3 of its bytes
//! still has these bytes (rules N-3 and K-6), and that config and instance can be read.
//!
//! Invariants: no key is asked for; one damaged object never hides another; what is deleted
//! meanwhile is no damage. Memory: a piece of a pack for each thread.

use super::data::in_order;
use super::{CheckReport, DataSubset};
use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::objects::refused;
use crate::repository::parity::verify_parity;
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::config::Config;
use diskvault_format::id::PackId;
use diskvault_format::instance;
use diskvault_format::limits::{CONFIG_BYTES_MAX, KEY_SLOT_BYTES_MAX, SEALED_BYTES_MAX};
use diskvault_format::names::INSTANCE;
use rayon::ThreadPool;

/// Bytes read and hashed at once: they are still in the cache of a core.
const PIECE_BYTES: usize = 1 << 20;

/// Verifies the names of all objects, and the bytes of the packs in the subset.
///
/// # Errors
/// `NoRepository` if there is no config, `Newer` for one of a newer format; fails if the storage
/// cannot be listed, or on `Cancelled`. Damage is in the report.
pub fn check_names(
    storage: &dyn Storage,
    environment: &dyn Environment,
    subset: &DataSubset,
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    check_configs(storage, &mut report)?;
    for text in storage.foreign()? {
        report.remark(format!("{text} does not belong to the repository"));
    }
    let folders = [
        (Folder::Keys, KEY_SLOT_BYTES_MAX),
        (Folder::Points, SEALED_BYTES_MAX),
        (Folder::Trash, SEALED_BYTES_MAX),
        (Folder::Lost, SEALED_BYTES_MAX),
    ];
    for (folder, bytes_max) in folders {
        for entry in storage.list(folder)? {
            let leaf = entry.name.leaf();
            let Some(id) = diskvault_format::id::from_hex::<32>(leaf) else { continue };
            report.points += u64::from(folder == Folder::Points);
            let read = storage.get(&entry.name, bytes_max);
            let verified = read.and_then(|bytes| compare(&entry.name, &id, blake3::hash(&bytes)));
            note(&mut report, verified);
        }
    }
    let random = u64::from_le_bytes(random_array(environment)?);
    let mut chosen = Vec::new();
    let mut total = 0;
    for entry in storage.list(Folder::Packs)? {
        let Some(id) = PackId::from_hex(entry.name.leaf()) else { continue };
        report.packs += 1;
        if subset.contains(id, random) {
            total += entry.bytes;
            chosen.push((entry.name, id));
        }
    }
    monitor.start("reading packs", Some(total));
    let results = in_order(pool, &chosen, &|(name, id): &(ObjectName, PackId)| {
        Some((*id, read_pack(storage, name, *id, monitor)))
    });
    monitor.finish();
    for (id, result) in results {
        match result {
            Ok(bytes) => {
                note(&mut report, verify_parity(storage, id).map(|_| ()));
                report.packs_read += 1;
                report.bytes_read += bytes;
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) if error.kind() == ErrorKind::NotFound => report.packs_gone += 1,
            Err(error) => {
                report.packs_read += 1;
                report.damaged_packs.push(id);
                report.damage(error.full_text());
            }
        }
    }
    Ok(report)
}

/// The configs and the instance as far as they can be read without a key.
fn check_configs(storage: &dyn Storage, report: &mut CheckReport) -> Result<()> {
    let (_, warnings) = crate::repository::read_configs(storage)?;
    for warning in warnings {
        report.damage(warning);
    }
    for entry in storage.list(Folder::Config)? {
        let read = storage.get(&entry.name, CONFIG_BYTES_MAX).and_then(|bytes| {
            Config::decode(&bytes).map(|_| ()).map_err(|cause| refused(&entry.name, cause))
        });
        note(report, read);
    }
    let name = ObjectName::new(Folder::Instance, INSTANCE)?;
    let read = storage.get(&name, instance::INSTANCE_BYTES).and_then(|bytes| {
        instance::decode(&bytes).map(|_| ()).map_err(|cause| refused(&name, cause))
    });
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => report.damage(error.full_text()),
        read => note(report, read),
    }
    Ok(())
}

/// A failure is damage, unless the object was deleted since it was listed.
fn note(report: &mut CheckReport, verified: Result<()>) {
    match verified {
        Err(error) if error.kind() != ErrorKind::NotFound => report.damage(error.full_text()),
        _ => {}
    }
}

fn compare(name: &ObjectName, id: &[u8; 32], found: blake3::Hash) -> Result<()> {
    if found.as_bytes() == id {
        return Ok(());
    }
    let text = format!("{name} is damaged: its bytes do not hash to its name (rule N-3)");
    Err(Error::new(ErrorKind::Damage, text))
}

/// Hashes a pack; its size.
fn read_pack(
    storage: &dyn Storage,
    name: &ObjectName,
    id: PackId,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let gone = || Error::new(ErrorKind::NotFound, format!("cannot find {name}"));
    let bytes = storage.size(name)?.ok_or_else(gone)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut position = 0;
    while position < bytes {
        monitor.check_cancelled()?;
        let piece = (bytes - position).min(buffer.len() as u64) as usize;
        storage.get_range(name, position, &mut buffer[..piece])?;
        hasher.update(&buffer[..piece]);
        position += piece as u64;
        monitor.advance(piece as u64);
    }
    compare(name, &id.0, hasher.finalize())?;
    Ok(bytes)
}
