//! The export: every durable record in one file, to rebuild the store from, and to read with any tool.
//!
//! JSON Lines. The first line names the format and the sequence of the journal that the file is good for: replaying the
//! journal from the next one on gives what there is (the file may hold some of it already). Then a line for each record. The
//! last line tells how many records there are and the CRC-32 of everything before it, so that a cut or changed file is seen.
//! A value that is JSON stands as it is, any other in hex. The file is replaced as a whole: written beside, synced, renamed.
//!
//! It holds password hashes and secrets, so only its owner may read it.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, ErrorKind as Io, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::layer::Slot;
use crate::{
    Error, ErrorKind, Result,
    model::{AppId, Timestamp},
    registry::{Key, Kind},
};

const FORMAT: u32 = 1;
const NAME: &str = "export.jsonl";
const UNFINISHED: &str = "export.jsonl.tmp";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    registry_export: u32,
    sequence: u64,
    written_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<AppId>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    revision: u64,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    records: u64,
    crc32: String,
}

/// What is known of a whole and sound export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) sequence: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// An export that is being written. Dropped before its end it leaves nothing that counts.
pub(super) struct Writer {
    dir: PathBuf,
    file: BufWriter<File>,
    crc: crc32fast::Hasher,
    summary: Summary,
}

impl Writer {
    pub(super) fn begin(dir: &Path, sequence: u64, written_at: Timestamp) -> Result<Self> {
        let path = dir.join(UNFINISHED);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = BufWriter::new(file.map_err(|error| io_error(&path, error))?);
        let summary = Summary { sequence, records: 0, bytes: 0 };
        let mut writer = Self { dir: dir.to_owned(), file, crc: crc32fast::Hasher::new(), summary };
        writer.line(&Header { registry_export: FORMAT, sequence, written_at })?;
        Ok(writer)
    }

    pub(super) fn record(&mut self, key: &Key, revision: u64, value: &[u8]) -> Result<()> {
        let json = as_json(value);
        let hex = if json.is_none() { Some(to_hex(value)) } else { None };
        let id = Cow::Borrowed(key.id.as_str());
        self.summary.records += 1;
        self.line(&Line { kind: key.kind, app: key.app.clone(), id, revision, value: json, hex })
    }

    /// Makes it the export of the directory.
    pub(super) fn finish(mut self) -> Result<Summary> {
        let crc32 = format!("{:08x}", self.crc.clone().finalize());
        self.line(&Trailer { records: self.summary.records, crc32 })?;
        let (from, to) = (self.dir.join(UNFINISHED), self.dir.join(NAME));
        let file = self.file.into_inner().map_err(|error| io_error(&from, error.into_error()))?;
        file.sync_all().map_err(|error| io_error(&from, error))?;
        fs::rename(&from, &to).map_err(|error| io_error(&to, error))?;
        sync_dir(&self.dir)?;
        Ok(self.summary)
    }

    fn line<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let mut text = serde_json::to_vec(line)
            .map_err(|error| Error::new(ErrorKind::Internal, "export registry", "a line").with_source(error))?;
        text.push(b'\n');
        self.crc.update(&text);
        self.summary.bytes += text.len() as u64;
        self.file.write_all(&text).map_err(|error| io_error(&self.dir.join(UNFINISHED), error))
    }
}

/// Reads the export of a directory, if there is one, to its end without looking into its records: is it whole and sound?
pub(super) fn check(dir: &Path) -> Result<Option<Summary>> {
    let path = dir.join(NAME);
    match File::open(&path) {
        Ok(file) => lines(&path, file, &mut |_| Ok(())).map(Some),
        Err(error) if error.kind() == Io::NotFound => Ok(None),
        Err(error) => Err(io_error(&path, error)),
    }
}

/// The export of a directory, open: it stays readable when a newer one takes its place. With the sequence of the journal that it is
/// good for, and its length.
pub(super) fn open(dir: &Path) -> Result<(File, u64, u64)> {
    let path = dir.join(NAME);
    let failed = |error| io_error(&path, error);
    let mut file = File::open(&path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut first = Vec::new();
    BufReader::with_capacity(512, &file).read_until(b'\n', &mut first).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let header: Header = serde_json::from_slice(&first).map_err(|_| damaged(&path, "its first line is no header"))?;
    Ok((file, header.sequence, bytes))
}

/// Visits every record of the export. What was visited counts only when this returns without an error.
pub(super) fn read(dir: &Path, visit: &mut dyn FnMut(Key, Slot) -> Result<()>) -> Result<Summary> {
    let path = dir.join(NAME);
    let file = File::open(&path).map_err(|error| io_error(&path, error))?;
    lines(&path, file, &mut |text| {
        let line: Line<'_> = serde_json::from_slice(text).map_err(|error| damaged(&path, &error.to_string()))?;
        let value = match (line.value, line.hex) {
            (Some(json), None) => Bytes::copy_from_slice(json.get().as_bytes()),
            (None, Some(hex)) => Bytes::from(from_hex(&hex).ok_or_else(|| damaged(&path, "a value that is no hex"))?),
            _ => return Err(damaged(&path, "a record without a value")),
        };
        let key = Key { kind: line.kind, app: line.app, id: line.id.into_owned() };
        visit(key, Slot { revision: line.revision, value: Some(value) })
    })
}

/// Visits the lines between the first and the last, and checks those two.
fn lines(path: &Path, file: File, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Summary> {
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let (mut line, mut next) = (Vec::new(), Vec::new());
    let mut read = |line: &mut Vec<u8>| {
        line.clear();
        file.read_until(b'\n', line).map_err(|error| io_error(path, error))
    };
    let mut bytes = read(&mut line)? as u64;
    let header: Header = serde_json::from_slice(&line).map_err(|_| damaged(path, "its first line is no header"))?;
    if header.registry_export > FORMAT {
        let message = format!("{} is of format {}, this build reads {FORMAT}", path.display(), header.registry_export);
        return Err(Error::new(ErrorKind::Unsupported, "read export", message));
    }
    let mut crc = crc32fast::Hasher::new();
    let mut records = 0;
    crc.update(&line);
    bytes += read(&mut line)? as u64;
    loop {
        bytes += read(&mut next)? as u64;
        if next.is_empty() {
            break;
        }
        visit(&line)?;
        crc.update(&line);
        records += 1;
        std::mem::swap(&mut line, &mut next);
    }
    let trailer: Trailer = serde_json::from_slice(&line).map_err(|_| damaged(path, "it ends early"))?;
    if trailer.records != records || trailer.crc32 != format!("{:08x}", crc.finalize()) {
        return Err(damaged(path, "its checksum does not fit its records"));
    }
    Ok(Summary { sequence: header.sequence, records, bytes })
}

/// Removes what an export that was never finished left.
pub(super) fn remove_unfinished(dir: &Path) -> Result<()> {
    let path = dir.join(UNFINISHED);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != Io::NotFound => Err(io_error(&path, error)),
        _ => Ok(()),
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io_error(dir, error))
}

/// The value, when it can stand in a line as it is and comes back to the byte.
fn as_json(value: &[u8]) -> Option<&RawValue> {
    let json: &RawValue = serde_json::from_slice(value).ok()?;
    let unchanged = json.get().len() == value.len() && !value.contains(&b'\n') && !value.contains(&b'\r');
    unchanged.then_some(json)
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if let [high, low] = pair { Some(digit(*high)? << 4 | digit(*low)?) } else { None }).collect()
}

fn io_error(path: &Path, error: std::io::Error) -> Error {
    Error::io("export registry", path.display().to_string(), error)
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read export", format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(
        r#"{"registryExport":1,"sequence":42,"writtenAt":"2026-12-01T10:00:00.000Z"}"#,
        "\n",
        r#"{"kind":"application","id":"tasks","revision":7,"value":{"name": "Tasks"}}"#,
        "\n",
        r#"{"kind":"user-name","app":"tasks","id":"\"ann\"\n","revision":41,"hex":"0009ff"}"#,
        "\n",
        r#"{"kind":"user","app":"tasks","id":"u1","revision":42,"hex":""}"#,
        "\n",
        r#"{"records":3,"crc32":"CRC"}"#,
        "\n",
    );

    fn golden_records() -> Vec<(Key, u64, &'static [u8])> {
        let tasks = AppId::parse("tasks").unwrap();
        vec![
            (Key::new(Kind::Application, None, "tasks"), 7, br#"{"name": "Tasks"}"#),
            (Key::new(Kind::UserName, Some(&tasks), "\"ann\"\n"), 41, b"\x00\x09\xff"),
            (Key::new(Kind::User, Some(&tasks), "u1"), 42, b""),
        ]
    }

    fn read_all(dir: &Path) -> Result<Vec<(Key, Slot)>> {
        let mut all = Vec::new();
        read(dir, &mut |key, slot| {
            all.push((key, slot));
            Ok(())
        })?;
        Ok(all)
    }

    /// What format 1 wrote has to be readable for good.
    #[test]
    fn format_1_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let written_at = "2026-12-01T10:00:00Z".parse().unwrap();
        let mut writer = Writer::begin(dir.path(), 42, written_at).unwrap();
        for (key, revision, value) in golden_records() {
            writer.record(&key, revision, value).unwrap();
        }
        let summary = writer.finish().unwrap();
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert_eq!(text, GOLDEN.replace("CRC", "7ab2306e"));
        assert_eq!(check(dir.path()).unwrap(), Some(summary));
        let expected: Vec<(Key, Slot)> = golden_records()
            .into_iter()
            .map(|(key, revision, value)| (key, Slot { revision, value: Some(Bytes::from_static(value)) }))
            .collect();
        assert_eq!(read_all(dir.path()).unwrap(), expected);
    }

    #[test]
    fn a_damaged_export_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(dir.path()).unwrap(), None);
        let mut writer = Writer::begin(dir.path(), 42, Timestamp::now()).unwrap();
        assert_eq!(check(dir.path()).unwrap(), None, "an unfinished export does not count");
        for (key, revision, value) in golden_records() {
            writer.record(&key, revision, value).unwrap();
        }
        writer.finish().unwrap();
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        let mut cases: Vec<Vec<u8>> = (0..whole.len() - 1).map(|cut| whole[..cut].to_vec()).collect();
        cases.extend((0..whole.len() - 1).map(|at| {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            changed
        }));
        for (index, case) in cases.into_iter().enumerate() {
            fs::write(&path, case).unwrap();
            let kind = check(dir.path()).map(|_| ()).unwrap_err().kind;
            assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "case {index}: {kind}");
        }
    }

    #[test]
    fn only_json_that_comes_back_to_the_byte_stands_as_it_is() {
        for (value, stands) in [
            (&b"{\"a\":1}"[..], true),
            (b"[1, 2]", true),
            (b"null", true),
            (b" {}", false),
            (b"{}\n", false),
            (b"{\n}", false),
            (b"{\r}", false),
            (b"{} {}", false),
            (b"", false),
            (b"\xff", false),
        ] {
            assert_eq!(as_json(value).is_some(), stands, "{value:?}");
        }
    }
}
