//! How an entry of a change log stands in the journal: the payload of a record of kind `LogEntry`.
//!
//! ```text
//! format: u8 = 1 | event: u8 | application | epoch: u32 | position: u64 | change id: [u8; 16] | time: i64 | body
//! body of 1 created   document
//!         2 updated   updatedAt before: i64 | owner before | old values: json | patches: json | document
//!         3 deleted   version: u64 | document
//!         0 others    the event as JSON, to the end
//! document            model | id | owner | createdAt: i64 | updatedAt: i64 | version: u64 | fields: json
//! ```
//! Numbers are little-endian, times milliseconds since the Unix epoch; the change id is big-endian, so that bytes sort as ids do.
//! A name is its length as `u8`, then its text (length 0: none); `json` is its length as `u32`, then its text. The document's
//! application is that of the entry. A format that is not known is refused: a newer build wrote it.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use ulid::Ulid;

use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp, UserId, change::Before},
};

const FORMAT: u8 = 1;

const OTHER: u8 = 0;
const CREATED: u8 = 1;
const UPDATED: u8 = 2;
const DELETED: u8 = 3;

/// What indexes need to know of an entry; read without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    pub app: &'a str,
    pub offset: Offset,
    pub change_id: ChangeId,
    pub time_ms: i64,
}

/// Writes an entry. `Invalid` when its document belongs to another application, or a part of it is over 4 GiB.
pub fn encode(app: &AppId, entry: &Entry) -> Result<Vec<u8>> {
    let mut out = Writer { bytes: Vec::with_capacity(512) };
    out.bytes.extend([FORMAT, event_code(&entry.event)]);
    out.name(app.as_str())?;
    out.bytes.extend(entry.offset.epoch.to_le_bytes());
    out.u64(entry.offset.position);
    out.bytes.extend(entry.change_id.0.to_bytes());
    out.time(entry.time);
    match &entry.event {
        Event::Created { document } => out.document(app, document)?,
        Event::Updated { document, before, patches } => {
            out.time(before.updated_at);
            out.name(before.user.as_ref().map_or("", UserId::as_str))?;
            out.json(&before.fields)?;
            out.json(patches)?;
            out.document(app, document)?;
        }
        Event::Deleted { document, version } => {
            out.u64(*version);
            out.document(app, document)?;
        }
        other => serde_json::to_writer(&mut out.bytes, other).map_err(unwritable)?,
    }
    Ok(out.bytes)
}

/// Reads an entry; `sequence` is that of its journal record and becomes its place. `Corrupt` when it is no entry, or of a newer
/// format.
pub fn decode(payload: &[u8], sequence: u64) -> Result<(AppId, LogEntry)> {
    let mut input = Reader { rest: payload };
    let (event, head) = input.head()?;
    let app = AppId::parse(head.app).map_err(damaged)?;
    let time = Timestamp::from_ms(head.time_ms).map_err(damaged)?;
    let event = match event {
        CREATED => Event::Created { document: input.document(&app)? },
        UPDATED => {
            let (updated_at, user) = (input.time()?, input.user()?);
            let before = Before { updated_at, user, fields: input.json()? };
            let patches = input.json()?;
            Event::Updated { document: input.document(&app)?, before, patches }
        }
        DELETED => {
            let version = input.u64()?;
            Event::Deleted { document: input.document(&app)?, version }
        }
        OTHER => serde_json::from_slice(std::mem::take(&mut input.rest)).map_err(damaged)?,
        other => return Err(corrupt(format!("event {other} is not known to this build"))),
    };
    if !input.rest.is_empty() {
        return Err(corrupt("bytes after the end of an entry"));
    }
    let entry = Arc::new(Entry { offset: head.offset, change_id: head.change_id, time, event });
    Ok((app, LogEntry { entry, place: sequence }))
}

/// Reads what names an entry, and not its body.
pub fn peek(payload: &[u8]) -> Result<Head<'_>> {
    Ok(Reader { rest: payload }.head()?.1)
}

fn event_code(event: &Event) -> u8 {
    match event {
        Event::Created { .. } => CREATED,
        Event::Updated { .. } => UPDATED,
        Event::Deleted { .. } => DELETED,
        Event::Unchanged { .. } | Event::Rejected { .. } | Event::Defined { .. } | Event::UserChanged { .. } => OTHER,
    }
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn time(&mut self, time: Timestamp) {
        self.bytes.extend(time.as_ms().to_le_bytes());
    }

    fn name(&mut self, text: &str) -> Result<()> {
        self.bytes.push(u8::try_from(text.len()).map_err(unwritable)?);
        self.bytes.extend(text.as_bytes());
        Ok(())
    }

    /// The length is filled in when the text is written: no second buffer.
    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        serde_json::to_writer(&mut self.bytes, value).map_err(unwritable)?;
        let length = u32::try_from(self.bytes.len() - start - 4).map_err(unwritable)?;
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn document(&mut self, app: &AppId, document: &Document) -> Result<()> {
        if document.app != *app {
            let message = format!("document {} of application {} in the log of {app}", document.id, document.app);
            return Err(Error::new(ErrorKind::Invalid, "encode entry", message));
        }
        self.name(document.model.as_str())?;
        self.name(document.id.as_str())?;
        self.name(document.user.as_ref().map_or("", UserId::as_str))?;
        self.time(document.created_at);
        self.time(document.updated_at);
        self.u64(document.version);
        self.json(&document.fields)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| corrupt("an entry ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| corrupt("an entry ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Result<Timestamp> {
        Timestamp::from_ms(self.array().map(i64::from_le_bytes)?).map_err(damaged)
    }

    fn name(&mut self) -> Result<&'a str> {
        let [length] = self.array()?;
        std::str::from_utf8(self.take(length.into())?).map_err(damaged)
    }

    fn user(&mut self) -> Result<Option<UserId>> {
        match self.name()? {
            "" => Ok(None),
            user => UserId::parse(user).map(Some).map_err(damaged),
        }
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        let length = u32::from_le_bytes(self.array()?);
        serde_json::from_slice(self.take(length as usize)?).map_err(damaged)
    }

    fn head(&mut self) -> Result<(u8, Head<'a>)> {
        let [format, event] = self.array()?;
        if format != FORMAT {
            return Err(corrupt(format!("entry of format {format}; this build reads format {FORMAT}")));
        }
        let app = self.name()?;
        let offset = Offset::new(self.array().map(u32::from_le_bytes)?, self.u64()?);
        let change_id = ChangeId(Ulid::from_bytes(self.array()?));
        let time_ms = self.array().map(i64::from_le_bytes)?;
        Ok((event, Head { app, offset, change_id, time_ms }))
    }

    fn document(&mut self, app: &AppId) -> Result<Document> {
        Ok(Document {
            app: app.clone(),
            model: self.name()?.parse().map_err(damaged)?,
            id: self.name()?.parse().map_err(damaged)?,
            user: self.user()?,
            created_at: self.time()?,
            updated_at: self.time()?,
            version: self.u64()?,
            fields: self.json()?,
        })
    }
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, "encode entry", "change log").with_source(error)
}

fn damaged(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    corrupt("an entry cannot be read").with_source(error)
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, "decode entry", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Patch, Problem,
        change::{Subject, UserFacts},
        patch::Op,
        problem::ProblemKind,
    };
    use serde_json::{Map, Value, json};

    fn document(user: Option<&str>, fields: Value) -> Document {
        let Value::Object(fields) = fields else { panic!("an object") };
        Document {
            app: AppId::parse("a1").expect("an id"),
            model: "task".parse().expect("a name"),
            id: "d1".parse().expect("an id"),
            user: user.map(|user| user.parse().expect("an id")),
            created_at: Timestamp::from_ms(1_700_000_000_000).expect("a time"),
            updated_at: Timestamp::from_ms(1_700_000_000_001).expect("a time"),
            version: 3,
            fields,
        }
    }

    fn entry(event: Event) -> Entry {
        Entry {
            offset: Offset::new(1, 258),
            change_id: ChangeId(Ulid::from_bytes(*b"0123456789abcdef")),
            time: Timestamp::from_ms(1_700_000_000_002).expect("a time"),
            event,
        }
    }

    fn events() -> Vec<Event> {
        let before = Before {
            updated_at: Timestamp::from_ms(-1).expect("a time"),
            user: Some("u0".parse().expect("an id")),
            fields: vec![(vec!["n".into()], Some(json!(1))), (vec!["m".into(), "o".into()], None)],
        };
        let patches = vec![Patch { op: Op::Incr, path: vec!["n".into()], value: vec![json!(2)] }];
        let subject = Subject { model: "task".parse().expect("a name"), id: "d1".parse().expect("an id") };
        let facts = UserFacts { user_type: Some("admin".into()), details: Map::new() };
        vec![
            Event::Created { document: document(Some("u1"), json!({ "title": "ä", "x": 0.1 })) },
            Event::Updated { document: document(None, json!({})), before, patches },
            Event::Deleted { document: document(None, json!({ "n": [1, -2, 1e300] })), version: 4 },
            Event::Unchanged { document: Some(subject.clone()) },
            Event::Rejected {
                document: Some(subject),
                device: Some("d".parse().expect("an id")),
                problem: Problem::new(ProblemKind::NotFound, "no such task"),
            },
            Event::Defined { definition: json!({ "id": "a1" }), before: None },
            Event::UserChanged { user: "u1".parse().expect("an id"), before: None, after: Some(facts) },
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn every_event_comes_back() {
        let app = AppId::parse("a1").expect("an id");
        for event in events() {
            let entry = entry(event);
            let bytes = encode(&app, &entry).expect("encodes");
            let (read_app, read) = decode(&bytes, 42).expect("decodes");
            assert_eq!((&read_app, &*read.entry, read.place), (&app, &entry, 42));
            let head = peek(&bytes).expect("a head");
            assert_eq!((head.app, head.offset, head.change_id), ("a1", entry.offset, entry.change_id));
        }
    }

    /// The bytes of format 1. They are on disks: a change here needs a new format number.
    #[test]
    fn the_bytes_stay_as_they_are() {
        let app = AppId::parse("a1").expect("an id");
        let golden = include_str!("golden/entries.format1.hex");
        let written: String =
            events().into_iter().map(|event| hex(&encode(&app, &entry(event)).expect("encodes")) + "\n").collect();
        assert_eq!(written, golden);
    }

    #[test]
    fn whatever_is_cut_or_of_another_format_is_refused() {
        let app = AppId::parse("a1").expect("an id");
        for event in events() {
            let bytes = encode(&app, &entry(event)).expect("encodes");
            for length in 0..bytes.len() {
                assert_eq!(decode(&bytes[..length], 1).expect_err("cut").kind, ErrorKind::Corrupt, "{length}");
            }
            let mut longer = bytes.clone();
            longer.push(b'!');
            assert!(decode(&longer, 1).is_err());
            let mut newer = bytes;
            newer[0] = 2;
            assert!(decode(&newer, 1).expect_err("newer").message.contains("format 2"));
        }
    }

    proptest::proptest! {
        /// What is replayed after a crash is what was acknowledged, to the last bit.
        #[test]
        fn numbers_come_back_exactly(bits: u64) {
            let number = f64::from_bits(bits);
            proptest::prop_assume!(number.is_finite());
            let entry = entry(Event::Created { document: document(None, json!({ "n": number })) });
            let app = AppId::parse("a1").expect("an id");
            let (_, read) = decode(&encode(&app, &entry).expect("encodes"), 1).expect("decodes");
            proptest::prop_assert_eq!(&*read.entry, &entry);
        }
    }

    #[test]
    fn a_document_of_another_application_is_refused() {
        let app = AppId::parse("a2").expect("an id");
        let error = encode(&app, &entry(Event::Created { document: document(None, json!({})) })).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}
