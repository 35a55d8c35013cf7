//! Packs by writers that may not read.

use super::{changed, keyed, knowing, put, record_of, retired, signed, to_public_key};
use crate::vectors::fixed::{REPOSITORY, keys, pattern, random, segment_plaintext, writer_keys};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::crypto::{Keys, ObjectKind, PackCipher, Secret, additional_data, context};
use diskvault_format::id::{LeaseId, RepositoryId};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::pack::{
    OwnCopySecrets, PackKind, PackSecrets, PreparedSegment, SealedPack, TRAILER_BYTES, assemble,
};
use diskvault_format::segment::{Entry, EntryKind};
use diskvault_format::writers::WriterRecord;

/// Where the footer of all these packs lies.
const FOOTER_AT: u32 = 64 << 10;

fn pack_key() -> Secret {
    Secret::new(random("pack key of a writer"))
}

/// A data pack of one chunk, by the holder of `keys`.
fn packed(keys: &Keys) -> Result<SealedPack> {
    let data = pattern(10);
    let (kind, id) = (EntryKind::Chunk, keys.chunk_id(&data).0);
    let entries = vec![Entry { id, kind, bytes: data.len() as u32 }];
    let plaintext = segment_plaintext(0, &entries, &data);
    let segment = PreparedSegment { entries, anchors: Vec::new(), plaintext };
    let own_copy = OwnCopySecrets {
        key: Secret::new(random("pack key of an own copy")),
        nonce: random("nonce of an own copy"),
    };
    let wrap_random = random("ephemeral");
    let secrets = PackSecrets { key: pack_key(), wrap_random, own_copy: Some(own_copy) };
    Ok(assemble(keys, PackKind::Data, LeaseId(random("lease")), &secrets, vec![segment])?)
}

fn additional(repository: RepositoryId, object: ObjectKind, kind: u8, more: &[u8]) -> Vec<u8> {
    additional_data(FORMAT_VERSION, object, repository, &[&[kind], more])
}

fn commitment(key: &Secret) -> [u8; 32] {
    blake3::derive_key(context::PACK_COMMITMENT, key.expose())
}

/// The pack with any plaintext in place of its footer's.
fn with_footer(pack: &SealedPack, plaintext: &[u8]) -> Vec<u8> {
    let kind = pack.bytes[10];
    let clear = additional(REPOSITORY, ObjectKind::Footer, kind, &FOOTER_AT.to_le_bytes());
    let mut sealed = plaintext.to_vec();
    let tag = PackCipher::new(&pack_key()).seal(u32::MAX, &clear, &mut sealed);
    sealed.extend_from_slice(&tag);
    let mut tail = pack.bytes[pack.bytes.len() - TRAILER_BYTES..].to_vec();
    put(&mut tail, 132, &(sealed.len() as u32).to_le_bytes());
    [&pack.bytes[..FOOTER_AT as usize], &sealed, &tail].concat()
}

/// The pack with another wrap at both ends.
fn with_wrap(pack: &SealedPack, wrap: &[u8]) -> Vec<u8> {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    changed(&pack.bytes, |bytes| {
        put(bytes, 48, wrap);
        put(bytes, trailer, wrap);
    })
}

fn add_one(
    set: &mut Set,
    (path, rule, comment): (&str, &str, &str),
    writers: &[WriterRecord],
    bytes: Vec<u8>,
) -> Result<()> {
    let vector = Vector::refused("pack", rule, comment, bytes);
    set.add(&format!("pack/writer{path}"), knowing(writers, vector)?);
    Ok(())
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    let data = packed(&writer_keys(1))?;
    add_ok(set, &data)?;
    add_signatures(set, &data)?;
    add_wraps(set, &data)?;
    add_mixed(set, &data)
}

fn add_ok(set: &mut Set, data: &SealedPack) -> Result<()> {
    let comment = "a data pack by a writer that may not read, and that is retired by now";
    add_one(set, ("-data", "ok", comment), &[retired(1, &[])], data.bytes.clone())
}

fn add_signatures(set: &mut Set, data: &SealedPack) -> Result<()> {
    let footer = data.footer.encode();
    let clear = |kind: u8, offset: u32| {
        additional(REPOSITORY, ObjectKind::Footer, kind, &offset.to_le_bytes())
    };
    let (right, key) = (clear(1, FOOTER_AT), commitment(&pack_key()));
    let good = signed(1, 1, &[&right, &key], &footer);
    let listed = [record_of(1)];
    let mut refuse = |path: &str, comment, writers: &[WriterRecord], plaintext: &[u8]| {
        add_one(set, (path, "P-15", comment), writers, with_footer(data, plaintext))
    };
    refuse("-unlisted", "no writer is listed", &[], &good)?;
    let other = signed(1, 2, &[&right, &key], &footer);
    let both = [record_of(1), record_of(2)];
    refuse("-signature-other", "names one writer and is signed by another", &both, &other)?;
    refuse("-signature-short", "79 bytes hold no signature", &listed, &good[..79])?;
    refuse("-signature-missing", "a footer without a signature", &listed, &footer)?;
    let another = commitment(&Secret::new(random("another pack key")));
    for (path, comment, before) in [
        ("key", "signed for another pack key", [&right[..], &another[..]].concat()),
        ("kind", "signed for a map pack", [&clear(2, FOOTER_AT)[..], &key[..]].concat()),
        ("offset", "signed for another place", [&clear(1, 2 * FOOTER_AT)[..], &key[..]].concat()),
    ] {
        let plaintext = signed(1, 1, &[&before], &footer);
        refuse(&format!("-signature-{path}"), comment, &listed, &plaintext)?;
    }
    Ok(())
}

fn add_wraps(set: &mut Set, data: &SealedPack) -> Result<()> {
    let good = &data.bytes[48..176];
    let mut refuse = |path: &str, rule, comment, wrap: Vec<u8>| {
        add_one(set, (path, rule, comment), &[record_of(1)], with_wrap(data, &wrap))
    };
    let patch = |offset: usize, value: &[u8]| changed(good, |wrap| put(wrap, offset, value));
    refuse("-wrap-reserved", "P-5", "the first reserved byte", patch(2, &[1]))?;
    refuse("-wrap-reserved-end", "P-5", "the last reserved byte", patch(15, &[1]))?;
    let comment = "relabelled wrap kind 0, whose wrap key id is 0";
    refuse("-wrap-relabelled", "P-5", comment, patch(1, &[0]))?;
    // Wrapped anew, as anybody can who has the public key.
    let rewrap = |kind: u8, commitment: &[u8; 32], key: &Secret| -> Result<Vec<u8>> {
        let clear = [&[1, 1], &[0; 14][..], commitment].concat();
        let more = additional(REPOSITORY, ObjectKind::PackKey, kind, &clear);
        Ok([&clear[..], &to_public_key(&more, key.expose())?].concat())
    };
    let (key, right) = (pack_key(), commitment(&pack_key()));
    let other = Secret::new(random("another pack key"));
    let comment = "a sealed key that is not the one committed to";
    refuse("-wrap-commitment", "P-6", comment, rewrap(1, &right, &other)?)?;
    let comment = "the key was wrapped for a map pack";
    refuse("-wrap-other-kind", "P-6", comment, rewrap(2, &right, &key)?)?;
    let copy = data.own_copy.as_ref().ok_or("there is no own copy")?;
    let copy = &copy[copy.len() - TRAILER_BYTES..][..128];
    refuse("-own-copy", "P-6", "the wrap of what the writer keeps", copy.to_vec())
}

/// What is of one kind at one place and of another elsewhere.
fn add_mixed(set: &mut Set, data: &SealedPack) -> Result<()> {
    let usual = packed(&keys())?;
    let bytes = changed(&data.bytes, |bytes| put(bytes, 48, &usual.bytes[48..176]));
    let comment = "a repository key in the header, the public key in the trailer, of one pack key";
    add_one(set, ("-ends-wrap", "P-13", comment), &[record_of(1)], bytes)?;
    let usual_wrap = with_wrap(data, &usual.bytes[48..176]);
    let comment = "a signed footer in a pack whose key is not sealed to the public key";
    let vector = Vector::refused("pack", "P-10", comment, usual_wrap);
    set.add("pack/writer-usual-wrap", keyed(vector));
    Ok(())
}
