//! Parity of packs (spec/39-parity.md): a little more beside a pack, from which it is made whole
//! again where bits have rotted or sectors cannot be read.
//!
//! Everything here works on stored bytes and needs no key. Invariants: no healed bytes leave this
//! file before their BLAKE3 was compared with the pack's name, whatever the parity object says; a
//! parity object makes nobody take more memory than it and the pack have bytes.

use super::Repository;
use super::objects::{cannot_make, refused};
use super::pack_reader::pack_name;
use super::sectors::read_sectors;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::error::unauthentic;
use diskvault_format::id::PackId;
use diskvault_format::limits::PARITY_BYTES_MAX;
use diskvault_format::parity::{self, ParityHead, Shape, check_of};
use reed_solomon_simd::engine::DefaultEngine;
use reed_solomon_simd::rate::{HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder};
use std::collections::HashSet;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// Shards are coded in stripes of this many bytes, so that it takes a few MiB of memory and not
/// another pack: the code works on each place of a shard by itself.
const STRIPE_BYTES: usize = 512;

/// Name of a pack's parity object.
///
/// # Errors
/// None in practice: an id always makes a valid name.
pub fn parity_name(id: PackId) -> Result<ObjectName> {
    ObjectName::new(Folder::Parity, &id.to_hex())
}

/// Makes the parity object of a pack. `per_mille` is how much, in thousandths of the pack's bytes,
/// 1 to 500; there are always two shards at least, so that any run of damage no longer than a
/// shard heals. Takes some 8 MiB beside the result.
///
/// # Errors
/// `Failed` for an amount or a pack beyond the limits.
pub fn encode(id: PackId, pack: &[u8], per_mille: u32) -> Result<Vec<u8>> {
    let shape = Shape::choose(pack.len() as u64, per_mille)
        .map_err(|cause| cannot_make(&format!("parity/{id}"), cause))?;
    encode_as(id, pack, &shape)
}

fn encode_as(id: PackId, pack: &[u8], shape: &Shape) -> Result<Vec<u8>> {
    let recovery = code_recovery(id, pack, shape)?;
    let head = ParityHead {
        pack: id,
        shape: *shape,
        data_checks: (0..shape.data())
            .map(|number| check_of(data_shard(pack, shape, number)))
            .collect(),
        recovery_checks: recovery.chunks(shape.shard_bytes as usize).map(check_of).collect(),
    };
    Ok(parity::encode(&head, &recovery))
}

/// The stripes of a shard.
fn stripes(shape: &Shape) -> impl Iterator<Item = Range<usize>> {
    let shard_bytes = shape.shard_bytes as usize;
    let stripe = STRIPE_BYTES.min(shard_bytes);
    (0..shard_bytes).step_by(stripe).map(move |start| start..start + stripe)
}

/// The bytes of a data shard; the last one is not padded.
fn data_shard<'a>(pack: &'a [u8], shape: &Shape, number: u32) -> &'a [u8] {
    let Range { start, end } = shape.data_range(number);
    // Both are within a slice that exists.
    pack.get(start as usize..end as usize).unwrap_or_default()
}

/// The last data shard, padded with zeros to the length of a shard.
fn padded_last(pack: &[u8], shape: &Shape) -> Vec<u8> {
    let mut padded = data_shard(pack, shape, shape.data() - 1).to_vec();
    padded.resize(shape.shard_bytes as usize, 0);
    padded
}

fn coding_failed(id: PackId, cause: reed_solomon_simd::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("cannot compute the parity of pack {id}")).because(cause)
}

fn code_recovery(id: PackId, pack: &[u8], shape: &Shape) -> Result<Vec<u8>> {
    let failed = |cause| coding_failed(id, cause);
    let (data, recovery) = (shape.data(), shape.recovery as usize);
    let shard_bytes = shape.shard_bytes as usize;
    let stripe = STRIPE_BYTES.min(shard_bytes);
    let last = padded_last(pack, shape);
    let mut coded = vec![0; recovery * shard_bytes];
    let engine = DefaultEngine::new();
    let mut encoder =
        HighRateEncoder::new(data as usize, recovery, stripe, engine, None).map_err(failed)?;
    for range in stripes(shape) {
        for number in 0..data - 1 {
            let shard = data_shard(pack, shape, number);
            encoder.add_original_shard(&shard[range.clone()]).map_err(failed)?;
        }
        encoder.add_original_shard(&last[range.clone()]).map_err(failed)?;
        let result = encoder.encode().map_err(failed)?;
        for (shard, part) in coded.chunks_mut(shard_bytes).zip(result.recovery_iter()) {
            shard[range.clone()].copy_from_slice(part);
        }
    }
    Ok(coded)
}

/// Makes a damaged pack whole: `damaged` are its bytes as they are now, which may also be cut off
/// or followed by others; what lies in `unreadable` counts as damaged whatever stands there.
/// Ranges may overlap and may lie beyond the end. A pack that is whole comes back as it is. Takes
/// at most some 20 MiB beside what it is given.
///
/// # Errors
/// `Damage` or `Newer` for a parity object that is of no use; `Damage`, with the numbers, if more
/// shards are damaged than there are recovery shards, and if the result is not the pack.
pub fn heal(
    id: PackId,
    damaged: Vec<u8>,
    unreadable: &[Range<u64>],
    parity_object: &[u8],
) -> Result<Vec<u8>> {
    let parity = parity::decode(parity_object, id)
        .map_err(|cause| refused(format!("parity/{id}"), cause))?;
    let missing = missing_shards(&damaged, unreadable, &parity.head);
    let shape = parity.head.shape;
    let usable: Vec<(u32, &[u8])> = (0..shape.recovery)
        .filter_map(|number| Some((number, parity.recovery_shard(number)?)))
        .take(missing.len())
        .collect();
    if missing.len() > usable.len() {
        return Err(beyond_healing(id, missing.len(), usable.len(), &shape));
    }
    // Only now, as so much is not far from what is there.
    let mut pack = damaged;
    pack.resize(shape.pack_bytes as usize, 0);
    if !missing.is_empty() {
        restore_shards(id, &mut pack, &shape, &missing, &usable)?;
    }
    if blake3::hash(&pack) != id.0 {
        let cause = unauthentic("N-3", "the healed bytes do not hash to the name");
        return Err(refused(format!("pack {id}"), cause));
    }
    Ok(pack)
}

/// The data shards that cannot be used, ascending.
fn missing_shards(damaged: &[u8], unreadable: &[Range<u64>], head: &ParityHead) -> Vec<u32> {
    let shape = &head.shape;
    let is_readable = |shard: &Range<u64>| {
        !unreadable.iter().any(|gap| gap.start < shard.end && shard.start < gap.end)
    };
    let is_whole = |number: u32| {
        let range = shape.data_range(number);
        range.end <= damaged.len() as u64
            && is_readable(&range)
            && head.data_checks.get(number as usize)
                == Some(&check_of(data_shard(damaged, shape, number)))
    };
    (0..shape.data()).filter(|number| !is_whole(*number)).collect()
}

fn beyond_healing(id: PackId, missing: usize, usable: usize, shape: &Shape) -> Error {
    let (data, recovery) = (shape.data(), shape.recovery as usize);
    let mut text = format!(
        "cannot heal pack {id}: {missing} of its {data} shards are damaged, and its parity heals \
         {usable}"
    );
    if usable < recovery {
        text.push_str(&format!(" ({} of its own {recovery} are damaged too)", recovery - usable));
    }
    Error::new(ErrorKind::Damage, text)
}

/// Computes the missing data shards, in place, from the others and as many recovery shards.
fn restore_shards(
    id: PackId,
    pack: &mut [u8],
    shape: &Shape,
    missing: &[u32],
    usable: &[(u32, &[u8])],
) -> Result<()> {
    let failed = |cause| coding_failed(id, cause);
    let (data, recovery) = (shape.data(), shape.recovery as usize);
    let stripe = STRIPE_BYTES.min(shape.shard_bytes as usize);
    let last = padded_last(pack, shape);
    let missing_set: HashSet<u32> = missing.iter().copied().collect();
    let engine = DefaultEngine::new();
    let mut decoder =
        HighRateDecoder::new(data as usize, recovery, stripe, engine, None).map_err(failed)?;
    for range in stripes(shape) {
        for number in (0..data).filter(|number| !missing_set.contains(number)) {
            let is_last = number == data - 1;
            let shard = if is_last { &last } else { data_shard(pack, shape, number) };
            decoder.add_original_shard(number as usize, &shard[range.clone()]).map_err(failed)?;
        }
        for (number, shard) in usable {
            decoder.add_recovery_shard(*number as usize, &shard[range.clone()]).map_err(failed)?;
        }
        let result = decoder.decode().map_err(failed)?;
        for number in missing {
            let Some(part) = result.restored_original(*number as usize) else { continue };
            // Cut where the pack ends.
            let start = shape.data_range(*number).start as usize + range.start;
            let end = (start + part.len()).min(pack.len());
            if start < end {
                pack[start..end].copy_from_slice(&part[..end - start]);
            }
        }
    }
    Ok(())
}

/// Reads a pack and its parity from the storage and makes the pack whole; `None` if it has no
/// parity. Bytes that cannot be read count as damaged, in the pack and in the parity object.
/// Nothing is written.
///
/// # Errors
/// `NotFound` without the pack; as [`heal`]; what the storage says of more than single reads.
pub fn heal_stored(storage: &dyn Storage, id: PackId) -> Result<Option<Vec<u8>>> {
    heal_stored_at(storage, id, &pack_name(id)?)
}

/// As [`heal_stored`], for a pack that lies under another name than its own.
///
/// # Errors
/// As [`heal_stored`].
pub fn heal_stored_at(
    storage: &dyn Storage,
    id: PackId,
    place: &ObjectName,
) -> Result<Option<Vec<u8>>> {
    let name = parity_name(id)?;
    let Some(bytes) = storage.size(&name)? else { return Ok(None) };
    let object = read_sectors(storage, &name, bytes.min(PARITY_BYTES_MAX), u64::MAX)?.bytes;
    let parity = parity::decode(&object, id).map_err(|cause| refused(&name, cause))?;
    let shape = parity.head.shape;
    let Some(bytes) = storage.size(place)? else {
        let text = format!("cannot heal pack {id}: there is no {place}");
        return Err(Error::new(ErrorKind::NotFound, text));
    };
    // A failing disk takes seconds for each error: no more of them than can be of use.
    let read = read_sectors(storage, place, bytes.min(shape.pack_bytes), shape.recovery_bytes())?;
    heal(id, read.bytes, &read.unreadable, &object).map(Some)
}

/// Reads a pack's parity object in full: true if it is whole, false if there is none.
///
/// # Errors
/// `Damage` or `Newer` if it is not whole; what the storage says.
pub fn verify_parity(storage: &dyn Storage, id: PackId) -> Result<bool> {
    let name = parity_name(id)?;
    let object = match storage.get(&name, PARITY_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let parity = parity::decode(&object, id).map_err(|cause| refused(&name, cause))?;
    if parity.is_whole() {
        return Ok(true);
    }
    let text = format!("cannot rely on {name}: some of its bytes are damaged");
    Err(Error::new(ErrorKind::Damage, text))
}

/// Makes and puts the parity object of a pack that is durable; the bytes it takes. One that
/// exists already is left as it is.
///
/// # Errors
/// As [`encode`]; what the storage says.
pub fn store_parity(storage: &dyn Storage, id: PackId, pack: &[u8], per_mille: u32) -> Result<u64> {
    let object = encode(id, pack, per_mille)?;
    match storage.put_new(&parity_name(id)?, &object) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(object.len() as u64),
    }
}

/// Deletes the parity object of a pack that is gone, if it has one; the bytes that it took.
///
/// # Errors
/// What the storage says.
pub fn delete_parity(storage: &dyn Storage, id: PackId) -> Result<u64> {
    let name = parity_name(id)?;
    let Some(bytes) = storage.size(&name)? else { return Ok(0) };
    storage.delete(&name)?;
    Ok(bytes)
}

/// Deletes the parity of packs that do not exist, as a crash or a pack's loss leaves it, but not
/// of those that are `needed` all the same; the bytes that it took.
///
/// # Errors
/// What the storage says.
pub fn delete_orphaned_parity(
    repository: &Repository,
    needed: &dyn Fn(PackId) -> bool,
) -> Result<u64> {
    let storage = repository.storage();
    let parity = storage.list(Folder::Parity)?;
    if parity.is_empty() {
        return Ok(0);
    }
    // Only now: a pack is there before its parity, so one that is missing here is gone.
    let packs: HashSet<String> =
        storage.list(Folder::Packs)?.iter().map(|entry| entry.name.leaf().to_string()).collect();
    let mut bytes = 0;
    for entry in parity.iter().filter(|entry| !packs.contains(entry.name.leaf())) {
        // A name of another form is no parity object.
        let Some(id) = PackId::from_hex(entry.name.leaf()) else { continue };
        if !needed(id) {
            storage.delete(&entry.name)?;
            bytes += entry.bytes;
        }
    }
    Ok(bytes)
}
