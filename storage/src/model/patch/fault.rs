//! Faults of patches: how they are worded, and where in the body they stand.

use serde_json::Value;

use super::{Op, PatchSet};
use crate::model::{FieldError, Problem, pointer::MAX_FAULTS, problem::ProblemKind};

/// 400: what cannot be read as patches.
pub(super) fn unreadable(errors: Vec<FieldError>) -> Problem {
    Problem::new(ProblemKind::InvalidPatch, "the patch cannot be read").with_errors(errors)
}

/// 422: what does not fit the model.
pub(super) fn misfit(mut errors: Vec<FieldError>) -> Problem {
    errors.truncate(MAX_FAULTS);
    Problem::new(ProblemKind::InvalidDocument, "the patched document does not fit its model").with_errors(errors)
}

/// The same words as the model's own, so that nobody can tell a hidden field from one that is not there.
pub(super) const UNKNOWN: &str = "unknown field";

pub(super) fn universal(name: &str) -> String {
    format!("`{name}` cannot be patched")
}

/// 422: what does not fit the model in the result of a patch. The errors' pointers lead into the document; they are placed in
/// the body.
pub(super) fn misfit_of(patch: &PatchSet, mut errors: Vec<FieldError>) -> Problem {
    errors.sort_by(|left, right| left.path.cmp(&right.path));
    // Before they are placed: that looks through the whole patch for each.
    errors.truncate(MAX_FAULTS);
    misfit(errors.into_iter().map(|error| place(patch, error)).collect())
}

/// Whether a pointer leads to a place or below it.
pub(super) fn is_within(pointer: &str, place: &str) -> bool {
    pointer.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Leads an error of the document to the part of the body that it came from, the last that touched the place. An error that
/// none is to blame for stands at the root of the body and names its place.
fn place(patch: &PatchSet, error: FieldError) -> FieldError {
    let target = tokens(&error.path);
    let found = match patch {
        PatchSet::Nexxus(patches) => {
            let paths = patches.iter().enumerate().flat_map(|(index, patch)| {
                patch.path.iter().enumerate().map(move |(nth, path)| (index, patch.op, nth, path))
            });
            last_touching(
                &target,
                paths.map(|(index, op, nth, path)| Touch {
                    path: path.split('.').map(str::to_owned).collect(),
                    whole: (op == Op::Replace).then(|| format!("/{index}/value/{nth}")),
                    part: format!("/{index}/{}/{nth}", if op == Op::Remove { "path" } else { "value" }),
                }),
            )
        }
        PatchSet::JsonPatch(patch) => {
            use json_patch::PatchOperation::{Add, Replace, Test};
            let operations = patch.iter().enumerate().filter(|(_, operation)| !matches!(operation, Test(_)));
            last_touching(
                &target,
                operations.map(|(index, operation)| Touch {
                    path: operation.path().tokens().map(|token| token.decoded().into_owned()).collect(),
                    whole: matches!(operation, Add(_) | Replace(_)).then(|| format!("/{index}/value")),
                    part: format!("/{index}/path"),
                }),
            )
        }
        PatchSet::MergePatch(body) => deepest(body, &target),
    };
    match found {
        Some((path, true)) => FieldError { path, ..error },
        Some((path, false)) => FieldError { path, message: format!("{}: {}", error.path, error.message) },
        None => FieldError { path: String::new(), message: format!("{}: {}", error.path, error.message) },
    }
}

/// A part of a body and the place in the document that it touches.
struct Touch {
    path: Vec<String>,
    /// Where the value stands that was put there as it is.
    whole: Option<String>,
    part: String,
}

/// Where the last touch of a place stands, and whether that names the place exactly.
fn last_touching(target: &[String], touches: impl Iterator<Item = Touch>) -> Option<(String, bool)> {
    let touching = |touch: &Touch| {
        // `-` is the end of an array, whichever index that was.
        touch.path.iter().zip(target).all(|(left, right)| left == right || left == "-")
    };
    let touch = touches.filter(touching).last()?;
    if touch.path.len() > target.len() {
        return Some((touch.part, false));
    }
    match touch.whole {
        Some(value) => Some((value + &pointer(&target[touch.path.len()..]), true)),
        None => Some((touch.part, touch.path.len() == target.len())),
    }
}

/// The deepest part of a merge patch on the way to a place.
fn deepest(body: &Value, target: &[String]) -> Option<(String, bool)> {
    let mut value = body;
    for (depth, token) in target.iter().enumerate() {
        let next = match value {
            Value::Object(members) => members.get(token),
            Value::Array(elements) => token.parse().ok().and_then(|index: usize| elements.get(index)),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None if depth == 0 => return None,
            None => return Some((pointer(&target[..depth]), false)),
        }
    }
    Some((pointer(target), true))
}

/// The names of a JSON Pointer.
fn tokens(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect()
}

/// A JSON Pointer from its names.
pub(super) fn pointer(tokens: &[impl AsRef<str>]) -> String {
    tokens
        .iter()
        .fold(String::new(), |pointer, token| pointer + "/" + &token.as_ref().replace('~', "~0").replace('/', "~1"))
}
