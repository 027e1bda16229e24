//! What is done to the server while it works, in an order that the seed decides.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng, seq::SliceRandom};
use tokio::sync::watch;

use crate::harness::{Server, signal};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// `kill -9`, and a start on the same directory.
    Kill,
    /// SIGTERM, and a start on the same directory.
    Stop,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// It dies by itself where the failpoints say.
    #[cfg(feature = "failpoints")]
    Crash(String),
}

/// For each three kills a stop and a freeze, at least one of each.
pub(crate) fn plan(n_kills: usize, chance: &mut StdRng) -> Vec<Fault> {
    let n_others = n_kills.div_ceil(3);
    let mut faults = vec![Fault::Kill; n_kills];
    faults.extend(vec![Fault::Stop; n_others]);
    faults.extend(vec![Fault::Freeze; n_others]);
    faults.shuffle(chance);
    faults
}

/// Does all of it, with work in between. Gives how long the starts took.
pub(crate) async fn strike(
    server: &mut Server,
    place: &watch::Sender<Option<String>>,
    faults: &[Fault],
    chance: &mut StdRng,
) -> Vec<Duration> {
    let mut starts = Vec::new();
    for fault in faults {
        pause(chance, 300..1_600).await;
        match fault {
            Fault::Freeze => {
                signal(server.pid(), "STOP");
                pause(chance, 100..1_500).await;
                signal(server.pid(), "CONT");
                continue;
            }
            Fault::Kill => server.kill(),
            Fault::Stop => assert_eq!(server.stop(), Some(0), "a stop under load"),
            #[cfg(feature = "failpoints")]
            Fault::Crash(places) => crash(server, place, places).await,
        }
        place.send_replace(None);
        pause(chance, 0..300).await;
        starts.push(start_again(server, place).await);
    }
    pause(chance, 300..1_600).await;
    starts
}

/// Starts the server so that it dies in the middle of its work, and waits until it has.
#[cfg(feature = "failpoints")]
async fn crash(server: &mut Server, place: &watch::Sender<Option<String>>, places: &str) {
    assert_eq!(server.stop(), Some(0), "a stop under load");
    place.send_replace(None);
    server.failpoints(places);
    if server.restart_unless_it_ends().await {
        place.send_replace(Some(server.url.clone()));
        let give_up = Instant::now() + crate::harness::PATIENCE;
        while server.ended().is_none() {
            assert!(Instant::now() < give_up, "nothing comes to {places}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let status = server.ended().expect("it has ended");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "{places}: it ended with {status}");
    server.failpoints("");
}

pub(crate) async fn start_again(server: &mut Server, place: &watch::Sender<Option<String>>) -> Duration {
    let began = Instant::now();
    server.restart().await;
    place.send_replace(Some(server.url.clone()));
    began.elapsed()
}

async fn pause(chance: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(chance.random_range(milliseconds))).await;
}
