//! Cursors: where a query goes on. Opaque to clients, without a point in time: the sort values and the id of the last document,
//! and a hash of the query, so that the cursor of another one is recognised.
//!
//! The text is base64url of `format: u8 = 1 | query: [u8; 8] | values | id`. A value is a tag (0 missing, 1 integer, 2 text), then
//! 8 bytes, or a length as `u32` and the text; the id is a text without a tag. Numbers are little-endian.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{sort::Position, value::IndexValue};
use crate::{Error, ErrorKind, Result, documents::Query};

const FORMAT: u8 = 1;

type QueryHash = [u8; 8];

/// Writes where a query goes on after a position.
pub(super) fn encode(query: &Query, position: &Position) -> String {
    let mut bytes = vec![FORMAT];
    bytes.extend(query.fingerprint());
    for value in &position.values {
        match value {
            None => bytes.push(0),
            Some(IndexValue::Integer(number)) => {
                bytes.push(1);
                bytes.extend(number.to_le_bytes());
            }
            Some(IndexValue::Text(text)) => {
                bytes.push(2);
                put_text(&mut bytes, text);
            }
        }
    }
    put_text(&mut bytes, &position.id);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor. `Invalid` when it is none, or of another query.
pub(super) fn decode(query: &Query, n_values: usize, cursor: &str) -> Result<Position> {
    let invalid = |message: &str| Error::new(ErrorKind::Invalid, "search", message);
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| invalid("the cursor cannot be read"))?;
    let mut reader = Reader { rest: &bytes };
    let head = reader.head().ok_or_else(|| invalid("the cursor cannot be read"))?;
    if head != query.fingerprint() {
        return Err(invalid("the cursor is of another query"));
    }
    reader.position(n_values).ok_or_else(|| invalid("the cursor cannot be read"))
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(text.as_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    fn text(&mut self) -> Option<Box<str>> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(std::str::from_utf8(text).ok()?.into())
    }

    fn head(&mut self) -> Option<QueryHash> {
        match self.take::<1>()? {
            [FORMAT] => self.take(),
            _ => None,
        }
    }

    fn position(&mut self, n_values: usize) -> Option<Position> {
        let mut values = Vec::with_capacity(n_values);
        for _ in 0..n_values {
            values.push(match self.take::<1>()? {
                [0] => None,
                [1] => Some(IndexValue::Integer(i64::from_le_bytes(self.take()?))),
                [2] => Some(IndexValue::Text(self.text()?)),
                _ => return None,
            });
        }
        let id = self.text()?;
        self.rest.is_empty().then_some(Position { values, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AppId, ModelName, filter::Condition};

    fn query(condition: Condition) -> Query {
        Query {
            app: AppId::parse("a").expect("an id"),
            model: ModelName::parse("task").expect("a name"),
            condition,
            sort: Vec::new(),
            limit: 1,
            cursor: None,
            count: false,
            text: None,
            at_least: None,
        }
    }

    #[test]
    fn comes_back_whole_and_only_for_its_query() {
        let values = vec![None, Some(IndexValue::Integer(-7)), Some(IndexValue::Text("ä\0".into()))];
        let position = Position { values, id: "x1".into() };
        let cursor = encode(&query(Condition::All), &position);
        assert_eq!(decode(&query(Condition::All), 3, &cursor).expect("a position"), position);
        for (condition, n_values, cursor) in [
            (Condition::None, 3, cursor.as_str()),
            (Condition::All, 2, &cursor),
            (Condition::All, 4, &cursor),
            (Condition::All, 3, &cursor[1..]),
            (Condition::All, 3, &cursor[..cursor.len() - 2]),
            (Condition::All, 3, ""),
            (Condition::All, 3, "no cursor"),
        ] {
            let error = decode(&query(condition), n_values, cursor).expect_err("an error");
            assert_eq!(error.kind, ErrorKind::Invalid, "{cursor}");
        }
    }
}
