//! qcow2 images: the guest's view of one, with its chain of backing files
//! (QEMU, docs/interop/qcow2.rst).
//!
//! Invariants: nothing is read that no image of the chain allocates; what a table says is checked
//! against the file before it is followed; memory is bounded whatever the image says.

mod bitmaps;
mod clusters;
mod header;
mod inflate;

pub use bitmaps::Extension;
pub use header::{Compression, Header, MAGIC, Snapshot};

use super::extents::Merger;
use super::{Changes, DiskSource, Extent, ExtentKind, allocated, changed_over, newest_change};
use crate::error::{Error, ErrorKind, Result};
use bitmaps::Bitmaps;
use clusters::{Geometry, Place, Table};
use header::bad;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Second-level tables that are kept: 16 MiB of the usual 64 KiB, and no more of larger ones.
const TABLES_BYTES: usize = 16 << 20;

/// The guest's view of a qcow2 image.
pub struct Qcow2Source {
    /// The image's own file, with the tables and compressed clusters.
    file: Box<dyn DiskSource>,
    /// Where plain clusters are, if that is another file.
    data_file: Option<Box<dyn DiskSource>>,
    /// What shows through where nothing is allocated.
    backing: Option<Box<dyn DiskSource>>,
    geometry: Geometry,
    compression: Compression,
    size: u64,
    /// Which snapshot it shows, for its identity; empty for none.
    view: Vec<u8>,
    l1: Vec<u64>,
    bitmaps: Bitmaps,
    /// Second-level tables by their place, the one used last at the end.
    tables: Mutex<Vec<(u64, Arc<Table>)>>,
}

/// The files of a chain beside the image's own.
#[derive(Default)]
pub struct Others {
    /// What shows through where nothing is allocated.
    pub backing: Option<Box<dyn DiskSource>>,
    /// Where plain clusters are, if that is another file.
    pub data_file: Option<Box<dyn DiskSource>>,
}

impl Qcow2Source {
    /// The view of an image, or of one of its internal snapshots, which is named or numbered.
    ///
    /// # Errors
    /// `Source` for tables that are not within their limits; `NotFound` for a snapshot that is not
    /// there.
    pub fn new(
        file: Box<dyn DiskSource>,
        header: &Header,
        snapshot: Option<&str>,
        others: Others,
    ) -> Result<Qcow2Source> {
        let (l1, size, view) = match snapshot {
            None => (header.l1, header.size, Vec::new()),
            Some(name) => {
                let found = find_snapshot(file.as_ref(), header, name)?;
                (found.l1, found.size.unwrap_or(header.size), found.id.into_bytes())
            }
        };
        let l1 = header.read_l1(file.as_ref(), l1, size)?;
        let geometry = Geometry {
            cluster_bits: header.cluster_bits,
            has_subclusters: header.has_subclusters,
            has_zero_flag: header.version >= 3,
            has_data_file: others.data_file.is_some(),
        };
        let Others { backing, data_file } = others;
        let (compression, tables) = (header.compression, Mutex::default());
        let (extension, cluster_bits) = (header.bitmaps, header.cluster_bits);
        let bitmaps = Bitmaps { extension, cluster_bits, size };
        Ok(Qcow2Source {
            file,
            data_file,
            backing,
            geometry,
            compression,
            size,
            view,
            l1,
            bitmaps,
            tables,
        })
    }

    fn file(&self) -> &dyn DiskSource {
        self.file.as_ref()
    }

    /// What the run that begins at `at` and is within one table is, and where it ends; at most
    /// `end`.
    fn locate(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        let table_bytes = self.geometry.table_covers();
        let number = at / table_bytes;
        let end = end.min((number + 1).saturating_mul(table_bytes));
        let table = self.l1.get(number as usize).copied().unwrap_or(0);
        let place = self.geometry.table_at(table).map_err(|text| bad(self.file(), text))?;
        let Some(place) = place else { return Ok((Place::Below, end)) };
        let table = self.table(place)?;
        let within = at % table_bytes..at % table_bytes + (end - at);
        let (found, length) =
            self.geometry.run(&table, within).map_err(|text| bad(self.file(), text))?;
        Ok((found, at + length))
    }

    /// Whether the image itself says what is at an offset, and where that ends.
    fn own(&self, at: u64) -> Result<(bool, u64)> {
        let (place, stop) = self.locate(at, self.size)?;
        Ok((!matches!(place, Place::Below), stop))
    }

    fn table(&self, at: u64) -> Result<Arc<Table>> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = tables.iter().position(|(place, _)| *place == at) {
            let entry = tables.remove(found);
            let table = entry.1.clone();
            tables.push(entry);
            return Ok(table);
        }
        drop(tables);
        let bytes = 1 << self.geometry.cluster_bits;
        let table = Arc::new(Table::new(&header::read(self.file(), at, bytes, "a table")?));
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.len() >= (TABLES_BYTES / bytes).max(2) {
            tables.remove(0);
        }
        tables.push((at, table.clone()));
        Ok(table)
    }

    fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(backing) = &self.backing else {
            buffer.fill(0);
            return Ok(());
        };
        // A backing file that is shorter goes on with zeros.
        let there = backing.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { backing.read_at(offset, there) }
    }

    fn read_host(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let file = self.data_file.as_deref().unwrap_or(self.file());
        // The last cluster may be there in part: the file ends with what was written of it.
        let cluster = 1 << self.geometry.cluster_bits;
        let size = file.size();
        let end = at.saturating_add(buffer.len() as u64);
        if end > size.next_multiple_of(cluster) {
            return Err(bad(self.file(), format!("a cluster at {at} lies beyond the end")));
        }
        let there = size.saturating_sub(at).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { file.read_at(at, there) }
    }

    fn read_compressed(&self, descriptor: u64, skip: usize, buffer: &mut [u8]) -> Result<()> {
        let (at, most) = self.geometry.compressed_at(descriptor);
        let bytes = self.file.size().saturating_sub(at).min(most) as usize;
        let input = header::read(self.file(), at, bytes, "a compressed cluster")?;
        let mut cluster = vec![0; 1 << self.geometry.cluster_bits];
        inflate::inflate(self.compression, &input, &mut cluster).map_err(|cause| {
            let text = format!("a compressed cluster at {at} does not decode: {cause}");
            bad(self.file(), text)
        })?;
        buffer.copy_from_slice(&cluster[skip..skip + buffer.len()]);
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = &dyn DiskSource> {
        [Some(&self.file), self.data_file.as_ref(), self.backing.as_ref()]
            .into_iter()
            .flatten()
            .map(AsRef::as_ref)
    }
}

fn find_snapshot(file: &dyn DiskSource, header: &Header, name: &str) -> Result<Snapshot> {
    let all = header.read_snapshots(file)?;
    let by_name = all.iter().find(|one| one.name == name);
    let found = by_name.or_else(|| all.iter().find(|one| one.id == name));
    found.cloned().ok_or_else(|| {
        let (name, file) = (name.escape_debug(), file.describe());
        let text = format!("cannot find a snapshot called {name} in {file}");
        Error::new(ErrorKind::NotFound, text).hint("`qemu-img snapshot -l` shows what there is")
    })
}

impl DiskSource for Qcow2Source {
    fn size(&self) -> u64 {
        self.size
    }

    fn describe(&self) -> String {
        self.file.describe()
    }

    fn format(&self) -> &'static str {
        "qcow2"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let mut merger = Merger::new(each);
        let end = range.end.min(self.size);
        let mut at = range.start;
        while at < end {
            let (place, stop) = self.locate(at, end)?;
            match (place, &self.backing) {
                (Place::Below, Some(backing)) => {
                    let shown = stop.min(backing.size()).max(at);
                    if at < shown {
                        backing.extents_in(at..shown, &mut |extent| merger.add(extent))?;
                    }
                    merger.add_range(shown, stop, ExtentKind::Hole)?;
                }
                (Place::Below | Place::Zero, _) => merger.add_range(at, stop, ExtentKind::Hole)?,
                (Place::Host(_) | Place::Compressed { .. }, _) => {
                    merger.add_range(at, stop, ExtentKind::Data)?;
                }
            }
            at = stop;
        }
        merger.flush()
    }

    fn allocation_known(&self) -> bool {
        self.backing.as_ref().is_none_or(|backing| backing.allocation_known())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(bad(self.file(), format!("a read at {offset} reaches beyond its end")));
        };
        let mut at = offset;
        let mut rest = buffer;
        while at < end {
            let (place, stop) = self.locate(at, end)?;
            let (now, later) = rest.split_at_mut((stop - at) as usize);
            match place {
                Place::Below => self.read_below(at, now)?,
                Place::Zero => now.fill(0),
                Place::Host(host) => self.read_host(host, now)?,
                Place::Compressed { descriptor, skip } => {
                    self.read_compressed(descriptor, skip, now)?;
                }
            }
            rest = later;
            at = stop;
        }
        Ok(())
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.size);
        let mut at = offset;
        while at < end {
            let Ok((place, stop)) = self.locate(at, end) else { return };
            match (place, &self.backing) {
                (Place::Below, Some(backing)) => backing.prefetch(at, stop - at),
                (Place::Host(host), _) => {
                    self.data_file.as_deref().unwrap_or(self.file()).prefetch(host, stop - at);
                }
                _ => {}
            }
            at = stop;
        }
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.files().try_for_each(DiskSource::check_unchanged_size)
    }

    fn identity(&self) -> Vec<u8> {
        self.files().flat_map(DiskSource::identity).chain(self.view.iter().copied()).collect()
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        newest_change(self.files())
    }

    fn written_by_machine(&self) -> Option<String> {
        self.files().find_map(DiskSource::written_by_machine)
    }

    fn changed_over(
        &self,
        is_base: &dyn Fn(&dyn DiskSource) -> bool,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<bool> {
        changed_over((self.size, self.backing.as_deref()), is_base, each, &|at| self.own(at))
    }

    /// Those of the images below as well: what lies over them has changed, too.
    fn bitmaps(&self) -> Result<Vec<String>> {
        if !self.view.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.bitmaps.entries(self.file())?;
        let below = self.backing.as_ref().map_or(Ok(Vec::new()), |backing| backing.bitmaps())?;
        let is_new = |name: &String| entries.iter().all(|entry| entry.name != *name);
        let mut names: Vec<String> = below.into_iter().filter(is_new).collect();
        let usable = entries.iter().filter(|entry| self.bitmaps.problem(entry).is_none());
        names.extend(usable.map(|entry| entry.name.clone()));
        Ok(names)
    }

    fn changed_by_bitmap(&self, name: &str) -> Result<Option<Vec<Range<u64>>>> {
        let refuse = |problem: &str| Bitmaps::refuse(self.file(), name, problem);
        if !self.view.is_empty() {
            return Err(refuse("tells nothing of an internal snapshot"));
        }
        let entries = self.bitmaps.entries(self.file())?;
        let own = entries.iter().find(|entry| entry.name == name);
        if let Some(problem) = own.and_then(|entry| self.bitmaps.problem(entry)) {
            return Err(refuse(&problem));
        }
        let own = own.map(|entry| self.bitmaps.changed(self.file(), entry)).transpose()?;
        // A bitmap goes on in an image that was laid over its own, under the same name or none.
        let below = match &self.backing {
            Some(backing) => backing.changed_by_bitmap(name)?.map(|told| (told, backing.size())),
            None => None,
        };
        let mut changes = Changes::default();
        match (&own, &below) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                let mut add = |range| {
                    changes.add(range);
                    Ok(())
                };
                allocated(self.size, &mut add, &|at| self.own(at))?;
            }
            (Some(_), _) => {}
        }
        own.unwrap_or_default().into_iter().for_each(|range| changes.add(range));
        if let Some((told, size)) = below {
            told.into_iter().for_each(|range| changes.add(range.start..range.end.min(self.size)));
            changes.add(size..self.size);
        }
        Ok(Some(changes.finish()))
    }
}
