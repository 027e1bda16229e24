//! Channels of Redis (sharded: each lives in the slot of its name) and who listens to them.
//!
//! A message may be lost with its connection. So whoever listens is told when that may have been, and looks at what there is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use redis::Value;
use tokio::{sync::Notify, time::Instant};
use tracing::debug;

use super::{PATIENCE, Shared};

/// How often the subscriptions are looked at when nothing seems to have happened.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often connections that only listen are asked whether they are open: nobody would miss what they do not tell.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Channels that are subscribed to at a time.
const AT_A_TIME: usize = 32;

/// Hears what is published to a channel. Called where answers are read: it must not wait.
pub(crate) trait Listener: Send + Sync {
    fn heard(&self, message: &[u8]);

    /// There may have been messages that nobody heard.
    fn missed(&self);
}

pub(super) struct Listening {
    channels: Mutex<HashMap<String, Channel>>,
    /// Nobody listens to these any more, but servers still tell of them.
    abandoned: Mutex<Vec<(String, Channel)>>,
    nudged: Notify,
    ended: AtomicBool,
}

struct Channel {
    slot: u16,
    listener: Arc<dyn Listener>,
    /// The server and the connection that tell of it.
    place: Option<(String, u64)>,
}

impl Listening {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            channels: Mutex::default(),
            abandoned: Mutex::default(),
            nudged: Notify::new(),
            ended: AtomicBool::new(false),
        })
    }

    pub(super) fn add(&self, channel: String, slot: u16, listener: Arc<dyn Listener>) {
        self.channels.lock().insert(channel, Channel { slot, listener, place: None });
        self.nudge();
    }

    pub(super) fn remove(&self, channel: &str) {
        if let Some((name, channel)) = self.channels.lock().remove_entry(channel) {
            self.abandoned.lock().push((name, channel));
            self.nudge();
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.channels.lock().clear();
        self.abandoned.lock().clear();
        self.nudge();
    }

    /// Something about the connections changed.
    pub(super) fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// A message: its channel and what it says.
    pub(super) fn heard(&self, data: &[Value]) {
        let [Value::BulkString(channel), Value::BulkString(message), ..] = data else { return };
        let Some(listener) = self.listener(channel) else { return };
        listener.heard(message);
    }

    /// The server does not tell of the channel any more: its slot has moved.
    pub(super) fn left(&self, data: &[Value]) {
        if let Some(Value::BulkString(channel)) = data.first()
            && let Ok(channel) = std::str::from_utf8(channel)
            && let Some(channel) = self.channels.lock().get_mut(channel)
        {
            channel.place = None;
        }
        self.nudge();
    }

    fn listener(&self, channel: &[u8]) -> Option<Arc<dyn Listener>> {
        let channel = std::str::from_utf8(channel).ok()?;
        self.channels.lock().get(channel).map(|channel| channel.listener.clone())
    }
}

/// Keeps the subscriptions where they belong, until nobody needs the connections any more.
pub(super) async fn keep(shared: Weak<Shared>) {
    let mut ping_at = Instant::now() + PING_EVERY;
    loop {
        let Some(now) = shared.upgrade() else { return };
        let listening = now.listening.clone();
        if listening.ended.load(Ordering::Acquire) {
            return;
        }
        if Instant::now() >= ping_at {
            now.slots.ping_channels(Instant::now() + PATIENCE / 2).await;
            ping_at = Instant::now() + PING_EVERY;
        }
        let abandoned = std::mem::take(&mut *listening.abandoned.lock());
        for (name, channel) in abandoned {
            unsubscribe(&now, &name, &channel).await;
        }
        let wanted: Vec<_> = {
            let channels = listening.channels.lock();
            channels.iter().map(|(name, channel)| (name.clone(), channel.slot, channel.place.clone())).collect()
        };
        stream::iter(wanted)
            .for_each_concurrent(AT_A_TIME, |(name, slot, place)| {
                let shared = &now;
                async move { subscribe(shared, &name, slot, place).await }
            })
            .await;
        drop(now);
        // Without a reference of its own: the end of the others is the end of this.
        drop(tokio::time::timeout(LOOK_EVERY, listening.nudged.notified()).await);
    }
}

/// Where it fails the connection is lost, and with it the subscription; or the server tells on, and nobody hears it.
async fn unsubscribe(shared: &Shared, name: &str, channel: &Channel) {
    let Some((address, generation)) = &channel.place else { return };
    if shared.listening.channels.lock().contains_key(name) {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    if let Ok(node) = shared.slots.route("listen", channel.slot, deadline).await
        && node.address() == address
        && node.listens_by() == Some(*generation)
        && let Err(error) = node.unsubscribe(name, deadline).await
    {
        debug!(channel = name, %error, "not unsubscribed");
    }
}

async fn subscribe(shared: &Shared, name: &str, slot: u16, place: Option<(String, u64)>) {
    let deadline = Instant::now() + PATIENCE;
    let Ok(node) = shared.slots.route("listen", slot, deadline).await else { return };
    if place.is_some_and(|(address, generation)| address == node.address() && Some(generation) == node.listens_by()) {
        return;
    }
    match node.subscribe(name, deadline).await {
        Ok(generation) => {
            let mut channels = shared.listening.channels.lock();
            let Some(channel) = channels.get_mut(name) else { return };
            channel.place = Some((node.address().to_owned(), generation));
            let listener = channel.listener.clone();
            drop(channels);
            listener.missed();
        }
        Err(error) => {
            debug!(channel = name, %error, "not subscribed");
            shared.slots.forget();
        }
    }
}
