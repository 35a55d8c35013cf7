//! The one place that turns stored objects into values and back: puts and gets what is sealed.
//!
//! Invariants: everything is authenticated before it is decoded; every refusal names the object
//! and the rule; whatever is put was opened again from the bytes that are put, if these keys open it.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::{Keys, ObjectKind};
use diskvault_format::error::{Fault, FormatError};
use diskvault_format::limits::SEALED_BYTES_MAX;
use diskvault_format::manifest::Manifest;
use diskvault_format::{record, sealed};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Turns a refusal of the format into an error that names the object.
pub fn refused(object: impl std::fmt::Display, cause: FormatError) -> Error {
    let kind = match cause.fault {
        Fault::Newer => ErrorKind::Newer,
        // Whole, and by somebody whose signature does not count (spec/21-writers.md).
        _ if ["O-6", "P-15", "F-12"].contains(&cause.rule) => ErrorKind::Unlisted,
        _ => ErrorKind::Damage,
    };
    let error = Error::new(kind, format!("cannot open {object}")).because(cause);
    if kind == ErrorKind::Newer {
        return error.hint("use a newer diskvault");
    }
    error
}

/// Turns a failure to make an object into an error that names it.
pub fn cannot_make(object: &str, cause: FormatError) -> Error {
    Error::new(ErrorKind::Failed, format!("cannot make {object}")).because(cause)
}

/// What the additional data says of an object's name: nothing where the name is a hash.
fn bound_name(name: &ObjectName) -> &str {
    match name.folder() {
        Folder::Points | Folder::Trash | Folder::Lost => "",
        _ => name.leaf(),
    }
}

/// Seals a record for an object whose name is known beforehand.
///
/// # Errors
/// Fails if the record is beyond the limits, or if what was sealed does not open again.
pub fn seal_record<T: Serialize>(
    keys: &Keys,
    kind: ObjectKind,
    name: Option<&ObjectName>,
    random: &[u8; 32],
    value: &T,
) -> Result<Vec<u8>> {
    let what = format!("a record of kind {kind:?}");
    let plaintext = record::encode(value).map_err(|cause| cannot_make(&what, cause))?;
    let bound = name.map_or("", bound_name);
    let object = sealed::seal(keys, kind, bound, random, &plaintext)
        .map_err(|cause| cannot_make(&what, cause))?;
    if kind == ObjectKind::Manifest && keys.write_only_writer().is_some() {
        // Sealed to who may read; nobody here can look.
        return Ok(object);
    }
    // What is about to be stored for years is read back once while it can still be made again.
    let again = sealed::open(keys, kind, bound, &object).map_err(|cause| refused(&what, cause))?;
    if again.plaintext[..] != plaintext[..] {
        return Err(Error::new(ErrorKind::Failed, format!("cannot make {what}: memory error")));
    }
    Ok(object)
}

/// What a writer that may not read keeps for itself of a manifest.
///
/// # Errors
/// As [`seal_record`].
pub fn seal_own_manifest(keys: &Keys, random: &[u8; 32], manifest: &Manifest) -> Result<Vec<u8>> {
    let cannot = |cause| cannot_make("a copy of a manifest", cause);
    let plaintext = record::encode(manifest).map_err(cannot)?;
    sealed::seal_own_copy(keys, ObjectKind::Manifest, "", random, &plaintext).map_err(cannot)
}

/// Opens a sealed record that was read from `name`.
///
/// # Errors
/// Damage or newer format, with the rule.
pub fn open_record<T: Serialize + DeserializeOwned>(
    keys: &Keys,
    kind: ObjectKind,
    name: &ObjectName,
    object: &[u8],
) -> Result<T> {
    let opened =
        sealed::open(keys, kind, bound_name(name), object).map_err(|cause| refused(name, cause))?;
    record::decode(&opened.plaintext).map_err(|cause| refused(name, cause))
}

/// Reads and opens a sealed record.
///
/// # Errors
/// As [`Storage::get`] and [`open_record`].
pub fn get_record<T: Serialize + DeserializeOwned>(
    storage: &dyn Storage,
    keys: &Keys,
    kind: ObjectKind,
    name: &ObjectName,
) -> Result<T> {
    open_record(keys, kind, name, &storage.get(name, SEALED_BYTES_MAX)?)
}

/// Reads an object whose name is the BLAKE3 of its bytes.
///
/// # Errors
/// Damage (rule N-3) if the bytes hash to something else.
pub fn get_hashed(storage: &dyn Storage, name: &ObjectName, id: &[u8; 32]) -> Result<Vec<u8>> {
    let object = storage.get(name, SEALED_BYTES_MAX)?;
    if blake3::hash(&object) != *id {
        let cause = FormatError {
            fault: Fault::Unauthentic,
            rule: "N-3",
            detail: "the bytes do not hash to the name".into(),
        };
        return Err(refused(name, cause));
    }
    Ok(object)
}
