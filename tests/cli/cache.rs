//! What is no repository, what a lost, spoilt or old cache does (nothing), and several
//! programs at once in one repository.

use crate::support::{MIB, Tmpfs, Vault, copy_folder, files, finish, poll, random, wait};
use std::fs;
use std::io::Write;
use std::process::Stdio;

#[test]
fn what_is_no_repository_is_told_from_a_wrong_password() {
    let vault = Vault::without_repository();
    let source = vault.write("file", b"x");
    fs::create_dir(vault.path("empty")).unwrap();
    fs::create_dir_all(vault.path("odd/config")).unwrap();
    for (path, text) in [
        ("nowhere", "no such directory"),
        ("file", "it is no directory"),
        ("empty", "it has no config folder"),
        ("odd", "it has no config"),
    ] {
        for command in [vec!["list"], vec!["check"], vec!["backup", "--name", "a", &source]] {
            let mut arguments = vec!["--repo", path];
            arguments.extend(command);
            vault.fails(10, &arguments, &format!("cannot open repository {path}: {text}"));
        }
    }
    assert!(!vault.path("nowhere").exists());
    assert!(files(&vault.path("empty")).is_empty());
}

#[test]
fn which_repository_must_be_said() {
    let vault = Vault::new();
    let unset =
        |arguments: &[&str]| finish(vault.command(arguments).env_remove("DISKVAULT_REPOSITORY"));
    let outcome = unset(&["list"]);
    assert_eq!(outcome.code, 2);
    outcome.says("cannot find out which repository to use").hints("DISKVAULT_REPOSITORY");
    assert_eq!(unset(&["list", "--repo", "repo"]).code, 0);
    assert_eq!(unset(&["list", "-r", "repo"]).code, 0);
    for url in ["ftp://host/repo", "\x1b[1m://x", "ssh://host", "s3://"] {
        vault.fails(2, &["list", "--repo", url], "cannot use repository ");
    }
    vault.fails(2, &["list", "--repo", ""], "cannot use an empty repository path");
    vault.write("place", b"repo\n");
    let mut command = vault.command(&["list"]);
    command.env("DISKVAULT_REPOSITORY", "").env("DISKVAULT_REPOSITORY_FILE", "place");
    assert_eq!(finish(&mut command).code, 0, "an empty variable is none");
    vault.fails(2, &["list", "--threads", "0"], "cannot work with 0 threads");
}

/// A service has the one in its environment; what is typed is what is meant.
#[test]
fn an_option_beats_every_variable() {
    let vault = Vault::new();
    copy_folder(&vault.repo(), &vault.path("other"));
    let file = vault.write("file", b"x");
    vault.backup("a", &[&file]);
    vault.write("place", b"other\n");
    for (variable, value) in [("_FILE", "nowhere"), ("", "repo")] {
        for option in [["--repository-file", "place"], ["--repo", "other"]] {
            // The cache of another host: this one would miss the point.
            let arguments = ["list", option[0], option[1], "--cache-dir", "second"];
            let mut command = vault.command(&arguments);
            let outcome = finish(command.env(format!("DISKVAULT_REPOSITORY{variable}"), value));
            assert_eq!(outcome.code, 0, "{outcome:?}");
            outcome.prints("0 points");
        }
    }
    assert!(vault.path("second").exists());
    vault.write("wrong", b"another password\n");
    vault.fails(12, &["list", "--password-file", "wrong"], "wrong password");
    vault.fails(12, &["list", "--password-command", "cat wrong"], "wrong password");
    let both = ["--repo", "repo", "list", "--repository-file", "place"];
    vault.fails(2, &both, "cannot use --repo and --repository-file together");
    // Of the variables the path comes first.
    let mut command = vault.command(&["list"]);
    let outcome = finish(command.env("DISKVAULT_REPOSITORY_FILE", vault.path("place")));
    outcome.prints("1 point\n");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let vault = Vault::new();
    let file = vault.write("file", b"content");
    vault.backup("a", &[&file]);
    let configs = files(&vault.path("repo/config"));
    let path = vault.path("repo/config").join(&configs[0]);
    let good = fs::read(&path).unwrap();
    let mut newer = good.clone();
    newer[8..10].copy_from_slice(&999_u16.to_le_bytes());
    fs::write(&path, &newer).unwrap();
    let before = files(&vault.repo());
    for command in [vec!["list"], vec!["check"], vec!["dump", "a"], vec!["key", "list"]] {
        vault.fails(13, &command, "has format version 999");
    }
    vault.fails(13, &["backup", "--name", "a", &file], "has format version 999");
    assert_eq!(files(&vault.repo()), before);
    assert_eq!(fs::read(&path).unwrap(), newer);
    // An older config beside it must not be used instead.
    let random = &configs[0][configs[0].find('-').unwrap()..];
    fs::write(&path, &good).unwrap();
    let mut next = newer.clone();
    next[12..16].copy_from_slice(&2_u32.to_le_bytes());
    let width = configs[0].len() - random.len();
    let name = format!("{:0width$}{random}", 2);
    fs::write(vault.path("repo/config").join(&name), next).unwrap();
    vault.fails(13, &["list"], "has format version 999");
    fs::remove_file(vault.path("repo/config").join(&name)).unwrap();
    vault.assert_restores("a", b"content");
    vault.assert_intact();
}

/// A vault with a history that needs the index: two series that share data.
fn vault_with_history() -> (Vault, Vec<u8>) {
    let vault = Vault::new();
    let data = random(1, 6 * MIB);
    vault.write("disk", &data);
    vault.backup("a", &["disk"]);
    (vault, data)
}

/// Everything works as if nothing had happened, and nothing is stored twice.
fn assert_works(vault: &Vault, data: &[u8], what: &str) {
    vault.assert_restores("a", data);
    vault.write("disk", data);
    let again = vault.json(&["backup", "--name", "a", "disk"]);
    assert_eq!(again["new_bytes"], 0, "after {what}: {again}");
    let other = vault.json(&["backup", "--name", "other", "disk"]);
    assert_eq!(other["new_bytes"], 0, "after {what}: {other}");
    vault.assert_intact();
}

#[test]
fn a_deleted_cache_is_made_anew() {
    let (vault, data) = vault_with_history();
    for _ in 0..2 {
        fs::remove_dir_all(vault.path("cache")).unwrap();
        assert_works(&vault, &data, "deletion");
    }
    for file in files(&vault.path("cache")) {
        let path = vault.path("cache").join(file);
        let _ = fs::remove_file(&path);
        assert_works(&vault, &data, &format!("deletion of {}", path.display()));
    }
}

#[test]
fn a_garbled_cache_is_made_anew() {
    let (vault, data) = vault_with_history();
    for (round, spoil) in [
        |bytes: &[u8]| vec![0xa5; bytes.len()],
        |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec(),
        |_: &[u8]| Vec::new(),
        |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            for at in (0..bytes.len()).step_by(97) {
                bytes[at] ^= 0x10;
            }
            bytes
        },
    ]
    .iter()
    .enumerate()
    {
        for file in files(&vault.path("cache")) {
            // Warnings about a spoilt memory of the host are allowed once.
            if file.ends_with("memory.json") {
                continue;
            }
            let path = vault.path("cache").join(file);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, spoil(&bytes)).unwrap();
        }
        assert_works(&vault, &data, &format!("garbling {round}"));
    }
}

#[test]
fn a_garbled_memory_of_the_host_warns_once() {
    let (vault, data) = vault_with_history();
    let memory = files(&vault.path("cache")).into_iter().find(|file| file.ends_with("memory.json"));
    fs::write(vault.path("cache").join(memory.unwrap()), b"{\"writer\": 7").unwrap();
    let outcome = vault.run(&["list"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("warning: cannot read ").says("memory.json, starting it anew");
    vault.ok(&["list"]);
    assert_works(&vault, &data, "a garbled memory");
}

#[test]
fn a_rolled_back_cache_is_brought_up_to_date() {
    let (vault, data) = vault_with_history();
    copy_folder(&vault.path("cache"), &vault.path("old-cache"));
    let newer = random(2, 3 * MIB);
    vault.write("second", &newer);
    vault.backup("b", &["second"]);
    fs::remove_dir_all(vault.path("cache")).unwrap();
    fs::rename(vault.path("old-cache"), vault.path("cache")).unwrap();
    vault.assert_restores("b", &newer);
    let summary = vault.json(&["backup", "--name", "c", "second"]);
    assert_eq!(summary["new_bytes"], 0);
    assert_works(&vault, &data, "a rollback");
}

#[test]
fn a_cache_without_room_is_done_without() {
    let (vault, data) = vault_with_history();
    let mut was_full = false;
    for pages in [1, 2, 3, 4, 5, 6, 8, 10, 12, 14] {
        let at = vault.path(&format!("tiny{pages}"));
        let Some(_mount) = Tmpfs::new(&at, &format!("size={}k", 4 * pages)) else { break };
        for command in [vec!["backup", "--name", "z", "disk"], vec!["dump", "a"]] {
            let mut command = vault.command(&command);
            let outcome = finish(command.env("DISKVAULT_CACHE_DIR", &at));
            assert!([0, 4].contains(&outcome.code), "{pages} pages: {outcome:?}");
            if outcome.code == 4 {
                was_full = true;
                outcome.says("cannot ").says("No space left on device");
            }
        }
    }
    assert!(was_full || !vault.path("tiny14").exists(), "no cache was small enough");
    assert_works(&vault, &data, "a cache without room");
}

#[test]
fn repair_index_makes_it_anew() {
    let (vault, data) = vault_with_history();
    let first = vault.json(&["repair", "index"]);
    assert!(first["packs"].as_u64().unwrap() >= 2 && first["entries"].as_u64().unwrap() > 96);
    fs::remove_dir_all(vault.path("cache")).unwrap();
    assert_eq!(vault.json(&["repair", "index"]), first);
    for file in files(&vault.path("cache")) {
        if !file.ends_with("memory.json") {
            fs::write(vault.path("cache").join(file), b"garbage").unwrap();
        }
    }
    assert_eq!(vault.json(&["repair", "index"]), first);
    vault.ok(&["repair", "index"]).prints("made the index anew: ");
    assert_works(&vault, &data, "repair");
}

/// `check` makes an index of its own; one that is killed leaves it, and the next run removes it.
#[test]
fn what_a_killed_check_left_is_swept() {
    let vault = Vault::new();
    vault.write("disk", &random(7, 48 * MIB));
    vault.backup("a", &["disk"]);
    let private = || {
        let left = files(&vault.path("cache"));
        left.iter().filter(|file| file.contains("/index-")).count()
    };
    let mut killed = false;
    for _ in 0..20 {
        let mut child = vault.command(&["check", "--read-data"]).spawn().unwrap();
        let is_running = poll(&mut child, || private() > 0);
        child.kill().unwrap();
        wait(child);
        if is_running && private() > 0 {
            killed = true;
            break;
        }
    }
    assert!(killed, "no check could be killed in time");
    vault.ok(&["dump", "a"]);
    assert_eq!(private(), 0, "{:?}", files(&vault.path("cache")));
}

#[test]
fn two_backups_at_once() {
    let vault = Vault::new();
    let shared = random(3, 24 * MIB);
    let content = |seed| [&shared[..], &random(seed, 16 * MIB)].concat();
    for seed in [4, 5] {
        vault.write(&format!("disk{seed}"), &content(seed));
    }
    for round in 0..2 {
        let run = |seed: u64| {
            let (series, disk) = (format!("series{seed}"), format!("disk=disk{seed}"));
            let arguments = ["--json", "backup", "--name", &series, "--disk", &disk];
            vault.command(&arguments).spawn().unwrap()
        };
        let children = [run(4), run(5)];
        for child in children {
            let outcome = wait(child);
            assert_eq!(outcome.code, 0, "{outcome:?}");
            let summary = outcome.json();
            assert_eq!(summary["virtual_bytes"], 40 * MIB);
            if round > 0 {
                assert_eq!(summary["unchanged_bytes"], 40 * MIB);
            }
        }
    }
    assert_eq!(vault.point_count(), 4);
    for seed in [4, 5] {
        vault.assert_restores(&format!("series{seed}"), &content(seed));
        vault.assert_restores(&format!("series{seed}@latest~1"), &content(seed));
    }
    vault.assert_intact();
}

#[test]
fn backups_at_once_are_all_remembered() {
    let vault = Vault::new();
    let mut newest = std::collections::BTreeMap::new();
    for round in 0..3 {
        vault.write("file", format!("round {round}").as_bytes());
        let start = |number: i32| {
            let series = format!("series{number}");
            let child = vault.command(&["--json", "backup", "--name", &series, "file"]).spawn();
            (series, child.unwrap())
        };
        for (series, child) in (0..6).map(start).collect::<Vec<_>>() {
            let outcome = wait(child);
            assert_eq!(outcome.code, 0, "{outcome:?}");
            newest.insert(series, outcome.json()["point_id"].clone());
        }
        let cache = files(&vault.path("cache"));
        let memory = cache.iter().find(|file| file.ends_with("memory.json")).unwrap();
        let memory = fs::read(vault.path("cache").join(memory)).unwrap();
        let memory: serde_json::Value = serde_json::from_slice(&memory).unwrap();
        for (series, id) in &newest {
            let heads = memory["series"][series]["heads"].as_array();
            assert!(heads.is_some_and(|heads| heads.contains(id)), "{series}: {memory}");
        }
    }
}

#[test]
fn everything_else_goes_on_beside_a_backup() {
    let (vault, data) = vault_with_history();
    let mut command = vault.command(&["backup", "--name", "pipe", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let half = random(6, 40 * MIB);
    input.write_all(&half).unwrap();
    let leases = vault.path("repo/leases");
    assert!(poll(&mut child, || !files(&leases).is_empty()));
    vault.assert_restores("a", &data);
    assert_eq!(vault.point_count(), 1);
    vault.ok(&["check", "--read-data"]).prints("remark: 1 backup is running or left behind");
    vault.backup("a", &["disk"]);
    vault.ok(&["repair", "index"]);
    assert_eq!(vault.json(&["digest", "a"])["digest"], crate::support::blake3_hex(&data));
    input.write_all(&half).unwrap();
    drop(input);
    let outcome = wait(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(vault.point_count(), 3);
    vault.assert_restores("pipe", &[&half[..], &half].concat());
    vault.assert_intact();
}

#[test]
fn two_points_of_one_series_at_once_are_both_followed() {
    const HALF: usize = 512 * 1024;
    let vault = Vault::new();
    let start = |_| {
        let mut command = vault.command(&["backup", "--name", "a", "--json", "-"]);
        command.stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut children = [0, 1].map(start);
    let data = [0, 1].map(|number| random(number, MIB));
    // A pipe holds 64 KiB: whoever has taken more has looked at the points, which comes before the
    // first read. A lease alone does not say so, it is put before the points are listed.
    for (child, data) in children.iter_mut().zip(&data) {
        child.stdin.as_mut().unwrap().write_all(&data[..HALF]).unwrap();
    }
    let mut ids = Vec::new();
    for (mut child, data) in children.into_iter().zip(&data) {
        child.stdin.take().unwrap().write_all(&data[HALF..]).unwrap();
        let outcome = wait(child);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        ids.push(outcome.json()["point_id"].as_str().unwrap().to_string());
    }
    for (number, id) in ids.iter().enumerate() {
        vault.assert_restores(id, &data[number]);
    }
    let file = vault.write("file", b"after both");
    vault.backup("a", &[&file]);
    let shown = vault.json(&["show", "a"]);
    ids.sort();
    assert_eq!(shown["previous"], serde_json::json!(ids));
    assert_eq!(shown["sequence"], 2);
    vault.assert_intact();
}

/// A series may be called like the first digits of an id. It is a series all the same, and what
/// it names depends on which points there are.
#[test]
fn a_series_that_looks_like_its_points_id_is_doubted_too() {
    let vault = Vault::new();
    let file = vault.write("file", b"first");
    // Some name of one digit is the first digit of its own point's id, one time in 16.
    let (name, older) = (0..=15)
        .cycle()
        .find_map(|digit| {
            let name = format!("{digit:x}");
            let id = vault.backup(&name, &[&file]);
            id.starts_with(&name).then_some((name, id))
        })
        .unwrap();
    copy_folder(&vault.repo(), &vault.path("older"));
    vault.backup(&name, &[&file]);
    fs::remove_dir_all(vault.repo()).unwrap();
    fs::rename(vault.path("older"), vault.repo()).unwrap();
    vault.fails(5, &["dump", &name], "cannot tell which point is meant: ");
    assert_eq!(vault.ok(&["dump", &older[..8]]).stdout, b"first");
    // An id that is not there is not there, whatever else is doubted.
    vault.fails(1, &["dump", "id:0123456789"], "cannot find a point with id 0123456789");
    vault.fails(1, &["dump", "0123456789"], "cannot find a point with id 0123456789");
    let path = vault.repo().join("points").join(&older);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, bytes).unwrap();
    vault.fails(5, &["dump", &older[..8]], &format!("cannot open points/{older}"));
}

/// A few digits may name a series whose manifests are all damaged: nobody can tell.
#[test]
fn a_few_digits_are_no_sure_id_beside_a_damaged_manifest() {
    let vault = Vault::new();
    let file = vault.write("file", b"first");
    let whole = vault.backup("a", &[&file]);
    assert_eq!(vault.ok(&["dump", &whole[..4]]).stdout, b"first");
    let damaged = vault.backup("beef", &[&file]);
    fs::write(vault.path("repo/points").join(damaged), b"garbage").unwrap();
    for digits in [4, 7] {
        let outcome = vault.fails(5, &["dump", &whole[..digits]], "cannot tell which point is");
        outcome.hints("by its id");
        let forced = format!("id:{}", &whole[..digits]);
        assert_eq!(vault.ok(&["dump", &forced]).stdout, b"first");
    }
    assert_eq!(vault.ok(&["dump", &whole[..8]]).stdout, b"first");
}

#[test]
fn a_repository_that_went_back_is_noticed() {
    let vault = Vault::new();
    let file = vault.write("file", b"first");
    let first = vault.backup("a", &[&file]);
    copy_folder(&vault.repo(), &vault.path("older"));
    vault.write("file", b"second");
    let second = vault.backup("a", &[&file]);
    fs::remove_dir_all(vault.repo()).unwrap();
    fs::rename(vault.path("older"), vault.repo()).unwrap();
    let outcome = vault.run(&["list"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says(&format!("point {second} of a, seen here, is gone")).prints(&first[..8]);
    for command in
        [vec!["dump", "a"], vec!["restore", "a@latest", "target"], vec!["show", "latest"]]
    {
        let outcome = vault.fails(5, &command, "cannot tell which point is meant: ");
        outcome.says(&second).hints("by its id");
    }
    assert!(!vault.path("target").exists());
    assert_eq!(vault.ok(&["dump", &first[..8]]).stdout, b"first");
    let outcome = vault.run(&["check"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    outcome.prints(&format!("point {second} of a is gone"));
    let outcome = vault.run(&["backup", "--name", "a", &file]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says(&format!("warning: point {second} of a, seen here, is gone"));
    // A newer point answers to the name again, but the loss stays on record.
    vault.run(&["backup", "--name", "a", &file]);
    assert_eq!(vault.ok(&["dump", "a"]).stdout, b"second");
    let outcome = vault.run(&["check"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    outcome.prints(&format!("point {second} of a is gone"));
    // Another host saw nothing of it.
    let mut command = vault.command(&["dump", "a"]);
    let outcome = finish(command.env("DISKVAULT_CACHE_DIR", vault.path("other-cache")));
    assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b"second"[..]));
}
