//! One connection, as the hub sees it: a bounded buffer of frames, and whether it takes them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use nexxus_storage::model::{DeviceId, Offset, UserId};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Why a connection is closed: the code and the words of the close frame (contract §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// 1001: come back after a short while.
    GoingAway,
    /// 4001: come back with a fresh token.
    Expired,
    /// 4003: do not come back with this token.
    Revoked,
    /// 4008: too slow; come back with `since`.
    TooSlow,
}

impl Close {
    pub fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Expired => 4001,
            Self::Revoked => 4003,
            Self::TooSlow => 4008,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::GoingAway => "the server is going away, come back with since",
            Self::Expired => "the token has expired",
            Self::Revoked => "revoked",
            Self::TooSlow => "no progress, come back with since",
        }
    }
}

/// How a connection gets its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// From the hub, as they come; those at or below `above` it has already.
    Live { above: Offset },
    /// The last stretch of the change log, up to `upto`. What the hub has above that is kept meanwhile, so that a connection goes
    /// live however fast the log grows.
    Joining { upto: Offset },
    /// From the change log, until it has caught up.
    Reading,
}

/// What the hub, a scan of the change log and a session share of a connection.
pub struct Connection {
    pub device: DeviceId,
    pub user: Option<UserId>,
    buffer: Mutex<Buffer>,
    most_bytes: usize,
    wake: Notify,
    /// The session has taken frames.
    taken: Notify,
    recheck: AtomicBool,
}

struct Buffer {
    /// The login that its token stands for.
    session: Option<String>,
    mode: Mode,
    /// How far the log was read for it, while it is not live.
    read: Offset,
    /// The transport manager knows it for every change above it.
    attached_at: Offset,
    /// A scan of the log has it: it gets frames without asking.
    rides: bool,
    /// The first entry that the scan had and it did not take: it was kept in `ahead`. Should it have to read the log instead, that is
    /// where it goes on.
    skipped: Option<Offset>,
    /// What the session takes next, in order.
    pending: Vec<Bytes>,
    /// Live frames above the stretch that is still read.
    ahead: Vec<Bytes>,
    bytes: usize,
    /// The offsets of the last frames there.
    last_pending: Offset,
    last_ahead: Offset,
    /// The offset of the last frame that the session took.
    sent: Offset,
    close: Option<Close>,
    gone: bool,
}

impl Buffer {
    fn push(&mut self, offset: Offset, frame: &Bytes) {
        self.bytes += frame.len();
        self.pending.push(frame.clone());
        self.last_pending = offset;
    }

    fn go_live(&mut self, above: Offset) {
        self.mode = Mode::Live { above };
        self.rides = false;
        self.skipped = None;
        if !self.ahead.is_empty() {
            self.pending.append(&mut self.ahead);
            self.last_pending = self.last_ahead;
        }
    }

    /// Live frames that were kept are read from the log again.
    fn read_on(&mut self) {
        self.mode = Mode::Reading;
        self.bytes -= self.ahead.iter().map(Bytes::len).sum::<usize>();
        self.ahead = Vec::new();
    }

    fn forget(&mut self) {
        self.pending = Vec::new();
        self.ahead = Vec::new();
        self.bytes = 0;
    }
}

/// What a session finds to do.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Write these.
    Frames(Vec<Bytes>),
    /// Have the change log read for it.
    CatchUp,
    Close(Close),
    /// Wait.
    Nothing,
}

impl Connection {
    /// A connection that begins by catching up from an offset.
    pub fn new(
        device: DeviceId,
        user: Option<UserId>,
        session: Option<String>,
        from: Offset,
        most_bytes: usize,
    ) -> Arc<Self> {
        let buffer = Mutex::new(Buffer {
            session,
            mode: Mode::Reading,
            read: from,
            attached_at: from,
            rides: false,
            skipped: None,
            pending: Vec::new(),
            ahead: Vec::new(),
            bytes: 0,
            last_pending: Offset::default(),
            last_ahead: Offset::default(),
            sent: Offset::default(),
            close: None,
            gone: false,
        });
        // It was authenticated before the hub knew it: a revocation in between did not reach it.
        let (wake, taken, recheck) = (Notify::new(), Notify::new(), AtomicBool::new(true));
        Arc::new(Self { device, user, buffer, most_bytes, wake, taken, recheck })
    }

    /// It was registered: the transport manager knows it for every change above `attached_at`, and it goes on above `from`.
    pub fn begin(&self, from: Offset, attached_at: Offset) {
        let mut buffer = self.buffer.lock();
        (buffer.read, buffer.attached_at) = (from, attached_at);
    }

    pub fn attached_at(&self) -> Offset {
        self.buffer.lock().attached_at
    }

    /// Offers a live frame. What does not fit is dropped here and read from the change log later: a slow device loses nothing
    /// and costs nobody anything.
    pub fn offer(&self, offset: Offset, frame: &Bytes) {
        let mut buffer = self.buffer.lock();
        let above = match buffer.mode {
            Mode::Live { above } | Mode::Joining { upto: above } => above,
            Mode::Reading => return,
        };
        if offset <= above || buffer.close.is_some() {
            return;
        }
        let fits = buffer.bytes + frame.len() <= self.most_bytes || buffer.bytes == 0;
        match buffer.mode {
            Mode::Live { .. } if fits => buffer.push(offset, frame),
            // What is pending stays: it is older than what the log has to give from here on.
            Mode::Live { .. } => {
                buffer.mode = Mode::Reading;
                buffer.read = Offset::new(offset.epoch, offset.position.saturating_sub(1));
            }
            _ if fits => {
                buffer.bytes += frame.len();
                buffer.ahead.push(frame.clone());
                buffer.last_ahead = offset;
                return;
            }
            Mode::Joining { .. } | Mode::Reading => buffer.read_on(),
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// The hub has missed something: live connections read on from where the hub stood.
    pub fn fall_back(&self, hub_stood_at: Offset) {
        let mut buffer = self.buffer.lock();
        match buffer.mode {
            Mode::Live { above } => {
                buffer.mode = Mode::Reading;
                buffer.read = hub_stood_at.max(above);
            }
            Mode::Joining { .. } => buffer.read_on(),
            Mode::Reading => {}
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// It has read the log up to `position`, its end, and the hub covers it up to `upto`: it goes live, at once if nothing covered
    /// is unread, else when it has read that, too.
    pub fn join(&self, position: Offset, upto: Offset) {
        let mut buffer = self.buffer.lock();
        if buffer.mode != Mode::Reading || buffer.close.is_some() {
            return;
        }
        buffer.read = buffer.read.max(position);
        if position >= upto {
            buffer.go_live(position);
        } else {
            buffer.mode = Mode::Joining { upto };
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// A scan of the log takes it along. Gives from where on.
    pub fn ride(&self) -> Offset {
        let mut buffer = self.buffer.lock();
        buffer.rides = true;
        buffer.read
    }

    /// A frame from the scan. It always fits: the scan waits for whoever is full, or lets it go.
    pub fn replay(&self, offset: Offset, frame: &Bytes) {
        let mut buffer = self.buffer.lock();
        let is_above = match buffer.mode {
            Mode::Live { .. } => true,
            Mode::Joining { upto } => offset > upto,
            Mode::Reading => false,
        };
        if is_above && buffer.rides && buffer.mode != Mode::Reading {
            buffer.skipped.get_or_insert(offset);
        }
        let is_taken = offset <= buffer.read || offset <= buffer.last_pending || buffer.skipped.is_some();
        if !buffer.rides || buffer.gone || is_above || is_taken || buffer.close.is_some() {
            return;
        }
        buffer.push(offset, frame);
        drop(buffer);
        self.wake.notify_one();
    }

    /// The scan has given everything up to here. Gives whether the connection rides on.
    pub fn read_to(&self, position: Offset) -> bool {
        let mut buffer = self.buffer.lock();
        if buffer.gone || buffer.close.is_some() {
            return false;
        }
        match buffer.mode {
            Mode::Joining { upto } if position >= upto => {
                buffer.read = buffer.read.max(position);
                buffer.go_live(upto);
                drop(buffer);
                self.wake.notify_one();
                return false;
            }
            // What it skipped was dropped since: the scan is past it, so it has to board again.
            Mode::Reading if buffer.skipped.is_some() => {
                let skipped = buffer.skipped.take().unwrap_or_default();
                let before = Offset::new(skipped.epoch, skipped.position.saturating_sub(1));
                buffer.read = buffer.read.max(before);
                buffer.rides = false;
                drop(buffer);
                self.wake.notify_one();
                return false;
            }
            _ => {}
        }
        buffer.read = buffer.read.max(position);
        buffer.rides
    }

    /// What lies between cannot be read any more: it is told so, and goes on from here, in whatever epoch that is.
    pub fn leap(&self, position: Offset, frame: Option<&Bytes>) {
        let mut buffer = self.buffer.lock();
        buffer.read_on();
        buffer.skipped = None;
        buffer.read = position;
        if let Some(frame) = frame {
            buffer.push(position, frame);
            drop(buffer);
            self.wake.notify_one();
        }
    }

    /// The scan goes on without it; it comes again when it has taken what it has.
    pub fn leave(&self) {
        let mut buffer = self.buffer.lock();
        buffer.rides = false;
        buffer.skipped = None;
        if matches!(buffer.mode, Mode::Joining { .. }) {
            buffer.read_on();
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// More waits than should.
    pub fn is_full(&self) -> bool {
        self.buffer.lock().bytes >= self.most_bytes
    }

    /// Waits until the session has taken what waits. Cancel-safe.
    pub async fn has_room(&self) {
        while self.is_full() && self.closing().is_none() {
            self.taken.notified().await;
        }
    }

    /// Live, and everything that the hub has offered was taken: the offset that this is true for, where the hub stands at `upto`.
    pub fn has_all_of(&self, upto: Offset) -> Option<Offset> {
        let buffer = self.buffer.lock();
        match buffer.mode {
            Mode::Live { above } if buffer.pending.is_empty() => Some(above.max(upto)),
            _ => None,
        }
    }

    /// Up to where everything that concerns it was given to its socket, at least, where the hub stands at `upto`.
    pub fn sent(&self, upto: Option<Offset>) -> Offset {
        let buffer = self.buffer.lock();
        let all = match buffer.mode {
            _ if !buffer.pending.is_empty() => Offset::default(),
            Mode::Live { above } => upto.map_or(above, |upto| above.max(upto)),
            Mode::Joining { .. } | Mode::Reading => buffer.read,
        };
        buffer.sent.max(all)
    }

    pub fn is_live(&self) -> bool {
        self.buffer.lock().mode != Mode::Reading
    }

    /// Closes it when what it has taken is written. Who is revoked gets nothing of what waits.
    pub fn close(&self, close: Close) {
        let mut buffer = self.buffer.lock();
        if close == Close::Revoked {
            buffer.close = Some(close);
            buffer.forget();
        }
        if matches!(buffer.mode, Mode::Joining { .. }) {
            // What lies below the frames that were kept is not read for it any more.
            buffer.read_on();
        }
        buffer.close.get_or_insert(close);
        drop(buffer);
        self.wake.notify_one();
        self.taken.notify_one();
    }

    /// Its socket is gone: nobody takes frames any more.
    pub fn end(&self) {
        let mut buffer = self.buffer.lock();
        buffer.gone = true;
        buffer.forget();
        drop(buffer);
        self.taken.notify_one();
    }

    /// Why it is being closed, if it is.
    pub fn closing(&self) -> Option<Close> {
        self.buffer.lock().close
    }

    pub fn is_of_session(&self, session: &str) -> bool {
        self.buffer.lock().session.as_deref() == Some(session)
    }

    /// A fresh token was shown, maybe of another login.
    pub fn changes_session(&self, session: Option<String>) {
        self.buffer.lock().session = session;
    }

    /// Asks the session to look whether its token still holds.
    pub fn recheck(&self) {
        self.recheck.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub fn takes_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::Relaxed)
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What there is to do now: frames that wait come first, they are older than what the log has to give.
    pub fn next(&self) -> Next {
        let mut buffer = self.buffer.lock();
        if !buffer.pending.is_empty() {
            // A buffer exists only while a socket is behind: an idle connection keeps none.
            let frames = std::mem::take(&mut buffer.pending);
            buffer.bytes -= frames.iter().map(Bytes::len).sum::<usize>();
            buffer.sent = buffer.last_pending;
            drop(buffer);
            self.taken.notify_one();
            return Next::Frames(frames);
        }
        match (buffer.close, buffer.mode) {
            (Some(close), _) => Next::Close(close),
            (None, Mode::Live { .. }) => Next::Nothing,
            (None, _) if buffer.rides => Next::Nothing,
            (None, _) => Next::CatchUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Offset {
        Offset::new(1, position)
    }

    fn connection(most_bytes: usize) -> Arc<Connection> {
        Connection::new(DeviceId::parse("d").expect("an id"), None, Some("s1".into()), at(5), most_bytes)
    }

    fn live(most_bytes: usize, above: u64) -> Arc<Connection> {
        let connection = connection(most_bytes);
        connection.join(at(above), at(above));
        connection
    }

    fn offer(connection: &Connection, position: u64, text: &'static str) {
        connection.offer(at(position), &Bytes::from_static(text.as_bytes()));
    }

    fn replay(connection: &Connection, position: u64, text: &'static str) {
        connection.replay(at(position), &Bytes::from_static(text.as_bytes()));
    }

    fn frames(texts: &[&'static str]) -> Next {
        Next::Frames(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect())
    }

    /// Nothing waits, and it asks to be read on for, from here.
    fn reads_from(connection: &Connection, position: u64) {
        assert_eq!(connection.next(), Next::CatchUp);
        assert_eq!(connection.ride(), at(position));
        connection.leave();
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
        replay(&connection, 8, "of a scan that it has left");
        assert_eq!(connection.next(), Next::Nothing);
    }

    #[test]
    fn one_that_rides_takes_what_the_scan_has_above_what_it_has_read() {
        let connection = connection(100);
        assert_eq!(connection.ride(), at(5));
        replay(&connection, 5, "read");
        replay(&connection, 6, "six");
        assert!(connection.read_to(at(7)));
        replay(&connection, 7, "a page again");
        replay(&connection, 8, "eight");
        assert_eq!(connection.next(), frames(&["six", "eight"]));
        assert_eq!(connection.next(), Next::Nothing, "more comes by itself");
        connection.leave();
        replay(&connection, 9, "without it");
        reads_from(&connection, 7);
    }

    #[test]
    fn one_that_joins_keeps_what_is_above_what_it_still_reads() {
        let connection = connection(100);
        connection.ride();
        replay(&connection, 6, "six");
        connection.join(at(6), at(8));
        for (position, text) in [(8, "read"), (9, "nine"), (10, "ten")] {
            offer(&connection, position, text);
        }
        assert_eq!(connection.next(), frames(&["six"]));
        assert_eq!(connection.next(), Next::Nothing);
        replay(&connection, 8, "eight");
        replay(&connection, 9, "kept already");
        assert!(!connection.read_to(at(9)), "it is live");
        assert_eq!(connection.next(), frames(&["eight", "nine", "ten"]));
        assert_eq!(connection.sent(None), at(10));
        assert_eq!(connection.next(), Next::Nothing);
    }

    #[test]
    fn one_that_joins_reads_everything_again_that_did_not_fit_or_was_missed() {
        for is_overflow in [true, false] {
            let connection = connection(10);
            connection.ride();
            connection.join(at(6), at(8));
            offer(&connection, 9, "123456");
            match is_overflow {
                true => offer(&connection, 10, "123456"),
                false => connection.fall_back(at(9)),
            }
            assert!(connection.read_to(at(8)), "it rides on");
            assert_eq!(connection.next(), Next::Nothing);
            replay(&connection, 9, "again");
            assert_eq!(connection.next(), frames(&["again"]));
        }
    }

    /// The scan was past what was kept when that had to be dropped: it must not count as read.
    #[test]
    fn one_that_joins_reads_again_what_it_skipped_and_had_to_drop() {
        for is_overflow in [true, false] {
            let connection = connection(10);
            connection.ride();
            connection.join(at(6), at(8));
            offer(&connection, 9, "123456");
            replay(&connection, 8, "8");
            replay(&connection, 9, "kept");
            match is_overflow {
                true => offer(&connection, 10, "123456"),
                false => connection.fall_back(at(9)),
            }
            replay(&connection, 10, "ten, too early");
            assert!(!connection.read_to(at(10)), "it has to board again");
            assert_eq!(connection.next(), frames(&["8"]));
            reads_from(&connection, 8);
        }
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
        let free: [fn(&Connection); 3] =
            [|full| drop(full.next()), |full| full.close(Close::TooSlow), |full| full.end()];
        for free in free {
            let connection = connection(4);
            connection.ride();
            replay(&connection, 6, "1234");
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
        connection.ride();
        assert_eq!((connection.has_all_of(at(5)), connection.sent(None)), (None, at(5)));
        connection.join(at(5), at(7));
        assert_eq!(connection.has_all_of(at(7)), None);
        replay(&connection, 6, "six");
        connection.read_to(at(7));
        assert_eq!(
            (connection.has_all_of(at(7)), connection.sent(Some(at(7)))),
            (None, Offset::default()),
            "six waits"
        );
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
        connection.ride();
        connection.join(at(6), at(8));
        connection.leap(Offset::new(2, 0), None);
        connection.replay(Offset::new(2, 1), &Bytes::from_static(b"new"));
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
        connection.ride();
        replay(&connection, 6, "six");
        connection.join(at(6), at(8));
        offer(&connection, 9, "nine");
        connection.close(Close::GoingAway);
        replay(&connection, 7, "seven");
        assert!(!connection.read_to(at(9)), "it leaves the scan");
        offer(&connection, 10, "ten");
        assert_eq!(connection.next(), frames(&["six"]));
        assert_eq!(connection.next(), Next::Close(Close::GoingAway));
        connection.join(at(9), at(9));
        assert_eq!(connection.has_all_of(at(9)), None);
    }

    #[test]
    fn belongs_to_the_login_of_its_newest_token() {
        let connection = connection(100);
        assert!(connection.is_of_session("s1"));
        connection.changes_session(Some("s2".into()));
        assert!(connection.is_of_session("s2") && !connection.is_of_session("s1"));
    }
}
