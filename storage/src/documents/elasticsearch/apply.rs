//! *Apply*: what the log decided, in one bulk for a batch.

use std::collections::{BTreeSet, HashMap};

use tracing::error;

use super::{
    Inner,
    applications::Application,
    bulk::{Bulk, Fate, Over},
    stored::{self, Source},
};
use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    model::{AppId, Document, DocumentId, Event, ModelName, Offset, Timestamp},
};

/// How often a batch begins anew because indices go or come meanwhile.
const TURNS: usize = 5;

/// What is to be written under a key.
struct Change<'e> {
    model: &'e ModelName,
    id: &'e DocumentId,
    offset: Offset,
    what: What<'e>,
}

enum What<'e> {
    Live(&'e Document),
    Deleted { version: u64, at: Timestamp },
}

impl<'e> Change<'e> {
    fn of(entry: &'e LogEntry) -> Option<Self> {
        let entry = &*entry.entry;
        let (document, what) = match &entry.event {
            Event::Created { document } | Event::Updated { document, .. } | Event::Imported { document } => {
                (document, What::Live(document))
            }
            Event::Deleted { document, version } => (document, What::Deleted { version: *version, at: entry.time }),
            _ => return None,
        };
        Some(Self { model: &document.model, id: &document.id, offset: entry.offset, what })
    }
}

/// What is left to be written when several entries are about one document: the last of them.
fn changes(entries: &[LogEntry]) -> Vec<Change<'_>> {
    let mut changes: Vec<Change<'_>> = Vec::with_capacity(entries.len());
    let mut places: HashMap<(&ModelName, &DocumentId), usize> = HashMap::with_capacity(entries.len());
    for change in entries.iter().filter_map(Change::of) {
        match places.get(&(change.model, change.id)) {
            Some(place) if changes[*place].offset < change.offset => changes[*place] = change,
            Some(_) => {}
            None => {
                places.insert((change.model, change.id), changes.len());
                changes.push(change);
            }
        }
    }
    changes
}

impl Inner {
    pub(super) async fn apply(&self, app: &AppId, entries: &[LogEntry]) -> Result<()> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        // Whoever applied the entry before knows the application: its definitions are changed by its writer only, in that order.
        let is_next = self.applied.lock().remove(app).is_some_and(|applied| applied.next() == first.entry.offset);
        let changes = changes(entries);
        if !changes.is_empty() {
            if !is_next {
                self.applications.load(app).await?;
            }
            self.write(app, &changes).await?;
        } else if !is_next {
            return Ok(());
        }
        self.applied.lock().insert(app.clone(), last.entry.offset);
        Ok(())
    }

    async fn write(&self, app: &AppId, changes: &[Change<'_>]) -> Result<()> {
        let models: BTreeSet<_> = changes.iter().map(|change| change.model.clone()).collect();
        let models: Vec<_> = models.into_iter().collect();
        let epochs: BTreeSet<_> = changes.iter().map(|change| change.offset.epoch).collect();
        let epochs: Vec<_> = epochs.into_iter().collect();
        for _ in 0..TURNS {
            let mut application = self.applications.prepare(app, &models, &epochs).await?;
            let is_bare = changes.iter().any(|change| !change.fits(&application));
            if is_bare {
                application = self.expect_bare(app, &models).await?;
            }
            self.ensure_indices(app, &application, &models).await?;
            let refused = match self.write_by(&application, changes, false).await? {
                Written::NoIndex => {
                    self.forget_indices(&application);
                    self.applications.load(app).await?;
                    continue;
                }
                Written::Refused(refused) => refused,
            };
            if refused.is_empty() {
                return Ok(());
            }
            let application = self.expect_bare(app, &models).await?;
            let refused: Vec<_> = refused.into_iter().map(|number| &changes[number]).collect();
            return match self.write_by(&application, refused, true).await? {
                Written::Refused(refused) if refused.is_empty() => Ok(()),
                _ => {
                    let message = format!("Elasticsearch takes documents of application {app} in no form");
                    Err(Error::new(ErrorKind::Unavailable, "apply", message))
                }
            };
        }
        Err(Error::new(ErrorKind::Unavailable, "apply", format!("indices of application {app} go all the time")))
    }

    /// Searches have to look at documents without search fields from now on.
    async fn expect_bare(&self, app: &AppId, models: &[ModelName]) -> Result<std::sync::Arc<Application>> {
        let change = |application: &mut Application| {
            let mut is_change = false;
            for (name, model) in &mut application.models {
                is_change |= models.contains(name) && !std::mem::replace(&mut model.bare, true);
            }
            is_change
        };
        self.applications.change(app, change).await
    }

    /// Writes changes; gives the numbers of those that are not taken as they are.
    async fn write_by<'e>(
        &self,
        application: &Application,
        changes: impl IntoIterator<Item = &'e Change<'e>>,
        bare: bool,
    ) -> Result<Written> {
        let (mut bulk, mut sent, mut refused) = (Bulk::default(), Vec::new(), Vec::new());
        let mut changes = changes.into_iter().enumerate().peekable();
        while let Some((number, change)) = changes.next() {
            if let (Some(version), Some(model)) =
                (application.version(change.offset), application.models.get(change.model))
            {
                let source = match change.what {
                    What::Live(document) => {
                        let bare = bare || !Source::fits(document, model);
                        if bare {
                            self.figures.bare.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        Source::Live { document, model, bare }
                    }
                    What::Deleted { version, at } => Source::Deleted { version, at },
                };
                bulk.put(&model.index, change.id.as_str(), version, Over::Older, |into| source.encode(version, into))?;
                sent.push((number, change));
            }
            if bulk.len() == 0 || !bulk.is_full() && changes.peek().is_some() {
                continue;
            }
            let fates = std::mem::take(&mut bulk).send(&self.client, "apply", self.options.patience).await?;
            for ((number, change), fate) in sent.drain(..).zip(fates) {
                match fate {
                    Fate::Done => {}
                    Fate::NoIndex => return Ok(Written::NoIndex),
                    Fate::Refused(why) => {
                        error!(model = %change.model, id = %change.id, offset = %change.offset, why,
                            "a document is not indexed: it is stored without its search fields");
                        refused.push(number);
                    }
                }
            }
        }
        Ok(Written::Refused(refused))
    }

    /// Makes the indices of models that are not known to be there.
    pub(super) async fn ensure_indices(
        &self,
        app: &AppId,
        application: &Application,
        models: &[ModelName],
    ) -> Result<()> {
        for (name, model) in models.iter().filter_map(|name| Some((name, application.models.get(name)?))) {
            if self.made.lock().contains(&model.index) {
                continue;
            }
            let body = stored::index_of(&self.options.prefix, app, name, model);
            self.make(&model.index, &body).await?;
            self.made.lock().insert(model.index.clone());
        }
        Ok(())
    }

    fn forget_indices(&self, application: &Application) {
        let mut made = self.made.lock();
        for model in application.models.values() {
            made.remove(&model.index);
        }
    }
}

/// What became of changes.
enum Written {
    /// Some index is not there.
    NoIndex,
    /// All are stored but for those of these numbers.
    Refused(Vec<usize>),
}

impl Change<'_> {
    /// Whether the index takes its search fields, as far as that can be told.
    fn fits(&self, application: &Application) -> bool {
        match (&self.what, application.models.get(self.model)) {
            (What::Live(document), Some(model)) => Source::fits(document, model),
            _ => true,
        }
    }
}
