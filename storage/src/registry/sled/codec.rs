//! The bytes of the adapter: the journal record of a call, and keys and values in the store.
//!
//! A journal record, version 1 (numbers are LEB128 unless said otherwise):
//! ```text
//! version u8 = 1 · application: length, text (length 0: none) · number of writes · writes
//! write: kind u8 (+ 0x80 when it removes) · id: length, text · value: length, bytes (not when it removes)
//! ```
//! The revision of every record that a call writes is the sequence of its journal record. In the store a key is the
//! application (nothing for none), a zero byte, the id; a value is the revision (u64, big endian), then the bytes.

use bytes::{Buf, Bytes};

use super::layer::Slot;
use crate::{
    Error, ErrorKind, Result,
    model::AppId,
    registry::{Key, Kind},
};

const VERSION: u8 = 1;
const REMOVES: u8 = 0x80;

/// The kinds by their numbers in the journal, from 1. Never reordered. Volatile kinds have none.
const KINDS: [Kind; 10] = [
    Kind::Installation,
    Kind::Application,
    Kind::User,
    Kind::UserName,
    Kind::Device,
    Kind::UserDevice,
    Kind::Subscription,
    Kind::Session,
    Kind::Cursor,
    Kind::Idempotency,
];

/// One write of a call, decided: what is there from now on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) key: Key,
    /// None: nothing.
    pub(super) value: Option<Bytes>,
}

impl Change {
    /// What the change weighs in memory and on disk, about.
    pub(super) fn bytes(&self) -> usize {
        2 * self.key.id.len() + self.value.as_ref().map_or(0, Bytes::len) + 160
    }
}

/// All changes are of the same application (or of none), and of durable kinds.
pub(super) fn encode_call<'a>(changes: impl ExactSizeIterator<Item = &'a Change> + Clone) -> Vec<u8> {
    let app = changes.clone().next().and_then(|change| change.key.app.as_ref()).map_or("", AppId::as_str);
    let mut out = Vec::with_capacity(16 + app.len() + changes.clone().map(Change::bytes).sum::<usize>());
    out.push(VERSION);
    put_bytes(&mut out, app.as_bytes());
    put_number(&mut out, changes.len() as u64);
    for Change { key, value } in changes {
        let number = 1 + KINDS.iter().position(|kind| *kind == key.kind).unwrap_or(KINDS.len()) as u8;
        out.push(if value.is_some() { number } else { number | REMOVES });
        put_bytes(&mut out, key.id.as_bytes());
        if let Some(value) = value {
            put_bytes(&mut out, value);
        }
    }
    out
}

pub(super) fn decode_call(mut payload: Bytes) -> Result<Vec<Change>> {
    let version = take_byte(&mut payload)?;
    if version != VERSION {
        return Err(corrupt(&format!("registry record of version {version}, this build reads {VERSION}")));
    }
    let app = match take_text(&mut payload)?.as_str() {
        "" => None,
        text => Some(AppId::parse(text).map_err(|_| corrupt("registry record of no valid application"))?),
    };
    let count = take_number(&mut payload)?;
    let mut changes = Vec::new();
    for _ in 0..count {
        let tag = take_byte(&mut payload)?;
        let kind = usize::from(tag & !REMOVES).checked_sub(1).and_then(|index| KINDS.get(index));
        let kind = *kind.ok_or_else(|| corrupt(&format!("registry record of unknown kind {tag}")))?;
        let id = take_text(&mut payload)?;
        let value = if tag & REMOVES == 0 { Some(take_bytes(&mut payload)?) } else { None };
        changes.push(Change { key: Key { kind, app: app.clone(), id }, value });
    }
    if payload.is_empty() { Ok(changes) } else { Err(corrupt("registry record with bytes after its end")) }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take_byte(from: &mut Bytes) -> Result<u8> {
    from.try_get_u8().map_err(|_| corrupt("registry record that ends early"))
}

fn take_number(from: &mut Bytes) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(from)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(corrupt("registry record with a number that does not end"))
}

fn take_bytes(from: &mut Bytes) -> Result<Bytes> {
    let length = take_number(from)?;
    if length > from.len() as u64 {
        return Err(corrupt("registry record that ends early"));
    }
    Ok(from.split_to(length as usize))
}

fn take_text(from: &mut Bytes) -> Result<String> {
    String::from_utf8(take_bytes(from)?.into()).map_err(|_| corrupt("registry record with a text that is not UTF-8"))
}

/// The key of a record in the store; of an id that begins with `prefix` when given that.
pub(super) fn store_key(app: Option<&AppId>, id: &str) -> Vec<u8> {
    let app = app.map_or("", AppId::as_str);
    let mut key = Vec::with_capacity(app.len() + 1 + id.len());
    key.extend_from_slice(app.as_bytes());
    key.push(0);
    key.extend_from_slice(id.as_bytes());
    key
}

/// The key that stands in the store as `stored`.
pub(super) fn record_key(kind: Kind, stored: &[u8]) -> Result<Key> {
    let (app, id) = split_key(stored)?;
    let app = match app {
        "" => None,
        app => Some(AppId::parse(app).map_err(|_| corrupt("key of no valid application in the registry's store"))?),
    };
    Ok(Key { kind, app, id: id.to_owned() })
}

fn split_key(stored: &[u8]) -> Result<(&str, &str)> {
    let text = std::str::from_utf8(stored).map_err(|_| corrupt("key that is not UTF-8 in the registry's store"))?;
    text.split_once('\0').ok_or_else(|| corrupt("key without an end of its application"))
}

pub(super) fn store_value(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(8 + value.len());
    stored.extend_from_slice(&revision.to_be_bytes());
    stored.extend_from_slice(value);
    stored
}

pub(super) fn record_value(stored: &[u8]) -> Result<Slot> {
    let (revision, value) = split_value(stored)?;
    Ok(Slot { revision: u64::from_be_bytes(*revision), value: Some(Bytes::copy_from_slice(value)) })
}

fn split_value(stored: &[u8]) -> Result<(&[u8; 8], &[u8])> {
    stored.split_first_chunk::<8>().ok_or_else(|| corrupt("value without a revision in the registry's store"))
}

/// Refuses what [`record_key`] and [`record_value`] cannot read, and keeps nothing.
pub(super) fn check_entry(key: &[u8], value: &[u8]) -> Result<()> {
    let (app, _) = split_key(key)?;
    if !app.is_empty() && !AppId::is_valid(app) {
        return Err(corrupt("key of no valid application in the registry's store"));
    }
    split_value(value).map(drop)
}

fn corrupt(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read registry", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(kind: Kind, app: Option<&str>, id: &str, value: Option<&'static [u8]>) -> Change {
        let app = app.map(|app| AppId::parse(app).unwrap());
        Change { key: Key { kind, app, id: id.to_owned() }, value: value.map(Bytes::from_static) }
    }

    /// What version 1 wrote has to be readable for good.
    #[test]
    fn version_1_stays_as_it_is() {
        for (changes, golden) in [
            (
                vec![
                    change(Kind::User, Some("app"), "u1", Some(b"{}")),
                    change(Kind::UserName, Some("app"), "ann", None),
                    change(Kind::Idempotency, Some("app"), "", Some(b"")),
                ],
                &b"\x01\x03app\x03\x03\x02u1\x02{}\x84\x03ann\x0a\x00\x00"[..],
            ),
            (vec![change(Kind::Installation, None, "secrets", Some(b"x"))], b"\x01\x00\x01\x01\x07secrets\x01x"),
        ] {
            assert_eq!(encode_call(changes.iter()), golden);
            assert_eq!(decode_call(Bytes::from_static(golden)).unwrap(), changes);
        }
    }

    #[test]
    fn every_durable_kind_has_a_number() {
        for kind in Kind::ALL {
            assert_eq!(KINDS.contains(&kind), !kind.is_volatile(), "{kind}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let whole = encode_call([change(Kind::User, Some("app"), "u1", Some(b"value"))].iter());
        for cut in 0..whole.len() {
            assert!(decode_call(Bytes::copy_from_slice(&whole[..cut])).is_err(), "cut at {cut}");
        }
        for bad in [
            [&whole[..], b"x"].concat(),
            b"\x02\x00\x00".to_vec(),
            b"\x01\x00\x01\x0b\x00\x00".to_vec(),
            b"\x01\x00\x01\x00\x00\x00".to_vec(),
            b"\x01\x03a b\x00".to_vec(),
            b"\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        ] {
            assert_eq!(decode_call(Bytes::from(bad.clone())).unwrap_err().kind, ErrorKind::Corrupt, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn calls_come_back(
            app in proptest::option::of("[a-z]{1,5}"),
            writes in proptest::collection::vec((0_usize..10, ".{0,200}", proptest::option::of(any::<Vec<u8>>())), 0..5),
        ) {
            let app = app.map(|app| AppId::parse(&app).unwrap());
            let changes: Vec<Change> = writes
                .into_iter()
                .map(|(kind, id, value)| Change {
                    key: Key { kind: KINDS[kind], app: app.clone(), id },
                    value: value.map(Bytes::from),
                })
                .collect();
            prop_assert_eq!(decode_call(Bytes::from(encode_call(changes.iter()))).unwrap(), changes);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            drop(decode_call(Bytes::from([&[VERSION][..], &bytes].concat())));
            drop(record_key(Kind::User, &bytes));
            drop(record_value(&bytes));
        }

        #[test]
        fn keys_come_back(app in proptest::option::of("[a-z]{1,5}"), id in ".{0,20}") {
            let app = app.map(|app| AppId::parse(&app).unwrap());
            let key = Key { kind: Kind::User, app, id };
            prop_assert_eq!(record_key(Kind::User, &store_key(key.app.as_ref(), &key.id)).unwrap(), key);
        }
    }
}
