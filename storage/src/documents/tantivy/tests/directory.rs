//! A directory of the index whose disk can be full, and whose commits can be held.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use tantivy::{
    Directory,
    directory::{
        DirectoryLock, FileHandle, Lock, MmapDirectory, TerminatingWrite, WatchCallback, WatchHandle, WritePtr,
        error::{DeleteError, LockError, OpenReadError, OpenWriteError},
    },
};

/// What the disk does from now on. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Disk {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    /// Bytes that can still be written; none: as many as one likes.
    space: Option<usize>,
    /// The replacing of the file that makes a commit is held, or fails.
    commits: Commits,
    /// How many commits are held.
    held: usize,
    failures: usize,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Commits {
    #[default]
    Pass,
    /// One passes, then they fail.
    PassOne,
    Hold,
    Fail,
}

impl Disk {
    /// From now on only so many bytes can be written.
    pub(super) fn limit(&self, space: usize) {
        self.state.0.lock().space = Some(space);
    }

    pub(super) fn unlimit(&self) {
        self.state.0.lock().space = None;
    }

    pub(super) fn hold_commits(&self) {
        self.state.0.lock().commits = Commits::Hold;
    }

    pub(super) fn fail_commits(&self) {
        self.state.0.lock().commits = Commits::Fail;
        self.state.1.notify_all();
    }

    /// The next commit is the last one: no merge that follows it comes to its end.
    pub(super) fn pass_one_commit(&self) {
        self.state.0.lock().commits = Commits::PassOne;
    }

    pub(super) fn pass_commits(&self) {
        self.state.0.lock().commits = Commits::Pass;
        self.state.1.notify_all();
    }

    pub(super) fn is_holding(&self) -> bool {
        self.state.0.lock().held > 0
    }

    /// How many writes have failed.
    pub(super) fn failures(&self) -> usize {
        self.state.0.lock().failures
    }

    fn use_space(&self, bytes: usize) -> io::Result<()> {
        let mut state = self.state.0.lock();
        match &mut state.space {
            None => Ok(()),
            Some(space) if *space >= bytes => {
                *space -= bytes;
                Ok(())
            }
            Some(_) => {
                state.failures += 1;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
        }
    }

    fn pass_commit(&self) -> io::Result<()> {
        let mut state = self.state.0.lock();
        state.held += 1;
        self.state.1.wait_while(&mut state, |state| state.commits == Commits::Hold);
        state.held -= 1;
        match state.commits {
            Commits::Fail => Err(io::Error::other("the process is gone")),
            Commits::PassOne => {
                state.commits = Commits::Fail;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Clone)]
pub(super) struct TestDirectory {
    pub(super) inner: MmapDirectory,
    pub(super) disk: Disk,
}

impl std::fmt::Debug for TestDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

struct TestFile {
    inner: WritePtr,
    disk: Disk,
}

impl Write for TestFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.use_space(bytes.len())?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl TerminatingWrite for TestFile {
    fn terminate_ref(&mut self, token: tantivy::directory::AntiCallToken) -> io::Result<()> {
        self.inner.terminate_ref(token)
    }
}

impl Directory for TestDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let inner = self.inner.open_write(path)?;
        Ok(BufWriter::new(Box::new(TestFile { inner, disk: self.disk.clone() })))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.inner.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        if path == Path::new("meta.json") {
            self.disk.pass_commit()?;
        }
        self.disk.use_space(data.len())?;
        self.inner.atomic_write(path, data)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.inner.sync_directory()
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}
