//! Errors of backends as callers hear of them.

use nexxus_storage::{
    Error, ErrorKind,
    model::{AppId, Problem, problem::ProblemKind},
};
use tracing::error;

/// Seconds after which to try again what a backend could not do now.
const TRY_AGAIN_AFTER: u32 = 1;

/// What a caller is told of a failed operation. What is at fault in here is logged, and its particulars are not told.
pub fn problem_of(error: Error) -> Problem {
    match error.kind {
        // Fenced: another writer has taken over; Conflict: lost a race for a record. The same call may succeed now.
        ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::Fenced | ErrorKind::Conflict => {
            Problem::new(ProblemKind::Unavailable, error.to_string()).with_retry_after(TRY_AGAIN_AFTER)
        }
        ErrorKind::Timeout => Problem::new(ProblemKind::Timeout, error.to_string()),
        ErrorKind::DiskFull => Problem::new(ProblemKind::DiskFull, "there is no room for this on the server's disk"),
        ErrorKind::Gone => Problem::new(ProblemKind::Gone, error.to_string()),
        ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Internal => {
            error!(%error, "a request failed");
            Problem::new(ProblemKind::Internal, "the server's log says what went wrong")
        }
    }
}

pub fn not_found(what: &str, id: &impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {what} {id}"))
}

pub fn no_application(app: &AppId) -> Problem {
    not_found("application", app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_meaning_and_lose_their_particulars() {
        for (kind, status, retry) in [
            (ErrorKind::Unavailable, 503, true),
            (ErrorKind::Full, 503, true),
            (ErrorKind::Fenced, 503, true),
            (ErrorKind::Timeout, 504, false),
            (ErrorKind::DiskFull, 507, false),
            (ErrorKind::Gone, 410, false),
            (ErrorKind::Corrupt, 500, false),
            (ErrorKind::Internal, 500, false),
        ] {
            let problem = problem_of(Error::new(kind, "read", "segment 42"));
            assert_eq!((problem.status, problem.retry_after.is_some()), (status, retry), "{kind:?}");
            assert_eq!(problem.detail.contains("segment 42"), !matches!(status, 500 | 507), "{kind:?}");
        }
    }
}
