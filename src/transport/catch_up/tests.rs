use std::{sync::Arc, time::Duration};

use nexxus_storage::{
    model::{DeviceId, Offset, SubscriptionId, change::UserFacts},
    registry::{
        Expect, Key, Write,
        records::{self, User},
    },
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    super::{connection::Next, rooms::Rooms},
    *,
};
use crate::{
    domain::{Application, testing::Ground},
    messages::{Covers, ToDevices},
};

struct Scene {
    ground: Ground,
    app: Arc<Application>,
    rooms: Arc<Rooms>,
    catch_up: Arc<CatchUp>,
}

impl Scene {
    async fn open(settings: Value) -> Self {
        let ground = Ground::open().await;
        let app = ground.app(settings).await;
        let rooms = Arc::<Rooms>::default();
        let catch_up = CatchUp::new(ground.domain.clone(), rooms.clone());
        Self { ground, app, rooms, catch_up }
    }

    async fn create(&self, id: &str, text: &str, owner: Option<&User>) -> Offset {
        self.ground.create(&self.app, id, owner, json!({ "text": text })).await
    }

    /// A connection that was attached here and has read the log up to here.
    fn connect(&self, device: &str, from: Offset, most_bytes: usize) -> Arc<Connection> {
        let device = DeviceId::parse(device).expect("an id");
        let connection = Connection::new(device, None, None, from, most_bytes);
        self.rooms.attach(self.app.id(), &connection);
        connection
    }

    async fn subscribe(&self, device: &str, user: Option<&User>, filter: Option<Value>, since: Offset) {
        let id = format!("s-{device}-{}", since.position);
        let mut record = json!({
            "app": "a", "id": id, "device": device, "model": "note", "channel": format!("channel-{id}"), "since": since,
        });
        if let Some(filter) = filter {
            record["filter"] = filter;
        }
        if let Some(user) = user {
            record["user"] = json!(user.id);
        }
        let record: records::Subscription = serde_json::from_value(record).expect("a subscription");
        self.ground.domain.backends.registry.put(&record, Expect::Anything).await.expect("written");
    }

    /// As the transport manager would: live frames go on above here.
    fn cover(&self, upto: Offset) {
        let covers = Covers { app: self.app.id().clone(), after: upto, upto };
        self.rooms.deliver(&ToDevices { covers, messages: Vec::new() });
    }

    /// Takes frames as a session does, until there are so many; gives of each what names it.
    async fn hears(&self, connection: &Arc<Connection>, n_frames: usize) -> Vec<String> {
        let mut heard = Vec::new();
        let all = async {
            while heard.len() < n_frames {
                match connection.next() {
                    Next::Frames(frames) => heard.extend(frames.iter().map(|frame| name_of(frame))),
                    Next::CatchUp => self.catch_up.board(self.app.id(), connection).await.expect("boards"),
                    Next::Close(close) => panic!("closed: {close:?}, heard {heard:?}"),
                    Next::Nothing => connection.woken().await,
                }
            }
        };
        if timeout(Duration::from_secs(20), all).await.is_err() {
            panic!("only {heard:?} came");
        }
        heard
    }

    /// Runs until it is live; nothing comes meanwhile.
    async fn goes_live(&self, connection: &Arc<Connection>) {
        let all = async {
            loop {
                match connection.next() {
                    Next::CatchUp => self.catch_up.board(self.app.id(), connection).await.expect("boards"),
                    Next::Nothing if connection.has_all_of(Offset::default()).is_some() => break,
                    Next::Nothing => connection.woken().await,
                    other => panic!("{other:?} came"),
                }
            }
        };
        timeout(Duration::from_secs(20), all).await.expect("goes live");
    }

    async fn has_ended(&self) {
        let ended = async {
            while !self.catch_up.platforms.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), ended).await.expect("the scan ends");
    }
}

/// The id of the document, or the event and its channels.
fn name_of(frame: &[u8]) -> String {
    let frame: Value = serde_json::from_slice(frame).expect("JSON");
    match frame["metadata"]["id"].as_str() {
        Some(id) => id.to_owned(),
        None => format!("{} {}", frame["event"].as_str().unwrap_or_default(), frame["data"]["channels"]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_gets_their_share_and_goes_live() {
    let scene = Scene::open(json!({ "rules": { "note": { "read": "public" } } })).await;
    let before = scene.create("old", "a", None).await;
    scene.subscribe("all", None, None, Offset::new(1, 0)).await;
    scene.subscribe("some", None, Some(json!({ "text": "b" })), Offset::new(1, 0)).await;
    for (id, text) in [("n1", "a"), ("n2", "b"), ("n3", "a"), ("n4", "b")] {
        scene.create(id, text, None).await;
    }
    let all = scene.connect("all", before, 1 << 20);
    let again = scene.connect("all", Offset::new(1, 3), 1 << 20);
    let some = scene.connect("some", Offset::new(1, 0), 1 << 20);
    let none = scene.connect("none", before, 1 << 20);
    assert_eq!(scene.hears(&all, 4).await, ["n1", "n2", "n3", "n4"]);
    assert_eq!(scene.hears(&again, 2).await, ["n3", "n4"]);
    assert_eq!(scene.hears(&some, 2).await, ["n2", "n4"]);
    let last = scene.create("n5", "b", None).await;
    assert_eq!(scene.hears(&some, 1).await, ["n5"], "as long as nothing comes from the hub, the log is read on");
    assert_eq!(scene.hears(&all, 1).await, ["n5"]);
    scene.cover(last);
    for connection in [&all, &some, &none] {
        scene.goes_live(connection).await;
    }
    assert_eq!(scene.hears(&again, 1).await, ["n5"]);
    scene.goes_live(&again).await;
    scene.has_ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_its_frames_holds_up_nobody_and_loses_nothing() {
    let scene = Scene::open(json!({ "rules": { "note": { "read": "public" } } })).await;
    let text = "x".repeat(200);
    scene.subscribe("slow", None, None, Offset::new(1, 0)).await;
    scene.subscribe("quick", None, None, Offset::new(1, 0)).await;
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(format!("n{number:02}"));
        scene.create(&ids[number], &text, None).await;
    }
    let slow = scene.connect("slow", Offset::new(1, 0), 1_000);
    let quick = scene.connect("quick", Offset::new(1, 0), 1_000);
    scene.catch_up.board(scene.app.id(), &slow).await.expect("boards");
    assert_eq!(scene.hears(&quick, 40).await, ids);
    assert!(slow.is_full());
    assert_eq!(scene.hears(&slow, 40).await, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_subscribed_or_ruled_meanwhile_holds_from_then_on() {
    let scene = Scene::open(json!({ "rules": { "note": { "read": { "text": "$user.details.team" } } } })).await;
    let (anna, _) = scene.ground.register(&scene.app, "anna").await;
    let team =
        |team: &str| UserFacts { user_type: None, details: [("team".to_owned(), json!(team))].into_iter().collect() };
    scene.ground.change_facts(scene.app.id(), &anna, team("a")).await;
    let from = scene.create("n1", "a", None).await;
    let connection = scene.connect("d", from, 1 << 20);
    scene.catch_up.board(scene.app.id(), &connection).await.expect("boards");
    scene.subscribe("d", Some(&anna), None, from).await;
    // The one that is not for it first: who has heard of the other has passed it, under the rules before.
    scene.create("n2", "b", None).await;
    scene.create("n3", "a", None).await;
    assert_eq!(scene.hears(&connection, 1).await, ["n3"]);
    scene.ground.change_facts(scene.app.id(), &anna, team("b")).await;
    scene.create("n4", "b", None).await;
    scene.create("n5", "a", None).await;
    assert_eq!(scene.hears(&connection, 1).await, ["n4"]);
    let id = SubscriptionId::parse(&format!("s-d-{}", from.position)).expect("an id");
    let key = Key::subscription(scene.app.id(), &connection.device, &id);
    let gone = Write { key, value: None, expect: Expect::Anything };
    scene.ground.domain.backends.registry.write(vec![gone]).await.expect("written");
    scene.cover(scene.create("n6", "b", None).await);
    scene.goes_live(&connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_the_history_asks_anew_and_goes_on() {
    let scene = Scene::open(json!({ "rules": { "note": { "read": "public" } } })).await;
    scene.subscribe("d", None, None, Offset::new(1, 0)).await;
    scene.create("n1", "a", None).await;
    let behind = scene.connect("d", Offset::new(1, 0), 1 << 20);
    let begun = scene.ground.domain.backends.change_log.begin_epoch(scene.app.id()).await.expect("begun");
    assert_eq!(scene.hears(&behind, 1).await, ["resync_required [\"channel-s-d-0\"]"]);
    scene.create("n2", "a", None).await;
    assert_eq!(scene.hears(&behind, 1).await, ["n2"]);
    assert_eq!(behind.sent(None), begun.next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_ends_when_nobody_is_left() {
    let scene = Scene::open(json!({})).await;
    let from = scene.create("n1", "a", None).await;
    let connection = scene.connect("d", from, 1_000);
    scene.catch_up.board(scene.app.id(), &connection).await.expect("boards");
    connection.end();
    scene.has_ended().await;
}

/// Whoever goes before its lap begins has no place in the log: the others must not be led to one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_before_the_lap_begins_costs_the_others_nothing() {
    let scene = Scene::open(json!({ "rules": { "note": { "read": "public" } } })).await;
    scene.subscribe("d", None, None, Offset::new(1, 0)).await;
    let from = scene.create("n1", "a", None).await;
    for _ in 0..50 {
        let gone = scene.connect("d", from, 1_000);
        let stays = scene.connect("d", Offset::new(1, 0), 1_000);
        let boarding = scene.catch_up.board(scene.app.id(), &gone);
        gone.end();
        boarding.await.expect("boards");
        assert_eq!(scene.hears(&stays, 1).await, ["n1"]);
        stays.end();
        scene.has_ended().await;
    }
}
