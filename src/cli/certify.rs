//! `certify`: whether a file, image or device is the disk of a point.

use super::backup::Digest;
use super::context::Context;
use super::output::{escape, json_line, line};
use super::sizes::{format_bytes, parse_bytes};
use crate::certify::{Certifier, Sampling, Verdict, digest_of};
use crate::digest::Digester;
use crate::environment::SystemEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::{Part, part_of};
use crate::source::{DiskSource, ImageFormat, ImageOptions, open_image};
use clap::ValueEnum;
use diskvault_format::id::to_hex;
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Ranges that are printed for people; JSON has more.
const RANGES_PRINTED: usize = 20;
/// So much at the end: backup partition tables, and metadata of RAID and file systems.
const LAST_BYTES: u64 = 1 << 20;

/// Options of `certify`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point and its disk: SERIES, SERIES@latest~1/DISK, ID/DISK
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// A file, an image, a block device or an nbd:// address
    path: PathBuf,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// Compare only the size, the beginning, the end and a sample, and say what that can miss
    #[arg(long)]
    quick: bool,
    /// Compare every byte; so it is without --quick
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// With --quick, how much of the beginning
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "16MiB", requires = "quick")]
    first: u64,
    /// With --quick, how many chunks of the rest
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "quick")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    samples: u64,
    /// Print a digest of both ends, as coreutils or b3sum print it
    #[arg(long, value_enum, value_name = "KIND", conflicts_with = "quick")]
    with: Vec<AnyDigest>,
    /// Format of an image: raw, qcow2, vmdk, vhd or vhdx; by its name and some bytes by default
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Follow an image to files outside of its folder
    #[arg(long)]
    allow_backing: bool,
}

/// `--with`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AnyDigest {
    /// BLAKE3
    Blake3,
    /// SHA-256
    Sha256,
    /// SHA-1
    Sha1,
    /// MD5
    Md5,
}

impl AnyDigest {
    fn other(self) -> Option<Digest> {
        match self {
            AnyDigest::Blake3 => None,
            AnyDigest::Sha256 => Some(Digest::Sha256),
            AnyDigest::Sha1 => Some(Digest::Sha1),
            AnyDigest::Md5 => Some(Digest::Md5),
        }
    }
}

/// Runs `certify`.
///
/// # Errors
/// `Damage` if something differs, or as reading both.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let part = part_of(&point, address.part)?;
    let Part::Disk(disk) = part else {
        let name = part.name().escape_debug();
        return Err(Error::new(ErrorKind::Usage, format!("cannot certify {name}: it is no disk")));
    };
    let monitor = context.monitor();
    part.warn_of_bad_extents(monitor);
    let format = arguments.format.as_deref().map(format_of).transpose()?;
    let allows_backing = arguments.allow_backing;
    let options = ImageOptions { format, allows_backing, ..ImageOptions::default() };
    let source = open_image(&arguments.path, &options, monitor)?;
    let locator = Locator::open_for_reading(&repository, monitor)?;
    let pool = context.pool()?;
    let certifier = Certifier { fetcher: context.fetcher(&repository, &locator), pool: &pool };
    monitor.start("comparing", (!arguments.quick).then_some(disk.size));
    let verdict = if arguments.quick {
        let (first_bytes, samples) = (arguments.first, arguments.samples);
        let sampling = Sampling { first_bytes, last_bytes: LAST_BYTES, samples };
        certifier.quick(disk, source.as_ref(), sampling, &SystemEnvironment)?
    } else {
        certifier.full(disk, source.as_ref())?
    };
    monitor.finish();
    let mut digests = Vec::new();
    for kind in &arguments.with {
        let fetcher = context.fetcher(&repository, &locator);
        digests.push(both_digests(fetcher, &pool, disk, source.as_ref(), *kind)?);
    }
    let subject = Subject { point: &point, disk, path: &arguments.path };
    subject.tell(context, arguments, &verdict, &digests)
}

/// Reads what was restored back, past the cache of the system where that is possible, and compares
/// every byte of it; `options` are how it is to be read.
///
/// # Errors
/// `Damage` if something differs, or as reading both.
pub fn verify_restored(
    context: &Context,
    fetcher: Fetcher<'_>,
    (point, disk): (&Point, &DiskRecord),
    path: &Path,
    options: &ImageOptions,
) -> Result<()> {
    let monitor = context.monitor();
    if let Ok(file) = std::fs::File::open(path) {
        // Only advice: then what the kernel still has is compared.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    let source = open_image(path, options, monitor)?;
    let pool = context.pool()?;
    let certifier = Certifier { fetcher, pool: &pool };
    monitor.start(&format!("reading {} back", path.display()), Some(disk.size));
    let verdict = certifier.full(disk, source.as_ref())?;
    monitor.finish();
    if !verdict.is_equal() {
        return Err(Subject { point, disk, path }.refusal(&verdict));
    }
    let path = path.display().to_string();
    if context.json() {
        let bytes = verdict.compared_bytes;
        return json_line(&json!({ "message_type": "verified", "path": path, "bytes": bytes }));
    }
    line(&format!("read back: {} is {}", escape(&path), escape(&disk.name)))
}

fn format_of(name: &str) -> Result<ImageFormat> {
    ImageFormat::parse(name).ok_or_else(|| {
        let text =
            format!("cannot read the format {name:?}: expected raw, qcow2, vmdk, vhd or vhdx");
        Error::new(ErrorKind::Usage, text)
    })
}

/// One digest of both ends.
struct BothDigests {
    kind: &'static str,
    point: Vec<u8>,
    found: Vec<u8>,
}

fn both_digests(
    fetcher: Fetcher<'_>,
    pool: &ThreadPool,
    disk: &DiskRecord,
    source: &dyn DiskSource,
    kind: AnyDigest,
) -> Result<BothDigests> {
    let kind = kind.other().map(Digest::kind);
    let name = kind.map_or("blake3", |kind| kind.name());
    let (monitor, size) = (fetcher.monitor, source.size());
    monitor.start(&format!("{name} of {}", source.describe()), Some(size));
    let found = digest_of(source, size, kind, pool, monitor)?;
    monitor.finish();
    let point = Digester { fetcher, pool }.compute(Part::Disk(disk), kind)?;
    Ok(BothDigests { kind: name, point, found })
}

/// What is certified.
struct Subject<'a> {
    point: &'a Point,
    disk: &'a DiskRecord,
    path: &'a Path,
}

impl Subject<'_> {
    fn tell(
        &self,
        context: &Context,
        arguments: &Arguments,
        verdict: &Verdict,
        digests: &[BothDigests],
    ) -> Result<()> {
        let is_equal = verdict.is_equal() && digests.iter().all(|both| both.point == both.found);
        if context.json() {
            json_line(&self.json(arguments, verdict, digests, is_equal))?;
        } else {
            self.print(arguments, verdict, digests)?;
        }
        if is_equal { Ok(()) } else { Err(self.refusal(verdict)) }
    }

    fn json(
        &self,
        arguments: &Arguments,
        verdict: &Verdict,
        digests: &[BothDigests],
        is_equal: bool,
    ) -> Value {
        let ranges = verdict.different.iter();
        json!({
            "message_type": "certificate",
            "point_id": self.point.id.to_hex(),
            "name": self.disk.name,
            "path": self.path.display().to_string(),
            "quick": arguments.quick,
            "equal": is_equal,
            "point_bytes": verdict.point_bytes,
            "found_bytes": verdict.found_bytes,
            "compared_bytes": verdict.compared_bytes,
            "different_bytes": verdict.different_bytes,
            "different": ranges.map(|range| json!({
                "start": range.start,
                "bytes": range.end - range.start,
            })).collect::<Vec<_>>(),
            "different_ranges": verdict.ranges,
            "chunks": verdict.units,
            "sampled_chunks": verdict.sampled_units,
            "chance_to_miss_one_percent": arguments.quick.then(|| one_percent(verdict)),
            "chance_to_miss_one_chunk": arguments.quick.then(|| verdict.chance_to_miss(1)),
            "digests": digests.iter().map(|both| json!({
                "algorithm": both.kind,
                "point": to_hex(&both.point),
                "found": to_hex(&both.found),
            })).collect::<Vec<_>>(),
        })
    }

    fn print(
        &self,
        arguments: &Arguments,
        verdict: &Verdict,
        digests: &[BothDigests],
    ) -> Result<()> {
        let path = escape(&self.path.display().to_string());
        let (name, id) = (escape(&self.disk.name), self.point.id.short());
        for both in digests {
            let kind = both.kind;
            line(&format!("{kind}  {}  {path}", to_hex(&both.found)))?;
            line(&format!("{kind}  {}  {id}/{name}", to_hex(&both.point)))?;
        }
        for range in verdict.different.iter().take(RANGES_PRINTED) {
            let bytes = format_bytes(range.end - range.start);
            line(&format!("differs at {} for {bytes}", range.start))?;
        }
        if let more @ 1.. = verdict.ranges.saturating_sub(RANGES_PRINTED as u64) {
            line(&format!("and in {more} more ranges"))?;
        }
        if !verdict.is_equal() {
            return Ok(());
        }
        let size = format_bytes(verdict.point_bytes);
        if !arguments.quick {
            return line(&format!("{path} is {name} of point {id}: all of {size} compared"));
        }
        if verdict.sampled_units == verdict.units {
            return line(&format!("{path} is {name} of point {id}: all of {size} compared"));
        }
        line(&format!(
            "{path} looks like {name} of point {id}: size, first {}, last {}, and {} of the {} \
             chunks between",
            format_bytes(arguments.first.min(verdict.point_bytes)),
            format_bytes(LAST_BYTES.min(verdict.point_bytes)),
            verdict.sampled_units,
            verdict.units,
        ))?;
        line(&format!(
            "a difference in 1 % of those chunks is missed with a chance of {}, in one of them of {}",
            percent(one_percent(verdict)),
            percent(verdict.chance_to_miss(1)),
        ))
    }

    fn refusal(&self, verdict: &Verdict) -> Error {
        let path = self.path.display();
        let (name, id) = (self.disk.name.escape_debug(), self.point.id.short());
        let mut why = Vec::new();
        if verdict.found_bytes != verdict.point_bytes {
            let (found, expected) = (verdict.found_bytes, verdict.point_bytes);
            why.push(format!("it has {found} bytes, expected {expected}"));
        }
        if verdict.different_bytes > 0 {
            let bytes = format_bytes(verdict.different_bytes);
            let ranges = verdict.ranges;
            why.push(format!("{bytes} in {ranges} ranges differ"));
        }
        if why.is_empty() {
            why.push("the digests differ".into());
        }
        let text = format!("cannot certify {path} as {name} of point {id}: {}", why.join(", "));
        Error::new(ErrorKind::Damage, text)
    }
}

fn one_percent(verdict: &Verdict) -> f64 {
    verdict.chance_to_miss(verdict.units.div_ceil(100))
}

/// Two digits of a share, as a percentage.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 10.0 {
        return format!("{percent:.1} %");
    }
    let digits = (1.0 - percent.log10().floor()).clamp(1.0, 12.0) as usize;
    format!("{percent:.digits$} %")
}
