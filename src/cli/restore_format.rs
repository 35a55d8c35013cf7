//! `restore --format`: images of other programs' formats.
//!
//! Invariant: what the flags contradict is said before anything is read or written.

use super::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::{Base, Part, find_part, restore_in_order, restore_overlay, restore_packed};
use crate::source::{DiskSource, ImageFormat, ImageOptions, open_image, ova};
use crate::target::image::{
    Description, Ova, PackedFormat, Packing, Qcow2Compressed, VmdkStream, check_size, check_target,
};
use clap::ValueEnum;
use diskvault_format::manifest::DiskRecord;
use std::path::{Component, Path, PathBuf};

/// Options of `restore` about formats.
#[derive(clap::Args, Clone, Debug)]
pub struct FormatArguments {
    /// The format of the new image; by its name by default: qcow2, vmdk, vhd, vhdx, else raw
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Compress the clusters of a qcow2 image: deflate, which all programs read, or zstd
    #[arg(
        long,
        value_enum,
        value_name = "METHOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "deflate"
    )]
    compress: Option<Method>,
    /// Write only what differs from this image, as a qcow2 image over it
    #[arg(long, value_name = "BASE")]
    backing: Option<PathBuf>,
    /// The format of BASE: raw, qcow2, vmdk, vhd, vhdx; by its name and first bytes by default
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<String>,
    /// Let BASE refer to files outside of its folder
    #[arg(long, requires = "backing")]
    allow_backing: bool,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The bytes of the disk themselves
    Raw,
    /// QEMU's, version 3
    Qcow2,
    /// VMware's, sparse in one file
    Vmdk,
    /// VMware's for exports, compressed
    VmdkStream,
    /// Virtual PC's, dynamic
    Vhd,
    /// Hyper-V's, dynamic
    Vhdx,
    /// A machine for import programs, with all disks of the point
    Ova,
}

/// `--compress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Deflate,
    Zstd,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::VmdkStream => "vmdk-stream",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Ova => "ova",
        }
    }

    /// What a file's name ends with.
    const fn extension(self) -> &'static str {
        match self {
            Format::VmdkStream => "vmdk",
            other => other.name(),
        }
    }
}

impl FormatArguments {
    /// Does without what a name says: of what is there already, and where zeros are to be as they were,
    /// a disk is meant as it is.
    pub fn ignore_names(&mut self) {
        self.format = self.format.or(Some(Format::Raw));
    }

    /// The format of the image at a path: the one that was asked for, or what the name says, as
    /// `mirror` makes it and `backup` reads it.
    fn of(&self, path: &Path) -> Format {
        let named = || {
            let extension = path.extension()?.to_str()?.to_ascii_lowercase();
            let by_name = [Format::Qcow2, Format::Vmdk, Format::Vhd, Format::Vhdx];
            by_name.into_iter().find(|format| format.extension() == extension)
        };
        let is_no_file = || path.metadata().is_ok_and(|metadata| !metadata.is_file());
        self.format.or_else(|| named().filter(|_| !is_no_file())).unwrap_or(Format::Raw)
    }

    /// True for a disk as it is.
    pub fn is_raw(&self, path: &Path) -> bool {
        self.of(path) == Format::Raw
    }

    /// True if all disks go into one file.
    pub fn is_archive(&self) -> bool {
        self.format == Some(Format::Ova)
    }

    /// Checks what the flags say together of an image at `path`; `is_auto` if zeros become what is
    /// cheapest, `in_place` if only what differs is to be written.
    ///
    /// # Errors
    /// `Usage`.
    pub fn validate(&self, path: &Path, is_auto: bool, in_place: bool) -> Result<()> {
        let wrong = |text: String| Err(Error::new(ErrorKind::Usage, text));
        let format = self.of(path);
        let name = format.name();
        if self.compress.is_some() && format != Format::Qcow2 {
            return wrong(format!("cannot compress a {name} image: --compress is of qcow2"));
        }
        if self.backing.is_some() && format != Format::Qcow2 {
            return wrong(format!("cannot put a {name} image over a base: --backing is of qcow2"));
        }
        if self.backing.is_some() && self.compress.is_some() {
            return wrong("cannot use --backing and --compress together".into());
        }
        if format != Format::Raw && in_place {
            let text = format!("cannot restore a {name} image in place");
            let hint = "use `diskvault mirror` to keep a raw or qcow2 image at a point";
            return Err(Error::new(ErrorKind::Usage, text).hint(hint));
        }
        if format != Format::Raw && !is_auto {
            return wrong(format!("cannot keep zeros in a {name} image: --sparse is of raw"));
        }
        Ok(())
    }

    /// The name of a part's file in a folder: a disk's gets the ending of the format.
    pub fn file_name(&self, part: Part<'_>) -> String {
        let name = part.name();
        let format = self.format.unwrap_or(Format::Raw);
        let ending = format!(".{}", format.extension());
        let is_disk = matches!(part, Part::Disk(_));
        if format == Format::Raw || !is_disk || name.to_ascii_lowercase().ends_with(&ending) {
            return name.to_owned();
        }
        format!("{name}{ending}")
    }

    /// The disks that go into an archive, and its path for each: those of the point, or the named one.
    ///
    /// # Errors
    /// `Usage` for a stream that was named; `NotFound` if there is no disk; otherwise as
    /// [`FormatArguments::check`].
    pub fn plan_archive<'a>(
        &self,
        point: &'a Point,
        address: &Address<'_>,
        target: &Path,
        force: bool,
    ) -> Result<Vec<(Part<'a>, PathBuf)>> {
        let series = point.manifest.series.replace('/', "_");
        let path = if target.is_dir() {
            target.join(format!("{series}.{}", Format::Ova.extension()))
        } else {
            target.to_owned()
        };
        let disks: Vec<Part<'a>> = match address.part {
            Some(name) => vec![find_part(point, name)?],
            None => point.manifest.disks.iter().map(Part::Disk).collect(),
        };
        if disks.is_empty() {
            let text = format!("cannot make an OVA of point {}: it has no disk", point.id.short());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        for disk in &disks {
            self.refuse_stream(*disk)?;
            self.check(*disk, &path, force)?;
        }
        Ok(disks.into_iter().map(|disk| (disk, path.clone())).collect())
    }

    /// Checks where a part goes, before anything is written.
    ///
    /// # Errors
    /// `Usage` for a stream that was named; `Target` for a disk that the format cannot hold.
    pub fn check(&self, part: Part<'_>, path: &Path, force: bool) -> Result<()> {
        let Part::Disk(disk) = part else { return Ok(()) };
        if self.is_raw(path) {
            return Ok(());
        }
        check_size(path, self.of(path).name(), disk.size)?;
        check_target(path, force)
    }

    /// Refuses a format for a part that is no disk.
    ///
    /// # Errors
    /// `Usage`.
    pub fn refuse_stream(&self, part: Part<'_>) -> Result<()> {
        let Part::Stream(stream) = part else { return Ok(()) };
        let Some(format) = self.format.filter(|format| *format != Format::Raw) else {
            return Ok(());
        };
        let (name, format) = (stream.name.escape_debug(), format.name());
        let text = format!("cannot restore {name} as {format}: it is a stream, not a disk");
        Err(Error::new(ErrorKind::Usage, text))
    }

    /// Restores a disk into a new image.
    ///
    /// # Errors
    /// `Damage`, `Target`, `NoSpace`; `Source` for a base that cannot be read.
    pub fn restore_disk(
        &self,
        context: &Context,
        fetcher: &Fetcher<'_>,
        point: &Point,
        disk: &DiskRecord,
        (path, force): (&Path, bool),
    ) -> Result<()> {
        self.check(Part::Disk(disk), path, force)?;
        let target = (path, force);
        if let Some(base) = &self.backing {
            return self.restore_over(context, fetcher, disk, target, base);
        }
        let packing = match (self.of(path), self.compress) {
            (Format::VmdkStream, _) => {
                let mut image = VmdkStream::create(path, force, disk.size)?;
                restore_in_order(fetcher, disk, &mut image, context.pool()?.as_ref())?;
                return image.finish();
            }
            (_, Some(Method::Deflate)) => Some(Packing::Deflate),
            (_, Some(Method::Zstd)) => Some(Packing::Zstd),
            (_, None) => None,
        };
        if let Some(packing) = packing {
            let mut image = Qcow2Compressed::create(path, force, disk.size, packing)?;
            restore_in_order(fetcher, disk, &mut image, context.pool()?.as_ref())?;
            return image.finish();
        }
        let format = match self.of(path) {
            Format::Vmdk => PackedFormat::Vmdk,
            Format::Vhd => PackedFormat::Vhd,
            Format::Vhdx => PackedFormat::Vhdx,
            _ => PackedFormat::Qcow2,
        };
        let unix_seconds = seconds_of(point);
        let description = Description { unix_seconds, ..Description::default() };
        restore_packed(fetcher, disk, target, format, &description)
    }

    /// How the image at `path`, of the disk of this number, is to be read back.
    ///
    /// # Errors
    /// `Source` for an archive that cannot be read.
    pub fn reading_back(
        &self,
        path: &Path,
        number: usize,
        monitor: &dyn Monitor,
    ) -> Result<ImageOptions> {
        let format = match self.of(path) {
            Format::Raw => ImageFormat::Raw,
            Format::Qcow2 => ImageFormat::Qcow2,
            Format::Vmdk | Format::VmdkStream | Format::Ova => ImageFormat::Vmdk,
            Format::Vhd => ImageFormat::Vhd,
            Format::Vhdx => ImageFormat::Vhdx,
        };
        let window = if self.is_archive() {
            let disks = ova::read(path, monitor)?.disks;
            disks.into_iter().nth(number).map(|(window, _)| window)
        } else {
            None
        };
        // The base was opened, and its name is one that was given here.
        let allows_backing = self.backing.is_some();
        Ok(ImageOptions { format: Some(format), allows_backing, window, ..ImageOptions::default() })
    }

    fn restore_over(
        &self,
        context: &Context,
        fetcher: &Fetcher<'_>,
        disk: &DiskRecord,
        (path, force): (&Path, bool),
        base: &Path,
    ) -> Result<()> {
        let format = match &self.backing_format {
            None => None,
            Some(name) => Some(ImageFormat::parse(name).ok_or_else(|| {
                let text = format!("cannot use format {} for a base", name.escape_debug());
                Error::new(ErrorKind::Usage, text)
            })?),
        };
        let allows_backing = self.allow_backing;
        let options = ImageOptions { format, allows_backing, ..ImageOptions::default() };
        let source = open_image(base, &options, context.monitor()).map_err(|error| {
            let hint = error.hint_text().map(|hint| hint.replace("--format", "--backing-format"));
            let error = Error::new(error.kind(), error.full_text());
            hint.into_iter().fold(error, Error::hint)
        })?;
        refuse_own_base(path, base, source.as_ref())?;
        if let Some(file) = source.written_by_machine() {
            context.monitor().warn(&format!(
                "base {file} is being written to by a running machine: the image over it will not \
                 be the disk"
            ));
        }
        let name = name_from(path, base)?;
        let format = match source.format() {
            "vhd" => "vpc",
            format @ ("qcow2" | "vmdk" | "vhdx") => format,
            _ => "raw",
        };
        let base = Base { source: source.as_ref(), name: &name, format };
        restore_overlay(fetcher, disk, (path, force), &base, context.pool()?.as_ref())?;
        source.check_unchanged_size()
    }
}

/// Restores disks of a point into the archive that a plan names for each.
///
/// # Errors
/// As [`FormatArguments::restore_disk`].
pub fn restore_archive(
    context: &Context,
    fetcher: &Fetcher<'_>,
    point: &Point,
    plan: &[(Part<'_>, PathBuf)],
    force: bool,
) -> Result<()> {
    let Some((_, path)) = plan.first() else { return Ok(()) };
    let disks = || plan.iter().filter_map(|(part, _)| part.disk());
    let names: Vec<_> = disks().map(|disk| (disk.name.as_str(), disk.size)).collect();
    let series = &point.manifest.series;
    let mut archive = Ova::create(path, force, series, seconds_of(point), &names)?;
    let pool = context.pool()?;
    for disk in disks() {
        Part::Disk(disk).warn_of_bad_extents(fetcher.monitor);
        fetcher.monitor.start(&format!("restoring {}", disk.name), Some(disk.size));
        archive.begin_disk()?;
        restore_in_order(fetcher, disk, &mut archive, pool.as_ref())?;
        archive.end_disk()?;
    }
    fetcher.monitor.finish();
    archive.finish()
}

fn seconds_of(point: &Point) -> u64 {
    u64::try_from(point.manifest.time_unix_ns / 1_000_000_000).unwrap_or(0)
}

/// Refuses to replace the base itself, or an image below it.
fn refuse_own_base(path: &Path, base: &Path, source: &dyn DiskSource) -> Result<()> {
    // Of what is not there, nothing can be the base.
    let Ok(target) = path.canonicalize() else { return Ok(()) };
    let is_target = |path: &Path| path.canonicalize().is_ok_and(|path| path == target);
    let is_below = || {
        let found = std::cell::Cell::new(false);
        let visit = |disk: &dyn DiskSource| {
            found.set(found.get() || is_target(Path::new(&disk.describe())));
            false
        };
        source.changed_over(&visit, &mut |_| Ok(())).map(|_| found.get())
    };
    if !is_target(base) && !is_below()? {
        return Ok(());
    }
    let (path, base) = (path.display(), base.display());
    let text = format!("cannot write to {path}: {base} needs it, and is the base");
    Err(Error::new(ErrorKind::Usage, text))
}

/// The name of a base as an image at `path` has to say it: absolute if it is, else from the folder
/// of the image, where programs look for it.
fn name_from(path: &Path, base: &Path) -> Result<String> {
    let text = |base: &Path| {
        base.to_str().map(str::to_owned).ok_or_else(|| {
            let text = format!("cannot name base {} in an image: it is no UTF-8", base.display());
            Error::new(ErrorKind::Usage, text)
        })
    };
    if base.is_absolute() || base.to_string_lossy().contains("://") {
        return text(base);
    }
    let folder_of = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        folder.canonicalize().map_err(|cause| {
            let text = format!("cannot find folder {}", folder.display());
            Error::io(ErrorKind::Target, text, cause)
        })
    };
    let (from, to) = (folder_of(path)?, folder_of(base)?);
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let mut name: PathBuf = up.chain(to.components().skip(shared)).collect();
    name.push(base.file_name().unwrap_or_default());
    let name = text(&name)?;
    // A colon in front of a slash would name a protocol.
    let first = name.split('/').next().unwrap_or_default();
    Ok(if first.contains(':') { format!("./{name}") } else { name })
}
