//! Durations, sizes and shares as people write them.

use std::{fmt, net::SocketAddr, str::FromStr, time};

use nexxus_storage::open;
use serde::{Deserialize, Deserializer, de::Error as _};

/// `"250ms"`, `"30s"`, `"2m"`, `"12h"`, `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub time::Duration);

/// Bytes: `"512"`, `"64KiB"`, `"1MiB"`, `"4GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Free space that is kept: a share of the disk (`"5%"`), or a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve(pub open::Reserve);

/// A part of a whole: `"5%"`, `"100%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    pub percent: u8,
}

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 4] = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A whole number and a unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The largest unit that gives a whole number.
fn print(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fitting = units.iter().rev().find(|(_, factor)| value.is_multiple_of(*factor)).unwrap_or(&units[0]);
    write!(f, "{}{}", value / fitting.1, fitting.0)
}

impl Duration {
    /// Whole seconds.
    pub fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl Size {
    /// Bytes, as memory counts them.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Share {
    /// `0.0` to `1.0`.
    pub fn of_one(self) -> f64 {
        f64::from(self.percent) / 100.0
    }
}

impl FromStr for Share {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
        let percent = percent.filter(|percent| *percent <= 100);
        Ok(Self { percent: percent.ok_or("a share is a whole number up to 100 with %, e.g. \"50%\"")? })
    }
}

impl FromStr for Duration {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ms =
            parse(text, &DURATION_UNITS).ok_or("a duration is a whole number with ms, s, m, h or d, e.g. \"30s\"")?;
        Ok(Self(time::Duration::from_millis(ms)))
    }
}

impl FromStr for Size {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, &SIZE_UNITS).map(Self).ok_or("a size is a whole number with KiB, MiB or GiB, e.g. \"64MiB\"")
    }
}

impl FromStr for Reserve {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reserve = match text.strip_suffix('%') {
            Some(share) => share.trim_end().parse().ok().filter(|share| *share <= 100).map(open::Reserve::Percent),
            None => parse(text, &SIZE_UNITS).map(open::Reserve::Bytes),
        };
        reserve.map(Self).ok_or("a share of the disk, e.g. \"5%\", or a size, e.g. \"2GiB\", is needed")
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0.as_millis() as u64, &DURATION_UNITS, f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &SIZE_UNITS, f)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent)
    }
}

/// `"127.0.0.1:3000"`, `"[::1]:3000"`.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!("\"{text}\" is no address with a port, e.g. \"127.0.0.1:3000\" or \"[::1]:3000\""))
    })
}

macro_rules! from_text {
    ($($name:ident)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
from_text!(Duration Size Reserve Share);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_units() {
        for (text, ms) in
            [("250ms", 250), ("30s", 30_000), ("2m", 120_000), ("12h", 43_200_000), ("7d", 604_800_000), ("0s", 0)]
        {
            let duration: Duration = text.parse().expect("a duration");
            assert_eq!(duration.0.as_millis() as u64, ms, "{text}");
        }
        for (text, bytes) in [("512", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("4GiB", 4 << 30), ("4 GiB", 4 << 30)]
        {
            assert_eq!(text.parse::<Size>().expect("a size").0, bytes, "{text}");
        }
        for bad in ["", "s", "-1s", "1.5h", "10", "1w", "99999999999999999d"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
        for bad in ["", "1KB", "1mib", "x", "1TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        for (text, reserve) in [
            ("5%", open::Reserve::Percent(5)),
            ("100 %", open::Reserve::Percent(100)),
            ("2GiB", open::Reserve::Bytes(2 << 30)),
            ("0", open::Reserve::Bytes(0)),
        ] {
            assert_eq!(text.parse::<Reserve>().expect("a reserve").0, reserve, "{text}");
        }
        for bad in ["", "%", "101%", "-1%", "5 percent", "2.5%"] {
            assert!(bad.parse::<Reserve>().is_err(), "{bad}");
        }
        for (text, share) in [("5%", 0.05), ("100 %", 1.0), ("0%", 0.0)] {
            assert_eq!(text.parse::<Share>().expect("a share").of_one(), share, "{text}");
        }
        for bad in ["", "%", "5", "101%", "-1%", "0.5%"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
        assert_eq!(Size(3 << 20).to_string(), "3MiB");
        assert_eq!(Duration(time::Duration::from_secs(90)).to_string(), "90s");
    }
}
