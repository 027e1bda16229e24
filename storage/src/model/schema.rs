//! Models and their fields (contract §2): what a document of an application may hold.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FieldError, ModelName};

/// The names that every document has besides its fields; no field may be called so.
pub const UNIVERSAL_FIELDS: [&str; 7] = ["id", "type", "appId", "userId", "createdAt", "updatedAt", "version"];

/// Longest filterable string, in bytes of UTF-8.
pub const FILTERABLE_STRING_BYTES: usize = 8 * 1024;
/// Most elements of an array.
pub const ARRAY_ELEMENTS: usize = 1_000;
/// Most fields of a document, nested ones counted.
pub const DOCUMENT_FIELDS: usize = 1_000;
/// Deepest nesting of a document.
pub const DOCUMENT_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    String,
    Number,
    Boolean,
    Date,
    Array,
    Object,
}

/// The definition of a field, as it stands in an application's schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Field {
    #[serde(rename = "type")]
    pub field_type: FieldType,
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub filterable: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array_type: Option<FieldType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, Field>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    #[serde(rename = "enum", default, skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The fields of one model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Model {
    pub fields: BTreeMap<String, Field>,
}

/// The models of an application. Made by [`Schema::parse`], so it is always valid.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct Schema {
    pub models: BTreeMap<ModelName, Arc<Model>>,
}

impl Schema {
    /// Reads and checks `{ MODEL: { FIELD: {…} } }`. Every fault is reported, each with a JSON Pointer below the schema.
    pub fn parse(_schema: &Value) -> Result<Self, Vec<FieldError>> {
        todo!()
    }

    /// What in the next schema stored documents of this one may not fit: the path of each conflict.
    pub fn conflicts(&self, _next: &Schema) -> Vec<FieldError> {
        todo!()
    }

    pub fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.get(name)
    }
}

impl Model {
    /// Checks the fields of a new document and brings them into canonical form: defaults filled in, nulls removed, dates as
    /// [`Timestamp`](super::Timestamp) prints them, integral numbers as integers. `privileged` callers may set `readOnly` and
    /// `hidden` fields; for others `readOnly` fields are refused and `hidden` ones are unknown.
    pub fn accept(
        &self,
        _fields: Map<String, Value>,
        _privileged: bool,
    ) -> Result<Map<String, Value>, Vec<FieldError>> {
        todo!()
    }

    /// Whether stored fields fit: what a patch led to, or documents under a changed schema.
    pub fn check(&self, _fields: &Map<String, Value>) -> Result<(), Vec<FieldError>> {
        todo!()
    }

    /// The definition at a path through objects.
    pub fn field(&self, _path: &[&str]) -> Option<&Field> {
        todo!()
    }

    /// Whether any field is hidden, so that there are two views of a document.
    pub fn has_hidden(&self) -> bool {
        todo!()
    }

    /// Removes what only admins may see.
    pub fn hide(&self, _fields: &mut Map<String, Value>) {
        todo!()
    }

    /// Whether a path (of a patch) leads to or below a hidden field.
    pub fn is_hidden(&self, _path: &[String]) -> bool {
        todo!()
    }

    /// The filterable fields of a document's own, with what filters and the index need to know of each.
    pub fn filterable(&self) -> Vec<super::filter::Field> {
        todo!()
    }
}
