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
    /// The last stretch of the change log, above `from` up to `upto`. What the hub has above that is buffered meanwhile, so that
    /// a connection goes live however fast the log grows.
    Joining { from: Offset, upto: Offset },
    /// From the change log, above `from`, until it has caught up.
    CatchingUp { from: Offset },
}

/// What the hub and a session share of a connection.
pub struct Connection {
    pub device: DeviceId,
    pub user: Option<UserId>,
    buffer: Mutex<Buffer>,
    most_bytes: usize,
    wake: Notify,
    recheck: AtomicBool,
}

struct Buffer {
    /// The login that its token stands for.
    session: Option<String>,
    mode: Mode,
    frames: Vec<Bytes>,
    bytes: usize,
    close: Option<Close>,
}

impl Buffer {
    /// Frames that were not taken are read from the log again.
    fn catch_up(&mut self, from: Offset) {
        self.mode = Mode::CatchingUp { from };
        self.forget();
    }

    fn forget(&mut self) {
        self.frames = Vec::new();
        self.bytes = 0;
    }
}

/// What a session finds to do.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Write these.
    Frames(Vec<Bytes>),
    /// Read the change log above `from`, and nothing above `upto`.
    CatchUp {
        from: Offset,
        upto: Option<Offset>,
    },
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
        let mode = Mode::CatchingUp { from };
        let buffer = Mutex::new(Buffer { session, mode, frames: Vec::new(), bytes: 0, close: None });
        // It was authenticated before the hub knew it: a revocation in between did not reach it.
        let (wake, recheck) = (Notify::new(), AtomicBool::new(true));
        Arc::new(Self { device, user, buffer, most_bytes, wake, recheck })
    }

    /// Offers a live frame. What does not fit is dropped here and read from the change log later: a slow device loses nothing
    /// and costs nobody anything.
    pub fn offer(&self, offset: Offset, frame: &Bytes) {
        let mut buffer = self.buffer.lock();
        let above = match buffer.mode {
            Mode::Live { above } | Mode::Joining { upto: above, .. } => above,
            Mode::CatchingUp { .. } => return,
        };
        if offset <= above || buffer.close.is_some() {
            return;
        }
        let fits = buffer.bytes + frame.len() <= self.most_bytes || buffer.frames.is_empty();
        match buffer.mode {
            _ if fits => {
                buffer.bytes += frame.len();
                buffer.frames.push(frame.clone());
            }
            // What is buffered stays: it is older than what the log has to give from here on.
            Mode::Live { .. } => {
                buffer.mode = Mode::CatchingUp { from: Offset::new(offset.epoch, offset.position.saturating_sub(1)) };
            }
            Mode::Joining { from, .. } | Mode::CatchingUp { from } => buffer.catch_up(from),
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// The hub has missed something: live connections read on from where the hub stood.
    pub fn fall_back(&self, hub_stood_at: Offset) {
        let mut buffer = self.buffer.lock();
        match buffer.mode {
            Mode::Live { above } => buffer.mode = Mode::CatchingUp { from: hub_stood_at.max(above) },
            Mode::Joining { from, .. } => buffer.catch_up(from),
            Mode::CatchingUp { .. } => {}
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// It has read the log up to `position`, its end, and the hub covers it up to `upto`: it goes live, at once if nothing covered
    /// is unread, else when it has read that, too.
    pub fn join(&self, position: Offset, upto: Offset) {
        let mut buffer = self.buffer.lock();
        buffer.mode =
            if position >= upto { Mode::Live { above: position } } else { Mode::Joining { from: position, upto } };
    }

    /// It has read the log up to here, and goes on from here.
    pub fn read_to(&self, position: Offset) {
        let mut buffer = self.buffer.lock();
        match buffer.mode {
            Mode::Joining { upto, .. } if position >= upto => buffer.mode = Mode::Live { above: upto },
            Mode::Joining { upto, .. } => buffer.mode = Mode::Joining { from: position, upto },
            Mode::Live { .. } | Mode::CatchingUp { .. } => buffer.mode = Mode::CatchingUp { from: position },
        }
    }

    /// Live, and everything that the hub has offered was taken: the offset that this is true for, where the hub stands at `upto`.
    pub fn has_all_of(&self, upto: Offset) -> Option<Offset> {
        let buffer = self.buffer.lock();
        match buffer.mode {
            Mode::Live { above } if buffer.frames.is_empty() => Some(above.max(upto)),
            _ => None,
        }
    }

    pub fn is_live(&self) -> bool {
        !matches!(self.buffer.lock().mode, Mode::CatchingUp { .. })
    }

    /// Closes it when what it has taken is written. Who is revoked gets nothing of what waits.
    pub fn close(&self, close: Close) {
        let mut buffer = self.buffer.lock();
        if close == Close::Revoked {
            buffer.close = Some(close);
            buffer.forget();
        }
        buffer.close.get_or_insert(close);
        drop(buffer);
        self.wake.notify_one();
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

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What there is to do now: buffered frames come first, they are older than what the log has to give; but of one that is
    /// joining they are newer.
    pub fn next(&self) -> Next {
        let mut buffer = self.buffer.lock();
        let is_joining = matches!(buffer.mode, Mode::Joining { .. });
        if !buffer.frames.is_empty() && !is_joining {
            buffer.bytes = 0;
            // A buffer exists only while a socket is behind: an idle connection keeps none.
            return Next::Frames(std::mem::take(&mut buffer.frames));
        }
        match (buffer.close, buffer.mode) {
            (Some(close), _) => Next::Close(close),
            (None, Mode::CatchingUp { from }) => Next::CatchUp { from, upto: None },
            (None, Mode::Joining { from, upto }) => Next::CatchUp { from, upto: Some(upto) },
            (None, Mode::Live { .. }) => Next::Nothing,
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

    fn frames(texts: &[&'static str]) -> Next {
        Next::Frames(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect())
    }

    fn catch_up(from: u64, upto: Option<u64>) -> Next {
        Next::CatchUp { from: at(from), upto: upto.map(at) }
    }

    #[test]
    fn a_connection_that_catches_up_takes_nothing_live() {
        let connection = connection(100);
        connection.offer(at(6), &Bytes::from_static(b"x"));
        assert_eq!(connection.next(), catch_up(5, None));
    }

    #[test]
    fn a_live_connection_takes_what_it_has_not_seen() {
        let connection = live(100, 6);
        connection.offer(at(6), &Bytes::from_static(b"seen"));
        connection.offer(at(7), &Bytes::from_static(b"new"));
        assert_eq!(connection.next(), frames(&["new"]));
        assert_eq!(connection.next(), Next::Nothing);
    }

    #[test]
    fn one_that_joins_buffers_what_is_above_what_it_still_reads() {
        let connection = connection(100);
        connection.join(at(6), at(8));
        for (position, text) in [(8, "read"), (9, "nine"), (10, "ten")] {
            connection.offer(at(position), &Bytes::from_static(text.as_bytes()));
        }
        assert_eq!(connection.next(), catch_up(6, Some(8)));
        connection.read_to(at(7));
        assert_eq!(connection.next(), catch_up(7, Some(8)));
        connection.read_to(at(8));
        assert_eq!(connection.next(), frames(&["nine", "ten"]));
        assert_eq!(connection.next(), Next::Nothing);
    }

    #[test]
    fn one_that_joins_reads_everything_again_that_did_not_fit_or_was_missed() {
        for is_overflow in [true, false] {
            let connection = connection(10);
            connection.join(at(6), at(8));
            connection.offer(at(9), &Bytes::from_static(b"123456"));
            match is_overflow {
                true => connection.offer(at(10), &Bytes::from_static(b"123456")),
                false => connection.fall_back(at(9)),
            }
            assert_eq!(connection.next(), catch_up(6, None));
            connection.read_to(at(8));
            assert_eq!(connection.next(), catch_up(8, None));
        }
    }

    #[test]
    fn an_overflow_falls_back_to_the_log_behind_what_is_buffered() {
        let connection = live(10, 5);
        for position in 6..9 {
            connection.offer(at(position), &Bytes::from_static(b"123456"));
        }
        assert_eq!(connection.next(), frames(&["123456"]));
        assert_eq!(connection.next(), catch_up(6, None));
    }

    #[test]
    fn a_missed_stretch_is_read_from_where_the_hub_stood() {
        let connection = live(100, 5);
        connection.offer(at(6), &Bytes::from_static(b"six"));
        connection.fall_back(at(7));
        assert_eq!(connection.next(), frames(&["six"]));
        assert_eq!(connection.next(), catch_up(7, None));
        let ahead = live(100, 9);
        ahead.fall_back(at(7));
        assert_eq!(ahead.next(), catch_up(9, None));
    }

    #[test]
    fn has_everything_only_when_it_is_live_and_nothing_waits() {
        let connection = connection(100);
        assert_eq!(connection.has_all_of(at(5)), None);
        connection.join(at(5), at(7));
        assert_eq!(connection.has_all_of(at(7)), None);
        connection.read_to(at(7));
        assert_eq!(connection.has_all_of(at(7)), Some(at(7)));
        assert_eq!(connection.has_all_of(at(6)), Some(at(7)), "it has read more than the hub covers");
        connection.offer(at(8), &Bytes::from_static(b"x"));
        assert_eq!(connection.has_all_of(at(8)), None);
        assert_eq!(connection.next(), frames(&["x"]));
        assert_eq!(connection.has_all_of(at(8)), Some(at(8)));
    }

    #[test]
    fn frames_are_written_before_the_close_unless_it_is_revoked() {
        let connection = live(100, 5);
        connection.offer(at(6), &Bytes::from_static(b"x"));
        connection.close(Close::GoingAway);
        connection.close(Close::TooSlow);
        assert_eq!(connection.next(), frames(&["x"]));
        assert_eq!(connection.next(), Next::Close(Close::GoingAway));

        let connection = live(100, 5);
        connection.offer(at(6), &Bytes::from_static(b"x"));
        connection.close(Close::GoingAway);
        connection.close(Close::Revoked);
        assert_eq!(connection.next(), Next::Close(Close::Revoked));
    }

    #[test]
    fn belongs_to_the_login_of_its_newest_token() {
        let connection = connection(100);
        assert!(connection.is_of_session("s1"));
        connection.changes_session(Some("s2".into()));
        assert!(connection.is_of_session("s2") && !connection.is_of_session("s1"));
    }
}
