//! Vectors of deltas (rules D-1 to D-6).

use super::{changed, put};
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::delta::{Change, Description, Frames, Head, Payload};
use diskvault_format::key_slot::KdfCost;

const SECRET: &str = "between two ends";

fn head(is_sealed: bool) -> Head {
    Head { cost: is_sealed.then_some(KdfCost::RECOVERY), salt: random("the salt of a delta") }
}

fn description() -> Payload {
    Payload::Description(Description {
        old_point: "first".into(),
        new_point: "second".into(),
        disk: "sda".into(),
        old_bytes: 4096,
        new_bytes: 12_288,
        old_digest: random("the disk before"),
        new_digest: random("the disk after"),
    })
}

fn change(offset: u64, data: Option<&[u8]>) -> Change {
    let bytes = data.map_or(512, |data| data.len() as u32);
    let data = data.map(<[u8]>::to_vec);
    Change { offset, bytes, data }
}

/// A file of these payloads.
fn file(head: &Head, payloads: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut frames = Frames::new(head, Some(SECRET.as_bytes()))?;
    let mut file = head.encode().to_vec();
    for (number, payload) in payloads.iter().enumerate() {
        file.extend(frames.seal(payload, number + 1 == payloads.len()));
    }
    Ok(file)
}

fn encoded(payloads: &[Payload]) -> Result<Vec<Vec<u8>>> {
    Ok(payloads.iter().map(Payload::encode).collect::<std::result::Result<_, _>>()?)
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    let data = change(0, Some(b"new bytes"));
    let zeros = change(4096, None);
    let changes = |changes: &[&Change]| {
        Payload::Changes(changes.iter().map(|change| (*change).clone()).collect())
    };
    let usual = [description(), changes(&[&data, &zeros]), Payload::End(2)];
    let (plain, sealed) = (head(false), head(true));
    let good = file(&plain, &encoded(&usual)?)?;
    let locked = file(&sealed, &encoded(&usual)?)?;
    set.add("delta/plain", Vector::ok("delta", "data, and zeros behind the end", good.clone()));
    let vector = Vector::ok("delta", "the same, sealed", locked.clone());
    set.add("delta/sealed", vector.with("secret", SECRET));
    let none = encoded(&[description(), Payload::End(0)])?;
    set.add("delta/equal", Vector::ok("delta", "no changes", file(&plain, &none)?));

    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        let vector = Vector::refused("delta", rule, comment, bytes);
        set.add(&format!("delta/{path}"), vector.with("secret", SECRET));
    };
    let patch =
        |from: &[u8], offset, value: &[u8]| changed(from, |bytes| put(bytes, offset, value));
    refuse("short", "D-1", "ends inside the head", good[..63].to_vec());
    refuse("magic", "D-1", "the magic ends in 2", patch(&good, 7, b"2"));
    refuse("flags", "D-1", "a flag that is none", patch(&good, 10, &[2]));
    refuse("numbers", "D-1", "passes without the flag", patch(&good, 16, &[1]));
    refuse("reserved", "D-1", "the reserved bytes are not zero", patch(&good, 31, &[1]));
    refuse("version", "D-2", "version 2", patch(&good, 8, &[2]));
    refuse("costly", "K-4", "3 TiB of memory", patch(&locked, 12, &[0, 0, 0, 0xc0]));
    refuse("cut", "D-3", "ends inside the last frame", good[..good.len() - 1].to_vec());
    refuse("no-end", "D-3", "ends before the last frame", good[..good.len() - 29].to_vec());
    refuse("long", "D-3", "a body of 16 MiB", patch(&good, 64, &(16_u32 << 20).to_le_bytes()));
    refuse("bit", "D-4", "a bit of a plain frame", patch(&good, 80, &[good[80] ^ 1]));
    refuse("locked-bit", "D-4", "a bit of a sealed frame", patch(&locked, 80, &[locked[80] ^ 1]));
    let other = file(&Head { salt: [7; 32], ..sealed }, &encoded(&usual)?)?;
    let swapped = [&locked[..64], &other[64..]].concat();
    refuse("swapped", "D-4", "the frames of another file", swapped);
    refuse("behind", "D-5", "bytes follow", [&good[..], &[0; 4]].concat());
    let mut wrong = |path: &str, comment, payloads: &[Payload]| -> Result<()> {
        refuse(path, "D-5", comment, file(&plain, &encoded(payloads)?)?);
        Ok(())
    };
    wrong("no-description", "begins with changes", &usual[1..])?;
    wrong("twice", "two descriptions", &[description(), description(), Payload::End(0)])?;
    wrong("early", "the end is not last", &[description(), Payload::End(0), Payload::End(0)])?;
    wrong("endless", "changes are last", &usual[..2])?;
    wrong("count", "one change too few", &[description(), changes(&[&data]), Payload::End(2)])?;
    let overlap = changes(&[&data, &change(8, None)]);
    wrong("overlap", "changes overlap", &[description(), overlap, Payload::End(2)])?;
    let beyond = changes(&[&change(12_288 - 511, None)]);
    wrong("beyond", "reaches behind the disk", &[description(), beyond, Payload::End(1)])?;
    let kind = [encoded(&usual[..1])?, vec![vec![4]], encoded(&usual[2..])?].concat();
    refuse("kind", "D-5", "a frame of kind 4", file(&plain, &kind)?);
    for (path, comment, middle) in [
        ("length-large", "changes of 5 MiB", [&[2][..], &(5_u32 << 20).to_le_bytes()].concat()),
        ("garbage", "no zstd", [&[2][..], &45_u32.to_le_bytes(), b"garbage"].concat()),
        ("length-other", "another length", changed(&usual[1].encode()?, |bytes| bytes[1] += 1)),
    ] {
        let frames = [encoded(&usual[..1])?, vec![middle], encoded(&usual[2..])?].concat();
        refuse(path, "D-6", comment, file(&plain, &frames)?);
    }
    let empty = changes(&[&change(0, Some(b""))]);
    let frames = encoded(&[description(), empty, Payload::End(1)])?;
    refuse("empty", "D-6", "a change of no bytes", file(&plain, &frames)?);
    Ok(())
}
