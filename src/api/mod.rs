//! The HTTP API: the route table, on one page (contract §5).
//!
//! A handler reads what was asked for, asks the [`Domain`](crate::domain::Domain) or publishes a command ([`write`]), and answers.
//! Whatever is refused is a [`Refusal`]: a problem as JSON, the same on every route.

mod auth;
mod body;
mod path;
mod problem;

mod barrier;
mod recent;
mod write;

mod admin;
mod application;
mod backup;
mod changes;
mod console;
mod device;
mod model;
mod operations;
mod queues;
mod subscription;
mod transfer;
mod user;

use std::{ops::Deref, sync::Arc};

use axum::{
    Router,
    routing::{delete, get, post},
};

pub use self::problem::{Answer, Refusal};
use self::{barrier::Barriers, recent::Recent};
use crate::domain::Domain;

/// What every handler has at hand. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

/// What the routes share.
pub struct Shared {
    domain: Domain,
    barriers: Barriers,
    recent: Recent,
}

impl Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// Every route of the API.
pub fn router(domain: Domain) -> Router {
    let api = Api { shared: Arc::new(Shared { domain, barriers: Barriers::default(), recent: Recent::default() }) };
    Router::new()
        .route("/user/register", post(user::register))
        .route("/user/login", post(user::login))
        .route("/auth/local", post(user::login))
        .route("/auth/refresh", post(user::refresh))
        .route("/user/profile", get(user::profile).patch(user::change_profile))
        .route("/user/me", get(user::profile).patch(user::change_profile))
        .route("/user/account", delete(user::delete_account))
        .route("/device", get(device::list))
        .route("/device/register", post(device::register))
        .route("/device/{id}", get(device::show).delete(device::remove))
        .route("/model/{type}", get(model::query).post(model::create))
        .route("/model/{type}/search", post(model::search))
        .route("/model/{type}/{id}", get(model::show).patch(model::patch).delete(model::delete))
        .route("/changes/{change}", get(changes::show))
        .route("/subscription", post(subscription::subscribe))
        .route("/subscription/{id}", delete(subscription::unsubscribe))
        .route("/subscription/device/{device}", get(subscription::list))
        .route("/application", get(application::list).post(application::create))
        .route("/application/{app}", get(application::show).put(application::change).delete(application::delete))
        .route("/admin/users", get(admin::list_users).post(admin::add_user))
        .route("/admin/users/{id}", get(admin::show_user).patch(admin::change_user).delete(admin::delete_user))
        .route("/admin/users/{id}/token", post(admin::open_session))
        .route("/admin/users/{id}/disconnect", post(admin::disconnect_user))
        .route("/admin/devices/{id}", get(admin::show_device).delete(admin::remove_device))
        .route("/admin/devices/{id}/disconnect", post(admin::disconnect_device))
        .route("/admin/backup", post(backup::take))
        .route("/admin/export/{kind}", get(transfer::export))
        .route("/admin/import", post(transfer::import))
        .route("/admin/queues", get(queues::list))
        .route("/admin/queues/{queue}/dead", get(queues::dead))
        .route("/admin/queues/{queue}/dead/retry", post(queues::retry))
        .route("/admin/queues/{queue}/dead/drop", post(queues::discard))
        .route("/admin/queues/{queue}/dead/{message}", get(queues::dead_message))
        .route("/healthz", get(operations::healthy))
        .route("/readyz", get(operations::ready))
        .route("/version", get(operations::version))
        .route("/metrics", get(operations::metrics))
        .route("/", get(console::page))
        .route("/console", get(console::page))
        .route("/console/", get(console::page))
        .route("/console/{file}", get(console::file))
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .with_state(api)
}
