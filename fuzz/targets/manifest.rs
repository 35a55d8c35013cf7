//! Manifests: the plaintext of a sealed manifest, decoded and validated.
#![no_main]

use diskvault_format::manifest::Manifest;
use diskvault_format::record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = record::decode::<Manifest>(data) else { return };
    // Decoding is strict about the encoding; limits and syntax are a step of their own.
    if manifest.validate().is_ok() {
        let _ = manifest.statistics();
        assert!(manifest.part_names().count() <= 2048);
    }
    assert_eq!(record::encode(&manifest).unwrap(), data);
});
