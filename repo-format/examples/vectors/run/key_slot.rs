//! Key slots.

use super::{Facts, Opened, Run, Stop, refuse, unhex};
use crate::vectors::fixed::version_of;
use crate::vectors::form::Fields;
use argon2::{Algorithm, Argon2, Params, Version};
use diskvault_format::asymmetric::verifying_key;
use diskvault_format::crypto::{ObjectKind, Secret, additional_data, context, open_x};
use diskvault_format::id::KeySlotId;
use diskvault_format::key_slot::{KdfCost, KeySlot, SlotKeys, validate_total_cost};
use diskvault_format::writers::{WriterSecrets, writer_id};

/// A key slot: decoded under its name, opened if there is a secret, and its label read if there
/// is a master key; `copies` asks for the cost of so many such slots together.
pub fn key_slot(fields: &Fields<'_>, body: &[u8]) -> Run {
    let secret = fields.optional("secret").map(unhex).transpose()?;
    let opened = fields.optional("master").map(|_| Opened::new(fields)).transpose()?;
    let copies = fields.optional("copies").map(|_| fields.number("copies")).transpose()?;
    let slot = KeySlot::decode(KeySlotId(fields.bytes("name")?), body)?;
    if opened.as_ref().is_some_and(|opened| opened.repository != slot.repository) {
        return Err(refuse("K-10", "belongs to another repository than the config"));
    }
    validate_total_cost(&vec![slot.cost; copies.unwrap_or(1) as usize])?;
    let mut facts = Facts::default();
    facts.add("kind", format!("{:?}", slot.kind).to_lowercase());
    facts.add("memory-kib", slot.cost.memory_kib);
    facts.add("passes", slot.cost.passes);
    facts.add("lanes", slot.cost.lanes);
    facts.add("slot-repository", slot.repository);
    if let Some(secret) = secret {
        open(&slot, &secret, body, &mut facts)?;
    }
    if let Some(opened) = opened {
        let label = slot.label(&opened.keys)?;
        facts.add("label-name", label.name);
        facts.add("label-created", label.created_unix_ns);
        facts.add("label-host", label.host);
        facts.add_bytes("label-subkey", opened.subkey(context::KEY_LABEL).expose());
    }
    Ok(facts)
}

fn open(slot: &KeySlot, secret: &[u8], body: &[u8], facts: &mut Facts) -> Result<(), Stop> {
    let Some(opens) = slot.open(secret)? else {
        facts.add("opens", "no");
        return Ok(());
    };
    facts.add("opens", "yes");
    match &opens {
        SlotKeys::Full(master) => facts.add_bytes("opened-master", master.expose()),
        SlotKeys::WriteOnly(secrets) => show_write_only(secrets, facts),
    }
    let derived = derive(secret, &body[40..72], slot.cost)?;
    let key = Secret::new(blake3::derive_key(context::SLOT_KEY, &derived));
    let commitment = blake3::derive_key(context::SLOT_COMMITMENT, &derived);
    let clear = &body[..104];
    let additional =
        additional_data(version_of(clear), ObjectKind::KeySlot, slot.repository, &[clear]);
    let (mut nonce, mut length) = ([0; 24], [0; 4]);
    nonce.copy_from_slice(&body[104..128]);
    length.copy_from_slice(&body[128..132]);
    let sealed = &body[132..132 + u32::from_le_bytes(length) as usize];
    let plaintext = open_x(&key, &nonce, &additional, sealed, "K-7")?;
    if commitment != body[72..104] {
        return Err("the commitment is another".into());
    }
    facts.add_bytes("salt", &body[40..72]);
    facts.add_bytes("argon2id-output", &derived);
    facts.add_bytes("slot-key", key.expose());
    facts.add_bytes("commitment", &commitment);
    facts.add_bytes("nonce", &nonce);
    facts.add_bytes("additional-data", &additional);
    facts.add_bytes("plaintext", &plaintext);
    Ok(())
}

/// What a write-only key opens, and the ids that follow.
fn show_write_only(secrets: &WriterSecrets, facts: &mut Facts) {
    for (key, secret) in [
        ("opened-chunk-id", &secrets.chunk_id),
        ("opened-page-id", &secrets.page_id),
        ("opened-map-root", &secrets.map_root),
        ("opened-gear", &secrets.gear),
        ("opened-protocol", &secrets.protocol),
        ("opened-public-key", &secrets.public_key),
        ("opened-seed", &secrets.signing),
    ] {
        facts.add_bytes(key, secret.expose());
    }
    let verifying_key = verifying_key(&secrets.signing);
    facts.add_bytes("verifying-key", &verifying_key);
    facts.add("writer", writer_id(&verifying_key));
    facts.add_list("series", &secrets.series);
}

/// Argon2id, version 0x13, with 32 bytes of output.
pub fn derive(secret: &[u8], salt: &[u8], cost: KdfCost) -> Result<[u8; 32], String> {
    let parameters = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
    let parameters = parameters.map_err(|cause| cause.to_string())?;
    let mut output = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
        .hash_password_into(secret, salt, &mut output)
        .map_err(|cause| cause.to_string())?;
    Ok(output)
}
