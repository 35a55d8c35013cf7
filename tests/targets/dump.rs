//! `dump --offset --length`.

use crate::support::Vault;
use crate::{History, SIZE};

#[test]
fn a_range_is_that_range() {
    let history = History::new();
    let vault = &history.vault;
    for chunker in ["fixed", "fastcdc"] {
        let disk = format!("sda={}", vault.arg("disk"));
        vault.ok(&["backup", "--name", chunker, "--chunker", chunker, "--disk", &disk]);
        let day = &history.days[2];
        for (offset, length) in [
            (0, SIZE),
            (1, 1),
            (65_535, 2),
            (65_536, 65_536),
            (100, 3 << 20),
            (SIZE - 1, 1),
            (SIZE, 0),
        ] {
            let (from, count) = (offset.to_string(), length.to_string());
            let address = format!("{chunker}/sda");
            let arguments = ["dump", &address, "--offset", &from, "--length", &count];
            let dumped = vault.ok(&arguments).stdout;
            assert!(dumped == day[offset as usize..(offset + length) as usize], "{offset}");
        }
        let rest = vault.ok(&["dump", &format!("{chunker}/sda"), "--offset", "9MiB"]).stdout;
        assert!(rest == day[9 << 20..]);
    }
}

#[test]
fn a_range_of_a_stream_too_and_none_beyond_the_end() {
    let vault = Vault::new();
    let file = vault.write("notes", b"0123456789");
    vault.ok(&["backup", "--name", "vm", "--stream", &format!("notes={file}")]);
    let dumped = vault.ok(&["dump", "vm/notes", "--offset", "3", "--length", "4"]);
    assert_eq!(dumped.stdout, b"3456");
    for (offset, length) in [("11", "0"), ("5", "6"), ("16777215T", "1"), ("1", "16777215T")] {
        let arguments = ["dump", "vm/notes", "--offset", offset, "--length", length];
        let outcome = vault.fails(2, &arguments, "of notes: it has 10 bytes");
        assert!(outcome.stdout.is_empty());
    }
}
