//! What a commit of the index says of itself: how far it has come in the journal.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Payload {
    /// Of the index: its schema, and what is stored in it.
    format: u32,
    /// Every log entry at or below this journal sequence is in the index.
    pub(super) sequence: u64,
}

impl Payload {
    pub(super) fn at(sequence: u64) -> Self {
        Self { format: FORMAT, sequence }
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let error = |message: String| Error::new(ErrorKind::Corrupt, "open documents", message);
        let newer = |message: String| Error::new(ErrorKind::Unsupported, "open documents", message);
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|source| error("the payload of the document index is damaged".to_owned()).with_source(source))?;
        match value["format"].as_u64() {
            Some(format) if format > u64::from(FORMAT) => Err(newer(format!(
                "the document index has format {format}, written by a newer version of Nexxus; this one knows {FORMAT}"
            ))),
            _ => serde_json::from_value(value)
                .map_err(|source| error("the payload of the document index is damaged".to_owned()).with_source(source)),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_written_and_refused_when_it_is_newer() {
        let golden = r#"{"format":1,"sequence":42}"#;
        assert_eq!(Payload::at(42).to_string(), golden);
        assert_eq!(Payload::parse(golden).expect("a payload"), Payload::at(42));
        for (bad, says) in [(r#"{"format":2}"#, "newer version"), ("{}", "damaged"), ("", "damaged")] {
            let error = Payload::parse(bad).expect_err("an error");
            let kind = if says == "newer version" { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
            assert!(error.kind == kind && error.to_string().contains(says), "{error}");
        }
    }
}
