//! What `btrfs send --no-data -p OLD NEW | btrfs receive --dump` prints: the steps from one read-only
//! snapshot to a later one.
//!
//! Invariant: the steps change the data of one file and move none, so what they do not name is in both
//! snapshots what it was.

use super::{OPEN_END, Parsed, number, range};

/// Steps that change no data and leave every file where it is.
const HARMLESS: [&str; 6] =
    ["utimes", "chmod", "chown", "set_xattr", "remove_xattr", "enable_verity"];

/// True for text that these steps begin: those from another snapshot, or those from nothing.
pub(super) fn is_dump(text: &str) -> bool {
    matches!(text.split_whitespace().next(), Some("snapshot" | "subvol"))
}

/// Reads them.
pub(super) fn read(text: &str) -> Parsed {
    let mut ranges = Vec::new();
    let mut file: Option<String> = None;
    for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let say = |what: String| format!("line {}: {what}", place + 1);
        let words = words(line);
        let field = |name: &str| {
            let found = words.iter().skip(2).find_map(|word| word.strip_prefix(name));
            let number = found.and_then(|rest| number(rest.strip_prefix('=')?));
            number.ok_or_else(|| say(format!("it has no {name}")))
        };
        let changed = match words[0].as_str() {
            "snapshot" if place == 0 => continue,
            "subvol" => return Err(say("it is of a whole subvolume, without `-p OLD`".into())),
            word if HARMLESS.contains(&word) => continue,
            "write" | "update_extent" | "clone" => {
                range(field("offset")?, field("len")?).map_err(say)?
            }
            "truncate" => field("size")?..OPEN_END,
            // A file that was made or renamed is another one than it was under its name.
            other => return Err(say(format!("a step {other:?} may do more than change data"))),
        };
        let name = words.get(1).ok_or_else(|| say("it names no file".into()))?;
        match &file {
            None => file = Some(name.clone()),
            Some(file) if file == name => {}
            Some(file) => return Err(say(format!("it is about {name:?}, after {file:?}"))),
        }
        ranges.push(changed);
    }
    Ok(ranges)
}

/// The words of a line; white space in a name stands behind a backslash.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut marks = line.trim().chars();
    while let Some(mark) = marks.next() {
        let Some(word) = words.last_mut() else { break };
        match mark {
            '\\' => word.extend(marks.next()),
            mark if !mark.is_whitespace() => word.push(mark),
            _ if word.is_empty() => {}
            _ => words.push(String::new()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of btrfs-progs 6.2: a disk that was written to, punched and cut short.
    const DUMP: &str = "\
snapshot        ./new                           uuid=81c39ef6-499e-6e48-b792-8f52b7cf3cad transid=11 parent_uuid=9b91ae1c-5270-3849-9ee0-55b9598da3bc parent_transid=7
update_extent   ./new/a\\ disk.raw               offset=409600 len=12288
update_extent   ./new/a\\ disk.raw               offset=2097152 len=65536
clone           ./new/a\\ disk.raw               offset=20971520 len=409600 from=./new/a\\ disk.raw clone_offset=0
truncate        ./new/a\\ disk.raw               size=68157440
utimes          ./new/a\\ disk.raw               atime=2026-11-29T04:31:15+0000 mtime=2026-11-29T04:31:15+0000 ctime=2026-11-29T04:31:15+0000
";

    #[test]
    fn the_steps_between_two_snapshots() {
        assert!(is_dump(DUMP) && !is_dump("0 4096\n"));
        let expected =
            [409_600..421_888, 2_097_152..2_162_688, 20_971_520..21_381_120, 68_157_440..OPEN_END];
        assert_eq!(read(DUMP).unwrap(), expected);
        let unchanged = DUMP.lines().next().unwrap();
        assert_eq!(read(unchanged).unwrap(), []);
    }

    #[test]
    fn steps_that_do_more_are_refused() {
        for (line, text) in [
            ("update_extent ./new/b offset=0 len=4096", "it is about \"./new/b\", after \"./new/a"),
            ("update_extent ./new/a\\ disk.raw len=4096", "line 7: it has no offset"),
            ("rename ./new/a dest=./new/b", "a step \"rename\" may do more"),
            ("mkfile ./new/o258-11-0", "a step \"mkfile\" may do more"),
            ("unlink ./new/a", "a step \"unlink\" may do more"),
            ("snapshot ./new uuid=1", "a step \"snapshot\" may do more"),
            ("subvol ./new uuid=1", "it is of a whole subvolume"),
            ("write", "line 7: it has no offset"),
            ("clone ./a offset=18446744073709551615 len=2 from=b", "ends beyond 2^64"),
        ] {
            let error = read(&format!("{DUMP}{line}\n")).unwrap_err();
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
