//! Many writes in one request, and what became of each.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    client::{Body, Client, Reason},
    names,
    stored::Version,
};
use crate::{Error, Result};

/// Most bytes of a request, but for a single document that is larger: Elasticsearch takes 100 MB, and holds it in its heap.
pub(super) const MOST_BYTES: usize = 8 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is stored, or something as new is.
    Done,
    /// There is no such index.
    NoIndex,
    /// It will never be taken as it is.
    Refused(String),
}

/// Writes that wait to be sent.
#[derive(Default)]
pub(super) struct Bulk {
    lines: Vec<u8>,
    /// Where each write ends.
    ends: Vec<usize>,
}

/// Which version has to be there for a write to be one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Over {
    /// A lower one.
    Older,
    /// A lower one, or the same.
    OlderOrSame,
}

impl Over {
    fn version_type(self) -> &'static str {
        match self {
            Self::Older => "external",
            Self::OlderOrSame => "external_gte",
        }
    }
}

impl Bulk {
    /// Adds a document, whose source is written by `encode`.
    pub(super) fn put(
        &mut self,
        index: &str,
        id: &str,
        version: Version,
        over: Over,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.head("index", index, id, version, over);
        encode(&mut self.lines)?;
        self.lines.push(b'\n');
        self.ends.push(self.lines.len());
        Ok(())
    }

    /// Adds a removal.
    pub(super) fn remove(&mut self, index: &str, id: &str, version: Version) {
        self.head("delete", index, id, version, Over::OlderOrSame);
        self.ends.push(self.lines.len());
    }

    fn head(&mut self, action: &str, index: &str, id: &str, version: Version, over: Over) {
        let head = json!({ action: {
            "_index": names::entrance(index), "_id": id, "version": version, "version_type": over.version_type(),
        } });
        self.lines.extend(head.to_string().as_bytes());
        self.lines.push(b'\n');
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= MOST_BYTES
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn write(&self, number: usize) -> &[u8] {
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.lines[begin..self.ends[number]]
    }

    /// Sends the writes, again those that may be taken later, and tells the fate of each, in their order. An error says that none may
    /// count as done; to send them again does no harm.
    pub(super) async fn send(self, client: &Client, operation: &'static str, patience: Duration) -> Result<Vec<Fate>> {
        let mut fates: Vec<Option<Fate>> = self.ends.iter().map(|_| None).collect();
        let mut waiting: Vec<usize> = (0..self.ends.len()).collect();
        let give_up = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        while !waiting.is_empty() {
            let lines = match waiting.len() == self.ends.len() {
                true => self.lines.clone(),
                false => waiting.iter().flat_map(|number| self.write(*number)).copied().collect(),
            };
            let items = Items::of(client, operation, lines, waiting.len()).await?;
            let mut failure = None;
            let mut later = Vec::new();
            for (number, item) in waiting.into_iter().zip(items) {
                match item.judge(operation) {
                    Ok(fate) => fates[number] = Some(fate),
                    Err(error) if error.kind == crate::ErrorKind::DiskFull => return Err(error),
                    Err(error) => {
                        failure = Some(error);
                        later.push(number);
                    }
                }
            }
            if let Some(failure) = failure {
                if Instant::now() + pause > give_up {
                    return Err(failure);
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            waiting = later;
        }
        Ok(fates.into_iter().map(|fate| fate.unwrap_or(Fate::Done)).collect())
    }
}

#[derive(Deserialize)]
struct Items {
    errors: bool,
    #[serde(default)]
    items: Vec<ItemOf>,
}

/// `{ "index": {…} }` or `{ "delete": {…} }`
#[derive(Deserialize)]
struct ItemOf {
    #[serde(alias = "delete")]
    index: Item,
}

#[derive(Deserialize)]
struct Item {
    status: u16,
    error: Option<Reason>,
}

impl Items {
    async fn of(client: &Client, operation: &'static str, lines: Vec<u8>, n_sent: usize) -> Result<Vec<Item>> {
        client.figures.bulks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = "/_bulk?require_alias=true&filter_path=errors,items.*.status,items.*.error";
        let answer = client.send(operation, Method::POST, path, Body::Lines(lines.into())).await?;
        let Items { errors, items } = answer.read()?;
        if items.len() == n_sent {
            return Ok(items.into_iter().map(|item| item.index).collect());
        }
        let message = format!("Elasticsearch answered {} of {n_sent} writes (errors: {errors})", items.len());
        Err(Error::new(crate::ErrorKind::Unavailable, operation, message))
    }
}

impl Item {
    /// The fate of the write; an error where it may have another one later.
    fn judge(self, operation: &'static str) -> Result<Fate> {
        let Some(reason) = self.error else { return Ok(Fate::Done) };
        match (self.status, reason.name.as_str()) {
            (409, _) => Ok(Fate::Done), // What is stored is as new, or newer.
            (404, _) => Ok(Fate::NoIndex),
            (400 | 413, _) => Ok(Fate::Refused(reason.fault(operation, self.status).message)),
            _ => Err(reason.fault(operation, self.status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn check(item: serde_json::Value, expected: Result<Fate, ErrorKind>) {
        let read: ItemOf = serde_json::from_value(item.clone()).expect("an item");
        let judged = read.index.judge("apply").map_err(|error| error.kind);
        match (&judged, &expected) {
            (Ok(Fate::Refused(_)), Ok(Fate::Refused(_))) => {}
            _ => assert_eq!(judged, expected, "{item}"),
        }
    }

    #[test]
    fn each_item_is_judged_by_itself() {
        let failed = |status: u16, name: &str, reason: &str| json!({ "index": { "status": status, "error": { "type": name, "reason": reason } } });
        check(json!({ "index": { "status": 201 } }), Ok(Fate::Done));
        check(json!({ "delete": { "status": 404 } }), Ok(Fate::Done));
        check(failed(409, "version_conflict_engine_exception", "x"), Ok(Fate::Done));
        check(failed(404, "index_not_found_exception", "no such index"), Ok(Fate::NoIndex));
        check(failed(400, "document_parsing_exception", "x"), Ok(Fate::Refused(String::new())));
        check(failed(429, "es_rejected_execution_exception", "x"), Err(ErrorKind::Full));
        check(failed(503, "unavailable_shards_exception", "x"), Err(ErrorKind::Unavailable));
        let flood = "index [x] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark]";
        check(failed(429, "cluster_block_exception", flood), Err(ErrorKind::DiskFull));
        check(
            failed(403, "cluster_block_exception", "blocked by: [FORBIDDEN/8/index write (api)];"),
            Err(ErrorKind::DiskFull),
        );
        check(failed(500, "i_o_exception", "No space left on device"), Err(ErrorKind::DiskFull));
    }
}
