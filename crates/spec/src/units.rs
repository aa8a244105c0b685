//! Sizes, times and modes as people write them.

use std::time::Duration;

/// A text that is no size, time or mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUnit {
    /// Not a size.
    #[error("invalid size {text:?}: write a number and a unit, such as 512MiB, 10GiB or 4096")]
    Bytes {
        /// The refused text.
        text: String,
    },
    /// Not a time.
    #[error("invalid time {text:?}: write a number and a unit, such as 500ms, 1s or 2m")]
    Duration {
        /// The refused text.
        text: String,
    },
    /// Not a mode.
    #[error("invalid mode {text:?}: write octal digits, such as 0644")]
    Mode {
        /// The refused text.
        text: String,
    },
}

fn split(text: &str) -> (&str, String) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim().to_ascii_lowercase())
}

/// Reads a size in bytes: `4096`, `8M`, `512MiB`, `10GB` (decimal units are powers of 1000).
///
/// # Errors
/// [`InvalidUnit::Bytes`].
pub fn parse_bytes(text: &str) -> Result<u64, InvalidUnit> {
    let invalid = || InvalidUnit::Bytes { text: text.to_owned() };
    let (number, unit) = split(text);
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(invalid)
}

/// Reads a time: `1s`, `500ms`, `2m`, `1h`, or seconds.
///
/// # Errors
/// [`InvalidUnit::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let invalid = || InvalidUnit::Duration { text: text.to_owned() };
    let (number, unit) = split(text);
    let millis: u64 = match unit.as_str() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(invalid()),
    };
    let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis)).ok_or_else(invalid)?;
    Ok(Duration::from_millis(total))
}

/// Reads permission bits in octal.
///
/// # Errors
/// [`InvalidUnit::Mode`].
pub fn parse_mode(text: &str) -> Result<u32, InvalidUnit> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777 && !digits.starts_with('+'));
    mode.ok_or_else(|| InvalidUnit::Mode { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("8M", 8 << 20), ("512MiB", 512 << 20), ("10GiB", 10 << 30), ("1 kB", 1000)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "10XB", "-1", "1.5G", "99999999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_and_modes() {
        assert_eq!(parse_duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("soon").is_err());
        assert_eq!(parse_mode("0644"), Ok(0o644));
        assert_eq!(parse_mode("022"), Ok(0o22));
        assert!(parse_mode("0999").is_err() && parse_mode("77777").is_err());
    }
}
