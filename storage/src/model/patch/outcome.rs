//! What came of a patch: the patches that subscribers get, and what was replaced.
//!
//! The patches lead from the document before to the document after in the hands of any client, and, stripped by
//! [`visible_patches`](super::visible_patches), from what others saw before to what they see after.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Op, Patch, at,
    diff::{self, Difference},
    nexxus::Step,
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
    let has_hidden = model.has_hidden();
    let mut outcome = Outcome::default();
    let mut patches = Patches::default();
    for (root, steps) in by_root(steps) {
        let (old, new) = (at(before, &root), at(after, &root));
        if old == new {
            continue;
        }
        let root: Vec<String> = root.into_iter().map(str::to_owned).collect();
        if are_exact(&steps, root.len(), has_hidden) {
            for step in steps {
                patches.push(step.patch, step.op, step.path.to_owned(), step.value);
            }
        } else {
            let patch = steps.first().map_or(0, |step| step.patch);
            for Difference { path, after, .. } in diff::value(root.clone(), old, new) {
                let op = if after.is_some() { Op::Replace } else { Op::Remove };
                patches.push(patch, op, path.join("."), after);
            }
        }
        outcome.replaced.push((root, old.cloned()));
    }
    outcome.patches = patches.in_order();
    outcome
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

/// Whether the steps themselves lead from the value before to the value after.
fn are_exact(steps: &[Step<'_>], root: usize, has_hidden: bool) -> bool {
    let adds = |step: &Step<'_>| !matches!(step.op, Op::Replace | Op::Remove) && step.names.len() == root;
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

/// Patches that keep the order and the grouping of those they come from.
#[derive(Default)]
struct Patches(BTreeMap<usize, Vec<Patch>>);

impl Patches {
    fn push(&mut self, patch: usize, op: Op, path: String, value: Option<Value>) {
        let group = self.0.entry(patch).or_default();
        if group.last().is_none_or(|last| last.op != op) {
            group.push(empty(op));
        }
        if let Some(last) = group.last_mut() {
            last.path.push(path);
            last.value.extend(value);
        }
    }

    fn in_order(self) -> Vec<Patch> {
        self.0.into_values().flatten().collect()
    }
}
