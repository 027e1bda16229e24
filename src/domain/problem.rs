//! Refusals that many say in the same words.

use std::fmt::Display;

use nexxus_storage::model::{Problem, problem::ProblemKind};

/// 404: there is no such thing of this id.
pub fn not_found(what: &str, id: &impl Display) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {what} {id}"))
}
