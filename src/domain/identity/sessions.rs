//! Sessions: what a login begins, a refresh renews, and a revocation ends.
//!
//! A refresh token names its session and carries a secret of which the registry keeps the hash. Each is good for one refresh; for
//! a moment the same answer is given again, to a client that lost it or came twice. Who comes with a spent one later holds a
//! stolen token or was stolen from, so the session ends.

use std::time::Duration;

use nexxus_storage::{
    ErrorKind,
    model::{AppId, DeviceId, Problem, Timestamp, UserId, problem::ProblemKind},
    registry::{
        Expect, Key, Kind, Write,
        records::{Session, User, UserDevice},
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{error, warn};

use super::{
    Identity, RACES, lost_races,
    secrets::{hex, random_text},
    unauthorized,
};
use crate::domain::devices::forget_unused;

/// How long a spent refresh token still gets the answer that it got.
const REPEATS: Duration = Duration::from_secs(30);

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) sub: UserId,
    pub(super) app: AppId,
    pub(super) device: DeviceId,
    pub(super) sid: String,
    /// It works for its device only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) bound: bool,
    pub(super) iat: u64,
    pub(super) exp: u64,
}

/// What a client gets when a session begins or is renewed.
#[derive(Debug)]
pub struct Issued {
    /// The token (a JWT) to call with.
    pub token: String,
    /// When the token expires.
    pub expires_at: Timestamp,
    /// Good for one refresh; also after the token has expired.
    pub refresh_token: String,
    /// To be written by whoever begins it, together with what belongs to it.
    pub session: Session,
}

impl Identity {
    /// Begins a session; it counts once its record is written. `bound`: its tokens work for this device only. `ttl`: seconds that
    /// its first token is valid, where that is not the usual time.
    pub fn begin_session(
        &self,
        app: &AppId,
        user: &UserId,
        device: &DeviceId,
        bound: bool,
        ttl: Option<u64>,
    ) -> Result<Issued, Problem> {
        let now = Timestamp::now();
        let session = Session {
            app: app.clone(),
            id: hex(&rand::random::<[u8; 16]>()),
            user: user.clone(),
            device: device.clone(),
            refresh_hash: String::new(),
            previous_hash: None,
            bound,
            created_at: now,
            refreshed_at: now,
            expires_at: now,
        };
        let refresh_token = format!("{device}/{}/{}", session.id, random_text());
        self.renewed(session, refresh_token, ttl.unwrap_or(self.config.now().auth.token_ttl.as_secs()))
    }

    /// The session with this refresh token, and a token of it.
    fn renewed(&self, session: Session, refresh_token: String, ttl: u64) -> Result<Issued, Problem> {
        let expires_at = in_seconds(ttl)?;
        let session = Session {
            refresh_hash: hash_of(&refresh_token),
            previous_hash: Some(session.refresh_hash).filter(|hash| !hash.is_empty()),
            refreshed_at: Timestamp::now(),
            expires_at: expires_at.max(in_seconds(self.config.now().auth.refresh_ttl.as_secs())?),
            ..session
        };
        let token = self.token_of(&session, expires_at)?;
        Ok(Issued { token, expires_at, refresh_token, session })
    }

    fn token_of(&self, session: &Session, expires_at: Timestamp) -> Result<String, Problem> {
        let claims = Claims {
            sub: session.user.clone(),
            app: session.app.clone(),
            device: session.device.clone(),
            sid: session.id.clone(),
            bound: session.bound,
            iat: seconds(Timestamp::now()),
            exp: seconds(expires_at),
        };
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &self.secrets.encoding).map_err(|error| {
            error!(%error, "a token could not be signed");
            Problem::new(ProblemKind::Internal, "the token could not be made")
        })
    }

    /// Renews a session by its refresh token, which is spent by that.
    pub async fn refresh_session(&self, app: &AppId, refresh_token: &str) -> Result<(Issued, User), Problem> {
        let not_valid = || unauthorized("the refresh token is not valid any more, log in again");
        let mut parts = refresh_token.splitn(3, '/');
        let (Some(device), Some(id), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(not_valid());
        };
        let key = Key::session(app, &DeviceId::parse(device).map_err(|_| not_valid())?, id);
        for _ in 0..RACES {
            let Some((session, revision)) = self.registry.load::<Session>(&key).await? else { return Err(not_valid()) };
            let Some((user, _)) = self.registry.load::<User>(&Key::user(app, &session.user)).await? else {
                return Err(not_valid());
            };
            if session.expires_at <= Timestamp::now() {
                return Err(not_valid());
            }
            match shown(&session, refresh_token) {
                Shown::Current => {}
                Shown::JustSpent => return Ok((self.again(session, refresh_token)?, user)),
                Shown::Spent => {
                    warn!(%app, user = %session.user, device = %session.device, "a spent refresh token was used, the session ends");
                    self.registry.write(vec![Write::remove(key)]).await?;
                    return Err(not_valid());
                }
                Shown::Nonsense => return Err(not_valid()),
            }
            let next = self.next_refresh_token(&session, refresh_token);
            let issued = self.renewed(session, next, self.config.now().auth.token_ttl.as_secs())?;
            match self.registry.put(&issued.session, Expect::Revision(revision)).await {
                Ok(()) => return Ok((issued, user)),
                // Another refresh with the same token came first: then it was just spent.
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the session"))
    }

    /// The answer to the last refresh once more, with a token of its own.
    fn again(&self, session: Session, spent: &str) -> Result<Issued, Problem> {
        let refresh_token = self.next_refresh_token(&session, spent);
        let expires_at = in_seconds(self.config.now().auth.token_ttl.as_secs())?;
        let token = self.token_of(&session, expires_at)?;
        Ok(Issued { token, expires_at, refresh_token, session })
    }

    /// The one that follows a refresh token. It can be told again, and by nobody else.
    fn next_refresh_token(&self, session: &Session, refresh_token: &str) -> String {
        let inner = Sha256::new().chain_update(self.secrets.chain).chain_update(refresh_token).finalize();
        let secret = Sha256::new().chain_update(self.secrets.chain).chain_update(inner).finalize();
        format!("{}/{}/{}", session.device, session.id, hex(&secret))
    }

    /// Ends the sessions of a user, all but one; their tokens are void, their sockets close.
    pub async fn end_sessions(&self, app: &AppId, user: &UserId, except: Option<&str>) -> Result<(), Problem> {
        let devices: Vec<UserDevice> = self.registry.load_all(Kind::UserDevice, Some(app), &format!("{user}/")).await?;
        for device in devices {
            self.end_sessions_of_device(app, &device.device, |session| {
                session.user == *user && except != Some(session.id.as_str())
            })
            .await?;
            forget_unused(&*self.registry, app, user, &device.device).await?;
        }
        Ok(())
    }

    /// Ends the sessions of a device that fulfil a condition.
    pub async fn end_sessions_of_device(
        &self,
        app: &AppId,
        device: &DeviceId,
        condition: impl Fn(&Session) -> bool,
    ) -> Result<(), Problem> {
        for _ in 0..RACES {
            let sessions: Vec<Session> =
                self.registry.load_all(Kind::Session, Some(app), &format!("{device}/")).await?;
            let ended: Vec<Write> = sessions
                .iter()
                .filter(|session| condition(session))
                .map(|session| Write::remove(Key::session(app, device, &session.id)))
                .collect();
            if ended.is_empty() {
                return Ok(());
            }
            for some in in_calls(ended) {
                self.registry.write(some).await?;
            }
        }
        Err(lost_races("the sessions of the device"))
    }
}

/// What a refresh token is to its session.
enum Shown {
    Current,
    /// The one before, a moment ago: the answer was lost, or two tabs came at once.
    JustSpent,
    /// Somebody has a copy.
    Spent,
    Nonsense,
}

fn shown(session: &Session, refresh_token: &str) -> Shown {
    let hash = hash_of(refresh_token);
    let age_ms = Timestamp::now().as_ms() - session.refreshed_at.as_ms();
    if session.refresh_hash == hash {
        Shown::Current
    } else if session.previous_hash.as_ref() != Some(&hash) {
        Shown::Nonsense
    } else if age_ms <= REPEATS.as_millis() as i64 {
        Shown::JustSpent
    } else {
        Shown::Spent
    }
}

/// Writes in portions that one call takes.
pub(in crate::domain) fn in_calls(writes: Vec<Write>) -> impl Iterator<Item = Vec<Write>> {
    const AT_ONCE: usize = 1_000;
    let mut writes = writes.into_iter().peekable();
    std::iter::from_fn(move || {
        writes.peek()?;
        Some(writes.by_ref().take(AT_ONCE).collect())
    })
}

fn hash_of(refresh_token: &str) -> String {
    hex(&Sha256::digest(refresh_token))
}

/// Whole seconds since the Unix epoch, as tokens have them.
fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_ms() / 1000).unwrap_or_default()
}

pub(super) fn at_second(second: u64) -> Option<Timestamp> {
    Timestamp::from_ms(i64::try_from(second).ok()?.checked_mul(1000)?).ok()
}

fn in_seconds(from_now: u64) -> Result<Timestamp, Problem> {
    at_second(seconds(Timestamp::now()).saturating_add(from_now)).ok_or_else(|| {
        let detail = "the time lies beyond the year 9999";
        Problem::new(ProblemKind::InvalidDocument, detail)
    })
}
