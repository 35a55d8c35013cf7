//! Lists of what has changed on a disk, as other programs print them.
//!
//! Invariant: what is not understood is an error, never taken for unchanged; memory is bounded by
//! the length of the file, which is, or by the number of ranges.

mod btrfs;
mod rbd;
mod zfs;

use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Longest list, in bytes: a bitmap of 512 TiB in steps of 64 KiB has a GiB, one of 64 TiB 128 MiB.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// The end of a range that reaches to the end of the disk, wherever that is.
pub const OPEN_END: u64 = u64::MAX;

/// Words for what has not changed.
const SAME: [&str; 3] = ["same", "clean", "unchanged"];
/// Words for what may have.
const CHANGED: [&str; 8] =
    ["data", "zero", "hole", "dirty", "changed", "hole,zero", "allocated", "discarded"];

/// Reads a list: ascending, disjoint ranges in bytes of all that may have changed.
///
/// With `granularity`, in bytes, it is a bitmap: one bit for each so many bytes, the lowest bit of the
/// first byte first, as QEMU keeps them. Else by its first character: JSON as `qemu-img map`,
/// `nbdinfo --map`, `rbd diff` or VMware's `QueryChangedDiskAreas` give it, the XML of `thin_delta`, or
/// lines of `START LENGTH [KIND]` in bytes, where a kind of `same`, `clean` or `unchanged` has not
/// changed. Of `qemu-img map` what the top image holds (depth 0) counts. Answers of VMware, and the
/// maps of `qemu-img` and `nbdinfo`, may tell of a part of the disk; what none tells of may have
/// changed, up to [`OPEN_END`]. What `btrfs receive --dump` and `zstream dump -v` print of a stream
/// between two snapshots is told by how it begins, and so is a stream of `rbd export-diff`, which may
/// be of any length: what it writes and zeroes has changed.
///
/// # Errors
/// `Source` for a file that cannot be read; `Usage` for one that is longer than 256 MiB or is none of
/// these, with the place.
pub fn read_changes(path: &Path, granularity: Option<u64>) -> Result<Vec<Range<u64>>> {
    let open = |cause| {
        Error::io(ErrorKind::Source, format!("cannot read change list {}", path.display()), cause)
    };
    let mut bytes = Vec::new();
    let mut file = std::fs::File::open(path).map_err(open)?;
    file.by_ref().take(rbd::START_BYTES).read_to_end(&mut bytes).map_err(open)?;
    let refuse = |what: String| {
        let text = format!("cannot read change list {}: {what}", path.display());
        Error::new(ErrorKind::Usage, text)
    };
    if let (Some(version), None) = (rbd::version(&bytes), granularity) {
        return Ok(join(rbd::read(file, version).map_err(refuse)?));
    }
    file.take(LIST_BYTES_MAX + 1 - rbd::START_BYTES).read_to_end(&mut bytes).map_err(open)?;
    if bytes.len() as u64 > LIST_BYTES_MAX {
        return Err(refuse("it is longer than 256 MiB".into()));
    }
    let parsed = match granularity {
        Some(granularity) => bitmap(&bytes, granularity),
        None => match std::str::from_utf8(&bytes) {
            Err(_) => Err("it is no text; a bitmap needs --granularity".into()),
            Ok(text) => match text.trim_start().as_bytes().first() {
                Some(b'[' | b'{') => json(text),
                Some(b'<') => thin_delta(text),
                _ if btrfs::is_dump(text) => btrfs::read(text),
                _ if zfs::is_dump(text) => zfs::read(text),
                _ => lines(text),
            },
        },
    };
    Ok(join(parsed.map_err(refuse)?))
}

/// Sorted, without what is empty, and joined where they touch.
pub fn join(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => joined.push(range),
        }
    }
    joined
}

type Parsed = std::result::Result<Vec<Range<u64>>, String>;

fn range(start: u64, bytes: u64) -> std::result::Result<Range<u64>, String> {
    let end = start.checked_add(bytes).ok_or("a range ends beyond 2^64")?;
    Ok(start..end)
}

fn bitmap(bytes: &[u8], granularity: u64) -> Parsed {
    if !granularity.is_power_of_two() || granularity < 512 {
        return Err(format!("a granularity of {granularity} is no power of two from 512 bytes on"));
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (number, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
            let granule = number as u64 * 8 + bit;
            let start = granule.checked_mul(granularity).ok_or("it is too long")?;
            let granule = range(start, granularity)?;
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = granule.end,
                None => ranges.push(granule),
            }
        }
    }
    Ok(ranges)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn is_changed(word: &str) -> std::result::Result<bool, String> {
    let word = word.to_ascii_lowercase();
    if SAME.contains(&word.as_str()) {
        return Ok(false);
    }
    match CHANGED.contains(&word.as_str()) {
        true => Ok(true),
        false => Err(format!("{word:?} is no kind of range")),
    }
}

fn lines(text: &str) -> Parsed {
    let mut ranges = Vec::new();
    if matches!(text.split_whitespace().next(), Some("inode" | "transid")) {
        let text = "`btrfs subvolume find-new` does not tell of holes: take `btrfs send --no-data`";
        return Err(text.into());
    }
    for (place, line) in text.lines().enumerate() {
        let place = place + 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_heading = matches!(words.as_slice(), ["Offset", "Length", ..]);
        if words.first().is_none_or(|word| word.starts_with('#')) || is_heading {
            continue;
        }
        let numbers = (number(words[0]), words.get(1).and_then(|word| number(word)));
        let (Some(start), Some(bytes)) = numbers else {
            return Err(format!("line {place}: expected START LENGTH [KIND] in bytes"));
        };
        let counts = match words.get(2..).unwrap_or_default() {
            [] => true,
            [kind] => is_changed(kind).map_err(|what| format!("line {place}: {what}"))?,
            _ => return Err(format!("line {place}: there are more than three words")),
        };
        if counts {
            ranges.push(range(start, bytes).map_err(|what| format!("line {place}: {what}"))?);
        }
    }
    Ok(ranges)
}

fn json(text: &str) -> Parsed {
    let value: Value = serde_json::from_str(text).map_err(|cause| format!("{cause}"))?;
    let is_answer =
        |value: &Value| value.get("startOffset").is_some() || value.get("changedArea").is_some();
    match &value {
        Value::Object(list) if !is_answer(&value) => areas(list.get("extents")),
        Value::Object(_) => answers(std::slice::from_ref(&value)),
        Value::Array(list) if list.iter().any(is_answer) => answers(list),
        Value::Array(list) if list.iter().any(is_of_map) => {
            let told: std::result::Result<_, String> = list.iter().map(place_of).collect();
            let mut ranges = areas(Some(&value))?;
            ranges.extend(not_told(told?));
            Ok(ranges)
        }
        other => areas(Some(other)),
    }
}

/// True for what stands in a map that tells of changed and of unchanged parts, by `qemu-img` or
/// `nbdinfo`. A part of the disk may be missing in it, as with `--start-offset`.
fn is_of_map(area: &Value) -> bool {
    area.get("depth").is_some() || area.get("description").is_some()
}

/// What no part of a list tells of.
fn not_told(told: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut end = 0;
    let mut found = Vec::new();
    for part in join(told) {
        found.push(end..part.start);
        end = part.end;
    }
    found.push(end..OPEN_END);
    found
}

/// Answers of VMware to `QueryChangedDiskAreas`, which is called again from where an answer ends.
fn answers(answers: &[Value]) -> Parsed {
    let (mut ranges, mut told) = (Vec::new(), Vec::new());
    for (place, answer) in answers.iter().enumerate() {
        let say = |what: String| format!("answer {place}: {what}");
        let field = |name: &str| {
            let number = answer.get(name).and_then(Value::as_u64);
            number.ok_or_else(|| say(format!("it has no {name}")))
        };
        told.push(range(field("startOffset")?, field("length")?).map_err(say)?);
        match answer.get("changedArea") {
            // Of an answer without changes it may be missing.
            None | Some(Value::Null) => {}
            list => ranges.extend(areas(list).map_err(say)?),
        }
    }
    ranges.extend(not_told(told));
    Ok(ranges)
}

fn areas(areas: Option<&Value>) -> Parsed {
    let areas = areas.and_then(Value::as_array).ok_or("it has no list of ranges")?;
    let mut ranges = Vec::with_capacity(areas.len());
    for (place, area) in areas.iter().enumerate() {
        let read = one_area(area).map_err(|what| format!("range {place}: {what}"))?;
        ranges.extend(read);
    }
    Ok(ranges)
}

fn place_of(area: &Value) -> std::result::Result<Range<u64>, String> {
    let field = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| area.get(name));
        found.and_then(Value::as_u64).ok_or_else(|| format!("it has no {}", names[0]))
    };
    range(field(["start", "offset"])?, field(["length", "bytes"])?)
}

fn one_area(area: &Value) -> std::result::Result<Option<Range<u64>>, String> {
    let range = place_of(area)?;
    if let Some(depth) = area.get("depth") {
        let depth = depth.as_u64().ok_or("its depth is no number")?;
        return Ok((depth == 0).then_some(range));
    }
    for name in ["description", "kind", "state"] {
        if let Some(word) = area.get(name).and_then(Value::as_str) {
            return Ok(is_changed(word)?.then_some(range));
        }
    }
    Ok(Some(range))
}

/// The XML of `thin_delta`, whose blocks are counted in the pool's block size.
fn thin_delta(text: &str) -> Parsed {
    let attribute = |tag: &str, name: &str| {
        let at = tag.find(&format!("{name}=\""))? + name.len() + 2;
        number(tag[at..].split('"').next()?)
    };
    let mut block_bytes = None;
    let mut ranges = Vec::new();
    for tag in text.split('<').skip(1) {
        let name = tag.split(|c: char| c.is_whitespace() || c == '>' || c == '/').next();
        match name.unwrap_or_default() {
            "superblock" => {
                let sectors = attribute(tag, "data_block_size").ok_or("it has no block size")?;
                block_bytes = Some(sectors.checked_mul(512).ok_or("its blocks are too large")?);
            }
            "same" => {}
            "different" | "left_only" | "right_only" => {
                let size = block_bytes.ok_or("it has no block size")?;
                let numbers = (attribute(tag, "begin"), attribute(tag, "length"));
                let (Some(begin), Some(length)) = numbers else {
                    return Err(format!("<{} has no begin or length", tag.trim()));
                };
                let start = begin.checked_mul(size).ok_or("a range lies beyond 2^64")?;
                ranges.push(range(start, length.checked_mul(size).ok_or("a range is too long")?)?);
            }
            "diff" | "" | "?xml" | "!--" => {}
            other => return Err(format!("it has a tag {other:?}")),
        }
    }
    match block_bytes {
        Some(_) => Ok(ranges),
        None => Err("it is no output of thin_delta".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], granularity: Option<u64>) -> Result<Vec<Range<u64>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        std::fs::write(&path, bytes).unwrap();
        read_changes(&path, granularity)
    }

    fn ranges(pairs: &[(u64, u64)]) -> Vec<Range<u64>> {
        pairs.iter().map(|(start, end)| *start..*end).collect()
    }

    #[test]
    fn what_programs_print() {
        let expected = ranges(&[(0, 65_536), (131_072, 262_144)]);
        let thin = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="9">
            <diff left="1" right="2">
              <different begin="0" length="1"/> <same begin="1" length="1"/>
              <left_only begin="2" length="1"/><right_only begin="3" length="1"/>
            </diff></superblock>"#;
        for text in [
            "# a list\n131072 131072 zero\n\n0 0x10000\n65536 65536 same\n",
            "Offset   Length  Type\n0 65536 data\n131072 131072 zero\n",
            r#"[{"offset":0,"length":65536,"exists":"true"},{"offset":131072,"length":131072,"exists":"false"}]"#,
            thin,
        ] {
            assert_eq!(read(text.as_bytes(), None).unwrap(), expected, "{text}");
        }
        assert_eq!(read(&[0b1101, 0], Some(65_536)).unwrap(), expected);
        assert_eq!(read(&[0x80, 1], Some(512)).unwrap(), ranges(&[(3584, 4608)]));
        assert_eq!(read(b"", None).unwrap(), []);
    }

    #[test]
    fn what_is_missing_in_a_map_has_changed() {
        let map = r#"[{"start":0,"length":65536,"depth":0,"present":true,"zero":false,"data":true},
            {"start":65536,"length":65536,"depth":1,"present":true,"zero":false,"data":true},
            {"start":131072,"length":131072,"depth":0,"present":true,"zero":true,"data":false}]"#;
        let dirty = r#"[{"offset":0,"length":65536,"type":1,"description":"dirty"},
            {"offset":65536,"length":65536,"type":0,"description":"clean"},
            {"offset":131072,"length":131072,"type":1,"description":"dirty"}]"#;
        for text in [map, dirty] {
            let expected = ranges(&[(0, 65_536), (131_072, OPEN_END)]);
            assert_eq!(read(text.as_bytes(), None).unwrap(), expected, "{text}");
        }
        let part =
            r#"[{"start":65536,"length":65536,"depth":1},{"start":196608,"length":9,"depth":2}]"#;
        let expected = ranges(&[(0, 65_536), (131_072, 196_608), (196_617, OPEN_END)]);
        assert_eq!(read(part.as_bytes(), None).unwrap(), expected);
    }

    /// The disk has a MiB, or more than anybody told of.
    #[test]
    fn what_no_answer_of_vmware_tells_of_has_changed() {
        let whole = r#"{"startOffset":0,"length":1048576,
            "changedArea":[{"start":0,"length":65536},{"start":131072,"length":131072}]}"#;
        let first =
            r#"{"startOffset":0,"length":131072,"changedArea":[{"start":0,"length":65536}]}"#;
        let second = r#"{"startOffset":131072,"length":917504,
            "changedArea":[{"start":131072,"length":131072}]}"#;
        let behind = (1 << 20, OPEN_END);
        let all = [(0, 65_536), (131_072, 262_144), behind];
        for (text, expected) in [
            (whole.to_string(), &all[..]),
            (format!("[{first},{second}]"), &all),
            (format!("[{second},{first}]"), &all),
            (first.to_string(), &[(0, 65_536), (131_072, OPEN_END)]),
            (format!("[{second}]"), &[(0, 262_144), behind]),
            (r#"{"startOffset":0,"length":1048576}"#.into(), &[behind]),
            (r#"{"startOffset":0,"length":0,"changedArea":[]}"#.into(), &[(0, OPEN_END)]),
        ] {
            assert_eq!(read(text.as_bytes(), None).unwrap(), ranges(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (bytes, granularity, text) in [
            (&b"12"[..], None, "line 1: expected START LENGTH [KIND] in bytes"),
            (b"1 2 maybe", None, "line 1: \"maybe\" is no kind of range"),
            (b"0 1\n1 2 data more", None, "line 2: there are more than three words"),
            (b"9 18446744073709551615", None, "line 1: a range ends beyond 2^64"),
            (b"-1 5", None, "line 1: expected"),
            (b"[{\"start\":1}]", None, "range 0: it has no length"),
            (b"[{\"start\":1,\"length\":2,\"kind\":\"odd\"}]", None, "\"odd\" is no kind"),
            (b"{\"a\":1}", None, "it has no list of ranges"),
            (b"{\"changedArea\":[]}", None, "answer 0: it has no startOffset"),
            (b"{\"startOffset\":0}", None, "answer 0: it has no length"),
            (b"[{\"startOffset\":0,\"length\":9},{}]", None, "answer 1: it has no startOffset"),
            (b"[1,", None, "EOF while parsing"),
            (b"inode 257 file offset 0 len 4096", None, "find-new` does not tell of holes"),
            (b"transid marker was 10", None, "find-new` does not tell of holes"),
            (b"snapshot ./new\nrename ./new/a dest=./new/b", None, "line 2: a step \"rename\""),
            (b"BEGIN record", None, "a package of several streams"),
            (b"<html>", None, "it has a tag \"html\""),
            (b"<diff><different begin=\"0\" length=\"1\"/>", None, "it has no block size"),
            (b"\xff\xfe", None, "it is no text; a bitmap needs --granularity"),
            (b"\x01", Some(1000), "a granularity of 1000 is no power of two"),
            (b"\x01", Some(256), "a granularity of 256 is no power of two"),
            (b"\x03", Some(1 << 63), "a range ends beyond 2^64"),
            (b"\x04", Some(1 << 63), "it is too long"),
        ] {
            let error = read(bytes, granularity).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
            assert!(error.full_text().contains(text), "{text}: {error:?}");
        }
    }
}
