//! Nexxus patches, applied one path at a time.

use serde_json::{Map, Number, Value};

use super::{Draft, Op, Patch, at, fault};
use crate::model::{
    FieldError, Problem,
    change::put,
    schema::{Field, FieldType, UNIVERSAL_FIELDS, canonical_number},
};

/// One path of a patch that changed something, in a form that leads any client to the same result.
#[derive(Debug)]
pub(super) struct Step<'p> {
    /// Where it came from: the index of the patch, and of the path in it.
    pub(super) place: (usize, usize),
    pub(super) op: Op,
    pub(super) path: &'p str,
    pub(super) names: Vec<&'p str>,
    /// None for `remove`.
    pub(super) value: Option<Value>,
    /// How many of the names lead to what changed: fewer than all when objects were made on the way.
    pub(super) root: usize,
}

/// What of a patch is at fault, and why.
enum Fault {
    Path(String),
    Value(String),
}

/// What a path led to: the op and the value that subscribers get. None when nothing changed.
type Effect = Option<(Op, Option<Value>)>;

/// Applies the patches in order and gives the steps that changed something. Every fault is reported.
pub(super) fn run<'p>(patches: &'p [Patch], draft: &mut Draft<'_>) -> Result<Vec<Step<'p>>, Problem> {
    let mut steps = Vec::with_capacity(patches.len());
    let mut faults = Vec::new();
    for (index, patch) in patches.iter().enumerate() {
        for (nth, path) in patch.path.iter().enumerate() {
            let value = patch.value.get(nth).filter(|_| patch.op != Op::Remove);
            if value.is_none() && patch.op != Op::Remove {
                // Parsing refuses this; a message of another make may bring it.
                let error = FieldError::new(format!("/{index}/value"), "`path` and `value` differ in length");
                return Err(fault::unreadable(vec![error]));
            }
            match step(draft, (index, nth), patch.op, path, value) {
                Ok(step) => steps.extend(step),
                Err(Fault::Path(reason)) => faults.push(FieldError::new(format!("/{index}/path/{nth}"), reason)),
                Err(Fault::Value(reason)) => faults.push(FieldError::new(format!("/{index}/value/{nth}"), reason)),
            }
        }
    }
    if faults.is_empty() { Ok(steps) } else { Err(fault::misfit(faults)) }
}

fn step<'p>(
    draft: &mut Draft<'_>,
    place: (usize, usize),
    op: Op,
    path: &'p str,
    value: Option<&Value>,
) -> Result<Option<Step<'p>>, Fault> {
    let names: Vec<&str> = path.split('.').collect();
    if UNIVERSAL_FIELDS.contains(&names[0]) {
        return universal(draft, op, path, value).map(|()| None);
    }
    let present = present(&draft.fields, &names);
    let root = names.len().min(present + 1);
    let field = definition(draft, &names);
    let effect = match (op, value, field) {
        // What a changed schema left behind may go.
        (Op::Remove, _, None) if present < names.len() => return Err(Fault::Path(fault::UNKNOWN.to_owned())),
        (Op::Remove, ..) => set(&mut draft.fields, &names, None),
        (_, None, _) | (_, _, None) => return Err(Fault::Path(fault::UNKNOWN.to_owned())),
        (_, Some(value), Some(field)) => {
            if present < names.len() && at(&draft.fields, &names[..present]).is_some_and(|value| !value.is_object()) {
                return Err(Fault::Path(format!("`{}` is no object", names[..present].join("."))));
            }
            match op {
                Op::Replace | Op::Remove => {
                    let mut value = value.clone();
                    field.canonicalize(&mut value, draft.admin);
                    set(&mut draft.fields, &names, Some(value).filter(|value| !value.is_null()))
                }
                Op::Append | Op::Prepend => extend(draft, &names, field, op, value)?,
                Op::Incr | Op::Decr => add(&mut draft.fields, &names, field, op, value, root)?,
            }
        }
    };
    Ok(effect.map(|(op, value)| Step { place, op, path, names, value, root }))
}

/// Only the owner, and only by admins.
fn universal(draft: &mut Draft<'_>, op: Op, path: &str, value: Option<&Value>) -> Result<(), Fault> {
    if path != "userId" || !draft.admin {
        return Err(Fault::Path(fault::universal(path)));
    }
    match op {
        Op::Replace | Op::Remove => draft.set_owner(value).map_err(Fault::Value),
        _ => Err(Fault::Path("the owner can only be replaced or removed".to_owned())),
    }
}

/// The definition of a field as far as the caller knows of it.
fn definition<'a>(draft: &Draft<'a>, names: &[&str]) -> Option<&'a Field> {
    let (field, hidden) = draft.model.lookup(names.iter().copied())?;
    (draft.admin || !hidden).then_some(field)
}

/// How many names of a path lead to something.
fn present(fields: &Map<String, Value>, names: &[&str]) -> usize {
    let mut object = Some(fields);
    names
        .iter()
        .take_while(|name| {
            let value = object.and_then(|object| object.get(**name));
            object = value.and_then(Value::as_object);
            value.is_some()
        })
        .count()
}

fn set(fields: &mut Map<String, Value>, names: &[&str], value: Option<Value>) -> Effect {
    if at(fields, names) == value.as_ref() {
        return None;
    }
    put(fields, names, value.clone());
    Some((if value.is_some() { Op::Replace } else { Op::Remove }, value))
}

/// Appends or prepends. What it creates is told as a `replace`: a client without the schema could not know whether one element
/// begins an array or a text.
fn extend(draft: &mut Draft<'_>, names: &[&str], field: &Field, op: Op, value: &Value) -> Result<Effect, Fault> {
    let addition = addition(field, value, draft.admin, names)?;
    let fields = &mut draft.fields;
    let current = at_mut(fields, names);
    match (current, &addition) {
        (Some(Value::String(text)), Value::String(more)) if field.field_type == FieldType::String => {
            if more.is_empty() {
                return Ok(None);
            }
            text.insert_str(if op == Op::Append { text.len() } else { 0 }, more);
        }
        (Some(Value::Array(_)), Value::Array(more)) if more.is_empty() => return Ok(None),
        (Some(Value::Array(elements)), _) if field.field_type == FieldType::Array => {
            let place = if op == Op::Append { elements.len() } else { 0 };
            match &addition {
                Value::Array(more) => drop(elements.splice(place..place, more.iter().cloned())),
                one => elements.insert(place, one.clone()),
            }
        }
        (Some(_), _) => return Err(Fault::Path(format!("`{}` cannot be extended", names.join(".")))),
        (None, _) => {
            let one_element = field.field_type == FieldType::Array && !addition.is_array();
            let created = if one_element { Value::Array(vec![addition]) } else { addition };
            return Ok(set(fields, names, Some(created)));
        }
    }
    Ok(Some((op, Some(addition))))
}

/// What is added, in canonical form: a text to a text, one element or some to an array.
fn addition(field: &Field, value: &Value, privileged: bool, names: &[&str]) -> Result<Value, Fault> {
    match (field.field_type, value) {
        (FieldType::String, Value::String(_)) => Ok(value.clone()),
        (FieldType::String, _) => Err(Fault::Value("a text is extended by a text".to_owned())),
        (FieldType::Array, Value::Array(_)) => {
            let mut elements = value.clone();
            field.canonicalize(&mut elements, privileged);
            Ok(elements)
        }
        (FieldType::Array, _) => {
            let mut elements = Value::Array(vec![value.clone()]);
            field.canonicalize(&mut elements, privileged);
            Ok(elements.get_mut(0).map_or(Value::Null, Value::take))
        }
        _ => Err(Fault::Path(format!("`{}` is neither an array nor a string", names.join(".")))),
    }
}

/// Adds to or takes from a number; a missing one is 0.
fn add(
    fields: &mut Map<String, Value>,
    names: &[&str],
    field: &Field,
    op: Op,
    value: &Value,
    root: usize,
) -> Result<Effect, Fault> {
    if field.field_type != FieldType::Number {
        return Err(Fault::Path(format!("`{}` is no number", names.join("."))));
    }
    let Value::Number(by) = value else { return Err(Fault::Value("not a number".to_owned())) };
    let out_of_range = || Fault::Value("a number is at most 2^53 and at least -2^53".to_owned());
    let by = canonical_number(by).ok_or_else(out_of_range)?;
    let current = match at(fields, names) {
        None => Number::from(0),
        Some(Value::Number(number)) => number.clone(),
        Some(_) => return Err(Fault::Path(format!("`{}` is no number", names.join(".")))),
    };
    let sum = sum(&current, &by, op == Op::Decr).ok_or_else(out_of_range)?;
    let effect = set(fields, names, Some(Value::Number(sum)));
    // Only `replace` is certain to make the objects that are missing on the way.
    Ok(if root < names.len() { effect } else { effect.map(|_| (op, Some(Value::Number(by)))) })
}

fn at_mut<'v>(fields: &'v mut Map<String, Value>, names: &[&str]) -> Option<&'v mut Value> {
    let (first, rest) = names.split_first()?;
    rest.iter().try_fold(fields.get_mut(*first)?, |value, name| value.as_object_mut()?.get_mut(*name))
}

/// The sum or the difference of two numbers, in canonical form; none out of range.
fn sum(left: &Number, right: &Number, is_difference: bool) -> Option<Number> {
    let sum = match (left.as_i64(), right.as_i64()) {
        (Some(left), Some(right)) if is_difference => Number::from(left.checked_sub(right)?),
        (Some(left), Some(right)) => Number::from(left.checked_add(right)?),
        _ => {
            let (left, right) = (left.as_f64()?, right.as_f64()?);
            Number::from_f64(if is_difference { left - right } else { left + right })?
        }
    };
    canonical_number(&sum)
}
