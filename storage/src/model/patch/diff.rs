//! The difference of two documents: the shortest list of paths through objects at which they differ.

use serde_json::{Map, Value};

/// One path at which a document changed. In a list of them no path is a prefix of another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    pub(super) path: Vec<String>,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// Where two sets of fields differ. Objects on both sides are compared by name; everything else, arrays too, is one value.
pub(super) fn fields(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    objects(&mut Vec::new(), before, after, &mut found);
    found
}

/// Where the value at a path differs.
pub(super) fn value(path: Vec<String>, before: Option<&Value>, after: Option<&Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut path = path;
    values(&mut path, before, after, &mut found);
    found
}

fn values(path: &mut Vec<String>, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    match (before, after) {
        _ if before == after => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) if sayable(old, new) => objects(path, old, new, found),
        _ => found.push(Difference { path: path.clone(), before: before.cloned(), after: after.cloned() }),
    }
}

fn objects(
    path: &mut Vec<String>,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    let added = after.keys().filter(|name| !before.contains_key(*name));
    for name in before.keys().chain(added) {
        path.push(name.clone());
        values(path, before.get(name), after.get(name), found);
        path.pop();
    }
}

/// Whether the path of a patch can name what is in the objects. A schema has no other names; should one be stored all the
/// same, its object is replaced as a whole.
fn sayable(before: &Map<String, Value>, after: &Map<String, Value>) -> bool {
    before.keys().chain(after.keys()).all(|name| !name.is_empty() && !name.contains('.'))
}
