//! `diskvault-kernel`: the real binary against the kernel, with kills, full and read-only file
//! systems, failing system calls, and a crowd of processes on one folder.
//!
//! Each command prints a line of figures, and ends with 1 on a broken promise. `--seed` repeats the
//! same images and choices; instants and the order of processes are the machine's.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod archive;
mod crowd;
mod full;
mod image;
mod inject;
mod kills;
mod mount;
mod readonly;

use archive::Promise;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
diskvault-kernel [--program FILE] [--folder DIR] [--seed N] COMMAND

  kills [--runs 300] [--mib 24]   SIGKILL at random instants of backup, prune and repair
  full                            a loop-mounted file system runs full (root)
  inject [--most 400]             the n-th system call fails (strace), n up to --most
  readonly [--runs 20]            a file system turns read-only meanwhile (root)
  crowd [--minutes 3] [--mib 24]  backups, prunes, restores and checks at once
  all                             all of these
";

struct Options {
    program: PathBuf,
    folder: Option<PathBuf>,
    seed: u64,
    runs: Option<u64>,
    most: u64,
    minutes: f64,
    mib: usize,
    commands: Vec<String>,
}

fn parse() -> Result<Options, String> {
    let mut options = Options {
        program: "target/release/diskvault".into(),
        folder: None,
        seed: 1,
        runs: None,
        most: 400,
        minutes: 3.0,
        mib: 24,
        commands: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        let Some(name) = word.strip_prefix("--") else {
            options.commands.push(word);
            continue;
        };
        let value = arguments.next().ok_or(format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} needs a number"));
        match name {
            "program" => options.program = value.into(),
            "folder" => options.folder = Some(value.into()),
            "seed" => options.seed = number()?,
            "runs" => options.runs = Some(number()?),
            "most" => options.most = number()?,
            "mib" => options.mib = number()?.clamp(1, 1024) as usize,
            "minutes" => {
                options.minutes = value.parse().map_err(|_| format!("{word} needs a number"))?;
            }
            _ => return Err(format!("there is no {word}")),
        }
    }
    if options.commands == ["all"] {
        options.commands =
            ["kills", "full", "inject", "readonly", "crowd"].map(String::from).to_vec();
    }
    if options.commands.is_empty() {
        return Err("which command?".into());
    }
    Ok(options)
}

fn run(options: &Options, command: &str, folder: &Path) -> Promise<String> {
    let Options { program, seed, mib, .. } = options;
    match command {
        "kills" => kills::run(program, folder, *seed, options.runs.unwrap_or(300), *mib)
            .map(|figures| figures.to_string()),
        "full" => full::run(program, folder, *seed, &full::CASES),
        "inject" => inject::run(program, folder, *seed, &inject::CALLS, options.most),
        "readonly" => readonly::run(program, folder, *seed, options.runs.unwrap_or(20)),
        "crowd" => {
            let time = Duration::from_secs_f64(options.minutes.clamp(0.0, 10_000.0) * 60.0);
            crowd::run(program, folder, *seed, time, *mib)
        }
        _ => Err(format!("there is no command {command}")),
    }
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(options) => options,
        Err(text) => {
            eprint!("{text}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut code = ExitCode::SUCCESS;
    for command in &options.commands {
        let made = match &options.folder {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        };
        let folder = match made {
            Ok(folder) => folder,
            Err(cause) => {
                eprintln!("cannot make a folder: {cause}");
                return ExitCode::from(2);
            }
        };
        let began = std::time::Instant::now();
        match run(&options, command, folder.path()) {
            Ok(figures) => println!("{figures} (seed {}, {:.0?})", options.seed, began.elapsed()),
            Err(text) => {
                println!("{command}: BROKEN with seed {}: {text}", options.seed);
                println!("what is there is kept in {}", folder.keep().display());
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
