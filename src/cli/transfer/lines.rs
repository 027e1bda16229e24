//! The file of an export: lines in, lines out, compressed where its name says so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::cli::Exit;

/// The format that is written. A newer one is refused.
const FORMAT: u64 = 1;
/// Longest line: more than any document can be.
const MOST_BYTES: u64 = 64 << 20;
/// How much zstd works: files of JSON become a tenth with little.
const LEVEL: i32 = 3;

/// The first line of a file. `app`: the only application in it.
pub(super) fn head(app: Option<&str>) -> Value {
    let created = nexxus_storage::model::Timestamp::now();
    json!({ "nexxus": { "export": FORMAT, "version": env!("CARGO_PKG_VERSION"), "created": created, "app": app } })
}

/// The last line of a file: how many there are between it and the first.
pub(super) fn end(n_lines: u64) -> Value {
    json!({ "end": { "lines": n_lines } })
}

/// Refuses what is no first line of a file, or of a newer format.
pub(super) fn check_head(line: &Value, file: &Path) -> Result<(), Exit> {
    match line["nexxus"]["export"].as_u64() {
        Some(FORMAT) => Ok(()),
        Some(newer) => Err(Exit::Failed(format!(
            "{} is of format {newer}, this build reads format {FORMAT}: use a newer nexxus",
            file.display()
        ))),
        None => Err(Exit::Failed(format!("{} is no export of nexxus", file.display()))),
    }
}

pub(super) fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "zst")
}

/// Writes lines into a file that only its owner may read.
pub(super) struct LineWriter {
    path: PathBuf,
    out: Out,
}

enum Out {
    Plain(BufWriter<File>),
    Compressed(Box<zstd::stream::write::Encoder<'static, File>>),
}

impl LineWriter {
    /// A new file at `path`, for the export `file`.
    pub(super) fn create(path: PathBuf, file: &Path) -> Result<Self, Exit> {
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let out = made.and_then(|made| match is_compressed(file) {
            true => Ok(Out::Compressed(Box::new(zstd::stream::write::Encoder::new(made, LEVEL)?))),
            false => Ok(Out::Plain(BufWriter::with_capacity(256 * 1024, made))),
        });
        match out {
            Ok(out) => Ok(Self { path, out }),
            Err(error) => Err(unwritable(&path, &error)),
        }
    }

    pub(super) fn write(&mut self, line: &Value) -> Result<(), Exit> {
        let mut text = line.to_string();
        text.push('\n');
        let written = match &mut self.out {
            Out::Plain(out) => out.write_all(text.as_bytes()),
            Out::Compressed(out) => out.write_all(text.as_bytes()),
        };
        written.map_err(|error| unwritable(&self.path, &error))
    }

    /// Everything up to here can be read, whatever happens.
    pub(super) fn flush(&mut self) -> Result<(), Exit> {
        let flushed = match &mut self.out {
            Out::Plain(out) => out.flush(),
            Out::Compressed(out) => out.flush(),
        };
        flushed.map_err(|error| unwritable(&self.path, &error))
    }

    /// Ends it durably, under this name.
    pub(super) fn finish(self, name: &Path) -> Result<(), Exit> {
        let file = match self.out {
            Out::Plain(out) => out.into_inner().map_err(io::IntoInnerError::into_error),
            Out::Compressed(out) => out.finish(),
        };
        let dir = name.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        file.and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.path, name))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Gives it another name while it is written.
    pub(super) fn rename(&mut self, name: PathBuf) -> Result<(), Exit> {
        fs::rename(&self.path, &name).map_err(|error| unwritable(&name, &error))?;
        self.path = name;
        Ok(())
    }
}

/// Reads the lines of a file.
pub(super) struct LineReader {
    input: Box<dyn BufRead>,
    path: PathBuf,
    /// The line that was read last, from 1.
    pub(super) number: u64,
}

impl LineReader {
    /// `path` holds the export `file`, or a part of it. The bar shows how much of it was read.
    pub(super) fn open(path: &Path, file: &Path, bar: &ProgressBar) -> Result<Self, Exit> {
        let failed = |error: io::Error| Exit::Failed(format!("{} cannot be read: {error}", path.display()));
        let opened = File::open(path).map_err(failed)?;
        bar.set_length(opened.metadata().map_err(failed)?.len());
        let raw = bar.wrap_read(opened);
        let input: Box<dyn BufRead> = match is_compressed(file) {
            true => Box::new(BufReader::new(zstd::stream::read::Decoder::new(raw).map_err(failed)?)),
            false => Box::new(BufReader::with_capacity(256 * 1024, raw)),
        };
        Ok(Self { input, path: path.to_owned(), number: 0 })
    }

    /// The next line; none at the end. What is no whole line of JSON is an error: there the file was cut off, or damaged.
    pub(super) fn next(&mut self) -> Result<Option<Value>, Exit> {
        self.number += 1;
        let mut text = Vec::new();
        let read = (&mut self.input).take(MOST_BYTES).read_until(b'\n', &mut text);
        let wrong = |why: &str| Exit::Failed(format!("{}, line {}: {why}", self.path.display(), self.number));
        match read {
            Ok(0) => Ok(None),
            Ok(_) if !text.ends_with(b"\n") => Err(wrong("it is cut off")),
            Ok(_) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| wrong(&format!("it is not JSON: {error}")))
            }
            Err(error) => Err(wrong(&error.to_string())),
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Exit {
    Exit::Failed(format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path, file: &Path) -> (Vec<Value>, bool) {
        let mut reader = LineReader::open(path, file, &ProgressBar::hidden()).expect("it opens");
        let mut lines = Vec::new();
        loop {
            match reader.next() {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => return (lines, true),
                Err(_) => return (lines, false),
            }
        }
    }

    #[test]
    fn lines_come_back_also_from_a_file_that_was_never_finished() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["a.jsonl", "a.jsonl.zst"] {
            let file = dir.path().join(name);
            let part = part_of(&file);
            let mut writer = LineWriter::create(part.clone(), &file).expect("created");
            for n in 0..100 {
                writer.write(&json!({ "n": n })).expect("written");
            }
            writer.flush().expect("flushed");
            assert_eq!(read(&part, &file).0.len(), 100, "{name}");
            for n in 100..200 {
                writer.write(&json!({ "n": n })).expect("written");
            }
            writer.finish(&file).expect("finished");
            assert!(!part.exists());
            let (lines, is_whole) = read(&file, &file);
            assert!(is_whole && lines.len() == 200 && lines[199]["n"] == 199, "{name}");
            let bytes = fs::read(&file).expect("bytes");
            fs::write(&file, &bytes[..bytes.len() - 3]).expect("cut");
            assert!(!read(&file, &file).1, "{name}");
        }
    }

    #[test]
    fn a_newer_format_and_other_files_are_refused() {
        let file = Path::new("x.jsonl");
        assert_eq!(check_head(&head(None), file), Ok(()));
        for (line, says) in [(json!({ "nexxus": { "export": 2 } }), "format 2"), (json!({ "a": 1 }), "no export")] {
            let Err(Exit::Failed(why)) = check_head(&line, file) else { panic!("{line} was taken") };
            assert!(why.contains(says), "{why}");
        }
    }
}
