//! What README.md and docs/ claim: the session runs and prints what it shows, links lead
//! somewhere, and docs/cli.md has every command and flag that the program has.
#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const README_LINES_MAX: usize = 150;
const PROGRAM: &str = env!("CARGO_BIN_EXE_diskvault");

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}

/// A command of the session and the lines it shows.
struct Step {
    command: String,
    expected: Vec<String>,
}

fn session() -> Vec<Step> {
    let readme = read("README.md");
    let mut blocks = readme.split("```console\n").skip(1);
    let block = blocks.next().expect("README.md has a console block");
    assert!(blocks.next().is_none(), "README.md has one console block");
    let mut steps: Vec<Step> = Vec::new();
    for line in block.split("```").next().unwrap().lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_string(), expected: Vec::new() });
        } else {
            let step = steps.last_mut().expect("the session starts with a command");
            step.expected.push(line.to_string());
        }
    }
    steps
}

/// Replaces ids, numbers, units and white space by what every run has in common.
fn mask(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_part = |mark: char| mark.is_ascii_alphanumeric() || ".:-+".contains(mark);
        let mut masked = String::new();
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|mark| !is_part(mark)).unwrap_or(rest.len());
            if end == 0 {
                masked.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            masked.push_str(&mask_part(&rest[..end]));
            rest = &rest[end..];
        }
        masked
    });
    let words: Vec<String> = words.collect();
    words.join(" ")
}

fn mask_part(part: &str) -> String {
    let is_id = part.len() >= 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = part.starts_with(|mark: char| mark.is_ascii_digit() || mark == '+')
        && part.bytes().all(|byte| byte.is_ascii_digit() || b".:-+".contains(&byte));
    match part {
        _ if is_id => "<id>".into(),
        _ if is_number => "<n>".into(),
        "B" | "KiB" | "MiB" | "GiB" => "<unit>".into(),
        _ => part.into(),
    }
}

/// True if the lines fit; `...` stands for any number of lines.
fn fits(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=found.len()).any(|skipped| fits(rest, &found[skipped..]))
        }
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, others)| mask(first) == mask(line) && fits(rest, others)),
    }
}

#[test]
fn the_session_does_what_the_readme_shows() {
    const MARK: &str = "@@ step ";
    let steps = session();
    for wanted in ["init", "backup", "list", "restore", "dump", "check --read-data", "digest"] {
        let has = |step: &Step| step.command.contains(&format!("diskvault {wanted}"));
        assert!(steps.iter().any(has), "the session has no {wanted}");
    }
    let mut script = String::from("exec 2>&1\n");
    for step in &steps {
        script.push_str(&format!("{}\necho \"{MARK}$?\"\n", step.command));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut folders = vec![Path::new(PROGRAM).parent().unwrap().to_path_buf()];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&folder)
        .env_clear()
        .env("PATH", std::env::join_paths(folders).unwrap())
        .env("HOME", folder.path())
        .env("TZ", "UTC")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found = vec![Vec::new()];
    let mut codes = Vec::new();
    for line in text.lines() {
        match line.strip_prefix(MARK) {
            Some(code) => {
                codes.push(code.to_string());
                found.push(Vec::new());
            }
            None => found.last_mut().unwrap().push(line.to_string()),
        }
    }
    assert_eq!(codes.len(), steps.len(), "the session ended too soon:\n{text}");
    for ((step, found), code) in steps.iter().zip(&found).zip(&codes) {
        let found_text = found.join("\n");
        assert_eq!(code, "0", "`{}` failed:\n{found_text}", step.command);
        let expected = step.expected.join("\n");
        assert!(
            fits(&step.expected, found),
            "`{}` printed\n{found_text}\nand README.md shows\n{expected}",
            step.command
        );
    }
}

#[test]
fn masks_keep_what_matters() {
    assert_eq!(mask("point 0b64c3f1 of web01"), "point <id> of web01");
    assert_eq!(mask("  new   2.00 MiB"), mask("new 900 B"));
    assert_eq!(mask("x in 0.1 s (2.46 GiB/s)"), "x in <n> s (<n> <unit>/s)");
    assert_ne!(mask("no damage found"), mask("damage found"));
    let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    assert!(fits(&lines("a\n...\nb"), &lines("a\nx\ny\nb")));
    assert!(!fits(&lines("a\n...\nb"), &lines("a\nx")));
    assert!(!fits(&[], &lines("a")));
}

#[test]
fn the_readme_is_short_and_has_the_two_commands() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines");
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        assert!(readme.lines().any(|line| line == command), "README.md lacks {command}");
    }
}

/// README.md, and what lies beside it and in docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/adr"] {
        for entry in fs::read_dir(top().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            if !page.parent().unwrap().join(path).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}

fn help(command: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?} --help");
    String::from_utf8(output.stdout).unwrap()
}

fn commands_in(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(String::from).collect()
}

fn long_flags(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = lines.filter_map(|line| {
        let at = line.find("--")?;
        let is_flag = |mark: char| mark.is_ascii_alphanumeric() || mark == '-';
        Some(line[at..].split(|mark| !is_flag(mark)).next()?.to_string())
    });
    flags.filter(|flag| flag != "--help").collect()
}

/// The text of a section of docs/cli.md, up to the next heading.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    let heading = format!("\n{heading}\n");
    let text = &page[page.find(&heading)? + heading.len()..];
    Some(text.split("\n#").next().unwrap_or(text))
}

/// Flags of the first column of a section's table.
fn tabled_flags(section: &str) -> BTreeSet<String> {
    let rows = section.lines().filter(|line| line.starts_with("| `-"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| long_flags(cell.trim().trim_start_matches('`'))).collect()
}

#[test]
fn the_manual_has_every_command_and_flag() {
    let page = read("docs/cli.md");
    let global = long_flags(&help(&[]));
    let mut complaints = Vec::new();
    let mut compare = |heading: &str, flags: BTreeSet<String>| {
        let Some(section) = section(&page, heading) else {
            complaints.push(format!("no section \"{heading}\""));
            return;
        };
        let tabled = tabled_flags(section);
        let missing = flags.difference(&tabled).map(|flag| format!("{heading}: no {flag}"));
        complaints.extend(missing);
        let extra = tabled.difference(&flags).map(|flag| format!("{heading}: {flag} is no flag"));
        complaints.extend(extra);
    };
    compare("## Options of every command", global.clone());
    let commands = commands_in(&help(&[]));
    assert!(commands.len() >= 12, "only {commands:?}: is --help still read right?");
    for command in &commands {
        let text = help(&[command]);
        let own: BTreeSet<String> = long_flags(&text).difference(&global).cloned().collect();
        compare(&format!("## {command}"), own);
        for part in commands_in(&text) {
            let flags = long_flags(&help(&[command, &part]));
            compare(&format!("### {command} {part}"), flags.difference(&global).cloned().collect());
        }
    }
    assert!(complaints.is_empty(), "docs/cli.md:\n{}", complaints.join("\n"));
}

#[test]
fn the_manual_has_every_exit_code() {
    let page = read("docs/cli.md");
    let text = help(&[]);
    let (_, codes) = text.split_once("Exit codes:").unwrap();
    let words = codes.split_whitespace().map(|word| word.trim_end_matches([',', '.']));
    let codes: Vec<u8> = words.filter_map(|word| word.parse().ok()).collect();
    assert!(codes.len() >= 11);
    let (_, table) = page.split_once("\n## Exit codes\n").unwrap();
    let rows = table.lines().take_while(|line| !line.starts_with("## "));
    let cells = rows.filter_map(|row| row.strip_prefix("| ")?.split(" |").next()?.parse().ok());
    assert_eq!(cells.collect::<Vec<u8>>(), codes, "docs/cli.md and --help differ");
    let readme = read("README.md");
    let (_, line) = readme.split_once("\n0 done, 1 error").unwrap();
    let line = line.split(" Treat").next().unwrap();
    assert_eq!(squeeze(line), squeeze(text.split("1 error").nth(1).unwrap()), "README.md differs");
}

/// The text on one line.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a command adds comes first; what all commands have follows under its own heading.
#[test]
fn help_shows_a_commands_own_options_first() {
    const HEADING: &str = "\nOptions of every command:\n";
    let top = help(&[]);
    let everywhere = long_flags(top.split_once(HEADING).unwrap().1);
    assert!(everywhere.len() >= 11 && everywhere.contains("--repo"), "{everywhere:?}");
    for command in [&["init"][..], &["backup"], &["restore"], &["key", "add"], &["list"]] {
        let text = help(command);
        let (own, shared) = text.split_once(HEADING).unwrap();
        assert_eq!(long_flags(shared), everywhere, "{command:?}");
        assert!(long_flags(own).is_disjoint(&everywhere), "{command:?}: {own}");
    }
}

/// The glossary has no archives: a point and a repository are called so.
#[test]
fn help_calls_nothing_an_archive() {
    let mut texts = vec![help(&[])];
    for command in commands_in(&texts[0]) {
        texts.push(help(&[&command]));
    }
    for text in texts {
        assert!(!text.to_lowercase().contains("archive"), "{text}");
    }
}
