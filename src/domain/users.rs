//! Users: registering, signing in, and what they say of themselves. Credentials are records of the registry and never part of a
//! command or a change; what rules know of a user (type, details) changes through the writer.

mod details;
mod forms;

use nexxus_storage::{
    ErrorKind,
    model::{AppId, DeviceId, FieldError, Problem, Timestamp, UserId, change::UserFacts, problem::ProblemKind},
    open::Demand,
    registry::{
        Expect, Key, Kind, Write,
        records::{self, Session, UserDevice, UserName},
    },
};
use serde_json::{Value, json};

pub use self::{
    details::check_detail_schema,
    forms::{NewUser, UserChange},
};
use super::{
    Application, Domain,
    devices::{names_user, writes_of_new},
    identity::{Issued, RACES, lost_races},
    problem::not_found,
};

/// Most devices that a user has logins on: the one that was not heard of for longest makes room.
const MOST_DEVICES: usize = 100;
/// Most logins of a device: the one that was not renewed for longest makes room.
const MOST_SESSIONS: usize = 16;

/// What a login gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    /// The token (a JWT) to call with.
    pub token: String,
    /// When the token expires.
    pub expires_at: Timestamp,
    /// Good for one refresh; also after the token has expired.
    pub refresh_token: String,
    /// As the user itself may see it.
    pub user: Value,
    /// The device that the session is on.
    pub device: DeviceId,
}

impl Login {
    /// `{ token, expiresAt, refreshToken, user, deviceId }`
    pub fn to_json(&self) -> Value {
        json!({
            "token": self.token,
            "expiresAt": self.expires_at,
            "refreshToken": self.refresh_token,
            "user": self.user,
            "deviceId": self.device,
        })
    }
}

/// A user as it goes out: `{ id, username, userType?, details, createdAt, updatedAt }`. Hidden details are for admins only.
pub fn user_to_json(app: &Application, user: &records::User, by_admin: bool) -> Value {
    let mut details = user.facts.details.clone();
    if !by_admin && let Some(model) = app.details_model(user.facts.user_type.as_deref()) {
        model.hide(&mut details);
    }
    let mut shown = json!({
        "id": user.id,
        "username": user.username,
        "details": details,
        "createdAt": user.created_at,
        "updatedAt": user.updated_at,
    });
    if let Some(user_type) = &user.facts.user_type {
        shown["userType"] = json!(user_type);
    }
    shown
}

impl Domain {
    /// `POST /user/register`: makes the user and signs it in on this device (none: a new one).
    pub async fn register_user(
        &self,
        app: &Application,
        new: NewUser,
        device: Option<&DeviceId>,
    ) -> Result<Login, Problem> {
        let user = self.new_user(app, new, false).await?;
        for _ in 0..RACES {
            let (issued, mut writes) = self.sign_in(app, &user, device, None).await?;
            writes.extend(writes_of_user(&user)?);
            match self.backends.registry.write(writes).await {
                Ok(()) => return Ok(login_of(app, &user, issued)),
                Err(error) if error.kind == ErrorKind::Conflict => self.refuse_taken(app, &user.username).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the device"))
    }

    /// `POST /admin/users`: makes the user; any type may be given.
    pub async fn add_user(&self, app: &Application, new: NewUser) -> Result<records::User, Problem> {
        let user = self.new_user(app, new, true).await?;
        match self.backends.registry.write(writes_of_user(&user)?).await {
            Ok(()) => Ok(user),
            Err(error) if error.kind == ErrorKind::Conflict => Err(taken(&user.username)),
            Err(error) => Err(error.into()),
        }
    }

    /// Everything of a new user is checked, the cheap things first.
    async fn new_user(&self, app: &Application, new: NewUser, by_admin: bool) -> Result<records::User, Problem> {
        let facts = app.new_facts(new.user_type, new.details, by_admin)?;
        self.backends.admit(Demand::Growth)?;
        self.refuse_taken(app, &new.username).await?;
        let password_hash = Some(self.identity.passwords.hash(new.password).await?);
        let now = Timestamp::now();
        Ok(records::User {
            app: app.id().clone(),
            id: UserId::generate(),
            username: new.username,
            password_hash,
            facts,
            created_at: now,
            updated_at: now,
        })
    }

    async fn refuse_taken(&self, app: &Application, username: &str) -> Result<(), Problem> {
        match self.backends.registry.get(&Key::user_name(app.id(), username)).await? {
            Some(_) => Err(taken(username)),
            None => Ok(()),
        }
    }

    /// 401 for an unknown name as for a wrong password; 429 when too many passwords wait to be checked.
    pub async fn login(
        &self,
        app: &Application,
        username: &str,
        password: String,
        device: Option<&DeviceId>,
    ) -> Result<Login, Problem> {
        let user = self.user_named(app.id(), username).await?;
        let hash = user.as_ref().and_then(|user| user.password_hash.clone());
        let fits = self.identity.passwords.verify(password, hash).await?;
        match user.filter(|_| fits) {
            Some(user) => {
                let issued = self.begin(app, &user, device, None).await?;
                if !app.record.allow_multiple_login {
                    self.identity.end_sessions(app.id(), &user.id, Some(&issued.session.id)).await?;
                }
                Ok(login_of(app, &user, issued))
            }
            None => Err(Problem::new(ProblemKind::Unauthorized, "wrong username or password")),
        }
    }

    /// `POST /auth/refresh`: a fresh token and the next refresh token; the one given is void from now on.
    pub async fn refresh_login(&self, app: &Application, refresh_token: &str) -> Result<Login, Problem> {
        let (issued, user) = self.identity.refresh_session(app.id(), refresh_token).await?;
        Ok(login_of(app, &user, issued))
    }

    /// A session of a user without the password (device registration, `POST /admin/users/:id/token`). Registers the device; none:
    /// a new one. `ttl`: seconds that the token is valid. It is no login, so it ends no other session.
    pub async fn open_session(
        &self,
        app: &Application,
        user: &records::User,
        device: Option<&DeviceId>,
        ttl: Option<u64>,
    ) -> Result<Login, Problem> {
        let issued = self.begin(app, user, device, ttl).await?;
        Ok(login_of(app, user, issued))
    }

    async fn begin(
        &self,
        app: &Application,
        user: &records::User,
        device: Option<&DeviceId>,
        ttl: Option<u64>,
    ) -> Result<Issued, Problem> {
        for _ in 0..RACES {
            let (issued, writes) = self.sign_in(app, user, device, ttl).await?;
            match self.backends.registry.write(writes).await {
                Ok(()) => return Ok(issued),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the device"))
    }

    /// The writes that begin a session on a device, which they register where it is new.
    async fn sign_in(
        &self,
        app: &Application,
        user: &records::User,
        device: Option<&DeviceId>,
        ttl: Option<u64>,
    ) -> Result<(Issued, Vec<Write>), Problem> {
        let id = device.cloned().unwrap_or_else(DeviceId::generate);
        let stored = match device {
            Some(device) => self.device_record(app.id(), device).await?.map(|(stored, _)| stored),
            None => None,
        };
        let mut writes = match stored {
            Some(stored) if stored.user.as_ref() != Some(&user.id) => {
                return Err(Problem::new(ProblemKind::Exists, format!("the device {id} is another user's")));
            }
            Some(_) => {
                let mut writes = self.make_room_for_session(app.id(), &id).await?;
                writes.push(names_user(app.id(), &user.id, &id)?);
                writes
            }
            None => {
                self.make_room_for_device(app.id(), &user.id).await?;
                let new = self.new_device(app.id(), Some(user.id.clone()), id.clone(), None, None).await?;
                writes_of_new(&new)?
            }
        };
        let issued = self.identity.begin_session(app.id(), &user.id, &id, device.is_some(), ttl)?;
        writes.push(Write::put(&issued.session, Expect::Absent)?);
        Ok((issued, writes))
    }

    async fn make_room_for_session(&self, app: &AppId, device: &DeviceId) -> Result<Vec<Write>, Problem> {
        let prefix = format!("{device}/");
        let mut sessions: Vec<Session> = self.backends.registry.load_all(Kind::Session, Some(app), &prefix).await?;
        sessions.sort_unstable_by_key(|session| session.refreshed_at);
        let n_too_many = (sessions.len() + 1).saturating_sub(MOST_SESSIONS);
        let ended = sessions.iter().take(n_too_many);
        Ok(ended.map(|session| Write::remove(Key::session(app, device, &session.id))).collect())
    }

    async fn make_room_for_device(&self, app: &AppId, user: &UserId) -> Result<(), Problem> {
        let (registry, prefix) = (&self.backends.registry, format!("{user}/"));
        let n_devices = registry.list(Kind::UserDevice, Some(app), &prefix, None, MOST_DEVICES).await?.len();
        if n_devices < MOST_DEVICES || !self.config.now().limits.enabled {
            return Ok(());
        }
        let mut oldest: Option<(Option<Timestamp>, DeviceId)> = None;
        for UserDevice { device, .. } in registry.load_all(Kind::UserDevice, Some(app), &prefix).await? {
            if self.is_connected(app, &device).await? {
                continue;
            }
            // One that has expired (it has logins only) was not heard of for longest.
            let record = self.device_record(app, &device).await?;
            let heard = record.map(|(record, _)| record.last_seen.unwrap_or(record.created_at));
            if oldest.as_ref().is_none_or(|(oldest, _)| heard < *oldest) {
                oldest = Some((heard, device));
            }
        }
        match oldest {
            Some((_, device)) => self.remove_device(app, &device).await.map(drop),
            None => {
                let detail = format!("{MOST_DEVICES} devices of the user are connected, more are not allowed");
                Err(Problem::new(ProblemKind::TooManyRequests, detail).with_retry_after(60))
            }
        }
    }

    /// What rules know of a user; nothing where there is none.
    pub async fn facts_of(&self, app: &AppId, user: &UserId) -> nexxus_storage::Result<UserFacts> {
        let record: Option<(records::User, u64)> = self.backends.registry.load(&Key::user(app, user)).await?;
        Ok(record.map(|(user, _)| user.facts).unwrap_or_default())
    }

    /// 404 when there is none.
    pub async fn user(&self, app: &AppId, user: &UserId) -> Result<records::User, Problem> {
        let record: Option<(records::User, u64)> = self.backends.registry.load(&Key::user(app, user)).await?;
        record.map(|(record, _)| record).ok_or_else(|| not_found("user", user))
    }

    /// The user of this name, if there is one.
    pub async fn user_named(&self, app: &AppId, username: &str) -> Result<Option<records::User>, Problem> {
        let registry = &self.backends.registry;
        if username.len() > forms::USERNAME_BYTES {
            return Ok(None);
        }
        let name: Option<(UserName, u64)> = registry.load(&Key::user_name(app, username)).await?;
        let Some((name, _)) = name else { return Ok(None) };
        let record: Option<(records::User, u64)> = registry.load(&Key::user(app, &name.user)).await?;
        Ok(record.map(|(record, _)| record))
    }

    /// Users by id, after the one named.
    pub async fn users(
        &self,
        app: &AppId,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<records::User>, Problem> {
        let after = after.map(UserId::as_str);
        let page = self.backends.registry.list(Kind::User, Some(app), "", after, limit).await?;
        Ok(page.iter().map(|record| record.decode()).collect::<Result<_, _>>()?)
    }

    /// What a user would be after a change, for `Intent::ChangeUser`: 422 when it does not fit. None where neither type nor details
    /// are to be changed.
    pub fn changed_facts(
        &self,
        app: &Application,
        user: &records::User,
        change: &UserChange,
        by_admin: bool,
    ) -> Result<Option<UserFacts>, Problem> {
        app.changed_facts(user, change, by_admin)
    }

    /// Sets the password that a change names, if it names one; users prove that they know the current one (403), and their other
    /// sessions end.
    pub async fn change_password(
        &self,
        app: &Application,
        user: &UserId,
        change: &UserChange,
        session: Option<&str>,
        by_admin: bool,
    ) -> Result<(), Problem> {
        let Some(password) = change.password.clone() else { return Ok(()) };
        if !by_admin {
            self.prove_password(app.id(), user, change.current_password.clone()).await?;
        }
        let password_hash = Some(self.identity.passwords.hash(password).await?);
        let registry = &self.backends.registry;
        for _ in 0..RACES {
            let stored: Option<(records::User, u64)> = registry.load(&Key::user(app.id(), user)).await?;
            let Some((stored, revision)) = stored else { return Err(not_found("user", user)) };
            let changed =
                records::User { password_hash: password_hash.clone(), updated_at: Timestamp::now(), ..stored };
            match registry.put(&changed, Expect::Revision(revision)).await {
                Ok(()) => return self.identity.end_sessions(app.id(), user, session).await,
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the user"))
    }

    async fn prove_password(&self, app: &AppId, user: &UserId, current: Option<String>) -> Result<(), Problem> {
        let Some(current) = current else {
            let fault = FieldError::new("/currentPassword", "is missing: a new password needs the current one");
            return Err(Problem::new(ProblemKind::InvalidDocument, fault.message.clone()).with_errors(vec![fault]));
        };
        let hash = self.user(app, user).await?.password_hash;
        if self.identity.passwords.verify(current, hash).await? {
            return Ok(());
        }
        Err(Problem::new(ProblemKind::Forbidden, "currentPassword is not the current password"))
    }

    /// `POST /admin/users/:id/disconnect`: ends every session of a user but one; sockets close with 4003.
    pub async fn end_sessions(&self, app: &AppId, user: &UserId, but: Option<&str>) -> Result<(), Problem> {
        self.identity.end_sessions(app, user, but).await
    }
}

fn writes_of_user(user: &records::User) -> Result<Vec<Write>, Problem> {
    let name = UserName { app: user.app.clone(), username: user.username.clone(), user: user.id.clone() };
    Ok(vec![Write::put(&name, Expect::Absent)?, Write::put(user, Expect::Absent)?])
}

fn login_of(app: &Application, user: &records::User, issued: Issued) -> Login {
    Login {
        token: issued.token,
        expires_at: issued.expires_at,
        refresh_token: issued.refresh_token,
        user: user_to_json(app, user, false),
        device: issued.session.device,
    }
}

fn taken(username: &str) -> Problem {
    let fault = FieldError::new("/username", "taken");
    Problem::new(ProblemKind::Exists, format!("there is a user {username} already")).with_errors(vec![fault])
}
