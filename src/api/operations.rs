//! What operators and their tools ask: health, readiness, version, metrics.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, Response, StatusCode, header},
};
use nexxus_storage::model::{Problem, problem::ProblemKind};
use serde_json::json;

use super::{Answer, Api, write::json_answer};
use crate::telemetry;

/// The process runs and answers.
pub(super) async fn healthy() -> Answer {
    Ok(json_answer(StatusCode::OK, &json!({ "status": "ok" })))
}

/// Everything that was accepted before the start is applied, and every part works, engines elsewhere among them. `disk` says whether there is room for writes:
/// reads and sockets are served without it, so it keeps nobody from being ready.
pub(super) async fn ready(State(api): State<Api>) -> Answer {
    let waiting_for = api.domain.readiness.waiting_for();
    let ailments = api.domain.backends.ailments().await;
    if !ailments.is_empty() {
        let detail = format!("not ready: {}", ailments.join(", "));
        return Err(Problem::new(ProblemKind::Unavailable, detail).with_retry_after(1).into());
    }
    if waiting_for.is_empty() {
        let disk = api.domain.backends.room();
        return Ok(json_answer(StatusCode::OK, &json!({ "status": "ready", "disk": disk })));
    }
    let detail = format!("not ready yet: waiting for {}", waiting_for.join(", "));
    Err(Problem::new(ProblemKind::Unavailable, detail).with_retry_after(1).into())
}

pub(super) async fn version() -> Answer {
    let version = json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") });
    Ok(json_answer(StatusCode::OK, &version))
}

/// In Prometheus' text format.
pub(super) async fn metrics(State(api): State<Api>) -> Response<Body> {
    telemetry::sample(&api.domain.backends).await;
    let mut response = Response::new(Body::from(telemetry::render()));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
