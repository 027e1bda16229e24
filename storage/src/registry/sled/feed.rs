//! Feeds: an inbox for each reader, bounded. A reader that lets its inbox overflow is told to reload, once, and nothing else:
//! whatever was in it is in what the reader then lists.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Shared, codec::Change};
use crate::{
    Result,
    registry::{Feed, Kind, News},
};

/// Most news in an inbox.
const MAX_NEWS: usize = 64 * 1024;
/// Most bytes of news in an inbox.
const MAX_BYTES: usize = 32 * 1024 * 1024;

pub(super) struct Inbox {
    kinds: Vec<Kind>,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    news: VecDeque<News>,
    bytes: usize,
    overflowed: bool,
    closed: bool,
}

impl Inbox {
    pub(super) fn new(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), waiting: Mutex::default(), wake: Notify::new() }
    }

    fn tell(&self, changes: &[Change]) {
        let mut waiting = self.waiting.lock();
        for change in changes.iter().filter(|change| self.kinds.contains(&change.key.kind)) {
            if waiting.overflowed {
                break;
            }
            waiting.bytes += change.bytes();
            if waiting.news.len() >= MAX_NEWS || waiting.bytes > MAX_BYTES {
                *waiting = Waiting { overflowed: true, closed: waiting.closed, ..Waiting::default() };
            } else {
                waiting.news.push_back(News::Written { key: change.key.clone(), value: change.value.clone() });
            }
        }
        if waiting.overflowed || !waiting.news.is_empty() {
            drop(waiting);
            self.wake.notify_one();
        }
    }

    fn take(&self) -> Vec<News> {
        let mut waiting = self.waiting.lock();
        let closed = waiting.closed;
        let taken = std::mem::replace(&mut *waiting, Waiting { closed, ..Waiting::default() });
        if taken.overflowed { vec![News::Reload] } else { taken.news.into() }
    }

    fn close(&self) {
        self.waiting.lock().closed = true;
        self.wake.notify_one();
    }
}

/// The inboxes of the feeds that are still read.
#[derive(Default)]
pub(super) struct Inboxes(Vec<Weak<Inbox>>);

impl Inboxes {
    pub(super) fn add(&mut self, inbox: &Arc<Inbox>) {
        self.0.retain(|known| known.strong_count() > 0);
        self.0.push(Arc::downgrade(inbox));
    }

    pub(super) fn tell(&self, changes: &[Change]) {
        for inbox in self.0.iter().filter_map(Weak::upgrade) {
            inbox.tell(changes);
        }
    }

    pub(super) fn close(&self) {
        for inbox in self.0.iter().filter_map(Weak::upgrade) {
            inbox.close();
        }
    }
}

pub(super) struct SledFeed {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Arc<Inbox>,
}

#[async_trait]
impl Feed for SledFeed {
    async fn read(&mut self) -> Result<Vec<News>> {
        self.shared.settle();
        let news = self.inbox.take();
        if news.is_empty() {
            self.shared.check_open()?;
        }
        Ok(news)
    }

    async fn changed(&mut self) -> Result<()> {
        loop {
            {
                let waiting = self.inbox.waiting.lock();
                if waiting.overflowed || !waiting.news.is_empty() {
                    return Ok(());
                }
                if waiting.closed {
                    return self.shared.check_open();
                }
            }
            // A wake-up between the look and the wait is kept for the wait; there is one waiter at most.
            self.inbox.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::registry::Key;

    fn change(id: usize, bytes: usize) -> Change {
        Change { key: Key::new(Kind::User, None, id.to_string()), value: Some(Bytes::from(vec![0; bytes])) }
    }

    #[test]
    fn an_inbox_overflows_into_one_reload_and_goes_on() {
        let by_count: Vec<Change> = (0..=MAX_NEWS).map(|id| change(id, 1)).collect();
        let by_size: Vec<Change> = (0..33).map(|id| change(id, 1024 * 1024)).collect();
        for many in [by_count, by_size] {
            let inbox = Inbox::new(&[Kind::User]);
            inbox.tell(&many[..10]);
            assert_eq!(inbox.take().len(), 10);
            for change in &many {
                inbox.tell(std::slice::from_ref(change));
            }
            inbox.tell(&many[..5]);
            assert_eq!(inbox.take(), [News::Reload]);
            assert_eq!(inbox.take(), []);
            inbox.tell(&many[..5]);
            assert_eq!(inbox.take().len(), 5);
        }
    }
}
