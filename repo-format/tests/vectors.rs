//! Every file below `vectors/` is read or refused as it says, and is what the generator makes.

#[path = "../examples/vectors/mod.rs"]
mod vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;
use vectors::form::Vector;
use vectors::{
    EXPECTED, INDEX, REPOSITORY, Tree, UNREACHABLE, WRITTEN, WRITTEN_EXPECTED, repository, restore,
    written,
};

/// The whole tree may have this many bytes, 1.375 MiB.
const TREE_BYTES_MAX: usize = 11 << 17;

/// The files below `vectors/` as they are on disk.
fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
        vectors::read_tree(&folder).expect("the vectors must be readable")
    })
}

/// Every file but the index, the repositories and what they restore to is a vector.
fn files() -> impl Iterator<Item = (&'static String, &'static Vec<u8>)> {
    let others = [REPOSITORY, EXPECTED, WRITTEN, WRITTEN_EXPECTED];
    let is_other = move |path: &str| others.iter().any(|folder| path.starts_with(folder));
    tree().iter().filter(move |(path, _)| *path != INDEX && !is_other(path))
}

/// The files below one folder, by what follows it.
fn below(folder: &str) -> Tree {
    let inside = |(path, bytes): (&String, &Vec<u8>)| {
        Some((path.strip_prefix(folder)?.to_owned(), bytes.clone()))
    };
    tree().iter().filter_map(inside).collect()
}

/// The rules named below `folder` between two of `mark`, such as `P-7`.
fn rules(folder: &str, mark: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = vectors::read_tree(&folder).expect("the files must be readable");
    let mut rules = BTreeSet::new();
    for file in files.values() {
        let text = std::str::from_utf8(file).expect("the files are UTF-8");
        rules.extend(text.split(mark).filter(|part| is_rule(part)).map(str::to_owned));
    }
    rules
}

fn is_rule(text: &str) -> bool {
    text.split_once('-').is_some_and(|(letter, number)| {
        letter.len() == 1
            && letter.bytes().all(|byte| byte.is_ascii_uppercase())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[test]
fn every_vector_is_judged_as_it_says() {
    let mut faults = Vec::new();
    for (path, file) in files() {
        if let Err(cause) = vectors::run::check(file) {
            faults.push(format!("{path}: {cause}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_changed_or_unknown_field_fails() {
    let file = &tree()["config/first"];
    let text = String::from_utf8_lossy(file);
    let line = text.lines().find(|line| line.starts_with("chunk-bytes: ")).unwrap();
    let end = file.windows(2).position(|pair| pair == b"\n\n").unwrap();
    let with = |header: String| [header.as_bytes(), &file[end..]].concat();
    let header = std::str::from_utf8(&file[..end]).unwrap();
    assert!(vectors::run::check(&with(header.to_owned())).is_ok());
    for changed in [
        format!("{header}\nunknown: 1"),
        format!("{header}\n{line}"),
        header.replace(line, "chunk-bytes: 4096"),
        header.replace(&format!("{line}\n"), ""),
        header.replace("expect: ok", "expect: C-1"),
    ] {
        assert!(vectors::run::check(&with(changed.clone())).is_err(), "{changed}");
    }
}

#[test]
fn the_index_is_complete() {
    let index = std::str::from_utf8(&tree()[INDEX]).unwrap();
    let listed: Vec<&str> = index.lines().filter(|line| !line.starts_with('#')).collect();
    let wanted: Vec<String> = files()
        .map(|(path, file)| {
            let vector = Vector::parse(file).unwrap();
            format!("{path}\t{}\t{}", vector.expect(), vector.comment())
        })
        .collect();
    assert_eq!(listed, wanted);
}

#[test]
fn most_vectors_are_refused_and_every_rule_has_one() {
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = 0;
    for (_, file) in files() {
        let vector = Vector::parse(file).unwrap();
        all += 1;
        if vector.expect() != "ok" {
            *refused.entry(vector.expect().to_owned()).or_default() += 1;
        }
    }
    assert!(all >= 90, "{all} vectors");
    assert!(refused.values().sum::<usize>() * 2 > all, "{refused:?} of {all}");
    let unreachable: BTreeSet<&str> = UNREACHABLE.iter().map(|(rule, _)| *rule).collect();
    let (of_crate, of_specification) = (rules("src", "\""), rules("spec", "**"));
    assert!(of_crate.len() > 50 && of_specification.is_superset(&of_crate));
    for rule in of_specification {
        let has_vector = refused.contains_key(&rule);
        assert!(has_vector != unreachable.contains(rule.as_str()), "rule {rule}: {has_vector}");
    }
}

#[test]
fn the_generator_makes_this_tree() {
    let made = vectors::tree().unwrap_or_else(|cause| panic!("{cause}"));
    assert_eq!(vectors::differences(&made, tree()), Vec::<String>::new());
    let bytes: usize = made.values().map(Vec::len).sum();
    assert!(bytes < TREE_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn the_worked_examples_are_what_the_crate_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec");
    let pages = vectors::read_tree(&folder).unwrap();
    let filled = vectors::worked::filled(&pages).unwrap_or_else(|cause| panic!("{cause}"));
    assert_eq!(vectors::differences(&filled, &pages), Vec::<String>::new());
    let changed = |name: &str, old: &str, new: &str| {
        let text = String::from_utf8_lossy(&pages[name]).replace(old, new).into_bytes();
        Tree::from_iter([pages.clone(), [(name.to_owned(), text)].into()].into_iter().flatten())
    };
    // A wrong byte is put right; a value of another length is for whoever writes the page.
    let wrong = changed("32-pack.md", "\n000b0  00 00", "\n000b0  00 01");
    assert_ne!(wrong, pages);
    assert_eq!(vectors::worked::filled(&wrong).unwrap(), pages);
    let longer = changed("31-key-slot.md", "01 01 00 0001", "01 01 00 000001");
    assert!(vectors::worked::filled(&longer).is_err());
}

#[test]
fn the_repository_restores_to_what_is_expected() {
    let expected = below(EXPECTED);
    assert_eq!(expected.len(), 7);
    assert_ne!(expected["day-1/disk"], expected["day-2/disk"]);
    restore::verify(&below(REPOSITORY), &expected).unwrap();
}

/// The repository with what a writer that may not read has added, and what it restores to.
fn with_a_writer() -> (Tree, Tree) {
    let (mut objects, mut expected) = (below(REPOSITORY), below(EXPECTED));
    let added = written::stretched(&below(WRITTEN));
    objects.append(&mut added.expect("the files are vectors"));
    expected.append(&mut below(WRITTEN_EXPECTED));
    (objects, expected)
}

#[test]
fn what_a_writer_added_restores_to_what_is_expected() {
    let (objects, expected) = with_a_writer();
    assert_eq!(expected.len(), 9);
    restore::verify(&objects, &expected).unwrap();
    let refused = restore::restore(&objects, written::PASSPHRASE).unwrap_err();
    assert!(refused.to_string().contains("may only write"), "{refused}");
    let before = restore::restore(&below(REPOSITORY), written::PASSPHRASE).unwrap_err();
    assert!(before.to_string().contains("no key slot opens"), "{before}");
}

#[test]
fn what_a_writer_added_is_lost_with_any_part_of_it() {
    let (good, expected) = with_a_writer();
    for path in below(WRITTEN).keys() {
        let mut damaged = good.clone();
        damaged.remove(path);
        let found = restore::restore(&damaged, repository::PASSPHRASE).ok();
        // Slots and the bit in the config are of no use to who reads.
        let is_needed = !path.starts_with("config/");
        assert_eq!(found != Some(expected.clone()), is_needed, "{path}");
        let bytes = &good[path];
        if !bytes.is_empty() {
            damaged.insert(path.clone(), bytes.clone());
            damaged.get_mut(path).unwrap()[bytes.len() / 3] ^= 4;
            let found = restore::restore(&damaged, repository::PASSPHRASE).ok();
            assert!(found != Some(expected.clone()), "{path}");
        }
    }
}

#[test]
fn a_damaged_repository_does_not_restore() {
    let good = below(REPOSITORY);
    let secret = repository::PASSPHRASE;
    assert!(restore::restore(&good, secret).is_ok());
    for (path, bytes) in &good {
        let mut damaged = good.clone();
        match bytes.len() {
            // An ok has no bytes; without it there is no point.
            0 => drop(damaged.remove(path)),
            length => damaged.get_mut(path).unwrap()[length / 3] ^= 4,
        }
        let found = restore::restore(&damaged, secret).ok();
        assert!(found != Some(below(EXPECTED)), "{path}");
    }
}
