//! Reading documents under the caller's rules: by id, by query; hidden fields removed.

use std::{sync::Arc, time::Duration};

use nexxus_storage::{
    Error, ErrorKind,
    documents::{Query, Sort, Stored},
    model::{
        Caller, ChangeId, Document, DocumentId, FieldError, Filter, Model, ModelName, Offset, Problem,
        filter::Condition, problem::ProblemKind, rules::Action,
    },
};
use serde_json::{Map, Value, json};

use super::{Application, Domain, form::Form, problem::not_found};

/// Items of an answer that asks for no other number.
pub(super) const USUAL_LIMIT: usize = 50;
/// Most items of an answer.
const MOST_ITEMS: usize = 1_000;
/// Most fields of a sort.
const MOST_SORTS: usize = 8;
/// Most fields that can be asked for.
const MOST_FIELDS: usize = 100;
/// How long a read waits for the change that it has to show.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a query gave, ready to be shown to its caller.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Items {
    /// The documents, in the order that was asked for.
    pub items: Vec<Document>,
    /// Where the next page begins; none at the end.
    pub cursor: Option<String>,
    /// How many match in all, where that was asked for.
    pub total: Option<u64>,
}

impl Items {
    /// `{ items, cursor?, total? }`
    pub fn to_json(&self) -> Value {
        let mut shown = json!({ "items": self.items });
        if let Some(cursor) = &self.cursor {
            shown["cursor"] = json!(cursor);
        }
        if let Some(total) = self.total {
            shown["total"] = json!(total);
        }
        shown
    }
}

/// What a query asks for, read but not yet held against the schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Search {
    /// Which documents; none: all.
    pub filter: Option<Value>,
    /// Fields to sort by, a `-` before those that descend.
    pub sort: Vec<String>,
    /// How many at most; none: the usual number.
    pub limit: Option<usize>,
    /// The `cursor` of the page before.
    pub cursor: Option<String>,
    /// The fields of a document's own that are asked for; none: all.
    pub fields: Option<Vec<String>>,
    /// Whether to count how many match in all.
    pub count: bool,
    /// The answer reflects at least this offset (`nxx-after`).
    pub at_least: Option<Offset>,
}

impl Search {
    /// The query of `GET /model/:type`, as the pairs of its query string. 400 with the place of each fault.
    pub fn from_parameters(parameters: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problem> {
        let (mut members, mut faults) = (Map::new(), Vec::new());
        for (name, text) in parameters {
            let value = match name.as_str() {
                "filter" => serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}")),
                "limit" => text.parse().map(|limit: u64| json!(limit)).map_err(|_| "a whole number".to_owned()),
                "count" => text.parse().map(Value::Bool).map_err(|_| "true or false".to_owned()),
                _ => Ok(Value::String(text)),
            };
            let value = value.unwrap_or_else(|message| {
                faults.push(FieldError::new(format!("/{name}"), message));
                Value::Null
            });
            if members.contains_key(&name) {
                faults.push(FieldError::new(format!("/{name}"), "comes twice"));
            }
            members.insert(name, value);
        }
        let mut form = Form::of(Value::Object(members))?;
        form.faults(faults);
        Self::read(form)
    }

    /// The body of `POST /model/:type/search`.
    pub fn from_body(body: Value) -> Result<Self, Problem> {
        Self::read(Form::of(body)?)
    }

    fn read(mut form: Form) -> Result<Self, Problem> {
        let search = Self {
            filter: form.value("filter"),
            sort: form.list("sort").unwrap_or_default(),
            limit: limit_of(&mut form),
            cursor: form.text("cursor"),
            fields: form.list("fields"),
            count: form.flag("count").unwrap_or_default(),
            at_least: None,
        };
        if form.value("q").is_some() {
            form.fault::<()>("q", "full text search is not built yet");
        }
        form.finish(ProblemKind::Malformed)?;
        Ok(search)
    }
}

/// The member `limit` of a request: how many items are asked for.
pub(super) fn limit_of(form: &mut Form) -> Option<usize> {
    match form.integer("limit")? {
        limit if limit <= MOST_ITEMS as u64 => Some(limit as usize),
        _ => form.fault("limit", &format!("at most {MOST_ITEMS}")),
    }
}

impl Application {
    /// 404 when there is none of this name.
    pub fn model(&self, name: &ModelName) -> Result<&Arc<Model>, Problem> {
        self.schema.model(name.as_str()).ok_or_else(|| not_found("model", name))
    }

    /// What a document has to fulfil for this caller to do this; 401 when that is nothing and the caller has not signed in.
    pub fn condition(&self, model: &ModelName, action: Action, caller: &Caller) -> Result<Condition, Problem> {
        let condition = self.rules.condition(model, action, caller);
        let is_anonymous = caller.user.is_none() && !caller.admin;
        if is_anonymous && condition == Condition::None {
            return Err(Problem::new(
                ProblemKind::Unauthorized,
                format!("{model} is for signed-in users: send a token"),
            ));
        }
        Ok(condition)
    }
}

impl Domain {
    /// One document, as this caller may see it; none when it is not there or not for this caller.
    pub async fn read_document(
        &self,
        app: &Application,
        caller: &Caller,
        model: &ModelName,
        id: &DocumentId,
    ) -> Result<Option<Document>, Problem> {
        let definition = app.model(model)?;
        let readable = app.condition(model, Action::Read, caller)?;
        let stored = self.backends.documents.get(app.id(), model, std::slice::from_ref(id)).await?;
        let Some(Some(Stored::Live(mut document))) = stored.into_iter().next() else { return Ok(None) };
        if !readable.matches(&document) {
            return Ok(None);
        }
        show(&mut document, definition, caller);
        Ok(Some(document))
    }

    /// A query with the read rule of this caller added to its condition.
    pub async fn search(
        &self,
        app: &Application,
        caller: &Caller,
        model: &ModelName,
        search: Search,
    ) -> Result<Items, Problem> {
        let definition = app.model(model)?;
        let readable = app.condition(model, Action::Read, caller)?;
        let condition = match &search.filter {
            Some(filter) => parse_filter(filter, definition, caller)?.condition().clone().and(readable),
            None => readable,
        };
        let fields = match &search.fields {
            Some(fields) => Some(parse_fields(fields, definition, caller)?),
            None => None,
        };
        let query = Query {
            app: app.id().clone(),
            model: model.clone(),
            condition,
            sort: parse_sort(&search.sort, definition, caller)?,
            limit: search.limit.unwrap_or(USUAL_LIMIT),
            cursor: search.cursor,
            count: search.count,
            text: None,
            at_least: search.at_least,
        };
        let mut items = self.find(definition, caller, query).await?;
        if let Some(fields) = fields {
            items.items.iter_mut().for_each(|document| document.fields = only(&document.fields, &fields));
        }
        Ok(items)
    }

    /// Asks the store, and shows what it has as this caller may see it.
    pub(super) async fn find(&self, definition: &Model, caller: &Caller, query: Query) -> Result<Items, Problem> {
        let count = query.count;
        if query.condition == Condition::None || query.limit == 0 && !count {
            return Ok(Items { total: count.then_some(0), ..Items::default() });
        }
        let (named, documents) = (query.clone(), &self.backends.documents);
        let found = match documents.search(query).await {
            Ok(found) => found,
            Err(error) => return Err(self.why_not_found(named, error).await),
        };
        let mut items = found.documents;
        items.iter_mut().for_each(|document| show(document, definition, caller));
        Ok(Items { items, cursor: found.cursor, total: found.total })
    }

    async fn why_not_found(&self, query: Query, error: Error) -> Problem {
        match error.kind {
            ErrorKind::Invalid if query.cursor.is_some() => {
                let fault = FieldError::new("/cursor", "not a cursor of this query");
                Problem::new(ProblemKind::Malformed, "the cursor is not of this query").with_errors(vec![fault])
            }
            ErrorKind::Unavailable => {
                let indexing = self.backends.documents.indexing(&query.app, &query.model).await.unwrap_or_default();
                let mut named = indexing.iter().filter(|(path, _)| names(&query, path)).peekable();
                match named.peek() {
                    Some((path, share)) => Problem::new(
                        ProblemKind::FieldIndexing,
                        format!("{path} is still being indexed, {:.0} % are done", share * 100.0),
                    )
                    .with_retry_after(2),
                    None => error.into(),
                }
            }
            _ => error.into(),
        }
    }

    /// Waits (5 s, then 504) until a change (a change id or an offset) is applied; gives its offset. For `nxx-after`.
    pub async fn wait_for(&self, app: &Application, after: &str) -> Result<Offset, Problem> {
        let log = &self.backends.change_log;
        let waiting = async {
            if let Ok(change) = after.parse::<ChangeId>() {
                return Ok(log.wait_change(app.id(), change).await?.entry.offset);
            }
            let invalid = |why: &str| Problem::new(ProblemKind::InvalidOffset, format!("nxx-after: {why}"));
            let offset: Offset = after.parse().map_err(|_| invalid("neither a change id nor an offset"))?;
            let marks = log.marks(app.id()).await?;
            if offset > marks.head || offset.epoch != marks.head.epoch {
                return Err(invalid("not an offset of this application's log"));
            }
            log.wait_applied(app.id(), offset).await?;
            Ok(offset)
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| Err(too_late(after)))
    }
}

fn too_late(change: &str) -> Problem {
    let detail = format!("the change {change} was not applied within {} s", PATIENCE.as_secs());
    Problem::new(ProblemKind::Timeout, detail)
}

/// Takes away what this caller may not see.
pub(super) fn show(document: &mut Document, definition: &Model, caller: &Caller) {
    if !caller.admin {
        definition.hide(&mut document.fields);
    }
}

/// A filter of a request (its member `filter`); 400 with the place of the fault.
pub(super) fn parse_filter(filter: &Value, definition: &Model, caller: &Caller) -> Result<Filter, Problem> {
    Filter::parse(filter, definition, caller.admin).map_err(|fault| {
        let fault = fault.under("/filter");
        let detail = format!("{}: {}", fault.path, fault.message);
        Problem::new(ProblemKind::InvalidFilter, detail).with_errors(vec![fault])
    })
}

/// Fields to sort by: universal or filterable ones that hold one value.
pub(super) fn parse_sort(sort: &[String], definition: &Model, caller: &Caller) -> Result<Vec<Sort>, Problem> {
    let refuse = |message: String| {
        let fault = FieldError::new("/sort", message.as_str());
        Err(Problem::new(ProblemKind::Malformed, format!("sort: {message}")).with_errors(vec![fault]))
    };
    if sort.len() > MOST_SORTS {
        return refuse(format!("at most {MOST_SORTS} fields"));
    }
    let mut sorts = Vec::with_capacity(sort.len());
    for text in sort {
        let (path, descending) = match text.strip_prefix('-') {
            Some(path) => (path, true),
            None => (text.as_str(), false),
        };
        match definition.filter_field(path, caller.admin) {
            Ok(field) if field.is_array => return refuse(format!("{path}: an array has no order")),
            Ok(field) => sorts.push(Sort { field, descending }),
            Err(error) => return refuse(format!("{path}: {error}")),
        }
    }
    Ok(sorts)
}

/// The paths of the fields that are asked for, those within another one left out. Universal fields always come.
fn parse_fields(fields: &[String], definition: &Model, caller: &Caller) -> Result<Vec<Vec<String>>, Problem> {
    let refuse = |message: String| {
        let fault = FieldError::new("/fields", message.as_str());
        Err(Problem::new(ProblemKind::Malformed, format!("fields: {message}")).with_errors(vec![fault]))
    };
    if fields.len() > MOST_FIELDS {
        return refuse(format!("at most {MOST_FIELDS} fields"));
    }
    let mut paths: Vec<Vec<String>> = Vec::with_capacity(fields.len());
    for field in fields {
        if nexxus_storage::model::schema::UNIVERSAL_FIELDS.contains(&field.as_str()) {
            continue;
        }
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let is_known = definition.field(&names).is_some() && (caller.admin || !definition.is_hidden(&path));
        if !is_known {
            return refuse(format!("{field}: unknown field"));
        }
        paths.push(path);
    }
    paths.sort();
    paths.dedup_by(|later, earlier| later.starts_with(earlier));
    Ok(paths)
}

/// The values at these paths.
fn only(fields: &Map<String, Value>, paths: &[Vec<String>]) -> Map<String, Value> {
    let mut kept = Map::new();
    for path in paths {
        let Some((first, rest)) = path.split_first() else { continue };
        let value = rest.iter().try_fold(fields.get(first), |value, name| Some(value?.as_object()?.get(name)));
        if let Some(Some(value)) = value {
            put(&mut kept, path, value.clone());
        }
    }
    kept
}

fn put(fields: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => drop(fields.insert(name.clone(), value)),
        [name, rest @ ..] => {
            let inner = fields.entry(name.as_str()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Whether a query tests or sorts by the field at this path.
fn names(query: &Query, path: &str) -> bool {
    let mut named = query.sort.iter().any(|sort| *sort.field.path == *path);
    query.condition.each_field(&mut |field| named |= *field.path == *path);
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model::parse(&json!({
            "title": { "type": "string" },
            "priority": { "type": "number", "filterable": true },
            "tags": { "type": "array", "arrayType": "string", "filterable": true },
            "secret": { "type": "string", "hidden": true, "filterable": true },
            "meta": { "type": "object", "properties": {
                "due": { "type": "date", "filterable": true }, "note": { "type": "string" }, "gone": { "type": "string" },
            }},
        }))
        .expect("a model")
    }

    fn parameters(pairs: &[(&str, &str)]) -> Result<Search, Problem> {
        Search::from_parameters(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn a_query_is_the_same_in_the_address_and_in_a_body() {
        let in_address = parameters(&[
            ("filter", r#"{"priority":{"$gte":3}}"#),
            ("sort", "-priority, createdAt"),
            ("limit", "10"),
            ("cursor", "abc"),
            ("fields", "title,meta.due"),
            ("count", "true"),
        ])
        .expect("a query");
        let in_body = Search::from_body(json!({
            "filter": { "priority": { "$gte": 3 } }, "sort": ["-priority", "createdAt"], "limit": 10, "cursor": "abc",
            "fields": ["title", "meta.due"], "count": true,
        }));
        assert_eq!(Ok(in_address), in_body);
        assert_eq!(parameters(&[]), Ok(Search::default()));
    }

    #[test]
    fn bad_queries_say_where() {
        for (name, value) in [
            ("filter", "{"),
            ("limit", "-1"),
            ("limit", "1001"),
            ("limit", "ten"),
            ("count", "maybe"),
            ("q", "words"),
            ("filtre", "{}"),
        ] {
            let problem = parameters(&[(name, value)]).expect_err(value);
            assert_eq!((problem.status, problem.kind), (400, ProblemKind::Malformed), "{name}");
            assert_eq!(problem.errors[0].path, format!("/{name}"));
        }
        assert_eq!(parameters(&[("limit", "1"), ("limit", "2")]).expect_err("twice").errors[0].path, "/limit");
        for body in [json!({ "limit": "x" }), json!({ "sort": 5 }), json!({ "cursor": [] }), json!([]), json!("x")] {
            assert_eq!(Search::from_body(body.clone()).expect_err("refused").status, 400, "{body}");
        }
    }

    #[test]
    fn sorts_name_fields_that_have_an_order() {
        let (model, user) = (model(), Caller::default());
        let admin = Caller { admin: true, ..Caller::default() };
        let sort = |text: &str, caller: &Caller| parse_sort(&super::super::form::parts(text), &model, caller);
        let sorted = sort("-priority,createdAt,meta.due", &user).expect("a sort");
        assert!(sorted[0].descending && !sorted[1].descending && *sorted[2].field.path == *"meta.due");
        for bad in ["title", "tags", "nothing", "meta", "secret", "-", "--priority"] {
            assert_eq!(sort(bad, &user).expect_err(bad).errors[0].path, "/sort");
        }
        assert!(sort("secret", &admin).is_ok());
        assert!(sort("id,id,id,id,id,id,id,id,id", &admin).is_err());
    }

    #[test]
    fn only_the_fields_that_are_asked_for_come() {
        let (model, caller) = (model(), Caller::default());
        let document = json!({ "title": "x", "priority": 1, "meta": { "due": "d", "note": "n" } });
        let fields = document.as_object().expect("an object");
        for (asked, kept) in [
            ("title", json!({ "title": "x" })),
            ("meta.note,title", json!({ "title": "x", "meta": { "note": "n" } })),
            ("meta.due,meta,meta.note", json!({ "meta": { "due": "d", "note": "n" } })),
            ("tags,id,version", json!({})),
            ("meta.gone,priority", json!({ "priority": 1 })),
        ] {
            let paths = parse_fields(&super::super::form::parts(asked), &model, &caller).expect(asked);
            assert_eq!(Value::Object(only(fields, &paths)), kept, "{asked}");
        }
        for bad in ["nothing", "secret", "title.x", "meta."] {
            let problem = parse_fields(&[bad.to_owned()], &model, &caller).expect_err(bad);
            assert_eq!(problem.errors[0].path, "/fields");
        }
    }
}
