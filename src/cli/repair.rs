//! `repair`: saves what damage has left, and sets aside what cannot be read.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line};
use super::prune::parse_lease_timeout;
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repair::{
    ObjectRepairOptions, RepairOptions, RepairReport, repair_objects, run as run_repair,
};
use crate::repository::condemned::Patience;
use crate::repository::locate::Locator;
use clap::Subcommand;
use diskvault_format::id::PackId;
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
    /// Save what can be read of damaged packs, and set them aside
    Packs(PackArguments),
    /// Set aside manifests, notes and lists that cannot be read
    Objects(ObjectArguments),
}

#[derive(clap::Args, Debug)]
struct PackArguments {
    /// Packs, by id; all if there are none
    #[arg(value_name = "PACK")]
    packs: Vec<String>,
    /// Say which packs are damaged, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Take a backup for dead that gave no sign of life for so long
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    lease_timeout: String,
}

#[derive(clap::Args, Debug)]
struct ObjectArguments {
    /// Say what cannot be read, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Also condemned lists: nobody prunes this repository now, on any host
    #[arg(long)]
    no_prune_runs: bool,
}

/// Runs `repair`.
///
/// # Errors
/// As the kind of repair; `Damage` for a dry run that found some.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Index => repair_index(context),
        Command::Packs(arguments) => repair_packs(context, arguments),
        Command::Objects(arguments) => repair_small_objects(context, arguments),
    }
}

fn repair_index(context: &Context) -> Result<()> {
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

fn repair_packs(context: &Context, arguments: &PackArguments) -> Result<()> {
    let parse = |text: &String| {
        let bad = || {
            let text = format!("cannot read the pack id {:?}: expected 64 digits", escape(text));
            Error::new(ErrorKind::Usage, text).hint("`diskvault check --read-data` prints them")
        };
        PackId::from_hex(text).ok_or_else(bad)
    };
    let packs: Vec<PackId> = arguments.packs.iter().map(parse).collect::<Result<_>>()?;
    let stands_still = parse_lease_timeout(&arguments.lease_timeout)?;
    let repository = context.open()?;
    let host = host_name();
    let options = RepairOptions {
        packs: &packs,
        patience: Patience { stands_still, waits: true },
        host: &host,
        is_dry_run: arguments.dry_run,
    };
    let announce = |report: &RepairReport| announce(context, report);
    let report = run_repair(&repository, &options, &context.pool()?, &announce, context.monitor())?;
    if arguments.dry_run {
        return match report.damaged.len() {
            0 => Ok(()),
            count => {
                let text = format!("found {count} damaged packs");
                Err(Error::new(ErrorKind::Damage, text))
            }
        };
    }
    tell(context, &report)
}

fn announce(context: &Context, report: &RepairReport) -> Result<()> {
    if context.json() {
        for damaged in &report.damaged {
            json_line(&json!({
                "message_type": "damaged_pack",
                "pack_id": damaged.id.to_hex(),
                "message": damaged.text,
                "readable_segments": damaged.readable_segments,
                "segments": damaged.segments,
                "has_footer": damaged.has_footer,
            }))?;
        }
        return Ok(());
    }
    for damaged in &report.damaged {
        let (id, text) = (damaged.id, &damaged.text);
        let (readable, all) = (damaged.readable_segments, damaged.segments);
        let of = match damaged.has_footer {
            true => format!("{readable} of {all} segments can be read"),
            false => format!("{readable} segments can be read, the footer is gone"),
        };
        line(&format!("pack {id}: {text}; {of}"))?;
    }
    let damaged = match report.damaged.len() {
        1 => "1 is damaged".to_string(),
        count => format!("{count} are damaged"),
    };
    line(&format!("read {} packs: {damaged}", report.packs_read))
}

fn tell(context: &Context, report: &RepairReport) -> Result<()> {
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "packs_read": report.packs_read,
            "damaged_packs": report.damaged.len(),
            "healed": report.healed.iter().map(|id| id.to_hex()).collect::<Vec<_>>(),
            "parity_made": report.parity_made,
            "saved_entries": report.saved_entries,
            "saved_bytes": report.saved_bytes,
            "set_aside": report.set_aside.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
            "kept_packs": report.kept,
            "fenced_leases": report.fenced_leases,
            "lost": report.lost,
            "found_again": report.found_again,
        }));
    }
    for id in &report.healed {
        line(&format!("healed by its parity: pack {id}"))?;
    }
    if report.parity_made > 0 {
        line(&format!("made parity for {} packs", report.parity_made))?;
    }
    if !report.set_aside.is_empty() || report.saved_entries > 0 {
        let bytes = format_bytes(report.saved_bytes);
        line(&format!("saved {} chunks and pages in {bytes}", report.saved_entries))?;
    }
    for name in &report.set_aside {
        line(&format!("set aside: {name}"))?;
    }
    if report.found_again > 0 {
        line(&format!("{} chunks and pages that were lost are there again", report.found_again))?;
    }
    match report.lost {
        0 => line("nothing is lost"),
        lost => line(&format!(
            "{lost} chunks and pages are lost; `diskvault check` says which points need them, and \
             a backup that meets them again heals these"
        )),
    }
}

fn repair_small_objects(context: &Context, arguments: &ObjectArguments) -> Result<()> {
    let repository = context.open()?;
    let host = host_name();
    let options = ObjectRepairOptions {
        no_prune_runs: arguments.no_prune_runs,
        host: &host,
        is_dry_run: arguments.dry_run,
    };
    let repairs = repair_objects(&repository, &options, context.monitor())?;
    let mut left_lists = false;
    for repair in &repairs {
        left_lists |= repair.aside.is_none() && repair.name.starts_with("condemned/");
        if context.json() {
            json_line(&json!({
                "message_type": "damaged_object",
                "name": repair.name,
                "message": repair.text,
                "set_aside": repair.aside.as_ref().map(|name| name.to_string()),
            }))?;
        } else {
            line(&escape(&repair.text))?;
            if let Some(aside) = &repair.aside {
                line(&format!("set aside: {aside}"))?;
            }
        }
    }
    if left_lists && !arguments.dry_run {
        let text = "cannot set a condemned list aside: a prune may be running by it";
        return Err(Error::new(ErrorKind::Failed, text)
            .hint("if none runs on any host, use --no-prune-runs"));
    }
    if !context.json() {
        line(&format!("{} objects cannot be read", repairs.len()))?;
    }
    match (arguments.dry_run, repairs.len()) {
        (true, count) if count > 0 => {
            let text = format!("found {count} damaged objects");
            Err(Error::new(ErrorKind::Damage, text))
        }
        _ => Ok(()),
    }
}
