//! Promises held to generated models, documents and filters: what a search finds is what `Condition::matches` finds, and what an
//! evaluation of the filter finds that shares no code with it; in the order that the documents' values say.

use std::{cmp::Ordering, sync::Arc};

use proptest::{collection::vec, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::Value;

use super::{Author, Subject, query};
use crate::{
    documents::{Query, Sort},
    model::{
        Document, Filter, Model, ModelName,
        filter::Field,
        testing::{document, filter, filter_fields, model, naive_matches},
    },
};

/// Each with a model of its own.
const MODELS: usize = 24;
const DOCUMENTS: usize = 30;
const FILTERS: usize = 24;

/// A model, its documents in all stages of their way, and who wrote them.
struct Case<'a, S: Subject> {
    author: Author<'a, S>,
    model: Arc<Model>,
    runner: TestRunner,
}

impl<'a, S: Subject> Case<'a, S> {
    async fn new(subject: &'a S, n: usize) -> Self {
        let mut runner = TestRunner::deterministic();
        // Each case begins elsewhere in the same sequence of chances.
        for _ in 0..n {
            generate(&mut runner, any::<[u64; 4]>());
        }
        let model = generate(&mut runner, model());
        let author = Author::new(subject, &format!("app{n}"));
        author.documents.define(&author.app, &thing(), &model.filterable()).await.expect("defined");
        let mut case = Self { author, model, runner };
        case.write(subject).await;
        case
    }

    /// Creates, changes and deletes documents, while the store goes on: some are in the index only, some above it only, some in
    /// both, in other versions.
    async fn write(&mut self, subject: &S) {
        for step in 0..DOCUMENTS {
            let made = generate(&mut self.runner, document(&self.model));
            self.author.put_document(made).await;
            let live: Vec<_> = self.author.live.keys().cloned().collect();
            let chosen = live[generate(&mut self.runner, 0..live.len())].clone();
            match generate(&mut self.runner, 0..4) {
                0 => drop(self.author.delete(chosen.as_str()).await),
                1 => {
                    let changed = generate(&mut self.runner, document(&self.model));
                    self.author.put_document(Document { id: chosen, ..changed }).await;
                }
                _ => {}
            }
            if step % 4 == 3 {
                subject.stir(step / 4).await;
            }
        }
    }

    fn sort(&mut self) -> Vec<Sort> {
        let fields = filter_fields(&self.model);
        let sort = (select(fields), any::<bool>()).prop_map(|(field, descending)| Sort { field, descending });
        generate(&mut self.runner, vec(sort, 0..4))
    }

    /// Documents that match a filter, in the order of their ids.
    fn matching(&self, filter: &Value) -> Vec<Document> {
        let live = self.author.live.values();
        live.filter(|document| naive_matches(filter, document, &self.model)).cloned().collect()
    }

    fn query(&self, filter: &Value) -> Query {
        let filter = Filter::parse(filter, &self.model, true).expect("a filter");
        Query { model: thing(), ..query(&self.author.app, filter.condition().clone()) }
    }
}

fn thing() -> ModelName {
    ModelName::parse("thing").expect("a name")
}

fn generate<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

pub async fn searches_find_what_filters_mean(subject: impl Subject) {
    for n in 0..MODELS {
        let mut case = Case::new(&subject, n).await;
        for step in 0..FILTERS {
            let filter = generate(&mut case.runner, filter(&case.model));
            let query = Query { count: true, ..case.query(&filter) };
            let found = case.author.documents.search(query.clone()).await.expect("found");
            let context = format!("model {n}, filter {filter}, condition {:?}", query.condition);
            for document in case.author.live.values() {
                let is_found = found.documents.contains(document);
                assert_eq!(is_found, query.condition.matches(document), "{context}\non {document:?}");
            }
            assert_eq!(found.documents, case.matching(&filter), "{context}");
            assert_eq!(found.total, Some(found.documents.len() as u64), "{context}");
            if step % 8 == 7 {
                subject.stir(step / 8).await;
            }
        }
    }
}

pub async fn searches_sort_and_page_as_documents_compare(subject: impl Subject) {
    for n in MODELS..2 * MODELS {
        let mut case = Case::new(&subject, n).await;
        for step in 0..FILTERS {
            let filter = generate(&mut case.runner, prop_oneof![Just(serde_json::json!({})), filter(&case.model)]);
            let (sort, limit) = (case.sort(), generate(&mut case.runner, 1_usize..8));
            let context = format!("model {n}, filter {filter}, limit {limit}, sort {sort:?}");
            let mut expected = case.matching(&filter);
            expected.sort_by(|left, right| compare(&sort, left, right));
            let mut query = Query { sort, limit, ..case.query(&filter) };
            let mut paged = Vec::new();
            loop {
                let found = case.author.documents.search(query.clone()).await.expect("found");
                assert!(found.documents.len() == limit || found.cursor.is_none(), "{context}");
                paged.extend(found.documents);
                query.cursor = found.cursor;
                if query.cursor.is_none() {
                    break;
                }
                if step % 8 == 7 {
                    subject.stir(paged.len()).await;
                }
            }
            let names = |documents: &[Document]| documents.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
            assert_eq!(names(&paged), names(&expected), "{context}");
        }
    }
}

/// The order of two documents, by their JSON.
fn compare(sort: &[Sort], left: &Document, right: &Document) -> Ordering {
    let mut ordering = Ordering::Equal;
    for Sort { field, descending } in sort {
        let (left, right) = (extreme(field, *descending, left), extreme(field, *descending, right));
        ordering = ordering.then_with(|| match (left, right) {
            (Some(left), Some(right)) if *descending => compare_values(&right, &left),
            (Some(left), Some(right)) => compare_values(&left, &right),
            (left, right) => left.is_none().cmp(&right.is_none()),
        });
    }
    ordering.then_with(|| left.id.cmp(&right.id))
}

/// What counts of a field: its value, or the element of an array that comes first in this direction.
fn extreme(field: &Field, descending: bool, document: &Document) -> Option<Value> {
    let document = serde_json::to_value(document).expect("json");
    let value = field.path.split('.').try_fold(&document, |value, name| value.get(name))?;
    let elements = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    if descending { elements.into_iter().max_by(compare_values) } else { elements.into_iter().min_by(compare_values) }
}

fn compare_values(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            left.as_f64().partial_cmp(&right.as_f64()).expect("comparable numbers")
        }
        // Dates are in their printed form, which compares as they do.
        (Value::String(left), Value::String(right)) => left.chars().cmp(right.chars()),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (left, right) => panic!("{left} and {right} do not compare"),
    }
}
