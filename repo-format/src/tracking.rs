//! How a disk was read with the help of a hint (spec/36-manifest.md, "Tracking"): extension 1 of a
//! disk's record. Information: no byte of the disk depends on it.

use crate::error::Result;
use crate::manifest::Extension;
use crate::record;
use serde::{Deserialize, Serialize};

/// The extension's number; below 0x8000, so who does not know it ignores it.
pub const EXTENSION_TRACKING: u16 = 1;

/// What a backup took over on somebody's word, and what it looked at all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// Who said what had changed; empty if nobody did.
    pub hint: String,
    /// Why that did not count, so that the disk was read in full; empty if it did.
    pub refused: String,
    /// Bytes that were taken over without reading.
    pub inherited_bytes: u64,
    /// Bytes that were said to be unchanged and were read at random places all the same.
    pub sampled_bytes: u64,
    /// Bytes that were said to be unchanged and were read in turn.
    pub reread_bytes: u64,
    /// Where the next part to be read in turn begins.
    pub position: u64,
    /// When the point was made at which this round of reading in turn began, in nanoseconds since
    /// 1970.
    pub round_unix_ns: i64,
    /// Every byte was read from its source at a point of that time or later, in nanoseconds since
    /// 1970.
    pub proven_unix_ns: i64,
}

impl Tracking {
    /// As an extension of a disk's record.
    ///
    /// # Errors
    /// R-1 for texts that are too long.
    pub fn to_extension(&self) -> Result<Extension> {
        Ok(Extension { number: EXTENSION_TRACKING, value: record::encode(self)? })
    }

    /// The one among these; nothing if there is none, or one that a later version wrote.
    pub fn find(extensions: &[Extension]) -> Option<Tracking> {
        let found = extensions.iter().find(|one| one.number == EXTENSION_TRACKING)?;
        record::decode(&found.value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_what_is_none_is_ignored() {
        let tracking = Tracking {
            hint: "changed.json".into(),
            inherited_bytes: 1 << 40,
            proven_unix_ns: -5,
            ..Tracking::default()
        };
        let extension = tracking.to_extension().unwrap();
        let other = Extension { number: 2, value: vec![1] };
        assert_eq!(Tracking::find(&[other.clone(), extension]), Some(tracking));
        assert_eq!(Tracking::find(std::slice::from_ref(&other)), None);
        let broken = Extension { number: EXTENSION_TRACKING, value: vec![9] };
        assert_eq!(Tracking::find(&[broken]), None);
    }
}
