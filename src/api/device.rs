//! `/device`: the devices of the signed-in user.

use axum::{extract::State, http::StatusCode};
use nexxus_storage::{
    model::{DeviceId, Problem, problem::ProblemKind},
    registry::records,
};
use serde_json::{Value, json};

use super::{
    Answer, Api,
    auth::Asker,
    body::Body,
    path::Names,
    write::{json_answer, list_answer, no_content},
};
use crate::domain::devices::device_to_json;

/// Longest name of a device, in characters.
const NAME_LENGTH: usize = 200;

/// 201 with the device and a session bound to it, 200 when it is the user's already. Where there are no users there is no session.
pub(super) async fn register(State(api): State<Api>, asker: Asker, body: Body) -> Answer {
    let mut form = body.form()?;
    let id: Option<DeviceId> = form.parsed("id");
    let name = form.text("name");
    if name.as_ref().is_some_and(|name| name.chars().count() > NAME_LENGTH) {
        form.fault::<()>("name", &format!("at most {NAME_LENGTH} characters"));
    }
    let keep_for = form.integer("keepFor");
    form.finish(ProblemKind::InvalidDocument)?;
    let app = &asker.application;
    let (device, is_new) = api.domain.register_device(app, &asker.identified, id, name, keep_for).await?;
    let mut shown = device_to_json(&device);
    shown["deviceId"] = json!(device.id);
    if let Some(user) = &asker.caller().user {
        let user = api.domain.user(app.id(), user).await?;
        let login = api.domain.open_session(app, &user, Some(&device.id), None).await?;
        shown["token"] = json!(login.token);
        shown["expiresAt"] = json!(login.expires_at);
        shown["refreshToken"] = json!(login.refresh_token);
    }
    Ok(json_answer(if is_new { StatusCode::CREATED } else { StatusCode::OK }, &shown))
}

pub(super) async fn list(State(api): State<Api>, asker: Asker) -> Answer {
    let devices = match &asker.caller().user {
        Some(user) => api.domain.devices_of(asker.app(), user).await?,
        // Who is nobody in particular sees the device that it says it is.
        None => match api.domain.device(asker.app(), asker.device()?).await {
            Ok(device) => vec![device],
            Err(problem) if problem.kind == ProblemKind::NotFound => Vec::new(),
            Err(problem) => return Err(problem.into()),
        },
    };
    let mut items = Vec::with_capacity(devices.len());
    for device in &devices {
        items.push(shown(&api, device).await?);
    }
    Ok(list_answer(items))
}

pub(super) async fn show(State(api): State<Api>, asker: Asker, names: Names) -> Answer {
    let device = own(&api, &asker, &names.id("id")?).await?;
    Ok(json_answer(StatusCode::OK, &shown(&api, &device).await?))
}

pub(super) async fn remove(State(api): State<Api>, asker: Asker, names: Names) -> Answer {
    let device = own(&api, &asker, &names.id("id")?).await?;
    api.domain.remove_device(asker.app(), &device.id).await?;
    Ok(no_content())
}

/// A device of the caller; 404 for those of others. Admins have all.
pub(super) async fn own(api: &Api, asker: &Asker, device: &DeviceId) -> Result<records::Device, Problem> {
    let caller = asker.caller();
    if asker.application.record.auth_enabled && !caller.admin {
        asker.user()?;
    }
    let record = api.domain.device(asker.app(), device).await?;
    if record.user == caller.user || caller.admin {
        Ok(record)
    } else {
        Err(Problem::new(ProblemKind::NotFound, format!("there is no device {device}")))
    }
}

/// The device, and whether it is connected now.
pub(super) async fn shown(api: &Api, device: &records::Device) -> Result<Value, Problem> {
    let mut shown = device_to_json(device);
    shown["connected"] = json!(api.domain.is_connected(&device.app, &device.id).await?);
    Ok(shown)
}
