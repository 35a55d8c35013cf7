//! The rules of the house that no compiler checks: sizes, the direction of imports, headers,
//! forbidden words, and that code, specification and docs/architecture.md name the same things.
//!
//! Each exception stands in a list here, with its reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot read the tree has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of code of a file, its tests included; blank lines and comments do not count.
const FILE_LINES_MAX: usize = 500;
/// Most lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// Imports that the table below does not have, and why.
const MORE_IMPORTS: &[(&str, &str, &str)] = &[];

/// Rules of the specification without a place of their own in the code, and why.
const RULES_WITHOUT_CODE: [(&str, &str); 3] = [
    ("N-1", "storage lists what fits the grammar; the rest is `foreign`"),
    ("N-2", "storage knows its folders by name and looks into no other"),
    ("N-4", "storage builds a pack's path from its id, so no other folder is ever looked into"),
];

/// What every file may import.
const GROUND: [&str; 4] = ["error", "monitor", "environment", "qemu_locks"];

/// What else the files of a top module may import.
fn allowed_imports(module: &str) -> Option<&'static [&'static str]> {
    Some(match module {
        "error" | "monitor" | "environment" | "qemu_locks" => &[],
        "storage" | "index" | "source" | "target" | "chunking" => &[],
        "repository" => &["storage", "index"],
        "backup" => &["repository", "source", "chunking"],
        "restore" => &["repository", "source", "target", "chunking", "diff"],
        "check" => &["storage", "repository", "restore"],
        "repair" => &["storage", "repository", "restore"],
        "retention" => &["storage", "repository"],
        "prune" => &["storage", "repository", "restore"],
        "copy" => &["repository", "restore", "backup", "chunking"],
        "sync" => &["storage", "repository"],
        "diff" => &["repository"],
        "view" => &["repository", "restore"],
        "delta" => &["repository", "diff", "view", "restore", "certify", "source", "target"],
        "certify" => &["repository", "restore", "backup", "source", "chunking"],
        "files" => &["repository", "source", "view"],
        "mount" => &["repository", "restore", "view"],
        "boot" => &["repository", "restore", "source", "view", "serve"],
        "serve" => &["repository", "restore", "chunking", "view"],
        "stats" => &["storage", "repository"],
        "digest" => &["repository", "restore", "backup"],
        "benchmark" => {
            &["storage", "source", "target", "chunking", "repository", "backup", "restore"]
        }
        "cli" => &[
            "storage",
            "index",
            "source",
            "target",
            "chunking",
            "repository",
            "backup",
            "restore",
            "check",
            "copy",
            "sync",
            "diff",
            "stats",
            "digest",
            "retention",
            "prune",
            "repair",
            "benchmark",
            "view",
            "certify",
            "delta",
            "files",
            "mount",
            "serve",
            "boot",
        ],
        _ => return None,
    })
}

struct SourceFile {
    /// Path from the top of the repository, with `/`.
    path: String,
    text: String,
    /// The text with comments and what stands in quotes blanked out, line by line.
    code: String,
}

impl SourceFile {
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
    }

    /// The code in front of the file's own tests.
    fn code_without_tests(&self) -> &str {
        if self.is_test() {
            return "";
        }
        self.code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    /// `backup` for `src/backup/disk.rs` and `src/backup.rs`.
    fn module(&self) -> &str {
        let rest = self.path.strip_prefix("src/").unwrap_or(&self.path);
        rest.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}

fn gather(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn source_files(folder: &str) -> Vec<SourceFile> {
    let mut paths = Vec::new();
    gather(&top().join(folder), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no files in {folder}");
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(top()).unwrap().to_str().unwrap().replace('\\', "/");
            SourceFile { path, code: blank(&text), text }
        })
        .collect()
}

fn all_files() -> Vec<SourceFile> {
    let mut files = source_files("src");
    files.extend(source_files("repo-format/src"));
    files
}

/// Replaces comments, strings and characters by spaces; line ends stay.
fn blank(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match literal_end(&bytes, at) {
            Some(end) => end,
            None => {
                code.push(bytes[at]);
                at += 1;
                continue;
            }
        };
        code.extend(bytes[at..end].iter().map(|&it| if it == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// Where the comment, string or character that starts at `at` ends.
fn literal_end(text: &[char], at: usize) -> Option<usize> {
    let next = text.get(at + 1).copied();
    let word_before = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    let find = |from: usize, wanted: &str| {
        let wanted: Vec<char> = wanted.chars().collect();
        let windows = text[from.min(text.len())..].windows(wanted.len());
        windows.into_iter().position(|window| window == wanted).map(|found| from + found)
    };
    match (text[at], next) {
        ('/', Some('/')) => Some(find(at, "\n").unwrap_or(text.len())),
        ('/', Some('*')) => Some(find(at + 2, "*/").map_or(text.len(), |end| end + 2)),
        ('r', Some('"' | '#')) if !word_before => {
            let marks = text[at + 1..].iter().take_while(|mark| **mark == '#').count();
            if text.get(at + 1 + marks) != Some(&'"') {
                return None;
            }
            let closing = format!("\"{}", "#".repeat(marks));
            Some(find(at + 2 + marks, &closing).map_or(text.len(), |end| end + 1 + marks))
        }
        ('"', _) => {
            let mut end = at + 1;
            while end < text.len() && text[end] != '"' {
                end += if text[end] == '\\' { 2 } else { 1 };
            }
            Some((end + 1).min(text.len()))
        }
        ('\'', Some('\\')) => find(at + 3, "'").map(|end| end + 1),
        ('\'', Some(_)) if text.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

/// Fails with all complaints at once.
fn none(what: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{what}:\n  {}", complaints.join("\n  "));
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut complaints = Vec::new();
    for file in all_files() {
        if !file.text.starts_with("//! ") {
            complaints.push(format!("{} does not start with //!", file.path));
        }
        let lines = file.code.lines().filter(|line| !line.trim().is_empty()).count();
        let may_be_long = LONG_FILES.iter().any(|(path, _)| *path == file.path);
        if lines > FILE_LINES_MAX && !may_be_long {
            complaints.push(format!("{} has {lines} lines of code", file.path));
        }
        if lines <= FILE_LINES_MAX && may_be_long {
            complaints.push(format!("{} is short enough to leave the list", file.path));
        }
    }
    none("files", &complaints);
}

#[test]
fn functions_are_short() {
    let mut complaints = Vec::new();
    for file in all_files() {
        let lines: Vec<&str> = file.code.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let Some(count) = function_lines(&lines[number..]) else { continue };
            if count > FUNCTION_LINES_MAX {
                complaints.push(format!("{}: {name} has {count} lines", file.path));
            }
        }
    }
    none("functions", &complaints);
}

fn function_name(line: &str) -> Option<&str> {
    let at = line.find("fn ")?;
    let is_word = line[..at].chars().last().is_none_or(|before| before == ' ');
    let name = line[at + 3..].split(['(', '<']).next()?;
    (is_word && !name.is_empty() && name.chars().all(|it| it.is_alphanumeric() || it == '_'))
        .then_some(name)
}

/// Lines of code up to the brace that closes the function; `None` if it has no body.
fn function_lines(lines: &[&str]) -> Option<usize> {
    let (mut depth, mut brackets, mut count) = (0, 0, 0);
    for line in lines {
        count += usize::from(!line.trim().is_empty());
        for mark in line.chars() {
            match mark {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                ';' if depth == 0 && brackets == 0 => return None,
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(count);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

/// Top modules that a file names behind `crate::`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut names = String::new();
            for mark in group.chars() {
                depth += i32::from(mark == '{') - i32::from(mark == '}');
                if depth == 0 {
                    break;
                }
                names.push(if depth == 1 { mark } else { ' ' });
            }
            found.extend(names.split(',').map(first_word).filter(|name| !name.is_empty()));
        } else {
            found.insert(if rest.starts_with('*') { "*".into() } else { first_word(rest) });
        }
    }
    found
}

fn first_word(text: &str) -> String {
    let is_word = |mark: &char| mark.is_alphanumeric() || *mark == '_';
    text.trim_start().chars().take_while(is_word).collect()
}

#[test]
fn imports_only_go_down() {
    let mut complaints = Vec::new();
    let mut used = BTreeSet::new();
    for file in source_files("src") {
        if ["src/lib.rs", "src/main.rs"].contains(&file.path.as_str()) {
            continue;
        }
        let module = file.module();
        let Some(allowed) = allowed_imports(module) else {
            complaints.push(format!("{}: module {module} is not in the table", file.path));
            continue;
        };
        for name in imports(&file.code) {
            let is_constant = name.chars().all(|mark| mark.is_uppercase() || mark == '_');
            let is_own = name == module || (is_constant && !name.is_empty());
            if is_own || GROUND.contains(&name.as_str()) || allowed.contains(&name.as_str()) {
                continue;
            }
            match MORE_IMPORTS.iter().find(|(path, more, _)| *path == file.path && *more == name) {
                Some(exception) => _ = used.insert(exception),
                None => complaints.push(format!("{} imports crate::{name}", file.path)),
            }
        }
        let is_root = file.path.matches('/').count() == 1 || file.path.ends_with("/mod.rs");
        let goes_up = file.code.lines().any(|line| line.starts_with("use super::"));
        if is_root && goes_up && file.path.matches('/').count() <= 2 {
            complaints.push(format!("{} imports from the top by super::", file.path));
        }
    }
    for exception in MORE_IMPORTS {
        if !used.contains(exception) {
            complaints.push(format!("{} no longer imports {}", exception.0, exception.1));
        }
    }
    none("imports", &complaints);
}

#[test]
fn words_that_do_not_belong() {
    let mut complaints = Vec::new();
    let talks = ["println!", "eprintln!", "print!", "eprint!", "std::env::"];
    for file in all_files() {
        for word in ["unsafe ", "dbg!", "todo!", "unimplemented!", "use crate::*"] {
            if file.code.contains(word) {
                complaints.push(format!("{} has {word}", file.path));
            }
        }
        for word in ["TODO", "FIXME", "XXX"] {
            if file.text.contains(word) {
                complaints.push(format!("{} has {word}", file.path));
            }
        }
        let may_talk = file.module() == "cli" || file.path == "src/main.rs";
        for word in talks {
            if !may_talk && file.code_without_tests().contains(word) {
                complaints.push(format!("{} has {word}: only cli does that", file.path));
            }
        }
    }
    none("words", &complaints);
}

#[test]
fn the_code_map_is_complete() {
    let map = read("docs/architecture.md");
    let mut complaints = Vec::new();
    let mut known = BTreeSet::new();
    for file in all_files() {
        if !map.contains(&format!("`{}`", file.path)) {
            complaints.push(format!("docs/architecture.md does not mention {}", file.path));
        }
        known.insert(file.path);
    }
    for word in map.split('`') {
        let is_path = word.ends_with(".rs") && !word.contains([' ', '*']);
        if is_path && word.contains("src/") && !known.contains(word) {
            complaints.push(format!("docs/architecture.md mentions {word}, which is not there"));
        }
    }
    none("code map", &complaints);
}

#[test]
fn specification_pages_that_code_names_exist() {
    let mut complaints = Vec::new();
    let mut count = 0;
    for file in all_files() {
        for (at, _) in file.text.match_indices("spec/") {
            let is_page = |mark: &char| mark.is_alphanumeric() || "-./".contains(*mark);
            let name: String = file.text[at..].chars().take_while(is_page).collect();
            let Some((page, _)) = name.split_once(".md") else { continue };
            count += 1;
            let page = format!("repo-format/{page}.md");
            if !top().join(&page).is_file() {
                complaints.push(format!("{} names {page}, which is not there", file.path));
            }
        }
    }
    assert!(count > 10, "only {count} pages are named: is the pattern still right?");
    none("pages", &complaints);
}

/// Rules such as `P-7` in `text`, if their letter is one of `letters`.
fn rules_in(text: &str, letters: &BTreeSet<char>) -> BTreeSet<String> {
    let marks: Vec<char> = text.chars().collect();
    let mut found = BTreeSet::new();
    for at in 0..marks.len() {
        let starts = at == 0 || !(marks[at - 1].is_alphanumeric() || "-_".contains(marks[at - 1]));
        if !starts || !letters.contains(&marks[at]) || marks.get(at + 1) != Some(&'-') {
            continue;
        }
        let digits: String =
            marks[at + 2..].iter().take_while(|mark| mark.is_ascii_digit()).collect();
        let after = marks.get(at + 2 + digits.len());
        if !digits.is_empty() && after.is_none_or(|mark| !mark.is_alphanumeric()) {
            found.insert(format!("{}-{digits}", marks[at]));
        }
    }
    found
}

#[test]
fn rules_of_code_and_specification_are_the_same() {
    let mut stated = BTreeSet::new();
    let mut complaints = Vec::new();
    let letters: BTreeSet<char> = ('A'..='Z').collect();
    for entry in fs::read_dir(top().join("repo-format/spec")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for part in text.split("- **").skip(1) {
            let Some((name, text)) = part.split_once("**") else { continue };
            // `**A-3** (35)` is another page's rule.
            let is_reference = text.starts_with(" (") && text.get(4..5) == Some(")");
            let is_rule = rules_in(name, &letters).contains(name);
            if is_rule && !is_reference && !stated.insert(name.to_string()) {
                complaints.push(format!("{name} is stated twice"));
            }
        }
    }
    assert!(stated.len() > 50, "only {} rules are stated", stated.len());
    let letters: BTreeSet<char> = stated.iter().filter_map(|rule| rule.chars().next()).collect();
    let mut named = BTreeMap::new();
    for file in all_files() {
        for rule in rules_in(&file.text, &letters) {
            named.entry(rule).or_insert(file.path.clone());
        }
    }
    for (rule, path) in &named {
        if !stated.contains(rule) {
            complaints.push(format!("{path} names {rule}, which repo-format/spec does not state"));
        }
    }
    for rule in &stated {
        let is_excused = RULES_WITHOUT_CODE.iter().any(|(known, _)| known == rule);
        match (named.contains_key(rule), is_excused) {
            (false, false) => complaints.push(format!("{rule} is stated and not in the code")),
            (true, true) => complaints.push(format!("{rule} is in the code: strike the excuse")),
            _ => {}
        }
    }
    none("rules", &complaints);
}

/// `4096`, `65 536`, `2^18`, `64 KiB`.
fn table_value(text: &str) -> Option<u64> {
    let (number, unit) = match text.split_once(|mark: char| mark.is_alphabetic()) {
        Some((number, _)) => (number.trim(), text[number.len()..].trim()),
        None => (text.trim(), ""),
    };
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    if let Some(power) = number.strip_prefix("2^") {
        return 1_u64.checked_shl(power.parse().ok()?);
    }
    let digits: String = number.chars().filter(|mark| !mark.is_whitespace()).collect();
    Some(digits.parse::<u64>().ok()? << shift)
}

/// `4096`, `1 << 18`, `64 << 10`.
fn code_value(text: &str) -> Option<u64> {
    let text = text.replace('_', "");
    match text.split_once("<<") {
        Some((number, shift)) => {
            Some(number.trim().parse::<u64>().ok()?.checked_shl(shift.trim().parse().ok()?)?)
        }
        None => text.trim().parse().ok(),
    }
}

#[test]
fn limits_are_those_of_the_specification() {
    let page = read("repo-format/spec/00-conventions.md");
    let table = page.split("## Limits").nth(1).unwrap();
    let mut stated = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let is_name = cells[1].chars().all(|mark| mark.is_uppercase() || mark == '_');
        if is_name && !cells[1].is_empty() {
            let value = table_value(cells[2]).unwrap_or_else(|| panic!("cannot read {line}"));
            stated.insert(cells[1].to_string(), value);
        }
    }
    let mut coded = BTreeMap::new();
    let limits = read("repo-format/src/limits.rs");
    for line in limits.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let (name, rest) = line.split_once(':').unwrap();
        let value = rest.split_once('=').unwrap().1.trim_end_matches(';');
        let value = code_value(value).unwrap_or_else(|| panic!("cannot read {line}"));
        coded.insert(name.to_string(), value);
    }
    assert!(coded.len() > 30);
    assert_eq!(stated, coded, "spec/00-conventions.md (left) and limits.rs (right) differ");
}

#[test]
fn this_test_sees_what_it_should() {
    let code = blank("let a = \"unsafe { \\\" {\"; // {\nlet b = '{'; let c: &'a str = r#\"{\"#;");
    assert!(!code.contains('{') && !code.contains("unsafe"), "{code}");
    assert_eq!(code.lines().count(), 2);
    assert_eq!(function_lines(&["fn a() {", "  if b { c }", "}", "fn d() {}"]), Some(3));
    assert_eq!(function_lines(&["fn a(b: [u8; 2]);"]), None);
    let found = imports("use crate::{a::{b, c}, d}; crate::e::f(); use crate::*;");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["*", "a", "d", "e"]);
    let letters = BTreeSet::from(['P', 'X']);
    let rules: Vec<_> =
        rules_in("(rule P-7), AVX-512, P-7x, `P-12`", &letters).into_iter().collect();
    assert_eq!(rules, ["P-12", "P-7"]);
    assert_eq!((table_value("64 KiB"), table_value("2^18")), (Some(65536), Some(1 << 18)));
    assert_eq!((table_value("65 536"), code_value("4 << 10")), (Some(65536), Some(4096)));
}
