//! The disks of a point as exports.

use super::{Export, Identity, Overlay};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::points::Point;
use crate::restore::{Part, find_part};
use crate::view::{Vault, View};
use diskvault_format::manifest::DiskRecord;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Writes of guests are of this size at least.
const PREFERRED_BYTES_WRITTEN: u32 = 4096;

/// Where writes go.
#[derive(Clone, Debug)]
pub enum Overlays {
    /// Nowhere: the disks are read-only.
    None,
    /// Into a file for each disk that is gone with the process.
    Temporary,
    /// Into a file, or into a file for each disk in a folder that is there.
    At(PathBuf),
}

/// The disks of a point, or the one that is named.
///
/// # Errors
/// `NotFound` or `Usage` if there is no such disk; as [`View::open`] and [`Overlay::open`].
pub fn exports(
    vault: &Arc<Vault>,
    point: &Point,
    disk: Option<&str>,
    overlays: &Overlays,
) -> Result<Vec<Export>> {
    let disks = chosen(point, disk)?;
    let is_folder = matches!(overlays, Overlays::At(path) if path.is_dir());
    if let (Overlays::At(path), false, 2..) = (overlays, is_folder, disks.len()) {
        let text = format!(
            "cannot keep what is written to {} disks in {}: it is no folder",
            disks.len(),
            path.display()
        );
        return Err(Error::new(ErrorKind::Usage, text).hint("make the folder, or name one disk"));
    }
    let open = |record: &&DiskRecord| -> Result<Export> {
        let view = Arc::new(View::open(vault, Part::Disk(record))?);
        let identity = Identity {
            repository: vault.repository().id(),
            point: point.id,
            republishes: point.manifest.republishes,
            disk: record.name.clone(),
            root: record.root,
            size: record.size,
        };
        let overlay = match overlays {
            Overlays::None => None,
            Overlays::Temporary => Some(Overlay::temporary(&identity)?),
            Overlays::At(path) if is_folder => {
                Some(Overlay::open(&in_folder(path, &record.name), &identity)?)
            }
            Overlays::At(path) => Some(Overlay::open(path, &identity)?),
        };
        let series = point.manifest.series.escape_debug();
        let description = format!("disk of point {} of {series}", point.id.short());
        let preferred = match overlay {
            Some(_) => PREFERRED_BYTES_WRITTEN,
            None => record.chunking.grid().unwrap_or(PREFERRED_BYTES_WRITTEN),
        };
        Ok(Export::new(record.name.clone(), description, preferred, Box::new(view), overlay))
    };
    disks.iter().map(open).collect()
}

fn in_folder(folder: &Path, disk: &str) -> PathBuf {
    folder.join(format!("{disk}.overlay"))
}

fn chosen<'a>(point: &'a Point, disk: Option<&str>) -> Result<Vec<&'a DiskRecord>> {
    let id = point.id.short();
    match disk.map(|name| find_part(point, name)).transpose()? {
        Some(Part::Disk(record)) => Ok(vec![record]),
        Some(Part::Stream(stream)) => {
            let name = stream.name.escape_debug();
            let text = format!("cannot serve {name} of point {id}: it is a stream, not a disk");
            Err(Error::new(ErrorKind::Usage, text))
        }
        None if point.manifest.disks.is_empty() => {
            let text = format!("cannot serve point {id}: it has no disk");
            Err(Error::new(ErrorKind::NotFound, text))
        }
        None => Ok(point.manifest.disks.iter().collect()),
    }
}
