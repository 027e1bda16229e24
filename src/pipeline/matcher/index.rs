//! The groups of one model, and how to find those that a document may concern.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nexxus_storage::model::{
    DeviceId, Document, SubscriptionId, Timestamp,
    filter::{Condition, Field, Kind, Scalar, Test},
};
use serde_json::Value;

use crate::domain::view::{Step, View};

/// Subscriptions that always hear the same: one channel, one effective condition, one frame class.
pub(super) struct Group {
    pub(super) view: Arc<View>,
    pub(super) members: Vec<(SubscriptionId, DeviceId)>,
    entry: Place,
}

/// Where a group is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    /// Documents whose field has (of an array: contains) this value.
    Equal(Arc<str>, Key),
    /// Every document of the model.
    Any,
}

/// A value as a key of a hash map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    String(Arc<str>),
    Number(u64),
    Boolean(bool),
    Date(i64),
}

#[derive(Default)]
pub(super) struct Index {
    groups: HashMap<u64, Group>,
    next: u64,
    /// The group of a channel and its condition.
    by_view: HashMap<(Arc<str>, String), u64>,
    equal: HashMap<Field, HashMap<Key, Vec<u64>>>,
    any: Vec<u64>,
}

impl Index {
    pub(super) fn insert(&mut self, view: &Arc<View>, id: &SubscriptionId, device: &DeviceId) {
        let member = (id.clone(), device.clone());
        let key = group_key(view);
        if let Some(group) = self.by_view.get(&key).and_then(|place| self.groups.get_mut(place)) {
            group.members.push(member);
            return;
        }
        let number = self.next;
        self.next += 1;
        let (field, entry) = place_of(view);
        match (&entry, field) {
            (Place::Equal(_, value), Some(field)) => {
                self.equal.entry(field).or_default().entry(value.clone()).or_default().push(number);
            }
            _ => self.any.push(number),
        }
        self.by_view.insert(key, number);
        self.groups.insert(number, Group { view: view.clone(), members: vec![member], entry });
    }

    pub(super) fn remove(&mut self, view: &Arc<View>, id: &SubscriptionId, device: &DeviceId) {
        let key = group_key(view);
        let Some(number) = self.by_view.get(&key).copied() else { return };
        let Some(group) = self.groups.get_mut(&number) else { return };
        if let Some(position) = group.members.iter().position(|(member, of)| member == id && of == device) {
            group.members.swap_remove(position);
        }
        if !group.members.is_empty() {
            return;
        }
        self.by_view.remove(&key);
        let entry = self.groups.remove(&number).map(|group| group.entry);
        match entry {
            Some(Place::Equal(path, value)) => self.remove_equal(&path, &value, number),
            _ => self.any.retain(|other| *other != number),
        }
    }

    fn remove_equal(&mut self, path: &str, value: &Key, number: u64) {
        self.equal.retain(|field, values| {
            if *field.path == *path
                && let Some(numbers) = values.get_mut(value)
            {
                numbers.retain(|other| *other != number);
                if numbers.is_empty() {
                    values.remove(value);
                }
            }
            !values.is_empty()
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The groups that hear of a change, each with its step.
    pub(super) fn steps(&self, before: Option<&Document>, after: Option<&Document>) -> Vec<(&Group, Step)> {
        let mut found = HashSet::new();
        let mut steps = Vec::new();
        let mut test = |number: u64| {
            if let Some(group) = self.groups.get(&number)
                && let Some(step) = group.view.step(before, after)
            {
                steps.push((number, step));
            }
        };
        self.any.iter().for_each(|number| test(*number));
        for (field, values) in &self.equal {
            for document in [before, after].into_iter().flatten() {
                for_each_value(field, document, |key| {
                    for number in values.get(&key).into_iter().flatten() {
                        if found.insert(*number) {
                            test(*number);
                        }
                    }
                });
            }
        }
        steps.sort_unstable_by_key(|(number, _)| *number);
        steps.iter().filter_map(|(number, step)| Some((self.groups.get(number)?, *step))).collect()
    }
}

/// Equal keys: equal channel, condition and frame class.
fn group_key(view: &View) -> (Arc<str>, String) {
    (view.key.clone(), format!("{}{:?}", u8::from(view.privileged), view.readable))
}

/// The most telling equality that every document of the view fulfils: its id, its owner, any other field.
fn place_of(view: &View) -> (Option<Field>, Place) {
    let mut candidates = Vec::new();
    if let Some(id) = &view.channel.id {
        candidates.extend(Field::universal("id").map(|field| (field, Key::String(id.as_str().into()))));
    }
    if let Some(user) = &view.channel.user {
        candidates.extend(Field::universal("userId").map(|field| (field, Key::String(user.as_str().into()))));
    }
    if let Some(filter) = &view.channel.filter {
        collect_equalities(filter.condition(), &mut candidates);
    }
    collect_equalities(&view.readable, &mut candidates);
    let rank = |field: &Field| match &*field.path {
        "id" => 0,
        "userId" => 1,
        _ if field.kind == Kind::Boolean => 3,
        _ => 2,
    };
    candidates.sort_by_key(|(field, _)| rank(field));
    match candidates.into_iter().next() {
        Some((field, key)) => {
            let path = field.path.clone();
            (Some(field), Place::Equal(path, key))
        }
        None => (None, Place::Any),
    }
}

fn collect_equalities(condition: &Condition, into: &mut Vec<(Field, Key)>) {
    match condition {
        Condition::And(all) => all.iter().for_each(|one| collect_equalities(one, into)),
        Condition::Test(field, Test::Eq(value)) if *field.path != *"type" && *field.path != *"appId" => {
            into.push((field.clone(), key_of(value)));
        }
        _ => {}
    }
}

fn key_of(value: &Scalar) -> Key {
    match value {
        Scalar::String(text) => Key::String(text.clone()),
        Scalar::Number(number) => number_key(*number),
        Scalar::Boolean(truth) => Key::Boolean(*truth),
        Scalar::Date(time) => Key::Date(time.as_ms()),
    }
}

fn number_key(number: f64) -> Key {
    // Adding zero turns negative zero into zero: they are one value.
    Key::Number((number + 0.0).to_bits())
}

/// Every value that a document has in a field, as a key.
fn for_each_value(field: &Field, document: &Document, mut take: impl FnMut(Key)) {
    if field.is_universal {
        if let Some(key) = universal_key(&field.path, document) {
            take(key);
        }
        return;
    }
    let mut value = None;
    for (depth, name) in field.path.split('.').enumerate() {
        value = if depth == 0 { document.fields.get(name) } else { value.and_then(|value: &Value| value.get(name)) };
    }
    match value {
        Some(Value::Array(elements)) => elements.iter().filter_map(|value| json_key(field.kind, value)).for_each(take),
        Some(value) => json_key(field.kind, value).into_iter().for_each(take),
        None => {}
    }
}

fn universal_key(path: &str, document: &Document) -> Option<Key> {
    Some(match path {
        "id" => Key::String(document.id.as_str().into()),
        "userId" => Key::String(document.user.as_ref()?.as_str().into()),
        "version" => number_key(document.version as f64),
        "createdAt" => Key::Date(document.created_at.as_ms()),
        "updatedAt" => Key::Date(document.updated_at.as_ms()),
        _ => return None,
    })
}

fn json_key(kind: Kind, value: &Value) -> Option<Key> {
    Some(match kind {
        Kind::String => Key::String(value.as_str()?.into()),
        Kind::Number => number_key(value.as_f64()?),
        Kind::Boolean => Key::Boolean(value.as_bool()?),
        Kind::Date => Key::Date(value.as_str()?.parse::<Timestamp>().ok()?.as_ms()),
    })
}
