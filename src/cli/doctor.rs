//! `nexxus doctor`: what is wrong with a data directory, and making it one that can be opened again.

use std::path::PathBuf;

use clap::Args;
use nexxus_storage::{
    ErrorKind,
    embedded::doctor::{self, Repaired, Report},
    model::AppId,
};
use serde_json::json;

use super::{
    Exit,
    output::{say, say_json},
    settings::Flags,
};
use crate::{config::Config, messages::route::Route};

/// Explain what is wrong with the data directory of a stopped server, and repair it.
///
/// Everything is read, nothing is changed. With --repair what is damaged is made anew, as far as the journal, the registry's export and
/// the readable documents of the index go; what is replaced stays in the data directory, in damaged-TIME. Exit code 1: something is
/// wrong and was not repaired.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The data directory [default: data.dir of the configuration].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Settings, in TOML [default: nexxus.toml, where it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Repair what is damaged.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self) -> Result<(), Exit> {
        let (config, _) = Flags { config: self.config.clone(), data: self.data.clone(), listen: None }.load()?;
        if self.repair { self.repair(&config) } else { self.examine(&config) }
    }

    fn examine(&self, config: &Config) -> Result<(), Exit> {
        let report = doctor::examine(&config.data.dir).map_err(failed)?;
        match self.json {
            true => say_json(&json!({ "sound": report.is_sound(), "report": report }))?,
            false => say(&told(&report))?,
        }
        if report.is_sound() {
            return Ok(());
        }
        Err(Exit::Failed(format!(
            "`nexxus doctor --data {} --repair` repairs what can be repaired; copy the directory first if you can",
            config.data.dir.display()
        )))
    }

    fn repair(&self, config: &Config) -> Result<(), Exit> {
        // Opening the directory runs tasks side by side.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Exit::Failed(format!("cannot start: {error}")))?;
        let writer = &config.workers.writer;
        let queues = Route::new(&*writer.queue, writer.partitions).queues();
        let repaired = runtime.block_on(doctor::repair(&config.storage(), &queues)).map_err(failed)?;
        match self.json {
            true => say_json(&json!(repaired)),
            false => say(&done(&repaired)),
        }
    }
}

fn failed(error: nexxus_storage::Error) -> Exit {
    match error.kind {
        ErrorKind::Unavailable => Exit::Failed(format!("{error}: stop the server first")),
        ErrorKind::Invalid => Exit::Usage(error.to_string()),
        _ => Exit::Failed(error.to_string()),
    }
}

/// What was found, for people.
fn told(report: &Report) -> String {
    let mut lines = vec![summary(report)];
    if report.is_sound() {
        lines.push("Everything is whole.".to_owned());
    } else {
        lines.extend(list("What is wrong:", &report.findings));
        lines.extend(list("What a repair does:", &report.remedies));
    }
    lines.extend(list("Besides:", &report.notes));
    lines.join("\n")
}

fn summary(report: &Report) -> String {
    let (journal, registry, documents) = (&report.journal, &report.registry, &report.documents);
    let entries: u64 = journal.logs.iter().map(|log| log.entries).sum();
    let records = registry.store.as_ref().map(|store| store.records).or(registry.export.map(|export| export.records));
    let upto = |sequence: Option<u64>| sequence.map_or("nothing".to_owned(), |sequence| format!("record {sequence}"));
    format!(
        "{}\n  journal    records {} to {} in {} segments: {entries} changes of {} applications\n  registry   {} records, up to {}\n  documents  {} in {} segments, up to {}",
        report.dir,
        journal.oldest,
        journal.last,
        journal.segments.len(),
        journal.logs.len(),
        records.unwrap_or(0),
        upto(registry.sequence()),
        documents.documents,
        documents.segments.len(),
        upto(documents.sequence),
    )
}

/// What was done, for people.
fn done(repaired: &Repaired) -> String {
    let report = &repaired.found;
    let Some(aside) = &repaired.aside else { return told(report) };
    let mut lines = vec![summary(report)];
    lines.extend(list("What was wrong:", &report.findings));
    lines.extend(list("What was done:", &report.remedies));
    let mut figures = Vec::new();
    if repaired.replaced > 0 {
        figures.push(format!("{} records of the journal are gone", repaired.replaced));
    }
    if repaired.salvaged > 0 {
        figures.push(format!("{} documents were salvaged from the index", repaired.salvaged));
    }
    let names = |apps: &[AppId]| apps.iter().map(AppId::as_str).collect::<Vec<_>>().join(", ");
    if !repaired.applications.is_empty() {
        figures.push(format!("applications taken from the history: {}", names(&repaired.applications)));
    }
    if !repaired.undefined.is_empty() {
        figures.push(format!("applications that nothing defines any more: {}", names(&repaired.undefined)));
    }
    if let Some(epoch) = repaired.epoch {
        figures.push(format!("new epochs begin with {epoch}"));
    }
    lines.extend(list("With this outcome:", &figures));
    lines.push(format!("What was replaced is kept in {aside}; `nexxus serve` starts again."));
    lines.join("\n")
}

fn list(title: &str, sentences: &[String]) -> Vec<String> {
    if sentences.is_empty() {
        return Vec::new();
    }
    std::iter::once(title.to_owned()).chain(sentences.iter().map(|sentence| format!("  - {sentence}"))).collect()
}
