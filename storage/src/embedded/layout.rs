//! The layout of the data directory: `format` holds its number. A directory of a newer layout is refused.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{Error, ErrorKind, Result, model::AppId};

const FORMAT: u32 = 1;
const LEAST_EPOCH: &str = "epoch";
/// There while a repair is not finished.
const REPAIRING: &str = "repairing";

/// Checks that this build knows the layout, and writes its number into a new directory. Only the owner may enter a directory that is
/// made here: it holds secrets.
pub(super) fn check(dir: &Path) -> Result<()> {
    let failed = |error| cannot_use(dir, error);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(text) => check_number(dir, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_number(dir, &path, FORMAT).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// A directory that cannot be made, read or written is most often a mistake in the settings.
fn cannot_use(dir: &Path, error: io::Error) -> Error {
    use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let (operation, name) = ("open data directory", dir.display());
    match error.kind() {
        AlreadyExists | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem => {
            let message =
                format!("{name}: data.dir or --data has to name a directory that this user may make or write");
            Error::new(ErrorKind::Invalid, operation, message).with_source(error)
        }
        _ => Error::io(operation, name.to_string(), error),
    }
}

fn check_number(dir: &Path, text: &str) -> Result<()> {
    let dir = dir.display();
    match text.trim().parse::<u32>() {
        Ok(FORMAT) => Ok(()),
        Ok(newer) if newer > FORMAT => {
            let message =
                format!("{dir} has layout {newer}; this build knows layouts up to {FORMAT}: use a newer nexxus");
            Err(Error::new(ErrorKind::Unsupported, "open data directory", message))
        }
        Ok(_) | Err(_) => {
            let message = format!("{dir}/format does not hold the number of a layout");
            Err(Error::new(ErrorKind::Corrupt, "open data directory", message))
        }
    }
}

fn write_number(dir: &Path, path: &Path, number: u32) -> io::Result<()> {
    write_whole(dir, path, &number.to_string())
}

fn write_whole(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("tmp");
    let mut file = File::create(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

/// The least epoch of a log that begins in this directory: it is there after a restore, so that no offset that anybody may still know
/// comes again. 0 where there is nothing of the kind.
pub(super) fn least_epoch(dir: &Path) -> Result<u32> {
    let path = dir.join(LEAST_EPOCH);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|error| {
            let message = format!("{} does not hold the number of an epoch", path.display());
            Error::new(ErrorKind::Corrupt, "open data directory", message).with_source(error)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("open data directory", path.display().to_string(), error)),
    }
}

/// Says what [`least_epoch`] gives from the next opening on.
pub(super) fn set_least_epoch(dir: &Path, epoch: u32) -> Result<()> {
    let path = dir.join(LEAST_EPOCH);
    write_number(dir, &path, epoch).map_err(|error| Error::io("write epoch", path.display().to_string(), error))
}

/// A repair begins, or goes on: until [`end_repair`] the directory is not opened, for what is missing would never be made up for.
/// `affected`: the applications whose logs may have lost changes.
pub(super) fn begin_repair(dir: &Path, affected: &BTreeSet<AppId>) -> Result<()> {
    let path = dir.join(REPAIRING);
    write_whole(dir, &path, &serde_json::json!({ "affected": affected }).to_string())
        .map_err(|error| cannot_write(&path, error))
}

/// Whether a repair has begun and not ended; with the applications of [`begin_repair`].
pub(super) fn repair_begun(dir: &Path) -> Result<Option<BTreeSet<AppId>>> {
    #[derive(Deserialize)]
    struct Begun {
        affected: BTreeSet<AppId>,
    }
    let path = dir.join(REPAIRING);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("open data directory", path.display().to_string(), error)),
    };
    let corrupt = |error| {
        let message = format!("{} does not hold what a repair has begun", path.display());
        Error::new(ErrorKind::Corrupt, "open data directory", message).with_source(error)
    };
    let begun: Begun = serde_json::from_str(&text).map_err(corrupt)?;
    Ok(Some(begun.affected))
}

pub(super) fn end_repair(dir: &Path) -> Result<()> {
    let path = dir.join(REPAIRING);
    let removed = match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    removed.and_then(|()| File::open(dir)?.sync_all()).map_err(|error| cannot_write(&path, error))
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::io("write", path.display().to_string(), error)
}

/// A part of the data that may be in another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Documents,
    Registry,
}

impl Part {
    /// Its directory.
    fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Registry => "registry",
        }
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Documents => "database.adapter",
            Self::Registry => "registry.adapter",
        }
    }

    /// There where the part is elsewhere.
    fn marker(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-elsewhere", self.name()))
    }
}

/// Whether a part of this directory's data is in another engine.
pub(super) fn is_elsewhere(dir: &Path, part: Part) -> bool {
    part.marker(dir).exists()
}

/// Checks that a part of this directory's data is where it is looked for, and keeps that of a new one. `Invalid` otherwise: it does not
/// move by itself.
pub(super) fn check_place(dir: &Path, part: Part, elsewhere: bool) -> Result<()> {
    let was_elsewhere = is_elsewhere(dir, part);
    let was_here = !was_elsewhere && dir.join(part.name()).exists();
    if if elsewhere { was_here } else { was_elsewhere } {
        let message = format!(
            "`{}`: the {} that belong to {} are not there; to move them, begin with an empty directory and use `nexxus export` and \
             `nexxus import`",
            part.setting(),
            match part {
                Part::Documents => "documents",
                Part::Registry => "users, devices and subscriptions",
            },
            dir.display()
        );
        return Err(Error::new(ErrorKind::Invalid, "open data directory", message));
    }
    if elsewhere && !was_elsewhere {
        let path = part.marker(dir);
        write_number(dir, &path, 1).map_err(|error| Error::io("write", path.display().to_string(), error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_directory_gets_the_number() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("a/data");
        for _ in 0..2 {
            check(&dir).expect("it is known");
            assert_eq!(fs::read_to_string(dir.join("format")).expect("a file"), "1\n");
        }
        assert_eq!(fs::metadata(&dir).expect("a directory").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_its_place_is_refused_with_the_setting() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for dir in [file.path().to_owned(), file.path().join("data")] {
            let error = check(&dir).expect_err("refused");
            assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("data.dir or --data has to name a directory"), "{error}");
        }
    }

    #[test]
    fn each_part_is_looked_for_where_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        for part in [Part::Documents, Part::Registry] {
            let refused = |elsewhere| {
                check_place(dir, part, elsewhere)
                    .is_err_and(|error| error.kind == ErrorKind::Invalid && error.message.contains(part.setting()))
            };
            check_place(dir, part, false).expect("new");
            for _ in 0..2 {
                check_place(dir, part, true).expect("new, or as before");
                assert!(refused(false));
            }
            fs::remove_file(part.marker(dir)).expect("removed");
            fs::create_dir(dir.join(part.name())).expect("made");
            check_place(dir, part, false).expect("as before");
            assert!(refused(true));
        }
    }

    #[test]
    fn another_layout_is_refused_with_a_sentence() {
        for (text, kind, says) in [
            ("2\n", ErrorKind::Unsupported, "layout 2; this build knows layouts up to 1"),
            ("0", ErrorKind::Corrupt, "does not hold the number"),
            ("", ErrorKind::Corrupt, "does not hold the number"),
            ("one", ErrorKind::Corrupt, "does not hold the number"),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join("format"), text).expect("write");
            let error = check(dir.path()).expect_err("refused");
            assert_eq!(error.kind, kind, "{text:?}");
            assert!(error.message.contains(says), "{error}");
        }
    }
}
