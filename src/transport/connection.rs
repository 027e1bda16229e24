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

/// One ride of a connection with a scan of the log. What is read for one never counts for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ride(u64);

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
    ride: Option<Ride>,
    n_rides: u64,
    /// The last frame of this ride.
    given: Offset,
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
        self.ride = None;
        if !self.ahead.is_empty() {
            self.pending.append(&mut self.ahead);
            self.last_pending = self.last_ahead;
        }
    }

    /// Live frames that were kept are read from the log again.
    fn drop_ahead(&mut self) {
        self.mode = Mode::Reading;
        self.bytes -= self.ahead.iter().map(Bytes::len).sum::<usize>();
        self.ahead = Vec::new();
    }

    /// The log is read on where this ride has come to, by another one: it may be past what was kept and is not there any more.
    fn board_again(&mut self) {
        self.drop_ahead();
        if self.ride.take().is_some() {
            self.read = self.read.max(self.given);
        }
    }

    fn is_on(&self, ride: Ride) -> bool {
        self.ride == Some(ride) && !self.gone && self.close.is_none()
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
            ride: None,
            n_rides: 0,
            given: Offset::default(),
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
            Mode::Joining { .. } | Mode::Reading => buffer.board_again(),
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
            Mode::Joining { .. } => buffer.board_again(),
            Mode::Reading => {}
        }
        drop(buffer);
        self.wake.notify_one();
    }

    /// It has read the log up to `position`, its end, and the hub covers it up to `upto`: it goes live, at once if nothing covered
    /// is unread, else when it has read that, too. `ride`: the one that has read it; none where nothing had to be read.
    pub fn join(&self, ride: Option<Ride>, position: Offset, upto: Offset) {
        let mut buffer = self.buffer.lock();
        if buffer.ride != ride || buffer.mode != Mode::Reading || buffer.close.is_some() {
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

    /// It is to be read on for. Gives the ride that begins, and from where on.
    pub fn board(&self) -> (Ride, Offset) {
        let mut buffer = self.buffer.lock();
        if buffer.ride.is_some() {
            buffer.board_again();
        }
        buffer.n_rides += 1;
        let ride = Ride(buffer.n_rides);
        (buffer.ride, buffer.given) = (Some(ride), Offset::default());
        (ride, buffer.read)
    }

    /// Up to where the log was read for it; none when the ride is over.
    pub fn read(&self, ride: Ride) -> Option<Offset> {
        let buffer = self.buffer.lock();
        buffer.is_on(ride).then_some(buffer.read)
    }

    /// A frame from the scan. It always fits: the scan waits for whoever is full, or lets it go.
    pub fn replay(&self, ride: Ride, offset: Offset, frame: &Bytes) {
        let mut buffer = self.buffer.lock();
        let is_kept = matches!(buffer.mode, Mode::Joining { upto } if offset > upto);
        if !buffer.is_on(ride) || is_kept || offset <= buffer.read {
            return;
        }
        buffer.push(offset, frame);
        buffer.given = offset;
        drop(buffer);
        self.wake.notify_one();
    }

    /// The scan has given everything up to here. Gives whether the connection rides on.
    pub fn read_to(&self, ride: Ride, position: Offset) -> bool {
        let mut buffer = self.buffer.lock();
        if !buffer.is_on(ride) {
            return false;
        }
        buffer.read = buffer.read.max(position);
        if let Mode::Joining { upto } = buffer.mode
            && position >= upto
        {
            buffer.go_live(upto);
            drop(buffer);
            self.wake.notify_one();
            return false;
        }
        true
    }

    /// What lies between cannot be read any more: it is told so, and goes on from here, in whatever epoch that is.
    pub fn leap(&self, ride: Ride, position: Offset, frame: Option<&Bytes>) {
        let mut buffer = self.buffer.lock();
        if !buffer.is_on(ride) {
            return;
        }
        buffer.drop_ahead();
        buffer.read = position;
        if let Some(frame) = frame {
            buffer.push(position, frame);
            drop(buffer);
            self.wake.notify_one();
        }
    }

    /// The scan goes on without it; it comes again when it has taken what it has.
    pub fn leave(&self, ride: Ride) {
        let mut buffer = self.buffer.lock();
        if buffer.ride != Some(ride) {
            return;
        }
        buffer.board_again();
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
            buffer.drop_ahead();
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
            (None, _) if buffer.ride.is_some() => Next::Nothing,
            (None, _) => Next::CatchUp,
        }
    }
}

#[cfg(test)]
mod tests;
