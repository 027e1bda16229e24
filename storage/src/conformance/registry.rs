//! What every [`Registry`] promises. `registry_conformance!(name, || async { … })` makes a test of each promise; the closure
//! gives a [`Subject`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use crate::{
    Error, ErrorKind, Registry, Result,
    model::AppId,
    registry::{Expect, Feed, Key, Kind, MAX_CALL_BYTES, MAX_ID_BYTES, News, Record, Write},
};

/// A registry under test, fresh and empty.
#[async_trait]
pub trait Subject: Send {
    fn registry(&self) -> Arc<dyn Registry>;

    /// Ends it as a crash would, with nothing closed in order, and opens what is left. What `registry` gave before is void.
    async fn crash(&mut self);
}

/// Makes a module `$name` with a test for each promise.
#[macro_export]
macro_rules! registry_conformance {
    ($name:ident, $make:expr) => {
        $crate::conformance_tests! {
            $name, $make, registry:
            get_gives_nothing_where_nothing_was_written,
            get_shows_every_write_that_returned,
            values_are_any_bytes,
            kinds_and_applications_are_kept_apart,
            list_goes_by_the_bytes_of_the_ids,
            list_obeys_prefix_after_and_limit,
            list_shows_every_write_that_returned,
            list_shows_a_call_whole_or_not_at_all,
            a_write_that_returned_survives_a_crash,
            a_call_writes_all_or_nothing,
            absent_holds_only_where_nothing_is,
            a_revision_holds_only_until_the_next_write,
            a_revision_never_comes_again,
            a_conflict_shows_what_is_in_the_way,
            one_of_many_puts_if_absent_wins,
            conditional_writes_lose_nothing,
            removing_what_is_not_there_is_no_fault,
            a_call_without_writes_does_nothing,
            invalid_calls_write_nothing,
            a_dropped_call_takes_effect_as_a_whole,
            volatile_records_are_visible_when_their_write_returned,
            a_feed_tells_the_writes_of_its_kinds_in_order,
            a_feed_begins_when_it_is_made,
            a_feed_read_includes_every_write_that_returned,
            a_feed_read_does_not_wait,
            changed_waits_for_news,
            changed_loses_nothing_when_cancelled,
            a_follower_ends_with_what_there_is,
            a_slow_reader_hears_everything_or_reload,
            a_read_about_applications_includes_every_write_to_them,
            a_lease_has_one_holder,
            a_lease_is_taken_over_after_its_time_and_not_before,
            a_released_lease_is_free_at_once,
            one_of_many_takes_a_lease,
        }
    };
}

fn app(name: &str) -> AppId {
    AppId::parse(name).expect("an application id")
}

fn user(id: &str) -> Key {
    Key::new(Kind::User, Some(&app("tasks")), id)
}

fn connection(id: &str) -> Key {
    Key::new(Kind::Connection, Some(&app("tasks")), id)
}

fn put(key: Key, value: impl Into<Bytes>) -> Write {
    Write { key, value: Some(value.into()), expect: Expect::Anything }
}

fn expecting(write: Write, expect: Expect) -> Write {
    Write { expect, ..write }
}

async fn value(registry: &dyn Registry, key: &Key) -> Option<Bytes> {
    registry.get(key).await.expect("get").map(|record| record.value)
}

async fn revision(registry: &dyn Registry, key: &Key) -> u64 {
    registry.get(key).await.expect("get").expect("a record").revision
}

async fn ids(registry: &dyn Registry, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let page = registry.list(Kind::User, Some(&app("tasks")), prefix, after, limit).await.expect("list");
    page.into_iter().map(|record| record.key.id).collect()
}

async fn all_users(registry: &dyn Registry) -> BTreeMap<String, Bytes> {
    let page = registry.list(Kind::User, Some(&app("tasks")), "", None, 1_000_000).await.expect("list");
    page.into_iter().map(|Record { key, value, .. }| (key.id, value)).collect()
}

async fn news_of(feed: &mut dyn Feed) -> Vec<(String, Option<Bytes>)> {
    let news = feed.read().await.expect("read the feed");
    news.into_iter()
        .map(|news| match news {
            News::Written { key, value } => (key.id, value),
            News::Reload => panic!("reload after a handful of writes"),
        })
        .collect()
}

fn expect_kind<T: std::fmt::Debug>(outcome: Result<T>, kind: ErrorKind, what: &str) {
    match outcome {
        Err(Error { kind: found, .. }) => assert_eq!(found, kind, "{what}"),
        Ok(found) => panic!("{what}: {found:?} where {kind} was expected"),
    }
}

/// Waits as long as a test may, so that a lost wake-up fails instead of hanging.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

pub async fn get_gives_nothing_where_nothing_was_written(subject: impl Subject) {
    let registry = subject.registry();
    assert_eq!(registry.get(&user("nobody")).await.expect("get"), None);
    assert_eq!(registry.get(&Key::new(Kind::Application, None, "nothing")).await.expect("get"), None);
}

pub async fn get_shows_every_write_that_returned(subject: impl Subject) {
    let registry = subject.registry();
    for round in 0..50_u8 {
        registry.write(vec![put(user("a"), vec![round])]).await.expect("write");
        assert_eq!(value(&*registry, &user("a")).await, Some(Bytes::from(vec![round])));
    }
    registry.write(vec![Write::remove(user("a"))]).await.expect("remove");
    assert_eq!(value(&*registry, &user("a")).await, None);
}

pub async fn values_are_any_bytes(mut subject: impl Subject) {
    let values: [&[u8]; 6] = [b"", b"{\"a\": 1}", b"line\nbreak", b" 1 ", b"\x00\xff\xfe", &vec![7; 300_000]];
    for (index, bytes) in values.iter().enumerate() {
        let write = put(user(&format!("u{index}")), Bytes::copy_from_slice(bytes));
        subject.registry().write(vec![write]).await.expect("write");
    }
    for _ in 0..2 {
        for (index, bytes) in values.iter().enumerate() {
            let stored = value(&*subject.registry(), &user(&format!("u{index}"))).await;
            assert_eq!(stored.as_deref(), Some(*bytes), "value {index}");
        }
        subject.crash().await;
    }
}

pub async fn kinds_and_applications_are_kept_apart(subject: impl Subject) {
    let registry = subject.registry();
    let (a, ab) = (app("a"), app("a-b"));
    let keys = [
        Key::new(Kind::User, Some(&a), "b"),
        Key::new(Kind::User, Some(&ab), "b"),
        Key::new(Kind::User, None, "a"),
        Key::new(Kind::UserName, Some(&a), "b"),
        Key::new(Kind::Device, Some(&a), "-b"),
        Key::new(Kind::Application, None, "a"),
    ];
    for (index, key) in keys.iter().enumerate() {
        registry.write(vec![put(key.clone(), vec![index as u8])]).await.expect("write");
    }
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(value(&*registry, key).await, Some(Bytes::from(vec![index as u8])), "{key:?}");
        let page = registry.list(key.kind, key.app.as_ref(), "", None, 10).await.expect("list");
        assert_eq!(page.into_iter().map(|record| record.key).collect::<Vec<_>>(), vec![key.clone()]);
    }
}

pub async fn list_goes_by_the_bytes_of_the_ids(subject: impl Subject) {
    let registry = subject.registry();
    let mut names = vec!["b", "a/2", "a", "a/10", "ä", "A", "a b", "日本", "\u{0}", "a\u{0}b", "z\u{10ffff}", "z"];
    for name in &names {
        registry.write(vec![put(user(name), *name)]).await.expect("write");
    }
    names.sort_unstable();
    assert_eq!(ids(&*registry, "", None, 100).await, names);
}

pub async fn list_obeys_prefix_after_and_limit(subject: impl Subject) {
    let registry = subject.registry();
    let names = ["a", "a/1", "a/2", "a/3", "a0", "b/1", "b/2", "\u{10ffff}", "\u{10ffff}x"];
    registry.write(names.iter().map(|name| put(user(name), *name)).collect()).await.expect("write");
    registry.write(vec![Write::remove(user("a/2")), put(user("b/15"), "late")]).await.expect("write");
    let mut left: Vec<&str> = names.iter().copied().filter(|name| *name != "a/2").chain(["b/15"]).collect();
    left.sort_unstable();
    for prefix in ["", "a", "a/", "a/2", "b/1", "c", "\u{10ffff}"] {
        for after in
            [None, Some(""), Some("a"), Some("a/1"), Some("a/2"), Some("a/zz"), Some("b"), Some("b/2"), Some("c")]
        {
            for limit in [0, 1, 2, 100, usize::MAX] {
                let expected: Vec<&str> = left
                    .iter()
                    .copied()
                    .filter(|name| name.starts_with(prefix) && after.is_none_or(|after| *name > after))
                    .take(limit)
                    .collect();
                let found = ids(&*registry, prefix, after, limit).await;
                assert_eq!(found, expected, "prefix {prefix:?} after {after:?} limit {limit}");
            }
        }
    }
}

pub async fn list_shows_every_write_that_returned(subject: impl Subject) {
    let registry = subject.registry();
    let mut model = BTreeMap::new();
    for round in 0..60_u8 {
        let id = format!("u{}", round % 7);
        if round % 5 == 4 {
            registry.write(vec![Write::remove(user(&id))]).await.expect("remove");
            model.remove(&id);
        } else {
            registry.write(vec![put(user(&id), vec![round])]).await.expect("write");
            model.insert(id, Bytes::from(vec![round]));
        }
        assert_eq!(all_users(&*registry).await, model, "round {round}");
    }
}

pub async fn list_shows_a_call_whole_or_not_at_all(subject: impl Subject) {
    let registry = subject.registry();
    let writer = subject.registry();
    let writing = tokio::spawn(async move {
        for round in 0..400_u16 {
            let both = ["first", "second"].map(|id| match round % 3 {
                2 => Write::remove(user(id)),
                _ => put(user(id), round.to_be_bytes().to_vec()),
            });
            writer.write(both.to_vec()).await.expect("write");
        }
    });
    while !writing.is_finished() {
        let page = all_users(&*registry).await;
        assert_eq!(page.get("first"), page.get("second"));
    }
    writing.await.expect("the writer");
}

pub async fn a_write_that_returned_survives_a_crash(mut subject: impl Subject) {
    let mut model = BTreeMap::new();
    for round in 0..6_u8 {
        let registry = subject.registry();
        for step in 0..5_u8 {
            let (kept, gone) = (format!("kept-{round}-{step}"), format!("kept-{}-{step}", round.wrapping_sub(2)));
            let call = vec![put(user(&kept), vec![round, step]), Write::remove(user(&gone))];
            registry.write(call).await.expect("write");
            model.remove(&gone);
            model.insert(kept, Bytes::from(vec![round, step]));
        }
        drop(registry);
        subject.crash().await;
        assert_eq!(all_users(&*subject.registry()).await, model, "after crash {round}");
    }
}

pub async fn a_call_writes_all_or_nothing(mut subject: impl Subject) {
    let registry = subject.registry();
    registry.write(vec![put(user("there"), "old")]).await.expect("write");
    let call =
        vec![put(user("new"), "x"), put(user("there"), "x"), expecting(put(user("last"), "x"), Expect::Revision(1))];
    expect_kind(registry.write(call).await, ErrorKind::Conflict, "a call with one condition that does not hold");
    drop(registry);
    let only_the_old = BTreeMap::from([("there".to_owned(), Bytes::from("old"))]);
    assert_eq!(all_users(&*subject.registry()).await, only_the_old);
    subject.crash().await;
    assert_eq!(all_users(&*subject.registry()).await, only_the_old);
}

pub async fn absent_holds_only_where_nothing_is(subject: impl Subject) {
    let registry = subject.registry();
    let create = || vec![expecting(put(user("a"), "x"), Expect::Absent)];
    registry.write(create()).await.expect("nothing is there");
    expect_kind(registry.write(create()).await, ErrorKind::Conflict, "it is there");
    registry.write(vec![Write::remove(user("a"))]).await.expect("remove");
    registry.write(create()).await.expect("it was removed");
}

pub async fn a_revision_holds_only_until_the_next_write(subject: impl Subject) {
    let registry = subject.registry();
    registry.write(vec![put(user("a"), "1")]).await.expect("write");
    let first = revision(&*registry, &user("a")).await;
    registry.write(vec![expecting(put(user("a"), "2"), Expect::Revision(first))]).await.expect("the revision holds");
    let second = revision(&*registry, &user("a")).await;
    assert!(second > first, "{second} follows {first}");
    let late = expecting(Write::remove(user("a")), Expect::Revision(first));
    expect_kind(registry.write(vec![late]).await, ErrorKind::Conflict, "an old revision");
    registry.write(vec![expecting(Write::remove(user("a")), Expect::Revision(second))]).await.expect("remove");
    let gone = expecting(put(user("a"), "3"), Expect::Revision(second));
    expect_kind(registry.write(vec![gone]).await, ErrorKind::Conflict, "the revision of what is gone");
}

pub async fn a_revision_never_comes_again(mut subject: impl Subject) {
    let mut last = 0;
    for round in 0..4 {
        for _ in 0..3 {
            subject.registry().write(vec![put(user("a"), "same")]).await.expect("write");
            let now = revision(&*subject.registry(), &user("a")).await;
            assert!(now > last, "{now} after {last} in round {round}");
            last = now;
            subject.registry().write(vec![Write::remove(user("a"))]).await.expect("remove");
        }
        subject.crash().await;
    }
}

pub async fn a_conflict_shows_what_is_in_the_way(subject: impl Subject) {
    for round in 0..50 {
        let key = user(&format!("name-{round}"));
        let attempts = (0..4_u8).map(|attempt| {
            let (registry, key) = (subject.registry(), key.clone());
            tokio::spawn(async move {
                let write = expecting(put(key.clone(), vec![attempt]), Expect::Absent);
                match registry.write(vec![write]).await {
                    Ok(()) => assert_eq!(value(&*registry, &key).await, Some(Bytes::from(vec![attempt]))),
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
                        assert!(value(&*registry, &key).await.is_some(), "the winner is visible to the loser");
                    }
                }
            })
        });
        for attempt in attempts.collect::<Vec<_>>() {
            attempt.await.expect("an attempt");
        }
    }
}

pub async fn one_of_many_puts_if_absent_wins(mut subject: impl Subject) {
    let attempts: Vec<_> = (0..64_u8)
        .map(|attempt| {
            let registry = subject.registry();
            let write = expecting(put(user("name"), vec![attempt]), Expect::Absent);
            tokio::spawn(async move { registry.write(vec![write]).await.map(|()| attempt) })
        })
        .collect();
    let mut winners = Vec::new();
    for attempt in attempts {
        match attempt.await.expect("an attempt") {
            Ok(winner) => winners.push(winner),
            Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    subject.crash().await;
    assert_eq!(value(&*subject.registry(), &user("name")).await, Some(Bytes::from(winners)));
}

pub async fn conditional_writes_lose_nothing(subject: impl Subject) {
    const TASKS: u64 = 8;
    const EACH: u64 = 20;
    subject.registry().write(vec![put(user("sum"), "0")]).await.expect("write");
    let adders: Vec<_> = (0..TASKS)
        .map(|_| {
            let registry = subject.registry();
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let record = registry.get(&user("sum")).await.expect("get").expect("a record");
                    let sum: u64 = std::str::from_utf8(&record.value).expect("a text").parse().expect("a number");
                    let write = put(user("sum"), (sum + 1).to_string());
                    match registry.write(vec![expecting(write, Expect::Revision(record.revision))]).await {
                        Ok(()) => done += 1,
                        Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error}"),
                    }
                }
            })
        })
        .collect();
    for adder in adders {
        adder.await.expect("an adder");
    }
    let sum = value(&*subject.registry(), &user("sum")).await;
    assert_eq!(sum, Some(Bytes::from((TASKS * EACH).to_string())));
}

pub async fn removing_what_is_not_there_is_no_fault(subject: impl Subject) {
    let registry = subject.registry();
    registry.write(vec![Write::remove(user("nobody"))]).await.expect("remove");
    registry.write(vec![expecting(Write::remove(user("nobody")), Expect::Absent)]).await.expect("remove");
    assert_eq!(value(&*registry, &user("nobody")).await, None);
}

pub async fn a_call_without_writes_does_nothing(subject: impl Subject) {
    let registry = subject.registry();
    let mut feed = registry.feed(&Kind::ALL).await.expect("a feed");
    registry.write(Vec::new()).await.expect("nothing to write");
    assert_eq!(feed.read().await.expect("read the feed"), Vec::new());
}

pub async fn invalid_calls_write_nothing(subject: impl Subject) {
    let registry = subject.registry();
    let elsewhere = Key::new(Kind::User, Some(&app("other")), "b");
    let nowhere = Key::new(Kind::Application, None, "tasks");
    let cases = [
        ("two applications", vec![put(user("a"), "x"), put(elsewhere, "x")]),
        ("an application and none", vec![put(user("a"), "x"), put(nowhere, "x")]),
        ("a key twice", vec![put(user("a"), "x"), Write::remove(user("a"))]),
        ("volatile and durable", vec![put(user("a"), "x"), put(connection("a"), "x")]),
        ("a long id", vec![put(user("a"), "x"), put(user(&"x".repeat(MAX_ID_BYTES + 1)), "x")]),
        ("a large call", vec![put(user("a"), "x"), put(user("b"), vec![0; MAX_CALL_BYTES])]),
    ];
    for (what, call) in cases {
        expect_kind(registry.write(call).await, ErrorKind::Invalid, what);
        assert_eq!(all_users(&*registry).await, BTreeMap::new(), "{what}");
    }
    let longest = user(&"x".repeat(MAX_ID_BYTES));
    registry
        .write(vec![put(longest.clone(), vec![0; MAX_CALL_BYTES - MAX_ID_BYTES])])
        .await
        .expect("as large as may be");
    assert!(value(&*registry, &longest).await.is_some());
}

pub async fn a_dropped_call_takes_effect_as_a_whole(subject: impl Subject) {
    let registry = subject.registry();
    for round in 0..40_u64 {
        let ids = [format!("a{round}"), format!("b{round}")];
        let call = ids.iter().map(|id| put(user(id), "x")).collect();
        // Dropped at different points of its way: nobody waits for it any more.
        drop(timeout(Duration::from_micros(round * 10), registry.write(call)).await);
    }
    // What was begun before is done, one way or the other, when a later write of the same application has returned.
    registry.write(vec![put(user("last"), "x")]).await.expect("write");
    let users = all_users(&*registry).await;
    for round in 0..40 {
        let halves = [users.contains_key(&format!("a{round}")), users.contains_key(&format!("b{round}"))];
        assert_eq!(halves[0], halves[1], "round {round}");
    }
}

pub async fn volatile_records_are_visible_when_their_write_returned(subject: impl Subject) {
    let registry = subject.registry();
    let key = connection("phone/ws-1");
    let mut feed = registry.feed(&[Kind::Connection]).await.expect("a feed");
    registry.write(vec![expecting(put(key.clone(), "here"), Expect::Absent)]).await.expect("write");
    assert_eq!(value(&*registry, &key).await, Some(Bytes::from("here")));
    assert_eq!(news_of(&mut *feed).await, vec![(key.id.clone(), Some(Bytes::from("here")))]);
    let again = expecting(put(key.clone(), "here"), Expect::Absent);
    expect_kind(registry.write(vec![again]).await, ErrorKind::Conflict, "it is there");
    let page = registry.list(Kind::Connection, key.app.as_ref(), "phone/", None, 10).await.expect("list");
    assert_eq!(page.len(), 1);
    let stale = Expect::Revision(page[0].revision);
    registry.write(vec![put(key.clone(), "again")]).await.expect("write");
    let late = expecting(Write::remove(key.clone()), stale);
    expect_kind(registry.write(vec![late]).await, ErrorKind::Conflict, "an old revision");
    registry.write(vec![Write::remove(key.clone())]).await.expect("remove");
    assert_eq!(value(&*registry, &key).await, None);
}

pub async fn a_feed_tells_the_writes_of_its_kinds_in_order(subject: impl Subject) {
    let registry = subject.registry();
    let mut feed = registry.feed(&[Kind::User, Kind::Connection]).await.expect("a feed");
    let mut other = registry.feed(&[Kind::Cursor]).await.expect("a feed");
    let device = Key::new(Kind::Device, Some(&app("tasks")), "phone");
    registry.write(vec![put(user("a"), "1"), put(device, "x")]).await.expect("write");
    registry.write(vec![put(connection("c"), "2")]).await.expect("write");
    registry.write(vec![put(user("a"), "3"), put(user("b"), "4")]).await.expect("write");
    registry.write(vec![Write::remove(user("a"))]).await.expect("remove");
    let told = |id: &str, value: Option<&'static str>| (id.to_owned(), value.map(Bytes::from));
    assert_eq!(
        news_of(&mut *feed).await,
        [told("a", Some("1")), told("c", Some("2")), told("a", Some("3")), told("b", Some("4")), told("a", None)]
    );
    assert_eq!(news_of(&mut *other).await, []);
}

pub async fn a_feed_begins_when_it_is_made(subject: impl Subject) {
    let registry = subject.registry();
    registry.write(vec![put(user("before"), "x")]).await.expect("write");
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    registry.write(vec![put(user("after"), "x")]).await.expect("write");
    assert_eq!(news_of(&mut *feed).await, [("after".to_owned(), Some(Bytes::from("x")))]);
}

pub async fn a_feed_read_includes_every_write_that_returned(subject: impl Subject) {
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let registry = subject.registry();
            tokio::spawn(async move {
                let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
                for round in 0..30 {
                    let id = format!("{writer}-{round}");
                    registry.write(vec![put(user(&id), "x")]).await.expect("write");
                    let told = news_of(&mut *feed).await;
                    assert!(told.iter().any(|(told, _)| *told == id), "{id} is in {told:?}");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
}

pub async fn a_feed_read_does_not_wait(subject: impl Subject) {
    let mut feed = subject.registry().feed(&[Kind::User]).await.expect("a feed");
    assert_eq!(soon("a read", news_of(&mut *feed)).await, []);
}

pub async fn changed_waits_for_news(subject: impl Subject) {
    let registry = subject.registry();
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    assert!(timeout(Duration::from_millis(20), feed.changed()).await.is_err(), "nothing was written");
    registry.write(vec![put(connection("of another kind"), "x")]).await.expect("write");
    assert!(timeout(Duration::from_millis(20), feed.changed()).await.is_err(), "nothing of this kind was written");
    let writing = tokio::spawn(async move { registry.write(vec![put(user("a"), "x")]).await });
    soon("changed", feed.changed()).await.expect("changed");
    writing.await.expect("the writer").expect("write");
    soon("changed with something unread", feed.changed()).await.expect("changed");
    assert_eq!(news_of(&mut *feed).await.len(), 1);
    assert!(timeout(Duration::from_millis(20), feed.changed()).await.is_err(), "everything was read");
}

pub async fn changed_loses_nothing_when_cancelled(subject: impl Subject) {
    let registry = subject.registry();
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    for round in 0..50_u64 {
        let id = format!("u{round}");
        let write = registry.write(vec![put(user(&id), "x")]);
        let (_, written) = tokio::join!(timeout(Duration::from_micros(round * 20), feed.changed()), write);
        written.expect("write");
        soon("changed", feed.changed()).await.expect("changed");
        assert_eq!(news_of(&mut *feed).await, [(id, Some(Bytes::from("x")))]);
    }
}

pub async fn a_follower_ends_with_what_there_is(subject: impl Subject) {
    let registry = subject.registry();
    let writers: Vec<_> = (0..6_u64)
        .map(|writer| {
            let registry = subject.registry();
            tokio::spawn(async move {
                for round in 0..100_u64 {
                    let id = format!("u{}", (round * 7 + writer) % 20);
                    let write = match (round + writer) % 4 {
                        0 => Write::remove(user(&id)),
                        _ => put(user(&id), format!("{writer}-{round}")),
                    };
                    registry.write(vec![write]).await.expect("write");
                }
            })
        })
        .collect();
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    let mut followed = all_users(&*registry).await;
    loop {
        let finished = writers.iter().all(|writer| writer.is_finished());
        for news in feed.read().await.expect("read the feed") {
            match news {
                News::Reload => followed = all_users(&*registry).await,
                News::Written { key, value: Some(value) } => drop(followed.insert(key.id, value)),
                News::Written { key, value: None } => drop(followed.remove(&key.id)),
            }
        }
        if finished {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(followed, all_users(&*registry).await);
}

pub async fn a_slow_reader_hears_everything_or_reload(subject: impl Subject) {
    const CALLS: usize = 80;
    const EACH: usize = 1_000;
    let registry = subject.registry();
    let mut feed = registry.feed(&[Kind::Connection]).await.expect("a feed");
    for call in 0..CALLS {
        let writes = (0..EACH).map(|n| put(connection(&format!("{}", (call * EACH + n) % 1_500)), "x")).collect();
        registry.write(writes).await.expect("write");
    }
    let news = feed.read().await.expect("read the feed");
    assert!(news == [News::Reload] || news.len() == CALLS * EACH, "{} news", news.len());
    registry.write(vec![put(connection("later"), "x")]).await.expect("write");
    assert_eq!(news_of(&mut *feed).await, [("later".to_owned(), Some(Bytes::from("x")))]);
}

pub async fn a_read_about_applications_includes_every_write_to_them(subject: impl Subject) {
    let registry = subject.registry();
    let apps: Vec<AppId> = (0..20).map(|n| app(&format!("app-{n}"))).collect();
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    for app in &apps {
        registry.write(vec![put(Key::new(Kind::User, Some(app), "u"), "x")]).await.expect("write");
    }
    let mut told = Vec::new();
    for about in apps.chunks(2) {
        let about: Vec<&AppId> = about.iter().collect();
        for news in feed.read_about(&about).await.expect("read the feed") {
            match news {
                News::Written { key, .. } => told.extend(key.app),
                News::Reload => panic!("reload after a handful of writes"),
            }
        }
        assert!(about.iter().all(|app| told.contains(app)), "{about:?} in {told:?}");
    }
    assert_eq!(news_of(&mut *feed).await, []);
    told.sort_unstable();
    let mut expected = apps;
    expected.sort_unstable();
    assert_eq!(told, expected, "each once");
}

async fn hold(registry: &dyn Registry, name: &str, holder: &str, ttl: Duration) -> bool {
    registry.hold(name, holder, ttl).await.expect("hold")
}

const LONG: Duration = Duration::from_secs(60);

pub async fn a_lease_has_one_holder(subject: impl Subject) {
    let registry = subject.registry();
    for _ in 0..2 {
        assert!(hold(&*registry, "writer.0", "anna", LONG).await, "taken, then renewed");
        assert!(!hold(&*registry, "writer.0", "bob", LONG).await);
    }
    assert!(hold(&*registry, "writer.1", "bob", LONG).await, "another name");
    registry.release("writer.0", "bob").await.expect("release what another has");
    assert!(!hold(&*registry, "writer.0", "bob", LONG).await);
}

pub async fn a_lease_is_taken_over_after_its_time_and_not_before(subject: impl Subject) {
    const TTL: Duration = Duration::from_millis(300);
    let registry = subject.registry();
    assert!(hold(&*registry, "writer.0", "anna", TTL).await);
    let renewed = std::time::Instant::now();
    assert!(hold(&*registry, "writer.0", "anna", TTL).await);
    soon("a take-over", async {
        while !hold(&*registry, "writer.0", "bob", LONG).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Servers count in whole milliseconds.
    assert!(renewed.elapsed() + Duration::from_millis(2) >= TTL, "taken over after {:?}", renewed.elapsed());
    assert!(!hold(&*registry, "writer.0", "anna", TTL).await, "who was paused finds out");
}

pub async fn a_released_lease_is_free_at_once(subject: impl Subject) {
    let registry = subject.registry();
    assert!(hold(&*registry, "writer.0", "anna", LONG).await);
    registry.release("writer.0", "anna").await.expect("release");
    assert!(hold(&*registry, "writer.0", "bob", LONG).await);
    registry.release("nobody's", "anna").await.expect("release what nobody has");
}

pub async fn one_of_many_takes_a_lease(subject: impl Subject) {
    for round in 0..20 {
        let attempts: Vec<_> = (0..8)
            .map(|attempt| {
                let registry = subject.registry();
                tokio::spawn(async move {
                    hold(&*registry, &format!("lease-{round}"), &format!("holder-{attempt}"), LONG).await
                })
            })
            .collect();
        let mut winners = 0;
        for attempt in attempts {
            winners += u32::from(attempt.await.expect("an attempt"));
        }
        assert_eq!(winners, 1, "round {round}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_macro() {
        let source = include_str!("registry.rs");
        for line in source.lines() {
            let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            assert!(source.contains(&format!("            {name},\n")), "{name} is never run");
        }
    }
}
