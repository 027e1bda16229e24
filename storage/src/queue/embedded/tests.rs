use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{conformance::queues::Subject, embedded::open_journal, queue::Payload, queue_conformance};

/// Queues in a directory of their own.
struct Embedded {
    dir: TempDir,
    segment_bytes: u32,
    limits: Limits,
    queues: Option<EmbeddedQueues>,
}

impl Embedded {
    fn new(segment_bytes: u32, limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let queues =
            EmbeddedQueues::open(open_journal(dir.path(), segment_bytes).expect("a journal"), limits).expect("queues");
        Self { dir, segment_bytes, limits, queues: Some(queues) }
    }

    fn queues(&self) -> EmbeddedQueues {
        self.queues.clone().expect("they are open")
    }

    fn reopen(&mut self) {
        self.queues = None;
        let journal = open_journal(self.dir.path(), self.segment_bytes).expect("a journal");
        self.queues = Some(EmbeddedQueues::open(journal, self.limits).expect("they open again"));
    }
}

#[async_trait]
impl Subject for Embedded {
    fn queues(&self) -> Arc<dyn Queues> {
        Arc::new(self.queues())
    }

    async fn settled(&self) {
        self.queues().save_and_sync().await.expect("save what is settled");
    }

    async fn crash(&mut self) {
        self.reopen();
    }
}

queue_conformance!(conformance, || async { Embedded::new(8 << 20, Limits::default()) });

/// Hardly anything fits into memory, a segment ends every few messages.
fn tight() -> Limits {
    Limits { durable_bytes: 40 << 20, memory_bytes: 4 << 10, ..Limits::default() }
}

queue_conformance!(conformance_with_little_memory, || async { Embedded::new(2 << 20, tight()) });

fn message(text: &str) -> Message {
    Message::new(ChangeId::generate(), None, Payload::from(Bytes::copy_from_slice(text.as_bytes())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_holds_the_front_of_a_long_backlog_only() {
    let limits = Limits { memory_bytes: 100 << 10, ..Limits::default() };
    let mut embedded = Embedded::new(8 << 20, limits);
    for _round in 0..2 {
        let queues = embedded.queues();
        queues.declare("q", Durability::Durable).await.expect("declare");
        for _ in 0..50 {
            queues.publish("q", (0..50).map(|_| message(&"x".repeat(1_000))).collect()).await.expect("publish");
        }
        let queue = queues.shared.queue("q").expect("a queue");
        let mut consumer = queues.consume("q", 100).await.expect("consume");
        for _ in 0..20 {
            let (counted, held) = queue.in_memory();
            assert_eq!(counted, held);
            assert!(held <= (100 << 10) + BATCH_BYTES, "{held} bytes are held");
            let deliveries = consumer.receive(100).await.expect("receive");
            let (ack, back) = deliveries.into_iter().partition::<Vec<_>, _>(|delivery| delivery.receipt.0 % 3 > 0);
            consumer.ack(ack.into_iter().map(|delivery| delivery.receipt).collect()).await.expect("ack");
            consumer.give_back(back.into_iter().map(|delivery| delivery.receipt).collect()).await.expect("give back");
        }
        drop((consumer, queue, queues));
        embedded.reopen();
    }
}

#[tokio::test]
async fn admission_is_asked_for_durable_messages_that_are_not_dead() {
    let embedded = Embedded::new(1 << 20, Limits::default());
    let queues = embedded.queues();
    for name in ["writer", "writer.dead"] {
        queues.declare(name, Durability::Durable).await.expect("declare");
    }
    queues.declare("changes", Durability::FromLog).await.expect("declare");
    queues.admit_by(Arc::new(|| Err(Error::new(ErrorKind::Full, "admit", "the documents are behind"))));
    let error = queues.publish("writer", vec![message("command")]).await.expect_err("refused");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Full, "the documents are behind"));
    let barrier = Message { durable: false, ..message("barrier") };
    queues.publish("writer", vec![barrier]).await.expect("a barrier passes");
    queues.publish("writer.dead", vec![message("dead")]).await.expect("dead letters are never refused");
    queues.publish("changes", vec![message("change")]).await.expect("what is decided already goes on");
    queues.admit_by(Arc::new(|| Ok(())));
    queues.publish("writer", vec![message("command")]).await.expect("taken again");
}

#[tokio::test]
async fn a_queue_name_fits_into_a_record() {
    let embedded = Embedded::new(1 << 20, Limits::default());
    let queues = embedded.queues();
    queues.declare(&"q".repeat(255), Durability::Durable).await.expect("the longest name");
    for bad in [String::new(), "q".repeat(256)] {
        let error = queues.declare(&bad, Durability::Durable).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish {
        count: usize,
        size: usize,
    },
    PublishBarrier,
    /// Receives up to so many, then settles those at these places.
    Receive {
        max: usize,
    },
    Ack {
        places: Vec<usize>,
    },
    GiveBack {
        places: Vec<usize>,
    },
    DropConsumer,
    Remove {
        places: Vec<usize>,
    },
    Save,
    /// Releases the share (of 100) of the sealed segments.
    Release {
        share: usize,
    },
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let places = || proptest::collection::vec(0..40_usize, 1..20);
    prop_oneof![
        6 => (1..40_usize, 0..3_000_usize).prop_map(|(count, size)| Step::Publish { count, size }),
        1 => Just(Step::PublishBarrier),
        6 => (1..50_usize).prop_map(|max| Step::Receive { max }),
        6 => places().prop_map(|places| Step::Ack { places }),
        2 => places().prop_map(|places| Step::GiveBack { places }),
        1 => Just(Step::DropConsumer),
        1 => places().prop_map(|places| Step::Remove { places }),
        2 => Just(Step::Save),
        2 => (0..=100_usize).prop_map(|share| Step::Release { share }),
        2 => Just(Step::Crash),
    ]
}

/// A queue as a plain list: what is not settled, by the order of publishing.
#[derive(Default)]
struct Model {
    next: u64,
    waiting: BTreeMap<u64, (ChangeId, bool)>,
    delivered: BTreeMap<u64, (ChangeId, bool)>,
    /// Settled since it was last saved: a crash may bring it back.
    unsaved: BTreeMap<u64, ChangeId>,
    /// Everything below it came back after a crash, or was published before.
    redelivered: BTreeSet<u64>,
}

struct World {
    embedded: Embedded,
    model: Model,
    consumer: Option<Box<dyn Consumer>>,
    /// Receipts of what is delivered, by the order of publishing.
    receipts: BTreeMap<u64, crate::queue::Receipt>,
}

impl World {
    async fn take(&mut self, step: &Step) {
        match step {
            Step::Publish { count, size } => self.publish(*count, *size, true).await,
            Step::PublishBarrier => self.publish(1, 0, false).await,
            Step::Receive { max } => self.receive(*max).await,
            Step::Ack { places } => {
                let (numbers, receipts) = self.chosen(places);
                self.consumer.as_mut().expect("a consumer").ack(receipts).await.expect("ack");
                for number in numbers {
                    let (id, durable) = self.model.delivered.remove(&number).expect("it is delivered");
                    self.model.unsaved.extend(durable.then_some((number, id)));
                }
            }
            Step::GiveBack { places } => {
                let (numbers, receipts) = self.chosen(places);
                self.consumer.as_mut().expect("a consumer").give_back(receipts).await.expect("give back");
                for number in numbers {
                    let message = self.model.delivered.remove(&number).expect("it is delivered");
                    self.model.waiting.insert(number, message);
                    self.model.redelivered.insert(number);
                }
            }
            Step::DropConsumer => {
                self.consumer = None;
                self.receipts.clear();
                self.model.redelivered.extend(self.model.delivered.keys());
                self.model.waiting.append(&mut self.model.delivered);
                self.consume().await;
            }
            Step::Remove { places } => {
                let numbers: Vec<_> = places.iter().filter_map(|place| nth(&self.model.waiting, *place)).collect();
                let removed: BTreeMap<_, _> =
                    numbers.iter().filter_map(|number| Some((*number, self.model.waiting.remove(number)?))).collect();
                let ids: Vec<_> = removed.values().map(|(id, _)| *id).collect();
                assert_eq!(self.embedded.queues().remove("q", &ids).await.expect("remove"), removed.len());
                self.model.unsaved.clear();
            }
            Step::Save => {
                self.embedded.settled().await;
                self.model.unsaved.clear();
            }
            Step::Release { share } => self.release(*share).await,
            Step::Crash => self.crash().await,
        }
    }

    async fn consume(&mut self) {
        self.embedded.queues().declare("q", Durability::Durable).await.expect("declare");
        self.consumer = Some(self.embedded.queues().consume("q", 60).await.expect("consume"));
    }

    async fn publish(&mut self, count: usize, size: usize, durable: bool) {
        let messages: Vec<_> = (0..count).map(|_| Message { durable, ..message(&"x".repeat(size)) }).collect();
        for message in &messages {
            self.model.waiting.insert(self.model.next, (message.id, durable));
            self.model.next += 1;
        }
        self.embedded.queues().publish("q", messages).await.expect("publish");
    }

    async fn receive(&mut self, max: usize) {
        let room = 60 - self.model.delivered.len();
        if self.model.waiting.is_empty() || room == 0 {
            return;
        }
        let received = self.consumer.as_mut().expect("a consumer").receive(max).await.expect("receive");
        assert!(!received.is_empty() && received.len() <= max.min(room));
        for delivery in received {
            let (number, (id, durable)) = self.model.waiting.pop_first().expect("something waits");
            assert_eq!((delivery.message.id, delivery.message.durable), (id, durable));
            assert_eq!(delivery.redelivered, self.model.redelivered.contains(&number));
            self.model.delivered.insert(number, (id, durable));
            self.receipts.insert(number, delivery.receipt);
        }
    }

    fn chosen(&mut self, places: &[usize]) -> (Vec<u64>, Vec<crate::queue::Receipt>) {
        let numbers: BTreeSet<_> = places.iter().filter_map(|place| nth(&self.model.delivered, *place)).collect();
        numbers.iter().filter_map(|number| Some((*number, self.receipts.remove(number)?))).unzip()
    }

    async fn release(&mut self, share: usize) {
        let queues = self.embedded.queues();
        let journal = &queues.shared.journal;
        let sealed: Vec<_> =
            journal.segments().into_iter().filter(|segment| segment.sealed && segment.indexed).collect();
        let Some(last) = (sealed.len() * share / 100).checked_sub(1).and_then(|index| sealed.get(index)) else {
            return;
        };
        match queues.carry(last.last + 1) {
            Ok(Some(sequence)) => journal.durable(sequence).await.expect("durable"),
            Ok(None) => {}
            // The journal prepares its next segment: another time.
            Err(error) => return assert_eq!(error.kind, ErrorKind::Full, "{error}"),
        }
        journal.release(last.last + 1).expect("release");
    }

    /// What was not settled comes back, in order; what was settled and not saved may.
    async fn crash(&mut self) {
        self.consumer = None;
        self.receipts.clear();
        self.embedded.reopen();
        let model = &mut self.model;
        model.waiting.append(&mut model.delivered);
        model.waiting.retain(|_, (_, durable)| *durable);
        let held =
            self.embedded.queues().shared.queue("q").map(|queue| queue.browse(None, usize::MAX).expect("browse"));
        let mut found = BTreeSet::new();
        for (_, message) in held.unwrap_or_default() {
            let id = match message {
                Ok(message) => message.id,
                Err(at) => self.embedded.queues().shared.read_message_anyway(at.place).id,
            };
            found.insert(id);
        }
        for (number, id) in std::mem::take(&mut model.unsaved) {
            if found.contains(&id) {
                model.waiting.insert(number, (id, true));
            }
        }
        let expected: BTreeSet<_> = model.waiting.values().map(|(id, _)| *id).collect();
        assert_eq!(found, expected, "nothing is lost, and nothing settled for good comes back");
        model.redelivered.extend(model.waiting.keys());
        self.consume().await;
    }

    async fn check(&self) {
        let info = self.embedded.queues().list().await.expect("list").remove(0);
        let model = &self.model;
        assert_eq!((info.ready, info.unacked), (model.waiting.len() as u64, model.delivered.len() as u64));
        let shown = self.embedded.queues().browse("q", None, 1_000).await.expect("browse");
        assert!(shown.iter().map(|message| message.id).eq(model.waiting.values().map(|(id, _)| *id)));
    }
}

fn nth(messages: &BTreeMap<u64, (ChangeId, bool)>, place: usize) -> Option<u64> {
    messages.keys().nth(place).copied()
}

impl Shared {
    fn read_message_anyway(&self, place: Place) -> Message {
        codec::decode(&self.journal.read(place).expect("a record").payload).expect("a message").1
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever is done to it, the queue holds what a plain list would hold: in tiny segments, with hardly any memory, with all its
    /// crashes and releases.
    #[test]
    fn is_the_list_that_it_stands_for(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let embedded = Embedded::new(256 << 10, tight());
            let mut world = World { embedded, model: Model::default(), consumer: None, receipts: BTreeMap::new() };
            world.consume().await;
            for step in &steps {
                world.take(step).await;
                world.check().await;
            }
            world.take(&Step::Crash).await;
            world.check().await;
        });
    }
}
