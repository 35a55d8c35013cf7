//! `repair index`: makes the index anew from the packs' footers.

use super::context::Context;
use super::output::{json_line, line};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::locate::Locator;
use clap::Subcommand;
use serde_json::json;

/// Options of `repair`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make this host's index anew from the packs' footers
    Index,
}

/// Runs `repair`.
///
/// # Errors
/// As reading the footers.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let Command::Index = arguments.command;
    let repository = context.open()?;
    let locator = Locator::rebuild(&repository, context.monitor())?;
    for (_, error) in locator.damaged() {
        context.monitor().warn(&error.full_text());
    }
    let (packs, entries) = (locator.listed().len(), locator.entries_read());
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "packs": packs,
            "entries": entries,
            "damaged_packs": locator.damaged().iter().map(|(id, _)| id.to_hex()).collect::<Vec<_>>(),
        }));
    }
    line(&format!("made the index anew: {packs} packs, {entries} chunks and pages"))
}
