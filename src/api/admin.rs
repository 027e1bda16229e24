//! `/admin/users` and `/admin/devices`: looking at users and devices, changing and ending them, with the admin token.

use axum::{extract::State, http::StatusCode};
use nexxus_storage::model::{ChangeId, DeviceId, Problem, UserId, problem::ProblemKind};
use serde_json::{Value, json};

use super::{
    Answer, Api,
    auth::{AdminWithin, Asker},
    body::Body,
    path::{Names, Parameters},
    write::{json_answer, no_content, with_change},
};
use crate::domain::users::{NewUser, UserChange, user_to_json};

/// Items of a list where nothing is said, and at most.
const USUAL: usize = 50;
const MOST: usize = 1_000;
/// How often a change of a user is tried when others change the same user.
const RACES: usize = 20;

pub(super) async fn list_users(
    State(api): State<Api>,
    AdminWithin(asker): AdminWithin,
    mut parameters: Parameters,
) -> Answer {
    let username = parameters.take("username");
    let after: Option<UserId> = parameters.parsed("after")?;
    let limit = parameters.limit(USUAL, MOST)?;
    parameters.finish()?;
    let users = match username {
        Some(username) => api.domain.user_named(asker.app(), &username).await?.into_iter().collect(),
        None => api.domain.users(asker.app(), after.as_ref(), limit).await?,
    };
    let next = users.last().filter(|_| users.len() == limit).map(|user| user.id.clone());
    let items: Vec<Value> = users.iter().map(|user| user_to_json(&asker.application, user, true)).collect();
    let mut list = json!({ "items": items });
    if let Some(next) = next {
        list["next"] = json!(next);
    }
    Ok(json_answer(StatusCode::OK, &list))
}

pub(super) async fn add_user(State(api): State<Api>, AdminWithin(asker): AdminWithin, body: Body) -> Answer {
    let new = NewUser::parse(body.json()?)?;
    let user = api.domain.add_user(&asker.application, new).await?;
    Ok(json_answer(StatusCode::CREATED, &user_to_json(&asker.application, &user, true)))
}

pub(super) async fn show_user(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let user = api.domain.user(asker.app(), &names.id("id")?).await?;
    Ok(json_answer(StatusCode::OK, &user_to_json(&asker.application, &user, true)))
}

pub(super) async fn change_user(
    State(api): State<Api>,
    AdminWithin(asker): AdminWithin,
    names: Names,
    body: Body,
) -> Answer {
    let user: UserId = names.id("id")?;
    change(&api, &asker, &user, UserChange::parse(body.json()?)?, true).await
}

/// Changes a user; answers with the user as it is then. Everything is checked before anything is changed.
pub(super) async fn change(api: &Api, asker: &Asker, user: &UserId, change: UserChange, by_admin: bool) -> Answer {
    let (app, domain) = (&asker.application, &api.domain);
    let record = domain.user(app.id(), user).await?;
    domain.changed_facts(app, &record, &change, by_admin)?;
    let session = asker.identified.login.as_ref().map(|login| login.session.as_str());
    domain.change_password(app, user, &change, session, by_admin).await?;
    let change = change_facts(api, asker, user, &change, by_admin).await?;
    let record = domain.user(app.id(), user).await?;
    let answer = json_answer(StatusCode::OK, &user_to_json(app, &record, by_admin));
    Ok(match change {
        Some(change) => with_change(answer, change),
        None => answer,
    })
}

/// The details are a merge patch: who changes them at the same time is not written over, it is merged again with what is there then.
async fn change_facts(
    api: &Api,
    asker: &Asker,
    user: &UserId,
    change: &UserChange,
    by_admin: bool,
) -> Result<Option<ChangeId>, Problem> {
    let (app, domain) = (&asker.application, &api.domain);
    let mut races = 0;
    loop {
        let record = domain.user(app.id(), user).await?;
        let Some(facts) = domain.changed_facts(app, &record, change, by_admin)? else { return Ok(None) };
        races += 1;
        match api.change_user(asker, user, Some(facts), Some(record.facts)).await {
            Err(problem) if problem.kind == ProblemKind::Conflict && races < RACES => {}
            outcome => return outcome.map(Some),
        }
    }
}

/// Removes the user with devices and sessions. Documents stay.
pub(super) async fn delete_user(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let user: UserId = names.id("id")?;
    api.domain.user(asker.app(), &user).await?;
    let change = api.change_user(&asker, &user, None, None).await?;
    Ok(with_change(no_content(), change))
}

/// A token of a user without the password: `{ device?, ttl? }`.
pub(super) async fn open_session(
    State(api): State<Api>,
    AdminWithin(asker): AdminWithin,
    names: Names,
    body: Body,
) -> Answer {
    let user: UserId = names.id("id")?;
    let mut form = body.form()?;
    let device: Option<DeviceId> = form.parsed("device");
    let ttl = form.integer("ttl");
    if ttl == Some(0) {
        form.fault::<()>("ttl", "at least a second");
    }
    form.finish(ProblemKind::InvalidDocument)?;
    let user = api.domain.user(asker.app(), &user).await?;
    let login = api.domain.open_session(&asker.application, &user, device.as_ref(), ttl).await?;
    Ok(json_answer(StatusCode::OK, &login.to_json()))
}

/// Ends the sessions of a user: tokens are void, sockets close with 4003.
pub(super) async fn disconnect_user(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let user: UserId = names.id("id")?;
    api.domain.user(asker.app(), &user).await?;
    api.domain.end_sessions(asker.app(), &user, None).await?;
    Ok(no_content())
}

pub(super) async fn show_device(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let device = api.domain.device(asker.app(), &names.id("id")?).await?;
    Ok(json_answer(StatusCode::OK, &super::device::shown(&api, &device).await?))
}

pub(super) async fn remove_device(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let device: DeviceId = names.id("id")?;
    if api.domain.remove_device(asker.app(), &device).await? {
        Ok(no_content())
    } else {
        Err(Problem::new(ProblemKind::NotFound, format!("there is no device {device}")).into())
    }
}

/// Ends the sessions of a device and closes its sockets; it stays registered.
pub(super) async fn disconnect_device(State(api): State<Api>, AdminWithin(asker): AdminWithin, names: Names) -> Answer {
    let device = api.domain.device(asker.app(), &names.id("id")?).await?;
    api.domain.kick_device(asker.app(), &device.id).await?;
    Ok(no_content())
}
