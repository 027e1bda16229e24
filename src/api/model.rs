//! `/model/…`: documents.

use axum::{
    body::Body as ResponseBody,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use nexxus_storage::model::{DocumentId, PatchSet, Problem, change::Subject, problem::ProblemKind};
use serde_json::{Map, Value};

use super::{
    Answer, Api,
    auth::Asker,
    body::{Body, read_json},
    path::{Names, Parameters},
    problem::invalid,
    write::{accepted, etag_of, expected, json_answer},
};
use crate::domain::read::Search;

pub(super) async fn create(State(api): State<Api>, mut asker: Asker, names: Names, body: Body) -> Answer {
    let (name, model) = asker.model(&api, &names).await?;
    let fields: Map<String, Value> = body.json()?;
    let (id, change) = api.create(&asker, name.clone(), &model, fields).await?;
    accepted(&name, &id, change)
}

pub(super) async fn show(State(api): State<Api>, mut asker: Asker, names: Names, headers: HeaderMap) -> Answer {
    let (name, _) = asker.model(&api, &names).await?;
    let id: DocumentId = names.id("id")?;
    asker.wait_for_after(&api, &headers).await?;
    let Some(document) = api.domain.read_document(&asker.application, asker.caller(), &name, &id).await? else {
        return Err(Problem::new(ProblemKind::NotFound, format!("there is no {name} {id}")).into());
    };
    let etag = etag_of(document.version, document.created_at);
    let is_known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let body = if is_known { Vec::new() } else { serde_json::to_vec(&document).unwrap_or_default() };
    let mut response = Response::new(ResponseBody::from(body));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}

pub(super) async fn patch(
    State(api): State<Api>,
    mut asker: Asker,
    names: Names,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (model, _) = asker.model(&api, &names).await?;
    let id: DocumentId = names.id("id")?;
    let expected = expected(&headers)?;
    let patch = read_patch(&body)?;
    let subject = Subject { model: model.clone(), id: id.clone() };
    let change = api.patch(&mut asker, subject, patch, expected).await?;
    accepted(&model, &id, change)
}

fn read_patch(body: &Body) -> Result<PatchSet, Problem> {
    let media_type = body.media_type();
    let unsupported = || {
        let detail = format!(
            "a patch is application/json (Nexxus patches), application/json-patch+json or application/merge-patch+json, \
             not {media_type}"
        );
        Problem::new(ProblemKind::UnsupportedMediaType, detail)
    };
    let read = read_json::<Value>(&body.bytes);
    // What is no patch by its type need not be JSON either.
    let parsed = PatchSet::parse(media_type, read.as_ref().unwrap_or(&Value::Null)).ok_or_else(unsupported)?;
    read?;
    parsed.map_err(|errors| invalid(ProblemKind::InvalidPatch, errors))
}

pub(super) async fn delete(State(api): State<Api>, mut asker: Asker, names: Names, headers: HeaderMap) -> Answer {
    let (model, _) = asker.model(&api, &names).await?;
    let id: DocumentId = names.id("id")?;
    let expected = expected(&headers)?;
    let subject = Subject { model: model.clone(), id: id.clone() };
    let change = api.delete(&mut asker, subject, expected).await?;
    accepted(&model, &id, change)
}

pub(super) async fn query(
    State(api): State<Api>,
    asker: Asker,
    names: Names,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Answer {
    find(api, asker, names, Search::from_parameters(parameters)?, &headers).await
}

pub(super) async fn search(
    State(api): State<Api>,
    asker: Asker,
    names: Names,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let asked = if body.bytes.is_empty() { Value::Object(Map::new()) } else { body.json()? };
    find(api, asker, names, Search::from_body(asked)?, &headers).await
}

async fn find(api: Api, mut asker: Asker, names: Names, search: Search, headers: &HeaderMap) -> Answer {
    let (name, _) = asker.model(&api, &names).await?;
    let at_least = asker.wait_for_after(&api, headers).await?;
    let items = api.domain.search(&asker.application, asker.caller(), &name, Search { at_least, ..search }).await?;
    Ok(json_answer(StatusCode::OK, &items.to_json()))
}
