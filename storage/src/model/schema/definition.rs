//! Reads schemas, and refuses definitions that make no sense, each with its place.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::{DOCUMENT_DEPTH, DOCUMENT_FIELDS, Field, FieldType, Model, UNIVERSAL_FIELDS, canonical, fit};
use crate::model::{
    ModelName,
    filter::BARE_COMBINATORS,
    pointer::{At, Faults},
};

const MEMBERS: &str = "type, required, filterable, hidden, readOnly, arrayType, properties, default, enum, minLength, \
                       maxLength, minimum, maximum";

/// Reads `{ MODEL: { FIELD: {…} } }`.
pub(super) fn models(schema: &Value, faults: &mut Faults) -> BTreeMap<ModelName, Arc<Model>> {
    let mut models = BTreeMap::new();
    let Value::Object(given) = schema else {
        faults.add(&At::ROOT, "a schema is an object of models");
        return models;
    };
    for (name, fields) in given {
        let at = At::ROOT.name(name);
        match ModelName::parse(name) {
            Ok(name) => {
                models.insert(name, Arc::new(model_at(fields, &at, faults)));
            }
            Err(error) => faults.add(&at, error.to_string()),
        }
    }
    models
}

/// Reads `{ FIELD: {…} }`.
pub(super) fn model(fields: &Value, faults: &mut Faults) -> Model {
    model_at(fields, &At::ROOT, faults)
}

fn model_at(fields: &Value, at: &At<'_>, faults: &mut Faults) -> Model {
    let mut reader = Reader { faults, n_fields: 0 };
    let fields = reader.fields(fields, Place { depth: 1, in_array: false }, at);
    if reader.n_fields > DOCUMENT_FIELDS {
        faults.add(at, format!("a model has at most {DOCUMENT_FIELDS} fields, nested ones counted"));
    }
    Model::of(fields)
}

/// Where definitions stand.
#[derive(Clone, Copy)]
struct Place {
    /// Of the object that the fields are in; a document's own is 1.
    depth: usize,
    /// Whether it is in an array, at any distance.
    in_array: bool,
}

struct Reader<'f> {
    faults: &'f mut Faults,
    n_fields: usize,
}

impl Reader<'_> {
    fn fields(&mut self, fields: &Value, place: Place, around: &At<'_>) -> BTreeMap<String, Field> {
        let mut definitions = BTreeMap::new();
        let Value::Object(fields) = fields else {
            self.faults.add(around, "not an object of fields");
            return definitions;
        };
        for (name, field) in fields {
            self.n_fields += 1;
            if self.faults.is_full() || self.n_fields > DOCUMENT_FIELDS {
                break;
            }
            let at = around.name(name);
            if !is_field_name(name) {
                self.faults.add(&at, "a field name is a letter, then up to 63 letters, digits or _");
                continue;
            }
            if place.depth == 1 && UNIVERSAL_FIELDS.contains(&name.as_str()) {
                self.faults.add(&at, "every document has a field of this name anyway");
                continue;
            }
            if let Some(field) = self.field(field, place, &at) {
                if place.depth == 1 && field.filterable && BARE_COMBINATORS.contains(&name.as_str()) {
                    self.faults.add(&at.name("filterable"), "`and`, `or` and `not` mean something else in filters");
                }
                definitions.insert(name.clone(), field);
            }
        }
        definitions
    }

    fn field(&mut self, definition: &Value, place: Place, at: &At<'_>) -> Option<Field> {
        let Value::Object(given) = definition else {
            self.faults.add(at, "a field is defined by an object with a type");
            return None;
        };
        let field_type = match given.get("type") {
            Some(_) => self.field_type(given, "type", at)?,
            None => {
                self.faults.add(at, "the type is missing");
                return None;
            }
        };
        let mut field = Field {
            field_type,
            required: self.flag(given, "required", at),
            filterable: self.flag(given, "filterable", at),
            hidden: self.flag(given, "hidden", at),
            read_only: self.flag(given, "readOnly", at),
            array_type: self.element_type(given, field_type, at)?,
            properties: None,
            default: None,
            one_of: None,
            min_length: self.length(given, "minLength", at),
            max_length: self.length(given, "maxLength", at),
            minimum: self.bound(given, "minimum", at),
            maximum: self.bound(given, "maximum", at),
        };
        field.properties = self.properties(given, &field, place, at);
        self.only_known_members(given, at);
        self.limits_make_sense(&field, given, place, at);
        self.values(&mut field, given, at);
        Some(field)
    }

    fn field_type(&mut self, given: &Map<String, Value>, member: &str, at: &At<'_>) -> Option<FieldType> {
        let field_type = match given.get(member)?.as_str() {
            Some("string") => FieldType::String,
            Some("number") => FieldType::Number,
            Some("boolean") => FieldType::Boolean,
            Some("date") => FieldType::Date,
            Some("array") => FieldType::Array,
            Some("object") => FieldType::Object,
            _ => {
                self.faults.add(&at.name(member), "one of string, number, boolean, date, array, object");
                return None;
            }
        };
        Some(field_type)
    }

    /// The inner none is for fields that are no arrays, the outer one for faults.
    fn element_type(
        &mut self,
        given: &Map<String, Value>,
        field_type: FieldType,
        at: &At<'_>,
    ) -> Option<Option<FieldType>> {
        match (field_type, present(given, "arrayType")) {
            (FieldType::Array, Some(_)) => match self.field_type(given, "arrayType", at)? {
                FieldType::Array => {
                    self.faults.add(&at.name("arrayType"), "arrays hold no arrays; put the inner one into an object");
                    None
                }
                element_type => Some(Some(element_type)),
            },
            (FieldType::Array, None) => {
                self.faults.add(at, "an array needs an arrayType");
                None
            }
            (_, Some(_)) => {
                self.faults.add(&at.name("arrayType"), "only an array has it");
                None
            }
            (_, None) => Some(None),
        }
    }

    fn properties(
        &mut self,
        given: &Map<String, Value>,
        field: &Field,
        place: Place,
        at: &At<'_>,
    ) -> Option<BTreeMap<String, Field>> {
        let is_array = field.field_type == FieldType::Array;
        let has_objects = field.array_type.unwrap_or(field.field_type) == FieldType::Object;
        let at_properties = at.name("properties");
        match (has_objects, present(given, "properties")) {
            (true, Some(properties)) => {
                let depth = place.depth + if is_array { 2 } else { 1 };
                if depth > DOCUMENT_DEPTH {
                    self.faults.add(at, format!("a document is at most {DOCUMENT_DEPTH} objects and arrays deep"));
                    return None;
                }
                let place = Place { depth, in_array: place.in_array || is_array };
                Some(self.fields(properties, place, &at_properties))
            }
            (true, None) => {
                self.faults.add(at, "an object needs properties");
                None
            }
            (false, Some(_)) => {
                self.faults.add(&at_properties, "only an object or an array of objects has them");
                None
            }
            (false, None) => None,
        }
    }

    fn only_known_members(&mut self, given: &Map<String, Value>, at: &At<'_>) {
        for name in given.keys() {
            if !MEMBERS.split(", ").any(|member| member == name) {
                self.faults.add(&at.name(name), format!("unknown; a field definition has {MEMBERS}"));
            }
        }
    }

    fn limits_make_sense(&mut self, field: &Field, given: &Map<String, Value>, place: Place, at: &At<'_>) {
        let is_array = field.field_type == FieldType::Array;
        let single_type = field.array_type.unwrap_or(field.field_type);
        if field.filterable {
            let at = at.name("filterable");
            if field.kind().is_none() {
                self.faults.add(&at, "only primitives and arrays of primitives are filterable");
            } else if place.in_array {
                self.faults.add(&at, "nothing inside an array of objects is filterable");
            }
        }
        if is_array && place.depth + 1 > DOCUMENT_DEPTH {
            self.faults.add(at, format!("a document is at most {DOCUMENT_DEPTH} objects and arrays deep"));
        }
        for (members, fits, who) in [
            (["minLength", "maxLength"], is_array || single_type == FieldType::String, "a string or an array"),
            (["minimum", "maximum"], single_type == FieldType::Number, "a number or an array of numbers"),
        ] {
            for member in members {
                if !fits && present(given, member).is_some() {
                    self.faults.add(&at.name(member), format!("only {who} has it"));
                }
            }
        }
        if let (Some(least), Some(most)) = (field.min_length, field.max_length)
            && least > most
        {
            self.faults.add(&at.name("maxLength"), "less than minLength");
        }
        if let (Some(least), Some(most)) = (field.minimum, field.maximum)
            && least > most
        {
            self.faults.add(&at.name("maximum"), "less than minimum");
        }
    }

    /// The values that a definition names: they have to fit it themselves.
    fn values(&mut self, field: &mut Field, given: &Map<String, Value>, at: &At<'_>) {
        if let Some(one_of) = present(given, "enum") {
            let at = at.name("enum");
            match one_of {
                Value::Array(values) if !values.is_empty() && field.kind().is_some() => {
                    field.one_of = Some(self.enum_values(values, field, &at));
                }
                Value::Array(values) if values.is_empty() => self.faults.add(&at, "names no value"),
                Value::Array(_) => self.faults.add(&at, "only primitives and arrays of primitives have it"),
                _ => self.faults.add(&at, "not an array of values"),
            }
        }
        if let Some(default) = present(given, "default") {
            let mut default = default.clone();
            canonical::field_value(&mut default, field, true);
            fit::field_value(&default, field, &at.name("default"), self.faults);
            canonical::fill_inside(&mut default, field);
            field.default = Some(default);
        }
    }

    fn enum_values(&mut self, values: &[Value], field: &Field, at: &At<'_>) -> Vec<Value> {
        // As the definition of one element, without its limits: they are about documents.
        let single = Field {
            field_type: field.array_type.unwrap_or(field.field_type),
            array_type: None,
            min_length: None,
            max_length: None,
            ..field.clone()
        };
        let mut listed = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            let mut value = value.clone();
            canonical::field_value(&mut value, &single, true);
            fit::field_value(&value, &single, &at.index(index), self.faults);
            listed.push(value);
        }
        listed
    }

    fn flag(&mut self, given: &Map<String, Value>, member: &str, at: &At<'_>) -> bool {
        match present(given, member) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => {
                self.faults.add(&at.name(member), "true or false");
                false
            }
        }
    }

    fn length(&mut self, given: &Map<String, Value>, member: &str, at: &At<'_>) -> Option<u64> {
        let length = present(given, member)?;
        let integer = length.as_number().and_then(canonical::canonical_number).and_then(|number| number.as_u64());
        if integer.is_none() {
            self.faults.add(&at.name(member), "an integer, at least 0");
        }
        integer
    }

    fn bound(&mut self, given: &Map<String, Value>, member: &str, at: &At<'_>) -> Option<f64> {
        let bound = present(given, member)?.as_f64();
        if bound.is_none() {
            self.faults.add(&at.name(member), "a number");
        }
        bound
    }
}

/// A member that is there; null is absence.
fn present<'v>(given: &'v Map<String, Value>, member: &str) -> Option<&'v Value> {
    given.get(member).filter(|value| !value.is_null())
}

fn is_field_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
