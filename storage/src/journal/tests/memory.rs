//! A file system in memory that lets the machine down on request.
//!
//! What a write leaves after a power cut is decided for each sector: what was there at the last sync, or any of what was written since.
//! Creations, renames and removals that no `sync_dir` followed happened or not, each for itself. A sync that fails loses what it
//! should have made durable for good, though it stays visible, as on Linux.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    journal::files::{File, Files},
    model::Timestamp,
};

const SECTOR: usize = 512;

/// The machine with its disk.
#[derive(Clone, Default)]
pub(super) struct Machine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Since the last `sync_dir`.
    changes: Vec<Change>,
    /// The process that runs; those before it are dead.
    process: u64,
    is_locked: bool,
    /// Most bytes that all files may have.
    room: Option<usize>,
    /// Operations until the power is cut.
    power_for: Option<usize>,
    /// Syncs until one fails.
    syncs_until_failure: Option<usize>,
    is_read_only: bool,
    n_bytes_read: usize,
}

#[derive(Default, Clone)]
struct Node {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// What each sector held in turn since the last sync.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Clone)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

/// Numbers that look random, the same for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }
}

impl Machine {
    /// The file system as the process sees it that runs now.
    pub(super) fn files(&self) -> Arc<dyn Files> {
        Arc::new(Process { machine: self.clone(), number: self.0.lock().process })
    }

    /// The process is killed: what it wrote stays visible.
    pub(super) fn kill(&self) {
        self.0.lock().restart();
    }

    /// The power goes, and comes back.
    pub(super) fn lose_power(&self, dice: &mut Dice) {
        let mut state = self.0.lock();
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if dice.below(2) == 0 {
                change.apply(&mut state.durable_names);
            }
        }
        state.names = state.durable_names.clone();
        state.nodes.iter_mut().for_each(|node| node.lose_power(dice));
        state.restart();
    }

    pub(super) fn cut_power_after(&self, n_operations: usize) {
        self.0.lock().power_for = Some(n_operations);
    }

    /// Whether the power is cut.
    pub(super) fn is_dark(&self) -> bool {
        self.0.lock().power_for == Some(0)
    }

    pub(super) fn fail_sync_after(&self, n_syncs: usize) {
        self.0.lock().syncs_until_failure = Some(n_syncs);
    }

    pub(super) fn make_read_only(&self) {
        self.0.lock().is_read_only = true;
    }

    /// Lets files grow by so many bytes only.
    pub(super) fn leave_room(&self, n_bytes: Option<usize>) {
        let mut state = self.0.lock();
        state.room = n_bytes.map(|n_bytes| state.n_used() + n_bytes);
    }

    /// Flips a bit of a file for good.
    pub(super) fn flip(&self, path: &Path, bit: usize) {
        let mut state = self.0.lock();
        let node = state.names[path];
        let node = &mut state.nodes[node];
        for bytes in [&mut node.visible, &mut node.durable] {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        self.0.lock().names.keys().map(name).collect()
    }

    /// How many bytes were read since this was asked last.
    pub(super) fn n_bytes_read(&self) -> usize {
        std::mem::take(&mut self.0.lock().n_bytes_read)
    }
}

impl State {
    fn restart(&mut self) {
        self.process += 1;
        self.is_locked = false;
        self.power_for = None;
        self.syncs_until_failure = None;
    }

    fn n_used(&self) -> usize {
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        named.iter().map(|node| self.nodes[*node].visible.len()).sum()
    }

    /// One operation that changes something; fails once the power is cut.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.power_for {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None if self.is_read_only => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            None => Ok(()),
        }
    }

    /// One sync; fails when its turn has come.
    fn step_sync(&mut self) -> io::Result<()> {
        self.step()?;
        match &mut self.syncs_until_failure {
            Some(0) => {
                self.syncs_until_failure = None;
                return Err(io::Error::other("the disk did not take it"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Node {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.visible.len() < end {
            self.visible.resize(end, 0);
        }
        self.visible[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let content = sector_of(&self.visible, sector).to_vec();
            self.unsynced.entry(sector).or_default().push(content);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.visible.len(), 0);
        for sector in std::mem::take(&mut self.unsynced).into_keys() {
            let content = sector_of(&self.visible, sector).to_vec();
            put_sector(&mut self.durable, sector, &content);
        }
    }

    fn lose_power(&mut self, dice: &mut Dice) {
        if self.durable.len() != self.visible.len() && dice.below(2) == 0 {
            self.durable.resize(self.visible.len(), 0);
        }
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            if let Some(content) = contents.get(dice.below(contents.len() + 1)) {
                put_sector(&mut self.durable, sector, content);
            }
        }
        self.visible = self.durable.clone();
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> &[u8] {
    let start = (sector * SECTOR).min(bytes.len());
    &bytes[start..(start + SECTOR).min(bytes.len())]
}

fn put_sector(bytes: &mut [u8], sector: usize, content: &[u8]) {
    let start = (sector * SECTOR).min(bytes.len());
    let end = (start + content.len()).min(bytes.len());
    bytes[start..end].copy_from_slice(&content[..end - start]);
}

struct Process {
    machine: Machine,
    number: u64,
}

impl Process {
    fn state(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.machine.0.lock();
        if state.process == self.number { Ok(state) } else { Err(io::Error::other("the process is dead")) }
    }

    fn handle(&self, node: usize) -> Arc<dyn File> {
        Arc::new(Handle { process: Self { machine: self.machine.clone(), number: self.number }, node })
    }
}

impl Files for Process {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.state()?.step()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state()?;
        let in_it = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(in_it.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let node = self.state()?.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(node))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state()?;
        state.step()?;
        let node = state.nodes.len();
        state.nodes.push(Node::default());
        state.change(Change::Link(path.to_owned(), node));
        drop(state);
        Ok(self.handle(node))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        state.step()?;
        let node = state.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        state.step()?;
        state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        state.step_sync()?;
        state.changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state()?;
        state.step()?;
        if std::mem::replace(&mut state.is_locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock(Self { machine: self.machine.clone(), number: self.number })))
    }
}

struct Lock(Process);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state() {
            state.is_locked = false;
        }
    }
}

struct Handle {
    process: Process,
    node: usize,
}

impl File for Handle {
    fn length(&self) -> io::Result<u64> {
        Ok(self.process.state()?.nodes[self.node].visible.len() as u64)
    }

    fn modified(&self) -> io::Result<Timestamp> {
        Ok(Timestamp::now())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.process.state()?;
        let bytes = state.nodes[self.node].visible.get(offset as usize..).unwrap_or_default();
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        state.n_bytes_read += n;
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.process.state()?;
        let (offset, powered) = (offset as usize, state.step());
        let grown = (offset + bytes.len()).saturating_sub(state.nodes[self.node].visible.len());
        if grown > 0 && state.room.is_some_and(|room| state.n_used() + grown > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // When the power goes meanwhile, some of it may be on the disk.
        state.nodes[self.node].write(bytes, offset);
        powered
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.process.state()?;
        if let Err(error) = state.step_sync() {
            if !matches!(state.power_for, Some(0)) {
                state.nodes[self.node].unsynced.clear();
            }
            return Err(error);
        }
        state.nodes[self.node].sync();
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.process.state()?;
        state.step()?;
        state.nodes[self.node].visible.truncate(length as usize);
        Ok(())
    }
}
