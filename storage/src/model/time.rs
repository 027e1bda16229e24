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

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let time: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp)?;
        // Round down, so that an instant and a later one never trade places.
        Self::from_ms(time.as_nanosecond().div_euclid(1_000_000) as i64)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => Err(fmt::Error),
        }
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
        ] {
            let time = Timestamp::from_json(&given).expect("a date");
            assert_eq!(time.to_string(), printed);
            assert_eq!(printed.parse(), Ok(time));
        }
    }

    #[test]
    fn refuses_what_is_no_date() {
        for bad in
            [json!("yesterday"), json!("2026-13-01T00:00:00Z"), json!(1e300), json!(true), json!(null), json!("")]
        {
            assert!(Timestamp::from_json(&bad).is_err(), "{bad}");
        }
    }
}
