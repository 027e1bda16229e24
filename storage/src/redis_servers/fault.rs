//! What errors of Redis mean to callers.

use redis::{ErrorKind as Kind, RedisError, ServerErrorKind};

use crate::{Error, ErrorKind};

/// The error of a call. `address` may be empty.
pub(super) fn fault(operation: &'static str, address: &str, error: &RedisError) -> Error {
    let redis = if address.is_empty() { "redis".to_owned() } else { format!("redis at {address}") };
    let (kind, message) = match error.kind() {
        _ if is_refusal_of_credentials(error) => {
            (ErrorKind::Unavailable, format!("{redis} refuses the user or the password of `redis.nodes`"))
        }
        Kind::Io if error.is_timeout() => (ErrorKind::Timeout, format!("{redis} does not answer in time")),
        Kind::Io | Kind::ClusterConnectionNotFound => (ErrorKind::Unavailable, format!("{redis} is away")),
        Kind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        ) => (ErrorKind::Unavailable, format!("{redis} is not ready")),
        Kind::Server(ServerErrorKind::NoPerm) => (
            ErrorKind::Unavailable,
            format!("{redis} does not let its user do this: give it the commands and keys that Nexxus needs"),
        ),
        _ => match error.code() {
            Some("OOM") => (ErrorKind::DiskFull, format!("the memory of {redis} is full: raise `maxmemory`")),
            Some("MISCONF") => (ErrorKind::DiskFull, format!("{redis} cannot write to its disk")),
            Some("NOREPLICAS") => (ErrorKind::Unavailable, format!("{redis} has too few replicas")),
            Some("BUSY" | "UNBLOCKED") => (ErrorKind::Unavailable, format!("{redis} is busy")),
            _ => (ErrorKind::Internal, format!("{redis} refuses the call")),
        },
    };
    Error::new(kind, operation, message).with_source(error.clone())
}

/// Whether another user or password is needed.
pub(super) fn is_refusal_of_credentials(error: &RedisError) -> bool {
    error.kind() == Kind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// An error of a connection, as the crate has it.
pub(super) fn io(kind: std::io::ErrorKind, message: &'static str) -> RedisError {
    RedisError::from(std::io::Error::new(kind, message))
}
