//! Order: the first documents of an index in the order of a query, without fetching the others.
//!
//! In one segment every value of a sort field is a number in the order asked for, its *rank*: the value itself, or the ordinal of
//! a text among the segment's texts. Ranks are compared while the segment is scanned; values are looked up for those documents
//! that remain, to compare them with those of other segments and of the overlay.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc};

use tantivy::{
    DocAddress, DocId, Score, SegmentOrdinal, SegmentReader, TantivyError,
    collector::{Collector, SegmentCollector},
    columnar::{Cardinality, Column, MonotonicallyMappableToU64, StrColumn, TermOrdHit},
};

use super::{
    overlay::View,
    query,
    schema::Scope,
    value::{Held, IndexValue, held},
};
use crate::{
    Error, ErrorKind, Result,
    documents::Sort,
    model::{Document, filter::Field},
};

/// Most sort fields of a query.
pub(super) const MOST_SORT_FIELDS: usize = 8;

/// The order of a query.
#[derive(Debug, Clone)]
pub(super) struct Order {
    keys: Vec<SortKey>,
}

#[derive(Debug, Clone)]
struct SortKey {
    field: Field,
    column: String,
    descending: bool,
}

/// Where a document stands in an order: its sort values (none where it lacks one), then its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) values: Vec<Option<IndexValue>>,
    pub(super) id: Box<str>,
}

impl Order {
    pub(super) fn new(scope: &Scope, sort: &[Sort]) -> Result<Self> {
        if sort.len() > MOST_SORT_FIELDS {
            let message = format!("{} sort fields, at most {MOST_SORT_FIELDS} are possible", sort.len());
            return Err(Error::new(ErrorKind::Invalid, "search", message));
        }
        // What all documents share does not tell them apart.
        let key = |sort: &Sort| match query::column(scope, &sort.field) {
            query::Column::Constant(_) => None,
            query::Column::Named(column) => {
                Some(SortKey { field: sort.field.clone(), column, descending: sort.descending })
            }
        };
        Ok(Self { keys: sort.iter().filter_map(key).collect() })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Where a document stands. Of an array, the smallest element counts, the largest in descending order.
    pub(super) fn position(&self, document: &Document) -> Position {
        let value = |key: &SortKey| {
            let (Held::Values(values) | Held::TooLong(values)) = held(document, &key.field);
            if key.descending { values.into_iter().max() } else { values.into_iter().min() }
        };
        Position { values: self.keys.iter().map(value).collect(), id: document.id.as_str().into() }
    }

    pub(super) fn compare(&self, left: &Position, right: &Position) -> Ordering {
        let pairs = self.keys.iter().zip(left.values.iter().zip(&right.values));
        let compare = |(key, (left, right)): (&SortKey, (&Option<IndexValue>, &Option<IndexValue>))| match (left, right)
        {
            (Some(left), Some(right)) if key.descending => right.cmp(left),
            (Some(left), Some(right)) => left.cmp(right),
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater, // missing comes last, in both directions
            (Some(_), None) => Ordering::Less,
        };
        let by_values = pairs.map(compare).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal);
        by_values.then_with(|| left.id.cmp(&right.id))
    }
}

/// Collects the first documents of an order, and counts all.
pub(super) struct First {
    pub(super) order: Arc<Order>,
    pub(super) limit: usize,
    /// Only what comes after it.
    pub(super) after: Option<Arc<Position>>,
    pub(super) count: bool,
    /// What the overlay has newer versions of is left out.
    pub(super) view: Arc<View>,
}

/// What one search of the index gave.
pub(super) struct Collected {
    pub(super) total: u64,
    pub(super) segments: Vec<FirstOfSegment>,
}

impl Collector for First {
    type Fruit = Collected;
    type Child = SegmentFirst;

    fn for_segment(&self, ordinal: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<SegmentFirst> {
        let columns = self.order.keys.iter().map(|key| RankColumn::open(segment, &key.column, key.descending));
        let columns: Vec<_> = columns.collect::<tantivy::Result<_>>()?;
        let ids = segment.fast_fields().str("id")?;
        let after = match &self.after {
            Some(after) => Some(RankBound::find(after, &columns, ids.as_ref())?),
            None => None,
        };
        Ok(SegmentFirst {
            ordinal,
            columns,
            ids,
            hashes: segment.fast_fields().column_opt::<u64>("hash")?,
            limit: self.limit,
            after,
            count: self.count,
            view: self.view.clone(),
            total: 0,
            first: BinaryHeap::new(),
            fault: None,
        })
    }

    fn requires_scoring(&self) -> bool {
        false
    }

    fn merge_fruits(&self, fruits: Vec<tantivy::Result<(u64, FirstOfSegment)>>) -> tantivy::Result<Collected> {
        let mut collected = Collected { total: 0, segments: Vec::with_capacity(fruits.len()) };
        for fruit in fruits {
            let (total, segment) = fruit?;
            collected.total += total;
            collected.segments.push(segment);
        }
        Ok(collected)
    }
}

/// The ranks of one document, then that of its id.
type Ranks = [u64; MOST_SORT_FIELDS + 1];

pub(super) struct SegmentFirst {
    ordinal: SegmentOrdinal,
    columns: Vec<RankColumn>,
    ids: Option<StrColumn>,
    hashes: Option<Column<u64>>,
    limit: usize,
    after: Option<RankBound>,
    count: bool,
    view: Arc<View>,
    total: u64,
    /// The last of the first on top.
    first: BinaryHeap<(Ranks, DocId)>,
    fault: Option<TantivyError>,
}

impl SegmentFirst {
    /// Whether the overlay has a newer version.
    fn is_overlaid(&mut self, doc: DocId) -> bool {
        if self.view.layers.is_empty() {
            return false;
        }
        let Some(hash) = self.hashes.as_ref().and_then(|hashes| hashes.first(doc)) else { return false };
        if !self.view.layers.iter().any(|layer| layer.may_hold(hash)) {
            return false;
        }
        match text_of(self.ids.as_ref(), doc) {
            Ok(id) => self.view.is_overlaid(self.view.layers.len(), hash, &id),
            Err(error) => {
                self.fault.get_or_insert(error);
                true
            }
        }
    }

    fn ranks(&self, doc: DocId) -> Ranks {
        let mut ranks = Ranks::default();
        let columns = self.columns.iter().map(|column| column.rank(doc));
        let id = self.ids.as_ref().and_then(|ids| ids.ords().first(doc)).unwrap_or(u64::MAX);
        ranks.iter_mut().zip(columns.chain([id])).for_each(|(slot, rank)| *slot = rank);
        ranks
    }

    /// Whether it may come before the last of those that were found.
    fn may_be_first(&self, doc: DocId) -> bool {
        match (self.first.peek(), self.columns.first()) {
            (Some((last, _)), Some(column)) if self.first.len() >= self.limit => column.rank(doc) <= last[0],
            _ => true,
        }
    }
}

impl SegmentCollector for SegmentFirst {
    type Fruit = tantivy::Result<(u64, FirstOfSegment)>;

    fn collect(&mut self, doc: DocId, _score: Score) {
        if self.count {
            if self.is_overlaid(doc) {
                return;
            }
            self.total += 1;
        }
        if self.limit == 0 || !self.may_be_first(doc) {
            return;
        }
        let ranks = self.ranks(doc);
        if self.after.as_ref().is_some_and(|after| !after.is_before(&ranks)) {
            return;
        }
        let is_full = self.first.len() >= self.limit;
        if is_full && self.first.peek().is_some_and(|(last, _)| ranks >= *last) {
            return;
        }
        if !self.count && self.is_overlaid(doc) {
            return;
        }
        if is_full {
            self.first.pop();
        }
        self.first.push((ranks, doc));
    }

    fn harvest(self) -> Self::Fruit {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let docs = self.first.into_sorted_vec().into_iter().map(|(_, doc)| doc).collect();
        Ok((self.total, FirstOfSegment { ordinal: self.ordinal, columns: self.columns, ids: self.ids, docs, next: 0 }))
    }
}

/// The first documents of a segment, in order; their values are looked up one by one.
pub(super) struct FirstOfSegment {
    ordinal: SegmentOrdinal,
    columns: Vec<RankColumn>,
    ids: Option<StrColumn>,
    docs: Vec<DocId>,
    next: usize,
}

impl FirstOfSegment {
    pub(super) fn next(&mut self) -> tantivy::Result<Option<(Position, DocAddress)>> {
        let Some(doc) = self.docs.get(self.next).copied() else { return Ok(None) };
        self.next += 1;
        let values = self.columns.iter().map(|column| column.value(doc)).collect::<tantivy::Result<_>>()?;
        let id = text_of(self.ids.as_ref(), doc)?.into();
        Ok(Some((Position { values, id }, DocAddress::new(self.ordinal, doc))))
    }
}

fn text_of(column: Option<&StrColumn>, doc: DocId) -> tantivy::Result<String> {
    let mut text = String::new();
    match column.and_then(|column| Some((column, column.ords().first(doc)?))) {
        Some((column, ordinal)) => {
            column.ord_to_str(ordinal, &mut text)?;
            Ok(text)
        }
        None => Err(TantivyError::InternalError(format!("document {doc} of a segment has no id"))),
    }
}

/// A sort field in one segment.
struct RankColumn {
    /// None where no document of the segment has the field.
    values: Option<Column<u64>>,
    /// Of texts.
    texts: Option<StrColumn>,
    descending: bool,
}

/// Of a document that lacks the field. No value has it: the numbers are finite, dates and ordinals small.
const MISSING: u64 = u64::MAX;

impl RankColumn {
    fn open(segment: &SegmentReader, name: &str, descending: bool) -> tantivy::Result<Self> {
        let fast_fields = segment.fast_fields();
        let texts = fast_fields.str(name)?;
        let values = match &texts {
            Some(texts) => Some(texts.ords().clone()),
            None => fast_fields.column_opt::<i64>(name)?.map(Column::to_u64_monotonic),
        };
        Ok(Self { values, texts, descending })
    }

    fn rank(&self, doc: DocId) -> u64 {
        let Some(values) = &self.values else { return MISSING };
        let value = match (values.get_cardinality(), self.descending) {
            (Cardinality::Multivalued, true) => values.values_for_doc(doc).max(),
            (Cardinality::Multivalued, false) => values.values_for_doc(doc).min(),
            _ => values.first(doc),
        };
        value.map_or(MISSING, |value| self.rank_of(value))
    }

    fn rank_of(&self, value: u64) -> u64 {
        if self.descending { (MISSING - 1).saturating_sub(value) } else { value }
    }

    fn value(&self, doc: DocId) -> tantivy::Result<Option<IndexValue>> {
        let rank = self.rank(doc);
        if rank == MISSING {
            return Ok(None);
        }
        let value = if self.descending { MISSING - 1 - rank } else { rank };
        Ok(Some(match &self.texts {
            Some(texts) => {
                let mut text = String::new();
                texts.ord_to_str(value, &mut text)?;
                IndexValue::Text(text.into())
            }
            None => IndexValue::Integer(i64::from_u64(value)),
        }))
    }

    /// Where a value of another segment stands among the ranks of this one.
    fn bound(&self, value: Option<&IndexValue>) -> tantivy::Result<Bound> {
        Ok(match (value, &self.texts) {
            (None, _) => Bound::At(MISSING),
            (Some(IndexValue::Integer(number)), _) => Bound::At(self.rank_of(number.to_u64())),
            (Some(IndexValue::Text(text)), Some(texts)) => bound_of_text(texts, text, self.descending)?,
            // Only documents that lack the field are here: they come after each that has it.
            (Some(IndexValue::Text(_)), None) => Bound::Before(MISSING),
        })
    }
}

fn bound_of_text(texts: &StrColumn, text: &str, descending: bool) -> tantivy::Result<Bound> {
    Ok(match (texts.dictionary().term_ord_or_next(text)?, descending) {
        (TermOrdHit::Exact(ordinal), false) => Bound::At(ordinal),
        (TermOrdHit::Exact(ordinal), true) => Bound::At(MISSING - 1 - ordinal),
        // The ordinal of the first text that is greater, or of none.
        (TermOrdHit::Next(next), false) => Bound::Before(next),
        // It is the texts below it that come after: their ranks begin with that of the ordinal before.
        (TermOrdHit::Next(next), true) => Bound::Before(MISSING - next),
    })
}

/// Where a value stands among ranks.
#[derive(Debug, Clone, Copy)]
enum Bound {
    At(u64),
    /// Between this rank and the one before it.
    Before(u64),
}

impl Bound {
    /// Where the rank of a document stands, seen from here.
    fn compare(self, rank: u64) -> Ordering {
        match self {
            Self::At(bound) => rank.cmp(&bound),
            Self::Before(bound) if rank >= bound => Ordering::Greater,
            Self::Before(_) => Ordering::Less,
        }
    }
}

/// A position as bounds of the ranks of one segment.
struct RankBound(Vec<Bound>);

impl RankBound {
    fn find(position: &Position, columns: &[RankColumn], ids: Option<&StrColumn>) -> tantivy::Result<Self> {
        let mut bounds = Vec::with_capacity(columns.len() + 1);
        for (column, value) in columns.iter().zip(&position.values) {
            bounds.push(column.bound(value.as_ref())?);
        }
        bounds.push(match ids {
            Some(ids) => bound_of_text(ids, &position.id, false)?,
            None => Bound::Before(MISSING),
        });
        Ok(Self(bounds))
    }

    fn is_before(&self, ranks: &Ranks) -> bool {
        let compared = self.0.iter().zip(ranks).map(|(bound, rank)| bound.compare(*rank));
        compared.into_iter().find(|ordering| ordering.is_ne()) == Some(Ordering::Greater)
    }
}
