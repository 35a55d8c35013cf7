//! Adding, listing and removing key slots: `key`.
//!
//! A change is a new slot, then a new config generation that lists it; a removal is a new config
//! first, then the slot's deletion. So at every moment the newest config lists only slots that
//! exist, and a crash leaves at most a slot that no config lists. A writer that may not read has its
//! record before its slot is listed, and is retired before it is not.

use super::Repository;
use super::objects::refused;
use super::secrets::{self, NewSlot, Passphrase, store_slot};
use super::writers;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName};
use diskvault_format::asymmetric;
use diskvault_format::crypto::{Keys, Secret};
use diskvault_format::id::KeySlotId;
use diskvault_format::key_slot::{KdfCost, SlotKeys, SlotKind, SlotLabel};
use diskvault_format::limits::KEY_SLOTS_MAX;
use diskvault_format::names;
use diskvault_format::writers::{WriterRecord, Writers};
use std::sync::Arc;

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
    /// The writer it was made for, if it is a write-only key.
    pub writer: Option<WriterRecord>,
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
            let writer = self.writer_of(stored.id).cloned();
            list.push(SlotDescription { id: stored.id, kind, label, is_current, writer });
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
        self.check_room_for_a_slot()?;
        let opens = self.opens.clone();
        let id = self.store_new_slot(kind, secret, cost, &opens, name, host)?;
        self.list_slot(id)?;
        Ok(id)
    }

    /// Adds a slot of a writer that may not read, and may write to `series`: names, or starts of
    /// names with `*` behind; to all, if there are none. Programs that do not know of such writers
    /// open the repository no more.
    ///
    /// # Errors
    /// As [`Repository::add_key`]; `Usage` for a series that cannot be named so.
    pub fn add_writer(
        &mut self,
        secret: &Passphrase,
        cost: KdfCost,
        name: &str,
        host: &str,
        series: &[String],
    ) -> Result<KeySlotId> {
        self.check_room_for_a_slot()?;
        let signing = Secret::new(random_array(self.environment.as_ref())?);
        let mut record = WriterRecord {
            verifying_key: asymmetric::verifying_key(&signing),
            slot: KeySlotId([0; 32]),
            name: name.to_string(),
            series: series.to_vec(),
            time_unix_ns: self.environment.now_unix_ns(),
            retired: None,
        };
        let refuse = |cause| Error::new(ErrorKind::Usage, "cannot add a writer").because(cause);
        record.validate().map_err(refuse)?;
        let Some(secrets) = self.keys.for_writer(signing, series.to_vec()) else {
            let text = "cannot add a writer: this key may only write itself";
            return Err(Error::new(ErrorKind::Usage, text));
        };
        if !self.config.has_writers() {
            // Before there is anything that a program without knowledge of it would take for damage.
            self.config.set_has_writers();
            self.store_config(self.config.key_slots.clone())?;
        }
        let opens = SlotKeys::WriteOnly(Box::new(secrets));
        let kind = SlotKind::Passphrase;
        let id = self.store_new_slot(kind, secret, cost, &opens, name, host)?;
        record.slot = id;
        writers::put(self, &record)?;
        self.list_slot(id)?;
        self.know_writers()?;
        Ok(id)
    }

    fn check_room_for_a_slot(&self) -> Result<()> {
        self.check_may_change()?;
        if self.config.key_slots.len() >= KEY_SLOTS_MAX {
            let text = format!("cannot add a key slot: there are {KEY_SLOTS_MAX} already");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(())
    }

    fn store_new_slot(
        &self,
        kind: SlotKind,
        secret: &Passphrase,
        cost: KdfCost,
        opens: &SlotKeys,
        name: &str,
        host: &str,
    ) -> Result<KeySlotId> {
        let label = SlotLabel {
            name: name.to_string(),
            created_unix_ns: self.environment.now_unix_ns(),
            host: host.to_string(),
        };
        let new = NewSlot { kind, secret, cost, label: &label, opens };
        store_slot(self.storage.as_ref(), self.environment.as_ref(), &self.keys, &new)
    }

    fn list_slot(&mut self, id: KeySlotId) -> Result<()> {
        let mut slots = self.config.key_slots.clone();
        slots.push(id);
        self.store_config(slots)
    }

    /// The writer that a slot was made for.
    fn writer_of(&self, slot: KeySlotId) -> Option<&WriterRecord> {
        self.keys.writers().iter().find(|record| record.slot == slot)
    }

    /// Reads the records of writers anew.
    fn know_writers(&mut self) -> Result<()> {
        let (records, _) = writers::read_all(self.storage.as_ref(), &self.keys)?;
        let keys = Keys::clone(&self.keys).with_writers(Writers::new(records));
        self.keys = Arc::new(keys);
        Ok(())
    }

    /// Removes the slot whose id starts with `prefix` and returns its id.
    ///
    /// # Errors
    /// `NotFound`, `Usage` if the prefix fits several or names the last slot.
    pub fn remove_key(&mut self, prefix: &str) -> Result<KeySlotId> {
        self.check_may_change()?;
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
                if let Some(id) = self.retire_without_slot(prefix)? {
                    return Ok(id);
                }
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
        let writer = self.writer_of(id).cloned();
        if let Some(record) = writer.filter(|record| record.retired.is_none()) {
            writers::retire(self, &record)?;
            self.know_writers()?;
        }
        let slots = self.config.key_slots.iter().copied().filter(|slot| *slot != id).collect();
        self.store_config(slots)?;
        self.storage.delete(&secrets::slot_name(id)?)?;
        Ok(id)
    }

    /// Retires a writer whose slot no config lists: a run that added it or removed it was stopped.
    fn retire_without_slot(&mut self, prefix: &str) -> Result<Option<KeySlotId>> {
        let prefix = prefix.to_ascii_lowercase();
        let fits = |record: &&WriterRecord| {
            record.retired.is_none() && record.slot.to_hex().starts_with(&prefix)
        };
        let fitting: Vec<WriterRecord> = self.keys.writers().iter().filter(fits).cloned().collect();
        let ([record], false) = (&fitting[..], prefix.is_empty()) else { return Ok(None) };
        writers::retire(self, record)?;
        self.know_writers()?;
        Ok(Some(record.slot))
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
