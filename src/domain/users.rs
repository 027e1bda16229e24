//! Users: registering, signing in, their sessions, and what they say of themselves. Credentials are records of the registry and
//! never part of a command or a change; what rules know of a user (type, details) changes through the writer.

use nexxus_storage::{
    model::{AppId, DeviceId, Problem, Timestamp, UserId, change::UserFacts},
    registry::records,
};
use serde_json::{Map, Value};

use super::{Application, Domain};

/// What a login gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    pub token: String,
    pub expires_at: Timestamp,
    pub refresh_token: String,
    pub user: records::User,
    pub device: DeviceId,
}

impl Login {
    /// `{ token, expiresAt, refreshToken, user, deviceId }`
    pub fn to_json(&self) -> Value {
        todo!()
    }
}

/// A user as it goes out: `{ id, username, userType?, details, createdAt, updatedAt }`.
pub fn user_to_json(_user: &records::User) -> Value {
    todo!()
}

/// The body of `POST /user/register` and `POST /admin/users`.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUser {
    pub username: String,
    pub password: String,
    pub user_type: Option<String>,
    pub details: Map<String, Value>,
}

impl NewUser {
    /// 422 with the place of each fault.
    pub fn parse(_body: Value) -> Result<Self, Problem> {
        todo!()
    }
}

/// The body of `PATCH /user/profile` and `PATCH /admin/users/:id`: what is to be changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserChange {
    /// Users have to say `current_password` too.
    pub password: Option<String>,
    pub current_password: Option<String>,
    /// A merge patch (RFC 7396) of the details.
    pub details: Option<Map<String, Value>>,
    /// For admins: the inner none takes the type away.
    pub user_type: Option<Option<String>>,
}

impl UserChange {
    pub fn parse(_body: Value) -> Result<Self, Problem> {
        todo!()
    }
}

impl Domain {
    /// `POST /user/register`: makes the user and signs it in on this device (none: a new one).
    pub async fn register_user(
        &self,
        _app: &Application,
        _new: NewUser,
        _device: Option<&DeviceId>,
    ) -> Result<Login, Problem> {
        todo!()
    }

    /// `POST /admin/users`: makes the user; any type may be given.
    pub async fn add_user(&self, _app: &Application, _new: NewUser) -> Result<records::User, Problem> {
        todo!()
    }

    /// 401 for an unknown name as for a wrong password; 429 when too many passwords wait to be checked.
    pub async fn login(
        &self,
        _app: &Application,
        _username: &str,
        _password: String,
        _device: Option<&DeviceId>,
    ) -> Result<Login, Problem> {
        todo!()
    }

    /// `POST /auth/refresh`: a fresh token and the next refresh token; the one given is void from now on.
    pub async fn refresh_login(&self, _app: &Application, _refresh_token: &str) -> Result<Login, Problem> {
        todo!()
    }

    /// A session of a user without the password (device registration, `POST /admin/users/:id/token`). Registers the device; none:
    /// a new one. `ttl`: seconds that the token is valid.
    pub async fn open_session(
        &self,
        _app: &Application,
        _user: &records::User,
        _device: Option<&DeviceId>,
        _ttl: Option<u64>,
    ) -> Result<Login, Problem> {
        todo!()
    }

    /// 404 when there is none.
    pub async fn user(&self, _app: &AppId, _user: &UserId) -> Result<records::User, Problem> {
        todo!()
    }

    pub async fn user_named(&self, _app: &AppId, _username: &str) -> Result<Option<records::User>, Problem> {
        todo!()
    }

    /// Users by id, after the one named.
    pub async fn users(
        &self,
        _app: &AppId,
        _after: Option<&UserId>,
        _limit: usize,
    ) -> Result<Vec<records::User>, Problem> {
        todo!()
    }

    /// What a user would be after a change, for `Intent::ChangeUser`: 422 when it does not fit. None where neither type nor details
    /// are to be changed.
    pub fn changed_facts(
        &self,
        _app: &Application,
        _user: &records::User,
        _change: &UserChange,
        _by_admin: bool,
    ) -> Result<Option<UserFacts>, Problem> {
        todo!()
    }

    /// Sets the password that a change names, if it names one; users prove that they know the current one (403), and their other
    /// sessions end.
    pub async fn change_password(
        &self,
        _app: &Application,
        _user: &UserId,
        _change: &UserChange,
        _session: Option<&str>,
        _by_admin: bool,
    ) -> Result<(), Problem> {
        todo!()
    }

    /// `POST /admin/users/:id/disconnect`: ends every session of a user but one; sockets close with 4003.
    pub async fn end_sessions(&self, _app: &AppId, _user: &UserId, _but: Option<&str>) -> Result<(), Problem> {
        todo!()
    }
}
