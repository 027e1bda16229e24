//! The groups of one model, and how to find those that a document may concern.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use indexmap::IndexMap;
use nexxus_storage::model::{
    DeviceId, Document, Offset, SubscriptionId,
    filter::{Condition, Field, Kind, Scalar, Test},
};

use super::values::{Key, Number, Values};
use crate::domain::view::{Step, View};

/// Subscriptions that always hear the same: one channel, one effective condition, one frame class.
pub(super) struct Group {
    pub(super) view: Arc<View>,
    /// In no order.
    members: IndexMap<SubscriptionId, Member>,
    /// The equality that it is found by; none: it is asked about every document of the model.
    found_by: Option<(Field, Key)>,
}

pub(super) struct Member {
    pub(super) device: DeviceId,
    /// Changes at or below it are in the items that the subscriber got.
    since: Offset,
}

impl Group {
    /// The devices that hear of a change at an offset.
    pub(super) fn devices(&self, offset: Offset) -> impl Iterator<Item = &DeviceId> {
        self.members.values().filter(move |member| member.since < offset).map(|member| &member.device)
    }
}

/// Equal for equal views, and for no others: channel, frame class, and what filter and rule come to. The key of the channel alone
/// would not do: it names the filter as it was written, which can mean something else under another schema.
type GroupKey = (Arc<str>, String);

#[derive(Default)]
pub(super) struct Index {
    /// By number; free places are reused.
    groups: Vec<Option<Group>>,
    free: Vec<Number>,
    by_view: HashMap<GroupKey, Number>,
    equal: HashMap<Field, Values>,
    any: BTreeSet<Number>,
}

impl Index {
    /// Gives the view that the group has: equal to the one given, and shared by all of it.
    pub(super) fn insert(&mut self, view: View, id: &SubscriptionId, device: DeviceId, since: Offset) -> Arc<View> {
        let member = Member { device, since };
        let key = group_key(&view);
        let known = self.by_view.get(&key).copied();
        if let Some(group) = known.and_then(|number| self.groups.get_mut(number as usize)?.as_mut()) {
            group.members.insert(id.clone(), member);
            return group.view.clone();
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.groups.push(None);
            // An index of 2^32 groups would not fit any memory.
            (self.groups.len() - 1) as Number
        });
        let found_by = self.best_equality(&view);
        match &found_by {
            Some((field, value)) => self.equal.entry(field.clone()).or_default().insert(value.clone(), number),
            None => drop(self.any.insert(number)),
        }
        let view = Arc::new(view);
        let group = Group { view: view.clone(), members: IndexMap::from([(id.clone(), member)]), found_by };
        if let Some(place) = self.groups.get_mut(number as usize) {
            *place = Some(group);
        }
        self.by_view.insert(key, number);
        view
    }

    pub(super) fn remove(&mut self, view: &View, id: &SubscriptionId) {
        let key = group_key(view);
        let Some(number) = self.by_view.get(&key).copied() else { return };
        let Some(place) = self.groups.get_mut(number as usize) else { return };
        let Some(group) = place else { return };
        group.members.swap_remove(id);
        if !group.members.is_empty() {
            return;
        }
        match &group.found_by {
            Some((field, value)) => {
                if let Some(values) = self.equal.get_mut(field) {
                    values.remove(value, number);
                    if values.is_empty() {
                        self.equal.remove(field);
                    }
                }
            }
            None => drop(self.any.remove(&number)),
        }
        *place = None;
        self.free.push(number);
        self.by_view.remove(&key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_view.is_empty()
    }

    /// The groups that hear of a change, each with its step.
    pub(super) fn steps(&self, before: Option<&Document>, after: Option<&Document>) -> Vec<(&Group, Step)> {
        let step = |number: &Number| {
            let group = self.groups.get(*number as usize)?.as_ref()?;
            Some((group, group.view.step(before, after)?))
        };
        self.candidates(before, after).iter().chain(&self.any).filter_map(step).collect()
    }

    /// Those among the groups that are found by an equality that these documents may concern.
    pub(super) fn candidates(&self, before: Option<&Document>, after: Option<&Document>) -> Vec<Number> {
        let mut found: Vec<Number> = Vec::new();
        for (field, values) in &self.equal {
            for document in [before, after].into_iter().flatten() {
                values.collect(field, document, &mut found);
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The most telling equality that every document of the view fulfils: the one that the fewest other groups are found by; of
    /// those the document's id, its owner, any other field.
    fn best_equality(&self, view: &View) -> Option<(Field, Key)> {
        let mut candidates = Vec::new();
        let mut require = |name: &str, value: &str| {
            candidates.extend(Field::universal(name).map(|field| (field, Key::of(&Scalar::String(value.into())))));
        };
        if let Some(id) = &view.channel.id {
            require("id", id.as_str());
        }
        if let Some(user) = &view.channel.user {
            require("userId", user.as_str());
        }
        if let Some(filter) = &view.channel.filter {
            collect_equalities(filter.condition(), &mut candidates);
        }
        collect_equalities(&view.readable, &mut candidates);
        candidates.into_iter().min_by_key(|(field, key)| {
            let crowd = self.equal.get(field).map_or(0, |values| values.count(key));
            let rank = match &*field.path {
                "id" => 0,
                "userId" => 1,
                _ if field.kind == Kind::Boolean => 3,
                _ => 2,
            };
            (crowd, rank)
        })
    }
}

fn group_key(view: &View) -> GroupKey {
    let filter = view.channel.filter.as_ref().map(|filter| filter.condition());
    (view.key.clone(), format!("{}{:?}{filter:?}", u8::from(view.privileged), view.readable))
}

fn collect_equalities(condition: &Condition, into: &mut Vec<(Field, Key)>) {
    match condition {
        Condition::And(all) => all.iter().for_each(|one| collect_equalities(one, into)),
        // All documents of an index have the same type and application.
        Condition::Test(field, Test::Eq(value)) if *field.path != *"type" && *field.path != *"appId" => {
            into.push((field.clone(), Key::of(value)));
        }
        _ => {}
    }
}
