//! `nexxus backup` and `nexxus restore`: all of a server as one file, and a data directory from it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use futures_util::StreamExt as _;
use indicatif::ProgressBar;
use nexxus_storage::backup::{self, Draft, Gauge, Manifest};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Exit,
    client::{self, Client, Target, body_of},
    output::{say, say_json},
    progress,
};
use crate::config::{Config, Sources};

/// Write everything that the running server has into a file (needs the admin token).
///
/// The server goes on meanwhile. The file is of one moment: everything that was accepted before the backup began is in it. It holds
/// the secrets of the installation, so only you may read it. What was in FILE before stays until the new backup is whole and was read
/// back.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Where to, e.g. nexxus.backup.
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// Make a data directory of a backup; no server is needed, and none may run there.
///
/// All of the file is checked before anything is written. Devices that come back to the restored server are told to ask for
/// everything anew, for what they saw after the backup is gone.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup.
    file: PathBuf,
    /// The directory: empty, or not there yet [default: data.dir of the configuration].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Settings, in TOML [default: nexxus.toml, where it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        let out = backup::create(&self.file).map_err(failed)?;
        let received = receive(&client, out).await;
        let completed = match received {
            Ok(bytes) => complete(self.file.clone(), bytes).await,
            Err(exit) => Err(exit),
        };
        match completed {
            Ok(manifest) => {
                client::print(&client, &about(&self.file, &manifest), || say(&taken(&self.file, &manifest)))
            }
            Err(exit) => {
                // Nobody can use it.
                let _gone = std::fs::remove_file(backup::part_of(&self.file));
                Err(exit)
            }
        }
    }
}

/// Receives a backup into a file. Gives the bytes of its parts.
async fn receive(client: &Client, mut out: Draft) -> Result<u64, Exit> {
    let response = client.send(client.request(Method::POST, &["admin", "backup"])?).await?;
    if !response.status().is_success() {
        body_of(response).await?;
        return Err(Exit::Failed("the server does not send a backup".to_owned()));
    }
    let bytes = response.headers().get("nxx-backup-bytes").and_then(|bytes| bytes.to_str().ok()?.parse().ok());
    let bar = progress::bytes("receiving", bytes.unwrap_or_default());
    let mut gauge = Gauge::default();
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Exit::Failed(format!("the backup broke off: {}", client::cause(&error))))?;
        out.write_all(&piece).map_err(|error| Exit::Failed(format!("the backup cannot be written: {error}")))?;
        bar.set_position(gauge.take(&piece));
    }
    bar.finish_and_clear();
    Ok(bytes.unwrap_or_default())
}

/// Reads it back and gives it its name.
async fn complete(file: PathBuf, bytes: u64) -> Result<Manifest, Exit> {
    let bar = progress::bytes("verifying", bytes);
    let told = bar.clone();
    let completed = tokio::task::spawn_blocking(move || backup::complete(&file, &mut |n| told.inc(n))).await;
    bar.finish_and_clear();
    completed.map_err(|error| Exit::Failed(format!("the backup cannot be verified: {error}")))?.map_err(failed)
}

impl Restore {
    pub(super) fn run(self) -> Result<(), Exit> {
        let mut sources = Sources::of_process(self.config.as_deref())?;
        let data = self.data.as_ref().map(|dir| dir.display().to_string());
        sources.flags.extend(data.map(|dir| ("--data".to_owned(), "data.dir".to_owned(), dir)));
        let (config, _) = Config::load(&sources)?;
        if let Some(why) = config.refuses_backups() {
            return Err(Exit::Usage(why));
        }
        // Opening the directory runs tasks side by side.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Exit::Failed(format!("cannot start: {error}")))?;
        let bar: Arc<ProgressBar> = Arc::new(progress::bytes("restoring", 0));
        let length = backup::read_manifest(&self.file).map_err(failed)?.bytes();
        // Each byte is read twice: checked, then written.
        bar.set_length(2 * length);
        let told = bar.clone();
        let restored =
            runtime.block_on(backup::restore(&self.file, &config.storage(), move |n| told.inc(n))).map_err(failed);
        bar.finish_and_clear();
        let restored = restored?;
        let dir = &config.data.dir;
        let mut shown = about(&self.file, &restored.manifest);
        shown["data"] = json!(dir);
        shown["epoch"] = json!(restored.epoch);
        shown["waiting"] = json!(restored.waiting);
        match self.json {
            true => say_json(&shown),
            false => say(&format!(
                "{} is as it was {}: {} applications. `nexxus serve --data {}` goes on from there.",
                dir.display(),
                restored.manifest.created,
                restored.manifest.applications.len(),
                dir.display(),
            )),
        }
    }
}

fn about(file: &Path, manifest: &Manifest) -> Value {
    json!({
        "file": file,
        "nexxus": manifest.nexxus,
        "created": manifest.created,
        "sequence": manifest.sequence,
        "bytes": manifest.bytes(),
        "applications": manifest.applications,
    })
}

fn taken(file: &Path, manifest: &Manifest) -> String {
    let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let (size, bytes) = (indicatif::HumanBytes(size), indicatif::HumanBytes(manifest.bytes()));
    let n_applications = manifest.applications.len();
    format!(
        "{}: {size} ({bytes} of data, {n_applications} applications), as of {}; read back, it is whole",
        file.display(),
        manifest.created
    )
}

fn failed(error: nexxus_storage::Error) -> Exit {
    Exit::Failed(error.to_string())
}
