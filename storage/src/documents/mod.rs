//! The seam that holds the documents: by key, and by filter.

use std::fmt::{self, Write as _};

use async_trait::async_trait;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    Result,
    changelog::LogEntry,
    model::{
        AppId, Document, DocumentId, ModelName, Offset,
        filter::{Condition, Field},
    },
};

#[cfg(feature = "elasticsearch")]
pub mod elasticsearch;
pub mod tantivy;

/// What is stored under a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// It is there, as of its newest version.
    Live(Document),
    /// It was deleted; `version` counts the delete. Kept while the change log holds the delete, so that an id that is created
    /// again goes on from it.
    Deleted {
        /// The version of the delete: that of the document, and one more.
        version: u64,
    },
}

/// Which documents of a model, and in which order.
#[derive(Debug, Clone)]
pub struct Query {
    /// Nothing of other applications is ever found.
    pub app: AppId,
    /// Documents of one model only.
    pub model: ModelName,
    /// Filter and rules in one.
    pub condition: Condition,
    /// Documents without a sort field come last in both directions; ties by id, ascending. Of an array the smallest element
    /// counts, the largest in descending order.
    pub sort: Vec<Sort>,
    /// Most documents of a page; 0 gives none, and the total where that is asked for.
    pub limit: usize,
    /// The cursor of an earlier answer to the same query.
    pub cursor: Option<String>,
    /// Also count all that match.
    pub count: bool,
    /// Words that the string fields have to contain (full text).
    pub text: Option<String>,
    /// The answer reflects at least this offset, which is applied: whoever asks has waited for that.
    pub at_least: Option<Offset>,
}

impl Query {
    /// Names everything that decides which documents come in which order: a cursor is of one such query.
    pub(crate) fn fingerprint(&self) -> [u8; 8] {
        struct Digest(Sha256);
        impl fmt::Write for Digest {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.update(text);
                Ok(())
            }
        }
        let mut digest = Digest(Sha256::new());
        let written =
            write!(digest, "{}/{}/{:?}/{:?}/{:?}", self.app, self.model, self.condition, self.sort, self.text);
        debug_assert!(written.is_ok(), "a digest takes every text");
        let digest = digest.0.finalize();
        std::array::from_fn(|index| digest[index])
    }
}

/// One key of an order. Documents without the field come last in both directions; ties go by id, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Sort {
    /// A filterable field of the model, or a universal one.
    pub field: Field,
    /// From the largest on. Strings compare by code point.
    pub descending: bool,
}

/// A page of what was found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// In the order that was asked for.
    pub documents: Vec<Document>,
    /// Where to go on; none at the end.
    pub cursor: Option<String>,
    /// How many there are on all pages, where that was asked for.
    pub total: Option<u64>,
}

/// The documents of all applications.
#[async_trait]
pub trait Documents: Send + Sync {
    /// Takes what the log decided. Entries that are no change of a document are passed over. Applying an entry again, or one
    /// that is older than what is stored, changes nothing: the higher log position wins. Waits while its buffer is full.
    /// `get` sees what was applied as soon as this returns.
    async fn apply(&self, app: &AppId, entries: &[LogEntry]) -> Result<()>;

    /// By key, in the order asked for.
    async fn get(&self, app: &AppId, model: &ModelName, ids: &[DocumentId]) -> Result<Vec<Option<Stored>>>;

    /// By filter. Sees everything that was applied before the call. `Invalid` for a cursor that is not of this query, and for more
    /// sort fields than the store takes (8 are possible); `Unavailable` while a field that it names is not indexed;
    /// `Unsupported` for full text where the store has none.
    async fn search(&self, query: Query) -> Result<Found>;

    /// How many live documents a model has.
    async fn count(&self, app: &AppId, model: &ModelName) -> Result<u64>;

    /// Says which fields of a model are filterable from now on: documents that are applied later are indexed by them. Fields
    /// that were not filterable before are indexed in the background for stored documents; until then a search that names
    /// one is `Unavailable`.
    async fn define(&self, app: &AppId, model: &ModelName, fields: &[Field]) -> Result<()>;

    /// How far the background indexing of a model's fields is: path and share (0 to 1) of each that is not done.
    async fn indexing(&self, app: &AppId, model: &ModelName) -> Result<Vec<(String, f64)>>;

    /// Removes all documents of an application.
    async fn drop_application(&self, app: &AppId) -> Result<()>;

    /// Numbers for operators, as a JSON object.
    async fn statistics(&self) -> Result<Value>;
}
