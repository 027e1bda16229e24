//! The one index for all applications: its fixed schema, and what a document looks like in it.
//!
//! | field | of | holds |
//! | --- | --- | --- |
//! | `key` | all | application/model/id: what is replaced and looked up |
//! | `app` | all | the application, to drop it |
//! | `scope` | live documents | application/model, to search it |
//! | `bare` | live documents without search fields | application/model: they are tested one by one |
//! | `id` `user` `created` `updated` `version` | `scope` | the universal fields that can be filtered and sorted by |
//! | `own` | `scope` | the filterable fields of the document's own, as [`own_key`] names them |
//! | `hash` | `scope` | [`hash`] of the id: finds the documents that the overlay has newer versions of |
//! | `revision` | `scope` | by which revision of the model's definition it was indexed |
//! | `epoch` `position` | all | the offset of the log entry that it is from |
//! | `grave` | deletes | the journal sequence of the delete |
//! | `source` | all | [`Source`], stored |

use std::collections::BTreeMap;

use tantivy::{
    Index, IndexSettings, TantivyDocument, Term,
    schema::{
        FAST, Field, INDEXED, IndexRecordOption, JsonObjectOptions, OwnedValue, STORED, Schema, TextFieldIndexing,
        TextOptions,
    },
};

use super::{
    definitions::Definition,
    value::{Held, IndexValue, held, ordered},
};
use crate::{
    Error, ErrorKind, Result,
    documents::Stored,
    model::{AppId, Document, DocumentId, ModelName, Offset, filter},
};

/// The name of the JSON field, for columns below it.
pub(super) const OWN: &str = "own";

#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    pub(super) key: Field,
    pub(super) app: Field,
    pub(super) scope: Field,
    pub(super) bare: Field,
    pub(super) id: Field,
    pub(super) user: Field,
    pub(super) created: Field,
    pub(super) updated: Field,
    pub(super) version: Field,
    pub(super) own: Field,
    pub(super) hash: Field,
    pub(super) revision: Field,
    pub(super) epoch: Field,
    pub(super) position: Field,
    pub(super) grave: Field,
    pub(super) source: Field,
}

/// The schema. It is never changed: an index of another one is of another format.
pub(super) fn schema() -> (Schema, Fields) {
    let keyword = || {
        let indexing = TextFieldIndexing::default().set_tokenizer("raw").set_fieldnorms(false);
        indexing.set_index_option(IndexRecordOption::Basic)
    };
    let mut builder = Schema::builder();
    let mut text = |name, options: TextOptions| builder.add_text_field(name, options);
    let key = text("key", TextOptions::default().set_indexing_options(keyword()));
    let app = text("app", TextOptions::default().set_indexing_options(keyword()));
    let scope = text("scope", TextOptions::default().set_indexing_options(keyword()));
    let bare = text("bare", TextOptions::default().set_indexing_options(keyword()));
    let id = text("id", TextOptions::default().set_fast("raw"));
    let user = text("user", TextOptions::default().set_indexing_options(keyword()).set_fast("raw"));
    let own = JsonObjectOptions::default().set_indexing_options(keyword()).set_fast("raw");
    let fields = Fields {
        key,
        app,
        scope,
        bare,
        id,
        user,
        created: builder.add_i64_field("created", FAST),
        updated: builder.add_i64_field("updated", FAST),
        version: builder.add_i64_field("version", FAST),
        own: builder.add_json_field(OWN, own),
        hash: builder.add_u64_field("hash", FAST),
        revision: builder.add_u64_field("revision", FAST),
        epoch: builder.add_u64_field("epoch", FAST),
        position: builder.add_u64_field("position", FAST),
        grave: builder.add_u64_field("grave", INDEXED | FAST),
        source: builder.add_bytes_field("source", STORED),
    };
    (builder.build(), fields)
}

/// Opens the index of a directory, or makes it.
pub(super) fn open_index(directory: Box<dyn tantivy::Directory>) -> tantivy::Result<(Index, Fields)> {
    let (schema, fields) = schema();
    // Commits are small and many: a thread for each one's compression would cost more than it saves.
    let settings = IndexSettings { docstore_compress_dedicated_thread: false, ..IndexSettings::default() };
    let index = Index::builder().schema(schema).settings(settings).open_or_create(directory)?;
    Ok((index, fields))
}

/// An application and a model: what is searched together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scope {
    pub(super) app: AppId,
    pub(super) model: ModelName,
}

impl Scope {
    pub(super) fn new(app: &AppId, model: &ModelName) -> Self {
        Self { app: app.clone(), model: model.clone() }
    }

    pub(super) fn of(document: &Document) -> Self {
        Self::new(&document.app, &document.model)
    }

    /// No id holds a slash, so no two scopes have the same text.
    pub(super) fn text(&self) -> String {
        format!("{}/{}", self.app, self.model)
    }
}

impl Fields {
    pub(super) fn key_term(&self, scope: &Scope, id: &str) -> Term {
        Term::from_field_text(self.key, &format!("{}/{}/{id}", scope.app, scope.model))
    }

    pub(super) fn scope_term(&self, scope: &Scope) -> Term {
        Term::from_field_text(self.scope, &scope.text())
    }

    pub(super) fn bare_term(&self, scope: &Scope) -> Term {
        Term::from_field_text(self.bare, &scope.text())
    }

    pub(super) fn app_term(&self, app: &AppId) -> Term {
        Term::from_field_text(self.app, app.as_str())
    }

    /// A document without its search fields: found by key, and tested one by one in searches.
    pub(super) fn bare_document(&self, document: &Document, source: &[u8], offset: Offset) -> TantivyDocument {
        let scope = Scope::of(document);
        let mut out = self.record(&scope, &document.id, source, offset);
        out.add_text(self.bare, scope.text());
        out
    }

    /// A document with its search fields. None when one of them is too long for the index: the document has to be stored bare.
    pub(super) fn document(
        &self,
        document: &Document,
        definition: &Definition,
        source: &[u8],
        offset: Offset,
    ) -> Option<TantivyDocument> {
        let mut own = BTreeMap::new();
        for indexed in &definition.fields {
            match held(document, &indexed.field) {
                Held::TooLong(_) => return None,
                Held::Values(values) if values.is_empty() => {}
                Held::Values(values) => {
                    own.insert(indexed.key.to_string(), owned(values));
                }
            }
        }
        let scope = Scope::of(document);
        let mut out = self.record(&scope, &document.id, source, offset);
        out.add_text(self.scope, scope.text());
        out.add_text(self.id, document.id.as_str());
        if let Some(user) = &document.user {
            out.add_text(self.user, user.as_str());
        }
        out.add_i64(self.created, document.created_at.as_ms());
        out.add_i64(self.updated, document.updated_at.as_ms());
        out.add_i64(self.version, ordered(document.version as f64));
        out.add_u64(self.hash, hash(document.id.as_str()));
        out.add_u64(self.revision, definition.revision);
        if !own.is_empty() {
            out.add_object(self.own, own);
        }
        Some(out)
    }

    /// What is left of a deleted document.
    pub(super) fn tombstone(
        &self,
        scope: &Scope,
        id: &DocumentId,
        source: &[u8],
        offset: Offset,
        place: u64,
    ) -> TantivyDocument {
        let mut out = self.record(scope, id, source, offset);
        out.add_u64(self.grave, place);
        out
    }

    fn record(&self, scope: &Scope, id: &DocumentId, source: &[u8], offset: Offset) -> TantivyDocument {
        let mut out = TantivyDocument::new();
        out.add_text(self.key, format!("{}/{}/{id}", scope.app, scope.model));
        out.add_text(self.app, scope.app.as_str());
        out.add_u64(self.epoch, u64::from(offset.epoch));
        out.add_u64(self.position, offset.position);
        out.add_bytes(self.source, source);
        out
    }
}

fn owned(mut values: Vec<IndexValue>) -> OwnedValue {
    let owned = |value| match value {
        IndexValue::Integer(number) => OwnedValue::I64(number),
        IndexValue::Text(text) => OwnedValue::Str(text.into()),
    };
    match values.pop() {
        Some(only) if values.is_empty() => owned(only),
        last => OwnedValue::Array(values.into_iter().chain(last).map(owned).collect()),
    }
}

/// The name of a field of a document's own in the index. It tells apart what a path has held under different definitions, so that a
/// changed definition is a new field, and has no dot, which would need care in paths of the index.
pub(super) fn own_key(field: &filter::Field) -> String {
    let kind = match field.kind {
        filter::Kind::String => 's',
        filter::Kind::Number => 'n',
        filter::Kind::Boolean => 'b',
        filter::Kind::Date => 'd',
    };
    let many = if field.is_array { "*" } else { "" };
    format!("{kind}{many}:{}", field.path.replace('.', ":"))
}

/// FNV-1a. Stored in the index, so it never changes; who compares hashes compares the ids too.
pub(super) fn hash(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the index stores of a document: `format: u8 = 1 | kind: u8 | epoch: u32 | position: u64 |` then, of a live document
/// (kind 1), its JSON; of a delete (kind 2), `version: u64`. Numbers are little-endian.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    pub(super) offset: Offset,
    pub(super) stored: Stored,
}

const FORMAT: u8 = 1;
const LIVE: u8 = 1;
const DELETED: u8 = 2;
const HEAD: usize = 14;

impl Source {
    pub(super) fn encode_live(document: &Document, offset: Offset) -> Result<Vec<u8>> {
        let mut out = Self::head(LIVE, offset, 512);
        serde_json::to_writer(&mut out, document).map_err(|error| {
            let message = format!("document {} cannot be written as JSON", document.id);
            Error::new(ErrorKind::Invalid, "index", message).with_source(error)
        })?;
        Ok(out)
    }

    pub(super) fn encode_deleted(version: u64, offset: Offset) -> Vec<u8> {
        let mut out = Self::head(DELETED, offset, 8);
        out.extend(version.to_le_bytes());
        out
    }

    fn head(kind: u8, offset: Offset, capacity: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + capacity);
        out.extend([FORMAT, kind]);
        out.extend(offset.epoch.to_le_bytes());
        out.extend(offset.position.to_le_bytes());
        out
    }

    /// The offset alone.
    pub(super) fn decode_offset(bytes: &[u8]) -> Result<Offset> {
        Ok(Self::split(bytes)?.1)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let (kind, offset, rest) = Self::split(bytes)?;
        let stored = match kind {
            LIVE => Stored::Live(serde_json::from_slice(rest).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "read document", "the stored JSON is damaged").with_source(error)
            })?),
            DELETED => {
                let version = rest.try_into().map_err(|_| corrupt("a delete without its version"))?;
                Stored::Deleted { version: u64::from_le_bytes(version) }
            }
            other => return Err(corrupt(format!("kind {other} is not known to this build"))),
        };
        Ok(Self { offset, stored })
    }

    fn split(bytes: &[u8]) -> Result<(u8, Offset, &[u8])> {
        let head: &[u8; HEAD] = bytes.first_chunk().ok_or_else(|| corrupt("cut short"))?;
        let [format, kind, e0, e1, e2, e3, position @ ..] = head;
        if *format != FORMAT {
            return Err(corrupt(format!("format {format} is not known to this build")));
        }
        let offset = Offset::new(u32::from_le_bytes([*e0, *e1, *e2, *e3]), u64::from_le_bytes(*position));
        Ok((*kind, offset, &bytes[HEAD..]))
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, "read document", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Document {
        serde_json::from_value(json!({
            "id": "d1", "type": "task", "appId": "a", "userId": "u", "createdAt": "2026-11-24T17:11:29.123Z",
            "updatedAt": "2026-11-24T17:11:30.000Z", "version": 3, "title": "x", "n": 0.1,
        }))
        .expect("a document")
    }

    #[test]
    fn the_stored_form_of_format_1_is_read_and_written_for_ever() {
        let offset = Offset::new(2, 0x0102);
        let head = [1, 1, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        let json = br#"{"id":"d1","type":"task","appId":"a","userId":"u","createdAt":"2026-11-24T17:11:29.123Z","updatedAt":"2026-11-24T17:11:30.000Z","version":3,"n":0.1,"title":"x"}"#;
        let golden = [&head[..], &json[..]].concat();
        assert_eq!(Source::encode_live(&document(), offset).expect("bytes"), golden);
        assert_eq!(Source::decode(&golden).expect("a source"), Source { offset, stored: Stored::Live(document()) });

        let golden = [1, 2, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Source::encode_deleted(7, offset), golden);
        let deleted = Source { offset, stored: Stored::Deleted { version: 7 } };
        assert_eq!(Source::decode(&golden).expect("a source"), deleted);
    }

    #[test]
    fn damaged_and_newer_sources_are_refused() {
        let newer = [9, 1, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 7];
        let unknown = [1, 9, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 7];
        let no_json = [1, 1, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 7];
        let no_version = [1, 2, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 7];
        for bytes in [&newer[..], &unknown, &no_json, &no_version, &[1, 1, 2], &[]] {
            assert_eq!(Source::decode(bytes).expect_err("an error").kind, ErrorKind::Corrupt, "{bytes:?}");
        }
    }

    #[test]
    fn hashes_never_change() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
