//! `/application`: making, showing and changing applications, with the admin token. A definition is checked here, and becomes an
//! entry of the application's change log: what was accepted before it is judged by the former one.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use nexxus_storage::{
    model::{AppId, Caller, FieldError, Offset, Problem, Rules, Schema, Timestamp, problem::ProblemKind},
    registry::records,
};
use serde_json::{Value, json};

use super::{
    Answer, Api,
    auth::{Admin, Asker, newest},
    body::Body,
    path::{Names, Parameters},
    write::{json_answer, list_answer, with_change},
};
use crate::{
    domain::{Application, Identified, form::Form, identity::ADMIN, users::check_detail_schema},
    messages::Intent,
};

/// Longest name, and longest description, in characters.
const NAME_LENGTH: usize = 200;
const DESCRIPTION_LENGTH: usize = 4_000;
/// Longest name of a user type, in characters.
const USER_TYPE_LENGTH: usize = 64;

pub(super) async fn create(State(api): State<Api>, _: Admin, body: Body) -> Answer {
    let definition = read(body.form()?, None)?;
    define(&api, definition, Step::Make).await
}

pub(super) async fn change(
    State(api): State<Api>,
    _: Admin,
    names: Names,
    mut parameters: Parameters,
    body: Body,
) -> Answer {
    let app: AppId = names.id("app")?;
    let forced = parameters.parsed("force")?.unwrap_or(false);
    parameters.finish()?;
    let definition = read(body.form()?, Some(app.clone()))?;
    newest(&api, &app).await?;
    define(&api, definition, Step::Change { forced }).await
}

/// Gone at once for clients; what belongs to it is removed after that.
pub(super) async fn delete(State(api): State<Api>, _: Admin, names: Names) -> Answer {
    let application = newest(&api, &names.id("app")?).await?;
    let definition = records::Application { deleted: true, ..application.record.clone() };
    define(&api, definition, Step::Delete).await
}

pub(super) async fn list(State(api): State<Api>, _: Admin) -> Answer {
    api.domain.catalog.refresh().await?;
    Ok(list_answer(api.domain.catalog.list().iter().map(|application| shown(&application.record)).collect()))
}

pub(super) async fn show(State(api): State<Api>, _: Admin, names: Names) -> Answer {
    let application = newest(&api, &names.id("app")?).await?;
    Ok(json_answer(StatusCode::OK, &shown_whole(&api, &application).await?))
}

#[derive(Clone, Copy)]
enum Step {
    Make,
    Change { forced: bool },
    Delete,
}

/// Hands a definition to the application's writer, and answers when it is in force.
async fn define(api: &Api, record: records::Application, step: Step) -> Answer {
    let app = record.id.clone();
    let definition = serde_json::to_value(&record)
        .map_err(|error| Problem::new(ProblemKind::InvalidDefinition, error.to_string()))?;
    let intent = Intent::Define {
        definition,
        forced: matches!(step, Step::Change { forced: true } | Step::Delete),
        new: matches!(step, Step::Make),
    };
    let (change, entry) = api.carry_out(&asker_of(record)?, intent).await?;
    let in_force = match entry {
        Some(_) => newest(api, &app).await.ok(),
        None => None,
    };
    let answer = match (step, in_force) {
        (Step::Make, Some(application)) => {
            let mut answer = json_answer(StatusCode::CREATED, &shown_whole(api, &application).await?);
            if let Ok(location) = axum::http::HeaderValue::try_from(format!("/application/{app}")) {
                answer.headers_mut().insert(axum::http::header::LOCATION, location);
            }
            answer
        }
        (Step::Change { .. }, Some(application)) => json_answer(StatusCode::OK, &shown_whole(api, &application).await?),
        _ => json_answer(StatusCode::ACCEPTED, &json!({ "id": app, "changeId": change })),
    };
    Ok(with_change(answer, change))
}

/// The admin, in an application that may be about to be made.
fn asker_of(record: records::Application) -> Result<Asker, Problem> {
    let app = record.id.clone();
    let caller = Caller { admin: true, ..Caller::default() };
    let identified = Identified { app, caller, login: None, expires_at: None };
    Ok(Asker { application: Arc::new(Application::compile(record)?), identified, trace: None })
}

/// Reads and checks a definition. `app`: the one that is changed.
fn read(mut form: Form, app: Option<AppId>) -> Result<records::Application, Problem> {
    let id = form.parsed::<AppId>("id");
    if let (Some(id), Some(app)) = (&id, &app)
        && id != app
    {
        form.fault::<()>("id", "not the application in the path");
    }
    let id = app.or(id).unwrap_or_else(AppId::generate);
    let name = bounded(&mut form, "name", NAME_LENGTH).unwrap_or_else(|| id.to_string());
    let description = bounded(&mut form, "description", DESCRIPTION_LENGTH);
    let (schema, rules) = read_models(&mut form);
    let auth_enabled = form.flag("authEnabled").unwrap_or(true);
    let allow_multiple_login = form.flag("allowMultipleLogin").unwrap_or(true);
    let user_types = read_user_types(&mut form);
    let user_detail_schema = read_user_detail_schema(&mut form);
    // What an application is shown with may come back with it.
    for shown in ["createdAt", "updatedAt", "indexing"] {
        form.value(shown);
    }
    form.finish(ProblemKind::InvalidDefinition)?;
    let now = Timestamp::now();
    Ok(records::Application {
        id,
        name,
        description,
        schema,
        rules,
        auth_enabled,
        allow_multiple_login,
        user_types,
        user_detail_schema,
        created_at: now,
        updated_at: now,
        offset: Offset::default(),
        deleted: false,
        purged: false,
    })
}

fn bounded(form: &mut Form, name: &str, most: usize) -> Option<String> {
    let text = form.text(name)?;
    if text.is_empty() || text.chars().count() > most {
        return form.fault(name, &format!("1 to {most} characters"));
    }
    Some(text)
}

fn read_models(form: &mut Form) -> (Value, Value) {
    let schema = form.value("schema");
    if schema.is_none() {
        form.fault::<()>("schema", "is missing");
    }
    let schema = schema.unwrap_or_else(|| json!({}));
    let rules = form.value("rules").unwrap_or(Value::Null);
    match Schema::parse(&schema) {
        Ok(parsed) => {
            if let Err(faults) = Rules::parse(&rules, &parsed) {
                form.faults(under("/rules", faults));
            }
        }
        Err(faults) => form.faults(under("/schema", faults)),
    }
    (schema, rules)
}

fn read_user_types(form: &mut Form) -> Option<Vec<String>> {
    let types = match form.value("userTypes")? {
        Value::Array(types) => types,
        _ => return form.fault("userTypes", "an array of strings"),
    };
    let mut read = Vec::with_capacity(types.len());
    for (index, user_type) in types.into_iter().enumerate() {
        let fault = match user_type {
            Value::String(text) if text == ADMIN => "only the admin token makes admins",
            Value::String(text) if (1..=USER_TYPE_LENGTH).contains(&text.chars().count()) => {
                read.push(text);
                continue;
            }
            _ => "a string of 1 to 64 characters",
        };
        form.faults([FieldError::new(format!("/userTypes/{index}"), fault)]);
    }
    Some(read)
}

fn read_user_detail_schema(form: &mut Form) -> Option<Value> {
    let schema = form.value("userDetailSchema")?;
    if let Err(faults) = check_detail_schema(&schema) {
        form.faults(under("/userDetailSchema", faults));
    }
    Some(schema)
}

fn under(place: &str, faults: Vec<FieldError>) -> impl Iterator<Item = FieldError> {
    faults.into_iter().map(move |fault| fault.under(place))
}

fn shown(record: &records::Application) -> Value {
    let mut shown = json!({
        "id": record.id,
        "name": record.name,
        "schema": record.schema,
        "rules": if record.rules.is_null() { json!({}) } else { record.rules.clone() },
        "authEnabled": record.auth_enabled,
        "allowMultipleLogin": record.allow_multiple_login,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
    });
    let members = [
        ("description", record.description.as_ref().map(|text| json!(text))),
        ("userTypes", record.user_types.as_ref().map(|types| json!(types))),
        ("userDetailSchema", record.user_detail_schema.clone()),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            shown[name] = value;
        }
    }
    shown
}

/// With how far fields are that are still being indexed: `indexing: { MODEL: { FIELD: share } }`.
async fn shown_whole(api: &Api, application: &Application) -> Result<Value, Problem> {
    let mut shown = shown(&application.record);
    for model in application.schema.models.keys() {
        let unfinished = api.domain.backends.documents.indexing(application.id(), model).await?;
        for (field, share) in unfinished {
            shown["indexing"][model.as_str()][field] = json!(share);
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_json(body: Value, app: Option<&str>) -> Result<records::Application, Vec<String>> {
        let app = app.map(|app| AppId::parse(app).expect("an id"));
        let form = Form::of(body).expect("an object");
        read(form, app).map_err(|problem| {
            assert_eq!((problem.status, problem.kind), (422, ProblemKind::InvalidDefinition));
            problem.errors.into_iter().map(|error| error.path).collect()
        })
    }

    #[test]
    fn every_fault_of_a_definition_has_its_place() {
        for (body, paths) in [
            (json!({}), vec!["/schema"]),
            (json!({ "schema": [] }), vec!["/schema"]),
            (json!({ "schema": {}, "id": "a b", "name": "", "nonsense": 1 }), vec!["/id", "/name", "/nonsense"]),
            (json!({ "schema": { "task": { "title": { "type": "text" } } } }), vec!["/schema/task/title/type"]),
            (json!({ "schema": { "task": {} }, "rules": { "note": {} } }), vec!["/rules/note"]),
            (json!({ "schema": { "task": {} }, "rules": { "task": { "read": "x" } } }), vec!["/rules/task/read"]),
            (json!({ "schema": {}, "userTypes": ["a", "admin", 5] }), vec!["/userTypes/1", "/userTypes/2"]),
            (json!({ "schema": {}, "userTypes": "a" }), vec!["/userTypes"]),
            (
                json!({ "schema": {}, "userDetailSchema": { "default": { "a": { "type": "x" } } } }),
                vec!["/userDetailSchema/default/a/type"],
            ),
            (json!({ "schema": {}, "authEnabled": "yes" }), vec!["/authEnabled"]),
        ] {
            assert_eq!(read_json(body.clone(), None).expect_err("refused"), paths, "{body}");
        }
        assert_eq!(read_json(json!({ "schema": {}, "id": "b" }), Some("a")), Err(vec!["/id".to_owned()]));
    }

    #[test]
    fn what_was_shown_can_be_sent_back() {
        let body = json!({
            "id": "a", "name": "A", "description": "words", "schema": { "task": { "title": { "type": "string" } } },
            "rules": { "task": { "read": "public" } }, "authEnabled": false, "allowMultipleLogin": false,
            "userTypes": ["editor"], "userDetailSchema": { "default": { "team": { "type": "string" } } },
        });
        let record = read_json(body.clone(), None).expect("a definition");
        let mut shown = shown(&record);
        let again = read_json(shown.clone(), Some("a")).expect("a definition");
        assert_eq!(again.schema, record.schema);
        let members = shown.as_object_mut().expect("an object");
        members.remove("createdAt");
        members.remove("updatedAt");
        assert_eq!(shown, body);
    }

    #[test]
    fn names_are_made_where_none_is_given() {
        let record = read_json(json!({ "schema": {} }), None).expect("a definition");
        assert_eq!(record.name, record.id.to_string());
        assert!(record.auth_enabled && record.allow_multiple_login);
    }
}
