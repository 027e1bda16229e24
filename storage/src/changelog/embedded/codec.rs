//! How an entry of a change log stands in the journal: the payload of a record of kind `LogEntry`.
//!
//! ```text
//! format: u8 = 1 | event: u8 | application | epoch: u32 | position: u64 | change id: [u8; 16] | time: i64 | body
//! body of 1 created   document
//!         2 updated   updatedAt before: i64 | owner before | old values: json | patches: json | document
//!         3 deleted   version: u64 | document
//!         4 imported  document
//!         0 others    the event: json
//! document            model | id | owner | createdAt: i64 | updatedAt: i64 | version: u64 | fields: json
//! ```
//! Numbers are little-endian, times milliseconds since the Unix epoch; the change id is big-endian, so that bytes sort as ids do.
//! Names and `json` are written as `embedded::wire` says; an empty owner is none. The document's application is that of the entry.
//! A format that is not known is refused: a newer build wrote it.

use std::sync::Arc;

use ulid::Ulid;

use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    embedded::wire::{Reader, Writer},
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp, UserId, change::Before},
};

const FORMAT: u8 = 1;

const OTHER: u8 = 0;
const CREATED: u8 = 1;
const UPDATED: u8 = 2;
const DELETED: u8 = 3;
const IMPORTED: u8 = 4;

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
    let mut out = Writer::with_capacity(512);
    out.u8(FORMAT);
    out.u8(event_code(&entry.event));
    out.name(app.as_str())?;
    out.offset(entry.offset);
    out.bytes.extend(entry.change_id.0.to_bytes());
    out.time(entry.time);
    match &entry.event {
        Event::Created { document } | Event::Imported { document } => out.document(app, document)?,
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
        other => out.json(other)?,
    }
    Ok(out.bytes)
}

/// Reads an entry; `sequence` is that of its journal record and becomes its place. `Corrupt` when it is no entry, or of a newer
/// format.
pub fn decode(payload: &[u8], sequence: u64) -> Result<(AppId, LogEntry)> {
    let mut input = Reader::new(payload, "change log entry");
    let (event, head) = input.head()?;
    let app = AppId::parse(head.app).map_err(|error| input.damaged(error))?;
    let time = Timestamp::from_ms(head.time_ms).map_err(|error| input.damaged(error))?;
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
        IMPORTED => Event::Imported { document: input.document(&app)? },
        OTHER => input.json()?,
        other => return Err(input.corrupt(format!("event {other} is not known to this build"))),
    };
    input.end()?;
    let entry = Arc::new(Entry { offset: head.offset, change_id: head.change_id, time, event });
    Ok((app, LogEntry { entry, place: sequence }))
}

/// Reads what names an entry, and not its body.
pub fn peek(payload: &[u8]) -> Result<Head<'_>> {
    Ok(Reader::new(payload, "change log entry").head()?.1)
}

fn event_code(event: &Event) -> u8 {
    match event {
        Event::Created { .. } => CREATED,
        Event::Updated { .. } => UPDATED,
        Event::Deleted { .. } => DELETED,
        Event::Imported { .. } => IMPORTED,
        Event::Unchanged { .. } | Event::Rejected { .. } | Event::Defined { .. } | Event::UserChanged { .. } => OTHER,
    }
}

impl Writer {
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

impl<'a> Reader<'a> {
    fn head(&mut self) -> Result<(u8, Head<'a>)> {
        self.format(FORMAT)?;
        let event = self.u8()?;
        let (app, offset) = (self.name()?, self.offset()?);
        let change_id = ChangeId(Ulid::from_bytes(self.array()?));
        Ok((event, Head { app, offset, change_id, time_ms: self.i64()? }))
    }

    fn user(&mut self) -> Result<Option<UserId>> {
        match self.name()? {
            "" => Ok(None),
            user => user.parse().map(Some).map_err(|error| self.damaged(error)),
        }
    }

    fn document(&mut self, app: &AppId) -> Result<Document> {
        Ok(Document {
            app: app.clone(),
            model: self.id()?,
            id: self.id()?,
            user: self.user()?,
            created_at: self.time()?,
            updated_at: self.time()?,
            version: self.u64()?,
            fields: self.json()?,
        })
    }
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
            Event::Imported { document: document(Some("u1"), json!({ "title": "x" })) },
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
