//! Looking into a registry that may be damaged, and letting it begin although records are missing.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    codec::{decode_call, encode_call},
    export,
    layer::Range,
    recovery::{STORE, content, decode_mark, finish, new_store},
    store::{Engine, Sled},
};
use crate::{
    Error, ErrorKind, Result,
    journal::Record,
    registry::{Key, Kind},
};

/// What was found of a registry.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryFound {
    /// None: there is no store, or it cannot be read.
    pub store: Option<StoreFound>,
    /// Why there is none.
    pub store_fault: Option<String>,
    pub export: Option<ExportFound>,
    pub export_fault: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreFound {
    /// It holds everything up to this sequence of the journal.
    pub sequence: u64,
    pub records: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportFound {
    /// With the journal from here on it holds everything.
    pub sequence: u64,
    pub records: u64,
}

impl RegistryFound {
    /// The latest sequence that the store or the export has everything up to.
    pub fn sequence(&self) -> Option<u64> {
        let store = self.store.as_ref().map(|store| store.sequence);
        store.max(self.export.map(|export| export.sequence))
    }

    /// Whether it opens by itself on a journal that begins with this record: the store or the export reaches it.
    pub fn reaches(&self, oldest: u64) -> bool {
        // A registry that is empty has everything up to 0.
        self.sequence().unwrap_or(0) + 1 >= oldest
    }
}

/// Looks into the registry of a directory. The store is read in a copy in `scratch`, for opening it would change it. Blocking.
pub fn examine(dir: &Path, scratch: &Path) -> Result<RegistryFound> {
    let mut found = RegistryFound { store: None, store_fault: None, export: None, export_fault: None };
    match export::check(dir) {
        Ok(summary) => {
            let found_in =
                |summary: export::Summary| ExportFound { sequence: summary.sequence, records: summary.records };
            found.export = summary.map(found_in);
        }
        Err(error) if error.kind == ErrorKind::Unsupported => return Err(error),
        Err(error) => found.export_fault = Some(error.to_string()),
    }
    if dir.join(STORE).exists() {
        let copied = scratch.join(STORE);
        copy_dir(&dir.join(STORE), &copied).map_err(|error| failed(&copied, error))?;
        match examine_store(&copied) {
            Ok(store) => found.store = Some(store),
            Err(error) if error.kind == ErrorKind::Unsupported => return Err(error),
            Err(error) => found.store_fault = Some(error.to_string()),
        }
    }
    Ok(found)
}

fn examine_store(dir: &Path) -> Result<StoreFound> {
    let store = Sled.open(dir)?;
    let all = content(&*store)?;
    let mark = store.mark()?.ok_or_else(|| Error::new(ErrorKind::Corrupt, "open registry", "the store has no mark"))?;
    let mut kinds = BTreeMap::new();
    for kind in Kind::ALL {
        let mut n_records = 0;
        store.scan(kind, &Range::ALL, &mut |_, _| {
            n_records += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        if n_records > 0 {
            kinds.insert(kind.name(), n_records);
        }
    }
    Ok(StoreFound { sequence: decode_mark(&mark)?, records: all.records, kinds })
}

/// Lets the registry begin on a journal whose first record is `oldest`, although what was written between it and the registry is
/// gone. What is there now is kept in `aside`. Blocking.
pub fn accept_gap(dir: &Path, found: &RegistryFound, oldest: u64, aside: &Path) -> Result<()> {
    let kept = aside.join(STORE);
    let current = dir.join(STORE);
    if current.exists() {
        copy_dir(&current, &kept).map_err(|error| failed(&kept, error))?;
    }
    let store_reaches = found.store.as_ref().map(|store| store.sequence);
    let store = if store_reaches.is_some() && store_reaches >= found.export.map(|export| export.sequence) {
        Sled.open(&current)?
    } else {
        remove_dir(&current).map_err(|error| failed(&current, error))?;
        let export = if found.export.is_some() { export::check(dir)? } else { None };
        new_store(dir, &Sled, export)?.0
    };
    finish(&*store, oldest.saturating_sub(1))?;
    drop(store);
    export::sync_dir(dir)
}

/// A record of the journal that writes nothing.
pub fn nothing() -> Vec<u8> {
    encode_call(std::iter::empty())
}

/// The keys of what a record of the journal writes or removes; an error when it cannot be read.
pub fn keys_written(record: &Record) -> Result<Vec<Key>> {
    Ok(decode_call(record.payload.clone())?.into_iter().map(|change| change.key).collect())
}

fn copy_dir(from: &Path, to: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::io("examine registry", path.display().to_string(), error)
}
