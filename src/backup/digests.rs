//! Digests of whole disks and streams: BLAKE3 where the map cannot give it, and the standard
//! ones a user asks for.
//!
//! Invariant: the value is what `b3sum`, `sha256sum`, `sha1sum` or `md5sum` print.

use crate::error::{Error, ErrorKind, Result};
use sha2::Digest;

/// A digest a user may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestKind {
    /// SHA-256.
    Sha256,
    /// SHA-1, for comparison with old records; no protection against forgery.
    Sha1,
    /// MD5, for comparison with old records; no protection against forgery.
    Md5,
}

impl DigestKind {
    /// Lower-case name, as in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DigestKind::Sha256 => "sha256",
            DigestKind::Sha1 => "sha1",
            DigestKind::Md5 => "md5",
        }
    }

    /// The digest called `name`.
    ///
    /// # Errors
    /// `Usage`.
    pub fn from_name(name: &str) -> Result<DigestKind> {
        let all = [DigestKind::Sha256, DigestKind::Sha1, DigestKind::Md5];
        all.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let text = format!("cannot compute a digest called {}", name.escape_debug());
            Error::new(ErrorKind::Usage, text).hint("sha256, sha1 and md5 are known")
        })
    }
}

enum Hasher {
    Sha256(sha2::Sha256),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
}

impl Hasher {
    fn new(kind: DigestKind) -> Hasher {
        match kind {
            DigestKind::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            DigestKind::Sha1 => Hasher::Sha1(sha1::Sha1::new()),
            DigestKind::Md5 => Hasher::Md5(md5::Md5::new()),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(data),
            Hasher::Sha1(hasher) => hasher.update(data),
            Hasher::Md5(hasher) => hasher.update(data),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha1(hasher) => hasher.finalize().to_vec(),
            Hasher::Md5(hasher) => hasher.finalize().to_vec(),
        }
    }
}

/// Several digests of one byte string, computed as it passes.
pub struct Digests {
    blake3: Option<blake3::Hasher>,
    others: Vec<(DigestKind, Hasher)>,
}

/// The values of [`Digests`].
pub struct DigestValues {
    /// BLAKE3, if it was asked for.
    pub blake3: Option<[u8; 32]>,
    /// Name and value of the others.
    pub others: Vec<(String, Vec<u8>)>,
}

impl Digests {
    /// Starts the digests; BLAKE3 only if `with_blake3`.
    pub fn new(with_blake3: bool, kinds: &[DigestKind]) -> Digests {
        let mut others: Vec<(DigestKind, Hasher)> = Vec::new();
        for kind in kinds {
            if others.iter().all(|(known, _)| known != kind) {
                others.push((*kind, Hasher::new(*kind)));
            }
        }
        Digests { blake3: with_blake3.then(blake3::Hasher::new), others }
    }

    /// True if nothing is computed, so that callers need not pass the bytes.
    pub fn is_idle(&self) -> bool {
        self.blake3.is_none() && self.others.is_empty()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        if let Some(hasher) = &mut self.blake3 {
            hasher.update(data);
        }
        for (_, hasher) in &mut self.others {
            hasher.update(data);
        }
    }

    /// Adds zeros.
    pub fn update_zeros(&mut self, bytes: u64) {
        static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
        let mut left = if self.is_idle() { 0 } else { bytes };
        while left > 0 {
            let step = left.min(ZEROS.len() as u64);
            self.update(&ZEROS[..step as usize]);
            left -= step;
        }
    }

    /// The values.
    pub fn finish(self) -> DigestValues {
        let blake3 = self.blake3.map(|hasher| *hasher.finalize().as_bytes());
        let value = |(kind, hasher): (DigestKind, Hasher)| (kind.name().into(), hasher.finish());
        DigestValues { blake3, others: self.others.into_iter().map(value).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diskvault_format::id::to_hex;

    #[test]
    fn values_are_the_standard_ones() {
        let kinds = [DigestKind::Sha256, DigestKind::Sha1, DigestKind::Md5, DigestKind::Md5];
        let mut digests = Digests::new(true, &kinds);
        digests.update(b"abc");
        let values = digests.finish();
        assert_eq!(values.blake3, Some(*blake3::hash(b"abc").as_bytes()));
        let found: Vec<String> = values.others.iter().map(|(_, value)| to_hex(value)).collect();
        assert_eq!(
            found,
            [
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
                "900150983cd24fb0d6963f7d28e17f72",
            ]
        );
    }

    #[test]
    fn zeros_count_as_bytes() {
        let mut digests = Digests::new(true, &[]);
        digests.update_zeros(300_000);
        assert_eq!(digests.finish().blake3, Some(*blake3::hash(&[0; 300_000]).as_bytes()));
    }
}
