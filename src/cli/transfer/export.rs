//! `nexxus export`: everything of the applications as JSON Lines, a page at a time, and on from where it broke off.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    lines::{LineReader, LineWriter, check_head, end, head, part_of},
    place::{Place, Stage},
};
use crate::cli::{
    Exit,
    client::{self, Client, Target},
    output::{items_of, say},
    progress,
};

/// Things of a page: few documents at first, for they may be large; more while pages are small.
const PAGE: usize = 500;
const FIRST_PAGE: usize = 50;
/// A page that is larger than this is followed by smaller ones.
const LARGE_BYTES: usize = 8 << 20;

/// Write applications with all that they have into a file, as JSON Lines (needs the admin token).
///
/// Definitions, users with the hashes of their passwords, devices, subscriptions and documents; compressed if the name of FILE ends
/// in .zst. The server goes on meanwhile: each document is as it is when its turn comes. An export that broke off goes on from
/// FILE.part.
#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    /// Where to, e.g. all.jsonl or all.jsonl.zst.
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

impl Export {
    pub(in crate::cli) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        let apps = match client.named_app() {
            Some(app) => vec![app.to_owned()],
            None => {
                let list = client.get(&["application"]).await?;
                let mut apps: Vec<String> = items_of(&list).iter().filter_map(|app| text(app, "id")).collect();
                apps.sort();
                apps
            }
        };
        let mut exporting = Exporting::begin(client.clone(), &self.file)?;
        for app in &apps {
            exporting.application(app).await?;
        }
        let n_lines = exporting.n_lines;
        exporting.finish(&self.file)?;
        let shown = json!({ "file": self.file, "applications": apps.len(), "lines": n_lines });
        client::print(&client, &shown, || {
            say(&format!("{}: {n_lines} lines of {} applications", self.file.display(), apps.len()))
        })
    }
}

/// An export on its way.
struct Exporting {
    client: Client,
    out: LineWriter,
    /// The last thing that the file held when this began.
    last: Option<Place>,
    n_lines: u64,
    page: usize,
    bar: ProgressBar,
}

impl Exporting {
    /// Begins a file, or takes up one that broke off: what can be read of it is copied, which the server has nothing to do with.
    fn begin(client: Client, file: &Path) -> Result<Self, Exit> {
        let (part, head) = (part_of(file), head(client.named_app()));
        let bar = progress::things("exporting");
        if !part.exists() {
            let mut out = LineWriter::create(part, file)?;
            out.write(&head)?;
            return Ok(Self { client, out, last: None, n_lines: 0, page: FIRST_PAGE, bar });
        }
        let mut out = LineWriter::create(part.with_extension("resumed"), file)?;
        let mut reader = LineReader::open(&part, file, &ProgressBar::hidden())?;
        let (mut last, mut n_lines) = (None, 0);
        match reader.next() {
            Ok(Some(line)) => {
                check_head(&line, &part)?;
                if line["nexxus"]["app"] != head["nexxus"]["app"] {
                    let why = "is of another export, of other applications: remove it, or say --app as then";
                    return Err(Exit::Failed(format!("{} {why}", part.display())));
                }
                out.write(&line)?;
            }
            Ok(None) | Err(_) => out.write(&head)?,
        }
        // What was cut off in the middle is written anew.
        while let Ok(Some(line)) = reader.next() {
            let Some(place) = Place::of(&line) else { break };
            out.write(&line)?;
            last = Some(place);
            n_lines += 1;
        }
        out.flush()?;
        out.rename(part)?;
        eprintln!("going on after {n_lines} lines that are there");
        bar.inc(n_lines);
        Ok(Self { client, out, last, n_lines, page: FIRST_PAGE, bar })
    }

    async fn application(&mut self, app: &str) -> Result<(), Exit> {
        let client = self.client.clone().in_app(app);
        let mut definition = client.get(&["application", app]).await?;
        let mut models: Vec<String> =
            definition["schema"].as_object().into_iter().flat_map(|schema| schema.keys().cloned()).collect();
        models.sort();
        if let Some(definition) = definition.as_object_mut() {
            definition.remove("indexing");
        }
        if self.resume(app, Stage::Application, "").is_some() {
            self.write(Stage::Application, definition)?;
        }
        for (stage, name) in
            [(Stage::User, "users"), (Stage::Device, "devices"), (Stage::Subscription, "subscriptions")]
        {
            self.records(&client, app, stage, name).await?;
        }
        for model in &models {
            self.documents(&client, app, model).await?;
        }
        Ok(())
    }

    fn resume(&self, app: &str, stage: Stage, model: &str) -> Option<String> {
        Place::resume(self.last.as_ref(), app, stage, model)
    }

    async fn records(&mut self, client: &Client, app: &str, stage: Stage, name: &str) -> Result<(), Exit> {
        let Some(mut after) = self.resume(app, stage, "") else { return Ok(()) };
        loop {
            let mut request = client.request(Method::GET, &["admin", "export", name])?;
            request = request.query(&[("limit", PAGE.to_string())]);
            if !after.is_empty() {
                request = request.query(&[("after", &after)]);
            }
            let page = client.answer(request).await?;
            for item in items_of(&page) {
                self.write(stage, item.clone())?;
            }
            self.out.flush()?;
            match text(&page, "next") {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    /// By rising ids, so that each page begins behind the last id that was written.
    async fn documents(&mut self, client: &Client, app: &str, model: &str) -> Result<(), Exit> {
        let Some(mut after) = self.resume(app, Stage::Document, model) else { return Ok(()) };
        loop {
            let mut query = json!({ "sort": ["id"], "limit": self.page });
            if !after.is_empty() {
                query["filter"] = json!({ "id": { "$gt": after } });
            }
            let page = client.post(&["model", model, "search"], &query).await?;
            let items = items_of(&page);
            let Some(last) = items.last().and_then(|last| text(last, "id")) else { return Ok(()) };
            let n_items = items.len();
            for item in items {
                self.write(Stage::Document, item.clone())?;
            }
            self.out.flush()?;
            if n_items < self.page {
                return Ok(());
            }
            after = last;
            let large = page.to_string().len() > LARGE_BYTES;
            self.page = if large { (self.page / 2).max(1) } else { PAGE.min(self.page * 2) };
        }
    }

    fn write(&mut self, stage: Stage, thing: Value) -> Result<(), Exit> {
        self.n_lines += 1;
        self.bar.inc(1);
        self.out.write(&json!({ stage.name(): thing }))
    }

    fn finish(mut self, file: &Path) -> Result<(), Exit> {
        self.bar.finish_and_clear();
        self.out.write(&end(self.n_lines))?;
        self.out.finish(file)
    }
}

fn text(thing: &Value, name: &str) -> Option<String> {
    thing[name].as_str().map(str::to_owned)
}
