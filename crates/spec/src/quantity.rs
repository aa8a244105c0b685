//! Sizes and times as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `10GiB`, `512MiB`, `8M`, `4096`. `K`, `M`, `G`, `T` and `KiB`… count by 1024, `KB`… by 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid size: \"{0}\". Write a number of bytes or a number with a unit, such as 4096, 8M, 512MiB or 10GiB.")]
pub struct InvalidByteSize(pub String);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid duration: \"{0}\". Write a number with a unit, such as 500ms, 1s, 2m or 1h.")]
pub struct InvalidDuration(pub String);

/// Splits `1.5GiB` into `1.5` and `GiB`.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `number` (decimal digits, at most one point) times `factor`, exact; `None` if malformed or too large.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let base: u64 = whole.parse().ok()?;
    let mut total = u128::from(base) * u128::from(factor);
    if !fraction.is_empty() {
        let digits: u64 = fraction.parse().ok()?;
        let power = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        total += u128::from(digits) * u128::from(factor) / power;
    }
    u64::try_from(total).ok()
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidByteSize(text.into());
        let (number, unit) = split_unit(text.trim());
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(fail()),
        };
        scale(number, factor).map(Self).ok_or_else(fail)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that shows it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Reads a duration: `500ms`, `1s`, `1.5s`, `2m`, `1h`, `1d`, and `0`.
///
/// # Errors
/// [`InvalidDuration`].
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let fail = || InvalidDuration(text.into());
    let (number, unit) = split_unit(text.trim());
    let micros: u64 = match unit {
        "" if number == "0" => 1,
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(fail()),
    };
    scale(number, micros).map(Duration::from_micros).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("512MiB", 512 << 20),
            ("8M", 8 << 20),
            ("4096", 4096),
            ("1.5k", 1536),
            ("1 GB", 1_000_000_000),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1X", "1.G", ".5G", "1.2.3", "99999999999T", "8 M B"] {
            assert_eq!(text.parse::<ByteSize>(), Err(InvalidByteSize(text.into())), "{text}");
        }
        assert_eq!(ByteSize(10 << 30).to_string(), "10GiB");
        assert_eq!(ByteSize(1000).to_string(), "1000");
    }

    #[test]
    fn durations() {
        for (text, millis) in [("1s", 1000), ("500ms", 500), ("2m", 120_000), ("1.5s", 1500), ("0", 0), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1y", "1 s s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
