//! Elasticsearch beside the embedded journal: nothing that was logged is missing in it after a crash.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    Backends, ErrorKind,
    conformance::documents::{id, task},
    documents::Stored,
    embedded,
    model::{Document, Event, Offset, Timestamp},
    open::{ElasticsearchSettings, Settings, open as open_backends},
};

/// A data directory and indices of its own.
struct Place {
    dir: TempDir,
    engine: Engine,
}

impl Place {
    async fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), engine: Engine::start().await }
    }

    fn settings(&self) -> Settings {
        let elasticsearch = ElasticsearchSettings {
            nodes: vec![node()],
            prefix: self.engine.options.prefix.clone(),
            shards: 1,
            timeout: Duration::from_secs(60),
            ..ElasticsearchSettings::default()
        };
        Settings { documents: "elasticsearch".into(), elasticsearch, ..usual(self.dir.path()) }
    }

    async fn open(&self) -> Backends {
        open_backends(self.settings()).await.expect("it opens")
    }
}

fn usual(dir: &Path) -> Settings {
    embedded::tests::settings(dir)
}

fn app() -> AppId {
    AppId::parse("a").expect("an id")
}

fn entry(position: u64, text: &str) -> Entry {
    let now = Timestamp::now();
    let document = Document {
        app: app(),
        model: task(),
        id: id(&format!("d{position}")),
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields: serde_json::Map::from_iter([("title".to_owned(), json!(text))]),
    };
    Entry {
        offset: Offset::new(1, position),
        change_id: ChangeId::generate(),
        time: now,
        event: Event::Created { document },
    }
}

async fn live(backends: &Backends, positions: impl IntoIterator<Item = u64>) -> usize {
    let ids: Vec<_> = positions.into_iter().map(|position| id(&format!("d{position}"))).collect();
    let stored = backends.documents.get(&app(), &task(), &ids).await.expect("got");
    stored.iter().filter(|stored| matches!(stored, Some(Stored::Live(_)))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_logged_and_not_applied_is_applied_at_the_start() {
    let place = Place::new().await;
    let backends = place.open().await;
    let log = backends.change_log.clone();
    let logged = log.append(&app(), Offset::default(), (1..=3).map(|n| entry(n, "x")).collect()).await.expect("logged");
    backends.documents.apply(&app(), &logged).await.expect("applied");
    log.mark_applied(&app(), Offset::new(1, 3)).await.expect("marked");
    let more = (4..=2_500).map(|n| entry(n, "x")).collect();
    log.append(&app(), Offset::new(1, 3), more).await.expect("logged");
    assert_eq!(live(&backends, 1..=10).await, 3);
    drop((backends, log)); // As a crash would.
    for _ in 0..2 {
        let backends = place.open().await;
        assert_eq!(live(&backends, 1..=2_500).await, 2_500);
        let marks = backends.change_log.marks(&app()).await.expect("marks");
        assert_eq!((marks.head, marks.applied), (Offset::new(1, 2_500), Offset::new(1, 2_500)));
        assert!(backends.statistics().await.expect("statistics")["documents"]["documents"].is_u64());
        backends.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_stays_with_its_documents() {
    let place = Place::new().await;
    place.open().await.close().await.expect("closed");
    let error = open_backends(usual(place.dir.path())).await.err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.to_string().contains("`database.adapter`"), "{error}");
}
