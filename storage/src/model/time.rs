//! Points in time: RFC 3339 UTC with milliseconds out; RFC 3339 or epoch seconds in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

/// Milliseconds since the Unix epoch, from year 0001 to 9999. In that range the printed form has a fixed width, so that texts
/// compare as the times do; date fields are stored in it and filters compare the texts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// Why something is no date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a date is RFC 3339, e.g. 2026-01-31T12:00:00Z, or epoch seconds, in the years 0001 to 9999")]
pub struct InvalidTimestamp;

const MIN_MS: i64 = -62_135_596_800_000; // 0001-01-01T00:00:00.000Z
const MAX_MS: i64 = 253_402_300_799_999; // 9999-12-31T23:59:59.999Z

impl Timestamp {
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64)
    }

    pub fn from_ms(ms: i64) -> Result<Self, InvalidTimestamp> {
        if (MIN_MS..=MAX_MS).contains(&ms) { Ok(Self(ms)) } else { Err(InvalidTimestamp) }
    }

    pub fn as_ms(self) -> i64 {
        self.0
    }

    /// A JSON string in RFC 3339, or a JSON number of epoch seconds.
    pub fn from_json(value: &Value) -> Result<Self, InvalidTimestamp> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => {
                let ms = number.as_f64().ok_or(InvalidTimestamp)? * 1000.0;
                if ms.is_finite() && ms.abs() < 1e15 { Self::from_ms(ms.round() as i64) } else { Err(InvalidTimestamp) }
            }
            _ => Err(InvalidTimestamp),
        }
    }
}

/// The printed form: `2026-11-24T17:11:29.123Z`.
const PRINTED: usize = 24;
const DAY_MS: i64 = 86_400_000;

impl Timestamp {
    /// Reads the printed form and nothing else: what filters do with each date of each document.
    pub(crate) fn from_printed(text: &str) -> Option<Self> {
        let text: &[u8; PRINTED] = text.as_bytes().try_into().ok()?;
        let is_printed = text[10] == b'T' && text[17] < b'6' && text[19] == b'.' && text[23] == b'Z';
        if !is_printed || text[..4] == *b"0000" {
            return None;
        }
        Some(Self(date_and_time(text)? + digits(&text[20..23])?))
    }

    /// Reads RFC 3339. Fractions are rounded down to milliseconds, so that an instant and a later one never trade places; a
    /// leap second is the second before it.
    fn from_rfc3339(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() < 20 || !matches!(text[10], b'T' | b't' | b' ') {
            return None;
        }
        let (mut ms, mut rest) = (date_and_time(text)?, &text[19..]);
        if let Some(fraction) = rest.strip_prefix(b".") {
            let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (fraction, zone) = fraction.split_at(length);
            let kept = digits(fraction.get(..3).unwrap_or(fraction))?;
            ms += match length {
                0 => return None,
                1 => kept * 100,
                2 => kept * 10,
                _ => kept,
            };
            rest = zone;
        }
        let offset_minutes = match rest {
            b"Z" | b"z" => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                (hours * 60 + minutes) * if *sign == b'+' { 1 } else { -1 }
            }
            _ => return None,
        };
        Self::from_ms(ms - offset_minutes * 60_000).ok()
    }

    /// Whether this text is its printed form.
    pub(crate) fn is_printed_as(self, text: &str) -> bool {
        self.printed() == text.as_bytes()
    }

    fn printed(self) -> [u8; PRINTED] {
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        let (year, month, day) = civil_from_days(days);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |from: usize, digits: usize, mut number: i64| {
            for at in (from..from + digits).rev() {
                text[at] = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, month);
        put(8, 2, day);
        put(11, 2, ms / 3_600_000);
        put(14, 2, ms / 60_000 % 60);
        put(17, 2, ms / 1000 % 60);
        put(20, 3, ms % 1000);
        text
    }
}

/// Milliseconds since the Unix epoch of `2026-11-24?17:11:29`, whatever stands for the `?` and comes behind. At least 19 bytes.
fn date_and_time(text: &[u8]) -> Option<i64> {
    if text[4] != b'-' || text[7] != b'-' || text[13] != b':' || text[16] != b':' {
        return None;
    }
    let (year, month, day) = (digits(&text[..4])?, digits(&text[5..7])?, digits(&text[8..10])?);
    let (hour, minute, second) = (digits(&text[11..13])?, digits(&text[14..16])?, digits(&text[17..19])?);
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    // A day that its month does not have comes back as another one.
    let exists = civil_from_days(days) == (year, month, day);
    exists.then_some(days * DAY_MS + ((hour * 60 + minute) * 60 + second.min(59)) * 1000)
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Days since the Unix epoch of a date of the Gregorian calendar. Years are counted from March, so that the leap day comes last,
/// in eras of 400 years, which all have the same number of days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The year, month and day of a number of days since the Unix epoch.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        Self::from_rfc3339(text).ok_or(InvalidTimestamp)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.printed()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prints_milliseconds_in_utc() {
        for (given, printed) in [
            (json!("2026-11-24T17:11:29Z"), "2026-11-24T17:11:29.000Z"),
            (json!("2026-11-24T19:11:29.1239+02:00"), "2026-11-24T17:11:29.123Z"),
            (json!(0), "1970-01-01T00:00:00.000Z"),
            (json!(1.5), "1970-01-01T00:00:01.500Z"),
            (json!("0001-01-01T00:00:00Z"), "0001-01-01T00:00:00.000Z"),
            (json!("9999-12-31T23:59:59.999Z"), "9999-12-31T23:59:59.999Z"),
            (json!("9999-12-31T23:59:59Z"), "9999-12-31T23:59:59.000Z"),
            (json!("2026-11-24t17:11:29.5z"), "2026-11-24T17:11:29.500Z"),
            (json!("2026-11-24 17:11:29.05-00:30"), "2026-11-24T17:41:29.050Z"),
            (json!("2024-03-01T00:59:59.1+01:00"), "2024-02-29T23:59:59.100Z"),
            (json!("2016-12-31T23:59:60Z"), "2016-12-31T23:59:59.000Z"),
            (json!("0000-12-31T23:30:00-01:00"), "0001-01-01T00:30:00.000Z"),
        ] {
            let time = Timestamp::from_json(&given).expect("a date");
            assert_eq!(time.to_string(), printed);
            assert_eq!(printed.parse(), Ok(time));
        }
    }

    #[test]
    fn own_calendar_agrees_with_the_library() {
        // Every six days or so through all years, and the ends: the library's last day is 9999-12-30.
        let steps = (MIN_MS..=MAX_MS - 2 * DAY_MS).step_by(520_799_989);
        for ms in steps.chain([MIN_MS, MAX_MS - 2 * DAY_MS, -1, 0, 951_782_400_000]) {
            let time = Timestamp(ms);
            let text = time.to_string();
            let library = jiff::Timestamp::from_millisecond(ms).expect("in range");
            assert!(text == format!("{library:.3}"), "{ms}: {text}");
            assert_eq!(Timestamp::from_printed(&text), Some(time));
        }
    }

    #[test]
    fn reads_the_printed_form_strictly() {
        for bad in [
            "2026-02-29T00:00:00.000Z",
            "2026-04-31T00:00:00.000Z",
            "2026-00-10T00:00:00.000Z",
            "2026-01-00T00:00:00.000Z",
            "0000-01-01T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "2026-01-01T00:00:60.000Z",
            "2026-01-01t00:00:00.000Z",
            "2026-01-01T00:00:00.00Z",
            "+026-01-01T00:00:00.000Z",
            "2026-01-01T00:00:00.00éZ",
        ] {
            assert_eq!(Timestamp::from_printed(bad), None, "{bad}");
        }
        assert!(Timestamp::from_printed("2024-02-29T23:59:59.999Z").is_some());
    }

    #[test]
    fn refuses_what_is_no_date() {
        for bad in [
            json!("yesterday"),
            json!("2026-13-01T00:00:00Z"),
            json!(1e300),
            json!(true),
            json!(null),
            json!(""),
            json!("2026-01-31"),
            json!("2026-01-31T12:00Z"),
            json!("2026-01-31T12:00:00"),
            json!("2026-01-31T12:00:00.Z"),
            json!("2026-01-31T12:00:00+1"),
            json!("2026-01-31T12:00:00+24:00"),
            json!("2026-01-31T12:00:00Z "),
            json!("10000-01-01T00:00:00Z"),
            json!("0001-01-01T00:00:00+01:00"),
            json!("9999-12-31T23:59:59-00:01"),
            json!("2026-02-29T00:00:00Z"),
            json!("2026-01-31T12:00:00.1é"),
        ] {
            assert!(Timestamp::from_json(&bad).is_err(), "{bad}");
        }
    }
}
