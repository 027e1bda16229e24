//! What is known of each application besides its documents: its models, their indices and fields, and what was dropped.
//!
//! One record for each application, in an index of its own, read by key and replaced under the sequence number that it was read with.
//! So several processes may change it. Each keeps what it last read, and says with every call whether that is still so: a search and
//! a get ask for the record's sequence number with the rest, a writer reads it anew when it did not apply the entry before (every
//! change of a record belongs to an entry of the application's log, which its one writer applies).

use std::{collections::BTreeMap, collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    client::{Body, Client},
    names,
};
use crate::{
    Error, ErrorKind, Result,
    model::{
        AppId, ModelName, Offset,
        filter::{Field, Kind},
    },
};

const FORMAT: u32 = 1;
/// How often a record is changed anew when others change it at the same time.
const RACES: usize = 50;
/// Records that are kept in memory; past it all are read anew.
const MOST_KEPT: usize = 20_000;
/// Bits of a version that are the position; the others are the number of the epoch.
const POSITION_BITS: u32 = 44;

/// What is known of an application.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Application {
    format: u32,
    /// Counts how often it was dropped.
    life: u32,
    /// The last revision given to the fields of a model.
    revision: u64,
    /// The epochs that it has documents of, in order: versions hold the number of an epoch, which is small, and not the epoch.
    epochs: Vec<u32>,
    /// Entries up to this version were dropped.
    void: u64,
    pub(super) models: BTreeMap<ModelName, Model>,
    /// Indices that are to be deleted.
    pub(super) remains: Vec<String>,
    /// Whether there is something to do in the background. The only member that is searched for.
    pub(super) pending: bool,
    /// Who does it, and how often they said that they are at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) claim: Option<Claim>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) by: String,
    pub(super) beat: u64,
}

/// A model that has an index.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Model {
    pub(super) index: String,
    /// What its documents are indexed by; they carry it.
    pub(super) revision: u64,
    pub(super) fields: Vec<Indexed>,
    /// Whether some of its documents are stored without their search fields.
    #[serde(default)]
    pub(super) bare: bool,
}

/// A filterable field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Indexed {
    pub(super) path: Arc<str>,
    kind: StoredKind,
    array: bool,
    /// The revision that it came with: documents of older ones lack it.
    pub(super) since: u64,
    /// No document lacks it.
    pub(super) ready: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredKind {
    String,
    Number,
    Boolean,
    Date,
}

impl Indexed {
    fn new(field: &Field, since: u64, ready: bool) -> Self {
        let kind = match field.kind {
            Kind::String => StoredKind::String,
            Kind::Number => StoredKind::Number,
            Kind::Boolean => StoredKind::Boolean,
            Kind::Date => StoredKind::Date,
        };
        Self { path: field.path.clone(), kind, array: field.is_array, since, ready }
    }

    pub(super) fn field(&self) -> Field {
        let kind = match self.kind {
            StoredKind::String => Kind::String,
            StoredKind::Number => Kind::Number,
            StoredKind::Boolean => Kind::Boolean,
            StoredKind::Date => Kind::Date,
        };
        Field { path: self.path.clone(), kind, is_array: self.array, is_universal: false }
    }
}

impl Model {
    pub(super) fn indexed(&self, field: &Field) -> Option<&Indexed> {
        self.fields.iter().find(|indexed| indexed.field() == *field)
    }

    /// Documents of older revisions lack a field that is not ready.
    pub(super) fn wanted_revision(&self) -> Option<u64> {
        self.fields.iter().filter(|indexed| !indexed.ready).map(|indexed| indexed.since).max()
    }
}

impl Application {
    /// The version of what an entry leaves behind; none for one that is void. Versions compare as offsets do.
    pub(super) fn version(&self, offset: Offset) -> Option<u64> {
        // Epochs are counted from 1: Elasticsearch takes no version below 0 and has 63 bits.
        let epoch = self.epochs.binary_search(&offset.epoch).ok()? as u64 + 1;
        let version = epoch << POSITION_BITS | offset.position.min((1 << POSITION_BITS) - 1);
        (version > self.void).then_some(version)
    }

    /// Whether entries of an epoch can be given versions. They cannot be void: what is older than any epoch that it has documents of
    /// was never applied, and is not in the log any more.
    fn lacks_epoch(&self, epoch: u32) -> bool {
        self.epochs.last().is_none_or(|last| *last < epoch)
    }

    /// Makes a model known; says whether it was not.
    fn add_model(&mut self, prefix: &str, app: &AppId, model: &ModelName) -> bool {
        if self.models.contains_key(model) {
            return false;
        }
        let index = names::documents(prefix, app, model, self.life);
        self.models.insert(model.clone(), Model { index, ..Model::default() });
        true
    }

    /// Sets the fields of a model; those that it did not have are ready when it has no documents. Says whether anything changed.
    pub(super) fn define(&mut self, model: &ModelName, fields: &[Field], is_empty: bool) -> bool {
        let old = self.models.get(model).cloned().unwrap_or_default();
        let revision = self.revision + 1;
        let wanted = fields.iter().filter(|field| !field.is_universal);
        let mut fields: Vec<_> = wanted
            .map(|field| old.indexed(field).cloned().unwrap_or_else(|| Indexed::new(field, revision, is_empty)))
            .collect();
        fields.sort_by(|left, right| left.path.cmp(&right.path));
        fields.dedup_by(|left, right| left.field() == right.field());
        let is_new = fields.iter().any(|field| field.since == revision);
        if !is_new && fields.len() == old.fields.len() {
            return false;
        }
        self.revision = revision;
        let next = Model { revision, fields, ..old };
        self.pending |= next.wanted_revision().is_some();
        self.models.insert(model.clone(), next);
        true
    }

    /// Forgets the models: what was stored up to a version is void.
    pub(super) fn drop_models(&mut self, upto: u64) -> bool {
        if self.models.is_empty() {
            return false;
        }
        let models = std::mem::take(&mut self.models);
        self.remains.extend(models.into_values().map(|model| model.index));
        self.life += 1;
        self.void = self.void.max(upto);
        self.pending = true;
        true
    }

    /// Whether nothing is left to do in the background; says so in the record.
    pub(super) fn settle(&mut self) {
        let is_unready = self.models.values().any(|model| model.wanted_revision().is_some());
        self.pending = is_unready || !self.remains.is_empty();
    }
}

/// A record as it was read.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) application: Arc<Application>,
    /// What it is replaced under; none where there was no record.
    pub(super) place: Option<Place>,
}

/// Where a record stands: another one after each change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Place {
    #[serde(rename = "_seq_no")]
    seq_no: i64,
    #[serde(rename = "_primary_term")]
    primary_term: i64,
}

/// The records of all applications.
pub(super) struct Applications {
    client: Arc<Client>,
    prefix: String,
    index: String,
    kept: RwLock<HashMap<AppId, Loaded>>,
}

impl Applications {
    pub(super) fn new(client: Arc<Client>, prefix: &str) -> Self {
        Self { client, prefix: prefix.to_owned(), index: names::applications(prefix), kept: RwLock::default() }
    }

    /// Where the records are.
    pub(super) fn index(&self) -> &str {
        &self.index
    }

    /// What this process knows; read where it knows nothing.
    pub(super) async fn known(&self, app: &AppId) -> Result<Loaded> {
        let kept = self.kept.read().get(app).cloned();
        match kept {
            Some(kept) => Ok(kept),
            None => self.load(app).await,
        }
    }

    /// As it is now.
    pub(super) async fn load(&self, app: &AppId) -> Result<Loaded> {
        #[derive(Deserialize)]
        struct Found {
            found: bool,
            #[serde(flatten)]
            place: Option<Place>,
            #[serde(rename = "_source")]
            source: Option<Value>,
        }
        let path = format!("/{}/_doc/{}", self.index, names::in_path(app.as_str()));
        let answer = self.client.send("read application", Method::GET, &path, Body::None).await?;
        let found: Found = if answer.status == 404 && !answer.is_without_index() {
            Found { found: false, place: None, source: None }
        } else {
            answer.read()?
        };
        let loaded = match found {
            Found { found: true, place, source } => {
                Loaded { application: Arc::new(decode(app, source.unwrap_or_default())?), place }
            }
            _ => {
                Loaded { application: Arc::new(Application { format: FORMAT, ..Application::default() }), place: None }
            }
        };
        self.keep(app, loaded.clone());
        Ok(loaded)
    }

    fn keep(&self, app: &AppId, loaded: Loaded) {
        let mut kept = self.kept.write();
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(app.clone(), loaded);
    }

    /// Whether a place that was just seen is that of the record which is known; reads the record anew where it is not.
    pub(super) async fn confirm(&self, app: &AppId, known: Loaded, seen: Option<Place>) -> Result<Confirmed> {
        if known.place == seen {
            return Ok(Confirmed::Same(known));
        }
        Ok(Confirmed::Other(self.load(app).await?))
    }

    /// Changes a record as it is now; the change says whether it is one, and may be tried several times. Gives what is there then.
    pub(super) async fn change(
        &self,
        app: &AppId,
        change: impl Fn(&mut Application) -> bool,
    ) -> Result<Arc<Application>> {
        for _ in 0..RACES {
            let Loaded { application, place } = self.load(app).await?;
            let mut next = (*application).clone();
            if !change(&mut next) {
                return Ok(application);
            }
            next.format = FORMAT;
            let under = match place {
                Some(Place { seq_no, primary_term }) => format!("if_seq_no={seq_no}&if_primary_term={primary_term}"),
                None => "op_type=create".to_owned(),
            };
            let index = names::entrance(&self.index);
            let path =
                format!("/{index}/_doc/{}?require_alias=true&refresh=true&{under}", names::in_path(app.as_str()));
            let answer =
                self.client.send("change application", Method::PUT, &path, Body::json(&encode(&next)?)).await?;
            if answer.status == 409 {
                continue; // By somebody else, or by this very request when its first answer was lost.
            }
            let place: Place = answer.read()?;
            let application = Arc::new(next);
            self.keep(app, Loaded { application: application.clone(), place: Some(place) });
            return Ok(application);
        }
        let message = format!("application {app} is changed by too many at once");
        Err(Error::new(ErrorKind::Unavailable, "change application", message))
    }

    /// Makes models and epochs (in order) known; gives what is there then.
    pub(super) async fn prepare(&self, app: &AppId, models: &[ModelName], epochs: &[u32]) -> Result<Arc<Application>> {
        let change = |application: &mut Application| {
            let mut is_change = false;
            for model in models {
                is_change |= application.add_model(&self.prefix, app, model);
            }
            for epoch in epochs.iter().filter(|epoch| **epoch > 0) {
                if application.lacks_epoch(*epoch) {
                    application.epochs.push(*epoch);
                    is_change = true;
                }
            }
            is_change
        };
        let known = self.known(app).await?.application;
        if !change(&mut (*known).clone()) {
            return Ok(known);
        }
        self.change(app, change).await
    }

    /// Makes a model known, with its fields: they are ready, for it has no documents. Changes nothing where it is known.
    pub(super) async fn define_new(
        &self,
        app: &AppId,
        model: &ModelName,
        fields: &[Field],
    ) -> Result<Arc<Application>> {
        let change = |application: &mut Application| {
            let is_new = application.add_model(&self.prefix, app, model);
            if is_new {
                application.define(model, fields, true);
            }
            is_new
        };
        self.change(app, change).await
    }

    /// The applications with something to do in the background.
    pub(super) async fn pending(&self) -> Result<Vec<AppId>> {
        #[derive(Deserialize)]
        struct Found {
            hits: Hits,
        }
        #[derive(Deserialize)]
        struct Hits {
            hits: Vec<Hit>,
        }
        #[derive(Deserialize)]
        struct Hit {
            #[serde(rename = "_id")]
            id: AppId,
        }
        let path = format!("/{}/_search?allow_partial_search_results=false", self.index);
        let body = json!({ "query": { "term": { "pending": true } }, "size": 1_000, "_source": false });
        let found: Found = self.client.send("look for work", Method::POST, &path, Body::json(&body)).await?.read()?;
        Ok(found.hits.hits.into_iter().map(|hit| hit.id).collect())
    }
}

/// What became of a record that was known.
pub(super) enum Confirmed {
    Same(Loaded),
    /// It was changed: this is what is there now.
    Other(Loaded),
}

fn encode(application: &Application) -> Result<Value> {
    serde_json::to_value(application).map_err(|error| {
        Error::new(ErrorKind::Internal, "change application", "it cannot be written").with_source(error)
    })
}

fn decode(app: &AppId, source: Value) -> Result<Application> {
    let format = source["format"].as_u64().unwrap_or_default();
    if format > u64::from(FORMAT) {
        let message =
            format!("application {app} has format {format} in Elasticsearch, written by a newer version of Nexxus");
        return Err(Error::new(ErrorKind::Unsupported, "read application", message));
    }
    serde_json::from_value(source).map_err(|error| {
        let message = format!("what Elasticsearch holds of application {app} cannot be read");
        Error::new(ErrorKind::Corrupt, "read application", message).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> ModelName {
        ModelName::parse("task").expect("a name")
    }

    fn application() -> Application {
        let mut application = Application { epochs: vec![1, 1_790_000_000], ..Application::default() };
        application.add_model("nexxus", &AppId::parse("a").expect("an id"), &task());
        application
    }

    fn field(path: &str, kind: Kind) -> Field {
        Field { path: path.into(), kind, is_array: false, is_universal: false }
    }

    fn states(application: &Application) -> Vec<(&str, u64, bool)> {
        let fields = &application.models[&task()].fields;
        fields.iter().map(|field| (&*field.path, field.since, field.ready)).collect()
    }

    #[test]
    fn versions_compare_as_offsets_do() {
        let mut application = application();
        let offsets =
            [(1, 1), (1, 2), (1, 1 << 43), (1_790_000_000, 1), (1_790_000_000, 7)].map(|(e, p)| Offset::new(e, p));
        let versions: Vec<_> = offsets.iter().map(|offset| application.version(*offset)).collect();
        assert!(versions.is_sorted() && versions.iter().all(|version| version.is_some_and(|it| it < 1 << 63)));
        for void in [Offset::new(0, 9), Offset::new(5, 1), Offset::new(u32::MAX, 1)] {
            assert_eq!(application.version(void), None);
        }
        assert!(application.lacks_epoch(u32::MAX) && !application.lacks_epoch(5));
        application.void = versions[3].expect("a version");
        assert_eq!(application.version(offsets[3]), None);
        assert_eq!(application.version(offsets[4]), versions[4]);
    }

    #[test]
    fn a_changed_field_is_a_new_one() {
        let mut application = application();
        assert!(application.define(&task(), &[field("a", Kind::Number), field("b", Kind::String)], true));
        assert_eq!(states(&application), [("a", 1, true), ("b", 1, true)]);
        let same = [field("b", Kind::String), field("a", Kind::Number), field("a", Kind::Number)];
        assert!(!application.define(&task(), &same, false));
        assert!(application.define(&task(), &[field("a", Kind::String), field("b", Kind::String)], false));
        assert_eq!(states(&application), [("a", 2, false), ("b", 1, true)]);
        assert!(application.pending && application.models[&task()].wanted_revision() == Some(2));
        assert!(application.define(&task(), &[], false));
        application.settle();
        assert!(!application.pending && application.models[&task()].revision == 3);
    }

    #[test]
    fn a_dropped_application_begins_another_life() {
        let mut application = application();
        let index = application.models[&task()].index.clone();
        assert!(application.drop_models(7) && !application.drop_models(9));
        assert_eq!((application.void, &application.remains[..]), (7, &[index.clone()][..]));
        application.add_model("nexxus", &AppId::parse("a").expect("an id"), &task());
        assert_ne!(application.models[&task()].index, index);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let app = AppId::parse("a").expect("an id");
        let written = encode(&application()).expect("json");
        assert_eq!(decode(&app, written).expect("read"), application());
        let error = decode(&app, json!({ "format": 2 })).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(decode(&app, json!({ "format": 1, "life": "x" })).expect_err("refused").kind, ErrorKind::Corrupt);
    }
}
