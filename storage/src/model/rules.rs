//! Access rules (contract §6): who may read, create, update and delete what.

use serde::{Deserialize, Serialize};

use super::{DeviceId, UserId, change::UserFacts};

/// Who asks. Travels with every command, so that the writer judges the caller as the API saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// The admin token, or a user whose type is `admin`: past all rules.
    #[serde(default)]
    pub admin: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default)]
    pub facts: UserFacts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    Create,
    Update,
    Delete,
}

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Document, FieldError, ModelName, Schema, filter::Condition};

/// The rules of an application. Made by [`Rules::parse`], so they fit its schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    models: BTreeMap<ModelName, ModelRules>,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelRules {}

impl Rules {
    /// Reads `{ MODEL: { read, create, update, delete } }`; what is not named has the default: read and create `user`, update
    /// and delete `owner`. Faults carry a JSON Pointer below the rules.
    pub fn parse(_rules: &Value, _schema: &Schema) -> Result<Self, Vec<FieldError>> {
        todo!()
    }

    /// The rules of an application without users (`authEnabled: false`): everything is public.
    pub fn open() -> Self {
        todo!()
    }

    /// What a document has to fulfil for this caller to do this: `$user.*` bound to the caller's values, [`Condition::All`]
    /// for admins. A condition on a `$user` value that the caller does not have does not hold, and its negation neither.
    pub fn condition(&self, _model: &ModelName, _action: Action, _caller: &Caller) -> Condition {
        todo!()
    }

    pub fn allows(&self, action: Action, caller: &Caller, document: &Document) -> bool {
        self.condition(&document.model, action, caller).matches(document)
    }
}
