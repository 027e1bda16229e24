//! A copy of the index as of its last commit, for a backup: files that are open, so that the index may go on meanwhile.
//!
//! The files of a commit never change; they are removed when no segment that anybody holds needs them, and an open file can be read
//! after that. The definitions are copied in the same moment: an index is never ahead of what its documents are indexed by.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use tantivy::{Index, IndexMeta, index::SegmentComponent};

use super::{TantivyDocuments, definitions::Unchanged, fault::fault, payload::Payload};
use crate::{Error, ErrorKind, Result};

/// How often a commit is looked at anew that went while its files were opened.
const TRIES: usize = 20;
/// The files of every segment; one with deletes has those, too.
const COMPONENTS: [SegmentComponent; 6] = [
    SegmentComponent::Postings,
    SegmentComponent::Positions,
    SegmentComponent::FastFields,
    SegmentComponent::FieldNorms,
    SegmentComponent::Terms,
    SegmentComponent::Store,
];
/// The list of the files that the index may remove.
const MANAGED: &str = ".managed.json";
const META: &str = "meta.json";

/// A part of the copy.
pub(crate) enum CopiedFile {
    Open(File, u64),
    Bytes(Vec<u8>),
}

/// The index and the definitions at one moment, by their paths within the directory of the documents.
pub(crate) struct Copy {
    pub(crate) files: Vec<(String, CopiedFile)>,
    /// Every log entry at or below this journal sequence is in it.
    pub(crate) sequence: u64,
    /// While this is held, the index keeps the files.
    _metas: IndexMeta,
}

impl TantivyDocuments {
    /// Opens what is committed. Takes a moment, whatever the size. Blocking.
    pub(crate) fn copy(&self) -> Result<Copy> {
        let index = self.shared.overlay.read().searcher().index().clone();
        self.shared.definitions.while_unchanged(|definitions| {
            for _ in 0..TRIES {
                match copy_commit(&index, &self.index_dir) {
                    Ok(Some(mut copy)) => {
                        copy.files.extend(definitions_of(definitions)?);
                        return Ok(copy);
                    }
                    Ok(None) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(Error::new(
                ErrorKind::Unavailable,
                "copy documents",
                "the index is committed faster than it can be read",
            ))
        })
    }
}

/// None when the commit was followed by another one meanwhile, and its files are gone.
fn copy_commit(index: &Index, dir: &Path) -> Result<Option<Copy>> {
    let failed = |error| fault("copy documents", error);
    let metas = index.load_metas().map_err(failed)?;
    let sequence = match &metas.payload {
        Some(payload) => Payload::parse(payload)?.sequence,
        None => 0,
    };
    let mut files = Vec::new();
    let mut managed = vec![PathBuf::from(META)];
    for segment in &metas.segments {
        let deletes = segment.has_deletes().then_some(SegmentComponent::Delete);
        for component in COMPONENTS.into_iter().chain(deletes) {
            let path = segment.relative_path(component);
            match open(&dir.join(&path)) {
                Ok((file, bytes)) => files.push((named(&path), CopiedFile::Open(file, bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io("copy documents", path.display().to_string(), error)),
            }
            managed.push(path);
        }
    }
    let json =
        |error: serde_json::Error| Error::new(ErrorKind::Internal, "copy documents", "a list").with_source(error);
    files.push((named(Path::new(META)), CopiedFile::Bytes(serde_json::to_vec(&metas).map_err(json)?)));
    files.push((named(Path::new(MANAGED)), CopiedFile::Bytes(serde_json::to_vec(&managed).map_err(json)?)));
    Ok(Some(Copy { files, sequence, _metas: metas }))
}

fn named(path: &Path) -> String {
    format!("index/{}", path.display())
}

fn definitions_of(definitions: &Unchanged<'_>) -> Result<Vec<(String, CopiedFile)>> {
    let files = definitions.files()?.into_iter();
    Ok(files.map(|(name, bytes)| (format!("fields/{name}"), CopiedFile::Bytes(bytes))).collect())
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}
