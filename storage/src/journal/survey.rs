//! Telling a torn end from damage: what stands behind the first place of the last segment that holds no record.

use std::io;

use super::{
    files::File,
    format::{self, Head, Look, RECORD_HEAD_BYTES},
};

/// How much is looked at in one go.
const WINDOW: usize = 1024 * 1024;
/// No record that follows another one in the same segment is so many sequences later.
const FAR_AWAY: u64 = 1 << 28;
static ZEROS: [u8; 4096] = [0; 4096];

/// What was found behind a bad place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Survey {
    /// Where the first valid record begins.
    pub(super) resumes_at: Option<u32>,
    /// A record that was written after the missing one had been durable.
    pub(super) witness: Option<u64>,
}

/// Looks at every byte from a place on whether a record later than the missing one begins there, up to the first witness.
pub(super) fn survey(file: &dyn File, head: Head, from: u32, length: u32, missing: u64) -> io::Result<Survey> {
    let mut survey = Survey::default();
    let mut window = Window { file, length: length as usize, at: from as usize, buffer: Vec::new() };
    let mut at = from as usize;
    while at + RECORD_HEAD_BYTES <= length as usize {
        let bytes = window.from(at, RECORD_HEAD_BYTES)?;
        if bytes.len() < RECORD_HEAD_BYTES {
            break;
        }
        let sequence = format::sequence_of(bytes);
        // Looked at first, as the checksum of every place where a record might begin would take for ever.
        if sequence <= missing || sequence - missing >= FAR_AWAY {
            at += if bytes.starts_with(&ZEROS) { ZEROS.len() - RECORD_HEAD_BYTES } else { 1 };
            continue;
        }
        let mut look = format::look(bytes, head.salt);
        if let Look::More(needed) = look
            && at + needed <= length as usize
        {
            look = format::look(window.from(at, needed)?, head.salt);
        }
        let Look::Record(found) = look else {
            at += 1;
            continue;
        };
        survey.resumes_at.get_or_insert(at as u32);
        if found.durable_before >= missing {
            survey.witness = Some(found.sequence);
            break;
        }
        at += found.length;
    }
    Ok(survey)
}

/// A part of the file in memory.
struct Window<'a> {
    file: &'a dyn File,
    length: usize,
    at: usize,
    buffer: Vec<u8>,
}

impl Window<'_> {
    /// What is known from a place on, so many bytes at least where the file has them.
    fn from(&mut self, at: usize, needed: usize) -> io::Result<&[u8]> {
        if at + needed > self.at + self.buffer.len() {
            self.buffer.resize(needed.max(WINDOW).min(self.length - at), 0);
            let n_read = self.file.read_at(&mut self.buffer, at as u64)?;
            self.buffer.truncate(n_read);
            self.at = at;
        }
        Ok(self.buffer.get(at - self.at..).unwrap_or_default())
    }
}
