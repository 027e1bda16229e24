//! The WebSocket wire (contract §7): the upgrade, and one task for each connection that writes what its session has and reads what
//! the client says.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{
        Query, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket},
    },
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use nexxus_storage::model::{AppId, DeviceId, Problem, Timestamp, problem::ProblemKind};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::{
    connection::{Close, Next},
    hub::Hub,
    session::{Opening, Session},
};
use crate::{
    http::{Taken, problem_response},
    service::Failure,
};

/// How often the server pings. A peer that is silent for two of them is gone.
pub const HEARTBEAT: Duration = Duration::from_secs(25);
/// How long a socket may take nothing before it is closed with 4008.
const NO_PROGRESS: Duration = Duration::from_secs(30);
/// What is read of a socket at once: most of what clients say is a pong or an acknowledgement.
const READ_BUFFER_BYTES: usize = 256;
/// Largest frame that a client may send.
const CLIENT_FRAME_BYTES: usize = 256 * 1024;
/// Closes after expiry are spread over this, so that clients do not come back all at once.
const EXPIRY_SPREAD: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Parameters {
    token: Option<String>,
    app: Option<String>,
    device: Option<String>,
    since: Option<String>,
}

/// The routes of the transport: `/ws`, and `/` on a port of its own.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new().route("/ws", get(upgrade)).with_state(hub)
}

/// The same with `/`, for the transport's own port.
pub fn own_router(hub: Arc<Hub>) -> Router {
    router(hub.clone()).merge(Router::new().route("/", get(upgrade)).with_state(hub))
}

async fn upgrade(
    State(hub): State<Arc<Hub>>,
    Query(parameters): Query<Parameters>,
    taken: Option<Extension<Taken>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(_) => {
            let detail = "this address speaks WebSocket: connect with a WebSocket client";
            return problem_response(&Problem::new(ProblemKind::Malformed, detail));
        }
    };
    let opening = match opening(&hub, parameters, &headers).await {
        Ok(opening) => opening,
        Err(problem) => return problem_response(&problem),
    };
    // In a task of its own: when the client goes away meanwhile, what was begun still comes to its end.
    let opened = tokio::spawn(async move { Session::open(&hub, opening).await }).await;
    let (session, first) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(problem)) => return problem_response(&problem),
        Err(error) => return problem_response(&Problem::new(ProblemKind::Internal, error.to_string())),
    };
    let taken = taken.map(|Extension(taken)| taken).unwrap_or_default();
    upgrade
        // The defaults cost 136 KiB for each idle connection. What is written has no bound of its own: a frame is taken only when
        // the ones before it have left, and one alone may be large (the items of a subscription).
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(4 * 1024)
        .max_message_size(CLIENT_FRAME_BYTES)
        .max_frame_size(CLIENT_FRAME_BYTES)
        .protocols(["nexxus"])
        .on_upgrade(|socket| Wire::new(socket, session, taken).run(first))
        .into_response()
}

/// Checks everything that can be refused with a status, before the upgrade.
async fn opening(hub: &Hub, parameters: Parameters, headers: &HeaderMap) -> Result<Opening, Problem> {
    let domain = &hub.domain;
    let token = parameters.token.or_else(|| bearer(headers));
    let app = match parameters.app.as_deref().or_else(|| text_of(headers, "nxx-app-id")) {
        Some(app) => Some(AppId::parse(app).map_err(|error| malformed("app", &error.to_string()))?),
        None => token.as_deref().and_then(|token| domain.identity.application_of(token)),
    };
    let unauthorized = |detail: &str| Problem::new(ProblemKind::Unauthorized, detail);
    let Some(app) = app else {
        return Err(unauthorized(match token {
            Some(_) => {
                "not a token of a user of this installation; other tokens need ?app=APP&device=DEVICE beside them"
            }
            None => "connect with ?token=JWT, or with ?app=APP&device=DEVICE where no token is needed",
        }));
    };
    let Some(application) = domain.catalog.find(&app) else {
        return Err(Problem::new(ProblemKind::NotFound, format!("there is no application {app}")));
    };
    let device = match parameters.device.as_deref().or_else(|| text_of(headers, "nxx-device-id")) {
        Some(device) => Some(DeviceId::parse(device).map_err(|error| malformed("device", &error.to_string()))?),
        None => None,
    };
    let identified = domain.identity.authenticate(&application, token.as_deref(), device.as_ref()).await?;
    let is_anonymous = identified.caller.user.is_none() && !identified.caller.admin;
    if application.record.auth_enabled && is_anonymous {
        return Err(unauthorized("connect with ?token=JWT"));
    }
    let Some(device) = identified.caller.device.clone().or(device) else {
        return Err(malformed("device", "the token is bound to no device: name one with ?device=DEVICE"));
    };
    let since = Opening::since(hub, &app, parameters.since.as_deref()).await?;
    Ok(Opening { application, identified, device, since })
}

fn malformed(parameter: &str, why: &str) -> Problem {
    Problem::new(ProblemKind::Malformed, format!("{parameter}: {why}"))
}

fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// `Authorization: Bearer JWT`, or the subprotocols `nexxus, bearer.JWT`, for browsers, which can set no headers.
fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(authorization) = text_of(headers, header::AUTHORIZATION.as_str()) {
        return authorization.strip_prefix("Bearer ").map(str::to_owned);
    }
    let protocols = text_of(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str())?;
    protocols.split(',').find_map(|protocol| protocol.trim().strip_prefix("bearer.").map(str::to_owned))
}

/// A session and its socket. There are many, and nearly all of them wait: the task of one is as large as the largest thing that it
/// ever does, so what is done now and then has memory of its own while it is done.
struct Wire {
    socket: WebSocket,
    session: Box<Session>,
    /// What the peer has taken.
    taken: Taken,
    /// When the next heartbeat is due.
    beats_at: Instant,
    /// Pings since the peer was last heard.
    unanswered: u32,
    /// Closes after the token's end come at this share of the spread.
    spread: f64,
}

/// Why a wire ends.
enum End {
    Close(Close),
    /// The peer closed, or is gone.
    Gone,
}

impl From<axum::Error> for End {
    fn from(_: axum::Error) -> Self {
        Self::Gone
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        debug!(%failure, "a connection ends");
        Self::Close(Close::GoingAway)
    }
}

impl Wire {
    fn new(socket: WebSocket, session: Box<Session>, taken: Taken) -> Box<Self> {
        let beats_at = Instant::now() + HEARTBEAT;
        Box::new(Self { socket, session, taken, beats_at, unanswered: 0, spread: rand::random() })
    }

    async fn run(mut self: Box<Self>, first: Vec<Bytes>) {
        let end = match self.write(first).await {
            Ok(()) => self.converse().await,
            Err(end) => Err(end),
        };
        let ending = async {
            let Self { mut socket, session, .. } = *self;
            if let Err(End::Close(close)) = end {
                let frame = CloseFrame { code: close.code(), reason: Utf8Bytes::from_static(close.reason()) };
                // The peer may be gone already; then nobody misses the close.
                let _unsent = timeout(Duration::from_secs(2), socket.send(Message::Close(Some(frame)))).await;
            }
            session.end().await;
        };
        Box::pin(ending).await;
    }

    async fn converse(&mut self) -> Result<(), End> {
        loop {
            if self.session.connection.takes_recheck() && !Box::pin(self.session.recheck()).await {
                return Err(End::Close(Close::Revoked));
            }
            match self.next_unless_expired() {
                Next::Frames(frames) => {
                    self.write(frames).await?;
                    self.attend().await?;
                }
                Next::CatchUp => self.session.catch_up().await?,
                Next::Close(close) => return Err(End::Close(close)),
                Next::Nothing => self.wait().await?,
            }
        }
    }

    fn is_expired(&self) -> bool {
        self.session.expires_at().is_some_and(|expires_at| expires_at <= Timestamp::now())
    }

    /// Nothing is sent after the token's end; the close comes a little later, spread over clients.
    fn next_unless_expired(&self) -> Next {
        let Some(expires_at) = self.session.expires_at() else { return self.session.connection.next() };
        let overdue = Timestamp::now().as_ms() - expires_at.as_ms();
        match overdue {
            ..0 => self.session.connection.next(),
            _ if overdue as f64 >= self.spread * EXPIRY_SPREAD.as_millis() as f64 => Next::Close(Close::Expired),
            _ => Next::Nothing,
        }
    }

    /// When there is something to do, whatever happens: a heartbeat, or the token's end.
    fn wakes_at(&self) -> Instant {
        let Some(expires_at) = self.session.expires_at() else { return self.beats_at };
        let left = expires_at.as_ms() - Timestamp::now().as_ms();
        let spread = (self.spread * EXPIRY_SPREAD.as_millis() as f64) as i64 + 1;
        let wait = if left > 0 { left } else { (left + spread).max(1) };
        self.beats_at.min(Instant::now() + Duration::from_millis(wait.unsigned_abs()))
    }

    /// Waits for something to do: a frame to write, a frame from the client, a heartbeat, the token's end.
    async fn wait(&mut self) -> Result<(), End> {
        let wakes_at = self.wakes_at();
        let heard = tokio::select! {
            () = self.session.connection.woken() => return Ok(()),
            heard = self.socket.next() => heard,
            () = sleep_until(wakes_at) => return self.beat_when_due().await,
        };
        Box::pin(self.hear(heard)).await
    }

    /// Between writes, of which there may be no end: what the client says, and the heartbeat.
    async fn attend(&mut self) -> Result<(), End> {
        if let Some(heard) = self.socket.next().now_or_never() {
            Box::pin(self.hear(heard)).await?;
        }
        self.beat_when_due().await
    }

    async fn beat_when_due(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now < self.beats_at {
            return Ok(());
        }
        self.beats_at = now + HEARTBEAT;
        Box::pin(self.beat()).await
    }

    async fn hear(&mut self, heard: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        self.unanswered = 0;
        let text = match heard {
            None | Some(Err(_)) => return Err(End::Gone),
            Some(Ok(Message::Close(_))) => {
                // The answer is queued by now. Without it the client takes its own close for a lost connection (1006).
                let _unsent = timeout(Duration::from_secs(2), self.socket.flush()).await;
                return Err(End::Gone);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Text(text))) => text,
            // Frames are JSON text; who sends them as binary means the same.
            Some(Ok(Message::Binary(bytes))) => String::from_utf8_lossy(&bytes).as_ref().into(),
        };
        if self.is_expired() {
            return Ok(());
        }
        let answer = self.session.answer(text.as_str()).await;
        self.write(answer.into_iter().collect()).await
    }

    async fn beat(&mut self) -> Result<(), End> {
        if self.unanswered >= 2 {
            return Err(End::Gone);
        }
        self.unanswered += 1;
        if let Some(close) = self.session.is_orphaned() {
            return Err(End::Close(close));
        }
        if self.is_expired() {
            return Ok(());
        }
        let progress = self.session.progress();
        self.write(progress.into_iter().collect()).await?;
        self.send(Message::Ping(Bytes::new()), true).await
    }

    /// Writes frames, and sends what they fill in as few system calls as it takes.
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), End> {
        let n_frames = frames.len();
        for (place, frame) in (1..).zip(frames) {
            // What is written here was made by serde_json, so it is UTF-8.
            let Ok(text) = Utf8Bytes::try_from(frame) else { continue };
            self.send(Message::Text(text), place == n_frames).await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: Message, flush: bool) -> Result<(), End> {
        let Self { socket, session, taken, .. } = self;
        let sending = async {
            socket.feed(message).await?;
            if flush { socket.flush().await } else { Ok(()) }
        };
        let mut sending = pin!(sending);
        // Nearly always the socket has room.
        if let Some(sent) = sending.as_mut().now_or_never() {
            return Ok(sent?);
        }
        // A client that takes little does not hold up the stop, nor outlive its token.
        let ends = || {
            let is_expired = session.expires_at().is_some_and(|expires_at| expires_at <= Timestamp::now());
            session.connection.closing().or(is_expired.then_some(Close::Expired))
        };
        Ok(Box::pin(patiently(sending, taken, ends)).await.map_err(End::Close)??)
    }
}

/// Waits for something to be sent, as long as the peer takes some of it now and then.
async fn patiently<T>(
    sending: impl Future<Output = T>,
    taken: &Taken,
    ends: impl Fn() -> Option<Close>,
) -> Result<T, Close> {
    let mut sending = pin!(sending);
    let (mut n_taken, mut since) = (taken.bytes(), Instant::now());
    loop {
        if let Ok(outcome) = timeout(Duration::from_secs(1), &mut sending).await {
            return Ok(outcome);
        }
        if let Some(close) = ends() {
            return Err(close);
        }
        let n_now = taken.bytes();
        if n_now > n_taken {
            (n_taken, since) = (n_now, Instant::now());
        } else if since.elapsed() >= NO_PROGRESS {
            return Err(Close::TooSlow);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::http::Counted;

    /// Sends 200 bytes to a peer that reads one each second, so many in all. Gives how that ended, and after how many seconds.
    async fn send_to_reader_of(n_bytes: usize, closes_after: Option<u64>) -> (Option<Close>, u64) {
        let (near, mut far): (DuplexStream, DuplexStream) = duplex(4);
        let taken = Taken::default();
        let mut near = Counted::without_pushing(near, taken.clone());
        let reading = tokio::spawn(async move {
            for _ in 0..n_bytes {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut [0]).await.expect("read");
            }
            std::future::pending::<()>().await;
        });
        let began = Instant::now();
        let ends = || closes_after.is_some_and(|after| began.elapsed().as_secs() >= after).then_some(Close::GoingAway);
        let outcome = patiently(near.write_all(&[0; 200]), &taken, ends).await;
        reading.abort();
        (outcome.err(), began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_takes_nothing_is_closed() {
        assert_eq!(send_to_reader_of(196, None).await, (None, 196));
        let (end, after) = send_to_reader_of(0, None).await;
        assert!(end == Some(Close::TooSlow) && (30..33).contains(&after), "{end:?} after {after} s");
        let (end, after) = send_to_reader_of(100, None).await;
        assert!(end == Some(Close::TooSlow) && (130..133).contains(&after), "{end:?} after {after} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_does_not_hold_up_the_stop() {
        let (end, after) = send_to_reader_of(196, Some(50)).await;
        assert!(end == Some(Close::GoingAway) && (50..52).contains(&after), "{end:?} after {after} s");
    }
}
