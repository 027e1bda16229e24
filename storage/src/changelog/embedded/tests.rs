use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    change_log_conformance,
    conformance::change_log::Subject,
    embedded::open_journal,
    model::{Event, Timestamp},
};

/// A change log in a directory of its own.
struct Embedded {
    dir: TempDir,
    segment_bytes: u32,
    log: Option<EmbeddedChangeLog>,
}

impl Embedded {
    fn new(segment_bytes: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let log =
            EmbeddedChangeLog::open(open_journal(dir.path(), segment_bytes).expect("a journal")).expect("a change log");
        Self { dir, segment_bytes, log: Some(log) }
    }

    fn log(&self) -> EmbeddedChangeLog {
        self.log.clone().expect("it is open")
    }

    fn reopen(&mut self) {
        self.log = None;
        let journal = open_journal(self.dir.path(), self.segment_bytes).expect("a journal");
        self.log = Some(EmbeddedChangeLog::open(journal).expect("it opens again"));
    }

    fn journal(&self) -> Journal {
        self.log().shared.journal.clone()
    }
}

#[async_trait]
impl Subject for Embedded {
    fn change_log(&self) -> Arc<dyn ChangeLog> {
        let log = self.log();
        log.adopt_indexes().expect("adopt indexes");
        log.save_marks().expect("save marks");
        Arc::new(log)
    }

    async fn crash(&mut self) {
        self.reopen();
    }
}

change_log_conformance!(conformance, || async { Embedded::new(8 << 20) });
change_log_conformance!(conformance_in_small_segments, || async { Embedded::new(1 << 20) });

fn entries(positions: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    positions
        .map(|position| Entry {
            offset: Offset::new(1, position),
            change_id: ChangeId::generate(),
            time: Timestamp::now(),
            event: Event::Defined { definition: serde_json::json!("x".repeat(2_000)), before: None },
        })
        .collect()
}

/// Appends 2 kB entries and marks them as applied, in batches of 50.
async fn fill(log: &EmbeddedChangeLog, app: &AppId, upto: u64) {
    let mut tail = Offset::default();
    for first in (1..=upto).step_by(50) {
        log.append(app, tail, entries(first..=first + 49)).await.expect("append");
        tail = Offset::new(1, first + 49);
        log.mark_applied(app, tail).await.expect("mark applied");
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_history() {
    const ENTRIES: u64 = 10_000;
    let mut embedded = Embedded::new(1 << 20);
    let log = embedded.log();
    fill(&log, &app(0), ENTRIES).await;
    let held = log.shared.log(&app(0)).expect("a log");
    until("all segments but the last are indexed", || {
        log.adopt_indexes().expect("adopt indexes");
        held.in_memory().1 < 1_000
    })
    .await;
    let (recent, _) = held.in_memory();
    assert!((1_000..=CACHE_BYTES / 6_000).contains(&recent), "{recent} entries of about 6 kB are held");
    drop((log, held));
    embedded.reopen();
    let held = embedded.log().shared.log(&app(0)).expect("a log");
    assert_eq!(held.in_memory(), (0, 0), "a start reads indexes and keeps runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_what_is_released_meanwhile_is_told_so() {
    const ENTRIES: u64 = 3_000;
    let embedded = Embedded::new(256 << 10);
    let log = embedded.log();
    fill(&log, &app(0), ENTRIES).await;
    log.adopt_indexes().expect("adopt indexes");
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let log = embedded.log();
            tokio::spawn(async move {
                let mut gone = 0;
                let mut since = Offset::new(1, 0);
                while since.position < ENTRIES {
                    match log.read(&app(0), since, 20).await {
                        Ok(page) => {
                            assert_eq!(page.entries[0].entry.offset, since.next());
                            since = page.next;
                        }
                        Err(error) => {
                            assert_eq!(error.kind, ErrorKind::Gone, "{error}");
                            since = log.marks(&app(0)).await.expect("marks").trimmed;
                            gone += 1;
                        }
                    }
                }
                gone
            })
        })
        .collect();
    let journal = embedded.journal();
    for segment in journal.segments().into_iter().filter(|segment| segment.indexed) {
        log.trim(segment.last + 1);
        journal.release(segment.last + 1).expect("release");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for reader in readers {
        reader.await.expect("a reader");
    }
}

const APPS: [&str; 3] = ["a", "b", "c"];

fn app(index: usize) -> AppId {
    AppId::parse(APPS[index]).expect("an id")
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        app: usize,
        entries: u64,
    },
    AppendElsewhere {
        app: usize,
        tail: u64,
    },
    /// Marks the share (of 100) of what is not marked yet.
    MarkApplied {
        app: usize,
        share: u64,
    },
    MarkTold {
        app: usize,
        share: u64,
    },
    SaveMarks,
    AdoptIndexes,
    /// Releases the share (of 100) of the sealed segments.
    Release {
        share: usize,
    },
    BeginEpoch {
        app: usize,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let app = 0..APPS.len();
    prop_oneof![
        10 => (app.clone(), 1..120_u64).prop_map(|(app, entries)| Step::Append { app, entries }),
        1 => (app.clone(), 0..50_u64).prop_map(|(app, tail)| Step::AppendElsewhere { app, tail }),
        4 => (app.clone(), 0..=100_u64).prop_map(|(app, share)| Step::MarkApplied { app, share }),
        4 => (app.clone(), 0..=100_u64).prop_map(|(app, share)| Step::MarkTold { app, share }),
        2 => Just(Step::SaveMarks),
        2 => Just(Step::AdoptIndexes),
        2 => (0..=100_usize).prop_map(|share| Step::Release { share }),
        1 => app.prop_map(|app| Step::BeginEpoch { app }),
        2 => Just(Step::Reopen),
    ]
}

/// What a log has to hold.
#[derive(Debug, Clone, Default)]
struct Model {
    epoch: u32,
    head: u64,
    applied: u64,
    told: u64,
    /// The told mark that a crash leaves at least.
    saved_told: u64,
    trimmed: u64,
    entries: BTreeMap<u64, Entry>,
    /// Changes of entries that are no longer held.
    lost: Vec<ChangeId>,
}

impl Model {
    fn at(&self, position: u64) -> Offset {
        Offset::new(self.epoch, position)
    }

    fn marks(&self) -> Marks {
        Marks {
            head: self.at(self.head),
            applied: self.at(self.applied),
            told: self.at(self.told),
            trimmed: self.at(self.trimmed),
        }
    }

    fn trim(&mut self, upto: u64) {
        assert!(upto >= self.trimmed, "it never comes back");
        self.trimmed = upto;
        let kept = self.entries.split_off(&(upto + 1));
        let gone = std::mem::replace(&mut self.entries, kept);
        self.lost.extend(gone.into_values().map(|entry| entry.change_id));
    }
}

struct World {
    embedded: Embedded,
    models: [Model; 3],
}

impl World {
    async fn take(&mut self, step: &Step) {
        let log = self.embedded.log();
        match *step {
            Step::Append { app: index, entries } => self.append(index, entries).await,
            Step::AppendElsewhere { app: index, tail } => {
                let model = &self.models[index];
                if model.at(tail) != model.at(model.head) {
                    let error = log.append(&app(index), model.at(tail), vec![]).await.expect_err("another tail");
                    assert_eq!(error.kind, ErrorKind::Fenced);
                }
            }
            Step::MarkApplied { app: index, share } => {
                let model = &mut self.models[index];
                model.applied += (model.head - model.applied) * share / 100;
                log.mark_applied(&app(index), model.at(model.applied)).await.expect("mark applied");
            }
            Step::MarkTold { app: index, share } => {
                let model = &mut self.models[index];
                model.told += (model.applied - model.told) * share / 100;
                log.mark_told(&app(index), model.at(model.told)).await.expect("mark told");
            }
            Step::SaveMarks => {
                assert!(!log.save_marks().expect("save marks"), "three logs fit into one record");
                self.models.iter_mut().for_each(|model| model.saved_told = model.told);
            }
            Step::AdoptIndexes => log.adopt_indexes().expect("adopt indexes"),
            Step::Release { share } => self.release(share).await,
            Step::BeginEpoch { app: index } => {
                let model = &mut self.models[index];
                model.trim(model.head);
                let epoch = Offset::first_epoch_of(&app(index)).max(model.epoch + 1);
                *model = Model { epoch, lost: std::mem::take(&mut model.lost), ..Model::default() };
                assert_eq!(log.begin_epoch(&app(index)).await.expect("begin"), model.at(0));
            }
            Step::Reopen => {
                drop(log);
                self.embedded.reopen();
                for (index, model) in self.models.iter_mut().enumerate() {
                    model.applied = model.head;
                    let told = self.embedded.log().marks(&app(index)).await.expect("marks").told.position;
                    assert!((model.saved_told..=model.told).contains(&told), "{told} of {model:?}");
                    model.told = told;
                }
            }
        }
    }

    async fn append(&mut self, index: usize, count: u64) {
        let model = &mut self.models[index];
        let tail = model.at(model.head);
        model.epoch = model.epoch.max(1);
        let entries: Vec<_> = (model.head + 1..=model.head + count)
            .map(|position| Entry {
                offset: model.at(position),
                change_id: ChangeId::generate(),
                time: Timestamp::now(),
                event: Event::Defined {
                    definition: serde_json::json!("x".repeat(position as usize % 300)),
                    before: None,
                },
            })
            .collect();
        self.embedded.log().append(&app(index), tail, entries.clone()).await.expect("append");
        model.head += count;
        model.entries.extend(entries.into_iter().map(|entry| (entry.offset.position, entry)));
    }

    async fn release(&mut self, share: usize) {
        let (log, journal) = (self.embedded.log(), self.embedded.journal());
        log.adopt_indexes().expect("adopt indexes");
        let sealed: Vec<_> =
            journal.segments().into_iter().filter(|segment| segment.sealed && segment.indexed).collect();
        let Some(last) = (sealed.len() * share / 100).checked_sub(1).and_then(|index| sealed.get(index)) else {
            return;
        };
        if let Some(sequence) = log.carry(last.last + 1).expect("carry") {
            journal.durable(sequence).await.expect("durable");
        }
        log.trim(last.last + 1);
        journal.release(last.last + 1).expect("release");
        for (index, model) in self.models.iter_mut().enumerate() {
            let marks = log.marks(&app(index)).await.expect("marks");
            assert!(marks.trimmed.position <= model.head);
            model.trim(marks.trimmed.position);
        }
    }

    async fn check(&self) {
        let log = self.embedded.log();
        for (index, model) in self.models.iter().enumerate() {
            let app = app(index);
            assert_eq!(log.marks(&app).await.expect("marks"), model.marks());
            let mut since = model.at(model.trimmed);
            let mut seen = Vec::new();
            loop {
                let page = log.read_logged(&app, since, 50).await.expect("read");
                seen.extend(page.entries.iter().map(|entry| (*entry.entry).clone()));
                since = page.next;
                if page.end {
                    break;
                }
            }
            assert!(seen.iter().eq(model.entries.values()), "{app}: {} of {}", seen.len(), model.entries.len());
            let applied = log.read(&app, model.at(model.applied.max(model.trimmed)), 10).await.expect("read");
            assert_eq!((applied.entries.len(), applied.end), (0, true));
            if model.trimmed > 0 {
                let error = log.read_logged(&app, model.at(model.trimmed - 1), 10).await.expect_err("trimmed");
                assert_eq!(error.kind, ErrorKind::Gone);
            }
            let some: Vec<_> = model.entries.values().step_by(17).collect();
            let ids: Vec<_> = some.iter().map(|entry| entry.change_id).collect();
            let found = log.find(&app, &ids).await.expect("find");
            assert!(found.iter().zip(&some).all(|(found, entry)| found.as_ref().is_some_and(|f| &*f.entry == *entry)));
            let lost: Vec<_> = model.lost.iter().rev().step_by(23).take(20).copied().collect();
            assert!(log.find(&app, &lost).await.expect("find").iter().all(Option::is_none));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is done to it, the log holds what a plain map would hold: in tiny segments, with all its crashes and releases.
    #[test]
    fn is_the_map_that_it_stands_for(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World { embedded: Embedded::new(64 << 10), models: Default::default() };
            for step in &steps {
                world.take(step).await;
                world.check().await;
            }
            world.take(&Step::Reopen).await;
            world.check().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_applied_for_certain_is_known() {
    let mut embedded = Embedded::new(1 << 20);
    let app = AppId::parse("a").expect("an id");
    let log = embedded.log();
    assert_eq!((log.first_unapplied(), log.unapplied_at_open()), (None, Vec::new()));
    log.append(&app, Offset::default(), entries(1..=5)).await.expect("appended");
    log.mark_applied(&app, Offset::new(1, 3)).await.expect("marked");
    log.save_marks().expect("saved");
    assert_eq!(log.first_unapplied(), Some(1));
    log.mark_applied(&app, Offset::new(1, 5)).await.expect("marked");
    assert_eq!(log.first_unapplied(), None);
    // Marked, but not saved: it counts as applied after the start, which has to see to it.
    drop(log);
    embedded.reopen();
    let log = embedded.log();
    assert_eq!(log.unapplied_at_open(), [(app.clone(), Offset::new(1, 3))]);
    assert_eq!(log.marks(&app).await.expect("marks").applied, Offset::new(1, 5));
    log.append(&app, Offset::new(1, 5), entries(6..=6)).await.expect("appended");
    log.mark_applied(&app, Offset::new(1, 6)).await.expect("marked");
    log.save_marks().expect("saved");
    drop(log);
    embedded.reopen();
    assert_eq!(embedded.log().unapplied_at_open(), []);
}
