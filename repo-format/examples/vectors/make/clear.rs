//! Vectors of instance objects (I), names (N), records (R) and allocation lists (A).

use super::{changed, put};
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::id::{InstanceId, LeaseId, PackId, PointId};
use diskvault_format::{instance, names, record};

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    add_instances(set);
    add_names(set);
    add_records(set)?;
    add_more_records(set);
    add_allocations(set);
    add_allocation_faults(set);
    Ok(())
}

fn add_instances(set: &mut Set) {
    let good = instance::encode(InstanceId(random("instance")));
    set.add("instance/good", Vector::ok("instance", "an instance object", good.clone()));
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(&format!("instance/{path}"), Vector::refused("instance", rule, comment, bytes));
    };
    let magic = changed(&good[..24], |bytes| put(bytes, 0, b"DVINSTNX"));
    let magic = [&magic[..], blake3::hash(&magic).as_bytes()].concat();
    refuse("magic", "I-1", "the magic ends in X, with a check value that fits", magic);
    refuse("short", "I-1", "the last byte is missing", good[..55].to_vec());
    refuse("trailing", "I-1", "one byte too many", [&good[..], &[0]].concat());
    refuse("empty", "I-1", "no bytes at all", Vec::new());
    let flipped = changed(&good, |bytes| bytes[8] ^= 1);
    refuse("id", "I-2", "a bit of the id is flipped", flipped);
    let check = changed(&good, |bytes| bytes[55] ^= 0x80);
    refuse("check", "I-2", "a bit of the check value is flipped", check);
}

fn add_names(set: &mut Set) {
    let point = PointId(random("point"));
    let lease = LeaseId(random("lease"));
    let tail: [u8; 16] = random("tail of a name");
    let vector = |vector: Vector, folder: &str| vector.with("folder", folder);
    let mut ok = |path: &str, folder: &str, comment, leaf: String| {
        set.add(&format!("name/{path}"), vector(Vector::ok("name", comment, leaf), folder));
    };
    ok("config", "config", "generation 26 in hexadecimal", names::config(26, &tail));
    ok("manifest", "points", "a manifest", point.to_hex());
    ok("point-ok", "points", "the ok of a manifest", names::point_ok(point));
    ok("note", "notes", "a note on a point", names::note(point, &tail));
    ok("lease", "leases", "a lease", lease.to_hex());
    ok("heartbeat", "leases", "the first heartbeat", names::heartbeat(lease, 1));
    let pack = PackId(random("pack")).to_hex();
    let folder = format!("packs/{}", &pack[..2]);
    ok("pack", &folder, "a pack in the folder of its first two digits", pack.clone());
    ok("parity", "parity", "the parity of a pack, in no folder of digits", pack.clone());
    ok("writer", "writers", "a record of a writer", names::writer(&tail));
    ok("heartbeat-last", "leases", "the last heartbeat", names::heartbeat(lease, u64::MAX));
    let mut refuse = |path: &str, folder, comment, leaf: String| {
        let refused = Vector::refused("name", "N-1", comment, leaf);
        set.add(&format!("name/{path}"), vector(refused, folder));
    };
    let config = names::config(26, &tail);
    refuse("config-upper-case", "config", "upper-case digits", config.to_uppercase());
    refuse("config-short", "config", "a generation of seven digits", config[1..].to_owned());
    refuse("config-no-tail", "config", "no random part", config[..8].to_owned());
    refuse("config-joined", "config", "no hyphen", config.replace('-', ""));
    refuse("point-short", "points", "63 digits", point.to_hex()[1..].to_owned());
    refuse("point-path", "points", "leaves its folder", format!("../{point}"));
    refuse("point-tmp", "points", "an ending that is not .ok", format!("{point}.tmp"));
    refuse("point-ok-ok", "points", "two endings", format!("{point}.ok.ok"));
    refuse("note-no-tail", "notes", "no random part", point.to_hex());
    refuse("note-tail-long", "notes", "33 digits", format!("{}0", names::note(point, &tail)));
    refuse("heartbeat-zero", "leases", "counts from 1", format!("{lease}.0"));
    refuse("heartbeat-leading-zero", "leases", "a leading zero", format!("{lease}.01"));
    refuse("heartbeat-sign", "leases", "a sign", format!("{lease}.+1"));
    refuse("heartbeat-long", "leases", "2^64", format!("{lease}.18446744073709551616"));
    refuse("heartbeat-none", "leases", "a dot and no number", format!("{lease}."));
    let writer = names::writer(&tail);
    refuse("writer-long", "writers", "33 digits", format!("{writer}0"));
    refuse("writer-dot", "writers", "an ending", format!("{writer}.1"));
    refuse("pack-short", &folder, "62 digits", pack[2..].to_owned());
    refuse("parity-short", "parity", "63 digits", pack[1..].to_owned());
    for (path, rule, folder, comment) in [
        ("folder-reserved", "N-2", "index", "a reserved folder is ignored"),
        ("folder-unknown", "N-2", "snapshots", "an unknown folder is ignored"),
        ("pack-elsewhere", "N-4", "packs/zz", "lies in another folder than its first two digits"),
    ] {
        let refused = Vector::refused("name", rule, comment, pack.clone());
        set.add(&format!("name/{path}"), vector(refused, folder));
    }
}

fn add_records(set: &mut Set) -> Result<()> {
    let mut ok = |path: &str, kind: &str, comment, bytes: Vec<u8>| {
        set.add(
            &format!("record/{path}"),
            Vector::ok("record", comment, bytes).with("record", kind),
        );
    };
    let edges = vec![0, 250, 251, 65535, 65536, u64::from(u32::MAX), 1 << 32, u64::MAX];
    ok("numbers", "numbers", "both sides of every step of the length", record::encode(&edges)?);
    let small = (255_u8, u16::MAX, 1_u32 << 16);
    ok("small-numbers", "small-numbers", "one byte is plain, others vary", record::encode(&small)?);
    let signed = vec![0_i64, -1, 1, 125, -126, i64::MAX, i64::MIN];
    ok("signed-numbers", "signed-numbers", "zigzag before the length", record::encode(&signed)?);
    let texts = vec!["", "a", "\u{fc}\u{4e16}\u{1f5a5}"];
    ok("texts", "texts", "lengths count bytes of UTF-8", record::encode(&texts)?);
    let optional = vec![None, Some(7_u64), Some(300)];
    ok("optional-numbers", "optional-numbers", "0, or 1 and the value", record::encode(&optional)?);
    let pairs = vec![("sha256", vec![1_u8, 2]), ("", vec![])];
    ok("pairs", "pairs", "fields follow without a length", record::encode(&pairs)?);
    ok("four-bytes", "four-bytes", "a fixed array has no length", vec![9, 8, 7, 6]);
    ok("empty-list", "numbers", "a length of zero", vec![0]);
    Ok(())
}

fn add_more_records(set: &mut Set) {
    let mut refuse = |path: &str, kind: &str, rule, comment, bytes: &[u8]| {
        let vector = Vector::refused("record", rule, comment, bytes);
        set.add(&format!("record/{path}"), vector.with("record", kind));
    };
    let mut long = vec![252, 0xfb, 0xff, 0xff, 0];
    long.resize((16 << 20) + 1, 0);
    refuse("long", "bytes", "R-1", "one byte beyond 16 MiB", &long);
    refuse("empty", "number", "R-2", "a number of no bytes", &[]);
    refuse("number-cut", "number", "R-2", "a 32-bit number with three bytes", &[252, 1, 2, 3]);
    refuse("number-tag", "number", "R-2", "255 starts no number", &[255, 1, 2, 3]);
    refuse(
        "number-wide",
        "small-numbers",
        "R-2",
        "16-bit field with 32 bits",
        &[1, 252, 0, 0, 1, 0, 1],
    );
    refuse("text-cut", "text", "R-2", "three bytes announced, two there", &[3, b'a', b'b']);
    refuse("text-not-utf8", "text", "R-2", "0xff is not UTF-8", &[1, 0xff]);
    refuse("text-surrogate", "text", "R-2", "a surrogate is not UTF-8", &[3, 0xed, 0xa0, 0x80]);
    refuse("option-tag", "optional-numbers", "R-2", "an option is 0 or 1", &[1, 2, 5]);
    let huge = [253, 0, 0, 0, 0, 0, 1, 0, 0, b'x'];
    refuse("length-huge", "bytes", "R-2", "2^40 bytes announced, one there", &huge);
    refuse("list-huge", "numbers", "R-2", "2^40 numbers announced, one there", &huge);
    refuse("number-16", "number", "R-3", "250 in three bytes", &[251, 250, 0]);
    refuse("number-32", "number", "R-3", "251 in five bytes", &[252, 251, 0, 0, 0]);
    refuse("number-64", "number", "R-3", "7 in nine bytes", &[253, 7, 0, 0, 0, 0, 0, 0, 0]);
    refuse("length-long", "text", "R-3", "a length of 1 in three bytes", &[251, 1, 0, b'a']);
    refuse("trailing", "number", "R-3", "one byte too many", &[7, 0]);
}

fn add_allocations(set: &mut Set) {
    let mut ok = |path: &str, comment, runs: &[(u64, bool)]| {
        let mut writer = AllocationWriter::new();
        for (bytes, is_allocated) in runs {
            writer.push(*bytes, *is_allocated);
        }
        let size: u64 = runs.iter().map(|run| run.0).sum();
        let vector = Vector::ok("allocation", comment, writer.finish()).with("size", size);
        set.add(&format!("allocation/{path}"), vector);
    };
    ok("empty", "a disk of no bytes has no runs", &[]);
    ok("hole", "a hole alone", &[(1 << 20, false)]);
    ok("allocated", "an empty hole, then all of it", &[(1 << 20, true)]);
    ok("mixed", "runs in turn", &[(512, false), (65536, true), (1 << 40, false), (512, true)]);
    ok("odd-end", "the last unit has 100 bytes", &[(4096, false), (1124, true)]);
    ok("largest", "a hole of 2^60 bytes", &[(1 << 60, false)]);
}

fn add_allocation_faults(set: &mut Set) {
    let mut refuse = |path: &str, rule, size: u64, comment, bytes: &[u8]| {
        let vector = Vector::refused("allocation", rule, comment, bytes);
        set.add(&format!("allocation/{path}"), vector.with("size", size));
    };
    refuse("cut", "A-1", 1 << 20, "the list ends before the disk", &[1]);
    refuse("cut-number", "A-1", 1 << 20, "ends inside a number", &[0x80]);
    refuse("no-list", "A-1", 512, "no runs for a disk with bytes", &[]);
    refuse("zero-run", "A-1", 1024, "a run of no units that is not the first", &[1, 0, 1]);
    refuse("zero-first-twice", "A-1", 512, "both first runs are empty", &[0, 0, 1]);
    refuse("padded", "A-1", 1024, "2 in two bytes", &[0x82, 0x00]);
    refuse("wide", "A-1", 1 << 60, "a number of eleven bytes", &[0xff; 11]);
    let overflow = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02];
    refuse("overflow", "A-1", 1 << 60, "2^64 does not fit 64 bits", &overflow);
    refuse("beyond", "A-2", 1024, "three units on a disk of two", &[3]);
    refuse("behind", "A-2", 1024, "an empty run behind the end", &[2, 0]);
    refuse("on-nothing", "A-2", 0, "a run on a disk of no bytes", &[0]);
}
