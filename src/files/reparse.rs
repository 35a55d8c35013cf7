//! Links and other special files of NTFS: reparse points, and the small files that ntfs-3g makes.

use super::{Kind, Name};

/// What a reparse point says.
pub enum Reparse {
    /// The file is a link, and where it points to.
    Link(Name),
    /// It is a device, a pipe or a socket of Linux.
    Special(char),
    /// It is a file whose content does not lie in its data, and why.
    Elsewhere(String),
}

/// Reads a reparse point.
pub fn parse_reparse(bytes: &[u8]) -> Reparse {
    let tag = bytes.first_chunk::<4>().map_or(0, |tag| u32::from_le_bytes(*tag));
    let content = bytes.get(8..).unwrap_or_default();
    match tag {
        0xa000_000c => windows_link(content, 12),
        0xa000_0003 => windows_link(content, 8),
        // Of the Windows Subsystem for Linux: a version, then UTF-8.
        0xa000_001d => Reparse::Link(Name(content.get(4..).unwrap_or_default().to_vec())),
        0x8000_0023 => Reparse::Special('s'),
        0x8000_0024 => Reparse::Special('p'),
        0x8000_0025 => Reparse::Special('c'),
        0x8000_0026 => Reparse::Special('b'),
        0x8000_0017 => elsewhere("it is compressed by Windows, which cannot be read"),
        0x8000_0013 => elsewhere("it is deduplicated by Windows, which cannot be read"),
        tag => Reparse::Elsewhere(format!("its content is kept elsewhere (reparse tag {tag:#x})")),
    }
}

fn elsewhere(why: &str) -> Reparse {
    Reparse::Elsewhere(why.to_string())
}

/// Offsets and lengths of two names, flags in some, then the names from `start` on: the first is
/// for the system, the second for people, and may be missing.
fn windows_link(content: &[u8], start: usize) -> Reparse {
    let number = |at: usize| {
        let bytes = content.get(at..).and_then(|rest| rest.first_chunk::<2>());
        bytes.map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)))
    };
    let name = |at: usize| {
        let (offset, bytes) = (number(at), number(at + 2));
        let found = content.get(start + offset..).and_then(|rest| rest.get(..bytes));
        wtf8(units(found.unwrap_or_default()))
    };
    let for_people = name(4);
    let target = if for_people.is_empty() { name(0) } else { for_people };
    if target.is_empty() {
        elsewhere("its link points nowhere")
    } else {
        Reparse::Link(Name(target))
    }
}

/// What a small system file is by its mark, and where it points to.
pub fn interix(content: &[u8]) -> Option<(Kind, Option<Name>)> {
    if let Some(target) = content.strip_prefix(b"IntxLNK\x01") {
        return Some((Kind::Link, Some(Name(wtf8(units(target))))));
    }
    match content.get(..8)? {
        b"IntxCHR\0" => Some((Kind::Special('c'), None)),
        b"IntxBLK\0" => Some((Kind::Special('b'), None)),
        _ => None,
    }
}

fn units(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// UTF-16 as bytes; half a surrogate pair becomes three bytes, as UTF-8 would have it without its
/// rules, so that no two names become one.
pub fn wtf8(units: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(character) => bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let half = half.unpaired_surrogate();
                let six = |shift: u16| 0x80 | (half >> shift & 0x3f) as u8;
                bytes.extend([0xe0 | (half >> 12) as u8, six(6), six(0)]);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_pairs_stay_apart() {
        assert_eq!(wtf8("grün 🦀".encode_utf16()), "grün 🦀".as_bytes());
        assert_eq!(wtf8([0x41, 0xd800, 0x42].into_iter()), b"A\xed\xa0\x80B");
        assert_eq!(wtf8([0xdfff].into_iter()), b"\xed\xbf\xbf");
    }

    #[test]
    fn lies_about_places_point_nowhere() {
        for bytes in
            [&[][..], &[0x0c, 0, 0, 0xa0], &[0x0c, 0, 0, 0xa0, 0, 0, 0, 0, 255, 255, 255, 255]]
        {
            assert!(!matches!(parse_reparse(bytes), Reparse::Link(_)), "{bytes:?}");
        }
        let mut link = vec![0x0c, 0, 0, 0xa0, 0, 0, 0, 0];
        link.extend([0_u8, 0, 4, 0, 4, 0, 2, 0, 0, 0, 0, 0]);
        link.extend("abc".encode_utf16().flat_map(u16::to_le_bytes));
        assert!(matches!(parse_reparse(&link), Reparse::Link(Name(name)) if name == b"c"));
    }
}
