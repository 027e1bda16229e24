//! The sidecar of a sealed segment: what the segment holds, and the index that was made of it.
//!
//! Magic, format u32, first and last sequence u64, length u32, newest i64 (ms), bytes of the index u64, checksum of the index
//! u32, checksum of all before it u32; then the index. It can be made anew at any time, so a damaged one counts as a missing one.

use std::{io, path::Path};

use bytes::Bytes;

use super::{
    files::{Files, read_whole},
    format::{u32_at, u64_at},
};

const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"NXXINDX\n";
const HEAD_BYTES: usize = 56;

/// What a sealed segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Bytes of the segment up to the end of its last record.
    pub(super) length: u32,
    /// When its newest record was written, in milliseconds since the Unix epoch.
    pub(super) newest: i64,
}

/// Writes a sidecar, so that there is the old one or the new one, whatever happens.
pub(super) fn keep(files: &dyn Files, path: &Path, sealed: Sealed, index: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("index.tmp");
    let file = files.create(&draft)?;
    let written = file.write_at(&encode(sealed, index), 0).and_then(|()| file.sync());
    if let Err(error) = written.and_then(|()| files.rename(&draft, path)) {
        // It takes room that may be needed; what is left of it goes at the next start.
        let _gone = files.remove(&draft);
        return Err(error);
    }
    files.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// What a sidecar says of its segment, without its index; none when it is missing, damaged or of another format.
pub(super) fn sealed(files: &dyn Files, path: &Path) -> io::Result<Option<Sealed>> {
    let file = match files.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut head = [0; HEAD_BYTES];
    let n_read = file.read_at(&mut head, 0)?;
    let Some((sealed, n_bytes, _)) = decode_head(&head[..n_read]) else { return Ok(None) };
    Ok((file.length()? == HEAD_BYTES as u64 + n_bytes).then_some(sealed))
}

/// The index in a sidecar; none when it is missing, damaged or of another format.
pub(super) fn index(files: &dyn Files, path: &Path) -> io::Result<Option<Bytes>> {
    match read_whole(files, path) {
        Ok(bytes) => Ok(decode_index(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(sealed: Sealed, index: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + index.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&sealed.first.to_le_bytes());
    bytes.extend_from_slice(&sealed.last.to_le_bytes());
    bytes.extend_from_slice(&sealed.length.to_le_bytes());
    bytes.extend_from_slice(&sealed.newest.to_le_bytes());
    bytes.extend_from_slice(&(index.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(index).to_le_bytes());
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(index);
    bytes
}

/// What is sealed, how many bytes the index has, and its checksum.
fn decode_head(bytes: &[u8]) -> Option<(Sealed, u64, u32)> {
    if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC || u32_at(bytes, 8) != FORMAT {
        return None;
    }
    if crc32fast::hash(&bytes[..HEAD_BYTES - 4]) != u32_at(bytes, HEAD_BYTES - 4) {
        return None;
    }
    let sealed = Sealed {
        first: u64_at(bytes, 12),
        last: u64_at(bytes, 20),
        length: u32_at(bytes, 28),
        newest: u64_at(bytes, 32) as i64,
    };
    Some((sealed, u64_at(bytes, 40), u32_at(bytes, 48)))
}

fn decode_index(bytes: Vec<u8>) -> Option<Bytes> {
    let (_, n_bytes, sum) = decode_head(&bytes)?;
    let index = Bytes::from(bytes).split_off(HEAD_BYTES);
    (index.len() as u64 == n_bytes && crc32fast::hash(&index) == sum).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_come_back_and_damage_shows() {
        let sealed = Sealed { first: 1, last: 5, length: 5000, newest: 17 };
        let bytes = encode(sealed, b"index");
        assert_eq!(decode_head(&bytes).map(|(sealed, ..)| sealed), Some(sealed));
        assert_eq!(decode_index(bytes.clone()), Some(Bytes::from_static(b"index")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_index(damaged), None, "bit {bit}");
        }
        for n_bytes in 0..bytes.len() {
            assert_eq!(decode_index(bytes[..n_bytes].to_vec()), None, "{n_bytes} bytes");
        }
    }
}
