//! Object names (spec/10-names.md): the leaf of each name below its folder.
//!
//! Names use lower-case hexadecimal digits, `-` and `.`, so they are safe on every storage and
//! cannot leave their folder. A name that does not fit the grammar is not part of the repository.

use crate::id::{LeaseId, PointId, from_hex, to_hex};

/// Leaf of a config: eight hexadecimal digits of the generation, `-`, 32 random digits.
pub fn config(generation: u32, random: &[u8; 16]) -> String {
    format!("{generation:08x}-{}", to_hex(random))
}

/// The generation in a config's leaf.
pub fn parse_config(leaf: &str) -> Option<u32> {
    let (generation, random) = leaf.split_once('-')?;
    from_hex::<16>(random)?;
    Some(u32::from_be_bytes(from_hex(generation)?))
}

/// Leaf of a point's `ok`.
pub fn point_ok(point: PointId) -> String {
    format!("{point}.ok")
}

/// What a leaf in `points/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointName {
    /// A manifest.
    Manifest(PointId),
    /// The `ok` that makes a manifest a point.
    Ok(PointId),
}

/// Reads a leaf in `points/`.
pub fn parse_point(leaf: &str) -> Option<PointName> {
    match leaf.strip_suffix(".ok") {
        Some(id) => PointId::from_hex(id).map(PointName::Ok),
        None => PointId::from_hex(leaf).map(PointName::Manifest),
    }
}

/// Leaf of a note on a point.
pub fn note(point: PointId, random: &[u8; 16]) -> String {
    format!("{point}-{}", to_hex(random))
}

/// The point in a note's leaf.
pub fn parse_note(leaf: &str) -> Option<PointId> {
    let (point, random) = leaf.split_once('-')?;
    from_hex::<16>(random)?;
    PointId::from_hex(point)
}

/// Leaf of a heartbeat, numbered from 1.
pub fn heartbeat(lease: LeaseId, number: u64) -> String {
    format!("{lease}.{number}")
}

/// The lease in a leaf in `leases/`, and the number if it is a heartbeat.
pub fn parse_lease(leaf: &str) -> Option<(LeaseId, Option<u64>)> {
    match leaf.split_once('.') {
        None => Some((LeaseId::from_hex(leaf)?, None)),
        Some((lease, digits)) => {
            let number: u64 = digits.parse().ok()?;
            // One number has one name: no leading zeros or signs.
            (number > 0 && number.to_string() == digits).then_some(())?;
            Some((LeaseId::from_hex(lease)?, Some(number)))
        }
    }
}

/// Leaf of a condemned list.
pub fn condemned(random: &[u8; 16]) -> String {
    to_hex(random)
}

/// Leaf of a record of a writer.
pub fn writer(random: &[u8; 16]) -> String {
    to_hex(random)
}

/// True for a leaf in `writers/`.
pub fn is_writer(leaf: &str) -> bool {
    from_hex::<16>(leaf).is_some()
}

/// The only leaf of the instance object.
pub const INSTANCE: &str = "instance";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        assert_eq!(config(26, &[0xab; 16]), format!("0000001a-{}", "ab".repeat(16)));
        assert_eq!(parse_config(&config(26, &[0xab; 16])), Some(26));
        assert_eq!(parse_config("26"), None);
        let point = PointId([7; 32]);
        assert_eq!(parse_point(&point.to_hex()), Some(PointName::Manifest(point)));
        assert_eq!(parse_point(&point_ok(point)), Some(PointName::Ok(point)));
        assert_eq!(parse_point("07.ok"), None);
        assert_eq!(parse_note(&note(point, &[1; 16])), Some(point));
        let lease = LeaseId([9; 16]);
        assert_eq!(parse_lease(&lease.to_hex()), Some((lease, None)));
        assert_eq!(parse_lease(&heartbeat(lease, 12)), Some((lease, Some(12))));
        for bad in ["0", "01", "+1", "", "1.1"] {
            assert_eq!(parse_lease(&format!("{lease}.{bad}")), None, "{bad}");
        }
    }
}
