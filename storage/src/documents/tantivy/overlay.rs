//! What was applied and is not in the index yet: a table in memory that readers look at first.
//!
//! Two layers. `current` takes what is applied; the indexer turns it into `frozen`, writes that to the index, and drops it in the
//! same step in which readers get to see the new state of the index. So a reader that takes one [`View`] sees every document
//! exactly once, in its newest version. The newest version of a document is that of the higher offset.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, OnceLock},
};

use tantivy::Searcher;

use super::{
    schema::{Scope, hash},
    weight::weigh,
};
use crate::{
    changelog::LogEntry,
    documents::Stored,
    model::{AppId, Document, DocumentId, Entry, Event, Offset},
};

/// The newest change of a document. It holds on to the whole entry, which the next stage holds too for a while.
#[derive(Debug)]
pub(super) struct Overlaid {
    pub(super) entry: Arc<Entry>,
    pub(super) place: u64,
    bytes: usize,
}

impl Overlaid {
    /// None for an entry that is no change of a document.
    pub(super) fn new(entry: &LogEntry) -> Option<Self> {
        changed(&entry.entry)?;
        Some(Self { entry: entry.entry.clone(), place: entry.place, bytes: weigh(&entry.entry) })
    }

    pub(super) fn offset(&self) -> Offset {
        self.entry.offset
    }

    /// The document; none when it was deleted.
    pub(super) fn live(&self) -> Option<&Document> {
        self.entry.after()
    }

    pub(super) fn stored(&self) -> Option<Stored> {
        match &self.entry.event {
            Event::Created { document } | Event::Updated { document, .. } | Event::Imported { document } => {
                Some(Stored::Live(document.clone()))
            }
            Event::Deleted { version, .. } => Some(Stored::Deleted { version: *version }),
            _ => None,
        }
    }

    /// The document before or after: its names are the same.
    pub(super) fn subject(&self) -> Option<&Document> {
        changed(&self.entry)
    }
}

/// The document that an entry changes.
pub(super) fn changed(entry: &Entry) -> Option<&Document> {
    match &entry.event {
        Event::Created { document }
        | Event::Updated { document, .. }
        | Event::Deleted { document, .. }
        | Event::Imported { document } => Some(document),
        _ => None,
    }
}

/// What was applied between two commits.
#[derive(Default)]
pub(super) struct Layer {
    scopes: HashMap<Scope, ScopeLayer>,
    /// Applications that were dropped, and up to where: what lies below this layer of them is void. What this layer holds of them
    /// is newer.
    pub(super) dropped: HashMap<AppId, Offset>,
    bytes: usize,
    documents: usize,
}

#[derive(Default)]
struct ScopeLayer {
    entries: HashMap<DocumentId, Arc<Overlaid>>,
    /// Made by the first search after a change.
    snapshot: OnceLock<Arc<Snapshot>>,
}

impl Layer {
    fn get(&self, scope: &Scope, id: &DocumentId) -> Option<&Arc<Overlaid>> {
        self.scopes.get(scope)?.entries.get(id)
    }

    fn snapshot(&self, scope: &Scope) -> Option<Arc<Snapshot>> {
        let layer = self.scopes.get(scope)?;
        let snapshot =
            layer.snapshot.get_or_init(|| Arc::new(Snapshot::new(layer.entries.values().cloned().collect())));
        Some(snapshot.clone())
    }

    /// Puts an entry in, whatever is there.
    fn put(&mut self, scope: Scope, id: DocumentId, overlaid: Arc<Overlaid>) {
        let layer = self.scopes.entry(scope).or_default();
        layer.snapshot = OnceLock::new();
        self.bytes += overlaid.bytes;
        match layer.entries.insert(id, overlaid) {
            Some(old) => self.bytes -= old.bytes,
            None => self.documents += 1,
        }
    }

    fn drop_application(&mut self, app: &AppId, upto: Offset) {
        let (bytes, documents) = (&mut self.bytes, &mut self.documents);
        self.scopes.retain(|scope, layer| {
            if scope.app != *app {
                return true;
            }
            *bytes -= layer.entries.values().map(|overlaid| overlaid.bytes).sum::<usize>();
            *documents -= layer.entries.len();
            false
        });
        let mark = self.dropped.entry(app.clone()).or_insert(upto);
        *mark = upto.max(*mark);
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Scope, &DocumentId, &Arc<Overlaid>)> {
        self.scopes.iter().flat_map(|(scope, layer)| layer.entries.iter().map(move |(id, entry)| (scope, id, entry)))
    }

    pub(super) fn holds(&self, scope: &Scope, id: &str) -> bool {
        self.scopes.get(scope).is_some_and(|layer| layer.entries.contains_key(id))
    }

    pub(super) fn holds_scope(&self, scope: &Scope) -> bool {
        self.scopes.contains_key(scope)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.documents == 0 && self.dropped.is_empty()
    }
}

/// What a layer holds of one scope, for one search and those after it until something is applied.
pub(super) struct Snapshot {
    entries: Vec<Arc<Overlaid>>,
    table: OnceLock<Table>,
}

/// By hash of the id; the few that share one follow in `more`.
#[derive(Default)]
struct Table {
    first: HashMap<u64, Arc<Overlaid>, BuildHasherDefault<AsItIs>>,
    more: Vec<Arc<Overlaid>>,
}

impl Snapshot {
    fn new(entries: Vec<Arc<Overlaid>>) -> Self {
        Self { entries, table: OnceLock::new() }
    }

    pub(super) fn entries(&self) -> &[Arc<Overlaid>] {
        &self.entries
    }

    fn table(&self) -> &Table {
        self.table.get_or_init(|| {
            let mut table = Table::default();
            for overlaid in &self.entries {
                let Some(document) = overlaid.subject() else { continue };
                if let Some(other) = table.first.insert(hash(document.id.as_str()), overlaid.clone()) {
                    table.more.push(other);
                }
            }
            table
        })
    }

    /// Whether an id of this hash may be there: a cheap test that is nearly always right.
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        self.table().first.contains_key(&hash)
    }

    pub(super) fn holds(&self, hash: u64, id: &str) -> bool {
        let table = self.table();
        let is = |overlaid: &Arc<Overlaid>| overlaid.subject().is_some_and(|document| document.id.as_str() == id);
        table.first.get(&hash).is_some_and(|first| is(first) || table.more.iter().any(is))
    }
}

/// The hashes are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// What one search sees: the layers, newest first, and the index below them.
pub(super) struct View {
    pub(super) layers: Vec<Arc<Snapshot>>,
    /// None where the application was dropped and its documents are still in the index.
    pub(super) index: Option<Searcher>,
}

impl View {
    /// Whether a layer above the given one, counted from the newest, has a newer version.
    pub(super) fn is_overlaid(&self, above: usize, hash: u64, id: &str) -> bool {
        self.layers.iter().take(above).any(|layer| layer.holds(hash, id))
    }
}

/// What a look at one document gave.
pub(super) enum Look {
    Found(Arc<Overlaid>),
    Nothing,
    /// Ask the index.
    Below,
}

/// An entry on its way in.
pub(super) struct Incoming {
    pub(super) scope: Scope,
    pub(super) id: DocumentId,
    pub(super) overlaid: Arc<Overlaid>,
    /// In which state of the index there was nothing as new.
    pub(super) checked: Option<u64>,
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// There is no room: wait.
    Full,
    /// It is older than the newest of its application: whether the index has something newer has to be looked up first.
    LookUp,
}

/// All layers and the state of the index that belongs to them. Lives under one lock.
pub(super) struct Overlay {
    current: Layer,
    frozen: Option<Arc<Layer>>,
    searcher: Searcher,
    /// Counts the states of the index.
    generation: u64,
    /// The newest offset that was ever applied, of each application that was asked for.
    newest: HashMap<AppId, Offset>,
    /// Entries of dropped applications up to here are void, whenever they come.
    void: HashMap<AppId, Offset>,
    /// Places of entries that were taken since the last freeze, whether or not they changed anything.
    places: Vec<u64>,
    limit: usize,
}

/// What is to be written to the index.
pub(super) struct Frozen {
    pub(super) layer: Arc<Layer>,
    pub(super) places: Vec<u64>,
}

impl Overlay {
    pub(super) fn new(searcher: Searcher, limit: usize, void: HashMap<AppId, Offset>) -> Self {
        Self {
            current: Layer::default(),
            frozen: None,
            searcher,
            generation: 0,
            newest: HashMap::new(),
            void,
            places: Vec::new(),
            limit,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.current.bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    pub(super) fn documents(&self) -> usize {
        self.current.documents + self.frozen.as_ref().map_or(0, |frozen| frozen.documents)
    }

    /// Bytes that wait to be frozen.
    pub(super) fn waiting(&self) -> usize {
        self.current.bytes
    }

    pub(super) fn is_clean(&self) -> bool {
        self.current.is_empty() && self.frozen.is_none() && self.places.is_empty()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn searcher(&self) -> &Searcher {
        &self.searcher
    }

    pub(super) fn newest(&self, app: &AppId) -> Option<Offset> {
        self.newest.get(app).copied()
    }

    /// Says what the newest offset of an application is, unless something is known.
    pub(super) fn learn_newest(&mut self, app: &AppId, newest: Offset) {
        self.newest.entry(app.clone()).or_insert(newest);
    }

    /// Takes note of an entry that is in order as it is: no change of a document, or not newer than what is stored.
    pub(super) fn pass_over(&mut self, place: u64) {
        if place > 0 {
            self.places.push(place);
        }
    }

    /// Takes an entry in. `newest` of its application has to be known.
    pub(super) fn take(&mut self, incoming: &Incoming) -> Taken {
        let Incoming { scope, id, overlaid, checked } = incoming;
        let offset = overlaid.offset();
        if self.void.get(&scope.app).is_some_and(|void| offset <= *void) {
            self.pass_over(overlaid.place);
            return Taken::Yes;
        }
        let newest = self.newest(&scope.app).unwrap_or_default();
        if offset <= newest {
            match self.look(scope, id) {
                Look::Found(stored) if stored.offset() >= offset => {
                    self.pass_over(overlaid.place);
                    return Taken::Yes;
                }
                Look::Found(_) | Look::Nothing => {}
                Look::Below if *checked == Some(self.generation) => {}
                Look::Below => return Taken::LookUp,
            }
        }
        // An empty overlay takes whatever comes, so that nothing is too large for it.
        if self.bytes() > 0 && self.bytes() + overlaid.bytes > self.limit {
            return Taken::Full;
        }
        self.newest.insert(scope.app.clone(), offset.max(newest));
        self.pass_over(overlaid.place);
        self.current.put(scope.clone(), id.clone(), overlaid.clone());
        Taken::Yes
    }

    pub(super) fn look(&self, scope: &Scope, id: &DocumentId) -> Look {
        for layer in self.layers() {
            if let Some(overlaid) = layer.get(scope, id) {
                return Look::Found(overlaid.clone());
            }
            if layer.dropped.contains_key(&scope.app) {
                return Look::Nothing;
            }
        }
        Look::Below
    }

    pub(super) fn view(&self, scope: &Scope) -> View {
        let mut layers = Vec::new();
        for layer in self.layers() {
            layers.extend(layer.snapshot(scope));
            if layer.dropped.contains_key(&scope.app) {
                return View { layers, index: None };
            }
        }
        View { layers, index: Some(self.searcher.clone()) }
    }

    /// Whether the frozen layer has something of a scope.
    pub(super) fn is_freezing(&self, scope: &Scope) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| frozen.holds_scope(scope))
    }

    /// Makes everything of an application void that was applied so far; gives the offset up to which it is. `newest` of the
    /// application has to be known.
    pub(super) fn drop_application(&mut self, app: &AppId) -> Offset {
        let upto = self.newest(app).unwrap_or_default();
        self.void.insert(app.clone(), upto);
        self.current.drop_application(app, upto);
        upto
    }

    /// Begins the writing of what was applied; what comes from now on goes into a new layer. Where a layer is frozen already, that
    /// one is to be written first.
    pub(super) fn freeze(&mut self) -> Frozen {
        debug_assert!(self.frozen.is_none(), "one layer is written at a time");
        let layer = Arc::new(std::mem::take(&mut self.current));
        self.frozen = Some(layer.clone());
        Frozen { layer, places: std::mem::take(&mut self.places) }
    }

    /// What was frozen is in this state of the index.
    pub(super) fn publish(&mut self, searcher: Searcher) {
        self.searcher = searcher;
        self.generation += 1;
        self.frozen = None;
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.current).chain(self.frozen.as_deref())
    }
}
