//! What came of a patch: the patches that subscribers get, and what was replaced.
//!
//! The patches lead from the document before to the document after in the hands of any client, and, stripped by
//! [`visible_patches`](super::visible_patches), from what others saw before to what they see after.

use serde_json::{Map, Value};

use super::{
    Op, Patch, at,
    diff::{self, Difference},
    nexxus::Step,
    view::holds_hidden,
};
use crate::model::Model;

#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) patches: Vec<Patch>,
    /// The old values at the paths that changed. No path is a prefix of another.
    pub(super) replaced: Vec<(Vec<String>, Option<Value>)>,
}

/// Derives everything from the two documents.
pub(super) fn of_difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Outcome {
    let differences = diff::fields(before, after);
    let mut outcome = Outcome::default();
    outcome.replaced.reserve(differences.len());
    let (mut replaced, mut removed) = (empty(Op::Replace), empty(Op::Remove));
    for Difference { path, before, after } in differences {
        match after {
            Some(value) => {
                replaced.path.push(path.join("."));
                replaced.value.push(value);
            }
            None => removed.path.push(path.join(".")),
        }
        outcome.replaced.push((path, before));
    }
    outcome.patches.extend([removed, replaced].into_iter().filter(|patch| !patch.path.is_empty()));
    outcome
}

/// Keeps the caller's own steps where they are exact for everybody. Steps that meet at one place are told by their result,
/// unless they only add to it; those that cancel each other vanish.
pub(super) fn of_steps(
    steps: Vec<Step<'_>>,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    model: &Model,
) -> Outcome {
    let mut replaced = Vec::new();
    let mut told = Vec::with_capacity(steps.len());
    for (root, steps) in by_root(steps) {
        let (old, new) = (at(before, &root), at(after, &root));
        if old == new {
            continue;
        }
        let root: Vec<String> = root.into_iter().map(str::to_owned).collect();
        if are_exact(&steps, root.len(), model) {
            told.extend(steps.into_iter().map(|step| Told {
                place: step.place,
                op: step.op,
                path: step.path.to_owned(),
                value: step.value,
            }));
        } else {
            let place = steps.first().map_or((0, 0), |step| step.place);
            told.extend(diff::value(root.clone(), old, new).into_iter().map(|Difference { path, after, .. }| Told {
                place,
                op: if after.is_some() { Op::Replace } else { Op::Remove },
                path: path.join("."),
                value: after,
            }));
        }
        replaced.push((root, old.cloned()));
    }
    Outcome { patches: grouped(told), replaced }
}

/// The steps at and below each place that changed. No place is a prefix of another.
fn by_root<'p>(steps: Vec<Step<'p>>) -> Vec<(Vec<&'p str>, Vec<Step<'p>>)> {
    let mut roots: Vec<Vec<&str>> = steps.iter().map(|step| step.names[..step.root].to_vec()).collect();
    // Sorted, a path stands right before those that it is a prefix of.
    roots.sort_unstable();
    roots.dedup_by(|path, shorter| path.starts_with(shorter));
    let mut groups: Vec<_> = roots.into_iter().map(|root| (root, Vec::new())).collect();
    for step in steps {
        let place = groups.partition_point(|(root, _)| root.as_slice() <= step.names.as_slice());
        if let Some((_, group)) = place.checked_sub(1).and_then(|place| groups.get_mut(place)) {
            group.push(step);
        }
    }
    groups
}

/// Whether the steps themselves lead from the value before to the value after, for everybody.
fn are_exact(steps: &[Step<'_>], root: usize, model: &Model) -> bool {
    let has_hidden = model.has_hidden();
    // Elements of an array may hide something, too.
    let hides = |step: &Step<'_>| has_hidden && model.field(&step.names).is_some_and(holds_hidden);
    let adds =
        |step: &Step<'_>| !matches!(step.op, Op::Replace | Op::Remove) && step.names.len() == root && !hides(step);
    match steps {
        // A replaced object may hold hidden fields that its caller neither saw nor replaced, and objects made on the way to a
        // hidden field are seen by everybody.
        [step] => !has_hidden || adds(step),
        _ => steps.iter().all(adds),
    }
}

fn empty(op: Op) -> Patch {
    Patch { op, path: Vec::new(), value: Vec::new() }
}

/// A path to tell of, with the place in the body that it comes from.
struct Told {
    place: (usize, usize),
    op: Op,
    path: String,
    value: Option<Value>,
}

/// Patches in the order and the grouping of those they come from.
fn grouped(mut told: Vec<Told>) -> Vec<Patch> {
    told.sort_by_key(|told| told.place);
    let mut patches = Vec::new();
    let mut last_patch = None;
    for Told { place: (patch, _), op, path, value } in told {
        if last_patch != Some((patch, op)) {
            patches.push(empty(op));
            last_patch = Some((patch, op));
        }
        if let Some(last) = patches.last_mut() {
            last.path.push(path);
            last.value.extend(value);
        }
    }
    patches
}
