//! The command line: the only floor that prints, prompts or reads the environment.
//!
//! One file for each command, each with its arguments and a `run`; `context` opens repositories,
//! `output` prints, `progress` is the monitor. The exit codes are those of
//! [`crate::error::ErrorKind`].

mod adopt;
mod backup;
mod benchmark;
mod boot;
mod certify;
mod check;
mod completions;
mod context;
mod copy;
mod cp;
mod delta;
mod demo;
mod demo_image;
mod diff;
mod digest;
mod dump;
mod files;
mod find;
mod forget;
mod init;
mod keep;
mod key;
mod list;
mod ls;
mod mirror;
mod mount;
mod output;
mod password;
mod pin;
mod profiles;
mod progress;
mod prune;
mod recovery;
mod remote;
mod remote_s3;
mod remote_ssh;
mod repair;
mod restore;
mod restore_format;
mod serve;
mod serve_nbd;
mod show;
mod sizes;
mod stats;
mod sync;
mod terminal;
mod version;
mod write_behind;

use crate::error::{Error, ErrorKind, Result};
use clap::{ArgAction, Parser, Subcommand};
use context::Context;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a command that did its work but warned.
const EXIT_WARNINGS: u8 = 4;

/// Keeps the history of virtual-machine disks.
#[derive(Parser, Debug)]
// Without colours clap also removes what escape sequences a file name brings into its errors.
#[command(name = "diskvault", disable_version_flag = true, max_term_width = 100)]
#[command(color = clap::ColorChoice::Never)]
#[command(
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 error, 2 usage, \
    3 done but parts of a disk were unreadable, 4 done with warnings, 5 damage, 6 no space, 10 no repository, \
    11 locked out, 12 wrong password, 13 newer format, 130 interrupted."
)]
struct Cli {
    /// Print the version; with -v also the backends in use
    #[arg(short = 'V', long)]
    version: bool,
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command, under a heading of their own behind the command's.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Options of every command")]
struct GlobalOptions {
    // The environment is read in `context`: clap would take it for an option that was given, and
    // could not tell a contradiction from a default.
    /// The repository: a folder or an address; DISKVAULT_REPOSITORY by default
    #[arg(short, long, global = true, value_name = "PLACE")]
    repo: Option<OsString>,
    /// File whose first line names the repository; DISKVAULT_REPOSITORY_FILE by default
    #[arg(long, global = true, value_name = "FILE")]
    repository_file: Option<PathBuf>,
    /// File whose first line is the password
    #[arg(short, long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Command that prints the password; run without a shell
    #[arg(long, global = true, value_name = "COMMAND")]
    password_command: Option<String>,
    /// Folder of the caches; DISKVAULT_CACHE_DIR by default
    #[arg(long, global = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Worker threads; the number of cores by default
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but results and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say also which repository, key and cache were opened
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Show progress although --quiet is given
    #[arg(long, global = true, overrides_with = "no_progress")]
    progress: bool,
    /// Show no progress
    #[arg(long, global = true, overrides_with = "progress")]
    no_progress: bool,
    #[command(flatten)]
    remote: remote::RemoteOptions,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a repository
    Init(init::Arguments),
    /// Make a restore point of disks, files and pipes
    Backup(backup::Arguments),
    /// Take an old image or dump as the first point of a series, so that its first backup sends little
    Adopt(adopt::Arguments),
    /// List restore points
    #[command(visible_alias = "snapshots")]
    List(list::Arguments),
    /// Show everything about a restore point
    Show(show::Arguments),
    /// Bring a disk, or all of a point, back onto a file, folder or block device
    Restore(restore::Arguments),
    /// Keep a disk ready to start: a file or device that follows a series, by what differs
    Mirror(mirror::Arguments),
    /// Compare a file, image or device with a disk of a point
    Certify(certify::Arguments),
    /// Write one disk or stream to standard output
    Dump(dump::Arguments),
    /// List partitions, or files, of a disk in a point
    Ls(ls::Arguments),
    /// Copy files out of a disk in a point, to a folder or as a tar
    Cp(cp::Arguments),
    /// Look for files on a disk in a point
    Find(find::Arguments),
    /// Show the disks of all points as files, through FUSE
    Mount(mount::Arguments),
    /// Serve repositories of this machine to another one, over ssh
    Serve(serve::Arguments),
    /// Serve the disks of a point over NBD, read-only or with an overlay that takes writes
    ServeNbd(serve_nbd::Arguments),
    /// Start a machine on the disks of a point, or see whether it boots
    Boot(boot::Arguments),
    /// Drop points by a policy or by name; they can be brought back
    Forget(forget::Arguments),
    /// Give the room of what no point needs back
    Prune(prune::Arguments),
    /// Copy points from another repository into this one, only what it lacks
    Copy(copy::Arguments),
    /// Bring a replica of a repository up to it: another copy with the same keys
    Sync(sync::Arguments),
    /// Keep points from being forgotten
    Pin(pin::PinArguments),
    /// End the pins of points
    Unpin(pin::UnpinArguments),
    /// Set and remove tags of a point
    Tag(pin::TagArguments),
    /// Look for damage
    Check(check::Arguments),
    /// Manage passwords and recovery keys
    Key(key::Arguments),
    /// Mend what can be mended
    Repair(repair::Arguments),
    /// Show what the repository or some of its points take, share and need alone
    Stats(stats::Arguments),
    /// Show which ranges of the disks of two points differ
    Diff(diff::Arguments),
    /// Write the difference between two points of a disk into a file
    ExportDelta(delta::ExportArguments),
    /// Make a disk of the one before it and a file of `export-delta`, without a repository
    Apply(delta::ApplyArguments),
    /// Print the digest of a whole disk or stream
    Digest(digest::Arguments),
    /// Measure what this machine and a storage can do, and say what the limit is
    Benchmark(benchmark::Arguments),
    /// See it work: makes a disk, backs it up three times, restores the middle
    Demo(demo::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// Parses the arguments, runs the command and gives the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_usage = error.use_stderr();
            if is_usage && std::env::args_os().any(|argument| argument == "--json") {
                output::print_error(&usage_error(&error), true);
            } else {
                // Fails only if nobody reads it.
                let _ = error.print();
            }
            return ExitCode::from(if is_usage { ErrorKind::Usage.exit_code() } else { 0 });
        }
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_WARNINGS),
        Err(error) => {
            output::print_error(&error, json);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// What clap found wrong, on one line and without its advice.
fn usage_error(error: &clap::Error) -> Error {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error: ").split_whitespace().collect();
    Error::new(ErrorKind::Usage, format!("cannot read the arguments: {}", words.join(" ")))
}

/// Runs the command; the number of warnings.
fn run(cli: Cli) -> Result<usize> {
    if cli.version {
        version::print(cli.global.verbose > 0)?;
        return Ok(0);
    }
    let Some(command) = cli.command else {
        return Err(Error::new(ErrorKind::Usage, "cannot run without a command")
            .hint("`diskvault --help` lists them"));
    };
    let context = Context::new(cli.global)?;
    match command {
        Command::Init(arguments) => init::run(&context, &arguments),
        Command::Backup(arguments) => backup::run(&context, arguments),
        Command::List(arguments) => list::run(&context, &arguments),
        Command::Show(arguments) => show::run(&context, &arguments),
        Command::Restore(arguments) => restore::run(&context, &arguments),
        Command::Mirror(arguments) => mirror::run(&context, &arguments),
        Command::Certify(arguments) => certify::run(&context, &arguments),
        Command::Dump(arguments) => dump::run(&context, &arguments),
        Command::Ls(arguments) => ls::run(&context, &arguments),
        Command::Cp(arguments) => cp::run(&context, &arguments),
        Command::Find(arguments) => find::run(&context, &arguments),
        Command::Mount(arguments) => mount::run(&context, &arguments),
        Command::Serve(arguments) => serve::run(&context, &arguments),
        Command::ServeNbd(arguments) => serve_nbd::run(&context, &arguments),
        Command::Boot(arguments) => boot::run(&context, &arguments),
        Command::Forget(arguments) => forget::run(&context, &arguments),
        Command::Prune(arguments) => prune::run(&context, &arguments),
        Command::Adopt(arguments) => adopt::run(&context, arguments),
        Command::Copy(arguments) => copy::run(&context, &arguments),
        Command::Sync(arguments) => sync::run(&context, &arguments),
        Command::Pin(arguments) => pin::pin(&context, &arguments),
        Command::Unpin(arguments) => pin::unpin(&context, &arguments),
        Command::Tag(arguments) => pin::tag(&context, &arguments),
        Command::Check(arguments) => check::run(&context, &arguments),
        Command::Key(arguments) => key::run(&context, &arguments),
        Command::Repair(arguments) => repair::run(&context, &arguments),
        Command::Stats(arguments) => stats::run(&context, &arguments),
        Command::Diff(arguments) => diff::run(&context, &arguments),
        Command::ExportDelta(arguments) => delta::export(&context, &arguments),
        Command::Apply(arguments) => delta::apply(&context, &arguments),
        Command::Digest(arguments) => digest::run(&context, &arguments),
        Command::Benchmark(arguments) => benchmark::run(&context, &arguments),
        Command::Demo(arguments) => demo::run(&context, &arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }?;
    Ok(context.monitor().warning_count())
}
