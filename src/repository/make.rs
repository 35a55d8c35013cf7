//! Making a repository: `init`.
//!
//! Order of writing: key slots, instance, config. Without a config there is no repository, so a
//! crash on the way leaves a folder that a later `init` refuses to fill and nobody mistakes. Only a
//! failure of the last write, of the config, can leave a repository all the same.

use super::secrets::{NewSlot, Passphrase, store_slot};
use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::config::Config;
use diskvault_format::crypto::Secret;
use diskvault_format::id::{InstanceId, KeySlotId, RepositoryId};
use diskvault_format::key_slot::{KdfCost, SlotKeys, SlotKind, SlotLabel};
use diskvault_format::limits::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, PACK_BYTES_DEFAULT,
    PARITY_PER_MILLE_MAX, SEGMENT_BYTES_DEFAULT,
};
use diskvault_format::{instance, names};

/// How to make a repository.
pub struct InitOptions<'a> {
    /// The first passphrase.
    pub passphrase: &'a Passphrase,
    /// A recovery key to put into a slot of its own.
    pub recovery: Option<&'a Passphrase>,
    /// Chunk size of the fixed grid, a power of two from 4 KiB to 4 MiB; `None` for the default.
    pub chunk_bytes: Option<u32>,
    /// Pack size; `None` for the default.
    pub pack_bytes: Option<u32>,
    /// Parity that each pack gets, in thousandths of its bytes, 0 to 500; 0 for none.
    pub parity_per_mille: u32,
    /// Cost of the passphrase slot.
    pub cost: KdfCost,
    /// This host's name, for the slots' labels.
    pub host: &'a str,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitReport {
    /// The new repository's id.
    pub repository: RepositoryId,
    /// Chunk size of the fixed grid.
    pub chunk_bytes: u32,
    /// Parity of each pack, in thousandths of its bytes.
    pub parity_per_mille: u32,
    /// The key slots, passphrase first.
    pub key_slots: Vec<KeySlotId>,
}

/// Checks options that need no storage, so that a refusal leaves nothing behind.
///
/// # Errors
/// `Usage`.
fn validate(options: &InitOptions<'_>) -> Result<u32> {
    let chunk = options.chunk_bytes.unwrap_or(CHUNK_BYTES_DEFAULT);
    if !chunk.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) {
        let text = format!(
            "cannot cut into chunks of {chunk} bytes: expected a power of two from 4 KiB to 4 MiB"
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if options.passphrase.is_empty() {
        let text = "cannot make a repository: the password is empty";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if options.parity_per_mille > PARITY_PER_MILLE_MAX {
        let text = format!(
            "cannot add parity of {} thousandths: expected at most {PARITY_PER_MILLE_MAX}",
            options.parity_per_mille
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok(chunk)
}

/// Makes a repository on an empty storage and opens each key slot once before it reports success.
///
/// # Errors
/// `AlreadyExists` if there is a config, `Usage` for impossible options, or what the storage says.
pub fn initialise(
    storage: &dyn Storage,
    environment: &dyn Environment,
    options: &InitOptions<'_>,
) -> Result<InitReport> {
    let chunk_bytes = validate(options)?;
    if !storage.list(Folder::Config)?.is_empty() {
        let text = format!("cannot make repository {}: there is one", storage.location());
        return Err(Error::new(ErrorKind::AlreadyExists, text));
    }
    let master = Secret::new(random_array(environment)?);
    let repository = RepositoryId(random_array(environment)?);
    let opens = SlotKeys::Full(master);
    let keys = opens.keys(repository);
    let label = |name: &str| SlotLabel {
        name: name.to_string(),
        created_unix_ns: environment.now_unix_ns(),
        host: options.host.to_string(),
    };
    let slot = |kind, secret, cost, name: &str| {
        let label = label(name);
        let new = NewSlot { kind, secret, cost, label: &label, opens: &opens };
        store_slot(storage, environment, &keys, &new)
    };
    let passphrase = options.passphrase;
    let mut key_slots =
        vec![slot(SlotKind::Passphrase, passphrase, options.cost, "first password")?];
    if let Some(recovery) = options.recovery {
        key_slots.push(slot(SlotKind::Recovery, recovery, KdfCost::RECOVERY, "recovery key")?);
    }
    let copy = InstanceId(random_array(environment)?);
    let name = ObjectName::new(Folder::Instance, names::INSTANCE)?;
    storage.put_new(&name, &instance::encode(copy))?;
    let mut listed = key_slots.clone();
    listed.sort_unstable();
    let mut config = Config {
        generation: 1,
        repository,
        features_ignorable: 0,
        features_write: 0,
        features_read: 0,
        chunk_bytes,
        segment_bytes: SEGMENT_BYTES_DEFAULT.max(chunk_bytes),
        pack_bytes: options.pack_bytes.unwrap_or(PACK_BYTES_DEFAULT),
        key_slots: listed,
    };
    let parity_per_mille = options.parity_per_mille;
    config
        .set_parity_per_mille(parity_per_mille)
        .map_err(|cause| super::objects::cannot_make("a config", cause))?;
    let leaf = names::config(1, &random_array(environment)?);
    let bytes = config.encode(&keys, &leaf);
    storage.put_new(&ObjectName::new(Folder::Config, &leaf)?, &bytes)?;
    Ok(InitReport { repository, chunk_bytes, parity_per_mille, key_slots })
}
