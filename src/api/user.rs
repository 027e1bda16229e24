//! `/user/…` and `/auth/…`: registering, signing in, and one's own account.

use axum::{extract::State, http::StatusCode};
use nexxus_storage::model::problem::ProblemKind;

use super::{
    Answer, Api,
    auth::{Asker, Within},
    body::Body,
    write::{json_answer, no_content, with_change},
};
use crate::domain::users::{NewUser, UserChange, user_to_json};

pub(super) async fn register(State(api): State<Api>, within: Within, body: Body) -> Answer {
    let new = NewUser::parse(body.json()?)?;
    let login = api.domain.register_user(&within.application, new, within.device.as_ref()).await?;
    Ok(json_answer(StatusCode::CREATED, &login.to_json()))
}

pub(super) async fn login(State(api): State<Api>, within: Within, body: Body) -> Answer {
    let mut form = body.form()?;
    let (username, password) = (form.required_text("username"), form.required_text("password"));
    form.finish(ProblemKind::InvalidDocument)?;
    let login = api.domain.login(&within.application, &username, password, within.device.as_ref()).await?;
    Ok(json_answer(StatusCode::OK, &login.to_json()))
}

pub(super) async fn refresh(State(api): State<Api>, within: Within, body: Body) -> Answer {
    let mut form = body.form()?;
    let refresh_token = form.required_text("refreshToken");
    form.finish(ProblemKind::InvalidDocument)?;
    let login = api.domain.refresh_login(&within.application, &refresh_token).await?;
    Ok(json_answer(StatusCode::OK, &login.to_json()))
}

pub(super) async fn profile(State(api): State<Api>, asker: Asker) -> Answer {
    let user = api.domain.user(asker.app(), asker.user()?).await?;
    Ok(json_answer(StatusCode::OK, &user_to_json(&asker.application, &user, asker.caller().admin)))
}

pub(super) async fn change_profile(State(api): State<Api>, asker: Asker, body: Body) -> Answer {
    let user = asker.user()?.clone();
    super::admin::change(&api, &asker, &user, UserChange::parse(body.json()?)?, false).await
}

/// Removes the account with its devices and sessions. Documents stay.
pub(super) async fn delete_account(State(api): State<Api>, asker: Asker) -> Answer {
    let change = api.change_user(&asker, asker.user()?, None, None).await?;
    Ok(with_change(no_content(), change))
}
