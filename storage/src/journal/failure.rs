//! Whether the journal has failed. There is no way back from it but a new start.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{Error, ErrorKind};

/// The first error of a write or a sync, once there was one.
pub(super) struct Failure(watch::Sender<Option<Arc<Error>>>);

impl Default for Failure {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl Failure {
    /// Notes a failure; the first one counts.
    pub(super) fn note(&self, error: Error) {
        self.0.send_if_modified(|noted| {
            let is_first = noted.is_none();
            if is_first {
                tracing::error!(%error, "the journal has failed: nothing more is accepted, the process has to stop");
                *noted = Some(Arc::new(error));
            }
            is_first
        });
    }

    /// What whoever calls a failed journal gets: it is away, and comes back with the next start of the process.
    pub(super) fn for_callers(&self) -> Option<Error> {
        let noted = self.0.borrow();
        let error = noted.as_deref()?;
        Some(Error::new(ErrorKind::Unavailable, error.operation, format!("the journal has failed: {error}")))
    }

    /// Waits for the failure itself.
    pub(super) async fn wait(&self) -> Error {
        let mut noted = self.0.subscribe();
        // A borrow held over an await would keep whoever waits on one thread.
        let error = noted.wait_for(Option::is_some).await.ok().and_then(|noted| noted.as_deref().map(copy));
        match error {
            Some(error) => error,
            // The sender lives as long as this.
            None => std::future::pending().await,
        }
    }

    /// The failure itself, if there is one.
    pub(super) fn get(&self) -> Option<Error> {
        self.0.borrow().as_deref().map(copy)
    }

    /// Notes a failure if the thread panics while the returned value lives: without it the journal would only hang.
    pub(super) fn of_thread(self: &Arc<Self>, name: &'static str) -> impl Drop + use<> {
        EndOfThread { failure: self.clone(), name }
    }
}

struct EndOfThread {
    failure: Arc<Failure>,
    name: &'static str,
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = format!("the thread `{}` panicked", self.name);
            self.failure.note(Error::new(ErrorKind::Internal, "run journal", message));
        }
    }
}

fn copy(error: &Error) -> Error {
    let copy = Error::new(error.kind, error.operation, error.message.clone());
    match std::error::Error::source(error) {
        Some(source) => copy.with_source(source.to_string()),
        None => copy,
    }
}
