//! The types of the registry's records, and typed access to them over any [`Registry`].

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Expect, Key, Kind, Record, Registry, Write};
use crate::{
    Error, ErrorKind, Result,
    model::{AppId, DeviceId, DocumentId, ModelName, Offset, SubscriptionId, Timestamp, UserId, change::UserFacts},
};

/// A record type: where it is kept.
pub trait Typed: Serialize + DeserializeOwned {
    fn key(&self) -> Key;
}

/// An application as its admin defined it. `schema` and `rules` were checked when it was written; `Catalog` keeps them compiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    pub id: AppId,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub schema: Value,
    #[serde(default)]
    pub rules: Value,
    pub auth_enabled: bool,
    pub allow_multiple_login: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_types: Option<Vec<String>>,
    /// Per user type (`default` for all): the fields of a user's details, written as a model of a schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_detail_schema: Option<Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The entry of the change log that this definition is from.
    pub offset: Offset,
    /// Deleted: gone for clients, being purged.
    #[serde(default)]
    pub deleted: bool,
    /// Of a deleted one: nothing of it is left but this record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub purged: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    pub app: AppId,
    pub id: UserId,
    pub username: String,
    /// Argon2id in PHC notation; none for users of outside issuers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    #[serde(flatten)]
    pub facts: UserFacts,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// User name → user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserName {
    pub app: AppId,
    pub username: String,
    pub user: UserId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub app: AppId,
    pub id: DeviceId,
    /// None where the application has no users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seconds that it outlives its last connection.
    pub keep_for: u64,
    pub created_at: Timestamp,
    /// The head of the log when it was registered: where `since=last` starts before the first ack.
    pub registered_at: Offset,
    /// When it last connected, or lost its last connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Raised by every connection; its expiry is conditional on it.
    #[serde(default)]
    pub generation: u64,
    /// Its connections have to end now: set when the device is removed or disconnected on purpose, cleared when it connects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserDevice {
    pub app: AppId,
    pub user: UserId,
    pub device: DeviceId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    pub app: AppId,
    pub id: SubscriptionId,
    pub device: DeviceId,
    /// Whose rights it has; none where the application has no users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Made with the admin token: past the rules, hidden fields shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    pub model: ModelName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<DocumentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Canonical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Value>,
    /// The channel key.
    pub channel: String,
    /// Changes at or below it are in the items that the subscriber got; they are never replayed for it.
    pub since: Offset,
}

/// A login: what a refresh token stands for. Tokens name their session; without it they are void.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub app: AppId,
    pub id: String,
    pub user: UserId,
    pub device: DeviceId,
    /// SHA-256 of the refresh token, in hex.
    pub refresh_hash: String,
    /// The same of the refresh token before it: who shows that one has a copy, or lost an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_hash: Option<String>,
    /// The device came with the login: tokens of the session work for that one alone. Otherwise for every device of the user.
    #[serde(default)]
    pub bound: bool,
    pub created_at: Timestamp,
    pub refreshed_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    pub app: AppId,
    pub device: DeviceId,
    pub offset: Offset,
}

/// A transport worker holds at least one connection of this device: the transport manager sends its messages there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    pub app: AppId,
    pub device: DeviceId,
    /// The worker's queue is `TRANSPORT-transport_WORKER`, e.g. `websockets-transport_1`.
    pub queue: String,
    /// Of the device at its newest connection there: who closes an older one must not remove this record.
    pub generation: u64,
}

/// Secrets that are made at the first start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Installation {
    pub admin_token: String,
    pub jwt_secret: String,
}

impl Key {
    pub fn new(kind: Kind, app: Option<&AppId>, id: impl Into<String>) -> Self {
        Self { kind, app: app.cloned(), id: id.into() }
    }

    pub fn installation() -> Self {
        Self::new(Kind::Installation, None, "secrets")
    }

    pub fn application(app: &AppId) -> Self {
        Self::new(Kind::Application, None, app.as_str())
    }

    pub fn user(app: &AppId, user: &UserId) -> Self {
        Self::new(Kind::User, Some(app), user.as_str())
    }

    pub fn user_name(app: &AppId, username: &str) -> Self {
        Self::new(Kind::UserName, Some(app), username)
    }

    pub fn device(app: &AppId, device: &DeviceId) -> Self {
        Self::new(Kind::Device, Some(app), device.as_str())
    }

    pub fn user_device(app: &AppId, user: &UserId, device: &DeviceId) -> Self {
        Self::new(Kind::UserDevice, Some(app), format!("{user}/{device}"))
    }

    pub fn subscription(app: &AppId, device: &DeviceId, subscription: &SubscriptionId) -> Self {
        Self::new(Kind::Subscription, Some(app), format!("{device}/{subscription}"))
    }

    pub fn session(app: &AppId, device: &DeviceId, session: &str) -> Self {
        Self::new(Kind::Session, Some(app), format!("{device}/{session}"))
    }

    pub fn connection(app: &AppId, device: &DeviceId, queue: &str) -> Self {
        Self::new(Kind::Connection, Some(app), format!("{device}/{queue}"))
    }

    pub fn cursor(app: &AppId, device: &DeviceId) -> Self {
        Self::new(Kind::Cursor, Some(app), device.as_str())
    }
}

macro_rules! typed {
    ($($record:ident: $this:ident => $key:expr;)*) => {$(
        impl Typed for $record {
            fn key(&self) -> Key {
                let $this = self;
                $key
            }
        }
    )*};
}
typed! {
    Installation: _this => Key::installation();
    Application: this => Key::application(&this.id);
    User: this => Key::user(&this.app, &this.id);
    UserName: this => Key::user_name(&this.app, &this.username);
    Device: this => Key::device(&this.app, &this.id);
    UserDevice: this => Key::user_device(&this.app, &this.user, &this.device);
    Subscription: this => Key::subscription(&this.app, &this.device, &this.id);
    Session: this => Key::session(&this.app, &this.device, &this.id);
    Connection: this => Key::connection(&this.app, &this.device, &this.queue);
    Cursor: this => Key::cursor(&this.app, &this.device);
}

impl Record {
    pub fn decode<T: Typed>(&self) -> Result<T> {
        decode(&self.key, &self.value)
    }
}

/// Reads the value of a record, as it also comes in a feed.
pub fn decode<T: Typed>(key: &Key, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "read record", format!("{:?} {}", key.kind, key.id)).with_source(error)
    })
}

impl Write {
    pub fn put<T: Typed>(record: &T, expect: Expect) -> Result<Self> {
        let value = serde_json::to_vec(record)
            .map_err(|error| Error::new(ErrorKind::Invalid, "write record", "not serializable").with_source(error))?;
        Ok(Self { key: record.key(), value: Some(Bytes::from(value)), expect })
    }

    pub fn remove(key: Key) -> Self {
        Self { key, value: None, expect: Expect::Anything }
    }
}

impl dyn Registry + '_ {
    /// A record and its revision.
    pub async fn load<T: Typed>(&self, key: &Key) -> Result<Option<(T, u64)>> {
        match self.get(key).await? {
            Some(record) => Ok(Some((record.decode()?, record.revision))),
            None => Ok(None),
        }
    }

    pub async fn put<T: Typed>(&self, record: &T, expect: Expect) -> Result<()> {
        self.write(vec![Write::put(record, expect)?]).await
    }

    /// All records of a kind under a prefix, page by page.
    pub async fn load_all<T: Typed>(&self, kind: Kind, app: Option<&AppId>, prefix: &str) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(kind, app, prefix, after.as_deref(), 1_000).await?;
            for record in &page {
                all.push(record.decode()?);
            }
            match page.last() {
                Some(last) if page.len() == 1_000 => after = Some(last.key.id.clone()),
                _ => return Ok(all),
            }
        }
    }
}
