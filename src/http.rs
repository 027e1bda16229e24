//! Problems as HTTP answers (its builder lands the rest).
use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use nexxus_storage::model::Problem;

pub fn problem_response(problem: &Problem) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(problem).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}
