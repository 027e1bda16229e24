//! The one order of an application, put together from the ledger, and what the model makes of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    time::Instant,
};

use serde_json::Value;

use crate::{
    evidence::{Evidence, Fate, Heard, Key, Offset, Op, Said},
    model::{Document, END, MODELS, State, Verdict, after_patches, shown},
    worlds::Worlds,
};

/// One position of the log.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) offset: Offset,
    pub(crate) key: Key,
    pub(crate) before: State,
    pub(crate) after: State,
    pub(crate) rejected: Option<Rejected>,
    /// It is no change of a document, but one of what is in force.
    pub(crate) alteration: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) device: Option<String>,
    pub(crate) slug: String,
}

impl Entry {
    /// The version that the change leads to.
    pub(crate) fn version(&self) -> u64 {
        match &self.after {
            State::Absent => 0,
            State::Deleted { version } => *version,
            State::Live(document) => document.version,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// What anybody may have to be told of.
    pub(crate) entries: Vec<Entry>,
    /// Every state of each document, by the offset that led to it.
    pub(crate) states: HashMap<Key, BTreeMap<Offset, State>>,
    /// The offset of each write that took effect or was rejected.
    pub(crate) offsets: HashMap<usize, Offset>,
    pub(crate) n_settled_by_looking: usize,
    pub(crate) worlds: Worlds,
    lines: HashMap<Key, Vec<String>>,
}

impl Timeline {
    pub(crate) fn last_state(&self, key: &Key) -> State {
        let last = self.states.get(key).and_then(|states| states.last_key_value());
        last.map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// The states that a document had from one offset to another.
    pub(crate) fn states(&self, key: &Key, from: Offset, upto: Offset) -> Vec<State> {
        let none = BTreeMap::new();
        let states = self.states.get(key).unwrap_or(&none);
        let first = states.range(..=from.clone()).next_back().map(|(_, state)| state.clone()).unwrap_or_default();
        let mut all = vec![first];
        if upto > from {
            let later = states.range((Bound::Excluded(from), Bound::Included(upto)));
            all.extend(later.map(|(_, state)| state.clone()));
        }
        all
    }

    /// What happened to a document, for the reader of a fault.
    pub(crate) fn history(&self, key: &Key) -> String {
        let lines = self.lines.get(key).map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<&str> = lines.iter().rev().take(60).rev().map(String::as_str).collect();
        format!("  history of {key:?}, {} entries:\n    {}", lines.len(), shown.join("\n    "))
    }
}

/// For the reader of a fault, who needs no filling.
pub(crate) fn brief(thing: &impl std::fmt::Debug) -> String {
    format!("{thing:?}").replace("xxxxxxxxxx", "")
}

/// Epoch and position.
fn parts(offset: &str) -> Option<(u64, u64)> {
    let (epoch, position) = offset.split_once('-')?;
    Some((u64::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(position, 16).ok()?))
}

pub(crate) fn of(evidence: &Evidence, faults: &mut Vec<String>) -> Timeline {
    let mut timeline = Timeline { worlds: Worlds::of(evidence), ..Timeline::default() };
    let mut known: BTreeMap<&Offset, usize> = BTreeMap::new();
    for (place, write) in evidence.writes.iter().enumerate() {
        if let Some(offset) = write.fate.offset()
            && let Some(other) = known.insert(offset, place)
        {
            faults.push(format!("two changes at {offset}: {write:?} and {:?}", evidence.writes[other]));
        }
    }
    // What anybody heard at an offset, and which device it was.
    let mut heard: HashMap<&Offset, (&str, &Heard)> = HashMap::new();
    for listener in &evidence.listeners {
        for one in listener.connections.iter().flat_map(|connection| &connection.heard) {
            if !one.is_progress() {
                heard.entry(&one.offset).or_insert((&listener.device, one));
            }
        }
    }
    let (Some((epoch, base)), Some((last_epoch, last))) = (parts(&evidence.base), parts(&evidence.last)) else {
        faults.push(format!("no offsets: {} {}", evidence.base, evidence.last));
        return timeline;
    };
    if epoch != last_epoch {
        faults.push(format!("the epoch went from {epoch} to {last_epoch}"));
    }
    let mut unsettled: Vec<usize> = (0..evidence.writes.len())
        .filter(|place| {
            let write = &evidence.writes[*place];
            matches!(write.said, Said::Unknown { .. }) && write.fate == Fate::Unasked
        })
        .collect();
    // Of several that an entry may come from, the oldest is taken.
    unsettled.sort_by_key(|place| evidence.writes[*place].began);
    let accepted = accepted(evidence);
    let mut silent = Vec::new();
    for position in base + 1..=last {
        let offset = format!("{epoch:08x}-{position:016x}");
        if let Some(place) = timeline.worlds.at(&offset) {
            timeline.entries.push(altered(place, offset));
            continue;
        }
        match (known.get(&offset), heard.get(&offset)) {
            (None, Some((device, heard))) if heard.is_resync() => {
                match altered_by(evidence, &timeline.worlds, device, heard) {
                    Some(place) => {
                        timeline.worlds.settle(place, offset.clone());
                        timeline.entries.push(altered(place, offset));
                    }
                    None => faults.push(format!("{offset}: nothing was altered, but {}", heard.frame)),
                }
            }
            (Some(place), _) => take_known(evidence, &mut timeline, *place, offset, faults),
            (None, Some((device, heard))) => {
                let may_be = |place: &usize| offset > before(&accepted, evidence.writes[*place].began);
                let may_be: Vec<usize> = unsettled.iter().copied().filter(may_be).collect();
                let told = (*device, &*heard.frame);
                if let Some(place) = take_unknown(evidence, &mut timeline, &may_be, told, offset, faults) {
                    unsettled.retain(|other| *other != place);
                }
            }
            (None, None) => silent.push(offset),
        }
    }
    take_silent(evidence, &mut timeline, &unsettled, &silent, faults);
    timeline
}

/// Entries that no known change explains and nobody was told of changed nothing: each is another one of the writes that are left.
fn take_silent(
    evidence: &Evidence,
    timeline: &mut Timeline,
    unsettled: &[usize],
    silent: &[Offset],
    faults: &mut Vec<String>,
) {
    let accepted = accepted(evidence);
    let may_be = |offset: &Offset, place: usize| {
        let write = &evidence.writes[place];
        let state = timeline.states(&write.key, offset.clone(), offset.clone()).remove(0);
        let is_untold = match evidence.decide(write.who, write.key.0, &write.op, &state) {
            Verdict::Unchanged => true,
            Verdict::Refused(_) => write.device.is_none(),
            Verdict::Changed(_) => false,
        };
        is_untold && *offset > before(&accepted, write.began)
    };
    // What is in force stands somewhere for sure: it comes first.
    let n_writes = evidence.writes.len();
    let choices: Vec<Vec<usize>> = silent
        .iter()
        .map(|offset| {
            let alterations = timeline.worlds.that_may_stand_at(offset).into_iter().map(|place| n_writes + place);
            alterations.chain(unsettled.iter().copied().filter(|place| may_be(offset, *place))).collect()
        })
        .collect();
    // By which entry each write is taken.
    let mut taken: HashMap<usize, usize> = HashMap::new();
    for (entry, offset) in silent.iter().enumerate() {
        if !assign(entry, &choices, &mut taken, &mut HashSet::new()) {
            faults.push(format!("{offset}: an entry that nobody was told of, and no write explains"));
        }
    }
    timeline.n_settled_by_looking += taken.len();
    for (place, entry) in taken {
        let offset = silent[entry].clone();
        match place.checked_sub(n_writes) {
            Some(place) => {
                timeline.worlds.settle(place, offset.clone());
                timeline.entries.push(altered(place, offset));
            }
            None => drop(timeline.offsets.insert(place, offset)),
        }
    }
    timeline.entries.sort_by(|one, other| one.offset.cmp(&other.offset));
    faults.extend(timeline.worlds.unsettled().map(|alteration| format!("in force, and in no entry: {alteration:?}")));
}

/// Which of the alterations that nobody knows the place of was told to a device: the first that may be told to it.
fn altered_by(evidence: &Evidence, worlds: &Worlds, device: &str, heard: &Heard) -> Option<usize> {
    let listener = evidence.listeners.iter().find(|listener| listener.device == device)?;
    let told: Vec<String> = heard.frame["data"]["channels"]
        .as_array()?
        .iter()
        .filter_map(|channel| channel.as_str().map(str::to_owned))
        .collect();
    let subscriptions = listener.subscriptions.iter().filter_map(|subscription| {
        let (channel, _) = subscription.answered.as_ref()?;
        Some((channel, &subscription.wanted, false))
    });
    let subscriptions: Vec<_> = subscriptions.collect();
    let may_be = |place: &usize| {
        let at = (*place, &heard.offset);
        worlds.misfit(evidence, listener.who, at, &told, &subscriptions, Some(heard.at)).is_none()
    };
    let all = worlds.that_may_stand_at(&heard.offset);
    all.iter().copied().find(may_be)
}

fn altered(place: usize, offset: Offset) -> Entry {
    let nothing = || State::Absent;
    let key = (END, String::new());
    Entry { offset, key, before: nothing(), after: nothing(), rejected: None, alteration: Some(place) }
}

/// Finds a write for an entry; other entries may have to take another one for that.
fn assign(entry: usize, choices: &[Vec<usize>], taken: &mut HashMap<usize, usize>, tried: &mut HashSet<usize>) -> bool {
    for place in &choices[entry] {
        if !tried.insert(*place) {
            continue;
        }
        let other = taken.get(place).copied();
        if other.is_none_or(|other| assign(other, choices, taken, tried)) {
            taken.insert(*place, entry);
            return true;
        }
    }
    false
}

/// When which offset had been accepted, at least: in the order of time.
pub(crate) fn accepted(evidence: &Evidence) -> Vec<(Instant, Offset)> {
    let accepted = evidence.writes.iter().filter(|write| matches!(write.said, Said::Accepted { .. }));
    rising(evidence, accepted.filter_map(|write| Some((write.ended, write.fate.offset()?.clone()))).collect())
}

/// Of each time the highest offset up to then.
pub(crate) fn rising(evidence: &Evidence, mut times: Vec<(Instant, Offset)>) -> Vec<(Instant, Offset)> {
    times.sort_by_key(|(time, _)| *time);
    let mut most = evidence.base.clone();
    for (_, offset) in &mut times {
        most = most.max(offset.clone());
        offset.clone_from(&most);
    }
    times
}

/// The offset before a time.
pub(crate) fn before(times: &[(Instant, Offset)], time: Instant) -> Offset {
    let n_before = times.partition_point(|(other, _)| *other < time);
    n_before.checked_sub(1).map(|last| times[last].1.clone()).unwrap_or_default()
}

fn take_known(evidence: &Evidence, timeline: &mut Timeline, place: usize, offset: Offset, faults: &mut Vec<String>) {
    let write = &evidence.writes[place];
    let before = timeline.last_state(&write.key);
    let verdict = evidence.decide(write.who, write.key.0, &write.op, &before);
    let agrees = match (&verdict, &write.fate) {
        (Verdict::Refused(slug), Fate::Rejected { slug: other, .. }) => slug == other,
        (Verdict::Refused(_), _) | (_, Fate::Rejected { .. }) => false,
        _ => true,
    };
    if !agrees {
        faults.push(format!(
            "{offset}: should be {verdict:?} on {before:?}, is {:?}: {write:?}\n{}",
            write.fate,
            timeline.history(&write.key)
        ));
    }
    settle(evidence, timeline, place, write.key.clone(), offset, verdict);
}

/// Finds the write that an entry comes from which somebody was told of, and no known change explains. Gives its place.
fn take_unknown(
    evidence: &Evidence,
    timeline: &mut Timeline,
    unsettled: &[usize],
    (device, frame): (&str, &Value),
    offset: Offset,
    faults: &mut Vec<String>,
) -> Option<usize> {
    let mut found = None;
    for place in unsettled {
        let write = &evidence.writes[*place];
        let id = frame["metadata"]["id"].as_str().unwrap_or_default().to_owned();
        if frame["metadata"]["type"] != write.key.0 || !write.key.1.is_empty() && write.key.1 != id {
            continue;
        }
        let key = (write.key.0, id);
        let before = timeline.last_state(&key);
        let verdict = evidence.decide(write.who, key.0, &write.op, &before);
        let fits = match &verdict {
            Verdict::Unchanged => false,
            Verdict::Refused(slug) => {
                frame["event"] == "change_rejected"
                    && frame["data"]["type"] == *slug
                    && write.device.as_deref() == Some(device)
            }
            Verdict::Changed(after) => leads_to(frame, &before, after, &write.op),
        };
        if fits {
            found = Some((*place, key, verdict));
            break;
        }
    }
    match found {
        Some((place, key, verdict)) => {
            timeline.n_settled_by_looking += 1;
            settle(evidence, timeline, place, key, offset, verdict);
            Some(place)
        }
        None => {
            let model = MODELS.into_iter().find(|model| frame["metadata"]["type"] == **model);
            let id = frame["metadata"]["id"].as_str().unwrap_or_default().to_owned();
            let history = model.map(|model| timeline.history(&(model, id))).unwrap_or_default();
            faults.push(format!(
                "{offset}: a change that no write explains, or one that was made twice; {device} was told {frame}\n{history}"
            ));
            None
        }
    }
}

/// Whether a frame tells of the change that an operation makes.
fn leads_to(frame: &Value, before: &State, after: &State, op: &Op) -> bool {
    match (frame["event"].as_str().unwrap_or_default(), op, before.document(), after.document()) {
        ("model_created", Op::Create { .. }, None, Some(after)) => shown(&frame["data"]).as_ref() == Some(after),
        ("model_deleted", Op::Delete { .. }, Some(_), None) => true,
        ("model_updated", Op::Patch { .. }, Some(before), Some(after)) => {
            let patches = frame["data"].as_array().cloned().unwrap_or_default();
            Document { version: after.version, ..after_patches(before, &patches) } == *after
                || shown(&frame["document"]).as_ref() == Some(after)
        }
        _ => false,
    }
}

fn settle(evidence: &Evidence, timeline: &mut Timeline, place: usize, key: Key, offset: Offset, verdict: Verdict) {
    let write = &evidence.writes[place];
    let before = timeline.last_state(&key);
    let op = brief(&write.op);
    let line = format!("{offset} {:?} {:?} {op} -> {}", write.who, write.said, brief(&verdict));
    timeline.lines.entry(key.clone()).or_default().push(line);
    timeline.offsets.insert(place, offset.clone());
    match verdict {
        Verdict::Unchanged => {}
        Verdict::Refused(slug) => {
            let rejected = Some(Rejected { device: write.device.clone(), slug: slug.to_owned() });
            timeline.entries.push(Entry {
                offset,
                key,
                before: before.clone(),
                after: before,
                rejected,
                alteration: None,
            });
        }
        Verdict::Changed(after) => {
            timeline.states.entry(key.clone()).or_default().insert(offset.clone(), after.clone());
            timeline.entries.push(Entry { offset, key, before, after, rejected: None, alteration: None });
        }
    }
}
