//! The console: a page that comes with the binary and speaks the public API.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, header},
};
use nexxus_storage::model::{Problem, problem::ProblemKind};

use super::{Answer, path::Names};

const PAGE: &str = include_str!("../../web/console/index.html");

/// Name, content type, content.
const FILES: [(&str, &str, &str); 3] = [
    ("index.html", "text/html; charset=utf-8", PAGE),
    ("console.css", "text/css; charset=utf-8", include_str!("../../web/console/console.css")),
    ("console.js", "text/javascript; charset=utf-8", include_str!("../../web/console/console.js")),
];

/// The page loads what comes with it, speaks to this server, and nothing else; nobody frames it.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // It belongs to the running binary; a newer one brings its own.
    (header::CACHE_CONTROL, "no-cache"),
];

pub(super) async fn page() -> Response<Body> {
    shown(FILES[0].1, PAGE)
}

pub(super) async fn file(names: Names) -> Answer {
    let name = names.text("file");
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, content)) => Ok(shown(content_type, content)),
        None => Err(Problem::new(ProblemKind::NotFound, format!("the console has no file {name}")).into()),
    }
}

fn shown(content_type: &'static str, content: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(content));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
