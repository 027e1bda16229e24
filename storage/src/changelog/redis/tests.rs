//! The contract on a server and on a cluster, and what is particular to Redis.

use async_trait::async_trait;

use super::*;
use crate::{
    change_log_conformance,
    conformance::change_log::Subject,
    model::{Event, Timestamp},
    redis_servers::tests::{Server, connect, settings, tell},
};

const HISTORY: History = History { age: Duration::from_secs(3600), bytes: 1 << 30 };

struct OnRedis {
    settings: RedisSettings,
    log: RedisChangeLog,
}

impl OnRedis {
    async fn new(cluster: bool) -> Self {
        let settings = settings(cluster);
        let log = RedisChangeLog::new(connect(&settings).await, HISTORY);
        Self { settings, log }
    }
}

#[async_trait]
impl Subject for OnRedis {
    fn change_log(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.log.clone())
    }

    /// Another process on the same servers; who takes over an application first applies what is logged.
    async fn crash(&mut self) {
        self.log = RedisChangeLog::new(connect(&self.settings).await, HISTORY);
        for app in self.log.applications().await.expect("applications") {
            let head = self.log.marks(&app).await.expect("marks").head;
            self.log.mark_applied(&app, head).await.expect("apply what was logged");
        }
    }
}

change_log_conformance!(on_one_server, || OnRedis::new(false));
change_log_conformance!(on_a_cluster, || OnRedis::new(true));

async fn on_its_own() -> (Server, RedisChangeLog) {
    let server = Server::start().await;
    let log = RedisChangeLog::new(connect(&server.settings()).await, HISTORY);
    (server, log)
}

fn tasks() -> AppId {
    AppId::parse("tasks").expect("an id")
}

fn at(position: u64) -> Offset {
    Offset::new(1, position)
}

fn tail(position: u64) -> Offset {
    if position == 0 { Offset::default() } else { at(position) }
}

fn entry(position: u64, time: Timestamp) -> Entry {
    let document = None;
    Entry { offset: at(position), change_id: ChangeId::generate(), time, event: Event::Unchanged { document } }
}

async fn append(log: &RedisChangeLog, positions: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let before = tail(positions.start() - 1);
    let entries = positions.map(|position| entry(position, Timestamp::now())).collect();
    log.append(&tasks(), before, entries).await.expect("append")
}

async fn append_and_tell(log: &RedisChangeLog, positions: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let last = at(*positions.end());
    let logged = append(log, positions).await;
    log.mark_applied(&tasks(), last).await.expect("mark applied");
    log.mark_told(&tasks(), last).await.expect("mark told");
    logged
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// What stands in Redis stays readable: a change here needs a new format.
#[tokio::test]
async fn entries_stand_as_the_head_of_the_file_says() {
    let (_server, log) = on_its_own().await;
    let logged = append_and_tell(&log, 1..=2).await;
    let redis = &log.logs.redis;
    let mut range = Arguments::default();
    range.text("1-2").text("+");
    let key = redis.keys().of_app(&tasks(), "log");
    let mut found = redis.command("test", Effect::Repeatable, "XRANGE", &key, &range).await.unwrap().list().unwrap();
    let mut found = found.next().expect("one entry").list().unwrap();
    assert_eq!(found.next().expect("its id").text().unwrap(), "1-2");
    let mut field = found.next().expect("its field").list().unwrap();
    assert_eq!(field.next().expect("its name").bytes().unwrap(), bytes_of(logged[1].entry.change_id));
    let payload = codec::encode(&tasks(), &logged[1].entry).unwrap();
    assert_eq!(field.next().expect("its value").bytes().unwrap(), payload);
    let mut name = Arguments::default();
    name.bytes(bytes_of(logged[0].entry.change_id));
    let key = redis.keys().of_app(&tasks(), "changes");
    let position = redis.command("test", Effect::Repeatable, "HGET", &key, &name).await.unwrap();
    assert_eq!(position.number().unwrap(), 1);
}

#[tokio::test]
async fn every_call_is_one_round_trip() {
    let (_server, log) = on_its_own().await;
    let mut last = append_and_tell(&log, 1..=500).await;
    let redis = log.logs.redis.clone();
    let trips = async |what: &str, call: &dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>| {
        let before = redis.calls();
        call().await.expect(what);
        assert_eq!(redis.calls() - before, 1, "{what}");
    };
    let wanted: Vec<_> = last.drain(..).take(FIND_AT_A_TIME).map(|entry| entry.entry.change_id).collect();
    log.find(&tasks(), &wanted).await.expect("the script is known from here");
    log.read(&tasks(), at(0), 1).await.expect("the same");
    let (a, b, c, d) = (log.clone(), log.clone(), log.clone(), log.clone());
    trips("append 500", &move || {
        let log = a.clone();
        Box::pin(async move {
            let entries = (501..=1_000).map(|position| entry(position, Timestamp::now())).collect();
            log.append(&tasks(), at(500), entries).await.map(drop)
        })
    })
    .await;
    trips("mark applied", &move || {
        let log = b.clone();
        Box::pin(async move { log.mark_applied(&tasks(), at(1_000)).await })
    })
    .await;
    trips("find", &move || {
        let (log, wanted) = (c.clone(), wanted.clone());
        Box::pin(async move { log.find(&tasks(), &wanted).await.map(drop) })
    })
    .await;
    trips("read", &move || {
        let log = d.clone();
        Box::pin(async move { log.read(&tasks(), at(0), 1_000).await.map(drop) })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_hears_of_what_another_process_does() {
    for cluster in [false, true] {
        let settings = settings(cluster);
        let ours = RedisChangeLog::new(connect(&settings).await, HISTORY);
        let theirs = RedisChangeLog::new(connect(&settings).await, HISTORY);
        let (app, barrier) = (tasks(), ChangeId::generate());
        for round in 1..=20 {
            let next = entry(round, Timestamp::now());
            let change = next.change_id;
            let waiting = async {
                let (app, upto) = (&app, at(round));
                tokio::join!(
                    ours.wait_applied(app, upto),
                    ours.wait_change(app, change),
                    ours.wait_passed(app, barrier)
                )
            };
            let doing = async {
                theirs.append(&app, tail(round - 1), vec![next.clone()]).await.expect("append");
                theirs.mark_applied(&app, at(round)).await.expect("mark applied");
                theirs.pass(&app, barrier).await.expect("pass");
            };
            let begun = std::time::Instant::now();
            let ((applied, found, passed), ()) = soon("news", async { tokio::join!(waiting, doing) }).await;
            assert_eq!(*found.expect("the change").entry, next);
            applied.and(passed).expect("wait");
            // Not by looking each second; but the first subscription may take its time.
            assert!(round < 3 || begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_served_also_after_the_connection_was_cut() {
    let (server, log) = on_its_own().await;
    let other = connect(&server.settings()).await;
    append(&log, 1..=1).await;
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.wait_applied(&tasks(), at(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    tell(&other, "CLIENT KILL TYPE pubsub").await;
    tell(&other, "CLIENT KILL TYPE normal SKIPME yes").await;
    // By another connection: nothing makes ours hear of it but itself.
    let theirs =
        RedisChangeLog::new(connect(&RedisSettings { prefix: prefix_of(&log), ..server.settings() }).await, HISTORY);
    theirs.mark_applied(&tasks(), at(1)).await.expect("mark applied");
    soon("the waiter", waiting).await.expect("no panic").expect("wait");
}

fn prefix_of(log: &RedisChangeLog) -> String {
    let key = log.logs.redis.keys().alone("");
    key.trim_end_matches(':').to_owned()
}

/// A server that is killed again and again while a writer works: what it was told to be logged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_when_the_server_is_killed() {
    let (mut server, log) = on_its_own().await;
    let writer = tokio::spawn({
        let log = log.clone();
        async move {
            let (mut confirmed, mut failures) = (Vec::new(), 0);
            let mut head = Offset::default();
            while confirmed.len() < 3_000 {
                let first = head.position + 1;
                let entries: Vec<_> = (first..first + 10).map(|position| entry(position, Timestamp::now())).collect();
                match log.append(&tasks(), head, entries).await {
                    Ok(logged) => {
                        head = logged.last().expect("ten").entry.offset;
                        confirmed.extend(logged);
                    }
                    Err(error) => {
                        assert!(error.is_transient() || error.kind == ErrorKind::Fenced, "{error}");
                        failures += 1;
                        // As a writer that takes over: what is there is there, confirmed or not.
                        while let Err(error) = log.marks(&tasks()).await.map(|marks| head = marks.head) {
                            assert!(error.is_transient(), "{error}");
                        }
                    }
                }
            }
            (confirmed, failures)
        }
    });
    while !writer.is_finished() {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
        server.start_again();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (confirmed, failures) = writer.await.expect("the writer");
    assert!(failures > 0, "no call was cut off");
    let changes: Vec<_> = confirmed.iter().map(|logged| logged.entry.change_id).collect();
    let found = log.find(&tasks(), &changes).await.expect("find");
    assert_eq!(found, confirmed.into_iter().map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_that_lost_what_it_confirmed_is_told_from_another_writer() {
    let (server, log) = on_its_own().await;
    append(&log, 1..=5).await;
    tell(&connect(&server.settings()).await, "FLUSHALL SYNC").await;
    let error = log.append(&tasks(), at(5), vec![entry(6, Timestamp::now())]).await.expect_err("it is gone");
    assert_eq!(error.kind, ErrorKind::Fenced);
    assert!(error.message.contains("lost"), "{error}");
}

#[tokio::test]
async fn what_is_old_or_too_much_goes_once_it_was_told() {
    let (_server, log) = on_its_own().await;
    let minutes_ago = |minutes: i64| Timestamp::from_ms(Timestamp::now().as_ms() - minutes * 60_000).expect("a time");
    let batches = [90, 61, 40, 20, 0];
    let mut oldest = Vec::new();
    for (batch, minutes) in (0..).zip(batches) {
        let first = batch * 10 + 1;
        let entries: Vec<_> = (first..first + 10).map(|position| entry(position, minutes_ago(minutes))).collect();
        oldest.push(entries[0].change_id);
        log.append(&tasks(), tail(first - 1), entries).await.expect("append");
    }
    let head = at(50);
    let trimmed = async |history: History| {
        log.logs.keep_to(history).await.expect("trim");
        log.marks(&tasks()).await.expect("marks").trimmed
    };
    let hour = History { age: Duration::from_secs(3_600), ..HISTORY };
    assert_eq!(trimmed(hour).await, at(0), "not applied");
    log.mark_applied(&tasks(), head).await.expect("mark applied");
    assert_eq!(trimmed(hour).await, at(0), "not told");
    log.mark_told(&tasks(), at(15)).await.expect("mark told");
    assert_eq!(trimmed(hour).await, at(10), "the second batch is not told as a whole");
    log.mark_told(&tasks(), head).await.expect("mark told");
    assert_eq!(trimmed(hour).await, at(20));
    assert_eq!(log.read(&tasks(), at(19), 10).await.expect_err("gone").kind, ErrorKind::Gone);
    assert_eq!(log.read(&tasks(), at(20), 100).await.expect("what is left").entries.len(), 30);
    let found = log.find(&tasks(), &oldest).await.expect("find");
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true, true, true]);
    let bytes_of_ten: usize =
        (1..=10).map(|position| codec::encode(&tasks(), &entry(position, minutes_ago(0))).unwrap().len()).sum();
    let two_batches = History { bytes: bytes_of_ten as u64 * 2, ..HISTORY };
    assert_eq!(trimmed(two_batches).await, at(30));
    assert_eq!(trimmed(History { bytes: 0, ..HISTORY }).await, head, "everything was told");
    append_and_tell(&log, 51..=52).await;
    assert_eq!(log.read(&tasks(), head, 10).await.expect("what came after").entries.len(), 2);
}
