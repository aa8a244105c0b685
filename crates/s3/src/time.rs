//! The three ways S3 writes times.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;

/// `20130524T000000Z`, as signatures have it.
pub fn basic(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y%m%dT%H%M%SZ").to_string()
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
        assert_eq!(format_http(time), "Fri, 24 May 2013 00:00:00 GMT");
        assert_eq!(parse_http("Fri, 24 May 2013 00:00:00 GMT"), Some(time));
        assert_eq!(parse_iso("2013-05-24T00:00:00.000Z"), Some(time));
        assert_eq!(parse_iso("yesterday"), None);
    }
}
