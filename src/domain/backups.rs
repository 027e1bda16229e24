//! Backups: on demand, and by themselves (`[backup] every`).

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nexxus_storage::{
    Error, ErrorKind, Result,
    backup::{self, About, Manifest, Snapshot},
    model::{Problem, Timestamp, problem::ProblemKind},
};
use tracing::{info, warn};

use super::Domain;
use crate::service::{Failure, Stop};

/// The names of backups that are written by themselves begin and end so; the time stands between.
const PREFIX: &str = "nexxus-";
const SUFFIX: &str = ".backup";
/// After a failure it is tried again this soon, or when the next one is due.
const RETRY: Duration = Duration::from_secs(300);

impl Domain {
    /// A consistent copy of everything. 409 where other engines hold a part of it.
    pub async fn snapshot(&self) -> Result<Snapshot, Problem> {
        if let Some(why) = self.config.now().refuses_backups() {
            return Err(Problem::new(ProblemKind::Conflict, why));
        }
        let about = About { nexxus: env!("CARGO_PKG_VERSION").to_owned(), writer_queues: self.routes.writer.queues() };
        Ok(self.backends.snapshot(about).await?)
    }

    /// Writes a backup each time one is due, until told to stop. A failure is logged and counted, and tried again.
    pub async fn keep_backups(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.config.now().backup.clone();
        let every = settings.every.0;
        let dir = settings.dir.clone();
        let mut wait = aside(move || due_in(&dir, every)).await.unwrap_or_default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            let outcome = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.back_up_into(&settings.dir) => outcome,
            };
            count(outcome.is_ok());
            wait = match outcome {
                Ok((file, manifest)) => {
                    info!(file = %file.display(), sequence = manifest.sequence, bytes = manifest.bytes(), "backed up");
                    let dir = settings.dir.clone();
                    if let Err(error) = aside(move || remove_oldest(&dir, settings.keep)).await {
                        warn!(%error, "old backups could not be removed");
                    }
                    every
                }
                Err(detail) => {
                    warn!(detail, dir = %settings.dir.display(), "no backup could be written");
                    every.min(RETRY)
                }
            };
        }
    }

    /// Writes a backup into a directory. An error is a sentence for the log.
    async fn back_up_into(&self, dir: &Path) -> Result<(PathBuf, Manifest), String> {
        let file = dir.join(name_at(Timestamp::now()));
        let (dir, path) = (dir.to_owned(), file.clone());
        let out = aside(move || prepare(&dir).and_then(|()| backup::create(&path))).await;
        let out = out.map_err(|error| error.to_string())?;
        let snapshot = self.snapshot().await.map_err(|problem| problem.detail);
        let written = async {
            snapshot?.write_aside(out).await.map_err(|error| error.to_string())?;
            let path = file.clone();
            aside(move || backup::complete(&path, &mut |_| {})).await.map_err(|error| error.to_string())
        };
        match written.await {
            Ok(manifest) => Ok((file, manifest)),
            Err(error) => {
                // Its room may be what is missing.
                let _gone = fs::remove_file(backup::part_of(&file));
                Err(error)
            }
        }
    }
}

/// Counts a backup, and notes when one succeeded.
pub fn count(is_taken: bool) {
    metrics::counter!("nexxus_backups_total", "result" => if is_taken { "taken" } else { "failed" }).increment(1);
    if is_taken {
        metrics::gauge!("nexxus_backup_last_seconds").set(Timestamp::now().as_ms() as f64 / 1000.0);
    }
}

/// Names sort as times do.
fn name_at(time: Timestamp) -> String {
    let time: String = time.to_string().chars().filter(|character| !matches!(character, '-' | ':')).collect();
    format!("{PREFIX}{time}{SUFFIX}")
}

/// The backups that a directory holds, oldest first.
fn backups_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// How long it is until the next backup is due; at once when there is none.
fn due_in(dir: &Path, every: Duration) -> Result<Duration> {
    let newest = match backups_in(dir) {
        Ok(backups) => backups.last().and_then(|newest| newest.metadata().ok()?.modified().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("look for backups", dir.display().to_string(), error)),
    };
    // A file from the future says nothing.
    let age = newest.and_then(|newest| SystemTime::now().duration_since(newest).ok());
    Ok(age.map_or(Duration::ZERO, |age| every.saturating_sub(age)))
}

/// Makes the directory, and removes what a backup that did not come to its end left in it.
fn prepare(dir: &Path) -> Result<()> {
    let failed = |error| Error::io("write backup", dir.display().to_string(), error);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.strip_suffix(".part").is_some_and(|name| name.ends_with(SUFFIX)) {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn remove_oldest(dir: &Path, keep: usize) -> Result<()> {
    let failed = |error| Error::io("remove old backups", dir.display().to_string(), error);
    let backups = backups_in(dir).map_err(failed)?;
    let n_old = backups.len().saturating_sub(keep);
    backups.iter().take(n_old).try_for_each(|old| fs::remove_file(old).map_err(failed))
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "back up", "the work was aborted").with_source(error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let names: Vec<String> = ["2026-11-25T01:00:00.000Z", "2026-11-25T02:00:00.500Z", "2027-01-01T00:00:00Z"]
            .map(|time| name_at(time.parse().expect("a time")))
            .into();
        assert_eq!(names[1], "nexxus-20261125T020000.500Z.backup");
        for name in names.iter().map(String::as_str).chain(["mine.backup", "nexxus-notes.txt", "nexxus-x.backup.part"])
        {
            fs::write(dir.join(name), "x").expect("written");
        }
        prepare(dir).expect("prepared");
        assert!(!dir.join("nexxus-x.backup.part").exists(), "what did not come to its end goes");
        remove_oldest(dir, 5).expect("nothing to remove");
        assert_eq!(backups_in(dir).expect("read").len(), 3);
        remove_oldest(dir, 1).expect("removed");
        assert_eq!(backups_in(dir).expect("read"), [dir.join(&names[2])]);
        assert!(dir.join("mine.backup").exists() && dir.join("nexxus-notes.txt").exists());
    }

    #[test]
    fn a_backup_is_due_when_the_last_one_is_old() {
        let dir = tempfile::tempdir().expect("a directory");
        let hour = Duration::from_secs(3600);
        assert_eq!(due_in(&dir.path().join("none"), hour).expect("due"), Duration::ZERO);
        assert_eq!(due_in(dir.path(), hour).expect("due"), Duration::ZERO);
        fs::write(dir.path().join("nexxus-20261125T020000.500Z.backup"), "x").expect("written");
        let due = due_in(dir.path(), hour).expect("due");
        assert!(due > Duration::from_secs(3500) && due <= hour, "{due:?}");
        assert_eq!(due_in(dir.path(), Duration::ZERO).expect("due"), Duration::ZERO);
    }
}
