//! OVA archives: the disks of a machine and what describes it, in a tar that is not unpacked
//! (DMTF DSP0243, Open Virtualization Format 1.1 and 2.1).
//!
//! Invariants: every file of the archive is a disk or a stream, none is left out; a disk is one file
//! of the archive and leads to no other; memory is bounded whatever the archive says.

mod members;
mod ovf;

use super::image::{ImageFormat, format_of_bytes};
use super::{DiskSource, Window, open_disk};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use ovf::{Disk, Ovf};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

pub(super) use members::begins_as_ova;

/// Longest OVF descriptor in bytes; those of large appliances have some hundred KiB.
const OVF_BYTES_MAX: u64 = 16 << 20;

/// What an OVA holds.
#[derive(Debug)]
pub struct Contents {
    /// The virtual disks with their formats, in the order of the OVF.
    pub disks: Vec<(Window, ImageFormat)>,
    /// All other files, in the order of the archive: the OVF, manifest, certificate and more.
    pub others: Vec<Window>,
}

fn bad(path: &Path, text: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Source, format!("cannot read ova {}: {text}", path.display()))
}

/// Reads the headers of the archive at `path` and its OVF. Digests in its manifest are not verified.
/// `monitor` is told of disks without a file, and warned of an archive without an end.
///
/// # Errors
/// `Source` for what cannot be read, is cut short, or holds what cannot be stored: see the module.
pub fn read(path: &Path, monitor: &dyn Monitor) -> Result<Contents> {
    let file: Arc<dyn DiskSource> = Arc::from(open_disk(path)?);
    let listing = members::list(file.as_ref()).map_err(|text| bad(path, text))?;
    if !listing.has_end {
        let path = path.display();
        monitor.warn(&format!("{path} has no end mark: it may have been cut short"));
    }
    let identity = file.identity();
    let window = |member: members::Member| {
        let identity = identity.clone();
        Window { member: member.name, range: member.range, identity }
    };
    let windows: Vec<Window> = listing.members.into_iter().map(window).collect();
    let ovf = read_ovf(path, &file, &windows)?;
    for disk in &ovf.empty {
        monitor.note(&format!("disk {} of {} is empty", disk.escape_debug(), path.display()));
    }
    let mut disks = Vec::new();
    let mut taken = BTreeSet::new();
    for disk in &ovf.disks {
        let window = find(path, disk, &windows)?;
        // Two virtual disks may begin as one file.
        if taken.insert(window.member.as_str()) {
            disks.push((window.clone(), format_of_disk(path, &file, disk, window)?));
        }
    }
    let is_other = |window: &&Window| !taken.contains(window.member.as_str());
    let others = windows.iter().filter(is_other).cloned().collect();
    Ok(Contents { disks, others })
}

fn read_ovf(path: &Path, file: &Arc<dyn DiskSource>, windows: &[Window]) -> Result<Ovf> {
    let mut found = windows.iter().filter(|window| members::is_ovf(&window.member));
    let Some(window) = found.next() else {
        return Err(bad(path, "it has no .ovf file"));
    };
    if let Some(other) = found.next() {
        let (one, other) = (window.member.escape_debug(), other.member.escape_debug());
        return Err(bad(path, format!("it has two .ovf files, {one} and {other}")));
    }
    let source = window.over(path, file.clone())?;
    let name = window.member.escape_debug();
    if source.size() > OVF_BYTES_MAX {
        return Err(bad(path, format!("its {name} is longer than {} MiB", OVF_BYTES_MAX >> 20)));
    }
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| bad(path, format!("its {name} is no UTF-8")))?;
    Ovf::parse(text).map_err(|text| bad(path, format!("its {name}: {text}")))
}

/// The file of a disk: by its reference as it is, or as a URI that has escapes.
fn find<'a>(path: &Path, disk: &Disk, windows: &'a [Window]) -> Result<&'a Window> {
    let named = |name: &str| windows.iter().find(|window| window.member == name);
    let href = disk.href.strip_prefix("./").unwrap_or(&disk.href);
    let found = named(href).or_else(|| named(&ovf::unescape_uri(href)?));
    found.ok_or_else(|| {
        let (id, href) = (disk.id.escape_debug(), disk.href.escape_debug());
        let first_chunk = named(&format!("{}.000000000", disk.href));
        let why =
            if first_chunk.is_some() { "is cut into chunks" } else { "is not in the archive" };
        bad(path, format!("its disk {id} is the file {href}, which {why}"))
    })
}

/// The format of a disk. What the OVF says and what the file begins like must agree: a guest may
/// have written the beginning of a raw disk, and an OVF may say anything.
fn format_of_disk(
    path: &Path,
    file: &Arc<dyn DiskSource>,
    disk: &Disk,
    window: &Window,
) -> Result<ImageFormat> {
    let name = window.member.escape_debug();
    let source = window.over(path, file.clone())?;
    let stated = match &disk.format {
        Some(uri) => ovf::format_of_uri(uri),
        None => None,
    };
    let member = Path::new(&window.member);
    let by_name = stated.or_else(|| ImageFormat::of_name(member));
    let shown = format_of_bytes(&source)?;
    let is_plain = member.extension().is_none_or(|it| it.eq_ignore_ascii_case("img"));
    match (by_name, shown) {
        (Some(ImageFormat::Raw), _) => Ok(ImageFormat::Raw),
        (Some(stated), Some(shown)) if stated == shown && shown != ImageFormat::Ova => Ok(shown),
        (Some(stated), shown) => {
            let stated = stated.name();
            let like = shown.map_or("no image".to_string(), |it| format!("a {} image", it.name()));
            let text = format!("its disk {name} should be {stated} and begins like {like}");
            Err(bad(path, text))
        }
        (None, None) if disk.format.is_none() && is_plain => Ok(ImageFormat::Raw),
        (None, _) => {
            let format = match &disk.format {
                Some(uri) => format!(", {}, is not known", uri.escape_debug()),
                None => " is not told".to_string(),
            };
            let error = bad(path, format!("the format of its disk {name}{format}"));
            Err(error.hint("unpack it, and back up its disks with --format"))
        }
    }
}
