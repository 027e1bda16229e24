//! What a subscription sees of a change: its filter, its channel and the read rule of its user, tested before and after.

use std::sync::Arc;

use nexxus_storage::{
    Result,
    model::{Channel, Document, filter::Condition},
    registry::records,
};

use super::Application;

/// A subscription, compiled: everything that decides whether it hears of a change.
#[derive(Debug, Clone)]
pub struct View {
    pub record: Arc<records::Subscription>,
    pub channel: Channel,
    /// The channel key, shared by all subscriptions of the channel.
    pub key: Arc<str>,
    /// What the read rule asks, bound to the subscription's user: [`Condition::All`] for admins.
    pub readable: Condition,
}

/// What a change is to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Created into it.
    Created,
    Entered,
    Stayed,
    /// `unreadable`: the document may no longer be read at all, so nothing of it is shown.
    Left {
        unreadable: bool,
    },
    Deleted,
}

impl View {
    pub fn compile(_record: records::Subscription, _app: &Application, _user: Option<&records::User>) -> Result<Self> {
        todo!()
    }

    /// Whether a document is in it: model, id, owner, filter and rule.
    pub fn shows(&self, _document: &Document) -> bool {
        todo!()
    }

    /// What the change from `before` to `after` is to it; none when it does not hear of it.
    pub fn step(&self, _before: Option<&Document>, _after: Option<&Document>) -> Option<Step> {
        todo!()
    }
}
