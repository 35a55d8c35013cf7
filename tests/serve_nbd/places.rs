//! Where a server listens, for whom, and until when.

use super::*;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

fn refused(stage: &Stage, arguments: &[&str], code: i32, why: &str) {
    let output =
        stage.shell.run(&[&["serve-nbd", "vm", "--exit-when-idle", "1"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(why), "{text}");
}

#[test]
fn sockets_are_private_and_only_dead_ones_are_replaced() {
    let stage = Stage::new();
    let server = stage.serve(&[]);
    let mode = std::fs::metadata(stage.path("s")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    refused(&stage, &["--socket", "s"], 1, "/s: a server is there");
    assert!(stage.copy(server.uri()) == stage.bytes());
    // One that is killed leaves its socket.
    server.end("-KILL");
    assert!(stage.path("s").exists());
    let server = stage.serve(&[]);
    assert!(stage.copy(server.uri()) == stage.bytes());
    drop(server);
    std::fs::write(stage.path("file"), "precious").unwrap();
    refused(&stage, &["--socket", "file"], 1, "/file: something else is there");
    assert_eq!(std::fs::read(stage.path("file")).unwrap(), b"precious");
    // One that took the place meanwhile is not removed at the end.
    let server = Server::start(&stage.shell, &["--socket", "t"]);
    std::fs::remove_file(stage.path("t")).unwrap();
    let _other = UnixListener::bind(stage.path("t")).unwrap();
    server.end("-TERM");
    assert!(stage.path("t").exists());
}

#[test]
fn tcp_is_for_this_host_unless_told_otherwise() {
    let stage = Stage::new();
    let server = Server::start(&stage.shell, &["--listen", "127.0.0.1:0"]);
    assert!(server.uri().starts_with("nbd://127.0.0.1:"), "{}", server.uri());
    assert!(stage.copy(server.uri()) == stage.bytes());
    drop(server);
    for open in ["0.0.0.0:0", "[::]:0"] {
        refused(&stage, &["--listen", open], 2, "without TLS: others could read the disks");
    }
    let server = Server::start(&stage.shell, &["--listen", "0.0.0.0:0", "--allow-plain"]);
    let uri = server.uri().replace("0.0.0.0", "127.0.0.1");
    assert!(stage.copy(&uri) == stage.bytes());
    refused(&stage, &["--listen", "127.0.0.1:x"], 2, "expected ADDRESS[:PORT]");
    refused(&stage, &["--listen", "127.0.0.1", "--socket", "s"], 2, "cannot be used with");
    let taken = server.uri().split(['/', ':']).nth(4).unwrap();
    let taken = format!("127.0.0.1:{taken}");
    refused(&stage, &["--listen", &taken], 1, &format!("cannot listen at {taken}"));
}

#[test]
fn it_ends_when_nobody_comes() {
    let stage = Stage::new();
    let mut server = stage.serve(&["--exit-when-idle", "1"]);
    assert!(stage.copy(server.uri()) == stage.bytes());
    let (code, text) = server.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(!stage.path("s").exists());
}

#[test]
fn points_without_disks_are_refused() {
    let stage = Stage::new();
    stage.shell.backup(&["--name", "notes", "--stream", "text=vda"]);
    for (point, code, why) in [
        ("notes", 1, "it has no disk"),
        ("notes/text", 2, "it is a stream, not a disk"),
        ("vm/vdz", 1, "cannot find vdz"),
    ] {
        let output = stage.shell.run(&["serve-nbd", point, "--socket", "s"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(why), "{text}");
        assert!(!stage.path("s").exists());
    }
}

/// Certificates by an authority of the test, as programs with GnuTLS look for them.
fn certificates(stage: &Stage, folder: &str) {
    let path = stage.path(folder);
    std::fs::create_dir(&path).unwrap();
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let own = parameters.self_signed(&authority).unwrap();
    std::fs::write(path.join("ca-cert.pem"), own.pem()).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority);
    for (role, name) in [("server", "localhost"), ("client", "client")] {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new([name.to_string()]).unwrap();
        let signed = parameters.signed_by(&key, &issuer).unwrap();
        std::fs::write(path.join(format!("{role}-cert.pem")), signed.pem()).unwrap();
        std::fs::write(path.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_is_required_once_it_is_configured() {
    let stage = Stage::new();
    certificates(&stage, "pki");
    certificates(&stage, "strange");
    let own = ["--tls-certificate", "pki/server-cert.pem", "--tls-key", "pki/server-key.pem"];
    let server = Server::start(&stage.shell, &[&own[..], &["--listen", "localhost:0"]].concat());
    let address = server.uri().strip_prefix("nbds://").unwrap().to_string();
    let port = address.split(['/', ':']).nth(1).unwrap();
    let uri = |folder: &str| {
        let path = stage.path(folder).display().to_string();
        format!("nbds://localhost:{port}/vda?tls-certificates={path}")
    };
    assert!(stage.copy(&uri("pki")) == stage.bytes());
    stage.client("nbdcopy", &["--connections=4", &uri("pki"), "four"]);
    assert!(std::fs::read(stage.path("four")).unwrap() == stage.bytes());
    let text = stage.client("nbdinfo", &[&uri("pki")]);
    assert!(text.contains("with TLS"), "{text}");
    // Neither without it, nor by somebody else's authority.
    let plain = stage.try_client("nbdinfo", &[&format!("nbd://localhost:{port}/vda")]);
    assert!(!plain.status.success());
    let strange = stage.try_client("nbdinfo", &[&uri("strange")]);
    assert!(!strange.status.success());
    drop(TcpStream::connect(("localhost", port.parse::<u16>().unwrap())).unwrap());
    drop(server);
    // Clients have to show a certificate.
    let ours = ["--tls-client-ca", "pki/ca-cert.pem", "--overlay", "o", "--listen", "localhost:0"];
    let server = Server::start(&stage.shell, &[&own[..], &ours[..]].concat());
    let address = server.uri().strip_prefix("nbds://").unwrap().to_string();
    let port = address.split(['/', ':']).nth(1).unwrap();
    let uri = |folder: &str| {
        let path = stage.path(folder).display().to_string();
        format!("nbds://localhost:{port}/vda?tls-certificates={path}")
    };
    let other = noise(5, DISK_BYTES as usize);
    std::fs::write(stage.path("other"), &other).unwrap();
    stage.client("nbdcopy", &["--connections=2", "other", &uri("pki")]);
    assert!(stage.copy(&uri("pki")) == other);
    std::fs::create_dir(stage.path("bare")).unwrap();
    std::fs::copy(stage.path("pki/ca-cert.pem"), stage.path("bare/ca-cert.pem")).unwrap();
    let bare = stage.try_client("nbdinfo", &[&uri("bare")]);
    assert!(!bare.status.success());
    assert!(stage.copy(&uri("pki")) == other);
    // Files that are none.
    let wrong = ["--tls-certificate", "vda", "--tls-key", "pki/server-key.pem"];
    refused(&stage, &wrong, 2, "cannot use vda for TLS");
    refused(&stage, &["--tls-key", "pki/server-key.pem"], 2, "--tls-certificate");
}
