//! The words that whole-system tests are written in: a server, its applications, their users, and devices that listen.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// How long anything may take before a test gives up on it. Nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The real binary, on a data directory of its own.
pub(crate) struct Server {
    child: Child,
    dir: PathBuf,
    owned_dir: Option<TempDir>,
    environment: Vec<(String, String)>,
    pub(crate) url: String,
    pub(crate) admin_token: String,
    client: reqwest::Client,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With settings, as environment variables name them (`LIMITS__BODY_BYTES`).
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_owned();
        let mut server = Self::start_in(&path, settings).await;
        server.owned_dir = Some(dir);
        server
    }

    pub(crate) async fn start_in(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let environment = environment(settings);
        let (child, url, admin_token) = launch(dir, &environment).await;
        Self { child, dir: dir.to_owned(), owned_dir: None, environment, url, admin_token, client: http_client() }
    }

    /// Kills the process as a crash would, at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// Asks it to stop; gives its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        signal(self.pid(), "TERM");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server did not stop");
    }

    /// The process, for signals.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts it again on the same data, with other settings.
    pub(crate) async fn restart_with(&mut self, settings: &[(&str, &str)]) {
        self.environment = environment(settings);
        self.restart().await;
    }

    /// Starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        assert!(self.restart_unless_it_ends().await, "the server ended: {}", log_of(&self.dir));
    }

    /// Starts it again; false when it ends before it is ready.
    pub(crate) async fn restart_unless_it_ends(&mut self) -> bool {
        let Ok(started) = try_launch(&self.dir, &self.environment).await else { return false };
        (self.child, self.url, self.admin_token) = started;
        true
    }

    /// Starts it again on the same data, and does not wait until it is ready: until `/readyz` answers.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn restart_unready(&mut self) {
        let started = launch_until(StatusCode::SERVICE_UNAVAILABLE, &self.dir, &self.environment).await;
        (self.child, self.url, self.admin_token) = started.expect("the server runs");
    }

    /// What fails, panics or dies from the next start on (`nexxus_storage::failpoint`).
    #[cfg(feature = "failpoints")]
    pub(crate) fn failpoints(&mut self, places: &str) {
        self.environment.retain(|(name, _)| name != "FAILPOINTS");
        self.environment.push(("FAILPOINTS".to_owned(), places.to_owned()));
    }

    /// Whether it has ended, and with which code.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waited for")
    }

    /// Its data directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Calls a route as the admin.
    pub(crate) async fn admin(&self, method: Method, path: &str, body: Value) -> Answer {
        let request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.admin_token);
        send(request, body).await
    }

    /// Makes an application.
    pub(crate) async fn app(&self, id: &str, schema: Value, rules: Value) -> App {
        self.app_as(json!({ "id": id, "name": id, "schema": schema, "rules": rules })).await
    }

    /// Makes an application by its whole definition.
    pub(crate) async fn app_as(&self, definition: Value) -> App {
        let id = definition["id"].as_str().expect("an id").to_owned();
        self.admin(Method::POST, "/application", definition).await.expect(StatusCode::CREATED);
        self.known_app(&id)
    }

    /// An application that was made in another way.
    pub(crate) fn known_app(&self, id: &str) -> App {
        let (url, admin_token) = (self.url.clone(), self.admin_token.clone());
        App { id: id.to_owned(), url, admin_token, client: self.client.clone() }
    }

    /// The same application after a restart.
    pub(crate) fn again(&self, app: &App) -> App {
        app.at(&self.url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if std::thread::panicking()
            && let Some(dir) = self.owned_dir.take()
        {
            eprintln!("the data of the server is kept in {}", dir.keep().display());
        }
    }
}

/// Settings as environment variables. However full the disk is, tests go on.
fn environment(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let settings = [("DATA__RESERVE", "0")].iter().chain(settings);
    settings.map(|(name, value)| (format!("NEXXUS_{name}"), (*value).to_owned())).collect()
}

pub(crate) fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().expect("kill runs");
    assert!(status.success(), "kill -{signal} {pid}");
}

/// A client of its own. The libraries ask for somebody who chooses the cryptography, though nothing here is encrypted.
pub(crate) fn http_client() -> reqwest::Client {
    static CHOSEN: std::sync::Once = std::sync::Once::new();
    CHOSEN.call_once(|| rustls::crypto::ring::default_provider().install_default().expect("the first choice"));
    reqwest::Client::new()
}

async fn launch(dir: &Path, environment: &[(String, String)]) -> (Child, String, String) {
    try_launch(dir, environment)
        .await
        .unwrap_or_else(|status| panic!("the server ended with {status}: {}", log_of(dir)))
}

/// The real binary. Nothing that is meant for the test, or for whoever runs it, leads it elsewhere.
pub(crate) fn nexxus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexxus"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEXXUS_")) {
        command.env_remove(name);
    }
    command
}

/// An error when the server ends before it is ready.
async fn try_launch(dir: &Path, environment: &[(String, String)]) -> Result<(Child, String, String), ExitStatus> {
    launch_until(StatusCode::OK, dir, environment).await
}

/// The same until `/readyz` answers with a status.
async fn launch_until(
    wanted: StatusCode,
    dir: &Path,
    environment: &[(String, String)],
) -> Result<(Child, String, String), ExitStatus> {
    let addresses = dir.join("server.json");
    let _gone = std::fs::remove_file(&addresses);
    let mut command = nexxus();
    command.arg("serve").arg("--data").arg(dir).current_dir(dir);
    command.env("NEXXUS_API__LISTEN", "127.0.0.1:0").env("NEXXUS_WORKERS__WEBSOCKET__PORT", "0");
    command.envs(registry_elsewhere(dir));
    command.envs(documents_elsewhere(dir));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let log = std::fs::File::options().create(true).append(true).open(dir.join("server.log")).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    let mut child = command.spawn().expect("the server starts");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("waited for") {
            return Err(status);
        }
        if let Some(found) = answers(wanted, dir, &addresses).await {
            return Ok((child, found.0, found.1));
        }
        assert!(Instant::now() < deadline, "the server is not ready: {}", log_of(dir));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// With `NEXXUS_TEST_REGISTRY=redis`, or `redis-cluster`, all servers have their registry there (`tests/cluster/up redis redis-cluster`),
/// each data directory under a prefix of its own.
fn registry_elsewhere(dir: &Path) -> Vec<(&'static str, String)> {
    let (mode, variable, usual) = match std::env::var("NEXXUS_TEST_REGISTRY").as_deref() {
        Ok("redis") => ("single", "NEXXUS_TEST_REDIS", "redis://127.0.0.1:26001"),
        Ok("redis-cluster") => ("cluster", "NEXXUS_TEST_REDIS_CLUSTER", "redis://127.0.0.1:26011"),
        _ => return Vec::new(),
    };
    let name: String = dir.display().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![
        ("NEXXUS_REGISTRY__ADAPTER", "redis".to_owned()),
        ("NEXXUS_REDIS__MODE", mode.to_owned()),
        ("NEXXUS_REDIS__NODES", std::env::var(variable).unwrap_or_else(|_| usual.to_owned())),
        ("NEXXUS_REDIS__PREFIX", format!("it-{}", &name[name.len().saturating_sub(48)..])),
    ]
}

/// With `NEXXUS_TEST_DOCUMENTS=elasticsearch` all servers have their documents there (`tests/cluster/up elasticsearch`), each data
/// directory in indices of its own. Backups and `doctor` are of embedded documents only.
fn documents_elsewhere(dir: &Path) -> Vec<(&'static str, String)> {
    if std::env::var("NEXXUS_TEST_DOCUMENTS").is_ok_and(|engine| engine == "elasticsearch") {
        let node = std::env::var("NEXXUS_TEST_ELASTICSEARCH").unwrap_or_else(|_| "http://127.0.0.1:26041".to_owned());
        let name: String = dir.display().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        let prefix = format!("it{}", &name[name.len().saturating_sub(30)..]);
        return vec![
            ("NEXXUS_DATABASE__ADAPTER", "elasticsearch".to_owned()),
            ("NEXXUS_DATABASE__NODES", node),
            ("NEXXUS_DATABASE__PREFIX", prefix),
            ("NEXXUS_DATABASE__REPLICAS", "0".to_owned()),
        ];
    }
    Vec::new()
}

async fn answers(wanted: StatusCode, dir: &Path, addresses: &Path) -> Option<(String, String)> {
    let addresses: Value = serde_json::from_slice(&std::fs::read(addresses).ok()?).ok()?;
    let url = addresses["api"].as_str()?.trim_end_matches('/').to_owned();
    let answer = http_client().get(format!("{url}/readyz")).send().await.ok()?;
    let token = std::fs::read_to_string(dir.join("admin_token")).ok()?.trim().to_owned();
    (answer.status() == wanted).then_some((url, token))
}

pub(crate) fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("server.log")).unwrap_or_default()
}

/// What a route answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The body, when the status is the expected one.
    #[track_caller]
    pub(crate) fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// The problem type, when the status is the expected one.
    #[track_caller]
    pub(crate) fn problem(self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        self.body["type"].as_str().unwrap_or_default().to_owned()
    }
}

async fn send(request: reqwest::RequestBuilder, body: Value) -> Answer {
    let request = if body.is_null() { request } else { request.json(&body) };
    answer_of(request.send().await.expect("an answer")).await
}

async fn answer_of(response: reqwest::Response) -> Answer {
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

/// An application, and its admin.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) id: String,
    pub(crate) url: String,
    admin_token: String,
    client: reqwest::Client,
}

impl App {
    /// The same application on a server that stands elsewhere.
    pub(crate) fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self.clone() }
    }

    /// Registers a user.
    pub(crate) async fn user(&self, name: &str) -> User {
        let body = json!({ "username": name, "password": format!("{name}-password") });
        let request = self.client.post(format!("{}/user/register", self.url)).header("nxx-app-id", &self.id);
        let login = send(request, body).await.expect(StatusCode::CREATED);
        User {
            app: self.clone(),
            id: login["user"]["id"].as_str().expect("an id").to_owned(),
            token: login["token"].as_str().expect("a token").to_owned(),
        }
    }

    /// Whoever holds the admin token, acting in this application.
    pub(crate) fn admin(&self) -> User {
        User { app: self.clone(), id: String::new(), token: self.admin_token.clone() }
    }

    /// A caller without a token.
    pub(crate) fn anonymous(&self) -> User {
        User { app: self.clone(), id: String::new(), token: String::new() }
    }
}

/// A caller of an application.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) app: App,
    pub(crate) id: String,
    pub(crate) token: String,
}

impl User {
    /// A request, to be completed.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request =
            self.app.client.request(method, format!("{}{path}", self.app.url)).header("nxx-app-id", &self.app.id);
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        send(self.request(method, path), body).await
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        answer_of(request.send().await.expect("an answer")).await
    }

    /// Creates a document; gives its id and the id of the change.
    pub(crate) async fn create(&self, model: &str, fields: Value) -> (String, String) {
        let body = self.call(Method::POST, &format!("/model/{model}"), fields).await.expect(StatusCode::ACCEPTED);
        let text = |name: &str| body[name].as_str().expect("a text").to_owned();
        (text("id"), text("changeId"))
    }

    /// Replaces one field; gives the id of the change.
    pub(crate) async fn replace(&self, model: &str, id: &str, field: &str, value: Value) -> String {
        let patches = json!([{ "op": "replace", "path": [field], "value": [value] }]);
        let body =
            self.call(Method::PATCH, &format!("/model/{model}/{id}"), patches).await.expect(StatusCode::ACCEPTED);
        body["changeId"].as_str().expect("a text").to_owned()
    }

    /// Deletes a document; gives the id of the change.
    pub(crate) async fn delete(&self, model: &str, id: &str) -> String {
        let body =
            self.call(Method::DELETE, &format!("/model/{model}/{id}"), Value::Null).await.expect(StatusCode::ACCEPTED);
        body["changeId"].as_str().expect("a text").to_owned()
    }

    /// Reads a document that reflects this change.
    pub(crate) async fn get_after(&self, model: &str, id: &str, change: &str) -> Answer {
        let request = self.request(Method::GET, &format!("/model/{model}/{id}")).header("nxx-after", change);
        self.send(request).await
    }

    /// Registers a device and connects it.
    pub(crate) async fn device(&self, id: &str) -> Device {
        self.register_device(id, Value::Null).await;
        self.connect(id, None).await
    }

    /// Registers a device; gives a token bound to it.
    pub(crate) async fn register_device(&self, id: &str, keep_for: Value) -> Value {
        let answer = self.call(Method::POST, "/device/register", json!({ "id": id, "keepFor": keep_for })).await;
        assert!(answer.status.is_success(), "{}", answer.body);
        answer.body
    }

    /// Connects a device; waits for its `hello`.
    pub(crate) async fn connect(&self, device: &str, since: Option<&str>) -> Device {
        let mut device = self.try_connect(device, since).await.expect("a connection");
        device.hello = device.next().await;
        assert_eq!(device.hello["event"], "hello");
        device
    }

    pub(crate) async fn try_connect(
        &self,
        device: &str,
        since: Option<&str>,
    ) -> Result<Device, Box<tokio_tungstenite::tungstenite::Error>> {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let token = if self.token.is_empty() { String::new() } else { format!("&token={}", self.token) };
        let url = self.app.url.replace("http://", "ws://");
        let url = format!("{url}/ws?app={}&device={device}{token}{since}", self.app.id);
        let (socket, _) = connect_async(url).await.map_err(Box::new)?;
        Ok(Device { socket, hello: Value::Null, next_id: 0, patience: PATIENCE, early: Default::default() })
    }
}

/// A connected device.
pub(crate) struct Device {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) hello: Value,
    next_id: u64,
    /// How long the next frame may take.
    pub(crate) patience: Duration,
    /// Frames that came while an answer was awaited.
    early: std::collections::VecDeque<Value>,
}

/// What a socket gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Frame(Value),
    Closed(u16),
}

impl Device {
    /// Subscribes; gives the answer's data.
    pub(crate) async fn subscribe(&mut self, data: Value) -> Value {
        let answer = self.ask("subscribe", data).await;
        assert_eq!(answer["event"], "reply", "{answer}");
        answer["data"].clone()
    }

    /// Sends a frame and waits for its answer.
    pub(crate) async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.next_id += 1;
        let id = json!(self.next_id);
        self.say(json!({ "event": event, "id": id, "data": data })).await;
        loop {
            match self.hear().await {
                Heard::Frame(frame) if frame["id"] == id && frame["event"] != "model_created" => return frame,
                Heard::Frame(frame) => self.early.push_back(frame),
                Heard::Closed(code) => panic!("closed with {code}"),
            }
        }
    }

    pub(crate) async fn say(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.expect("sent");
    }

    /// The next frame that is a change or tells of one.
    pub(crate) async fn next(&mut self) -> Value {
        if let Some(frame) = self.early.pop_front() {
            return frame;
        }
        loop {
            match self.hear().await {
                Heard::Frame(frame) if frame["event"] == "progress" => {}
                Heard::Frame(frame) => return frame,
                Heard::Closed(code) => panic!("closed with {code}"),
            }
        }
    }

    /// The code that the connection is closed with; frames before it are passed over.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            if let Heard::Closed(code) = self.hear().await {
                return code;
            }
        }
    }

    /// Ends the connection from this side, without a code; gives the one that is answered.
    pub(crate) async fn hang_up(mut self) -> u16 {
        self.socket.send(Message::Close(None)).await.expect("sent");
        self.closed().await
    }

    pub(crate) async fn hear(&mut self) -> Heard {
        let heard = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Heard::Frame(serde_json::from_str(text.as_str()).expect("JSON"));
                    }
                    Some(Ok(Message::Close(frame))) => {
                        return Heard::Closed(frame.map_or(1005, |frame| frame.code.into()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Heard::Closed(1006),
                }
            }
        };
        tokio::time::timeout(self.patience, heard).await.expect("nothing was heard")
    }
}
