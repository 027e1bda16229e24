//! Indexing stored documents by fields that have become filterable, a piece with each commit.
//!
//! A document carries the revision of the definition that it was indexed by. Those of an older one than a field that is not ready
//! are written again, from what is stored of them; when none is left, the field is ready. Documents that are written in the
//! meantime have the newest revision anyway. So there is no position to remember, and a restart goes on where the index stands.

use std::ops::Bound;

use tantivy::{
    DocAddress, DocSet, Searcher, TERMINATED, Term,
    collector::Count,
    query::{BooleanQuery, EnableScoring, Occur, Query, RangeQuery, TermQuery},
    schema::IndexRecordOption,
};

use super::{
    fault::fault,
    lookup,
    overlay::Layer,
    schema::{Fields, Scope, Source},
    shared::Shared,
};
use crate::{
    Result,
    documents::Stored,
    model::{Document, Offset},
};

/// Most documents of a piece.
const PIECE_DOCUMENTS: usize = 5_000;
/// Most stored bytes of a piece, but for the last document.
const PIECE_BYTES: usize = 4 << 20;

/// Documents that are to be written again.
pub(super) struct Chunk {
    pub(super) documents: Vec<(Document, Offset)>,
}

impl Shared {
    /// The next documents to be indexed by new fields; none when there are none. Fields of which none is left become ready.
    /// `frozen` is what is written by the same commit: its documents are newer. Blocking.
    pub(super) fn next_chunk(&self, searcher: &Searcher, frozen: &Layer) -> Result<Option<Chunk>> {
        for (scope, definition) in self.definitions.unready() {
            if frozen.dropped.contains_key(&scope.app) {
                continue; // Its documents are about to be purged; the next look shows what is left.
            }
            let Some(revision) = definition.wanted_revision() else { continue };
            let addresses = older(searcher, &self.fields, &scope, revision, PIECE_DOCUMENTS)?;
            if addresses.is_empty() {
                self.definitions.set_ready(&scope, revision)?;
                continue;
            }
            return self.read_chunk(searcher, frozen, &scope, &addresses).map(Some);
        }
        Ok(None)
    }

    fn read_chunk(
        &self,
        searcher: &Searcher,
        frozen: &Layer,
        scope: &Scope,
        addresses: &[DocAddress],
    ) -> Result<Chunk> {
        let mut documents = Vec::new();
        let mut bytes = 0;
        for address in addresses {
            let source = lookup::source(searcher, &self.fields, *address)?;
            bytes += source.len();
            let Source { offset, stored } = Source::decode(&source)?;
            if let Stored::Live(document) = stored
                && !frozen.holds(scope, document.id.as_str())
            {
                documents.push((document, offset));
            }
            if bytes >= PIECE_BYTES {
                break;
            }
        }
        Ok(Chunk { documents })
    }

    /// How far the indexing of a model's fields is. Blocking.
    pub(super) fn indexing(&self, searcher: &Searcher, scope: &Scope) -> Result<Vec<(String, f64)>> {
        let definition = self.definitions.get(scope);
        let mut progress = Vec::new();
        for indexed in definition.fields.iter().filter(|indexed| !indexed.ready) {
            let all = count(searcher, &of_scope(&self.fields, scope))?;
            let left = count(searcher, &*older_than(&self.fields, scope, indexed.since))?;
            let share = if all == 0 { 0.0 } else { 1.0 - left as f64 / all as f64 };
            progress.push((indexed.field.path.to_string(), share));
        }
        Ok(progress)
    }
}

/// Whether the index has documents of a scope with search fields.
pub(super) fn has_any(searcher: &Searcher, fields: &Fields, scope: &Scope) -> Result<bool> {
    let mut has_any = false;
    let term = fields.scope_term(scope);
    lookup::visit(searcher, &term, &mut |_| {
        has_any = true;
        false
    })
    .map_err(|error| fault("define fields", error))?;
    Ok(has_any)
}

fn of_scope(fields: &Fields, scope: &Scope) -> TermQuery {
    TermQuery::new(fields.scope_term(scope), IndexRecordOption::Basic)
}

/// Documents of a scope that were indexed by a revision before this one.
fn older_than(fields: &Fields, scope: &Scope, revision: u64) -> Box<dyn Query> {
    let end = Bound::Excluded(Term::from_field_u64(fields.revision, revision));
    let older = RangeQuery::new(Bound::Unbounded, end);
    let of_scope = of_scope(fields, scope);
    Box::new(BooleanQuery::new(vec![(Occur::Must, Box::new(of_scope)), (Occur::Must, Box::new(older))]))
}

fn count(searcher: &Searcher, query: &dyn Query) -> Result<usize> {
    searcher.search(query, &Count).map_err(|error| fault("count documents to index", error))
}

/// Some documents of a scope that were indexed by a revision before this one.
fn older(searcher: &Searcher, fields: &Fields, scope: &Scope, revision: u64, limit: usize) -> Result<Vec<DocAddress>> {
    let find = || -> tantivy::Result<Vec<DocAddress>> {
        let query = older_than(fields, scope, revision);
        let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
        let mut found = Vec::new();
        for (ordinal, segment) in (0..).zip(searcher.segment_readers()) {
            let mut scorer = weight.scorer(segment, 1.0)?;
            let mut doc = scorer.doc();
            while doc != TERMINATED && found.len() < limit {
                if !segment.is_deleted(doc) {
                    found.push(DocAddress::new(ordinal, doc));
                }
                doc = scorer.advance();
            }
        }
        Ok(found)
    };
    find().map_err(|error| fault("find documents to index", error))
}
