//! Text that is short nearly always: it lies where it is, instead of somewhere else.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// Longest text that lies in it, in bytes: the ids that are made here have 26.
const SHORT: usize = 30;

/// Copying a short one is copying 32 bytes: nothing is allocated, and no count is shared by the cores.
#[derive(Clone)]
pub(super) enum Text {
    Short(u8, [u8; SHORT]),
    Long(Arc<str>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut short = [0; SHORT];
        match short.get_mut(..text.len()) {
            Some(place) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short(text.len() as u8, short)
            }
            None => Self::Long(text.into()),
        }
    }
}

impl Text {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, short) => short.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            // It was a text when it came.
            Self::Short(..) => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

/// As its text, by which ids are found in maps.
impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        str::hash(self, state);
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        // The order of the bytes is the order of the characters.
        self.as_bytes().cmp(other.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn it_is_the_text_whether_short_or_long() {
        let (keys, mut known) = (RandomState::new(), Vec::new());
        for length in 0..100 {
            for text in ["a".repeat(length), "é".repeat(length), format!("{}b", "a".repeat(length))] {
                let made = Text::from(&*text);
                assert_eq!((&*made, &*made.clone()), (&*text, &*text));
                assert_eq!(keys.hash_one(&made), keys.hash_one(&*text));
                assert_eq!(matches!(made, Text::Short(..)), text.len() <= SHORT);
                known.push((made, text));
            }
        }
        for (one, its) in &known {
            for (other, others) in &known {
                assert_eq!((one.cmp(other), one == other), (its.cmp(others), its == others));
            }
        }
        assert_eq!((size_of::<Text>(), size_of::<Option<Text>>()), (32, 32));
    }
}
