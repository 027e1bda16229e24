//! What a change of schema does to what exists: which documents may no longer fit, which filters can no longer be asked.

use std::{collections::BTreeMap, sync::Arc};

use super::{Field, Schema};
use crate::model::{
    FieldError, ModelName,
    pointer::{At, Faults},
};

pub(super) fn between(old: &Schema, new: &Schema) -> Vec<FieldError> {
    let mut faults = Faults::default();
    for (name, model) in &old.models {
        let at = At::ROOT.name(name.as_str());
        match new.models.get(name) {
            Some(next) => fields(&model.fields, &next.fields, &at, &mut faults),
            None => faults.add(&at, "the model would be removed"),
        }
    }
    faults.result(()).err().unwrap_or_default()
}

pub(super) fn no_longer_filterable(old: &Schema, new: &Schema) -> Vec<(ModelName, Arc<str>)> {
    let mut gone = Vec::new();
    for (name, model) in &old.models {
        let kept = new.models.get(name).map(|model| model.filterable()).unwrap_or_default();
        for field in model.filterable() {
            // A field of another kind is another field to a filter that names it.
            if !kept.contains(&field) {
                gone.push((name.clone(), field.path));
            }
        }
    }
    gone
}

fn fields(old: &BTreeMap<String, Field>, new: &BTreeMap<String, Field>, around: &At<'_>, faults: &mut Faults) {
    for (name, field) in old {
        let at = around.name(name);
        match new.get(name) {
            Some(next) => changed(field, next, &at, faults),
            None => faults.add(&at, "the field would be removed"),
        }
    }
    for (name, next) in new {
        let was_required = old.get(name).is_some_and(|field| field.required);
        if next.required && next.default.is_none() && !was_required {
            faults.add(&around.name(name).name("required"), "documents may lack the field, and it has no default");
        }
    }
}

fn changed(old: &Field, new: &Field, at: &At<'_>, faults: &mut Faults) {
    if old.field_type != new.field_type {
        return faults.add(&at.name("type"), "the type would change");
    }
    if old.array_type != new.array_type {
        return faults.add(&at.name("arrayType"), "the type of the elements would change");
    }
    if let (Some(old), Some(new)) = (&old.properties, &new.properties) {
        fields(old, new, &at.name("properties"), faults);
    }
    if let Some(allowed) = &new.one_of
        && !old.one_of.as_ref().is_some_and(|before| before.iter().all(|value| allowed.contains(value)))
    {
        faults.add(&at.name("enum"), "values that were allowed would not be");
    }
    if new.min_length.unwrap_or(0) > old.min_length.unwrap_or(0) {
        faults.add(&at.name("minLength"), "the limit would be tighter");
    }
    if new.max_length.unwrap_or(u64::MAX) < old.max_length.unwrap_or(u64::MAX) {
        faults.add(&at.name("maxLength"), "the limit would be tighter");
    }
    if new.minimum.unwrap_or(f64::NEG_INFINITY) > old.minimum.unwrap_or(f64::NEG_INFINITY) {
        faults.add(&at.name("minimum"), "the limit would be tighter");
    }
    if new.maximum.unwrap_or(f64::INFINITY) < old.maximum.unwrap_or(f64::INFINITY) {
        faults.add(&at.name("maximum"), "the limit would be tighter");
    }
    // Required and with a default before: documents may still lack it.
    if old.required && old.default.is_some() && new.required && new.default.is_none() {
        faults.add(&at.name("default"), "documents may lack the field, and it would have no default");
    }
}
