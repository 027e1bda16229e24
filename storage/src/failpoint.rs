//! Places where a test makes the process die, a handler fail or panic: between any two steps whose order is a promise.
//!
//! Without the feature `failpoints`, which is off by default, a place is nothing at all. With it, the variable `FAILPOINTS` says
//! what happens where, in the words of the crate `fail`: `NAME=ACTIONS;…`. Of its actions, `return(WHAT)` means here:
//! - `abort`: the process dies at once, as by `kill -9`,
//! - `panic`: whoever got here panics,
//! - `invalid`, `unavailable`: it fails with an error of that kind,
//! - `stall`: it waits for ever (only where a place can be waited at);
//!
//! and with `WHAT:SUBJECT` it means that only where the place is reached about this subject. `3*off->return(abort)` lets three pass.

#[cfg(not(feature = "failpoints"))]
pub use off::{reach, reach_about, wait_at};
#[cfg(feature = "failpoints")]
pub use on::{reach, reach_about, wait_at};

#[cfg(not(feature = "failpoints"))]
mod off {
    use crate::Result;

    /// A place without a subject.
    #[inline(always)]
    pub fn reach(_place: &str) -> Result<()> {
        Ok(())
    }

    /// A place that is reached about something. `subject` is asked for only where it matters.
    #[inline(always)]
    pub fn reach_about(_place: &str, _subject: impl FnOnce() -> String) -> Result<()> {
        Ok(())
    }

    /// A place where a task may be held up.
    #[inline(always)]
    pub async fn wait_at(_place: &str, _subject: impl FnOnce() -> String) {}
}

#[cfg(feature = "failpoints")]
mod on {
    use std::sync::Once;

    use crate::{Error, ErrorKind, Result};

    /// A place without a subject.
    pub fn reach(place: &str) -> Result<()> {
        reach_about(place, String::new)
    }

    /// A place that is reached about something. `subject` is asked for only where it matters.
    pub fn reach_about(place: &str, subject: impl FnOnce() -> String) -> Result<()> {
        let Some(wanted) = asked_for(place) else { return Ok(()) };
        let (what, about) = wanted.split_once(':').unwrap_or((&wanted, ""));
        if !about.is_empty() && subject() != about {
            return Ok(());
        }
        let failed = |kind| Err(Error::new(kind, "pass failpoint", place));
        match what {
            "abort" => std::process::abort(),
            "invalid" => failed(ErrorKind::Invalid),
            "unavailable" => failed(ErrorKind::Unavailable),
            _ => std::panic::panic_any(format!("failpoint {place}: {what}")),
        }
    }

    /// A place where a task may be held up.
    pub async fn wait_at(place: &str, subject: impl FnOnce() -> String) {
        let wanted = asked_for(place);
        if wanted.as_deref().and_then(|wanted| wanted.strip_prefix("stall:")).is_some_and(|about| about == subject()) {
            tracing::warn!(place, "held up by a failpoint");
            std::future::pending::<()>().await;
        }
    }

    fn asked_for(place: &str) -> Option<String> {
        static CONFIGURED: Once = Once::new();
        CONFIGURED.call_once(|| {
            let asked = std::env::var("FAILPOINTS").unwrap_or_default();
            for (place, actions) in asked.split(';').filter_map(|one| one.split_once('=')) {
                if let Err(error) = fail::cfg(place.trim(), actions) {
                    tracing::error!(place, error, "a failpoint cannot be set");
                }
            }
        });
        fail::fail_point!(place, |what| Some(what.unwrap_or_default()));
        None
    }
}
