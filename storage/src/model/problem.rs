//! What is told to whoever asked for something that cannot be done: RFC 9457 `application/problem+json`.

use serde::{Deserialize, Serialize};

use super::ChangeId;

/// One fault of an input: where (a JSON Pointer into the request body, RFC 6901) and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    pub path: String,
    pub message: String,
}

impl FieldError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The same fault of something that stands at `prefix` in a larger input.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        Self { path: format!("{prefix}{}", self.path), message: self.message }
    }
}

/// A refusal. `kind` is the stable slug that clients may switch on, the same on HTTP and on the sockets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    pub title: String,
    pub status: u16,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Which operation of a batch, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<usize>,
    #[serde(rename = "changeId", default, skip_serializing_if = "Option::is_none")]
    pub change_id: Option<ChangeId>,
    /// Seconds after which to try again; the HTTP layer sends it as `Retry-After` too.
    #[serde(rename = "retryAfter", default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

macro_rules! problem_kinds {
    ($($name:ident = $slug:literal, $status:literal, $title:literal;)*) => {
        /// Every problem there is: slug, status and title are part of the interface.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ProblemKind {
            $(#[serde(rename = $slug)] $name,)*
        }

        impl ProblemKind {
            pub const ALL: &[ProblemKind] = &[$(ProblemKind::$name),*];

            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

problem_kinds! {
    Malformed = "malformed", 400, "The request cannot be read";
    InvalidFilter = "invalid-filter", 400, "The filter cannot be used";
    InvalidOffset = "invalid-offset", 400, "Not an offset of this application";
    InvalidPatch = "invalid-patch", 400, "The patch cannot be read";
    Unauthorized = "unauthorized", 401, "A valid token is needed";
    Forbidden = "forbidden", 403, "Not allowed";
    NotFound = "not-found", 404, "There is no such thing";
    MethodNotAllowed = "method-not-allowed", 405, "The method is not allowed here";
    Exists = "exists", 409, "It exists already";
    Conflict = "conflict", 409, "It conflicts with what is stored";
    PatchConflict = "patch-conflict", 409, "The patch has no target in the document";
    Gone = "gone", 410, "The history no longer reaches back that far";
    PreconditionFailed = "precondition-failed", 412, "The precondition does not hold";
    TooLarge = "too-large", 413, "Too large";
    UnsupportedMediaType = "unsupported-media-type", 415, "The content type is not supported";
    InvalidDocument = "invalid-document", 422, "It does not fit the schema";
    InvalidDefinition = "invalid-definition", 422, "The definition is not valid";
    TooManyRequests = "too-many-requests", 429, "Too many requests";
    Internal = "internal", 500, "Something went wrong here";
    Unavailable = "unavailable", 503, "Not available now";
    FieldIndexing = "field_indexing", 503, "The field is still being indexed";
    OutcomeUnknown = "outcome-unknown", 503, "The change may still take effect";
    Timeout = "timeout", 504, "It took too long";
    DiskFull = "disk-full", 507, "The disk is full";
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            errors: Vec::new(),
            operation: None,
            change_id: None,
            retry_after: None,
        }
    }

    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn with_change_id(mut self, change_id: ChangeId) -> Self {
        self.change_id = Some(change_id);
        self
    }
}
