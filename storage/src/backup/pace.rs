//! How a backup leaves the machine to the server that it is taken of: it works a part of the time only, and what it writes reaches
//! the disk bit by bit. A burst of either would make the journal's next sync wait, and with it every write.

use std::{
    fs::File,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

/// It rests so many times as long as it worked: a fifth of one core at most.
const REST: u32 = 4;
/// A wait for the disk or the client is no work of this machine's: a rest has this bound.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// What a file may hold that the disk has not got yet.
const UNSYNCED_BYTES: usize = 4 << 20;

/// The measure of work and rest.
pub(super) struct Pace {
    since: Instant,
}

impl Pace {
    /// Work begins now.
    pub(super) fn begin() -> Self {
        Self { since: Instant::now() }
    }

    /// A piece of work is done: rests for it. Blocking.
    pub(super) fn rest(&mut self) {
        thread::sleep((self.since.elapsed() * REST).min(LONGEST_REST));
        self.since = Instant::now();
    }
}

/// The file of a backup while it is written.
#[derive(Debug)]
pub struct Draft {
    file: File,
    n_unsynced: usize,
}

impl Draft {
    pub(super) fn new(file: File) -> Self {
        Self { file, n_unsynced: 0 }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_written = self.file.write(bytes)?;
        self.n_unsynced += n_written;
        if self.n_unsynced >= UNSYNCED_BYTES {
            self.file.sync_data()?;
            self.n_unsynced = 0;
        }
        Ok(n_written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_longer_than_it_works() {
        let mut pace = Pace::begin();
        thread::sleep(Duration::from_millis(5));
        let (begun, worked) = (Instant::now(), pace.since.elapsed());
        pace.rest();
        assert!(begun.elapsed() >= (worked * REST).min(LONGEST_REST));
        assert!(pace.since >= begun + worked, "the next piece of work begins after the rest");
    }
}
