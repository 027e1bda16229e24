//! Real tables through a real server: a week of the world's earthquakes (USGS) and four years of Seattle's weather (NOAA).
//!
//! ```text
//! cargo run --example real_tables                     a server of its own, in a temporary directory
//! cargo run --example real_tables -- --data data      the server of this data directory, as its admin
//! cargo run --example real_tables -- --url http://127.0.0.1:3000 --token ADMIN_TOKEN
//! ```
//! Every row is created through the API, some are patched and deleted, while devices of two users listen over WebSocket: by model, by
//! id, by user, by filter. Each prints what it got; that is compared with a computation over the rows that shares no code with the
//! server. The exit code says whether all of them got exactly their share.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::{SinkExt, StreamExt};
use nexxus::{
    config::{Config, Running, Sources},
    node::Node,
    service::{Failure, Stop},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

#[path = "../tests/it/tables.rs"]
mod tables;

use tables::{END, Edit, Listener, Row, Share, Tables};

/// Writes that wait for their answer at once: each is durable before it is answered, many of them by one sync of the disk.
const N_WRITERS: usize = 32;
/// How long a listener waits for its next frame before it gives up: some hear nothing until everything is written.
const PATIENCE: Duration = Duration::from_secs(300);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Run two real tables through a server and check what every listener is told.
#[derive(Parser)]
struct Arguments {
    /// The API of a running server [default: start one].
    #[arg(long, env = "NEXXUS_URL")]
    url: Option<String>,
    /// The admin token of that server.
    #[arg(long, env = "NEXXUS_TOKEN", hide_env_values = true, requires = "url")]
    token: Option<String>,
    /// The data directory of a running server on this machine, where its address and its admin token are found.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// A server, and its admin's token.
struct Server {
    url: String,
    admin_token: String,
    own: Option<Started>,
}

/// A server that runs in this process.
struct Started {
    stop: Stop,
    running: JoinHandle<Result<(), Failure>>,
    /// Removed with it.
    _directory: tempfile::TempDir,
}

/// Somebody who calls the API of one application.
#[derive(Clone)]
struct Caller {
    http: reqwest::Client,
    url: String,
    app: String,
    token: String,
    /// Empty for the admin.
    user: String,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[tokio::main]
async fn main() -> ExitCode {
    match start_and_run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("real_tables: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn start_and_run() -> Outcome<()> {
    // The libraries ask for somebody who chooses the cryptography, though nothing here is encrypted.
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a second choice of cryptography")?;
    let server = Server::find(Arguments::parse()).await?;
    let tables = Tables::read();
    let app = format!("real-tables-{:08x}", rand::random::<u32>());
    let admin = Caller::new(&server, &app);
    admin.call(Method::POST, "/application", &tables::definition(&app)).await?;
    println!("Application {app}: {} earthquakes, {} days of weather", tables.quakes.len(), tables.days.len());
    let outcome = run(&admin, &tables).await;
    admin.call(Method::DELETE, &format!("/application/{app}"), &Value::Null).await?;
    if let Some(own) = server.own {
        own.stop.cancel();
        own.running.await??;
    }
    outcome
}

async fn run(admin: &Caller, tables: &Tables) -> Outcome<()> {
    let users = [admin.register("usgs").await?, admin.register("noaa").await?];
    let mut listening = Vec::new();
    for (place, listener) in tables.listeners([&users[0].user, &users[1].user]).into_iter().enumerate() {
        let mut socket = users[listener.user].connect(&format!("listener-{place}")).await?;
        subscribe(&mut socket, &listener.subscription).await?;
        subscribe(&mut socket, &json!({ "model": END })).await?;
        listening.push((listener, tokio::spawn(listen(socket))));
    }
    println!("{} devices listen; writing …", listening.len());

    let started = Instant::now();
    write_all(&users, tables).await?;
    let edits = |wanted: fn(Edit) -> bool| tables.all().filter(|row| wanted(row.edit)).count();
    let patched = edits(|edit| matches!(edit, Edit::Raise(_)));
    let deleted = edits(|edit| edit == Edit::Delete);
    let (created, seconds) = (tables.all().count(), started.elapsed().as_secs_f64());
    println!(
        "{created} created, {patched} patched, {deleted} deleted, each on disk when it was answered: {seconds:.1} s\n"
    );
    users[0].call(Method::POST, &format!("/model/{END}"), &json!({})).await?;

    println!("{:<22} {:>8} {:>8} {:>8} {:>8} {:>8}", "listener", "created", "entered", "changed", "left", "deleted");
    let mut wrong = Vec::new();
    for (listener, task) in listening {
        match check(&listener, &task.await??, tables) {
            Ok(Share { created, entered, changed, left, deleted }) => {
                let name = listener.name;
                println!(
                    "{name:<22} {created:>8} {entered:>8} {changed:>8} {left:>8} {deleted:>8}   exactly its share"
                );
            }
            Err(why) => wrong.push(why),
        }
    }
    if wrong.is_empty() {
        println!("\nEvery listener was told exactly what a computation over the tables says.");
        Ok(())
    } else {
        Err(format!("not everybody was told what they had to be told:\n{}", wrong.join("\n")).into())
    }
}

fn check(listener: &Listener, frames: &[Value], tables: &Tables) -> Result<Share, String> {
    if frames.is_empty() {
        Err(format!("{}: nothing was heard", listener.name))
    } else {
        listener.check(frames, tables)
    }
}

/// Creates every row, and edits it after that.
async fn write_all(users: &[Caller; 2], tables: &Tables) -> Outcome<()> {
    let rows: Arc<[Row]> = tables.all().cloned().collect();
    let mut writers = Vec::new();
    for writer in 0..N_WRITERS {
        let (rows, users) = (rows.clone(), users.clone());
        writers.push(tokio::spawn(async move {
            for row in rows.iter().skip(writer).step_by(N_WRITERS) {
                write(&users[row.owner], row).await?;
            }
            Outcome::Ok(())
        }));
    }
    for writer in writers {
        writer.await??;
    }
    Ok(())
}

async fn write(user: &Caller, row: &Row) -> Outcome<()> {
    user.call(Method::POST, &format!("/model/{}", row.model), &row.body()).await?;
    let path = format!("/model/{}/{}", row.model, row.id);
    match row.edit {
        Edit::None => {}
        Edit::Raise(field) => {
            let patch = json!([{ "op": "incr", "path": [field], "value": [1] }]);
            user.call(Method::PATCH, &path, &patch).await?;
        }
        Edit::Delete => {
            user.call(Method::DELETE, &path, &Value::Null).await?;
        }
    }
    Ok(())
}

/// All frames of changes, up to the end.
async fn listen(mut socket: Socket) -> Outcome<Vec<Value>> {
    let mut frames = Vec::new();
    loop {
        let frame = next(&mut socket).await?;
        match frame["event"].as_str() {
            Some("progress") => {}
            _ if frame["metadata"]["type"] == END => return Ok(frames),
            _ => frames.push(frame),
        }
    }
}

async fn subscribe(socket: &mut Socket, data: &Value) -> Outcome<()> {
    socket.send(Message::text(json!({ "event": "subscribe", "id": 1, "data": data }).to_string())).await?;
    loop {
        // Nothing is written yet: what comes is `hello`, then the answer.
        let frame = next(socket).await?;
        match frame["event"].as_str() {
            Some("reply") => return Ok(()),
            Some("error") => return Err(format!("{data} was refused: {}", frame["data"]).into()),
            _ => {}
        }
    }
}

async fn next(socket: &mut Socket) -> Outcome<Value> {
    loop {
        let message =
            tokio::time::timeout(PATIENCE, socket.next()).await.map_err(|_| "nothing was heard for five minutes")?;
        match message.ok_or("the connection ended")?? {
            Message::Text(text) => return Ok(serde_json::from_str(text.as_str())?),
            Message::Close(frame) => return Err(format!("the server closed the connection: {frame:?}").into()),
            _ => {}
        }
    }
}

impl Server {
    /// The server that the arguments name, else one that is started here.
    async fn find(arguments: Arguments) -> Outcome<Self> {
        match (arguments.url, arguments.data) {
            (Some(url), _) => {
                let token = arguments.token.ok_or("--url needs --token, the admin token of that server")?;
                println!("Server {url}");
                Ok(Self { url: url.trim_end_matches('/').to_owned(), admin_token: token, own: None })
            }
            (None, Some(data)) => {
                let file = data.join("server.json");
                let text = std::fs::read(&file).map_err(|error| format!("no server in {}: {error}", data.display()))?;
                let addresses: Value = serde_json::from_slice(&text)?;
                let url = addresses["api"].as_str().ok_or("server.json names no API")?.to_owned();
                println!("Server {url}, of {}", data.display());
                Ok(Self { url, admin_token: admin_token(&data)?, own: None })
            }
            (None, None) => Self::start().await,
        }
    }

    /// The whole server, in this process.
    async fn start() -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let setting = |key: &str, value: &str| ("example".to_owned(), key.to_owned(), value.to_owned());
        let flags = vec![
            setting("data.dir", &directory.path().display().to_string()),
            setting("api.listen", "127.0.0.1:0"),
            setting("workers.websocket.port", "0"),
            // However full the disk of temporary files is: these are gone in a minute.
            setting("data.reserve", "0"),
        ];
        let (config, layers) = Config::load(&Sources { flags, ..Sources::default() })?;
        let node = Node::start(Running::begin(config, layers)).await?;
        let url = node.addresses.api_url().ok_or("the server has no API")?;
        let admin_token = admin_token(directory.path())?;
        let stop = Stop::new();
        let running = tokio::spawn(node.run(stop.clone()));
        println!("Server {url}, started for this run in a temporary directory");
        Ok(Self { url, admin_token, own: Some(Started { stop, running, _directory: directory }) })
    }
}

fn admin_token(data: &Path) -> Outcome<String> {
    let file = data.join("admin_token");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(text.trim().to_owned())
}

impl Caller {
    fn new(server: &Server, app: &str) -> Self {
        let (url, token) = (server.url.clone(), server.admin_token.clone());
        Self { http: reqwest::Client::new(), url, app: app.to_owned(), token, user: String::new() }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Outcome<Value> {
        let what = format!("{method} {path}");
        let request = self.http.request(method, format!("{}{path}", self.url));
        let request = request.header("nxx-app-id", &self.app).bearer_auth(&self.token);
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        if status.is_success() {
            Ok(serde_json::from_str(&text).unwrap_or_default())
        } else {
            Err(format!("{what} was answered {status}: {text}").into())
        }
    }

    /// Registers a user, who calls from then on.
    async fn register(&self, name: &str) -> Outcome<Self> {
        let password = format!("{:032x}", rand::random::<u128>());
        let body = json!({ "username": name, "password": password });
        let login = self.call(Method::POST, "/user/register", &body).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self { token: text(&login["token"]), user: text(&login["user"]["id"]), ..self.clone() })
    }

    /// Connects a device of this user.
    async fn connect(&self, device: &str) -> Outcome<Socket> {
        self.call(Method::POST, "/device/register", &json!({ "id": device })).await?;
        let url = self.url.replacen("http", "ws", 1);
        let (socket, _) = connect_async(format!("{url}/ws?device={device}&token={}", self.token)).await?;
        Ok(socket)
    }
}
