//! OVAs: a tar of an OVF descriptor, a stream-optimized VMDK image for each disk, and a manifest of
//! their digests (DMTF, DSP0243 2.1).
//!
//! Invariant: the descriptor is the first member, as it has to be, although it tells sizes that are
//! known at the end: room is left for it, and filled last.

use super::file::ImageFile;
use super::ovf::{self, OvaDisk};
use super::refuse;
use super::serial::{ClusterSink, Packing};
use super::vmdk::GRAIN_BYTES;
use super::vmdk_stream::GrainStream;
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::Path;

const BLOCK_BYTES: u64 = 512;
/// What a tar is a multiple of, by tradition.
const RECORD_BYTES: u64 = 20 * BLOCK_BYTES;
/// Bytes of a name in the archive, with room in the 100 of a header.
const NAME_BYTES_MAX: usize = 80;

/// A new archive.
pub struct Ova {
    file: ImageFile,
    /// The name of the machine, and what files are called after it.
    machine: String,
    unix_seconds: u64,
    /// Of the next byte.
    position: u64,
    /// Of the descriptor, and its room.
    descriptor: (u64, u64),
    disks: Vec<OvaDisk>,
    /// Which disk is written, and where its member begins.
    current: Option<(usize, u64)>,
    stream: Option<GrainStream>,
    hasher: Sha256,
    /// Of all disks.
    digests: Vec<String>,
}

impl Ova {
    /// Begins an archive of a machine with these disks: their names and sizes.
    ///
    /// # Errors
    /// As [`open_target`](crate::target::open_target).
    pub fn create(
        path: &Path,
        force: bool,
        machine: &str,
        unix_seconds: u64,
        disks: &[(&str, u64)],
    ) -> Result<Ova> {
        let file = ImageFile::create(path, force)?;
        let mut taken = HashSet::new();
        let disks: Vec<OvaDisk> = disks
            .iter()
            .map(|(name, size)| {
                let file = member_name(name, &mut taken);
                // Numbers as long as they can get: the room for the descriptor is measured by them.
                OvaDisk { file, size: *size, file_bytes: u64::MAX, populated_bytes: u64::MAX }
            })
            .collect();
        let room = ovf::descriptor(machine, &disks).len() as u64;
        let position = BLOCK_BYTES + room.next_multiple_of(BLOCK_BYTES);
        Ok(Ova {
            file,
            machine: machine.to_owned(),
            unix_seconds,
            position,
            descriptor: (BLOCK_BYTES, room),
            disks,
            current: None,
            stream: None,
            hasher: Sha256::new(),
            digests: Vec::new(),
        })
    }

    /// Begins the next disk.
    ///
    /// # Errors
    /// [`ErrorKind::Target`](crate::error::ErrorKind::Target) if the format cannot hold it;
    /// otherwise as [`ClusterSink::add`].
    pub fn begin_disk(&mut self) -> Result<()> {
        let number = self.digests.len();
        let Some(disk) = self.disks.get(number) else {
            return Err(refuse(self.file.path(), "ova", "there is no further disk"));
        };
        let (name, size) = (disk.file.clone(), disk.size);
        self.position += BLOCK_BYTES;
        self.current = Some((number, self.position));
        self.hasher = Sha256::new();
        let path = self.file.path().to_owned();
        let mut append = appender(&self.file, &mut self.position, &mut self.hasher);
        let stream = GrainStream::begin(&path, &name, size, &mut append)?;
        drop(append);
        self.stream = Some(stream);
        Ok(())
    }

    /// Ends the disk.
    ///
    /// # Errors
    /// As [`ClusterSink::add`].
    pub fn end_disk(&mut self) -> Result<()> {
        let (Some((number, start)), Some(mut stream)) = (self.current.take(), self.stream.take())
        else {
            return Ok(());
        };
        stream.finish(&mut appender(&self.file, &mut self.position, &mut self.hasher))?;
        let disk = &mut self.disks[number];
        disk.file_bytes = self.position - start;
        disk.populated_bytes = (stream.grains * GRAIN_BYTES).min(disk.size);
        let (name, bytes) = (disk.file.clone(), disk.file_bytes);
        self.write_header(start - BLOCK_BYTES, &name, bytes)?;
        let digest = std::mem::take(&mut self.hasher).finalize();
        self.digests.push(hex(&digest));
        self.position = self.position.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    fn write_header(&self, at: u64, name: &str, bytes: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        let refused = |_| refuse(self.file.path(), "ova", "the name of a disk does not fit a tar");
        header.set_path(name).map_err(refused)?;
        // Beyond 8 GiB as a binary number, as all programs of today read it.
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_mtime(self.unix_seconds);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.file.write_at(at, header.as_bytes())
    }

    /// Writes descriptor and manifest, and gives the archive its name.
    ///
    /// # Errors
    /// As [`DiskTarget::finish`](crate::target::DiskTarget::finish).
    pub fn finish(mut self) -> Result<()> {
        let (at, room) = self.descriptor;
        let mut text = ovf::descriptor(&self.machine, &self.disks).into_bytes();
        // White space may follow a document.
        text.resize((room as usize).max(text.len()), b'\n');
        if text.len() as u64 > room {
            return Err(refuse(self.file.path(), "ova", "its descriptor is too long"));
        }
        let base = plain_name(&self.machine);
        let descriptor_name = format!("{base}.ovf");
        self.write_header(at - BLOCK_BYTES, &descriptor_name, room)?;
        self.file.write_at(at, &text)?;
        let mut manifest = format!("SHA256({descriptor_name})= {}\n", hex(&Sha256::digest(&text)));
        for (disk, digest) in self.disks.iter().zip(&self.digests) {
            manifest.push_str(&format!("SHA256({})= {digest}\n", disk.file));
        }
        let name = format!("{base}.mf");
        self.write_header(self.position, &name, manifest.len() as u64)?;
        self.position += BLOCK_BYTES;
        self.file.write_at(self.position, manifest.as_bytes())?;
        let end = self.position + (manifest.len() as u64).next_multiple_of(BLOCK_BYTES);
        // Two blocks of zeros end a tar.
        self.file.set_size((end + 2 * BLOCK_BYTES).next_multiple_of(RECORD_BYTES))?;
        self.file.finish()
    }
}

impl ClusterSink for Ova {
    fn packing(&self) -> Packing {
        Packing::Grain
    }

    fn cluster_bytes(&self) -> usize {
        GRAIN_BYTES as usize
    }

    fn add(&mut self, number: u64, _: &[u8], packed: &[u8]) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return Err(refuse(self.file.path(), "ova", "no disk was begun"));
        };
        let mut append = appender(&self.file, &mut self.position, &mut self.hasher);
        stream.add(number, packed, &mut append)
    }
}

fn appender<'a>(
    file: &'a ImageFile,
    position: &'a mut u64,
    hasher: &'a mut Sha256,
) -> impl FnMut(&[u8]) -> Result<()> + 'a {
    move |bytes| {
        hasher.update(bytes);
        file.write_at(*position, bytes)?;
        *position += bytes.len() as u64;
        Ok(())
    }
}

/// A name for the file of a disk that no other has.
fn member_name(disk: &str, taken: &mut HashSet<String>) -> String {
    let lower = disk.to_ascii_lowercase();
    let known = ["raw", "img", "qcow2", "vmdk", "vhd", "vhdx"];
    let is_known = |(_, extension): &(&str, &str)| known.contains(extension);
    let stem = lower.rsplit_once('.').filter(is_known).map_or(disk.len(), |(stem, _)| stem.len());
    let base = plain_name(&disk[..stem]);
    let numbered = (2..).map(|number| format!("{base}-{number}.vmdk"));
    // There are more numbers than disks.
    let mut names = std::iter::once(format!("{base}.vmdk")).chain(numbered);
    names.find(|name| taken.insert(name.clone())).unwrap_or_default()
}

/// Characters that mean the same in a tar, in a reference, and in every program; never empty.
fn plain_name(name: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '_' | '-');
    let name: String = name.chars().map(|it| if is_plain(it) { it } else { '_' }).collect();
    let name = name.trim_start_matches('.');
    let name = &name[..name.len().min(NAME_BYTES_MAX)];
    if name.is_empty() { "disk".into() } else { name.to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_different() {
        let mut taken = HashSet::new();
        for (disk, expected) in [
            ("vda", "vda.vmdk"),
            ("vda.QCOW2", "vda-2.vmdk"),
            ("vda.raw", "vda-3.vmdk"),
            ("Büro platte/1.conf", "B_ro_platte_1.conf.vmdk"),
            ("..", "disk.vmdk"),
        ] {
            assert_eq!(member_name(disk, &mut taken), expected);
        }
        assert!(member_name(&"n".repeat(255), &mut taken).len() <= 100);
    }
}
