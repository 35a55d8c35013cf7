//! qemu-nbd, qemu-storage-daemon's relative, and nbdkit.

use super::*;

fn qemu(folder: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

fn writes(commands: &[&str], image: &str) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    for command in commands {
        arguments.extend(["-c".to_string(), command.to_string()]);
    }
    arguments.push(image.to_string());
    arguments
}

#[test]
fn an_export_of_qemu_reads_as_qemu_converts_it() {
    let folder = tempfile::tempdir().unwrap();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-img");
        return;
    }
    qemu(folder.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "d.qcow2", "40M"]);
    let commands =
        ["write -P 1 0 300k", "write -P 2 9M 3M", "write -z 10M 64k", "write -P 3 40959k 1k"];
    let arguments = writes(&commands, "d.qcow2");
    qemu(folder.path(), "qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    qemu(folder.path(), "qemu-img", &["convert", "-O", "raw", "d.qcow2", "raw"]);
    let expected = std::fs::read(folder.path().join("raw")).unwrap();
    for (shared, name) in [("1", ""), ("8", "a%20disk")] {
        let export = name.replace("%20", " ");
        let arguments = ["-r", "-f", "qcow2", "-e", shared, "-x", &export, "d.qcow2"];
        let Some(server) = Server::start(folder.path(), "qemu-nbd", &arguments) else { return };
        let source = open(&server.address(name)).unwrap();
        for (step, ahead) in
            [(3_000_001, false), (65_536, true), (3 * 4096 + 512, false), (4 << 20, true)]
        {
            assert!(read_all(&source, step, ahead) == expected, "in steps of {step}");
        }
        let data = data_of(&source);
        assert_eq!(
            data,
            [
                0..320 << 10,
                9 << 20..10 << 20,
                (10 << 20) + (64 << 10)..12 << 20,
                40896 << 10..40 << 20
            ]
        );
        assert_eq!((source.format(), source.allocation_known()), ("nbd", true));
    }
}

#[test]
fn a_bitmap_of_qemu_tells_what_has_changed() {
    let folder = tempfile::tempdir().unwrap();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-img");
        return;
    }
    qemu(folder.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "d.qcow2", "64M"]);
    qemu(folder.path(), "qemu-img", &["bitmap", "--add", "d.qcow2", "b0"]);
    let arguments = writes(&["write -P 7 1M 256k", "write -P 8 40M 1k"], "d.qcow2");
    qemu(folder.path(), "qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    qemu(folder.path(), "qemu-img", &["bitmap", "--disable", "d.qcow2", "b0"]);
    let arguments = ["-r", "-f", "qcow2", "-B", "b0", "d.qcow2"];
    let Some(server) = Server::start(folder.path(), "qemu-nbd", &arguments) else { return };
    let source = server.open();
    let changed = [1 << 20..(1 << 20) + (256 << 10), 40 << 20..(40 << 20) + (64 << 10)];
    assert_eq!(source.changed_by_bitmap("b0").unwrap().unwrap(), changed);
    assert_eq!(source.bitmaps().unwrap(), ["b0"]);
    assert_eq!(data_of(&source).len(), 2);
    assert_eq!(source.changed_by_bitmap("b1").unwrap(), None);
}

#[test]
fn exports_of_nbdkit_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["sparse-random", "size=64M", "seed=7", "percent=20"];
    let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let source = server.open();
    let bytes = read_all(&source, 1 << 20, true);
    assert!(bytes == read_all(&source, 64 << 10, false));
    let data = data_of(&source);
    assert!(data.len() > 2, "{data:?}");
    let mut hole = 0;
    for range in data {
        assert!(bytes[hole..range.start as usize].iter().all(|byte| *byte == 0));
        hole = range.end as usize;
    }
    assert!(bytes.iter().any(|byte| *byte != 0));
}

#[test]
fn servers_of_old_kinds_are_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--no-sr", "pattern", "5M"];
    let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let source = server.open();
    assert!(!source.allocation_known());
    let all = 0..5 << 20;
    assert_eq!(data_of(&source), std::slice::from_ref(&all));
    let bytes = read_all(&source, 1 << 20, true);
    // The pattern is the offset, every 8 bytes.
    for (number, word) in bytes.chunks(8).enumerate() {
        assert_eq!(word, (number as u64 * 8).to_be_bytes());
    }
    let error = source.read_at((5 << 20) - 4, &mut [0; 8]).unwrap_err().full_text();
    assert!(error.contains("8 bytes reach beyond its end at 5242880"), "{error}");
    drop(server);
    let arguments = ["--mask-handshake=0", "--no-sr", "pattern", "5M"];
    let server = Server::start(folder.path(), "nbdkit", &arguments).unwrap();
    let error = open(&server.address("")).err().unwrap().full_text();
    assert!(
        error.ends_with("the server sent newstyle negotiation that is not the fixed one"),
        "{error}"
    );
}

#[test]
fn a_disk_of_a_tebibyte_of_holes_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let logfile = format!("logfile={}", log.display());
    let data = "data=@0x100000 \"hello\"*1000 @0x8000000000 1";
    let arguments = ["--filter=log", "data", data, "size=1T", &logfile];
    let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let source = server.open();
    let data = data_of(&source);
    let bytes: u64 = data.iter().map(|range| range.end - range.start).sum();
    assert!(data.len() == 2 && bytes <= 128 << 10, "{data:?}");
    // A walk of part of it, from the middle of a hole.
    let mut parts = Vec::new();
    source
        .extents_in(1 << 21..(1 << 39) + 10, &mut |extent| {
            parts.push((extent.start, extent.bytes, extent.kind));
            Ok(())
        })
        .unwrap();
    assert_eq!(
        parts,
        [(1 << 21, (1 << 39) - (1 << 21), ExtentKind::Hole), (1 << 39, 10, ExtentKind::Data)]
    );
    // What was asked for: one request for each 2 GiB, once.
    let asked = std::fs::read_to_string(&log).unwrap().matches(" Extents id=").count();
    assert_eq!(asked, 512);
}

/// A certificate of an authority of its own, as nbdkit wants them in a folder.
fn certificates(folder: &Path, name: &str) {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&authority).unwrap();
    std::fs::write(folder.join("ca-cert.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority);
    for (who, name) in [("server", name), ("client", "somebody")] {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new([name.to_string()]).unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_is_spoken_and_certificates_count() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    certificates(folder.path(), "localhost");
    let path = folder.path().display().to_string();
    let own = format!("--tls-certificates={path}");
    let arguments = ["--tls=require", "--tls-verify-peer", &own, "pattern", "9M"];
    let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let text = format!("{}&tls-certificates={path}", server.address("")).replace("nbd+", "nbds+");
    let source = open(&text).unwrap();
    let bytes = read_all(&source, 1 << 20, true);
    assert!(bytes.chunks(8).enumerate().all(|(at, word)| word == (at as u64 * 8).to_be_bytes()));

    let error = open(&server.address("")).err().unwrap();
    assert!(error.full_text().contains("only with TLS"), "{error:?}");
    assert_eq!(error.hint_text(), Some("use nbds:// instead of nbd://"));
    let other = open(&format!("{text}&tls-hostname=elsewhere")).err().unwrap().full_text();
    assert!(other.contains("TLS failed") && other.contains("not valid for name"), "{other}");
    let strange = tempfile::tempdir().unwrap();
    certificates(strange.path(), "localhost");
    let (front, _) = text.split_once("&tls-certificates").unwrap();
    let strange = format!("{front}&tls-certificates={}", strange.path().display());
    let error = open(&strange).err().unwrap().full_text();
    assert!(error.contains("TLS failed"), "{error}");
    let missing = format!("{front}&tls-certificates=/nowhere");
    let error = open(&missing).err().unwrap().full_text();
    assert!(error.contains("/nowhere/ca-cert.pem cannot be used"), "{error}");
    let system = server.address("").replace("nbd+", "nbds+");
    let error = open(&system).err().unwrap().full_text();
    assert!(error.contains("TLS failed"), "{error}");
    drop(server);
    let server = Server::start(folder.path(), "nbdkit", &["pattern", "9M"]).unwrap();
    let error = open(&server.address("").replace("nbd+", "nbds+")).err().unwrap();
    assert!(error.full_text().contains("the server has no TLS for us"), "{error:?}");
}

#[test]
fn what_cannot_be_opened_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |address: &str| {
        let error = open(address).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Source);
        error.full_text()
    };
    let missing = format!("nbd+unix:///?socket={}/no.sock", folder.path().display());
    assert!(refused(&missing).ends_with("No such file or directory (os error 2)"));
    assert!(refused("nbd://127.0.0.1:1/").contains("Connection refused"));
    let Some(server) =
        Server::start(folder.path(), "qemu-nbd", &["-r", "-x", "vda", "-f", "raw", "/dev/null"])
    else {
        return;
    };
    let error = refused(&server.address("vdb"));
    assert!(error.contains("no export \"vdb\" (but \"vda\") for us: not known"), "{error}");
}
