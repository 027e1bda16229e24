//! One connection, as the hub sees it: a bounded buffer of frames, and whether it takes them.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
pub enum Mode {
    /// From the hub, as they come; those at or below `above` it has already.
    Live { above: Offset },
    /// From the change log, above `from`, until it has caught up.
    CatchingUp { from: Offset },
}

/// What the hub and a session share of a connection.
pub struct Connection {
    pub device: DeviceId,
    pub user: Option<UserId>,
    pub session: Option<String>,
    buffer: Mutex<Buffer>,
    most_bytes: usize,
    wake: Notify,
    recheck: AtomicBool,
}

struct Buffer {
    mode: Mode,
    frames: VecDeque<Bytes>,
    bytes: usize,
    close: Option<Close>,
}

/// What a session finds to do.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Write these.
    Frames(Vec<Bytes>),
    /// Read the change log above this.
    CatchUp(Offset),
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
        let buffer =
            Mutex::new(Buffer { mode: Mode::CatchingUp { from }, frames: VecDeque::new(), bytes: 0, close: None });
        let (wake, recheck) = (Notify::new(), AtomicBool::new(false));
        Arc::new(Self { device, user, session, buffer, most_bytes, wake, recheck })
    }

    /// Offers a live frame. What does not fit is dropped here and read from the change log later: a slow device loses nothing
    /// and costs nobody anything.
    pub fn offer(&self, offset: Offset, frame: &Bytes) {
        let mut buffer = self.buffer.lock();
        let Mode::Live { above } = buffer.mode else { return };
        if offset <= above || buffer.close.is_some() {
            return;
        }
        if buffer.bytes + frame.len() > self.most_bytes && !buffer.frames.is_empty() {
            buffer.mode = Mode::CatchingUp { from: Offset::new(offset.epoch, offset.position.saturating_sub(1)) };
        } else {
            buffer.bytes += frame.len();
            buffer.frames.push_back(frame.clone());
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// The hub has missed something: live connections read on from where the hub stood.
    pub fn fall_back(&self, hub_stood_at: Offset) {
        let mut buffer = self.buffer.lock();
        if let Mode::Live { above } = buffer.mode {
            buffer.mode = Mode::CatchingUp { from: hub_stood_at.max(above) };
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// Goes live after having read everything up to here.
    pub fn go_live(&self, above: Offset) {
        self.buffer.lock().mode = Mode::Live { above };
    }

    /// Goes on catching up from here.
    pub fn caught_up_to(&self, from: Offset) {
        self.buffer.lock().mode = Mode::CatchingUp { from };
    }

    pub fn close(&self, close: Close) {
        self.buffer.lock().close.get_or_insert(close);
        self.wake.notify_one();
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

    /// What there is to do now: buffered frames come first, they are older than what the log has to give.
    pub fn next(&self) -> Next {
        let mut buffer = self.buffer.lock();
        if !buffer.frames.is_empty() {
            buffer.bytes = 0;
            // A buffer exists only while a socket is behind: an idle connection keeps none.
            return Next::Frames(std::mem::take(&mut buffer.frames).into());
        }
        match (buffer.close, buffer.mode) {
            (Some(close), _) => Next::Close(close),
            (None, Mode::CatchingUp { from }) => Next::CatchUp(from),
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
        Connection::new(DeviceId::parse("d").expect("an id"), None, None, at(5), most_bytes)
    }

    #[test]
    fn a_connection_that_catches_up_takes_nothing_live() {
        let connection = connection(100);
        connection.offer(at(6), &Bytes::from_static(b"x"));
        assert_eq!(connection.next(), Next::CatchUp(at(5)));
    }

    #[test]
    fn a_live_connection_takes_what_it_has_not_seen() {
        let connection = connection(100);
        connection.go_live(at(6));
        connection.offer(at(6), &Bytes::from_static(b"seen"));
        connection.offer(at(7), &Bytes::from_static(b"new"));
        assert_eq!(connection.next(), Next::Frames(vec![Bytes::from_static(b"new")]));
        assert_eq!(connection.next(), Next::Nothing);
    }

    #[test]
    fn an_overflow_falls_back_to_the_log_behind_what_is_buffered() {
        let connection = connection(10);
        connection.go_live(at(5));
        for position in 6..9 {
            connection.offer(at(position), &Bytes::from_static(b"123456"));
        }
        assert_eq!(connection.next(), Next::Frames(vec![Bytes::from_static(b"123456")]));
        assert_eq!(connection.next(), Next::CatchUp(at(6)));
    }

    #[test]
    fn frames_are_written_before_the_close() {
        let connection = connection(100);
        connection.go_live(at(5));
        connection.offer(at(6), &Bytes::from_static(b"x"));
        connection.close(Close::GoingAway);
        connection.close(Close::Revoked);
        assert!(matches!(connection.next(), Next::Frames(_)));
        assert_eq!(connection.next(), Next::Close(Close::GoingAway));
    }
}
