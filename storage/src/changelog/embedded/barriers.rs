//! Barriers that writers passed: in memory only, for whoever waits in this process.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    changelog::waiters::Waiters,
    model::{AppId, ChangeId},
};

/// Barriers that are remembered, so that a waiter may come shortly after the writer.
const REMEMBERED: usize = 1_000;

type Barrier = (AppId, ChangeId);

pub(super) struct Barriers {
    passed: Mutex<Passed>,
    waiting: Arc<Waiters<Barrier, ()>>,
}

#[derive(Default)]
struct Passed {
    known: HashSet<Barrier>,
    order: VecDeque<Barrier>,
}

impl Barriers {
    pub(super) fn new() -> Self {
        Self { passed: Mutex::default(), waiting: Waiters::new() }
    }

    pub(super) fn pass(&self, app: &AppId, id: ChangeId) {
        let barrier = (app.clone(), id);
        self.passed.lock().remember(barrier.clone());
        self.waiting.wake(&barrier, &());
    }

    pub(super) async fn wait(&self, app: &AppId, id: ChangeId) {
        let barrier = (app.clone(), id);
        let waiting = self.waiting.register(barrier.clone());
        if !self.passed.lock().known.contains(&barrier) {
            waiting.await;
        }
    }
}

impl Passed {
    fn remember(&mut self, barrier: Barrier) {
        if self.known.insert(barrier.clone()) {
            self.order.push_back(barrier);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_thousand() {
        let barriers = Barriers::new();
        let app = AppId::parse("a").expect("an id");
        let ids: Vec<_> = (0..=REMEMBERED as u128).map(|id| ChangeId(ulid::Ulid(id))).collect();
        ids.iter().for_each(|id| barriers.pass(&app, *id));
        let passed = barriers.passed.lock();
        assert_eq!((passed.known.len(), passed.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!passed.known.contains(&(app.clone(), ids[0])) && passed.known.contains(&(app, ids[1])));
    }
}
