//! Who asks: tokens, sessions, and their end.
//!
//! A token is a JWT that names its user, device and session ([`sessions`] issues them). It holds only while the registry holds
//! the session and the user: what was checked is remembered in a bounded [`cache`], and the registry's feed, which is read
//! before every answer from it, takes out what was revoked. So a revocation holds at once, in every process.

mod cache;
mod secrets;
mod sessions;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jsonwebtoken::Algorithm;
use nexxus_storage::{
    Registry, Result,
    model::{AppId, Caller, DeviceId, Problem, Timestamp, UserId, problem::ProblemKind},
    registry::{
        Feed, Key, Kind, News,
        records::{self, decode},
    },
};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tracing::warn;

pub use self::sessions::Issued;
pub(super) use self::sessions::in_calls;
use self::{
    cache::{Cache, CacheKey, Subject},
    secrets::Secrets,
    sessions::Claims,
};
use super::{Application, outlast, passwords::Passwords};
use crate::{
    config::Running,
    service::{Failure, Stop},
};

/// Longest token that is looked at.
const TOKEN_BYTES: usize = 4096;
/// Revocations that a receiver may be behind.
const REVOCATIONS: usize = 1024;

/// A caller whose token was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Identified {
    /// The application.
    pub app: AppId,
    /// The caller, as rules know it.
    pub caller: Caller,
    /// The login that the token stands for; none for the admin token and where the application has no users.
    pub login: Option<Login>,
    /// When the token ends; none for the admin token and where the application has no users.
    pub expires_at: Option<Timestamp>,
}

/// A login, as a token names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    /// The device that logged in.
    device: DeviceId,
    /// Its session.
    pub session: String,
    /// Where what was checked is kept.
    key: CacheKey,
}

/// What ended before its time: open sockets of it are closed with 4003.
#[derive(Debug, Clone, PartialEq)]
pub enum Revoked {
    /// The application was deleted.
    Application(AppId),
    /// The user was removed.
    User(AppId, UserId),
    /// The device was removed, or its connections were ended.
    Device(AppId, DeviceId),
    /// The session was ended.
    Session(AppId, String),
    /// What was revoked is no longer known: everything that is held has to be checked anew.
    Unknown,
}

/// Checks and issues tokens. Keeps checked ones in a bounded cache that the registry's feed clears, so that a revocation holds
/// at once.
pub struct Identity {
    registry: Arc<dyn Registry>,
    secrets: Secrets,
    config: Arc<Running>,
    feed: tokio::sync::Mutex<Box<dyn Feed>>,
    /// Reads of the feed are numbered: the newest that began, and the newest that gave something.
    reads_begun: AtomicU64,
    reads_done: AtomicU64,
    cache: Mutex<Cache>,
    revocations: broadcast::Sender<Revoked>,
    pub(super) passwords: Passwords,
}

/// What ends tokens, or changes what they stand for.
const KINDS: [Kind; 4] = [Kind::Application, Kind::User, Kind::Device, Kind::Session];

impl Identity {
    /// Takes the secrets from the configuration or the registry; makes them at the first start. The admin token is also written
    /// to `admin_token` in the data directory, for the command line on the same machine.
    pub async fn open(registry: Arc<dyn Registry>, config: Arc<Running>) -> Result<Arc<Self>, Failure> {
        let secrets = Secrets::open(&*registry, &config.now()).await?;
        let feed = tokio::sync::Mutex::new(registry.feed(&KINDS).await?);
        Ok(Arc::new(Self {
            registry,
            secrets,
            config,
            feed,
            reads_begun: AtomicU64::new(0),
            reads_done: AtomicU64::new(0),
            cache: Mutex::default(),
            revocations: broadcast::channel(REVOCATIONS).0,
            passwords: Passwords::default(),
        }))
    }

    /// Who a request or connection is from. `token`: what followed `Bearer`; `device`: the `nxx-device-id` it came with. A token
    /// that is bound to a device does not work for another one. Without a token: nobody in particular (rules decide); with a
    /// bad one 401.
    pub async fn authenticate(
        &self,
        app: &Application,
        token: Option<&str>,
        device: Option<&DeviceId>,
    ) -> Result<Identified, Problem> {
        let is_admin = token.is_some_and(|token| self.is_admin(token));
        let token = match token {
            Some(token) if !is_admin && app.record.auth_enabled => token,
            _ => return Ok(without_session(app, is_admin, device)),
        };
        self.take_in_news().await?;
        let key = CacheKey::new(token, device);
        let known = self.cache.lock().get(key).filter(|known| known.app == *app.id());
        let identified = match known {
            Some(known) => known,
            None => self.verify(app, token, device, key).await?,
        };
        match identified.expires_at {
            Some(expires_at) if expires_at <= Timestamp::now() => Err(unauthorized("the token has expired")),
            _ => Ok(identified),
        }
    }

    /// Checks again who was identified before, without the token: what it stands for may have ended.
    pub async fn check_again(&self, app: &Application, identified: &Identified) -> Result<(), Problem> {
        let Identified { caller, login, expires_at, .. } = identified;
        let (Some(login), Some(user), Some(device)) = (login, &caller.user, &caller.device) else {
            let is_let_in = caller.admin || !app.record.auth_enabled;
            return if is_let_in { Ok(()) } else { Err(unauthorized("a token is needed by now")) };
        };
        self.take_in_news().await?;
        if self.cache.lock().get(login.key).is_none() {
            self.look_up(app.id(), user, login.clone(), device, *expires_at).await?;
        }
        Ok(())
    }

    /// The application that a token names, unchecked: to find what to check it by.
    pub fn application_of(&self, token: &str) -> Option<AppId> {
        let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
        Some(claims.app)
    }

    /// Whether this is the admin token (compared in constant time).
    pub fn is_admin(&self, token: &str) -> bool {
        self.secrets.is_admin(token)
    }

    /// What is revoked from now on. A receiver that lags has to check all that it holds anew.
    pub fn revocations(&self) -> broadcast::Receiver<Revoked> {
        self.revocations.subscribe()
    }

    /// Tells of revocations as they come, until told to stop.
    pub async fn follow(self: Arc<Self>, stop: Stop) -> Result<(), Failure> {
        // A feed of its own, so that waiting holds no lock against those who check tokens.
        let mut wake = self.registry.feed(&KINDS).await?;
        loop {
            let following = async {
                self.take_in_news().await?;
                wake.changed().await?;
                wake.read().await
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                followed = following => if let Err(error) = followed {
                    outlast("the identity", error).await?;
                },
            }
        }
    }

    async fn verify(
        &self,
        app: &Application,
        token: &str,
        device: Option<&DeviceId>,
        key: CacheKey,
    ) -> Result<Identified, Problem> {
        let claims = self.claims_of(token)?;
        if claims.app != *app.id() {
            return Err(unauthorized("the token is of another application"));
        }
        let acting = match device {
            Some(device) if *device != claims.device && claims.bound => {
                return Err(unauthorized(&format!("the token is bound to the device {}", claims.device)));
            }
            Some(device) => device,
            None => &claims.device,
        };
        let login = Login { device: claims.device.clone(), session: claims.sid, key };
        self.look_up(&claims.app, &claims.sub, login, acting, sessions::at_second(claims.exp)).await
    }

    fn claims_of(&self, token: &str) -> Result<Claims, Problem> {
        if token.len() > TOKEN_BYTES {
            return Err(unauthorized("the token is too long to be one"));
        }
        let mut validation = jsonwebtoken::Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.validate_aud = false;
        match jsonwebtoken::decode::<Claims>(token, &self.secrets.decoding, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) => match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => Err(unauthorized("the token has expired")),
                _ => Err(unauthorized("not a token of this installation")),
            },
        }
    }

    /// What a token stands for, as the registry has it now; kept in the cache.
    async fn look_up(
        &self,
        app: &AppId,
        user: &UserId,
        login: Login,
        acting: &DeviceId,
        expires_at: Option<Timestamp>,
    ) -> Result<Identified, Problem> {
        let key = login.key;
        let subjects = [
            Subject::User(app.clone(), user.clone()),
            Subject::Session(app.clone(), login.session.clone()),
            Subject::Device(app.clone(), acting.clone()),
        ];
        // Announced before the records are read: what is revoked meanwhile takes the announcement away.
        let ticket = self.cache.lock().announce(key, subjects);
        let outcome = self.caller_of(app, user, &login, acting).await;
        let mut cache = self.cache.lock();
        match outcome {
            Ok(caller) => {
                let identified = Identified { app: app.clone(), caller, login: Some(login), expires_at };
                cache.complete(key, ticket, identified.clone());
                Ok(identified)
            }
            Err(problem) => {
                cache.remove(key);
                Err(problem)
            }
        }
    }

    async fn caller_of(&self, app: &AppId, id: &UserId, login: &Login, acting: &DeviceId) -> Result<Caller, Problem> {
        let session = Key::session(app, &login.device, &login.session);
        let session: Option<(records::Session, u64)> = self.registry.load(&session).await?;
        if session.is_none_or(|(session, _)| session.user != *id) {
            return Err(unauthorized("the login of this token has ended"));
        }
        let user: Option<(records::User, u64)> = self.registry.load(&Key::user(app, id)).await?;
        let Some((user, _)) = user else { return Err(unauthorized("the user of this token is gone")) };
        let registered: Option<(records::Device, u64)> = self.registry.load(&Key::device(app, acting)).await?;
        if registered.is_some_and(|(registered, _)| registered.user.as_ref() != Some(id)) {
            return Err(Problem::new(ProblemKind::Forbidden, format!("the device {acting} is not yours")));
        }
        Ok(Caller {
            admin: user.facts.user_type.as_deref() == Some(ADMIN),
            user: Some(id.clone()),
            facts: user.facts,
            device: Some(acting.clone()),
        })
    }

    /// Takes out of the cache what was revoked or changed before this call, and tells of what was revoked. Who comes while a read is
    /// under way shares the next one with all others who do: it may be a round trip.
    async fn take_in_news(&self) -> Result<()> {
        let begun_before = self.reads_begun.load(Ordering::Acquire);
        let mut feed = self.feed.lock().await;
        // The lock is held from before a read begins until what it gave is taken in.
        if self.reads_done.load(Ordering::Acquire) > begun_before {
            return Ok(());
        }
        let read = self.reads_begun.fetch_add(1, Ordering::AcqRel) + 1;
        let news = feed.read().await?;
        self.reads_done.store(read, Ordering::Release);
        for news in news {
            match news {
                News::Reload => {
                    self.cache.lock().clear();
                    self.tell(Revoked::Unknown);
                }
                News::Written { key, value } => {
                    if let Some(revoked) = self.heard(&key, value.as_deref()) {
                        self.tell(revoked);
                    }
                }
            }
        }
        Ok(())
    }

    fn heard(&self, key: &Key, value: Option<&[u8]>) -> Option<Revoked> {
        let mut cache = self.cache.lock();
        if key.kind == Kind::Application {
            let is_gone = match value {
                Some(value) => decode::<records::Application>(key, value).is_ok_and(|record| record.deleted),
                None => true,
            };
            return AppId::parse(&key.id).ok().filter(|_| is_gone).map(Revoked::Application);
        }
        let app = key.app.clone()?;
        match key.kind {
            Kind::User => {
                let user = UserId::parse(&key.id).ok()?;
                cache.forget(&Subject::User(app.clone(), user.clone()), |_| true);
                value.is_none().then_some(Revoked::User(app, user))
            }
            Kind::Session if value.is_none() => {
                let session = key.id.split_once('/')?.1.to_owned();
                cache.forget(&Subject::Session(app.clone(), session.clone()), |_| true);
                Some(Revoked::Session(app, session))
            }
            Kind::Device => {
                let device = DeviceId::parse(&key.id).ok()?;
                let record = value.and_then(|value| decode::<records::Device>(key, value).ok());
                let is_revoked = record.as_ref().is_some_and(|record| record.revoked);
                let owner = record.and_then(|record| record.user);
                // A connect writes the record as well: what was checked for its user stays.
                cache.forget(&Subject::Device(app.clone(), device.clone()), |known| known.caller.user != owner);
                is_revoked.then_some(Revoked::Device(app, device))
            }
            _ => None,
        }
    }

    fn tell(&self, revoked: Revoked) {
        // Nobody is listening where this process has no transport.
        let _n_listening = self.revocations.send(revoked);
    }
}

/// The user type that is past all rules.
pub const ADMIN: &str = "admin";

/// The admin, or a caller without a token. In an application without users devices are named by whoever comes; elsewhere nobody in
/// particular acts as no device.
fn without_session(app: &Application, admin: bool, device: Option<&DeviceId>) -> Identified {
    let device = device.filter(|_| admin || !app.record.auth_enabled).cloned();
    let caller = Caller { admin, device, ..Caller::default() };
    Identified { app: app.id().clone(), caller, login: None, expires_at: None }
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(ProblemKind::Unauthorized, detail)
}

/// Writes that are conditional on what was read are tried so often when others write the same record.
pub(super) const RACES: usize = 20;

/// A record was written by others each time.
pub(super) fn lost_races(what: &str) -> Problem {
    warn!(what, "a record is written by too many at once");
    Problem::new(ProblemKind::Unavailable, format!("{what} is being changed by others, try again")).with_retry_after(1)
}
