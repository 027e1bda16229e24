//! Those who wait for something with a name or a place in an order. Thousands of them cost nothing until theirs comes: each is
//! woken alone, and leaves no trace when it gives up.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Bound,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub(super) struct Waiters<K: Ord + Clone, T> {
    pub(super) waiting: Mutex<BTreeMap<(K, u64), oneshot::Sender<T>>>,
    next: AtomicU64,
}

impl<K: Ord + Clone, T: Clone> Waiters<K, T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::new(BTreeMap::new()), next: AtomicU64::new(0) })
    }

    /// Begins to wait: what is woken from now on is heard, also before the first poll. So register first, then look.
    pub(super) fn register(self: &Arc<Self>, key: K) -> Waiting<K, T> {
        let (sender, receiver) = oneshot::channel();
        let key = (key, self.next.fetch_add(1, Ordering::Relaxed));
        self.waiting.lock().insert(key.clone(), sender);
        Waiting { waiters: self.clone(), key, receiver }
    }

    /// Wakes everyone who waits for exactly this.
    pub(super) fn wake(&self, key: &K, news: &T) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let range = (Bound::Included((key.clone(), 0)), Bound::Included((key.clone(), u64::MAX)));
        let theirs: Vec<_> = waiting.range(range).map(|(key, _)| key.clone()).collect();
        for sender in theirs.iter().filter_map(|key| waiting.remove(key)) {
            drop(sender.send(news.clone())); // Who gave up does not listen.
        }
    }

    /// Wakes everyone who waits for this or less.
    pub(super) fn wake_upto(&self, key: &K, news: &T) {
        let mut waiting = self.waiting.lock();
        while let Some(first) = waiting.first_entry() {
            if first.key().0 > *key {
                break;
            }
            drop(first.remove().send(news.clone())); // As above.
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// Resolves when it is woken. Dropping it gives up.
pub(super) struct Waiting<K: Ord + Clone, T> {
    waiters: Arc<Waiters<K, T>>,
    key: (K, u64),
    receiver: oneshot::Receiver<T>,
}

impl<K: Ord + Clone + Unpin, T> Future for Waiting<K, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.receiver).poll(context) {
            Poll::Ready(Ok(news)) => Poll::Ready(news),
            // The sender lives in the map until it is woken, and the map as long as this: it cannot vanish unused.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<K: Ord + Clone, T> Drop for Waiting<K, T> {
    fn drop(&mut self) {
        self.waiters.waiting.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn each_is_woken_by_its_own() {
        let waiters = Waiters::<u32, &str>::new();
        let (mut first, second, third) = (waiters.register(1), waiters.register(2), waiters.register(2));
        waiters.wake(&2, &"two");
        assert_eq!((second.await, third.await), ("two", "two"));
        assert!((&mut first).now_or_never().is_none());
        waiters.wake_upto(&5, &"five");
        assert_eq!(first.await, "five");
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn who_gives_up_leaves_no_trace() {
        let waiters = Waiters::<u32, ()>::new();
        let waiting: Vec<_> = (0..1_000).map(|key| waiters.register(key)).collect();
        assert_eq!(waiters.count(), 1_000);
        drop(waiting);
        assert_eq!(waiters.count(), 0);
    }
}
