//! The composition of the backends: the only place that knows which adapter stands behind which seam.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard};

pub use crate::embedded::space::{Demand, Reserve, Room};
use crate::{
    ChangeLog, Documents, Error, ErrorKind, Queues, Registry, Result,
    backup::{About, Snapshot},
    embedded,
};

/// Which adapter stands behind each seam, and what the embedded ones need to know. Made by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `message_queue.adapter`: `embedded` or `rabbitmq`.
    pub queues: String,
    /// `change_log.adapter`: `journal` or `redis`.
    pub change_log: String,
    /// `registry.adapter`: `sled` or `redis`.
    pub registry: String,
    /// `database.adapter`: `tantivy` or `elasticsearch`.
    pub documents: String,
    /// `data.dir`
    pub dir: PathBuf,
    /// `data.reserve`: free space of its disk that is kept for what was accepted already.
    pub reserve: Reserve,
    /// Size of a journal segment in bytes.
    pub segment_bytes: u32,
    /// How long and how much of the change log is kept, whichever ends first.
    pub history_age: Duration,
    /// Bytes of the journal, by whole segments.
    pub history_bytes: u64,
    /// Bytes of documents in memory that wait for the index; from three quarters on, writes are refused as `Full`.
    pub overlay_bytes: usize,
    /// Memory of the index writer in bytes, at least 15 MB.
    pub index_writer_bytes: usize,
    /// How often the index is committed while something changes.
    pub commit_every: Duration,
    /// `[database]`: of documents that are in Elasticsearch.
    pub elasticsearch: ElasticsearchSettings,
}

/// `[database]`: where documents are that are in Elasticsearch, and how they are kept there.
#[derive(Clone, Default)]
pub struct ElasticsearchSettings {
    /// URLs of nodes of one cluster, with user and password where they need them.
    pub nodes: Vec<String>,
    /// None for nodes that let everybody in.
    pub username: Option<String>,
    /// Of the user.
    pub password: Option<String>,
    /// Instead of a user.
    pub api_key: Option<String>,
    /// Certificates in PEM that those of the nodes are signed by; none for those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// What the names of all indices begin with.
    pub prefix: String,
    /// Of each index that is made.
    pub shards: u32,
    /// Of each index that is made.
    pub replicas: u32,
    /// How long one answer may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for ElasticsearchSettings {
    /// Without what may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ElasticsearchSettings").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// `[redis]`: where the servers are that hold the registry, the change log, or both.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis.mode`: whether the nodes are a cluster.
    pub cluster: bool,
    /// `redis.nodes`: `redis://[user:password@]host:port`, with `rediss` for TLS; of a cluster some of its nodes.
    pub nodes: Vec<String>,
    /// `redis.ca_file`: who signs the certificates of the servers; none for those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// `redis.prefix`: begins every key, so that several installations can share servers.
    pub prefix: String,
    /// `redis.may_lose`: servers are taken that may lose the last second of what they confirmed.
    pub may_lose: bool,
}

impl std::fmt::Debug for RedisSettings {
    /// Without the nodes, which may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cluster, prefix, may_lose, .. } = self;
        f.debug_struct("RedisSettings")
            .field("cluster", cluster)
            .field("prefix", prefix)
            .field("may_lose", may_lose)
            .finish_non_exhaustive()
    }
}

/// The four seams, opened.
#[derive(Clone)]
pub struct Backends {
    /// What goes from stage to stage.
    pub queues: Arc<dyn Queues>,
    /// What was decided, in one order for each application.
    pub change_log: Arc<dyn ChangeLog>,
    /// Applications, users, devices, subscriptions, cursors.
    pub registry: Arc<dyn Registry>,
    /// Documents as of now.
    pub documents: Arc<dyn Documents>,
    engine: embedded::Engine,
    /// Held for reading by writers between logging and applying; for writing while nothing is in between.
    still: Arc<RwLock<()>>,
}

/// Opens every backend. `Invalid` for an adapter that does not exist, `Unsupported` for one that this build lacks.
pub async fn open(settings: Settings) -> Result<Backends> {
    settings
        .check_adapters()
        .map_err(|refused| Error::new(refused.kind, "open", format!("`{}`: {}", refused.key, refused.why)))?;
    let elsewhere = open_documents(&settings).await?;
    let opening = tokio::task::spawn_blocking(move || match elsewhere {
        Some(documents) => embedded::Engine::open_beside(&settings, documents),
        None => embedded::Engine::open(&settings),
    });
    let engine = opening
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "open", "opening was aborted").with_source(error))??;
    engine.catch_up().await?;
    Ok(Backends {
        queues: Arc::new(engine.queues()),
        change_log: Arc::new(engine.change_log()),
        registry: engine.registry(),
        documents: engine.documents(),
        engine,
        still: Arc::default(),
    })
}

/// The documents, where they are not in the data directory.
async fn open_documents(settings: &Settings) -> Result<Option<Arc<dyn Documents>>> {
    match settings.documents.as_str() {
        #[cfg(feature = "elasticsearch")]
        "elasticsearch" => {
            use crate::documents::elasticsearch::{ElasticsearchDocuments, Options};
            let given = settings.elasticsearch.clone();
            let options = Options {
                nodes: given.nodes,
                username: given.username,
                password: given.password,
                api_key: given.api_key,
                ca_file: given.ca_file,
                prefix: given.prefix,
                shards: given.shards,
                replicas: given.replicas,
                timeout: given.timeout,
                patience: Duration::from_secs(3),
                // The history is cut by whole segments, and looked at now and then.
                keep_deletes: settings.history_age.saturating_add(Duration::from_secs(3_600)),
            };
            Ok(Some(Arc::new(ElasticsearchDocuments::open(options).await?)))
        }
        _ => Ok(None),
    }
}

/// The feature that an adapter needs and this build lacks.
const fn lacks_elasticsearch() -> Option<&'static str> {
    if cfg!(feature = "elasticsearch") { None } else { Some("elasticsearch") }
}

/// An adapter that could stand behind a seam, and the feature that it needs.
type Adapter = (&'static str, Option<&'static str>);

const QUEUES: [Adapter; 2] = [("embedded", None), ("rabbitmq", Some("rabbitmq"))];
const CHANGE_LOGS: [Adapter; 2] = [("journal", None), ("redis", Some("redis"))];
const REGISTRIES: [Adapter; 2] = [("sled", None), ("redis", Some("redis"))];
const DOCUMENTS: [Adapter; 2] = [("tantivy", None), ("elasticsearch", lacks_elasticsearch())];

/// A setting that names an adapter which this build cannot give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedAdapter {
    /// The setting, e.g. `registry.adapter`.
    pub key: &'static str,
    /// `Unsupported` where another build has it, `Invalid` where none has.
    pub kind: ErrorKind,
    /// What is wrong with the name, and which ones are allowed.
    pub why: String,
}

impl Settings {
    /// Whether this build has every adapter that is asked for; so that a configuration can be refused before anything is opened.
    pub fn check_adapters(&self) -> Result<(), RefusedAdapter> {
        check_adapter("message_queue.adapter", &self.queues, &QUEUES)?;
        check_adapter("change_log.adapter", &self.change_log, &CHANGE_LOGS)?;
        check_adapter("registry.adapter", &self.registry, &REGISTRIES)?;
        check_adapter("database.adapter", &self.documents, &DOCUMENTS)
    }
}

fn check_adapter(key: &'static str, asked: &str, known: &[Adapter]) -> Result<(), RefusedAdapter> {
    let (kind, wrong) = match known.iter().find(|(name, _)| *name == asked) {
        Some((_, None)) => return Ok(()),
        Some((_, Some(feature))) => (ErrorKind::Unsupported, format!("compiled without the feature \"{feature}\"")),
        None => (ErrorKind::Invalid, format!("there is no adapter \"{asked}\"")),
    };
    let built = known.iter().filter(|(_, feature)| feature.is_none());
    let allowed: Vec<_> = built.map(|(name, _)| format!("\"{name}\"")).collect();
    Err(RefusedAdapter { key, kind, why: format!("{wrong}: {} is allowed", allowed.join(" or ")) })
}

impl Backends {
    /// Waits until a backend has failed for good (a failed fsync): the process has to stop with this error.
    pub async fn failed(&self) -> Error {
        self.engine.failed().await
    }

    /// Held by a writer from before it logs until what it logged is applied, to the documents and to the registry: a backup is of a
    /// moment in which nobody holds it. Not to be held while waiting for anything else.
    pub async fn applying(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().await
    }

    /// A consistent copy of everything, for a backup. `Unavailable` while another one is taken.
    pub async fn snapshot(&self, about: About) -> Result<Snapshot> {
        self.engine.snapshot(&self.still, about).await
    }

    /// Flushes and closes everything, in order. To be called once, when nothing uses the backends any more.
    pub async fn close(&self) -> Result<()> {
        self.engine.close().await
    }

    /// Whether there is room for a call from outside: `DiskFull` when there is not. To be asked before anything is accepted; what
    /// was accepted always fits.
    pub fn admit(&self, demand: Demand) -> Result<()> {
        self.engine.admit(demand)
    }

    /// How much room the disk of the data has.
    pub fn room(&self) -> Room {
        self.engine.room()
    }

    /// Numbers for operators, as a JSON object: `journal`, `registry`, `documents`, `disk`.
    pub async fn statistics(&self) -> Result<Value> {
        self.engine.statistics().await
    }
}
