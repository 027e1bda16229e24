//! Making a damaged data directory one that can be opened again.
//!
//! In this order, so that an interrupted repair can be begun again: the journal, the registry, the documents; then everything is opened
//! once, which takes in the history.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
};

use serde::Serialize;
use serde_json::Value;
use tracing::warn;

use super::{DOCUMENTS, Examined, JOURNAL, REGISTRY, Report, applications, failed, index, registry};
use crate::{
    Error, ErrorKind, Queues, Registry, Result,
    changelog::embedded::{beginning, codec},
    documents::tantivy::doctor::IndexState,
    embedded::{Engine, layout},
    journal::{Kind, Record},
    model::{AppId, ChangeId, Event, ModelName, Schema, Timestamp},
    open::Settings,
    registry::{Kind as RecordKind, records::Application},
};

/// Most records or messages that are looked at in one go.
const PAGE: usize = 1_000;

/// What a repair did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// Where everything is that was replaced; none when nothing had to be.
    pub aside: Option<String>,
    /// Lost records of the journal that have an empty one in their place.
    pub replaced: u64,
    /// Documents that were salvaged from the old index.
    pub salvaged: u64,
    /// Applications that the registry had lost, and that were taken from the history.
    pub applications: Vec<AppId>,
    /// Applications that have changes, and that nothing defines any more.
    pub undefined: Vec<AppId>,
    /// The logs of the affected applications begin epochs after this one.
    pub epoch: Option<u32>,
    /// The directory as it was found.
    pub found: Report,
}

/// Examines a data directory and repairs it. `writer_queues`: those that the writer consumes. The errors of
/// [`examine`](super::examine), and those of opening.
pub async fn repair(settings: &Settings, writer_queues: &[String]) -> Result<Repaired> {
    let dir = settings.dir.clone();
    let (mut repaired, affected) = blocking(move || Examined::new(&dir)?.repair()).await?;
    if repaired.found.is_sound() {
        return Ok(repaired);
    }
    let opened = settings.clone();
    let engine = blocking(move || Engine::open_for_repair(&opened)).await?;
    let finished = finish(&engine, &mut repaired, &affected, writer_queues).await;
    let closed = engine.close().await;
    finished?;
    closed?;
    layout::end_repair(&settings.dir)?;
    Ok(repaired)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let aborted = |error| Error::new(ErrorKind::Internal, "repair", "it was aborted").with_source(error);
    tokio::task::spawn_blocking(work).await.map_err(aborted)?
}

impl Examined {
    /// Everything that is done before the engine can be opened. Gives the applications whose logs may have lost changes, too.
    pub(super) fn repair(self) -> Result<(Repaired, BTreeSet<AppId>)> {
        let mut repaired = Repaired {
            aside: None,
            replaced: 0,
            salvaged: 0,
            applications: Vec::new(),
            undefined: Vec::new(),
            epoch: None,
            found: self.report.clone(),
        };
        let mut affected = self.begun.clone().unwrap_or_default();
        affected.extend(self.report.journal.affected.iter().cloned());
        if self.report.is_sound() {
            return Ok((repaired, affected));
        }
        // What this repair makes whole tells the next one nothing any more.
        layout::begin_repair(&self.dir, &affected)?;
        let time = Timestamp::now().to_string().replace(':', "-");
        let aside = self.dir.join(format!("damaged-{time}"));
        fs::create_dir(&aside).map_err(|error| failed(&aside, error))?;
        repaired.aside = Some(aside.display().to_string());
        self.repair_layout(&aside)?;
        let epoch = self.new_epoch();
        if self.loses_records() {
            layout::set_least_epoch(&self.dir, epoch)?;
            repaired.epoch = Some(epoch);
            repaired.replaced = self.repair_journal(&aside, epoch)?;
        } else {
            repaired.replaced = self.patient.repair(self.upto, &aside.join(JOURNAL), &mut |_| nothing())?;
        }
        let oldest = self.oldest_afterwards();
        let registry_dir = self.dir.join(REGISTRY);
        if !self.report.registry.reaches(oldest) {
            fs::create_dir_all(&registry_dir).map_err(|error| failed(&registry_dir, error))?;
            registry::accept_gap(&registry_dir, &self.report.registry, oldest, &aside.join(REGISTRY))?;
        }
        repaired.salvaged = self.repair_documents(&aside, oldest)?;
        Ok((repaired, affected))
    }

    fn loses_records(&self) -> bool {
        self.upto > self.patient.last() || self.patient.losses().next().is_some()
    }

    /// Later than any that was, also in directories that this one was restored from.
    fn new_epoch(&self) -> u32 {
        let now = u32::try_from(Timestamp::now().as_ms() / 1000).unwrap_or(u32::MAX - 1);
        let known = self.report.journal.logs.iter().map(|log| log.epoch).max().unwrap_or(0);
        let least = layout::least_epoch(&self.dir).unwrap_or(0);
        known.saturating_add(1).max(least.saturating_add(1)).max(now)
    }

    /// The first record of the journal when it is repaired.
    fn oldest_afterwards(&self) -> u64 {
        if self.patient.segments.is_empty() { self.upto.max(1) } else { self.patient.oldest() }
    }

    fn repair_layout(&self, aside: &Path) -> Result<()> {
        for (is_faulty, name) in [(self.layout.format, "format"), (self.layout.epoch, "epoch")] {
            let path = self.dir.join(name);
            if is_faulty && path.exists() {
                fs::rename(&path, aside.join(name)).map_err(|error| failed(&path, error))?;
            }
        }
        layout::check(&self.dir)?;
        if self.layout.epoch { layout::set_least_epoch(&self.dir, self.new_epoch()) } else { Ok(()) }
    }

    /// The first of the lost records is replaced by one that begins the new epochs: what follows of the old ones does not count then.
    fn repair_journal(&self, aside: &Path, epoch: u32) -> Result<u64> {
        let affected = &self.report.journal.affected;
        let mut begins = match affected.is_empty() {
            true => None,
            false => Some((Kind::LogState, beginning(affected, epoch)?)),
        };
        self.patient.repair(self.upto, &aside.join(JOURNAL), &mut |_| begins.take().unwrap_or_else(nothing))
    }

    fn repair_documents(&self, aside: &Path, oldest: u64) -> Result<u64> {
        let (dir, found) = (self.dir.join(DOCUMENTS), &self.report.documents);
        for file in &found.damaged_definitions {
            let (from, to) = (dir.join("fields").join(file), aside.join(DOCUMENTS).join("fields"));
            fs::create_dir_all(&to).map_err(|error| failed(&to, error))?;
            fs::rename(&from, to.join(file)).map_err(|error| failed(&from, error))?;
        }
        if found.state != IndexState::Damaged {
            return Ok(0);
        }
        let mut in_history = HashSet::new();
        self.patient.visit(&mut |record: &Record| {
            if record.kind == Kind::LogEntry
                && let Ok((_, logged)) = codec::decode(&record.payload, record.sequence)
                && let Event::Created { document } | Event::Updated { document, .. } = &logged.entry.event
            {
                in_history.insert(index::number_of(document));
            }
        })?;
        let is_in_history = |number| in_history.contains(&number);
        index::rebuild(&dir, &self.scratch.dir, oldest.saturating_sub(1), &aside.join(DOCUMENTS), &is_in_history)
    }
}

/// A record that changes nothing.
fn nothing() -> (Kind, Vec<u8>) {
    (Kind::Registry, registry::nothing())
}

/// With everything opened: what the journal alone could not do.
async fn finish(
    engine: &Engine,
    repaired: &mut Repaired,
    affected: &BTreeSet<AppId>,
    writer_queues: &[String],
) -> Result<()> {
    if !affected.is_empty() {
        settle_decided(engine, affected, writer_queues).await?;
    }
    let all: Vec<AppId> = repaired.found.journal.logs.iter().map(|log| log.application.clone()).collect();
    (repaired.applications, repaired.undefined) = applications::salvage(engine, all).await?;
    define_fields(engine).await?;
    engine.index()?.commit().await
}

/// Takes out of the writer's queues what was decided already: in the new epoch nobody would know it.
async fn settle_decided(engine: &Engine, affected: &BTreeSet<AppId>, writer_queues: &[String]) -> Result<()> {
    let queues = engine.queues();
    let declared: HashSet<String> = queues.list().await?.into_iter().map(|info| info.name).collect();
    for queue in writer_queues.iter().filter(|queue| declared.contains(*queue)) {
        let mut waiting = HashSet::new();
        let mut after = None;
        loop {
            let page = queues.browse(queue, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let of_affected =
                page.iter().filter(|message| message.app.as_ref().is_some_and(|app| affected.contains(app)));
            waiting.extend(of_affected.map(|message| message.id));
        }
        if waiting.is_empty() {
            continue;
        }
        let journal = engine.journal().clone();
        let decided = blocking(move || {
            let mut decided: Vec<ChangeId> = Vec::new();
            journal.replay(1, &mut |record| {
                if record.kind == Kind::LogEntry {
                    decided.extend(Some(codec::peek(&record.payload)?.change_id).filter(|id| waiting.contains(id)));
                }
                Ok(())
            })?;
            Ok(decided)
        });
        queues.remove(queue, &decided.await?).await?;
    }
    Ok(())
}

/// Every application's filterable fields, as the registry has them: defining again what is defined changes nothing.
async fn define_fields(engine: &Engine) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = engine.registry()?.list(RecordKind::Application, None, "", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.key.id.clone());
        for record in &page {
            match serde_json::from_slice::<Application>(&record.value) {
                Ok(application) if !application.deleted => define(engine, &application.id, &application.schema).await?,
                Ok(_) => {}
                Err(error) => warn!(application = record.key.id, %error, "the record of an application cannot be read"),
            }
        }
    }
}

async fn define(engine: &Engine, app: &AppId, schema: &Value) -> Result<()> {
    let Ok(schema) = Schema::parse(schema) else {
        warn!(%app, "the schema of an application cannot be read");
        return Ok(());
    };
    for (name, model) in &schema.models {
        let name: &ModelName = name;
        engine.documents().define(app, name, &model.filterable()).await?;
    }
    Ok(())
}
