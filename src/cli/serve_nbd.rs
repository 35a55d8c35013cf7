//! `serve-nbd`: the disks of a point to clients of NBD.

use super::context::Context;
use super::output::{escape, json_line, line};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::points::Point;
use crate::restore::Part;
use crate::serve::{Listener, Overlays, Server, TlsFiles, configure, exports, parse_listen};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `serve-nbd`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point, and one disk of it: SERIES, SERIES@latest~1/DISK, ID/DISK
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// Listen at this path, for this user alone
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Listen at this address; port 10809 by default, 0 takes a free one
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1")]
    listen: String,
    /// Serve others than this host without TLS: whoever can connect can read
    #[arg(long)]
    allow_plain: bool,
    /// Take only clients with TLS; the server's certificate and those above it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Take only clients with a certificate by one of these authorities, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_client_ca: Option<PathBuf>,
    /// Take writes, and keep them in this file, made if it is missing; for several disks in this
    /// folder
    #[arg(long, value_name = "PATH", conflicts_with = "temporary_overlay")]
    overlay: Option<PathBuf>,
    /// Take writes, and forget them at the end
    #[arg(long)]
    temporary_overlay: bool,
    /// Connections at the same time; each takes up to 40 MiB
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_connections: u16,
    /// End when no client was connected for so long; by default only a signal ends it
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    exit_when_idle: Option<u32>,
}

/// Runs `serve-nbd`.
///
/// # Errors
/// `Cancelled` when a signal ends it; `Target` for a place where it cannot listen and an overlay
/// that cannot be used; as finding the point.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let tls = match (&arguments.tls_certificate, &arguments.tls_key) {
        (Some(certificate), Some(key)) => {
            let client_authority = arguments.tls_client_ca.as_deref();
            Some(configure(TlsFiles { certificate, key, client_authority })?)
        }
        _ => None,
    };
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let vault = context.vault(repository)?;
    let exports = exports(&vault, &point, address.part, &overlays(arguments))?;
    warn_of_bad_extents(context, &point, address.part);
    let server = Server {
        listener: listener(arguments, tls.is_some())?,
        exports,
        tls,
        connections_max: arguments.max_connections.into(),
        idle: arguments.exit_when_idle.map(|seconds| Duration::from_secs(seconds.into())),
    };
    tell(context, &point, &server)?;
    let monitor = context.monitor();
    server.run(monitor, &|| monitor.is_cancelled())?;
    monitor.check_cancelled()
}

fn overlays(arguments: &Arguments) -> Overlays {
    match &arguments.overlay {
        Some(path) => Overlays::At(path.clone()),
        None if arguments.temporary_overlay => Overlays::Temporary,
        None => Overlays::None,
    }
}

/// Says which disks have zeros in place of what could not be read.
pub fn warn_of_bad_extents(context: &Context, point: &Point, disk: Option<&str>) {
    let served = |name: &str| disk.is_none_or(|disk| disk == name);
    for record in point.manifest.disks.iter().filter(|record| served(&record.name)) {
        Part::Disk(record).warn_of_bad_extents(context.monitor());
    }
}

fn listener(arguments: &Arguments, has_tls: bool) -> Result<Listener> {
    if let Some(path) = &arguments.socket {
        return Listener::at_path(path);
    }
    let address = parse_listen(&arguments.listen)?;
    if !address.ip().is_loopback() && !has_tls && !arguments.allow_plain {
        let text = format!("cannot listen at {address} without TLS: others could read the disks");
        let hint = "give --tls-certificate and --tls-key, or --allow-plain";
        return Err(Error::new(ErrorKind::Usage, text).hint(hint));
    }
    Listener::at_address(address)
}

/// Prints where the disks are, now that clients can connect.
fn tell(context: &Context, point: &Point, server: &Server) -> Result<()> {
    let uris = server.uris();
    if !context.json() {
        return uris.iter().try_for_each(|uri| line(&escape(uri)));
    }
    let exports: Vec<_> = server.exports.iter().zip(&uris).collect();
    json_line(&json!({
        "message_type": "serving",
        "point_id": point.id.to_hex(),
        "exports": exports.iter().map(|(export, uri)| json!({
            "name": export.name(),
            "uri": uri,
            "bytes": export.size(),
            "read_only": export.is_read_only(),
        })).collect::<Vec<_>>(),
    }))
}
