//! The bytes of a segment: its head, its records.

use bytes::Bytes;

use super::Kind;

/// The format that is written. A segment of a newer one is refused.
pub(super) const FORMAT: u32 = 1;
/// Where the records of a segment begin.
pub(super) const HEAD_BYTES: u32 = 4096;
/// What stands before the payload of a record.
pub(super) const RECORD_HEAD_BYTES: usize = 21;
/// What of the head of a segment is in use. It keeps its layout in all formats, so that a newer one can be told from a damaged one.
pub(super) const HEAD_USED_BYTES: usize = 28;
const MAGIC: &[u8; 8] = b"NXXJRNL\n";

/// What the head of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The first sequence of the segment.
    pub(super) first: u64,
    /// Drawn anew whenever a file becomes a segment: what the file held before fails its checksums.
    pub(super) salt: u32,
}

/// Why a head cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHead {
    Newer(u32),
    Damaged,
}

impl Head {
    /// The whole head, zeros up to [`HEAD_BYTES`].
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.first.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.salt.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..24]);
        bytes[24..HEAD_USED_BYTES].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadHead> {
        if bytes.len() < HEAD_USED_BYTES || &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..24]) != u32_at(bytes, 24) {
            return Err(BadHead::Damaged);
        }
        match u32_at(bytes, 8) {
            FORMAT => Ok(Self { first: u64_at(bytes, 12), salt: u32_at(bytes, 20) }),
            newer => Err(BadHead::Newer(newer)),
        }
    }
}

/// The salt that stands in a head, sound or not.
pub(super) fn salt_in(head: &[u8; HEAD_USED_BYTES]) -> u32 {
    u32_at(head, 20)
}

/// How many bytes a record with such a payload takes.
pub(super) fn record_bytes(payload: &[u8]) -> usize {
    RECORD_HEAD_BYTES + payload.len()
}

/// Puts a record without its checksum at the end of a buffer: where it stands is known at once, when it is written only later.
pub(super) fn push_record(buffer: &mut Vec<u8>, sequence: u64, kind: Kind, payload: &[u8]) {
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&sequence.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind as u8);
    buffer.extend_from_slice(payload);
}

/// Completes the records of a buffer: how many up to each were not durable yet when it was written, and its checksum.
pub(super) fn seal_records(buffer: &mut [u8], durable: u64, salt: u32) {
    let mut rest = buffer;
    while rest.len() >= RECORD_HEAD_BYTES {
        let length = RECORD_HEAD_BYTES + u32_at(rest, 0) as usize;
        let (record, after) = rest.split_at_mut(length);
        let unsynced = u32::try_from(u64_at(record, 8).saturating_sub(durable)).unwrap_or(u32::MAX);
        record[16..20].copy_from_slice(&unsynced.to_le_bytes());
        let sum = checksum(record, salt);
        record[4..8].copy_from_slice(&sum.to_le_bytes());
        rest = after;
    }
}

fn checksum(record: &[u8], salt: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// A record as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: u64,
    /// None: of a kind that this version does not know.
    pub(super) kind: Option<Kind>,
    /// The last sequence that was durable when it was written.
    pub(super) durable_before: u64,
    pub(super) payload: Bytes,
    /// Its bytes in the file.
    pub(super) length: usize,
}

/// What stands at the beginning of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Record(Found),
    /// So many bytes are needed to tell.
    More(usize),
    Nothing,
}

/// Looks for a record at the beginning of these bytes, whatever its sequence.
pub(super) fn look(bytes: &[u8], salt: u32) -> Look {
    if bytes.len() < RECORD_HEAD_BYTES {
        return Look::More(RECORD_HEAD_BYTES);
    }
    let sequence = u64_at(bytes, 8);
    // Sequences begin at 1: nothing was ever written here.
    if sequence == 0 {
        return Look::Nothing;
    }
    let length = RECORD_HEAD_BYTES + u32_at(bytes, 0) as usize;
    let Some(record) = bytes.get(..length) else { return Look::More(length) };
    if checksum(record, salt) != u32_at(record, 4) {
        return Look::Nothing;
    }
    Look::Record(Found {
        sequence,
        kind: Kind::from_number(record[20]),
        durable_before: sequence.saturating_sub(u64::from(u32_at(record, 16))),
        payload: Bytes::copy_from_slice(&record[RECORD_HEAD_BYTES..]),
        length,
    })
}

/// The sequence of the record that may begin here.
pub(super) fn sequence_of(bytes: &[u8]) -> u64 {
    if bytes.len() < RECORD_HEAD_BYTES { 0 } else { u64_at(bytes, 8) }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u32 = 0x5a17_ed00;

    fn found(bytes: &[u8], salt: u32) -> Option<Found> {
        match look(bytes, salt) {
            Look::Record(found) => Some(found),
            Look::More(_) | Look::Nothing => None,
        }
    }

    #[test]
    fn records_come_back_and_damage_shows() {
        let mut buffer = Vec::new();
        push_record(&mut buffer, 7, Kind::LogEntry, b"hello");
        push_record(&mut buffer, 8, Kind::Registry, b"");
        seal_records(&mut buffer, 6, SALT);
        let first = found(&buffer, SALT).expect("a record");
        let Found { sequence, kind, durable_before, payload, length } = first.clone();
        assert_eq!((sequence, kind, durable_before, &payload[..]), (7, Some(Kind::LogEntry), 6, &b"hello"[..]));
        let second = found(&buffer[length..], SALT).expect("a record");
        assert_eq!((second.sequence, second.durable_before), (8, 6));
        for bit in 0..length * 8 {
            let mut damaged = buffer.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(found(&damaged, SALT), None, "bit {bit}");
        }
        for n_bytes in 0..length {
            assert!(matches!(look(&buffer[..n_bytes], SALT), Look::More(_)), "{n_bytes} bytes");
        }
        assert_eq!(found(&buffer, SALT + 1), None, "records of the file's earlier life");
    }

    #[test]
    fn a_kind_of_a_later_version_is_no_damage() {
        let mut buffer = Vec::new();
        push_record(&mut buffer, 7, Kind::LogEntry, b"hello");
        buffer[20] = 99;
        seal_records(&mut buffer, 6, SALT);
        assert_eq!(found(&buffer, SALT).expect("a record").kind, None);
    }

    #[test]
    fn heads_come_back_and_damage_shows() {
        let head = Head { first: 99, salt: SALT };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Ok(head));
        for bit in 0..HEAD_USED_BYTES * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&damaged), Err(BadHead::Damaged), "bit {bit}");
        }
    }

    /// The bytes of format 1, as released: a reader of any later version has to understand them.
    #[test]
    fn the_bytes_of_format_1_stay() {
        let mut buffer = Vec::new();
        push_record(&mut buffer, 1, Kind::QueueMessage, b"x");
        seal_records(&mut buffer, 0, SALT);
        assert_eq!(hex(&buffer), GOLDEN_RECORD);
        assert_eq!(hex(&Head { first: 7, salt: SALT }.encode()[..HEAD_USED_BYTES]), GOLDEN_HEAD);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const GOLDEN_RECORD: &str = "010000000be340b00100000000000000010000000178";
    const GOLDEN_HEAD: &str = "4e58584a524e4c0a01000000070000000000000000ed175afede2bab";
}
