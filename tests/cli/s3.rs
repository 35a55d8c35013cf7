//! Repositories in buckets, as a user sees them: a session, and what is said of each bad input.

use crate::s3_proxy::{Fault, Proxy};
use crate::s3_server::{Server, free_port};
use crate::support::{MIB, Outcome, Vault, finish, random};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

/// A command on a place, with keys for a server.
fn command(vault: &Vault, endpoint: &str, place: &str, arguments: &[&str]) -> Command {
    let mut command = vault.command(arguments);
    command
        .env("DISKVAULT_REPOSITORY", place)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "very-secret")
        .env("AWS_ENDPOINT_URL_S3", endpoint);
    command
}

fn run(vault: &Vault, endpoint: &str, place: &str, arguments: &[&str]) -> Outcome {
    let outcome = finish(&mut command(vault, endpoint, place, arguments));
    assert!(!outcome.stderr.contains("very-secret"));
    outcome
}

/// A server that gives the same answer to everything.
fn answers(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 8192];
            let _ = stream.read(&mut request);
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close");
            let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
        }
    });
    endpoint
}

#[test]
fn a_session_in_a_bucket() {
    let Some(server) = Server::moto() else { return };
    server.make_bucket("machines", true);
    let vault = Vault::without_repository();
    let data = random(7, 3 * MIB);
    vault.write("disk", &data);
    let (endpoint, place) = (server.endpoint.as_str(), "s3://machines/site/a");
    let run = |arguments: &[&str]| run(&vault, endpoint, place, arguments);
    let ok = |arguments: &[&str]| {
        let outcome = run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {}", outcome.stderr);
        outcome
    };
    let locked = ["--object-lock-days", "3"];
    let made = ok(&[&locked[..], &["init", "--no-recovery-key"]].concat());
    made.says("s3://machines/site/a: puts are seen at once; ");
    let outcome = run(&["init", "--no-recovery-key"]);
    assert_eq!(outcome.code, 1);
    outcome.says("cannot create repository s3://machines/site/a: there are objects already");

    ok(&[&locked[..], &["backup", "--name", "web", "disk"]].concat());
    ok(&["--connections", "2", "list"]).prints("web");
    assert!(ok(&["dump", "web"]).stdout == data);
    ok(&["restore", "web", "restored", "--limit-download", "100MiB"]);
    assert!(std::fs::read(vault.path("restored")).unwrap() == data);
    ok(&["check", "--read-data", "--object-lock-days", "9"])
        .prints("renewed the locks of 7 of 7 objects")
        .prints("no damage found");
    ok(&["check", "--object-lock-days", "9"]).prints("renewed the locks of 0 of 7 objects");
    ok(&["forget", "web", "--force", "--prune"]);
    ok(&["list"]).prints("0 points");

    // What was found is remembered: nothing is put to read.
    let outcome = ok(&["-v", "list"]);
    outcome.says("s3://machines/site/a: puts are seen at once");
    assert_eq!(std::fs::read_dir(vault.path("cache/s3")).unwrap().count(), 2);
}

#[test]
fn what_is_not_there_is_said() {
    let Some(server) = Server::moto() else { return };
    server.make_bucket("machines", false);
    let vault = Vault::without_repository();
    let run = |place: &str, arguments: &[&str]| run(&vault, &server.endpoint, place, arguments);
    let outcome = run("s3://nothing-here/a", &["list"]);
    assert_eq!(outcome.code, 10);
    outcome.says("cannot open repository s3://nothing-here/a: there is no such bucket");
    let outcome = run("s3://nothing-here/a", &["init", "--no-recovery-key"]);
    assert_eq!(outcome.code, 1);
    outcome.says("there is no such bucket").says("hint: make the bucket first");
    let outcome = run("s3://machines/a", &["list"]);
    assert_eq!(outcome.code, 10);
    outcome.says("cannot open repository s3://machines/a: it has no config");
    let arguments = ["init", "--no-recovery-key", "--object-lock-days", "3"];
    let outcome = run("s3://machines/a", &arguments);
    assert_eq!(outcome.code, 1);
    outcome.says("cannot use s3://machines/a: the bucket was not made for object lock");
    // Nothing is left of the attempt.
    let (_, listed) = server.request("GET", "machines", "?list-type=2", &[], b"");
    assert!(!String::from_utf8(listed).unwrap().contains("<Key>"));
}

#[test]
fn what_a_server_refuses_is_said_with_what_helps() {
    let vault = Vault::without_repository();
    let error = |code: &str, more: &str| {
        let text = format!("<Error><Code>{code}</Code><Message>no</Message>{more}</Error>");
        &*Box::leak(text.into_boxed_str())
    };
    for (status, body, text, hint) in [
        (
            "403 Forbidden",
            error("RequestTimeTooSkewed", ""),
            "the clocks of this machine and of the server differ too much",
            "hint: set the clock of this machine",
        ),
        (
            "400 Bad Request",
            error("ExpiredToken", ""),
            "the credentials have expired",
            "hint: renew the credentials",
        ),
        (
            "403 Forbidden",
            error("InvalidAccessKeyId", ""),
            "the server does not know the access key",
            "hint: look at AWS_ACCESS_KEY_ID",
        ),
        (
            "403 Forbidden",
            error("SignatureDoesNotMatch", ""),
            "the secret key does not fit the access key",
            "hint: look at AWS_SECRET_ACCESS_KEY",
        ),
        (
            "403 Forbidden",
            error("AccessDenied", ""),
            "403 AccessDenied: no",
            "hint: the key has to",
        ),
        (
            "400 Bad Request",
            error("AuthorizationHeaderMalformed", "<Region>eu-3</Region>"),
            "the bucket is in another region",
            "hint: use --region eu-3",
        ),
    ] {
        let endpoint = answers(status, body);
        let outcome = run(&vault, &endpoint, "s3://machines", &["list"]);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        outcome.says("diskvault: cannot open repository s3://machines: ").says(text).says(hint);
    }
    let endpoint = answers("200 OK", "<html>a web page</html>");
    let outcome = run(&vault, &endpoint, "s3://machines", &["list"]);
    assert_eq!(outcome.code, 1);
    outcome.says("the answer is no listing (tried 3 times");
}

#[test]
fn a_wrong_endpoint_is_said_soon() {
    let vault = Vault::without_repository();
    let closed = format!("http://127.0.0.1:{}", free_port());
    let outcome = run(&vault, &closed, "s3://machines", &["list"]);
    assert_eq!(outcome.code, 1);
    let authority = closed.trim_start_matches("http://");
    outcome.says(&format!("cannot connect to {authority}: Connection refused")).says("tried ");
    let plain = answers("200 OK", "");
    let secure = plain.replace("http://", "https://");
    let outcome = run(&vault, &secure, "s3://machines", &["list"]);
    assert_eq!(outcome.code, 1);
    outcome.says("by TLS: ").says("hint: look at --endpoint");
    for bad in ["127.0.0.1:9000", "ftp://x", "https://key:secret@x"] {
        let outcome = run(&vault, bad, "s3://machines", &["list"]);
        assert_eq!(outcome.code, 2, "{bad}: {}", outcome.stderr);
        outcome.says("cannot use endpoint ");
    }
}

#[test]
fn keys_come_from_profiles_and_are_missed_where_there_are_none() {
    let Some(server) = Server::moto() else { return };
    server.make_bucket("machines", false);
    let vault = Vault::without_repository();
    let bare = |profile: &str| {
        let mut command = vault.command(&["list", "--endpoint", &server.endpoint]);
        command.env("DISKVAULT_REPOSITORY", "s3://machines/a").env("AWS_PROFILE", profile);
        finish(&mut command)
    };
    let outcome = bare("");
    assert_eq!(outcome.code, 2);
    outcome.says("cannot find keys for S3").says("hint: set AWS_ACCESS_KEY_ID");
    let outcome = bare("work");
    assert_eq!(outcome.code, 2);
    outcome.says("cannot find profile \"work\"");
    std::fs::create_dir(vault.path(".aws")).unwrap();
    vault.write(".aws/config", b"[profile sso]\nsso_session = x\n[profile work]\nregion = eu-1\n");
    vault.write(".aws/credentials", b"[work]\naws_access_key_id=a\naws_secret_access_key=b\n");
    // The keys are taken: what is missing is the repository.
    assert_eq!(bare("work").code, 10);
    let outcome = bare("sso");
    assert_eq!(outcome.code, 2);
    outcome.says("sso_session is not supported");
    let outcome = run(&vault, &server.endpoint, "s3://machines", &["--connections", "0", "list"]);
    assert_eq!(outcome.code, 2);
    let arguments = ["--storage-class", "GLACIER", "list"];
    let outcome = run(&vault, &server.endpoint, "s3://machines", &arguments);
    assert_eq!(outcome.code, 2);
    outcome.says("it is read after hours").says("hint: GLACIER_IR");
}

#[test]
fn a_server_that_turns_away_in_the_middle_loses_nothing() {
    let Some(server) = Server::moto() else { return };
    server.make_bucket("machines", false);
    let (vault, place) = (Vault::without_repository(), "s3://machines/a");
    let ok = |arguments: &[&str]| {
        let outcome = run(&vault, &server.endpoint, place, arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {}", outcome.stderr);
        outcome
    };
    ok(&["init", "--no-recovery-key"]);
    let (first, second) = (random(1, 2 * MIB), random(2, 80 * MIB));
    vault.write("disk", &first);
    ok(&["backup", "--name", "web", "disk"]);
    vault.write("disk", &second);
    let proxy = Proxy::start(&server.endpoint, Fault::Expire, 1);
    // A look at the server is not what is to fail here.
    std::fs::remove_dir_all(vault.path("cache/s3")).unwrap();
    let outcome = run(&vault, &proxy.endpoint, place, &["backup", "--name", "web", "disk"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("the credentials have expired").says("hint: renew the credentials");
    assert!(proxy.struck() > 0);
    assert!(ok(&["dump", "web"]).stdout == first);
    ok(&["check", "--read-data"]).prints("no damage found");
    // With new keys it goes on.
    ok(&["backup", "--name", "web", "disk"]);
    assert!(ok(&["dump", "web"]).stdout == second);
    ok(&["check", "--read-data"]).prints("no damage found");
}

#[test]
fn a_server_whose_lists_lag_is_refused() {
    let Some(server) = Server::moto() else { return };
    server.make_bucket("machines", false);
    let vault = Vault::without_repository();
    let proxy = Proxy::start(&server.endpoint, Fault::StaleLists, 1);
    let outcome = run(&vault, &proxy.endpoint, "s3://machines/a", &["init", "--no-recovery-key"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("a completed put is not seen by the next list");
    // Nor is one used that was made elsewhere: the first look of a host comes before all else.
    let outcome = run(&vault, &server.endpoint, "s3://machines/a", &["init", "--no-recovery-key"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    vault.write("disk", &random(1, MIB));
    let proxy = Proxy::start(&server.endpoint, Fault::StaleLists, 1);
    let arguments = ["backup", "--name", "web", "disk"];
    let outcome = run(&vault, &proxy.endpoint, "s3://machines/a", &arguments);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("a completed put is not seen by the next list");
    let outcome = run(&vault, &server.endpoint, "s3://machines/a", &["check", "--read-data"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

/// A server that refuses everything, and what it was asked for.
fn hears() -> (String, std::sync::Arc<std::sync::Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let heard = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let hearing = heard.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 8192];
            let count = stream.read(&mut request).unwrap_or(0);
            hearing.lock().unwrap().push_str(&String::from_utf8_lossy(&request[..count]));
            let head = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
        }
    });
    (endpoint, heard)
}

#[test]
fn a_copy_has_a_server_and_keys_for_each_end() {
    let (Some(here), Some(there)) = (Server::moto(), Server::moto()) else { return };
    here.make_bucket("machines", false);
    there.make_bucket("machines", false);
    let (vault, place) = (Vault::without_repository(), "s3://machines/a");
    let disk = random(3, MIB);
    vault.write("disk", &disk);
    let ok = |outcome: Outcome| {
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome
    };
    for server in [&here, &there] {
        ok(run(&vault, &server.endpoint, place, &["init", "--no-recovery-key"]));
    }
    ok(run(&vault, &there.endpoint, place, &["backup", "--name", "web", "disk"]));
    let copy = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(&vault, &here.endpoint, place, arguments);
        command.env("DISKVAULT_FROM_PASSWORD", crate::support::PASSWORD);
        finish(command.envs(variables.iter().copied()))
    };
    let from = ["copy", "--from-repo", place];
    // One server for both ends is one repository.
    assert_ne!(copy(&from, &[]).code, 0);
    let elsewhere = ["--from-endpoint", &there.endpoint];
    ok(copy(&[&from[..], &elsewhere].concat(), &[])).prints("copied 1 point");
    assert!(ok(run(&vault, &here.endpoint, place, &["dump", "web"])).stdout == disk);
    // A profile of its own brings server and keys, whatever the variables of the target say.
    std::fs::create_dir(vault.path(".aws")).unwrap();
    let profile = format!(
        "[profile source]\naws_access_key_id = FROMKEY\naws_secret_access_key = hidden\n\
         endpoint_url = {}\n",
        there.endpoint
    );
    vault.write(".aws/config", profile.as_bytes());
    let by_profile = [&from[..], &["--from-profile", "source"]].concat();
    ok(copy(&by_profile, &[])).prints("1 were there already");
    ok(copy(&from, &[("DISKVAULT_FROM_AWS_PROFILE", "source")])).prints("1 were there already");
    let (endpoint, heard) = hears();
    let asked = [&by_profile[..], &["--from-endpoint", &endpoint]].concat();
    assert_eq!(copy(&asked, &[]).code, 1);
    let text = std::mem::take(&mut *heard.lock().unwrap());
    assert!(text.contains("Credential=FROMKEY/") && !text.contains("Credential=test/"), "{text}");
    let keys = [
        ("DISKVAULT_FROM_AWS_ACCESS_KEY_ID", "OWN"),
        ("DISKVAULT_FROM_AWS_SECRET_ACCESS_KEY", "x"),
    ];
    let asked = [&from[..], &["--from-endpoint", &endpoint]].concat();
    assert_eq!(copy(&asked, &keys).code, 1);
    let text = std::mem::take(&mut *heard.lock().unwrap());
    assert!(text.contains("Credential=OWN/") && !text.contains("Credential=test/"), "{text}");
    // Half of them is not made whole with those of the target.
    let outcome = copy(&asked, &keys[..1]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.says("cannot use DISKVAULT_FROM_AWS_ACCESS_KEY_ID without DISKVAULT_FROM_AWS_SECRET");
}
