//! `completions`: scripts for shells, made from the definitions of the command line.

use super::Cli;
use super::output::cannot_write;
use crate::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

/// Options of `completions`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs `completions`.
///
/// # Errors
/// Fails if nobody reads it.
pub fn run(arguments: &Arguments) -> Result<()> {
    super::output::refuse_closed_output()?;
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "diskvault", &mut script);
    let mut output = std::io::stdout().lock();
    let written = output.write_all(&script).and_then(|()| output.flush());
    super::output::ignore_broken_pipe(written.map_err(cannot_write))
}
