//! Looking into a document index that may be damaged, and making it anew from what of it can be read.
//!
//! Every file has a checksum, and every document is stored whole, so what is left of an index is found segment by segment, also
//! where the list of its segments is gone. Deletes are not salvaged: the history has those that still matter.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use serde::Serialize;
use tantivy::{
    Directory, DocSet, Index, IndexWriter, SegmentReader, TERMINATED, TantivyDocument,
    directory::{ManagedDirectory, MmapDirectory},
    fastfield::AliveBitSet,
    index::{SegmentComponent, SegmentMeta},
    schema::{IndexRecordOption, Value as _},
    store::StoreReader,
};

use super::{
    definitions::Definitions,
    fault::fault,
    payload::Payload,
    schema::{self, Fields, Scope, Source, hash},
    writer::LEAST_WRITER_BYTES,
};
use crate::{
    Error, ErrorKind, Result,
    documents::Stored,
    model::{Document, Offset},
};

const INDEX: &str = "index";
const FIELDS: &str = "fields";
/// The list of its segments.
const LIST: &str = "meta.json";
/// The new index until it takes its place.
const DRAFT: &str = "index.new";
/// Blocks of documents that a reader keeps.
const BLOCKS: usize = 4;
/// Names of documents that are gone are told up to so many.
const MOST_NAMES: usize = 1_000;

/// What was found of an index.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexFound {
    pub state: IndexState,
    /// It holds everything up to this sequence of the journal.
    pub sequence: Option<u64>,
    /// Documents that can be read.
    pub documents: u64,
    /// Documents that cannot.
    pub unreadable: u64,
    pub segments: Vec<IndexSegment>,
    /// What is wrong, but for single segments.
    pub faults: Vec<String>,
    /// Files that say which fields are filterable and cannot be read.
    pub damaged_definitions: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    Whole,
    Damaged,
    Missing,
}

/// What was found of one segment of an index.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexSegment {
    pub id: String,
    pub documents: u64,
    pub unreadable: u64,
    /// Files whose checksum is wrong, or that are missing.
    pub damaged_files: Vec<String>,
    /// Keys (application/model/id) of documents that cannot be read, as far as they are known.
    pub lost: Vec<String>,
    /// The file with its deleted documents.
    #[serde(skip)]
    deletes: Option<PathBuf>,
    /// Documents may have been altered in it.
    #[serde(skip)]
    is_store_damaged: bool,
}

/// Gets a document, its offset, and whether it may have been altered.
type Visitor<'a> = dyn FnMut(Document, Offset, bool) + 'a;

/// A view of an index in which nothing is changed: its files, but for those that say who works with it.
struct Specimen {
    directory: ManagedDirectory,
    index: Option<Index>,
    fields: Fields,
    names: Vec<String>,
}

impl Specimen {
    fn new(index_dir: &Path, scratch: &Path) -> Result<(Self, Option<String>)> {
        let view = scratch.join(INDEX);
        let names = link_all(index_dir, &view).map_err(|error| failed(index_dir, error))?;
        let open = || MmapDirectory::open(&view).map_err(|error| fault("examine documents", error.into()));
        let directory = ManagedDirectory::wrap(Box::new(open()?)).map_err(|error| fault("examine documents", error))?;
        let (expected, fields) = schema::schema();
        let opened = open()?;
        let (index, why) = match guarded(|| Index::open(opened)) {
            Ok(index) if index.schema() == expected => (Some(index), None),
            Ok(_) => (None, Some("its schema is another one".to_owned())),
            Err(why) => (None, Some(why)),
        };
        Ok((Self { directory, index, fields, names }, why))
    }

    /// Every segment with what is known of it before it is read.
    fn segments(&self) -> Vec<(IndexSegment, Option<SegmentMeta>)> {
        match &self.index {
            Some(index) => {
                let metas = index.searchable_segment_metas().unwrap_or_default();
                metas.into_iter().map(|meta| (Self::listed(&meta), Some(meta))).collect()
            }
            None => self.unlisted().into_iter().map(|segment| (segment, None)).collect(),
        }
    }

    fn listed(meta: &SegmentMeta) -> IndexSegment {
        let deletes = meta.has_deletes().then(|| meta.relative_path(SegmentComponent::Delete));
        IndexSegment { id: meta.id().uuid_string(), deletes, ..IndexSegment::default() }
    }

    /// The segments that files are left of. Which of them the index had is not known: the newest version of a document counts.
    fn unlisted(&self) -> Vec<IndexSegment> {
        let mut deletes: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
        for name in &self.names {
            if let Some((id, stamp)) = name.strip_suffix(".del").and_then(|rest| rest.split_once('.'))
                && let Ok(stamp) = stamp.parse()
            {
                let newest = deletes.entry(id).or_insert((stamp, name));
                *newest = (*newest).max((stamp, name));
            }
        }
        let ids = self.names.iter().filter_map(|name| name.strip_suffix(".store"));
        ids.map(|id| {
            let deletes = deletes.get(id).map(|(_, name)| PathBuf::from(name));
            IndexSegment { id: id.to_owned(), deletes, ..IndexSegment::default() }
        })
        .collect()
    }

    /// Reads one segment to its end.
    fn read(&self, found: &mut IndexSegment, meta: Option<&SegmentMeta>, visit: &mut Visitor<'_>) {
        self.check_files(found, meta);
        let is_suspect = found.is_store_damaged;
        let alive = found.deletes.as_ref().and_then(|path| self.alive(path));
        let expected = meta.map(|meta| u64::from(meta.num_docs()));
        let mut keys = HashSet::new();
        let store = PathBuf::from(format!("{}.store", found.id));
        let (mut n_read, mut n_bad) = (0, 0);
        let read = guarded(|| {
            let store = StoreReader::open(self.directory.open_read(&store)?, BLOCKS)?;
            // A block that cannot be read fails for each of its documents.
            for stored in store.iter::<TantivyDocument>(alive.as_ref()) {
                n_read += 1;
                match stored.ok().and_then(|stored| self.source(&stored)) {
                    Some(Source { stored: Stored::Live(document), offset }) => {
                        keys.insert(number_of(&document));
                        found.documents += 1;
                        visit(document, offset, is_suspect);
                    }
                    Some(Source { stored: Stored::Deleted { .. }, .. }) => {}
                    None => n_bad += 1,
                }
            }
            Ok(())
        });
        if read.is_err() {
            found.is_store_damaged = true;
            n_bad = n_bad.max(1);
        }
        found.unreadable = n_bad.max(expected.map_or(0, |expected| expected.saturating_sub(n_read)));
        if found.unreadable > 0
            && let Some(meta) = meta
        {
            // What cannot even be named is counted.
            found.lost = guarded(|| self.names_of(meta, &keys)).unwrap_or_default();
        }
    }

    fn alive(&self, deletes: &Path) -> Option<AliveBitSet> {
        guarded(|| Ok(AliveBitSet::open(self.directory.open_read(deletes)?.read_bytes()?))).ok()
    }

    fn source(&self, stored: &TantivyDocument) -> Option<Source> {
        Source::decode(stored.get_first(self.fields.source)?.as_bytes()?).ok()
    }

    fn check_files(&self, found: &mut IndexSegment, meta: Option<&SegmentMeta>) {
        let of_segment = |name: &&String| name.starts_with(&found.id) && !name.ends_with(".temp");
        let mut files: HashSet<String> = self.names.iter().filter(of_segment).cloned().collect();
        if let Some(meta) = meta {
            // Deletes of an older commit do not count.
            let current = found.deletes.as_ref().map(|path| path.display().to_string());
            files.retain(|name| !name.ends_with(".del") || Some(name) == current.as_ref());
            files.extend(current);
            let parts = [
                SegmentComponent::Store,
                SegmentComponent::Terms,
                SegmentComponent::Postings,
                SegmentComponent::FastFields,
            ];
            files.extend(parts.map(|part| meta.relative_path(part).display().to_string()));
        }
        for name in files {
            let is_sound = guarded(|| Ok(self.directory.validate_checksum(Path::new(&name))?));
            if is_sound != Ok(true) {
                found.is_store_damaged |= name.ends_with(".store");
                found.damaged_files.push(name);
            }
        }
        found.damaged_files.sort_unstable();
    }

    /// The keys of the live documents of a segment, but for these.
    fn names_of(&self, meta: &SegmentMeta, known: &HashSet<u64>) -> tantivy::Result<Vec<String>> {
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        let segment = SegmentReader::open(&index.segment(meta.clone()))?;
        let keys = segment.inverted_index(self.fields.key)?;
        let mut names = Vec::new();
        let mut terms = keys.terms().stream()?;
        while names.len() < MOST_NAMES
            && let Some((key, info)) = terms.next()
        {
            let Ok(key) = std::str::from_utf8(key) else { continue };
            let mut postings = keys.read_postings_from_terminfo(info, IndexRecordOption::Basic)?;
            let mut is_live = false;
            while postings.doc() != TERMINATED {
                is_live |= !segment.is_deleted(postings.doc());
                postings.advance();
            }
            if is_live && !known.contains(&hash(key)) {
                names.push(key.to_owned());
            }
        }
        Ok(names)
    }
}

/// Runs something that reads what may be damaged: a panic is an error.
fn guarded<T>(work: impl FnOnce() -> tantivy::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("it is damaged so that it cannot be read".to_owned()),
    }
}

/// The number that stands for a document in [`rebuild`]'s question.
pub fn number_of(document: &Document) -> u64 {
    hash(&format!("{}/{}/{}", document.app, document.model, document.id))
}

/// Looks into the documents of a directory; `scratch` is an empty directory. Changes nothing. Blocking.
pub fn examine(dir: &Path, scratch: &Path) -> Result<IndexFound> {
    let mut found = IndexFound {
        state: IndexState::Missing,
        sequence: None,
        documents: 0,
        unreadable: 0,
        segments: Vec::new(),
        faults: Vec::new(),
        damaged_definitions: Definitions::unreadable(&dir.join(FIELDS))?,
    };
    let index_dir = placed(dir);
    let is_there = |name: &str| index_dir.join(name).exists();
    if !index_dir.exists()
        || (!is_there(LIST) && fs::read_dir(&index_dir).is_ok_and(|mut files| files.next().is_none()))
    {
        return Ok(found);
    }
    found.state = IndexState::Whole;
    if index_dir.ends_with(DRAFT) {
        found.faults.push("a repair was interrupted before the new index had its place".to_owned());
    }
    let (specimen, why) = Specimen::new(&index_dir, scratch)?;
    found.faults.extend(why.map(|why| format!("the list of its segments ({LIST}) cannot be used: {why}")));
    if let Some(index) = &specimen.index {
        let payload = index.load_metas().map_err(|error| fault("examine documents", error))?.payload;
        match payload.map(|payload| Payload::parse(&payload)) {
            Some(Ok(payload)) => found.sequence = Some(payload.sequence),
            Some(Err(error)) if error.kind == ErrorKind::Unsupported => return Err(error),
            Some(Err(error)) => found.faults.push(error.to_string()),
            None => {}
        }
    }
    if let Some(why) = fs::read(index_dir.join(".managed.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Vec<PathBuf>>(&bytes).err())
    {
        found.faults.push(format!("the list of its files (.managed.json) cannot be read: {why}"));
    }
    for (mut segment, meta) in specimen.segments() {
        specimen.read(&mut segment, meta.as_ref(), &mut |_, _, _| {});
        found.documents += segment.documents;
        found.unreadable += segment.unreadable;
        found.segments.push(segment);
    }
    let is_damaged = !found.faults.is_empty()
        || found.segments.iter().any(|segment| segment.unreadable > 0 || !segment.damaged_files.is_empty());
    if is_damaged {
        found.state = IndexState::Damaged;
    }
    Ok(found)
}

/// Makes the index anew from what of it can be read, good from a sequence of the journal on. Documents that may have been altered
/// and that the history has (`is_in_history`, by [`number_of`]) are left to it. The old one is kept in `aside`. Gives how many
/// documents were salvaged. Blocking.
pub fn rebuild(
    dir: &Path,
    scratch: &Path,
    sequence: u64,
    aside: &Path,
    is_in_history: &dyn Fn(u64) -> bool,
) -> Result<u64> {
    let (index_dir, draft_dir) = (dir.join(INDEX), dir.join(DRAFT));
    if placed(dir) == draft_dir {
        fs::rename(&draft_dir, &index_dir).map_err(|error| failed(&draft_dir, error))?;
    }
    match fs::remove_dir_all(&draft_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&draft_dir, error)),
        _ => {}
    }
    fs::create_dir_all(&draft_dir).map_err(|error| failed(&draft_dir, error))?;
    let definitions = Definitions::open(&dir.join(FIELDS))?;
    let specimen = match index_dir.exists() {
        true => Some(Specimen::new(&index_dir, scratch)?.0),
        false => None,
    };
    let n_salvaged = salvage(specimen.as_ref(), &draft_dir, &definitions, sequence, is_in_history)
        .map_err(|error| fault("rebuild documents", error))?;
    drop(specimen);
    let place = || -> io::Result<()> {
        if index_dir.exists() {
            fs::create_dir_all(aside)?;
            fs::rename(&index_dir, aside.join(INDEX))?;
        }
        fs::rename(&draft_dir, &index_dir)?;
        fs::File::open(dir)?.sync_all()
    };
    place().map_err(|error| failed(&index_dir, error))?;
    Ok(n_salvaged)
}

/// Where the index is: a new one that is whole takes its place only when the old one has left it.
fn placed(dir: &Path) -> PathBuf {
    let (index_dir, draft_dir) = (dir.join(INDEX), dir.join(DRAFT));
    if !index_dir.exists() && draft_dir.exists() { draft_dir } else { index_dir }
}

fn salvage(
    specimen: Option<&Specimen>,
    target: &Path,
    definitions: &Definitions,
    sequence: u64,
    is_in_history: &dyn Fn(u64) -> bool,
) -> tantivy::Result<u64> {
    let (index, fields) = schema::open_index(Box::new(MmapDirectory::open(target)?))?;
    let mut writer: IndexWriter = index.writer_with_num_threads(1, LEAST_WRITER_BYTES)?;
    let mut n_salvaged = 0;
    if let Some(specimen) = specimen {
        let newest = specimen.newest();
        for (mut segment, meta) in specimen.segments() {
            let mut outcome = Ok(());
            specimen.read(&mut segment, meta.as_ref(), &mut |document, offset, is_suspect| {
                let number = number_of(&document);
                let is_older =
                    newest.as_ref().is_some_and(|newest| newest.get(&number).is_some_and(|best| *best > offset));
                if outcome.is_err() || is_older || (is_suspect && is_in_history(number)) {
                    return;
                }
                outcome = add(&writer, &fields, definitions, &document, offset);
                n_salvaged += u64::from(outcome.is_ok());
            });
            outcome?;
        }
    }
    let mut commit = writer.prepare_commit()?;
    commit.set_payload(&Payload::at(sequence).to_string());
    commit.commit()?;
    writer.wait_merging_threads()?;
    Ok(n_salvaged)
}

fn add(
    writer: &IndexWriter,
    fields: &Fields,
    definitions: &Definitions,
    document: &Document,
    offset: Offset,
) -> tantivy::Result<()> {
    let scope = Scope::of(document);
    let Ok(source) = Source::encode_live(document, offset) else { return Ok(()) };
    let indexed = fields.document(document, &definitions.get(&scope), &source, offset);
    writer.delete_term(fields.key_term(&scope, document.id.as_str()));
    writer.add_document(indexed.unwrap_or_else(|| fields.bare_document(document, &source, offset)))?;
    Ok(())
}

impl Specimen {
    /// The newest version of each document, where several may be there; none where each is there once.
    fn newest(&self) -> Option<HashMap<u64, Offset>> {
        let is_known = |(segment, _): &(IndexSegment, _)| {
            segment.deletes.as_ref().is_none_or(|deletes| self.alive(deletes).is_some())
        };
        if self.index.is_some() && self.segments().iter().all(is_known) {
            return None;
        }
        let mut newest = HashMap::new();
        for (mut segment, meta) in self.segments() {
            self.read(&mut segment, meta.as_ref(), &mut |document, offset, _| {
                let best = newest.entry(number_of(&document)).or_insert(offset);
                *best = offset.max(*best);
            });
        }
        Some(newest)
    }
}

/// Links to the files of a directory.
fn link_all(from: &Path, to: &Path) -> io::Result<Vec<String>> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(to)?,
    }
    let from = fs::canonicalize(from)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Locks, and the list of files, which is not needed to read.
        if !name.starts_with('.') && entry.file_type()?.is_file() {
            std::os::unix::fs::symlink(entry.path(), to.join(&name))?;
            names.push(name);
        }
    }
    Ok(names)
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::io("examine documents", path.display().to_string(), error)
}
