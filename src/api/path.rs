//! The names in a path and a query string, with refusals that say which one is wrong.

use std::{fmt::Display, str::FromStr};

use axum::{
    extract::{FromRequestParts, Query, RawPathParams},
    http::request::Parts,
};
use nexxus_storage::model::Problem;

use super::{Refusal, problem::malformed};

/// The names in a request's path.
pub(super) struct Names(RawPathParams);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match RawPathParams::from_request_parts(parts, state).await {
            Ok(names) => Ok(Self(names)),
            Err(rejection) => Err(malformed(format!("the path cannot be read: {rejection}")).into()),
        }
    }
}

impl Names {
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text)
    }

    /// An id. What is none is malformed: in a path there can be nothing behind it.
    pub(super) fn id<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Problem> {
        let text = self.text(name);
        text.parse().map_err(|error| malformed(format!("{name} `{text}` in the path: {error}")))
    }
}

/// The parameters of a query string. Those that nobody asks for are refused: a misspelt one would silently change what is answered.
pub(super) struct Parameters(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(rejection) => Err(malformed(format!("the query string cannot be read: {rejection}")).into()),
        }
    }
}

impl Parameters {
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(place).1)
    }

    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match text.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) => Err(malformed(format!("{name}={text}: {error}"))),
        }
    }

    /// How many items a list may have, bounded.
    pub(super) fn limit(&mut self, usual: usize, most: usize) -> Result<usize, Problem> {
        match self.parsed("limit")? {
            None => Ok(usual),
            Some(limit) if (1..=most).contains(&limit) => Ok(limit),
            Some(limit) => Err(malformed(format!("limit={limit}: 1 to {most} are allowed"))),
        }
    }

    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => Err(malformed(format!("there is no parameter `{name}` here"))),
            None => Ok(()),
        }
    }
}
