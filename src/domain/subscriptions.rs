//! Subscribing: the same for `POST /subscription` and the socket's `subscribe` frame.
//!
//! Register, take the applied mark, read items that show at least that: no change falls between the read and the subscription. The
//! id of a subscription follows from its device and channel, so that the same channel again is the same subscription.

use std::sync::Arc;

use nexxus_storage::{
    Error, ErrorKind,
    documents::{Query, Stored},
    model::{
        AppId, Channel, DeviceId, DocumentId, FieldError, ModelName, Offset, Problem, SubscriptionId, UserId,
        filter::{Condition, Field, Scalar, Test},
        problem::ProblemKind,
        rules::Action,
    },
    open::Demand,
    registry::{
        Expect, Key, Kind, Write,
        records::{self, Subscription},
    },
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    Application, Domain, Identified,
    form::Form,
    identity::{ADMIN, RACES, lost_races},
    problem::not_found,
    read::{Items, USUAL_LIMIT, limit_of, parse_filter, parse_sort, show},
};

/// The body of `POST /subscription`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The model to listen to.
    pub model: String,
    /// Only this document.
    pub model_id: Option<DocumentId>,
    /// Only this user's documents.
    pub user_id: Option<UserId>,
    /// Only documents that match.
    pub filter: Option<Value>,
    /// How many items the answer holds at most; it shapes nothing else.
    pub limit: Option<usize>,
    /// The order of the items: fields, a `-` before those that descend.
    pub sort: Vec<String>,
    /// Only the items, and no subscription.
    pub get_only: bool,
}

impl Request {
    /// 422 with the place of each fault, 400 when it is no object.
    pub fn parse(body: Value) -> Result<Self, Problem> {
        let mut form = Form::of(body)?;
        let request = Self {
            model: form.required_text("model"),
            model_id: form.parsed("modelId"),
            user_id: form.parsed("userId"),
            filter: form.value("filter"),
            limit: limit_of(&mut form),
            sort: form.list("sort").unwrap_or_default(),
            get_only: form.flag("getOnly").unwrap_or_default(),
        };
        form.finish(ProblemKind::InvalidDocument)?;
        Ok(request)
    }
}

/// What a device got: the subscription (none for `getOnly`), the items, and an offset that they reflect at least.
#[derive(Debug, Clone)]
pub struct Subscribed {
    /// The record, as the registry keeps it.
    pub subscription: Option<Subscription>,
    /// False when the device had the same subscription before (200 instead of 201).
    pub created: bool,
    /// What is there now.
    pub items: Items,
    /// What the items reflect at least: changes above it come as frames.
    pub offset: Offset,
}

impl Subscribed {
    /// `{ subscriptionId, channel, items, cursor?, offset }`
    pub fn to_json(&self) -> Value {
        let mut shown = self.items.to_json();
        shown["offset"] = json!(self.offset);
        if let Some(subscription) = &self.subscription {
            shown["subscriptionId"] = json!(subscription.id);
            shown["channel"] = json!(subscription.channel);
        }
        shown
    }
}

/// A subscription as lists show it: `{ subscriptionId, channel, model, modelId?, userId?, filter?, offset }`.
pub fn subscription_to_json(subscription: &Subscription) -> Value {
    let mut shown = json!({
        "subscriptionId": subscription.id,
        "channel": subscription.channel,
        "model": subscription.model,
        "offset": subscription.since,
    });
    let members = [
        ("modelId", subscription.model_id.as_ref().map(|id| json!(id))),
        ("userId", subscription.user_id.as_ref().map(|user| json!(user))),
        ("filter", subscription.filter.clone()),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            shown[name] = value;
        }
    }
    shown
}

impl Domain {
    /// Subscribes a device (registering it where it is new), and reads the items. With `getOnly` only reads: then no device is
    /// needed. `at_least`: an applied offset (of [`wait_for`](Self::wait_for)) that the items reflect too.
    pub async fn subscribe(
        &self,
        app: &Application,
        identified: &Identified,
        device: Option<&DeviceId>,
        request: Request,
        at_least: Option<Offset>,
    ) -> Result<Subscribed, Problem> {
        let identified = self.as_of_now(identified).await?;
        let channel = channel_of(app, &identified, &request)?;
        // Before anything is registered: refuses who may not and what cannot be asked.
        let query = query_of(app, &identified, &channel, &request)?;
        let (subscription, created) = match device {
            _ if request.get_only => (None, false),
            Some(device) => {
                let (subscription, created) = self.register_subscription(app, &identified, device, &channel).await?;
                (Some(subscription), created)
            }
            None => {
                let detail = "a subscription belongs to a device: name it in the header nxx-device-id";
                return Err(Problem::new(ProblemKind::Malformed, detail));
            }
        };
        let applied = self.backends.change_log.marks(app.id()).await?.applied;
        let offset = at_least.map_or(applied, |at_least| at_least.max(applied));
        let query = Query { at_least: Some(offset), ..query };
        match (self.items_of(app, &identified, &channel, query).await, &subscription) {
            (Ok(items), _) => Ok(Subscribed { subscription, created, items, offset }),
            (Err(problem), Some(subscription)) if created => {
                // What was refused leaves nothing behind; if this fails too, it goes with its device.
                if let Err(error) = self.unsubscribe(app, &subscription.device, &subscription.id).await {
                    warn!(app = %app.id(), subscription = %subscription.id, problem = error.detail, "a subscription is left over");
                }
                Err(problem)
            }
            (Err(problem), _) => Err(problem),
        }
    }

    /// The caller as the registry knows it now: a connection may have been opened long ago.
    async fn as_of_now(&self, identified: &Identified) -> Result<Identified, Problem> {
        let mut identified = identified.clone();
        let Some(user) = &identified.caller.user else { return Ok(identified) };
        let record: Option<(records::User, u64)> =
            self.backends.registry.load(&Key::user(&identified.app, user)).await?;
        let Some((record, _)) = record else {
            return Err(Problem::new(ProblemKind::Unauthorized, "the user of this token is gone"));
        };
        identified.caller.admin = record.facts.user_type.as_deref() == Some(ADMIN);
        identified.caller.facts = record.facts;
        Ok(identified)
    }

    /// The record of the subscription, and whether it is new.
    async fn register_subscription(
        &self,
        app: &Application,
        identified: &Identified,
        device: &DeviceId,
        channel: &Channel,
    ) -> Result<(Subscription, bool), Problem> {
        let registry = &self.backends.registry;
        self.register_device(app, identified, Some(device.clone()), None, None).await?;
        for _ in 0..RACES {
            let wanted = self.subscription_to(app, identified, device, channel).await?;
            let key = Key::subscription(app.id(), device, &wanted.id);
            if let Some((known, _)) = registry.load::<Subscription>(&key).await? {
                return Ok((known, false));
            }
            self.backends.admit(Demand::Record)?;
            self.refuse_one_too_many(app, device).await?;
            // An expiry that has read the device before it was written here fails.
            let Some((record, revision)) = self.device_record(app.id(), device).await? else {
                self.register_device(app, identified, Some(device.clone()), None, None).await?;
                continue;
            };
            let writes = vec![Write::put(&wanted, Expect::Absent)?, Write::put(&record, Expect::Revision(revision))?];
            match registry.write(writes).await {
                Ok(()) => return Ok((wanted, true)),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the device"))
    }

    async fn subscription_to(
        &self,
        app: &Application,
        identified: &Identified,
        device: &DeviceId,
        channel: &Channel,
    ) -> Result<Subscription, Error> {
        let key = channel.to_string();
        Ok(Subscription {
            app: app.id().clone(),
            id: id_of(app.id(), device, &key),
            device: device.clone(),
            user: identified.caller.user.clone(),
            // Where there are no users, devices are anybody's: then nobody sees more over one than anybody does.
            admin: identified.caller.admin && identified.caller.user.is_none() && app.record.auth_enabled,
            model: channel.model.clone(),
            model_id: channel.id.clone(),
            user_id: channel.user.clone(),
            filter: channel.filter.as_ref().and_then(|filter| serde_json::from_str(filter.canonical()).ok()),
            channel: key,
            // Not above what the items will show, and not above what will be told to it.
            since: self.backends.change_log.marks(app.id()).await?.applied,
        })
    }

    async fn refuse_one_too_many(&self, app: &Application, device: &DeviceId) -> Result<(), Problem> {
        let config = self.config.now();
        let most = config.limits.subscriptions_per_device;
        if !config.limits.enabled {
            return Ok(());
        }
        let prefix = format!("{device}/");
        let held = self.backends.registry.list(Kind::Subscription, Some(app.id()), &prefix, None, most).await?;
        if held.len() < most {
            return Ok(());
        }
        let detail = format!(
            "the device has {} subscriptions and may have {most} (limits.subscriptions_per_device): end one first, or ask for \
             more with one filter",
            held.len()
        );
        Err(Problem::new(ProblemKind::TooManyRequests, detail).with_retry_after(60))
    }

    async fn items_of(
        &self,
        app: &Application,
        identified: &Identified,
        channel: &Channel,
        query: Query,
    ) -> Result<Items, Problem> {
        let definition = app.model(&channel.model)?;
        let Some(id) = &channel.id else { return self.find(definition, &identified.caller, query).await };
        if query.limit == 0 {
            return Ok(Items::default());
        }
        // One document is asked for by its key, which shows everything applied without waiting for the index.
        let stored = self.backends.documents.get(app.id(), &channel.model, std::slice::from_ref(id)).await?;
        let mut items = Vec::new();
        if let Some(Some(Stored::Live(mut document))) = stored.into_iter().next()
            && query.condition.matches(&document)
        {
            show(&mut document, definition, &identified.caller);
            items.push(document);
        }
        Ok(Items { items, ..Items::default() })
    }

    /// Ends a subscription of this device; 404 when it has none of this id.
    pub async fn unsubscribe(
        &self,
        app: &Application,
        device: &DeviceId,
        subscription: &SubscriptionId,
    ) -> Result<(), Problem> {
        let key = Key::subscription(app.id(), device, subscription);
        for _ in 0..RACES {
            let Some(record) = self.backends.registry.get(&key).await? else {
                return Err(not_found("subscription", subscription));
            };
            let removal = Write { key: key.clone(), value: None, expect: Expect::Revision(record.revision) };
            match self.backends.registry.write(vec![removal]).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(lost_races("the subscription"))
    }

    /// The subscriptions of a device, by id.
    pub async fn subscriptions_of(&self, app: &Application, device: &DeviceId) -> Result<Vec<Subscription>, Problem> {
        let prefix = format!("{device}/");
        Ok(self.backends.registry.load_all(Kind::Subscription, Some(app.id()), &prefix).await?)
    }
}

/// What is asked for, held against the schema: 404 for an unknown model, 400 for a bad filter.
fn channel_of(app: &Application, identified: &Identified, request: &Request) -> Result<Channel, Problem> {
    let model = ModelName::parse(&request.model).map_err(|error| {
        let fault = FieldError::new("/model", error.to_string());
        Problem::new(ProblemKind::InvalidDocument, format!("/model: {error}")).with_errors(vec![fault])
    })?;
    let definition = app.model(&model)?;
    let filter = match &request.filter {
        Some(filter) => Some(Arc::new(parse_filter(filter, definition, &identified.caller)?)),
        None => None,
    };
    Ok(Channel { app: app.id().clone(), model, id: request.model_id.clone(), user: request.user_id.clone(), filter })
}

/// The query that gives the items of a channel under the caller's rules.
fn query_of(
    app: &Application,
    identified: &Identified,
    channel: &Channel,
    request: &Request,
) -> Result<Query, Problem> {
    let definition = app.model(&channel.model)?;
    let readable = app.condition(&channel.model, Action::Read, &identified.caller)?;
    let filter = channel.filter.as_ref().map_or(Condition::All, |filter| filter.condition().clone());
    let of_user = match (&channel.user, Field::universal("userId")) {
        (Some(user), Some(field)) => Condition::Test(field, Test::Eq(Scalar::String(user.as_str().into()))),
        _ => Condition::All,
    };
    Ok(Query {
        app: app.id().clone(),
        model: channel.model.clone(),
        condition: filter.and(of_user).and(readable),
        sort: parse_sort(&request.sort, definition, &identified.caller)?,
        limit: request.limit.unwrap_or(USUAL_LIMIT),
        cursor: None,
        count: false,
        text: None,
        at_least: None,
    })
}

/// The same device and channel, the same id; no other has it.
fn id_of(app: &AppId, device: &DeviceId, channel: &str) -> SubscriptionId {
    // None of the parts holds a line break.
    let digest = Sha256::digest(format!("{app}\n{device}\n{channel}"));
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    SubscriptionId::parse(&hex).unwrap_or_else(|_| SubscriptionId::generate())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_whole() {
        let body = json!({
            "model": "task", "modelId": "t1", "userId": "u1", "filter": { "a": 1 }, "limit": 0, "sort": "-a,b", "getOnly": true,
        });
        let request = Request::parse(body).expect("a request");
        assert_eq!((request.limit, request.get_only), (Some(0), true));
        assert_eq!(request.sort, ["-a", "b"]);
        for (body, status, path) in [
            (json!([]), 400, ""),
            (json!({}), 422, "/model"),
            (json!({ "model": "task", "modelId": "a/b" }), 422, "/modelId"),
            (json!({ "model": "task", "userId": 5 }), 422, "/userId"),
            (json!({ "model": "task", "limit": 1001 }), 422, "/limit"),
            (json!({ "model": "task", "getOnly": "yes" }), 422, "/getOnly"),
            (json!({ "model": "task", "filters": {} }), 422, "/filters"),
        ] {
            let problem = Request::parse(body.clone()).expect_err("refused");
            assert_eq!((problem.status, problem.errors[0].path.as_str()), (status, path), "{body}");
        }
    }

    #[test]
    fn a_subscription_is_named_by_its_device_and_channel() {
        let (a, b) = (AppId::parse("a").expect("an id"), AppId::parse("b").expect("an id"));
        let device = |id: &str| DeviceId::parse(id).expect("an id");
        let id = id_of(&a, &device("d"), "app:a:model:task");
        assert_eq!(id, id_of(&a, &device("d"), "app:a:model:task"));
        assert_eq!(id.as_str().len(), 32);
        for other in [
            id_of(&b, &device("d"), "app:a:model:task"),
            id_of(&a, &device("e"), "app:a:model:task"),
            id_of(&a, &device("d"), "app:a:model:note"),
        ] {
            assert_ne!(id, other);
        }
    }
}
