//! Subscriptions that always hear the same, as few bytes: one channel, one effective condition, one frame class.

use std::sync::Arc;

use nexxus_storage::model::{
    AppId, Document, DocumentId, ModelName, UserId,
    filter::{
        Condition,
        packed::{self, Fields},
    },
};

use super::{Number, since::Since};
use crate::domain::view::{Step, View, effective};

const PRIVILEGED: u8 = 1;
const HAS_ID: u8 = 2;
const HAS_USER: u8 = 4;
const HAS_FILTER: u8 = 8;
/// The channel's key stands there, instead of what it can be made from.
const HAS_KEY: u8 = 16;

/// Bytes of a hash in a channel's key.
const HASH: usize = 16;

/// What a match reads of most groups lies in it, in two neighbouring lines of the processor's cache: it is one and a half of them, and
/// would be in three without being aligned.
#[derive(Default)]
#[repr(align(32))]
pub(super) struct Group {
    pub(super) members: Members,
    /// The index that it stands in.
    pub(super) index: Number,
    view_length: u32,
    /// The packed view, then how the group is found.
    bytes: Bytes,
}

/// As many as there are in the group itself as in most conditions with one or two ids.
const FEW: usize = 62;

/// A few bytes here, more elsewhere.
enum Bytes {
    Few(u8, [u8; FEW]),
    More(Box<[u8]>),
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Few(0, [0; FEW])
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let mut few = [0; FEW];
        match few.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(&bytes);
                Self::Few(bytes.len() as u8, few)
            }
            None => Self::More(bytes.into()),
        }
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Few(length, few) => few.get(..usize::from(*length)).unwrap_or_default(),
            Self::More(more) => more,
        }
    }
}

/// A subscription of a group, and what a match has to know of it.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) subscription: Number,
    pub(super) device: Number,
    pub(super) since: Since,
}

/// In no order. Most groups have one.
#[derive(Default)]
pub(super) enum Members {
    #[default]
    None,
    One(Member),
    #[expect(clippy::box_collection, reason = "a group with one member is to be small")]
    Several(Box<Vec<Member>>),
}

impl Members {
    pub(super) fn as_slice(&self) -> &[Member] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(several) => several,
        }
    }

    /// Gives its place among them.
    pub(super) fn push(&mut self, member: Member) -> u32 {
        match self {
            Self::None => *self = Self::One(member),
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, member])),
            Self::Several(several) => several.push(member),
        }
        (self.as_slice().len() - 1) as u32
    }

    /// Gives the subscription that stands at this place now.
    pub(super) fn remove(&mut self, place: u32) -> Option<Number> {
        let place = place as usize;
        match self {
            Self::Several(several) if place < several.len() => {
                several.swap_remove(place);
                let moved = several.get(place).map(|moved| moved.subscription);
                if several.capacity() > 8 && several.len() * 4 < several.capacity() {
                    let enough = several.len() * 2;
                    several.shrink_to(enough);
                }
                if several.is_empty() {
                    *self = Self::None;
                }
                moved
            }
            Self::Several(_) => None,
            Self::None | Self::One(_) => {
                *self = Self::None;
                None
            }
        }
    }
}

/// Appends a view: equal bytes are equal views of one index, also in what its channel is called. The key of the channel alone
/// would not do: it names the filter as it was written, which can mean something else under another schema.
pub(super) fn pack(view: &View, fields: &mut Fields, into: &mut Vec<u8>) {
    let channel = &view.channel;
    let (id, user) = (channel.id.as_ref().map(DocumentId::as_str), channel.user.as_ref().map(UserId::as_str));
    let hash = channel.filter.as_ref().and_then(|_| hash_in(&view.key)).unwrap_or_default();
    let name = Name { app: &channel.app, model: &channel.model, id, user };
    let is_usual = *view.key == name.key(channel.filter.as_ref().map(|_| &hash));
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    into.push(
        flag(view.privileged, PRIVILEGED)
            | flag(id.is_some(), HAS_ID)
            | flag(user.is_some(), HAS_USER)
            | flag(channel.filter.is_some(), HAS_FILTER)
            | flag(!is_usual, HAS_KEY),
    );
    for text in [id, user].into_iter().flatten() {
        put_text(text, into);
    }
    match (&channel.filter, is_usual) {
        (Some(_), true) => into.extend_from_slice(&hash),
        (_, false) => put_text(&view.key, into),
        _ => {}
    }
    if let Some(filter) = &channel.filter {
        let mut condition = Vec::new();
        packed::pack(filter.condition(), fields, &mut condition);
        packed::put_number(condition.len() as u64, into);
        into.extend_from_slice(&condition);
    }
    packed::pack(&view.readable, fields, into);
}

fn put_text(text: &str, into: &mut Vec<u8>) {
    packed::put_number(text.len() as u64, into);
    into.extend_from_slice(text.as_bytes());
}

/// The hash that a channel's key ends with.
fn hash_in(key: &str) -> Option<[u8; HASH]> {
    let (_, hash) = key.rsplit_once(":filter:")?;
    from_hex(hash)
}

/// The bytes of a text of exactly so many; lower case only.
pub(super) fn from_hex(text: &str) -> Option<[u8; HASH]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; HASH];
    if text.len() != 2 * HASH {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

pub(super) fn to_hex(bytes: &[u8; HASH]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS.get(usize::from(half)).copied().unwrap_or_default());
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// What the key of a channel is made from, but for the filter.
struct Name<'n> {
    app: &'n AppId,
    model: &'n ModelName,
    id: Option<&'n str>,
    user: Option<&'n str>,
}

impl Name<'_> {
    /// As [`Channel`](nexxus_storage::model::Channel) prints it.
    fn key(&self, hash: Option<&[u8; HASH]>) -> String {
        let mut key = String::with_capacity(160);
        key.extend(["app:", self.app.as_str()]);
        self.user.iter().for_each(|user| key.extend([":user:", user]));
        key.extend([":model:", self.model.as_str()]);
        self.id.iter().for_each(|id| key.extend([":id:", id]));
        hash.iter().for_each(|hash| key.extend([":filter:", &to_hex(hash)]));
        key
    }
}

/// A group's view, as far as it was read from its bytes.
#[derive(Clone, Copy)]
pub(super) struct PackedView<'g> {
    pub(super) privileged: bool,
    pub(super) id: Option<&'g str>,
    pub(super) user: Option<&'g str>,
    hash: Option<&'g [u8; HASH]>,
    key: Option<&'g str>,
    filter: Option<&'g [u8]>,
    readable: &'g [u8],
}

impl Group {
    pub(super) fn new(view: &[u8], found_by: &[u8], index: Number) -> Self {
        let bytes = [view, found_by].concat().into();
        Self { members: Members::None, index, view_length: view.len() as u32, bytes }
    }

    pub(super) fn view_bytes(&self) -> &[u8] {
        self.bytes.as_slice().get(..self.view_length as usize).unwrap_or_default()
    }

    pub(super) fn found_by(&self) -> &[u8] {
        self.bytes.as_slice().get(self.view_length as usize..).unwrap_or_default()
    }

    /// None at free places only.
    pub(super) fn view(&self) -> Option<PackedView<'_>> {
        PackedView::read(self.view_bytes())
    }
}

impl<'g> PackedView<'g> {
    pub(super) fn read(bytes: &'g [u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let has = |flag: u8| flags & flag != 0;
        let mut text = |is_there: bool| {
            if !is_there {
                return Some(None);
            }
            let length = packed::take_number(&mut rest)? as usize;
            let (text, after) = rest.split_at_checked(length)?;
            rest = after;
            std::str::from_utf8(text).ok().map(Some)
        };
        let (id, user, key) = (text(has(HAS_ID))?, text(has(HAS_USER))?, text(has(HAS_KEY))?);
        let mut hash = None;
        if has(HAS_FILTER) && key.is_none() {
            let (found, after) = rest.split_first_chunk()?;
            (hash, rest) = (Some(found), after);
        }
        let mut filter = None;
        if has(HAS_FILTER) {
            let length = packed::take_number(&mut rest)? as usize;
            let (found, after) = rest.split_at_checked(length)?;
            (filter, rest) = (Some(found), after);
        }
        Some(Self { privileged: has(PRIVILEGED), id, user, hash, key, filter, readable: rest })
    }

    /// The bytes of a view that differs in its read rule. `bytes`: of this one.
    pub(super) fn ruled(&self, bytes: &[u8], readable: &Condition, fields: &mut Fields) -> Vec<u8> {
        let mut ruled = Vec::with_capacity(bytes.len() + 32);
        ruled.extend_from_slice(bytes.strip_suffix(self.readable).unwrap_or_default());
        packed::pack(readable, fields, &mut ruled);
        ruled
    }

    fn shows(&self, fields: &Fields, document: &Document) -> bool {
        self.id.is_none_or(|id| *id == *document.id.as_str())
            && self.user.is_none_or(|user| document.user.as_ref().is_some_and(|owner| owner.as_str() == user))
            && self.filter.is_none_or(|filter| packed::matches(filter, fields, document))
            && self.is_readable(fields, document)
    }

    fn is_readable(&self, fields: &Fields, document: &Document) -> bool {
        packed::matches(self.readable, fields, document)
    }

    /// What a change of a document of the index's model is to the group: the same as [`View::step`].
    pub(super) fn step(&self, fields: &Fields, before: Option<&Document>, after: Option<&Document>) -> Option<Step> {
        let (shows, is_readable) = (
            |document: &Document| self.shows(fields, document),
            |document: &Document| self.is_readable(fields, document),
        );
        Step::between(before, after, shows, is_readable)
    }

    pub(super) fn key(&self, app: &AppId, model: &ModelName) -> Arc<str> {
        match self.key {
            Some(key) => key.into(),
            None => Name { app, model, id: self.id, user: self.user }.key(self.hash).into(),
        }
    }

    pub(super) fn filter(&self, fields: &Fields) -> Option<Condition> {
        packed::unpack(self.filter?, fields)
    }

    /// Everything that a document has to fulfil; `None` when it cannot be read, which does not happen.
    pub(super) fn effective(&self, fields: &Fields) -> Condition {
        let unpacked = |bytes| packed::unpack(bytes, fields).unwrap_or(Condition::None);
        effective(self.id, self.user, self.filter.map(unpacked), unpacked(self.readable))
    }
}
