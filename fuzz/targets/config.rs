//! Configs: decoding never panics, and no key of ours verifies what we did not write.
#![no_main]

use diskvault_format::config::Config;
use diskvault_format::crypto::{Keys, Secret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = Config::decode(data) else { return };
    let keys = Keys::derive(&Secret::new([7; 32]), config.repository);
    let name = "00000001-00000000000000000000000000000000";
    assert!(config.verify(&keys, name, data).is_err());
});
