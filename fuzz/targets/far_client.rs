//! Far ends of an attacker, over ssh and over SFTP: opening one and asking it something ends, in
//! bounded memory, whatever it says. The first byte chooses, the rest is what the far end says.
#![no_main]

use diskvault::error::Result;
use diskvault::storage::far::{Dialer, FarOptions, FarStorage, Line, LineControl, Purpose};
use diskvault::storage::sftp::SftpStorage;
use diskvault::storage::{Folder, ObjectName, Storage};
use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, sink};
use std::sync::Arc;
use std::time::Duration;

struct Said(Vec<u8>);

struct Nothing;

impl LineControl for Nothing {
    fn cut(&self) {}
    fn farewell(&self) -> (String, Option<&'static str>) {
        ("the end".into(), None)
    }
}

impl Dialer for Said {
    fn dial(&self) -> Result<Line> {
        Ok(Line {
            input: Box::new(Cursor::new(self.0.clone())),
            output: Box::new(sink()),
            control: Box::new(Nothing),
        })
    }
    fn location(&self) -> String {
        "ssh://fuzz/".into()
    }
}

fn ask(storage: &dyn Storage) {
    let name = ObjectName::new(Folder::Keys, "aa").expect("a name");
    let _ = storage.get(&name, 1 << 16);
    let _ = storage.get_tail(&name, 100);
    let _ = storage.list(Folder::Packs);
    let _ = storage.foreign();
}

fuzz_target!(|data: &[u8]| {
    let Some((first, said)) = data.split_first() else { return };
    let dialer = Arc::new(Said(said.to_vec()));
    let options = FarOptions {
        patience: Duration::ZERO,
        greeting: Duration::from_secs(5),
        silence: Duration::from_secs(5),
        ..FarOptions::default()
    };
    if first % 2 == 0 {
        if let Ok(storage) = FarStorage::open(dialer, "/x", Purpose::Open, options) {
            ask(&storage);
        }
    } else if let Ok(storage) = SftpStorage::open(dialer, "/x", Purpose::Open, options) {
        ask(&storage);
    }
});
