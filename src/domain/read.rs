//! Reading documents under the caller's rules: by id, by query; hidden fields removed.

use nexxus_storage::{
    documents::Query,
    model::{Caller, ChangeId, Document, DocumentId, ModelName, Offset, Problem},
};

use super::{Application, Domain};

/// What a query gave, ready to be shown to its caller.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Items {
    pub items: Vec<Document>,
    pub cursor: Option<String>,
    pub total: Option<u64>,
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
    pub async fn query(&self, _app: &Application, _caller: &Caller, _query: Query) -> Result<Items, Problem> {
        todo!()
    }

    /// Waits (5 s, then 504) until this change is applied; gives its offset. For `nxx-after`.
    pub async fn wait_for(&self, _app: &Application, _change: ChangeId) -> Result<Offset, Problem> {
        todo!()
    }
}
