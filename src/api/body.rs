//! Bodies: read whole, within their bounds, and as JSON once.

use std::time::Duration;

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use nexxus_storage::model::{FieldError, Problem, problem::ProblemKind};
use serde::de::DeserializeOwned;

use super::{Api, Refusal, problem::malformed};
use crate::domain::form::Form;

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request's body.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    /// In lowercase, without parameters; none where the client says none.
    media_type: Option<String>,
}

impl FromRequest<Api> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Refusal> {
        let most = api.domain.config.limits.body_bytes.bytes();
        let (parts, body) = request.into_parts();
        if said_length(&parts.headers).is_some_and(|length| length > most as u64) {
            return Err(too_large(most).into());
        }
        let media_type = media_type_of(&parts.headers);
        let bytes = match tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, most)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if is_too_long(&error) => return Err(too_large(most).into()),
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

fn is_too_long(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
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

    #[test]
    fn media_types_lose_their_parameters() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type_of(&headers), None);
        headers.insert(header::CONTENT_TYPE, "Application/JSON ; charset=utf-8".parse().expect("a value"));
        assert_eq!(media_type_of(&headers).as_deref(), Some("application/json"));
    }
}
