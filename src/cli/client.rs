//! The HTTP client that the commands share: where the server is, who asks, and what it answers.

use std::{
    future::Future,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;

use super::{Exit, output};
use crate::config::{Config, Sources};

/// How long an answer may take. Longer than anything the server lets a request wait for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the server is, and as whom it is asked. Without `--url` and `--token`: the server of the data directory, as its admin.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which server, and as whom")]
pub(super) struct Target {
    /// The server's API, e.g. http://127.0.0.1:3000.
    #[arg(long, global = true, env = "NEXXUS_URL", value_name = "URL")]
    url: Option<String>,
    /// The token to ask with, or @FILE. With --url there is none unless it is given.
    #[arg(long, global = true, env = "NEXXUS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// The application. A user's token names it already.
    #[arg(long, global = true, env = "NEXXUS_APP", value_name = "ID")]
    app: Option<String>,
    /// The device to act as.
    #[arg(long, global = true, env = "NEXXUS_DEVICE", value_name = "ID")]
    device: Option<String>,
    /// The data directory of the server on this machine [default: data.dir of the configuration].
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The configuration of the server on this machine [default: nexxus.toml, where it is there].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    token: Option<String>,
    app: Option<String>,
    device: Option<String>,
    /// Print JSON.
    pub json: bool,
}

/// Runs a client command to its end.
pub(super) fn run(command: impl Future<Output = Result<(), Exit>>) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Exit::Failed(format!("cannot start: {error}")))?.block_on(command)
}

impl Target {
    pub(super) fn client(self) -> Result<Client, Exit> {
        // A variable that is set to nothing is as good as none.
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let (app, device) = (given(&self.app), given(&self.device));
        let (url, token) = match (given(&self.url), given(&self.token)) {
            (Some(url), Some(token)) => (url, Some(text_argument(&token)?)),
            (Some(url), None) => (url, None),
            // The admin token of this machine goes nowhere else.
            (None, token) => {
                let local = self.local()?;
                let token = token.as_deref().map(text_argument).transpose()?;
                (local.url(), token.or_else(|| local.token()))
            }
        };
        let client = Client::new(&url, token)?;
        let claims = client.token.as_deref().and_then(claims);
        let claim = |name: &str| Some(claims.as_ref()?[name].as_str()?.to_owned());
        Ok(Client {
            app: app.or_else(|| claim("app")),
            device: device.or_else(|| claim("device")),
            json: self.json,
            ..client
        })
    }

    /// The configuration of the server on this machine.
    fn local(&self) -> Result<Local, Exit> {
        let mut sources = Sources::of_process(self.config.as_deref())?;
        let data = self.data.as_ref().map(|dir| dir.display().to_string());
        sources.flags.extend(data.map(|dir| ("--data".to_owned(), "data.dir".to_owned(), dir)));
        Ok(Local(Config::load(&sources)?.0))
    }
}

/// The server on this machine, as its configuration and its data directory describe it.
struct Local(Config);

impl Local {
    /// What the running server wrote, else where one would listen.
    fn url(&self) -> String {
        let written = std::fs::read(self.0.data.dir.join("server.json")).ok();
        let addresses: Option<Value> = written.and_then(|text| serde_json::from_slice(&text).ok());
        let api = addresses.as_ref().and_then(|addresses| addresses["api"].as_str());
        api.map_or_else(|| format!("http://{}", self.0.api.listen), str::to_owned)
    }

    fn token(&self) -> Option<String> {
        if !self.0.auth.admin_token.is_empty() {
            return Some(self.0.auth.admin_token.clone());
        }
        let kept = std::fs::read_to_string(self.0.data.dir.join("admin_token")).ok()?;
        Some(kept.trim().to_owned())
    }
}

impl Client {
    pub(super) fn new(url: &str, token: Option<String>) -> Result<Self, Exit> {
        let wrong = |why: &str| Exit::Usage(format!("`{url}` is not the URL of a server: {why}"));
        let parsed = Url::parse(url).map_err(|error| wrong(&error.to_string()))?;
        let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(10));
        match parsed.scheme() {
            // No certificates are needed then, and a small container may have none to load.
            "http" => builder = builder.tls_certs_only([]),
            "https" => {}
            _ => return Err(wrong("it begins with http:// or https://")),
        }
        // It may be installed already: by another client of this process.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let http = builder.build().map_err(|error| Exit::Failed(format!("cannot connect: {}", cause(&error))))?;
        Ok(Self { http, url: parsed, token, app: None, device: None, json: false })
    }

    #[must_use]
    pub(super) fn in_app(self, app: &str) -> Self {
        Self { app: Some(app.to_owned()), ..self }
    }

    /// The application, where one is named.
    pub(super) fn named_app(&self) -> Option<&str> {
        self.app.as_deref()
    }

    /// The application; a usage error when none is named.
    pub(super) fn app(&self) -> Result<&str, Exit> {
        self.app.as_deref().ok_or_else(|| Exit::Usage("which application? say --app ID (or NEXXUS_APP)".to_owned()))
    }

    pub(super) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    pub(super) async fn get(&self, path: &[&str]) -> Result<Value, Exit> {
        self.answer(self.request(Method::GET, path)?).await
    }

    pub(super) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, Exit> {
        self.answer(self.request(Method::POST, path)?.json(body)).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, Exit> {
        self.answer(self.request(Method::DELETE, path)?).await
    }

    /// A request to the route of these path segments.
    pub(super) fn request(&self, method: Method, path: &[&str]) -> Result<reqwest::RequestBuilder, Exit> {
        let mut url = self.url.clone();
        // A URL cannot hold these as a segment: they would name another route.
        if let Some(bad) = path.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
            return Err(Exit::Usage(format!("`{bad}` is no name")));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(Exit::Usage(format!("`{}` is not the URL of a server", self.url))),
        };
        let mut request = self.http.request(method, url);
        let headers = [("nxx-app-id", &self.app), ("nxx-device-id", &self.device)];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Ok(request)
    }

    /// Sends a request; the body of the answer, or why there is none.
    pub(super) async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, Exit> {
        let response = self.send(request.timeout(PATIENCE)).await?;
        body_of(response).await
    }

    /// Sends a request as it is.
    pub(super) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Exit> {
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Exit {
        if error.is_builder() {
            return Exit::Usage(format!("the request cannot be made: {}", cause(error)));
        }
        let hint = if error.is_connect() { "; is the server running? (`nexxus serve`)" } else { "" };
        Exit::Failed(format!("cannot reach {}: {}{hint}", self.url, cause(error)))
    }
}

/// The body of a success, `null` where it has none; the problem of a refusal.
pub(super) async fn body_of(response: Response) -> Result<Value, Exit> {
    let (status, url) = (response.status(), response.url().clone());
    let text = response.text().await.map_err(|error| Exit::Failed(format!("{url}: {}", cause(&error))))?;
    if status.is_success() && text.is_empty() {
        return Ok(Value::Null);
    }
    match serde_json::from_str(&text) {
        Ok(body) if status.is_success() => Ok(body),
        Ok(problem @ Value::Object(_)) => Err(Exit::Refused(problem)),
        _ => Err(Exit::Failed(format!("{url} answered {status}, which is not what a nexxus server says"))),
    }
}

impl Exit {
    /// Whether the server said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem["status"] == StatusCode::NOT_FOUND.as_u16())
    }
}

/// The innermost cause: what the layers above it say is that it failed.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => cause(source),
        None => error.to_string(),
    }
}

/// What a user's token says of itself. Not checked: the server does that.
fn claims(token: &str) -> Option<Value> {
    jsonwebtoken::dangerous::insecure_decode_claims(token).ok()
}

/// An argument that may be `@file` or `-` (stdin): then the end of the last line is not part of it.
pub(super) fn text_argument(argument: &str) -> Result<String, Exit> {
    let file = match argument.strip_prefix('@') {
        Some(file) => file,
        None if argument == "-" => argument,
        None => return Ok(argument.to_owned()),
    };
    Ok(text_of_file(Path::new(file))?.trim_end_matches(['\n', '\r']).to_owned())
}

/// The text of a file, or of stdin where it is `-`.
pub(super) fn text_of_file(file: &Path) -> Result<String, Exit> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(|_| text),
        _ => std::fs::read_to_string(file),
    };
    read.map_err(|error| Exit::Usage(format!("cannot read {}: {error}", file.display())))
}

/// A JSON argument that may be `@file` or `-`.
pub(super) fn json_argument(what: &str, argument: &str) -> Result<Value, Exit> {
    json_of(what, &text_argument(argument)?)
}

pub(super) fn json_of(what: &str, text: &str) -> Result<Value, Exit> {
    serde_json::from_str(text).map_err(|error| Exit::Usage(format!("{what} is not JSON: {error}")))
}

/// Prints an answer as JSON where that is asked for, else by `readable`.
pub(super) fn print(client: &Client, answer: &Value, readable: impl FnOnce() -> Result<(), Exit>) -> Result<(), Exit> {
    if client.json { output::say_json(answer) } else { readable() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(dir: &Path) -> Target {
        Target { data: Some(dir.to_owned()), ..Target::default() }
    }

    #[test]
    fn the_server_of_the_data_directory_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let client = target(dir.path()).client().expect("a client");
        assert_eq!((client.url.as_str(), client.token.clone()), ("http://127.0.0.1:3000/", None));
        std::fs::write(dir.path().join("server.json"), r#"{"api":"http://127.0.0.1:4000","pid":1}"#).expect("written");
        std::fs::write(dir.path().join("admin_token"), "secret\n").expect("written");
        let client = target(dir.path()).client().expect("a client");
        assert_eq!((client.url.as_str(), client.token.as_deref()), ("http://127.0.0.1:4000/", Some("secret")));
        let other = Target { token: Some("mine".to_owned()), ..target(dir.path()) };
        assert_eq!(other.client().expect("a client").token.as_deref(), Some("mine"));
        let unset = Target { url: Some(String::new()), token: Some(String::new()), ..target(dir.path()) };
        assert_eq!(unset.client().expect("a client").token.as_deref(), Some("secret"));
        let elsewhere = Target { url: Some("https://example.org/api/".to_owned()), ..target(dir.path()) };
        assert_eq!(elsewhere.client().expect("a client").token, None, "the admin token of this machine stays here");
    }

    #[test]
    fn a_token_says_which_application_and_device_it_is_for() {
        // {"alg":"HS256"} {"sub":"u1","app":"tasks","device":"phone"}
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSIsImFwcCI6InRhc2tzIiwiZGV2aWNlIjoicGhvbmUifQ.x";
        let named = Target { url: Some("http://localhost".into()), token: Some(token.into()), ..Target::default() };
        let client = named.clone().client().expect("a client");
        assert_eq!((client.app(), client.device()), (Ok("tasks"), Some("phone")));
        let client = Target { app: Some("notes".into()), ..named }.client().expect("a client");
        assert_eq!(client.app(), Ok("notes"));
        for token in ["", "admin", "a.b.c", "a.%%%.c", "a.bm8.c"] {
            assert_eq!(claims(token), None, "{token}");
        }
    }

    #[test]
    fn names_stay_in_their_place_of_the_path() {
        let client = Client::new("http://localhost:1/api/", None).expect("a client").in_app("tasks");
        let path = |segments: &[&str]| {
            let request = client.request(Method::GET, segments)?;
            Ok(request.build().expect("a request").url().path().to_owned())
        };
        assert_eq!(path(&["model", "task", "a@b+c"]), Ok("/api/model/task/a@b+c".to_owned()));
        assert_eq!(path(&["model", "task", "a/b?c#d"]), Ok("/api/model/task/a%2Fb%3Fc%23d".to_owned()));
        for bad in ["", ".", ".."] {
            assert!(matches!(path(&["model", bad]), Err(Exit::Usage(_))), "{bad}");
        }
        for bad in ["", "localhost", "ftp://x", "unix:/x"] {
            assert!(matches!(Client::new(bad, None), Err(Exit::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn arguments_may_be_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("filter.json");
        std::fs::write(&file, "{\"a\":1}\n").expect("written");
        let named = format!("@{}", file.display());
        assert_eq!(json_argument("the filter", &named), Ok(serde_json::json!({ "a": 1 })));
        assert_eq!(json_argument("the filter", "[]"), Ok(serde_json::json!([])));
        let Err(Exit::Usage(why)) = json_argument("the filter", "{a}") else { panic!("it is not JSON") };
        assert!(why.starts_with("the filter is not JSON: "), "{why}");
        assert!(matches!(text_argument("@/nowhere/at all"), Err(Exit::Usage(_))));
        std::fs::write(&file, " a secret \r\n").expect("written");
        assert_eq!(text_argument(&named), Ok(" a secret ".to_owned()), "what a password begins and ends with counts");
        assert_eq!(text_argument(" a secret "), Ok(" a secret ".to_owned()));
    }
}
