//! Choosing a disk or stream of a point.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::points::Point;
use diskvault_format::manifest::{DiskRecord, StreamRecord};

/// A disk or stream of a point.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// A disk.
    Disk(&'a DiskRecord),
    /// A stream.
    Stream(&'a StreamRecord),
}

impl<'a> Part<'a> {
    /// Its name.
    pub fn name(self) -> &'a str {
        match self {
            Part::Disk(disk) => &disk.name,
            Part::Stream(stream) => &stream.name,
        }
    }

    /// The disk, if it is one.
    pub fn disk(self) -> Option<&'a DiskRecord> {
        match self {
            Part::Disk(disk) => Some(disk),
            Part::Stream(_) => None,
        }
    }

    /// Its size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Part::Disk(disk) => disk.size,
            Part::Stream(stream) => stream.content.bytes,
        }
    }

    /// Warns of what could not be read when the point was made.
    pub fn warn_of_bad_extents(self, monitor: &dyn Monitor) {
        let Part::Disk(disk) = self else { return };
        if let count @ 1.. = disk.bad_extents.len() {
            let ranges = if count == 1 { "range" } else { "ranges" };
            let name = disk.name.escape_debug();
            monitor.warn(&format!(
                "disk {name}: {count} {ranges} could not be read at backup and are zeros"
            ));
        }
    }
}

/// All parts of a point, disks first.
pub fn parts(point: &Point) -> impl Iterator<Item = Part<'_>> {
    let disks = point.manifest.disks.iter().map(Part::Disk);
    disks.chain(point.manifest.streams.iter().map(Part::Stream))
}

fn names(point: &Point) -> String {
    let names: Vec<String> =
        parts(point).map(|part| part.name().escape_debug().to_string()).collect();
    names.join(", ")
}

/// The part called `name`.
///
/// # Errors
/// `NotFound`, naming the parts there are.
pub fn find_part<'a>(point: &'a Point, name: &str) -> Result<Part<'a>> {
    parts(point).find(|part| part.name() == name).ok_or_else(|| {
        let (name, id) = (name.escape_debug(), point.id.short());
        let text = format!("cannot find {name} in point {id}: it has {}", names(point));
        Error::new(ErrorKind::NotFound, text)
    })
}

/// The part that is named, or the one that is meant when none is.
///
/// # Errors
/// As [`find_part`] and [`only_part`].
pub fn part_of<'a>(point: &'a Point, name: Option<&str>) -> Result<Part<'a>> {
    name.map_or_else(|| only_part(point), |name| find_part(point, name))
}

/// The part that is meant when none is named: the only disk, or the only stream of a point
/// without disks.
///
/// # Errors
/// `Usage` if there are several.
pub fn only_part(point: &Point) -> Result<Part<'_>> {
    let (disks, streams) = (&point.manifest.disks, &point.manifest.streams);
    match (&disks[..], &streams[..]) {
        ([disk], _) => Ok(Part::Disk(disk)),
        ([], [stream]) => Ok(Part::Stream(stream)),
        ([], []) => {
            let text = format!("point {} has no disk and no stream", point.id.short());
            Err(Error::new(ErrorKind::NotFound, text))
        }
        _ => {
            let id = point.id.short();
            let text = format!("cannot choose a part of point {id}: it has {}", names(point));
            Err(Error::new(ErrorKind::Usage, text).hint("name one as POINT/DISK"))
        }
    }
}
