//! What can be subscribed to (contract §1 and §7).

use std::{fmt, sync::Arc};

use super::{AppId, DocumentId, Filter, ModelName, UserId};

/// An application's model, optionally one document, optionally one user's documents, optionally a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Channel {
    pub app: AppId,
    pub model: ModelName,
    pub id: Option<DocumentId>,
    pub user: Option<UserId>,
    pub filter: Option<Arc<Filter>>,
}

impl fmt::Display for Channel {
    /// The channel key: `app:A:model:M`, `app:A:user:U:model:M:id:ID`, …, with `:filter:HASH` where there is a filter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "app:{}", self.app)?;
        if let Some(user) = &self.user {
            write!(f, ":user:{user}")?;
        }
        write!(f, ":model:{}", self.model)?;
        if let Some(id) = &self.id {
            write!(f, ":id:{id}")?;
        }
        match &self.filter {
            Some(filter) => write!(f, ":filter:{}", filter.hash()),
            None => Ok(()),
        }
    }
}
