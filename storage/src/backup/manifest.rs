//! What a backup says of itself.

use std::{
    collections::HashSet,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};

use super::container::damaged;
use crate::{
    Result,
    model::{AppId, Offset, Timestamp},
};

/// What a backup file holds: the first thing in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The version of Nexxus that wrote it.
    pub nexxus: String,
    pub created: Timestamp,
    /// Everything up to this sequence of the journal is in the backup, and nothing above it.
    pub sequence: u64,
    /// The first sequence of the journal that is in the backup.
    pub journal_from: u64,
    /// How far the copies of the registry and of the documents go; the journal has the rest.
    pub registry: u64,
    pub documents: u64,
    /// The queues of commands: what the log holds of them already is not decided again.
    pub writer_queues: Vec<String>,
    /// No log had a later epoch.
    pub epoch: u32,
    /// Where the log of each application ended.
    pub applications: Vec<Application>,
    /// What follows, in this order.
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Application {
    pub id: AppId,
    pub offset: Offset,
}

/// A file of the data directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its path within the data directory.
    pub name: String,
    pub bytes: u64,
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged("its manifest cannot be read").with_source(error))?;
        let mut names = HashSet::new();
        match manifest.parts.iter().find(|part| !is_file_within(&part.name) || !names.insert(&part.name)) {
            Some(part) => Err(damaged(&format!("it has a part `{}`, which cannot be", part.name.escape_debug()))),
            None => Ok(manifest),
        }
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// Whether it names a file in one of the directories that a backup has: nothing is ever written anywhere else.
fn is_file_within(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_plain = components.clone().all(|component| matches!(component, Component::Normal(_)));
    let first = components.next().and_then(|first| first.as_os_str().to_str());
    is_plain && matches!(first, Some("journal" | "registry" | "documents")) && components.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_file_of_the_data_directory() {
        for (name, expected) in [
            ("journal/00000000000000000001.journal", true),
            ("documents/index/meta.json", true),
            ("registry/export.jsonl", true),
            ("registry", false),
            ("server.json", false),
            ("/etc/passwd", false),
            ("journal/../../x", false),
            ("../journal/x", false),
            ("./journal/x", false),
            ("", false),
        ] {
            assert_eq!(is_file_within(name), expected, "{name}");
        }
    }
}
