//! The writing of one application: its tail of the log, its definition in force, and the batch in hand.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use nexxus_storage::{
    Result,
    changelog::{LogEntry, Marks},
    documents::Stored,
    failpoint,
    model::{
        AppId, ChangeId, DocumentId, Entry, Event, ModelName, Offset, Problem, Timestamp, change::Subject,
        problem::ProblemKind,
    },
};
use tracing::{info, warn};

use crate::{
    domain::{
        Application, Domain,
        judge::{Judge, New},
    },
    messages::{Command, Intent},
    worker::Received,
};

/// Entries that are read back from the log at once.
const PAGE: usize = 1_000;

pub(super) struct Lane {
    pub(super) domain: Domain,
    pub(super) app: AppId,
    /// Where the log ends, once this lane has taken over.
    pub(super) tail: Option<Offset>,
    /// Up to here this process was told that the log is durable, by this lane or one before it.
    confirmed: Offset,
    /// The definition in force at the tail; none where there is no such application.
    pub(super) application: Option<Arc<Application>>,
    /// Times of entries never go back, whatever the clock does.
    last_time: Timestamp,
    /// When the log began its epoch, if it is not the first one: what was published before belongs to a former life.
    pub(super) reborn: Option<Timestamp>,
    /// Decided, not yet logged.
    decided: Vec<Entry>,
    /// Logged and applied, not yet told.
    done: Vec<Arc<Entry>>,
}

type DocumentKey = (ModelName, DocumentId);

impl Lane {
    pub(super) fn new(domain: Domain, app: AppId, confirmed: Offset) -> Self {
        Self {
            domain,
            app,
            tail: None,
            confirmed,
            application: None,
            last_time: Timestamp::from_ms(0).unwrap_or_else(|_| Timestamp::now()),
            reborn: None,
            decided: Vec::new(),
            done: Vec::new(),
        }
    }

    pub(super) fn app(&self) -> &AppId {
        &self.app
    }

    /// Decides, logs and applies; gives what has to be told.
    pub(super) async fn take(&mut self, commands: &[&Received<Command>]) -> Result<Vec<Arc<Entry>>> {
        self.decided.clear();
        self.done.clear();
        if self.tail.is_none() {
            self.take_over().await?;
        }
        let ids: Vec<_> = commands.iter().map(|command| command.id).collect();
        let known = self.domain.backends.change_log.find(&self.app, &ids).await?;
        // A publisher that got no answer publishes again: the same command may come twice, also in one batch.
        let mut seen = HashSet::with_capacity(commands.len());
        let fresh = commands.iter().zip(known).filter(|(command, known)| known.is_none() && seen.insert(command.id));
        let fresh: Vec<_> = fresh.map(|(command, _)| *command).collect();
        let mut documents = Documents::look_up(self, &fresh).await?;
        for command in fresh {
            self.decide(command, &mut documents).await?;
        }
        self.log_and_apply().await?;
        Ok(std::mem::take(&mut self.done))
    }

    /// Logs that a command went to the dead letters, where the log does not hold what became of it.
    pub(super) async fn refuse(&mut self, change: ChangeId, refusal: Event) -> Result<Vec<Arc<Entry>>> {
        self.decided.clear();
        self.done.clear();
        if self.tail.is_none() {
            self.take_over().await?;
        }
        let known = self.domain.backends.change_log.find(&self.app, &[change]).await?;
        if known.iter().all(Option::is_none) {
            self.push(change, refusal);
        }
        self.log_and_apply().await?;
        Ok(std::mem::take(&mut self.done))
    }

    /// Becoming the writer of an application: applies and collects for telling what a former one logged and did not finish.
    /// Nothing is decided before, so nothing is ever decided on documents that lack a logged change.
    async fn take_over(&mut self) -> Result<()> {
        let marks = self.marks().await?;
        let unfinished = self.read_since(marks, marks.applied.min(marks.told)).await?;
        let n_applied = unfinished.partition_point(|logged| logged.entry.offset <= marks.applied);
        let (applied, logged) = unfinished.split_at(n_applied);
        let domain = self.domain.clone();
        let applying = domain.backends.applying().await;
        // An engine that has its documents from the log counts an entry as applied when it is in them. The registry may lack it.
        self.apply_to_registry(applied).await?;
        for entry in logged {
            self.apply(std::slice::from_ref(entry)).await?;
        }
        drop(applying);
        let untold = unfinished.into_iter().filter(|logged| logged.entry.offset > marks.told);
        self.done.extend(untold.map(|logged| logged.entry));
        self.domain.catalog.refresh().await?;
        self.application = self.domain.catalog.find(&self.app);
        if let Some(last) = self.read_since(marks, before(marks.head)).await?.last() {
            self.last_time = self.last_time.max(last.entry.time);
        }
        self.reborn = self.began(marks).await?;
        if marks.head != marks.told {
            info!(app = %self.app, head = %marks.head, applied = %marks.applied, told = %marks.told, "took over");
        }
        failpoint::reach("writer.took-over")?;
        self.tail = Some(marks.head);
        Ok(())
    }

    /// Where the log stands. An engine that has lost entries which it had confirmed (the log ends below what this process, or the
    /// definition in force, knows of) begins a new epoch: what was applied stays, devices load their data anew, and what was decided
    /// and lost is not acknowledged yet, or gone with the engine's promise.
    async fn marks(&self) -> Result<Marks> {
        let log = &self.domain.backends.change_log;
        let marks = log.marks(&self.app).await?;
        let defined = self.domain.catalog.find(&self.app).map_or(Offset::default(), |current| current.record.offset);
        let known = self.confirmed.max(defined);
        // At position 0 there is no entry that could be lost.
        if marks.head >= known || known.position == 0 {
            return Ok(marks);
        }
        warn!(app = %self.app, head = %marks.head, %known, "the log has lost entries that it had confirmed: a new epoch begins");
        while log.begin_epoch(&self.app).await?.epoch <= known.epoch {}
        log.marks(&self.app).await
    }

    /// When an epoch after the first one began, if it is because the application was made again (a restore begins one, too, and what
    /// waited before it is of the same life); none also where that is too long ago for the log to know.
    async fn began(&self, marks: Marks) -> Result<Option<Timestamp>> {
        if marks.head.epoch < 2 || marks.head.position == 0 || marks.trimmed.position > 0 {
            return Ok(None);
        }
        let page = self.domain.backends.change_log.read_logged(&self.app, before_first(marks.head), 1).await?;
        let first =
            page.entries.first().filter(|first| matches!(first.entry.event, Event::Defined { before: None, .. }));
        Ok(first.map(|first| first.entry.time))
    }

    /// A command that was published in a former life of the application: its decision went with the log of that time, so it
    /// comes back from the queue as if it had never been decided.
    fn is_of_former_life(&self, command: &Received<Command>) -> bool {
        command.redelivered && self.reborn.is_some_and(|reborn| command.time < reborn)
    }

    /// Everything logged above a mark; from the oldest held where the mark is of another epoch or trimmed.
    async fn read_since(&self, marks: Marks, mark: Offset) -> Result<Vec<LogEntry>> {
        let oldest = if marks.trimmed.epoch == marks.head.epoch { marks.trimmed } else { before_first(marks.head) };
        let mut since = mark.max(oldest);
        let mut entries = Vec::new();
        while since < marks.head {
            let page = self.domain.backends.change_log.read_logged(&self.app, since, PAGE).await?;
            if page.entries.is_empty() {
                break;
            }
            since = page.next;
            entries.extend(page.entries);
        }
        Ok(entries)
    }

    async fn decide(&mut self, command: &Received<Command>, documents: &mut Documents) -> Result<()> {
        match &command.body.intent {
            Intent::Create { .. }
            | Intent::Patch { .. }
            | Intent::Delete { .. }
            | Intent::Import { .. }
            | Intent::Define { .. }
                if self.is_of_former_life(command) =>
            {
                let detail = "the application was deleted and made again since";
                self.push(command.id, refusal(command, Problem::new(ProblemKind::Conflict, detail)));
                return Ok(());
            }
            Intent::Barrier => {
                self.log_and_apply().await?;
                return self.domain.backends.change_log.pass(&self.app, command.id).await;
            }
            Intent::Define { definition, forced, new } => {
                self.log_and_apply().await?;
                let event = self.define(command, definition, *forced, *new).await?;
                self.push(command.id, event);
                self.log_and_apply().await?;
                if self.application.is_none() {
                    documents.forget(); // They went with the application.
                }
                return Ok(());
            }
            Intent::ChangeUser { user, after, expected } => {
                self.log_and_apply().await?;
                let event = self.change_user(command, user, after.as_ref(), expected.as_ref()).await?;
                self.push(command.id, event);
                return self.log_and_apply().await;
            }
            Intent::Create { .. } | Intent::Patch { .. } | Intent::Delete { .. } | Intent::Import { .. } => {}
        }
        failpoint::reach_about("writer.decide", || {
            subject_of(&command.body.intent).map(|subject| subject.id.to_string()).unwrap_or_default()
        })?;
        let event = self.decide_document(command, documents);
        documents.remember(&event);
        self.push(command.id, event);
        Ok(())
    }

    fn decide_document(&self, command: &Received<Command>, documents: &Documents) -> Event {
        let Some(application) = &self.application else {
            return refusal(command, no_application(&self.app));
        };
        let judge = Judge {
            application,
            caller: &command.body.caller,
            now: self.now(),
            document_bytes: self.domain.config.now().limits.document_bytes.bytes(),
        };
        let decision = match &command.body.intent {
            Intent::Create { model, id, owner, fields, .. } => {
                let new = New { owner: owner.clone(), fields: fields.clone() };
                judge.create(model, id, new, documents.get(model, id))
            }
            Intent::Patch { model, id, patch, expected } => {
                let subject = Subject { model: model.clone(), id: id.clone() };
                judge.patch(&subject, patch, *expected, documents.get(model, id))
            }
            Intent::Delete { model, id, expected } => {
                let subject = Subject { model: model.clone(), id: id.clone() };
                judge.delete(&subject, *expected, documents.get(model, id))
            }
            Intent::Import { document, notify } => {
                judge.import(document, *notify, documents.get(&document.model, &document.id))
            }
            Intent::Define { .. } | Intent::ChangeUser { .. } | Intent::Barrier => {
                Err(Problem::new(ProblemKind::Internal, "not about a document"))
            }
        };
        decision.unwrap_or_else(|problem| refusal(command, problem))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now().max(self.last_time)
    }

    fn push(&mut self, change_id: ChangeId, event: Event) {
        let last = self.decided.last().map(|entry| entry.offset).or(self.tail).unwrap_or_default();
        // The default tail is that of an application without a log: its first entry begins epoch 1.
        let offset = if last == Offset::default() { Offset::new(1, 1) } else { last.next() };
        self.last_time = self.now();
        self.decided.push(Entry { offset, change_id, time: self.last_time, event });
    }

    /// *Log*, then *apply*.
    pub(super) async fn log_and_apply(&mut self) -> Result<()> {
        let (Some(tail), Some(last)) = (self.tail, self.decided.last()) else { return Ok(()) };
        let head = last.offset;
        let decided = std::mem::take(&mut self.decided);
        failpoint::reach("writer.decided")?;
        let domain = self.domain.clone();
        let _applying = domain.backends.applying().await;
        let logged = self.domain.backends.change_log.append(&self.app, tail, decided).await?;
        failpoint::reach("writer.logged")?;
        self.tail = Some(head);
        self.apply(&logged).await?;
        self.done.extend(logged.into_iter().map(|entry| entry.entry));
        Ok(())
    }

    async fn apply(&mut self, logged: &[LogEntry]) -> Result<()> {
        let Some(last) = logged.last() else { return Ok(()) };
        self.domain.backends.documents.apply(&self.app, logged).await?;
        failpoint::reach("writer.stored")?;
        self.apply_to_registry(logged).await?;
        self.domain.backends.change_log.mark_applied(&self.app, last.entry.offset).await?;
        failpoint::reach("writer.applied")
    }

    /// Definitions in order; of each user what the last of these entries says, so that nobody sees what is over.
    async fn apply_to_registry(&mut self, logged: &[LogEntry]) -> Result<()> {
        let mut users = BTreeMap::new();
        for logged in logged {
            match &logged.entry.event {
                Event::Defined { definition, .. } => self.apply_definition(&logged.entry, definition).await?,
                Event::UserChanged { user, after, .. } => drop(users.insert(user, after.as_ref())),
                _ => {}
            }
        }
        for (user, after) in users {
            self.apply_user(user, after).await?;
        }
        Ok(())
    }
}

/// The documents that a batch is about: looked up once, then kept as the decisions leave them.
struct Documents {
    states: HashMap<DocumentKey, Option<Stored>>,
}

impl Documents {
    async fn look_up(lane: &Lane, commands: &[&Received<Command>]) -> Result<Self> {
        let mut wanted: HashMap<ModelName, HashSet<DocumentId>> = HashMap::new();
        for command in commands {
            match &command.body.intent {
                Intent::Create { model, id, chosen: true, .. }
                | Intent::Patch { model, id, .. }
                | Intent::Delete { model, id, .. } => {
                    wanted.entry(model.clone()).or_default().insert(id.clone());
                }
                Intent::Import { document, .. } => {
                    wanted.entry(document.model.clone()).or_default().insert(document.id.clone());
                }
                _ => {}
            }
        }
        let mut states = HashMap::new();
        for (model, ids) in wanted {
            let ids: Vec<_> = ids.into_iter().collect();
            let stored = lane.domain.backends.documents.get(&lane.app, &model, &ids).await?;
            states.extend(ids.into_iter().map(|id| (model.clone(), id)).zip(stored));
        }
        Ok(Self { states })
    }

    fn get(&self, model: &ModelName, id: &DocumentId) -> Option<&Stored> {
        if self.states.is_empty() {
            return None; // The common batch: creates with generated ids only.
        }
        self.states.get(&(model.clone(), id.clone()))?.as_ref()
    }

    /// Nothing is there any more.
    fn forget(&mut self) {
        self.states.values_mut().for_each(|state| *state = None);
    }

    /// Takes in a decision, where another command of the batch is about the same document.
    fn remember(&mut self, event: &Event) {
        if self.states.is_empty() {
            return;
        }
        let (document, stored) = match event {
            Event::Created { document } | Event::Updated { document, .. } | Event::Imported { document } => {
                (document, Stored::Live(document.clone()))
            }
            Event::Deleted { document, version } => (document, Stored::Deleted { version: *version }),
            _ => return,
        };
        if let Some(state) = self.states.get_mut(&(document.model.clone(), document.id.clone())) {
            *state = Some(stored);
        }
    }
}

/// The refusal of a command, whatever it was about.
pub(super) fn refusal(command: &Received<Command>, problem: Problem) -> Event {
    Event::Rejected {
        document: subject_of(&command.body.intent),
        device: command.body.caller.device.clone(),
        problem: problem.with_change_id(command.id),
    }
}

/// The document that a command is about.
fn subject_of(intent: &Intent) -> Option<Subject> {
    match intent {
        Intent::Create { model, id, .. } | Intent::Patch { model, id, .. } | Intent::Delete { model, id, .. } => {
            Some(Subject { model: model.clone(), id: id.clone() })
        }
        Intent::Import { document, .. } => Some(Subject { model: document.model.clone(), id: document.id.clone() }),
        Intent::Define { .. } | Intent::ChangeUser { .. } | Intent::Barrier => None,
    }
}

/// The problem of a command that went to the dead letters.
pub(super) fn undone(reason: &str) -> Problem {
    Problem::new(ProblemKind::Internal, format!("the change could not be carried out: {reason}"))
}

pub(super) fn no_application(app: &AppId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no application {app}"))
}

/// The offset before the first entry of this one's epoch.
fn before_first(offset: Offset) -> Offset {
    Offset::new(offset.epoch, 0)
}

/// The offset before this one, in its epoch.
fn before(offset: Offset) -> Offset {
    Offset::new(offset.epoch, offset.position.saturating_sub(1))
}
