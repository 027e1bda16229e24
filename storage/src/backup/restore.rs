//! Restoring: a backup becomes a data directory.
//!
//! All of the file is read before anything is written. What is written stands beside the directory until it is whole, synced, and
//! opened once: opening brings the documents and the registry up to the position of the backup. Then what the log holds of the
//! commands that still wait is taken out of their queues, for in the new epoch nobody would know that it was decided; and every
//! log begins its new epoch. That is at least the second (of Unix time) in which the backup is restored, so that two restores of
//! one backup do not give the same offsets to different entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    container::{Piece, damaged},
    manifest::Manifest,
    named, open, verify,
};
use crate::{
    ChangeLog as _, Error, ErrorKind, Queues as _, Registry as _, Result,
    embedded::{self, Engine},
    model::{AppId, ChangeId, Timestamp},
    open::Settings,
    queue::{Durability, Message},
    registry::Kind,
};

/// Messages and records that are looked at at once.
const PAGE: usize = 1_000;
/// What a file system puts into the root of a disk by itself.
const OF_THE_DISK: &str = "lost+found";

/// What was restored.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    pub manifest: Manifest,
    /// Every log begins an epoch after this one.
    pub epoch: u32,
    /// Commands that were accepted and wait to be decided.
    pub waiting: u64,
}

/// Makes `settings.dir` of a backup. `Conflict` when the directory holds anything; `Corrupt` or `Unsupported`, with nothing written,
/// when the file cannot be used. `told` hears of the bytes of the parts twice: as they are checked, and as they are written.
pub async fn restore(file: &Path, settings: &Settings, mut told: impl FnMut(u64) + Send + 'static) -> Result<Restored> {
    let target = Target::of(&settings.dir)?;
    let (path, stage) = (file.to_owned(), target.stage.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        verify(&path, &mut told)?;
        unpack(&path, &stage, &mut told)
    });
    let restored = match unpacked.await {
        Ok(Ok((manifest, epoch))) => begin_anew(&target.stage, settings, manifest, epoch).await,
        Ok(Err(error)) => Err(error),
        Err(error) => Err(Error::new(ErrorKind::Internal, "restore", "the work was aborted").with_source(error)),
    };
    match restored.and_then(|restored| target.take_place().map(|()| restored)) {
        Ok(restored) => Ok(restored),
        Err(error) => {
            // What is left there is of no use, and says so by its name.
            let _gone = fs::remove_dir_all(&target.stage);
            Err(error)
        }
    }
}

/// Where a directory is made, and what it becomes.
struct Target {
    dir: PathBuf,
    stage: PathBuf,
    /// It is there, and empty. It may be the root of a disk, which nothing can be renamed to.
    is_there: bool,
}

impl Target {
    fn of(dir: &Path) -> Result<Self> {
        let failed = |error| Error::io("restore", dir.display().to_string(), error);
        let is_there = match fs::read_dir(dir) {
            Ok(mut entries) => {
                let other = entries.find(|entry| entry.as_ref().map_or(true, |entry| entry.file_name() != OF_THE_DISK));
                if let Some(other) = other {
                    let name = other.map_err(failed)?.file_name();
                    let message = format!("{} is not empty: it holds {}", dir.display(), name.display());
                    return Err(Error::new(ErrorKind::Conflict, "restore", message));
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(error)),
        };
        let stage = if is_there {
            dir.join("restore.part")
        } else {
            let mut name = dir.as_os_str().to_owned();
            name.push(".part");
            PathBuf::from(name)
        };
        if stage.exists() {
            let message = format!("{} is there: it is left over from a restore; remove it", stage.display());
            return Err(Error::new(ErrorKind::Conflict, "restore", message));
        }
        Ok(Self { dir: dir.to_owned(), stage, is_there })
    }

    fn take_place(&self) -> Result<()> {
        let renamed = if self.is_there { self.move_within() } else { fs::rename(&self.stage, &self.dir) };
        let above = self.dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        renamed
            .and_then(|()| sync_dir(&self.dir))
            .and_then(|()| sync_dir(above))
            .map_err(|error| Error::io("restore", self.dir.display().to_string(), error))
    }

    /// Moves everything out of the stage. Were it to stop in between, `restore.part` stays beside it, and says so.
    fn move_within(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.stage)? {
            let name = entry?.file_name();
            fs::rename(self.stage.join(&name), self.dir.join(&name))?;
        }
        fs::remove_dir(&self.stage)
    }
}

/// Writes the parts of a backup as files, durably. Gives the epoch to begin with.
fn unpack(path: &Path, stage: &Path, told: &mut dyn FnMut(u64)) -> Result<(Manifest, u32)> {
    let mut reader = open(path)?;
    let manifest = reader.manifest().clone();
    let failed = |error| Error::io("restore", stage.display().to_string(), error);
    make_dir(stage).map_err(failed)?;
    let mut file: Option<File> = None;
    loop {
        match reader.next().map_err(|error| named(path, error))? {
            Piece::Part(number) => {
                let part = manifest.parts.get(number).ok_or_else(|| damaged("it has more parts than it says"))?;
                file = Some(create(&stage.join(&part.name)).map_err(failed)?);
            }
            Piece::Data(bytes) => {
                if let Some(file) = &mut file {
                    file.write_all(bytes).map_err(failed)?;
                }
                told(bytes.len() as u64);
            }
            Piece::End => {
                if let Some(file) = file.take() {
                    file.sync_all().map_err(failed)?;
                }
            }
            Piece::Complete => break,
        }
    }
    sync_tree(stage).map_err(failed)?;
    let now = u32::try_from(Timestamp::now().as_ms() / 1000).unwrap_or(u32::MAX - 1);
    let epoch = manifest.epoch.saturating_add(1).max(now);
    embedded::prepare_dir(stage, epoch)?;
    Ok((manifest, epoch))
}

/// Opens what was unpacked, takes out of the queues what was decided, begins the new epochs, and closes it.
async fn begin_anew(stage: &Path, settings: &Settings, manifest: Manifest, epoch: u32) -> Result<Restored> {
    let settings = Settings { dir: stage.to_owned(), ..settings.clone() };
    let opening = tokio::task::spawn_blocking(move || Engine::open(&settings));
    let engine = opening
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "restore", "opening was aborted").with_source(error))??;
    let begun = async {
        if engine.journal().durable_upto() < manifest.sequence {
            return Err(damaged("its journal ends before its position"));
        }
        let waiting = settle_decided(&engine, &manifest.writer_queues).await?;
        for app in applications(&engine).await? {
            engine.change_log().begin_epoch(&app).await?;
        }
        Ok(waiting)
    };
    let begun = begun.await;
    let closed = engine.close().await;
    let waiting = begun?;
    closed?;
    Ok(Restored { manifest, epoch, waiting })
}

/// Everybody who has a log, or may get one.
async fn applications(engine: &Engine) -> Result<BTreeSet<AppId>> {
    let mut applications: BTreeSet<AppId> = engine.change_log().applications().await?.into_iter().collect();
    let mut after = None;
    loop {
        let page = engine.registry()?.list(Kind::Application, None, "", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(applications) };
        after = Some(last.key.id.clone());
        applications.extend(page.iter().filter_map(|record| AppId::parse(&record.key.id).ok()));
    }
}

/// Removes the commands that the log holds. Gives how many others wait.
async fn settle_decided(engine: &Engine, queues: &[String]) -> Result<u64> {
    let all = engine.queues();
    let mut n_waiting = 0;
    for queue in queues {
        all.declare(queue, Durability::Durable).await?;
        let mut decided = Vec::new();
        let mut after = None;
        loop {
            let page = all.browse(queue, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            n_waiting += page.len() as u64;
            decided.extend(decided_of(engine, &page).await?);
        }
        n_waiting -= all.remove(queue, &decided).await? as u64;
    }
    Ok(n_waiting)
}

/// Those of these commands that the log holds.
async fn decided_of(engine: &Engine, commands: &[Message]) -> Result<Vec<ChangeId>> {
    let mut by_app: BTreeMap<&AppId, Vec<ChangeId>> = BTreeMap::new();
    for command in commands {
        if let Some(app) = &command.app {
            by_app.entry(app).or_default().push(command.id);
        }
    }
    let mut decided = Vec::new();
    for (app, ids) in by_app {
        let found = engine.change_log().find(app, &ids).await?;
        decided.extend(ids.into_iter().zip(found).filter(|(_, found)| found.is_some()).map(|(id, _)| id));
    }
    Ok(decided)
}

/// Only the owner may enter it: it holds secrets.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the names in a directory and below it durable.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
