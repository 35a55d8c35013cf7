//! The descriptor of a VMDK image: text that is a file of its own or stands in a sparse extent
//! (VMware, Virtual Disk Format 5.0, "The Descriptor File").
//!
//! Invariant: every line is understood or refused, except for settings that do not change what the
//! disk holds; a size that is handed on fits a disk.

use super::bad;
use crate::error::Result;
use crate::source::{DiskSource, SECTOR_BYTES};

/// How a descriptor begins, in letters of any size.
pub const SIGNATURE: &[u8] = b"# Disk DescriptorFile";

/// Longest descriptor. One of the most extents has a quarter of it.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;
/// Most extents of an image: 8 TB in pieces of 2 GB, the largest that VMware splits.
const EXTENTS_MAX: usize = 4096;
/// The `parentCID` of an image without a parent.
const NO_PARENT: u32 = u32::MAX;

/// What a descriptor says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The content id: another number after the first write behind an open of the disk; 0 if it is
    /// encrypted.
    pub cid: u32,
    /// What shows through where nothing is allocated.
    pub parent: Option<Parent>,
    /// The pieces of the disk, in its order; at least one, except of an encrypted disk.
    pub extents: Vec<ExtentLine>,
    /// True if the contents are encrypted, and often the rest of the descriptor too.
    pub is_encrypted: bool,
}

/// The parent of a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The content id that the parent had when the delta was made.
    pub cid: u32,
    /// Its file's name.
    pub name: String,
}

/// A piece of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    /// Bytes of the disk, a multiple of 512 and not 0.
    pub bytes: u64,
    /// Where they are.
    pub store: Store,
}

/// Where a piece of the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// Nowhere: it is zeros.
    Zero,
    /// In a file as it is.
    Flat {
        /// The file's name.
        name: String,
        /// Where in the file it begins, in bytes.
        at: u64,
    },
    /// In a file with grain tables.
    Sparse {
        /// The file's name.
        name: String,
    },
}

/// The settings that matter, as far as they were met.
#[derive(Default)]
struct Settings {
    cid: Option<u32>,
    parent_cid: Option<u32>,
    parent_name: Option<String>,
}

impl Descriptor {
    /// Reads `bytes` bytes of a descriptor at `at` of a file.
    ///
    /// # Errors
    /// `Source` if it is too long, not within the file, or says what is not known.
    pub fn read(file: &dyn DiskSource, at: u64, bytes: u64) -> Result<Descriptor> {
        if bytes > DESCRIPTOR_BYTES_MAX {
            return Err(bad(file, format!("its descriptor has {bytes} bytes")));
        }
        let text = super::read(file, at, bytes as usize, "the descriptor")?;
        Descriptor::parse(&text).map_err(|text| bad(file, text))
    }

    /// Reads the text of a descriptor, which ends with the first zero byte if there is one.
    fn parse(text: &[u8]) -> Result<Descriptor, String> {
        if !begins_as_descriptor(text) {
            return Err("it has no descriptor".into());
        }
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let mut descriptor = Descriptor::default();
        let mut settings = Settings::default();
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: String| format!("line {number} of its descriptor: {why}");
            if let Some(extent) = parse_extent(line).map_err(wrong)? {
                if descriptor.extents.len() == EXTENTS_MAX {
                    return Err(format!("it has more than {EXTENTS_MAX} extents"));
                }
                descriptor.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err(wrong("it is neither a setting nor an extent".into()));
            };
            let (key, value) = (key.trim().to_ascii_lowercase(), unquoted(value));
            // `encryption.keySafe`, `encryption.data`, `encryptionKeys`.
            descriptor.is_encrypted |= key.starts_with("encryption");
            settings.take(&key, value).map_err(wrong)?;
        }
        if descriptor.is_encrypted {
            // The rest may be inside of what is encrypted.
            descriptor.parent = settings.parent().ok().flatten();
            return Ok(descriptor);
        }
        descriptor.cid = settings.cid.ok_or("it has no CID")?;
        descriptor.parent = settings.parent()?;
        descriptor.check_size()?;
        Ok(descriptor)
    }

    fn check_size(&self) -> Result<(), String> {
        if self.extents.is_empty() {
            return Err("its descriptor names no extent".into());
        }
        let mut sizes = self.extents.iter().map(|extent| extent.bytes);
        let sum = sizes.try_fold(0_u64, |sum, bytes| sum.checked_add(bytes));
        sum.filter(|sum| *sum <= i64::MAX as u64).map(|_| ()).ok_or_else(|| {
            let count = self.extents.len();
            format!("its {count} extents are larger than any disk")
        })
    }
}

impl Settings {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || {
            let number = u32::from_str_radix(value, 16);
            number.map_err(|_| format!("{} is no content id", value.escape_debug()))
        };
        let is_new = match key {
            "cid" => self.cid.replace(number()?).is_none(),
            "parentcid" => self.parent_cid.replace(number()?).is_none(),
            "parentfilenamehint" => self.parent_name.replace(checked_name(value)?).is_none(),
            _ => true,
        };
        // With two of them, programs would not agree on which counts.
        if is_new { Ok(()) } else { Err(format!("a second {key}")) }
    }

    fn parent(self) -> Result<Option<Parent>, String> {
        match (self.parent_cid.unwrap_or(NO_PARENT), self.parent_name) {
            (NO_PARENT, None) => Ok(None),
            (NO_PARENT, Some(name)) => {
                let name = name.escape_debug();
                Err(format!("it names its parent {name}, but not the parent's CID"))
            }
            (cid, None) => Err(format!("it does not name its parent, which has CID {cid:08x}")),
            (cid, Some(name)) => Ok(Some(Parent { cid, name })),
        }
    }
}

/// True if these bytes are the beginning of a descriptor.
pub(in crate::source) fn begins_as_descriptor(bytes: &[u8]) -> bool {
    bytes.get(..SIGNATURE.len()).is_some_and(|start| start.eq_ignore_ascii_case(SIGNATURE))
}

/// Reads a line such as `RW 4192256 FLAT "disk-flat.vmdk" 0`; nothing if it is no extent's.
fn parse_extent(line: &str) -> Result<Option<ExtentLine>, String> {
    let (access, rest) = next_word(line);
    let is_access = |name: &str| access.eq_ignore_ascii_case(name);
    if is_access("NOACCESS") {
        return Err("an extent that must not be read".into());
    }
    if !is_access("RW") && !is_access("RDONLY") {
        return Ok(None);
    }
    let (sectors, rest) = next_word(rest);
    let bytes = sectors.parse().ok().and_then(|sectors: u64| sectors.checked_mul(SECTOR_BYTES));
    let bytes = bytes.filter(|bytes| *bytes != 0 && *bytes <= i64::MAX as u64);
    let bytes = bytes.ok_or_else(|| format!("an extent of {} sectors", sectors.escape_debug()))?;
    let (kind, rest) = next_word(rest);
    let store = match kind.to_ascii_uppercase().as_str() {
        "ZERO" => Store::Zero,
        "FLAT" | "VMFS" => {
            let (name, at) = parse_place(rest)?;
            Store::Flat { name, at }
        }
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" => match parse_place(rest)? {
            (name, 0) => Store::Sparse { name },
            (_, at) => return Err(format!("a sparse extent behind {at} bytes of its file")),
        },
        _ => return Err(format!("extents of type {} are not known", kind.escape_debug())),
    };
    Ok(Some(ExtentLine { bytes, store }))
}

/// Reads `"name"` or `"name" sectors`: the name and the bytes.
fn parse_place(text: &str) -> Result<(String, u64), String> {
    let quoted = text.strip_prefix('"').and_then(|text| text.split_once('"'));
    let (name, rest) = quoted.ok_or("an extent without a file name in quotes")?;
    let rest = rest.trim();
    let sectors = if rest.is_empty() { Ok(0) } else { rest.parse::<u64>() };
    let at = sectors.ok().and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
    let at = at.ok_or_else(|| format!("an extent at sector {}", rest.escape_debug()))?;
    Ok((checked_name(name)?, at))
}

fn checked_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(char::REPLACEMENT_CHARACTER) {
        return Err(format!("{name:?} is no file name"));
    }
    Ok(name.to_string())
}

fn next_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

fn unquoted(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}
