//! Bodies: read whole, within their bounds, and as JSON once.

use std::time::Duration;

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use nexxus_storage::model::{FieldError, Problem, problem::ProblemKind};
use serde::de::DeserializeOwned;

use super::{Api, Refusal, problem::malformed};
use crate::domain::form::Form;

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is read of a body beyond its bound.
const THROWN_AWAY: usize = 4 * 1024 * 1024;

/// A request's body.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    /// In lowercase, without parameters; none where the client says none.
    media_type: Option<String>,
}

impl FromRequest<Api> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Refusal> {
        let most = api.domain.config.now().limits.body_bytes.bytes();
        let (parts, body) = request.into_parts();
        // Who asks beforehand is told before the body is sent.
        let is_asking = parts.headers.contains_key(header::EXPECT);
        if is_asking && said_length(&parts.headers).is_some_and(|length| length > most as u64) {
            return Err(too_large(most).into());
        }
        let media_type = media_type_of(&parts.headers);
        let bytes = match tokio::time::timeout(PATIENCE, read(body, most)).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => return Err(too_large(most).into()),
            Ok(Err(error)) => return Err(malformed(format!("the body cannot be read: {error}")).into()),
            Err(_) => return Err(malformed(format!("the body did not come within {} s", PATIENCE.as_secs())).into()),
        };
        Ok(Self { bytes, media_type })
    }
}

impl Body {
    /// As JSON. 415 when the client says that it is something else.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        match self.media_type.as_deref() {
            None | Some("application/json") => read_json(&self.bytes),
            Some(other) => {
                let detail = format!("the body is {other}, and only application/json is taken here");
                Err(Problem::new(ProblemKind::UnsupportedMediaType, detail))
            }
        }
    }

    /// As a JSON object, to be read member by member. An empty body is an empty object: what is missing is told by name.
    pub(super) fn form(&self) -> Result<Form, Problem> {
        if self.bytes.is_empty() { Ok(Form::default()) } else { Form::of(self.json()?) }
    }

    pub(super) fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or("application/json")
    }
}

/// Reads JSON. 400 with what is wrong, and where.
pub(super) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = match bytes {
            [] => "the body is empty, and JSON is expected".to_owned(),
            _ => format!("the body is not the JSON that is expected: {error}"),
        };
        malformed(detail).with_errors(vec![FieldError::new("", error.to_string())])
    })
}

fn said_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn media_type_of(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = said.split(';').next().unwrap_or(said).trim();
    Some(media_type.to_ascii_lowercase())
}

/// The whole body; none when it is longer than it may be. Then some more is read and thrown away: who is still sending when the
/// connection is closed sees a broken connection, and not the refusal.
async fn read(mut body: axum::body::Body, most: usize) -> Result<Option<Bytes>, axum::Error> {
    let (mut chunks, mut n_bytes) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame?.into_data() else { continue };
        n_bytes = n_bytes.saturating_add(chunk.len());
        if n_bytes <= most {
            chunks.push(chunk);
        } else if n_bytes - most > THROWN_AWAY {
            return Ok(None);
        } else {
            chunks.clear();
        }
    }
    if n_bytes > most {
        return Ok(None);
    }
    // Nearly always it comes in one piece.
    Ok(Some(if chunks.len() == 1 { chunks.remove(0) } else { chunks.concat().into() }))
}

fn too_large(most: usize) -> Problem {
    Problem::new(ProblemKind::TooLarge, format!("the body has more than {most} bytes"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for (text, said) in [
            ("", "the body is empty"),
            ("{", "EOF while parsing an object at line 1 column 1"),
            ("{\"a\":\n nope}", "line 2 column 3"),
            ("[1] 2", "trailing characters"),
            (&"[".repeat(200), "recursion limit exceeded"),
            ("{\"a\": 1e999}", "number out of range"),
        ] {
            let problem = read_json::<Value>(text.as_bytes()).expect_err(text);
            assert_eq!((problem.status, problem.errors.len()), (400, 1));
            assert!(problem.detail.contains(said), "{}", problem.detail);
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        for (n_bytes, expected) in [(0, Some(0)), (1, Some(1)), (10, Some(10)), (11, None), (6 << 20, None)] {
            let chunks = (0..n_bytes).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"x")));
            let chunks = futures_util::stream::iter(chunks);
            let read = read(axum::body::Body::from_stream(chunks), 10).await.expect("no error");
            assert_eq!(read.map(|bytes| bytes.len()), expected, "{n_bytes} bytes");
        }
    }

    #[test]
    fn media_types_lose_their_parameters() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type_of(&headers), None);
        headers.insert(header::CONTENT_TYPE, "Application/JSON ; charset=utf-8".parse().expect("a value"));
        assert_eq!(media_type_of(&headers).as_deref(), Some("application/json"));
    }
}
