//! Long-running parts of a node: started together, watched, stopped upstream first.

#![warn(missing_docs)]

use std::{future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Why a service ended, or a node did not start. Printed as one sentence.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Told to a service when it has to stop: it ends its batch and returns.
pub type Stop = CancellationToken;

/// What is kept of the time of a stop for the phases after one that hangs, at most.
const LONGEST_LEAVE: Duration = Duration::from_secs(2);

/// The services of a node, in the order in which they stop: each phase is told to stop only when the one before has ended, so that
/// what upstream still hands on is still taken.
pub struct Services {
    phases: Vec<Phase>,
}

struct Phase {
    name: &'static str,
    stop: Stop,
    tasks: JoinSet<(String, Result<(), Failure>)>,
}

impl Services {
    /// Phases in the order in which they stop.
    pub fn in_phases(names: &[&'static str]) -> Self {
        let phase = |name: &&'static str| Phase { name, stop: Stop::new(), tasks: JoinSet::new() };
        Self { phases: names.iter().map(phase).collect() }
    }

    /// Runs a service in a phase (in the last one, where the name is unknown).
    pub fn spawn<F, S>(&mut self, phase: &'static str, name: impl Into<String>, service: S)
    where
        S: FnOnce(Stop) -> F,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let name = name.into();
        let known = self.phases.iter().position(|other| other.name == phase);
        debug_assert!(known.is_some(), "no phase {phase}");
        let Some(phase) = known.or(self.phases.len().checked_sub(1)).and_then(|place| self.phases.get_mut(place))
        else {
            return;
        };
        let running = service(phase.stop.clone());
        phase.tasks.spawn(async move { (name, running.await) });
    }

    /// Waits until a service ends unasked, and says why: then the node has to stop, for it would be half alive.
    pub async fn failed(&mut self) -> Failure {
        let mut ended = Vec::new();
        for phase in &mut self.phases {
            if !phase.tasks.is_empty() {
                ended.push(Box::pin(phase.tasks.join_next()));
            }
        }
        if ended.is_empty() {
            return std::future::pending().await;
        }
        let (outcome, _, _) = futures_util::future::select_all(ended).await;
        match outcome {
            Some(Ok((name, Ok(())))) => format!("{name} ended unasked").into(),
            Some(Ok((name, Err(error)))) => format!("{name} failed: {error}").into(),
            Some(Err(error)) => format!("a service panicked: {error}").into(),
            None => "no service is running".into(),
        }
    }

    /// Stops phase by phase. What has not ended at the deadline is named and dropped; false then. The end of the time belongs to
    /// the last phases: one that hangs does not keep those downstream from taking their leave.
    pub async fn stop(self, within: Duration) -> bool {
        let began = Instant::now();
        let share = (within / 5).min(LONGEST_LEAVE) / (self.phases.len() as u32).max(1);
        let mut clean = true;
        let n_phases = self.phases.len();
        for (place, mut phase) in self.phases.into_iter().enumerate() {
            let n_after = (n_phases - 1 - place) as u32;
            let deadline = began + within.saturating_sub(share * n_after);
            phase.stop.cancel();
            loop {
                match tokio::time::timeout_at(deadline, phase.tasks.join_next()).await {
                    Ok(None) => break,
                    Ok(Some(Ok((name, Ok(()))))) => info!(service = name, "stopped"),
                    Ok(Some(Ok((name, Err(error))))) => error!(service = name, %error, "failed while stopping"),
                    Ok(Some(Err(error))) => error!(%error, "a service panicked while stopping"),
                    Err(_) => {
                        warn!(phase = phase.name, left = phase.tasks.len(), "still running at the deadline, dropped");
                        clean = false;
                        break;
                    }
                }
            }
        }
        clean
    }
}

/// What a node still waits for before it is ready (`/readyz`). Each part holds a [`Latch`] until it is.
#[derive(Clone, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<Vec<&'static str>>>,
}

/// Held by a part that is not ready; dropping it says that it is.
pub struct Latch {
    name: &'static str,
    of: Readiness,
}

impl Readiness {
    /// Not ready, until the latch is dropped. `name` is what `/readyz` shows.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.waiting.lock().push(name);
        Latch { name, of: self.clone() }
    }

    /// The parts that are not ready; empty when the node is.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.waiting.lock().clone()
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting.lock();
        if let Some(place) = waiting.iter().position(|name| *name == self.name) {
            waiting.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_stop_in_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut services = Services::in_phases(&["api", "pipeline", "transport"]);
        for (phase, name) in [("transport", "websocket"), ("pipeline", "writer"), ("api", "api")] {
            let order = order.clone();
            services.spawn(phase, name, move |stop: Stop| async move {
                stop.cancelled().await;
                order.lock().push(name);
                Ok(())
            });
        }
        assert!(services.stop(Duration::from_secs(5)).await);
        assert_eq!(*order.lock(), ["api", "writer", "websocket"]);
    }

    #[tokio::test]
    async fn a_service_that_ends_unasked_is_named() {
        let mut services = Services::in_phases(&["a", "b"]);
        services.spawn("a", "steady", |stop: Stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        services.spawn("b", "weak", |_| async { Err("it broke".into()) });
        assert_eq!(services.failed().await.to_string(), "weak failed: it broke");
    }

    #[test]
    fn ready_when_every_latch_is_dropped() {
        let readiness = Readiness::default();
        let (writer, matcher) = (readiness.latch("writer"), readiness.latch("matcher"));
        drop(writer);
        assert_eq!(readiness.waiting_for(), ["matcher"]);
        drop(matcher);
        assert!(readiness.waiting_for().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds() {
        let mut services = Services::in_phases(&["a"]);
        services.spawn("a", "deaf", |_| std::future::pending());
        assert!(!services.stop(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_that_hangs_leaves_time_to_the_others() {
        let mut services = Services::in_phases(&["a", "b", "c"]);
        let left = Arc::new(Mutex::new(Vec::new()));
        services.spawn("a", "deaf", |_| std::future::pending());
        for name in ["b", "c"] {
            let left = left.clone();
            services.spawn(name, name, move |stop: Stop| async move {
                stop.cancelled().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                left.lock().push(name);
                Ok(())
            });
        }
        let began = Instant::now();
        assert!(!services.stop(Duration::from_secs(10)).await);
        assert_eq!(*left.lock(), ["b", "c"]);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
