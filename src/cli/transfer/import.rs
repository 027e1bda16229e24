//! `nexxus import`: an export into a server, in portions. Sending a portion again changes nothing, so what breaks off is begun anew.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use indicatif::ProgressBar;
use reqwest::{Method, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{
    lines::{LineReader, check_head},
    place::{Place, Stage},
};
use crate::cli::{
    Exit,
    client::{self, Client, Target},
    output::{self, say},
    progress,
};

/// A portion has at most so many lines and about so many bytes; fewer where the server takes less.
const LINES: usize = 500;
const BYTES: usize = 256 << 10;
/// How long a server may be too busy for one portion.
const PATIENCE: Duration = Duration::from_secs(600);
/// Refusals that are shown; the others are counted.
const SHOWN: usize = 20;

/// Read what an export wrote into the running server (needs the admin token).
///
/// Everything keeps its id, owner, version and times. What is there already in the same or a later version stays as it is: an import
/// that broke off is begun again, and an import twice is an import once. Nobody is told of the documents unless --notify is said.
#[derive(Debug, Args)]
pub(in crate::cli) struct Import {
    /// The file, e.g. all.jsonl or all.jsonl.zst.
    file: PathBuf,
    /// Tell subscribers of the documents, as if they were written now.
    #[arg(long)]
    notify: bool,
    #[command(flatten)]
    target: Target,
}

impl Import {
    pub(in crate::cli) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        let bar = progress::bytes("importing", 0);
        let mut reader = LineReader::open(&self.file, &self.file, &bar)?;
        match reader.next()? {
            Some(head) => check_head(&head, &self.file)?,
            None => return Err(Exit::Failed(format!("{} is empty", self.file.display()))),
        }
        let mut importing =
            Importing { client, notify: self.notify, bar, portion: Portion::default(), done: Done::default() };
        let is_whole = importing.lines(&mut reader).await?;
        importing.send_portion().await?;
        importing.bar.finish_and_clear();
        let done = importing.done;
        let shown =
            json!({ "written": done.written, "unchanged": done.unchanged, "refused": done.refused, "whole": is_whole });
        client::print(&importing.client, &shown, || {
            let Done { written, unchanged, refused } = done;
            say(&format!("{written} written, {unchanged} were there, {refused} refused"))
        })?;
        match (done.refused, is_whole) {
            (0, true) => Ok(()),
            (0, false) => Err(Exit::Failed(format!(
                "{} has no end: the export broke off, and what follows is missing",
                self.file.display()
            ))),
            (refused, _) => Err(Exit::Failed(format!("{refused} lines were refused"))),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Done {
    written: u64,
    unchanged: u64,
    refused: u64,
}

/// Lines of one application that go together.
#[derive(Default)]
struct Portion {
    app: String,
    /// Each with its number in the file.
    lines: Vec<(u64, String)>,
    bytes: usize,
}

struct Importing {
    client: Client,
    notify: bool,
    bar: ProgressBar,
    portion: Portion,
    done: Done,
}

impl Importing {
    /// Takes every line. Gives whether the file has its end.
    async fn lines(&mut self, reader: &mut LineReader) -> Result<bool, Exit> {
        let mut n_lines = 0;
        while let Some(line) = reader.next()? {
            if let Some(end) = line.get("end") {
                return Ok(end["lines"] == json!(n_lines));
            }
            n_lines += 1;
            let Some(Place { app, stage, .. }) = Place::of(&line) else {
                self.refuse(reader.number, "it is no line of an export");
                continue;
            };
            if stage == Stage::Application {
                self.send_portion().await?;
                self.application(reader.number, &line["application"]).await?;
            } else {
                self.add(reader.number, app, line.to_string()).await?;
            }
        }
        Ok(false)
    }

    async fn add(&mut self, number: u64, app: String, line: String) -> Result<(), Exit> {
        let portion = &self.portion;
        if portion.app != app || portion.lines.len() >= LINES || portion.bytes + line.len() > BYTES {
            self.send_portion().await?;
            self.portion.app = app;
        }
        self.portion.bytes += line.len();
        self.portion.lines.push((number, line));
        Ok(())
    }

    /// Makes an application that is not there. One that is there keeps its definition.
    async fn application(&mut self, number: u64, definition: &Value) -> Result<(), Exit> {
        let id = definition["id"].as_str().unwrap_or_default();
        match self.client.get(&["application", id]).await {
            Ok(there) => {
                let is_same = ["schema", "rules"].iter().all(|name| there[*name] == definition[*name]);
                if !is_same {
                    let id = output::plain(id);
                    self.bar.suspend(|| {
                        eprintln!(
                            "application {id} is there with another schema or other rules: these stay as they are"
                        );
                    });
                }
                self.done.unchanged += 1;
            }
            Err(error) if error.is_not_found() => match self.client.post(&["application"], definition).await {
                Ok(_) => self.done.written += 1,
                Err(Exit::Refused(problem)) => self.refuse(number, &output::problem(&problem)),
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn send_portion(&mut self) -> Result<(), Exit> {
        let portion = std::mem::take(&mut self.portion);
        // Smaller ones go first where the server takes no larger ones.
        let mut waiting = vec![portion.lines];
        while let Some(lines) = waiting.pop() {
            if lines.is_empty() {
                continue;
            }
            match self.send(&portion.app, &lines).await {
                Ok(answer) => self.take_in(&answer, &lines),
                Err(Exit::Refused(problem)) if is_too_large(&problem) && lines.len() > 1 => {
                    let mut first = lines;
                    let second = first.split_off(first.len() / 2);
                    waiting.extend([second, first]);
                }
                Err(Exit::Refused(problem)) if is_too_large(&problem) => {
                    self.refuse(lines[0].0, &output::problem(&problem));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends lines until the server has them in force; a server that is too busy says when to come again.
    async fn send(&self, app: &str, lines: &[(u64, String)]) -> Result<Value, Exit> {
        let client = self.client.clone().in_app(app);
        let body: String = lines.iter().flat_map(|(_, line)| [line.as_str(), "\n"]).collect();
        let began = tokio::time::Instant::now();
        loop {
            let request = client
                .request(Method::POST, &["admin", "import"])?
                .query(&[("notify", self.notify)])
                .header(CONTENT_TYPE, "application/x-ndjson")
                .body(body.clone());
            match client.answer(request).await {
                Err(Exit::Refused(problem)) if is_busy(&problem) && began.elapsed() < PATIENCE => {
                    let seconds = problem["retryAfter"].as_u64().unwrap_or(1).clamp(1, 60);
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn take_in(&mut self, answer: &Value, lines: &[(u64, String)]) {
        self.done.written += answer["written"].as_u64().unwrap_or_default();
        self.done.unchanged += answer["unchanged"].as_u64().unwrap_or_default();
        for refused in answer["refused"].as_array().into_iter().flatten() {
            let place = refused["line"].as_u64().unwrap_or_default().saturating_sub(1) as usize;
            let number = lines.get(place).map_or(0, |(number, _)| *number);
            self.refuse(number, &output::problem(&refused["problem"]));
        }
    }

    fn refuse(&mut self, number: u64, why: &str) {
        self.done.refused += 1;
        if self.done.refused <= SHOWN as u64 {
            self.bar.suspend(|| eprintln!("line {number}: {why}"));
        }
    }
}

fn is_busy(problem: &Value) -> bool {
    let status = problem["status"].as_u64();
    [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
        .iter()
        .any(|busy| status == Some(busy.as_u16().into()))
}

fn is_too_large(problem: &Value) -> bool {
    problem["status"] == StatusCode::PAYLOAD_TOO_LARGE.as_u16()
}
