//! Prepared files for coming segments: filled with zeros ahead of time at first, later those of released segments.
//!
//! Their blocks are there and their size is final, so writing a record needs neither room nor a change of metadata.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::files::{File, Files};

/// Most files of released segments that are kept, and segments that one append may fill.
pub(super) const MOST_SPARES: usize = 2;
/// Written and synced at once: more would delay the syncs of the committer.
const CHUNK: usize = 4 * 1024 * 1024;

pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
}

#[derive(Default)]
pub(super) struct Spares {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: Vec<Spare>,
    highest_number: u64,
    /// Why none could be prepared.
    trouble: Option<io::ErrorKind>,
}

impl Spares {
    /// Takes up the spare files that a directory holds; removes those that are of no use.
    pub(super) fn found(files: &dyn Files, dir: &Path, numbers: &[u64], bytes: u32) -> io::Result<Self> {
        let mut state = State { highest_number: numbers.iter().copied().max().unwrap_or(0), ..State::default() };
        for number in numbers {
            let path = path(dir, *number);
            let file = files.open(&path)?;
            if file.length()? == u64::from(bytes) && state.ready.len() < MOST_SPARES {
                state.ready.push(Spare { path, file });
            } else {
                files.remove(&path)?;
            }
        }
        Ok(Self { state: Mutex::new(state) })
    }

    pub(super) fn n_ready(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Why none could be prepared, at the last try.
    pub(super) fn trouble(&self) -> Option<io::ErrorKind> {
        self.state.lock().trouble
    }

    pub(super) fn take(&self) -> Option<Spare> {
        self.state.lock().ready.pop()
    }

    pub(super) fn put(&self, spare: Spare) {
        let mut state = self.state.lock();
        state.ready.push(spare);
        state.trouble = None;
    }

    /// A name that no spare file has.
    pub(super) fn new_path(&self, dir: &Path) -> PathBuf {
        let mut state = self.state.lock();
        state.highest_number += 1;
        path(dir, state.highest_number)
    }

    /// Prepares files until there are so many. An error stays noted until a later try succeeds.
    pub(super) fn prepare(&self, n_spares: usize, files: &dyn Files, dir: &Path, bytes: u32) -> io::Result<()> {
        while self.n_ready() < n_spares {
            let path = self.new_path(dir);
            match zero_filled(files, &path, bytes) {
                Ok(file) => self.put(Spare { path, file }),
                Err(error) => {
                    self.state.lock().trouble = Some(error.kind());
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("spare.{number}"))
}

fn zero_filled(files: &dyn Files, path: &Path, bytes: u32) -> io::Result<Arc<dyn File>> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".tmp");
    let draft = PathBuf::from(draft);
    let filled = fill(files, &draft, bytes).and_then(|file| files.rename(&draft, path).map(|()| file));
    if filled.is_err() {
        // The room is needed more than ever. What is left of it goes at the next start.
        let _gone = files.remove(&draft);
    }
    filled
}

fn fill(files: &dyn Files, path: &Path, bytes: u32) -> io::Result<Arc<dyn File>> {
    let file = files.create(path)?;
    let zeros = vec![0; CHUNK.min(bytes as usize)];
    let mut at = 0;
    while at < u64::from(bytes) {
        let n = zeros.len().min((u64::from(bytes) - at) as usize);
        file.write_at(&zeros[..n], at)?;
        file.sync()?;
        at += n as u64;
    }
    Ok(file)
}
