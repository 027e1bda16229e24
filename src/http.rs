//! HTTP as every listener speaks it: connections, their bounds, their end, and problems as answers. What is served is a router;
//! this file knows no routes.

#![warn(missing_docs)]

mod taken;

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderValue, Response, StatusCode, header},
    middleware::{self, Next},
};
use futures_util::FutureExt;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nexxus_storage::model::{Problem, problem::ProblemKind};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, error, warn};

pub(crate) use self::taken::Counted;
pub use self::taken::Taken;
use crate::service::{Failure, Stop};

/// The header that names a change: on the answer to every write.
pub const CHANGE_ID: &str = "nxx-change-id";

/// How long a connection may take to send the head of its next request; also how long an idle one is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Most bytes of a request's head, and of what is read ahead of a connection.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// The pause after a failed accept: out of file descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a router until told to stop; then takes no more connections, lets requests in flight end, and returns.
pub async fn serve(listener: TcpListener, router: Router, stop: Stop) -> Result<(), Failure> {
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
    let taken = Taken::default();
    let stream = Counted::new(stream, taken.clone());
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(taken.clone());
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_AHEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
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
    let began = Instant::now();
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        // The panic hook has told where.
        error!(route, "a request panicked");
        problem_response(&Problem::new(ProblemKind::Internal, "the request could not be carried out"))
    });
    let status = response.status();
    metrics::histogram!("nexxus_http_duration_seconds", "route" => route.to_owned()).record(began.elapsed());
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    /// A server on a port of its own, and the way to stop it.
    async fn started(router: Router) -> (std::net::SocketAddr, Stop, tokio::task::JoinHandle<Result<(), Failure>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = Stop::new();
        let serving = tokio::spawn(serve(listener, router, stop.clone()));
        (address, stop, serving)
    }

    async fn exchange(stream: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = vec![0; 4096];
        let n_read = stream.read(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer[..n_read]).into_owned()
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_request_only() {
        async fn panics() -> &'static str {
            panic!("on purpose")
        }
        let router = Router::new().route("/panics", get(panics)).route("/works", get(|| async { "works" }));
        let (address, stop, serving) = started(router).await;
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let answer = exchange(&mut stream, "/panics").await;
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("application/problem+json"), "{answer}");
        assert!(exchange(&mut stream, "/works").await.ends_with("works"), "the connection goes on");
        stop.cancel();
        serving.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test]
    async fn a_stop_lets_requests_in_flight_end() {
        let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (arriving, going_on) = (arrived.clone(), go_on.clone());
        let slow = move || {
            let (arriving, going_on) = (arriving.clone(), going_on.clone());
            async move {
                arriving.notify_one();
                going_on.notified().await;
                "finished"
            }
        };
        let (address, stop, serving) = started(Router::new().route("/slow", get(slow))).await;
        let _idle = TcpStream::connect(address).await.expect("a connection");
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let answer = tokio::spawn(async move { exchange(&mut stream, "/slow").await });
        arrived.notified().await;
        stop.cancel();
        go_on.notify_one();
        assert!(answer.await.expect("an answer").ends_with("finished"));
        serving.await.expect("no panic").expect("a clean end");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[test]
    fn a_problem_says_in_headers_what_it_says() {
        let change = nexxus_storage::model::ChangeId::generate();
        let problem = Problem::new(ProblemKind::Unauthorized, "x").with_retry_after(7).with_change_id(change);
        let response = problem_response(&problem);
        assert_eq!(response.status(), 401);
        let header = |name: &str| response.headers()[name].to_str().unwrap_or_default().to_owned();
        assert_eq!(header("content-type"), "application/problem+json");
        assert_eq!((header("retry-after"), header("www-authenticate")), ("7".to_owned(), "Bearer".to_owned()));
        assert_eq!(header(CHANGE_ID), change.to_string());
    }
}
