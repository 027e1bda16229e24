//! The composition of the backends: the only place that knows which adapter stands behind which seam.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};
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
    /// `[redis]`: of a registry or a change log that is in Redis.
    pub redis: RedisSettings,
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
#[derive(Clone, Default)]
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
    /// None where every seam has an engine of its own.
    engine: Option<embedded::Engine>,
    shared: Option<Arc<dyn Shared>>,
    /// Held for reading by writers between logging and applying; for writing while nothing is in between.
    still: Arc<RwLock<()>>,
}

/// Opens every backend. `Invalid` for an adapter that does not exist, `Unsupported` for one that this build lacks.
pub async fn open(settings: Settings) -> Result<Backends> {
    settings
        .check_adapters()
        .map_err(|refused| Error::new(refused.kind, "open", format!("`{}`: {}", refused.key, refused.why)))?;
    let documents = open_documents(&settings).await?;
    let shared = open_redis(&settings).await?;
    let (registry, change_log) = match &shared {
        Some(shared) => (shared.registry(), shared.change_log()),
        None => (None, None),
    };
    if change_log.is_some() {
        // Everything is elsewhere then (`check_mix`).
        return Err(Error::new(
            ErrorKind::Unsupported,
            "open",
            "`message_queue.adapter`: compiled without the feature \"rabbitmq\"",
        ));
    }
    let elsewhere = embedded::Elsewhere { documents, registry: registry.is_some() };
    let opening = tokio::task::spawn_blocking(move || embedded::Engine::open_without(&settings, elsewhere));
    let engine = opening
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "open", "opening was aborted").with_source(error))??;
    engine.catch_up().await?;
    let registry = match registry {
        Some(registry) => registry,
        None => engine.registry()?,
    };
    Ok(Backends {
        queues: Arc::new(engine.queues()),
        change_log: Arc::new(engine.change_log()),
        registry,
        documents: engine.documents(),
        engine: Some(engine),
        shared,
        still: Arc::default(),
    })
}

/// An engine that several seams may stand on.
#[async_trait]
pub(crate) trait Shared: Send + Sync {
    /// None where the registry is elsewhere.
    fn registry(&self) -> Option<Arc<dyn Registry>>;
    /// None where the change log is elsewhere.
    fn change_log(&self) -> Option<Arc<dyn ChangeLog>>;
    /// Why it cannot be used now, if it cannot.
    async fn ailment(&self) -> Option<String>;
    /// For operators: a name, and numbers.
    fn statistics(&self) -> (&'static str, Value);
    /// Ends it; the last who uses it calls.
    async fn close(&self) -> Result<()>;
}

/// What is in Redis, where something is.
async fn open_redis(settings: &Settings) -> Result<Option<Arc<dyn Shared>>> {
    #[cfg(feature = "redis")]
    if settings.registry == "redis" || settings.change_log == "redis" {
        return Ok(Some(Arc::new(crate::redis_servers::opened::OnRedis::open(settings).await?)));
    }
    let _in_no_redis = settings;
    Ok(None)
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

/// The same for those of Redis.
const fn lacks_redis() -> Option<&'static str> {
    if cfg!(feature = "redis") { None } else { Some("redis") }
}

/// An adapter that could stand behind a seam, and the feature that it needs.
type Adapter = (&'static str, Option<&'static str>);

const QUEUES: [Adapter; 2] = [("embedded", None), ("rabbitmq", Some("rabbitmq"))];
const CHANGE_LOGS: [Adapter; 2] = [("journal", None), ("redis", lacks_redis())];
const REGISTRIES: [Adapter; 2] = [("sled", None), ("redis", lacks_redis())];
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
        check_adapter("database.adapter", &self.documents, &DOCUMENTS)?;
        self.check_mix()
    }

    /// All embedded; one of the others in its place; or all of the others. The rest makes no sense.
    fn check_mix(&self) -> Result<(), RefusedAdapter> {
        let seams = [
            ("message_queue.adapter", &self.queues, "embedded"),
            ("change_log.adapter", &self.change_log, "journal"),
            ("registry.adapter", &self.registry, "sled"),
            ("database.adapter", &self.documents, "tantivy"),
        ];
        let others: Vec<_> = seams.iter().filter(|(_, adapter, embedded)| adapter != embedded).collect();
        let log_is_embedded = self.change_log == "journal";
        let why = match others.len() {
            0 => return Ok(()),
            1 if log_is_embedded => return Ok(()),
            length if length == seams.len() => return Ok(()),
            _ if !log_is_embedded => {
                "the change log is in Redis only where everything else is in engines of its own: the journal is the log that tantivy, sled \
                 and the embedded queues recover from"
            }
            _ => {
                "one engine beside the embedded ones is supported, or all four: what lies between has as many parts to look after, and is \
                 never tested"
            }
        };
        let (key, _, _) = others[0];
        let named: Vec<_> = others.iter().map(|(key, adapter, _)| format!("`{key}` \"{adapter}\"")).collect();
        Err(RefusedAdapter {
            key,
            kind: ErrorKind::Invalid,
            why: format!("{} do not go together: {why}", named.join(" and ")),
        })
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
        match &self.engine {
            Some(engine) => engine.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Which engines cannot be used now, and why: for `/readyz`. Calls that need them wait, and fail for a while.
    pub async fn ailments(&self) -> Vec<String> {
        match &self.shared {
            Some(shared) => shared.ailment().await.into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Held by a writer from before it logs until what it logged is applied, to the documents and to the registry: a backup is of a
    /// moment in which nobody holds it. Not to be held while waiting for anything else.
    pub async fn applying(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().await
    }

    /// A consistent copy of everything, for a backup. `Unavailable` while another one is taken, `Unsupported` where a part of the data is
    /// elsewhere.
    pub async fn snapshot(&self, about: About) -> Result<Snapshot> {
        match &self.engine {
            Some(engine) => engine.snapshot(&self.still, about).await,
            None => Err(Error::new(ErrorKind::Unsupported, "back up", "a backup is of embedded engines")),
        }
    }

    /// Flushes and closes everything, in order. To be called once, when nothing uses the backends any more.
    pub async fn close(&self) -> Result<()> {
        let shared = match &self.shared {
            Some(shared) => shared.close().await,
            None => Ok(()),
        };
        let engine = match &self.engine {
            Some(engine) => engine.close().await,
            None => Ok(()),
        };
        engine.and(shared)
    }

    /// Whether there is room for a call from outside: `DiskFull` when there is not. To be asked before anything is accepted; what
    /// was accepted always fits.
    pub fn admit(&self, demand: Demand) -> Result<()> {
        self.engine.as_ref().map_or(Ok(()), |engine| engine.admit(demand))
    }

    /// How much room the disk of the data has; ample where there is no data.
    pub fn room(&self) -> Room {
        self.engine.as_ref().map_or(Room::Ample, embedded::Engine::room)
    }

    /// Numbers for operators, as a JSON object: `journal`, `registry`, `documents`, `disk`, and those of other engines.
    pub async fn statistics(&self) -> Result<Value> {
        let mut statistics = match &self.engine {
            Some(engine) => engine.statistics().await?,
            None => json!({}),
        };
        if let Some((name, numbers)) = self.shared.as_ref().map(|shared| shared.statistics()) {
            statistics[name] = numbers;
        }
        Ok(statistics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_together_is_refused_with_the_reason() {
        let embedded = ["embedded", "journal", "sled", "tantivy"];
        for (adapters, refused) in [
            (embedded, None),
            (["rabbitmq", "journal", "sled", "tantivy"], None),
            (["embedded", "journal", "redis", "tantivy"], None),
            (["embedded", "journal", "sled", "elasticsearch"], None),
            (["rabbitmq", "redis", "redis", "elasticsearch"], None),
            (
                ["embedded", "redis", "sled", "tantivy"],
                Some(("change_log.adapter", "the journal is the log that tantivy")),
            ),
            (
                ["rabbitmq", "redis", "redis", "tantivy"],
                Some(("message_queue.adapter", "the journal is the log that tantivy")),
            ),
            (
                ["rabbitmq", "journal", "redis", "tantivy"],
                Some(("message_queue.adapter", "`registry.adapter` \"redis\"")),
            ),
            (["embedded", "journal", "redis", "elasticsearch"], Some(("registry.adapter", "one engine beside"))),
        ] {
            let [queues, change_log, registry, documents] = adapters.map(str::to_owned);
            let dir = std::path::Path::new("data");
            let settings =
                Settings { queues, change_log, registry, documents, ..crate::embedded::tests::settings(dir) };
            match (settings.check_mix(), refused) {
                (Ok(()), None) => {}
                (Err(found), Some((key, why))) => {
                    assert_eq!((found.key, found.kind), (key, ErrorKind::Invalid));
                    assert!(found.why.contains(why), "{}", found.why);
                }
                (found, _) => panic!("{adapters:?}: {found:?}"),
            }
        }
    }
}
