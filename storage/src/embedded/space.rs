//! The free space of the disk that holds the data: how much is kept in reserve, and what is refused when it is touched.
//!
//! Above the reserve everything goes. Below it nothing may grow any more: no creates, no larger documents. Below half of it nothing
//! new is accepted at all: what is left is for what was accepted already, and for making room. The upkeep looks a few times a second;
//! by itself everything is accepted again when there is room, a little more than was missing, so that it does not flicker.

use std::{io, path::Path};

use parking_lot::Mutex;
use rustix::fs::statvfs;
use serde::Serialize;
use tracing::{debug, info, warn};

use crate::{Error, ErrorKind, Result};

/// The least that a share of the disk stands for, …
const LEAST_RESERVE: u64 = 512 << 20;
/// … as long as it is no larger part of the disk than this.
const MOST_OF_A_SMALL_DISK: u64 = 2;
/// The most that it stands for: what the server needs to finish what it accepted does not grow with the disk, and a large one that
/// others have nearly filled should not keep it from writing.
const MOST_RESERVE: u64 = 4 << 30;
/// So much of a bound has to be free above it before what it stopped goes on.
const CLEARANCE: u64 = 16;

/// Free space that is kept (`data.reserve`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Of the disk, in percent; at least 512 MiB, but on a small disk not more than half of it; at most 4 GiB.
    Percent(u8),
    Bytes(u64),
}

impl Reserve {
    fn of_disk(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let share = (total / 100 * u64::from(percent)).min(MOST_RESERVE);
                share.max(LEAST_RESERVE.min(total / MOST_OF_A_SMALL_DISK))
            }
        }
    }
}

/// What a call asks of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// There will be more data afterwards: a create, an update that makes a document larger, a new user.
    Growth,
    /// A record, soon outdated: a delete, a subscription, an acknowledgement, an admin's change.
    Record,
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Room {
    Ample,
    /// The reserve is touched: nothing grows.
    Low,
    /// Half of the reserve is gone: nothing new is accepted.
    Spent,
}

/// The disk as it was looked at last, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    free: u64,
    total: u64,
    reserve: u64,
    room: Room,
}

/// Measures the bytes of a disk that are free, and all it has.
pub(crate) type Measure = Box<dyn Fn() -> io::Result<(u64, u64)> + Send + Sync>;

/// Watches the free space of one disk.
pub(crate) struct Space {
    /// As people are told.
    dir: String,
    reserve: Reserve,
    measure: Measure,
    figures: Mutex<Figures>,
}

impl Space {
    pub(crate) fn of_dir(dir: &Path, reserve: Reserve) -> Self {
        let measured = dir.to_owned();
        let measure = move || {
            let disk = statvfs(&measured)?;
            Ok((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
        };
        Self::measured_by(dir, reserve, Box::new(measure))
    }

    pub(crate) fn measured_by(dir: &Path, reserve: Reserve, measure: Measure) -> Self {
        let unknown = Figures { free: u64::MAX, total: u64::MAX, reserve: 0, room: Room::Ample };
        let space = Self { dir: dir.display().to_string(), reserve, measure, figures: Mutex::new(unknown) };
        space.look();
        space
    }

    pub(crate) fn figures(&self) -> Figures {
        *self.figures.lock()
    }

    pub(crate) fn room(&self) -> Room {
        self.figures.lock().room
    }

    /// `DiskFull` when there is no room for what is asked.
    pub(crate) fn admit(&self, demand: Demand) -> Result<()> {
        let refuse = |message| Err(Error::new(ErrorKind::DiskFull, "admit", message));
        match (self.room(), demand) {
            (Room::Ample, _) | (Room::Low, Demand::Record) => Ok(()),
            (Room::Low, Demand::Growth) => {
                refuse("the disk is nearly full: what takes more room waits until there is some")
            }
            (Room::Spent, _) => refuse("the disk is full: nothing is written until there is room again"),
        }
    }

    /// Measures again, and says when something changed.
    pub(crate) fn look(&self) {
        let (free, total) = match (self.measure)() {
            Ok(measured) => measured,
            Err(error) => return debug!(%error, dir = self.dir, "the free space of the disk cannot be measured"),
        };
        let reserve = self.reserve.of_disk(total);
        let mut figures = self.figures.lock();
        let before = figures.room;
        let room = room(before, free, reserve);
        *figures = Figures { free, total, reserve, room };
        drop(figures);
        if room != before {
            self.say(free, reserve, room);
        }
    }

    fn say(&self, free: u64, reserve: u64, room: Room) {
        let (dir, free_mib, reserve_mib) = (&self.dir, free >> 20, reserve >> 20);
        match room {
            Room::Ample => info!(dir, free_mib, reserve_mib, "there is room on the disk again: everything is accepted"),
            Room::Low => warn!(
                dir,
                free_mib,
                reserve_mib,
                "the disk is nearly full (data.reserve): creates and updates that grow are refused with 507, all else goes on"
            ),
            Room::Spent => warn!(
                dir,
                free_mib,
                reserve_mib,
                "half of data.reserve is gone: nothing new is accepted (507), reads and sockets go on"
            ),
        }
    }
}

/// How much room there is, where it was `before`.
fn room(before: Room, free: u64, reserve: u64) -> Room {
    let is_below = |bound: u64, was_below: bool| {
        let clearance = if was_below { bound / CLEARANCE } else { 0 };
        free < bound.saturating_add(clearance)
    };
    if is_below(reserve / 2, before == Room::Spent) {
        Room::Spent
    } else if is_below(reserve, before != Room::Ample) {
        Room::Low
    } else {
        Room::Ample
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    #[test]
    fn a_share_is_512_mib_to_4_gib_and_leaves_half_of_a_small_disk() {
        for (reserve, total_mib, expected_mib) in [
            (Reserve::Percent(5), 40_000, 2_000),
            (Reserve::Percent(5), 1 << 20, 4 << 10),
            (Reserve::Percent(5), 4_096, 512),
            (Reserve::Percent(5), 64, 32),
            (Reserve::Percent(80), 64, 51),
            (Reserve::Percent(0), 4_096, 512),
            (Reserve::Bytes(0), 4_096, 0),
            (Reserve::Bytes(9 << 30), 4_096, 9 << 10),
        ] {
            assert_eq!(reserve.of_disk(total_mib << 20) >> 20, expected_mib, "{reserve:?} of {total_mib} MiB");
        }
    }

    #[test]
    fn the_reserve_stops_what_grows_and_half_of_it_everything_until_there_is_room_again() {
        let free = Arc::new(AtomicU64::new(1 << 30));
        let measured = free.clone();
        let measure = move || match measured.load(Ordering::Relaxed) {
            u64::MAX => Err(io::ErrorKind::Other.into()),
            free => Ok((free, 10 << 30)),
        };
        let space = Space::measured_by(Path::new("/data"), Reserve::Bytes(1_600), Box::new(measure));
        let accepted = |demand| match space.admit(demand) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::DiskFull);
                false
            }
        };
        for (bytes, room, grows, records) in [
            (1_600, Room::Ample, true, true),
            (1_599, Room::Low, false, true),
            (800, Room::Low, false, true),
            (799, Room::Spent, false, false),
            (0, Room::Spent, false, false),
            // Measured in vain: as before.
            (u64::MAX, Room::Spent, false, false),
            (849, Room::Spent, false, false),
            (850, Room::Low, false, true),
            (800, Room::Low, false, true),
            (1_600, Room::Low, false, true),
            (1_699, Room::Low, false, true),
            (1_700, Room::Ample, true, true),
            (1_600, Room::Ample, true, true),
            (799, Room::Spent, false, false),
            (1_700, Room::Ample, true, true),
        ] {
            free.store(bytes, Ordering::Relaxed);
            space.look();
            let found = (space.room(), accepted(Demand::Growth), accepted(Demand::Record));
            assert_eq!(found, (room, grows, records), "{bytes} bytes are free");
        }
    }

    #[test]
    fn a_real_disk_is_measured() {
        let dir = tempfile::tempdir().expect("a directory");
        let figures = |reserve| Space::of_dir(dir.path(), reserve).figures();
        let Figures { free, total, .. } = figures(Reserve::Bytes(0));
        assert!(free > 0 && free <= total, "{free} of {total}");
        assert_eq!(figures(Reserve::Bytes(u64::MAX)).room, Room::Spent);
    }
}
