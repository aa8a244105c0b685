//! The three ways S3 writes times.

use std::fmt::Write;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;

/// `20130524T000000Z`, as signatures have it.
pub fn basic(time: SystemTime) -> String {
    let time = TimeZone::UTC.to_datetime(Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH));
    let (year, month, day) = (time.year(), time.month(), time.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    // Each request has one, and this is much faster than `strftime`.
    let mut text = String::with_capacity(16);
    // A string takes all that is written.
    let _ = write!(text, "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z");
    text
}

/// Reads `20130524T000000Z`, as signatures have it.
pub fn parse_basic(text: &str) -> Option<SystemTime> {
    let digits: &[u8; 16] = text.as_bytes().try_into().ok()?;
    let number = |at: usize, len: usize| {
        let digits = &digits[at..at + len];
        let is_number = digits.iter().all(u8::is_ascii_digit);
        is_number.then(|| digits.iter().fold(0_i16, |number, digit| number * 10 + i16::from(digit - b'0')))
    };
    let two = |at: usize| number(at, 2).and_then(|number| i8::try_from(number).ok());
    if digits[8] != b'T' || digits[15] != b'Z' {
        return None;
    }
    let time = DateTime::new(number(0, 4)?, two(4)?, two(6)?, two(9)?, two(11)?, two(13)?, 0).ok()?;
    TimeZone::UTC.to_timestamp(time).ok().map(SystemTime::from)
}

/// Reads `2013-05-24T00:00:00.000Z`, as listings have it.
pub fn parse_iso(text: &str) -> Option<SystemTime> {
    text.trim().parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Reads `Fri, 24 May 2013 00:00:00 GMT`, as headers have it.
pub fn parse_http(text: &str) -> Option<SystemTime> {
    rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text.trim()).ok().map(SystemTime::from)
}

/// Writes `Fri, 24 May 2013 00:00:00 GMT`.
pub fn format_http(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn all_three() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        assert_eq!(basic(time), "20130524T000000Z");
        assert_eq!(parse_basic("20130524T000000Z"), Some(time));
        assert_eq!(parse_basic(&basic(time + Duration::from_secs(86_399))), Some(time + Duration::from_secs(86_399)));
        for bad in ["20130524T000000", "20130524T000000z", "2013052AT000000Z", "20130532T000000Z", "+0130524T000000Z"] {
            assert_eq!(parse_basic(bad), None, "{bad}");
        }
        assert_eq!(format_http(time), "Fri, 24 May 2013 00:00:00 GMT");
        assert_eq!(parse_http("Fri, 24 May 2013 00:00:00 GMT"), Some(time));
        assert_eq!(parse_iso("2013-05-24T00:00:00.000Z"), Some(time));
        assert_eq!(parse_iso("yesterday"), None);
    }
}
