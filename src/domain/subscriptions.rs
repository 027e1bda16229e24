//! Subscribing: the same for `POST /subscription` and the socket's `subscribe` frame.

use nexxus_storage::{
    model::{DeviceId, DocumentId, Offset, Problem, SubscriptionId, UserId},
    registry::records,
};
use serde_json::Value;

use super::{Application, Domain, Identified, read::Items};

/// The body of `POST /subscription`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub model: String,
    pub model_id: Option<DocumentId>,
    pub user_id: Option<UserId>,
    pub filter: Option<Value>,
    pub limit: Option<usize>,
    pub sort: Vec<String>,
    pub get_only: bool,
}

impl Request {
    /// 422 with the place of each fault, 400 when it is no object.
    pub fn parse(_body: Value) -> Result<Self, Problem> {
        todo!()
    }
}

/// What a device got: the subscription (none for `getOnly`), the items, and an offset that they reflect at least.
#[derive(Debug, Clone)]
pub struct Subscribed {
    pub subscription: Option<records::Subscription>,
    /// False when the device had the same subscription before (200 instead of 201).
    pub created: bool,
    pub items: Items,
    pub offset: Offset,
}

impl Subscribed {
    /// `{ subscriptionId, channel, items, cursor?, offset }`
    pub fn to_json(&self) -> Value {
        todo!()
    }
}

impl Domain {
    /// Subscribes a device (registering it where it is new), and reads the items. With `getOnly` only reads: then no device is
    /// needed. `at_least`: the items reflect this offset too.
    pub async fn subscribe(
        &self,
        _app: &Application,
        _identified: &Identified,
        _device: Option<&DeviceId>,
        _request: Request,
        _at_least: Option<Offset>,
    ) -> Result<Subscribed, Problem> {
        todo!()
    }

    /// Ends a subscription of this device; 404 when it has none of this id.
    pub async fn unsubscribe(
        &self,
        _app: &Application,
        _device: &DeviceId,
        _subscription: &SubscriptionId,
    ) -> Result<(), Problem> {
        todo!()
    }

    pub async fn subscriptions_of(
        &self,
        _app: &Application,
        _device: &DeviceId,
    ) -> Result<Vec<records::Subscription>, Problem> {
        todo!()
    }
}
