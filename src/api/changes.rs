//! `/changes/…`: what became of a change.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use nexxus_storage::model::{ChangeId, Entry, Event, Offset, Problem, problem::ProblemKind};
use serde_json::json;

use super::{
    Answer, Api,
    auth::{Asker, change_named},
    path::Names,
    write::json_answer,
};

/// `{ state, offset?, problem? }`. Whoever wrote a change knows its id, which nobody can guess.
pub(super) async fn show(State(api): State<Api>, asker: Asker, names: Names) -> Answer {
    let change = change_named(&names)?;
    let found = match find(&api, &asker, change).await? {
        Some(found) => found,
        None => {
            // What was accepted and is not decided yet is in the log when the barrier has passed.
            api.pass_barrier(asker.app()).await?;
            find(&api, &asker, change).await?.ok_or_else(|| {
                Problem::new(
                    ProblemKind::NotFound,
                    format!("there is no change {change}, or the history no longer holds it"),
                )
            })?
        }
    };
    let (entry, applied) = found;
    let mut shown = json!({ "changeId": change, "state": "applied", "offset": entry.offset });
    match &entry.event {
        _ if entry.offset > applied => shown["state"] = json!("accepted"),
        Event::Rejected { problem, .. } => {
            shown["state"] = json!("rejected");
            shown["problem"] = json!(problem);
        }
        _ => {}
    }
    Ok(json_answer(StatusCode::OK, &shown))
}

/// The entry of a change, and how far the log is applied.
async fn find(api: &Api, asker: &Asker, change: ChangeId) -> Result<Option<(Arc<Entry>, Offset)>, Problem> {
    let log = &api.domain.backends.change_log;
    let found = log.find(asker.app(), &[change]).await?;
    let Some(entry) = found.into_iter().next().flatten() else { return Ok(None) };
    let marks = log.marks(asker.app()).await?;
    Ok(Some((entry.entry, marks.applied)))
}
