//! Tokens that were checked, by what they stand for, bounded.
//!
//! Two generations: when the young one is full it becomes the old one, whose entries are dropped with it unless they are used again
//! before. So the cache holds what is in use, and an entry costs no bookkeeping when it is hit.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    mem,
};

use hashbrown::HashTable;
use nexxus_storage::model::{AppId, DeviceId, UserId};
use sha2::{Digest, Sha256};

use super::Identified;

/// Entries of a generation: as many as a table of 8,192 places takes.
const CAPACITY: usize = 7_168;

/// A token and the device that it came with: half of a SHA-256, so that none can be found that is taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey(u128);

impl CacheKey {
    pub(super) fn new(token: &str, device: Option<&DeviceId>) -> Self {
        let device = device.map_or("", DeviceId::as_str);
        let digest =
            Sha256::new().chain_update(token.len().to_le_bytes()).chain_update(token).chain_update(device).finalize();
        Self(digest.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte)))
    }
}

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
    hasher: RandomState,
    n_tickets: u64,
}

#[derive(Default)]
struct Generation {
    entries: HashMap<CacheKey, Entry>,
    of_subject: HashTable<Reference>,
}

/// A subject, by its hash, and an entry that stands with it. Where two subjects have one hash, what stands with either is forgotten
/// with both, and checked again.
#[derive(Clone, Copy, PartialEq)]
struct Reference {
    subject: u64,
    key: CacheKey,
}

struct Entry {
    ticket: u64,
    /// None while it is being checked.
    identified: Option<Identified>,
    subjects: [u64; 3],
}

impl Cache {
    pub(super) fn get(&mut self, key: CacheKey) -> Option<Identified> {
        if let Some(entry) = self.young.entries.get(&key) {
            return entry.identified.clone();
        }
        let entry = self.old.take(key)?;
        let identified = entry.identified.clone();
        self.insert(key, entry);
        identified
    }

    /// Says that a token is being checked. The ticket is void when one of its subjects is forgotten meanwhile.
    pub(super) fn announce(&mut self, key: CacheKey, subjects: [Subject; 3]) -> u64 {
        self.remove(key);
        self.n_tickets += 1;
        let ticket = self.n_tickets;
        let subjects = subjects.map(|subject| self.hasher.hash_one(subject));
        self.insert(key, Entry { ticket, identified: None, subjects });
        ticket
    }

    pub(super) fn complete(&mut self, key: CacheKey, ticket: u64, identified: Identified) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(entry) = generation.entries.get_mut(&key).filter(|entry| entry.ticket == ticket) {
                entry.identified = Some(identified);
                return;
            }
        }
    }

    pub(super) fn remove(&mut self, key: CacheKey) {
        self.young.take(key);
        self.old.take(key);
    }

    /// Forgets what stands with a subject and is touched by the news of it; what is still being checked always is.
    pub(super) fn forget(&mut self, subject: &Subject, touched: impl Fn(&Identified) -> bool) {
        let subject = self.hasher.hash_one(subject);
        for generation in [&mut self.young, &mut self.old] {
            let entries = &generation.entries;
            let is_gone =
                |key: &CacheKey| entries.get(key).is_some_and(|entry| entry.identified.as_ref().is_none_or(&touched));
            let references = generation.of_subject.iter_hash(subject).filter(|reference| reference.subject == subject);
            let gone: Vec<CacheKey> = references.map(|reference| reference.key).filter(is_gone).collect();
            for key in gone {
                generation.take(key);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.young = Generation::default();
        self.old = Generation::default();
    }

    fn insert(&mut self, key: CacheKey, entry: Entry) {
        if self.young.entries.len() >= CAPACITY {
            self.old = mem::take(&mut self.young);
        }
        for subject in entry.subjects {
            self.young.of_subject.insert_unique(subject, Reference { subject, key }, |other| other.subject);
        }
        self.young.entries.insert(key, entry);
    }
}

impl Generation {
    fn take(&mut self, key: CacheKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        for subject in entry.subjects {
            let reference = Reference { subject, key };
            if let Ok(found) = self.of_subject.find_entry(subject, |other| *other == reference) {
                found.remove();
            }
        }
        Some(entry)
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
        Identified { app: app(), caller, login: None, expires_at: None }
    }

    fn subjects(name: &str) -> [Subject; 3] {
        [
            Subject::User(app(), UserId::parse(name).expect("an id")),
            Subject::Session(app(), name.to_owned()),
            Subject::Device(app(), DeviceId::parse(name).expect("an id")),
        ]
    }

    fn key(token: &str) -> CacheKey {
        CacheKey::new(token, None)
    }

    fn with(cache: &mut Cache, name: &str) {
        let ticket = cache.announce(key(name), subjects(name));
        cache.complete(key(name), ticket, identified(name));
    }

    #[test]
    fn a_key_is_of_one_token_and_one_device() {
        let device = |name| DeviceId::parse(name).expect("an id");
        let keys = [
            key("token"),
            key("other"),
            CacheKey::new("token", Some(&device("d1"))),
            CacheKey::new("token", Some(&device("d2"))),
            CacheKey::new("tokend", Some(&device("1"))),
        ];
        for (place, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(place));
        }
    }

    #[test]
    fn what_stands_with_a_subject_falls_with_it() {
        let mut cache = Cache::default();
        for subject in subjects("anna") {
            with(&mut cache, "anna");
            with(&mut cache, "ben");
            cache.forget(&subject, |_| true);
            assert_eq!(cache.get(key("anna")), None, "{subject:?}");
            assert_eq!(cache.get(key("ben")), Some(identified("ben")));
        }
        with(&mut cache, "anna");
        cache.forget(&subjects("anna")[0], |_| false);
        assert!(cache.get(key("anna")).is_some());
        assert!(cache.young.of_subject.len() == 6 && cache.old.of_subject.is_empty());
    }

    #[test]
    fn what_is_revoked_while_it_is_checked_is_not_kept() {
        let mut cache = Cache::default();
        let ticket = cache.announce(key("anna"), subjects("anna"));
        cache.forget(&subjects("anna")[1], |_| false);
        cache.complete(key("anna"), ticket, identified("anna"));
        assert_eq!(cache.get(key("anna")), None);

        let first = cache.announce(key("anna"), subjects("anna"));
        let second = cache.announce(key("anna"), subjects("anna"));
        cache.complete(key("anna"), first, identified("anna"));
        assert_eq!(cache.get(key("anna")), None, "the first was overtaken");
        cache.complete(key("anna"), second, identified("anna"));
        assert!(cache.get(key("anna")).is_some());
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        with(&mut cache, "used");
        for number in 0..5 * CAPACITY {
            with(&mut cache, &format!("t{number}"));
            if number % 1000 == 0 {
                assert!(cache.get(key("used")).is_some());
            }
        }
        assert!(cache.young.entries.len() + cache.old.entries.len() <= 2 * CAPACITY);
        assert!(cache.young.of_subject.len() + cache.old.of_subject.len() <= 6 * CAPACITY);
        assert_eq!(cache.get(key("t0")), None);
        cache.clear();
        assert_eq!(cache.get(key("used")), None);
    }
}
