//! The small words that records and indexes of the embedded engine are written in: little-endian numbers, names, texts.
//!
//! A name is its length as `u8`, then its text; a block is its length as `u32`, then its bytes; a varint is LEB128.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, ErrorKind, Result,
    model::{Offset, Timestamp},
};

#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub(crate) fn u8(&mut self, number: u8) {
        self.bytes.push(number);
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(crate) fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub(crate) fn time(&mut self, time: Timestamp) {
        self.bytes.extend(time.as_ms().to_le_bytes());
    }

    pub(crate) fn offset(&mut self, offset: Offset) {
        self.u32(offset.epoch);
        self.u64(offset.position);
    }

    /// `Invalid` over 255 bytes.
    pub(crate) fn name(&mut self, text: &str) -> Result<()> {
        self.u8(u8::try_from(text.len()).map_err(unwritable)?);
        self.bytes.extend(text.as_bytes());
        Ok(())
    }

    /// A block whose length is filled in when it is written: no second buffer.
    pub(crate) fn block(&mut self, write: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let start = self.bytes.len();
        self.u32(0);
        write(self)?;
        let length = u32::try_from(self.bytes.len() - start - 4).map_err(unwritable)?;
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        self.block(|out| serde_json::to_writer(&mut out.bytes, value).map_err(unwritable))
    }
}

/// Reads what a [`Writer`] wrote. Everything that does not fit is `Corrupt`, with `what` in the message.
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn corrupt(&self, message: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Corrupt, "decode", format!("{}: {message}", self.what))
    }

    pub(crate) fn damaged(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.corrupt("it cannot be read").with_source(error)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.corrupt("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Everything that is left.
    pub(crate) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.corrupt("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.corrupt("a number is too long"))
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp> {
        Timestamp::from_ms(self.i64()?).map_err(|error| self.damaged(error))
    }

    pub(crate) fn offset(&mut self) -> Result<Offset> {
        Ok(Offset::new(self.u32()?, self.u64()?))
    }

    pub(crate) fn name(&mut self) -> Result<&'a str> {
        let length = self.u8()?;
        std::str::from_utf8(self.take(length.into())?).map_err(|error| self.damaged(error))
    }

    /// A name that is an id of some kind.
    pub(crate) fn id<T: std::str::FromStr<Err = crate::model::id::InvalidId>>(&mut self) -> Result<T> {
        self.name()?.parse().map_err(|error| self.damaged(error))
    }

    pub(crate) fn block(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    pub(crate) fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        let text = self.block()?;
        serde_json::from_slice(text).map_err(|error| self.damaged(error))
    }

    /// The first byte of everything that is kept: refuses what a newer build wrote.
    pub(crate) fn format(&mut self, known: u8) -> Result<()> {
        match self.u8()? {
            format if format == known => Ok(()),
            format => Err(self.corrupt(format!("it has format {format}; this build reads format {known}"))),
        }
    }

    pub(crate) fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt("there are bytes after its end")) }
    }
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, "encode", "it cannot be written").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back_and_end() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Writer::default();
            out.varint(number);
            let mut input = Reader::new(&out.bytes, "a number");
            assert_eq!(input.varint().expect("a varint"), number);
            assert!(input.end().is_ok());
        }
        assert!(Reader::new(&[0xff; 11], "a number").varint().is_err());
    }

    #[test]
    fn a_block_is_as_long_as_what_was_written() {
        let mut out = Writer::default();
        out.block(|out| out.name("abc")).expect("writes");
        let mut input = Reader::new(&out.bytes, "a block");
        assert_eq!(input.block().expect("a block"), b"\x03abc");
        assert!(Reader::new(&out.bytes[..7], "a block").block().is_err());
    }
}
