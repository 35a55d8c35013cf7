//! What `ls`, `cp` and `find` have in common: which file system of which disk is meant, and how
//! its entries are shown.

use super::context::Context;
use super::output::escape;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{DiskContent, Entry, Name, ViewDisk, Volume};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::points::Point;
use crate::restore::{Part, find_part, only_part};
use crate::view::View;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Which file system of which disk.
#[derive(clap::Args, Debug)]
pub struct DiskOptions {
    /// The point, its disk, and a partition by its number: SERIES, SERIES@latest~1/DISK, ID/DISK:2
    #[arg(value_name = "POINT[/DISK][:PARTITION]")]
    pub point: String,
    /// The partition by its number, instead of `:PARTITION`
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub at: Option<String>,
}

/// A disk, and the partition that is named, if one is.
pub struct OpenDisk {
    /// What is on the disk.
    pub content: DiskContent,
    /// The partition.
    pub partition: Option<u32>,
}

impl OpenDisk {
    /// Opens the disk that is meant.
    ///
    /// # Errors
    /// As finding the point; `Usage` for a partition that is named twice.
    pub fn open(context: &Context, options: &DiskOptions) -> Result<OpenDisk> {
        let repository = context.open()?;
        let (text, of_point) = split_point(&options.point);
        let address = Address::parse(text)?;
        let point = context.find_point(&repository, &address, options.at.as_deref())?;
        let (part, of_part) = split_part(&point, address.part)?;
        let partition = match (of_point.or(of_part), options.partition) {
            (Some(_), Some(_)) => {
                let text = "cannot use --partition with an address that names a partition";
                return Err(Error::new(ErrorKind::Usage, text));
            }
            (named, option) => named.or(option),
        };
        part.warn_of_bad_extents(context.monitor());
        let vault = context.vault(repository)?;
        let view = View::open(&vault, part)?;
        let name = view.name().to_owned();
        let content = DiskContent::open(Arc::new(ViewDisk::new(view)), &name)?;
        Ok(OpenDisk { content, partition })
    }

    /// Opens the file system that is meant.
    ///
    /// # Errors
    /// As [`DiskContent::choose`] and [`DiskContent::volume`].
    pub fn volume(&self) -> Result<Volume> {
        self.content.volume(self.content.choose(self.partition)?)
    }
}

/// `SERIES:2`. In an address with a `/` the colon is behind it, in one with a time it is the time's.
fn split_point(text: &str) -> (&str, Option<u32>) {
    if text.contains(['/', '@']) {
        return (text, None);
    }
    split_number(text).map_or((text, None), |(point, number)| (point, Some(number)))
}

/// `DISK:2`: names of disks have no colons.
fn split_part<'p>(point: &'p Point, name: Option<&str>) -> Result<(Part<'p>, Option<u32>)> {
    let Some(name) = name else { return Ok((only_part(point)?, None)) };
    match split_number(name) {
        Some((disk, number)) => Ok((find_part(point, disk)?, Some(number))),
        None => Ok((find_part(point, name)?, None)),
    }
}

fn split_number(text: &str) -> Option<(&str, u32)> {
    let (before, number) = text.rsplit_once(':')?;
    let is_number = !before.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse().ok()).flatten().map(|number| (before, number))
}

/// Tells of something that could not be read, and keeps the worst kind.
pub fn tell(context: &Context, error: &Error, worst: &mut Option<ErrorKind>) {
    context.monitor().warn(&error.full_text());
    if *worst != Some(ErrorKind::Damage) {
        *worst = Some(error.kind());
    }
}

/// A path in a file system, as the user gave it.
pub fn path_of(argument: Option<&OsStr>) -> Name {
    Name(argument.map_or_else(|| b"/".to_vec(), |path| path.as_bytes().to_vec()))
}

/// An entry as JSON. Bytes that are no UTF-8 are replaced in `path`, and in full in `path_bytes`.
pub fn describe(volume: &Volume, path: &Name, entry: &Entry<'_>) -> Value {
    let facts = &entry.facts;
    let target = volume.target(entry, path).ok();
    let (text, bytes) = json_name(path);
    let (name, name_bytes) = json_name(&entry.name);
    let (target, target_bytes) = target.as_ref().map_or((Value::Null, Value::Null), json_name);
    json!({
        "message_type": "entry",
        "path": text,
        "path_bytes": bytes,
        "name": name,
        "name_bytes": name_bytes,
        "type": facts.kind.name(),
        "bytes": facts.bytes,
        "modified": time(facts.modified).map(|time| time.to_string()),
        "mode": facts.owner.map(|owner| format!("{:04o}", owner.mode)),
        "uid": facts.owner.map(|owner| owner.ids.0),
        "gid": facts.owner.map(|owner| owner.ids.1),
        "target": target,
        "target_bytes": target_bytes,
        "trouble": entry.trouble,
    })
}

/// The text, and the bytes in hexadecimal where the text is not all.
pub fn json_name(name: &Name) -> (Value, Value) {
    match std::str::from_utf8(&name.0) {
        Ok(text) => (text.into(), Value::Null),
        Err(_) => {
            let hex: String = name.0.iter().map(|byte| format!("{byte:02x}")).collect();
            (String::from_utf8_lossy(&name.0).into(), hex.into())
        }
    }
}

/// An entry as `ls -l` has it, with `name` for its name.
pub fn long_line(volume: &Volume, path: &Name, name: &Name, entry: &Entry<'_>) -> String {
    let facts = &entry.facts;
    let (mode, owner) = match facts.owner {
        Some(owner) => (permissions(owner.mode), format!("{}:{}", owner.ids.0, owner.ids.1)),
        None => ("---------".to_string(), "-".to_string()),
    };
    let time = time(facts.modified).map_or_else(|| "-".to_string(), show_time);
    let target = match volume.target(entry, path) {
        Ok(target) => format!(" -> {target}"),
        Err(_) => String::new(),
    };
    let trouble = entry.trouble.as_ref().map(|trouble| format!("  ({})", escape(trouble)));
    format!(
        "{}{mode}  {owner:>11}  {:>14}  {time:<20}  {name}{target}{}",
        facts.kind.letter(),
        facts.bytes,
        trouble.unwrap_or_default()
    )
}

fn time((seconds, nanoseconds): (i64, u32)) -> Option<Timestamp> {
    Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}

fn show_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `rwxr-xr-x`, with `s`, `S`, `t` and `T` as in `ls`.
fn permissions(mode: u32) -> String {
    let mut text: Vec<char> = "rwxrwxrwx".chars().collect();
    for (place, letter) in text.iter_mut().enumerate() {
        if mode >> (8 - place) & 1 == 0 {
            *letter = '-';
        }
    }
    for (bit, place, small, large) in
        [(0o4000, 2, 's', 'S'), (0o2000, 5, 's', 'S'), (0o1000, 8, 't', 'T')]
    {
        if mode & bit != 0 {
            text[place] = if text[place] == 'x' { small } else { large };
        }
    }
    text.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_of_times_name_no_partition() {
        assert_eq!(split_point("web01:2"), ("web01", Some(2)));
        assert_eq!(split_point("web01@2026-11-01T03:00"), ("web01@2026-11-01T03:00", None));
        assert_eq!(split_point("web01/sda:2"), ("web01/sda:2", None));
        assert_eq!(split_point("web:x"), ("web:x", None));
        assert_eq!(split_number("sda:99999999999"), None);
        assert_eq!(split_number(":2"), None);
    }

    #[test]
    fn permissions_are_those_of_ls() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o4755), "rwsr-xr-x");
        assert_eq!(permissions(0o3640), "rw-r-S--T");
        assert_eq!(permissions(0o1777), "rwxrwxrwt");
    }
}
