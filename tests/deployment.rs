//! What docs/deployment.md tells people to type: its commands for a directory and for a host that SSH
//! reaches are run as they stand there, with other paths, and its lines of `authorized_keys` bind the
//! keys that these commands use.
#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use far::Sshd;
use std::path::Path;
use std::process::Command;

#[path = "support/far.rs"]
mod far;

const PROGRAM: &str = env!("CARGO_BIN_EXE_diskvault");

/// A section of the guide.
fn section(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deployment.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The blocks of a section that begin with this fence.
fn blocks(section: &str, fence: &str) -> Vec<String> {
    let fence = format!("```{fence}\n");
    let parts = section.split(&fence).skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

/// Runs commands in a shell that ends at the first that fails.
fn shell(folder: &Path, script: &str) -> (bool, String) {
    let programs = Path::new(PROGRAM).parent().unwrap().to_path_buf();
    let path = std::env::var_os("PATH").unwrap();
    let path = std::iter::once(programs).chain(std::env::split_paths(&path));
    let output = Command::new("sh")
        .args(["-ec", &format!("exec 2>&1\n{script}")])
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::join_paths(path).unwrap())
        .env("HOME", folder)
        .env("TZ", "UTC")
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The paths of the guide, below a folder.
fn moved(text: &str, top: &Path) -> String {
    let mut text = text.to_owned();
    for path in ["/srv/backups", "/etc/diskvault", "/var/lib/images", "/var/log/diskvault"] {
        text = text.replace(path, &format!("{}{path}", top.display()));
    }
    text
}

fn prepare(top: &Path) {
    for folder in ["srv", "etc", "var/lib/images", "var/log/diskvault"] {
        std::fs::create_dir_all(top.join(folder)).unwrap();
    }
    std::fs::write(top.join("var/lib/images/web01.raw"), vec![7; 3 << 20]).unwrap();
}

#[test]
fn the_commands_for_a_directory_and_for_ssh_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    prepare(&top);
    let local = blocks(&section("A directory"), "sh");
    assert_eq!(local.len(), 1);
    let (done, text) = shell(&top, &moved(&local[0], &top));
    assert!(done && text.contains("no damage found"), "{text}");

    let page = section("A host reached by SSH");
    let lines = blocks(&page, "");
    let forced: Vec<(String, String)> = lines[0]
        .lines()
        .map(|line| {
            let (command, key) = line.split_once("\" ssh-ed25519 AAAA... ").unwrap();
            let command = command.strip_prefix("restrict,command=\"diskvault ").unwrap();
            (key.to_owned(), moved(&format!("{PROGRAM} {command}"), &top))
        })
        .collect();
    assert_eq!(forced.len(), 3);
    let pairs: Vec<(&str, String)> =
        forced.iter().map(|(key, command)| (key.as_str(), command.clone())).collect();
    let Some(sshd) = Sshd::start(&pairs) else { return };
    let commands = blocks(&page, "sh");
    assert_eq!(commands.len(), 2);
    let as_key = |commands: &str, key: &str| {
        let there = sshd.address("ssh", Path::new(""));
        let mut script = moved(commands, &top).replace("ssh://vault@backup.example.org", &there);
        for (name, _) in &forced {
            let words = sshd.words(if key.is_empty() { name } else { key }).join(" ");
            let named = format!("ssh -i {}/etc/diskvault/{name}", top.display());
            script = script.replace(&format!("{named}\""), &format!("{words}\""));
        }
        script
    };
    for commands in &commands {
        let (done, text) = shell(&top, &as_key(commands, ""));
        assert!(done, "{text}");
    }
    // The key of a host cannot do what the keeper's can, nor can the reader's add.
    let policy = "--keep-daily 7 --keep-weekly 4 --keep-monthly 12 --prune";
    assert!(commands[1].contains(policy));
    let (done, text) = shell(&top, &as_key(&commands[1].replace(policy, "--force web01"), "web01"));
    assert!(!done && text.contains("this login may only add points"), "{text}");
    let (done, text) = shell(&top, &as_key(&commands[0], "reader"));
    assert!(!done && text.contains("this login may only read"), "{text}");
    let told = std::fs::read_to_string(top.join("var/log/diskvault/web01")).unwrap();
    assert!(told.contains("this login may only add points"), "{told}");
    assert_eq!(
        std::fs::read_to_string(top.join("var/log/diskvault/keeper")).unwrap_or_default(),
        ""
    );
}

/// Policies, units and other blocks are at least well formed.
#[test]
fn the_policies_are_json() {
    let policies = blocks(&section("Buckets"), "json");
    assert_eq!(policies.len(), 2);
    for policy in policies {
        let value: serde_json::Value = serde_json::from_str(&policy).unwrap();
        assert_eq!(value["Version"], "2012-10-17");
    }
}
