//! What a writer needs that may not read: sealing to a public key and signing
//! (spec/21-writers.md).
//!
//! Sealing is HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! ChaCha20-Poly1305, one message for each encapsulation. Signatures are Ed25519 (RFC 8032), over
//! 32 bytes that derive_key makes of what is signed.
//!
//! Invariant: an encapsulation is made of 32 fresh random bytes and seals one message.

use crate::crypto::{Secret, TAG_BYTES, context};
use crate::error::{Result, unauthentic};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use std::convert::Infallible;
use zeroize::Zeroizing;

/// Bytes of a public key, and of an encapsulated key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Public = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Hands out the random bytes that the caller brought: this crate has none of its own.
struct Given<'a>(&'a [u8; 32]);

impl TryRng for Given<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The library asks once, for the 32 bytes that a key pair is derived from.
    fn try_fill_bytes(&mut self, target: &mut [u8]) -> std::result::Result<(), Infallible> {
        debug_assert_eq!(target.len(), self.0.len());
        for (byte, given) in target.iter_mut().zip(self.0) {
            *byte = *given;
        }
        Ok(())
    }
}

impl TryCryptoRng for Given<'_> {}

fn private(key: &Secret) -> Option<Private> {
    Private::from_bytes(key.expose()).ok()
}

/// The X25519 public key of a private one.
pub fn public_key(key: &Secret) -> [u8; PUBLIC_KEY_BYTES] {
    let mut bytes = [0; PUBLIC_KEY_BYTES];
    if let Some(private) = private(key) {
        bytes.copy_from_slice(&X25519HkdfSha256::sk_to_pk(&private).to_bytes());
    }
    bytes
}

/// Seals `plaintext` to `public`. `random` must be fresh; returns the encapsulated key and the
/// sealed bytes, 16 longer than the plaintext.
///
/// # Errors
/// `rule` for a public key that gives no secret, such as one of small order.
pub fn seal_to(
    public: &[u8; PUBLIC_KEY_BYTES],
    random: &[u8; 32],
    additional: &[u8],
    plaintext: &[u8],
    rule: &'static str,
) -> Result<([u8; PUBLIC_KEY_BYTES], Vec<u8>)> {
    let refuse = |_| unauthentic(rule, "the repository's public key cannot be sealed to");
    let recipient = Public::from_bytes(public).map_err(refuse)?;
    let info = context::SEALED_TO_PUBLIC_KEY.as_bytes();
    let (encapsulated, sealed) =
        hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &recipient,
            info,
            plaintext,
            additional,
            &mut Given(random),
        )
        .map_err(refuse)?;
    let mut bytes = [0; PUBLIC_KEY_BYTES];
    bytes.copy_from_slice(&encapsulated.to_bytes());
    Ok((bytes, sealed))
}

/// Opens what [`seal_to`] made.
///
/// # Errors
/// `rule` if it does not authenticate.
pub fn open_from(
    key: &Secret,
    encapsulated: &[u8; PUBLIC_KEY_BYTES],
    additional: &[u8],
    sealed: &[u8],
    rule: &'static str,
) -> Result<Zeroizing<Vec<u8>>> {
    let refuse = || unauthentic(rule, "authentication failed");
    if sealed.len() < TAG_BYTES {
        return Err(unauthentic(rule, "authentication failed: is shorter than its tag"));
    }
    let private = private(key).ok_or_else(refuse)?;
    let encapsulated = Encapsulated::from_bytes(encapsulated).map_err(|_| refuse())?;
    let info = context::SEALED_TO_PUBLIC_KEY.as_bytes();
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        info,
        sealed,
        additional,
    )
    .map(Zeroizing::new)
    .map_err(|_| refuse())
}

/// The Ed25519 public key of a 32-byte seed.
pub fn verifying_key(seed: &Secret) -> [u8; PUBLIC_KEY_BYTES] {
    SigningKey::from_bytes(seed.expose()).verifying_key().to_bytes()
}

/// What is signed: 32 bytes that stand for all of `parts`, one after another.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context::WRITER_SIGNATURE);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Signs `parts`, one after another.
pub fn sign(seed: &Secret, parts: &[&[u8]]) -> [u8; SIGNATURE_BYTES] {
    SigningKey::from_bytes(seed.expose()).sign(&digest(parts)).to_bytes()
}

/// True if `signature` is one of `parts` by the owner of `public`, whose encoding has to be the
/// only one of its point.
pub fn is_signed(
    public: &[u8; PUBLIC_KEY_BYTES],
    parts: &[&[u8]],
    signature: &[u8; SIGNATURE_BYTES],
) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(public) else { return false };
    key.to_edwards().compress().as_bytes() == public
        && key.verify_strict(&digest(parts), &Signature::from_bytes(signature)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_private_key_opens_and_every_bit_counts() {
        let key = Secret::new([3; 32]);
        let (encapsulated, sealed) =
            seal_to(&public_key(&key), &[9; 32], b"about", b"plain", "O-5").unwrap();
        let open = |key: &Secret, additional: &[u8], sealed: &[u8]| {
            open_from(key, &encapsulated, additional, sealed, "O-5").map(|plain| plain.to_vec())
        };
        assert_eq!(open(&key, b"about", &sealed).unwrap(), b"plain");
        assert!(open(&Secret::new([4; 32]), b"about", &sealed).is_err());
        assert!(open(&key, b"About", &sealed).is_err());
        assert!(open(&key, b"about", &sealed[..9]).is_err());
        for position in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert!(open(&key, b"about", &changed).is_err());
        }
        let other = seal_to(&public_key(&key), &[8; 32], b"about", b"plain", "O-5").unwrap();
        assert_ne!(other.0, encapsulated);
    }

    #[test]
    fn a_key_that_gives_no_secret_is_refused() {
        assert!(seal_to(&[0; 32], &[9; 32], b"about", b"plain", "O-5").is_err());
        assert!(open_from(&Secret::new([3; 32]), &[0; 32], b"", &[0; 40], "O-5").is_err());
    }

    #[test]
    fn a_signature_fits_its_writer_and_its_bytes() {
        let seed = Secret::new([5; 32]);
        let public = verifying_key(&seed);
        let signature = sign(&seed, &[b"one", b"two"]);
        assert!(is_signed(&public, &[b"onetwo"], &signature));
        assert!(!is_signed(&public, &[b"onetwO"], &signature));
        assert!(!is_signed(&verifying_key(&Secret::new([6; 32])), &[b"onetwo"], &signature));
        assert!(!is_signed(&[0; 32], &[b"onetwo"], &signature));
        // The point with y = 3 a second time, as 3 + p: nobody has its key.
        let mut again = [255; 32];
        (again[0], again[31]) = (0xf0, 0x7f);
        assert!(VerifyingKey::from_bytes(&again).is_ok());
        assert!(!is_signed(&again, &[b"onetwo"], &signature));
    }
}
