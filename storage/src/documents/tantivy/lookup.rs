//! Single documents of the index: where one is, what is stored of it.

use tantivy::{
    DocAddress, DocSet, Searcher, TERMINATED, TantivyDocument, Term,
    collector::Count,
    query::ExistsQuery,
    schema::{IndexRecordOption, Value as _},
};

use super::{
    fault::fault,
    schema::{Fields, Scope, Source},
};
use crate::{
    Error, ErrorKind, Result,
    model::{AppId, Offset},
};

/// What the index holds under a key.
pub(super) fn stored(searcher: &Searcher, fields: &Fields, scope: &Scope, id: &str) -> Result<Option<Source>> {
    match address(searcher, fields, scope, id)? {
        Some(address) => Source::decode(&source(searcher, fields, address)?).map(Some),
        None => Ok(None),
    }
}

/// The offset of what the index holds under a key.
pub(super) fn stored_offset(searcher: &Searcher, fields: &Fields, scope: &Scope, id: &str) -> Result<Option<Offset>> {
    match address(searcher, fields, scope, id)? {
        Some(address) => Source::decode_offset(&source(searcher, fields, address)?).map(Some),
        None => Ok(None),
    }
}

fn address(searcher: &Searcher, fields: &Fields, scope: &Scope, id: &str) -> Result<Option<DocAddress>> {
    let mut found = None;
    let term = fields.key_term(scope, id);
    visit(searcher, &term, &mut |address| {
        found = Some(address);
        false
    })
    .map_err(|error| fault("get", error))?;
    Ok(found)
}

/// The stored bytes of a document.
pub(super) fn source(searcher: &Searcher, fields: &Fields, address: DocAddress) -> Result<Vec<u8>> {
    let document: TantivyDocument = searcher.doc(address).map_err(|error| fault("get", error))?;
    let bytes = document.get_first(fields.source).and_then(|value| value.as_bytes().map(<[u8]>::to_vec));
    bytes.ok_or_else(|| Error::new(ErrorKind::Corrupt, "get", format!("{address:?} of the index has no source")))
}

/// Visits the documents that have a term, until the visitor says no.
pub(super) fn visit(
    searcher: &Searcher,
    term: &Term,
    visitor: &mut dyn FnMut(DocAddress) -> bool,
) -> tantivy::Result<()> {
    for (ordinal, segment) in (0..).zip(searcher.segment_readers()) {
        let index = segment.inverted_index(term.field())?;
        let Some(mut postings) = index.read_postings(term, IndexRecordOption::Basic)? else { continue };
        let mut doc = postings.doc();
        while doc != TERMINATED {
            if !segment.is_deleted(doc) && !visitor(DocAddress::new(ordinal, doc)) {
                return Ok(());
            }
            doc = postings.advance();
        }
    }
    Ok(())
}

/// The newest offset of an application in the index. Visits all of its documents; asked once for each application.
pub(super) fn newest(searcher: &Searcher, fields: &Fields, app: &AppId) -> Result<Offset> {
    let newest = || -> tantivy::Result<Offset> {
        let mut newest = Offset::default();
        let term = fields.app_term(app);
        for segment in searcher.segment_readers() {
            let index = segment.inverted_index(term.field())?;
            let Some(mut postings) = index.read_postings(&term, IndexRecordOption::Basic)? else { continue };
            let (epochs, positions) = (segment.fast_fields().u64("epoch")?, segment.fast_fields().u64("position")?);
            let mut doc = postings.doc();
            while doc != TERMINATED {
                let epoch = epochs.first(doc).and_then(|epoch| u32::try_from(epoch).ok()).unwrap_or_default();
                newest = newest.max(Offset::new(epoch, positions.first(doc).unwrap_or_default()));
                doc = postings.advance();
            }
        }
        Ok(newest)
    };
    newest().map_err(|error| fault("apply", error))
}

/// How many deletes the index remembers.
pub(super) fn count_deletes(searcher: &Searcher) -> Result<u64> {
    let deletes = ExistsQuery::new("grave".to_owned(), false);
    let count = searcher.search(&deletes, &Count).map_err(|error| fault("count documents", error))?;
    Ok(count as u64)
}

/// How many documents of the index have no search fields.
pub(super) fn count_bare(searcher: &Searcher, fields: &Fields) -> Result<u64> {
    let count = || -> tantivy::Result<u64> {
        let mut n_bare = 0;
        for segment in searcher.segment_readers() {
            let index = segment.inverted_index(fields.bare)?;
            let mut terms = index.terms().stream()?;
            while let Some((_, info)) = terms.next() {
                let mut postings = index.read_postings_from_terminfo(info, IndexRecordOption::Basic)?;
                while postings.doc() != TERMINATED {
                    n_bare += u64::from(!segment.is_deleted(postings.doc()));
                    postings.advance();
                }
            }
        }
        Ok(n_bare)
    };
    count().map_err(|error| fault("count documents", error))
}
