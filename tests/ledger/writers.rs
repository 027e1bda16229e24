//! Writers: each makes one change after the other, and writes down what it did and what it was told.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    evidence::{Fate, Key, Op, Patch, Read, Said, Who, Write},
    model::{NOTE, PAPER, TASK},
    scene::{N_USERS, Scene},
};

/// Documents that everybody writes, of each model.
const N_SHARED: usize = 6;
/// The number of the one that writes papers.
pub(crate) const OF_PAPERS: u64 = 6;
/// Longest pause between two writes, in milliseconds.
const PAUSE_MS: u64 = 30;

pub(crate) struct Writer {
    scene: Scene,
    number: u64,
    who: Who,
    device: Option<String>,
    models: &'static [&'static str],
    chance: StdRng,
    /// Documents that it made itself, under ids of the server's.
    own: Vec<Key>,
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
}

impl Writer {
    pub(crate) fn new(scene: Scene, number: u64) -> Self {
        let chance = scene.chance(1_000 + number);
        let who = if matches!(number, 0 | OF_PAPERS) { Who::Admin } else { Who::User(number as usize % N_USERS) };
        let models: &[_] = if number == OF_PAPERS { &[PAPER] } else { &[TASK, NOTE] };
        let device = match who {
            Who::Admin => None,
            Who::User(place) => Some(format!("plain-{place}")),
        };
        Self { scene, number, who, device, models, chance, own: Vec::new(), writes: Vec::new(), reads: Vec::new() }
    }

    pub(crate) async fn run(mut self) -> Self {
        while !self.scene.over.is_cancelled() {
            let (key, op) = self.next();
            self.write(key.clone(), op).await;
            if self.chance.random_bool(0.1) {
                self.read(key).await;
            }
            let pause = self.chance.random_range(0..PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    fn next(&mut self) -> (Key, Op) {
        let model = self.models[self.chance.random_range(0..self.models.len())];
        let shared = (model, format!("shared-{}", self.chance.random_range(0..N_SHARED)));
        let key = match self.own.len() {
            0 => shared,
            _ if self.chance.random_bool(0.7) => shared,
            n_own => self.own[self.chance.random_range(0..n_own)].clone(),
        };
        let tag = format!("{}-{}", self.number, self.writes.len());
        let expected = self.chance.random_bool(0.07).then(|| self.chance.random_range(1..12));
        let op = match self.chance.random_range(0..100) {
            0..10 => return ((model, String::new()), Op::Create { fields: self.fields(&tag) }),
            10..22 => Op::Create { fields: self.fields(&tag) },
            22..27 => Op::Delete { expected },
            27..45 if model == PAPER || self.who == Who::Admin && self.chance.random_bool(0.3) => {
                let owner = &self.scene.user_ids()[self.chance.random_range(0..N_USERS)];
                let patches = vec![json!({ "op": "replace", "path": ["userId", "tag"], "value": [owner, tag] })];
                Op::Patch { patch: Patch::Nexxus(patches), expected: None }
            }
            _ => Op::Patch { patch: self.patch(&tag), expected },
        };
        (key, op)
    }

    fn kind(&mut self) -> &'static str {
        ["a", "b", "c"][self.chance.random_range(0..3)]
    }

    fn fields(&mut self, tag: &str) -> Map<String, Value> {
        let fields = json!({
            "tag": tag, "n": self.chance.random_range(0..8), "kind": self.kind(), "open": self.chance.random_bool(0.5),
            "log": [tag], "text": "x".repeat(self.chance.random_range(0..1_500)), "meta": { "a": self.kind(), "b": 1 },
        });
        let Value::Object(mut fields) = fields else { panic!("no object") };
        if self.chance.random_bool(0.3) {
            fields.remove("meta");
        }
        fields
    }

    fn patch(&mut self, tag: &str) -> Patch {
        let by = self.chance.random_range(1..4);
        let nexxus = |op: &str, path: Value, value: Value| json!({ "op": op, "path": path, "value": value });
        let tagged = nexxus("replace", json!(["tag"]), json!([tag]));
        let patches = match self.chance.random_range(0..13) {
            0..3 => vec![nexxus("incr", json!(["n"]), json!([by])), tagged],
            3 => vec![nexxus("decr", json!(["n"]), json!([by])), tagged],
            4 => vec![nexxus("append", json!(["log"]), json!([tag])), tagged],
            5 => vec![nexxus("prepend", json!(["log"]), json!([[tag, "two"]])), tagged],
            6 => {
                let path = json!(["open", "kind", "tag"]);
                vec![nexxus("replace", path, json!([self.chance.random_bool(0.5), self.kind(), tag]))]
            }
            7 => vec![
                nexxus("incr", json!(["meta.b"]), json!([by])),
                nexxus("replace", json!(["meta.a", "tag"]), json!([self.kind(), tag])),
            ],
            8 => vec![json!({ "op": "remove", "path": ["meta.a"] }), tagged],
            // Changes nothing now and then.
            9 => vec![nexxus("replace", json!(["kind"]), json!([self.kind()]))],
            10 => {
                let meta = if self.chance.random_bool(0.5) { json!({ "a": self.kind() }) } else { Value::Null };
                let members = json!({ "tag": tag, "kind": self.kind(), "log": null, "meta": meta });
                return Patch::Merge(members.as_object().cloned().unwrap_or_default());
            }
            11 => {
                return Patch::Standard(vec![
                    json!({ "op": "test", "path": "/kind", "value": self.kind() }),
                    json!({ "op": "replace", "path": "/n", "value": by }),
                    json!({ "op": "add", "path": "/tag", "value": tag }),
                ]);
            }
            _ => {
                return Patch::Standard(vec![
                    json!({ "op": "replace", "path": "/meta/a", "value": self.kind() }),
                    json!({ "op": "add", "path": "/tag", "value": tag }),
                ]);
            }
        };
        Patch::Nexxus(patches)
    }

    async fn write(&mut self, key: Key, op: Op) {
        let (model, id) = &key;
        let document = format!("/model/{model}/{id}");
        let (method, path) = match &op {
            Op::Create { .. } => (Method::POST, format!("/model/{model}")),
            Op::Patch { .. } => (Method::PATCH, document),
            Op::Delete { .. } => (Method::DELETE, document),
        };
        let mut request = self.scene.request(self.who, method, &path).await;
        if let Some(device) = &self.device {
            request = request.header("nxx-device-id", device);
        }
        if let Op::Patch { expected: Some(expected), .. } | Op::Delete { expected: Some(expected) } = &op {
            request = request.header("if-match", expected.to_string());
        }
        request = match &op {
            Op::Create { fields } => {
                let mut body = fields.clone();
                if !id.is_empty() {
                    body.insert("id".to_owned(), json!(id));
                }
                request.json(&body)
            }
            Op::Patch { patch: Patch::Nexxus(patches), .. } => request.json(patches),
            Op::Patch { patch: Patch::Merge(members), .. } => {
                request.header("content-type", "application/merge-patch+json").body(json!(members).to_string())
            }
            Op::Patch { patch: Patch::Standard(operations), .. } => {
                request.header("content-type", "application/json-patch+json").body(json!(operations).to_string())
            }
            Op::Delete { .. } => request,
        };
        let began = Instant::now();
        let (said, body) = answer(request).await;
        let mut write = Write {
            key,
            who: self.who,
            device: self.device.clone(),
            op,
            began,
            ended: Instant::now(),
            said,
            fate: Fate::Unasked,
        };
        if write.key.1.is_empty() {
            match body["id"].as_str() {
                Some(id) => write.key.1 = id.to_owned(),
                // Nobody can know under which id it is there, if it is: its tag tells.
                None if matches!(write.said, Said::TurnedAway | Said::Refused { .. }) => return,
                None => {}
            }
        }
        if matches!((&write.op, &write.said), (Op::Create { .. }, Said::Accepted { .. })) && self.own.len() < 40 {
            self.own.push(write.key.clone());
        }
        self.writes.push(write);
    }

    /// Reads a document after the last change of its own that was accepted for it.
    async fn read(&mut self, key: Key) {
        let last = self.writes.iter().rev().find_map(|write| match &write.said {
            Said::Accepted { change } if write.key == key => Some(change.clone()),
            _ => None,
        });
        let Some(after) = last else { return };
        let request = self.scene.request(self.who, Method::GET, &format!("/model/{}/{}", key.0, key.1)).await;
        let Ok(response) = request.header("nxx-after", &after).send().await else { return };
        let status = response.status().as_u16();
        let Ok(body) = response.json::<Value>().await else { return };
        let found = match status {
            200 => Some(body),
            404 => None,
            503 | 504 => return,
            _ => panic!("GET {key:?}: {status} {body}"),
        };
        self.reads.push(Read { key, who: self.who, after, ended: Instant::now(), found });
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (Said, Value) {
    let unknown = || (Said::Unknown { change: None }, Value::Null);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return (Said::TurnedAway, Value::Null),
        Err(_) => return unknown(),
    };
    let status = response.status().as_u16();
    let Ok(text) = response.text().await else { return unknown() };
    let Ok(body) = serde_json::from_str::<Value>(&text) else { panic!("an answer that is no JSON: {status} {text}") };
    let slug = body["type"].as_str().unwrap_or_default().to_owned();
    let change = body["changeId"].as_str().map(str::to_owned);
    let said = match (status, slug.as_str()) {
        (202, _) => Said::Accepted { change: change.expect("a 202 names its change") },
        (_, "outcome-unknown") => Said::Unknown { change },
        (429 | 503 | 504, _) => Said::TurnedAway,
        (403 | 404 | 409 | 412, _) => Said::Refused { slug },
        _ => panic!("no answer to a write: {status} {body}"),
    };
    (said, body)
}
