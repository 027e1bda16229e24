//! How far a backup has come while it is received: counts the bytes of its parts without reading them.

use super::container::{DATA, FRAME_HEAD_BYTES, HEAD_BYTES, u32_at};

/// Follows a backup file that comes in pieces of any size.
#[derive(Debug)]
pub struct Gauge {
    /// The head of a frame, with the length of the raw bytes of a data frame behind it, as far as they came.
    head: Vec<u8>,
    /// Bytes that say nothing of progress.
    skip: u64,
    n_raw: u64,
}

impl Default for Gauge {
    fn default() -> Self {
        Self { head: Vec::new(), skip: HEAD_BYTES as u64, n_raw: 0 }
    }
}

impl Gauge {
    /// Takes the next piece; gives how many bytes of the parts have come so far. Of what is no backup it gives something.
    pub fn take(&mut self, mut piece: &[u8]) -> u64 {
        while !piece.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(piece.len() as u64);
                self.skip -= n;
                piece = &piece[n as usize..];
                continue;
            }
            let is_data = self.head.first() == Some(&DATA);
            let needed = if is_data { FRAME_HEAD_BYTES + 4 } else { FRAME_HEAD_BYTES };
            let (taken, rest) = piece.split_at((needed - self.head.len()).min(piece.len()));
            self.head.extend(taken);
            piece = rest;
            if self.head.len() < needed || (self.head.len() == FRAME_HEAD_BYTES && self.head[0] == DATA) {
                continue;
            }
            let length = u64::from(u32_at(&self.head, 1));
            if is_data {
                self.n_raw += u64::from(u32_at(&self.head, FRAME_HEAD_BYTES));
            }
            self.skip = if is_data { length.saturating_sub(4) } else { length };
            self.head.clear();
        }
        self.n_raw
    }
}
