//! `init`: makes a repository, with a recovery key.
//!
//! Invariant: the recovery key is on a terminal or in its file before there is a repository that
//! it opens, and never anywhere else; it was tested before success is reported; a refusal leaves
//! nothing behind.

use super::context::{Context, host_name};
use super::output::{json_line, line, remark};
use super::recovery::{ConfigWatch, HandedOut};
use super::remote;
use super::sizes::{format_bytes, parse_bytes};
use crate::environment::SystemEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::secrets::{Passphrase, make_recovery_key};
use crate::repository::{InitOptions, InitReport, initialise};
use crate::storage::place::Place;
use diskvault_format::key_slot::KdfCost;
use diskvault_format::limits::PARITY_PER_MILLE_MAX;
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Options of `init`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Chunk size of the fixed grid: a power of two from 4KiB to 4MiB
    #[arg(long, value_name = "SIZE", default_value = "32KiB")]
    chunk_size: String,
    /// Add this much to each pack, so that it heals itself from bit rot: 0.1% to 50%
    #[arg(long, value_name = "SHARE")]
    parity: Option<String>,
    /// Write the recovery key to this new file
    #[arg(long, value_name = "FILE", conflicts_with = "no_recovery_key")]
    recovery_key_file: Option<PathBuf>,
    /// Make no recovery key: whoever forgets the password loses everything
    #[arg(long)]
    no_recovery_key: bool,
}

/// Reads a share such as `2%` or `0.5%`, in thousandths.
fn parse_parity(text: &str) -> Result<u32> {
    let per_mille = text.strip_suffix('%').and_then(|number| {
        let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
        let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_plain(whole) || !is_plain(tenths) || tenths.len() != 1 {
            return None;
        }
        let tenths: u32 = tenths.parse().ok()?;
        whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenths)
    });
    per_mille.filter(|amount| (1..=PARITY_PER_MILLE_MAX).contains(amount)).ok_or_else(|| {
        let text =
            format!("cannot add parity of {text:?}: expected such as 2% or 0.5%, from 0.1% to 50%");
        Error::new(ErrorKind::Usage, text)
    })
}

/// Runs `init`.
///
/// # Errors
/// `Usage` without a place for the recovery key, `AlreadyExists`, or what the storage says.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let place = context.place()?;
    let chunk_bytes = u32::try_from(parse_bytes(&arguments.chunk_size)?)
        .map_err(|_| Error::new(ErrorKind::Usage, "cannot cut into chunks of 4 GiB or more"))?;
    if !chunk_bytes.is_power_of_two() || !(4 << 10..=4 << 20).contains(&chunk_bytes) {
        let text = format!(
            "cannot cut into chunks of {}: expected a power of two from 4KiB to 4MiB",
            arguments.chunk_size
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let parity_per_mille = arguments.parity.as_deref().map_or(Ok(0), parse_parity)?;
    let is_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !is_terminal && !arguments.no_recovery_key && arguments.recovery_key_file.is_none() {
        let text = "cannot show the recovery key: there is no terminal";
        return Err(Error::new(ErrorKind::Usage, text)
            .hint("use --recovery-key-file FILE or --no-recovery-key"));
    }
    // Before anything is asked or shown: a key for a repository that cannot be made confuses.
    remote::may_create(&place, context)?;
    let password = context.first_password()?;
    if password.is_empty() {
        let text = "cannot make a repository: the password is empty";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let recovery = match arguments.no_recovery_key {
        true => None,
        false => Some(make_recovery_key(&SystemEnvironment)?),
    };
    let handed_out = match (&arguments.recovery_key_file, &recovery) {
        (_, None) => None,
        (Some(file), Some(key)) => Some(HandedOut::to_file(file, "recovery key file ", key)?),
        (None, Some(key)) => Some(HandedOut::to_terminal(key)?),
    };
    let new = NewRepository { place: &place, chunk_bytes, parity_per_mille };
    match make(context, &new, &password, recovery.as_ref()) {
        Ok(report) => print_report(context, &place, &report),
        Err((error, is_void)) => {
            if let Some(handed_out) = handed_out {
                handed_out.settle(is_void, context.monitor());
            }
            Err(error)
        }
    }
}

/// Where and how it is to be made.
struct NewRepository<'a> {
    place: &'a Place,
    chunk_bytes: u32,
    parity_per_mille: u32,
}

/// Makes the repository; beside an error whether surely nothing was made.
fn make(
    context: &Context,
    new: &NewRepository<'_>,
    password: &Passphrase,
    recovery: Option<&Zeroizing<String>>,
) -> Result<InitReport, (Error, bool)> {
    let recovery = recovery.map(|key| Passphrase::new(key.as_bytes().to_vec()));
    let storage = remote::create(new.place, context).map_err(|error| (error, true))?;
    let storage = storage.as_ref();
    let watch = ConfigWatch::start(storage);
    let options = InitOptions {
        passphrase: password,
        recovery: recovery.as_ref(),
        chunk_bytes: Some(new.chunk_bytes),
        pack_bytes: None,
        parity_per_mille: new.parity_per_mille,
        cost: KdfCost::PASSPHRASE,
        host: &host_name(),
    };
    initialise(storage, &SystemEnvironment, &options).map_err(|error| (error, watch.is_unchanged()))
}

fn print_report(context: &Context, place: &Place, report: &InitReport) -> Result<()> {
    if context.json() {
        return json_line(&json!({
            "message_type": "initialized",
            "repository_id": report.repository.to_hex(),
            "repository": place.to_string(),
            "chunk_bytes": report.chunk_bytes,
            "parity_per_mille": report.parity_per_mille,
            "key_slots": report.key_slots.iter().map(|id| id.to_hex()).collect::<Vec<_>>(),
        }));
    }
    let parity = match report.parity_per_mille {
        0 => String::new(),
        amount if amount % 10 == 0 => format!(" parity of {}%,", amount / 10),
        amount => format!(" parity of {}.{}%,", amount / 10, amount % 10),
    };
    line(&format!(
        "made repository {} at {}, chunks of {},{parity} {} key slots",
        report.repository.short(),
        super::output::escape(&place.to_string()),
        format_bytes(report.chunk_bytes.into()),
        report.key_slots.len()
    ))?;
    if !context.quiet() {
        let keys = match report.key_slots.len() {
            1 => "without the password",
            _ => "without the password or the recovery key",
        };
        remark(&format!("{keys} nobody can read it again"));
    }
    Ok(())
}
