//! Parity objects: what decodes gives only shards that its checks know, and one that is whole
//! encodes to the same bytes.
#![no_main]

use diskvault_format::id::PackId;
use diskvault_format::parity::{check_of, decode, encode};
use libfuzzer_sys::fuzz_target;

/// Puts check values that fit behind the head at the front, so that the fuzzer gets past them.
fn repair(data: &[u8]) -> Vec<u8> {
    let mut object = data.to_vec();
    let number = |at: usize| {
        data.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
    };
    let checks = u64::from(number(56)) + u64::from(number(60));
    let end = usize::try_from(64 + 4 * checks).unwrap_or(usize::MAX);
    if let Some(after) = end.checked_add(32).filter(|after| *after <= object.len()) {
        let hash = blake3::hash(&object[..end]);
        object[end..after].copy_from_slice(hash.as_bytes());
    }
    object
}

fuzz_target!(|data: &[u8]| {
    let mut id = [0; 32];
    if let Some(bytes) = data.get(16..48) {
        id.copy_from_slice(bytes);
    }
    for object in [data.to_vec(), repair(data)] {
        let Ok(parity) = decode(&object, PackId(id)) else { continue };
        let shape = parity.head.shape;
        assert_eq!(parity.head.data_checks.len(), shape.data() as usize);
        let shards: Vec<&[u8]> =
            (0..shape.recovery).filter_map(|number| parity.recovery_shard(number)).collect();
        for shard in &shards {
            assert!(parity.head.recovery_checks.contains(&check_of(shard)));
        }
        if parity.is_whole() {
            assert_eq!(encode(&parity.head, &shards.concat()), object);
        }
    }
});
