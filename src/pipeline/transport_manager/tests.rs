//! The transport manager on the real embedded backends: what it sends to whom, and what it says that covers.

use nexxus_storage::model::{ChangeId, DeviceId, Event, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    domain::{Application, subscriptions::Request, testing::Ground},
    messages::ToDevices,
};

struct Desk {
    ground: Ground,
    app: Arc<Application>,
    manager: TransportManager,
}

impl Desk {
    /// With the device `phone` of anna, connected to the transport worker `t1`, subscribed to all notes.
    async fn open() -> Self {
        let ground = Ground::open().await;
        let app = ground.app(json!({})).await;
        ground.register(&app, "anna").await;
        let queue = ground.domain.routes.transport_manager.queue_of(app.id());
        let manager = TransportManager::open(ground.domain.clone(), queue).await.expect("opened");
        let mut desk = Self { ground, app, manager };
        desk.listen("phone", "t1", json!({ "model": "note" })).await;
        desk
    }

    /// Connects a device of anna to a transport worker, and subscribes it.
    async fn listen(&mut self, device: &str, queue: &str, request: Value) {
        let domain = &self.ground.domain;
        let device = DeviceId::parse(device).expect("an id");
        let anna = domain.user_named(self.app.id(), "anna").await.expect("read").expect("a user");
        let login = domain.open_session(&self.app, &anna, Some(&device), None).await.expect("a session");
        let identified = self.ground.identify(&self.app, &login.token, None).await.expect("identified");
        domain.connect_device(&self.app, &identified, &device, queue).await.expect("connected");
        let request = Request::parse(request).expect("a request");
        domain.subscribe(&self.app, &identified, Some(&device), request, None).await.expect("subscribed");
    }

    /// Logs and applies a new note as the writer would; gives the change that it tells.
    async fn create(&self, id: &str) -> Received<Change> {
        let offset = self.ground.create(&self.app, id, None, json!({ "text": id })).await;
        self.logged(offset).await
    }

    async fn logged(&self, offset: Offset) -> Received<Change> {
        let log = &self.ground.domain.backends.change_log;
        let page = log.read_logged(self.app.id(), before(offset), 1).await.expect("the log");
        let entry = page.entries[0].entry.clone();
        Received {
            id: ChangeId::generate(),
            app: Some(self.app.id().clone()),
            offset: Some(offset),
            time: Timestamp::now(),
            trace: None,
            redelivered: false,
            body: Arc::new(Change { app: self.app.id().clone(), entry }),
        }
    }

    /// Logs other rules of the application.
    async fn rule(&self, rules: Value) -> Received<Change> {
        let before = serde_json::to_value(&self.app.record).expect("JSON");
        let mut definition = before.clone();
        definition["rules"] = rules;
        let event = Event::Defined { definition, before: Some(before) };
        let log = &self.ground.domain.backends.change_log;
        let tail = log.marks(self.app.id()).await.expect("marks").head;
        let (change_id, time) = (ChangeId::generate(), Timestamp::now());
        let entry = Entry { offset: tail.next(), change_id, time, event };
        log.append(self.app.id(), tail, vec![entry]).await.expect("logged");
        log.mark_applied(self.app.id(), tail.next()).await.expect("marked");
        self.logged(tail.next()).await
    }

    async fn go_on(&mut self) -> Vec<String> {
        let mut out = Outbox::default();
        self.manager.go_on(&mut out).await.expect("gone on");
        self.manager.told().await.expect("told");
        shown(out)
    }

    async fn handle(&mut self, batch: &[Received<Change>]) -> Vec<String> {
        let sent = self.handle_untold(batch).await;
        self.manager.told().await.expect("told");
        sent
    }

    /// As if what it leads to could not be published.
    async fn handle_untold(&mut self, batch: &[Received<Change>]) -> Vec<String> {
        let mut out = Outbox::default();
        self.manager.handle(batch, &mut out).await.expect("handled");
        shown(out)
    }

    async fn tick(&mut self) -> Vec<String> {
        let mut out = Outbox::default();
        self.manager.tick(&mut out).await.expect("ticked");
        self.manager.told().await.expect("told");
        shown(out)
    }
}

/// `QUEUE AFTER-UPTO: EVENT ID@POSITION>DEVICES …` of each message, sorted by queue.
fn shown(mut out: Outbox) -> Vec<String> {
    let mut sent = Vec::new();
    for (queue, messages) in out.take() {
        for message in messages {
            let sending = message.payload.value::<ToDevices>().expect("a message to devices");
            assert!(!message.durable, "none is precious");
            let mut line = format!("{queue} {}-{}:", sending.covers.after.position, sending.covers.upto.position);
            for message in &sending.messages {
                let frame: Value = serde_json::from_slice(&message.frame).expect("JSON");
                let (event, id) = (frame["event"].as_str().expect("an event"), frame["metadata"]["id"].as_str());
                let devices: Vec<&str> = message.devices.iter().map(DeviceId::as_str).collect();
                let what = id.or(frame["data"]["reason"].as_str()).unwrap_or_default();
                let event = event.trim_start_matches("model_");
                line += &format!(" {event} {what}@{}>{}", message.offset.position, devices.join("+"));
            }
            sent.push(line);
        }
    }
    sent.sort();
    sent
}

#[tokio::test]
async fn what_it_sends_says_what_it_covers() {
    let mut desk = Desk::open().await;
    let (a, b, c) = (desk.create("a").await, desk.create("b").await, desk.create("c").await);
    // A worker that was told nothing yet learns where that ends: what is before it reads by itself.
    assert_eq!(desk.handle(&[a]).await, ["t1 1-1: created a@1>phone"]);
    assert_eq!(desk.handle(&[b, c]).await, ["t1 1-3: created b@2>phone created c@3>phone"]);
}

#[tokio::test]
async fn devices_with_the_same_frame_share_a_message_and_workers_get_their_own() {
    let mut desk = Desk::open().await;
    desk.listen("tablet", "t1", json!({ "model": "note" })).await;
    desk.listen("watch", "t2", json!({ "model": "note", "filter": { "text": "b" } })).await;
    let (a, b) = (desk.create("a").await, desk.create("b").await);
    let sent = desk.handle(&[a, b]).await;
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(sent[0].starts_with("t1 2-2: created a@1>phone+tablet"), "{sent:?}");
    assert_eq!(sent[1], "t2 2-2: created b@2>watch");
}

#[tokio::test]
async fn a_hole_is_read_from_the_log_and_what_comes_twice_is_dropped() {
    let mut desk = Desk::open().await;
    let (a, b, c, d) = (desk.create("a").await, desk.create("b").await, desk.create("c").await, desk.create("d").await);
    assert_eq!(desk.handle(&[a]).await, ["t1 1-1: created a@1>phone"]);
    // `b` and `c` were dropped on the way.
    assert_eq!(desk.handle(&[d]).await, ["t1 1-4: created b@2>phone created c@3>phone created d@4>phone"]);
    assert!(desk.handle(&[b, c]).await.is_empty(), "they come late");
}

#[tokio::test]
async fn what_was_dropped_at_the_end_is_found_by_a_look_at_the_head() {
    let mut desk = Desk::open().await;
    let a = desk.create("a").await;
    assert_eq!(desk.handle(&[a]).await, ["t1 1-1: created a@1>phone"]);
    desk.create("b").await;
    assert_eq!(desk.tick().await, ["t1 1-2: created b@2>phone"]);
    assert!(desk.tick().await.is_empty());
}

#[tokio::test]
async fn a_worker_that_appears_is_told_where_it_begins() {
    let mut desk = Desk::open().await;
    let a = desk.create("a").await;
    desk.handle(&[a]).await;
    desk.listen("watch", "t2", json!({ "model": "note" })).await;
    let (b, c) = (desk.create("b").await, desk.create("c").await);
    assert_eq!(desk.handle(&[b]).await, ["t1 1-2: created b@2>phone", "t2 2-2: created b@2>watch"]);
    assert_eq!(desk.handle(&[c]).await, ["t1 2-3: created c@3>phone", "t2 2-3: created c@3>watch"]);
}

#[tokio::test]
async fn what_could_not_be_sent_shows_as_a_gap() {
    let mut desk = Desk::open().await;
    let (a, b, c) = (desk.create("a").await, desk.create("b").await, desk.create("c").await);
    desk.handle(&[a]).await;
    assert_eq!(desk.handle_untold(&[b]).await, ["t1 1-2: created b@2>phone"]);
    // The worker has heard up to 1, and of this one that it begins above 2: it reads what lies between.
    assert_eq!(desk.handle(&[c]).await, ["t1 3-3: created c@3>phone"]);
}

#[tokio::test]
async fn whoever_missed_a_change_that_died_is_told_to_ask_anew() {
    let mut desk = Desk::open().await;
    desk.listen("tablet", "t1", json!({ "model": "note", "modelId": "x" })).await;
    let (a, b, c) = (desk.create("a").await, desk.create("b").await, desk.create("c").await);
    desk.handle(&[a]).await;
    let mut out = Outbox::default();
    desk.manager.dead(&b, "it is poisonous", &mut out).await.expect("told");
    let sent = shown(out);
    assert_eq!(sent.len(), 1, "{sent:?}");
    for part in ["t1 1-2:", "resync_required internal@2>phone", "resync_required internal@2>tablet"] {
        assert!(sent[0].contains(part), "{sent:?}");
    }
    desk.manager.told().await.expect("told");
    assert_eq!(desk.handle(&[c]).await, ["t1 2-3: created c@3>phone"], "it goes on behind it");
    // Once is enough.
    let mut out = Outbox::default();
    desk.manager.dead(&b, "it is poisonous", &mut out).await.expect("told");
    assert!(shown(out).is_empty());
}

#[tokio::test]
async fn nobody_is_told_who_does_not_listen() {
    let mut desk = Desk::open().await;
    let phone = DeviceId::parse("phone").expect("an id");
    desk.ground.domain.disconnect_device(desk.app.id(), &phone, "t1", 99).await.expect("disconnected");
    let a = desk.create("a").await;
    assert!(desk.handle(&[a]).await.is_empty());
}

/// A desk with another application, and so many subscriptions in the first that new rules take more than one slice.
async fn crowded() -> (Desk, Arc<Application>) {
    let mut desk = Desk::open().await;
    let first = desk.app.clone();
    for number in 0..40 {
        desk.listen(&format!("d{number}"), "t1", json!({ "model": "note" })).await;
    }
    desk.app = desk.ground.app(json!({ "id": "b", "name": "b" })).await;
    desk.ground.register(&desk.app, "anna").await;
    desk.create("first").await;
    desk.listen("other", "t1", json!({ "model": "note" })).await;
    let second = std::mem::replace(&mut desk.app, first);
    desk.create("first").await;
    desk.manager.slice = Duration::ZERO;
    // The worker learns where the applications begin.
    assert_eq!(desk.tick().await, ["t1 1-1:", "t1 1-1:"]);
    (desk, second)
}

#[tokio::test]
async fn other_applications_are_told_while_new_rules_are_taken_in() {
    let (mut desk, other) = crowded().await;
    let (a, rule) = (desk.create("a").await, desk.rule(json!({ "note": { "read": "owner" } })).await);
    let (b, c) = (desk.create("b").await, desk.create("c").await);
    let sent = desk.handle(&[a, rule, b]).await;
    assert!(sent.len() == 1 && sent[0].starts_with("t1 1-2: created a@2>"), "nothing behind it, {sent:?}");
    assert!(desk.manager.has_more());
    assert!(desk.handle(&[c]).await.is_empty(), "it waits");
    assert!(desk.tick().await.is_empty(), "it waits");
    let first = std::mem::replace(&mut desk.app, other);
    let theirs = desk.create("x").await;
    assert_eq!(desk.handle(&[theirs]).await, ["t1 1-2: created x@2>other"]);
    desk.app = first;
    assert!(desk.manager.has_more());
    let mut sent = Vec::new();
    while desk.manager.has_more() {
        sent.extend(desk.go_on().await);
    }
    // Nobody owns a note: nobody is shown one any more, and everybody has to ask anew.
    let told = sent.join(" ");
    assert!(told.starts_with("t1 2-") && !told.contains("created"), "{told}");
    assert_eq!(told.matches("resync_required rules@3>").count(), 41, "{told}");
    let upto = desk.manager.matched.get(desk.app.id()).map(|matched| matched.upto.position);
    assert_eq!(upto, Some(5), "what waited is matched");
}

#[tokio::test]
async fn whoever_has_to_ask_anew_sees_a_gap_where_that_was_forgotten() {
    let (mut desk, _) = crowded().await;
    let (a, rule) = (desk.create("a").await, desk.rule(json!({ "note": { "read": "public" } })).await);
    desk.handle(&[a]).await;
    desk.handle(&[rule]).await;
    assert!(desk.manager.has_more());
    desk.manager.roster.forget().await;
    let b = desk.create("b").await;
    let sent = desk.go_on().await;
    assert!(!desk.manager.has_more());
    // The worker has heard up to 2: it reads from there, and finds the rule.
    assert!(sent[0] == "t1 3-3:" && sent[1].starts_with("t1 3-4: created b@4>d0+"), "{sent:?}");
    assert!(desk.handle(&[b]).await.is_empty());
}

#[tokio::test]
async fn a_change_that_dies_meanwhile_ends_the_wait_for_new_rules() {
    let (mut desk, _) = crowded().await;
    let (a, rule) = (desk.create("a").await, desk.rule(json!({ "note": { "read": "owner" } })).await);
    let b = desk.create("b").await;
    desk.handle(&[a, rule]).await;
    let mut out = Outbox::default();
    desk.manager.dead(&b, "it is poisonous", &mut out).await.expect("told");
    desk.manager.told().await.expect("told");
    assert!(shown(out)[0].starts_with("t1 4-4:"), "a gap before it");
    while desk.manager.has_more() {
        assert!(desk.go_on().await.is_empty());
    }
    let c = desk.create("c").await;
    let sent = desk.handle(&[c]).await.join(" ");
    assert!(!sent.contains("created"), "nobody may see it: {sent}");
}
