//! Where a differencing VHD image says that its parent is, and what of that means something here.
//!
//! Invariant: a name of Windows is a path below the image's folder or beside it, or a file name;
//! never an absolute path of this host.

use super::header::{bad, read, u32_at, u64_at};
use crate::error::Result;
use crate::source::DiskSource;

/// Longest path of Windows is 32 767 units of UTF-16.
const NAME_BYTES_MAX: u32 = 65_534;
const LOCATORS: usize = 8;
/// Offset of the entries in the header, and bytes of one.
const LOCATORS_AT: usize = 576;
const LOCATOR_BYTES: usize = 24;
/// The parent's name in the header itself: offset and bytes.
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;

/// The names under which the parent may be: relative paths, then absolute ones, then the name of
/// the file alone.
pub(super) fn parent_names(file: &dyn DiskSource, header: &[u8]) -> Result<Vec<String>> {
    let (mut relative, mut absolute) = (Vec::new(), Vec::new());
    for number in 0..LOCATORS {
        let entry = &header[LOCATORS_AT + number * LOCATOR_BYTES..][..LOCATOR_BYTES];
        let (code, bytes, at) = (&entry[..4], u32_at(entry, 8), u64_at(entry, 16));
        let is_known = matches!(code, b"W2ru" | b"W2ku" | b"MacX");
        if !is_known || bytes == 0 {
            continue;
        }
        if bytes > NAME_BYTES_MAX {
            return Err(bad(file, format!("a parent locator has {bytes} bytes")));
        }
        let name = read(file, at, bytes as usize, "a parent locator")?;
        match code {
            b"W2ru" => relative.extend(from_windows(&utf16(&name, u16::from_le_bytes))),
            b"W2ku" => absolute.extend(from_windows(&utf16(&name, u16::from_le_bytes))),
            _ => absolute.extend(from_url(&name)),
        }
    }
    let name = utf16(&header[NAME_AT..][..NAME_BYTES], u16::from_be_bytes);
    let beside = from_windows(&name).map(|name| last_part(&name).to_string());
    let mut names: Vec<String> = Vec::new();
    for name in relative.into_iter().chain(absolute).chain(beside) {
        if is_file(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(bad(file, "it does not name its parent"));
    }
    Ok(names)
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// False for a path that can only be a folder's.
fn is_file(name: &str) -> bool {
    !matches!(last_part(name), "" | "." | "..")
}

/// Text up to its first zero.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// What a path of Windows is here: a relative one with its slashes turned; of one with a drive, a
/// server or a root only the file's name. Nothing if it names no file.
pub(in crate::source) fn from_windows(path: &str) -> Option<String> {
    let path = path.replace('\\', "/");
    let is_absolute = path.starts_with('/') || path.contains(':');
    let name = if is_absolute { last_part(&path) } else { path.as_str() };
    is_file(name).then(|| name.to_string())
}

/// The path of a file URL, as Mac OS X and XenServer write it: `file:///a/b`, `file://./b`.
fn from_url(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let path = bytes[..end].strip_prefix(b"file://")?;
    let path = path.strip_prefix(b"localhost").unwrap_or(path);
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let byte = digits.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let (byte, used) = if *first == b'%' { (byte?, 3) } else { (*first, 1) };
        decoded.push(byte);
        rest = &rest[used..];
    }
    String::from_utf8(decoded).ok().filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_windows() {
        for (path, name) in [
            (r".\parent.vhd", Some("./parent.vhd")),
            (r"..\base\parent.vhd", Some("../base/parent.vhd")),
            ("parent.vhd", Some("parent.vhd")),
            (r"C:\disks\parent.vhd", Some("parent.vhd")),
            (r"c:parent.vhd", Some("c:parent.vhd")),
            (r"\etc\shadow", Some("shadow")),
            ("/etc/shadow", Some("shadow")),
            (r"\\?\C:\a\b.vhdx", Some("b.vhdx")),
            (r"\\server\share\b.vhd", Some("b.vhd")),
            (r"C:\", None),
            (r"..", None),
            (r"..\x\.", None),
            ("", None),
        ] {
            assert_eq!(from_windows(path).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn paths_of_urls() {
        for (url, path) in [
            ("file:///disks/a%20b.vhd\0junk", Some("/disks/a b.vhd")),
            ("file://localhost/a.vhd", Some("/a.vhd")),
            ("file://./a.vhd", Some("./a.vhd")),
            ("file://", None),
            ("http://x/a.vhd", None),
            ("file:///a%2", None),
            ("file:///a%zz", None),
            ("file:///a%ff", None),
        ] {
            assert_eq!(from_url(url.as_bytes()).as_deref(), path, "{url}");
        }
    }
}
