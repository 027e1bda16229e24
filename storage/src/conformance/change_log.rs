//! What every [`ChangeLog`] promises. `change_log_conformance!(name, || async { … })` makes a test of each promise; the closure gives
//! a [`Subject`].

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use serde_json::{Map, json};
use tokio::time::timeout;

use crate::{
    ChangeLog, Error, ErrorKind, Result,
    changelog::{LogEntry, Marks, Page},
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp},
};

/// A change log under test, fresh and empty.
#[async_trait]
pub trait Subject: Send {
    fn change_log(&self) -> Arc<dyn ChangeLog>;

    /// Ends the process as a crash would, as far as the backend can tell, and comes back. What `change_log` gave before is void. What
    /// was logged counts as applied then, because the documents are brought up to it before anything is served.
    async fn crash(&mut self);
}

/// Makes a module `$name` with a test for each promise.
#[macro_export]
macro_rules! change_log_conformance {
    ($name:ident, $make:expr) => {
        $crate::conformance_tests! {
            $name, $make, change_log:
            an_application_without_a_log_has_default_marks,
            the_first_entry_begins_epoch_one,
            entries_come_back_as_they_were_appended,
            an_append_on_another_tail_is_fenced,
            entries_that_leave_a_hole_are_invalid,
            one_of_two_writers_wins,
            an_appended_entry_survives_a_crash,
            places_rise_with_the_entries,
            an_append_that_is_given_up_is_whole_or_absent,
            readers_see_nothing_above_the_applied_mark,
            read_logged_sees_what_is_not_applied,
            pages_follow_each_other_to_the_end,
            a_page_is_bounded_in_bytes,
            reading_above_the_head_is_invalid,
            reading_another_epoch_is_gone,
            marks_never_go_back,
            marks_above_the_head_are_invalid,
            marks_survive_a_crash_as_far_as_they_must,
            find_gives_what_the_log_holds,
            find_sees_old_and_new_entries_after_a_crash,
            waiting_for_the_applied_mark_ends_when_it_is_there,
            waiting_for_a_change_ends_when_it_is_applied,
            thousands_wait_for_their_own_change,
            giving_up_waiting_harms_nobody,
            a_barrier_is_heard_before_and_after,
            applications_are_kept_apart,
            the_applications_are_listed,
            a_new_epoch_forgets_what_was,
            a_new_epoch_survives_a_crash,
            epochs_of_other_applications_are_others,
            a_long_history_can_be_read_back,
        }
    };
}

fn app(name: &str) -> AppId {
    AppId::parse(name).expect("an application id")
}

fn tasks() -> AppId {
    app("tasks")
}

fn at(position: u64) -> Offset {
    Offset::new(1, position)
}

/// A create of a document that has its position for a title.
fn entry(app: &AppId, offset: Offset) -> Entry {
    let title = json!(format!("{offset}"));
    let document = Document {
        app: app.clone(),
        model: "task".parse().expect("a model name"),
        id: format!("d{}", offset.position).parse().expect("an id"),
        user: None,
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
        version: 1,
        fields: Map::from_iter([("title".to_owned(), title)]),
    };
    Entry { offset, change_id: ChangeId::generate(), time: Timestamp::now(), event: Event::Created { document } }
}

fn entries(app: &AppId, positions: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    positions.map(|position| entry(app, at(position))).collect()
}

fn tail(position: u64) -> Offset {
    if position == 0 { Offset::default() } else { at(position) }
}

/// Appends to epoch 1 up to a position; gives what was appended.
async fn append(log: &dyn ChangeLog, app: &AppId, positions: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let tail = tail(positions.start() - 1);
    log.append(app, tail, entries(app, positions)).await.expect("append")
}

async fn append_and_apply(log: &dyn ChangeLog, app: &AppId, positions: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let last = *positions.end();
    let logged = append(log, app, positions).await;
    log.mark_applied(app, at(last)).await.expect("mark applied");
    logged
}

fn positions(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.entry.offset.position).collect()
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

async fn expect_waiting<T>(what: &str, future: impl Future<Output = T>) {
    assert!(timeout(Duration::from_millis(50), future).await.is_err(), "{what} does not wait");
}

pub async fn an_application_without_a_log_has_default_marks(subject: impl Subject) {
    let log = subject.change_log();
    assert_eq!(log.marks(&tasks()).await.expect("marks"), Marks::default());
    let page = log.read(&tasks(), Offset::default(), 10).await.expect("read");
    assert_eq!(page, Page { entries: vec![], next: Offset::default(), end: true });
    assert_eq!(log.find(&tasks(), &[ChangeId::generate()]).await.expect("find"), [None]);
    expect_kind(log.read(&tasks(), at(0), 10).await, ErrorKind::Gone, "an epoch that has not begun");
}

pub async fn the_first_entry_begins_epoch_one(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=1).await;
    let expected = Marks { head: at(1), applied: at(0), told: at(0), trimmed: at(0) };
    assert_eq!(log.marks(&tasks()).await.expect("marks"), expected);
}

pub async fn entries_come_back_as_they_were_appended(mut subject: impl Subject) {
    let mut sent = entries(&tasks(), 1..=3);
    sent[1].event = Event::Unchanged { document: None };
    let logged = subject.change_log().append(&tasks(), Offset::default(), sent.clone()).await.expect("append");
    assert_eq!(logged.iter().map(|entry| (*entry.entry).clone()).collect::<Vec<_>>(), sent);
    for _ in 0..2 {
        let log = subject.change_log();
        let page = log.read_logged(&tasks(), at(0), 10).await.expect("read");
        assert_eq!(page.entries, logged, "with their places");
        drop(log);
        subject.crash().await;
    }
}

pub async fn an_append_on_another_tail_is_fenced(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=3).await;
    for position in [0, 2, 4] {
        let entries = vec![entry(&tasks(), at(position + 1))];
        expect_kind(log.append(&tasks(), tail(position), entries).await, ErrorKind::Fenced, "another tail");
        expect_kind(log.append(&tasks(), tail(position), vec![]).await, ErrorKind::Fenced, "also without entries");
    }
    assert_eq!(log.append(&tasks(), at(3), vec![]).await.expect("the tail itself"), []);
    assert_eq!(log.marks(&tasks()).await.expect("marks").head, at(3));
}

pub async fn entries_that_leave_a_hole_are_invalid(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=2).await;
    for offsets in [vec![at(4)], vec![at(2)], vec![at(3), at(5)], vec![at(3), at(3)], vec![Offset::new(2, 3)]] {
        let entries = offsets.iter().map(|offset| entry(&tasks(), *offset)).collect();
        expect_kind(log.append(&tasks(), at(2), entries).await, ErrorKind::Invalid, &format!("{offsets:?}"));
    }
    append(&*log, &tasks(), 3..=3).await;
}

pub async fn one_of_two_writers_wins(subject: impl Subject) {
    const ROUNDS: u64 = 50;
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let log = subject.change_log();
            tokio::spawn(async move {
                let mut won = BTreeSet::new();
                for position in 1..=ROUNDS {
                    match log.append(&tasks(), tail(position - 1), entries(&tasks(), position..=position)).await {
                        Ok(logged) => {
                            won.insert((position, logged[0].entry.change_id));
                        }
                        Err(error) => assert_eq!(error.kind, ErrorKind::Fenced, "{error}"),
                    }
                    // The next position, once somebody has taken this one.
                    while log.marks(&tasks()).await.expect("marks").head < at(position) {
                        tokio::task::yield_now().await;
                    }
                }
                won
            })
        })
        .collect();
    let mut won = Vec::new();
    for writer in writers {
        won.extend(writer.await.expect("a writer"));
    }
    won.sort_unstable();
    let page = subject.change_log().read_logged(&tasks(), at(0), 1_000).await.expect("read");
    let held: Vec<_> = page.entries.iter().map(|entry| (entry.entry.offset.position, entry.entry.change_id)).collect();
    assert_eq!(won, held, "each position once, and what was answered is what is there");
}

pub async fn an_appended_entry_survives_a_crash(mut subject: impl Subject) {
    for round in 0..5 {
        let log = subject.change_log();
        append(&*log, &tasks(), round * 3 + 1..=round * 3 + 3).await;
        drop(log);
        subject.crash().await;
        let log = subject.change_log();
        let marks = log.marks(&tasks()).await.expect("marks");
        assert_eq!((marks.head, marks.applied), (at(round * 3 + 3), at(round * 3 + 3)));
        let page = log.read(&tasks(), at(0), 100).await.expect("read");
        assert_eq!(positions(&page), (1..=round * 3 + 3).collect::<Vec<_>>());
    }
}

pub async fn places_rise_with_the_entries(subject: impl Subject) {
    let log = subject.change_log();
    let mut logged = append(&*log, &tasks(), 1..=3).await;
    append(&*log, &app("other"), 1..=3).await;
    logged.extend(append(&*log, &tasks(), 4..=6).await);
    let places: Vec<_> = logged.iter().map(|entry| entry.place).collect();
    assert!(places.is_sorted(), "{places:?}");
}

pub async fn an_append_that_is_given_up_is_whole_or_absent(mut subject: impl Subject) {
    let log = subject.change_log();
    let mut position = 0;
    for _ in 0..50 {
        let batch = entries(&tasks(), position + 1..=position + 4);
        drop(log.append(&tasks(), tail(position), batch).now_or_never());
        // A writer that takes over asks until it is not fenced any more.
        position = soon("a writer that takes over", async {
            loop {
                let head = log.marks(&tasks()).await.expect("marks").head;
                let next = if head == Offset::default() { at(1) } else { head.next() };
                match log.append(&tasks(), head, vec![entry(&tasks(), next)]).await {
                    Ok(_) => return next.position,
                    Err(error) => assert_eq!(error.kind, ErrorKind::Fenced, "{error}"),
                }
            }
        })
        .await;
    }
    drop(log);
    subject.crash().await;
    let page = subject.change_log().read_logged(&tasks(), at(0), 1_000).await.expect("read");
    assert_eq!(positions(&page), (1..=position).collect::<Vec<_>>());
}

pub async fn readers_see_nothing_above_the_applied_mark(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=5).await;
    let nothing = log.read(&tasks(), at(0), 10).await.expect("read");
    assert_eq!(nothing, Page { entries: vec![], next: at(0), end: true });
    log.mark_applied(&tasks(), at(3)).await.expect("mark applied");
    let page = log.read(&tasks(), at(0), 10).await.expect("read");
    assert_eq!((positions(&page), page.next, page.end), (vec![1, 2, 3], at(3), true));
    let above = log.read(&tasks(), at(4), 10).await.expect("logged, not applied: not above the head");
    assert_eq!(above, Page { entries: vec![], next: at(4), end: true });
}

pub async fn read_logged_sees_what_is_not_applied(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=5).await;
    let page = log.read_logged(&tasks(), at(2), 10).await.expect("read");
    assert_eq!((positions(&page), page.next, page.end), (vec![3, 4, 5], at(5), true));
}

pub async fn pages_follow_each_other_to_the_end(subject: impl Subject) {
    let log = subject.change_log();
    append_and_apply(&*log, &tasks(), 1..=25).await;
    let mut since = at(0);
    let mut seen = Vec::new();
    loop {
        let page = log.read(&tasks(), since, 10).await.expect("read");
        assert!(page.entries.len() <= 10);
        assert_eq!(page.end, page.next == at(25), "{:?}", page.next);
        seen.extend(positions(&page));
        since = page.next;
        if page.end {
            break;
        }
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    let none = log.read(&tasks(), at(5), 0).await.expect("read");
    assert_eq!(none, Page { entries: vec![], next: at(5), end: false });
}

pub async fn a_page_is_bounded_in_bytes(mut subject: impl Subject) {
    let log = subject.change_log();
    let large = |position| {
        let mut entry = entry(&tasks(), at(position));
        if let Event::Created { document } = &mut entry.event {
            document.fields.insert("text".into(), json!("x".repeat(200_000)));
        }
        entry
    };
    for position in 1..=30 {
        log.append(&tasks(), tail(position - 1), vec![large(position)]).await.expect("append");
    }
    log.mark_applied(&tasks(), at(30)).await.expect("mark applied");
    drop(log);
    for _ in 0..2 {
        let log = subject.change_log();
        let page = log.read(&tasks(), at(0), 1_000).await.expect("read");
        assert!((1..=10).contains(&page.entries.len()), "{} entries of 200 kB", page.entries.len());
        assert!(!page.end);
        drop(log);
        subject.crash().await;
    }
}

pub async fn reading_above_the_head_is_invalid(subject: impl Subject) {
    let log = subject.change_log();
    append_and_apply(&*log, &tasks(), 1..=5).await;
    assert!(log.read(&tasks(), at(5), 10).await.expect("read at the head").end);
    expect_kind(log.read(&tasks(), at(6), 10).await, ErrorKind::Invalid, "above the head");
    expect_kind(log.read_logged(&tasks(), at(6), 10).await, ErrorKind::Invalid, "above the head");
}

pub async fn reading_another_epoch_is_gone(subject: impl Subject) {
    let log = subject.change_log();
    append_and_apply(&*log, &tasks(), 1..=5).await;
    for since in [Offset::default(), Offset::new(0, 3), Offset::new(2, 0), Offset::new(2, 9)] {
        expect_kind(log.read(&tasks(), since, 10).await, ErrorKind::Gone, &format!("{since:?}"));
    }
}

pub async fn marks_never_go_back(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=5).await;
    for (mark, expected) in [(3, 3), (1, 3), (4, 4), (4, 4), (0, 4)] {
        log.mark_applied(&tasks(), at(mark)).await.expect("mark applied");
        log.mark_told(&tasks(), at(mark)).await.expect("mark told");
        let marks = log.marks(&tasks()).await.expect("marks");
        assert_eq!((marks.applied, marks.told), (at(expected), at(expected)));
    }
    log.mark_applied(&tasks(), Offset::default()).await.expect("a mark of an epoch that is over");
    assert_eq!(log.marks(&tasks()).await.expect("marks").applied, at(4));
}

pub async fn marks_above_the_head_are_invalid(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=2).await;
    for above in [at(3), Offset::new(2, 0)] {
        expect_kind(log.mark_applied(&tasks(), above).await, ErrorKind::Invalid, "applied");
        expect_kind(log.mark_told(&tasks(), above).await, ErrorKind::Invalid, "told");
    }
    expect_kind(log.mark_applied(&app("none"), at(1)).await, ErrorKind::Invalid, "no log");
}

pub async fn marks_survive_a_crash_as_far_as_they_must(mut subject: impl Subject) {
    let log = subject.change_log();
    append_and_apply(&*log, &tasks(), 1..=9).await;
    log.mark_told(&tasks(), at(4)).await.expect("mark told");
    drop(log);
    subject.crash().await;
    let marks = subject.change_log().marks(&tasks()).await.expect("marks");
    assert_eq!((marks.head, marks.applied), (at(9), at(9)));
    assert!(marks.told <= at(4), "what was not told is not taken for told");
}

pub async fn find_gives_what_the_log_holds(subject: impl Subject) {
    let log = subject.change_log();
    let first = append_and_apply(&*log, &tasks(), 1..=3).await;
    let second = append(&*log, &tasks(), 4..=5).await;
    let other = append(&*log, &app("other"), 1..=1).await;
    let id = |entry: &LogEntry| entry.entry.change_id;
    let wanted = [id(&second[1]), ChangeId::generate(), id(&first[0]), id(&other[0]), id(&second[1])];
    let found = log.find(&tasks(), &wanted).await.expect("find");
    assert_eq!(found, [Some(second[1].clone()), None, Some(first[0].clone()), None, Some(second[1].clone())]);
    assert_eq!(log.find(&tasks(), &[]).await.expect("find"), []);
}

pub async fn find_sees_old_and_new_entries_after_a_crash(mut subject: impl Subject) {
    let mut logged = append(&*subject.change_log(), &tasks(), 1..=50).await;
    subject.crash().await;
    logged.extend(append(&*subject.change_log(), &tasks(), 51..=100).await);
    let log = subject.change_log();
    for entry in &logged {
        let change = entry.entry.change_id;
        assert_eq!(log.find(&tasks(), &[change]).await.expect("find"), [Some(entry.clone())]);
        assert_eq!(log.find(&app("other"), &[change]).await.expect("find"), [None]);
    }
}

pub async fn waiting_for_the_applied_mark_ends_when_it_is_there(subject: impl Subject) {
    let log = subject.change_log();
    append(&*log, &tasks(), 1..=5).await;
    log.mark_applied(&tasks(), at(2)).await.expect("mark applied");
    soon("what is applied", log.wait_applied(&tasks(), at(2))).await.expect("wait");
    expect_waiting("what is not applied", log.wait_applied(&tasks(), at(3))).await;
    let (early, late) = (subject.change_log(), subject.change_log());
    let third = tokio::spawn(async move { early.wait_applied(&tasks(), at(3)).await });
    let sixth = tokio::spawn(async move { late.wait_applied(&tasks(), at(6)).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    log.mark_applied(&tasks(), at(5)).await.expect("mark applied");
    soon("the third", third).await.expect("no panic").expect("wait");
    assert!(!sixth.is_finished());
    append_and_apply(&*log, &tasks(), 6..=6).await;
    soon("the sixth", sixth).await.expect("no panic").expect("wait");
}

pub async fn waiting_for_a_change_ends_when_it_is_applied(subject: impl Subject) {
    let log = subject.change_log();
    let batch = entries(&tasks(), 1..=3);
    let change = batch[1].change_id;
    let waiting_log = subject.change_log();
    let waiting = tokio::spawn(async move { waiting_log.wait_change(&tasks(), change).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let logged = log.append(&tasks(), Offset::default(), batch).await.expect("append");
    log.mark_applied(&tasks(), at(1)).await.expect("mark applied");
    expect_waiting("a change that is not applied", log.wait_change(&tasks(), change)).await;
    assert!(!waiting.is_finished(), "logged is not applied");
    log.mark_applied(&tasks(), at(2)).await.expect("mark applied");
    assert_eq!(soon("the change", waiting).await.expect("no panic").expect("wait"), logged[1]);
    assert_eq!(soon("it again", log.wait_change(&tasks(), change)).await.expect("wait"), logged[1]);
    expect_waiting("a change of another application", log.wait_change(&app("other"), change)).await;
}

pub async fn thousands_wait_for_their_own_change(subject: impl Subject) {
    const COUNT: u64 = 3_000;
    let log = subject.change_log();
    let batch = entries(&tasks(), 1..=COUNT);
    let waiting: Vec<_> = batch
        .iter()
        .map(|entry| {
            let (log, change, offset) = (subject.change_log(), entry.change_id, entry.offset);
            tokio::spawn(async move {
                assert_eq!(log.wait_change(&tasks(), change).await.expect("wait").entry.offset, offset);
            })
        })
        .collect();
    let mut tail = Offset::default();
    for chunk in batch.chunks(100) {
        log.append(&tasks(), tail, chunk.to_vec()).await.expect("append");
        tail = chunk[chunk.len() - 1].offset;
        log.mark_applied(&tasks(), tail).await.expect("mark applied");
    }
    for waiter in waiting {
        soon("a waiter", waiter).await.expect("its own change");
    }
}

pub async fn giving_up_waiting_harms_nobody(subject: impl Subject) {
    let log = subject.change_log();
    let batch = entries(&tasks(), 1..=1);
    let change = batch[0].change_id;
    for _ in 0..20 {
        assert!(log.wait_change(&tasks(), change).now_or_never().is_none());
        assert!(log.wait_applied(&tasks(), at(1)).now_or_never().is_none());
        assert!(log.wait_passed(&tasks(), change).now_or_never().is_none());
    }
    let waiting_log = subject.change_log();
    let waiting = tokio::spawn(async move { waiting_log.wait_change(&tasks(), change).await });
    log.append(&tasks(), Offset::default(), batch).await.expect("append");
    log.mark_applied(&tasks(), at(1)).await.expect("mark applied");
    soon("the one who stayed", waiting).await.expect("no panic").expect("wait");
}

pub async fn a_barrier_is_heard_before_and_after(subject: impl Subject) {
    let log = subject.change_log();
    let (barrier, other) = (ChangeId::generate(), ChangeId::generate());
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let log = subject.change_log();
            tokio::spawn(async move { log.wait_passed(&tasks(), barrier).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    log.pass(&tasks(), other).await.expect("pass");
    log.pass(&app("other"), barrier).await.expect("pass");
    expect_waiting("another barrier", log.wait_passed(&tasks(), barrier)).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    log.pass(&tasks(), barrier).await.expect("pass");
    for waiting in waiting {
        soon("who came before", waiting).await.expect("no panic").expect("wait");
    }
    soon("who comes after", log.wait_passed(&tasks(), barrier)).await.expect("wait");
}

pub async fn applications_are_kept_apart(mut subject: impl Subject) {
    let apps = ["a", "b", "a.b"].map(app);
    for round in 0..3 {
        let log = subject.change_log();
        for (app, count) in apps.iter().zip(1..) {
            append_and_apply(&*log, app, round * count + 1..=(round + 1) * count).await;
        }
        drop(log);
        subject.crash().await;
    }
    let log = subject.change_log();
    for (app, count) in apps.iter().zip(1..) {
        let page = log.read(app, at(0), 100).await.expect("read");
        assert_eq!(positions(&page), (1..=3 * count).collect::<Vec<_>>(), "{app}");
        assert!(page.entries.iter().all(|entry| entry.entry.after().is_some_and(|document| document.app == *app)));
    }
}

pub async fn the_applications_are_listed(mut subject: impl Subject) {
    let log = subject.change_log();
    assert_eq!(log.applications().await.expect("applications"), []);
    append(&*log, &app("b"), 1..=1).await;
    log.begin_epoch(&app("a")).await.expect("begin");
    log.marks(&app("c")).await.expect("marks");
    assert!(log.wait_applied(&app("d"), at(1)).now_or_never().is_none());
    drop(log);
    for _ in 0..2 {
        let listed: BTreeSet<_> =
            subject.change_log().applications().await.expect("applications").into_iter().collect();
        assert_eq!(listed, BTreeSet::from([app("a"), app("b")]));
        subject.crash().await;
    }
}

pub async fn a_new_epoch_forgets_what_was(subject: impl Subject) {
    let log = subject.change_log();
    let old = append_and_apply(&*log, &tasks(), 1..=5).await;
    let begin = log.begin_epoch(&tasks()).await.expect("begin");
    assert_eq!(begin, Offset::new(Offset::first_epoch_of(&tasks()), 0));
    let marks = Marks { head: begin, applied: begin, told: begin, trimmed: begin };
    assert_eq!(log.marks(&tasks()).await.expect("marks"), marks);
    expect_kind(log.read(&tasks(), at(3), 10).await, ErrorKind::Gone, "the old epoch");
    assert_eq!(log.find(&tasks(), &[old[0].entry.change_id]).await.expect("find"), [None]);
    let late = vec![entry(&tasks(), at(6))];
    expect_kind(log.append(&tasks(), at(5), late).await, ErrorKind::Fenced, "a writer of the old epoch");
    log.mark_applied(&tasks(), at(5)).await.expect("a late mark of the old epoch changes nothing");
    soon("an old offset is below", log.wait_applied(&tasks(), at(9))).await.expect("wait");
    let logged = log.append(&tasks(), begin, vec![entry(&tasks(), begin.next())]).await.expect("append");
    log.mark_applied(&tasks(), begin.next()).await.expect("mark applied");
    assert_eq!(log.read(&tasks(), begin, 10).await.expect("read").entries, logged);
}

pub async fn a_new_epoch_survives_a_crash(mut subject: impl Subject) {
    let log = subject.change_log();
    append_and_apply(&*log, &tasks(), 1..=5).await;
    let begin = log.begin_epoch(&tasks()).await.expect("begin");
    drop(log);
    subject.crash().await;
    let log = subject.change_log();
    assert_eq!(log.marks(&tasks()).await.expect("marks").head, begin);
    let logged = log.append(&tasks(), begin, vec![entry(&tasks(), begin.next())]).await.expect("append");
    drop(log);
    subject.crash().await;
    let log = subject.change_log();
    assert_eq!(log.read(&tasks(), begin, 10).await.expect("read").entries, logged);
    assert_eq!(log.begin_epoch(&tasks()).await.expect("begin"), Offset::new(begin.epoch + 1, 0));
}

pub async fn epochs_of_other_applications_are_others(subject: impl Subject) {
    let log = subject.change_log();
    let begun = [log.begin_epoch(&app("a")).await.expect("begin"), log.begin_epoch(&app("b")).await.expect("begin")];
    assert_ne!(begun[0].epoch, begun[1].epoch);
    expect_kind(log.read(&app("a"), begun[1], 10).await, ErrorKind::Gone, "an offset of another application");
}

pub async fn a_long_history_can_be_read_back(mut subject: impl Subject) {
    const COUNT: u64 = 20_000;
    let log = subject.change_log();
    let mut kept = Vec::new();
    for first in (1..=COUNT).step_by(500) {
        let logged = append_and_apply(&*log, &tasks(), first..=first + 499).await;
        kept.push(logged[7].clone());
    }
    drop(log);
    for _ in 0..2 {
        let log = subject.change_log();
        let (mut since, mut next) = (at(0), 1);
        loop {
            let page = log.read(&tasks(), since, 1_000).await.expect("read");
            for entry in &page.entries {
                assert_eq!(entry.entry.offset, at(next));
                next += 1;
            }
            since = page.next;
            if page.end {
                break;
            }
        }
        assert_eq!(next, COUNT + 1);
        for entry in &kept {
            let found = log.find(&tasks(), &[entry.entry.change_id]).await.expect("find");
            assert_eq!(found, [Some(entry.clone())]);
        }
        let (tasks, oldest) = (tasks(), kept[0].entry.change_id);
        assert_eq!(soon("an old change", log.wait_change(&tasks, oldest)).await.expect("wait"), kept[0]);
        drop(log);
        subject.crash().await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_macro() {
        let source = include_str!("change_log.rs");
        for line in source.lines() {
            let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) else {
                continue;
            };
            assert!(source.contains(&format!("            {name},\n")), "{name} is never run");
        }
    }
}
