//! Models and their fields (contract §2): what a document of an application may hold.
//!
//! - A schema is read by [`definition`], which refuses what could never be fulfilled; so a [`Schema`] is always valid.
//! - A document is brought into canonical form by [`canonical`] and judged by [`fit`].
//! - Whether stored documents survive a new schema is said by [`conflicts`].
//!
//! Points that the contract leaves open: on an array, `minLength` and `maxLength` count elements, `enum`, `minimum` and
//! `maximum` apply to each element; there are no arrays of arrays; lengths of strings count characters (code points); nested
//! fields may have any name, universal ones too.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{FieldError, ModelName, filter::Kind, pointer::Faults};

mod canonical;
mod conflicts;
mod definition;
mod fit;

pub(crate) use canonical::canonical_number;

/// The names that every document has besides its fields; no field may be called so.
pub const UNIVERSAL_FIELDS: [&str; 7] = ["id", "type", "appId", "userId", "createdAt", "updatedAt", "version"];

/// Longest filterable string, in bytes of UTF-8.
pub const FILTERABLE_STRING_BYTES: usize = 8 * 1024;
/// Most elements of an array.
pub const ARRAY_ELEMENTS: usize = 1_000;
/// Most fields of a document, nested ones counted; also most fields that a model may define.
pub const DOCUMENT_FIELDS: usize = 1_000;
/// Deepest nesting of a document: objects and arrays within one another, the document itself counted.
pub const DOCUMENT_DEPTH: usize = 16;
/// Numbers lie between minus and plus this, 2^53: every double beyond is an integer that not every client can tell from its
/// neighbours.
pub const LARGEST_NUMBER: i64 = 1 << 53;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    #[serde(rename = "type")]
    pub field_type: FieldType,
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub filterable: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub hidden: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// What the elements of an array are; never an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array_type: Option<FieldType>,
    /// The fields of an object, or of each object in an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, Field>>,
    /// Canonical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Canonical. Of an array: what its elements may be.
    #[serde(rename = "enum", skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    /// Characters of a string, elements of an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The fields of one model. Made by [`Model::parse`] or [`Schema::parse`], so they are always valid.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct Model {
    pub fields: BTreeMap<String, Field>,
    #[serde(skip)]
    has_hidden: bool,
}

/// Why a filter or a sort cannot name a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnusableField {
    #[error("unknown field")]
    Unknown,
    #[error("the field is not filterable")]
    NotFilterable,
}

/// The models of an application. Made by [`Schema::parse`], so it is always valid.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct Schema {
    pub models: BTreeMap<ModelName, Arc<Model>>,
}

impl Schema {
    /// Reads and checks `{ MODEL: { FIELD: {…} } }`. Every fault is reported (the first 50), each with a JSON Pointer below
    /// the schema.
    pub fn parse(schema: &Value) -> Result<Self, Vec<FieldError>> {
        let mut faults = Faults::default();
        let models = definition::models(schema, &mut faults);
        faults.result(Self { models })
    }

    pub fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.get(name)
    }

    /// Where the step to another schema can make stored documents invalid: removed models and fields, other types, narrower
    /// limits, what is newly required without a default. Each with a JSON Pointer below the schema. Empty when every document
    /// that fits this schema fits the next one, but for one thing that the contract always allows: a string that becomes
    /// `filterable` while a document has more than 8 KiB in it; such a document has to shorten it with its next change.
    pub fn conflicts(&self, next: &Schema) -> Vec<FieldError> {
        conflicts::between(self, next)
    }

    /// The fields (model, dotted path) that filters may name under this schema and no longer under the next one: a conflict
    /// where a rule or an open subscription names one.
    pub fn no_longer_filterable(&self, next: &Schema) -> Vec<(ModelName, Arc<str>)> {
        conflicts::no_longer_filterable(self, next)
    }
}

impl Model {
    /// Reads and checks `{ FIELD: {…} }`, as [`Schema::parse`] does for each model.
    pub fn parse(fields: &Value) -> Result<Self, Vec<FieldError>> {
        let mut faults = Faults::default();
        let model = definition::model(fields, &mut faults);
        faults.result(model)
    }

    fn of(fields: BTreeMap<String, Field>) -> Self {
        fn any_hidden(fields: &BTreeMap<String, Field>) -> bool {
            fields.values().any(|field| field.hidden || field.properties.as_ref().is_some_and(any_hidden))
        }
        Self { has_hidden: any_hidden(&fields), fields }
    }

    /// Checks the fields of a new document and brings them into canonical form: defaults filled in, nulls removed, dates as
    /// [`Timestamp`](super::Timestamp) prints them, integral numbers as integers. `privileged` callers may set `readOnly` and
    /// `hidden` fields; for others `readOnly` fields are refused and `hidden` ones are unknown.
    pub fn accept(
        &self,
        mut fields: Map<String, Value>,
        privileged: bool,
    ) -> Result<Map<String, Value>, Vec<FieldError>> {
        canonical::fields(&mut fields, &self.fields, privileged);
        let mut faults = fit::new_document(&fields, &self.fields, privileged);
        // Defaults were checked when the schema was read; only what they add to the number of fields is new.
        canonical::fill_defaults(&mut fields, &self.fields);
        fit::count_fields(&fields, &mut faults);
        faults.result(fields)
    }

    /// Whether stored fields fit: what a patch led to, or documents under a changed schema. They have to be in canonical form.
    /// A required field that has a default may be missing: documents from before it was required lack it.
    pub fn check(&self, fields: &Map<String, Value>) -> Result<(), Vec<FieldError>> {
        let mut faults = fit::stored_document(fields, &self.fields);
        fit::count_fields(fields, &mut faults);
        faults.result(())
    }

    /// Brings fields into the canonical form that [`check`](Self::check) asks for, without defaults. Nulls of fields that the
    /// caller cannot know stay, so that they are refused as unknown.
    pub fn canonicalize(&self, fields: &mut Map<String, Value>, privileged: bool) {
        canonical::fields(fields, &self.fields, privileged);
    }

    /// The definition at a path through objects.
    pub fn field(&self, path: &[&str]) -> Option<&Field> {
        self.lookup(path.iter().copied()).map(|(field, _)| field)
    }

    /// Whether any field is hidden, so that there are two views of a document.
    pub fn has_hidden(&self) -> bool {
        self.has_hidden
    }

    /// Removes what only admins may see.
    pub fn hide(&self, fields: &mut Map<String, Value>) {
        if self.has_hidden {
            hide_fields(fields, &self.fields);
        }
    }

    /// Whether a path (of a patch) leads to or below a hidden field. It may lead through elements of arrays.
    pub fn is_hidden(&self, path: &[String]) -> bool {
        if !self.has_hidden {
            return false;
        }
        let mut names = path.iter();
        let mut fields = &self.fields;
        while let Some(field) = names.next().and_then(|name| fields.get(name.as_str())) {
            if field.hidden {
                return true;
            }
            if field.field_type == FieldType::Array {
                names.next();
            }
            match &field.properties {
                Some(properties) => fields = properties,
                None => return false,
            }
        }
        false
    }

    /// The filterable fields of a document's own, with what filters and the index need to know of each.
    pub fn filterable(&self) -> Vec<super::filter::Field> {
        fn collect(prefix: &str, fields: &BTreeMap<String, Field>, found: &mut Vec<super::filter::Field>) {
            for (name, field) in fields {
                let path = format!("{prefix}{name}");
                if let Some(field) = field.as_filter_field(&path) {
                    found.push(field);
                } else if let (FieldType::Object, Some(properties)) = (field.field_type, &field.properties) {
                    collect(&format!("{path}."), properties, found);
                }
            }
        }
        let mut found = Vec::new();
        collect("", &self.fields, &mut found);
        found
    }

    /// What a filter or a sort of a caller may name: a universal or filterable field at a dotted path. Hidden fields look unknown
    /// to all but `privileged` callers.
    pub fn filter_field(&self, path: &str, privileged: bool) -> Result<super::filter::Field, UnusableField> {
        if let Some(field) = super::filter::Field::universal(path) {
            return Ok(field);
        }
        match self.lookup(path.split('.')) {
            Some((field, hidden)) if privileged || !hidden => {
                field.as_filter_field(path).ok_or(UnusableField::NotFilterable)
            }
            _ => Err(UnusableField::Unknown),
        }
    }

    /// The definition at a path through objects, and whether it is hidden or lies within something hidden.
    pub(crate) fn lookup<'p>(&self, path: impl IntoIterator<Item = &'p str>) -> Option<(&Field, bool)> {
        let mut names = path.into_iter();
        let mut field = self.fields.get(names.next()?)?;
        let mut hidden = field.hidden;
        for name in names {
            if field.field_type != FieldType::Object {
                return None;
            }
            field = field.properties.as_ref()?.get(name)?;
            hidden |= field.hidden;
        }
        Some((field, hidden))
    }
}

impl Field {
    /// What its values are (of an array: its elements), if they are primitives.
    pub fn kind(&self) -> Option<Kind> {
        match self.array_type.unwrap_or(self.field_type) {
            FieldType::String => Some(Kind::String),
            FieldType::Number => Some(Kind::Number),
            FieldType::Boolean => Some(Kind::Boolean),
            FieldType::Date => Some(Kind::Date),
            FieldType::Array | FieldType::Object => None,
        }
    }

    /// Brings a value of it into canonical form. A null stays: it is for the caller to remove it.
    pub(crate) fn canonicalize(&self, value: &mut Value, privileged: bool) {
        canonical::field_value(value, self, privileged);
    }

    /// What filters need to know of it, standing at this path; none when they may not name it.
    fn as_filter_field(&self, path: &str) -> Option<super::filter::Field> {
        let kind = self.kind().filter(|_| self.filterable)?;
        let is_array = self.field_type == FieldType::Array;
        Some(super::filter::Field { path: path.into(), kind, is_array, is_universal: false })
    }
}

fn hide_fields(fields: &mut Map<String, Value>, definitions: &BTreeMap<String, Field>) {
    fn hide_value(value: &mut Value, properties: &BTreeMap<String, Field>) {
        match value {
            Value::Object(fields) => hide_fields(fields, properties),
            Value::Array(elements) => elements.iter_mut().for_each(|element| hide_value(element, properties)),
            _ => {}
        }
    }
    fields.retain(|name, value| match definitions.get(name) {
        Some(field) if field.hidden => false,
        Some(field) => {
            if let Some(properties) = &field.properties {
                hide_value(value, properties);
            }
            true
        }
        None => true,
    });
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
