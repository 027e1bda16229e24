//! A connection on one ride: it waits for a lap, or is on board of one.

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::model::Offset;

use crate::transport::connection::{Close, Connection, Ride};

#[derive(Clone)]
pub(super) struct Passenger {
    pub(super) connection: Arc<Connection>,
    pub(super) ride: Ride,
}

impl Passenger {
    /// Has a ride begin. Gives from where the log has to be read, too.
    pub(super) fn begin(connection: &Arc<Connection>) -> (Self, Offset) {
        let (ride, from) = connection.board();
        (Self { connection: connection.clone(), ride }, from)
    }

    pub(super) fn is_of(&self, connection: &Arc<Connection>) -> bool {
        Arc::ptr_eq(&self.connection, connection)
    }

    /// Up to where the log was read for it; none when it rides no more.
    pub(super) fn read(&self) -> Option<Offset> {
        self.connection.read(self.ride)
    }

    pub(super) fn replay(&self, offset: Offset, frame: &Bytes) {
        self.connection.replay(self.ride, offset, frame);
    }

    /// Everything up to here was given. Gives whether it rides on.
    pub(super) fn read_to(&self, position: Offset) -> bool {
        self.connection.read_to(self.ride, position)
    }

    pub(super) fn leap(&self, position: Offset, frame: Option<&Bytes>) {
        self.connection.leap(self.ride, position, frame);
    }

    pub(super) fn leave(&self) {
        self.connection.leave(self.ride);
    }

    /// Whoever still rides is told to come back.
    pub(super) fn send_away(&self) {
        if self.read().is_some() {
            self.connection.close(Close::GoingAway);
        }
    }
}
