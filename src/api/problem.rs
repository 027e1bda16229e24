//! Refusals on their way out.

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use nexxus_storage::model::{FieldError, Problem, problem::ProblemKind};

use crate::http::problem_response;

/// What a handler answers.
pub type Answer<T = Response> = Result<T, Refusal>;

/// A problem that ends the handling of a request.
#[derive(Debug)]
pub struct Refusal(pub Box<Problem>);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<nexxus_storage::Error> for Refusal {
    fn from(error: nexxus_storage::Error) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem_response(&self.0)
    }
}

pub(super) fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::Malformed, detail)
}

/// Faults of a body, the first of them told in the sentence too.
pub(super) fn invalid(kind: ProblemKind, errors: Vec<FieldError>) -> Problem {
    let detail = match errors.first() {
        Some(first) if first.path.is_empty() => first.message.clone(),
        Some(first) => format!("{}: {}", first.path, first.message),
        None => kind.title().to_owned(),
    };
    Problem::new(kind, detail).with_errors(errors)
}

pub(super) async fn no_route(request: Request) -> Refusal {
    Problem::new(ProblemKind::NotFound, format!("there is no route {}", request.uri().path())).into()
}

pub(super) async fn no_method(request: Request) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(ProblemKind::MethodNotAllowed, format!("{method} is not allowed on {path}")).into()
}
