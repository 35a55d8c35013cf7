//! Objects without a seal: configs, instance objects, names, records, allocation lists, parity.

use super::{Facts, Opened, Run, refuse};
use crate::vectors::fixed::version_of;
use crate::vectors::form::Fields;
use crate::vectors::parity::recovery_shards;
use diskvault_format::config::Config;
use diskvault_format::crypto::{ObjectKind, additional_data, context};
use diskvault_format::id::{PackId, from_hex};
use diskvault_format::names::PointName;
use diskvault_format::{allocation, instance, names, parity, record};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A config: decoded, then authenticated under its name.
pub fn config(fields: &Fields<'_>, body: &[u8]) -> Run {
    let opened = Opened::new(fields)?;
    let name = fields.text("name")?;
    let config = Config::decode(body)?;
    config.verify(&opened.keys, name, body)?;
    if names::parse_config(name) != Some(config.generation) {
        return Err(refuse("C-8", "the name tells another generation"));
    }
    let mut facts = Facts::default();
    facts.add("generation", config.generation);
    facts.add("features-ignorable", config.features_ignorable);
    facts.add("parity-per-mille", config.parity_per_mille());
    facts.add("features-unknown-to-write", config.unknown_write_features());
    if config.has_writers() {
        facts.add("has-writers", true);
    }
    facts.add("chunk-bytes", config.chunk_bytes);
    facts.add("segment-bytes", config.segment_bytes);
    facts.add("pack-bytes", config.pack_bytes);
    facts.add_list("key-slots", &config.key_slots);
    let subkey = opened.subkey(context::CONFIG);
    let more = [name.as_bytes()];
    let additional =
        additional_data(version_of(body), ObjectKind::Config, config.repository, &more);
    let (head, check) = body.split_at(body.len() - 32);
    let mut hasher = blake3::Hasher::new_keyed(subkey.expose());
    if hasher.update(&additional).update(head).finalize() != *check {
        return Err("the authenticator is another".into());
    }
    facts.add_bytes("subkey", subkey.expose());
    facts.add_bytes("additional-data", &additional);
    facts.add_bytes("authenticator", check);
    Ok(facts)
}

/// An instance object.
pub fn instance(body: &[u8]) -> Run {
    let mut facts = Facts::default();
    facts.add("instance", instance::decode(body)?);
    Ok(facts)
}

/// A leaf name; a reader ignores one that does not fit the grammar (N-1), unknown folders (N-2)
/// and packs in another folder than their own (N-4).
pub fn name(fields: &Fields<'_>, body: &[u8]) -> Run {
    let foreign = || refuse("N-1", "is no name of the folder");
    let leaf = std::str::from_utf8(body).map_err(|cause| cause.to_string())?;
    let mut facts = Facts::default();
    match fields.text("folder")? {
        "config" => facts.add("generation", names::parse_config(leaf).ok_or_else(foreign)?),
        "points" => match names::parse_point(leaf).ok_or_else(foreign)? {
            PointName::Manifest(point) => facts.add("manifest-of", point),
            PointName::Ok(point) => facts.add("ok-of", point),
        },
        "notes" => facts.add("note-on", names::parse_note(leaf).ok_or_else(foreign)?),
        "leases" => {
            let (lease, number) = names::parse_lease(leaf).ok_or_else(foreign)?;
            facts.add("lease", lease);
            facts.add("heartbeat", number.map_or("none".to_owned(), |number| number.to_string()));
        }
        "writers" => {
            let random = from_hex::<16>(leaf).filter(|_| names::is_writer(leaf));
            facts.add_bytes("random", &random.ok_or_else(foreign)?);
        }
        "parity" => facts.add("parity-of", PackId::from_hex(leaf).ok_or_else(foreign)?),
        other => match other.strip_prefix("packs/") {
            Some(digits) => {
                let pack = PackId::from_hex(leaf).ok_or_else(foreign)?;
                if !leaf.starts_with(digits) {
                    return Err(refuse("N-4", "the pack lies in another folder"));
                }
                facts.add("pack", pack);
            }
            None => return Err(refuse("N-2", "the folder is not known")),
        },
    }
    Ok(facts)
}

/// A record of one of a few types, which show every piece of the encoding.
pub fn record(fields: &Fields<'_>, body: &[u8]) -> Run {
    match fields.text("record")? {
        "number" => show::<u64>(body),
        "numbers" => show::<Vec<u64>>(body),
        "small-numbers" => show::<(u8, u16, u32)>(body),
        "signed-numbers" => show::<Vec<i64>>(body),
        "text" => show::<String>(body),
        "texts" => show::<Vec<String>>(body),
        "optional-numbers" => show::<Vec<Option<u64>>>(body),
        "pairs" => show::<Vec<(String, Vec<u8>)>>(body),
        "bytes" => show::<Vec<u8>>(body),
        "four-bytes" => show::<[u8; 4]>(body),
        other => Err(format!("there is no record {other}").into()),
    }
}

fn show<T: Serialize + DeserializeOwned + std::fmt::Debug>(body: &[u8]) -> Run {
    let mut facts = Facts::default();
    facts.add("value", format!("{:?}", record::decode::<T>(body)?));
    Ok(facts)
}

/// An allocation list for a disk of `size` bytes.
pub fn allocation(fields: &Fields<'_>, body: &[u8]) -> Run {
    let runs = allocation::decode(body, fields.number("size")?)?;
    let mut facts = Facts::default();
    facts.add_list(
        "runs",
        runs.iter().map(|run| {
            let kind = if run.is_allocated { "allocated" } else { "hole" };
            format!("{}+{}:{kind}", run.start, run.bytes)
        }),
    );
    Ok(facts)
}

/// The parity object of the pack with the id `pack`; `data` are the pack's bytes, if they are told.
pub fn parity(fields: &Fields<'_>, body: &[u8]) -> Run {
    let found = parity::decode(body, PackId(fields.bytes("pack")?))?;
    let shape = found.head.shape;
    let mut facts = Facts::default();
    facts.add("bytes", shape.pack_bytes);
    facts.add("shard-bytes", shape.shard_bytes);
    facts.add("data-shards", shape.data());
    let state = |number| if found.recovery_shard(number).is_some() { "good" } else { "damaged" };
    facts.add_list("recovery-shards", (0..shape.recovery).map(state));
    facts.add("is-whole", found.is_whole());
    if let Some(data) = fields.optional("data") {
        let digits = data.as_bytes().as_chunks::<2>().0.iter();
        let data: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16))
            .collect::<Result<_, _>>()
            .map_err(|cause| cause.to_string())?;
        let shards = recovery_shards(&data, shape.shard_bytes as usize, shape.recovery as usize);
        if parity::encode(&found.head, &shards) != body {
            return Err("the recovery shards are not those of the data".into());
        }
    }
    Ok(facts)
}
