//! A search: the first documents of the overlay and of the index in one order.

use std::sync::Arc;

use tantivy::{DocAddress, Searcher};

use super::{
    cursor,
    definitions::Definition,
    fault::fault,
    lookup,
    overlay::{Overlaid, View},
    query::Translator,
    schema::{Fields, Scope, Source, hash},
    sort::{First, FirstOfSegment, Order, Position},
};
use crate::{
    Error, ErrorKind, Result,
    documents::{Found, Query, Stored},
    model::{
        Document,
        filter::{Condition, Field},
    },
};

/// One search, checked.
pub(super) struct Search {
    query: Query,
    scope: Scope,
    order: Arc<Order>,
    after: Option<Arc<Position>>,
}

/// Where a document that was found is to be had.
enum Place {
    Overlay(Arc<Overlaid>),
    Loaded(Box<Document>),
    Index(DocAddress),
}

impl Search {
    /// `Invalid` for a query that cannot be carried out, `Unavailable` for one that names a field which is not indexed yet.
    pub(super) fn new(query: Query, definition: &Definition) -> Result<Self> {
        if query.text.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "search", "full text is not possible yet"));
        }
        let scope = Scope::new(&query.app, &query.model);
        let sort_fields = query.sort.iter().map(|sort| &sort.field);
        let mut fields: Vec<&Field> = sort_fields.collect();
        collect_fields(&query.condition, &mut fields);
        for field in fields.into_iter().filter(|field| !field.is_universal) {
            if !definition.indexed(field).is_some_and(|indexed| indexed.ready) {
                let message = format!("field {} of model {} is not indexed yet", field.path, query.model);
                return Err(Error::new(ErrorKind::Unavailable, "search", message));
            }
        }
        let order = Arc::new(Order::new(&scope, &query.sort)?);
        let after = match &query.cursor {
            Some(cursor) => Some(Arc::new(cursor::decode(&query, order.len(), cursor)?)),
            None => None,
        };
        Ok(Self { query, scope, order, after })
    }

    /// Blocking.
    pub(super) fn run(&self, fields: &Fields, view: View) -> Result<Found> {
        // One more than asked for tells whether there are more.
        let wanted = if self.query.limit == 0 { 0 } else { self.query.limit.saturating_add(1) };
        let mut best = Best { search: self, wanted, total: 0, places: Vec::new() };
        best.add_overlay(&view);
        let view = Arc::new(view);
        let mut segments = Vec::new();
        if let Some(searcher) = &view.index {
            best.add_bare(fields, searcher, &view)?;
            if wanted > 0 || self.query.count {
                let collected = self.collect(fields, searcher, view.clone(), wanted)?;
                best.total += collected.total;
                segments = collected.segments;
            }
        }
        let total = self.query.count.then_some(best.total);
        let mut first = merge(&self.order, best.finish(), segments, wanted)?;
        let has_more = first.len() > self.query.limit;
        first.truncate(self.query.limit);
        let cursor = first.last().filter(|_| has_more).map(|(position, _)| cursor::encode(&self.query, position));
        let documents = first.into_iter().map(|(_, place)| fetch(fields, &view, place)).collect::<Result<_>>()?;
        Ok(Found { documents, cursor, total })
    }

    fn collect(
        &self,
        fields: &Fields,
        searcher: &Searcher,
        view: Arc<View>,
        limit: usize,
    ) -> Result<super::sort::Collected> {
        let translator = Translator { fields, scope: &self.scope };
        let query = translator.query(&self.query.condition);
        let (order, after) = (self.order.clone(), self.after.clone());
        let first = First { order, limit, after, count: self.query.count, view };
        searcher.search(&*query, &first).map_err(|error| fault("search", error))
    }
}

/// The best of the documents that are tested one by one.
struct Best<'a> {
    search: &'a Search,
    wanted: usize,
    total: u64,
    places: Vec<(Position, Place)>,
}

impl Best<'_> {
    fn add_overlay(&mut self, view: &View) {
        for (depth, layer) in view.layers.iter().enumerate() {
            for overlaid in layer.entries() {
                let Some(document) = overlaid.live() else { continue };
                let id = document.id.as_str();
                if depth > 0 && view.is_overlaid(depth, hash(id), id) {
                    continue;
                }
                self.add(document, || Place::Overlay(overlaid.clone()));
            }
        }
    }

    /// Documents without search fields.
    fn add_bare(&mut self, fields: &Fields, searcher: &Searcher, view: &View) -> Result<()> {
        let mut result = Ok(());
        let term = fields.bare_term(&self.search.scope);
        lookup::visit(searcher, &term, &mut |address| {
            result =
                lookup::source(searcher, fields, address).and_then(|source| Source::decode(&source)).map(|source| {
                    let Stored::Live(document) = source.stored else { return };
                    let id = document.id.as_str();
                    if !view.is_overlaid(view.layers.len(), hash(id), id) {
                        self.add(&document, || Place::Loaded(Box::new(document.clone())));
                    }
                });
            result.is_ok()
        })
        .map_err(|error| fault("search", error))?;
        result
    }

    fn add(&mut self, document: &Document, place: impl FnOnce() -> Place) {
        let search = self.search;
        if !search.query.condition.matches(document) {
            return;
        }
        self.total += 1;
        if self.wanted == 0 {
            return;
        }
        let position = search.order.position(document);
        if search.after.as_ref().is_some_and(|after| search.order.compare(&position, after).is_le()) {
            return;
        }
        self.places.push((position, place()));
        if self.places.len() >= self.wanted.saturating_mul(2).saturating_add(1_000) {
            self.prune();
        }
    }

    fn prune(&mut self) {
        let order = &self.search.order;
        self.places.sort_unstable_by(|(left, _), (right, _)| order.compare(left, right));
        self.places.truncate(self.wanted);
    }

    fn finish(mut self) -> Vec<(Position, Place)> {
        self.prune();
        self.places
    }
}

/// The first of several lists that are in order.
fn merge(
    order: &Order,
    list: Vec<(Position, Place)>,
    mut segments: Vec<FirstOfSegment>,
    wanted: usize,
) -> Result<Vec<(Position, Place)>> {
    let next_of = |segment: &mut FirstOfSegment| -> Result<Option<(Position, Place)>> {
        let next = segment.next().map_err(|error| fault("search", error))?;
        Ok(next.map(|(position, address)| (position, Place::Index(address))))
    };
    let mut list = list.into_iter();
    let mut heads = vec![list.next()];
    for segment in &mut segments {
        heads.push(next_of(segment)?);
    }
    let mut merged = Vec::new();
    while merged.len() < wanted {
        let present = heads.iter().enumerate().filter_map(|(index, head)| Some((index, &head.as_ref()?.0)));
        let Some((index, _)) = present.min_by(|(_, left), (_, right)| order.compare(left, right)) else { break };
        let following = match index.checked_sub(1) {
            Some(segment) => next_of(&mut segments[segment])?,
            None => list.next(),
        };
        merged.extend(std::mem::replace(&mut heads[index], following));
    }
    Ok(merged)
}

fn fetch(fields: &Fields, view: &View, place: Place) -> Result<Document> {
    let missing = || Error::new(ErrorKind::Internal, "search", "a document that was found is not live");
    match place {
        Place::Overlay(overlaid) => overlaid.live().cloned().ok_or_else(missing),
        Place::Loaded(document) => Ok(*document),
        Place::Index(address) => {
            let searcher = view.index.as_ref().ok_or_else(missing)?;
            match Source::decode(&lookup::source(searcher, fields, address)?)?.stored {
                Stored::Live(document) => Ok(document),
                Stored::Deleted { .. } => Err(missing()),
            }
        }
    }
}

fn collect_fields<'a>(condition: &'a Condition, fields: &mut Vec<&'a Field>) {
    match condition {
        Condition::All | Condition::None => {}
        Condition::And(parts) | Condition::Or(parts) => parts.iter().for_each(|part| collect_fields(part, fields)),
        Condition::Not(part) => collect_fields(part, fields),
        Condition::Test(field, _) => fields.push(field),
    }
}
