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

mod generated;

pub use generated::{searches_find_what_filters_mean, searches_sort_and_page_as_documents_compare};

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
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::documents_conformance!(@each $make;
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
            );
        }
    };
    (@each $make:expr; $($promise:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            $crate::conformance::documents::$promise(($make)().await).await;
        }
    )*};
}

/// How long the store may take for what it does in the background.
const PATIENCE: Duration = Duration::from_secs(60);

fn app_id(id: &str) -> AppId {
    AppId::parse(id).expect("an id")
}

fn task() -> ModelName {
    ModelName::parse("task").expect("a name")
}

fn id(id: &str) -> DocumentId {
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

fn model() -> Model {
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

fn field(path: &str) -> Field {
    let own = model().filterable().into_iter().find(|field| *field.path == *path);
    own.or_else(|| Field::universal(path)).expect("a field")
}

/// The one writer of an application: makes entries and applies them.
pub(crate) struct Author<'a, S: Subject> {
    subject: &'a S,
    documents: Arc<dyn Documents>,
    app: AppId,
    tail: Offset,
    /// What is live, as the entries say.
    live: BTreeMap<DocumentId, Document>,
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

    async fn defined(subject: &'a S, app: &str) -> Self {
        let author = Self::new(subject, app);
        author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
        author
    }

    fn document(&self, name: &str, of: Value) -> Document {
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

    fn put_event(&mut self, document: Document) -> Event {
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

    async fn log(&mut self, events: Vec<Event>) -> Vec<LogEntry> {
        let entries = events.into_iter().map(|event| self.entry(event)).collect();
        self.subject.log(&self.app, entries).await
    }

    async fn apply(&mut self, events: Vec<Event>) -> Vec<LogEntry> {
        let entries = self.log(events).await;
        self.documents.apply(&self.app, &entries).await.expect("applied");
        entries
    }

    async fn put(&mut self, name: &str, of: Value) -> Vec<LogEntry> {
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

    async fn get(&self, name: &str) -> Option<Stored> {
        let found = self.documents.get(&self.app, &task(), &[id(name)]).await.expect("looked up");
        let [found] = found.try_into().expect("one answer");
        found
    }

    fn query(&self, filter: Value) -> Query {
        let condition = Filter::parse(&filter, &model(), true).expect("a filter").condition().clone();
        query(&self.app, condition)
    }

    async fn found(&self, filter: Value) -> Vec<String> {
        names(&self.documents.search(self.query(filter)).await.expect("found"))
    }

    async fn sorted(&self, sort: &[(&str, bool)]) -> Vec<String> {
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

fn names(found: &Found) -> Vec<String> {
    found.documents.iter().map(|document| document.id.to_string()).collect()
}

pub async fn get_shows_what_was_applied(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    assert_eq!(author.get("x").await, None);
    for step in 0..4 {
        author.put("x", json!({ "title": step })).await;
        let stored = author.get("x").await;
        assert_eq!(stored, Some(Stored::Live(author.live[&id("x")].clone())));
        subject.stir(step).await;
        assert_eq!(author.get("x").await, stored);
    }
}

pub async fn get_answers_in_the_order_asked_for(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("old", json!({})).await;
    author.put("gone", json!({})).await;
    author.delete("gone").await;
    subject.stir(0).await;
    author.put("new", json!({})).await;
    let ids = ["new", "none", "old", "gone", "new"].map(id);
    let found = author.documents.get(&author.app, &task(), &ids).await.expect("looked up");
    let live = |name: &str| Some(Stored::Live(author.live[&id(name)].clone()));
    assert_eq!(found, [live("new"), None, live("old"), Some(Stored::Deleted { version: 2 }), live("new")]);
    assert_eq!(author.documents.get(&author.app, &task(), &[]).await.expect("looked up"), []);
}

pub async fn documents_come_back_as_they_were(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let of = json!({
        "title": "ä\u{0}\u{10ffff}\"\\", "priority": 0.1, "notes": "x".repeat(100_000),
        "meta": { "place": { "name": "" } }, "tags": ["", "a"], "marks": [], "numbers": [5, 5.5, -0.30000000000000004,
        9_007_199_254_740_992_u64, -9_007_199_254_740_992_i64, 5e-324, 1.7976931348623157e308], "done": false,
    });
    let mut document = author.document("~a@+=-._", of);
    document.user = None;
    author.put_document(document.clone()).await;
    for step in 0..3 {
        assert_eq!(author.get("~a@+=-._").await, Some(Stored::Live(document.clone())));
        let found = author.documents.search(query(&author.app, Condition::All)).await.expect("found");
        assert_eq!(found.documents, [document.clone()]);
        subject.stir(step).await;
    }
}

pub async fn models_and_applications_are_kept_apart(subject: impl Subject) {
    let other = ModelName::parse("task-2").expect("a name");
    for app in ["a", "a.b", "A"] {
        let mut author = Author::new(&subject, app);
        author.put("x", json!({ "in": app })).await;
        let document = Document { model: other.clone(), ..author.document("y", json!({})) };
        author.put_document(document).await;
    }
    for step in 0..3 {
        for app in ["a", "a.b", "A"].map(app_id) {
            let found = subject.documents().search(query(&app, Condition::All)).await.expect("found");
            assert_eq!(names(&found), ["x"]);
            assert_eq!(found.documents[0].fields["in"], app.as_str());
            assert_eq!(subject.documents().get(&app, &other, &[id("x")]).await.expect("looked up"), [None]);
            assert_eq!(subject.documents().count(&app, &other).await.expect("counted"), 1);
        }
        subject.stir(step).await;
    }
}

pub async fn entries_of_one_call_are_applied_in_order(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let mut events = Vec::new();
    for n in 0..3 {
        let document = author.document("x", json!({ "title": n }));
        events.push(author.put_event(document));
    }
    events.push(author.delete_event("x"));
    let document = author.document("x", json!({ "title": "again" }));
    events.push(author.put_event(document));
    let document = author.document("y", json!({}));
    events.push(author.put_event(document));
    events.push(author.delete_event("y"));
    author.apply(events).await;
    assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
    assert_eq!(author.live[&id("x")].version, 5);
    assert_eq!(author.get("y").await, Some(Stored::Deleted { version: 2 }));
}

pub async fn entries_that_change_no_document_are_passed_over(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({})).await;
    let concerned = Some(Concerned { model: task(), id: id("x") });
    author
        .apply(vec![
            Event::Unchanged { document: concerned.clone() },
            Event::Rejected { document: concerned, device: None, problem: Problem::new(ProblemKind::Conflict, "no") },
            Event::Defined { definition: json!({ "schema": {} }), before: None },
            Event::UserChanged { user: UserId::parse("u").expect("an id"), before: None, after: None },
        ])
        .await;
    subject.stir(0).await;
    assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
    assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 1);
    assert_eq!(author.documents.apply(&author.app, &[]).await.ok(), Some(()));
}

pub async fn applying_again_changes_nothing(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let mut entries = author.put("x", json!({ "title": 1 })).await;
    entries.extend(author.put("y", json!({ "title": 1 })).await);
    entries.extend(author.put("x", json!({ "title": 2 })).await);
    entries.extend(author.delete("y").await);
    for step in 0..4 {
        author.documents.apply(&author.app, &entries).await.expect("applied");
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        assert_eq!(author.get("y").await, Some(Stored::Deleted { version: 2 }));
        assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 1);
        subject.stir(step).await;
    }
}

pub async fn an_older_entry_changes_nothing(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..3 {
        let name = format!("x{step}");
        let first = author.put(&name, json!({ "title": 1 })).await;
        subject.stir(step).await;
        author.put(&name, json!({ "title": 2 })).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Live(author.live[&id(&name)].clone())));
        subject.stir(step + 1).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Live(author.live[&id(&name)].clone())));
        author.delete(&name).await;
        subject.stir(step + 2).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Deleted { version: 3 }));
    }
    // An entry that comes late is not older than what is stored of its document.
    let document = author.document("late", json!({}));
    let event = author.put_event(document);
    let late = author.log(vec![event]).await;
    author.put("other", json!({})).await;
    subject.stir(0).await;
    author.documents.apply(&author.app, &late).await.expect("applied");
    assert_eq!(author.get("late").await, Some(Stored::Live(author.live[&id("late")].clone())));
}

pub async fn a_later_epoch_is_newer(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.tail = Offset::new(1, 40);
    let old = author.put("x", json!({ "title": 1 })).await;
    author.tail = Offset::new(2, 0);
    author.put("x", json!({ "title": 2 })).await;
    for step in 0..3 {
        author.documents.apply(&author.app, &old).await.expect("applied");
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        subject.stir(step).await;
    }
}

pub async fn a_deleted_document_is_remembered_with_its_version(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..3 {
        let name = format!("x{step}");
        author.put(&name, json!({})).await;
        author.put(&name, json!({ "title": "x" })).await;
        subject.stir(step).await;
        author.delete(&name).await;
        for step in 0..3 {
            assert_eq!(author.get(&name).await, Some(Stored::Deleted { version: 3 }));
            assert!(author.found(json!({})).await.is_empty());
            subject.stir(step).await;
        }
    }
}

pub async fn an_id_that_is_created_again_is_live(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..6 {
        author.put("x", json!({ "title": step })).await;
        subject.stir(step).await;
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        assert_eq!(author.found(json!({})).await, ["x"]);
        author.delete("x").await;
        subject.stir(step / 2).await;
        assert!(author.found(json!({})).await.is_empty());
    }
    assert_eq!(author.get("x").await, Some(Stored::Deleted { version: 12 }));
}

pub async fn search_sees_everything_that_was_applied(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..30 {
        author.put(&format!("x{n:02}"), json!({ "priority": n % 3 })).await;
        if n % 4 == 3 {
            author.delete(&format!("x{:02}", n - 2)).await;
        }
        if n % 5 == 4 {
            author.put(&format!("x{:02}", n - 4), json!({ "priority": 7 })).await;
        }
        let matching = |priority: i64| -> Vec<String> {
            let live = author.live.values().filter(|document| document.fields["priority"] == priority);
            live.map(|document| document.id.to_string()).collect()
        };
        for priority in [0, 1, 7] {
            assert_eq!(author.found(json!({ "priority": priority })).await, matching(priority));
        }
        if n % 3 == 0 {
            subject.stir(n / 3).await;
        }
    }
}

pub async fn search_sees_only_the_newest_version(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for step in 0..9 {
        author.put("x", json!({ "title": format!("t{step}") })).await;
        if step % 2 == 0 {
            subject.stir(step / 2).await;
        }
        for old in 0..=step {
            let found = author.found(json!({ "title": format!("t{old}") })).await;
            assert_eq!(found.len(), usize::from(old == step), "t{old} at step {step}");
        }
        let all = author.documents.search(Query { count: true, ..author.query(json!({})) }).await.expect("found");
        assert_eq!((all.documents.len(), all.total), (1, Some(1)));
    }
}

pub async fn filters_mean_the_same_as_on_documents(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let documents = [
        json!({ "title": "", "priority": 5, "tags": [], "done": true, "due": "2026-01-01T00:00:00.000Z" }),
        json!({ "title": "todo", "priority": 5.5, "tags": ["a", "b"], "marks": [1, 2.5], "done": false }),
        json!({ "title": "todo list", "priority": -1, "meta": { "place": { "name": "Zürich" } } }),
        json!({ "title": "\u{ffff}", "priority": 1e-7, "due": "2026-06-01T12:30:00.500Z", "notes": "n" }),
        json!({ "title": "\u{10000}", "priority": 9_007_199_254_740_992_u64, "tags": ["2026-01-01T00:00:00Z", "5"] }),
        json!({ "title": "2026-01-01T00:00:00Z", "meta": {} }),
        json!({}),
    ];
    let filters = [
        json!({}),
        json!({ "title": "" }),
        json!({ "title": null }),
        json!({ "title": { "$prefix": "todo" } }),
        json!({ "title": { "$prefix": "" } }),
        json!({ "title": { "$gt": "todo", "$lte": "\u{ffff}" } }),
        json!({ "title": { "$gte": "\u{ffff}" } }),
        json!({ "title": "2026-01-01T00:00:00Z" }),
        json!({ "title": { "$ne": "todo" } }),
        json!({ "priority": 5.0 }),
        json!({ "priority": { "$gt": 5 } }),
        json!({ "priority": { "$lt": 0.5, "$gt": -1 } }),
        json!({ "priority": { "$in": [5.5, -1, 7] } }),
        json!({ "priority": { "$nin": [5.5, -1, 7] } }),
        json!({ "priority": 9_007_199_254_740_992_u64 }),
        json!({ "tags": { "$exists": true } }),
        json!({ "tags": { "$contains": "b" } }),
        json!({ "tags": "5" }),
        json!({ "tags": { "$ne": "a" } }),
        json!({ "marks": 2.5 }),
        json!({ "done": true }),
        json!({ "done": { "$ne": true } }),
        json!({ "due": { "$gte": "2026-01-01T01:00:00+01:00" } }),
        json!({ "due": 1_767_225_600 }),
        json!({ "meta.place.name": { "$prefix": "Zü" } }),
        json!({ "$not": { "meta.place.name": { "$exists": true } } }),
        json!({ "$or": [{ "title": "todo" }, { "done": true }, { "$not": { "priority": { "$exists": true } } }] }),
        json!({ "$and": [{ "$or": [] }] }),
        json!({ "$not": { "$or": [] } }),
        json!({ "$not": { "$not": { "title": "todo" } } }),
        json!({ "id": "x1" }),
        json!({ "id": { "$in": ["x1", "x2", "y"] } }),
        json!({ "id": { "$gt": "x2", "$lt": "x5" } }),
        json!({ "id": { "$prefix": "x" } }),
        json!({ "type": "task", "appId": { "$ne": "b" } }),
        json!({ "type": "tasks" }),
        json!({ "userId": "u1" }),
        json!({ "userId": null }),
        json!({ "userId": { "$prefix": "u" } }),
        json!({ "version": 1 }),
        json!({ "version": { "$gt": 1 } }),
        json!({ "createdAt": { "$lte": 100 } }),
        json!({ "updatedAt": { "$gt": 103 } }),
    ];
    for (n, of) in documents.into_iter().enumerate() {
        let mut document = author.document(&format!("x{n}"), of);
        document.user = document.user.filter(|_| n % 2 == 0);
        author.put_document(document).await;
        if n % 2 == 1 {
            subject.stir(n / 2).await;
        }
    }
    for step in 0..3 {
        for filter in &filters {
            let condition = author.query(filter.clone()).condition;
            let matching = author.live.values().filter(|document| condition.matches(document));
            let matching: Vec<_> = matching.map(|document| document.id.to_string()).collect();
            assert_eq!(author.found(filter.clone()).await, matching, "{filter}");
        }
        subject.stir(step).await;
    }
}

pub async fn sorting_goes_by_value_then_id(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let documents = [("a", 2, "y"), ("b", 1, "z"), ("c", 2, "x"), ("d", 10, "x"), ("e", -3, "y"), ("f", 2, "x")];
    for (n, (name, priority, title)) in documents.into_iter().enumerate() {
        author.put(name, json!({ "priority": priority, "title": title })).await;
        if n % 2 == 1 {
            subject.stir(n / 2).await;
        }
    }
    for step in 0..3 {
        for (sort, order) in [
            (&[][..], "abcdef"),
            (&[("priority", false)], "ebacfd"),
            (&[("priority", true)], "dacfbe"),
            (&[("title", false), ("priority", true)], "dcfaeb"),
            (&[("title", true), ("priority", false), ("id", true)], "beafcd"),
            (&[("createdAt", false)], "abcdef"),
            (&[("updatedAt", true)], "fedcba"),
            (&[("type", true), ("userId", true), ("version", true)], "abcdef"),
        ] {
            assert_eq!(author.sorted(sort).await.concat(), order, "{sort:?}");
        }
        subject.stir(step).await;
    }
    let sort = vec![Sort { field: field("id"), descending: false }; 100];
    let error = author.documents.search(Query { sort, ..author.query(json!({})) }).await;
    assert!(error.is_ok() || error.is_err_and(|error| error.kind == ErrorKind::Invalid));
}

pub async fn documents_without_the_sort_field_come_last(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for (n, name) in ["e", "d", "c", "b", "a"].into_iter().enumerate() {
        let of = if n % 2 == 0 {
            json!({ "priority": n, "title": "t", "due": format!("2026-01-0{}T00:00:00.000Z", n + 1) })
        } else {
            json!({})
        };
        author.put(name, of).await;
        subject.stir(n).await;
    }
    for step in 0..3 {
        for path in ["priority", "due"] {
            assert_eq!(author.sorted(&[(path, false)]).await.concat(), "ecabd", "{path}");
            assert_eq!(author.sorted(&[(path, true)]).await.concat(), "acebd", "{path}");
        }
        assert_eq!(author.sorted(&[("title", true)]).await.concat(), "acebd");
        assert_eq!(author.sorted(&[("done", true)]).await.concat(), "abcde");
        subject.stir(step).await;
    }
}

pub async fn strings_sort_by_code_point(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let titles = ["", "\u{0}", "10", "9", "A", "a", "a\u{0}", "aa", "z", "ä", "\u{ffff}", "\u{10000}"];
    for n in [7, 3, 11, 0, 5, 9, 1, 2, 10, 4, 8, 6] {
        author.put(&format!("x{n:02}"), json!({ "title": titles[n] })).await;
        if n % 3 == 0 {
            subject.stir(n / 3).await;
        }
    }
    let ascending: Vec<_> = (0..titles.len()).map(|n| format!("x{n:02}")).collect();
    for step in 0..3 {
        assert_eq!(author.sorted(&[("title", false)]).await, ascending);
        let descending: Vec<_> = ascending.iter().rev().cloned().collect();
        assert_eq!(author.sorted(&[("title", true)]).await, descending);
        subject.stir(step).await;
    }
}

pub async fn arrays_sort_by_their_first_element_in_the_direction(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for (n, (name, marks)) in
        [("a", json!([5, 1])), ("b", json!([3])), ("c", json!([2, 9])), ("d", json!([]))].into_iter().enumerate()
    {
        author.put(name, json!({ "marks": marks })).await;
        subject.stir(n).await;
    }
    for step in 0..3 {
        assert_eq!(author.sorted(&[("marks", false)]).await.concat(), "acbd");
        assert_eq!(author.sorted(&[("marks", true)]).await.concat(), "cabd");
        subject.stir(step).await;
    }
}

pub async fn a_limit_of_zero_gives_a_count_only(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..7 {
        author.put(&format!("x{n}"), json!({ "done": n % 2 == 0 })).await;
        subject.stir(n).await;
    }
    let nothing = Query { limit: 0, ..author.query(json!({ "done": true })) };
    assert_eq!(author.documents.search(nothing.clone()).await.expect("found"), Found::default());
    let counted = author.documents.search(Query { count: true, ..nothing }).await.expect("found");
    assert_eq!(counted, Found { total: Some(4), ..Found::default() });
}

pub async fn the_total_is_that_of_all_pages(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..9 {
        author.put(&format!("x{n}"), json!({ "priority": n })).await;
        subject.stir(n).await;
    }
    author.put("x8", json!({ "priority": 1 })).await;
    author.delete("x2").await;
    let sort = vec![Sort { field: field("priority"), descending: true }];
    let mut query = Query { limit: 2, count: true, sort, ..author.query(json!({ "priority": { "$lt": 8 } })) };
    let mut pages = Vec::new();
    loop {
        let found = author.documents.search(query.clone()).await.expect("found");
        assert_eq!(found.total, Some(8));
        pages.push(names(&found).concat());
        query.cursor = found.cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, ["x7x6", "x5x4", "x3x1", "x8x0"]);
}

pub async fn pages_end_without_a_cursor(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..4 {
        author.put(&format!("x{n}"), json!({})).await;
        subject.stir(n).await;
    }
    for (limit, has_more) in [(1, true), (3, true), (4, false), (5, false), (usize::MAX, false)] {
        let found = author.documents.search(Query { limit, ..author.query(json!({})) }).await.expect("found");
        assert_eq!((found.documents.len(), found.cursor.is_some()), (limit.min(4), has_more), "{limit}");
    }
}

pub async fn a_cursor_is_of_one_query(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..4 {
        author.put(&format!("x{n}"), json!({ "priority": n, "title": "t" })).await;
    }
    let sort = |path| vec![Sort { field: field(path), descending: false }];
    let first = Query { limit: 1, sort: sort("priority"), ..author.query(json!({ "title": "t" })) };
    let cursor = author.documents.search(first.clone()).await.expect("found").cursor;
    let following = Query { limit: 2, cursor: cursor.clone(), ..first.clone() };
    assert_eq!(names(&author.documents.search(following).await.expect("found")), ["x1", "x2"]);
    let other_filter = author.query(json!({ "title": { "$ne": "u" } })).condition;
    let condition = first.condition.clone();
    let model = ModelName::parse("other").expect("a name");
    for (what, other) in [
        ("filter", Query { condition: other_filter, ..first.clone() }),
        ("sort", Query { sort: sort("title"), ..first.clone() }),
        ("direction", Query { sort: vec![Sort { descending: true, ..first.sort[0].clone() }], ..first.clone() }),
        ("application", Query { app: app_id("b"), sort: Vec::new(), condition: Condition::All, ..first.clone() }),
        ("model", Query { model, sort: Vec::new(), condition: Condition::All, ..first.clone() }),
    ] {
        let error = author.documents.search(Query { cursor: cursor.clone(), ..other }).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Invalid, "{what}");
    }
    for garbage in ["", "x", "AAAA", "*", &cursor.unwrap_or_default()[2..]] {
        let query = Query { condition: condition.clone(), cursor: Some(garbage.to_owned()), ..first.clone() };
        let error = author.documents.search(query).await.expect_err("an error");
        assert_eq!(error.kind, ErrorKind::Invalid, "{garbage}");
    }
}

pub async fn pages_show_each_unchanged_document_once(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..60 {
        author.put(&format!("x{n:02}"), json!({ "priority": n % 7, "title": format!("t{}", n % 3) })).await;
    }
    for descending in [false, true] {
        let sort =
            vec![Sort { field: field("priority"), descending }, Sort { field: field("title"), descending: true }];
        let mut query = Query { limit: 4, sort, ..author.query(json!({})) };
        let mut seen = BTreeMap::<String, usize>::new();
        for step in 0.. {
            let found = author.documents.search(query.clone()).await.expect("found");
            names(&found).into_iter().for_each(|name| *seen.entry(name).or_default() += 1);
            query.cursor = found.cursor;
            if query.cursor.is_none() {
                break;
            }
            // The document that the cursor stands at goes, another moves, and the store goes on as well.
            if let Some(last) = found.documents.last().filter(|last| last.id.as_str() > "x30") {
                author.delete(last.id.as_str()).await;
            }
            author.put(&format!("y{step}"), json!({ "priority": step % 7, "title": "t1" })).await;
            author.put("x00", json!({ "priority": step % 7, "title": "t1" })).await;
            let same = author.live[&id("x01")].fields.clone();
            author.put("x01", Value::Object(same)).await;
            subject.stir(step).await;
        }
        for name in author.live.keys().filter(|id| id.as_str().starts_with('x') && id.as_str() != "x00") {
            assert_eq!(seen.get(name.as_str()), Some(&1), "{name}");
        }
    }
}

pub async fn count_is_of_live_documents(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..12 {
        author.put(&format!("x{}", n % 9), json!({ "title": n })).await;
        if n % 4 == 3 && n < 9 {
            author.delete(&format!("x{}", n - 2)).await;
        }
        subject.stir(n).await;
        let count = author.documents.count(&author.app, &task()).await.expect("counted");
        assert_eq!(count, author.live.len() as u64);
    }
    assert_eq!(author.documents.count(&app_id("b"), &task()).await.expect("counted"), 0);
}

pub async fn fields_of_an_empty_model_are_ready_at_once(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let fields = model().filterable();
    author.documents.define(&author.app, &task(), &fields).await.expect("defined");
    assert!(author.found(json!({ "title": "x" })).await.is_empty());
    author.put("x", json!({ "title": "x" })).await;
    assert_eq!(author.found(json!({ "title": "x" })).await, ["x"]);
    assert_eq!(author.documents.indexing(&author.app, &task()).await.expect("progress"), []);
    // Saying it again changes nothing.
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &fields).await.expect("defined");
    assert_eq!(author.found(json!({ "title": "x" })).await, ["x"]);
}

pub async fn a_field_that_nobody_defined_is_unavailable(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({ "title": "x" })).await;
    subject.stir(0).await;
    let by_filter = author.query(json!({ "$or": [{ "id": "x" }, { "$not": { "title": "x" } }] }));
    let by_sort = Query { sort: vec![Sort { field: field("title"), descending: false }], ..author.query(json!({})) };
    for query in [by_filter, by_sort] {
        let error = author.documents.search(query).await.expect_err("an error");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.to_string().contains("title"), "{error}");
    }
}

/// Waits until all fields of a model are indexed; nothing else than `Unavailable` may come before.
async fn until_indexed<S: Subject>(author: &Author<'_, S>, filter: Value) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let indexing = author.documents.indexing(&author.app, &task()).await.expect("progress");
        assert!(indexing.iter().all(|(_, share)| (0.0..=1.0).contains(share)), "{indexing:?}");
        match author.documents.search(author.query(filter.clone())).await {
            Ok(found) => return names(&found),
            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{indexing:?} is not done");
        author.subject.stir(0).await;
        sleep(Duration::from_millis(5)).await;
    }
}

pub async fn a_new_field_is_indexed_for_stored_documents(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.documents.define(&author.app, &task(), &[field("title")]).await.expect("defined");
    for n in 0..50 {
        author.put(&format!("x{n:02}"), json!({ "title": "t", "priority": n % 10, "tags": ["a"] })).await;
    }
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
    // What was filterable stays so.
    assert_eq!(author.found(json!({ "title": "t" })).await.len(), 50);
    let found = until_indexed(&author, json!({ "priority": 3, "tags": "a" })).await;
    assert_eq!(found, ["x03", "x13", "x23", "x33", "x43"]);
    assert_eq!(author.documents.indexing(&author.app, &task()).await.expect("progress"), []);
    assert_eq!(author.get("x03").await, Some(Stored::Live(author.live[&id("x03")].clone())));
}

pub async fn documents_applied_meanwhile_have_the_new_field(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..20 {
        author.put(&format!("x{n:02}"), json!({ "priority": 1 })).await;
        subject.stir(n).await;
    }
    author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
    for n in 0..5 {
        author.put(&format!("y{n:02}"), json!({ "priority": 1 })).await;
        author.put(&format!("x{n:02}"), json!({ "priority": 2 })).await;
        author.delete(&format!("x{:02}", n + 10)).await;
        subject.stir(n).await;
    }
    let found = until_indexed(&author, json!({ "priority": 1 })).await;
    let expected = ["x05", "x06", "x07", "x08", "x09", "x15", "x16", "x17", "x18", "x19"];
    assert_eq!(found, [&expected[..], &["y00", "y01", "y02", "y03", "y04"]].concat());
    assert_eq!(author.found(json!({ "priority": 2 })).await, ["x00", "x01", "x02", "x03", "x04"]);
    assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 20);
}

pub async fn a_field_of_another_type_is_a_new_field(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.documents.define(&author.app, &task(), &[field("priority")]).await.expect("defined");
    author.put("number", json!({ "priority": 5 })).await;
    author.put("text", json!({ "priority": "5" })).await;
    subject.stir(0).await;
    let model = Model::parse(&json!({ "priority": { "type": "string", "filterable": true } })).expect("a model");
    author.documents.define(&author.app, &task(), &model.filterable()).await.expect("defined");
    let error = author.documents.search(author.query(json!({ "priority": 5 }))).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let condition = Filter::parse(&json!({ "priority": "5" }), &model, true).expect("a filter").condition().clone();
    let begun = Instant::now();
    while let Err(error) = author.documents.search(query(&author.app, condition.clone())).await {
        assert!(error.kind == ErrorKind::Unavailable && begun.elapsed() < PATIENCE, "{error}");
        subject.stir(0).await;
        sleep(Duration::from_millis(5)).await;
    }
    // What is not of the field's type is as good as missing.
    let found = author.documents.search(query(&author.app, condition)).await.expect("found");
    assert_eq!(names(&found), ["text"]);
}

pub async fn a_dropped_application_is_gone_at_once(subject: impl Subject) {
    for step in 0..3 {
        let name = format!("a{step}");
        let mut author = Author::defined(&subject, &name).await;
        let mut other = Author::defined(&subject, &format!("a{step}.x")).await;
        let old = author.put("old", json!({ "title": "t" })).await;
        other.put("old", json!({ "title": "t" })).await;
        author.put("gone", json!({})).await;
        author.delete("gone").await;
        subject.stir(step).await;
        author.put("new", json!({ "title": "t" })).await;
        subject.stir(step + 1).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        for step in 0..3 {
            let found = author.documents.get(&author.app, &task(), &["old", "gone", "new"].map(id)).await;
            assert_eq!(found.expect("looked up"), [None, None, None]);
            assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 0);
            assert_eq!(other.found(json!({ "title": "t" })).await, ["old"]);
            // What comes late is void.
            author.documents.apply(&author.app, &old).await.expect("applied");
            subject.stir(step).await;
        }
    }
}

pub async fn a_dropped_application_can_be_made_again(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for step in 0..4 {
        author.put("x", json!({ "title": "t" })).await;
        author.put(&format!("y{step}"), json!({ "title": "t" })).await;
        subject.stir(step).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        author.tail = Offset::new(step as u32 + 2, 0);
        author.live.clear();
        author.versions.clear();
        author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
        author.put("x", json!({ "title": "again" })).await;
        for step in 0..3 {
            assert_eq!(until_indexed(&author, json!({ "title": "again" })).await, ["x"]);
            assert_eq!(author.found(json!({})).await, ["x"]);
            assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
            assert_eq!(author.get(&format!("y{step}")).await, None);
            subject.stir(step).await;
        }
    }
}

pub async fn what_was_applied_survives_a_crash(mut subject: impl Subject) {
    let mut written = (Offset::new(1, 0), BTreeMap::new(), BTreeMap::new());
    for round in 0..4 {
        let mut author = Author::defined(&subject, "a").await;
        (author.tail, author.live, author.versions) = written;
        for n in 0..40 {
            let name = format!("x{:02}", (n * 7 + round) % 30);
            if n % 5 == 4 && author.live.contains_key(&id(&name)) {
                author.delete(&name).await;
            } else {
                author.put(&name, json!({ "priority": n, "title": format!("round {round}") })).await;
            }
            if n % 10 == round {
                subject.stir(n / 10).await;
            }
        }
        written = (author.tail, author.live.clone(), author.versions.clone());
        drop(author);
        subject.crash().await;
        let author = Author::new(&subject, "a");
        for (id, version) in &written.2 {
            let live = written.1.get(id).cloned().map(Stored::Live);
            let expected = live.unwrap_or(Stored::Deleted { version: *version });
            assert_eq!(author.get(id.as_str()).await, Some(expected), "{id} after round {round}");
        }
        let live: Vec<_> = written.1.keys().map(DocumentId::to_string).collect();
        assert_eq!(author.found(json!({ "priority": { "$gte": 0 } })).await, live);
    }
}

pub async fn fields_survive_a_crash(mut subject: impl Subject) {
    drop(Author::defined(&subject, "a").await.put("x", json!({ "title": "t" })).await);
    for _ in 0..2 {
        subject.crash().await;
        let author = Author::new(&subject, "a");
        assert_eq!(author.found(json!({ "title": "t" })).await, ["x"]);
    }
}

pub async fn indexing_goes_on_after_a_crash(mut subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..50 {
        author.put(&format!("x{n:02}"), json!({ "priority": n })).await;
    }
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &[field("priority")]).await.expect("defined");
    drop(author);
    subject.crash().await;
    let author = Author::new(&subject, "a");
    assert_eq!(until_indexed(&author, json!({ "priority": { "$lt": 3 } })).await, ["x00", "x01", "x02"]);
}

pub async fn a_drop_survives_a_crash(mut subject: impl Subject) {
    for step in 0..3 {
        let name = format!("a{step}");
        let mut author = Author::new(&subject, &name);
        author.put("old", json!({})).await;
        subject.stir(step).await;
        author.put("new", json!({})).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        author.tail = Offset::new(2, 0);
        author.live.clear();
        author.versions.clear();
        author.put("again", json!({})).await;
        drop(author);
        subject.crash().await;
        let author = Author::new(&subject, &name);
        assert_eq!(author.found(json!({})).await, ["again"]);
        assert_eq!(author.get("old").await, None);
        assert_eq!(author.get("new").await, None);
    }
}

pub async fn statistics_are_an_object(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({})).await;
    let statistics = author.documents.statistics().await.expect("statistics");
    assert!(statistics.is_object(), "{statistics}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_macro() {
        let source = include_str!("documents.rs");
        let generated = include_str!("documents/generated.rs");
        for line in source.lines().chain(generated.lines()) {
            let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            assert!(source.contains(&format!("                {name},\n")), "{name} is never run");
        }
    }
}
