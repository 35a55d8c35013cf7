//! The envelope of small sealed objects: nothing opens that we did not seal.
#![no_main]

use diskvault_format::crypto::{Keys, ObjectKind, Secret};
use diskvault_format::id::RepositoryId;
use diskvault_format::sealed;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys::derive(&Secret::new([7; 32]), RepositoryId([1; 16])));

fuzz_target!(|data: &[u8]| {
    assert!(sealed::open(&KEYS, ObjectKind::Manifest, "", data).is_err());
});
