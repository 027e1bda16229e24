use super::*;

fn at(position: u64) -> Offset {
    Offset::new(1, position)
}

fn connection(most_bytes: usize) -> Arc<Connection> {
    Connection::new(DeviceId::parse("d").expect("an id"), None, Some("s1".into()), at(5), most_bytes)
}

fn live(most_bytes: usize, above: u64) -> Arc<Connection> {
    let connection = connection(most_bytes);
    connection.join(None, at(above), at(above));
    connection
}

fn offer(connection: &Connection, position: u64, text: &'static str) {
    connection.offer(at(position), &Bytes::from_static(text.as_bytes()));
}

fn replay(connection: &Connection, ride: Ride, position: u64, text: &'static str) {
    connection.replay(ride, at(position), &Bytes::from_static(text.as_bytes()));
}

fn frames(texts: &[&'static str]) -> Next {
    Next::Frames(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect())
}

/// Nothing waits, and it asks to be read on for, from here.
fn reads_from(connection: &Connection, position: u64) {
    assert_eq!(connection.next(), Next::CatchUp);
    let (ride, from) = connection.board();
    assert_eq!(from, at(position));
    connection.leave(ride);
}

#[test]
fn a_connection_that_catches_up_takes_nothing_live() {
    let connection = connection(100);
    offer(&connection, 6, "x");
    reads_from(&connection, 5);
}

#[test]
fn a_live_connection_takes_what_it_has_not_seen() {
    let connection = live(100, 6);
    offer(&connection, 6, "seen");
    offer(&connection, 7, "new");
    assert_eq!(connection.next(), frames(&["new"]));
    assert_eq!(connection.next(), Next::Nothing);
    assert_eq!(connection.next(), Next::Nothing);
}

#[test]
fn one_that_rides_takes_what_the_scan_has_above_what_it_has_read() {
    let connection = connection(100);
    let (ride, from) = connection.board();
    assert_eq!(from, at(5));
    replay(&connection, ride, 5, "read");
    replay(&connection, ride, 6, "six");
    assert!(connection.read_to(ride, at(7)));
    replay(&connection, ride, 7, "a page again");
    replay(&connection, ride, 8, "eight");
    assert_eq!(connection.next(), frames(&["six", "eight"]));
    assert_eq!(connection.next(), Next::Nothing, "more comes by itself");
    connection.leave(ride);
    replay(&connection, ride, 9, "without it");
    reads_from(&connection, 8);
}

#[test]
fn one_that_joins_keeps_what_is_above_what_it_still_reads() {
    let connection = connection(100);
    let (ride, _) = connection.board();
    replay(&connection, ride, 6, "six");
    connection.join(Some(ride), at(6), at(8));
    for (position, text) in [(8, "read"), (9, "nine"), (10, "ten")] {
        offer(&connection, position, text);
    }
    assert_eq!(connection.next(), frames(&["six"]));
    assert_eq!(connection.next(), Next::Nothing);
    replay(&connection, ride, 8, "eight");
    replay(&connection, ride, 9, "kept already");
    assert!(!connection.read_to(ride, at(9)), "it is live");
    assert_eq!(connection.next(), frames(&["eight", "nine", "ten"]));
    assert_eq!(connection.sent(None), at(10));
    assert_eq!(connection.next(), Next::Nothing);
}

#[test]
fn one_that_joins_reads_everything_again_that_did_not_fit_or_was_missed() {
    for is_overflow in [true, false] {
        let connection = connection(10);
        let (ride, _) = connection.board();
        connection.join(Some(ride), at(6), at(8));
        offer(&connection, 9, "123456");
        match is_overflow {
            true => offer(&connection, 10, "123456"),
            false => connection.fall_back(at(9)),
        }
        assert!(!connection.read_to(ride, at(8)), "it has to board again");
        assert_eq!(connection.next(), Next::CatchUp);
        let (again, from) = connection.board();
        assert_eq!(from, at(6));
        replay(&connection, ride, 9, "of the former ride");
        replay(&connection, again, 9, "again");
        assert_eq!(connection.next(), frames(&["again"]));
    }
}

/// The scan was past what was kept when that had to be dropped: it must not count as read.
#[test]
fn one_that_joins_reads_again_what_it_skipped_and_had_to_drop() {
    for is_overflow in [true, false] {
        let connection = connection(10);
        let (ride, _) = connection.board();
        connection.join(Some(ride), at(6), at(8));
        offer(&connection, 9, "123456");
        replay(&connection, ride, 8, "8");
        replay(&connection, ride, 9, "kept");
        match is_overflow {
            true => offer(&connection, 10, "123456"),
            false => connection.fall_back(at(9)),
        }
        replay(&connection, ride, 10, "ten, too early");
        assert!(!connection.read_to(ride, at(10)), "it has to board again");
        assert_eq!(connection.next(), frames(&["8"]));
        reads_from(&connection, 8);
    }
}

/// Two scans may have it on board for a moment: the former reads on elsewhere.
#[test]
fn what_is_read_for_an_earlier_ride_does_not_count() {
    let connection = connection(10);
    let (former, _) = connection.board();
    connection.join(Some(former), at(6), at(6));
    offer(&connection, 7, "1234567");
    offer(&connection, 8, "1234567");
    assert_eq!(connection.next(), frames(&["1234567"]));
    let (ride, from) = connection.board();
    assert_eq!(from, at(7));
    replay(&connection, former, 9, "nine");
    connection.join(Some(former), at(9), at(9));
    connection.leap(former, at(9), None);
    assert!(!connection.read_to(former, at(9)));
    connection.leave(former);
    assert_eq!((connection.read(former), connection.read(ride)), (None, Some(at(7))));
    replay(&connection, ride, 8, "eight");
    assert_eq!(connection.next(), frames(&["eight"]));
    assert_eq!(connection.next(), Next::Nothing, "it rides on");
}

#[test]
fn an_overflow_falls_back_to_the_log_behind_what_waits() {
    let connection = live(10, 5);
    for position in 6..9 {
        offer(&connection, position, "123456");
    }
    assert_eq!(connection.next(), frames(&["123456"]));
    reads_from(&connection, 6);
}

#[test]
fn a_missed_stretch_is_read_from_where_the_hub_stood() {
    let connection = live(100, 5);
    offer(&connection, 6, "six");
    connection.fall_back(at(7));
    assert_eq!(connection.next(), frames(&["six"]));
    reads_from(&connection, 7);
    let ahead = live(100, 9);
    ahead.fall_back(at(7));
    reads_from(&ahead, 9);
}

#[tokio::test]
async fn a_full_one_has_room_when_it_was_taken_closed_or_is_gone() {
    let free: [fn(&Connection); 3] = [|full| drop(full.next()), |full| full.close(Close::TooSlow), |full| full.end()];
    for free in free {
        let connection = connection(4);
        let (ride, _) = connection.board();
        replay(&connection, ride, 6, "1234");
        assert!(connection.is_full());
        let mut room = std::pin::pin!(connection.has_room());
        assert!(futures_util::poll!(&mut room).is_pending());
        free(&connection);
        room.await;
    }
}

#[test]
fn has_everything_only_when_it_is_live_and_nothing_waits() {
    let connection = connection(100);
    let (ride, _) = connection.board();
    assert_eq!((connection.has_all_of(at(5)), connection.sent(None)), (None, at(5)));
    connection.join(Some(ride), at(5), at(7));
    assert_eq!(connection.has_all_of(at(7)), None);
    replay(&connection, ride, 6, "six");
    connection.read_to(ride, at(7));
    assert_eq!((connection.has_all_of(at(7)), connection.sent(Some(at(7)))), (None, Offset::default()), "six waits");
    assert_eq!(connection.next(), frames(&["six"]));
    assert_eq!((connection.has_all_of(at(7)), connection.sent(Some(at(7)))), (Some(at(7)), at(7)));
    assert_eq!(connection.has_all_of(at(6)), Some(at(7)), "it has read more than the hub covers");
    offer(&connection, 8, "x");
    assert_eq!((connection.has_all_of(at(9)), connection.sent(Some(at(9)))), (None, at(6)));
    assert_eq!(connection.next(), frames(&["x"]));
    assert_eq!((connection.has_all_of(at(8)), connection.sent(Some(at(8)))), (Some(at(8)), at(8)));
}

#[test]
fn whoever_leaps_goes_on_in_another_epoch() {
    let connection = connection(100);
    let (ride, _) = connection.board();
    connection.join(Some(ride), at(6), at(8));
    connection.leap(ride, Offset::new(2, 0), None);
    connection.replay(ride, Offset::new(2, 1), &Bytes::from_static(b"new"));
    assert_eq!(connection.next(), frames(&["new"]));
}

#[test]
fn frames_are_written_before_the_close_unless_it_is_revoked() {
    let connection = live(100, 5);
    offer(&connection, 6, "x");
    connection.close(Close::GoingAway);
    connection.close(Close::TooSlow);
    assert_eq!(connection.next(), frames(&["x"]));
    assert_eq!(connection.next(), Next::Close(Close::GoingAway));

    let connection = live(100, 5);
    offer(&connection, 6, "x");
    connection.close(Close::GoingAway);
    connection.close(Close::Revoked);
    assert_eq!(connection.next(), Next::Close(Close::Revoked));
}

/// Whoever comes back goes on above the last frame it got: none may come after one that was left out.
#[test]
fn one_that_is_closed_while_it_joins_gets_nothing_above_what_it_has_read() {
    let connection = connection(100);
    let (ride, _) = connection.board();
    replay(&connection, ride, 6, "six");
    connection.join(Some(ride), at(6), at(8));
    offer(&connection, 9, "nine");
    connection.close(Close::GoingAway);
    replay(&connection, ride, 7, "seven");
    assert!(!connection.read_to(ride, at(9)), "it leaves the scan");
    offer(&connection, 10, "ten");
    assert_eq!(connection.next(), frames(&["six"]));
    assert_eq!(connection.next(), Next::Close(Close::GoingAway));
    connection.join(Some(ride), at(9), at(9));
    assert_eq!(connection.has_all_of(at(9)), None);
}

#[test]
fn belongs_to_the_login_of_its_newest_token() {
    let connection = connection(100);
    assert!(connection.is_of_session("s1"));
    connection.changes_session(Some("s2".into()));
    assert!(connection.is_of_session("s2") && !connection.is_of_session("s1"));
}
