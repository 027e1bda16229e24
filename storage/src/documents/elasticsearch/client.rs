//! HTTP to the nodes of the cluster: fail-over, retries with back-off, bounded answers, and errors that callers can act on.
//!
//! Every request of this adapter may be sent twice: writes carry versions, or the sequence number that they replace. So whatever
//! did not answer is asked again, elsewhere if there is another node, for as long as [`Options::patience`] says; a time-out is not,
//! for it has cost enough already.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Certificate, Method, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Options;
use crate::{Error, ErrorKind, Result};

/// Most bytes of an answer; what is longer is cut off, and has to be asked for in parts.
pub(super) const MOST_ANSWER: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a request carries.
#[derive(Clone)]
pub(super) enum Body {
    None,
    Json(Bytes),
    /// An object a line.
    Lines(Bytes),
}

impl Body {
    pub(super) fn json(value: &Value) -> Self {
        Self::Json(value.to_string().into())
    }
}

/// What a node said.
pub(super) struct Answer {
    pub(super) status: u16,
    body: Bytes,
    /// It was longer than [`MOST_ANSWER`].
    pub(super) is_cut: bool,
    operation: &'static str,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) requests: AtomicU64,
    pub(super) bulks: AtomicU64,
    pub(super) retries: AtomicU64,
}

pub(super) struct Client {
    http: reqwest::Client,
    nodes: Vec<Node>,
    /// The node that is asked first.
    current: AtomicUsize,
    patience: Duration,
    pub(super) figures: Figures,
}

struct Node {
    /// With the user and the password, if it has them, and without a slash at the end.
    base: String,
    /// For messages.
    shown: String,
}

impl Client {
    /// `Invalid` for settings that cannot be used, with their name.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let nodes = options.nodes.iter().map(|node| Node::parse(node)).collect::<Result<Vec<_>>>()?;
        if nodes.is_empty() {
            return Err(invalid("`database.nodes` names no node"));
        }
        // It may be installed already, by another client of this process.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(options.timeout)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        let is_plain = nodes.iter().all(|node| node.base.starts_with("http:"));
        builder = match &options.ca_file {
            Some(path) => builder.tls_certs_only(certificates(path)?),
            // No certificates are needed then, and a small container may have none to load.
            None if is_plain => builder.tls_certs_only([]),
            None => builder,
        };
        if let Some(value) = authorization(options)? {
            builder = builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        let http = builder.build().map_err(|error| invalid("no HTTP client can be made").with_source(error))?;
        Ok(Self { http, nodes, current: AtomicUsize::new(0), patience: options.patience, figures: Figures::default() })
    }

    /// Asks until a node answers with something that another attempt would not change.
    pub(super) async fn send(&self, operation: &'static str, method: Method, path: &str, body: Body) -> Result<Answer> {
        let give_up = Instant::now() + self.patience;
        let (mut pause, mut n_failed) = (FIRST_PAUSE, 0);
        loop {
            let node = self.current.load(Ordering::Relaxed);
            self.figures.requests.fetch_add(1, Ordering::Relaxed);
            let failure = match self.attempt(operation, &method, node, path, body.clone()).await {
                Ok(answer) => match answer.retryable() {
                    Some(failure) => failure,
                    None => return Ok(answer),
                },
                Err(error) if error.kind == ErrorKind::Timeout => {
                    self.move_on(node);
                    return Err(error);
                }
                Err(error) => error,
            };
            self.move_on(node);
            n_failed += 1;
            // The other nodes are asked at once, then all of them after a while.
            if n_failed % self.nodes.len() == 0 {
                if Instant::now() + pause > give_up {
                    return Err(failure);
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            self.figures.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn move_on(&self, from: usize) {
        let next = (from + 1) % self.nodes.len();
        // Otherwise somebody else has moved on already.
        let _moved = self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn attempt(
        &self,
        operation: &'static str,
        method: &Method,
        node: usize,
        path: &str,
        body: Body,
    ) -> Result<Answer> {
        let node = &self.nodes[node % self.nodes.len()];
        let request = self.http.request(method.clone(), format!("{}{path}", node.base));
        let request = match body {
            Body::None => request,
            Body::Json(body) => request.header(CONTENT_TYPE, "application/json").body(body),
            Body::Lines(body) => request.header(CONTENT_TYPE, "application/x-ndjson").body(body),
        };
        let failed = |error: reqwest::Error| {
            let (kind, what) = match (error.is_timeout(), error.is_connect()) {
                // Nothing was sent: another node may be asked.
                (_, true) => (ErrorKind::Unavailable, "cannot be reached"),
                (true, false) => (ErrorKind::Timeout, "did not answer in time"),
                (false, false) => (ErrorKind::Unavailable, "broke off"),
            };
            let message = format!("Elasticsearch at {} {what}", node.shown);
            Error::new(kind, operation, message).with_source(causes(&error.without_url()))
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let (mut body, mut is_cut) = (BytesMut::new(), false);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MOST_ANSWER {
                is_cut = true;
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body: body.freeze(), is_cut, operation })
    }
}

impl Node {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| invalid(&format!("`database.nodes`: \"{}\" {why}", without_secrets(text)));
        let mut url = Url::parse(text).map_err(|error| wrong(&format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("is no URL of a node, as http://HOST:9200 is"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("has more than a path"));
        }
        let base = url.as_str().trim_end_matches('/').to_owned();
        // These fail for URLs without a host only.
        let _named = url.set_username("").and_then(|()| url.set_password(None));
        Ok(Self { base, shown: url.as_str().trim_end_matches('/').to_owned() })
    }
}

/// What is before an @ may be a password.
fn without_secrets(text: &str) -> &str {
    text.rsplit('@').next().unwrap_or_default()
}

fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>> {
    let wrong = |error: &dyn std::fmt::Display| {
        invalid(&format!("`database.ca_file`: {} cannot be used: {error}", path.display()))
    };
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"it holds no certificate")) } else { Ok(certificates) }
}

fn authorization(options: &Options) -> Result<Option<HeaderValue>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let (setting, text) = match (&options.api_key, &options.username) {
        (Some(_), Some(_)) => return Err(invalid("either `database.api_key` or `database.username`, not both")),
        (Some(key), None) => ("database.api_key", format!("ApiKey {key}")),
        (None, Some(user)) => {
            let password = options.password.as_deref().unwrap_or_default();
            ("database.username", format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        }
        (None, None) => return Ok(None),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| invalid(&format!("`{setting}` cannot be sent")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Invalid, "open documents", message)
}

/// An error with what it comes from, in one line: reqwest tells the cause in the source of the source.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // A text takes whatever is written.
        let _written = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Why Elasticsearch did not do something, as it says it in answers and in items of bulks.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Reason {
    #[serde(rename = "type", default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    caused_by: Option<Box<Reason>>,
}

impl Reason {
    fn text(&self) -> String {
        let own = format!("{}: {}", self.name, self.reason);
        match &self.caused_by {
            Some(cause) => format!("{own} ({})", cause.text()),
            None => own,
        }
    }

    /// What a status and its reason are to a caller.
    pub(super) fn fault(&self, operation: &'static str, status: u16) -> Error {
        let text = self.text();
        let is_full =
            ["flood-stage", "FORBIDDEN/12", "TOO_MANY_REQUESTS/12", "FORBIDDEN/8", "FORBIDDEN/5", "No space left"];
        let kind = match status {
            _ if is_full.iter().any(|sign| text.contains(sign)) => ErrorKind::DiskFull,
            401 | 403 if self.name != "cluster_block_exception" => {
                let message = format!(
                    "Elasticsearch refuses these credentials, or they may not do this: see `database.username`, \
                     `database.password` and `database.api_key` ({text})"
                );
                // Not for ever: credentials are changed while servers run.
                return Error::new(ErrorKind::Unavailable, operation, message);
            }
            400 | 405 | 406 | 413 | 415 => ErrorKind::Invalid,
            409 => ErrorKind::Conflict,
            429 => ErrorKind::Full,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, operation, format!("Elasticsearch answered {status}: {text}"))
    }
}

impl Answer {
    pub(super) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Why it is worth asking again; none where the answer stands.
    fn retryable(&self) -> Option<Error> {
        let failure = matches!(self.status, 429 | 502 | 503 | 504).then(|| self.fault())?;
        // A full disk takes longer than anybody waits.
        (failure.kind != ErrorKind::DiskFull).then_some(failure)
    }

    fn reason(&self) -> Reason {
        #[derive(serde::Deserialize)]
        struct Refusal {
            error: Reason,
        }
        serde_json::from_slice::<Refusal>(&self.body).map(|refusal| refusal.error).unwrap_or_else(|_| {
            // Not from Elasticsearch, but from something in between.
            let text = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned();
            Reason { name: "unexpected".to_owned(), reason: text, caused_by: None }
        })
    }

    /// The error that it is.
    pub(super) fn fault(&self) -> Error {
        self.reason().fault(self.operation, self.status)
    }

    /// Whether it says that there is no such index.
    pub(super) fn is_without_index(&self) -> bool {
        self.status == 404 && self.reason().name == "index_not_found_exception"
    }

    /// Whether it says that there is one already.
    pub(super) fn is_with_index(&self) -> bool {
        self.status == 400 && self.reason().name == "resource_already_exists_exception"
    }

    /// Its content, where it is one of success.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.is_ok() {
            return Err(self.fault());
        }
        if self.is_cut {
            let message = format!("an answer of Elasticsearch has more than {} MiB", MOST_ANSWER >> 20);
            return Err(Error::new(ErrorKind::Full, self.operation, message));
        }
        self.read_any()
    }

    /// Its content, whatever the status.
    pub(super) fn read_any<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let message = format!("an answer of Elasticsearch ({}) cannot be read", self.status);
            Error::new(ErrorKind::Unavailable, self.operation, message).with_source(error)
        })
    }

    /// That it succeeded.
    pub(super) fn done(&self) -> Result<()> {
        if self.is_ok() { Ok(()) } else { Err(self.fault()) }
    }
}
