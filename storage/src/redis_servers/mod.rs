//! Redis, one server or a cluster: connections that both of its adapters share, scripts, channels, and what a server must be like.
//!
//! Everything is sent to the server that holds the key's slot, over one connection to each server, many calls at a time. What never
//! left this process is sent again until [`PATIENCE`] is over; a write that was under way when its connection was lost is not,
//! because nobody knows whether it took effect: the caller hears of it.
//!
//! The crate `redis` is named in this folder only; the adapters speak of [`Script`], [`Reply`] and [`Keys`].

mod check;
mod fault;
mod keys;
mod lease;
mod listening;
mod node;
pub(crate) mod opened;
mod reply;
mod script;
mod slots;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use redis::{Cmd, ErrorKind as Kind, RedisError, ServerErrorKind};
use tokio::time::Instant;
use tracing::warn;

use self::{
    fault::fault,
    listening::Listening,
    node::{Node, Outcome},
    slots::Slots,
};
pub(crate) use self::{
    keys::Keys,
    listening::Listener,
    reply::{Reply, next},
    script::Script,
};
use crate::{Error, ErrorKind, Result, open::RedisSettings};

/// How long a call waits for a server that is away, or for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a call rests before it tries again.
const REST: Duration = Duration::from_millis(50);
/// How long the first connection is tried for.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Most redirections of one call: a slot that moves gives two.
const MOST_REDIRECTIONS: u32 = 8;

/// The connections to the servers. Cheap to clone; ends with [`close`](Self::close) or when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    keys: Keys,
    slots: Slots,
    listening: Arc<Listening>,
    /// Calls that were sent, each one round trip.
    calls: AtomicU64,
    may_lose: bool,
}

/// Whether a call may be sent again when nobody knows if it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It changes nothing, or the same once more.
    Repeatable,
    /// It must not happen twice unknown to the caller.
    Once,
}

impl Redis {
    /// Connects, and refuses servers that would lose what they confirmed. Waits for servers that are away.
    ///
    /// `Invalid` when a server is not as it has to be or refuses the credentials, `Unavailable` when none answers.
    pub(crate) async fn connect(settings: &RedisSettings) -> Result<Self> {
        Self::connect_within(settings, START_PATIENCE).await
    }

    async fn connect_within(settings: &RedisSettings, patience: Duration) -> Result<Self> {
        let listening = Listening::new();
        let slots = Slots::new(settings, listening.clone())?;
        let keys = Keys::new(&settings.prefix)?;
        let (calls, may_lose) = (AtomicU64::new(0), settings.may_lose);
        let redis = Self { shared: Arc::new(Shared { keys, slots, listening, calls, may_lose }) };
        let until = Instant::now() + patience;
        let mut told = false;
        loop {
            match check::servers(&redis, settings).await {
                Ok(()) => break,
                Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < until => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%error, "waiting for Redis");
                    }
                    tokio::time::sleep(REST * 4).await;
                }
                Err(error) => return Err(error),
            }
        }
        tokio::spawn(listening::keep(Arc::downgrade(&redis.shared)));
        Ok(redis)
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Whether several servers share the keys.
    pub(crate) fn is_cluster(&self) -> bool {
        self.shared.slots.is_cluster()
    }

    /// Whether servers may come back without the last of what they confirmed.
    pub(crate) fn may_forget(&self) -> bool {
        self.shared.may_lose || self.is_cluster()
    }

    /// Why the servers cannot be used now, if they cannot: the first one that does not answer.
    pub(crate) async fn ailment(&self, patience: Duration) -> Option<String> {
        let asking = async {
            let deadline = Instant::now() + patience;
            let masters = self.shared.slots.masters(deadline).await?;
            try_join_all(masters.iter().map(|node| async move {
                match node.send(&redis::cmd("PING"), false, deadline).await {
                    Outcome::Answer(_) => Ok(()),
                    Outcome::Refused(error) | Outcome::NotSent(error) | Outcome::Unknown(error) => {
                        Err(fault("look at redis", node.address(), &error))
                    }
                }
            }))
            .await
        };
        asking.await.err().map(|error: Error| error.message)
    }

    /// How many calls were sent so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Tells a listener what is published to a channel from now on, until `unlisten`. It is told that it may have missed something
    /// when it begins, and whenever the connection was lost.
    pub(crate) fn listen(&self, channel: String, listener: Arc<dyn Listener>) {
        let slot = slots::slot_of(channel.as_bytes());
        self.shared.listening.add(channel, slot, listener);
    }

    pub(crate) fn unlisten(&self, channel: &str) {
        self.shared.listening.remove(channel);
    }

    /// Ends the connections: calls that come later are `Unavailable`.
    pub(crate) fn close(&self) {
        self.shared.listening.end();
        self.shared.slots.close();
    }

    /// Runs a script at the server that holds its first key. The server is taught the script when it does not know it.
    pub(crate) async fn run(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[&str],
        arguments: &Arguments,
    ) -> Result<Reply> {
        let slot = slots::slot_of(keys.first().map_or(&[], |key| key.as_bytes()));
        match self.send(operation, slot, &script.by_hash(keys, arguments), script.effect()).await {
            Err(Refusal::Answered(error)) if error.kind() == Kind::Server(ServerErrorKind::NoScript) => {}
            other => return other.map(Reply).map_err(|refusal| refusal.into_error(operation)),
        }
        let taught = self.send(operation, slot, &script.by_text(keys, arguments), script.effect()).await;
        taught.map(Reply).map_err(|refusal| refusal.into_error(operation))
    }

    /// Sends one command about a key.
    pub(crate) async fn command(
        &self,
        operation: &'static str,
        effect: Effect,
        name: &str,
        key: &str,
        arguments: &Arguments,
    ) -> Result<Reply> {
        let mut command = redis::cmd(name);
        command.arg(key);
        arguments.put_into(&mut command);
        let sent = self.send(operation, slots::slot_of(key.as_bytes()), &command, effect).await;
        sent.map(Reply).map_err(|refusal| refusal.into_error(operation))
    }

    async fn send(
        &self,
        operation: &'static str,
        slot: u16,
        command: &Cmd,
        effect: Effect,
    ) -> Result<redis::Value, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let mut redirection: Option<(Arc<Node>, bool)> = None;
        let mut redirections = 0;
        loop {
            let (node, asking) = match redirection.take() {
                Some(redirection) => redirection,
                None => (self.shared.slots.route(operation, slot, deadline).await.map_err(Refusal::Other)?, false),
            };
            self.shared.calls.fetch_add(1, Ordering::Relaxed);
            let error = match node.send(command, asking, deadline).await {
                Outcome::Answer(value) => return Ok(value),
                Outcome::Refused(error) => error,
                Outcome::NotSent(error) => {
                    self.rest(operation, &node, deadline, error).await?;
                    continue;
                }
                Outcome::Unknown(error) if effect == Effect::Repeatable => {
                    self.rest(operation, &node, deadline, error).await?;
                    continue;
                }
                Outcome::Unknown(error) => return Err(Refusal::Other(fault(operation, node.address(), &error))),
            };
            match error.kind() {
                Kind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) if redirections < MOST_REDIRECTIONS => {
                    redirections += 1;
                    redirection = self.shared.slots.redirected(&node, &error).map_err(Refusal::Other)?;
                }
                // Not carried out: the server begins, or its part of the cluster changes hands.
                Kind::Server(
                    ServerErrorKind::TryAgain
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::ReadOnly,
                ) => self.rest(operation, &node, deadline, error).await?,
                _ => return Err(Refusal::Answered(error)),
            }
        }
    }

    /// Before another try; the last error when there is no time for one.
    async fn rest(
        &self,
        operation: &'static str,
        node: &Node,
        deadline: Instant,
        error: RedisError,
    ) -> Result<(), Refusal> {
        if Instant::now() + REST >= deadline || self.shared.slots.is_closed() {
            return Err(Refusal::Other(fault(operation, node.address(), &error)));
        }
        tokio::time::sleep(REST).await;
        self.shared.slots.forget();
        Ok(())
    }
}

/// Why there is no answer.
enum Refusal {
    /// The server says so.
    Answered(RedisError),
    Other(Error),
}

impl Refusal {
    fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Answered(error) => fault(operation, "", &error),
            Self::Other(error) => error,
        }
    }
}

/// What follows the keys of a call.
#[derive(Default)]
pub(crate) struct Arguments(Vec<bytes::Bytes>);

impl Arguments {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    pub(crate) fn bytes(&mut self, bytes: impl Into<bytes::Bytes>) -> &mut Self {
        self.0.push(bytes.into());
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(bytes::Bytes::copy_from_slice(text.as_bytes()))
    }

    pub(crate) fn number(&mut self, number: impl std::fmt::Display) -> &mut Self {
        self.bytes(number.to_string().into_bytes())
    }

    fn put_into(&self, command: &mut Cmd) {
        for argument in &self.0 {
            command.arg(&argument[..]);
        }
    }
}
