//! Leases within one process: for the embedded registry, which only one process opens.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

#[derive(Default)]
pub(crate) struct Leases(Mutex<HashMap<String, Lease>>);

struct Lease {
    holder: String,
    until: Instant,
}

impl Leases {
    pub(crate) fn hold(&self, name: &str, holder: &str, ttl: Duration) -> bool {
        let now = Instant::now();
        let mut leases = self.0.lock();
        leases.retain(|_, lease| lease.until > now);
        let lease = leases.entry(name.to_owned()).or_insert_with(|| Lease { holder: holder.to_owned(), until: now });
        if lease.holder != holder {
            return false;
        }
        lease.until = now + ttl;
        true
    }

    pub(crate) fn release(&self, name: &str, holder: &str) {
        self.0.lock().retain(|known, lease| known != name || lease.holder != holder);
    }
}
