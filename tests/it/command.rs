//! The real binary as a command that ends: what it said, and places for what it reads and writes.

use std::{path::PathBuf, process::Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::nexxus;

/// Runs a command to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    let mut command = nexxus();
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
}

/// Runs a command that has to succeed; gives what it says as JSON.
pub(crate) async fn done(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Everything that it said, and how it ended.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}\n{}", output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A directory of a test.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How many files and directories are in it.
    pub(crate) fn n_files(&self) -> usize {
        std::fs::read_dir(self.dir.path()).expect("a directory").count()
    }
}
