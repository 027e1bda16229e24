//! The frames that devices get (contract §7), as text, encoded once for all who get the same.

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::model::{AppId, Entry, Offset};

use super::{Application, view::Step};

/// What one device hears of one change: equal ones share their frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Audience {
    /// The channels of the device that the document belongs to after the change (of a delete: before it). Sorted.
    pub channels: Vec<Arc<str>>,
    pub entered: Vec<Arc<str>>,
    pub left: Vec<Arc<str>>,
    /// Sees hidden fields.
    pub privileged: bool,
    /// Nothing of the document may be shown any more.
    pub unreadable: bool,
}

impl Audience {
    /// Adds what a change is to one more subscription of the device.
    pub fn add(&mut self, _channel: &Arc<str>, _step: Step, _privileged: bool) {
        todo!()
    }
}

/// The frame of a change for an audience.
pub fn change(_app: &Application, _entry: &Entry, _audience: &Audience) -> Bytes {
    todo!()
}

/// `resync_required`: these channels have to be asked for anew. `after`: seconds to wait, spread over devices.
pub fn resync_required(
    _channels: &[Arc<str>],
    _reason: Option<&str>,
    _after: Option<u32>,
    _offset: Option<Offset>,
) -> Bytes {
    todo!()
}

/// `progress`: everything of the application up to here that concerns the device was sent.
pub fn progress(_app: &AppId, _offset: Offset) -> Bytes {
    todo!()
}
