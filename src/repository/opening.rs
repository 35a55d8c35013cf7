//! What is read of a repository before it is open: configs, key slots and the instance.
//!
//! Invariant: what is asked for ahead is what would be asked for anyway, or what nobody has to keep
//! secret; whether it counts is decided as if it had been read when it was wanted.

use super::at_once::{at_once, both, is_far};
use super::objects::refused;
use super::secrets::{self, Get, Passphrase};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectEntry, ObjectName, Storage};
use diskvault_format::config::Config;
use diskvault_format::crypto::Keys;
use diskvault_format::id::{InstanceId, KeySlotId};
use diskvault_format::key_slot::SlotKeys;
use diskvault_format::limits::{CONFIG_BYTES_MAX, KEY_SLOT_BYTES_MAX};
use diskvault_format::{instance, names};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

/// Objects that are read ahead at most: as many configs and key slots as there should ever be.
const AHEAD_MAX: usize = 64;

/// A config that can be read.
pub(crate) struct ConfigCandidate {
    /// The last part of its name.
    pub(crate) leaf: String,
    /// What it says.
    pub(crate) config: Config,
    /// The object.
    pub(crate) bytes: Vec<u8>,
}

/// What is there to be opened.
pub(super) struct Found {
    /// Configs, newest first.
    pub candidates: Vec<ConfigCandidate>,
    /// What is wrong with others.
    pub warnings: Vec<String>,
    /// The instance, if it was asked for already.
    instance: RefCell<Option<Result<InstanceId>>>,
    /// Objects that were read ahead; each is given once.
    ahead: RefCell<Ahead>,
}

type Ahead = HashMap<ObjectName, Result<Vec<u8>>>;

impl Found {
    /// Reads what is there: over a line in two rounds, all that there is of it; else in order, and what
    /// comes after the configs when it is wanted.
    ///
    /// # Errors
    /// As [`read_configs`].
    pub fn read(storage: &dyn Storage) -> Result<Found> {
        if !is_far(storage) {
            let (candidates, warnings) = read_configs(storage)?;
            let (instance, ahead) = (RefCell::default(), RefCell::default());
            return Ok(Found { candidates, warnings, instance, ahead });
        }
        let list = |folder| storage.list(folder);
        let listings = || both(storage, || list(Folder::Config), || list(Folder::Keys));
        let ((configs, slots), instance) = both(storage, listings, || read_instance(storage));
        let configs = configs?;
        // Slots that no config lists are few; if they cannot be listed, the config names them.
        let slots = slots.unwrap_or_default();
        let wanted: Vec<&ObjectName> =
            configs.iter().rev().chain(&slots).map(|entry| &entry.name).take(AHEAD_MAX).collect();
        let read = at_once(storage, &wanted, &|| Ok(()), |name| {
            let bytes_max = match name.folder() {
                Folder::Config => CONFIG_BYTES_MAX,
                _ => KEY_SLOT_BYTES_MAX,
            };
            storage.get(name, bytes_max)
        })?;
        let ahead: Ahead = wanted.into_iter().cloned().zip(read).collect();
        let ahead = RefCell::new(ahead);
        let get = |name: &ObjectName, bytes_max| give(&ahead, storage, name, bytes_max);
        let (candidates, warnings) = configs_of(storage, configs, &get)?;
        Ok(Found { candidates, warnings, instance: RefCell::new(Some(instance)), ahead })
    }

    /// Gives an object that was read ahead, or reads it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn get(&self, storage: &dyn Storage, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        give(&self.ahead, storage, name, bytes_max)
    }

    /// The instance.
    ///
    /// # Errors
    /// As [`read_instance`].
    pub fn instance(&self, storage: &dyn Storage) -> Result<InstanceId> {
        self.instance.take().unwrap_or_else(|| read_instance(storage))
    }
}

fn give(
    ahead: &RefCell<Ahead>,
    storage: &dyn Storage,
    name: &ObjectName,
    bytes_max: u64,
) -> Result<Vec<u8>> {
    ahead.borrow_mut().remove(name).unwrap_or_else(|| storage.get(name, bytes_max))
}

/// Reads the instance object.
///
/// # Errors
/// `NotFound` or `Damage`.
pub(super) fn read_instance(storage: &dyn Storage) -> Result<InstanceId> {
    let name = ObjectName::new(Folder::Instance, names::INSTANCE)?;
    let bytes = storage.get(&name, instance::INSTANCE_BYTES)?;
    instance::decode(&bytes).map_err(|cause| refused(&name, cause))
}

/// The error for a place without a config.
pub(super) fn no_config(storage: &dyn Storage) -> Error {
    let text = format!("cannot open repository {}: it has no config", storage.location());
    Error::new(ErrorKind::NoRepository, text).hint("`diskvault init` makes a new repository")
}

/// Reads all configs, newest first; what cannot be read is a warning unless nothing can.
///
/// # Errors
/// `NoRepository` without any; `Newer`; the last that could not be read if none could.
pub(crate) fn read_configs(storage: &dyn Storage) -> Result<(Vec<ConfigCandidate>, Vec<String>)> {
    let listed = storage.list(Folder::Config)?;
    configs_of(storage, listed, &|name, bytes_max| storage.get(name, bytes_max))
}

fn configs_of(
    storage: &dyn Storage,
    listed: Vec<ObjectEntry>,
    get: Get<'_>,
) -> Result<(Vec<ConfigCandidate>, Vec<String>)> {
    let mut found = Vec::new();
    let mut warnings = Vec::new();
    let mut last_error = None;
    for entry in listed.into_iter().rev() {
        let leaf = entry.name.leaf().to_string();
        let Some(generation) = names::parse_config(&leaf) else { continue };
        let read = get(&entry.name, CONFIG_BYTES_MAX).and_then(|bytes| {
            let config = Config::decode(&bytes).map_err(|cause| refused(&entry.name, cause))?;
            if config.generation != generation {
                let text = format!(
                    "cannot open {}: its generation is not the one in its name (rule C-8)",
                    entry.name
                );
                return Err(Error::new(ErrorKind::Damage, text));
            }
            Ok(ConfigCandidate { leaf, config, bytes })
        });
        match read {
            Ok(candidate) => found.push(candidate),
            // A newer format must not be passed over: an older config may lack what it says.
            Err(error) if error.kind() == ErrorKind::Newer => return Err(error),
            Err(error) => {
                warnings.push(format!("{}; an older one is used", error.full_text()));
                last_error = Some(error);
            }
        }
    }
    if found.is_empty() {
        return Err(last_error.unwrap_or_else(|| no_config(storage)));
    }
    Ok((found, warnings))
}

/// By what a repository is opened.
pub(super) enum Opening<'a> {
    /// A passphrase or recovery key.
    Secret(&'a Passphrase),
    /// The keys of another copy, and the slot that they came from.
    Keys(&'a SlotKeys, KeySlotId),
}

/// The config that counts, and the keys that open it.
pub(super) struct Opened {
    pub opens: SlotKeys,
    pub opened_by: KeySlotId,
    pub keys: Keys,
    pub config: Config,
    pub config_leaf: String,
    pub warnings: Vec<String>,
}

/// Finds the newest config that lists a slot which the secret opens and that authenticates.
///
/// # Errors
/// `WrongKey`; what is wrong with the newest if no older one opens; what the storage says.
pub(super) fn open_config(
    storage: &dyn Storage,
    found: &mut Found,
    opening: &Opening<'_>,
) -> Result<Opened> {
    let mut warnings = std::mem::take(&mut found.warnings);
    let candidates = std::mem::take(&mut found.candidates);
    let mut last_error = None;
    let mut closed: Vec<ConfigCandidate> = Vec::new();
    let mut tried = BTreeSet::new();
    let mut known: Option<(SlotKeys, KeySlotId)> = None;
    for candidate in candidates {
        let listed = |known: &&(SlotKeys, KeySlotId)| candidate.config.key_slots.contains(&known.1);
        let opened = match (opening, known.as_ref().filter(listed)) {
            (Opening::Keys(opens, opened_by), _) => Ok(((*opens).clone(), *opened_by)),
            (Opening::Secret(_), Some(known)) => Ok(known.clone()),
            (Opening::Secret(secret), None) => {
                let get = |name: &ObjectName, most| found.get(storage, name, most);
                // A slot that was tried is not tried again: each costs a derivation.
                let slots = secrets::read_slots_by(&get, &candidate.config).map(|mut slots| {
                    slots.retain(|slot| tried.insert(slot.id));
                    slots
                });
                let opened = slots.and_then(|slots| secrets::open_any(&slots, secret));
                opened.map_err(|error| name_config(error, &candidate.leaf))
            }
        };
        let (opens, opened_by) = match opened {
            // The secret may have been removed, or somebody without keys has put this config; of older
            // ones the slots may be gone.
            Err(error) if error.kind() == ErrorKind::WrongKey || error.kind().is_finding() => {
                last_error.get_or_insert(error);
                closed.push(candidate);
                continue;
            }
            opened => opened?,
        };
        known = Some((opens.clone(), opened_by));
        let keys = opens.keys(candidate.config.repository);
        let verify = |config: &ConfigCandidate| {
            let verified = config.config.verify(&keys, &config.leaf, &config.bytes);
            verified.map_err(|cause| refused(format!("config/{}", config.leaf), cause))
        };
        for newer in &closed {
            match verify(newer) {
                // It counts, and does not list the slot any more.
                Ok(()) if keys.write_only_writer().is_none() => {
                    return Err(last_error.unwrap_or_else(|| no_config(storage)));
                }
                Ok(()) => warnings.push(format!("config/{} does not list this key", newer.leaf)),
                Err(error) => warnings.push(error.full_text()),
            }
        }
        if let Err(error) = verify(&candidate) {
            warnings.push(format!("{}; an older one is used", error.full_text()));
            last_error = Some(error);
            continue;
        }
        let ConfigCandidate { leaf: config_leaf, config, .. } = candidate;
        return Ok(Opened { opens, opened_by, keys, config, config_leaf, warnings });
    }
    Err(last_error.unwrap_or_else(|| no_config(storage)))
}

/// Says which config named the slots: it may itself be what is damaged.
fn name_config(error: Error, leaf: &str) -> Error {
    match error.kind() {
        ErrorKind::Damage => Error::new(
            ErrorKind::Damage,
            format!("cannot use config/{leaf}: {}", error.full_text()),
        ),
        _ => error,
    }
}
