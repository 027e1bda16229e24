//! What every [`Queues`] promises. `queue_conformance!(name, || async { … })` makes a test of each promise; the closure gives a
//! [`Subject`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::{
    Consumer, Error, ErrorKind, Queues, Result,
    model::{AppId, ChangeId, Offset, Timestamp},
    queue::{Death, Delivery, Durability, Encode, Message, Payload, QueueInfo, Receipt},
};

/// Queues under test, fresh and without a queue.
#[async_trait]
pub trait Subject: Send {
    fn queues(&self) -> Arc<dyn Queues>;

    /// Waits until what was settled so far would not come back after a crash.
    async fn settled(&self);

    /// Ends the process as a crash would, as far as the backend can tell, and comes back. What `queues` gave before is void.
    async fn crash(&mut self);
}

/// Makes a module `$name` with a test for each promise.
#[macro_export]
macro_rules! queue_conformance {
    ($name:ident, $make:expr) => {
        $crate::conformance_tests! {
            $name, $make, queues:
            declaring_again_changes_nothing,
            declaring_with_another_durability_is_a_conflict,
            publishing_where_nothing_was_declared_is_invalid,
            consuming_where_nothing_was_declared_is_invalid,
            messages_come_whole_and_in_order,
            a_value_is_handed_over_or_its_bytes,
            messages_of_many_publishers_keep_their_order,
            what_was_published_survives_a_crash_in_order,
            what_was_settled_does_not_come_back,
            what_is_not_durable_keeps_its_place,
            from_log_and_transient_queues_outlive_no_crash,
            a_full_queue_in_memory_drops_and_says_so,
            a_full_durable_queue_refuses_and_keeps_what_it_has,
            a_long_backlog_comes_whole_and_in_order,
            receiving_waits_for_one_message,
            receiving_takes_no_more_than_asked_for,
            receiving_is_bounded_by_the_prefetch,
            a_receive_that_is_given_up_loses_nothing,
            one_consumer_at_a_time_gets_messages,
            a_dropped_consumer_returns_its_messages_in_order,
            what_is_given_back_comes_again_before_all_others,
            a_receipt_of_a_dropped_consumer_settles_nothing,
            a_transient_queue_goes_with_its_consumer,
            the_list_tells_what_waits_and_what_is_delivered,
            browsing_takes_nothing,
            removed_messages_do_not_come,
            a_deleted_queue_is_gone_with_its_messages,
            queues_are_kept_apart,
        }
    };
}

const ALL: [Durability; 3] = [Durability::Durable, Durability::FromLog, Durability::Transient];

/// A message whose payload names it.
fn message(text: &str) -> Message {
    Message::new(
        ChangeId::generate(),
        Some(AppId::parse("tasks").expect("an application id")),
        Payload::from(Bytes::copy_from_slice(text.as_bytes())),
    )
}

fn messages(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Message> {
    texts.into_iter().map(|text| message(text.as_ref())).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload.bytes().to_vec()).expect("a text")
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| text(&delivery.message)).collect()
}

fn receipts(deliveries: Vec<Delivery>) -> Vec<Receipt> {
    deliveries.into_iter().map(|delivery| delivery.receipt).collect()
}

fn expect_kind<T>(outcome: Result<T>, kind: ErrorKind, what: &str) {
    match outcome {
        Err(Error { kind: found, .. }) => assert_eq!(found, kind, "{what}"),
        Ok(_) => panic!("{what}: succeeded where {kind} was expected"),
    }
}

/// Waits as long as a test may, so that a lost wake-up fails instead of hanging.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Receives until there are this many.
async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let more = soon("a message", consumer.receive(count - deliveries.len())).await.expect("receive");
        assert!(!more.is_empty(), "receive waits for one message");
        deliveries.extend(more);
    }
    deliveries
}

/// Receives this many and settles them; gives their texts.
async fn drain(consumer: &mut dyn Consumer, count: usize) -> Vec<String> {
    let deliveries = receive(consumer, count).await;
    let texts = texts(&deliveries);
    consumer.ack(receipts(deliveries)).await.expect("ack");
    texts
}

async fn expect_nothing(consumer: &mut dyn Consumer) {
    if let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.receive(10)).await {
        panic!("{:?} where nothing was expected", deliveries.map(|deliveries| texts(&deliveries)));
    }
}

async fn info(queues: &dyn Queues, name: &str) -> Option<QueueInfo> {
    queues.list().await.expect("list").into_iter().find(|info| info.name == name)
}

async fn durable(subject: &impl Subject) -> Arc<dyn Queues> {
    let queues = subject.queues();
    queues.declare("q", Durability::Durable).await.expect("declare");
    queues
}

pub async fn declaring_again_changes_nothing(subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(["a"])).await.expect("publish");
    queues.declare("q", Durability::Durable).await.expect("declare again");
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    assert_eq!(drain(&mut *consumer, 1).await, ["a"]);
}

pub async fn declaring_with_another_durability_is_a_conflict(subject: impl Subject) {
    let queues = subject.queues();
    for (first, second) in ALL.into_iter().flat_map(|first| ALL.map(|second| (first, second))) {
        let name = format!("{first:?}-{second:?}");
        queues.declare(&name, first).await.expect("declare");
        if first == second {
            queues.declare(&name, second).await.expect("declare again");
        } else {
            expect_kind(queues.declare(&name, second).await, ErrorKind::Conflict, &name);
        }
    }
}

pub async fn publishing_where_nothing_was_declared_is_invalid(subject: impl Subject) {
    expect_kind(subject.queues().publish("nowhere", messages(["a"])).await, ErrorKind::Invalid, "publish");
}

pub async fn consuming_where_nothing_was_declared_is_invalid(subject: impl Subject) {
    expect_kind(subject.queues().consume("nowhere", 1).await, ErrorKind::Invalid, "consume");
}

pub async fn messages_come_whole_and_in_order(subject: impl Subject) {
    let queues = subject.queues();
    for durability in ALL {
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        let death = Death { queue: "writer".into(), reason: "no".into(), tries: 5, time: Timestamp::now() };
        let full = Message {
            offset: Some(Offset::new(3, 7)),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            dead: Some(death),
            ..message("full")
        };
        let bare = Message { app: None, ..message("") };
        let big = message(&"x".repeat(300_000));
        let sent = vec![full, bare, big];
        queues.publish(&name, sent.clone()).await.expect("publish");
        let mut consumer = queues.consume(&name, 10).await.expect("consume");
        let deliveries = receive(&mut *consumer, 3).await;
        assert!(deliveries.iter().all(|delivery| !delivery.redelivered), "{name}");
        assert_eq!(deliveries.into_iter().map(|delivery| delivery.message).collect::<Vec<_>>(), sent, "{name}");
    }
}

struct Word(&'static str);

impl Encode for Word {
    fn encode(&self) -> Bytes {
        Bytes::from_static(self.0.as_bytes())
    }
}

pub async fn a_value_is_handed_over_or_its_bytes(subject: impl Subject) {
    let queues = subject.queues();
    for durability in ALL {
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        let sent = Message { payload: Payload::new(Arc::new(Word("hello"))), ..message("") };
        queues.publish(&name, vec![sent]).await.expect("publish");
        let mut consumer = queues.consume(&name, 1).await.expect("consume");
        let delivery = receive(&mut *consumer, 1).await.remove(0);
        assert_eq!(text(&delivery.message), "hello", "{name}");
        if let Some(word) = delivery.message.payload.value::<Word>() {
            assert_eq!(word.0, "hello", "{name}");
        }
    }
}

pub async fn messages_of_many_publishers_keep_their_order(subject: impl Subject) {
    const EACH: usize = 100;
    let queues = durable(&subject).await;
    let publishers: Vec<_> = ["a", "b", "c", "d"]
        .map(|app| {
            let queues = subject.queues();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let message = Message { app: app.parse().ok(), ..message(&number.to_string()) };
                    queues.publish("q", vec![message]).await.expect("publish");
                }
            })
        })
        .into();
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    let mut seen = BTreeMap::<String, Vec<String>>::new();
    for _ in 0..EACH * publishers.len() {
        let deliveries = receive(&mut *consumer, 1).await;
        let app = deliveries[0].message.app.as_ref().expect("an application").to_string();
        seen.entry(app).or_default().extend(texts(&deliveries));
        consumer.ack(receipts(deliveries)).await.expect("ack");
    }
    assert_eq!(seen.len(), publishers.len());
    assert!(seen.values().all(|texts| *texts == numbers(0..EACH)));
}

pub async fn what_was_published_survives_a_crash_in_order(mut subject: impl Subject) {
    for round in 0..4 {
        let queues = durable(&subject).await;
        queues.publish("q", messages(numbers(round * 10..round * 10 + 10))).await.expect("publish");
        drop(queues);
        subject.crash().await;
    }
    let queues = durable(&subject).await;
    let mut consumer = queues.consume("q", 100).await.expect("consume");
    let deliveries = receive(&mut *consumer, 40).await;
    assert_eq!(texts(&deliveries), numbers(0..40));
    expect_nothing(&mut *consumer).await;
}

pub async fn what_was_settled_does_not_come_back(mut subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(numbers(0..20))).await.expect("publish");
    let mut consumer = queues.consume("q", 20).await.expect("consume");
    let mut deliveries = receive(&mut *consumer, 20).await;
    let kept = deliveries.split_off(15);
    deliveries.remove(3);
    consumer.ack(receipts(deliveries)).await.expect("ack");
    drop((kept, consumer));
    subject.settled().await;
    drop(queues);
    subject.crash().await;
    let queues = durable(&subject).await;
    let mut consumer = queues.consume("q", 20).await.expect("consume");
    let deliveries = receive(&mut *consumer, 6).await;
    assert_eq!(texts(&deliveries), ["3", "15", "16", "17", "18", "19"]);
    assert!(deliveries.iter().all(|delivery| delivery.redelivered));
    consumer.ack(receipts(deliveries)).await.expect("ack");
    expect_nothing(&mut *consumer).await;
}

pub async fn what_is_not_durable_keeps_its_place(mut subject: impl Subject) {
    let queues = durable(&subject).await;
    let sent = ["a", "barrier", "b", "barrier", "c"];
    let mixed = sent.map(|text| Message { durable: text != "barrier", ..message(text) });
    queues.publish("q", mixed.to_vec()).await.expect("publish");
    {
        let mut consumer = queues.consume("q", 10).await.expect("consume");
        assert_eq!(texts(&receive(&mut *consumer, 5).await), sent);
    }
    let mut again = queues.consume("q", 10).await.expect("consume");
    assert_eq!(texts(&receive(&mut *again, 5).await), sent, "returned by a dropped consumer");
    drop((again, queues));
    subject.crash().await;
    let queues = durable(&subject).await;
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    let left = receive(&mut *consumer, 3).await;
    assert_eq!(texts(&left).into_iter().filter(|text| text != "barrier").collect::<Vec<_>>(), ["a", "b", "c"]);
}

pub async fn from_log_and_transient_queues_outlive_no_crash(mut subject: impl Subject) {
    for durability in [Durability::FromLog, Durability::Transient] {
        let queues = subject.queues();
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        queues.publish(&name, messages(["a", "b"])).await.expect("publish");
        let mut consumer = queues.consume(&name, 10).await.expect("consume");
        assert_eq!(drain(&mut *consumer, 2).await, ["a", "b"], "{name}");
        drop((consumer, queues));
        subject.crash().await;
        let queues = subject.queues();
        queues.declare(&name, durability).await.expect("declare after the crash");
        queues.publish(&name, messages(["c"])).await.expect("publish");
        let mut consumer = queues.consume(&name, 10).await.expect("consume");
        assert_eq!(texts(&receive(&mut *consumer, 1).await), ["c"], "{name}");
    }
}

pub async fn a_full_queue_in_memory_drops_and_says_so(subject: impl Subject) {
    const SENT: usize = 120;
    let queues = subject.queues();
    let padding = "x".repeat(1 << 20);
    for durability in [Durability::FromLog, Durability::Transient] {
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        for number in 0..SENT {
            let message = message(&format!("{number} {padding}"));
            soon("a publisher never waits", queues.publish(&name, vec![message])).await.expect("publish");
        }
        let told = info(&*queues, &name).await.expect("it is listed");
        assert!(told.dropped > 0 && told.ready > 0, "{told:?}");
        assert_eq!(told.ready + told.dropped, SENT as u64, "{told:?}");
        let mut consumer = queues.consume(&name, SENT).await.expect("consume");
        let left = drain(&mut *consumer, told.ready as usize).await;
        let numbers: Vec<usize> =
            left.iter().map(|text| text.split(' ').next().expect("a word").parse().expect("a number")).collect();
        assert!(numbers.is_sorted(), "what is left is in order: {numbers:?}");
        queues.publish(&name, messages(["later"])).await.expect("publish");
        assert_eq!(drain(&mut *consumer, 1).await, ["later"], "there is room again");
    }
}

pub async fn a_full_durable_queue_refuses_and_keeps_what_it_has(subject: impl Subject) {
    let queues = durable(&subject).await;
    let padding = "x".repeat(1 << 20);
    let mut taken = 0;
    let refused = loop {
        match queues.publish("q", messages([format!("{taken} {padding}"), "end".into()])).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 4_096, "a durable queue has a bound");
    };
    assert_eq!(refused.kind, ErrorKind::Full, "{refused}");
    assert!(refused.is_transient());
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    for number in 0..taken {
        let pair = drain(&mut *consumer, 2).await;
        assert!(pair[0].starts_with(&format!("{number} ")) && pair[1] == "end", "all or none, in order");
    }
    queues.publish("q", messages(["later"])).await.expect("there is room again");
    assert_eq!(drain(&mut *consumer, 1).await, ["later"]);
}

pub async fn a_long_backlog_comes_whole_and_in_order(mut subject: impl Subject) {
    const COUNT: usize = 3_000;
    let queues = durable(&subject).await;
    let padded = |number: usize| format!("{number:>10000}");
    for chunk in (0..COUNT).collect::<Vec<_>>().chunks(100) {
        queues.publish("q", messages(chunk.iter().map(|number| padded(*number)))).await.expect("publish");
    }
    let mut consumer = queues.consume("q", 64).await.expect("consume");
    for number in 0..COUNT / 2 {
        assert_eq!(drain(&mut *consumer, 1).await, [padded(number)]);
    }
    drop((consumer, queues));
    subject.crash().await;
    let queues = durable(&subject).await;
    let mut consumer = queues.consume("q", 64).await.expect("consume");
    let mut next = None;
    while next != Some(COUNT) {
        // The last settled ones may come again.
        for text in drain(&mut *consumer, 1).await {
            let number: usize = text.trim().parse().expect("a number");
            assert!(next.map_or(number <= COUNT / 2, |next| number == next), "{number} where {next:?} follows");
            next = Some(number + 1);
        }
    }
    expect_nothing(&mut *consumer).await;
}

pub async fn receiving_waits_for_one_message(subject: impl Subject) {
    for durability in ALL {
        let queues = subject.queues();
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        let mut consumer = queues.consume(&name, 10).await.expect("consume");
        let receiving = tokio::spawn(async move { (consumer.receive(10).await.expect("receive"), consumer) });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!receiving.is_finished(), "{name}");
        queues.publish(&name, messages(["a"])).await.expect("publish");
        let (deliveries, _consumer) = soon("the message", receiving).await.expect("the consumer");
        assert_eq!(texts(&deliveries), ["a"], "{name}");
    }
}

pub async fn receiving_takes_no_more_than_asked_for(subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(numbers(0..10))).await.expect("publish");
    let mut consumer = queues.consume("q", 100).await.expect("consume");
    let deliveries = soon("messages", consumer.receive(3)).await.expect("receive");
    assert!((1..=3).contains(&deliveries.len()));
    assert_eq!(texts(&deliveries), numbers(0..deliveries.len()));
}

pub async fn receiving_is_bounded_by_the_prefetch(subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(numbers(0..10))).await.expect("publish");
    let mut consumer = queues.consume("q", 4).await.expect("consume");
    let mut deliveries = receive(&mut *consumer, 4).await;
    expect_nothing(&mut *consumer).await;
    let last_two = deliveries.split_off(2);
    consumer.ack(receipts(deliveries)).await.expect("ack");
    assert_eq!(texts(&receive(&mut *consumer, 2).await), ["4", "5"]);
    expect_nothing(&mut *consumer).await;
    drop(last_two);
}

pub async fn a_receive_that_is_given_up_loses_nothing(subject: impl Subject) {
    const COUNT: usize = 200;
    let queues = durable(&subject).await;
    let publisher = subject.queues();
    let publishing = tokio::spawn(async move {
        for number in numbers(0..COUNT) {
            publisher.publish("q", messages([number])).await.expect("publish");
        }
    });
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    let mut seen = Vec::new();
    let started = std::time::Instant::now();
    while seen.len() < COUNT {
        assert!(started.elapsed() < Duration::from_secs(20), "{} of {COUNT}", seen.len());
        let outcome = match consumer.receive(3).now_or_never() {
            Some(outcome) => outcome,
            None => match timeout(Duration::from_micros(200), consumer.receive(3)).await {
                Ok(outcome) => outcome,
                Err(_) => continue,
            },
        };
        let deliveries = outcome.expect("receive");
        seen.extend(texts(&deliveries));
        consumer.ack(receipts(deliveries)).await.expect("ack");
    }
    assert_eq!(seen, numbers(0..COUNT));
    publishing.await.expect("the publisher");
}

pub async fn one_consumer_at_a_time_gets_messages(subject: impl Subject) {
    let queues = durable(&subject).await;
    let mut first = queues.consume("q", 10).await.expect("consume");
    let mut second = queues.consume("q", 10).await.expect("a second consumer may stand by");
    let standing_by = tokio::spawn(async move { (second.receive(10).await.expect("receive"), second) });
    for round in 0..5 {
        queues.publish("q", messages([round.to_string()])).await.expect("publish");
        assert_eq!(drain(&mut *first, 1).await, [round.to_string()]);
    }
    assert!(!standing_by.is_finished());
    drop(first);
    queues.publish("q", messages(["then"])).await.expect("publish");
    let (deliveries, _second) = soon("the turn of the second", standing_by).await.expect("the second");
    assert_eq!(texts(&deliveries), ["then"]);
}

pub async fn a_dropped_consumer_returns_its_messages_in_order(subject: impl Subject) {
    for durability in [Durability::Durable, Durability::FromLog] {
        let queues = subject.queues();
        let name = format!("{durability:?}");
        queues.declare(&name, durability).await.expect("declare");
        queues.publish(&name, messages(numbers(0..8))).await.expect("publish");
        let mut first = queues.consume(&name, 6).await.expect("consume");
        let mut deliveries = receive(&mut *first, 6).await;
        let settled = vec![deliveries.remove(2).receipt, deliveries.remove(0).receipt];
        first.ack(settled).await.expect("ack");
        drop(first);
        let mut second = queues.consume(&name, 10).await.expect("consume");
        let deliveries = receive(&mut *second, 6).await;
        assert_eq!(texts(&deliveries), ["1", "3", "4", "5", "6", "7"], "{name}");
        let redelivered: Vec<_> = deliveries.iter().map(|delivery| delivery.redelivered).collect();
        assert_eq!(redelivered, [true, true, true, true, false, false], "{name}");
    }
}

pub async fn what_is_given_back_comes_again_before_all_others(subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(numbers(0..6))).await.expect("publish");
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    let mut deliveries = receive(&mut *consumer, 4).await;
    let back = vec![deliveries.remove(3).receipt, deliveries.remove(1).receipt];
    consumer.give_back(back).await.expect("give back");
    let again = receive(&mut *consumer, 4).await;
    assert_eq!(texts(&again), ["1", "3", "4", "5"]);
    let redelivered: Vec<_> = again.iter().map(|delivery| delivery.redelivered).collect();
    assert_eq!(redelivered, [true, true, false, false]);
    consumer.ack(receipts(again)).await.expect("ack");
    consumer.ack(receipts(deliveries)).await.expect("ack");
    expect_nothing(&mut *consumer).await;
}

pub async fn a_receipt_of_a_dropped_consumer_settles_nothing(subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(["a", "b"])).await.expect("publish");
    let mut first = queues.consume("q", 10).await.expect("consume");
    let stale = receipts(receive(&mut *first, 2).await);
    drop(first);
    let mut second = queues.consume("q", 10).await.expect("consume");
    let deliveries = receive(&mut *second, 2).await;
    // Whether the backend notices or not, the messages are still the second's to settle.
    drop(second.ack(stale).await);
    drop(deliveries);
    drop(second);
    let mut third = queues.consume("q", 10).await.expect("consume");
    assert_eq!(texts(&receive(&mut *third, 2).await), ["a", "b"]);
}

pub async fn a_transient_queue_goes_with_its_consumer(subject: impl Subject) {
    let queues = subject.queues();
    queues.declare("t", Durability::Transient).await.expect("declare");
    let mut consumer = queues.consume("t", 1).await.expect("consume");
    queues.publish("t", messages(["a", "b"])).await.expect("publish");
    assert_eq!(texts(&receive(&mut *consumer, 1).await), ["a"]);
    drop(consumer);
    let started = std::time::Instant::now();
    while info(&*queues, "t").await.is_some() {
        assert!(started.elapsed() < Duration::from_secs(20), "it is still listed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    queues.publish("t", messages(["c"])).await.expect("publishing to it is no fault: the message is dropped");
    queues.declare("t", Durability::Transient).await.expect("declare anew");
    let mut consumer = queues.consume("t", 1).await.expect("consume");
    queues.publish("t", messages(["d"])).await.expect("publish");
    assert_eq!(texts(&receive(&mut *consumer, 1).await), ["d"]);
}

pub async fn the_list_tells_what_waits_and_what_is_delivered(subject: impl Subject) {
    let queues = subject.queues();
    for (name, durability) in [("b", Durability::Durable), ("a", Durability::FromLog), ("c", Durability::Durable)] {
        queues.declare(name, durability).await.expect("declare");
    }
    let mut sent = messages(numbers(0..5));
    for (message, ms) in sent.iter_mut().zip(1_000..) {
        message.time = Timestamp::from_ms(ms).expect("a time");
    }
    queues.publish("b", sent).await.expect("publish");
    let mut consumer = queues.consume("b", 2).await.expect("consume");
    let _standby = queues.consume("b", 2).await.expect("consume");
    let deliveries = receive(&mut *consumer, 2).await;
    let listed = queues.list().await.expect("list");
    assert_eq!(listed.iter().map(|info| &*info.name).collect::<Vec<_>>(), ["a", "b", "c"]);
    let expected = QueueInfo {
        name: "b".into(),
        durability: Durability::Durable,
        ready: 3,
        unacked: 2,
        consumers: 2,
        oldest: Timestamp::from_ms(1_002).ok(),
        dropped: 0,
    };
    assert_eq!(listed[1], expected);
    consumer.ack(receipts(deliveries)).await.expect("ack");
    let left = info(&*queues, "b").await.expect("listed");
    assert_eq!((left.ready, left.unacked), (3, 0));
    assert_eq!(info(&*queues, "c").await.expect("listed").oldest, None);
}

pub async fn browsing_takes_nothing(subject: impl Subject) {
    let queues = durable(&subject).await;
    let sent = messages(numbers(0..6));
    queues.publish("q", sent.clone()).await.expect("publish");
    assert_eq!(queues.browse("q", None, 2).await.expect("browse"), sent[..2]);
    assert_eq!(queues.browse("q", Some(sent[1].id), 3).await.expect("browse"), sent[2..5]);
    assert_eq!(queues.browse("q", Some(sent[5].id), 3).await.expect("browse"), []);
    expect_kind(queues.browse("q", Some(ChangeId::generate()), 3).await, ErrorKind::Invalid, "an unknown message");
    expect_kind(queues.browse("nowhere", None, 3).await, ErrorKind::Invalid, "an unknown queue");
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    let deliveries = receive(&mut *consumer, 6).await;
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
    assert_eq!(queues.browse("q", None, 10).await.expect("browse"), [], "delivered ones do not wait");
}

pub async fn removed_messages_do_not_come(mut subject: impl Subject) {
    let queues = durable(&subject).await;
    let sent = messages(numbers(0..6));
    queues.publish("q", sent.clone()).await.expect("publish");
    let gone = [sent[4].id, sent[1].id, ChangeId::generate()];
    assert_eq!(queues.remove("q", &gone).await.expect("remove"), 2);
    assert_eq!(queues.remove("q", &gone).await.expect("remove"), 0);
    expect_kind(queues.remove("nowhere", &gone).await, ErrorKind::Invalid, "an unknown queue");
    drop(queues);
    subject.crash().await;
    let queues = durable(&subject).await;
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    assert_eq!(drain(&mut *consumer, 4).await, ["0", "2", "3", "5"], "also after a crash");
    expect_nothing(&mut *consumer).await;
}

pub async fn a_deleted_queue_is_gone_with_its_messages(mut subject: impl Subject) {
    let queues = durable(&subject).await;
    queues.publish("q", messages(numbers(0..5))).await.expect("publish");
    let mut consumer = queues.consume("q", 2).await.expect("consume");
    let deliveries = receive(&mut *consumer, 2).await;
    queues.delete("q").await.expect("delete");
    assert!(soon("the end of the consumer", consumer.receive(1)).await.is_err(), "its consumer has ended");
    drop((deliveries, consumer));
    expect_kind(queues.publish("q", messages(["x"])).await, ErrorKind::Invalid, "publish to a deleted queue");
    assert!(info(&*queues, "q").await.is_none());
    expect_kind(queues.delete("q").await, ErrorKind::Invalid, "delete a deleted queue");
    drop(queues);
    subject.crash().await;
    let queues = durable(&subject).await;
    queues.publish("q", messages(["new"])).await.expect("publish");
    let mut consumer = queues.consume("q", 10).await.expect("consume");
    assert_eq!(drain(&mut *consumer, 1).await, ["new"], "also after a crash");
}

pub async fn queues_are_kept_apart(subject: impl Subject) {
    let queues = subject.queues();
    for name in ["q", "q.0", "q.dead"] {
        queues.declare(name, Durability::Durable).await.expect("declare");
        queues.publish(name, messages([name])).await.expect("publish");
    }
    for name in ["q.dead", "q", "q.0"] {
        let mut consumer = queues.consume(name, 10).await.expect("consume");
        assert_eq!(drain(&mut *consumer, 1).await, [name]);
        expect_nothing(&mut *consumer).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_macro() {
        let source = include_str!("queues.rs");
        for line in source.lines() {
            let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            assert!(source.contains(&format!("            {name},\n")), "{name} is never run");
        }
    }
}
