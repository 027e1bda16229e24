//! Reading the records of one segment in order.

use super::{
    Place, Record,
    files::File,
    format::{self, Found, HEAD_BYTES, Head, Look},
};
use crate::{Error, ErrorKind, Result};

/// How much of a segment is read at once.
const CHUNK: usize = 1024 * 1024;

/// Reads the records of one segment, up to the first place that holds none.
pub(super) struct Reader<'a> {
    file: &'a dyn File,
    head: Head,
    /// Where it ends at the latest.
    length: u32,
    /// Where the next record begins.
    offset: u32,
    next_sequence: u64,
    durable_before: u64,
    batch_at: u32,
    buffer: Vec<u8>,
    buffer_at: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a dyn File, head: Head, length: u32) -> Self {
        Self {
            file,
            head,
            length,
            offset: HEAD_BYTES,
            next_sequence: head.first,
            durable_before: 0,
            batch_at: HEAD_BYTES,
            buffer: Vec::new(),
            buffer_at: HEAD_BYTES,
        }
    }

    /// Begins with the record of this sequence, which stands at this offset, instead of the first one.
    pub(super) fn beginning_with(mut self, sequence: u64, offset: u32) -> Self {
        (self.offset, self.buffer_at, self.batch_at) = (offset, offset, offset);
        self.next_sequence = sequence;
        self
    }

    /// Where what was read ends.
    pub(super) fn offset(&self) -> u32 {
        self.offset
    }

    /// The last sequence that was read; below the segment's first when there was none.
    pub(super) fn last(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Where the records begin that were written last, in one go: those before them were durable by then.
    pub(super) fn last_batch_at(&self) -> u32 {
        self.batch_at
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        let Some(found) = self.find()? else { return Ok(None) };
        let Some(kind) = found.kind else {
            let message = format!(
                "record {} in segment {} is of a kind that this version does not know: a newer one wrote it",
                found.sequence, self.head.first
            );
            return Err(Error::new(ErrorKind::Unsupported, "read journal", message));
        };
        let place = Place { segment: self.head.first, offset: self.offset };
        if found.durable_before != self.durable_before {
            self.durable_before = found.durable_before;
            self.batch_at = self.offset;
        }
        self.offset += found.length as u32;
        self.next_sequence += 1;
        Ok(Some(Record { sequence: found.sequence, place, kind, payload: found.payload }))
    }

    fn find(&mut self) -> Result<Option<Found>> {
        loop {
            let left = self.length.saturating_sub(self.offset) as usize;
            let window = self.buffer.get((self.offset - self.buffer_at) as usize..).unwrap_or_default();
            let window = &window[..window.len().min(left)];
            if window.len() >= format::RECORD_HEAD_BYTES && format::sequence_of(window) != self.next_sequence {
                return Ok(None);
            }
            let needed = match format::look(window, self.head.salt) {
                Look::Record(found) => return Ok(Some(found)),
                Look::More(needed) if needed <= left => needed,
                Look::More(_) | Look::Nothing => return Ok(None),
            };
            self.buffer.resize(needed.max(CHUNK).min(left), 0);
            let n_read = self
                .file
                .read_at(&mut self.buffer, u64::from(self.offset))
                .map_err(|error| Error::io("read journal", format!("segment {}", self.head.first), error))?;
            self.buffer.truncate(n_read);
            self.buffer_at = self.offset;
            if n_read < needed {
                return Ok(None);
            }
        }
    }
}
