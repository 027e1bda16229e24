//! What a message carries: bytes between processes, the value itself within one.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

/// A value that can be written as the payload of a message.
pub trait Encode: Any + Send + Sync {
    /// The bytes by which the other end makes the same value.
    fn encode(&self) -> Bytes;

    /// About how many bytes of memory it takes, for the bounds of queues in memory. What travels through these says it without
    /// encoding.
    fn weight(&self) -> usize {
        self.encode().len()
    }
}

/// The payload of a message. It is encoded when its bytes are first asked for; a consumer in the same process takes the value
/// and spares both the writing and the reading.
#[derive(Clone)]
pub struct Payload {
    value: Option<Arc<dyn Encode>>,
    bytes: OnceLock<Bytes>,
}

impl Payload {
    /// A value that is handed over as it is within one process, and encoded where bytes are needed.
    pub fn new<T: Encode>(value: Arc<T>) -> Self {
        Self { value: Some(value), bytes: OnceLock::new() }
    }

    /// The bytes, encoded now if they were not yet.
    pub fn bytes(&self) -> &Bytes {
        self.bytes.get_or_init(|| self.value.as_ref().map(|value| value.encode()).unwrap_or_default())
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        match (self.bytes.get(), &self.value) {
            (Some(bytes), _) => bytes.len(),
            (None, Some(value)) => value.weight(),
            (None, None) => 0,
        }
    }

    /// The value, when it came from this process and is a `T`.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let value: Arc<dyn Any + Send + Sync> = self.value.clone()?;
        value.downcast().ok()
    }

    /// The same payload as bytes only: what a backlog keeps.
    #[must_use]
    pub fn into_bytes_only(self) -> Self {
        Self::from(self.bytes().clone())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { value: None, bytes: OnceLock::from(bytes) }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.bytes(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Word(&'static str);
    impl Encode for Word {
        fn encode(&self) -> Bytes {
            Bytes::from_static(self.0.as_bytes())
        }
    }

    #[test]
    fn hands_over_the_value_or_its_bytes() {
        let payload = Payload::new(Arc::new(Word("hello")));
        assert_eq!(payload.value::<Word>().map(|word| word.0), Some("hello"));
        assert!(payload.value::<String>().is_none());
        assert_eq!(payload.weight(), 5);
        let bytes = payload.clone().into_bytes_only();
        assert!(bytes.value::<Word>().is_none());
        assert_eq!(bytes, payload);
    }
}
