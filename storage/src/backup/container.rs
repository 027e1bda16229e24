//! The bytes of a backup file: a head, frames, and a last frame that says that it is whole.
//!
//! ```text
//! head     magic "NXXBACK\n" | format: u32 | checksum of these: u32
//! frame    kind: u8 | length: u32 | checksum: u32 | content
//! 1 manifest   JSON: what it is a backup of, and its parts with their lengths; always the first frame
//! 2 part       the name of the part that follows; parts come in the order of the manifest
//! 3 data       length of the raw bytes: u32 | these bytes, compressed with zstd, at most 1 MiB of them raw
//! 4 end        of the part: its length: u64 | CRC-32 of its raw bytes: u32
//! 5 complete   number of parts: u32 | their length: u64 | SHA-256 of everything before this frame; always the last frame
//! ```
//! Numbers are little-endian. The checksum of a frame is CRC-32 over its kind, its length and its content. Nothing follows the last
//! frame. Reading and writing hold one frame in memory, whatever the size of the file.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use super::manifest::Manifest;
use crate::{Error, ErrorKind, Result};

/// The format that is written. A newer one is refused.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"NXXBACK\n";
pub(super) const HEAD_BYTES: usize = 16;
pub(super) const FRAME_HEAD_BYTES: usize = 9;
/// Most raw bytes of a data frame.
pub(super) const DATA_BYTES: usize = 1 << 20;
/// Longest content of a frame: bounds what a damaged length makes the reader ask for.
const MOST_CONTENT: usize = 64 << 20;
/// The index is compressed already, mostly; this takes least of the processor that the server needs.
const LEVEL: i32 = 1;

const MANIFEST: u8 = 1;
const PART: u8 = 2;
pub(super) const DATA: u8 = 3;
const END: u8 = 4;
const COMPLETE: u8 = 5;

/// Writes a backup file from its beginning to its end.
pub(super) struct Writer<W> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    digest: Sha256,
    n_parts: u32,
    n_bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn begin(out: W, manifest: &Manifest) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(unwritten)?;
        let mut writer = Self { out, compressor, digest: Sha256::new(), n_parts: 0, n_bytes: 0 };
        let mut head = MAGIC.to_vec();
        head.extend(FORMAT.to_le_bytes());
        head.extend(crc32fast::hash(&head).to_le_bytes());
        writer.put(&head)?;
        let manifest = serde_json::to_vec(manifest)
            .map_err(|error| Error::new(ErrorKind::Internal, "write backup", "its manifest").with_source(error))?;
        writer.frame(MANIFEST, &manifest)?;
        Ok(writer)
    }

    /// Writes a part that has to have this length; `told` hears how many of its bytes were written.
    pub(super) fn part(
        &mut self,
        name: &str,
        length: u64,
        source: &mut dyn Read,
        told: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.frame(PART, name.as_bytes())?;
        let mut sum = crc32fast::Hasher::new();
        let mut buffer = vec![0; DATA_BYTES.min(length as usize)];
        let mut left = length;
        while left > 0 {
            let raw = &mut buffer[..DATA_BYTES.min(left as usize)];
            source.read_exact(raw).map_err(|error| Error::io("back up", format!("part {name}"), error))?;
            sum.update(raw);
            let mut content = (raw.len() as u32).to_le_bytes().to_vec();
            content.extend(self.compressor.compress(raw).map_err(unwritten)?);
            left -= raw.len() as u64;
            told(raw.len() as u64);
            self.frame(DATA, &content)?;
        }
        let mut end = length.to_le_bytes().to_vec();
        end.extend(sum.finalize().to_le_bytes());
        self.n_parts += 1;
        self.n_bytes += length;
        self.frame(END, &end)
    }

    /// Says that it is whole.
    pub(super) fn finish(mut self) -> Result<W> {
        let mut content = self.n_parts.to_le_bytes().to_vec();
        content.extend(self.n_bytes.to_le_bytes());
        content.extend(self.digest.clone().finalize());
        self.frame(COMPLETE, &content)?;
        self.out.flush().map_err(unwritten)?;
        Ok(self.out)
    }

    fn frame(&mut self, kind: u8, content: &[u8]) -> Result<()> {
        let length = u32::try_from(content.len()).ok().filter(|length| *length as usize <= MOST_CONTENT);
        let length = length.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "write backup", format!("a frame of {} bytes", content.len()))
        })?;
        let mut head = vec![kind];
        head.extend(length.to_le_bytes());
        head.extend(checksum(&head, content).to_le_bytes());
        self.put(&head)?;
        self.put(content)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes).map_err(unwritten)
    }
}

/// What a backup file is made of, in order. The manifest was read before.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// The part of this place in the manifest begins.
    Part(usize),
    /// Bytes of that part.
    Data(&'a [u8]),
    /// It ended, and is what was backed up.
    End,
    /// The file is whole.
    Complete,
}

/// Reads a backup file. Whatever is not as it was written is `Corrupt`; a newer format is `Unsupported`.
pub(super) struct Reader<R> {
    input: R,
    manifest: Manifest,
    decompressor: zstd::bulk::Decompressor<'static>,
    digest: Sha256,
    /// How many parts have begun.
    n_begun: usize,
    n_bytes: u64,
    part: Option<OpenPart>,
    raw: Vec<u8>,
}

struct OpenPart {
    left: u64,
    length: u64,
    sum: crc32fast::Hasher,
}

impl<R: Read> Reader<R> {
    /// Reads the head and the manifest.
    pub(super) fn open(mut input: R) -> Result<Self> {
        let mut head = [0; HEAD_BYTES];
        fill(&mut input, &mut head)?;
        let (said, sum) = head.split_at(HEAD_BYTES - 4);
        if !said.starts_with(MAGIC) {
            return Err(damaged("it is no backup of nexxus"));
        }
        if crc32fast::hash(said).to_le_bytes() != sum {
            return Err(damaged("its head was altered"));
        }
        match u32_at(said, MAGIC.len()) {
            FORMAT => {}
            newer => {
                let message = format!("it has format {newer}, this build reads format {FORMAT}: use a newer nexxus");
                return Err(Error::new(ErrorKind::Unsupported, "read backup", message));
            }
        }
        let mut digest = Sha256::new_with_prefix(head);
        let manifest = match frame(&mut input, &mut digest)? {
            (MANIFEST, content) => Manifest::parse(&content)?,
            _ => return Err(damaged("it does not begin with its manifest")),
        };
        let decompressor = zstd::bulk::Decompressor::new().map_err(unread)?;
        Ok(Self { input, manifest, decompressor, digest, n_begun: 0, n_bytes: 0, part: None, raw: Vec::new() })
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next piece. Not to be called after [`Piece::Complete`].
    pub(super) fn next(&mut self) -> Result<Piece<'_>> {
        let before = self.digest.clone();
        let (kind, content) = frame(&mut self.input, &mut self.digest)?;
        match (kind, self.part.is_some()) {
            (PART, false) => self.begin(&content),
            (DATA, true) => self.data(&content),
            (END, true) => self.end(&content),
            (COMPLETE, false) => self.complete(&content, before),
            _ => Err(damaged(&format!("frame {kind} stands where it cannot"))),
        }
    }

    fn begin(&mut self, name: &[u8]) -> Result<Piece<'_>> {
        let expected = self.manifest.parts.get(self.n_begun).filter(|part| part.name.as_bytes() == name);
        let length = expected.ok_or_else(|| damaged("its parts are not those of its manifest"))?.bytes;
        self.part = Some(OpenPart { left: length, length, sum: crc32fast::Hasher::new() });
        self.n_begun += 1;
        Ok(Piece::Part(self.n_begun - 1))
    }

    fn data(&mut self, content: &[u8]) -> Result<Piece<'_>> {
        let (length, compressed) = content.split_at_checked(4).ok_or_else(|| damaged("a frame is too short"))?;
        let length = u32_at(length, 0) as usize;
        let Some(part) = self.part.as_mut().filter(|part| length <= DATA_BYTES && length as u64 <= part.left) else {
            return Err(damaged("a part is longer than its manifest says"));
        };
        self.raw.resize(length, 0);
        let n_raw = self.decompressor.decompress_to_buffer(compressed, &mut self.raw[..]);
        let n_raw = n_raw.map_err(|error| damaged("a frame cannot be decompressed").with_source(error))?;
        if n_raw != length {
            return Err(damaged("a frame holds less than it says"));
        }
        part.sum.update(&self.raw);
        part.left -= length as u64;
        Ok(Piece::Data(&self.raw))
    }

    fn end(&mut self, content: &[u8]) -> Result<Piece<'_>> {
        let Some(part) = self.part.take() else { return Err(damaged("a part ends that has not begun")) };
        let mut expected = part.length.to_le_bytes().to_vec();
        expected.extend(part.sum.finalize().to_le_bytes());
        if part.left > 0 || content != expected {
            return Err(damaged("a part is not what was backed up"));
        }
        self.n_bytes += part.length;
        Ok(Piece::End)
    }

    fn complete(&mut self, content: &[u8], before: Sha256) -> Result<Piece<'_>> {
        let mut expected = (self.manifest.parts.len() as u32).to_le_bytes().to_vec();
        expected.extend(self.n_bytes.to_le_bytes());
        expected.extend(before.finalize());
        if self.n_begun != self.manifest.parts.len() || content != expected {
            return Err(damaged("its parts are not those of its manifest"));
        }
        let mut more = [0];
        match self.input.read(&mut more) {
            Ok(0) => Ok(Piece::Complete),
            Ok(_) => Err(damaged("there are bytes after its end")),
            Err(error) => Err(unread(error)),
        }
    }
}

/// One frame: its kind and its content.
fn frame(input: &mut impl Read, digest: &mut Sha256) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; FRAME_HEAD_BYTES];
    fill(input, &mut head)?;
    let length = u32_at(&head, 1) as usize;
    if length > MOST_CONTENT {
        return Err(damaged("a frame says that it is longer than any can be"));
    }
    // A length that is damaged is found out before its bytes are asked for all at once.
    let mut content = Vec::new();
    let n_read = input.take(length as u64).read_to_end(&mut content).map_err(unread)?;
    if n_read < length {
        return Err(damaged("it is cut off"));
    }
    if checksum(&head[..5], &content) != u32_at(&head, 5) {
        return Err(damaged("a checksum does not fit: it was altered, or damaged on its way"));
    }
    digest.update(head);
    digest.update(&content);
    Ok((head[0], content))
}

fn checksum(head: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(content);
    hasher.finalize()
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut off"),
        _ => unread(error),
    })
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read backup", what)
}

fn unread(error: io::Error) -> Error {
    Error::io("read backup", "the file", error)
}

fn unwritten(error: io::Error) -> Error {
    Error::io("write backup", "the file", error)
}

#[cfg(test)]
pub(super) mod tests;
