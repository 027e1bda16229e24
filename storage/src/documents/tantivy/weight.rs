//! How much memory an entry holds, so that the overlay's limit is one of bytes in fact.

use std::mem::size_of;

use serde_json::{Map, Value};

use super::overlay::Overlaid;
use crate::model::{Document, Entry, Event};

/// An entry in the tables of the overlay: slots of the maps at their usual load, the counts of the references.
const SLOT: usize = 128 + size_of::<Overlaid>() + size_of::<Entry>();
/// A node of the tree under a JSON object: room for 11 names and values.
const NODE: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 16;
/// What an allocation costs beside what was asked for.
const ALLOCATION: usize = 16;

/// Bytes of memory that an entry holds.
pub(super) fn weigh(entry: &Entry) -> usize {
    SLOT + match &entry.event {
        Event::Created { document } | Event::Imported { document } | Event::Deleted { document, .. } => {
            of_document(document)
        }
        Event::Updated { document, before, patches } => {
            let old: usize = before.fields.iter().map(|(path, value)| of_names(path) + of_option(value.as_ref())).sum();
            let values =
                |values: &[Value]| values.iter().map(|value| size_of::<Value>() + of_value(value)).sum::<usize>();
            let patches: usize = patches.iter().map(|patch| of_names(&patch.path) + values(&patch.value) + 64).sum();
            of_document(document) + old + patches
        }
        _ => 0,
    }
}

fn of_document(document: &Document) -> usize {
    let names = document.id.as_str().len() + document.user.as_ref().map_or(0, |user| user.as_str().len());
    names + 2 * ALLOCATION + of_map(&document.fields)
}

fn of_names(names: &[String]) -> usize {
    names.iter().map(|name| size_of::<String>() + name.len() + ALLOCATION).sum::<usize>() + ALLOCATION
}

fn of_option(value: Option<&Value>) -> usize {
    size_of::<Value>() + value.map_or(0, of_value)
}

/// What a value holds besides itself.
fn of_value(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() + ALLOCATION,
        Value::Array(elements) => {
            ALLOCATION + elements.iter().map(|element| size_of::<Value>() + of_value(element)).sum::<usize>()
        }
        Value::Object(map) => of_map(map),
    }
}

fn of_map(map: &Map<String, Value>) -> usize {
    // Nodes are two thirds full on average.
    let nodes = map.len().div_ceil(7);
    let held: usize = map.iter().map(|(name, value)| name.len() + ALLOCATION + of_value(value)).sum();
    nodes * (NODE + ALLOCATION) + held
}
