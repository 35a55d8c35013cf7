//! Tests of parity: what heals, what does not, and what a hostile or damaged parity object does.

use super::*;
use crate::storage::forgiving::Forgiving;
use crate::storage::memory::{Fault, FaultKind, MemoryStorage};
use diskvault_format::limits::PACK_BYTES_MAX;
use diskvault_format::limits::PARITY_SHARD_BYTES_DEFAULT;
use proptest::prelude::*;
use std::sync::Arc;

const SHARD: usize = PARITY_SHARD_BYTES_DEFAULT as usize;

/// Bytes that follow from `seed`.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

/// Something as long as a pack, its id and its parity object.
fn sample(bytes: usize, per_mille: u32) -> (PackId, Vec<u8>, Vec<u8>) {
    let shape = Shape::choose(bytes as u64, per_mille).unwrap();
    let (id, pack, _) = sample_of(&shape);
    let parity = encode(id, &pack, per_mille).unwrap();
    (id, pack, parity)
}

/// The same for any shape.
fn sample_of(shape: &Shape) -> (PackId, Vec<u8>, Vec<u8>) {
    let pack = noise(shape.pack_bytes, shape.pack_bytes as usize);
    let id = PackId(*blake3::hash(&pack).as_bytes());
    let parity = encode_as(id, &pack, shape).unwrap();
    (id, pack, parity)
}

/// Flips all bits of a range.
fn flip(bytes: &mut [u8], range: Range<usize>) {
    bytes[range].iter_mut().for_each(|byte| *byte ^= 0xff);
}

#[test]
fn every_flipped_byte_of_a_small_pack_heals() {
    // Small shards, so that all bytes are soon through; then the shards that are written.
    let small = Shape { pack_bytes: 1000, shard_bytes: 64, recovery: 2 };
    for ((id, pack, parity), step) in [(sample_of(&small), 1), (sample(70_000, 1), 997)] {
        for place in (0..pack.len()).step_by(step) {
            let mut damaged = pack.clone();
            damaged[place] ^= 1 << (place % 8);
            assert!(heal(id, damaged, &[], &parity).unwrap() == pack, "byte {place}");
        }
        assert!(heal(id, pack.clone(), &[], &parity).unwrap() == pack);
    }
}

#[test]
fn a_run_of_damage_of_a_shard_heals_at_every_phase() {
    let (id, pack, parity) = sample(9 * SHARD + 1, 1);
    for start in (0..pack.len() - SHARD).step_by(1500) {
        let mut damaged = pack.clone();
        flip(&mut damaged, start..start + SHARD);
        assert!(heal(id, damaged, &[], &parity).unwrap() == pack, "from {start}");
    }
}

#[test]
fn as_many_shards_heal_as_promised_and_one_more_does_not() {
    let (id, pack, parity) = sample(200 * SHARD + 777, 20);
    let shape = Shape::choose(pack.len() as u64, 20).unwrap();
    assert_eq!((shape.data(), shape.recovery), (201, 5));
    let damage = |numbers: &[usize]| {
        let mut damaged = pack.clone();
        numbers.iter().for_each(|number| damaged[number * SHARD] ^= 1);
        damaged
    };
    assert!(heal(id, damage(&[0, 50, 51, 199, 200]), &[], &parity).unwrap() == pack);
    let error = heal(id, damage(&[0, 50, 51, 100, 199, 200]), &[], &parity).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damage);
    let text =
        format!("cannot heal pack {id}: 6 of its 201 shards are damaged, and its parity heals 5");
    assert_eq!(error.full_text(), text);
    // A recovery shard that is damaged itself heals nothing.
    let mut worn = parity.clone();
    let half = worn.len() / 2;
    worn[half] ^= 1;
    assert!(heal(id, damage(&[0, 50, 51, 199]), &[], &worn).unwrap() == pack);
    let error = heal(id, damage(&[0, 50, 51, 199, 200]), &[], &worn).unwrap_err();
    assert!(error.full_text().ends_with("heals 4 (1 of its own 5 are damaged too)"), "{error}");
}

#[test]
fn packs_that_are_cut_or_lengthened_or_partly_unreadable_heal() {
    let (id, pack, parity) = sample(50 * SHARD + 10, 100);
    for length in [pack.len() - 1, pack.len() - 10, pack.len() - 11, 45 * SHARD] {
        assert!(heal(id, pack[..length].to_vec(), &[], &parity).unwrap() == pack, "{length}");
    }
    let error = heal(id, pack[..44 * SHARD].to_vec(), &[], &parity).unwrap_err();
    assert!(error.full_text().contains("7 of its 51 shards"), "{error}");
    assert!(heal(id, Vec::new(), &[], &parity).is_err());
    let longer = [&pack[..], &[1; 5000]].concat();
    assert!(heal(id, longer, &[], &parity).unwrap() == pack);
    // What cannot be read counts as damaged even if its bytes are right.
    let sector = SHARD as u64;
    let far = u64::MAX - 1..u64::MAX;
    let gaps = [sector - 1..sector + 1, 0..2, 40 * sector..43 * sector, far, 0..7 * sector];
    let mut damaged = pack.clone();
    gaps[..3].iter().for_each(|gap| damaged[gap.start as usize..gap.end as usize].fill(0));
    assert!(heal(id, damaged, &gaps[..4], &parity).unwrap() == pack);
    let error = heal(id, pack.clone(), &gaps[4..], &parity).unwrap_err();
    assert!(error.full_text().contains("7 of its 51 shards"), "{error}");
}

#[test]
fn one_bad_sector_of_the_parity_object_costs_no_more_than_its_shards() {
    let (id, pack, parity) = sample(300 * SHARD, 20);
    let mut damaged = pack.clone();
    flip(&mut damaged, 5 * SHARD..8 * SHARD);
    // Six recovery shards, of which a sector of any phase touches two.
    for start in (0..parity.len()).step_by(500) {
        let mut worn = parity.clone();
        let end = (start + SHARD).min(worn.len());
        flip(&mut worn, start..end);
        assert!(heal(id, damaged.clone(), &[], &worn).unwrap() == pack, "from {start}");
    }
    // Cut anywhere behind the shards that are needed.
    let needed = parity.len() / 2 + 100;
    for end in [needed, parity.len() - 1] {
        assert!(heal(id, damaged.clone(), &[], &parity[..end]).unwrap() == pack, "to {end}");
    }
}

#[test]
fn a_hostile_parity_object_is_refused() {
    let (id, pack, parity) = sample(20 * SHARD, 50);
    let other = PackId([9; 32]);
    for (object, name, rule) in
        [(&parity[..], other, "E-7"), (&parity[..50], id, "E-1"), (&[][..], id, "E-1")]
    {
        let error = heal(name, pack.clone(), &[], object).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage);
        assert!(error.full_text().contains(rule), "{error}");
    }
    // One that claims other bytes for the pack's name, with all checks in order.
    let mut evil = pack.clone();
    evil[3 * SHARD] ^= 1;
    let forged = encode(id, &evil, 50).unwrap();
    let error = heal(id, pack.clone(), &[], &forged).unwrap_err();
    assert!(error.full_text().contains("N-3"), "{error}");
    // One that claims a large pack takes no memory for it.
    let shape = Shape { pack_bytes: PACK_BYTES_MAX, shard_bytes: 64 << 10, recovery: 2 };
    let checks = vec![[0; 4]; shape.data() as usize];
    let head =
        ParityHead { pack: id, shape, data_checks: checks, recovery_checks: vec![[0; 4]; 2] };
    let large = parity::encode(&head, &vec![0; shape.recovery_bytes() as usize]);
    let error = heal(id, pack, &[], &large).unwrap_err();
    assert!(error.full_text().contains("16384 of its 16384 shards"), "{error}");
}

#[test]
fn stripes_are_the_code_of_whole_shards() {
    let (id, pack, _) = sample(10 * SHARD + 64, 20);
    let shape = Shape { recovery: 3, ..Shape::choose(pack.len() as u64, 300).unwrap() };
    let coded = code_recovery(id, &pack, &shape).unwrap();
    let engine = DefaultEngine::new();
    let mut encoder = HighRateEncoder::new(11, 3, SHARD, engine, None).unwrap();
    for number in 0..10 {
        encoder.add_original_shard(data_shard(&pack, &shape, number)).unwrap();
    }
    encoder.add_original_shard(padded_last(&pack, &shape)).unwrap();
    let result = encoder.encode().unwrap();
    assert!(result.recovery_iter().flatten().copied().eq(coded.iter().copied()));
}

#[test]
fn the_code_is_that_of_the_specification() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("repo-format/vectors");
    for name in ["good", "many"] {
        // The recovery shards in it were computed by the vectors' own, plain implementation.
        let file = std::fs::read(folder.join("parity").join(name)).unwrap();
        let end = file.windows(2).position(|pair| pair == b"\n\n").unwrap();
        let header = std::str::from_utf8(&file[..end]).unwrap();
        let digits = header.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let data: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        let object = &file[end + 2..];
        let id = PackId(*blake3::hash(&data).as_bytes());
        let parity = parity::decode(object, id).unwrap();
        let coded = code_recovery(id, &data, &parity.head.shape).unwrap();
        assert_eq!(parity::encode(&parity.head, &coded), object, "{name}");
        assert!(heal(id, data[..100].to_vec(), &[], object).is_err());
        assert!(heal(id, data[..data.len() - 100].to_vec(), &[], object).unwrap() == data);
    }
}

/// A storage that holds the pack and its parity, and their names.
fn stored(pack: &[u8], id: PackId, parity: &[u8]) -> (MemoryStorage, String, String) {
    let storage = MemoryStorage::new();
    let names = [pack_name(id).unwrap(), parity_name(id).unwrap()];
    storage.put_new(&names[0], pack).unwrap();
    storage.put_new(&names[1], parity).unwrap();
    let [pack, parity] = names.map(|name| name.as_str().to_string());
    (storage, pack, parity)
}

#[test]
fn a_stored_pack_heals_from_its_stored_parity() {
    let (id, pack, parity) = sample(700 * SHARD + 5, 20);
    let (storage, pack_path, parity_path) = stored(&pack, id, &parity);
    assert!(heal_stored(&storage, id).unwrap().unwrap() == pack);
    let mut damaged = pack[..pack.len() - 9].to_vec();
    flip(&mut damaged, 100..200);
    storage.insert(pack_path.clone(), damaged);
    assert!(heal_stored(&storage, id).unwrap().unwrap() == pack);
    storage.remove(&parity_path);
    assert!(heal_stored(&storage, id).unwrap().is_none());
    storage.insert(parity_path, parity);
    storage.remove(&pack_path);
    assert_eq!(heal_stored(&storage, id).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn reads_that_fail_cost_what_they_would_have_read() {
    let (id, pack, parity) = sample(700 * SHARD + 5, 20);
    let (storage, ..) = stored(&pack, id, &parity);
    heal_stored(&storage, id).unwrap();
    let reads = storage.log().len();
    let readable_config = |storage: &MemoryStorage| {
        storage.insert(format!("config/00000001-{}", "e".repeat(32)), b"any".to_vec());
        Forgiving::new(Arc::new(storage.clone()))
    };
    for name in [pack_name(id).unwrap(), parity_name(id).unwrap()] {
        let bytes = storage.size(&name).unwrap().unwrap();
        for at in [4096 * 3 + 7, bytes / 2, bytes - 1] {
            let (storage, ..) = stored(&pack, id, &parity);
            storage.spoil(name.as_str(), at..at + 1);
            let forgiving = readable_config(&storage);
            assert!(heal_stored(&forgiving, id).unwrap().unwrap() == pack, "{name} {at}");
            // Nobody vouches for the rest of the storage: its error is told.
            assert_eq!(heal_stored(&storage, id).unwrap_err().kind(), ErrorKind::Storage);
        }
        let (storage, ..) = stored(&pack, id, &parity);
        storage.spoil(name.as_str(), 0..bytes);
        let before = storage.log().len();
        assert_eq!(
            heal_stored(&readable_config(&storage), id).unwrap_err().kind(),
            ErrorKind::Damage
        );
        // Given up before every sector was asked for.
        assert!(storage.log().len() < before + 400, "{name} {}", storage.log().len() - before);
    }
    // A medium that fails for good is given up before it is asked for every sector.
    let (storage, ..) = stored(&pack, id, &parity);
    let at_operation = (reads - 3) as u64;
    storage.add_fault(Fault { at_operation, kind: FaultKind::Error, once: false });
    let before = storage.log().len();
    assert!(heal_stored(&storage, id).is_err());
    assert!(storage.log().len() < before + 40, "{}", storage.log().len() - before);
}

#[test]
fn parity_is_put_once_and_goes_with_its_pack() {
    let (id, pack, parity) = sample(20 * SHARD, 20);
    let storage = MemoryStorage::new();
    assert_eq!(store_parity(&storage, id, &pack, 20).unwrap(), parity.len() as u64);
    assert_eq!(store_parity(&storage, id, &pack, 20).unwrap(), parity.len() as u64);
    assert!(storage.get(&parity_name(id).unwrap(), PARITY_BYTES_MAX).unwrap() == parity);
    assert_eq!(delete_parity(&storage, id).unwrap(), parity.len() as u64);
    assert_eq!(delete_parity(&storage, id).unwrap(), 0);
    assert!(storage.list(Folder::Parity).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn damage_heals_up_to_the_number_of_recovery_shards(
        bytes in 1_usize..40 * SHARD,
        per_mille in 1_u32..=500,
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        seed in any::<u8>(),
    ) {
        let (id, pack, parity) = sample(bytes, per_mille);
        let shape = Shape::choose(bytes as u64, per_mille).unwrap();
        let mut damaged = pack.clone();
        let places: Vec<usize> = places.iter().map(|place| place.index(bytes)).collect();
        let shards: HashSet<usize> = places.iter().map(|place| place / SHARD).collect();
        for place in places {
            damaged[place] = pack[place] ^ (seed | 1);
        }
        let healed = heal(id, damaged, &[], &parity);
        if shards.len() <= shape.recovery as usize {
            prop_assert!(healed.unwrap() == pack);
        } else {
            prop_assert_eq!(healed.unwrap_err().kind(), ErrorKind::Damage);
        }
    }

    #[test]
    fn no_parity_object_makes_it_panic_or_lie(
        mut damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let (id, pack, mut parity) = sample(3 * SHARD, 500);
        let mut damaged = pack.clone();
        damaged[0] ^= 1;
        for (place, value) in damage.drain(..) {
            let place = place.index(parity.len().min(400));
            parity[place] = value;
            let end = parity.len() - 1 - place;
            parity[end] = value;
        }
        parity.truncate(cut.index(parity.len() + 1));
        if let Ok(healed) = heal(id, damaged, &[], &parity) {
            prop_assert!(healed == pack);
        }
    }
}
