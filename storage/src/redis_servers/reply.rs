//! Answers of Redis, taken apart. What is not as a script promises is an `Internal` error.

use bytes::Bytes;
use redis::Value;

use crate::{Error, ErrorKind, Result};

/// An answer, or a part of one.
#[derive(Debug)]
pub(crate) struct Reply(pub(super) Value);

impl Reply {
    pub(crate) fn is_nil(&self) -> bool {
        matches!(self.0, Value::Nil)
    }

    pub(crate) fn list(self) -> Result<std::vec::IntoIter<Reply>> {
        match self.0 {
            Value::Array(values) | Value::Set(values) => {
                Ok(values.into_iter().map(Reply).collect::<Vec<_>>().into_iter())
            }
            other => Err(unexpected("a list", &other)),
        }
    }

    pub(crate) fn bytes(self) -> Result<Bytes> {
        match self.0 {
            Value::BulkString(bytes) => Ok(bytes.into()),
            Value::SimpleString(text) => Ok(text.into_bytes().into()),
            Value::Okay => Ok(Bytes::from_static(b"OK")),
            Value::VerbatimString { text, .. } => Ok(text.into_bytes().into()),
            other => Err(unexpected("a text", &other)),
        }
    }

    pub(crate) fn text(self) -> Result<String> {
        String::from_utf8(self.bytes()?.into())
            .map_err(|error| Error::new(ErrorKind::Internal, "read redis", "the answer is no text").with_source(error))
    }

    pub(crate) fn number(self) -> Result<u64> {
        match &self.0 {
            Value::Int(number) => u64::try_from(*number).map_err(|_| unexpected("a number", &self.0)),
            Value::BulkString(digits) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| unexpected("a number", &self.0)),
            Value::Nil => Ok(0),
            other => Err(unexpected("a number", other)),
        }
    }
}

/// The next part of a list.
pub(crate) fn next(list: &mut impl Iterator<Item = Reply>) -> Result<Reply> {
    list.next().ok_or_else(|| Error::new(ErrorKind::Internal, "read redis", "an answer ends too early"))
}

fn unexpected(wanted: &str, found: &Value) -> Error {
    Error::new(ErrorKind::Internal, "read redis", format!("{found:.80?} where {wanted} was expected"))
}
