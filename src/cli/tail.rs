//! `nexxus tail`: subscribes, and prints each change as it comes. A lost connection is taken up again where it was.

mod line;
mod socket;

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::socket::{End, Socket};
use super::{
    Exit,
    client::{Client, Target, json_argument},
    output::{self, plain, say},
};

/// The pause before the first new attempt to connect; each one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Seconds; the server asks for a pause that spreads its devices.
const LONGEST_RESYNC_PAUSE: f64 = 30.0;
/// Frames that may come before the answer to the subscription; the server sends no more than it buffers.
const EARLY_FRAMES: usize = 10_000;

/// Print changes of a model as they come.
///
/// Whatever happens on the way, each change is printed once: after a lost connection it goes on where it was.
#[derive(Debug, Args)]
pub(super) struct Tail {
    /// The model, e.g. task.
    model: String,
    /// Of which documents, e.g. '{"status":"todo"}': JSON, @FILE, or - for stdin.
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// Begin with what the device missed: from an offset, or from the `last` one that it acknowledged. For a device that was
    /// subscribed before; see --device.
    #[arg(long, value_name = "OFFSET")]
    since: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// What is followed, and how far it was read.
struct Following<P> {
    /// Prints a line.
    print: P,
    client: Client,
    device: String,
    request: Value,
    /// The key of our channel; other subscriptions of the device are not ours to print.
    channel: Option<String>,
    /// From where to go on: an offset, or `last`.
    since: Option<String>,
    /// The highest offset that was printed.
    printed: Option<String>,
    /// Frames, with their texts, that came before the answer to the subscription.
    early: VecDeque<(String, Value)>,
    /// Tell the server how far it was printed: the next `--since last` begins there.
    acknowledges: bool,
}

impl Tail {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let filter = self.filter.map(|filter| json_argument("the filter", &filter)).transpose()?;
        let device = client.device().map_or_else(|| format!("tail-{:08x}", rand::random::<u32>()), str::to_owned);
        if self.since.is_some() && client.device().is_none() {
            return Err(Exit::Usage(
                "--since is for a device that was subscribed before: name it by --device".to_owned(),
            ));
        }
        let mut request = json!({ "model": self.model, "limit": 0 });
        if let Some(filter) = filter {
            request["filter"] = filter;
        }
        let acknowledges = self.since.as_deref() == Some("last");
        let following = Following { since: self.since, acknowledges, ..Following::new(client, device, request, say) };
        tokio::select! {
            outcome = following.follow() => outcome,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }
}

impl<P: FnMut(&str) -> Result<(), Exit>> Following<P> {
    fn new(client: Client, device: String, request: Value, print: P) -> Self {
        Self {
            print,
            client,
            device,
            request,
            channel: None,
            since: None,
            printed: None,
            early: VecDeque::new(),
            acknowledges: false,
        }
    }

    async fn follow(mut self) -> Result<(), Exit> {
        let mut pause = FIRST_PAUSE;
        let mut was_connected = false;
        let mut said = String::new();
        loop {
            let end = match Socket::connect(&self.client, &self.device, self.since.as_deref()).await {
                Ok(socket) => {
                    pause = FIRST_PAUSE;
                    said.clear();
                    if was_connected {
                        eprintln!("connected again");
                    }
                    was_connected = true;
                    self.converse(socket).await
                }
                Err(end) if !was_connected => return Err(end.into_exit()),
                Err(end) => end,
            };
            match end {
                // While it is away, each reason is told once.
                End::Lost(why) if why == said => {}
                End::Lost(why) => {
                    eprintln!("{why}; connecting again");
                    said = why;
                }
                End::Final(exit) => return Err(exit),
            }
            sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection, to its end.
    async fn converse(&mut self, mut socket: Socket) -> End {
        self.early.clear();
        // The server keeps the subscription of a device that comes back.
        if self.channel.is_none()
            && let Err(end) = self.subscribe(&mut socket).await
        {
            return end;
        }
        loop {
            if let Err(end) = self.hear(&mut socket).await {
                return end;
            }
        }
    }

    async fn hear(&mut self, socket: &mut Socket) -> Result<(), End> {
        let (text, frame) = match self.early.pop_front() {
            Some(frame) => frame,
            None => socket.next().await?,
        };
        match frame["event"].as_str() {
            Some("model_created" | "model_updated" | "model_deleted") => self.print(&text, &frame)?,
            Some("progress") => self.since = offset_of(&frame),
            Some("resync_required") if self.concerns_us(&frame) => return self.resync(socket, &frame).await,
            // About other subscriptions and writes of the same device.
            _ => return Ok(()),
        }
        match (self.acknowledges, &self.since) {
            (true, Some(offset)) => socket.say(&json!({ "event": "ack", "data": { "offset": offset } })).await,
            _ => Ok(()),
        }
    }

    /// Subscribes, and keeps the frames that come before the answer. To subscribe again to the same channel changes nothing.
    async fn subscribe(&mut self, socket: &mut Socket) -> Result<(), End> {
        socket.say(&json!({ "event": "subscribe", "id": 1, "data": self.request })).await?;
        let answer = loop {
            let (text, frame) = socket.next().await?;
            match frame["event"].as_str() {
                Some("reply") => break frame,
                Some("error") => return Err(End::Final(Exit::Refused(frame["data"].clone()))),
                _ if self.early.len() < EARLY_FRAMES => self.early.push_back((text, frame)),
                _ => return Err(End::Lost("the server does not answer the subscription".to_owned())),
            }
        };
        self.channel = answer["data"]["channel"].as_str().map(str::to_owned);
        if self.since.is_none() {
            self.since = answer["data"]["offset"].as_str().map(str::to_owned);
        }
        eprintln!("listening on {} as device {} (Ctrl-C stops)", self.channel_shown(), self.device);
        Ok(())
    }

    fn channel_shown(&self) -> String {
        self.channel.as_deref().map(plain).unwrap_or_default()
    }

    fn print(&mut self, text: &str, frame: &Value) -> Result<(), End> {
        let offset = offset_of(frame);
        // Offsets of one application compare as texts. Delivery is at least once; we print once.
        if offset.is_some() && offset <= self.printed {
            return Ok(());
        }
        if self.is_ours(frame) {
            let line = if self.client.json { text.to_owned() } else { line::of(frame, self.channel.as_deref()) };
            (self.print)(&line).map_err(End::Final)?;
        }
        self.since.clone_from(&offset);
        self.printed = offset;
        Ok(())
    }

    fn is_ours(&self, frame: &Value) -> bool {
        let Some(channel) = &self.channel else { return false };
        ["channels", "left"].iter().any(|name| line::names(frame, name, channel))
    }

    fn concerns_us(&self, resync: &Value) -> bool {
        let channels = resync["data"]["channels"].as_array().map_or(&[][..], Vec::as_slice);
        channels.is_empty() || channels.iter().any(|channel| channel.as_str() == self.channel.as_deref())
    }

    /// The server cannot go on where we were; we go on from now.
    async fn resync(&mut self, socket: &mut Socket, frame: &Value) -> Result<(), End> {
        let reason = match frame["data"]["reason"].as_str() {
            Some("device_expired") => "the server no longer knows this device".to_owned(),
            Some("rules") => "who may read what has changed".to_owned(),
            Some(other) => plain(other),
            None => "the history no longer reaches back".to_owned(),
        };
        eprintln!("{reason}: changes may be missing here; going on with what comes now");
        let after = frame["data"]["after"].as_f64().unwrap_or_default();
        sleep(Duration::from_secs_f64(after.clamp(0.0, LONGEST_RESYNC_PAUSE))).await;
        self.since = None;
        self.subscribe(socket).await
    }
}

impl End {
    fn into_exit(self) -> Exit {
        match self {
            End::Final(exit) => exit,
            End::Lost(why) => Exit::Failed(why),
        }
    }
}

fn offset_of(frame: &Value) -> Option<String> {
    frame["offset"].as_str().map(str::to_owned)
}

/// A problem that came as a frame or as an answer, as one sentence.
fn sentence(problem: &Value) -> String {
    output::problem(problem).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use axum::{
        Router,
        extract::{
            Query, State, WebSocketUpgrade,
            ws::{CloseFrame, Message, WebSocket},
        },
        response::{IntoResponse, Response},
        routing::get,
    };
    use parking_lot::Mutex;

    use super::*;

    /// What the server does on a connection.
    #[derive(Clone)]
    enum Act {
        Says(Value),
        /// Waits for a frame of this event; it comes with an id, which is answered with this data.
        Answers(&'static str, Value),
        Closes(u16),
    }
    use Act::{Answers, Closes, Says};

    /// One script for each connection, and the `since` that it has to come with.
    type Scripts = Arc<Mutex<VecDeque<(Option<&'static str>, Vec<Act>)>>>;

    async fn upgrade(
        State(scripts): State<Scripts>,
        Query(parameters): Query<HashMap<String, String>>,
        upgrade: WebSocketUpgrade,
    ) -> Response {
        let Some((since, script)) = scripts.lock().pop_front() else {
            let problem = nexxus_storage::model::Problem::new(
                nexxus_storage::model::problem::ProblemKind::Unauthorized,
                "the token is void",
            );
            return crate::http::problem_response(&problem).into_response();
        };
        assert_eq!(parameters.get("since").map(String::as_str), since);
        assert_eq!((parameters["app"].as_str(), parameters["device"].as_str()), ("tasks", "phone"));
        upgrade.on_upgrade(|socket| play(socket, script))
    }

    async fn play(mut socket: WebSocket, script: Vec<Act>) {
        for act in script {
            match act {
                Says(frame) => socket.send(Message::text(frame.to_string())).await.expect("sent"),
                Answers(event, data) => {
                    let heard = socket.recv().await.expect("a frame").expect("a frame");
                    let asked: Value = serde_json::from_str(heard.to_text().expect("a text")).expect("JSON");
                    assert_eq!(asked["event"], event);
                    let answer = json!({ "event": "reply", "id": asked["id"], "data": data });
                    socket.send(Message::text(answer.to_string())).await.expect("sent");
                }
                Closes(code) => {
                    let frame = CloseFrame { code, reason: "".into() };
                    socket.send(Message::Close(Some(frame))).await.expect("sent");
                }
            }
        }
    }

    /// Follows what this server says; gives the ids of the printed frames, and why it ended.
    async fn follow(scripts: Vec<(Option<&'static str>, Vec<Act>)>) -> (Vec<String>, Exit) {
        let scripts: Scripts = Arc::new(Mutex::new(scripts.into()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().route("/ws", get(upgrade)).with_state(scripts.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut printed = Vec::new();
        let mut client = Client::new(&url, None).expect("a client").in_app("tasks");
        client.json = true;
        let print = |line: &str| {
            let frame: Value = serde_json::from_str(line).expect("JSON");
            printed.push(frame["metadata"]["id"].as_str().expect("an id").to_owned());
            Ok(())
        };
        let following = Following::new(client, "phone".to_owned(), json!({ "model": "task" }), print);
        let exit = following.follow().await.expect_err("it ends");
        server.abort();
        assert!(scripts.lock().is_empty(), "it did not come back");
        (printed, exit)
    }

    fn hello() -> Act {
        Says(json!({ "event": "hello", "data": { "deviceId": "phone" } }))
    }

    fn subscribed(offset: &str) -> Act {
        Answers("subscribe", json!({ "subscriptionId": "s", "channel": "ours", "items": [], "offset": offset }))
    }

    fn created(offset: &str, channel: &str) -> Act {
        let metadata = json!({ "id": offset, "type": "task", "version": 1, "channels": [channel] });
        Says(json!({ "event": "model_created", "data": {}, "metadata": metadata, "offset": offset }))
    }

    #[tokio::test]
    async fn a_lost_connection_goes_on_where_it_was() {
        let (printed, exit) = follow(vec![
            (None, vec![hello(), created("09", "ours"), subscribed("10"), created("11", "ours"), Closes(1001)]),
            // Delivered again, of another subscription of the device, in the progress of the log.
            (
                Some("11"),
                vec![hello(), created("11", "ours"), created("12", "theirs"), created("13", "ours"), Closes(1001)],
            ),
            (Some("13"), vec![hello(), Says(json!({ "event": "progress", "offset": "20" })), Closes(4008)]),
            (Some("20"), vec![hello(), created("21", "ours"), Closes(4003)]),
        ])
        .await;
        assert_eq!(printed, ["09", "11", "13", "21"]);
        assert_eq!(exit, Exit::Failed("the user, the device or the application was revoked".to_owned()));
    }

    #[tokio::test]
    async fn it_subscribes_anew_where_the_server_cannot_go_on() {
        let resync = |channel: &str| Says(json!({ "event": "resync_required", "data": { "channels": [channel] } }));
        let (printed, exit) = follow(vec![
            (None, vec![hello(), subscribed("10"), created("11", "ours"), Closes(1001)]),
            (
                Some("11"),
                vec![hello(), resync("theirs"), resync("ours"), subscribed("50"), created("51", "ours"), Closes(1001)],
            ),
            (Some("51"), vec![hello(), Closes(4001)]),
        ])
        .await;
        assert_eq!(printed, ["11", "51"]);
        assert_eq!(exit, Exit::Failed("the token has expired".to_owned()));
    }

    #[tokio::test]
    async fn a_refused_upgrade_is_told_with_its_problem() {
        let (printed, exit) = follow(Vec::new()).await;
        assert!(printed.is_empty());
        let Exit::Refused(problem) = exit else { panic!("{exit:?}") };
        assert_eq!((problem["status"].as_u64(), problem["detail"].as_str()), (Some(401), Some("the token is void")));
    }
}
