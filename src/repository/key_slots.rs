//! Adding, listing and removing key slots: `key`.
//!
//! A change is a new slot, then a new config generation that lists it; a removal is a new config
//! first, then the slot's deletion. So at every moment the newest config lists only slots that
//! exist, and a crash leaves at most a slot that no config lists.

use super::Repository;
use super::objects::refused;
use super::secrets::{self, NewSlot, Passphrase, store_slot};
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::KeySlotId;
use diskvault_format::key_slot::{KdfCost, SlotKind, SlotLabel};
use diskvault_format::limits::KEY_SLOTS_MAX;
use diskvault_format::names;

/// A key slot for people.
#[derive(Clone, Debug)]
pub struct SlotDescription {
    /// Its id.
    pub id: KeySlotId,
    /// Kind of secret, if the slot can be read.
    pub kind: Option<SlotKind>,
    /// Its label, or why there is none.
    pub label: std::result::Result<SlotLabel, String>,
    /// True for the slot this run was opened with.
    pub is_current: bool,
}

impl Repository {
    /// Lists the slots that count.
    ///
    /// # Errors
    /// Fails if they cannot be read at all.
    pub fn key_slots(&self) -> Result<Vec<SlotDescription>> {
        let mut list = Vec::new();
        for stored in secrets::read_slots(self.storage.as_ref(), &self.config)? {
            let (kind, label) = match stored.slot {
                Ok(slot) => {
                    let label = slot.label(&self.keys);
                    (Some(slot.kind), label.map_err(|cause| cause.to_string()))
                }
                Err(error) => (None, Err(error.full_text())),
            };
            let is_current = stored.id == self.opened_by;
            list.push(SlotDescription { id: stored.id, kind, label, is_current });
        }
        Ok(list)
    }

    /// Adds a slot and returns its id.
    ///
    /// # Errors
    /// `Usage` for an empty secret or too many slots, or what the storage says.
    pub fn add_key(
        &mut self,
        kind: SlotKind,
        secret: &Passphrase,
        cost: KdfCost,
        name: &str,
        host: &str,
    ) -> Result<KeySlotId> {
        self.check_may_write()?;
        if self.config.key_slots.len() >= KEY_SLOTS_MAX {
            let text = format!("cannot add a key slot: there are {KEY_SLOTS_MAX} already");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let label = SlotLabel {
            name: name.to_string(),
            created_unix_ns: self.environment.now_unix_ns(),
            host: host.to_string(),
        };
        let storage = self.storage.clone();
        let environment = self.environment.clone();
        let new = NewSlot { kind, secret, cost, label: &label };
        let id = store_slot(
            storage.as_ref(),
            environment.as_ref(),
            &self.master,
            self.config.repository,
            &new,
        )?;
        let mut slots = self.config.key_slots.clone();
        slots.push(id);
        self.store_config(slots)?;
        Ok(id)
    }

    /// Removes the slot whose id starts with `prefix` and returns its id.
    ///
    /// # Errors
    /// `NotFound`, `Usage` if the prefix fits several or names the last slot.
    pub fn remove_key(&mut self, prefix: &str) -> Result<KeySlotId> {
        self.check_may_write()?;
        let fitting: Vec<KeySlotId> = self
            .config
            .key_slots
            .iter()
            .copied()
            .filter(|id| {
                !prefix.is_empty() && id.to_hex().starts_with(&prefix.to_ascii_lowercase())
            })
            .collect();
        let id = match fitting[..] {
            [] => {
                let text = format!("cannot find key slot {}", prefix.escape_debug());
                return Err(Error::new(ErrorKind::NotFound, text)
                    .hint("`diskvault key list` shows the slots"));
            }
            [id] => id,
            _ => {
                let text = format!("cannot choose a key slot: several ids start with {prefix}");
                return Err(Error::new(ErrorKind::Usage, text));
            }
        };
        if self.config.key_slots.len() == 1 {
            let text = "cannot remove the last key slot: nobody could open the repository";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let slots = self.config.key_slots.iter().copied().filter(|slot| *slot != id).collect();
        self.store_config(slots)?;
        self.storage.delete(&secrets::slot_name(id)?)?;
        Ok(id)
    }

    /// The slot this run was opened with.
    pub fn current_key(&self) -> KeySlotId {
        self.opened_by
    }

    /// The bytes of a slot, to be kept elsewhere; they are useless without the secret.
    ///
    /// # Errors
    /// What the storage says.
    pub fn export_key(&self, id: KeySlotId) -> Result<Vec<u8>> {
        let name = secrets::slot_name(id)?;
        let bytes = self.storage.get(&name, diskvault_format::limits::KEY_SLOT_BYTES_MAX)?;
        diskvault_format::key_slot::KeySlot::decode(id, &bytes)
            .map_err(|cause| refused(&name, cause))?;
        Ok(bytes)
    }

    fn store_config(&mut self, mut slots: Vec<KeySlotId>) -> Result<()> {
        slots.sort_unstable();
        let mut config = self.config.clone();
        config.generation += 1;
        config.key_slots = slots;
        let random = random_array(self.environment.as_ref())?;
        let leaf = names::config(config.generation, &random);
        let bytes = config.encode(&self.keys, &leaf);
        self.storage.put_new(&ObjectName::new(Folder::Config, &leaf)?, &bytes)?;
        self.config = config;
        self.config_leaf.clone_from(&leaf);
        self.remember(|memory| memory.see_config(leaf.clone()))
    }
}
