//! One error for every backend: what kind it is, what was being done, and where.
//!
//! The adapter decides the kind, because it knows its backend; the runner and the API decide what to do about it.

use std::fmt;

use tracing::error;

use crate::model::{Problem, problem::ProblemKind};

/// The result of every call to a backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller has to act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The backend is away or stopping; the same call may succeed later.
    Unavailable,
    /// No answer in time; the call may or may not have taken effect.
    Timeout,
    /// A bounded buffer is full; try again later (HTTP 503).
    Full,
    /// The disk is full (HTTP 507).
    DiskFull,
    /// A condition of the call did not hold: the record was there, or not, or of another revision.
    Conflict,
    /// Somebody else writes this application's log now; this writer must stop.
    Fenced,
    /// The offset is older than the oldest entry held, or of another epoch.
    Gone,
    /// Stored data cannot be read: a bad checksum, an unknown format.
    Corrupt,
    /// The call can never succeed as it is.
    Invalid,
    /// This build lacks the adapter that was asked for.
    Unsupported,
    /// Anything else.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "unavailable",
            Self::Timeout => "timed out",
            Self::Full => "full",
            Self::DiskFull => "disk full",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced off by another writer",
            Self::Gone => "no longer held",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal error",
        })
    }
}

/// A failed operation on a backend. The message names the thing, in lowercase and without a full stop.
#[derive(Debug)]
pub struct Error {
    /// What a caller has to do about it depends on this alone.
    pub kind: ErrorKind,
    /// What was being done, e.g. `append`.
    pub operation: &'static str,
    /// On what, with the particulars, e.g. `journal segment 42: disk full`.
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause; see [`with_source`](Self::with_source).
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self { kind, operation, message: message.into(), source: None }
    }

    /// Names the cause; it is told after the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An I/O error, with the kinds that callers act on told apart.
    pub fn io(operation: &'static str, message: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, operation, message).with_source(source)
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Full | ErrorKind::DiskFull)
    }
}

impl From<Error> for Problem {
    /// What a failed backend is to whoever asked for something. What nobody outside can do anything about is told to the log
    /// and not to them.
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            // Fenced: another writer has taken over; Conflict: lost a race for a record. The same call may succeed now.
            ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::Fenced | ErrorKind::Conflict => {
                return Problem::new(ProblemKind::Unavailable, error.to_string()).with_retry_after(1);
            }
            ErrorKind::Timeout => ProblemKind::Timeout,
            ErrorKind::DiskFull => ProblemKind::DiskFull,
            ErrorKind::Gone => ProblemKind::Gone,
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Internal => {
                error!(%error, "a backend failed");
                return Problem::new(ProblemKind::Internal, "the request could not be carried out");
            }
        };
        Problem::new(kind, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {} ({})", self.operation, self.message, self.kind)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
