//! By key: in one request with the question whether the application is still the one that is known.

use std::collections::HashMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    Inner,
    applications::{Confirmed, Place},
    client::Body,
    stored::{HELD, Held},
};
use crate::{
    Error, ErrorKind, Result,
    documents::Stored,
    model::{AppId, DocumentId, ModelName},
};

/// Documents that are asked for at once.
const AT_ONCE: usize = 500;
const TURNS: usize = 5;

#[derive(Deserialize)]
struct Answers {
    docs: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    found: bool,
    #[serde(flatten)]
    place: Option<Place>,
    #[serde(rename = "_source")]
    source: Option<Held>,
    error: Option<super::client::Reason>,
}

impl Inner {
    pub(super) async fn get(&self, app: &AppId, model: &ModelName, ids: &[DocumentId]) -> Result<Vec<Option<Stored>>> {
        let mut found = HashMap::new();
        let mut distinct: Vec<&DocumentId> = ids.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut waiting: Vec<&[&DocumentId]> = distinct.chunks(AT_ONCE).collect();
        while let Some(part) = waiting.pop() {
            match self.get_part(app, model, part).await? {
                Some(stored) => found.extend(part.iter().zip(stored)),
                // Too large for one answer.
                None => waiting.extend(part.chunks(part.len().div_ceil(2))),
            }
        }
        Ok(ids.iter().map(|id| found.get(&id).cloned().flatten()).collect())
    }

    /// None when it does not fit into an answer.
    async fn get_part(
        &self,
        app: &AppId,
        model: &ModelName,
        ids: &[&DocumentId],
    ) -> Result<Option<Vec<Option<Stored>>>> {
        let mut known = self.applications.known(app).await?;
        for _ in 0..TURNS {
            let record = json!({ "_index": self.applications.index(), "_id": app, "_source": false });
            let index = known.application.models.get(model).map(|model| model.index.clone());
            let wanted = index.iter().flat_map(|index| ids.iter().map(move |id| (index, id)));
            let wanted = wanted.map(|(index, id)| json!({ "_index": index, "_id": id, "_source": HELD }));
            let body = json!({ "docs": std::iter::once(record).chain(wanted).collect::<Vec<_>>() });
            let answer = self.client.send("get", Method::POST, "/_mget", Body::json(&body)).await?;
            if answer.is_ok() && answer.is_cut && ids.len() > 1 {
                return Ok(None);
            }
            let mut answers = answer.read::<Answers>()?.docs.into_iter();
            let record = answers.next().filter(|record| record.id == app.as_str());
            let seen = record.and_then(|record| record.place.filter(|_| record.found));
            match self.applications.confirm(app, known, seen).await? {
                Confirmed::Same(_) => {}
                Confirmed::Other(now)
                    if now.application.models.get(model).map(|model| &model.index) == index.as_ref() => {}
                Confirmed::Other(now) => {
                    known = now;
                    continue;
                }
            }
            if index.is_none() {
                return Ok(Some(vec![None; ids.len()]));
            }
            let stored = answers.map(Answer::stored).collect::<Result<Vec<_>>>()?;
            if stored.len() == ids.len() {
                return Ok(Some(stored));
            }
            return Err(Error::new(ErrorKind::Unavailable, "get", "Elasticsearch left out documents"));
        }
        Err(Error::new(ErrorKind::Unavailable, "get", format!("application {app} changes all the time")))
    }
}

impl Answer {
    fn stored(self) -> Result<Option<Stored>> {
        match (self.error, self.source) {
            // The index is made with the first document.
            (Some(error), _) if error.name == "index_not_found_exception" => Ok(None),
            (Some(error), _) => Err(error.fault("get", 503)),
            (None, Some(held)) if self.found => held.stored().map(Some),
            (None, _) => Ok(None),
        }
    }
}
