//! The seam that holds who and what there is: applications, users, devices, subscriptions, sessions, cursors.
//!
//! Bytes below, types above: the trait keeps records by key, [`records`] gives them their types, once, for all backends.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Result, model::AppId};

pub mod records;
pub mod sled;

/// What a record is. One space of keys (in sled: one tree) for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Secrets and settings of the installation.
    Installation,
    Application,
    User,
    /// User name → user id: the uniqueness of names.
    UserName,
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
    /// Volatile records live as long as the process that wrote them (embedded: kept in memory only, gone at the next start;
    /// clustered: under the lease of the worker). Writing them is cheap and waits for no disk.
    pub fn is_volatile(self) -> bool {
        matches!(self, Self::Connection)
    }
}

/// The key of a record. `app` is none for what belongs to the installation (kinds `Installation` and `Application`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub app: Option<AppId>,
    pub id: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub key: Key,
    pub value: Bytes,
    /// Rises with every write of this record.
    pub revision: u64,
}

/// A condition on what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    Revision(u64),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub key: Key,
    /// None removes the record.
    pub value: Option<Bytes>,
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

/// The records of all applications.
#[async_trait]
pub trait Registry: Send + Sync {
    async fn get(&self, key: &Key) -> Result<Option<Record>>;

    /// Records of one kind and application whose id begins with `prefix`, in the order of their ids, after `after`.
    async fn list(
        &self,
        kind: Kind,
        app: Option<&AppId>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>>;

    /// All writes or none; returns when they are durable (volatile kinds: when they are visible; they are not mixed with
    /// durable kinds in one call). `Conflict` when one of the conditions does not hold. All keys of one
    /// call belong to the same application (or to none).
    async fn write(&self, writes: Vec<Write>) -> Result<()>;

    /// A feed of the writes from now on. A read of it includes every write that returned before the read.
    async fn feed(&self, kinds: &[Kind]) -> Result<Box<dyn Feed>>;
}

/// What was written, in order.
#[async_trait]
pub trait Feed: Send + Sync {
    /// What there is now, without waiting; every write that returned before this call is included.
    async fn read(&mut self) -> Result<Vec<News>>;

    /// Waits until there is something to read. Cancel-safe.
    async fn changed(&mut self) -> Result<()>;
}
