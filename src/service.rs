//! Long-running parts of a node: started together, watched, stopped upstream first.

use std::{future::Future, time::Duration};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Why a service ended, or a node did not start. Printed as one sentence.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Told to a service when it has to stop: it ends its batch and returns.
pub type Stop = CancellationToken;

/// The services of a node, in the order in which they stop: each phase is told to stop only when the one before has ended, so that
/// what upstream still hands on is still taken.
#[derive(Default)]
pub struct Services {
    phases: Vec<Phase>,
}

struct Phase {
    name: &'static str,
    stop: Stop,
    tasks: JoinSet<(String, Result<(), Failure>)>,
}

impl Services {
    /// Runs a service in a phase; phases stop in the order in which they were first named.
    pub fn spawn<F, S>(&mut self, phase: &'static str, name: impl Into<String>, service: S)
    where
        S: FnOnce(Stop) -> F,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let name = name.into();
        let phase = match self.phases.iter().position(|other| other.name == phase) {
            Some(index) => &mut self.phases[index],
            None => {
                self.phases.push(Phase { name: phase, stop: Stop::new(), tasks: JoinSet::new() });
                let last = self.phases.len() - 1;
                &mut self.phases[last]
            }
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

    /// Stops phase by phase. What has not ended at the deadline is named and dropped; false then.
    pub async fn stop(self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut clean = true;
        for mut phase in self.phases {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn phases_stop_in_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut services = Services::default();
        for (phase, name) in [("api", "api"), ("pipeline", "writer"), ("transport", "websocket")] {
            let order = order.clone();
            services.spawn(phase, name, move |stop: Stop| async move {
                stop.cancelled().await;
                order.lock().expect("no panic").push(name);
                Ok(())
            });
        }
        assert!(services.stop(Duration::from_secs(5)).await);
        assert_eq!(*order.lock().expect("no panic"), ["api", "writer", "websocket"]);
    }

    #[tokio::test]
    async fn a_service_that_ends_unasked_is_named() {
        let mut services = Services::default();
        services.spawn("a", "steady", |stop: Stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        services.spawn("b", "weak", |_| async { Err("it broke".into()) });
        assert_eq!(services.failed().await.to_string(), "weak failed: it broke");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds() {
        let mut services = Services::default();
        services.spawn("a", "deaf", |_| std::future::pending());
        assert!(!services.stop(Duration::from_secs(1)).await);
    }
}
