//! Writes the test vectors below `repo-format/vectors` and the bytes of the worked examples below
//! `repo-format/spec`, or compares them with `--check`.
//!
//! ```text
//! cargo run -p diskvault-format --example generate_vectors [-- --check]
//! ```

mod vectors;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vectors::{Result, Tree};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // Nothing is left to do if the message cannot be written either.
            let _ = writeln!(std::io::stderr(), "{cause}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = vectors::read_tree(&folder.join("spec"))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut output = std::io::stdout();
    for (name, wanted) in
        [("vectors", vectors::tree()?), ("spec", vectors::worked::filled(&pages)?)]
    {
        let root = folder.join(name);
        let differences = vectors::differences(&wanted, &vectors::read_tree(&root)?);
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => write(&root, &wanted)?,
            ["--check"] if differences.is_empty() => {}
            ["--check"] => return Err(differences.join("\n").into()),
            _ => return Err("the only argument is --check".into()),
        }
        let bytes: usize = wanted.values().map(Vec::len).sum();
        let (files, differed) = (wanted.len(), differences.len());
        writeln!(output, "{name}: {files} files, {bytes} bytes, {differed} differed")?;
    }
    Ok(())
}

/// Makes the folder hold exactly `wanted`.
fn write(root: &Path, wanted: &Tree) -> Result<()> {
    for path in vectors::read_tree(root)?.keys().filter(|path| !wanted.contains_key(*path)) {
        std::fs::remove_file(root.join(path))?;
    }
    for (path, bytes) in wanted {
        let file: PathBuf = root.join(path);
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, bytes)?;
    }
    Ok(())
}
