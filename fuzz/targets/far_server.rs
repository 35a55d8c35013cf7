//! Clients of an attacker: serving a line ends, in bounded memory, whatever comes. The input is what the
//! client says behind a greeting for a login that may only add points; what it is answered is thrown
//! away.
#![no_main]

use diskvault::storage::far::permissions::Access;
use diskvault::storage::far::{ServerOptions, serve};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

static ROOT: LazyLock<TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(root.path().join("config")).expect("a folder in it");
    root
});

fuzz_target!(|said: &[u8]| {
    let path = ROOT.path().to_str().expect("a plain path");
    let mut line = b"dvfar\r\n\0\x01\0\x01\0".to_vec();
    line.extend((39 + path.len() as u32).to_le_bytes());
    line.extend(b"\0\0");
    line.extend([7; 32]);
    line.extend(b"\0\0\x01");
    line.extend((path.len() as u16).to_le_bytes());
    line.extend(path.as_bytes());
    line.extend(said);
    let options = ServerOptions {
        access: Access::AppendOnly,
        restrict_to: vec![ROOT.path().to_owned()],
        home: None,
        notice: Arc::new(|_| {}),
    };
    let _ = serve(&line[..], std::io::sink(), &options);
    assert!(!ROOT.path().join("keys").exists() && !ROOT.path().join("trash").exists());
});
