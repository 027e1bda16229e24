//! Passwords: kept as Argon2id, hashed and checked by a few threads at a time. Each hash takes tens of milliseconds and 19 MiB on
//! purpose; who comes when too many wait is told to come back, so that logins cannot starve everything else.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier},
};
use nexxus_storage::model::{Problem, problem::ProblemKind};
use tokio::sync::{Semaphore, TryAcquireError};
use tracing::error;

/// Shortest and longest password, in bytes.
pub const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1024;
/// What the OWASP Password Storage Cheat Sheet asks of Argon2id at least: KiB of memory, passes, lanes.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Passwords that may wait for a thread.
const MOST_WAITING: usize = 64;

/// The threads that hash.
pub struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Passwords {
    /// Half of the cores: the rest of them serve everybody else.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self::new(cores.div_ceil(2), MOST_WAITING)
    }
}

impl Passwords {
    fn new(n_threads: usize, most_waiting: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(n_threads)),
            waiting: Arc::new(Semaphore::new(n_threads + most_waiting)),
        }
    }

    /// The hash of a password in PHC notation; 429 when too many wait.
    pub async fn hash(&self, password: String) -> Result<String, Problem> {
        let salt: [u8; 16] = rand::random();
        self.run(move || hash_with(&password, &salt)).await?.map_err(|error| {
            error!(%error, "a password could not be hashed");
            Problem::new(ProblemKind::Internal, "the password could not be kept")
        })
    }

    /// Whether a password belongs to a hash; without a hash it takes as long and is false, so that the time does not tell which
    /// users there are. 429 when too many wait.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        self.run(move || match hash {
            Some(hash) => {
                argon2().is_ok_and(|argon2| argon2.verify_password(password.as_bytes(), hash.as_str()).is_ok())
            }
            None => {
                let _as_slow = hash_with(&password, &[0; 16]);
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let place = match self.waiting.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::NoPermits) => {
                let detail = "too many passwords are being checked";
                return Err(Problem::new(ProblemKind::TooManyRequests, detail).with_retry_after(2));
            }
            Err(TryAcquireError::Closed) => return Err(stopping()),
        };
        let thread = self.running.clone().acquire_owned().await.map_err(|_| stopping())?;
        let done = tokio::task::spawn_blocking(move || {
            // They go with the work: a caller that hangs up does not make room while a thread is still busy for it.
            let _held = (place, thread);
            work()
        });
        done.await.map_err(|_| stopping())
    }
}

fn stopping() -> Problem {
    Problem::new(ProblemKind::Unavailable, "the server is stopping").with_retry_after(1)
}

fn argon2() -> argon2::Result<Argon2<'static>> {
    let (memory, passes, lanes) = COST;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, passes, lanes, None)?))
}

fn hash_with(password: &str, salt: &[u8]) -> Result<String, argon2::password_hash::Error> {
    let argon2 = argon2().map_err(|_| argon2::password_hash::Error::ParamsInvalid)?;
    Ok(argon2.hash_password_with_salt(password.as_bytes(), salt)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_belongs_to_its_own_hash() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".into()).await.expect("hashed");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(passwords.hash("correct horse".into()).await, Ok(hash.clone()), "salted");
        for (password, hash, fits) in [
            ("correct horse", Some(hash.clone()), true),
            ("correct Horse", Some(hash), false),
            ("correct horse", Some("not a hash".to_owned()), false),
            ("correct horse", None, false),
        ] {
            assert_eq!(passwords.verify(password.into(), hash.clone()).await, Ok(fits), "{password} {hash:?}");
        }
    }

    #[tokio::test]
    async fn who_comes_when_too_many_wait_is_sent_away() {
        let passwords = Passwords::new(1, 1);
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let busy = passwords.run(move || begun.recv().is_ok());
        let waiting = passwords.run(|| true);
        let (mut busy, mut waiting) = (std::pin::pin!(busy), std::pin::pin!(waiting));
        assert!(futures_util::poll!(busy.as_mut()).is_pending());
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let refused = passwords.run(|| true).await.expect_err("full");
        assert_eq!((refused.status, refused.retry_after), (429, Some(2)));
        begin.send(()).expect("heard");
        assert_eq!(busy.await, Ok(true));
        assert_eq!(waiting.await, Ok(true));
        assert_eq!(passwords.run(|| true).await, Ok(true));
    }
}
