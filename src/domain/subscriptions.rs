//! Subscribing: the same for `POST /subscription` and the socket's `subscribe` frame.

use nexxus_storage::{
    model::{DeviceId, Offset, Problem, SubscriptionId},
    registry::records,
};
use serde::Deserialize;
use serde_json::Value;

use super::{Application, Domain, Identified, read::Items};

/// The body of `POST /subscription`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    pub model: String,
    pub model_id: Option<String>,
    pub user_id: Option<String>,
    pub filter: Option<Value>,
    pub limit: Option<u64>,
    pub sort: Option<String>,
    #[serde(default)]
    pub get_only: bool,
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
    pub async fn subscribe(
        &self,
        _app: &Application,
        _identified: &Identified,
        _device: &DeviceId,
        _request: Request,
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
