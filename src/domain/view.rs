//! What a subscription sees of a change: its channel, its filter and the read rule of its user, tested before and after.

use std::sync::Arc;

use nexxus_storage::{
    Error, ErrorKind, Result,
    model::{
        Caller, Channel, Document, DocumentId, Filter, UserId,
        change::UserFacts,
        filter::{Condition, Field, Scalar, Test},
        rules::Action,
    },
    registry::records,
};

use super::Application;

/// A subscription, compiled: everything that decides whether it hears of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What it listens to.
    pub channel: Channel,
    /// The channel key, as frames name it.
    pub key: Arc<str>,
    /// What the read rule asks, bound to the subscription's user: [`Condition::All`] for admins.
    pub readable: Condition,
    /// Sees hidden fields.
    pub privileged: bool,
}

/// What a change is to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Created into it.
    Created,
    /// Changed into it.
    Entered {
        /// Before, the document could not be read at all: what it was is not shown.
        unreadable: bool,
    },
    /// Changed, in it before and after.
    Stayed,
    /// Changed out of it.
    Left {
        /// The document can no longer be read at all: nothing of it is shown.
        unreadable: bool,
    },
    /// Deleted out of it.
    Deleted,
}

impl View {
    /// `Invalid` when the model or the filter does not fit the schema any more. `facts`: of the subscription's user.
    pub fn compile(subscription: &records::Subscription, app: &Application, facts: &UserFacts) -> Result<Self> {
        // Where there are no users anybody can come as this device.
        let by_admin = subscription.admin && app.record.auth_enabled;
        let admin = by_admin || facts.user_type.as_deref() == Some("admin");
        let caller = Caller {
            admin,
            user: subscription.user.clone(),
            facts: facts.clone(),
            device: Some(subscription.device.clone()),
        };
        let invalid = |why: String| {
            Error::new(ErrorKind::Invalid, "compile subscription", format!("subscription {}: {why}", subscription.id))
        };
        let Some(model) = app.schema.model(subscription.model.as_str()) else {
            return Err(invalid(format!("there is no model {}", subscription.model)));
        };
        let filter = match &subscription.filter {
            Some(filter) => {
                Some(Arc::new(Filter::parse(filter, model, admin).map_err(|error| invalid(error.message))?))
            }
            None => None,
        };
        Ok(Self {
            channel: Channel {
                app: subscription.app.clone(),
                model: subscription.model.clone(),
                id: subscription.model_id.clone(),
                user: subscription.user_id.clone(),
                filter,
            },
            key: subscription.channel.as_str().into(),
            readable: app.rules.condition(&subscription.model, Action::Read, &caller),
            privileged: admin,
        })
    }

    /// Whether a document is in it: model, id, owner, filter and rule.
    pub fn shows(&self, document: &Document) -> bool {
        let channel = &self.channel;
        document.model == channel.model
            && channel.id.as_ref().is_none_or(|id| *id == document.id)
            && channel.user.as_ref().is_none_or(|user| Some(user) == document.user.as_ref())
            && channel.filter.as_ref().is_none_or(|filter| filter.matches(document))
            && self.readable.matches(document)
    }

    /// Everything that a document of the model has to fulfil to be in it.
    pub fn effective(&self) -> Condition {
        let channel = &self.channel;
        let (id, user) = (channel.id.as_ref().map(DocumentId::as_str), channel.user.as_ref().map(UserId::as_str));
        let filter = channel.filter.as_ref().map(|filter| filter.condition().clone());
        effective(id, user, filter, self.readable.clone())
    }

    /// What the change from `before` to `after` is to it; none when it does not hear of it.
    pub fn step(&self, before: Option<&Document>, after: Option<&Document>) -> Option<Step> {
        Step::between(before, after, |document| self.shows(document), |document| self.readable.matches(document))
    }
}

/// What a document has to fulfil for a channel's id, owner and filter, and a read rule.
pub fn effective(id: Option<&str>, user: Option<&str>, filter: Option<Condition>, readable: Condition) -> Condition {
    let equals = |name: &str, value: Option<&str>| match (Field::universal(name), value) {
        (Some(field), Some(value)) => Condition::Test(field, Test::Eq(Scalar::String(value.into()))),
        _ => Condition::All,
    };
    Condition::all_of([equals("id", id), equals("userId", user), filter.unwrap_or(Condition::All), readable])
}

impl Step {
    /// What a change is to whoever is shown, and may read, this.
    pub fn between(
        before: Option<&Document>,
        after: Option<&Document>,
        shows: impl Fn(&Document) -> bool,
        is_readable: impl Fn(&Document) -> bool,
    ) -> Option<Self> {
        let was = before.is_some_and(&shows);
        let is = after.is_some_and(&shows);
        match (before, after) {
            (None, Some(_)) if is => Some(Self::Created),
            (Some(_), None) if was => Some(Self::Deleted),
            (Some(before), Some(after)) => match (was, is) {
                (true, true) => Some(Self::Stayed),
                (false, true) => Some(Self::Entered { unreadable: !is_readable(before) }),
                (true, false) => Some(Self::Left { unreadable: !is_readable(after) }),
                (false, false) => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
