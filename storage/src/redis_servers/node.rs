//! One server: its connection, made anew with a back-off when it is lost.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex as Lock;
use redis::{AsyncConnectionConfig, Client, Cmd, PushInfo, PushKind, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::{fault, listening::Listening};

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// The rest between two tries: from the first to the second, doubled each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

pub(super) struct Node {
    calls: Line,
    /// Channels have a connection of their own. A server that gives a slot away says so to who listens there, unasked; the crate takes
    /// that for an answer, and every later call would get the answer of the one before it.
    channels: Line,
}

/// A connection that is made when it is needed, and again when it is lost.
struct Line {
    /// `HOST:PORT`.
    address: String,
    client: Client,
    listening: Arc<Listening>,
    live: Arc<Lock<Live>>,
    /// Held by whoever connects.
    connecting: Mutex<Connecting>,
}

#[derive(Default)]
struct Live {
    link: Option<MultiplexedConnection>,
    /// Counts the connections that there were.
    generation: u64,
    closed: bool,
}

struct Connecting {
    failures: u32,
    next: Instant,
}

/// What became of a command.
pub(super) enum Outcome {
    Answer(Value),
    /// The server refused it.
    Refused(RedisError),
    /// It did not leave this process.
    NotSent(RedisError),
    /// It was sent, and then there was no answer.
    Unknown(RedisError),
}

impl Node {
    pub(super) fn new(address: String, client: Client, listening: Arc<Listening>) -> Self {
        let line = || Line {
            address: address.clone(),
            client: client.clone(),
            listening: listening.clone(),
            live: Arc::default(),
            connecting: Mutex::new(Connecting { failures: 0, next: Instant::now() }),
        };
        Self { calls: line(), channels: line() }
    }

    pub(super) fn address(&self) -> &str {
        &self.calls.address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.calls.live.lock().link.is_some()
    }

    /// Which of the connections for channels is open, if one is.
    pub(super) fn listens_by(&self) -> Option<u64> {
        let live = self.channels.live.lock();
        live.link.is_some().then_some(live.generation)
    }

    pub(super) fn close(&self) {
        self.calls.close();
        self.channels.close();
    }

    /// Sends a command; after `ASKING` where its slot is on its way here.
    pub(super) async fn send(&self, command: &Cmd, asking: bool, deadline: Instant) -> Outcome {
        self.calls.send(command, asking, deadline).await.0
    }

    /// Listens to a channel; gives the connection that tells of it.
    pub(super) async fn subscribe(&self, channel: &str, deadline: Instant) -> Result<u64, RedisError> {
        self.about_channel("SSUBSCRIBE", channel, deadline).await
    }

    pub(super) async fn unsubscribe(&self, channel: &str, deadline: Instant) -> Result<u64, RedisError> {
        self.about_channel("SUNSUBSCRIBE", channel, deadline).await
    }

    /// A connection that does not answer is closed, and what it told of is listened to anew.
    pub(super) async fn ping_channels(&self, deadline: Instant) {
        if self.listens_by().is_some() {
            drop(self.channels.send(&redis::cmd("PING"), false, deadline).await);
        }
    }

    async fn about_channel(&self, what: &str, channel: &str, deadline: Instant) -> Result<u64, RedisError> {
        let mut command = redis::cmd(what);
        command.arg(channel);
        match self.channels.send(&command, false, deadline).await {
            (Outcome::Answer(_), generation) => Ok(generation),
            (Outcome::Refused(error) | Outcome::NotSent(error) | Outcome::Unknown(error), _) => Err(error),
        }
    }
}

impl Line {
    fn close(&self) {
        let mut live = self.live.lock();
        live.closed = true;
        live.link = None;
    }

    /// What became of a command, and the connection that it went by.
    async fn send(&self, command: &Cmd, asking: bool, deadline: Instant) -> (Outcome, u64) {
        let (mut link, generation) = match self.link(deadline).await {
            Ok(link) => link,
            Err(error) => return (Outcome::NotSent(error), 0),
        };
        let sending = async {
            if !asking {
                return link.send_packed_command(command).await;
            }
            let mut both = redis::pipe();
            both.cmd("ASKING").add_command(command.clone());
            let mut answers = link.send_packed_commands(&both, 0, 2).await?;
            answers.pop().unwrap_or_default().extract_error()
        };
        let outcome = match timeout_at(deadline, sending).await {
            Ok(Ok(Value::ServerError(error))) => Outcome::Refused(error.into()),
            Ok(Ok(value)) => Outcome::Answer(value),
            Ok(Err(error)) if error.is_io_error() || error.is_unrecoverable_error() => {
                self.lost(generation);
                Outcome::Unknown(error)
            }
            Ok(Err(error)) => Outcome::Refused(error),
            Err(_) => {
                self.lost(generation);
                Outcome::Unknown(fault::io(std::io::ErrorKind::TimedOut, "no answer in time"))
            }
        };
        (outcome, generation)
    }

    /// The connection; made when there is none.
    async fn link(&self, deadline: Instant) -> Result<(MultiplexedConnection, u64), RedisError> {
        if let Some(link) = self.open_link()? {
            return Ok(link);
        }
        let away = |_| fault::io(std::io::ErrorKind::NotConnected, "no connection in time");
        let mut connecting = timeout_at(deadline, self.connecting.lock()).await.map_err(away)?;
        if let Some(link) = self.open_link()? {
            return Ok(link);
        }
        timeout_at(deadline, tokio::time::sleep_until(connecting.next)).await.map_err(away)?;
        match self.connect().await {
            Ok(link) => {
                if std::mem::take(&mut connecting.failures) > 0 {
                    info!(address = self.address, "connected to Redis again");
                }
                Ok(link)
            }
            Err(error) => {
                connecting.failures += 1;
                let rest = (BACK_OFF.0 * 2_u32.pow(connecting.failures.min(10) - 1)).min(BACK_OFF.1);
                connecting.next = Instant::now() + rest;
                if connecting.failures == 1 {
                    warn!(address = self.address, %error, "no connection to Redis");
                }
                Err(error)
            }
        }
    }

    fn open_link(&self) -> Result<Option<(MultiplexedConnection, u64)>, RedisError> {
        let live = self.live.lock();
        if live.closed {
            return Err(fault::io(std::io::ErrorKind::NotConnected, "closed"));
        }
        Ok(live.link.clone().map(|link| (link, live.generation)))
    }

    async fn connect(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let generation = self.live.lock().generation + 1;
        let (listening, live) = (self.listening.clone(), Arc::downgrade(&self.live));
        let hear = move |push: PushInfo| {
            match push.kind {
                PushKind::SMessage => listening.heard(&push.data),
                PushKind::SUnsubscribe => listening.left(&push.data),
                PushKind::Disconnection => {
                    if let Some(live) = live.upgrade() {
                        lost(&live, generation);
                    }
                    listening.nudge();
                }
                _ => {}
            }
            Ok::<(), redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(None)
            .set_push_sender(hear);
        let link = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut live = self.live.lock();
        if live.closed {
            return Err(fault::io(std::io::ErrorKind::NotConnected, "closed"));
        }
        live.generation = generation;
        live.link = Some(link.clone());
        drop(live);
        self.listening.nudge();
        Ok((link, generation))
    }

    fn lost(&self, generation: u64) {
        lost(&self.live, generation);
        self.listening.nudge();
    }
}

fn lost(live: &Lock<Live>, generation: u64) {
    let mut live = live.lock();
    if live.generation == generation {
        live.link = None;
    }
}
