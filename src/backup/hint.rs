//! What is said of changes on a disk, and how far it is trusted.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::points::Point;
use crate::source::DiskSource;
use std::ops::Range;

/// What somebody says has changed on a disk since a point was made.
#[derive(Clone, Debug)]
pub struct Hint {
    /// The point.
    pub base: Point,
    /// All that may be different, ascending and disjoint, in bytes.
    pub changed: Vec<Range<u64>>,
    /// Who says so, for messages and the point.
    pub told_by: String,
    /// Why it does not count, if that is known already.
    pub unfit: Option<String>,
}

/// That a dirty bitmap of the disk itself says what has changed since a point was made.
#[derive(Clone, Debug)]
pub struct BitmapHint {
    /// The point.
    pub base: Point,
    /// The bitmap's name.
    pub bitmap: String,
}

impl BitmapHint {
    /// What the bitmap says.
    ///
    /// # Errors
    /// `NotFound` if the disk has none of this name; `Source` if it cannot be read or relied on.
    pub(super) fn ask(&self, disk: &dyn DiskSource) -> Result<Hint> {
        let Some(changed) = disk.changed_by_bitmap(&self.bitmap)? else {
            let (name, disk_name) = (self.bitmap.escape_debug(), disk.describe());
            let text = format!("cannot find a bitmap called {name} in {disk_name}");
            let there = disk.bitmaps()?;
            let hint = match there.is_empty() {
                true => "it has none that can be used".to_string(),
                false => format!("it has {}", there.join(", ").escape_debug()),
            };
            return Err(Error::new(ErrorKind::NotFound, text).hint(hint));
        };
        let told_by = format!("bitmap {}", self.bitmap.escape_debug());
        Ok(Hint { base: self.base.clone(), changed, told_by, unfit: None })
    }
}

/// How much of what is said to be unchanged is read in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reread {
    /// As long as reading what has changed took, and at least a second.
    #[default]
    AsLong,
    /// One part in so many of the disk's data.
    Part(u64),
}

/// Whether hints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// They do, and so much of the rest is read.
    ByHints(Reread),
    /// Everything is read, whatever anybody says.
    Full,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading::ByHints(Reread::default())
    }
}
