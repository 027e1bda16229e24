//! The writer of the index: one batch, one commit, and what to do when one fails.
//!
//! After an I/O error tantivy's writer says Ok to everything that follows and loses it, and the payload of the last commit with it.
//! Therefore: any error, and the writer is thrown away; the same batch goes to a new one. No commit is without its payload, and
//! after each the payload is read back.

use std::{
    collections::HashSet,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tantivy::{
    Index, IndexReader, IndexWriter, TantivyDocument, TantivyError, Term,
    indexer::IndexWriterOptions,
    merge_policy::LogMergePolicy,
    query::{BooleanQuery, Occur, Query, RangeQuery, TermQuery},
    schema::IndexRecordOption,
};
use tracing::{error, warn};

use super::{
    definitions::Definition,
    fault::is_io,
    overlay::{Layer, Overlaid},
    payload::Payload,
    reindex::Chunk,
    schema::{Scope, Source},
    shared::Shared,
};
use crate::{
    documents::Stored,
    model::{AppId, Document, DocumentId, Offset},
};

/// The share of deleted documents from which on a segment is merged: the default ignores deletes, and updates are deletes.
const DELETED_SHARE: f32 = 0.3;
/// The least that tantivy takes.
pub(super) const LEAST_WRITER_BYTES: usize = 15_000_000;

/// What one commit brings.
pub(super) struct Batch {
    pub(super) layer: Arc<Layer>,
    /// Applications dropped before a restart that were not yet purged.
    pub(super) purges: Vec<(AppId, Offset)>,
    pub(super) forget_below: u64,
    pub(super) chunk: Option<Chunk>,
    /// Every log entry at or below it is in the index after this commit.
    pub(super) position: u64,
    /// Documents that make the index fail: they are written without search fields.
    pub(super) poisonous: HashSet<(Scope, DocumentId)>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    index: Index,
    reader: IndexReader,
    bytes: usize,
    writer: Option<IndexWriter>,
    #[cfg(test)]
    pub(super) poison: Option<&'static str>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, index: Index, reader: IndexReader, bytes: usize) -> Self {
        Self {
            shared,
            index,
            reader,
            bytes: bytes.max(LEAST_WRITER_BYTES),
            writer: None,
            #[cfg(test)]
            poison: None,
        }
    }

    pub(super) fn reader(&self) -> &IndexReader {
        &self.reader
    }

    /// Writes and commits a batch, and makes readers see it. After an error the index is as before, or has the batch in it; the
    /// same batch can be written again.
    pub(super) fn write(&mut self, batch: &Batch) -> tantivy::Result<()> {
        // tantivy panics where it finds data that cannot be.
        let written = catch_unwind(AssertUnwindSafe(|| self.attempt(batch)));
        let written = written.unwrap_or_else(|_| Err(TantivyError::InternalError("the index panicked".to_owned())));
        if written.is_err() {
            self.writer = None;
        }
        written
    }

    fn attempt(&mut self, batch: &Batch) -> tantivy::Result<()> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.begin(&self.index)?,
        };
        self.feed(&writer, batch)?;
        let payload = Payload::at(batch.position).to_string();
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&payload);
        commit.commit()?;
        if self.index.load_metas()?.payload.as_deref() != Some(payload.as_str()) {
            return Err(TantivyError::InternalError("the commit is without its payload".to_owned()));
        }
        self.reader.reload()?;
        self.writer = Some(writer);
        Ok(())
    }

    /// A writer with its threads; they have the priority of the calling one.
    fn begin(&self, index: &Index) -> tantivy::Result<IndexWriter> {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(self.bytes)
            .build();
        let writer: IndexWriter = index.writer_with_options(options)?;
        let mut policy = LogMergePolicy::default();
        policy.set_del_docs_ratio_before_merge(DELETED_SHARE);
        writer.set_merge_policy(Box::new(policy));
        // The first operation of a writer gets the number of the last commit. A merge that begins before the next one takes it as done
        // in segments of which that commit deleted something, and never looks at it again: so it is one that deletes nothing.
        writer.delete_term(Term::from_field_text(self.shared.fields.key, ""));
        Ok(writer)
    }

    fn feed(&self, writer: &IndexWriter, batch: &Batch) -> tantivy::Result<()> {
        let dropped = batch.layer.dropped.iter().map(|(app, upto)| (app, *upto));
        for (app, upto) in dropped.chain(batch.purges.iter().map(|(app, upto)| (app, *upto))) {
            writer.delete_query(self.of_application(app, upto))?;
        }
        if batch.forget_below > 0 {
            let end = Term::from_field_u64(self.shared.fields.grave, batch.forget_below);
            writer.delete_query(Box::new(RangeQuery::new(Bound::Unbounded, Bound::Excluded(end))))?;
        }
        if let Some(chunk) = &batch.chunk {
            for (document, offset) in &chunk.documents {
                let scope = Scope::of(document);
                let is_poisonous = batch.poisonous.contains(&(scope.clone(), document.id.clone()));
                let definition = self.shared.definitions.get(&scope);
                if let Some(indexed) = self.live(document, *offset, &definition, is_poisonous) {
                    writer.delete_term(self.shared.fields.key_term(&scope, document.id.as_str()));
                    writer.add_document(indexed)?;
                }
            }
        }
        for (n_fed, (scope, id, overlaid)) in batch.layer.entries().enumerate() {
            if n_fed % 256 == 0 && self.shared.is_aborted() {
                return Err(TantivyError::InternalError("the index is being closed".to_owned()));
            }
            let is_poisonous = batch.poisonous.contains(&(scope.clone(), id.clone()));
            if let Some(indexed) = self.indexed(scope, id, overlaid, is_poisonous) {
                writer.delete_term(self.shared.fields.key_term(scope, id.as_str()));
                writer.add_document(indexed)?;
            }
        }
        Ok(())
    }

    fn indexed(
        &self,
        scope: &Scope,
        id: &DocumentId,
        overlaid: &Overlaid,
        is_poisonous: bool,
    ) -> Option<TantivyDocument> {
        let offset = overlaid.offset();
        match overlaid.live() {
            Some(document) => self.live(document, offset, &self.shared.definitions.get(scope), is_poisonous),
            None => {
                let Some(Stored::Deleted { version }) = overlaid.stored() else { return None };
                let source = Source::encode_deleted(version, offset);
                Some(self.shared.fields.tombstone(scope, id, &source, offset, overlaid.place))
            }
        }
    }

    fn live(
        &self,
        document: &Document,
        offset: Offset,
        definition: &Definition,
        is_poisonous: bool,
    ) -> Option<TantivyDocument> {
        let fields = &self.shared.fields;
        let source = match Source::encode_live(document, offset) {
            Ok(source) => source,
            Err(error) => {
                // Nothing that is JSON comes here; what is lost is said.
                error!(app = %document.app, model = %document.model, id = %document.id, %error, "document not stored");
                return None;
            }
        };
        if !is_poisonous && let Some(indexed) = fields.document(document, definition, &source, offset) {
            #[cfg(test)]
            let indexed = self.poisoned(document, indexed);
            return Some(indexed);
        }
        Some(fields.bare_document(document, &source, offset))
    }

    /// Documents of an application up to an offset.
    fn of_application(&self, app: &AppId, upto: Offset) -> Box<dyn Query> {
        let fields = &self.shared.fields;
        let must = |query: Box<dyn Query>| (Occur::Must, query);
        let epoch = |low, high| -> Box<dyn Query> {
            let term = |epoch: u32| Term::from_field_u64(fields.epoch, u64::from(epoch));
            Box::new(RangeQuery::new(Bound::map(low, term), Bound::map(high, term)))
        };
        let position = Bound::Included(Term::from_field_u64(fields.position, upto.position));
        let same_epoch = BooleanQuery::new(vec![
            must(epoch(Bound::Included(upto.epoch), Bound::Included(upto.epoch))),
            must(Box::new(RangeQuery::new(Bound::Unbounded, position))),
        ]);
        let earlier = epoch(Bound::Unbounded, Bound::Excluded(upto.epoch));
        let upto = BooleanQuery::new(vec![(Occur::Should, earlier), (Occur::Should, Box::new(same_epoch))]);
        let app = TermQuery::new(fields.app_term(app), IndexRecordOption::Basic);
        Box::new(BooleanQuery::new(vec![must(Box::new(app)), must(Box::new(upto))]))
    }
}

/// Finding the documents that no index takes.
impl Writer {
    /// Looks for documents that make the index fail where the file system cannot be the reason, and adds them to the batch's
    /// poisonous ones. Says whether there were any.
    pub(super) fn isolate(&self, batch: &mut Batch, error: &TantivyError) -> bool {
        if is_io(error) {
            return false;
        }
        let mut documents = Vec::new();
        for (scope, id, overlaid) in batch.layer.entries() {
            let is_poisonous = batch.poisonous.contains(&(scope.clone(), id.clone()));
            if !is_poisonous && let Some(indexed) = self.indexed(scope, id, overlaid, false) {
                documents.push(((scope.clone(), id.clone()), indexed));
            }
        }
        for (document, offset) in batch.chunk.iter().flat_map(|chunk| &chunk.documents) {
            let key = (Scope::of(document), document.id.clone());
            let definition = self.shared.definitions.get(&key.0);
            let is_poisonous = batch.poisonous.contains(&key);
            if !is_poisonous && let Some(indexed) = self.live(document, *offset, &definition, false) {
                documents.push((key, indexed));
            }
        }
        let mut found = Vec::new();
        self.search_poisonous(&documents, &mut found);
        for (scope, id) in &found {
            warn!(app = %scope.app, model = %scope.model, %id, "document cannot be indexed, storing it without its search fields");
        }
        let is_any = !found.is_empty();
        batch.poisonous.extend(found);
        is_any
    }

    /// Halves the documents until those are left that fail alone.
    fn search_poisonous(
        &self,
        documents: &[((Scope, DocumentId), TantivyDocument)],
        found: &mut Vec<(Scope, DocumentId)>,
    ) {
        let indexed = documents.iter().map(|(_, document)| document.clone());
        if documents.is_empty() || self.is_indexed_in_memory(indexed.collect()) {
            return;
        }
        if let [((scope, id), _)] = documents {
            found.push((scope.clone(), id.clone()));
            return;
        }
        let (left, right) = documents.split_at(documents.len() / 2);
        self.search_poisonous(left, found);
        self.search_poisonous(right, found);
    }

    /// Whether an index that has nothing else, and no file system below it, takes these documents.
    fn is_indexed_in_memory(&self, documents: Vec<TantivyDocument>) -> bool {
        let indexed = catch_unwind(AssertUnwindSafe(|| -> tantivy::Result<()> {
            let index = Index::create_in_ram(self.index.schema());
            let mut writer = self.begin(&index)?;
            for document in documents {
                writer.add_document(document)?;
            }
            writer.commit()?;
            Ok(())
        }));
        matches!(indexed, Ok(Ok(())))
    }
}

#[cfg(test)]
impl Writer {
    /// For tests: spoils a document that has the poisonous title.
    fn poisoned(&self, document: &Document, mut indexed: TantivyDocument) -> TantivyDocument {
        if self.poison.is_some_and(|title| document.fields.get("title").is_some_and(|value| value == title)) {
            indexed.add_text(self.shared.fields.grave, "a text where a number has to be");
        }
        indexed
    }
}
