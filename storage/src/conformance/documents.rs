//! What every [`Documents`] promises. `documents_conformance!(name, || async { … })` makes a test of each promise; the closure
//! gives a [`Subject`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Documents, ErrorKind,
    changelog::LogEntry,
    documents::{Found, Query, Sort, Stored},
    model::{
        AppId, ChangeId, Document, DocumentId, Entry, Event, Filter, Model, ModelName, Offset, Timestamp, UserId,
        change::{Before, Subject as Concerned},
        filter::{Condition, Field},
        problem::{Problem, ProblemKind},
    },
};

mod applying;
mod generated;
mod lasting;
mod ordering;
mod searching;

pub use self::{applying::*, generated::*, lasting::*, ordering::*, searching::*};

/// A store under test, fresh and empty.
#[async_trait]
pub trait Subject: Send + Sync {
    fn documents(&self) -> Arc<dyn Documents>;

    /// Logs entries, where the store recovers from a log, and gives them with their places in it.
    async fn log(&self, app: &AppId, entries: Vec<Entry>) -> Vec<LogEntry>;

    /// Brings what was applied to another stage of its way to the disk, where the store has such stages: to the end of it for step
    /// 0, to some stage for others. Called between steps, so that what is promised is seen to hold at all of them.
    async fn stir(&self, step: usize);

    /// Ends it as a crash would, with nothing closed in order, and opens what is left. What `documents` gave before is void.
    async fn crash(&mut self);
}

/// Makes a module `$name` with a test for each promise.
#[macro_export]
macro_rules! documents_conformance {
    ($name:ident, $make:expr) => {
        $crate::conformance_tests! {
            $name, $make, documents:
            get_shows_what_was_applied,
            get_answers_in_the_order_asked_for,
            documents_come_back_as_they_were,
            models_and_applications_are_kept_apart,
            entries_of_one_call_are_applied_in_order,
            entries_that_change_no_document_are_passed_over,
            applying_again_changes_nothing,
            an_older_entry_changes_nothing,
            a_later_epoch_is_newer,
            a_deleted_document_is_remembered_with_its_version,
            an_id_that_is_created_again_is_live,
            search_sees_everything_that_was_applied,
            search_sees_only_the_newest_version,
            filters_mean_the_same_as_on_documents,
            searches_find_what_filters_mean,
            sorting_goes_by_value_then_id,
            documents_without_the_sort_field_come_last,
            strings_sort_by_code_point,
            arrays_sort_by_their_first_element_in_the_direction,
            searches_sort_and_page_as_documents_compare,
            a_limit_of_zero_gives_a_count_only,
            the_total_is_that_of_all_pages,
            pages_end_without_a_cursor,
            a_cursor_is_of_one_query,
            pages_show_each_unchanged_document_once,
            count_is_of_live_documents,
            fields_of_an_empty_model_are_ready_at_once,
            a_field_that_nobody_defined_is_unavailable,
            a_new_field_is_indexed_for_stored_documents,
            documents_applied_meanwhile_have_the_new_field,
            a_field_of_another_type_is_a_new_field,
            a_dropped_application_is_gone_at_once,
            a_dropped_application_can_be_made_again,
            what_was_applied_survives_a_crash,
            fields_survive_a_crash,
            indexing_goes_on_after_a_crash,
            a_drop_survives_a_crash,
            statistics_are_an_object,
        }
    };
}

/// How long the store may take for what it does in the background.
const PATIENCE: Duration = Duration::from_secs(60);

fn app_id(id: &str) -> AppId {
    AppId::parse(id).expect("an id")
}

pub(crate) fn task() -> ModelName {
    ModelName::parse("task").expect("a name")
}

pub(crate) fn id(id: &str) -> DocumentId {
    DocumentId::parse(id).expect("an id")
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_ms(seconds * 1000).expect("a time")
}

fn fields(fields: Value) -> Map<String, Value> {
    match fields {
        Value::Object(fields) => fields,
        other => panic!("{other} are no fields"),
    }
}

pub(crate) fn model() -> Model {
    Model::parse(&json!({
        "title": { "type": "string", "filterable": true },
        "priority": { "type": "number", "filterable": true },
        "done": { "type": "boolean", "filterable": true },
        "due": { "type": "date", "filterable": true },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
        "marks": { "type": "array", "arrayType": "number", "filterable": true },
        "meta": { "type": "object", "properties": { "place": { "type": "object", "properties": {
            "name": { "type": "string", "filterable": true } } } } },
        "notes": { "type": "string" },
    }))
    .expect("a model")
}

pub(crate) fn field(path: &str) -> Field {
    let own = model().filterable().into_iter().find(|field| *field.path == *path);
    own.or_else(|| Field::universal(path)).expect("a field")
}

pub(crate) type Written = (Offset, BTreeMap<DocumentId, Document>, BTreeMap<DocumentId, u64>);

/// The one writer of an application: makes entries and applies them.
pub(crate) struct Author<'a, S: Subject> {
    subject: &'a S,
    pub(crate) documents: Arc<dyn Documents>,
    pub(crate) app: AppId,
    tail: Offset,
    /// What is live, as the entries say.
    pub(crate) live: BTreeMap<DocumentId, Document>,
    versions: BTreeMap<DocumentId, u64>,
}

impl<'a, S: Subject> Author<'a, S> {
    pub(crate) fn new(subject: &'a S, app: &str) -> Self {
        Self {
            subject,
            documents: subject.documents(),
            app: app_id(app),
            tail: Offset::new(1, 0),
            live: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    pub(crate) async fn defined(subject: &'a S, app: &str) -> Self {
        let author = Self::new(subject, app);
        author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
        author
    }

    /// What was written, for another author that goes on.
    pub(crate) fn written(&self) -> Written {
        (self.tail, self.live.clone(), self.versions.clone())
    }

    pub(crate) fn resume(&mut self, written: Written) {
        (self.tail, self.live, self.versions) = written;
    }

    pub(crate) fn document(&self, name: &str, of: Value) -> Document {
        let id = id(name);
        Document {
            app: self.app.clone(),
            model: task(),
            user: Some(UserId::parse("u1").expect("an id")),
            created_at: self.live.get(&id).map_or(time(100), |document| document.created_at),
            updated_at: time(100 + self.tail.position as i64),
            version: self.versions.get(&id).copied().unwrap_or_default() + 1,
            fields: fields(of),
            id,
        }
    }

    pub(crate) fn put_event(&mut self, document: Document) -> Event {
        let before = self.live.insert(document.id.clone(), document.clone());
        self.versions.insert(document.id.clone(), document.version);
        match before {
            None => Event::Created { document },
            Some(old) => {
                let before = Before { updated_at: old.updated_at, user: old.user, fields: Vec::new() };
                Event::Updated { document, before, patches: Vec::new() }
            }
        }
    }

    fn delete_event(&mut self, name: &str) -> Event {
        let document = self.live.remove(&id(name)).expect("a live document");
        let version = document.version + 1;
        self.versions.insert(document.id.clone(), version);
        Event::Deleted { document, version }
    }

    fn entry(&mut self, event: Event) -> Entry {
        self.tail = self.tail.next();
        Entry { offset: self.tail, change_id: ChangeId::generate(), time: time(self.tail.position as i64), event }
    }

    pub(crate) async fn log(&mut self, events: Vec<Event>) -> Vec<LogEntry> {
        let entries = events.into_iter().map(|event| self.entry(event)).collect();
        self.subject.log(&self.app, entries).await
    }

    async fn apply(&mut self, events: Vec<Event>) -> Vec<LogEntry> {
        let entries = self.log(events).await;
        self.documents.apply(&self.app, &entries).await.expect("applied");
        entries
    }

    pub(crate) async fn put(&mut self, name: &str, of: Value) -> Vec<LogEntry> {
        let document = self.document(name, of);
        let event = self.put_event(document);
        self.apply(vec![event]).await
    }

    pub(crate) async fn put_document(&mut self, document: Document) {
        let event = self.put_event(Document { app: self.app.clone(), ..document });
        self.apply(vec![event]).await;
    }

    pub(crate) async fn delete(&mut self, name: &str) -> Vec<LogEntry> {
        let event = self.delete_event(name);
        self.apply(vec![event]).await
    }

    pub(crate) async fn get(&self, name: &str) -> Option<Stored> {
        let found = self.documents.get(&self.app, &task(), &[id(name)]).await.expect("looked up");
        let [found] = found.try_into().expect("one answer");
        found
    }

    pub(crate) fn query(&self, filter: Value) -> Query {
        let condition = Filter::parse(&filter, &model(), true).expect("a filter").condition().clone();
        query(&self.app, condition)
    }

    pub(crate) async fn found(&self, filter: Value) -> Vec<String> {
        names(&self.documents.search(self.query(filter)).await.expect("found"))
    }

    pub(crate) async fn sorted(&self, sort: &[(&str, bool)]) -> Vec<String> {
        let sort = sort.iter().map(|(path, descending)| Sort { field: field(path), descending: *descending }).collect();
        names(&self.documents.search(Query { sort, ..self.query(json!({})) }).await.expect("found"))
    }
}

fn query(app: &AppId, condition: Condition) -> Query {
    Query {
        app: app.clone(),
        model: task(),
        condition,
        sort: Vec::new(),
        limit: 1_000,
        cursor: None,
        count: false,
        text: None,
        at_least: None,
    }
}

pub(crate) fn names(found: &Found) -> Vec<String> {
    found.documents.iter().map(|document| document.id.to_string()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_macro() {
        let list = include_str!("documents.rs");
        let promises = concat!(
            include_str!("documents/applying.rs"),
            include_str!("documents/generated.rs"),
            include_str!("documents/lasting.rs"),
            include_str!("documents/ordering.rs"),
            include_str!("documents/searching.rs"),
        );
        for line in promises.lines() {
            let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            assert!(list.contains(&format!("            {name},\n")), "{name} is never run");
        }
    }
}
