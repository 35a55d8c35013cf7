//! Makes and checks the test vectors of the repository format.
//!
//! [`tree`] gives every file below `vectors/` from fixed keys and times, so that two runs give the
//! same bytes. [`run::check`] judges one vector file through the crate. A vector is added to the
//! tree only if the crate judges it as the vector says, so a wrong vector cannot be written.

pub mod fixed;
pub mod form;
pub mod make;
pub mod parity;
pub mod repository;
pub mod restore;
pub mod run;
pub mod worked;
pub mod written;

use form::Vector;
use std::collections::BTreeMap;

/// The result type of the generator; messages are for whoever works on the vectors.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Files by path below `vectors/`, with `/` between folders.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// The index of all vectors, at the top of the tree.
pub const INDEX: &str = "INDEX";
/// The folder of the complete repository.
pub const REPOSITORY: &str = "repository/";
/// The folder of what restoring that repository gives.
pub const EXPECTED: &str = "expected/";

/// The folder of what a writer that may not read adds to that repository.
pub const WRITTEN: &str = "writers/repository/";
/// The folder of what restoring that gives besides.
pub const WRITTEN_EXPECTED: &str = "writers/expected/";

/// Rules that no vector of one object can show, with the reason.
pub const UNREACHABLE: &[(&str, &str)] = &[
    ("F-11", "shows only when all chunks of a disk or stream were read"),
    ("M-8", "needs a page and a chunk"),
    ("M-9", "needs a page and the page below it"),
    ("T-7", "needs a page and a chunk"),
];

/// Vectors while they are collected.
#[derive(Default)]
pub struct Set {
    files: Tree,
    index: Vec<String>,
    faults: Vec<String>,
}

impl Set {
    /// Adds a vector, after the crate has judged it as it says. An `ok` vector is given all the
    /// values that running it yields.
    pub fn add(&mut self, path: &str, vector: Vector) {
        let file = match run::complete(vector) {
            Ok(vector) => {
                self.index.push(format!("{path}\t{}\t{}", vector.expect(), vector.comment()));
                vector.encode()
            }
            Err(cause) => return self.faults.push(format!("{path}: {cause}")),
        };
        if let Err(cause) = run::check(&file) {
            self.faults.push(format!("{path}: {cause}"));
        }
        if self.files.insert(path.to_owned(), file).is_some() {
            self.faults.push(format!("{path}: is there twice"));
        }
    }
}

/// Makes every file below `vectors/`.
///
/// # Errors
/// Every vector that the crate judges otherwise than the vector says, and a repository that does
/// not restore to what went in.
pub fn tree() -> Result<Tree> {
    let mut set = Set::default();
    make::all(&mut set)?;
    if !set.faults.is_empty() {
        return Err(set.faults.join("\n").into());
    }
    let mut files = set.files;
    files.insert(INDEX.to_owned(), index(set.index).into_bytes());
    let made = repository::make()?;
    restore::verify(&made.objects, &made.expected)?;
    let written = written::make(&made)?;
    let added = written::squeezed(&written.objects);
    let together =
        |one: &Tree, other: &Tree| one.clone().into_iter().chain(other.clone()).collect();
    let objects = together(&made.objects, &written::stretched(&added)?);
    restore::verify(&objects, &together(&made.expected, &written.expected))?;
    for (folder, objects) in [
        (REPOSITORY, made.objects),
        (EXPECTED, made.expected),
        (WRITTEN, added),
        (WRITTEN_EXPECTED, written.expected),
    ] {
        files.extend(objects.into_iter().map(|(path, bytes)| (format!("{folder}{path}"), bytes)));
    }
    Ok(files)
}

/// How to read the vectors, for whoever writes a reader.
const INDEX_HEAD: &str = "\
# Every vector: path, what a reader must say (ok or the rule it names), comment.
# A vector is lines of `key: value`, an empty line, then the bytes of the object.
# `zeros: offset+length ...` names runs of zeros that are left out of those bytes and
# belong at these offsets of the object, in order. Byte strings are lower-case hex.
# Lists are separated by blanks; `item*n` is n times the item.
# What a reader is given: master and repository (the key and the repository id), name
# (the leaf it stands under), secret (of a key slot), copies (so many such slots),
# folder, record (the type), first and end (where segments lie), read: tail (without
# the header), pack (the id that a parity object belongs to), data (its bytes),
# pack-bytes, used, level, page, size, chunk-bytes, zero-slots, bytes-expected, asked-for,
# list-subkeys, writers (the records of all listed and retired writers, in the order of
# their names; none without the field). All other fields of an ok vector are what a
# reader must find, in between and at the end.
# A name that is refused by N-1, N-2 or N-4 is to be ignored.
# The repository in repository/ opens with the passphrase `correct horse battery staple`;
# expected/day-1 and expected/day-2 are what its two points restore to. The disk `moved`
# of day 2 needs splices.
# writers/repository/ is what a writer that may not read adds to that repository, each
# object as the bytes of a vector: a config, its key slot, its record, two packs, and a
# point of series `kvm2`, which restores to writers/expected/kvm2. Its own passphrase,
# `write and never read`, restores nothing.
";

fn index(mut lines: Vec<String>) -> String {
    lines.sort();
    let mut text = String::from(INDEX_HEAD);
    let recovery = String::from_utf8_lossy(repository::RECOVERY_KEY);
    text.push_str(&format!("# Its recovery key is {recovery}.\n"));
    for (rule, reason) in UNREACHABLE {
        text.push_str(&format!("# unreachable: {rule}: {reason}\n"));
    }
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What differs between two trees, a line for each path.
pub fn differences(wanted: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, bytes) in wanted {
        match found.get(path) {
            None => lines.push(format!("{path}: is missing")),
            Some(other) if other != bytes => lines.push(format!("{path}: has other bytes")),
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !wanted.contains_key(*path));
    lines.extend(extra.map(|path| format!("{path}: is not made by the generator")));
    lines
}

/// Reads all files below `folder`; an absent folder is empty.
///
/// # Errors
/// Those of the file system, and names that are not UTF-8.
pub fn read_tree(folder: &std::path::Path) -> Result<Tree> {
    let mut files = Tree::new();
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((path, prefix)) = open.pop() {
        if !path.exists() {
            continue;
        }
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let leaf = entry.file_name().into_string().map_err(|_| "a name is not UTF-8")?;
            if entry.file_type()?.is_dir() {
                open.push((entry.path(), format!("{prefix}{leaf}/")));
            } else {
                files.insert(format!("{prefix}{leaf}"), std::fs::read(entry.path())?);
            }
        }
    }
    Ok(files)
}
