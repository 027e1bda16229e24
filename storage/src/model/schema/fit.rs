//! Whether fields in canonical form fit their definitions.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    ARRAY_ELEMENTS, DOCUMENT_FIELDS, FILTERABLE_STRING_BYTES, Field, FieldType, UNIVERSAL_FIELDS, canonical_number,
};
use crate::model::{
    Timestamp,
    pointer::{At, Faults},
};

/// What fields are judged as.
#[derive(Clone, Copy, PartialEq)]
enum Judged {
    New { privileged: bool },
    Stored,
}

/// The faults of a new document whose defaults are not filled in yet.
pub(super) fn new_document(
    fields: &Map<String, Value>,
    definitions: &BTreeMap<String, Field>,
    privileged: bool,
) -> Faults {
    let mut fit = Fit { judged: Judged::New { privileged }, faults: Faults::default() };
    fit.fields(fields, definitions, &At::ROOT);
    fit.faults
}

/// The faults of a document that is stored, or is to be stored.
pub(super) fn stored_document(fields: &Map<String, Value>, definitions: &BTreeMap<String, Field>) -> Faults {
    let mut fit = Fit { judged: Judged::Stored, faults: Faults::default() };
    fit.fields(fields, definitions, &At::ROOT);
    fit.faults
}

/// The faults of a value in canonical form, by itself.
pub(super) fn field_value(value: &Value, field: &Field, at: &At<'_>, faults: &mut Faults) {
    let mut fit = Fit { judged: Judged::New { privileged: true }, faults: std::mem::take(faults) };
    fit.value(value, field, at);
    *faults = fit.faults;
}

/// Adds a fault when a document has too many fields.
pub(super) fn count_fields(fields: &Map<String, Value>, faults: &mut Faults) {
    fn count(fields: &Map<String, Value>) -> usize {
        fields.len() + fields.values().map(count_value).sum::<usize>()
    }
    fn count_value(value: &Value) -> usize {
        match value {
            Value::Object(inner) => count(inner),
            Value::Array(elements) => elements.iter().map(count_value).sum(),
            _ => 0,
        }
    }
    if count(fields) > DOCUMENT_FIELDS {
        faults.add(&At::ROOT, format!("a document has at most {DOCUMENT_FIELDS} fields, nested ones counted"));
    }
}

struct Fit {
    judged: Judged,
    faults: Faults,
}

impl Fit {
    fn fields(&mut self, fields: &Map<String, Value>, definitions: &BTreeMap<String, Field>, around: &At<'_>) {
        let privileged = self.judged != Judged::New { privileged: false };
        for (name, value) in fields {
            if self.faults.is_full() {
                return;
            }
            let at = around.name(name);
            match definitions.get(name) {
                Some(field) if field.hidden && !privileged => self.faults.add(&at, "unknown field"),
                Some(field) if field.read_only && !privileged => {
                    self.faults.add(&at, "read-only: only an admin may set it");
                }
                Some(field) => self.value(value, field, &at),
                None if UNIVERSAL_FIELDS.contains(&name.as_str()) => self.faults.add(&at, "not a field of the model"),
                None => self.faults.add(&at, "unknown field"),
            }
        }
        for (name, field) in definitions {
            if field.required && field.default.is_none() && !fields.contains_key(name) {
                // What a caller may not know of is not named.
                if field.hidden && !privileged {
                    self.faults.add(around, "a field is required that only an admin may set");
                } else {
                    self.faults.add(&around.name(name), "required");
                }
            }
        }
    }

    fn value(&mut self, value: &Value, field: &Field, at: &At<'_>) {
        let Some(element_type) = field.array_type else { return self.single(value, field.field_type, field, at) };
        let Value::Array(elements) = value else { return self.faults.add(at, "not an array") };
        if elements.len() > ARRAY_ELEMENTS {
            return self.faults.add(at, format!("an array has at most {ARRAY_ELEMENTS} elements"));
        }
        self.length(elements.len(), field, "elements", at);
        for (index, element) in elements.iter().enumerate() {
            if self.faults.is_full() {
                return;
            }
            let at = at.index(index);
            if element.is_null() {
                self.faults.add(&at, "null inside an array");
            } else {
                self.single(element, element_type, field, &at);
            }
        }
    }

    fn single(&mut self, value: &Value, field_type: FieldType, field: &Field, at: &At<'_>) {
        let n_faults = self.faults.len();
        match field_type {
            FieldType::String => self.string(value, field, at),
            FieldType::Number => self.number(value, field, at),
            FieldType::Boolean if value.is_boolean() => {}
            FieldType::Boolean => self.faults.add(at, "not a boolean"),
            FieldType::Date => self.date(value, at),
            FieldType::Object => match (value, &field.properties) {
                (Value::Object(fields), Some(properties)) => self.fields(fields, properties, at),
                _ => self.faults.add(at, "not an object"),
            },
            // The element type of an array, which `definition` never lets be one.
            FieldType::Array => self.faults.add(at, "an array inside an array"),
        }
        if let Some(one_of) = &field.one_of
            && n_faults == self.faults.len()
            && !one_of.contains(value)
        {
            self.faults.add(at, format!("not one of {}", listed(one_of)));
        }
    }

    fn string(&mut self, value: &Value, field: &Field, at: &At<'_>) {
        let Value::String(text) = value else { return self.faults.add(at, "not a string") };
        if field.filterable && text.len() > FILTERABLE_STRING_BYTES {
            self.faults.add(at, format!("a filterable string has at most {FILTERABLE_STRING_BYTES} bytes"));
        }
        if field.field_type == FieldType::String && (field.min_length.is_some() || field.max_length.is_some()) {
            self.length(text.chars().count(), field, "characters", at);
        }
    }

    fn number(&mut self, value: &Value, field: &Field, at: &At<'_>) {
        let Value::Number(number) = value else { return self.faults.add(at, "not a number") };
        match canonical_number(number) {
            None => return self.faults.add(at, "a number is at most 2^53 and at least -2^53"),
            Some(canonical) if canonical != *number => return self.faults.add(at, "not in canonical form"),
            Some(_) => {}
        }
        let number = number.as_f64().unwrap_or_default();
        if let Some(minimum) = field.minimum.filter(|minimum| number < *minimum) {
            self.faults.add(at, format!("less than {minimum}"));
        }
        if let Some(maximum) = field.maximum.filter(|maximum| number > *maximum) {
            self.faults.add(at, format!("greater than {maximum}"));
        }
    }

    fn date(&mut self, value: &Value, at: &At<'_>) {
        match Timestamp::from_json(value) {
            Ok(time) if value.as_str().is_some_and(|text| time.is_printed_as(text)) => {}
            Ok(_) => self.faults.add(at, "not in canonical form"),
            Err(error) => self.faults.add(at, error.to_string()),
        }
    }

    fn length(&mut self, length: usize, field: &Field, unit: &str, at: &At<'_>) {
        let length = length as u64;
        if let Some(minimum) = field.min_length.filter(|minimum| length < *minimum) {
            self.faults.add(at, format!("fewer than {minimum} {unit}"));
        }
        if let Some(maximum) = field.max_length.filter(|maximum| length > *maximum) {
            self.faults.add(at, format!("more than {maximum} {unit}"));
        }
    }
}

/// The values of an enum for a message, cut where they are many.
fn listed(values: &[Value]) -> String {
    let mut text = values.iter().take(10).map(Value::to_string).collect::<Vec<_>>().join(", ");
    if values.len() > 10 {
        text.push_str(", …");
    }
    text
}
