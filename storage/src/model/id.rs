//! Names and positions: the newtypes that keep a device id from being passed as a user id.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::text::Text;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("an id has 1 to 128 of A–Z a–z 0–9 . _ ~ @ + = - and is not . or ..")]
    Id,
    #[error("a model name is a letter, then up to 63 letters, digits, _ or -")]
    Name,
    #[error("not an offset")]
    Offset,
    #[error("not a change id")]
    ChangeId,
}

fn check_id(text: &str) -> Result<(), InvalidId> {
    let fits = (1..=128).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~@+=-".contains(&byte));
    if fits { Ok(()) } else { Err(InvalidId::Id) }
}

fn check_name(text: &str) -> Result<(), InvalidId> {
    let mut bytes = text.bytes();
    let fits = text.len() <= 64
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if fits { Ok(()) } else { Err(InvalidId::Name) }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        text_id!($(#[$doc])* $name, $check, Arc<str>);
    };
    ($(#[$doc:meta])* $name:ident, $check:ident, $text:ty) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name($text);

        impl $name {
            /// Takes a text that fits the contract's rule for it (contract §11).
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// Whether the text fits that rule.
            pub fn is_valid(text: &str) -> bool {
                $check(text).is_ok()
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(D::Error::custom)
            }
        }
    };
}

text_id!(
    /// A tenant. Nothing crosses applications.
    AppId, check_id
);
text_id!(
    /// A user of one application: random, never given twice.
    UserId, check_id
);
text_id!(
    /// An endpoint of one user that receives messages. A change may go to thousands of them, each of which is named.
    DeviceId, check_id, Text
);
text_id!(
    /// A document, unique within its application and model.
    DocumentId, check_id
);
text_id!(
    /// One device on one channel.
    SubscriptionId, check_id
);
text_id!(
    /// A model (type) of an application, e.g. `task`.
    ModelName, check_name
);

macro_rules! generated {
    ($($name:ident),*) => {$(
        impl $name {
            /// A new id: 26 characters that sort by the time they were made, 80 bits of them random.
            pub fn generate() -> Self {
                Self(Ulid::generate().to_string().to_ascii_lowercase().as_str().into())
            }
        }
    )*};
}
generated!(AppId, UserId, DeviceId, DocumentId, SubscriptionId);

/// What a writer gets with its 202: names the change before it has an offset. Sorts by the time it was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeId(pub Ulid);

impl ChangeId {
    pub fn generate() -> Self {
        Self(Ulid::generate())
    }

    /// Milliseconds since the Unix epoch at which it was given.
    pub fn timestamp_ms(self) -> u64 {
        self.0.timestamp_ms()
    }
}

impl FromStr for ChangeId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Ulid::from_string(text).map(Self).map_err(|_| InvalidId::ChangeId)
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for ChangeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChangeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A position in the change log of one application. Printed in fixed width, so that the texts compare as the offsets do; a
/// later epoch is greater. Positions are dense: the entry after `position` is `position + 1`. Position 0 is before the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset {
    pub epoch: u32,
    pub position: u64,
}

impl Offset {
    pub fn new(epoch: u32, position: u64) -> Self {
        Self { epoch, position }
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self { position: self.position + 1, ..self }
    }

    /// Where the epochs of an application begin to count, 1 to 2²⁰: scattered by its id, so that an offset of another application
    /// is as good as never one of its epoch.
    pub fn first_epoch_of(app: &AppId) -> u32 {
        let hash = Sha256::digest(app.as_str());
        1 + (u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) >> 12)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}", self.epoch, self.position)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.position)
    }
}

impl FromStr for Offset {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (epoch, position) = text.split_once('-').ok_or(InvalidId::Offset)?;
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if epoch.len() != 8 || position.len() != 16 || !is_hex(epoch) || !is_hex(position) {
            return Err(InvalidId::Offset);
        }
        Ok(Self {
            epoch: u32::from_str_radix(epoch, 16).map_err(|_| InvalidId::Offset)?,
            position: u64::from_str_radix(position, 16).map_err(|_| InvalidId::Offset)?,
        })
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_contract() {
        for good in ["a", "A.b_c~d@e+f=g-h", "..a", &"x".repeat(128)] {
            assert!(DocumentId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a%", &"x".repeat(129)] {
            assert!(DocumentId::parse(bad).is_err(), "{bad}");
        }
        assert!(ModelName::parse("task-2_x").is_ok());
        for bad in ["", "2task", "_x", "a.b", &"x".repeat(65)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_compare_as_their_texts() {
        let offsets =
            [Offset::new(1, 0), Offset::new(1, 9), Offset::new(1, 10), Offset::new(1, u64::MAX), Offset::new(2, 1)];
        for pair in offsets.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_string() < pair[1].to_string());
        }
        for offset in offsets {
            assert_eq!(offset.to_string().parse(), Ok(offset));
        }
        for bad in ["", "1-1", "+0000001-0000000000000001", "00000001-000000000000000G", "00000001"] {
            assert!(bad.parse::<Offset>().is_err(), "{bad}");
        }
    }

    #[test]
    fn change_ids_round_trip() {
        let id = ChangeId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("not-a-change-id".parse::<ChangeId>().is_err());
    }
}
