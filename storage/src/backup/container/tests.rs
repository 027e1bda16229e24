use proptest::prelude::*;

use super::*;
use crate::backup::manifest::{Application, Part};

/// A backup of format 1, as an earlier build wrote it.
const GOLDEN: &[u8] = include_bytes!("../golden/format-1.backup");

fn manifest(parts: &[(&str, Vec<u8>)]) -> Manifest {
    Manifest {
        nexxus: "0.1.0".into(),
        created: "2026-12-01T10:00:00Z".parse().expect("a time"),
        sequence: 42,
        journal_from: 7,
        registry: 40,
        documents: 41,
        writer_queues: vec!["writer".into()],
        epoch: 3,
        applications: vec![Application {
            id: "tasks".parse().expect("an id"),
            offset: crate::model::Offset::new(3, 12),
        }],
        parts: parts.iter().map(|(name, bytes)| Part { name: (*name).into(), bytes: bytes.len() as u64 }).collect(),
    }
}

fn golden_parts() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("journal/00000000000000000007.journal", b"records ".repeat(40)),
        ("registry/export.jsonl", b"{}\n".to_vec()),
        ("documents/index/meta.json", Vec::new()),
    ]
}

fn written(parts: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &manifest(parts)).expect("begins");
    for (name, bytes) in parts {
        let mut told = 0;
        writer.part(name, bytes.len() as u64, &mut &bytes[..], &mut |n| told += n).expect("a part");
        assert_eq!(told, bytes.len() as u64);
    }
    writer.finish().expect("whole")
}

fn read(bytes: &[u8]) -> Result<(Manifest, Vec<Vec<u8>>)> {
    let mut reader = Reader::open(bytes)?;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    loop {
        match reader.next()? {
            Piece::Part(number) => {
                assert_eq!(number, parts.len());
                parts.push(Vec::new());
            }
            Piece::Data(data) => parts.last_mut().expect("a part has begun").extend(data),
            Piece::End => {}
            Piece::Complete => return Ok((reader.manifest().clone(), parts)),
        }
    }
}

/// What format 1 wrote has to be readable for good.
#[test]
fn format_1_stays_readable() {
    let (found, parts) = read(GOLDEN).expect("it is readable");
    assert_eq!(found, manifest(&golden_parts()));
    assert_eq!(parts, golden_parts().into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
    // Compressed bytes may differ from one version of the library to the next; everything before them may not.
    let head = 16 + 9 + serde_json::to_vec(&found).expect("json").len();
    assert_eq!(written(&golden_parts())[..head], GOLDEN[..head]);
}

#[test]
fn a_backup_that_is_cut_off_or_altered_anywhere_is_refused() {
    let whole = written(&golden_parts());
    for length in 0..whole.len() {
        assert_eq!(read(&whole[..length]).expect_err("cut off").kind, ErrorKind::Corrupt, "{length} bytes");
    }
    for bit in 0..whole.len() * 8 {
        let mut altered = whole.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&altered).expect_err("altered").kind, ErrorKind::Corrupt, "bit {bit}");
    }
    let longer = [&whole[..], b"x"].concat();
    assert!(read(&longer).expect_err("longer").message.contains("after its end"));
    // Frames that are sound by themselves, but not the whole of them in their order.
    let without_a_part = {
        let cut = manifest(&golden_parts());
        let mut writer = Writer::begin(Vec::new(), &cut).expect("begins");
        writer.part("registry/export.jsonl", 3, &mut &b"{}\n"[..], &mut |_| {}).expect("a part");
        writer.finish().expect("finished")
    };
    assert_eq!(read(&without_a_part).expect_err("a part is missing").kind, ErrorKind::Corrupt);
}

#[test]
fn a_newer_format_is_refused_with_a_sentence() {
    let mut newer = written(&golden_parts());
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let sum = crc32fast::hash(&newer[..12]);
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    let error = read(&newer).expect_err("newer");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("format 2") && error.message.contains("use a newer nexxus"), "{error}");
    assert!(read(b"PK\x03\x04 something else entirely").expect_err("no backup").message.contains("no backup"));
}

#[test]
fn a_part_that_is_shorter_than_it_was_is_no_backup() {
    let parts = [("documents/x", vec![1; 100])];
    let mut writer = Writer::begin(Vec::new(), &manifest(&parts)).expect("begins");
    assert!(writer.part("documents/x", 100, &mut &[1; 99][..], &mut |_| {}).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn parts_come_back_whatever_is_in_them(
        seeds in proptest::collection::vec((any::<u8>(), 0_usize..3 * DATA_BYTES, any::<bool>()), 0..4),
    ) {
        let names = ["journal/a", "registry/b", "documents/c", "documents/d"];
        let content = |(seed, length, is_varied): (u8, usize, bool)| -> Vec<u8> {
            (0..length).map(|at| if is_varied { (at as u8).wrapping_mul(seed | 1) ^ (at >> 8) as u8 } else { seed }).collect()
        };
        let parts: Vec<_> = names.into_iter().zip(seeds.into_iter().map(content)).collect();
        let (_, found) = read(&written(&parts)).expect("it is readable");
        prop_assert!(found.iter().eq(parts.iter().map(|(_, bytes)| bytes)));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 16_usize..400) {
        drop(read(&bytes));
        let mut spoiled = GOLDEN[..at.min(GOLDEN.len())].to_vec();
        spoiled.extend(bytes);
        prop_assert!(read(&spoiled).is_err());
    }
}

#[test]
fn progress_is_counted_whatever_the_pieces_are() {
    let parts = [("journal/a", vec![7; DATA_BYTES + 5]), ("registry/b", Vec::new()), ("documents/c", vec![1; 10])];
    let whole = written(&parts);
    for length in [1, 2, 7, 13, 4096, whole.len()] {
        let mut gauge = crate::backup::Gauge::default();
        let mut before = 0;
        for piece in whole.chunks(length) {
            let now = gauge.take(piece);
            assert!(now >= before);
            before = now;
        }
        assert_eq!(before, DATA_BYTES as u64 + 15, "pieces of {length}");
    }
}
