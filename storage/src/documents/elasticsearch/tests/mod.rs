//! The adapter held to the contract of documents, and what only it does, against a real Elasticsearch (`tests/cluster/up`).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;

use super::{Body, ElasticsearchDocuments, Options, names};
use crate::{
    Documents,
    changelog::LogEntry,
    conformance::documents::Subject,
    documents_conformance,
    model::{AppId, ChangeId, Entry},
};

mod behaviour;
mod beside;
mod trouble;

fn node() -> String {
    std::env::var("NEXXUS_TEST_ELASTICSEARCH").unwrap_or_else(|_| "http://127.0.0.1:26041".to_owned())
}

fn options() -> Options {
    Options {
        nodes: vec![node()],
        username: None,
        password: None,
        api_key: None,
        ca_file: None,
        prefix: format!("t{}", ChangeId::generate().to_string().to_lowercase()),
        shards: 1,
        replicas: 0,
        timeout: Duration::from_secs(60),
        patience: Duration::from_secs(20),
        keep_deletes: Duration::from_secs(3_600),
    }
}

async fn open(options: &Options) -> Arc<ElasticsearchDocuments> {
    let opened = ElasticsearchDocuments::open(options.clone()).await;
    Arc::new(opened.expect("tests/cluster/up starts the Elasticsearch of the tests"))
}

/// A store with indices of its own, which go with it.
struct Engine {
    options: Options,
    documents: Arc<ElasticsearchDocuments>,
}

impl Engine {
    async fn start() -> Self {
        let options = options();
        Self { documents: open(&options).await, options }
    }

    async fn call(&self, method: Method, path: &str, body: Body) -> Value {
        let answer = self.documents.inner.client.send("test", method, path, body).await.expect("an answer");
        answer.read_any().expect("json")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let options = self.options.clone();
        let clean = async move {
            let client = super::Client::new(&options).expect("a client");
            let path = format!("/{}?filter_path=*.settings.index.uuid", names::pattern(&options.prefix));
            if let Ok(answer) = client.send("clean up", Method::GET, &path, Body::None).await {
                let indices: Value = answer.read_any().unwrap_or_default();
                let indices: Vec<_> = indices.as_object().into_iter().flat_map(|indices| indices.keys()).collect();
                for part in indices.chunks(20) {
                    let names = part.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
                    drop(client.send("clean up", Method::DELETE, &format!("/{names}"), Body::None).await);
                }
            }
            let path = format!("/_index_template/{}.documents", options.prefix);
            drop(client.send("clean up", Method::DELETE, &path, Body::None).await);
        };
        // A runtime of its own: this one may be about to end, and cannot be waited in.
        let cleaning = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(clean);
        });
        drop(cleaning.join());
    }
}

#[async_trait]
impl Subject for Engine {
    fn documents(&self) -> Arc<dyn Documents> {
        self.documents.clone()
    }

    async fn log(&self, _app: &AppId, entries: Vec<Entry>) -> Vec<LogEntry> {
        entries.into_iter().map(|entry| LogEntry { entry: Arc::new(entry), place: 0 }).collect()
    }

    async fn stir(&self, step: usize) {
        let all = names::all_documents(&self.options.prefix);
        match step % 3 {
            0 => drop(self.call(Method::POST, &format!("/{all}/_flush"), Body::None).await),
            1 => drop(self.call(Method::POST, &format!("/{all}/_refresh"), Body::None).await),
            _ => {}
        }
    }

    async fn crash(&mut self) {
        self.documents = open(&self.options).await;
    }
}

documents_conformance!(elasticsearch_conformance, Engine::start);
