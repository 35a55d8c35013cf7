//! Opening key slots and making them (spec/31-key-slot.md).
//!
//! Invariant: no secret leaves this file except inside [`SlotKeys`] or a buffer that is wiped, or
//! borrowed by who derives a key from it.

use super::objects::refused;
use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::config::Config;
use diskvault_format::crypto::Keys;
use diskvault_format::id::{KeySlotId, RepositoryId};
use diskvault_format::key_slot::{
    KdfCost, KeySlot, SlotKeys, SlotKind, SlotLabel, SlotNonces, validate_total_cost,
};
use diskvault_format::limits::KEY_SLOT_BYTES_MAX;
use zeroize::Zeroizing;

/// What a person types: a passphrase or a recovery key. Wiped when dropped.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Passphrase {
        Passphrase(Zeroizing::new(bytes))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret itself, to derive keys from.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// True if both are the same secret.
    pub fn is_same(&self, other: &Passphrase) -> bool {
        // Hashes compare in constant time.
        blake3::hash(self.bytes()) == blake3::hash(other.bytes())
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// First characters of every recovery key.
const RECOVERY_PREFIX: &str = "DVRK";
/// Crockford's base 32: no I, L, O, U.
const RECOVERY_DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Makes a recovery key: 160 random bits as eight groups of four digits behind `DVRK`.
///
/// # Errors
/// Fails if there is no randomness.
pub fn make_recovery_key(environment: &dyn Environment) -> Result<Zeroizing<String>> {
    let random = Zeroizing::new(random_array::<32>(environment)?);
    let mut text = Zeroizing::new(String::with_capacity(44));
    text.push_str(RECOVERY_PREFIX);
    for (position, byte) in random.iter().enumerate() {
        if position % 4 == 0 {
            text.push('-');
        }
        text.push(RECOVERY_DIGITS[usize::from(byte % 32)] as char);
    }
    Ok(text)
}

/// The bytes that Argon2id gets for a recovery key: upper case, without separators, with the
/// look-alikes O, I and L read as digits. `None` if the text does not start like one.
fn normalise_recovery_key(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(Vec::with_capacity(text.len()));
    for byte in text {
        match byte.to_ascii_uppercase() {
            b'-' | b' ' | b'\t' | b'\r' | b'\n' => {}
            b'O' => key.push(b'0'),
            b'I' | b'L' => key.push(b'1'),
            other => key.push(other),
        }
    }
    key.starts_with(RECOVERY_PREFIX.as_bytes()).then_some(key)
}

/// Gives an object of so many bytes at most.
pub type Get<'a> = &'a dyn Fn(&ObjectName, u64) -> Result<Vec<u8>>;

/// A key slot as it is stored.
pub struct StoredSlot {
    /// Its id.
    pub id: KeySlotId,
    /// The slot, or why it cannot be read.
    pub slot: Result<KeySlot>,
}

/// Name of a slot's object.
///
/// # Errors
/// None in practice: an id always makes a valid name.
pub fn slot_name(id: KeySlotId) -> Result<ObjectName> {
    ObjectName::new(Folder::Keys, &id.to_hex())
}

/// Reads the slots a config lists. A missing or damaged slot does not hide the others.
///
/// # Errors
/// Fails if all slots together cost too much to try (rule K-5).
pub fn read_slots(storage: &dyn Storage, config: &Config) -> Result<Vec<StoredSlot>> {
    read_slots_by(&|name, bytes_max| storage.get(name, bytes_max), config)
}

/// As [`read_slots`], with objects that `get` gives, of so many bytes at most.
///
/// # Errors
/// As [`read_slots`].
pub fn read_slots_by(get: Get<'_>, config: &Config) -> Result<Vec<StoredSlot>> {
    let mut slots = Vec::new();
    let mut costs = Vec::new();
    for id in &config.key_slots {
        let slot = read_slot(get, config.repository, *id);
        if let Ok(slot) = &slot {
            costs.push(slot.cost);
        }
        slots.push(StoredSlot { id: *id, slot });
    }
    validate_total_cost(&costs).map_err(|cause| refused("the key slots", cause))?;
    Ok(slots)
}

fn read_slot(get: Get<'_>, repository: RepositoryId, id: KeySlotId) -> Result<KeySlot> {
    let name = slot_name(id)?;
    let bytes = get(&name, KEY_SLOT_BYTES_MAX)?;
    let slot = KeySlot::decode(id, &bytes).map_err(|cause| refused(&name, cause))?;
    if slot.repository != repository {
        let text = format!("cannot use {name}: it belongs to another repository (rule K-10)");
        return Err(Error::new(ErrorKind::Damage, text));
    }
    Ok(slot)
}

/// Tries the secret on every slot and returns the keys and the slot it opened.
///
/// # Errors
/// `WrongKey` if no slot opens; `Damage` or `Storage` if one that could not be read may have been
/// the right one.
pub fn open_any(slots: &[StoredSlot], secret: &Passphrase) -> Result<(SlotKeys, KeySlotId)> {
    let mut unread = None;
    let normalised = normalise_recovery_key(secret.bytes());
    for stored in slots {
        let slot = match &stored.slot {
            Ok(slot) => slot,
            Err(error) => {
                // A storage that fails says nothing about the slot.
                let kind = match error.kind() {
                    ErrorKind::Storage => ErrorKind::Storage,
                    _ => ErrorKind::Damage,
                };
                unread = Some((kind, error.full_text()));
                continue;
            }
        };
        let bytes = match (slot.kind, &normalised) {
            (SlotKind::Recovery, Some(key)) => &key[..],
            _ => secret.bytes(),
        };
        match slot.open(bytes) {
            Ok(Some(opened)) => return Ok((opened, stored.id)),
            Ok(None) => {}
            Err(cause) => {
                let text = refused(slot_name(stored.id)?, cause).full_text();
                unread = Some((ErrorKind::Damage, text));
            }
        }
    }
    let error = Error::new(ErrorKind::WrongKey, "cannot open the repository: wrong password");
    Err(match unread {
        // A damaged slot may have been the right one, so the two must not be confused.
        Some((kind, text)) => Error::new(
            kind,
            format!("cannot open the repository: no readable key slot opens, and {text}"),
        ),
        None => error,
    })
}

/// A key slot to be made.
#[derive(Clone, Copy)]
pub struct NewSlot<'a> {
    /// Passphrase or recovery key.
    pub kind: SlotKind,
    /// The secret that opens it.
    pub secret: &'a Passphrase,
    /// Cost of its derivation.
    pub cost: KdfCost,
    /// What people see of it.
    pub label: &'a SlotLabel,
    /// What it opens.
    pub opens: &'a SlotKeys,
}

/// Makes a slot and stores it; a config has to list it before it counts.
///
/// # Errors
/// Fails if the secret is empty, the cost is out of bounds or the storage fails.
pub fn store_slot(
    storage: &dyn Storage,
    environment: &dyn Environment,
    keys: &Keys,
    new: &NewSlot<'_>,
) -> Result<KeySlotId> {
    let NewSlot { kind, secret, cost, label, opens } = *new;
    if secret.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "cannot make a key slot: the password is empty"));
    }
    let nonces = SlotNonces {
        salt: random_array(environment)?,
        keys: random_array(environment)?,
        label: random_array(environment)?,
    };
    let normalised = normalise_recovery_key(secret.bytes());
    let bytes = match (kind, &normalised) {
        (SlotKind::Recovery, Some(key)) => &key[..],
        _ => secret.bytes(),
    };
    let made = KeySlot::make(kind, bytes, cost, opens, keys, label, &nonces)
        .map_err(|cause| refused("the new key slot", cause))?;
    let (id, object) = made.encode();
    storage.put_new(&slot_name(id)?, &object)?;
    // The stored slot is opened with the same secret before anybody relies on it.
    let get = |name: &ObjectName, bytes_max| storage.get(name, bytes_max);
    let stored = [StoredSlot { id, slot: read_slot(&get, keys.repository(), id) }];
    let (opened, _) = open_any(&stored, secret)?;
    if !opened.is_same(opens) {
        let text = format!("cannot use key slot {}: it opens another key", id.short());
        return Err(Error::new(ErrorKind::Failed, text));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::SystemEnvironment;

    #[test]
    fn a_recovery_key_may_be_typed_carelessly() {
        let key = make_recovery_key(&SystemEnvironment).unwrap();
        assert_eq!(key.len(), 4 + 8 * 5);
        let exact = normalise_recovery_key(key.as_bytes()).unwrap();
        let careless = key.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(normalise_recovery_key(careless.as_bytes()).unwrap(), exact);
        assert!(normalise_recovery_key(b"correct horse").is_none());
    }
}
