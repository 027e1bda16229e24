//! The bytes of a segment: its header, its records.

use bytes::Bytes;

use super::Kind;

/// The format that is written. A segment of a newer one is refused.
pub(super) const FORMAT: u32 = 1;
/// Where the records of a segment begin.
pub(super) const HEADER_BYTES: u32 = 4096;
/// What stands before the payload of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 21;
const MAGIC: &[u8; 8] = b"NXXJRNL\n";

/// The head of a segment: magic, format, first sequence, checksum over them; zeros up to [`HEADER_BYTES`].
pub(super) fn segment_header(first: u64) -> Vec<u8> {
    let mut header = vec![0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..20].copy_from_slice(&first.to_le_bytes());
    let sum = crc32fast::hash(&header[..20]);
    header[20..24].copy_from_slice(&sum.to_le_bytes());
    header
}

/// What the head of a segment says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    First(u64),
    Newer(u32),
    Invalid,
}

pub(super) fn read_segment_header(bytes: &[u8]) -> Head {
    if bytes.len() < 24 || &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..20]) != u32_at(bytes, 20) {
        return Head::Invalid;
    }
    match u32_at(bytes, 8) {
        FORMAT => Head::First(u64_at(bytes, 12)),
        newer => Head::Newer(newer),
    }
}

/// Puts a record without its checksum at the end of a buffer: what is written is known at once, when it is written only later.
pub(super) fn push_record(buffer: &mut Vec<u8>, sequence: u64, kind: Kind, payload: &[u8]) {
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&sequence.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind as u8);
    buffer.extend_from_slice(payload);
}

/// Completes the records of a buffer: how many records before each were not yet durable when it was written, and its checksum.
pub(super) fn seal_records(buffer: &mut [u8], durable: u64) {
    let mut rest = buffer;
    while rest.len() >= RECORD_HEADER_BYTES {
        let length = RECORD_HEADER_BYTES + u32_at(rest, 0) as usize;
        let (record, after) = rest.split_at_mut(length);
        let unsynced = u32::try_from(u64_at(record, 8).saturating_sub(durable)).unwrap_or(u32::MAX);
        record[16..20].copy_from_slice(&unsynced.to_le_bytes());
        let sum = checksum(record);
        record[4..8].copy_from_slice(&sum.to_le_bytes());
        rest = after;
    }
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// A record as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    /// The last sequence that was durable when it was written, at least.
    pub(super) durable_before: u64,
    pub(super) payload: Bytes,
    /// Its bytes in the file.
    pub(super) length: usize,
}

/// How many bytes the record at the beginning of these has, as far as its length can be believed.
pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return None;
    }
    // Sequences begin at 1: nothing was ever written here.
    if u64_at(bytes, 8) == 0 {
        return None;
    }
    Some(RECORD_HEADER_BYTES + u32_at(bytes, 0) as usize)
}

/// The sequence of the record that may begin here.
pub(super) fn sequence_of(bytes: &[u8]) -> Option<u64> {
    (bytes.len() >= RECORD_HEADER_BYTES).then(|| u64_at(bytes, 8))
}

/// Reads the whole record at the beginning of these bytes; none when there is no valid one.
pub(super) fn read_record(bytes: &[u8]) -> Option<Found> {
    let length = record_length(bytes)?;
    let record = bytes.get(..length)?;
    let kind = Kind::from_number(record[20])?;
    if checksum(record) != u32_at(record, 4) {
        return None;
    }
    let sequence = u64_at(record, 8);
    let durable_before = sequence.saturating_sub(u64::from(u32_at(record, 16)));
    let payload = Bytes::copy_from_slice(&record[RECORD_HEADER_BYTES..]);
    Some(Found { sequence, kind, durable_before, payload, length })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// What the sidecar of a sealed segment says before the index itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Bytes of the segment up to the end of its last record.
    pub(super) length: u32,
    /// Milliseconds since the Unix epoch.
    pub(super) newest: i64,
}

const SIDECAR_MAGIC: &[u8; 8] = b"NXXINDX\n";
const SIDECAR_HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 4 + 8;

/// A sidecar: magic, format, what the segment holds, the index, a checksum over all of it.
pub(super) fn sidecar(sealed: Sealed, index: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIDECAR_HEADER_BYTES + index.len() + 4);
    bytes.extend_from_slice(SIDECAR_MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&sealed.first.to_le_bytes());
    bytes.extend_from_slice(&sealed.last.to_le_bytes());
    bytes.extend_from_slice(&sealed.length.to_le_bytes());
    bytes.extend_from_slice(&sealed.newest.to_le_bytes());
    bytes.extend_from_slice(index);
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads a sidecar; none when it is damaged or of another format: it is made anew then.
pub(super) fn read_sidecar(bytes: &Bytes) -> Option<(Sealed, Bytes)> {
    let end = bytes.len().checked_sub(4)?;
    if end < SIDECAR_HEADER_BYTES || &bytes[..8] != SIDECAR_MAGIC || u32_at(bytes, 8) != FORMAT {
        return None;
    }
    if crc32fast::hash(&bytes[..end]) != u32_at(bytes, end) {
        return None;
    }
    let sealed = Sealed {
        first: u64_at(bytes, 12),
        last: u64_at(bytes, 20),
        length: u32_at(bytes, 28),
        newest: u64_at(bytes, 32) as i64,
    };
    Some((sealed, bytes.slice(SIDECAR_HEADER_BYTES..end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damage_shows() {
        let mut buffer = Vec::new();
        push_record(&mut buffer, 7, Kind::LogEntry, b"hello");
        push_record(&mut buffer, 8, Kind::Registry, b"");
        seal_records(&mut buffer, 6);
        let first = read_record(&buffer).expect("a record");
        assert_eq!(
            (first.sequence, first.kind, first.durable_before, &first.payload[..]),
            (7, Kind::LogEntry, 6, &b"hello"[..])
        );
        let second = read_record(&buffer[first.length..]).expect("a record");
        assert_eq!((second.sequence, second.durable_before), (8, 6));
        for bit in 0..first.length * 8 {
            let mut damaged = buffer.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(read_record(&damaged), Some(first.clone()), "bit {bit}");
        }
    }

    #[test]
    fn headers_and_sidecars_come_back_and_damage_shows() {
        let header = segment_header(99);
        assert_eq!(read_segment_header(&header), Head::First(99));
        let mut damaged = header.clone();
        damaged[13] ^= 1;
        assert_eq!(read_segment_header(&damaged), Head::Invalid);
        let sealed = Sealed { first: 1, last: 5, length: 5000, newest: 17 };
        let bytes = Bytes::from(sidecar(sealed, b"index"));
        assert_eq!(read_sidecar(&bytes), Some((sealed, Bytes::from_static(b"index"))));
        for place in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[place] ^= 1;
            assert_eq!(read_sidecar(&Bytes::from(damaged)), None, "byte {place}");
        }
    }

    /// The bytes of format 1, as released: a reader of any later version has to understand them.
    #[test]
    fn the_bytes_of_format_1_stay() {
        let mut buffer = Vec::new();
        push_record(&mut buffer, 1, Kind::QueueMessage, b"x");
        seal_records(&mut buffer, 0);
        let hex: String = buffer.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN_RECORD);
    }

    const GOLDEN_RECORD: &str = "010000003083df990100000000000000010000000178";
}
