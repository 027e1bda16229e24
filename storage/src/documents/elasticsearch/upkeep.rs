//! What happens in the background: fields are indexed for stored documents, indices of dropped applications removed, and tombstones
//! that the change log is past.
//!
//! Every process looks for work; the record of an application says who does it ([`Claim`]). Who stops to say so is dead, and another
//! one goes on. What is done is read and written back under the version that it was read with: a writer that comes in between wins,
//! and writes by the new definition itself.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rand::random_range;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    Inner,
    applications::{Application, Claim, Model},
    bulk::{Bulk, Fate, Over},
    client::Body,
    names,
    search::Response,
    stored::{Source, Version},
};
use crate::{
    Error, ErrorKind, Result,
    model::{AppId, ChangeId, Document, ModelName, Timestamp},
};

/// How often somebody looks for work that another process left.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Who has not said for so long that it is at work is dead.
const CLAIM: Duration = Duration::from_secs(5);
/// How often it says so.
const BEAT: Duration = Duration::from_secs(1);
/// About how often tombstones are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(1_200);
/// Tombstones that are removed at once.
const EXPIRED_AT_ONCE: usize = 1_000;
/// Bytes of documents that are read at once, about.
const PAGE_BYTES: usize = 4 << 20;
const FIRST_PAGE: usize = 100;
const LARGEST_PAGE: usize = 2_000;

/// What is to be done, and by whom.
pub(super) struct Upkeep {
    /// This process, in claims.
    name: String,
    wished: Mutex<BTreeSet<AppId>>,
    woken: Notify,
    /// Claims of others, and since when they are as they are.
    others: Mutex<HashMap<AppId, (Claim, Instant)>>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            name: ChangeId::generate().to_string(),
            wished: Mutex::default(),
            woken: Notify::new(),
            others: Mutex::default(),
        }
    }
}

impl Upkeep {
    /// Says that there is something to do for an application.
    pub(super) fn wish(&self, app: &AppId) {
        self.wished.lock().insert(app.clone());
        self.woken.notify_one();
    }

    /// Whether the claim of another process holds.
    fn is_held(&self, app: &AppId, claim: Option<&Claim>) -> bool {
        let mut others = self.others.lock();
        let Some(claim) = claim.filter(|claim| claim.by != self.name) else {
            others.remove(app);
            return false;
        };
        match others.get(app) {
            Some((seen, since)) if seen == claim => since.elapsed() < CLAIM,
            _ => {
                others.insert(app.clone(), (claim.clone(), Instant::now()));
                true
            }
        }
    }
}

/// Runs until the documents are closed.
pub(super) async fn run(inner: Weak<Inner>) {
    let mut next_expiry = Instant::now() + EXPIRE_EVERY.mul_f64(random_range(0.1..1.0));
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let mut apps = std::mem::take(&mut *inner.upkeep.wished.lock());
        match inner.applications.pending().await {
            Ok(pending) => apps.extend(pending),
            Err(error) => warn!(%error, "cannot look for what is to be done in the background"),
        }
        for app in apps {
            if let Err(error) = inner.work_on(&app).await {
                warn!(%app, %error, "work in the background has to be done again");
            }
        }
        if Instant::now() >= next_expiry {
            next_expiry = Instant::now() + EXPIRE_EVERY.mul_f64(random_range(0.8..1.2));
            if let Err(error) = inner.expire_deletes(Timestamp::now()).await {
                warn!(%error, "tombstones of deleted documents cannot be removed");
            }
        }
        // The time is up more often than not.
        let _woken = timeout(LOOK_EVERY, inner.upkeep.woken.notified()).await;
    }
}

/// Documents that lack a field which came with a revision.
pub(super) fn older_than(revision: u64) -> Value {
    json!({ "bool": { "filter": [{ "term": { "live": true } }, { "range": { "rev": { "lt": revision } } }] } })
}

#[derive(Deserialize)]
struct Whole {
    doc: Document,
    at: Version,
}

#[derive(Deserialize)]
struct At {
    at: Version,
}

impl Inner {
    /// Does what is to be done for an application, unless another process is at it.
    async fn work_on(&self, app: &AppId) -> Result<()> {
        let application = self.applications.load(app).await?.application;
        if !application.pending || self.upkeep.is_held(app, application.claim.as_ref()) {
            return Ok(());
        }
        let application = self.beat(app, application.claim.as_ref()).await?;
        self.remove_remains(app, &application).await?;
        for name in application.models.keys() {
            self.index_fields(app, name).await?;
        }
        let mine = self.upkeep.name.as_str();
        let settle = |application: &mut Application| {
            application.settle();
            application.claim.take_if(|claim| claim.by == mine);
            true
        };
        self.applications.change(app, settle).await?;
        Ok(())
    }

    /// Says that this process is at work; `Conflict` when another one has taken over since the claim was seen.
    async fn beat(&self, app: &AppId, seen: Option<&Claim>) -> Result<Arc<Application>> {
        let mine = self.upkeep.name.as_str();
        let change = |application: &mut Application| {
            let claim = application.claim.as_ref();
            let is_free = claim == seen || claim.is_none_or(|claim| claim.by == mine);
            if is_free {
                let beat = claim.map_or(0, |claim| claim.beat) + 1;
                application.claim = Some(Claim { by: mine.to_owned(), beat });
            }
            is_free
        };
        let application = self.applications.change(app, change).await?;
        if application.claim.as_ref().is_some_and(|claim| claim.by == mine) {
            return Ok(application);
        }
        Err(Error::new(ErrorKind::Conflict, "index fields", "another process does it"))
    }

    /// Removes indices of what was dropped.
    pub(super) async fn remove_remains(&self, app: &AppId, application: &Application) -> Result<()> {
        if application.remains.is_empty() {
            return Ok(());
        }
        for index in &application.remains {
            let answer = self.client.send("drop application", Method::DELETE, &format!("/{index}"), Body::None).await?;
            if !answer.is_without_index() {
                answer.done()?;
            }
            self.made.lock().remove(index);
        }
        let removed = application.remains.clone();
        let forget = |application: &mut Application| {
            application.remains.retain(|index| !removed.contains(index));
            application.settle();
            true
        };
        self.applications.change(app, forget).await?;
        Ok(())
    }

    /// Indexes the stored documents of a model by the fields that are not ready.
    async fn index_fields(&self, app: &AppId, name: &ModelName) -> Result<()> {
        let (mut page, mut next_beat, mut n_done) = (FIRST_PAGE, Instant::now() + BEAT, 0);
        loop {
            // As it is now: it may have changed since the last page, and what is written has to fit it.
            let read = Instant::now();
            let application = self.applications.load(app).await?.application;
            let Some(model) = application.models.get(name) else { return Ok(()) };
            let Some(wanted) = model.wanted_revision() else { return Ok(()) };
            self.ensure_indices(app, &application, std::slice::from_ref(name)).await?;
            let (n_found, mean_bytes) = self.index_page((app, name), (model, read), wanted, page).await?;
            n_done += n_found;
            self.figures.reindexed.fetch_add(n_found as u64, Ordering::Relaxed);
            if n_found == 0 {
                let ready = |application: &mut Application| {
                    let fields = application.models.get_mut(name).into_iter().flat_map(|model| &mut model.fields);
                    fields.filter(|field| field.since <= wanted).for_each(|field| field.ready = true);
                    true
                };
                self.applications.change(app, ready).await?;
                info!(%app, model = %name, n_documents = n_done, "fields are indexed");
                continue;
            }
            page = (PAGE_BYTES / mean_bytes.max(1)).clamp(1, LARGEST_PAGE).min(page * 2);
            if Instant::now() >= next_beat {
                self.beat(app, None).await?;
                next_beat = Instant::now() + BEAT;
            }
        }
    }

    /// Writes some documents back that are older than a revision; how many there were, and the bytes of each on average.
    async fn index_page(
        &self,
        (app, name): (&AppId, &ModelName),
        (model, read): (&Model, Instant),
        wanted: u64,
        size: usize,
    ) -> Result<(usize, usize)> {
        self.client.send("refresh", Method::POST, &format!("/{}/_refresh", model.index), Body::None).await?.done()?;
        let body = json!({ "query": older_than(wanted), "size": size, "_source": ["doc", "at"], "sort": ["_doc"] });
        let answer = self.ask(&model.index, "hits.hits._source", &body).await?;
        if answer.is_ok() && answer.is_cut && size > 1 {
            return Box::pin(self.index_page((app, name), (model, read), wanted, size / 2)).await;
        }
        let hits = answer.read::<Response<Whole>>()?.hits.hits;
        let (mut bulk, mut bytes, mut n_done) = (Bulk::default(), 0, 0);
        let mut refused = Vec::new();
        for hit in &hits {
            let (document, at) = (&hit.source.doc, hit.source.at);
            let bare = !Source::fits(document, model);
            if bare && !model.bare {
                refused.push(hit);
                continue;
            }
            let source = Source::Live { document, model, bare };
            bulk.put(&model.index, document.id.as_str(), at, Over::OlderOrSame, |into| {
                let before = into.len();
                source.encode(at, into)?;
                bytes += into.len() - before;
                Ok(())
            })?;
            n_done += 1;
            if bulk.is_full() {
                self.write_back(std::mem::take(&mut bulk), read).await?;
            }
        }
        if bulk.len() > 0 {
            self.write_back(bulk, read).await?;
        }
        if !refused.is_empty() {
            // They are written with the next page, which finds that the model has such documents.
            let has_bare = |application: &mut Application| {
                application.models.get_mut(name).is_some_and(|model| !std::mem::replace(&mut model.bare, true))
            };
            self.applications.change(app, has_bare).await?;
        }
        Ok((hits.len(), bytes.checked_div(n_done).unwrap_or(1)))
    }

    /// Writes documents by a definition that was read at this time.
    async fn write_back(&self, bulk: Bulk, read: Instant) -> Result<()> {
        // Another process may have taken over, by a newer definition: what it wrote has the same versions.
        if read.elapsed() > CLAIM / 2 {
            return Err(Error::new(ErrorKind::Timeout, "index fields", "reading documents took too long"));
        }
        let fates = bulk.send(&self.client, "index fields", self.options.patience).await?;
        match fates.into_iter().find(|fate| *fate != Fate::Done) {
            None => Ok(()),
            Some(fate) => {
                let message = format!("a document cannot be written back: {fate:?}");
                Err(Error::new(ErrorKind::Unavailable, "index fields", message))
            }
        }
    }

    /// Removes tombstones that are older than the change log may be.
    pub(super) async fn expire_deletes(&self, now: Timestamp) -> Result<usize> {
        let keep = i64::try_from(self.options.keep_deletes.as_millis()).unwrap_or(i64::MAX);
        let before = now.as_ms().saturating_sub(keep);
        let all = names::all_documents(&self.options.prefix);
        let mut n_removed = 0;
        loop {
            let body = json!({
                "query": { "range": { "deleted": { "lt": before } } },
                "size": EXPIRED_AT_ONCE, "_source": "at", "sort": [{ "deleted": { "order": "asc" } }],
            });
            let answer = self.ask(&all, "hits.hits", &body).await?;
            if answer.is_without_index() {
                return Ok(n_removed);
            }
            let hits = answer.read::<Response<At>>()?.hits.hits;
            let mut bulk = Bulk::default();
            for hit in &hits {
                bulk.remove(&hit.index, &hit.id, hit.source.at);
            }
            if bulk.len() > 0 {
                bulk.send(&self.client, "forget deletes", self.options.patience).await?;
            }
            n_removed += hits.len();
            if hits.len() < EXPIRED_AT_ONCE {
                return Ok(n_removed);
            }
            self.client.send("refresh", Method::POST, &format!("/{all}/_refresh"), Body::None).await?.done()?;
        }
    }
}
