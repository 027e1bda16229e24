//! `/admin/queues`: what waits, and what went to the dead letters, to be looked at, tried again or dropped.

use std::collections::HashMap;

use axum::{extract::State, http::StatusCode};
use nexxus_storage::{
    model::{ChangeId, Problem, Timestamp, problem::ProblemKind},
    queue::{Message, QueueInfo},
};
use serde_json::{Value, json};

use super::{
    Answer, Api,
    auth::Admin,
    body::Body,
    path::{Names, Parameters},
    write::{json_answer, list_answer},
};
use crate::worker::runner::dead_letters_of;

/// Messages of a list where nothing is said, and at most; also how many are handled at once.
const USUAL: usize = 50;
const MOST: usize = 500;

/// Every queue, with how many dead letters it has.
pub(super) async fn list(State(api): State<Api>, _: Admin) -> Answer {
    let all = api.domain.backends.queues.list().await?;
    let dead: HashMap<String, u64> =
        all.iter().filter_map(|queue| Some((queue.name.strip_suffix(".dead")?.to_owned(), queue.ready))).collect();
    let is_shown = |queue: &&QueueInfo| !queue.name.ends_with(".dead");
    let shown = |queue: &QueueInfo| {
        let mut shown = json!(queue);
        shown["dead"] = json!(dead.get(&queue.name).copied().unwrap_or(0));
        shown
    };
    Ok(list_answer(all.iter().filter(is_shown).map(shown).collect()))
}

pub(super) async fn dead(State(api): State<Api>, _: Admin, names: Names, mut parameters: Parameters) -> Answer {
    let after: Option<ChangeId> = parameters.parsed("after")?;
    let limit = parameters.limit(USUAL, MOST)?;
    parameters.finish()?;
    let queue = dead_letters(&api, &names).await?;
    let messages = api.domain.backends.queues.browse(&queue, after, limit).await?;
    let mut list = json!({ "items": messages.iter().map(shown).collect::<Vec<_>>() });
    if let Some(last) = messages.last().filter(|_| messages.len() == limit) {
        list["next"] = json!(last.id);
    }
    Ok(json_answer(StatusCode::OK, &list))
}

/// One dead letter, with what it carries.
pub(super) async fn dead_message(State(api): State<Api>, _: Admin, names: Names) -> Answer {
    let wanted: ChangeId = names.id("message")?;
    let queue = dead_letters(&api, &names).await?;
    let mut after = None;
    loop {
        let page = api.domain.backends.queues.browse(&queue, after, MOST).await?;
        if let Some(message) = page.iter().find(|message| message.id == wanted) {
            let bytes = message.payload.bytes();
            let payload = serde_json::from_slice(bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()));
            let mut shown = shown(message);
            shown["payload"] = payload;
            return Ok(json_answer(StatusCode::OK, &shown));
        }
        match page.last() {
            Some(last) => after = Some(last.id),
            None => break,
        }
    }
    Err(Problem::new(ProblemKind::NotFound, format!("there is no dead letter {wanted} in {queue}")).into())
}

/// Gives dead letters back to their queue.
pub(super) async fn retry(State(api): State<Api>, _: Admin, names: Names, body: Body) -> Answer {
    let (queue, chosen) = (names.text("queue"), Chosen::read(&body)?);
    let dead = dead_letters(&api, &names).await?;
    let is_writer = api.domain.routes.writer.queues().iter().any(|writer| writer == queue);
    let mut retried = Vec::new();
    // What dies again meanwhile is not tried again, or this might never end.
    let begun = Timestamp::now();
    let is_chosen =
        |message: &Message| chosen.takes(message.id) && message.dead.as_ref().is_none_or(|death| death.time <= begun);
    let mut after = None;
    loop {
        let page = api.domain.backends.queues.browse(&dead, after, MOST).await?;
        let is_last = page.len() < MOST;
        let (taken, left): (Vec<_>, Vec<_>) = page.into_iter().partition(is_chosen);
        // The next page begins behind one that stays.
        after = left.last().map(|message| message.id).or(after);
        let (ids, again): (Vec<_>, Vec<_>) =
            taken.into_iter().map(|message| (message.id, alive(message, is_writer))).unzip();
        retried.extend(ids.iter().zip(&again).map(|(id, again)| json!({ "id": id, "newId": again.id })));
        // In this order: what stops between the two is handled twice, which changes nothing, and never lost.
        api.domain.backends.queues.publish(queue, again).await?;
        api.domain.backends.queues.remove(&dead, &ids).await?;
        if is_last {
            break;
        }
    }
    Ok(json_answer(StatusCode::OK, &json!({ "retried": retried.len(), "items": retried })))
}

/// A dead letter as a message to be handled. The log holds a command that died as refused: only under a new id is it decided anew.
fn alive(message: Message, is_writer: bool) -> Message {
    let id = if is_writer { ChangeId::generate() } else { message.id };
    Message { id, dead: None, ..message }
}

pub(super) async fn discard(State(api): State<Api>, _: Admin, names: Names, body: Body) -> Answer {
    let chosen = Chosen::read(&body)?;
    let queue = dead_letters(&api, &names).await?;
    let mut n_dropped = 0;
    match chosen {
        Chosen::Some(ids) => n_dropped = api.domain.backends.queues.remove(&queue, &ids).await?,
        Chosen::All => loop {
            let page = api.domain.backends.queues.browse(&queue, None, MOST).await?;
            let ids: Vec<_> = page.iter().map(|message| message.id).collect();
            if ids.is_empty() {
                break;
            }
            n_dropped += api.domain.backends.queues.remove(&queue, &ids).await?;
        },
    }
    Ok(json_answer(StatusCode::OK, &json!({ "dropped": n_dropped })))
}

/// Which dead letters: `{ "ids": […] }` or `{ "all": true }`.
#[derive(Debug, PartialEq)]
enum Chosen {
    All,
    Some(Vec<ChangeId>),
}

impl Chosen {
    fn read(body: &Body) -> Result<Self, Problem> {
        let mut form = body.form()?;
        let all = form.flag("all").unwrap_or(false);
        let ids = match form.value("ids") {
            Some(ids) => match serde_json::from_value::<Vec<ChangeId>>(ids) {
                Ok(ids) => Some(ids),
                Err(error) => form.fault("ids", &format!("an array of ids: {error}")),
            },
            None if !all => form.fault("ids", "name messages in ids, or say all: true"),
            None => None,
        };
        if all && ids.is_some() {
            form.fault::<()>("all", "either ids or all");
        }
        form.finish(ProblemKind::InvalidDocument)?;
        Ok(ids.map_or(Self::All, Self::Some))
    }

    fn takes(&self, id: ChangeId) -> bool {
        match self {
            Self::All => true,
            Self::Some(ids) => ids.contains(&id),
        }
    }
}

/// The dead letters of the queue in the path; 404 when there is no such queue.
async fn dead_letters(api: &Api, names: &Names) -> Result<String, Problem> {
    let queue = names.text("queue");
    let dead = dead_letters_of(queue);
    let is_there = api.domain.backends.queues.list().await?.iter().any(|known| known.name == dead);
    if is_there {
        Ok(dead)
    } else {
        Err(Problem::new(ProblemKind::NotFound, format!("there is no queue {queue} that keeps dead letters")))
    }
}

fn shown(message: &Message) -> Value {
    json!({
        "id": message.id,
        "appId": message.app,
        "offset": message.offset,
        "time": message.time,
        "bytes": message.payload.bytes().len(),
        "dead": message.dead,
    })
}
