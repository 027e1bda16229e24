//! Every connection of this worker, by application and device, and how far the log was covered for them. No I/O.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::model::{AppId, DeviceId, Offset};
use parking_lot::Mutex;
use tracing::debug;

use super::connection::{Close, Connection, Ride};
use crate::messages::ToDevices;

/// How long nothing may come of what is in the log. The transport manager looks at its end once a second.
const SILENCE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub struct Rooms {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// A room is there as long as somebody is in it.
    of: HashMap<AppId, Arc<Room>>,
    closing: bool,
}

/// The connections of one application.
#[derive(Default)]
struct Room {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Everything up to here was covered by what the transport manager sent; none before its first message.
    upto: Option<Offset>,
    /// Since when the log is known to go on above `upto`, unless something came since.
    silent_since: Option<Instant>,
    devices: HashMap<DeviceId, Held>,
}

/// The connections of one device.
#[derive(Default)]
struct Held {
    connections: Vec<Arc<Connection>>,
    /// The highest generation that the device had with one of them.
    generation: u64,
}

impl State {
    fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.devices.values().flat_map(|held| &held.connections)
    }
}

impl Rooms {
    fn room(&self, app: &AppId) -> Option<Arc<Room>> {
        self.all.lock().of.get(app).cloned()
    }

    /// Takes a connection in, before it is registered: so that whoever lets another connection of the device go knows of this
    /// one. It catches up first; [`Rooms::try_join`] makes it live.
    pub fn attach(&self, app: &AppId, connection: &Arc<Connection>) {
        let mut all = self.all.lock();
        if all.closing {
            connection.close(Close::GoingAway);
        }
        if !all.of.contains_key(app) {
            all.of.insert(app.clone(), Arc::default());
        }
        let Some(room) = all.of.get(app) else { return };
        // All rooms stay locked, so that this one is not cleared away as empty meanwhile.
        let mut state = room.state.lock();
        state.devices.entry(connection.device.clone()).or_default().connections.push(connection.clone());
        metrics::gauge!("nexxus_connections", "transport" => "websocket").increment(1.0);
    }

    /// The connection was registered: its device has this generation now.
    pub fn registered(&self, app: &AppId, device: &DeviceId, generation: u64) {
        let Some(room) = self.room(app) else { return };
        if let Some(held) = room.state.lock().devices.get_mut(device) {
            held.generation = held.generation.max(generation);
        }
    }

    /// Lets a connection go. When it was the last one of its device, and the device was registered: the highest generation that it
    /// had here.
    pub fn detach(&self, app: &AppId, connection: &Arc<Connection>) -> Option<u64> {
        let mut all = self.all.lock();
        let room = all.of.get(app)?.clone();
        let mut state = room.state.lock();
        let held = state.devices.get_mut(&connection.device)?;
        let n_before = held.connections.len();
        held.connections.retain(|other| !Arc::ptr_eq(other, connection));
        if held.connections.len() < n_before {
            metrics::gauge!("nexxus_connections", "transport" => "websocket").decrement(1.0);
        }
        if !held.connections.is_empty() {
            return None;
        }
        let held = state.devices.remove(&connection.device)?;
        if state.devices.is_empty() {
            all.of.remove(app);
        }
        (held.generation > 0).then_some(held.generation)
    }

    /// Lets a connection that has read the log up to `position`, its end, go live, if live frames go on from there: the transport
    /// manager must match everything above `position` with this connection known.
    pub fn try_join(&self, app: &AppId, connection: &Connection, ride: Option<Ride>, position: Offset) {
        let Some(room) = self.room(app) else { return };
        let state = room.state.lock();
        if let Some(upto) = state.upto
            && position >= connection.attached_at()
            && position.epoch == upto.epoch
        {
            connection.join(ride, position, upto);
        }
    }

    /// How far the log was covered for an application.
    pub fn covered(&self, app: &AppId) -> Option<Offset> {
        self.room(app)?.state.lock().upto
    }

    /// Up to where a device has got everything that concerns it, over one of its connections here.
    pub fn sent_to(&self, app: &AppId, device: &DeviceId) -> Offset {
        let Some(room) = self.room(app) else { return Offset::default() };
        let state = room.state.lock();
        let connections = state.devices.get(device).into_iter().flat_map(|held| &held.connections);
        connections.map(|connection| connection.sent(state.upto)).max().unwrap_or_default()
    }

    /// Up to where a connection has got everything that concerns it; none while something of that waits.
    pub fn sent_upto(&self, app: &AppId, connection: &Connection) -> Option<Offset> {
        let room = self.room(app)?;
        // While the room is locked, what covers more is not handed out either.
        let state = room.state.lock();
        connection.has_all_of(state.upto?)
    }

    /// Hands frames to the connections that they are for. Gives how many.
    pub fn deliver(&self, message: &ToDevices) -> u64 {
        let covers = &message.covers;
        // Nobody is here any more.
        let Some(room) = self.room(&covers.app) else { return 0 };
        let mut state = room.state.lock();
        state.silent_since = None;
        let seen = state.upto;
        if seen.is_some_and(|upto| covers.upto < upto) {
            return 0; // An older stretch again: everybody has it.
        }
        state.upto = Some(covers.upto);
        // Nobody is live before the first message.
        if let Some(upto) = seen.filter(|upto| covers.after > *upto) {
            debug!(app = %covers.app, after = %covers.after, %upto, "missed a stretch of the log, reading it");
            state.connections().for_each(|connection| connection.fall_back(upto));
            return 0;
        }
        let mut n_deliveries = 0;
        for message in &message.messages {
            if seen.is_some_and(|upto| message.offset <= upto) {
                continue; // The part of a stretch that came before.
            }
            for device in &message.devices {
                for connection in state.devices.get(device).into_iter().flat_map(|held| &held.connections) {
                    connection.offer(message.offset, &message.frame);
                    n_deliveries += 1;
                }
            }
        }
        n_deliveries
    }

    /// The applications of which something was covered.
    pub fn covered_applications(&self) -> Vec<AppId> {
        let all = self.all.lock();
        all.of.iter().filter(|(_, room)| room.state.lock().upto.is_some()).map(|(app, _)| app.clone()).collect()
    }

    /// Called about once a second with where the log is applied. When it has moved on and nothing comes of that for a while,
    /// something was dropped on its way here, and maybe nothing follows that would show it: live connections read the log.
    pub fn look_after(&self, app: &AppId, applied: Offset, now: Instant) {
        let Some(room) = self.room(app) else { return };
        let mut state = room.state.lock();
        let Some(upto) = state.upto.filter(|upto| applied > *upto) else { return };
        let since = *state.silent_since.get_or_insert(now);
        if now.duration_since(since) >= SILENCE {
            debug!(%app, %upto, "nothing comes although the log has moved on, reading it");
            state.connections().for_each(|connection| connection.fall_back(upto));
            state.silent_since = Some(now);
        }
    }

    pub fn each(&self, mut act: impl FnMut(&AppId, &Connection)) {
        for (app, room) in &self.all.lock().of {
            for connection in room.state.lock().connections() {
                act(app, connection);
            }
        }
    }

    /// Closes every connection, and whatever connects from now on.
    pub fn close_all(&self) {
        self.all.lock().closing = true;
        self.each(|_, connection| connection.close(Close::GoingAway));
    }

    pub fn n_connections(&self) -> usize {
        let mut n_connections = 0;
        self.each(|_, _| n_connections += 1);
        n_connections
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        messages::{Covers, DeviceMessage},
        transport::connection::Next,
    };

    fn at(position: u64) -> Offset {
        Offset::new(1, position)
    }

    fn app() -> AppId {
        AppId::parse("a").expect("an id")
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).expect("an id")
    }

    fn attach(rooms: &Rooms, name: &str, from: u64) -> Arc<Connection> {
        let connection = Connection::new(device(name), None, None, at(from), 1_000);
        rooms.attach(&app(), &connection);
        connection
    }

    /// Frames at these offsets for these devices, covering the log from one offset to another.
    fn stretch(after: u64, upto: u64, frames: &[(u64, &[&str])]) -> ToDevices {
        let message = |(offset, devices): &(u64, &[&str])| DeviceMessage {
            offset: at(*offset),
            devices: devices.iter().map(|name| device(name)).collect(),
            frame: Bytes::from(offset.to_string()),
        };
        let covers = Covers { app: app(), after: at(after), upto: at(upto) };
        ToDevices { covers, messages: frames.iter().map(message).collect() }
    }

    fn texts(connection: &Connection) -> Vec<String> {
        match connection.next() {
            Next::Frames(frames) => frames.iter().map(|frame| String::from_utf8_lossy(frame).into_owned()).collect(),
            Next::Nothing => Vec::new(),
            other => panic!("not live: {other:?}"),
        }
    }

    /// It asks to be read on for: from where.
    fn reads_from(connection: &Connection) -> Offset {
        assert_eq!(connection.next(), Next::CatchUp);
        let (ride, from) = connection.board();
        connection.leave(ride);
        from
    }

    /// Whether it is live, or will be, when it has read the log up to here.
    fn joins(rooms: &Rooms, connection: &Connection, position: Offset) -> bool {
        rooms.try_join(&app(), connection, None, position);
        connection.is_live()
    }

    #[test]
    fn a_connection_joins_where_the_hub_stands() {
        let rooms = Rooms::default();
        let connection = attach(&rooms, "d", 5);
        connection.begin(at(5), at(6));
        assert!(!joins(&rooms, &connection, at(6)), "nothing is covered yet");
        rooms.deliver(&stretch(7, 7, &[(7, &["d"])]));
        assert_eq!(reads_from(&connection), at(5));
        assert!(!joins(&rooms, &connection, at(5)), "it was attached above what it has read");
        assert!(joins(&rooms, &connection, at(6)));
        rooms.deliver(&stretch(7, 9, &[(9, &["d"])]));
        assert_eq!(connection.next(), Next::CatchUp, "seven is still to be read");
        let (ride, _) = connection.board();
        connection.read_to(ride, at(7));
        assert_eq!(texts(&connection), ["9"]);

        let other = attach(&rooms, "e", 5);
        assert!(!joins(&rooms, &other, Offset::new(2, 1)), "the hub stands in another epoch");
        assert!(joins(&rooms, &other, at(11)));
        rooms.deliver(&stretch(9, 12, &[(11, &["d", "e"]), (12, &["d", "e"])]));
        assert_eq!(texts(&other), ["12"]);
        assert_eq!(texts(&connection), ["11", "12"]);
    }

    fn live(rooms: &Rooms, name: &str, at_position: u64) -> Arc<Connection> {
        let connection = attach(rooms, name, at_position);
        rooms.deliver(&stretch(at_position, at_position, &[]));
        assert!(joins(rooms, &connection, at(at_position)));
        connection
    }

    #[test]
    fn offsets_rise_whatever_comes_twice() {
        let rooms = Rooms::default();
        let connection = live(&rooms, "d", 5);
        let first = stretch(5, 7, &[(6, &["d"]), (7, &["d"])]);
        rooms.deliver(&first);
        assert_eq!(texts(&connection), ["6", "7"]);
        rooms.deliver(&first);
        assert_eq!(texts(&connection), [""; 0]);
        rooms.deliver(&stretch(5, 8, &[(6, &["d"]), (7, &["d"]), (8, &["d"])]));
        assert_eq!(texts(&connection), ["8"]);
        rooms.deliver(&stretch(5, 6, &[(6, &["d"])]));
        assert_eq!((texts(&connection).len(), rooms.covered(&app())), (0, Some(at(8))));
    }

    #[test]
    fn a_missed_stretch_is_read_by_everybody() {
        let rooms = Rooms::default();
        let (one, other) = (live(&rooms, "d", 5), live(&rooms, "e", 5));
        rooms.deliver(&stretch(8, 9, &[(9, &["d"])]));
        assert_eq!((reads_from(&one), reads_from(&other)), (at(5), at(5)));
        assert!(joins(&rooms, &one, at(10)));
        rooms.deliver(&stretch(9, 11, &[(10, &["d"]), (11, &["d"])]));
        assert_eq!(texts(&one), ["11"]);
    }

    #[test]
    fn what_was_dropped_at_the_end_is_found_by_the_silence() {
        let rooms = Rooms::default();
        let connection = live(&rooms, "d", 5);
        let begin = Instant::now();
        let look_after = |seconds, applied| rooms.look_after(&app(), at(applied), begin + Duration::from_secs(seconds));
        look_after(0, 5);
        look_after(10, 7);
        look_after(12, 9);
        assert_eq!(connection.next(), Next::Nothing, "it may be on its way");
        rooms.deliver(&stretch(5, 6, &[]));
        look_after(13, 9);
        assert_eq!(connection.next(), Next::Nothing, "something came");
        look_after(16, 9);
        assert_eq!(reads_from(&connection), at(6));
        assert!(joins(&rooms, &connection, at(9)));
        rooms.deliver(&stretch(9, 10, &[(10, &["d"])]));
        assert_eq!(reads_from(&connection), at(9), "who has read more than the hub knows of loses nothing");
    }

    #[test]
    fn progress_is_told_only_of_what_was_sent() {
        let rooms = Rooms::default();
        let waiting = attach(&rooms, "e", 5);
        let connection = live(&rooms, "d", 5);
        assert_eq!(rooms.sent_upto(&app(), &waiting), None);
        rooms.deliver(&stretch(5, 7, &[(6, &["d"])]));
        assert_eq!(rooms.sent_upto(&app(), &connection), None);
        assert_eq!(texts(&connection), ["6"]);
        assert_eq!(rooms.sent_upto(&app(), &connection), Some(at(7)));
        assert_eq!(rooms.sent_to(&app(), &device("d")), at(7));
        assert_eq!(rooms.sent_to(&app(), &device("e")), at(5), "it has read no further");
        assert_eq!(rooms.sent_to(&app(), &device("f")), Offset::default());
    }

    #[test]
    fn the_last_connection_of_a_registered_device_takes_its_generation_along() {
        let rooms = Rooms::default();
        let (one, two) = (attach(&rooms, "d", 5), attach(&rooms, "d", 5));
        rooms.registered(&app(), &device("d"), 4);
        rooms.registered(&app(), &device("d"), 3);
        assert_eq!(rooms.detach(&app(), &one), None, "another one is there");
        assert_eq!(rooms.detach(&app(), &one), None, "it went already");
        assert_eq!(rooms.detach(&app(), &two), Some(4));
        let refused = attach(&rooms, "d", 5);
        assert_eq!(rooms.detach(&app(), &refused), None, "it never was registered");
    }

    #[test]
    fn an_empty_room_is_cleared_away() {
        let rooms = Rooms::default();
        let connection = live(&rooms, "d", 5);
        rooms.detach(&app(), &connection);
        rooms.deliver(&stretch(5, 6, &[(6, &["d"])]));
        assert!(rooms.all.lock().of.is_empty());
        assert_eq!((rooms.covered(&app()), rooms.n_connections()), (None, 0));
    }

    #[test]
    fn whoever_comes_while_it_closes_is_closed() {
        let rooms = Rooms::default();
        let before = attach(&rooms, "d", 5);
        rooms.close_all();
        let after = attach(&rooms, "e", 5);
        for connection in [before, after] {
            assert_eq!(connection.next(), Next::Close(Close::GoingAway));
        }
    }
}
