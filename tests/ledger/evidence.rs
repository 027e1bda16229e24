//! What a run leaves behind for the checker: every write with its answer, every read, and every frame of every connection.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use crate::worlds::Alteration;

/// Offsets compare as texts.
pub(crate) type Offset = String;

/// A document's model and id.
pub(crate) type Key = (&'static str, String);

/// Who writes or listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Admin,
    /// By place in [`Evidence::users`].
    User(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Create { fields: Map<String, Value> },
    Patch { patch: Patch, expected: Option<u64> },
    Delete { expected: Option<u64> },
}

/// The body of a `PATCH` in each of its notations.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Patch {
    Nexxus(Vec<Value>),
    Merge(Map<String, Value>),
    Standard(Vec<Value>),
}

/// What the API said to a write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    /// 202
    Accepted { change: String },
    /// A refusal that depends on the state of the document.
    Refused { slug: String },
    /// Nothing, or that nobody knows: it may take effect or not.
    Unknown { change: Option<String> },
    /// It had no chance to take effect.
    TurnedAway,
}

#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) key: Key,
    pub(crate) who: Who,
    /// The device that acts.
    pub(crate) device: Option<String>,
    pub(crate) op: Op,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) said: Said,
    pub(crate) fate: Fate,
}

/// What `GET /changes/:changeId` says of a write when everything is over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    /// Not asked for: nobody knows its change.
    Unasked,
    /// There is no such change.
    Absent,
    Applied {
        offset: Offset,
    },
    Rejected {
        offset: Offset,
        slug: String,
    },
    /// Accepted, but never decided.
    Pending,
}

impl Fate {
    pub(crate) fn offset(&self) -> Option<&Offset> {
        match self {
            Self::Applied { offset } | Self::Rejected { offset, .. } => Some(offset),
            Self::Unasked | Self::Absent | Self::Pending => None,
        }
    }
}

/// A document as it was read after a change of the reader's own.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) who: Who,
    pub(crate) after: String,
    pub(crate) ended: Instant,
    /// None: 404.
    pub(crate) found: Option<Value>,
}

/// The items of a channel, asked for anew because what is in force has changed.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) wanted: Wanted,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The highest offset that the device had heard of when it asked.
    pub(crate) heard: Offset,
    /// What the items reflect at least, as the answer says.
    pub(crate) offset: Offset,
    pub(crate) items: Vec<Value>,
}

/// A subscription of a device.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) wanted: Wanted,
    /// The channel key and the offset of the answer; until there is one, nobody knows whether it is registered.
    pub(crate) answered: Option<(String, Offset)>,
}

/// What a subscription is to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) model: &'static str,
    pub(crate) id: Option<String>,
    /// Whose documents, by place in [`Evidence::users`].
    pub(crate) owner: Option<usize>,
    pub(crate) filter: Option<Filter>,
}

/// Filters as the checker understands them; [`listeners`](crate::listeners) spells them for the server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Filter {
    /// `n` at least this.
    AtLeast(i64),
    /// `kind` is one of a and b.
    AOrB,
    /// Not open, or without a `meta.a`.
    ClosedOrBare,
}

#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) device: String,
    pub(crate) who: Who,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) looks: Vec<Look>,
    /// The highest offset that it acknowledged, and that it knows to be durable.
    pub(crate) acknowledged: Option<Offset>,
    pub(crate) surely_acknowledged: Option<Offset>,
}

#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// What it gets begins above this.
    pub(crate) start: Offset,
    /// It asked for `since=last`: what was acknowledged then, and what surely was.
    pub(crate) from_cursor: Option<(Option<Offset>, Option<Offset>)>,
    /// What it asked for with `since=OFFSET`.
    pub(crate) since: Option<Offset>,
    pub(crate) heard: Vec<Heard>,
    /// Why it ended.
    pub(crate) end: String,
}

/// A frame that has an offset, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) offset: Offset,
    pub(crate) at: Instant,
    pub(crate) frame: Arc<Value>,
}

impl Heard {
    /// It says that everything before it was sent, and tells of no change.
    pub(crate) fn is_progress(&self) -> bool {
        self.frame["event"] == "progress"
    }

    /// It says that channels have to be asked for anew.
    pub(crate) fn is_resync(&self) -> bool {
        self.frame["event"] == "resync_required"
    }
}

/// Everything about one application.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) app: String,
    /// The ids of the users.
    pub(crate) users: Vec<String>,
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
    pub(crate) listeners: Vec<Listener>,
    /// What was changed of rules, schema and users, in order.
    pub(crate) alterations: Vec<Alteration>,
    /// Everything at or below is before the run.
    pub(crate) base: Offset,
    /// The last change of the run.
    pub(crate) last: Offset,
    /// What is stored at the end, after one more crash; null where nothing is.
    pub(crate) stored: BTreeMap<Key, Value>,
    /// How many documents of each model a query counts.
    pub(crate) counted: BTreeMap<&'static str, u64>,
    pub(crate) lasted: Duration,
}
