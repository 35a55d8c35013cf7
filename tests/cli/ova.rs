//! Points of OVA archives: each disk as its guest sees it, everything else as it is, and nothing of
//! an archive that is not understood.

use crate::ova_made::{END, RAW, VMDK, archive, descriptor, member, ovf, pax};
use crate::sources::{run_in, vault_with_qemu};
use crate::support::{MIB, Vault, files, random};
use std::fs;
use tar::EntryType;

const BACKUP: [&str; 3] = ["backup", "--name", "web01"];

/// The names of the disks of the newest point, and those of its streams.
fn parts(vault: &Vault, series: &str) -> [Vec<String>; 2] {
    let shown = vault.json(&["show", series]);
    ["disks", "streams"].map(|kind| {
        let parts = shown[kind].as_array().unwrap().iter();
        parts.map(|part| part["name"].as_str().unwrap().to_string()).collect()
    })
}

/// Two disks as vSphere exports them, with all that goes with them.
fn machine(vault: &Vault) -> [Vec<u8>; 2] {
    let run = |arguments: &[&str]| run_in(vault, "qemu-img", arguments);
    let created = ["create", "-q", "-f", "raw", "disk", "64M"];
    let mut views = Vec::new();
    for (name, kind, writes) in [
        ("web-disk1.vmdk", "streamOptimized", ["write -P 7 4M 1M", "write -P 8 40M 64k"]),
        ("web-disk2.vmdk", "monolithicSparse", ["write -P 9 5M 192k", "write -P 1 63M 1M"]),
    ] {
        run(&created);
        run_in(vault, "qemu-io", &["-f", "raw", "-c", writes[0], "-c", writes[1], "disk"]);
        let options = format!("subformat={kind}");
        run(&["convert", "-f", "raw", "-O", "vmdk", "-o", &options, "disk", name]);
        run(&["convert", "-O", "raw", name, "view"]);
        views.push(fs::read(vault.path("view")).unwrap());
        fs::remove_file(vault.path("disk")).unwrap();
    }
    let [disk1, disk2] =
        ["web-disk1.vmdk", "web-disk2.vmdk"].map(|name| fs::read(vault.path(name)).unwrap());
    let text = ovf(&[("web-disk1.vmdk", VMDK), ("web-disk2.vmdk", VMDK)]);
    let members: [(&str, &[u8]); 6] = [
        ("web.ovf", &text),
        ("web.mf", b"SHA256(web.ovf)= 00\n"),
        ("web.cert", b"some certificate"),
        ("web-disk2.vmdk", &disk2),
        ("web-disk1.vmdk", &disk1),
        ("web-file1.nvram", b"variables of its firmware"),
    ];
    vault.write("web.ova", &archive(&members));
    vault.write("one.ova", &archive(&[("one.ovf", &ovf(&[("d.vmdk", VMDK)])), ("d.vmdk", &disk1)]));
    // What is stored is read from the archive alone.
    for name in ["web-disk1.vmdk", "web-disk2.vmdk", "view"] {
        fs::remove_file(vault.path(name)).unwrap();
    }
    [views.remove(0), views.remove(0)]
}

#[test]
fn an_ova_is_the_disks_in_it_and_what_describes_them() {
    let Some(vault) = vault_with_qemu() else { return };
    let [disk1, disk2] = machine(&vault);
    let listing = files(&vault.path(""));
    let point = vault.ok(&[&["--json"][..], &BACKUP, &["web.ova"]].concat()).json();
    let beside = |found: Vec<String>| -> Vec<String> {
        let is_beside = |name: &String| !name.starts_with("repo/") && !name.starts_with("cache/");
        found.into_iter().filter(is_beside).collect()
    };
    assert_eq!(beside(files(&vault.path(""))), beside(listing), "something was unpacked");
    let streams: u64 = ["web.ovf", "web.mf", "web.cert", "web-file1.nvram"]
        .iter()
        .map(|name| vault.ok(&["dump", &format!("web01/{name}")]).stdout.len() as u64)
        .sum();
    // Of 128 MiB what the images have, and no more.
    assert_eq!(point["virtual_bytes"], 128 * MIB + streams);
    assert_eq!(point["read_bytes"], 2 * MIB + (64 << 10) + (192 << 10) + streams);
    let [disks, others] = parts(&vault, "web01");
    assert_eq!(disks, ["web-disk1.vmdk", "web-disk2.vmdk"], "in the order of the OVF");
    assert_eq!(others, ["web.ovf", "web.mf", "web.cert", "web-file1.nvram"]);
    vault.assert_restores("web01/web-disk1.vmdk", &disk1);
    vault.assert_restores("web01/web-disk2.vmdk", &disk2);
    vault.assert_restores(
        "web01/web.ovf",
        &ovf(&[("web-disk1.vmdk", VMDK), ("web-disk2.vmdk", VMDK)]),
    );
    vault.assert_restores("web01/web-file1.nvram", b"variables of its firmware");
    vault.ok(&["show", "web01"]).prints("vmdk");
    // The second point finds all of it.
    let again = vault.ok(&[&["--json"][..], &BACKUP, &["--full", "web.ova"]].concat()).json();
    assert_eq!(again["new_bytes"], 0);
    vault.assert_intact();
}

/// The names of parts, and the ways to say what a file is.
#[test]
fn an_ova_that_is_named() {
    let Some(vault) = vault_with_qemu() else { return };
    let [disk1, _] = machine(&vault);
    let stored = |further: &[&str]| {
        vault.ok(&[&["backup", "--name", "b"][..], further].concat());
        let [disks, others] = parts(&vault, "b");
        (disks.join(" "), others.join(" "))
    };
    let pair = |disks: &str, others: &str| (disks.to_string(), others.to_string());
    assert_eq!(stored(&["--disk", "sda=one.ova"]), pair("sda", "sda-one.ovf"));
    vault.assert_restores("b/sda", &disk1);
    assert_eq!(
        stored(&["--disk", "x=web.ova", "--disk", "y=one.ova"]),
        pair(
            "x-web-disk1.vmdk x-web-disk2.vmdk y",
            "x-web.ovf x-web.mf x-web.cert x-web-file1.nvram y-one.ovf"
        )
    );
    // As it is, if the user wants that.
    assert_eq!(stored(&["--stream", "a=one.ova"]), pair("", "a"));
    vault.assert_restores("b/a", &fs::read(vault.path("one.ova")).unwrap());
    assert_eq!(stored(&["--disk", "r=one.ova", "--format", "raw"]), pair("r", ""));
    fs::rename(vault.path("one.ova"), vault.path("one.tar")).unwrap();
    vault
        .fails(
            2,
            &["backup", "--name", "b", "one.tar"],
            "format of one.tar: it looks like an ova image",
        )
        .hints("use --format ova, or --format raw");
    assert_eq!(stored(&["one.tar", "--format", "ova"]), pair("d.vmdk", "one.ovf"));
    vault.write("notes.txt", b"no disk");
    let further = ["one.tar", "notes.txt", "--format", "one.tar=ova"];
    assert_eq!(stored(&further), pair("d.vmdk", "one.ovf notes.txt"));
    assert_eq!(stored(&["one.tar", "notes.txt", "--format", "ova"]).1, "one.ovf notes.txt");
    fs::copy(vault.path("web.ova"), vault.path("copy.ova")).unwrap();
    let twice = ["backup", "--name", "b", "web.ova", "copy.ova"];
    vault.fails(2, &twice, "cannot back up two inputs with one name: web-disk1.vmdk");
    let snapshot = ["backup", "--name", "b", "web.ova", "--snapshot", "x"];
    vault.fails(2, &snapshot, "cannot read a snapshot of web.ova/web-disk1.vmdk: it is vmdk");
    // A change list can only be about one disk.
    vault.write("list", b"0 65536\n");
    let listed = ["backup", "--name", "b", "--base", "b", "--changed", "list"];
    vault.fails(2, &[&listed[..], &["web.ova"]].concat(), "list for web.ova: it holds 2 disks");
    assert_eq!(vault.run(&[&listed[..], &["one.tar", "--format", "ova"]].concat()).code, 0);
    vault.assert_intact();
}

/// Every archive that is refused: nothing is stored of any.
#[test]
fn archives_that_are_refused() {
    let vault = Vault::new();
    let raw = random(1, 4096);
    let plain = |name: &str| member(name.as_bytes(), &raw, &|_| {});
    let text = |href: &str| member(b"m.ovf", &ovf(&[(href, RAW)]), &|_| {});
    let typed = |kind: EntryType| member(b"a.raw", &raw, &|header| header.set_entry_type(kind));
    let good = [text("a.raw"), plain("a.raw"), END.to_vec()].concat();
    let archive = |parts: &[Vec<u8>]| [&parts.concat()[..], &END].concat();
    let with_files = |files: &str| {
        let disk = "<Disk ovf:diskId='d0' ovf:fileRef='f0'/>";
        archive(&[member(b"m.ovf", &descriptor(files, disk), &|_| {}), plain("a.raw")])
    };
    let with_ovf = |text: &[u8]| archive(&[member(b"m.ovf", text, &|_| {}), plain("a.raw")]);
    let of_format =
        |uri: &str| archive(&[member(b"m.ovf", &ovf(&[("a.dat", uri)]), &|_| {}), plain("a.dat")]);
    let many: Vec<Vec<u8>> =
        (0..1100).map(|at| member(format!("{at}").as_bytes(), b"", &|_| {})).collect();
    let long = pax(&[("comment", &"x".repeat(17 << 20))]);
    let mut broken = good.clone();
    broken[3] ^= 1;
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "it has no .ovf file"),
        ("text", vec![b'x'; 700], "cannot read its headers: "),
        ("checksum", broken, "cannot read its headers: archive header checksum mismatch"),
        ("gzip", b"\x1f\x8b\x08 and more".repeat(99), "it is compressed, and a tar was expected"),
        (
            "cut header",
            good[..good.len() - 1024 - 4096 - 100].to_vec(),
            "cannot read its headers: ",
        ),
        ("cut", good[..good.len() - 1200].to_vec(), "a.raw of 4096 bytes reaches beyond its end"),
        (
            "sparse",
            archive(&[text("a.raw"), pax(&[("GNU.sparse.major", "1")]), plain("a.raw")]),
            "its member a.raw is sparse",
        ),
        (
            "links",
            archive(&[text("a.raw"), typed(EntryType::Symlink)]),
            "its member a.raw is a link",
        ),
        (
            "hard links",
            archive(&[text("a.raw"), typed(EntryType::Link)]),
            "its member a.raw is a link",
        ),
        (
            "devices",
            archive(&[text("a.raw"), typed(EntryType::Block)]),
            "its member a.raw is no file",
        ),
        (
            "up",
            archive(&[text("../a.raw"), plain("../a.raw")]),
            "name of its member ../a.raw leads out of it",
        ),
        (
            "root",
            archive(&[text("/a.raw"), plain("/a.raw")]),
            "name of its member /a.raw leads out of it",
        ),
        ("latin", archive(&[text("a.raw"), member(b"\xe9", &raw, &|_| {})]), "is no UTF-8"),
        (
            "twice",
            archive(&[text("a.raw"), plain("a.raw"), plain("./a.raw")]),
            "two members named a.raw",
        ),
        (
            "two texts",
            archive(&[text("a.raw"), plain("b.OVF"), plain("a.raw")]),
            "it has two .ovf files, m.ovf and b.OVF",
        ),
        ("no text", archive(&[plain("a.raw")]), "it has no .ovf file"),
        ("many", archive(&[many.concat()]), "it has more than 1024 members"),
        (
            "long",
            archive(&[text("a.raw"), long, plain("a.raw")]),
            "cannot read its headers: they are longer than 16 MiB",
        ),
        ("no xml", with_ovf(b"<Envelope><a></b>"), "its m.ovf: it is no XML"),
        ("utf-16", with_ovf(b"\xff\xfe<\0"), "its m.ovf is no UTF-8"),
        ("large text", with_ovf(&vec![b' '; (16 << 20) + 1]), "its m.ovf is longer than 16 MiB"),
        (
            "absent",
            archive(&[text("b.raw"), plain("a.raw")]),
            "its disk d0 is the file b.raw, which is not in the archive",
        ),
        (
            "away",
            archive(&[text("http://x/a.raw"), plain("a.raw")]),
            "http://x/a.raw, which is not in the archive",
        ),
        (
            "chunks",
            archive(&[text("a.raw"), plain("a.raw.000000000")]),
            "the file a.raw, which is cut into chunks",
        ),
        (
            "chunked",
            with_files("<File ovf:id='f0' ovf:href='a.raw' ovf:chunkSize='9'/>"),
            "its disk d0, the file a.raw, is cut into chunks",
        ),
        (
            "gzipped",
            with_files("<File ovf:id='f0' ovf:href='a.raw' ovf:compression='gzip'/>"),
            "its disk d0, the file a.raw, is compressed as a whole",
        ),
        ("nowhere", with_files(""), "its disk d0 has a file f0 that it does not name"),
        (
            "encrypted",
            with_ovf(b"<a><ovf:EncryptionSection/></a>"),
            "parts of the archive are encrypted",
        ),
        ("no vmdk", of_format(VMDK), "its disk a.dat should be vmdk and begins like no image"),
        (
            "vdi",
            of_format("http://www.virtualbox.org/vdi.html"),
            "the format of its disk a.dat, http://www.virtualbox.org/vdi.html, is not known",
        ),
        ("no format", of_format(""), "the format of its disk a.dat is not told"),
    ];
    let before = files(&vault.repo());
    for (what, bytes, expected) in cases {
        vault.write("m.ova", bytes);
        let outcome = vault.run(&[&BACKUP[..], &["m.ova"]].concat());
        assert_eq!(outcome.code, 1, "{what}: {outcome:?}");
        outcome.says("cannot read ova m.ova: ").says(expected);
        assert!(outcome.stderr.lines().filter(|line| line.starts_with("hint: ")).count() < 2);
    }
    // Names that a point cannot have are the user's to change.
    vault.write("m.ova", &archive(&[text("a%09b.raw"), plain("a\tb.raw")]));
    vault.fails(
        2,
        &[&BACKUP[..], &["m.ova"]].concat(),
        "the disk or stream name has a control character",
    );
    assert_eq!(files(&vault.repo()), before, "something was stored");
    vault.fails(
        1,
        &[&BACKUP[..], &["none.ova"]].concat(),
        "cannot open source none.ova: No such file",
    );
    let piped = ["--disk", "a=-", "--format", "ova"];
    vault.fails(2, &[&BACKUP[..], &piped].concat(), "cannot read a disk from standard input");
    let served = ["nbd://localhost:1/x.ova", "--format", "ova"];
    vault.fails(2, &[&BACKUP[..], &served].concat(), "NBD gives a disk as it is");
    // A drive without a medium is none of the refusals.
    let disks = "<Disk ovf:diskId='d0'/>";
    vault.write("m.ova", &archive(&[member(b"m.ovf", &descriptor("", disks), &|_| {})]));
    vault.ok(&["backup", "--name", "empty", "m.ova"]).says("disk d0 of m.ova is empty");
    assert_eq!(parts(&vault, "empty"), [vec![], vec!["m.ovf".to_string()]]);
    // The archive that all of these were made of.
    vault.write("m.ova", &good);
    vault.ok(&[&BACKUP[..], &["m.ova"]].concat());
    vault.assert_restores("web01/a.raw", &raw);
}

/// A disk in an archive leads to no other file, whether it is there or not.
#[test]
fn a_disk_with_further_files_is_refused() {
    let Some(vault) = vault_with_qemu() else { return };
    let run = |arguments: &[&str]| run_in(&vault, "qemu-img", arguments);
    run(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M"]);
    let sparse = ["-o", "subformat=monolithicSparse"];
    run(&[&["create", "-q", "-f", "vmdk"], &sparse[..], &["base.vmdk", "1M"]].concat());
    let delta = ["-F", "vmdk", "-b", "base.vmdk", "delta.vmdk"];
    run(&[&["create", "-q", "-f", "vmdk"], &sparse[..], &delta].concat());
    run(&["create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", "base.vmdk", "top.qcow2"]);
    let data = ["-o", "data_file=data.raw", "data.qcow2", "1M"];
    run(&[&["create", "-q", "-f", "qcow2"], &data[..]].concat());
    // Encrypted with AES, says its header.
    run(&["create", "-q", "-f", "qcow2", "locked.qcow2", "1M"]);
    let mut locked = fs::read(vault.path("locked.qcow2")).unwrap();
    locked[32..36].copy_from_slice(&1_u32.to_be_bytes());
    vault.write("locked.qcow2", &locked);
    let before = files(&vault.repo());
    for (name, expected) in [
        ("flat.vmdk", "its file flat-flat.vmdk is not looked for"),
        ("delta.vmdk", "its file base.vmdk is not looked for"),
        ("top.qcow2", "its file base.vmdk is not looked for"),
        ("data.qcow2", "its file data.raw is not looked for"),
        ("locked.qcow2", "it is encrypted"),
    ] {
        let disk = fs::read(vault.path(name)).unwrap();
        vault.write("m.ova", &archive(&[("m.ovf", &ovf(&[(name, "")])), (name, &disk)]));
        for further in [&[][..], &["--allow-backing"]] {
            let outcome = vault.run(&[&BACKUP[..], &["m.ova"], further].concat());
            assert_eq!(outcome.code, 1, "{name}: {outcome:?}");
            outcome.says(&format!("cannot open disk m.ova/{name}: {expected}"));
        }
    }
    assert_eq!(files(&vault.path("repo/packs")).len(), 0);
    assert_eq!(vault.point_count(), 0);
    assert_eq!(files(&vault.repo()), before);
}
