//! Prune among packs of somebody who has the keys and lies: whose footers name what good packs hold,
//! with other bytes behind it. No good pack goes on their account.

use super::*;
use diskvault::repository::pack_reader::{open_pack, pack_name};
use diskvault_format::crypto::Secret;
use diskvault_format::id::{LeaseId, PackId};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentEncoder};

/// Puts a pack of either kind that says to hold everything that there is; their names.
fn claim_everything(vault: &Vault, seed: u8) -> Vec<String> {
    let repository = vault.open("liar").unwrap();
    let mut names = Vec::new();
    for kind in [PackKind::Data, PackKind::Map] {
        let mut entries: Vec<Entry> = Vec::new();
        for name in vault.names(Folder::Packs) {
            let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
            let pack = open_pack(&vault.storage, repository.keys(), id).unwrap();
            if pack.kind == kind {
                let all = pack.footer.segments.iter().flat_map(|segment| segment.entries.clone());
                entries.extend(all.filter(|entry| entry.kind != EntryKind::Splice));
            }
        }
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        let total = entries.iter().map(|entry| entry.bytes as usize).sum();
        let mut plaintext = Vec::new();
        let mut encoder = SegmentEncoder::new(3).unwrap();
        encoder.encode(&entries, &noise(u64::from(seed), total), &mut plaintext).unwrap();
        let secrets =
            PackSecrets { key: Secret::new([seed; 32]), wrap_random: [seed; 32], own_copy: None };
        let segment = PreparedSegment { entries, anchors: Vec::new(), plaintext };
        let lease = LeaseId([7; 16]);
        let pack = assemble(repository.keys(), kind, lease, &secrets, vec![segment]).unwrap();
        let name = pack_name(pack.id).unwrap();
        vault.storage.insert(&name, pack.bytes);
        names.push(name.to_string());
    }
    names
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Monitor for Warnings {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
}

#[test]
fn a_footer_that_lies_takes_no_good_pack_away() {
    let mut told = 0;
    // The more of them, the more surely one comes first where places are looked up.
    for (liars, cache) in [(1, "host"), (3, "host"), (1, "new"), (3, "new")] {
        let (mut vault, ids) = with_four_days();
        let repository = vault.open("host").unwrap();
        let mut forged = Vec::new();
        for seed in 1..=liars {
            forged.extend(claim_everything(&vault, seed));
        }
        let outcomes = vault.restore_all(&vault.open("reader").unwrap()).unwrap();
        assert!(outcomes.values().all(std::result::Result::is_ok), "{outcomes:?}");
        // Something goes, and something of other packs has to be copied; or all is needed, and only
        // what the footers say lets good packs go.
        if cache == "host" {
            forget_ids(&mut vault, &repository, &ids[..3]);
        }
        drop(repository);
        let repository = vault.open(cache).unwrap();
        let warnings = Warnings::default();
        let pool = &vault.pool;
        for run in 0..2 {
            let what = format!("{liars} {cache} {run}");
            let options = options(PATIENT);
            let done = diskvault::prune::run(&repository, &options, pool, &|_| Ok(()), &warnings);
            let outcomes = vault.restore_all(&vault.open("stranger").unwrap()).unwrap();
            for (id, outcome) in outcomes {
                outcome.unwrap_or_else(|error| panic!("{what}: point {id}: {error:?}"));
            }
            done.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        }
        let texts = warnings.0.into_inner().unwrap();
        told += texts.iter().filter(|text| text.contains("does not hold")).count();
        // A check names each of those that are left, and a repair takes them away.
        let found = damage_of(&vault.check(&repository, true).unwrap());
        let left = vault.names(Folder::Packs);
        for name in forged.iter().filter(|name| left.contains(name)) {
            let id = name.rsplit('/').next().unwrap();
            assert!(found.contains(id), "{liars} {cache}: {name} in {found}");
        }
    }
    assert!(told > 0);
}

/// What two writers have stored at the same time is freed all the same, once one copy was read.
#[test]
fn what_is_there_twice_is_freed_once() {
    let (vault, _) = with_four_days();
    // A pack that holds the same, of good bytes: what a prune leaves that was killed behind its copy.
    let repository = vault.open("host").unwrap();
    let name = vault.names(Folder::Packs).into_iter().find(|name| {
        let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        open_pack(&vault.storage, repository.keys(), id).unwrap().kind == PackKind::Data
    });
    let id = PackId::from_hex(name.unwrap().rsplit('/').next().unwrap()).unwrap();
    let pack = open_pack(&vault.storage, repository.keys(), id).unwrap();
    let mut segments = Vec::new();
    let mut decoder = diskvault_format::segment::SegmentDecoder::new().unwrap();
    for (ordinal, segment) in (0..).zip(&pack.footer.segments) {
        let (mut data, mut plaintext) = (Vec::new(), Vec::new());
        pack.read_segment(&vault.storage, ordinal, &mut decoder, &mut data).unwrap();
        let mut encoder = SegmentEncoder::new(3).unwrap();
        encoder.encode(&segment.entries, &data, &mut plaintext).unwrap();
        let (entries, anchors) = (segment.entries.clone(), segment.anchors.clone());
        segments.push(PreparedSegment { entries, anchors, plaintext });
    }
    let secrets = PackSecrets { key: Secret::new([8; 32]), wrap_random: [8; 32], own_copy: None };
    let lease = LeaseId([8; 16]);
    let copy = assemble(repository.keys(), PackKind::Data, lease, &secrets, segments).unwrap();
    vault.storage.insert(pack_name(copy.id).unwrap(), copy.bytes);
    let before = pack_bytes(&vault);
    let report = prune(&vault, &vault.open("new").unwrap(), PATIENT).unwrap();
    assert!(report.deleted_packs == 1 && pack_bytes(&vault) < before, "{report:?}");
    assert_whole(&vault, "stranger", "freed");
}
