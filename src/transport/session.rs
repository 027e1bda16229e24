//! One connection's conversation, whatever the wire: what it says at the start, what it answers, and what it has sent.

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::{
    ErrorKind,
    model::{AppId, ChangeId, DeviceId, Offset, Problem, SubscriptionId, Timestamp, problem::ProblemKind},
    registry::records,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::{
    connection::{Close, Connection},
    hub::Hub,
};
use crate::{
    domain::{Application, Identified, frame, subscriptions},
    service::Failure,
};

/// From where a connection wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// From now.
    Now,
    /// From the device's cursor.
    Last,
    Offset(Offset),
}

/// What a connection is opened with; everything in it was checked before the upgrade.
pub struct Opening {
    pub application: Arc<Application>,
    pub identified: Identified,
    pub device: DeviceId,
    pub since: Since,
}

/// An open connection.
pub struct Session {
    hub: Arc<Hub>,
    app: AppId,
    identified: Identified,
    pub connection: Arc<Connection>,
    attached_at: Offset,
    /// The highest offset that the client was told, in a frame or otherwise.
    told: Offset,
    leaving: Leaving,
}

/// What has to be done when a connection ends, however it ends; also one whose upgrade never came about.
struct Leaving {
    hub: Arc<Hub>,
    app: AppId,
    connection: Arc<Connection>,
}

/// The last connection of a device here has gone.
struct Left {
    hub: Arc<Hub>,
    app: AppId,
    device: DeviceId,
    generation: u64,
}

impl Leaving {
    fn detach(&self) -> Option<Left> {
        let Self { hub, app, connection } = self;
        connection.end();
        let generation = hub.rooms.detach(app, connection)?;
        Some(Left { hub: hub.clone(), app: app.clone(), device: connection.device.clone(), generation })
    }

    async fn leave(self) {
        if let Some(left) = self.detach() {
            left.record().await;
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some((left, runtime)) = self.detach().zip(tokio::runtime::Handle::try_current().ok()) {
            runtime.spawn(left.record());
        }
    }
}

impl Left {
    async fn record(self) {
        let Self { hub, app, device, generation } = self;
        if let Err(problem) = hub.domain.disconnect_device(&app, &device, &hub.queue, generation).await {
            warn!(%app, %device, problem = problem.detail, "a disconnect was not recorded");
        }
    }
}

/// A frame from the client.
#[derive(Deserialize)]
struct Request {
    event: String,
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    data: Value,
}

impl Opening {
    /// Reads `since`: `last`, an offset, or a change id. Malformed, of another application's log, or from the future: 400.
    pub async fn since(hub: &Hub, app: &AppId, text: Option<&str>) -> Result<Since, Problem> {
        let Some(text) = text else { return Ok(Since::Now) };
        if text == "last" {
            return Ok(Since::Last);
        }
        let log = &hub.domain.backends.change_log;
        let invalid = |why: &str| Problem::new(ProblemKind::InvalidOffset, format!("offset {text}: {why}"));
        let unavailable = |error: nexxus_storage::Error| Problem::new(ProblemKind::Unavailable, error.to_string());
        if let Ok(change) = text.parse::<ChangeId>() {
            let found = log.find(app, &[change]).await.map_err(unavailable)?;
            let entry = found.into_iter().next().flatten();
            return match entry {
                Some(entry) => Ok(Since::Offset(entry.entry.offset)),
                None => Err(invalid("no change of this application that the log still holds")),
            };
        }
        let offset: Offset = text.parse().map_err(|_| invalid("neither an offset nor a change id nor last"))?;
        let marks = log.marks(app).await.map_err(unavailable)?;
        if offset > marks.head {
            return Err(invalid("it is above the end of this application's log"));
        }
        Ok(Since::Offset(offset))
    }
}

impl Session {
    /// Takes the connection in; gives what it is told first: `hello`, then how its resume begins.
    pub async fn open(hub: &Arc<Hub>, opening: Opening) -> Result<(Box<Self>, Vec<Bytes>), Problem> {
        let Opening { application, identified, device, since } = opening;
        let app = application.id().clone();
        let domain = &hub.domain;
        let connection = Connection::new(
            device.clone(),
            identified.caller.user.clone(),
            identified.login.as_ref().map(|login| login.session.clone()),
            Offset::default(),
            domain.config.now().limits.connection_buffer_bytes.bytes(),
        );
        hub.rooms.attach(&app, &connection);
        let leaving = Leaving { hub: hub.clone(), app: app.clone(), connection: connection.clone() };
        let opened = async {
            let (device, was_known) = domain.connect_device(&application, &identified, &device, &hub.queue).await?;
            hub.rooms.registered(&app, &device.id, device.generation);
            let marks = domain.backends.change_log.marks(&app).await.map_err(unavailable)?;
            Ok((device, was_known, marks.applied))
        };
        let (device, was_known, attached_at) = match opened.await {
            Ok(opened) => opened,
            Err(problem) => {
                leaving.leave().await;
                return Err(problem);
            }
        };
        let mut session =
            Box::new(Self { hub: hub.clone(), app, identified, connection, attached_at, told: attached_at, leaving });
        match session.beginning(since, &device, was_known).await {
            Ok(frames) => Ok((session, frames)),
            Err(problem) => {
                session.end().await;
                Err(problem)
            }
        }
    }

    async fn beginning(
        &mut self,
        since: Since,
        device: &records::Device,
        was_known: bool,
    ) -> Result<Vec<Bytes>, Problem> {
        let from = match since {
            Since::Now => self.attached_at,
            Since::Last => self.hub.domain.cursor_of(device).await?,
            Since::Offset(offset) => offset,
        };
        let channels = self.channels().await?;
        let mut frames = vec![self.hello(channels.len())];
        let marks = self.hub.domain.backends.change_log.marks(&self.app).await.map_err(unavailable)?;
        let resync = |reason| frame::resync_required(&channels, reason, None, Some(self.attached_at));
        let (from, resumed) = match since {
            Since::Now => (from, None),
            _ if !was_known => (self.attached_at, Some((resync(Some("device_expired")), "device_expired"))),
            _ if marks.reach_back_to(from) => {
                let data = json!({ "from": from, "to": self.attached_at });
                (from, Some((frame::to_text(&json!({ "event": "resumed", "data": data })), "resumed")))
            }
            _ => (self.attached_at, Some((resync(None), "gone"))),
        };
        if let Some((frame, result)) = resumed {
            metrics::counter!("nexxus_resumes_total", "result" => result).increment(1);
            frames.push(frame);
        }
        self.connection.begin(from, self.attached_at);
        if from >= self.attached_at {
            // Nothing was missed: the log need not be read.
            self.hub.rooms.try_join(&self.app, &self.connection, None, from);
        }
        Ok(frames)
    }

    /// The channels that the device is subscribed to, sorted.
    async fn channels(&self) -> Result<Vec<Arc<str>>, Problem> {
        let application = self.application()?;
        let subscriptions = self.hub.domain.subscriptions_of(&application, &self.connection.device).await?;
        let mut channels: Vec<Arc<str>> = subscriptions.iter().map(|held| held.channel.as_str().into()).collect();
        channels.sort_unstable();
        Ok(channels)
    }

    fn hello(&self, n_subscriptions: usize) -> Bytes {
        frame::to_text(&json!({ "event": "hello", "data": {
            "deviceId": self.connection.device,
            "protocol": 1,
            "heartbeat": super::websocket::HEARTBEAT.as_secs(),
            "offset": self.attached_at,
            "subscriptions": n_subscriptions,
            "expiresAt": self.identified.expires_at,
        }}))
    }

    pub fn expires_at(&self) -> Option<Timestamp> {
        self.identified.expires_at
    }

    /// Has the change log read for it; the frames come by themselves.
    pub async fn catch_up(&self) -> Result<(), Failure> {
        self.hub.catch_up.board(&self.app, &self.connection).await
    }

    /// `progress`, when the log has moved since the client was last told where it stands, and all of that was sent.
    pub fn progress(&mut self) -> Option<Bytes> {
        let sent = self.hub.rooms.sent_upto(&self.app, &self.connection)?;
        if sent <= self.told {
            return None;
        }
        self.told = sent;
        Some(frame::progress(sent))
    }

    /// Whether what its token stood for still holds, after revocations may have been missed.
    pub async fn recheck(&self) -> bool {
        let Some(application) = self.hub.domain.catalog.find(&self.app) else { return false };
        self.hub.domain.identity.check_again(&application, &self.identified).await.is_ok()
    }

    /// Answers a frame of the client; none where nothing is to be said.
    pub async fn answer(&mut self, text: &str) -> Option<Bytes> {
        let request: Request = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(error) => {
                let problem =
                    Problem::new(ProblemKind::Malformed, format!("a frame is {{event, id?, data?}}: {error}"));
                return Some(reply(None, Err(problem)));
            }
        };
        let answer = match request.event.as_str() {
            "ping" => Ok(json!({})),
            "subscribe" => self.subscribe(request.data).await,
            "unsubscribe" => self.unsubscribe(request.data).await,
            "authenticate" => self.authenticate(request.data).await,
            "register" => self.register(&request.data),
            "ack" => match self.acknowledge(&request.data, request.id.is_some()).await {
                Ok(()) if request.id.is_none() => return None,
                outcome => outcome.map(|()| json!({})),
            },
            other => Err(Problem::new(ProblemKind::Malformed, format!("there is no event {other}"))),
        };
        Some(reply(request.id, answer))
    }

    fn application(&self) -> Result<Arc<Application>, Problem> {
        let found = self.hub.domain.catalog.find(&self.app);
        found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no application {}", self.app)))
    }

    async fn subscribe(&mut self, data: Value) -> Result<Value, Problem> {
        let request = subscriptions::Request::parse(data)?;
        let application = self.application()?;
        let (domain, device) = (&self.hub.domain, Some(&self.connection.device));
        let subscribed = domain.subscribe(&application, &self.identified, device, request, None).await?;
        self.told = self.told.max(subscribed.offset);
        Ok(subscribed.to_json())
    }

    async fn unsubscribe(&mut self, data: Value) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Data {
            subscription_id: SubscriptionId,
        }
        let data: Data = serde_json::from_value(data)
            .map_err(|error| Problem::new(ProblemKind::Malformed, format!("data: {error}")))?;
        let application = self.application()?;
        self.hub.domain.unsubscribe(&application, &self.connection.device, &data.subscription_id).await?;
        Ok(json!({ "subscriptionId": data.subscription_id }))
    }

    /// Takes a fresh token of the same user, application and device.
    async fn authenticate(&mut self, data: Value) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        struct Data {
            token: String,
        }
        let data: Data = serde_json::from_value(data)
            .map_err(|error| Problem::new(ProblemKind::Malformed, format!("data: {error}")))?;
        let application = self.application()?;
        let identity = &self.hub.domain.identity;
        let identified = identity.authenticate(&application, Some(&data.token), Some(&self.connection.device)).await?;
        if identified.caller.user != self.identified.caller.user
            || identified.caller.admin != self.identified.caller.admin
        {
            return Err(Problem::new(ProblemKind::Forbidden, "the token is of another user"));
        }
        self.connection.changes_session(identified.login.as_ref().map(|login| login.session.clone()));
        self.identified = identified;
        Ok(json!({ "expiresAt": self.identified.expires_at }))
    }

    /// Older clients say which device they are; it has to be the token's.
    fn register(&self, data: &Value) -> Result<Value, Problem> {
        match data.get("deviceId").and_then(Value::as_str) {
            Some(device) if device == self.connection.device.as_str() => {
                Ok(json!({ "deviceId": self.connection.device }))
            }
            _ => Err(Problem::new(ProblemKind::Forbidden, "deviceId is not the device of this connection")),
        }
    }

    async fn acknowledge(&mut self, data: &Value, at_once: bool) -> Result<(), Problem> {
        let text = data.get("offset").and_then(Value::as_str).unwrap_or_default();
        let invalid = |why: &str| Problem::new(ProblemKind::InvalidOffset, format!("offset {text}: {why}"));
        let offset = match Opening::since(&self.hub, &self.app, Some(text)).await? {
            Since::Offset(offset) => offset,
            Since::Now | Since::Last => return Err(invalid("not an offset")),
        };
        if offset > self.told.max(self.hub.rooms.sent_to(&self.app, &self.connection.device))
            && !self.was_told_of(offset).await?
        {
            return Err(invalid("it is above what was sent to this device"));
        }
        self.hub.domain.acknowledge(&self.app, &self.connection.device, offset, at_once).await
    }

    /// Whether a subscription that was made over HTTP has told the device of an offset.
    async fn was_told_of(&self, offset: Offset) -> Result<bool, Problem> {
        let application = self.application()?;
        let subscriptions = self.hub.domain.subscriptions_of(&application, &self.connection.device).await?;
        Ok(subscriptions.iter().any(|subscription| subscription.since >= offset))
    }

    /// The connection has ended; returns when that is recorded.
    pub async fn end(self: Box<Self>) {
        self.leaving.leave().await;
    }

    /// Whether the application is gone.
    pub fn is_orphaned(&self) -> Option<Close> {
        self.hub.domain.catalog.find(&self.app).is_none().then_some(Close::Revoked)
    }
}

fn reply(id: Option<Value>, outcome: Result<Value, Problem>) -> Bytes {
    let (event, data) = match outcome {
        Ok(data) => ("reply", data),
        Err(problem) => ("error", json!(problem)),
    };
    match id {
        Some(id) => frame::to_text(&json!({ "event": event, "id": id, "data": data })),
        None => frame::to_text(&json!({ "event": event, "data": data })),
    }
}

fn unavailable(error: nexxus_storage::Error) -> Problem {
    let kind = if error.kind == ErrorKind::Timeout { ProblemKind::Timeout } else { ProblemKind::Unavailable };
    Problem::new(kind, error.to_string()).with_retry_after(1)
}
