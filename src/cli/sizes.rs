//! Sizes and durations for people.

use crate::error::{Error, ErrorKind, Result};

/// Prints a number of bytes in IEC units with three digits.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, value) if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        (_, value) if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Reads a size: digits with an optional unit K, M, G, T (also KiB, ...), powers of 1024.
///
/// # Errors
/// `Usage`.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || {
        let text = format!("cannot read the size {text:?}: expected such as 64KiB");
        Error::new(ErrorKind::Usage, text)
    };
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Prints seconds as `1.4 s`, `3 min 20 s` or `2 h 5 min`.
pub fn format_seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Prints bytes a second as `412 MiB/s`.
pub fn format_rate(bytes_per_second: f64) -> String {
    format!("{}/s", format_bytes(bytes_per_second as u64))
}

/// Prints seconds with three digits, also few of them: `0.35 ms`, `12.4 ms`, `1.21 s`.
pub fn format_brief(seconds: f64) -> String {
    const UNITS: [(&str, f64); 3] = [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let fits = |(_, unit): &&(&str, f64)| seconds < 999.5 * unit;
    let (name, unit) = UNITS.iter().find(fits).unwrap_or(&UNITS[2]);
    let value = seconds / unit;
    match value {
        _ if value < 9.995 => format!("{value:.2} {name}"),
        _ if value < 99.95 => format!("{value:.1} {name}"),
        _ => format!("{value:.0} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_printed() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(999), "999 B");
        assert_eq!(format_bytes(1000), "0.98 KiB");
        assert_eq!(format_bytes(64 << 10), "64.0 KiB");
        assert_eq!(format_bytes(12 << 30), "12.0 GiB");
        assert_eq!(format_rate(1.5 * 1024.0 * 1024.0), "1.50 MiB/s");
        assert_eq!(format_brief(0.000_35), "350 µs");
        assert_eq!(format_brief(0.012_36), "12.4 ms");
        assert_eq!(format_brief(1.206), "1.21 s");
        assert_eq!(parse_bytes("64KiB").unwrap(), 65536);
        assert_eq!(parse_bytes("64 k").unwrap(), 65536);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        for bad in ["", "KiB", "64Q", "-1", "99999999999999999999", "999999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
