//! The ledger: nothing is lost, whatever dies (issue B, contract §7 and §11).
//!
//! Writers write, listeners listen, and meanwhile the real server is killed, stopped, frozen and started again, connections are cut,
//! and some listeners stop reading. Everybody writes down what they were told. When it is over, a [checker](check) that shares no
//! code with the server replays the ledger and finds whatever was lost, reordered, doubled or leaked.
//!
//! It runs small by itself. At length: `NEXXUS_LEDGER_KILLS=100 cargo test --test ledger -- --nocapture`. The seed that a run
//! prints makes the same writes and the same faults again: `NEXXUS_LEDGER_SEED=…` (what happens at once happens in another order).

mod check;
#[cfg(feature = "failpoints")]
mod crash_points;
mod evidence;
mod faults;
mod governor;
#[path = "../it/harness.rs"]
#[expect(dead_code, reason = "words for whole-system tests; this one needs few of them")]
mod harness;
mod listeners;
mod model;
mod mutations;
mod scene;
mod timeline;
mod worlds;
mod writers;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    evidence::{Evidence, Fate, Key, Listener, Op, Said, Who, Write},
    faults::Fault,
    governor::Governor,
    harness::Server,
    listeners::LAST,
    model::{END, MODELS, NOTE, PAPER, TASK},
    scene::Scene,
    writers::Writer,
};

/// Kills of a run that is asked for nothing else.
const USUAL_KILLS: usize = 5;
/// Kills of one round: after it everything is checked, and the next one begins with new applications on the same directory.
const KILLS_OF_A_ROUND: usize = 10;
/// The last one writes papers.
const N_WRITERS: u64 = writers::OF_PAPERS + 1;
/// Small, so that segments of the journal come and go, and buffers overflow.
const SETTINGS: [(&str, &str); 5] = [
    ("DATA__SEGMENT_BYTES", "1MiB"),
    ("LIMITS__BODY_BYTES", "64KiB"),
    ("LIMITS__DOCUMENT_BYTES", "64KiB"),
    ("LIMITS__CONNECTION_BUFFER_BYTES", "4KiB"),
    ("AUTH__TOKEN_TTL", "12h"),
];

fn asked_for<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn seed() -> u64 {
    asked_for("NEXXUS_LEDGER_SEED").unwrap_or_else(rand::random)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_reordered_doubled_or_leaked() {
    let (seed, n_kills) = (seed(), asked_for("NEXXUS_LEDGER_KILLS").unwrap_or(USUAL_KILLS));
    println!("NEXXUS_LEDGER_SEED={seed} NEXXUS_LEDGER_KILLS={n_kills}");
    let mut server = Server::start_with(&SETTINGS).await;
    let mut n_left = n_kills;
    for round in 0.. {
        let n_kills = n_left.min(KILLS_OF_A_ROUND);
        n_left -= n_kills;
        let faults = faults::plan(n_kills, &mut chance_of(seed, round));
        let all = play(&mut server, seed, round, &faults).await;
        all.iter().for_each(|evidence| judge(evidence, seed, round));
        if round == 0 {
            // The checker of this very evidence sees what is done to it.
            all.iter().for_each(|evidence| mutations::are_seen(evidence, &mut StdRng::seed_from_u64(seed)));
        }
        if n_left == 0 {
            break;
        }
    }
}

fn chance_of(seed: u64, round: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ (round << 32))
}

/// Lets the checker look at an evidence; fails with what it finds.
fn judge(evidence: &Evidence, seed: u64, round: u64) {
    let findings = check::check(evidence);
    println!(
        "round {round}, {}: {:.1?}; {} writes, {} entries ({} rejected, {} settled by looking), {} reads; {} changes of rules, schema \
         and users, {} channels asked for anew; {} frames to {} devices on {} connections; {} faults",
        evidence.app,
        evidence.lasted,
        evidence.writes.len(),
        findings.n_entries,
        findings.n_rejected,
        findings.n_settled_by_looking,
        evidence.reads.len(),
        evidence.alterations.len(),
        evidence.listeners.iter().map(|listener| listener.looks.len()).sum::<usize>(),
        findings.n_frames,
        evidence.listeners.len(),
        evidence.listeners.iter().map(|listener| listener.connections.len()).sum::<usize>(),
        findings.faults.len(),
    );
    let first: Vec<_> = findings.faults.iter().take(8).map(|fault| fault.replace("xxxxxxxxxx", "")).collect();
    assert!(
        first.is_empty(),
        "NEXXUS_LEDGER_SEED={seed}, round {round}, {}: {} faults\n{}",
        evidence.app,
        findings.faults.len(),
        first.join("\n\n")
    );
}

/// One round: two applications at once on one server, whatever happens to it.
async fn play(server: &mut Server, seed: u64, round: u64, faults: &[Fault]) -> Vec<Evidence> {
    let began = Instant::now();
    let mut chance = chance_of(seed, round + 1_000);
    let (place, here) = watch::channel(Some(server.url.clone()));
    let mut running = Vec::new();
    for name in ["left", "right"] {
        let scene = Scene::set(server, &format!("{name}-{round}"), here.clone(), chance.random()).await;
        running.push(Running::begin(scene).await);
    }
    let starts = faults::strike(server, &place, faults, &mut chance).await;
    let longest = starts.iter().max().copied().unwrap_or_default();
    println!("round {round}: {} faults, {} starts, the longest took {longest:.1?}", faults.len(), starts.len());
    let mut over = Vec::new();
    for running in running {
        over.push(running.end().await);
    }
    // What was said to be there is there after one more crash, too.
    server.kill();
    place.send_replace(None);
    faults::start_again(server, &place).await;
    let mut all = Vec::new();
    for (scene, mut evidence) in over {
        look_at_documents(&scene, &mut evidence).await;
        evidence.lasted = began.elapsed();
        all.push(evidence);
    }
    all
}

/// An application in which writers and listeners are at work.
struct Running {
    scene: Scene,
    first: Write,
    writers: Vec<JoinHandle<Writer>>,
    listeners: Vec<JoinHandle<Listener>>,
    governor: JoinHandle<Governor>,
}

impl Running {
    async fn begin(scene: Scene) -> Self {
        let tasks = (0..).zip(listeners::everybody());
        let tasks = tasks.map(|(number, habits)| listeners::Task::new(scene.clone(), habits, number).begin());
        let tasks = join_all(tasks).await;
        let first = mark(&scene, "first").await;
        let listeners = tasks.into_iter().map(|task| tokio::spawn(task.run())).collect();
        let writers = (0..N_WRITERS).map(|number| tokio::spawn(Writer::new(scene.clone(), number).run())).collect();
        let governor = tokio::spawn(Governor::new(scene.clone()).run());
        Self { scene, first, writers, listeners, governor }
    }

    /// Ends the writing, asks what became of each write, and waits until everybody has heard everything.
    async fn end(self) -> (Scene, Evidence) {
        let Self { scene, first, writers, listeners, governor } = self;
        scene.over.cancel();
        let alterations = governor.await.expect("a governor").alterations().await;
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for writer in writers {
            let mut writer = writer.await.expect("a writer");
            writes.append(&mut writer.writes);
            reads.append(&mut writer.reads);
        }
        let fates: Vec<Fate> = stream::iter(&writes).map(|write| fate_of(&scene, write)).buffered(16).collect().await;
        for (write, fate) in writes.iter_mut().zip(fates) {
            write.fate = fate;
        }
        let last = mark(&scene, LAST).await;
        let mut heard = Vec::new();
        for listener in listeners {
            heard.push(listener.await.expect("a listener"));
        }
        let offset = |write: &Write| write.fate.offset().expect("an offset").clone();
        let (base, last_offset) = (before(&offset(&first)), offset(&last));
        writes.extend([first, last]);
        let evidence = Evidence {
            app: scene.app.clone(),
            users: scene.user_ids(),
            writes,
            reads,
            listeners: heard,
            alterations,
            base,
            last: last_offset,
            stored: BTreeMap::new(),
            counted: BTreeMap::new(),
            lasted: Duration::ZERO,
        };
        (scene, evidence)
    }
}

/// A document of the admin's that says where the run begins or ends.
async fn mark(scene: &Scene, id: &str) -> Write {
    let began = Instant::now();
    let change = scene.mark(id).await;
    let mut write = Write {
        key: (END, id.to_owned()),
        who: Who::Admin,
        device: None,
        op: Op::Create { fields: Map::new() },
        began,
        ended: Instant::now(),
        said: Said::Accepted { change },
        fate: Fate::Unasked,
    };
    write.fate = fate_of(scene, &write).await;
    write
}

async fn fate_of(scene: &Scene, write: &Write) -> Fate {
    let change = match &write.said {
        Said::Accepted { change } | Said::Unknown { change: Some(change) } => change,
        Said::Unknown { change: None } | Said::Refused { .. } | Said::TurnedAway => return Fate::Unasked,
    };
    for _ in 0..100 {
        let Some(outcome) = scene.outcome_of(change).await else { return Fate::Absent };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let offset = text(&outcome["offset"]);
        match outcome["state"].as_str() {
            Some("applied") => return Fate::Applied { offset },
            Some("rejected") => return Fate::Rejected { offset, slug: text(&outcome["problem"]["type"]) },
            Some("accepted") => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => panic!("no state of a change: {outcome}"),
        }
    }
    Fate::Pending
}

async fn look_at_documents(scene: &Scene, evidence: &mut Evidence) {
    let Said::Accepted { change } = &evidence.writes[evidence.writes.len() - 1].said else { panic!("no last write") };
    let change = Some(change.clone());
    let mut keys: Vec<Key> = evidence.writes.iter().map(|write| write.key.clone()).collect();
    // Of creates that nobody answered, only frames tell the ids.
    let heard = evidence.listeners.iter().flat_map(|listener| &listener.connections).flat_map(|one| &one.heard);
    let created = heard.filter(|heard| heard.frame["event"] == "model_created").filter_map(|heard| {
        let metadata = &heard.frame["metadata"];
        let model = MODELS.into_iter().find(|model| metadata["type"] == **model)?;
        Some((model, metadata["id"].as_str()?.to_owned()))
    });
    keys.extend(created);
    keys.retain(|(_, id)| !id.is_empty());
    keys.sort_unstable();
    keys.dedup();
    let found: Vec<(u16, Value)> = stream::iter(&keys)
        .map(|(model, id)| {
            let (change, path) = (change.as_deref(), format!("/model/{model}/{id}"));
            async move { scene.look(Method::GET, &path, change, &Value::Null).await }
        })
        .buffered(16)
        .collect()
        .await;
    for (key, (status, body)) in keys.into_iter().zip(found) {
        match status {
            200 => drop(evidence.stored.insert(key, body)),
            404 => {}
            _ => panic!("GET {key:?}: {status} {body}"),
        }
    }
    for model in [TASK, NOTE, PAPER] {
        let search = json!({ "count": true, "limit": 1 });
        let (status, body) =
            scene.look(Method::POST, &format!("/model/{model}/search"), change.as_deref(), &search).await;
        assert_eq!(status, 200, "{body}");
        evidence.counted.insert(model, body["total"].as_u64().expect("a total"));
    }
}

/// The offset before this one.
fn before(offset: &str) -> String {
    let (epoch, position) = offset.split_once('-').expect("an epoch and a position");
    let position = u64::from_str_radix(position, 16).expect("a position");
    format!("{epoch}-{:016x}", position - 1)
}
