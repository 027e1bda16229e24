//! Crashes between any two of *decide, log, apply, tell, acknowledge*, in the writer and in the transport manager, under load: after
//! the restart the same decisions stand at the same offsets, nothing is lost and nothing is done twice.

use rand::{RngExt, seq::SliceRandom};

use crate::{SETTINGS, chance_of, faults::Fault, harness::Server, judge, play, seed};

/// Where the process dies, and how many times at most it passes there before.
const PLACES: [(&str, u32); 13] = [
    ("writer.took-over", 1),
    ("writer.decided", 30),
    ("writer.logged", 30),
    ("writer.stored", 30),
    ("writer.applied", 30),
    ("runner.handled:writer", 30),
    ("runner.published:writer", 30),
    ("runner.told:writer", 30),
    ("runner.acknowledged:writer", 30),
    ("runner.handled:transport-manager", 30),
    ("runner.published:transport-manager", 30),
    ("runner.told:transport-manager", 30),
    ("runner.acknowledged:transport-manager", 30),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crash_between_any_two_steps_loses_nothing() {
    let seed = seed();
    println!("NEXXUS_LEDGER_SEED={seed}");
    let mut chance = chance_of(seed, 0);
    let mut faults: Vec<Fault> = PLACES
        .iter()
        .map(|(place, most)| {
            let (name, stage) = place.split_once(':').unwrap_or((place, ""));
            let about = if stage.is_empty() { String::new() } else { format!(":{stage}") };
            Fault::Crash(format!("{name}={}*off->return(abort{about})", chance.random_range(1..=*most)))
        })
        .collect();
    faults.shuffle(&mut chance);
    let mut server = Server::start_with(&SETTINGS).await;
    for evidence in play(&mut server, seed, 0, &faults).await {
        judge(&evidence, seed, 0);
    }
}
