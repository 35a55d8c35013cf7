//! Opening a disk by its path: what format it has, and what other files it refers to.
//!
//! Invariants: a format is never guessed from bytes that a guest may have written; no file outside
//! the image's own folder is opened on an image's word, unless the user allows it; a chain ends.

use super::qcow2::{Header, MAGIC, Others, Qcow2Source};
use super::vmdk::{self, Image, VmdkSource};
use super::{DiskSource, SECTOR_BYTES, Window, nbd, open_disk, ova, vhd, vhdx};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Images of a chain; QEMU itself gets slow long before.
const CHAIN_MAX: usize = 64;

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk themselves.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's formats, which begin with a descriptor.
    Vmdk,
    /// Virtual PC's format: fixed, dynamic and differencing.
    Vhd,
    /// Hyper-V's format: fixed, dynamic and differencing.
    Vhdx,
    /// An archive of disks: no disk itself, see [`ova::read`].
    Ova,
}

impl ImageFormat {
    /// The format that an image or a user names.
    pub fn parse(name: &str) -> Option<ImageFormat> {
        match name {
            "raw" | "host_device" | "file" => Some(ImageFormat::Raw),
            "qcow2" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
            "vhd" | "vpc" => Some(ImageFormat::Vhd),
            "vhdx" => Some(ImageFormat::Vhdx),
            "ova" => Some(ImageFormat::Ova),
            _ => None,
        }
    }

    /// Its name, which [`ImageFormat::parse`] reads.
    pub(super) const fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vhd => "vhd",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Ova => "ova",
        }
    }

    /// The format that a file name stands for.
    pub fn of_name(path: &Path) -> Option<ImageFormat> {
        match path.extension().and_then(OsStr::to_str)?.to_ascii_lowercase().as_str() {
            "raw" => Some(ImageFormat::Raw),
            "qcow2" | "qcow" | "q2" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
            "vhd" | "avhd" => Some(ImageFormat::Vhd),
            "vhdx" | "avhdx" => Some(ImageFormat::Vhdx),
            "ova" => Some(ImageFormat::Ova),
            _ => None,
        }
    }
}

/// How a user wants a disk opened.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// Its format; by its name and first bytes if `None`.
    pub format: Option<ImageFormat>,
    /// The internal snapshot to read, by name or number.
    pub snapshot: Option<String>,
    /// True to follow an image to files outside its folder.
    pub allows_backing: bool,
    /// The member of an archive that is the disk; all of the file if `None`. It leads to no other file.
    pub window: Option<Window>,
}

/// Opens the disk at a path: a raw file, a block device, or the guest's view of an image; or of a
/// member of the archive there.
///
/// # Errors
/// `Source` for what cannot be read, is damaged or refers to what it may not; `Usage` if the format
/// cannot be told or has no snapshots; `NotFound` for a snapshot that is not there.
pub fn open_image(
    path: &Path,
    options: &ImageOptions,
    monitor: &dyn Monitor,
) -> Result<Box<dyn DiskSource>> {
    if nbd::is_address(path) {
        return open_export(path, options);
    }
    let file = match &options.window {
        None => open_disk(path)?,
        Some(window) => window.open(path)?,
    };
    // Of a member, a name for messages, which is no path.
    let shown = options.window.as_ref().map(|_| PathBuf::from(file.describe()));
    let path = shown.as_deref().unwrap_or(path);
    let format = match options.format {
        Some(format) => format,
        None => tell_format(file.as_ref(), path)?,
    };
    match (format, &options.snapshot) {
        (ImageFormat::Raw, None) => Ok(file),
        (ImageFormat::Ova, _) => Err(is_archive(path)),
        (ImageFormat::Raw | ImageFormat::Vmdk | ImageFormat::Vhd | ImageFormat::Vhdx, Some(_)) => {
            let (path, format) = (path.display(), format.name());
            let text = format!("cannot read a snapshot of {path}: it is {format}");
            Err(Error::new(ErrorKind::Usage, text))
        }
        (_, snapshot) => {
            let folder = match &options.window {
                None => folder_of(path)?,
                Some(_) => PathBuf::new(),
            };
            let mut opener = Opener { options, monitor, folder, chain: Vec::new() };
            opener.open_as(format, path, file, snapshot.as_deref())
        }
    }
}

/// An NBD server gives the guest's view already.
fn open_export(path: &Path, options: &ImageOptions) -> Result<Box<dyn DiskSource>> {
    let address = nbd::Address::parse(&path.to_string_lossy())?;
    let format = options.format.filter(|format| *format != ImageFormat::Raw);
    let wanted = format.map(ImageFormat::name).or(options.snapshot.as_ref().map(|_| "a snapshot"));
    if let Some(wanted) = wanted {
        let text = format!("cannot read {wanted} in {}: NBD gives a disk as it is", path.display());
        let hint = "have the server open it, such as qemu-nbd -f FORMAT";
        return Err(Error::new(ErrorKind::Usage, text).hint(hint));
    }
    Ok(Box::new(nbd::open_nbd(address)?))
}

/// True if a file begins or ends like an image of a format that is read as a disk.
pub(super) fn looks_like_image(path: &Path) -> bool {
    open_disk(path).is_ok_and(|file| format_of_bytes(file.as_ref()).is_ok_and(|it| it.is_some()))
}

fn is_archive(path: &Path) -> Error {
    let text = format!("cannot open disk {}: it is an OVA, which holds disks", path.display());
    Error::new(ErrorKind::Source, text)
}

/// The format of an image that a file begins like; a fixed VHD image shows at its end only.
pub(super) fn format_of_bytes(file: &dyn DiskSource) -> Result<Option<ImageFormat>> {
    let mut start = [0; SECTOR_BYTES as usize];
    let bytes = file.size().min(start.len() as u64) as usize;
    let start = &mut start[..bytes];
    file.read_at(0, start)?;
    if start.starts_with(&MAGIC) {
        return Ok(Some(ImageFormat::Qcow2));
    }
    if vmdk::begins_as_vmdk(start) {
        return Ok(Some(ImageFormat::Vmdk));
    }
    if start.starts_with(&vhdx::SIGNATURE) {
        return Ok(Some(ImageFormat::Vhdx));
    }
    if ova::begins_as_ova(start, file) {
        return Ok(Some(ImageFormat::Ova));
    }
    let is_vhd = start.starts_with(&vhd::COOKIE) || vhd::ends_as_vhd(file)?;
    Ok(is_vhd.then_some(ImageFormat::Vhd))
}

/// The format by name and some bytes. The bytes alone do not tell: the guest of a raw disk can
/// write any there, and have files of the host read as its disk.
fn tell_format(file: &dyn DiskSource, path: &Path) -> Result<ImageFormat> {
    match (ImageFormat::of_name(path), format_of_bytes(file)?) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(ImageFormat::Raw),
        (None, Some(format)) => {
            let (path, format) = (path.display(), format.name());
            let article = if format == "ova" { "an" } else { "a" };
            let looks = format!("it looks like {article} {format} image");
            let text = format!("cannot tell the format of {path}: {looks}");
            let hint = format!("use --format {format}, or --format raw");
            Err(Error::new(ErrorKind::Usage, text).hint(hint))
        }
    }
}

fn folder_of(path: &Path) -> Result<PathBuf> {
    let real = canonical(path)?;
    Ok(real.parent().map(Path::to_path_buf).unwrap_or_default())
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|cause| {
        Error::io(ErrorKind::Source, format!("cannot open disk {}", path.display()), cause)
    })
}

struct Opener<'a> {
    options: &'a ImageOptions,
    monitor: &'a dyn Monitor,
    /// That of the image that the user named, without links.
    folder: PathBuf,
    /// The files that were opened, without links.
    chain: Vec<PathBuf>,
}

impl Opener<'_> {
    fn open_as(
        &mut self,
        format: ImageFormat,
        path: &Path,
        file: Box<dyn DiskSource>,
        snapshot: Option<&str>,
    ) -> Result<Box<dyn DiskSource>> {
        match format {
            ImageFormat::Raw => Ok(file),
            ImageFormat::Qcow2 => self.open_qcow2(path, file, snapshot),
            ImageFormat::Vmdk => self.open_vmdk(path, file),
            ImageFormat::Vhd => {
                let header = vhd::Header::read(file.as_ref())?;
                self.open_vhd(path, file, &header)
            }
            ImageFormat::Vhdx => self.open_vhdx(path, vhdx::Image::read(file)?),
            ImageFormat::Ova => Err(is_archive(path)),
        }
    }

    fn open_qcow2(
        &mut self,
        path: &Path,
        file: Box<dyn DiskSource>,
        snapshot: Option<&str>,
    ) -> Result<Box<dyn DiskSource>> {
        self.enter(path)?;
        let header = Header::read(file.as_ref())?;
        if header.is_encrypted {
            return self.keep_encrypted(path, file);
        }
        let data_file = header.data_file.as_deref();
        let data_file = data_file.map(|name| self.open_data_file(path, name)).transpose()?;
        let backing = match &header.backing {
            Some(name) => Some(self.open_backing(path, name, header.backing_format.as_deref())?),
            None => None,
        };
        let others = Others { backing, data_file };
        Ok(Box::new(Qcow2Source::new(file, &header, snapshot, others)?))
    }

    /// An encrypted image as it is. One in an archive is refused: the archive as it is would be more.
    fn keep_encrypted(
        &self,
        path: &Path,
        file: Box<dyn DiskSource>,
    ) -> Result<Box<dyn DiskSource>> {
        let path = path.display();
        if self.options.window.is_some() {
            let text = format!("cannot open disk {path}: it is encrypted");
            let hint = "store the OVA as it is with --stream NAME=PATH";
            return Err(Error::new(ErrorKind::Source, text).hint(hint));
        }
        self.monitor.warn(&format!("{path} is encrypted; the image is stored as it is"));
        Ok(file)
    }

    fn enter(&mut self, path: &Path) -> Result<()> {
        if self.options.window.is_some() {
            // It leads to no other image, so not back either.
            return Ok(());
        }
        let real = canonical(path)?;
        let path = path.display();
        if self.chain.contains(&real) {
            let text = format!("cannot open disk {path}: its backing files lead back to it");
            return Err(Error::new(ErrorKind::Source, text));
        }
        if self.chain.len() == CHAIN_MAX {
            let text = format!("cannot open disk {path}: more than {CHAIN_MAX} images in a chain");
            return Err(Error::new(ErrorKind::Source, text));
        }
        self.chain.push(real);
        Ok(())
    }

    fn open_data_file(&self, image: &Path, name: &str) -> Result<Box<dyn DiskSource>> {
        open_disk(&self.resolve(image, name)?)
    }

    fn open_backing(
        &mut self,
        image: &Path,
        name: &str,
        format: Option<&str>,
    ) -> Result<Box<dyn DiskSource>> {
        let address = Path::new(name);
        if nbd::is_address(address) {
            if !self.options.allows_backing {
                let (image, name) = (image.display(), name.escape_debug());
                let text = format!("cannot open disk {image}: it lies over {name}");
                let error = Error::new(ErrorKind::Source, text);
                return Err(error.hint("use --allow-backing if you trust the image"));
            }
            let format = format.and_then(ImageFormat::parse);
            return open_export(address, &ImageOptions { format, ..ImageOptions::default() });
        }
        let path = self.resolve(image, name)?;
        let file = open_disk(&path)?;
        let format = match format {
            None => tell_format(file.as_ref(), &path)?,
            Some(name) => ImageFormat::parse(name).ok_or_else(|| {
                let (path, name) = (image.display(), name.escape_debug());
                let text = format!("cannot open disk {path}: its backing file has format {name}");
                Error::new(ErrorKind::Source, text)
            })?,
        };
        self.open_as(format, &path, file, None)
    }

    fn open_vmdk(&mut self, path: &Path, file: Box<dyn DiskSource>) -> Result<Box<dyn DiskSource>> {
        let image = Image::read(file.as_ref())?;
        // One that is a delta, or whose data are in other files, would be stored without them.
        let is_all = image.is_one_file() && image.parent().is_none() && self.chain.is_empty();
        if image.is_encrypted() && is_all {
            return self.keep_encrypted(path, file);
        }
        Ok(Box::new(self.open_vmdk_view(path, file, image)?))
    }

    fn open_vmdk_view(
        &mut self,
        path: &Path,
        file: Box<dyn DiskSource>,
        image: Image,
    ) -> Result<VmdkSource> {
        self.enter(path)?;
        if image.is_encrypted() {
            let text = format!("cannot open disk {}: it is encrypted", path.display());
            return Err(Error::new(ErrorKind::Source, text));
        }
        let parent = match image.parent() {
            None => None,
            Some(parent) => {
                let path = self.resolve(path, &parent.name)?;
                let below = open_disk(&path)?;
                let parent = Image::read(below.as_ref())?;
                let parent = self.open_vmdk_view(&path, below, parent)?;
                image.check_parent(file.as_ref(), &parent)?;
                Some(parent)
            }
        };
        let mut open_extent = |name: &str| {
            let extent = self.resolve(path, name)?;
            if self.chain.contains(&canonical(&extent)?) {
                let (path, name) = (path.display(), name.escape_debug());
                let text = format!("cannot open disk {path}: its extent {name} is an image itself");
                return Err(Error::new(ErrorKind::Source, text));
            }
            open_disk(&extent)
        };
        image.open(file, parent, &mut open_extent, &mut |text| self.monitor.warn(text))
    }

    fn open_vhd(
        &mut self,
        path: &Path,
        file: Box<dyn DiskSource>,
        header: &vhd::Header,
    ) -> Result<Box<dyn DiskSource>> {
        self.enter(path)?;
        if header.is_copy {
            let path = path.display();
            self.monitor.warn(&format!("the footer of {path} is damaged; its copy is read"));
        }
        let below = match &header.parent {
            None => None,
            Some(parent) => {
                let path = self.resolve_any(path, &parent.names)?;
                let below = open_disk(&path)?;
                let its = vhd::Header::read(below.as_ref())?;
                parent.check(file.as_ref(), below.as_ref(), &its)?;
                Some(self.open_vhd(&path, below, &its)?)
            }
        };
        Ok(vhd::open_view(file, header, below))
    }

    fn open_vhdx(&mut self, path: &Path, image: vhdx::Image) -> Result<Box<dyn DiskSource>> {
        self.enter(path)?;
        let below = match image.parent() {
            None => None,
            Some(parent) => {
                let path = self.resolve_any(path, &parent.names)?;
                let below = vhdx::Image::read(open_disk(&path)?)?;
                image.check_parent(&below)?;
                Some(self.open_vhdx(&path, below)?)
            }
        };
        Ok(image.open(below))
    }

    /// The file that the first name that leads to one leads to.
    fn resolve_any(&self, image: &Path, names: &[String]) -> Result<PathBuf> {
        let folder = image.parent().unwrap_or(Path::new(""));
        let names =
            if self.options.window.is_some() { &names[..names.len().min(1)] } else { names };
        let found = names.iter().find(|name| folder.join(name).exists());
        self.resolve(image, found.or(names.first()).map_or("", String::as_str))
    }

    /// The file that an image names, beside it if the name is not absolute.
    fn resolve(&self, image: &Path, name: &str) -> Result<PathBuf> {
        let refused = |why: &str| {
            let (image, name) = (image.display(), name.escape_debug());
            let text = format!("cannot open disk {image}: its file {name} {why}");
            Error::new(ErrorKind::Source, text)
        };
        if self.options.window.is_some() {
            return Err(refused("is not looked for: a disk in an OVA is one file"));
        }
        let name = name.strip_prefix("file:").unwrap_or(name);
        // As QEMU tells protocols: a colon in front of the first slash.
        let protocol = name.split_once(':').map(|(protocol, _)| protocol);
        if protocol.is_some_and(|protocol| !protocol.contains('/')) {
            return Err(refused("is no plain file"));
        }
        let path = image.parent().unwrap_or(Path::new("")).join(name);
        let real =
            path.canonicalize().map_err(|cause| refused("cannot be found").because(cause))?;
        if !self.options.allows_backing && !real.starts_with(&self.folder) {
            let error = refused("is outside of the image's folder");
            return Err(error.hint("use --allow-backing if you trust the image"));
        }
        Ok(path)
    }
}
