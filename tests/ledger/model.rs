//! What a write does to the document that it meets, told from the contract alone: the checker's own opinion. It shares no code with
//! the server.

use serde_json::{Map, Value, json};

use crate::evidence::{Evidence, Filter, Op, Patch, Wanted, Who};

pub(crate) const TASK: &str = "task";
pub(crate) const NOTE: &str = "note";
/// Only the admin writes it; who may read it changes ([`crate::worlds`]).
pub(crate) const PAPER: &str = "paper";
pub(crate) const MODELS: [&str; 4] = [TASK, NOTE, PAPER, END];
/// Everybody listens to it; its only document says that the run is over.
pub(crate) const END: &str = "end";

fn schema() -> Value {
    let fields = json!({
        "tag": { "type": "string" },
        "n": { "type": "number", "filterable": true },
        "kind": { "type": "string", "filterable": true },
        "open": { "type": "boolean", "filterable": true },
        "log": { "type": "array", "arrayType": "string" },
        "text": { "type": "string" },
        "meta": { "type": "object", "properties": {
            "a": { "type": "string", "filterable": true },
            "b": { "type": "number" },
        }},
    });
    json!({ TASK: fields, NOTE: fields, PAPER: fields, END: { "tag": { "type": "string" } } })
}

/// The application, but for its id. `read`: who may read papers.
pub(crate) fn definition(read: &Value) -> Value {
    json!({ "name": "ledger", "schema": schema(), "rules": rules(read) })
}

fn rules(read: &Value) -> Value {
    let any = json!({ "read": "user", "create": "user", "update": "user", "delete": "user" });
    let note = json!({
        "read": { "$or": [{ "open": true }, { "userId": "$user.id" }] },
        "create": "user", "update": "user", "delete": "owner",
    });
    let paper = json!({ "read": read, "create": "none", "update": "none", "delete": "none" });
    json!({ TASK: any, NOTE: note, PAPER: paper, END: any })
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) owner: Option<String>,
    pub(crate) version: u64,
    pub(crate) fields: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum State {
    #[default]
    Absent,
    Deleted {
        version: u64,
    },
    Live(Document),
}

impl State {
    pub(crate) fn document(&self) -> Option<&Document> {
        match self {
            Self::Live(document) => Some(document),
            Self::Absent | Self::Deleted { .. } => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The state that it leads to.
    Changed(State),
    Unchanged,
    /// The problem's type.
    Refused(&'static str),
}

impl Evidence {
    fn id_of(&self, who: Who) -> Option<&String> {
        match who {
            Who::Admin => None,
            Who::User(place) => self.users.get(place),
        }
    }

    /// Whether the rules let somebody read a document; of papers only for the admin, who writes them.
    pub(crate) fn may_read(&self, who: Who, model: &str, document: &Document) -> bool {
        who == Who::Admin
            || matches!(model, TASK | END)
            || model == NOTE && document.fields.get("open") == Some(&json!(true))
            || model == NOTE && self.id_of(who) == document.owner.as_ref()
    }

    /// Whether a document belongs to what a subscription is to, whoever may read it.
    pub(crate) fn is_wanted(&self, wanted: &Wanted, model: &str, id: &str, document: &Document) -> bool {
        let fields = &document.fields;
        wanted.model == model
            && wanted.id.as_ref().is_none_or(|wanted| wanted == id)
            && wanted.owner.is_none_or(|owner| self.users.get(owner) == document.owner.as_ref())
            && match wanted.filter {
                None => true,
                Some(Filter::AtLeast(least)) => number(fields.get("n")).is_some_and(|n| n >= least as f64),
                Some(Filter::AOrB) => matches!(fields.get("kind").and_then(Value::as_str), Some("a" | "b")),
                Some(Filter::ClosedOrBare) => {
                    fields.get("open") == Some(&json!(false))
                        || fields.get("meta").is_none_or(|meta| meta["a"].is_null())
                }
            }
    }

    pub(crate) fn decide(&self, who: Who, model: &str, op: &Op, state: &State) -> Verdict {
        let version = match state {
            State::Absent => 0,
            State::Deleted { version } => *version,
            State::Live(document) => document.version,
        };
        match (op, state.document()) {
            (Op::Create { .. }, Some(_)) => Verdict::Refused("exists"),
            (Op::Create { fields }, None) => {
                let fields = canonical_fields(fields);
                let owner = self.id_of(who).cloned();
                Verdict::Changed(State::Live(Document { owner, version: version + 1, fields }))
            }
            (_, None) => Verdict::Refused("not-found"),
            (_, Some(document)) if !self.may_read(who, model, document) => Verdict::Refused("not-found"),
            (Op::Patch { expected: Some(expected), .. } | Op::Delete { expected: Some(expected) }, _)
                if *expected != version =>
            {
                Verdict::Refused("precondition-failed")
            }
            (Op::Delete { .. }, Some(document)) => {
                let is_owner = who == Who::Admin || self.id_of(who) == document.owner.as_ref();
                if model == NOTE && !is_owner {
                    return Verdict::Refused("forbidden");
                }
                Verdict::Changed(State::Deleted { version: version + 1 })
            }
            (Op::Patch { patch, .. }, Some(document)) => match patched(patch, document) {
                Ok(after) if after == *document => Verdict::Unchanged,
                Ok(after) => Verdict::Changed(State::Live(Document { version: version + 1, ..after })),
                Err(slug) => Verdict::Refused(slug),
            },
        }
    }
}

fn patched(patch: &Patch, document: &Document) -> Result<Document, &'static str> {
    match patch {
        Patch::Nexxus(patches) => Ok(after_patches(document, patches)),
        Patch::Merge(members) => {
            let mut after = document.clone();
            merge(&mut after.fields, members);
            Ok(after)
        }
        Patch::Standard(operations) => {
            let mut after = document.clone();
            operations.iter().try_for_each(|operation| operate(&mut after.fields, operation))?;
            Ok(after)
        }
    }
}

/// A document after Nexxus patches: those of a write, and those of a frame.
pub(crate) fn after_patches(document: &Document, patches: &[Value]) -> Document {
    let mut after = document.clone();
    for patch in patches {
        let none = Vec::new();
        let paths = patch["path"].as_array().unwrap_or(&none);
        for (place, path) in paths.iter().enumerate() {
            let (op, path) = (patch["op"].as_str().unwrap_or(""), path.as_str().unwrap_or(""));
            let value = canonical(&patch["value"][place]);
            if path == "userId" {
                after.owner = value.as_str().map(str::to_owned);
                continue;
            }
            let (parent, name) = match path.split_once('.') {
                Some((object, name)) => {
                    if op == "remove" && !after.fields.contains_key(object) {
                        continue;
                    }
                    let object = after.fields.entry(object).or_insert_with(|| json!({}));
                    (object.as_object_mut().expect("an object"), name)
                }
                None => (&mut after.fields, path),
            };
            step(parent, op, name, value);
        }
    }
    after
}

fn step(fields: &mut Map<String, Value>, op: &str, name: &str, value: Value) {
    let current = fields.get(name).cloned();
    let next = match (op, current) {
        ("remove", _) => Value::Null,
        ("replace", _) => value,
        ("incr", current) => json!(number(current.as_ref()).unwrap_or(0.0) + number(Some(&value)).unwrap_or(0.0)),
        ("decr", current) => json!(number(current.as_ref()).unwrap_or(0.0) - number(Some(&value)).unwrap_or(0.0)),
        ("append", Some(Value::String(text))) => json!(text + value.as_str().unwrap_or("")),
        ("append", Some(Value::Array(elements))) => json!([elements, elements_of(value)].concat()),
        ("prepend", Some(Value::Array(elements))) => json!([elements_of(value), elements].concat()),
        ("append" | "prepend", _) if name == "log" => json!(elements_of(value)),
        (_, _) => value,
    };
    if next.is_null() {
        fields.remove(name);
    } else {
        fields.insert(name.to_owned(), next);
    }
}

fn elements_of(value: Value) -> Vec<Value> {
    match value {
        Value::Array(elements) => elements,
        element => vec![element],
    }
}

/// RFC 7396.
fn merge(fields: &mut Map<String, Value>, members: &Map<String, Value>) {
    for (name, value) in members {
        match (value, fields.get_mut(name)) {
            (Value::Null, _) => drop(fields.remove(name)),
            (Value::Object(members), Some(Value::Object(object))) => merge(object, members),
            (Value::Object(members), _) => {
                let mut object = Map::new();
                merge(&mut object, members);
                fields.insert(name.clone(), Value::Object(object));
            }
            (value, _) => drop(fields.insert(name.clone(), canonical(value))),
        }
    }
}

/// As much of RFC 6902 as the writers use: `test`, `add`, `replace`, `remove` of fields, and of members of objects.
fn operate(fields: &mut Map<String, Value>, operation: &Value) -> Result<(), &'static str> {
    let path: Vec<&str> = operation["path"].as_str().unwrap_or("").split('/').skip(1).collect();
    let (parent, name) = match path.as_slice() {
        [name] => (Some(fields), *name),
        [object, name] => (fields.get_mut(*object).and_then(Value::as_object_mut), *name),
        _ => panic!("no path that writers use: {operation}"),
    };
    let value = canonical(&operation["value"]);
    let op = operation["op"].as_str().unwrap_or("");
    let Some(parent) = parent else {
        return Err(if op == "test" { "precondition-failed" } else { "patch-conflict" });
    };
    match op {
        "test" if parent.get(name) == Some(&value) => {}
        "test" => return Err("precondition-failed"),
        "replace" | "remove" if !parent.contains_key(name) => return Err("patch-conflict"),
        "remove" => drop(parent.remove(name)),
        _ => drop(parent.insert(name.to_owned(), value)),
    }
    Ok(())
}

pub(crate) fn number(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64)
}

/// Numbers that mean the same are the same.
pub(crate) fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(elements) => elements.iter().map(canonical).collect(),
        Value::Object(fields) => Value::Object(canonical_fields(fields)),
        other => other.clone(),
    }
}

fn canonical_fields(fields: &Map<String, Value>) -> Map<String, Value> {
    fields.iter().map(|(name, value)| (name.clone(), canonical(value))).collect()
}

/// A document as the API and frames show it.
pub(crate) fn shown(value: &Value) -> Option<Document> {
    let mut fields = canonical_fields(value.as_object()?);
    let owner = fields.remove("userId").and_then(|owner| owner.as_str().map(str::to_owned));
    let version = value["version"].as_u64()?;
    for name in ["id", "type", "appId", "createdAt", "updatedAt", "version"] {
        fields.remove(name)?;
    }
    Some(Document { owner, version, fields })
}
