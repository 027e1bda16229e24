//! The users that have subscriptions: what rules know of them, and which are theirs.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use nexxus_storage::model::{UserId, change::UserFacts};

use super::{
    NONE, Number,
    slab::{Column, Slab},
    table::Table,
};

#[derive(Default)]
pub(super) struct Users {
    known: Slab<User>,
    by_id: Table<Number>,
    keys: RandomState,
    /// By the subscription's number in the matcher.
    owned: Column<Owned>,
    /// Facts without details, by user type: most users have one of a few.
    plain: HashMap<Option<String>, Arc<UserFacts>>,
}

#[derive(Default)]
struct User {
    /// None at free places only. Shorter than a [`UserId`].
    id: Option<Box<str>>,
    facts: Option<Arc<UserFacts>>,
    /// The first of its subscriptions.
    first: Link,
}

/// The number of a subscription, or that there is none.
#[derive(Clone, Copy, PartialEq)]
struct Link(Number);

impl Default for Link {
    fn default() -> Self {
        Self(NONE)
    }
}

/// Whose a subscription is. Those of a user are linked with one another.
#[derive(Default, Clone, Copy)]
struct Owned {
    user: Link,
    next: Link,
    previous: Link,
}

impl Users {
    pub(super) fn find(&self, id: &UserId) -> Option<Number> {
        let is_meant = |number: &Number| self.id(*number) == Some(id.as_str());
        self.by_id.find(self.keys.hash_one(id.as_str()), is_meant).copied()
    }

    fn id(&self, user: Number) -> Option<&str> {
        self.known.get(user)?.id.as_deref()
    }

    /// As of the matched place in the log.
    pub(super) fn facts(&self, user: Number) -> Option<&Arc<UserFacts>> {
        self.known.get(user)?.facts.as_ref()
    }

    pub(super) fn set_facts(&mut self, user: Number, facts: UserFacts) {
        let facts = self.shared(facts);
        if let Some(user) = self.known.get_mut(user) {
            user.facts = Some(facts);
        }
    }

    fn shared(&mut self, facts: UserFacts) -> Arc<UserFacts> {
        /// Types that are made up for each user are not worth it.
        const MOST_TYPES: usize = 64;
        if !facts.details.is_empty() {
            return Arc::new(facts);
        }
        if let Some(known) = self.plain.get(&facts.user_type) {
            return known.clone();
        }
        let user_type = facts.user_type.clone();
        let facts = Arc::new(facts);
        if self.plain.len() < MOST_TYPES {
            self.plain.insert(user_type, facts.clone());
        }
        facts
    }

    /// Takes in a user, who may have no subscriptions yet. Facts of one who is known stay.
    pub(super) fn add(&mut self, id: &UserId, facts: UserFacts) -> Number {
        if let Some(known) = self.find(id) {
            return known;
        }
        let facts = Some(self.shared(facts));
        let user = self.known.insert(User { id: Some(id.as_str().into()), facts, first: Link::default() });
        let (known, keys) = (&self.known, &self.keys);
        let id_of = |number: &Number| known.get(*number).and_then(|user| user.id.as_deref());
        let hash_of = |number: &Number| id_of(number).map_or(0, |id| keys.hash_one(id));
        self.by_id.insert(keys.hash_one(id.as_str()), user, hash_of);
        user
    }

    /// Gives a subscription to a user, or to none.
    pub(super) fn own(&mut self, subscription: Number, user: Option<Number>) {
        // Taken away first, it could be the user's last, and the user be forgotten.
        if self.owner(subscription) == user {
            return;
        }
        self.disown(subscription);
        let mut owned = Owned::default();
        if let Some((number, user)) = user.and_then(|number| Some((number, self.known.get_mut(number)?))) {
            owned = Owned { user: Link(number), next: user.first, previous: Link::default() };
            user.first = Link(subscription);
        }
        if let Some(next) = self.owned.get_mut(owned.next.0) {
            next.previous = Link(subscription);
        }
        self.owned.set(subscription, owned);
    }

    /// Takes a subscription from its user, who is forgotten with the last one.
    pub(super) fn disown(&mut self, subscription: Number) {
        let Some(owned) = self.owned.get_mut(subscription).map(std::mem::take) else { return };
        if let Some(next) = self.owned.get_mut(owned.next.0) {
            next.previous = owned.previous;
        }
        match self.owned.get_mut(owned.previous.0) {
            Some(previous) => previous.next = owned.next,
            None => {
                if let Some(user) = self.known.get_mut(owned.user.0) {
                    user.first = owned.next;
                }
            }
        }
        self.forget_idle(owned.user.0);
    }

    fn forget_idle(&mut self, user: Number) {
        if !self.known.get(user).is_some_and(|known| known.first == Link::default()) {
            return;
        }
        if let Some(id) = self.known.get_mut(user).and_then(|user| user.id.take()) {
            self.by_id.remove(self.keys.hash_one(&*id), |number| *number == user);
            self.known.remove(user);
        }
    }

    /// Forgets every user without subscriptions.
    pub(super) fn forget_all_idle(&mut self) {
        for user in self.known.numbers() {
            self.forget_idle(user);
        }
    }

    pub(super) fn owner(&self, subscription: Number) -> Option<Number> {
        self.owned.get(subscription).map(|owned| owned.user).filter(|user| *user != Link::default()).map(|user| user.0)
    }

    pub(super) fn owner_id(&self, subscription: Number) -> Option<UserId> {
        UserId::parse(self.id(self.owner(subscription)?)?).ok()
    }

    /// The subscriptions of a user.
    pub(super) fn subscriptions(&self, user: Number) -> impl Iterator<Item = Number> {
        let first = self.known.get(user).map(|user| user.first).unwrap_or_default();
        let linked = |link: Link| (link != Link::default()).then_some(link.0);
        std::iter::successors(linked(first), move |number| linked(self.owned.get(*number)?.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_know_their_subscriptions_and_go_with_the_last() {
        let mut users = Users::default();
        let id = |name: &str| UserId::parse(name).expect("an id");
        let facts = |name: &str| UserFacts { user_type: Some(name.to_owned()), ..UserFacts::default() };
        let ann = users.add(&id("ann"), facts("editor"));
        let bob = users.add(&id("bob"), facts("editor"));
        assert!(Arc::ptr_eq(users.facts(ann).expect("facts"), users.facts(bob).expect("facts")));
        users.own(7, Some(ann));
        users.own(900, Some(ann));
        users.own(3, Some(ann));
        users.own(4, None);
        let of = |users: &Users, user| users.subscriptions(user).collect::<Vec<_>>();
        assert_eq!(of(&users, ann), [3, 900, 7]);
        users.disown(900);
        assert_eq!((of(&users, ann), users.owner(900), users.owner_id(3)), (vec![3, 7], None, Some(id("ann"))));
        users.own(3, Some(bob));
        assert_eq!((of(&users, ann), of(&users, bob), users.owner(4)), (vec![7], vec![3], None));
        users.own(7, Some(ann));
        assert_eq!((users.find(&id("ann")), of(&users, ann)), (Some(ann), vec![7]), "told again, it stays its user's");
        users.disown(7);
        assert_eq!(users.find(&id("ann")), None);
        users.add(&id("cid"), UserFacts::default());
        users.forget_all_idle();
        users.disown(3);
        assert!(users.known.is_empty() && users.by_id.len() == 0);
    }
}
