//! Reading documents under the caller's rules: by id, by query; hidden fields removed.

use nexxus_storage::model::{Caller, Document, DocumentId, ModelName, Offset, Problem};
use serde_json::Value;

use super::{Application, Domain};

/// What a query gave, ready to be shown to its caller.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Items {
    pub items: Vec<Document>,
    pub cursor: Option<String>,
    pub total: Option<u64>,
}

impl Items {
    /// `{ items, cursor?, total? }`
    pub fn to_json(&self) -> Value {
        todo!()
    }
}

/// What a query asks for, read but not yet held against the schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Search {
    pub filter: Option<Value>,
    pub sort: Vec<String>,
    pub limit: Option<usize>,
    pub cursor: Option<String>,
    /// The fields of a document's own that are asked for.
    pub fields: Option<Vec<String>>,
    pub count: bool,
    /// The answer reflects at least this offset (`nxx-after`).
    pub at_least: Option<Offset>,
}

impl Search {
    /// The query of `GET /model/:type`, as the pairs of its query string. 400 with the place of each fault.
    pub fn from_parameters(_parameters: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problem> {
        todo!()
    }

    /// The body of `POST /model/:type/search`.
    pub fn from_body(_body: Value) -> Result<Self, Problem> {
        todo!()
    }
}

impl Domain {
    /// One document, as this caller may see it; none when it is not there or not for this caller.
    pub async fn read_document(
        &self,
        _app: &Application,
        _caller: &Caller,
        _model: &ModelName,
        _id: &DocumentId,
    ) -> Result<Option<Document>, Problem> {
        todo!()
    }

    /// A query with the read rule of this caller added to its condition.
    pub async fn search(
        &self,
        _app: &Application,
        _caller: &Caller,
        _model: &ModelName,
        _search: Search,
    ) -> Result<Items, Problem> {
        todo!()
    }

    /// Waits (5 s, then 504) until a change (a change id or an offset) is applied; gives its offset. For `nxx-after`.
    pub async fn wait_for(&self, _app: &Application, _after: &str) -> Result<Offset, Problem> {
        todo!()
    }
}
