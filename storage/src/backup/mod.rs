//! Backups of the embedded engine: a consistent copy, taken while the engine works, and how it becomes a data directory again.
//!
//! A backup is what a crash at one position J of the journal would leave behind, had everything been released that no start needs: a
//! commit of the document index, an export of the registry, and the journal from the older of the two to J ([`take`]). The
//! history is not in it. J is chosen while no writer is between logging and applying, so everything that is logged in the backup
//! has taken effect in it ([`Backends::applying`](crate::Backends::applying)).
//!
//! The file ([`container`]) is written and read in one pass and in bounded memory. Who restores it reads all of it first, and writes
//! nothing unless it is whole ([`restore`]). A restored directory begins a new epoch of every log: entries that were shown after the
//! backup are gone.

mod container;
mod gauge;
mod manifest;
mod pace;
pub(crate) mod restore;
pub(crate) mod take;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

pub use self::{
    container::FORMAT,
    gauge::Gauge,
    manifest::{Application, Manifest, Part},
    pace::Draft,
    restore::{Restored, restore},
    take::{About, Snapshot},
};
use self::{
    container::{Piece, Reader},
    pace::Pace,
};
use crate::{Error, Result};

/// How much of a file is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Reads a backup to its end: `Corrupt` when it is not whole and as it was written, `Unsupported` when it is of a newer format. `told`
/// hears of the bytes of its parts as they are read. Blocking.
pub fn verify(path: &Path, told: &mut dyn FnMut(u64)) -> Result<Manifest> {
    let mut reader = open(path)?;
    loop {
        match reader.next().map_err(|error| named(path, error))? {
            Piece::Data(bytes) => told(bytes.len() as u64),
            Piece::Part(_) | Piece::End => {}
            Piece::Complete => return Ok(reader.manifest().clone()),
        }
    }
}

/// What a backup says of itself; the rest of it is not looked at.
pub fn read_manifest(path: &Path) -> Result<Manifest> {
    Ok(open(path)?.manifest().clone())
}

/// Where a backup is written until it is known to be whole.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// A new file for a backup, at [`part_of`]; only its owner may read it: it holds the secrets of the installation.
pub fn create(path: &Path) -> Result<Draft> {
    let part = part_of(path);
    let failed = |error| Error::io("write backup", part.display().to_string(), error);
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
    Ok(Draft::new(file))
}

/// Makes what was written durable, reads it back, and gives it its name when it is whole: what was there under the name stays until
/// then. Works a part of the time only: the server comes first. Blocking.
pub fn complete(path: &Path, told: &mut dyn FnMut(u64)) -> Result<Manifest> {
    let part = part_of(path);
    let failed = |error| Error::io("write backup", part.display().to_string(), error);
    File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
    let mut pace = Pace::begin();
    let manifest = verify(&part, &mut |n_bytes| {
        told(n_bytes);
        pace.rest();
    })?;
    fs::rename(&part, path).map_err(failed)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(manifest)
}

fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let file = File::open(path).map_err(|error| Error::io("open backup", path.display().to_string(), error))?;
    Reader::open(BufReader::with_capacity(READ_BYTES, file)).map_err(|error| named(path, error))
}

/// The error with the name of the file.
fn named(path: &Path, mut error: Error) -> Error {
    error.message = format!("{}: {}", path.display(), error.message);
    error
}
