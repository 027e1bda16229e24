//! Searching: a refresh that all who wait share, one request, and a second one where documents are stored without search fields.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::try_join;
use parking_lot::Mutex;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Inner,
    applications::{Application, Confirmed, Model, Place},
    client::{Answer, Body},
    names,
    order::{Order, Position},
    query,
};
use crate::{
    Error, ErrorKind, Result,
    documents::{Found, Query},
    model::{AppId, Document, ModelName, filter::Field},
};

/// Most hits of a request: `index.max_result_window`.
const MOST_HITS: usize = 10_000;
/// Documents without search fields that are read at once.
const BARE_PAGE: usize = 500;
/// Models whose rounds are kept in memory.
const MOST_ROUNDS: usize = 10_000;
/// How often a search begins anew because the application changes under it.
const TURNS: usize = 5;

/// The refreshes of one model. Whoever calls while one is on its way waits for the next one, which then serves all of them: it began
/// after they called.
#[derive(Default)]
struct Rounds {
    begun: AtomicU64,
    last: tokio::sync::Mutex<Round>,
}

#[derive(Default)]
struct Round {
    number: u64,
    outcome: Option<Result<Option<Fresh>, (ErrorKind, String)>>,
}

/// A model as it is now, with everything that was applied visible to searches.
#[derive(Clone)]
pub(super) struct Fresh(Arc<(Model, bool)>);

impl Fresh {
    fn model(&self) -> &Model {
        &self.0.0
    }

    /// Where to look; none where nothing is stored.
    fn index(&self) -> Option<&str> {
        self.0.1.then_some(self.0.0.index.as_str())
    }
}

/// The rounds of all models.
#[derive(Default)]
pub(super) struct AllRounds(Mutex<HashMap<(AppId, ModelName), Arc<Rounds>>>);

impl AllRounds {
    fn of(&self, app: &AppId, model: &ModelName) -> Arc<Rounds> {
        let mut all = self.0.lock();
        if all.len() >= MOST_ROUNDS {
            all.retain(|_, rounds| Arc::strong_count(rounds) > 1);
        }
        all.entry((app.clone(), model.clone())).or_default().clone()
    }
}

/// What a search gives. Only a part is asked for, and what would be empty is left out.
#[derive(Deserialize)]
pub(super) struct Response<S> {
    #[serde(default = "Hits::none")]
    pub(super) hits: Hits<S>,
}

#[derive(Deserialize)]
pub(super) struct Hits<S> {
    total: Option<Total>,
    #[serde(default = "Vec::new")]
    pub(super) hits: Vec<Hit<S>>,
}

impl<S> Hits<S> {
    fn none() -> Self {
        Self { total: None, hits: Vec::new() }
    }
}

#[derive(Deserialize)]
struct Total {
    value: u64,
}

#[derive(Deserialize)]
pub(super) struct Hit<S> {
    #[serde(rename = "_index", default)]
    pub(super) index: String,
    #[serde(rename = "_id", default)]
    pub(super) id: String,
    #[serde(rename = "_source")]
    pub(super) source: S,
}

#[derive(Deserialize)]
struct OnlyDocument {
    doc: Document,
}

type Page = Hits<OnlyDocument>;

impl Inner {
    /// The model as it is now, after a refresh that began after this call; none where it is not known.
    pub(super) async fn fresh(&self, app: &AppId, model: &ModelName) -> Result<Option<Fresh>> {
        let rounds = self.rounds.of(app, model);
        let before = rounds.begun.load(Ordering::SeqCst);
        let mut last = rounds.last.lock().await;
        if last.number <= before || last.outcome.is_none() {
            last.outcome = None;
            last.number = rounds.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let outcome = self.refresh(app, model).await;
            last.outcome = Some(outcome.map_err(|error| (error.kind, error.message)));
        }
        match &last.outcome {
            Some(Ok(fresh)) => Ok(fresh.clone()),
            Some(Err((kind, message))) => Err(Error::new(*kind, "refresh", message.as_str())),
            None => Ok(None),
        }
    }

    async fn refresh(&self, app: &AppId, model: &ModelName) -> Result<Option<Fresh>> {
        let mut known = self.applications.known(app).await?;
        for _ in 0..TURNS {
            let index = known.application.models.get(model).map(|model| model.index.clone());
            let seen = self.place(app);
            let (seen, is_there) = match &index {
                Some(index) => try_join(seen, self.refresh_index(index)).await?,
                None => (seen.await?, false),
            };
            let application = match self.applications.confirm(app, known, seen).await? {
                Confirmed::Same(known) => known.application,
                Confirmed::Other(now) if has_index(&now.application, model, index.as_deref()) => now.application,
                Confirmed::Other(now) => {
                    known = now;
                    continue;
                }
            };
            let model = application.models.get(model).cloned();
            return Ok(model.map(|model| Fresh(Arc::new((model, is_there)))));
        }
        Err(Error::new(ErrorKind::Unavailable, "refresh", format!("application {app} changes all the time")))
    }

    /// Whether the index is there.
    async fn refresh_index(&self, index: &str) -> Result<bool> {
        let answer = self.client.send("refresh", Method::POST, &format!("/{index}/_refresh"), Body::None).await?;
        if answer.is_without_index() {
            return Ok(false);
        }
        // A shard that did not refresh may not show what was applied.
        let shards: Value = answer.read()?;
        match shards["_shards"]["failed"].as_u64() {
            Some(0) => Ok(true),
            _ => Err(Error::new(ErrorKind::Unavailable, "refresh", format!("index {index}: {}", shards["_shards"]))),
        }
    }

    /// Where the record of an application stands now.
    async fn place(&self, app: &AppId) -> Result<Option<Place>> {
        #[derive(Deserialize)]
        struct Seen {
            #[serde(flatten)]
            place: Option<Place>,
        }
        let path = format!("/{}/_doc/{}?_source=false", self.applications.index(), names::in_path(app.as_str()));
        let answer = self.client.send("read application", Method::GET, &path, Body::None).await?;
        if answer.status == 404 && !answer.is_without_index() {
            return Ok(None);
        }
        Ok(answer.read::<Seen>()?.place)
    }

    pub(super) async fn search(&self, query: Query) -> Result<Found> {
        let order = Order::new(&query.sort)?;
        let after = match &query.cursor {
            Some(cursor) => Some(order.decode(&query, cursor)?),
            None => None,
        };
        let fresh = self.fresh(&query.app, &query.model).await?;
        check_fields(&query, fresh.as_ref().map(Fresh::model))?;
        let Some(fresh) = fresh.filter(|fresh| fresh.index().is_some()) else {
            return Ok(Found { total: query.count.then_some(0), ..Found::default() });
        };
        let search = Search { inner: self, model: fresh.model(), query: &query, order: &order, after: after.as_ref() };
        search.run().await
    }

    /// How many live documents a model has.
    pub(super) async fn count(&self, app: &AppId, model: &ModelName) -> Result<u64> {
        let fresh = self.fresh(app, model).await?;
        match fresh.as_ref().and_then(Fresh::index) {
            Some(index) => self.count_in(index, json!({ "term": { "live": true } })).await,
            None => Ok(0),
        }
    }

    /// How many documents of an index match a query.
    pub(super) async fn count_in(&self, index: &str, query: Value) -> Result<u64> {
        #[derive(Deserialize)]
        struct Counted {
            count: u64,
        }
        let body = Body::json(&json!({ "query": query }));
        let answer = self.client.send("count", Method::POST, &format!("/{index}/_count"), body).await?;
        if answer.is_without_index() { Ok(0) } else { Ok(answer.read::<Counted>()?.count) }
    }

    /// Asks an index, all of it.
    pub(super) async fn ask(&self, index: &str, parts: &str, body: &Value) -> Result<Answer> {
        let path = format!("/{index}/_search?allow_partial_search_results=false&filter_path={parts}");
        self.client.send("search", Method::POST, &path, Body::json(body)).await
    }
}

fn has_index(application: &Application, model: &ModelName, index: Option<&str>) -> bool {
    application.models.get(model).map(|model| model.index.as_str()) == index
}

/// `Unavailable` for a query that names a field which is not indexed yet.
fn check_fields(query: &Query, model: Option<&Model>) -> Result<()> {
    let mut fields: Vec<&Field> = query.sort.iter().map(|sort| &sort.field).collect();
    query.condition.each_field(&mut |field| fields.push(field));
    for field in fields.into_iter().filter(|field| !field.is_universal) {
        if !model.and_then(|model| model.indexed(field)).is_some_and(|indexed| indexed.ready) {
            let message = format!("field {} of model {} is not indexed yet", field.path, query.model);
            return Err(Error::new(ErrorKind::Unavailable, "search", message));
        }
    }
    Ok(())
}

/// One search, checked.
struct Search<'a> {
    inner: &'a Inner,
    model: &'a Model,
    query: &'a Query,
    order: &'a Order,
    after: Option<&'a Position>,
}

impl Search<'_> {
    async fn run(&self) -> Result<Found> {
        // One more than asked for tells whether there are more.
        let mut limit = self.query.limit.min(MOST_HITS - 1);
        let page = loop {
            match self.page(limit).await? {
                Some(page) => break page,
                // Documents too large for one answer: a shorter page, which its cursor goes on from.
                None => limit = (limit / 2).max(1),
            }
        };
        let mut total = page.total.map_or(0, |total| total.value);
        let mut found: Vec<_> = page.hits.into_iter().map(|hit| hit.source.doc).collect();
        if self.model.bare {
            let (n_bare, bare) = self.bare(limit).await?;
            total += n_bare;
            found.extend(bare);
            found.sort_by_cached_key(|document| Placed { order: self.order, position: self.order.position(document) });
        }
        let has_more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().filter(|_| has_more);
        let cursor = last.map(|last| self.order.encode(self.query, &self.order.position(last)));
        Ok(Found { documents: found, cursor, total: self.query.count.then_some(total) })
    }

    /// What is indexed; none when it does not fit into an answer.
    async fn page(&self, limit: usize) -> Result<Option<Page>> {
        if limit == 0 && !self.query.count && self.query.limit == 0 {
            return Ok(Some(Page::none()));
        }
        let condition = query::query(&self.query.app, &self.query.model, &self.query.condition);
        let mut filters = vec![json!({ "term": { "live": true } }), condition];
        filters.extend(self.words());
        let mut body = json!({
            "query": { "bool": { "filter": filters, "must_not": [{ "term": { "bare": true } }] } },
            "size": if self.query.limit == 0 { 0 } else { limit + 1 },
            "sort": self.order.to_json(),
            "track_total_hits": self.query.count,
            "_source": "doc",
        });
        if !self.model.bare {
            // Almost always: nothing to leave out.
            body["query"] = json!({ "bool": { "filter": filters } });
        }
        if let Some(after) = self.after {
            body["search_after"] = self.order.after(after);
        }
        let answer = self.inner.ask(&self.model.index, "hits.total.value,hits.hits._source", &body).await?;
        if answer.is_without_index() {
            return Ok(Some(Page::none())); // It was dropped just now.
        }
        if answer.is_ok() && answer.is_cut && limit > 1 {
            return Ok(None);
        }
        Ok(Some(answer.read::<Response<OnlyDocument>>()?.hits))
    }

    /// Full text: each of the words has to be in one of the document's strings.
    fn words(&self) -> Option<Value> {
        let text = self.query.text.as_ref()?;
        Some(json!({ "match": { "text": { "query": text, "operator": "and" } } }))
    }

    /// Documents without search fields are looked at one by one: how many match, and the first of them behind the cursor.
    async fn bare(&self, limit: usize) -> Result<(u64, Vec<Document>)> {
        let by_id = Order::new(&[])?;
        let (mut total, mut first, mut last) = (0, Vec::new(), None);
        loop {
            let mut filters = vec![json!({ "term": { "bare": true } }), json!({ "term": { "live": true } })];
            filters.extend(self.words());
            let mut body = json!({
                "query": { "bool": { "filter": filters } }, "size": BARE_PAGE, "sort": by_id.to_json(), "_source": "doc",
            });
            if let Some(last) = &last {
                body["search_after"] = by_id.after(last);
            }
            let answer = self.inner.ask(&self.model.index, "hits.hits._source", &body).await?;
            let page: Vec<Document> = if answer.is_without_index() {
                Vec::new()
            } else {
                let hits = answer.read::<Response<OnlyDocument>>()?.hits.hits;
                hits.into_iter().map(|hit| hit.source.doc).collect()
            };
            let is_last = page.len() < BARE_PAGE;
            last = page.last().map(|document| by_id.position(document));
            for document in page.into_iter().filter(|document| self.query.condition.matches(document)) {
                total += 1;
                let position = self.order.position(&document);
                if self.after.is_none_or(|after| self.order.compare(&position, after).is_gt()) {
                    first.push((position, document));
                }
            }
            first.sort_by(|(left, _), (right, _)| self.order.compare(left, right));
            first.truncate(limit + 1);
            if is_last {
                return Ok((total, first.into_iter().map(|(_, document)| document).collect()));
            }
        }
    }
}

/// A position that compares by its order.
struct Placed<'o> {
    order: &'o Order,
    position: Position,
}

impl PartialEq for Placed<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Placed<'_> {}

impl PartialOrd for Placed<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.compare(&self.position, &other.position)
    }
}
