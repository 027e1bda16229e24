//! HTTP as every listener speaks it: connections, their bounds, their end, and problems as answers. What is served is a router;
//! this file knows no routes.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderValue, Response, StatusCode, header},
    middleware::{self, Next},
};
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nexxus_storage::model::{Problem, problem::ProblemKind};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::{
    config::Config,
    service::{Failure, Stop},
};

/// The header that names a change: on the answer to every write.
pub const CHANGE_ID: &str = "nxx-change-id";

/// How long a connection may take to send the head of its next request; also how long an idle one is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Most bytes of a request's head, and of what is read ahead of a connection.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// The pause after a failed accept: out of file descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a router until told to stop; then takes no more connections, lets requests in flight end, and returns.
pub async fn serve(listener: TcpListener, router: Router, _config: Arc<Config>, stop: Stop) -> Result<(), Failure> {
    let router = router.layer(middleware::from_fn(observe));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(converse(stream, router.clone(), stop.clone()));
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

/// One connection, from its first request to its end.
async fn converse(stream: TcpStream, router: Router, stop: Stop) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_AHEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "a connection ended early");
    }
}

/// Counts requests by route and status, and turns a panic into a 500: it costs its own request and nothing else.
async fn observe(request: Request, next: Next) -> Response<Body> {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        // The panic hook has told where.
        error!(route, "a request panicked");
        problem_response(&Problem::new(ProblemKind::Internal, "the request could not be carried out"))
    });
    let status = response.status();
    metrics::counter!("nexxus_http_requests_total", "route" => route.to_owned(), "status" => status.as_str().to_owned())
        .increment(1);
    response
}

/// A problem as an answer: RFC 9457, with what it says in headers too.
pub fn problem_response(problem: &Problem) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(problem).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.kind == ProblemKind::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(change) = problem.change_id.and_then(|change| HeaderValue::from_str(&change.to_string()).ok()) {
        headers.insert(CHANGE_ID, change);
    }
    response
}
