//! Tokens that were checked, by what they stand for, bounded.
//!
//! Two generations: when the young one is full it becomes the old one, whose entries are dropped with it unless they are used again
//! before. So the cache holds what is in use, and an entry costs no bookkeeping when it is hit.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nexxus_storage::model::{AppId, DeviceId, UserId};

use super::Identified;

/// Entries of a generation.
const CAPACITY: usize = 8_192;

/// What an entry stands and falls with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    User(AppId, UserId),
    Session(AppId, String),
    Device(AppId, DeviceId),
}

#[derive(Default)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
    n_tickets: u64,
}

#[derive(Default)]
struct Generation {
    entries: HashMap<Arc<str>, Entry>,
    of_subject: HashMap<Subject, HashSet<Arc<str>>>,
}

struct Entry {
    ticket: u64,
    /// None while it is being checked.
    identified: Option<Identified>,
    subjects: [Subject; 3],
}

impl Cache {
    pub(super) fn get(&mut self, key: &str) -> Option<Identified> {
        if let Some(entry) = self.young.entries.get(key) {
            return entry.identified.clone();
        }
        let (key, entry) = self.old.take(key)?;
        let identified = entry.identified.clone();
        self.insert(key, entry);
        identified
    }

    /// Says that a token is being checked. The ticket is void when one of its subjects is forgotten meanwhile.
    pub(super) fn announce(&mut self, key: Arc<str>, subjects: [Subject; 3]) -> u64 {
        self.remove(&key);
        self.n_tickets += 1;
        let ticket = self.n_tickets;
        self.insert(key, Entry { ticket, identified: None, subjects });
        ticket
    }

    pub(super) fn complete(&mut self, key: &str, ticket: u64, identified: Identified) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(entry) = generation.entries.get_mut(key).filter(|entry| entry.ticket == ticket) {
                entry.identified = Some(identified);
                return;
            }
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.young.take(key);
        self.old.take(key);
    }

    /// Forgets what stands with a subject and is touched by the news of it; what is still being checked always is.
    pub(super) fn forget(&mut self, subject: &Subject, touched: impl Fn(&Identified) -> bool) {
        for generation in [&mut self.young, &mut self.old] {
            let Some(keys) = generation.of_subject.get(subject) else { continue };
            let gone: Vec<_> = keys
                .iter()
                .filter(|key| {
                    generation.entries.get(*key).is_some_and(|entry| entry.identified.as_ref().is_none_or(&touched))
                })
                .cloned()
                .collect();
            for key in gone {
                generation.take(&key);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.young = Generation::default();
        self.old = Generation::default();
    }

    fn insert(&mut self, key: Arc<str>, entry: Entry) {
        if self.young.entries.len() >= CAPACITY {
            self.old = std::mem::take(&mut self.young);
        }
        for subject in &entry.subjects {
            self.young.of_subject.entry(subject.clone()).or_default().insert(key.clone());
        }
        self.young.entries.insert(key, entry);
    }
}

impl Generation {
    fn take(&mut self, key: &str) -> Option<(Arc<str>, Entry)> {
        let (key, entry) = self.entries.remove_entry(key)?;
        for subject in &entry.subjects {
            if let Some(keys) = self.of_subject.get_mut(subject) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.of_subject.remove(subject);
                }
            }
        }
        Some((key, entry))
    }
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::Caller;

    use super::*;

    fn app() -> AppId {
        AppId::parse("a").expect("an id")
    }

    fn identified(user: &str) -> Identified {
        let caller = Caller { user: Some(UserId::parse(user).expect("an id")), ..Caller::default() };
        Identified { app: app(), caller, session: None, expires_at: None }
    }

    fn subjects(name: &str) -> [Subject; 3] {
        [
            Subject::User(app(), UserId::parse(name).expect("an id")),
            Subject::Session(app(), name.to_owned()),
            Subject::Device(app(), DeviceId::parse(name).expect("an id")),
        ]
    }

    fn with(cache: &mut Cache, name: &str) {
        let ticket = cache.announce(name.into(), subjects(name));
        cache.complete(name, ticket, identified(name));
    }

    #[test]
    fn what_stands_with_a_subject_falls_with_it() {
        let mut cache = Cache::default();
        for subject in subjects("anna") {
            with(&mut cache, "anna");
            with(&mut cache, "ben");
            cache.forget(&subject, |_| true);
            assert_eq!(cache.get("anna"), None, "{subject:?}");
            assert_eq!(cache.get("ben"), Some(identified("ben")));
        }
        with(&mut cache, "anna");
        cache.forget(&subjects("anna")[0], |_| false);
        assert!(cache.get("anna").is_some());
        assert!(cache.young.of_subject.len() == 6 && cache.old.of_subject.is_empty());
    }

    #[test]
    fn what_is_revoked_while_it_is_checked_is_not_kept() {
        let mut cache = Cache::default();
        let ticket = cache.announce("anna".into(), subjects("anna"));
        cache.forget(&subjects("anna")[1], |_| false);
        cache.complete("anna", ticket, identified("anna"));
        assert_eq!(cache.get("anna"), None);

        let first = cache.announce("anna".into(), subjects("anna"));
        let second = cache.announce("anna".into(), subjects("anna"));
        cache.complete("anna", first, identified("anna"));
        assert_eq!(cache.get("anna"), None, "the first was overtaken");
        cache.complete("anna", second, identified("anna"));
        assert!(cache.get("anna").is_some());
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        with(&mut cache, "used");
        for number in 0..5 * CAPACITY {
            with(&mut cache, &format!("t{number}"));
            if number % 1000 == 0 {
                assert!(cache.get("used").is_some());
            }
        }
        assert!(cache.young.entries.len() + cache.old.entries.len() <= 2 * CAPACITY);
        assert!(cache.young.of_subject.len() + cache.old.of_subject.len() <= 6 * CAPACITY);
        assert_eq!(cache.get("t0"), None);
        cache.clear();
        assert_eq!(cache.get("used"), None);
    }
}
