//! The loop on the real embedded queues, with a worker that does as it is told. Time is paused: a pause takes none, but is seen.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use nexxus_storage::{
    model::ChangeId,
    queue::{Encode, Payload, QueueInfo},
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::*;
use crate::domain::testing::Ground;

/// The message of this stage: a text. What begins with `?` cannot be decoded.
struct Text(String);

impl Encode for Text {
    fn encode(&self) -> Bytes {
        Bytes::from(self.0.clone())
    }
}

impl Typed for Text {
    fn decode(bytes: &Bytes) -> serde_json::Result<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if text.starts_with('?') { Err(serde::de::Error::custom("a riddle")) } else { Ok(Self(text)) }
    }
}

/// What a message does to the worker, at which of its tries.
type Act = fn(&str, usize) -> Result<()>;

/// What happened to the worker, in order.
#[derive(Default)]
struct Seen {
    /// The texts of each call of `handle`, and when it was.
    handled: Vec<(String, Instant)>,
    /// Calls of `told` after something was published.
    n_told: usize,
    /// What was given up, with the reason.
    dead: Vec<(String, String)>,
}

struct Script {
    act: Act,
    /// Parts of long work that are left.
    n_parts: usize,
    seen: Arc<Mutex<Seen>>,
    /// Whether what it publishes has to be durable.
    is_precious: bool,
}

#[async_trait]
impl Worker for Script {
    type Input = Text;

    async fn handle(&mut self, batch: &[Received<Text>], out: &mut Outbox) -> Result<()> {
        let text = |message: &Received<Text>| message.body.0.clone();
        let texts = batch.iter().map(text).collect::<Vec<_>>().join(" ");
        self.seen.lock().handled.push((texts, Instant::now()));
        for message in batch {
            let text = text(message);
            let times = |(texts, _): &&(String, Instant)| texts.split(' ').any(|other| other == text);
            let tries = self.seen.lock().handled.iter().filter(times).count();
            (self.act)(&text, tries)?;
            let durable = self.is_precious;
            out.publish("out", Message { durable, ..message_of(&text) });
        }
        Ok(())
    }

    async fn told(&mut self) -> Result<()> {
        self.seen.lock().n_told += 1;
        Ok(())
    }

    fn has_more(&self) -> bool {
        self.n_parts > 0
    }

    async fn go_on(&mut self, out: &mut Outbox) -> Result<()> {
        self.n_parts -= 1;
        let part = format!("part-{}", self.n_parts);
        self.seen.lock().handled.push((part.clone(), Instant::now()));
        out.publish("out", message_of(&part));
        if self.n_parts == 1 { Err(error(ErrorKind::Internal)) } else { Ok(()) }
    }

    async fn dead(&mut self, message: &Received<Text>, reason: &str, _out: &mut Outbox) -> Result<()> {
        self.seen.lock().dead.push((message.body.0.clone(), reason.to_owned()));
        // The end of this one cannot be told.
        if message.body.0.ends_with("silent") { Err(error(ErrorKind::Internal)) } else { Ok(()) }
    }
}

/// Queues that are away, now and then: each call of these fails with the next of its errors.
struct Faulty {
    inner: Arc<dyn Queues>,
    publishing: Mutex<VecDeque<ErrorKind>>,
    consuming: Mutex<VecDeque<ErrorKind>>,
}

#[async_trait]
impl Queues for Faulty {
    async fn declare(&self, queue: &str, durability: Durability) -> Result<()> {
        self.inner.declare(queue, durability).await
    }
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<()> {
        let fault = if queue == "out" { self.publishing.lock().pop_front() } else { None };
        match fault {
            Some(kind) => Err(error(kind)),
            None => self.inner.publish(queue, messages).await,
        }
    }
    async fn consume(&self, queue: &str, prefetch: usize) -> Result<Box<dyn Consumer>> {
        let fault = self.consuming.lock().pop_front();
        match fault {
            Some(kind) => Err(error(kind)),
            None => self.inner.consume(queue, prefetch).await,
        }
    }
    async fn list(&self) -> Result<Vec<QueueInfo>> {
        self.inner.list().await
    }
    async fn browse(&self, queue: &str, after: Option<ChangeId>, limit: usize) -> Result<Vec<Message>> {
        self.inner.browse(queue, after, limit).await
    }
    async fn remove(&self, queue: &str, ids: &[ChangeId]) -> Result<usize> {
        self.inner.remove(queue, ids).await
    }
    async fn delete(&self, queue: &str) -> Result<()> {
        self.inner.delete(queue).await
    }
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "try it", "as the test wants")
}

fn message_of(text: &str) -> Message {
    // Bytes only, as from another process.
    Message::new(ChangeId::generate(), None, Payload::from(Bytes::from(text.to_owned())))
}

/// A stage that runs.
struct Stage {
    ground: Ground,
    queues: Arc<Faulty>,
    seen: Arc<Mutex<Seen>>,
    stop: Stop,
    running: JoinHandle<Result<(), Failure>>,
}

/// How a stage is set up, other than usual.
#[derive(Default)]
struct Setup {
    durability: Option<Durability>,
    is_careless: bool,
    n_parts: usize,
    publishing: Vec<ErrorKind>,
    consuming: Vec<ErrorKind>,
}

impl Stage {
    /// These messages wait in the queue when it starts: it takes them as one batch.
    async fn start(texts: &[&str], act: Act) -> Self {
        Self::start_with(texts, act, Setup::default()).await
    }

    async fn start_with(texts: &[&str], act: Act, setup: Setup) -> Self {
        let ground = Ground::open().await;
        let queues = Arc::new(Faulty {
            inner: ground.domain.backends.queues.clone(),
            publishing: Mutex::new(setup.publishing.into()),
            consuming: Mutex::new(setup.consuming.into()),
        });
        let durability = setup.durability.unwrap_or(Durability::Durable);
        tokio::time::pause();
        queues.declare("in", durability).await.expect("declared");
        queues.declare("out", Durability::Durable).await.expect("declared");
        queues.publish("in", texts.iter().map(|text| message_of(text)).collect()).await.expect("published");
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Stop::new());
        let input = Input { stage: "test", queue: "in".to_owned(), durability, prefetch: 100 };
        let worker = Script { act, n_parts: setup.n_parts, seen: seen.clone(), is_precious: !setup.is_careless };
        let running = tokio::spawn(run(queues.clone(), input, worker, stop.clone()));
        Self { ground, queues, seen, stop, running }
    }

    async fn info(&self, queue: &str) -> QueueInfo {
        let listed = self.queues.list().await.expect("a list");
        listed.into_iter().find(|info| info.name == queue).expect("the queue")
    }

    /// Waits until everything in the queue is settled.
    async fn settled(&self) {
        until(async || {
            let info = self.info("in").await;
            info.ready + info.unacked == 0
        })
        .await;
    }

    async fn waiting(&self, queue: &str) -> Vec<Message> {
        self.queues.browse(queue, None, 100).await.expect("messages")
    }

    async fn texts(&self, queue: &str) -> Vec<String> {
        let text = |message: Message| String::from_utf8_lossy(message.payload.bytes()).into_owned();
        self.waiting(queue).await.into_iter().map(text).collect()
    }

    /// The texts of each call of the worker.
    fn handled(&self) -> Vec<String> {
        self.seen.lock().handled.iter().map(|(texts, _)| texts.clone()).collect()
    }

    /// The pauses between the calls with exactly these texts, in milliseconds; timers may be one late.
    fn pauses(&self, texts: &str) -> Vec<u128> {
        let seen = self.seen.lock();
        let times: Vec<Instant> =
            seen.handled.iter().filter(|(handled, _)| handled == texts).map(|(_, time)| *time).collect();
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis() / 10 * 10).collect()
    }

    async fn stop(self) -> (Result<(), Failure>, Ground) {
        self.stop.cancel();
        let ended = self.running.await.expect("no panic");
        tokio::time::resume();
        (ended, self.ground)
    }
}

/// Waits for a condition. In real time it gives up after a while; the paused time runs on.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(20), "it never happens");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn fine(_: &str, _: usize) -> Result<()> {
    Ok(())
}

fn poisonous(text: &str, _: usize) -> Result<()> {
    if text.starts_with("bad") { Err(error(ErrorKind::Invalid)) } else { Ok(()) }
}

#[tokio::test]
async fn a_batch_is_handled_published_and_acknowledged() {
    let stage = Stage::start(&["a", "b", "c"], fine).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a b c"]);
    assert_eq!(stage.texts("out").await, ["a", "b", "c"]);
    assert!(stage.waiting("in.dead").await.is_empty());
    assert!(stage.stop().await.0.is_ok());
}

#[tokio::test]
async fn a_poisonous_message_is_isolated_and_buried_and_costs_no_other_anything() {
    let stage = Stage::start(&["a", "bad", "b"], poisonous).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a bad b", "a", "bad", "bad", "bad", "bad", "bad", "b"], "in their order");
    assert_eq!(stage.pauses("bad"), [20, 80, 320, 1280], "each pause is longer");
    assert_eq!(stage.texts("out").await, ["a", "b"]);
    let reason = "as the test wants";
    let dead = stage.waiting("in.dead").await;
    let death = dead[0].dead.as_ref().expect("why");
    assert_eq!((dead.len(), death.queue.as_str(), death.tries), (1, "in", TRIES));
    assert!(death.reason.contains(reason), "{}", death.reason);
    let told = stage.seen.lock().dead.clone();
    assert_eq!(told, [("bad".to_owned(), death.reason.clone())], "the worker is told");
}

#[tokio::test]
async fn whose_end_cannot_be_told_is_buried_all_the_same() {
    let stage = Stage::start(&["bad-silent"], poisonous).await;
    stage.settled().await;
    assert_eq!(stage.texts("in.dead").await, ["bad-silent"]);
}

#[tokio::test]
async fn what_fails_now_and_then_is_tried_until_it_succeeds() {
    // In the batch once, alone twice.
    let weak = |text: &str, tries| if text == "weak" && tries <= 3 { Err(error(ErrorKind::Internal)) } else { Ok(()) };
    let stage = Stage::start(&["a", "weak", "b"], weak).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a weak b", "a", "weak", "weak", "weak", "b"]);
    assert_eq!(stage.texts("out").await, ["a", "weak", "b"]);
    assert!(stage.waiting("in.dead").await.is_empty());
}

#[tokio::test]
async fn a_panic_is_a_failure_like_any_other() {
    let jumpy = |text: &str, _| if text == "jumpy" { panic!("it broke on {text}") } else { Ok(()) };
    let stage = Stage::start(&["a", "jumpy", "b"], jumpy).await;
    stage.settled().await;
    assert_eq!(stage.texts("out").await, ["a", "b"]);
    let dead = stage.waiting("in.dead").await;
    let death = dead[0].dead.as_ref().expect("why");
    assert!(dead.len() == 1 && death.tries == TRIES && death.reason.contains("panic: it broke on jumpy"), "{death:?}");
    assert!(stage.stop().await.0.is_ok(), "the stage goes on");
}

#[tokio::test]
async fn an_absent_backend_costs_no_tries() {
    let away = |_: &str, tries| match tries {
        1..=9 => Err(error(ErrorKind::Unavailable)),
        10 => Err(error(ErrorKind::Fenced)),
        _ => Ok(()),
    };
    let stage = Stage::start(&["a", "b"], away).await;
    stage.settled().await;
    assert_eq!(stage.handled(), vec!["a b"; 11], "the batch waits whole");
    assert_eq!(stage.pauses("a b"), [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000]);
    assert_eq!(stage.texts("out").await, ["a", "b"]);
    assert!(stage.waiting("in.dead").await.is_empty());
}

#[test]
fn every_kind_of_error_waits_or_counts() {
    for (kind, waits) in [
        (ErrorKind::Unavailable, true),
        (ErrorKind::Timeout, true),
        (ErrorKind::Full, true),
        (ErrorKind::DiskFull, true),
        (ErrorKind::Fenced, true),
        (ErrorKind::Conflict, false),
        (ErrorKind::Gone, false),
        (ErrorKind::Corrupt, false),
        (ErrorKind::Invalid, false),
        (ErrorKind::Unsupported, false),
        (ErrorKind::Internal, false),
    ] {
        assert_eq!(is_absence(&error(kind)), waits, "{kind:?}");
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_or_told_before_it_is_published() {
    let away = vec![ErrorKind::Unavailable, ErrorKind::Full];
    let stage = Stage::start_with(&["a"], fine, Setup { publishing: away, ..Setup::default() }).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a", "a", "a"], "handled again until what it led to is published");
    assert_eq!(stage.texts("out").await, ["a"]);
    assert!(stage.waiting("in.dead").await.is_empty());
}

#[tokio::test]
async fn what_is_not_precious_is_dropped_where_it_cannot_be_published() {
    let setup = Setup { publishing: vec![ErrorKind::Unavailable], is_careless: true, ..Setup::default() };
    let stage = Stage::start_with(&["a"], fine, setup).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a"]);
    assert!(stage.texts("out").await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_decoded_goes_to_the_dead_letters_at_once() {
    let stage = Stage::start(&["a", "?", "b"], fine).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a b"]);
    let dead = stage.waiting("in.dead").await;
    let death = dead[0].dead.as_ref().expect("why");
    assert!(dead.len() == 1 && death.tries == 1 && death.reason.contains("a riddle"), "{death:?}");
    assert_eq!(stage.texts("in.dead").await, ["?"], "as it came");
}

#[tokio::test]
async fn a_queue_that_goes_with_its_consumer_keeps_no_dead_letters() {
    let setup = Setup { durability: Some(Durability::Transient), ..Setup::default() };
    let stage = Stage::start_with(&[], poisonous, setup).await;
    until(async || stage.info("in").await.consumers == 1).await;
    stage.queues.publish("in", vec![message_of("bad"), message_of("a")]).await.expect("published");
    until(async || stage.texts("out").await == ["a"]).await;
    let listed = stage.queues.list().await.expect("a list");
    assert!(listed.iter().all(|info| info.name != "in.dead"), "{listed:?}");
}

#[tokio::test]
async fn a_queue_that_is_away_is_waited_for_and_any_other_failure_ends_the_stage() {
    let away = vec![ErrorKind::Unavailable, ErrorKind::Timeout];
    let stage = Stage::start_with(&["a"], fine, Setup { consuming: away, ..Setup::default() }).await;
    stage.settled().await;
    assert_eq!(stage.handled(), ["a"]);
    assert!(stage.stop().await.0.is_ok());
    let broken = Setup { consuming: vec![ErrorKind::Corrupt], ..Setup::default() };
    let mut stage = Stage::start_with(&["a"], fine, broken).await;
    let failure = (&mut stage.running).await.expect("no panic").expect_err("it ends");
    assert!(failure.to_string().contains("as the test wants"), "{failure}");
    assert_eq!(stage.texts("in").await, ["a"]);
}

#[tokio::test]
async fn a_stop_takes_nothing_from_who_is_being_tried_again() {
    for (act, is_absent) in [
        (poisonous as Act, false),
        (|text: &str, _| if text == "bad" { Err(error(ErrorKind::Unavailable)) } else { Ok(()) }, true),
    ] {
        let stage = Stage::start(&["bad"], act).await;
        until(async || stage.handled().len() >= 3).await;
        let queues = stage.queues.clone();
        let (ended, _ground) = stage.stop().await;
        assert!(ended.is_ok(), "{ended:?}");
        let waiting = queues.browse("in", None, 9).await.expect("messages");
        assert_eq!(waiting.len(), 1, "it comes again at the next start, absent: {is_absent}");
        assert!(queues.browse("in.dead", None, 9).await.expect("messages").is_empty());
    }
}

#[tokio::test]
async fn what_was_accepted_before_the_stop_is_still_handled() {
    let stage = Stage::start(&[], fine).await;
    until(async || stage.info("in").await.consumers == 1).await;
    stage.stop.cancel();
    stage.queues.publish("in", vec![message_of("a")]).await.expect("published");
    let (queues, handled) = (stage.queues.clone(), stage.seen.clone());
    let (ended, _ground) = stage.stop().await;
    assert!(ended.is_ok());
    // The stop may have been seen first: then it waits for the next start. It is never lost.
    let waiting = queues.browse("in", None, 9).await.expect("messages").len();
    assert_eq!(handled.lock().handled.len() + waiting, 1);
}

#[tokio::test]
async fn long_work_goes_on_where_no_batch_waits() {
    let stage = Stage::start_with(&["a"], fine, Setup { n_parts: 4, ..Setup::default() }).await;
    until(async || stage.handled().len() == 5).await;
    assert_eq!(stage.handled(), ["a", "part-3", "part-2", "part-1", "part-0"], "what has arrived comes first");
    until(async || stage.texts("out").await.len() == 4).await;
    assert_eq!(stage.texts("out").await, ["a", "part-3", "part-2", "part-0"], "a part that fails tells nothing");
    stage.queues.publish("in", vec![message_of("b")]).await.expect("published");
    stage.settled().await;
    assert_eq!(stage.handled().len(), 6, "nothing is left");
    stage.stop().await.0.expect("stopped");
}
