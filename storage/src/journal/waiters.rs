//! Who waits for durability, and up to where it has come.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub(super) struct Waiters {
    durable: AtomicU64,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    has_ended: bool,
}

impl Waiters {
    pub(super) fn new(durable: u64) -> Self {
        Self { durable: AtomicU64::new(durable), list: Mutex::default() }
    }

    /// The last durable sequence.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Waits until a sequence is durable; false when that will not be known any more.
    pub(super) async fn wait(&self, sequence: u64) -> bool {
        if sequence <= self.durable() {
            return true;
        }
        let waiter = {
            let mut list = self.list.lock();
            if sequence <= self.durable() {
                return true;
            }
            if list.has_ended {
                return false;
            }
            let (sender, waiter) = oneshot::channel();
            list.waiting.push((sequence, sender));
            waiter
        };
        waiter.await.is_ok()
    }

    /// Everything up to a sequence is durable.
    pub(super) fn advance(&self, durable: u64) {
        let woken: Vec<_> = {
            let mut list = self.list.lock();
            self.durable.store(durable, Ordering::Release);
            list.waiting.extract_if(.., |(sequence, _)| *sequence <= durable).collect()
        };
        for (_, waiter) in woken {
            // Who no longer waits does not mind.
            let _unheard = waiter.send(());
        }
    }

    /// Nothing more will be durable.
    pub(super) fn end(&self) {
        let mut list = self.list.lock();
        list.has_ended = true;
        // Their receivers see that the senders are gone.
        list.waiting.clear();
    }
}
