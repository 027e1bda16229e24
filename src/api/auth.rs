//! Who asks, and in which application: from the headers of a request.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use nexxus_storage::model::{
    AppId, Caller, ChangeId, DeviceId, Model, ModelName, Offset, Problem, UserId, problem::ProblemKind,
};

use super::{Api, Refusal, path::Names, problem::malformed};
use crate::domain::{Application, Identified};

const APP: &str = "nxx-app-id";
const DEVICE: &str = "nxx-device-id";
const AFTER: &str = "nxx-after";

/// A request within an application that has users, whoever it is from: a login says who.
pub(super) struct Within {
    pub(super) application: Arc<Application>,
    /// The device that the client says it is.
    pub(super) device: Option<DeviceId>,
}

/// A request within an application, from whoever its token says.
pub(super) struct Asker {
    pub(super) application: Arc<Application>,
    pub(super) identified: Identified,
    /// W3C trace context.
    pub(super) trace: Option<String>,
}

/// A request with the admin token.
pub(super) struct Admin;

/// A request with the admin token, within an application.
pub(super) struct AdminWithin(pub(super) Asker);

impl FromRequestParts<Api> for Within {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let application = named_application(&parts.headers, api).await?;
        let device = named_device(&parts.headers)?;
        if !application.record.auth_enabled {
            return Err(no_users().into());
        }
        Ok(Self { application, device })
    }
}

impl FromRequestParts<Api> for Asker {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let application = named_application(&parts.headers, api).await?;
        let device = named_device(&parts.headers)?;
        let token = bearer(&parts.headers)?;
        let identified = api.domain.identity.authenticate(&application, token, device.as_ref()).await?;
        let trace = text_of(&parts.headers, "traceparent").map(str::to_owned);
        Ok(Self { application, identified, trace })
    }
}

impl FromRequestParts<Api> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let unauthorized = || Problem::new(ProblemKind::Unauthorized, "the admin token is needed here");
        let Some(token) = bearer(&parts.headers)? else { return Err(unauthorized().into()) };
        let identity = &api.domain.identity;
        if identity.is_admin(token) {
            return Ok(Self);
        }
        // A token that holds, but of a user: that is another refusal.
        let app = identity.application_of(token).and_then(|app| api.domain.catalog.find(&app));
        let Some(app) = app else { return Err(unauthorized().into()) };
        match identity.authenticate(&app, Some(token), None).await {
            Ok(identified) if identified.login.is_some() => {
                Err(Problem::new(ProblemKind::Forbidden, "only the admin token may do this").into())
            }
            _ => Err(unauthorized().into()),
        }
    }
}

impl FromRequestParts<Api> for AdminWithin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let Admin = Admin::from_request_parts(parts, api).await?;
        Ok(Self(Asker::from_request_parts(parts, api).await?))
    }
}

impl Asker {
    pub(super) fn app(&self) -> &AppId {
        self.application.id()
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.identified.caller
    }

    /// The signed-in user.
    pub(super) fn user(&self) -> Result<&UserId, Problem> {
        match &self.caller().user {
            Some(user) => Ok(user),
            None if self.caller().admin => {
                Err(Problem::new(ProblemKind::Forbidden, "the admin token stands for no user"))
            }
            None if !self.application.record.auth_enabled => Err(no_users()),
            None => Err(Problem::new(ProblemKind::Unauthorized, "sign in first")),
        }
    }

    /// The device that acts.
    pub(super) fn device(&self) -> Result<&DeviceId, Problem> {
        match &self.caller().device {
            Some(device) => Ok(device),
            None if self.application.record.auth_enabled && !self.caller().admin => {
                Err(Problem::new(ProblemKind::Unauthorized, "sign in first"))
            }
            None => Err(malformed(format!("say which device acts in the header {DEVICE}"))),
        }
    }

    /// The model that a path names. 404 only after a look at the newest definition.
    pub(super) async fn model(&mut self, api: &Api, names: &Names) -> Result<(ModelName, Arc<Model>), Problem> {
        let name = names.text("type");
        if let Some((name, model)) = self.application.schema.models.get_key_value(name) {
            return Ok((name.clone(), model.clone()));
        }
        let name: ModelName = names.id("type")?;
        self.look_again(api).await?;
        match self.application.schema.model(name.as_str()) {
            Some(model) => Ok((name, model.clone())),
            None => Err(Problem::new(ProblemKind::NotFound, format!("there is no model {name}"))),
        }
    }

    /// Takes the newest definition of the application.
    pub(super) async fn look_again(&mut self, api: &Api) -> Result<(), Problem> {
        self.application = newest(api, self.app()).await?;
        Ok(())
    }

    /// `nxx-after`: waits until the change is applied; gives its offset.
    pub(super) async fn wait_for_after(&self, api: &Api, headers: &HeaderMap) -> Result<Option<Offset>, Problem> {
        let Some(after) = headers.get(AFTER) else { return Ok(None) };
        let Ok(after) = after.to_str() else {
            return Err(Problem::new(ProblemKind::InvalidOffset, format!("{AFTER} is no change id")));
        };
        Ok(Some(api.domain.wait_for(&self.application, after).await?))
    }
}

async fn named_application(headers: &HeaderMap, api: &Api) -> Result<Arc<Application>, Problem> {
    let Some(text) = text_of(headers, APP) else {
        return Err(malformed(format!("say which application is meant in the header {APP}")));
    };
    let app: AppId = text.parse().map_err(|error| malformed(format!("{APP} `{text}`: {error}")))?;
    match api.domain.catalog.find(&app) {
        Some(application) => Ok(application),
        None => newest(api, &app).await,
    }
}

/// The newest definition of an application, whichever process wrote it.
pub(super) async fn newest(api: &Api, app: &AppId) -> Result<Arc<Application>, Problem> {
    api.domain.catalog.refresh().await?;
    let found = api.domain.catalog.find(app);
    found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no application {app}")))
}

fn named_device(headers: &HeaderMap) -> Result<Option<DeviceId>, Problem> {
    match text_of(headers, DEVICE) {
        Some(text) => text.parse().map(Some).map_err(|error| malformed(format!("{DEVICE} `{text}`: {error}"))),
        None => Ok(None),
    }
}

fn no_users() -> Problem {
    Problem::new(ProblemKind::Forbidden, "this application has no users")
}

/// What follows `Bearer`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(authorization) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = authorization
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()));
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(Problem::new(ProblemKind::Unauthorized, "authorization is not `Bearer TOKEN`")),
    }
}

fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A change id or an offset in a path.
pub(super) fn change_named(names: &Names) -> Result<ChangeId, Problem> {
    let text = names.text("change");
    text.parse().map_err(|error| Problem::new(ProblemKind::InvalidOffset, format!("`{text}` in the path: {error}")))
}
