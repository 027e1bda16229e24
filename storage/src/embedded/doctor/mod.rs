//! `nexxus doctor`: what is wrong with a data directory that no server holds, what can be made again of it, and making it so.
//!
//! The journal says what was confirmed; the registry and the document index say what has been taken from it. So the registry is made
//! again from its last export and the journal, the index from what of it can be read and from the history. What is nowhere else is
//! gone, and is named. A repair keeps everything that it replaces in `damaged-TIME/` in the same directory.
//!
//! Changes that may be gone end the epoch of their application's log: whoever knows an offset of it is asked to start anew, so
//! nobody believes to have seen everything who has not.

mod applications;
mod repair;
mod streams;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use self::repair::{Repaired, repair};
use self::streams::Streams;
pub use self::streams::{LogFound, QueueFound};
use super::layout;
use crate::{
    Error, ErrorKind, Result,
    documents::tantivy::doctor::{self as index, IndexFound, IndexState},
    journal::{
        Record,
        doctor::{Loss, Patient, SegmentFound, SegmentState},
    },
    model::AppId,
    registry::sled::doctor::{self as registry, RegistryFound},
};

const JOURNAL: &str = "journal";
const REGISTRY: &str = "registry";
const DOCUMENTS: &str = "documents";
/// Where copies are looked into.
const SCRATCH: &str = "doctor.tmp";

/// What was found in a data directory.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub dir: String,
    pub journal: JournalFound,
    pub registry: RegistryFound,
    pub documents: IndexFound,
    /// What is wrong, in plain sentences; empty when the directory is sound.
    pub findings: Vec<String>,
    /// What a repair does.
    pub remedies: Vec<String>,
    /// What need not worry anybody.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalFound {
    pub oldest: u64,
    pub last: u64,
    /// Records that can be read.
    pub records: u64,
    pub segments: Vec<SegmentFound>,
    pub logs: Vec<LogFound>,
    pub queues: Vec<QueueFound>,
    /// Applications of whose changes some may be gone.
    pub affected: Vec<AppId>,
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Examines a data directory. `Unavailable` while a server holds it, `Unsupported` when a newer version wrote it, `Invalid` when there is
/// none. Changes nothing. Blocking; reads everything.
pub fn examine(dir: &Path) -> Result<Report> {
    Examined::new(dir).map(|examined| examined.report)
}

/// A directory with what was found in it; nobody else opens it while this is there.
struct Examined {
    dir: PathBuf,
    patient: Patient,
    report: Report,
    /// Up to here the registry or the documents know the journal.
    upto: u64,
    layout: LayoutFaults,
    /// A repair was interrupted, which was about these applications.
    begun: Option<BTreeSet<AppId>>,
    scratch: Scratch,
}

#[derive(Debug, Clone, Copy, Default)]
struct LayoutFaults {
    format: bool,
    epoch: bool,
}

impl Examined {
    fn new(dir: &Path) -> Result<Self> {
        if ![JOURNAL, REGISTRY, DOCUMENTS, "format"].iter().any(|name| dir.join(name).exists()) {
            let message = format!("{} is no data directory", dir.display());
            return Err(Error::new(ErrorKind::Invalid, "examine", message));
        }
        if [layout::Part::Documents, layout::Part::Registry].into_iter().any(|part| layout::is_elsewhere(dir, part)) {
            let message = format!(
                "a part of the data of {} is in another engine: this is for data that is all in the directory",
                dir.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, "examine", message));
        }
        let journal_dir = dir.join(JOURNAL);
        fs::create_dir_all(&journal_dir).map_err(|error| failed(&journal_dir, error))?;
        let mut streams = Streams::default();
        let patient = Patient::examine(&journal_dir, &mut |record: &Record| streams.add(record))?;
        let scratch = Scratch::new(dir)?;
        let layout = layout_faults(dir)?;
        let begun = match layout::repair_begun(dir) {
            // Then it was about any.
            Err(error) if error.kind == ErrorKind::Corrupt => {
                Some(streams.logs().into_iter().map(|log| log.application).collect())
            }
            begun => begun?,
        };
        let registry = registry::examine(&dir.join(REGISTRY), &scratch.dir)?;
        let documents = index::examine(&dir.join(DOCUMENTS), &scratch.dir)?;
        let upto = registry.sequence().max(documents.sequence).unwrap_or(0).max(patient.last());
        let mut losses: Vec<Loss> = patient.losses().collect();
        if upto > patient.last() {
            losses.push(Loss { first: patient.last() + 1, last: upto, from_byte: 0, to_byte: 0 });
        }
        let journal = JournalFound {
            oldest: patient.oldest(),
            last: patient.last(),
            records: streams.n_records,
            segments: patient.segments.clone(),
            affected: streams.affected(&losses),
            logs: streams.logs(),
            queues: streams.queues(),
        };
        let report = Report {
            dir: dir.display().to_string(),
            journal,
            registry,
            documents,
            findings: Vec::new(),
            remedies: Vec::new(),
            notes: Vec::new(),
        };
        let mut examined = Self { dir: dir.to_owned(), patient, report, upto, layout, begun, scratch };
        examined.judge(&losses, streams.n_unreadable)?;
        Ok(examined)
    }

    fn find(&mut self, finding: String) {
        self.report.findings.push(finding);
    }

    fn remedy(&mut self, remedy: String) {
        self.report.remedies.push(remedy);
    }

    fn judge(&mut self, losses: &[Loss], n_unreadable: u64) -> Result<()> {
        if self.begun.is_some() {
            self.find("a repair was interrupted".to_owned());
            self.remedy("finish the repair that was interrupted".to_owned());
        }
        self.judge_layout();
        self.judge_segments();
        if self.upto > self.patient.last() {
            let (last, upto) = (self.patient.last(), self.upto);
            self.find(format!(
                "the journal ends with record {last}, but the registry or the documents know it up to record {upto}: its end is gone"
            ));
        }
        if !losses.is_empty() {
            self.judge_losses(losses);
        }
        if n_unreadable > 0 {
            self.find(format!("{n_unreadable} records of the journal are whole, but do not hold what they should"));
            self.remedy(
                "nothing can be done about records that do not hold what they should: a defect wrote them".into(),
            );
        }
        self.judge_registry()?;
        self.judge_documents();
        Ok(())
    }

    fn judge_layout(&mut self) {
        for (is_faulty, name, remedy) in [
            (self.layout.format, "format", "write the number of the layout anew"),
            (self.layout.epoch, "epoch", "write an epoch anew that is later than any before"),
        ] {
            if is_faulty {
                self.find(format!("the file {name} is missing or does not hold a number"));
                self.remedy(remedy.to_owned());
            }
        }
    }

    fn judge_segments(&mut self) {
        let mut n_sidecars = 0;
        for segment in self.patient.segments.clone() {
            let file = format!("{JOURNAL}/{}", segment.file);
            match segment.state {
                SegmentState::Whole => {}
                SegmentState::Torn => self
                    .report
                    .notes
                    .push(format!("the end of {file} holds a write that was never confirmed: the next start cuts it")),
                SegmentState::Missing => {
                    self.find(format!("{file} is missing: {}", gone(segment.first, segment.last)));
                }
                SegmentState::Damaged if segment.lost.is_empty() => self.find(format!("the head of {file} is damaged")),
                SegmentState::Damaged => {
                    for loss in &segment.lost {
                        let Loss { first, last, from_byte, to_byte } = loss;
                        let gone = gone(*first, *last);
                        self.find(format!("{file} is damaged from byte {from_byte} to byte {to_byte}: {gone}"));
                    }
                }
            }
            let is_anew = segment.sidecar == crate::journal::doctor::SidecarState::Damaged;
            n_sidecars += u64::from(is_anew);
        }
        if n_sidecars > 0 {
            self.report
                .notes
                .push(format!("{n_sidecars} indexes of segments are damaged: they are made anew when needed"));
        }
    }

    /// What it means that records are gone.
    fn judge_losses(&mut self, losses: &[Loss]) {
        let n_lost: u64 = losses.iter().map(|loss| loss.last - loss.first + 1).sum();
        self.remedy(format!(
            "write the damaged segments anew, with everything that is whole, and empty records in the place of those that are gone ({n_lost})"
        ));
        let last = losses.iter().map(|loss| loss.last).max().unwrap_or(0);
        let known = |sequence: Option<u64>| sequence.is_some_and(|sequence| sequence >= last);
        let documents = match known(self.report.documents.sequence) {
            true => "what the lost records did to documents is in the document index".to_owned(),
            false => format!(
                "what lost records above {} did to documents is gone: those documents are as they were before",
                self.report.documents.sequence.unwrap_or(0)
            ),
        };
        let registry = match known(self.report.registry.sequence()) {
            true => "what they did to the registry is in the registry".to_owned(),
            false => format!(
                "what lost records above {} did to users, devices and subscriptions is gone",
                self.report.registry.sequence().unwrap_or(0)
            ),
        };
        self.find(documents);
        self.find(registry);
        self.find("commands among the lost records that were accepted and not carried out yet are gone".to_owned());
        let affected = self.report.journal.affected.clone();
        if affected.is_empty() {
            self.report.notes.push("the change log of every application is whole".to_owned());
        } else {
            let names = names_of(affected.iter().map(AppId::as_str));
            self.find(format!("changes of {names} may be gone"));
            self.remedy(format!(
                "begin a new epoch of the change log of {names}: their devices ask for everything anew"
            ));
        }
    }

    fn judge_registry(&mut self) -> Result<()> {
        let found = self.report.registry.clone();
        for (what, fault) in [("store", &found.store_fault), ("export", &found.export_fault)] {
            if let Some(fault) = fault {
                self.find(format!("the {what} of the registry cannot be used: {fault}"));
            }
        }
        let oldest = self.patient.oldest();
        if !found.reaches(oldest) {
            // A start that was refused leaves an empty one.
            let has = found
                .sequence()
                .filter(|sequence| *sequence > 0)
                .map_or("nothing is left of the registry".to_owned(), |sequence| {
                    format!("the registry has everything up to record {sequence}")
                });
            self.find(format!(
                "{has}, and the journal begins with record {oldest}: users, devices and applications written in between are gone"
            ));
            self.remedy("let the registry begin with what there is of it".to_owned());
            self.judge_applications()?;
        } else if found.store.is_none() && (found.export.is_some() || found.store_fault.is_some()) {
            if found.store_fault.is_none() {
                self.find("the store of the registry is missing".to_owned());
            }
            self.remedy("make the registry anew from its export and the journal; nothing of it is lost".to_owned());
        } else if found.export_fault.is_some() {
            self.remedy("write a new export of the registry".to_owned());
        }
        Ok(())
    }

    /// Which applications the history still defines, when the registry has lost some; which are gone can be told when nothing else
    /// is left of it.
    fn judge_applications(&mut self) -> Result<()> {
        let (defined, recorded) = applications::in_journal(&self.patient)?;
        if !defined.is_empty() {
            let names = names_of(defined.iter().map(AppId::as_str));
            self.remedy(format!(
                "take applications that the registry has lost from the history, which defines {names}"
            ));
        }
        if self.report.registry.sequence().unwrap_or(0) == 0 {
            let all = self.report.journal.logs.iter().map(|log| &log.application);
            let gone: Vec<&str> =
                all.filter(|app| !defined.contains(*app) && !recorded.contains(*app)).map(AppId::as_str).collect();
            if !gone.is_empty() {
                self.find(format!(
                    "nothing defines {} any more: {}",
                    names_of(gone.into_iter()),
                    applications::WHAT_TO_DO
                ));
            }
        }
        Ok(())
    }

    fn judge_documents(&mut self) {
        let found = self.report.documents.clone();
        for file in &found.damaged_definitions {
            self.find(format!(
                "{DOCUMENTS}/fields/{file} cannot be read: it says which fields of an application are filterable"
            ));
        }
        if !found.damaged_definitions.is_empty() {
            self.remedy("index documents by the fields that the registry's applications name".to_owned());
        }
        let oldest = self.patient.oldest();
        match found.state {
            IndexState::Whole => {}
            IndexState::Missing if oldest <= 1 && self.report.journal.records == 0 => {}
            IndexState::Missing if oldest <= 1 => {
                self.find("the document index is missing; the history reaches back to the beginning".to_owned());
                self.remedy("make the document index anew from the history; nothing of it is lost".to_owned());
            }
            IndexState::Missing => {
                self.find(format!(
                    "the document index is missing; the history begins with record {oldest}: documents that were not changed since were only in the index and are gone"
                ));
                self.remedy("make the document index anew from the history".to_owned());
            }
            IndexState::Damaged => self.judge_damaged_index(&found, oldest),
        }
    }

    fn judge_damaged_index(&mut self, found: &IndexFound, oldest: u64) {
        for fault in &found.faults {
            self.find(format!("document index: {fault}"));
        }
        for segment in found.segments.iter().filter(|segment| !segment.damaged_files.is_empty()) {
            let files = segment.damaged_files.join(", ");
            self.find(format!("document index, segment {}: damaged or missing: {files}", segment.id));
        }
        if found.unreadable > 0 {
            let lost: Vec<&str> = found.segments.iter().flat_map(|segment| &segment.lost).map(String::as_str).collect();
            let named = if lost.is_empty() { String::new() } else { format!(" ({})", names_of(lost.into_iter())) };
            self.find(format!(
                "{} documents cannot be read from the index{named}; those that changed since record {oldest}, where the history begins, are in the history; the others are gone",
                found.unreadable
            ));
        }
        self.remedy(format!(
            "make the document index anew from the {} documents that can be read of it and from the history, which begins with record {oldest}",
            found.documents
        ));
    }
}

fn gone(first: u64, last: u64) -> String {
    if first == last { format!("record {first} is gone") } else { format!("the records {first} to {last} are gone") }
}

/// Up to ten names, and how many more there are.
fn names_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let told = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{told} and {} more", names.len() - 10) } else { told }
}

fn layout_faults(dir: &Path) -> Result<LayoutFaults> {
    let is_fault = |outcome: Result<()>| match outcome {
        Ok(()) => Ok(false),
        Err(error) if error.kind == ErrorKind::Corrupt => Ok(true),
        Err(error) => Err(error),
    };
    Ok(LayoutFaults {
        format: !dir.join("format").exists() || is_fault(layout::check(dir))?,
        epoch: is_fault(layout::least_epoch(dir).map(drop))?,
    })
}

/// A directory for copies, gone afterwards. Only its owner may enter it: they hold secrets.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new(dir: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = dir.join(SCRATCH);
        let made = match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::DirBuilder::new().mode(0o700).create(&dir),
        };
        made.map_err(|error| failed(&dir, error))?;
        Ok(Self { dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It holds copies and links only; the next examination removes it otherwise.
        let _gone = fs::remove_dir_all(&self.dir);
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::io("examine", path.display().to_string(), error)
}
