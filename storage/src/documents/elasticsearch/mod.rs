//! Documents in Elasticsearch 8 or 9: several processes write and read the same ones.
//!
//! An index for each model of an application (see [`names`]), and one with a record of each application: its models, their fields,
//! and what was dropped ([`applications`]). Writes carry the log position as their version, so that the higher one wins whoever
//! writes ([`apply`], [`bulk`], [`stored`]). A search is preceded by a refresh that all who wait share ([`search`], [`query`],
//! [`order`]). Fields that become filterable are indexed in the background by one of the processes ([`upkeep`]).

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    documents::{Documents, Found, Query, Stored},
    model::{AppId, DocumentId, ModelName, Offset, filter::Field},
};

mod client;
mod names;

mod applications;
mod stored;

mod apply;
mod bulk;
mod get;

mod order;
mod query;
mod search;

mod upkeep;

#[cfg(test)]
mod tests;

use applications::Applications;
use client::{Body, Client};
use search::AllRounds;
use upkeep::Upkeep;

/// How long opening waits for an engine that is away.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Where the documents are, and how they are kept there: `[database]`.
#[derive(Clone)]
pub struct Options {
    /// URLs of nodes of one cluster, with user and password where they need them.
    pub nodes: Vec<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// Instead of them; as Elasticsearch gives it out, in base64.
    pub api_key: Option<String>,
    /// Certificates in PEM that the nodes' are signed by; none: those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// What the names of all indices begin with.
    pub prefix: String,
    /// Of each index that is made.
    pub shards: u32,
    /// Of each index that is made.
    pub replicas: u32,
    /// How long one answer may take.
    pub timeout: Duration,
    /// How long it is asked again when nobody answers.
    pub patience: Duration,
    /// How long deleted documents are remembered: at least as long as the change log may hold the delete.
    pub keep_deletes: Duration,
}

impl std::fmt::Debug for Options {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("prefix", &self.prefix)
            .field("n_nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

/// The documents of all applications, in indices of Elasticsearch.
pub struct ElasticsearchDocuments {
    inner: Arc<Inner>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
}

/// What calls and the upkeep share.
struct Inner {
    options: Options,
    client: Arc<Client>,
    applications: Applications,
    /// Indices that are known to be there.
    made: Mutex<std::collections::HashSet<String>>,
    /// Of applications that this process writes, the last entry that it applied.
    applied: Mutex<HashMap<AppId, Offset>>,
    rounds: AllRounds,
    upkeep: Upkeep,
    figures: Figures,
}

/// Counts since the start.
#[derive(Debug, Default)]
struct Figures {
    /// Documents that were stored without their search fields.
    bare: AtomicU64,
    /// Documents that were indexed anew for a field.
    reindexed: AtomicU64,
}

impl ElasticsearchDocuments {
    /// Waits for the engine (30 s), checks that it is one that can be used, and makes what is missing there. `Invalid`, with the name
    /// of the setting, for what only an operator can change.
    pub async fn open(options: Options) -> Result<Self> {
        if !names::is_prefix(&options.prefix) {
            let message = "`database.prefix`: a small letter, then up to 39 small letters, digits, _ or -";
            return Err(Error::new(ErrorKind::Invalid, "open documents", message));
        }
        let client = Arc::new(Client::new(&options)?);
        await_engine(&client).await?;
        let applications = Applications::new(client.clone(), &options.prefix);
        let inner = Arc::new(Inner {
            options,
            client,
            applications,
            made: Mutex::default(),
            applied: Mutex::default(),
            rounds: AllRounds::default(),
            upkeep: Upkeep::default(),
            figures: Figures::default(),
        });
        inner.prepare().await?;
        let upkeep = tokio::spawn(upkeep::run(Arc::downgrade(&inner)));
        Ok(Self { inner, upkeep: Mutex::new(Some(upkeep)) })
    }

    /// Ends what happens in the background. What is not done there is gone on with by another process, or at the next start.
    pub async fn close(&self) {
        let upkeep = self.upkeep.lock().take();
        if let Some(upkeep) = upkeep {
            upkeep.abort();
            // It was aborted, or had panicked and said so.
            let _ended = upkeep.await;
        }
    }
}

impl Drop for ElasticsearchDocuments {
    fn drop(&mut self) {
        if let Some(upkeep) = self.upkeep.lock().take() {
            upkeep.abort();
        }
    }
}

/// What `GET /` says.
#[derive(Deserialize)]
struct About {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    number: String,
    #[serde(default)]
    distribution: Option<String>,
}

impl Version {
    fn check(&self) -> Result<()> {
        let engine = self.distribution.as_deref().unwrap_or("elasticsearch");
        let major = self.number.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if engine == "elasticsearch" && matches!(major, Some(8 | 9)) {
            return Ok(());
        }
        let message =
            format!("`database.nodes`: {engine} {} answers there; Elasticsearch 8 or 9 is needed", self.number);
        Err(Error::new(ErrorKind::Invalid, "open documents", message))
    }
}

/// Waits until the engine answers, and checks what it is.
async fn await_engine(client: &Client) -> Result<()> {
    let give_up = Instant::now() + START_PATIENCE;
    loop {
        let outcome = client.send("open documents", Method::GET, "/", Body::None).await;
        let error = match outcome {
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                return Err(Error::new(ErrorKind::Invalid, "open documents", answer.fault().message));
            }
            Ok(answer) if answer.is_ok() => match answer.read::<About>() {
                Ok(about) => {
                    about.version.check()?;
                    info!(version = about.version.number, "the documents are in Elasticsearch");
                    return Ok(());
                }
                Err(_) => {
                    let message = "`database.nodes`: what answers there is not Elasticsearch";
                    return Err(Error::new(ErrorKind::Invalid, "open documents", message));
                }
            },
            Ok(answer) => answer.fault(),
            Err(error) => error,
        };
        if Instant::now() > give_up {
            return Err(error);
        }
        warn!(%error, "waiting for Elasticsearch");
        sleep(Duration::from_secs(1)).await;
    }
}

impl Inner {
    /// Makes the template and the index of applications.
    async fn prepare(&self) -> Result<()> {
        let path = format!("/_index_template/{}.documents", self.options.prefix);
        let template = Body::json(&stored::template(&self.options));
        self.client.send("open documents", Method::PUT, &path, template).await?.done()?;
        let index = self.applications.index();
        let body = json!({
            "settings": { "number_of_shards": 1 },
            "aliases": { names::entrance(index): {} },
        });
        self.make(index, &body).await
    }

    /// Makes an index where it is not there.
    async fn make(&self, index: &str, body: &Value) -> Result<()> {
        let answer = self.client.send("make index", Method::PUT, &format!("/{index}"), Body::json(body)).await?;
        if answer.is_with_index() { Ok(()) } else { answer.done() }
    }

    /// Makes fields of a model ready to be written, and then known.
    async fn define(&self, app: &AppId, model: &ModelName, fields: &[Field]) -> Result<()> {
        let mut application = self.applications.load(app).await?.application;
        if !application.models.contains_key(model) {
            application = self.applications.define_new(app, model, fields).await?;
        }
        self.ensure_indices(app, &application, std::slice::from_ref(model)).await?;
        let Some(known) = application.models.get(model) else { return Ok(()) };
        if !application.as_ref().clone().define(model, fields, true) {
            return Ok(());
        }
        let path = format!("/{}/_mapping", known.index);
        let mapping = Body::json(&stored::mapping(fields));
        self.client.send("define fields", Method::PUT, &path, mapping).await?.done()?;
        let is_empty = self.count(app, model).await? == 0;
        let application =
            self.applications.change(app, |application| application.define(model, fields, is_empty)).await?;
        if application.pending {
            self.upkeep.wish(app);
        }
        Ok(())
    }

    /// How far fields are: what is left of the documents.
    async fn indexing(&self, app: &AppId, model: &ModelName) -> Result<Vec<(String, f64)>> {
        let application = self.applications.load(app).await?.application;
        let Some(model) = application.models.get(model) else { return Ok(Vec::new()) };
        let unready: Vec<_> = model.fields.iter().filter(|field| !field.ready).collect();
        if unready.is_empty() {
            return Ok(Vec::new());
        }
        let total = self.count_in(&model.index, json!({ "term": { "live": true } })).await?;
        let mut shares = Vec::new();
        for field in unready {
            let left = self.count_in(&model.index, upkeep::older_than(field.since)).await?;
            let share = 1.0 - left as f64 / total.max(left).max(1) as f64;
            shares.push((field.path.to_string(), share));
        }
        Ok(shares)
    }

    /// Forgets the models of an application, and then removes their indices.
    async fn drop_application(&self, app: &AppId) -> Result<()> {
        let known = self.applications.load(app).await?.application;
        let mut upto = 0;
        for model in known.models.values() {
            upto = upto.max(self.newest(&model.index).await?);
        }
        let application = self.applications.change(app, |application| application.drop_models(upto)).await?;
        if application.remains.is_empty() {
            return Ok(());
        }
        // Nobody looks there any more: what fails now is done again in the background.
        if let Err(error) = self.remove_remains(app, &application).await {
            warn!(%app, %error, "indices of a dropped application are left for later");
            self.upkeep.wish(app);
        }
        Ok(())
    }

    /// The newest version in an index.
    async fn newest(&self, index: &str) -> Result<u64> {
        #[derive(Deserialize)]
        struct At {
            at: u64,
        }
        let refreshed = self.client.send("refresh", Method::POST, &format!("/{index}/_refresh"), Body::None).await?;
        if refreshed.is_without_index() {
            return Ok(0);
        }
        refreshed.done()?;
        let body =
            json!({ "size": 1, "sort": [{ "at": { "order": "desc", "unmapped_type": "long" } }], "_source": "at" });
        let answer = self.ask(index, "hits.hits._source", &body).await?;
        let hits = answer.read::<search::Response<At>>()?.hits.hits;
        Ok(hits.first().map_or(0, |hit| hit.source.at))
    }

    async fn statistics(&self) -> Result<Value> {
        let all = names::all_documents(&self.options.prefix);
        let count = |query: Value| self.count_in(&all, query);
        let health = self.client.send("count", Method::GET, "/_cluster/health", Body::None).await?;
        let health: Value = health.read()?;
        let figures = &self.client.figures;
        Ok(json!({
            "documents": count(json!({ "term": { "live": true } })).await?,
            "deletesRemembered": count(json!({ "term": { "live": false } })).await?,
            "bareDocuments": count(json!({ "term": { "bare": true } })).await?,
            "cluster": health["status"],
            "requests": figures.requests.load(Ordering::Relaxed),
            "bulkRequests": figures.bulks.load(Ordering::Relaxed),
            "retries": figures.retries.load(Ordering::Relaxed),
            "storedBare": self.figures.bare.load(Ordering::Relaxed),
            "reindexed": self.figures.reindexed.load(Ordering::Relaxed),
        }))
    }
}

#[async_trait]
impl Documents for ElasticsearchDocuments {
    async fn apply(&self, app: &AppId, entries: &[LogEntry]) -> Result<()> {
        self.inner.apply(app, entries).await
    }

    async fn get(&self, app: &AppId, model: &ModelName, ids: &[DocumentId]) -> Result<Vec<Option<Stored>>> {
        self.inner.get(app, model, ids).await
    }

    async fn search(&self, query: Query) -> Result<Found> {
        self.inner.search(query).await
    }

    async fn count(&self, app: &AppId, model: &ModelName) -> Result<u64> {
        self.inner.count(app, model).await
    }

    async fn define(&self, app: &AppId, model: &ModelName, fields: &[Field]) -> Result<()> {
        self.inner.define(app, model, fields).await
    }

    async fn indexing(&self, app: &AppId, model: &ModelName) -> Result<Vec<(String, f64)>> {
        self.inner.indexing(app, model).await
    }

    async fn drop_application(&self, app: &AppId) -> Result<()> {
        self.inner.drop_application(app).await
    }

    async fn statistics(&self) -> Result<Value> {
        self.inner.statistics().await
    }
}
