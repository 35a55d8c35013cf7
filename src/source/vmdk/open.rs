//! Opening the files of a VMDK image: its descriptor and its extents.
//!
//! Invariant: each extent is as long as the descriptor says, and the directories of all of them
//! together are within a budget.

use super::descriptor::{Descriptor, ExtentLine, Parent, Store};
use super::grains::{Grains, Layout};
use super::{VmdkSource, bad, cowd, descriptor, read, sesparse, sparse};
use crate::error::Result;
use crate::source::{DiskSource, SECTOR_BYTES};
use std::ops::Range;

/// Bytes of the grain directories of an image: 64 TiB of an seSparse delta, which has the most.
const DIRECTORIES_BYTES_MAX: u64 = 32 << 20;

/// What is left of the bytes that the directories of an image may have.
pub(super) struct Budget(u64);

impl Budget {
    /// Takes some of it; false if there is not as much.
    pub fn take(&mut self, bytes: u64) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// A part of the disk, and where its bytes are.
pub(super) struct Piece {
    /// The bytes of the disk.
    pub range: Range<u64>,
    pub bytes: Bytes,
}

/// Where the bytes of a part are.
pub(super) enum Bytes {
    Zero,
    /// In a file, from this place on.
    Flat(Box<dyn DiskSource>, u64),
    Sparse(Grains),
}

/// What begins an image: its descriptor, alone or in the only extent.
#[derive(Debug)]
pub struct Image {
    descriptor: Descriptor,
    /// How the extent that the descriptor stands in is divided.
    layout: Option<Layout>,
}

/// A kind of file that is part of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Descriptor,
    Sparse,
    Cowd,
    SeSparse,
    Unknown,
}

/// True if `start` begins a descriptor or an extent of any kind that does not look like a disk.
pub(in crate::source) fn begins_as_vmdk(start: &[u8]) -> bool {
    kind_of(start) != FileKind::Unknown
}

fn kind_of(start: &[u8]) -> FileKind {
    if descriptor::begins_as_descriptor(start) {
        FileKind::Descriptor
    } else if start.starts_with(&sparse::MAGIC) {
        FileKind::Sparse
    } else if start.starts_with(&cowd::MAGIC) {
        FileKind::Cowd
    } else if start.starts_with(&sesparse::MAGIC.to_le_bytes()) {
        FileKind::SeSparse
    } else {
        FileKind::Unknown
    }
}

fn kind_of_file(file: &dyn DiskSource) -> Result<FileKind> {
    let bytes = file.size().min(descriptor::SIGNATURE.len() as u64);
    Ok(kind_of(&read(file, 0, bytes as usize, "the first bytes")?))
}

/// The content id of the image that `file` begins, by which a delta names its parent: a token of
/// the state of the disk. It changes with the first write behind an open, not with each.
///
/// # Errors
/// As [`Image::read`]; `Source` also for an encrypted image, which keeps it secret.
pub fn content_id(file: &dyn DiskSource) -> Result<u32> {
    let image = Image::read(file)?;
    if image.is_encrypted() {
        return Err(bad(file, "it is encrypted"));
    }
    Ok(image.descriptor.cid)
}

impl Image {
    /// Reads the descriptor of an image, and the header around it if there is one.
    ///
    /// # Errors
    /// `Source` for what begins no image, one of the extents of an image among it, and for what
    /// cannot be read or is not known.
    pub fn read(file: &dyn DiskSource) -> Result<Image> {
        match kind_of_file(file)? {
            FileKind::Descriptor => {
                let descriptor = Descriptor::read(file, 0, file.size())?;
                Ok(Image { descriptor, layout: None })
            }
            FileKind::Sparse => {
                let header = sparse::Header::read(file)?;
                let (at, bytes) = header.descriptor;
                if bytes == 0 {
                    return Err(is_extent(file));
                }
                let descriptor = Descriptor::read(file, at, bytes)?;
                if let Some(layout) = header.layout.filter(|_| !descriptor.is_encrypted) {
                    check_embedded(file, &descriptor, &layout)?;
                }
                Ok(Image { descriptor, layout: header.layout })
            }
            FileKind::Cowd | FileKind::SeSparse => Err(is_extent(file)),
            FileKind::Unknown => {
                let error = bad(file, "it has no vmdk header and no descriptor");
                Err(error.hint("use --format raw if it is the -flat file of an image"))
            }
        }
    }

    /// True if the contents are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.descriptor.is_encrypted
    }

    /// True if the descriptor's file is all of the image, apart from a parent.
    pub fn is_one_file(&self) -> bool {
        self.layout.is_some()
    }

    /// The image that shows through where nothing is allocated.
    pub fn parent(&self) -> Option<&Parent> {
        self.descriptor.parent.as_ref()
    }

    /// Checks that the parent is in the state that this image is a delta to.
    ///
    /// # Errors
    /// `Source` if it has another content id.
    pub fn check_parent(&self, file: &dyn DiskSource, parent: &VmdkSource) -> Result<()> {
        let expected = self.descriptor.parent.as_ref().map(|parent| parent.cid);
        match expected {
            Some(expected) if expected != parent.cid() => {
                let (name, found) = (parent.describe(), parent.cid());
                let text =
                    format!("its parent {name} has CID {found:08x}, expected {expected:08x}");
                Err(bad(file, text))
            }
            _ => Ok(()),
        }
    }

    /// The view of the image. `open_file` opens the file of an extent by its name; `on_loss` is
    /// told of damage that a copy makes good.
    ///
    /// # Errors
    /// `Source` if an extent cannot be read or does not have its size; what `open_file` returns.
    pub fn open(
        self,
        file: Box<dyn DiskSource>,
        parent: Option<VmdkSource>,
        open_file: &mut dyn FnMut(&str) -> Result<Box<dyn DiskSource>>,
        on_loss: &mut dyn FnMut(&str),
    ) -> Result<VmdkSource> {
        let (name, cid) = (file.describe(), self.descriptor.cid);
        let mut budget = Budget(DIRECTORIES_BYTES_MAX);
        if let Some(layout) = self.layout {
            let grains = Grains::open(file, layout, &mut budget, on_loss)?;
            let range = 0..grains.capacity();
            let pieces = vec![Piece { range, bytes: Bytes::Sparse(grains) }];
            return Ok(VmdkSource::new(name, cid, None, pieces, parent));
        }
        let mut pieces = Vec::with_capacity(self.descriptor.extents.len());
        let mut start = 0;
        for line in &self.descriptor.extents {
            let bytes = match &line.store {
                Store::Zero => Bytes::Zero,
                Store::Flat { name, at } => flat(open_file(name)?, *at, line)?,
                Store::Sparse { name } => {
                    let file = open_file(name)?;
                    let layout = layout_of(file.as_ref())?;
                    check_size(file.as_ref(), line, &layout)?;
                    Bytes::Sparse(Grains::open(file, layout, &mut budget, on_loss)?)
                }
            };
            pieces.push(Piece { range: start..start + line.bytes, bytes });
            start += line.bytes;
        }
        Ok(VmdkSource::new(name, cid, Some(file), pieces, parent))
    }
}

fn is_extent(file: &dyn DiskSource) -> crate::error::Error {
    let error = bad(file, "it is an extent of an image and has no descriptor");
    error.hint("name the file with the descriptor")
}

/// Checks what a descriptor says of the extent that it stands in. The name there is not looked at:
/// it is the old one where the file was renamed.
fn check_embedded(file: &dyn DiskSource, descriptor: &Descriptor, layout: &Layout) -> Result<()> {
    match descriptor.extents.as_slice() {
        [line] if matches!(line.store, Store::Sparse { .. }) => check_size(file, line, layout),
        extents => {
            let text = format!(
                "its descriptor names {} extents, expected the sparse one that it stands in",
                extents.len()
            );
            Err(bad(file, text))
        }
    }
}

/// Checks the size in a descriptor against that of an extent, which may be rounded up to a grain.
fn check_size(file: &dyn DiskSource, line: &ExtentLine, layout: &Layout) -> Result<()> {
    let (expected, found) = (line.bytes, layout.capacity);
    if found == expected || found == expected.next_multiple_of(layout.grain) {
        return Ok(());
    }
    let (expected, found) = (expected / SECTOR_BYTES, found / SECTOR_BYTES);
    Err(bad(file, format!("it holds {found} sectors, and the descriptor says {expected}")))
}

fn flat(file: Box<dyn DiskSource>, at: u64, line: &ExtentLine) -> Result<Bytes> {
    if at.checked_add(line.bytes).is_none_or(|end| end > file.size()) {
        let (bytes, size) = (line.bytes, file.size());
        let text = format!("it has {size} bytes, and the descriptor says {bytes} from {at} on");
        return Err(bad(file.as_ref(), text));
    }
    Ok(Bytes::Flat(file, at))
}

/// The layout of a sparse extent of any kind; the descriptor's word for it does not matter.
fn layout_of(file: &dyn DiskSource) -> Result<Layout> {
    match kind_of_file(file)? {
        FileKind::Sparse => {
            let layout = sparse::Header::read(file)?.layout;
            layout.ok_or_else(|| bad(file, "a capacity of 0 sectors"))
        }
        FileKind::Cowd => cowd::read_layout(file),
        FileKind::SeSparse => sesparse::read_layout(file),
        FileKind::Descriptor | FileKind::Unknown => {
            Err(bad(file, "it has no header of a sparse extent"))
        }
    }
}
