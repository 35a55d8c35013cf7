//! `key`: passwords and recovery keys.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line, refuse_closed_output, table};
use super::password;
use super::recovery::{ConfigWatch, HandedOut, write_private};
use crate::environment::SystemEnvironment;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::repository::address::{format_time_local, format_time_utc};
use crate::repository::secrets::{Passphrase, make_recovery_key};
use crate::repository::{Repository, SlotDescription};
use clap::Subcommand;
use diskvault_format::key_slot::{KdfCost, SlotKind};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `key`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Add a password, or a recovery key
    Add {
        /// File whose first line is the new password
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key_file")]
        new_password_file: Option<PathBuf>,
        /// Make a recovery key and write it to this new file
        #[arg(long, value_name = "FILE")]
        recovery_key_file: Option<PathBuf>,
        /// A name for the key
        #[arg(long, default_value = "password")]
        name: String,
        /// A password for a host that may back up and do nothing else: it cannot read what is
        /// stored, forget or prune. Older programs no longer open the repository then
        #[arg(long, conflicts_with = "recovery_key_file")]
        write_only: bool,
        /// With --write-only: the only series that it may write to; a * at the end stands for any
        /// rest. Can be given more than once
        #[arg(long, value_name = "NAME", requires = "write_only")]
        series: Vec<String>,
    },
    /// List the keys
    List,
    /// Remove a key
    Remove {
        /// First digits of its id
        id: String,
    },
    /// Change the password this run was opened with; with a recovery key, add a password
    Passwd {
        /// File whose first line is the new password
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// Write the sealed key slot of this password to a new file; it is useless without the
    /// password, and replaces a lost file in keys/
    Export {
        /// A new file, or - for standard output
        file: PathBuf,
    },
}

/// Runs `key`.
///
/// # Errors
/// As the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if matches!(&arguments.command, Command::Export { file } if file == Path::new("-")) {
        refuse_closed_output()?;
    }
    let mut repository = context.open()?;
    match &arguments.command {
        Command::Add { new_password_file, name, write_only: true, series, .. } => {
            let secret = password::new(new_password_file.as_deref(), context.monitor())?;
            let (cost, host) = (KdfCost::PASSPHRASE, host_name());
            let id = repository.add_writer(&secret, cost, name, &host, series)?;
            tell(context, "added", &id.to_hex())
        }
        Command::Add { new_password_file, recovery_key_file, name, .. } => add(
            context,
            &mut repository,
            new_password_file.as_deref(),
            recovery_key_file.as_deref(),
            name,
        ),
        Command::List => list(context, &repository),
        Command::Remove { id } => {
            let removed = repository.remove_key(id)?;
            tell(context, "removed", &removed.to_hex())
        }
        Command::Passwd { new_password_file } => {
            change_password(context, &mut repository, new_password_file.as_deref())
        }
        Command::Export { file } => {
            let bytes = repository.export_key(repository.current_key())?;
            if file == Path::new("-") {
                let mut output = std::io::stdout().lock();
                let written = output.write_all(&bytes).and_then(|()| output.flush());
                return written.map_err(super::output::cannot_write);
            }
            write_private(file, "", &bytes)?;
            tell(context, "exported", &repository.current_key().to_hex())
        }
    }
}

/// Puts a new password in place of the one of this run; a recovery key stays, since who uses it
/// has forgotten a password and still wants the key on paper.
fn change_password(
    context: &Context,
    repository: &mut Repository,
    new_password_file: Option<&Path>,
) -> Result<()> {
    let old = repository.current_key();
    let password = password::new(new_password_file, context.monitor())?;
    let slot = repository.key_slots()?.into_iter().find(|slot| slot.id == old);
    let is_recovery = slot.as_ref().is_some_and(|slot| slot.kind == Some(SlotKind::Recovery));
    let name = match slot.and_then(|slot| slot.label.ok()) {
        Some(label) if !is_recovery => label.name,
        _ => "password".into(),
    };
    let (kind, cost) = (SlotKind::Passphrase, KdfCost::PASSPHRASE);
    let id = repository.add_key(kind, &password, cost, &name, &host_name())?;
    if is_recovery {
        context.monitor().note(
            "the recovery key stays, and so does the key of the forgotten password: \
             `diskvault key list` shows its id, `diskvault key remove ID` removes it",
        );
        return tell(context, "added", &id.to_hex());
    }
    repository.remove_key(&old.to_hex()).map_err(|error| {
        let added = id.short();
        let text = format!("key {added} was added, but the old one may count still");
        Error::new(error.kind(), text).because(error)
    })?;
    tell(context, "changed", &id.to_hex())
}

fn add(
    context: &Context,
    repository: &mut Repository,
    new_password_file: Option<&Path>,
    recovery_key_file: Option<&Path>,
    name: &str,
) -> Result<()> {
    let host = host_name();
    let id = match recovery_key_file {
        Some(file) => {
            let key = make_recovery_key(&SystemEnvironment)?;
            let handed_out = HandedOut::to_file(file, "", &key)?;
            let secret = Passphrase::new(key.as_bytes().to_vec());
            let cost = KdfCost::RECOVERY;
            let storage = repository.storage().clone();
            let watch = ConfigWatch::start(storage.as_ref());
            match repository.add_key(SlotKind::Recovery, &secret, cost, name, &host) {
                Ok(id) => id,
                Err(error) => {
                    handed_out.settle(watch.is_unchanged(), context.monitor());
                    return Err(error);
                }
            }
        }
        None => {
            let secret = password::new(new_password_file, context.monitor())?;
            repository.add_key(SlotKind::Passphrase, &secret, KdfCost::PASSPHRASE, name, &host)?
        }
    };
    tell(context, "added", &id.to_hex())
}

fn tell(context: &Context, what: &str, id: &str) -> Result<()> {
    if context.json() {
        return json_line(&json!({"message_type": format!("key_{what}"), "key_id": id}));
    }
    line(&format!("{what} key {}", &id[..8]))
}

/// What the holder of a key may do.
fn may(slot: &SlotDescription) -> String {
    match &slot.writer {
        None => "do everything".into(),
        Some(writer) if writer.series.is_empty() => "write".into(),
        Some(writer) => format!("write {}", escape(&writer.series.join(", "))),
    }
}

fn list(context: &Context, repository: &Repository) -> Result<()> {
    let slots = repository.key_slots()?;
    let kind = |slot: &SlotDescription| match slot.kind {
        Some(SlotKind::Passphrase) => "password",
        Some(SlotKind::Recovery) => "recovery key",
        None => "unreadable",
    };
    if context.json() {
        let describe = |slot: &SlotDescription| {
            let label = slot.label.as_ref().ok();
            json!({
                "key_id": slot.id.to_hex(),
                "kind": kind(slot),
                "name": label.map(|label| &label.name),
                "host": label.map(|label| &label.host),
                "created": label.map(|label| format_time_utc(label.created_unix_ns)),
                "is_current": slot.is_current,
                "write_only": slot.writer.is_some(),
                "series": slot.writer.as_ref().map(|writer| &writer.series),
            })
        };
        return json_line(&slots.iter().map(describe).collect::<Value>());
    }
    let mut rows =
        vec![["", "KEY", "KIND", "MAY", "NAME", "MADE", "ON"].map(String::from).to_vec()];
    for slot in &slots {
        let (name, made, host) = match &slot.label {
            Ok(label) => {
                (escape(&label.name), format_time_local(label.created_unix_ns), escape(&label.host))
            }
            Err(text) => (escape(text), String::new(), String::new()),
        };
        let mark = if slot.is_current { "*" } else { "" };
        let may = may(slot);
        rows.push(vec![mark.into(), slot.id.short(), kind(slot).into(), may, name, made, host]);
    }
    table(&rows)
}
