//! Stream-optimized VMDK images, as OVAs have them
//! (VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents").
//!
//! Invariant: everything is written once and in order; a table stands behind its grains, the
//! directory behind all, and a footer says where. Memory is a table and the directory, 4 bytes for
//! each 32 MiB of disk.

use super::SECTOR_BYTES;
use super::file::ImageFile;
use super::refuse;
use super::serial::{ClusterSink, Packing};
use super::vmdk::{
    FILE_SECTORS_MAX, GRAIN_BYTES, GRAIN_SECTORS, Header, TABLE_ENTRIES, TABLE_SECTORS, descriptor,
    refusal,
};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// That the bytes of line ends are as they were, that grains are compressed, that there are markers.
const FLAGS: u32 = 0x3_0001;
const VERSION: u32 = 3;
/// That only the footer knows where the directory is.
const AT_THE_END: u64 = u64::MAX;
/// Where grains begin, in sectors: as all exporters leave it.
const DATA_AT: u64 = 128;

const MARKER_END: u32 = 0;
const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

/// The name of the format, for errors.
const FORMAT: &str = "vmdk-stream";

/// Appends bytes to the file of the stream.
pub(super) type Append<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// A stream under way, wherever it is written to.
pub(super) struct GrainStream {
    /// Of the file that it is part of, for errors.
    path: PathBuf,
    header: Header,
    /// Sectors so far.
    sectors: u64,
    directory: Vec<u32>,
    table: Vec<u32>,
    table_number: u64,
    table_is_used: bool,
    /// Grains so far.
    pub grains: u64,
}

impl GrainStream {
    /// Writes what is in front of the grains.
    pub fn begin(
        path: &Path,
        name: &str,
        size: u64,
        append: &mut Append<'_>,
    ) -> Result<GrainStream> {
        if let Some(why) = refusal(size) {
            return Err(refuse(path, FORMAT, why));
        }
        let header = Header {
            version: VERSION,
            flags: FLAGS,
            size,
            redundant_at: 0,
            directory_at: AT_THE_END,
            data_at: DATA_AT,
            is_compressed: true,
        };
        let mut bytes = header.bytes();
        bytes.extend(descriptor("streamOptimized", name, size)?);
        bytes.resize((DATA_AT * SECTOR_BYTES) as usize, 0);
        append(&bytes)?;
        let tables = size.div_ceil(GRAIN_BYTES).div_ceil(TABLE_ENTRIES);
        Ok(GrainStream {
            path: path.to_owned(),
            header,
            sectors: DATA_AT,
            directory: vec![0; tables as usize],
            table: vec![0; TABLE_ENTRIES as usize],
            table_number: 0,
            table_is_used: false,
            grains: 0,
        })
    }

    /// Appends whole sectors; says where they are. Nothing is written that a table could not name.
    fn append(&mut self, mut bytes: Vec<u8>, append: &mut Append<'_>) -> Result<u32> {
        let sectors = (bytes.len() as u64).div_ceil(SECTOR_BYTES);
        bytes.resize((sectors * SECTOR_BYTES) as usize, 0);
        let at = self.sectors;
        if at + sectors > FILE_SECTORS_MAX {
            return Err(refuse(&self.path, FORMAT, "its file would be larger than 2 TiB"));
        }
        append(&bytes)?;
        self.sectors += sectors;
        Ok(at as u32)
    }

    /// Appends a grain.
    pub fn add(&mut self, number: u64, packed: &[u8], append: &mut Append<'_>) -> Result<()> {
        if number / TABLE_ENTRIES != self.table_number {
            self.end_table(append)?;
            self.table_number = number / TABLE_ENTRIES;
        }
        let mut bytes = Vec::with_capacity(packed.len() + 1024);
        bytes.extend((number * GRAIN_SECTORS).to_le_bytes());
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend_from_slice(packed);
        let at = self.append(bytes, append)?;
        self.table[(number % TABLE_ENTRIES) as usize] = at;
        self.table_is_used = true;
        self.grains += 1;
        Ok(())
    }

    fn end_table(&mut self, append: &mut Append<'_>) -> Result<()> {
        if !self.table_is_used {
            return Ok(());
        }
        self.append(marker(TABLE_SECTORS, MARKER_TABLE), append)?;
        let at = self.append(little_endian(&self.table), append)?;
        self.directory[self.table_number as usize] = at;
        self.table.fill(0);
        self.table_is_used = false;
        Ok(())
    }

    /// Writes what is behind the grains.
    pub fn finish(&mut self, append: &mut Append<'_>) -> Result<()> {
        self.end_table(append)?;
        let directory = little_endian(&self.directory);
        let sectors = (directory.len() as u64).div_ceil(SECTOR_BYTES);
        self.append(marker(sectors, MARKER_DIRECTORY), append)?;
        let at = self.append(directory, append)?;
        self.append(marker(1, MARKER_FOOTER), append)?;
        let footer = Header { directory_at: u64::from(at), ..self.header };
        self.append(footer.bytes(), append)?;
        self.append(marker(0, MARKER_END), append)?;
        Ok(())
    }
}

/// What stands in front of anything but a grain: how many sectors of it follow, and what it is.
fn marker(sectors: u64, kind: u32) -> Vec<u8> {
    let mut bytes = sectors.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_le_bytes());
    bytes
}

fn little_endian(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A new image that is a file of its own.
pub struct VmdkStream {
    file: ImageFile,
    position: u64,
    stream: GrainStream,
}

impl VmdkStream {
    /// Begins an image of a disk of `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Target`](crate::error::ErrorKind::Target) if the format cannot hold it;
    /// otherwise as [`open_target`](crate::target::open_target).
    pub fn create(path: &Path, force: bool, size: u64) -> Result<VmdkStream> {
        let file = ImageFile::create(path, force)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut position = 0;
        let stream = GrainStream::begin(path, &name, size, &mut appender(&file, &mut position))?;
        Ok(VmdkStream { file, position, stream })
    }

    /// Writes what is left, and gives the image its name.
    ///
    /// # Errors
    /// As [`DiskTarget::finish`](crate::target::DiskTarget::finish).
    pub fn finish(mut self) -> Result<()> {
        self.stream.finish(&mut appender(&self.file, &mut self.position))?;
        self.file.finish()
    }
}

impl ClusterSink for VmdkStream {
    fn packing(&self) -> Packing {
        Packing::Grain
    }

    fn cluster_bytes(&self) -> usize {
        GRAIN_BYTES as usize
    }

    fn add(&mut self, number: u64, _: &[u8], packed: &[u8]) -> Result<()> {
        let mut append = appender(&self.file, &mut self.position);
        self.stream.add(number, packed, &mut append)
    }
}

fn appender<'a>(
    file: &'a ImageFile,
    position: &'a mut u64,
) -> impl FnMut(&[u8]) -> Result<()> + 'a {
    move |bytes| {
        file.write_at(*position, bytes)?;
        *position += bytes.len() as u64;
        Ok(())
    }
}
