//! The seam that holds who and what there is: applications, users, devices, subscriptions, sessions, cursors.
//!
//! Bytes below, types above: the trait keeps records by key, [`records`] gives them their types, once, for all backends.

use std::{collections::HashSet, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, ErrorKind, Result, model::AppId};

mod leases;
pub mod records;
#[cfg(feature = "redis")]
pub mod redis;
pub mod sled;

/// What a record is. One space of keys (in sled: one tree) for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Secrets and settings of the installation.
    Installation,
    /// Definitions of applications, deleted ones among them until they are purged.
    Application,
    /// Users with their password hashes.
    User,
    /// User name → user id: the uniqueness of names.
    UserName,
    /// Endpoints of users, each with its settings.
    Device,
    /// `USER/DEVICE`: the devices of a user.
    UserDevice,
    /// `DEVICE/SUBSCRIPTION`: the subscriptions of a device.
    Subscription,
    /// `DEVICE/SESSION`: refresh tokens and their ends.
    Session,
    /// The last acknowledged offset of a device.
    Cursor,
    /// `USER/KEY`: answers kept for `Idempotency-Key`.
    Idempotency,
    /// `DEVICE/WORKER`: a transport worker holds connections of a device. Volatile.
    Connection,
}

impl Kind {
    /// In the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Installation,
        Self::Application,
        Self::User,
        Self::UserName,
        Self::Device,
        Self::UserDevice,
        Self::Subscription,
        Self::Session,
        Self::Cursor,
        Self::Idempotency,
        Self::Connection,
    ];

    /// The name in stored keys and files. Never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Installation => "installation",
            Self::Application => "application",
            Self::User => "user",
            Self::UserName => "user-name",
            Self::Device => "device",
            Self::UserDevice => "user-device",
            Self::Subscription => "subscription",
            Self::Session => "session",
            Self::Cursor => "cursor",
            Self::Idempotency => "idempotency",
            Self::Connection => "connection",
        }
    }

    /// Volatile records live as long as the process that wrote them (embedded: kept in memory only, gone at the next start;
    /// clustered: under the lease of the worker). Writing them is cheap and waits for no disk.
    pub fn is_volatile(self) -> bool {
        matches!(self, Self::Connection)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The key of a record. `app` is none for what belongs to the installation (kinds `Installation` and `Application`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Each kind has ids of its own.
    pub kind: Kind,
    /// None for records that belong to no application.
    pub app: Option<AppId>,
    /// Unique within its kind and application; at most [`MAX_ID_BYTES`].
    pub id: String,
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub key: Key,
    /// Any bytes; those of this crate are JSON ([`records`]).
    pub value: Bytes,
    /// Rises with every write of this record, also over its removal. Says nothing else.
    pub revision: u64,
}

/// A condition on what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No condition.
    Anything,
    /// There is no record.
    Absent,
    /// The record is there and was last written with this revision.
    Revision(u64),
}

/// One write of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// What is written.
    pub key: Key,
    /// None removes the record.
    pub value: Option<Bytes>,
    /// What has to hold, or the whole call is a `Conflict`.
    pub expect: Expect,
}

/// What a feed tells.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The record was written, or removed (`value` none).
    Written { key: Key, value: Option<Bytes> },
    /// Too much happened since the last read: read the records of interest anew.
    Reload,
}

/// Most bytes of an id.
pub const MAX_ID_BYTES: usize = 1024;
/// Most bytes of the ids and values of one call.
pub const MAX_CALL_BYTES: usize = 4 * 1024 * 1024;

/// The records of all applications.
///
/// Calls take effect in one order. A call whose future is dropped may take effect or not, as a whole.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The record, if there is one. It shows every write that returned before this call, and nothing that is not durable.
    async fn get(&self, key: &Key) -> Result<Option<Record>>;

    /// Records of one kind and application whose id begins with `prefix`, in the order of their ids (by bytes), the first
    /// `limit` of those after `after`. A page shows every write that returned before this call, shows a call whole or not at
    /// all, and nothing that is not durable.
    async fn list(
        &self,
        kind: Kind,
        app: Option<&AppId>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>>;

    /// All writes or none; returns when they are durable (volatile kinds: when they are visible).
    ///
    /// `Conflict` when one of the conditions does not hold; what is in the way is then visible to `get`. A revision rises with
    /// every write of a record, also over its removal. Removing what is not there is no fault. No writes: nothing happens.
    ///
    /// `Invalid`, with nothing written: the keys belong to more than one application (or some to none), a key comes twice,
    /// volatile kinds are mixed with durable ones, an id is longer than [`MAX_ID_BYTES`], the call larger than
    /// [`MAX_CALL_BYTES`].
    async fn write(&self, writes: Vec<Write>) -> Result<()>;

    /// A feed of the writes of these kinds from now on. A read of it includes every write that returned before the read.
    async fn feed(&self, kinds: &[Kind]) -> Result<Box<dyn Feed>>;

    /// Takes the lease of this name for `ttl` from now on, or renews it: true when `holder` has it then, false while another has. Who
    /// stops renewing loses it when its time is over, not before, and finds out with its next call. A holder that is paused may
    /// believe in its lease for longer: what must not happen twice is fenced elsewhere (see `ChangeLog::append`).
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool>;

    /// Gives the lease back at once; nothing happens where another holder has it.
    async fn release(&self, name: &str, holder: &str) -> Result<()>;
}

/// What was written, in order: who begins with a `list` made after the feed, and takes in what the feed tells, ends with what
/// there is. What is kept for a reader is bounded; one that is too slow for it gets [`News::Reload`], alone.
#[async_trait]
pub trait Feed: Send + Sync {
    /// What there is now, without waiting; every write that returned before this call is included.
    async fn read(&mut self) -> Result<Vec<News>>;

    /// The same where only these applications matter now: cheaper where the records are spread over servers. Of others it may tell
    /// something, too, or leave it for a later read.
    async fn read_about(&mut self, _apps: &[&AppId]) -> Result<Vec<News>> {
        self.read().await
    }

    /// Waits until there is something to read. Cancel-safe.
    async fn changed(&mut self) -> Result<()>;
}

/// Refuses what no adapter may write (see [`Registry::write`]). Gives whether the call is of volatile kinds.
pub(crate) fn check_call(writes: &[Write]) -> Result<bool> {
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, "write records", message));
    let Some(first) = writes.first() else { return Ok(false) };
    let mut keys = HashSet::with_capacity(writes.len());
    let mut bytes = 0;
    for write in writes {
        let key = &write.key;
        bytes += key.id.len() + write.value.as_ref().map_or(0, Bytes::len);
        if key.app != first.key.app {
            return invalid(format!(
                "{} {} belongs to another application than the rest of the call",
                key.kind, key.id
            ));
        }
        if key.kind.is_volatile() != first.key.kind.is_volatile() {
            return invalid(format!("{} {} is mixed with records that live longer or shorter", key.kind, key.id));
        }
        if key.id.len() > MAX_ID_BYTES {
            return invalid(format!(
                "an id of kind {} has {} bytes, {MAX_ID_BYTES} are allowed",
                key.kind,
                key.id.len()
            ));
        }
        if !keys.insert((key.kind, key.id.as_str())) {
            return invalid(format!("{} {} comes twice in one call", key.kind, key.id));
        }
    }
    if bytes > MAX_CALL_BYTES {
        return invalid(format!("a call of {bytes} bytes, {MAX_CALL_BYTES} are allowed"));
    }
    Ok(first.key.kind.is_volatile())
}
