//! Listeners: devices that subscribe, are cut off, stop reading for a while, come back and go on, and write down what they hear.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{
    evidence::{Connection, Filter, Heard, Listener, Look, Subscription, Wanted, Who},
    harness::PATIENCE,
    model::{END, NOTE, PAPER, TASK},
    scene::{N_USERS, Scene},
};

/// The document that says that the run is over.
pub(crate) const LAST: &str = "last";
/// Papers are never more.
const MOST_ITEMS: usize = 1_000;
/// How long a listener waits for the last change when the run is over.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// How a listener behaves.
pub(crate) struct Habits {
    pub(crate) device: String,
    who: Who,
    wanted: Vec<Wanted>,
    /// Subscribes to the last one while changes come.
    late: bool,
    /// Goes on with `since=last`, and acknowledges; else with the offset that it remembers.
    by_cursor: bool,
    /// Stops reading now and then.
    slow: bool,
}

fn wanted(model: &'static str) -> Wanted {
    Wanted { model, id: None, owner: None, filter: None }
}

/// Every kind of listener, for each user, and one that sees everything.
pub(crate) fn everybody() -> Vec<Habits> {
    let habits = |device: String, who, channels: Vec<Wanted>| Habits {
        device,
        who,
        wanted: [vec![wanted(END)], channels].concat(),
        late: false,
        by_cursor: false,
        slow: false,
    };
    let plain = || vec![wanted(TASK), wanted(NOTE), wanted(PAPER)];
    let mut all = vec![habits("auditor".to_owned(), Who::Admin, plain())];
    for user in 0..N_USERS {
        let (who, other) = (Who::User(user), (user + 1) % N_USERS);
        let with = |model, filter| Wanted { filter: Some(filter), ..wanted(model) };
        let by_id = |model, id: &str| Wanted { id: Some(id.to_owned()), ..wanted(model) };
        all.push(habits(format!("plain-{user}"), who, plain()));
        all.push(Habits {
            by_cursor: true,
            ..habits(
                format!("owners-{user}"),
                who,
                vec![
                    Wanted { owner: Some(user), ..wanted(TASK) },
                    Wanted { owner: Some(other), ..wanted(NOTE) },
                    Wanted { owner: Some(user), ..wanted(PAPER) },
                ],
            )
        });
        all.push(Habits {
            late: true,
            slow: user == 1,
            ..habits(
                format!("filters-{user}"),
                who,
                vec![
                    with(PAPER, Filter::AOrB),
                    with(PAPER, Filter::ClosedOrBare),
                    with(TASK, Filter::AtLeast(5)),
                    with(NOTE, Filter::AOrB),
                    with(TASK, Filter::ClosedOrBare),
                ],
            )
        });
        all.push(Habits {
            late: true,
            by_cursor: user == 2,
            ..habits(
                format!("ids-{user}"),
                who,
                vec![
                    by_id(PAPER, "shared-1"),
                    by_id(TASK, "shared-1"),
                    by_id(NOTE, "shared-2"),
                    with(NOTE, Filter::ClosedOrBare),
                    wanted(NOTE),
                ],
            )
        });
    }
    // A second connection of the same device: each gets everything.
    all.push(habits("plain-1".to_owned(), Who::User(1), plain()));
    all.push(Habits { slow: true, ..habits("slow".to_owned(), Who::User(0), plain()) });
    all.push(Habits { slow: true, by_cursor: true, ..habits("slow-cursor".to_owned(), Who::User(1), plain()) });
    all
}

fn spelled(filter: Filter) -> Value {
    match filter {
        Filter::AtLeast(least) => json!({ "n": { "$gte": least } }),
        Filter::AOrB => json!({ "kind": { "$in": ["a", "b"] } }),
        Filter::ClosedOrBare => json!({ "$or": [{ "open": false }, { "$not": { "meta.a": { "$exists": true } } }] }),
    }
}

type Socket = WebSocketStream<TcpStream>;

pub(crate) struct Task {
    scene: Scene,
    habits: Habits,
    chance: StdRng,
    listener: Listener,
    /// The highest offset that it was told.
    position: Option<String>,
    next_id: u64,
    /// What answers are awaited: by id, the place of a subscription, or an acknowledged offset.
    asked: Vec<(u64, Asked)>,
    /// The places of the subscriptions whose items have to be asked for anew.
    altered: BTreeSet<usize>,
    has_heard_last: bool,
}

enum Asked {
    Subscription(usize),
    /// When, and what it had heard of by then.
    Anew(usize, Instant, String),
    /// Its answer is of no interest any more.
    Late,
    Ack(String),
}

impl Task {
    pub(crate) fn new(scene: Scene, habits: Habits, number: u64) -> Self {
        let subscription = |wanted: &Wanted| Subscription { wanted: wanted.clone(), answered: None };
        let n_early = habits.wanted.len() - usize::from(habits.late);
        let listener = Listener {
            device: habits.device.clone(),
            who: habits.who,
            subscriptions: habits.wanted.iter().take(n_early).map(subscription).collect(),
            connections: Vec::new(),
            looks: Vec::new(),
            acknowledged: None,
            surely_acknowledged: None,
        };
        Self {
            chance: scene.chance(2_000 + number),
            scene,
            habits,
            listener,
            position: None,
            next_id: 0,
            asked: Vec::new(),
            altered: BTreeSet::new(),
            has_heard_last: false,
        }
    }

    /// Connects and subscribes, before anything is written.
    pub(crate) async fn begin(mut self) -> Self {
        let register = self.scene.request(self.habits.who, reqwest::Method::POST, "/device/register").await;
        let body = json!({ "id": self.habits.device, "keepFor": 3600 });
        let answer = register.json(&body).send().await.expect("an answer");
        assert!(
            answer.status().is_success() || self.habits.who == Who::Admin,
            "{}: {}",
            self.habits.device,
            answer.status()
        );
        let mut socket = self.connect().await.expect("connected");
        self.subscribe(&mut socket).await.expect("sent");
        while self.listener.subscriptions.iter().any(|subscription| subscription.answered.is_none()) {
            self.hear(&mut socket, PATIENCE).await.expect("an answer to each subscription");
        }
        self.cut("begun");
        self
    }

    /// Listens until the last change was heard.
    pub(crate) async fn run(mut self) -> Listener {
        if self.habits.late {
            let wanted = self.habits.wanted.last().cloned().expect("a channel");
            self.listener.subscriptions.push(Subscription { wanted, answered: None });
        }
        let mut give_up = None;
        while !self.has_heard_last {
            if self.scene.over.is_cancelled() {
                let give_up = give_up.get_or_insert_with(|| Instant::now() + LAST_PATIENCE);
                if Instant::now() > *give_up {
                    break; // The checker says what is missing.
                }
            }
            match self.connect().await {
                Ok(mut socket) => {
                    let end = self.listen(&mut socket).await;
                    self.cut(&end);
                    // Some say goodbye, some are just gone.
                    if self.chance.random_bool(0.3) {
                        let _gone = timeout(Duration::from_secs(1), socket.close(None)).await;
                    }
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
        self.listener
    }

    fn cut(&mut self, why: &str) {
        self.asked.clear();
        if let Some(connection) = self.listener.connections.last_mut() {
            connection.end = why.to_owned();
        }
    }

    /// One connection's life; gives why it ended.
    async fn listen(&mut self, socket: &mut Socket) -> String {
        if let Err(end) = self.subscribe(socket).await {
            return end;
        }
        let life = Duration::from_millis(self.chance.random_range(300..5_000));
        let ends = Instant::now() + life;
        let mut pauses = Instant::now() + life / 3;
        let mut n_heard = 0_u32;
        while !self.has_heard_last {
            let is_over = self.scene.over.is_cancelled();
            if Instant::now() > ends && !is_over {
                return "cut by the client".to_owned();
            }
            if self.habits.slow && Instant::now() > pauses && !is_over {
                tokio::time::sleep(Duration::from_millis(self.chance.random_range(300..1_500))).await;
                pauses = Instant::now() + Duration::from_secs(1);
            }
            match self.hear(socket, Duration::from_millis(100)).await {
                Ok(()) if self.altered.iter().any(|place| !self.is_asked_anew(*place)) => {
                    if let Err(end) = self.subscribe(socket).await {
                        return end;
                    }
                }
                Ok(()) => n_heard += 1,
                Err(end) if end.is_empty() => {}
                Err(end) => return end,
            }
            if self.habits.by_cursor
                && n_heard.is_multiple_of(7)
                && let Err(end) = self.acknowledge(socket).await
            {
                return end;
            }
        }
        "has heard everything".to_owned()
    }

    async fn connect(&mut self) -> Result<Socket, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let url = self.scene.url().await;
        let address: SocketAddr = url.trim_start_matches("http://").parse().map_err(|error| failed(&error))?;
        let tcp = TcpSocket::new_v4().map_err(|error| failed(&error))?;
        if self.habits.slow {
            tcp.set_recv_buffer_size(4_096).map_err(|error| failed(&error))?;
        }
        let stream = tcp.connect(address).await.map_err(|error| failed(&error))?;
        let is_first = self.listener.connections.is_empty();
        let since = match &self.position {
            _ if is_first => None,
            _ if self.habits.by_cursor => Some("last".to_owned()),
            position => position.clone(),
        };
        let query = since.as_ref().map(|since| format!("&since={since}")).unwrap_or_default();
        let (app, device) = (&self.scene.app, &self.habits.device);
        let token = &self.scene.person(self.habits.who).token;
        let url = format!("{}/ws?app={app}&device={device}&token={token}{query}", url.replace("http://", "ws://"));
        let cursor = (self.listener.acknowledged.clone(), self.listener.surely_acknowledged.clone());
        let opened = timeout(PATIENCE, client_async(url, stream)).await.map_err(|error| failed(&error))?;
        let mut socket = match opened {
            Ok((socket, _)) => socket,
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) if response.status().as_u16() < 500 => {
                panic!("{app} {device}: refused with {} {:?}", response.status(), response.body())
            }
            Err(error) => return Err(error.to_string()),
        };
        let mut start = text_of(&self.frame(&mut socket, "hello").await?["data"]["offset"]);
        if since.is_some() {
            start = text_of(&self.frame(&mut socket, "resumed").await?["data"]["from"]);
        }
        self.listener.connections.push(Connection {
            start,
            from_cursor: (since.as_deref() == Some("last")).then_some(cursor),
            since: since.filter(|since| since != "last"),
            heard: Vec::new(),
            end: String::new(),
        });
        Ok(socket)
    }

    /// The next frame, which has to be this one.
    async fn frame(&self, socket: &mut Socket, event: &str) -> Result<Value, String> {
        loop {
            match timeout(PATIENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let frame: Value = serde_json::from_str(text.as_str()).expect("JSON");
                    let device = &self.habits.device;
                    assert_eq!(frame["event"], event, "{} {device} was told {frame}", self.scene.app);
                    return Ok(frame);
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(other) => return Err(format!("{other:?}")),
                Err(_) => return Err(format!("no {event}")),
            }
        }
    }

    async fn subscribe(&mut self, socket: &mut Socket) -> Result<(), String> {
        for place in 0..self.listener.subscriptions.len() {
            let Subscription { wanted, answered } = &self.listener.subscriptions[place];
            let is_altered = self.altered.contains(&place) && !self.is_asked_anew(place);
            if answered.is_some() && !is_altered {
                continue;
            }
            let mut data = json!({ "model": wanted.model, "limit": if is_altered { MOST_ITEMS } else { 0 } });
            if let Some(id) = &wanted.id {
                data["modelId"] = json!(id);
            }
            if let Some(owner) = wanted.owner {
                data["userId"] = json!(self.scene.user_ids()[owner]);
            }
            if let Some(filter) = wanted.filter {
                data["filter"] = spelled(filter);
            }
            let asked = match (is_altered, &self.position) {
                (true, Some(position)) => Asked::Anew(place, Instant::now(), position.clone()),
                _ => Asked::Subscription(place),
            };
            self.ask(socket, "subscribe", data, asked).await?;
        }
        Ok(())
    }

    async fn acknowledge(&mut self, socket: &mut Socket) -> Result<(), String> {
        let heard = self.listener.connections.last().and_then(|connection| connection.heard.last());
        let Some(offset) = heard.map(|heard| heard.offset.clone()) else { return Ok(()) };
        if self.listener.acknowledged.as_ref() >= Some(&offset) {
            return Ok(());
        }
        self.listener.acknowledged = Some(offset.clone());
        let data = json!({ "offset": offset });
        if self.chance.random_bool(0.3) {
            return self.ask(socket, "ack", data, Asked::Ack(offset)).await;
        }
        self.say(socket, json!({ "event": "ack", "data": data })).await
    }

    async fn ask(&mut self, socket: &mut Socket, event: &str, data: Value, asked: Asked) -> Result<(), String> {
        self.next_id += 1;
        self.asked.push((self.next_id, asked));
        self.say(socket, json!({ "event": event, "id": self.next_id, "data": data })).await
    }

    async fn say(&self, socket: &mut Socket, frame: Value) -> Result<(), String> {
        let sending = timeout(PATIENCE, socket.send(Message::text(frame.to_string()))).await;
        sending.map_err(|_| "nothing can be sent".to_owned())?.map_err(|error| error.to_string())
    }

    /// Takes one frame; an empty error when none came in time.
    async fn hear(&mut self, socket: &mut Socket, patience: Duration) -> Result<(), String> {
        let text = match timeout(patience, socket.next()).await {
            Err(_) => return Err(String::new()),
            Ok(Some(Ok(Message::Text(text)))) => text,
            Ok(Some(Ok(Message::Close(frame)))) => return Err(format!("closed by the server: {frame:?}")),
            Ok(Some(Ok(_))) => return Ok(()),
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(None) => return Err("gone".to_owned()),
        };
        let frame: Value = serde_json::from_str(text.as_str()).expect("JSON");
        match frame["event"].as_str().unwrap_or_default() {
            "reply" | "error" => self.answered(&frame),
            _ => {
                let offset = text_of(&frame["offset"]);
                self.has_heard_last |= frame["metadata"]["id"] == LAST && frame["metadata"]["type"] == END;
                if self.position.as_ref() < Some(&offset) {
                    self.position = Some(offset.clone());
                }
                let heard = Heard { offset, at: Instant::now(), frame: Arc::new(frame) };
                if heard.is_resync() {
                    self.note_resync(&heard.frame);
                }
                let connection = self.listener.connections.last_mut().expect("a connection");
                connection.heard.push(heard);
            }
        }
        Ok(())
    }

    fn answered(&mut self, frame: &Value) {
        let (app, device) = (&self.scene.app, &self.habits.device);
        assert_eq!(frame["event"], "reply", "{app} {device} was told {frame}");
        let place = self.asked.iter().position(|(id, _)| frame["id"] == json!(id));
        let Some(place) = place else { panic!("{app} {device} was told {frame}, and has not asked") };
        match self.asked.remove(place).1 {
            Asked::Subscription(place) => {
                let (channel, offset) = (text_of(&frame["data"]["channel"]), text_of(&frame["data"]["offset"]));
                // Nothing at or below it has to come any more; whoever has heard nothing else goes on from here.
                if self.position.is_none() {
                    self.position = Some(offset.clone());
                }
                self.listener.subscriptions[place].answered = Some((channel, offset));
            }
            Asked::Anew(place, began, heard) => {
                self.altered.remove(&place);
                let data = &frame["data"];
                assert!(data.get("cursor").is_none_or(Value::is_null), "{app} {device}: more than {MOST_ITEMS} items");
                self.listener.looks.push(Look {
                    wanted: self.listener.subscriptions[place].wanted.clone(),
                    began,
                    ended: Instant::now(),
                    heard,
                    offset: text_of(&data["offset"]),
                    items: data["items"].as_array().cloned().unwrap_or_default(),
                });
            }
            Asked::Late => {}
            Asked::Ack(offset) => {
                let surely = &mut self.listener.surely_acknowledged;
                *surely = surely.take().max(Some(offset));
            }
        }
    }
}

impl Task {
    /// What is told to be altered is asked for anew. A question that was asked before does not count.
    fn note_resync(&mut self, frame: &Value) {
        let is_named = |subscription: &Subscription| {
            let named = frame["data"]["channels"].as_array();
            let channel = subscription.answered.as_ref().map(|(channel, _)| channel);
            named.is_some_and(|named| channel.is_some_and(|channel| named.contains(&json!(channel))))
        };
        let places =
            (0..self.listener.subscriptions.len()).filter(|place| is_named(&self.listener.subscriptions[*place]));
        let places: Vec<usize> = places.collect();
        for (_, asked) in &mut self.asked {
            if let Asked::Anew(place, ..) = asked
                && places.contains(place)
            {
                *asked = Asked::Late;
            }
        }
        self.altered.extend(places);
    }

    fn is_asked_anew(&self, place: usize) -> bool {
        self.asked.iter().any(|(_, asked)| matches!(asked, Asked::Anew(other, ..) if *other == place))
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
