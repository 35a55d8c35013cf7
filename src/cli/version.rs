//! `--version`, and with `-v` which vector paths this run uses.

use super::output::line;
use crate::error::Result;
use diskvault_format::limits::FORMAT_VERSION;

/// Prints the version.
///
/// # Errors
/// Fails if nobody reads it.
pub fn print(verbose: bool) -> Result<()> {
    line(crate::PROGRAM)?;
    if !verbose {
        return Ok(());
    }
    line(&format!("format version {FORMAT_VERSION}"))?;
    line(&format!("blake3    {}", blake3_backend()))?;
    line(&format!("chacha20  {}", chacha20_backend()))?;
    line(&format!("zstd      {}", zstd::zstd_safe::version_string()))?;
    line("index     sled 0.34.7 beside sorted runs")
}

/// True for a processor with the AVX-512 that the ciphers can use.
pub fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

/// What BLAKE3 uses here.
#[cfg(target_arch = "x86_64")]
pub fn blake3_backend() -> &'static str {
    if has_avx512() {
        "AVX-512"
    } else if is_x86_feature_detected!("avx2") {
        "AVX2"
    } else if is_x86_feature_detected!("sse4.1") {
        "SSE4.1"
    } else {
        "SSE2"
    }
}

/// What BLAKE3 uses here.
#[cfg(not(target_arch = "x86_64"))]
pub fn blake3_backend() -> &'static str {
    if cfg!(target_arch = "aarch64") { "NEON" } else { "portable" }
}

/// What the cipher uses here.
#[cfg(target_arch = "x86_64")]
pub fn chacha20_backend() -> &'static str {
    if cfg!(chacha20_avx512) && has_avx512() {
        "AVX-512"
    } else if is_x86_feature_detected!("avx2") {
        if has_avx512() {
            "AVX2 (built without --cfg chacha20_avx512, which is 2.5 times as fast here)"
        } else {
            "AVX2"
        }
    } else {
        "SSE2"
    }
}

/// What the cipher uses here.
#[cfg(not(target_arch = "x86_64"))]
pub fn chacha20_backend() -> &'static str {
    "portable or NEON"
}
