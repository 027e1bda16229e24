//! The checker: replays the ledger with its own model, in the order of the offsets, and holds everything against it that anybody was
//! told.
//!
//! 1. [`timeline`]: every position of the log is one write of the ledger, once. A position that belongs to no known change is one of
//!    the writes whose outcome nobody told; what listeners heard at it says which. What each write did is what the model says.
//! 2. Each connection of each listener heard exactly what its subscriptions bring, from where it began to where it ended:
//!    nothing left out, nothing out of order, nothing twice, nothing that its user may not see, and nothing else in any frame.
//!    When rules, schema or users change ([`worlds`](crate::worlds)), it hears nothing from there on that is over, and is told which
//!    channels to ask for anew: those that see something else, and no others. What it gets then is what is in force.
//! 3. What was asked for after something was accepted stands behind it.
//! 4. What was refused at once, and what was read, is true of some moment between what was accepted before and what was asked for since.
//! 5. What is stored at the end is what the model holds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    evidence::{Evidence, Fate, Key, Listener, Look, Offset, Said, Wanted, Who},
    model::{Document, PAPER, State, Verdict, after_patches, shown},
    timeline::{self, Entry, Timeline, brief},
    worlds::World,
};

/// Entries that a fault shows of the history of a document, and frames of a connection, before and after the place.
const CONTEXT: usize = 12;

/// What the checker has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) faults: Vec<String>,
    /// Frames that were held against the model.
    pub(crate) n_frames: usize,
    pub(crate) n_entries: usize,
    pub(crate) n_rejected: usize,
    pub(crate) n_settled_by_looking: usize,
}

pub(crate) fn check(evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    let timeline = timeline::of(evidence, &mut findings.faults);
    findings.n_entries = timeline.entries.len();
    findings.n_rejected = timeline.entries.iter().filter(|entry| entry.rejected.is_some()).count();
    findings.n_settled_by_looking = timeline.n_settled_by_looking;
    for listener in &evidence.listeners {
        check_listener(evidence, &timeline, listener, &mut findings);
    }
    check_moments(evidence, &timeline, &mut findings.faults);
    check_stored(evidence, &timeline, &mut findings.faults);
    findings
}

/// What a device has to be told of an entry.
#[derive(Debug, PartialEq)]
struct Expected {
    event: &'static str,
    channels: Vec<String>,
    entered: Vec<String>,
    left: Vec<String>,
    /// The document could not be read before, or cannot be any more.
    silent: bool,
    /// What is in force.
    world: World,
}

/// Every answer that a device may be given for an entry by a time: several, where it had just subscribed, or where something else was
/// in force by then. None: nothing.
fn expected_of(
    evidence: &Evidence,
    timeline: &Timeline,
    listener: &Listener,
    entry: &Entry,
    by: Option<Instant>,
) -> Vec<Option<Expected>> {
    if let Some(rejected) = &entry.rejected {
        let is_told = rejected.device.as_ref() == Some(&listener.device);
        return vec![is_told.then(|| Expected {
            event: "change_rejected",
            channels: Vec::new(),
            entered: Vec::new(),
            left: Vec::new(),
            silent: false,
            world: World::default(),
        })];
    }
    let worlds = match entry.key.0 {
        PAPER => timeline.worlds.between(&entry.offset, 0, by),
        _ => vec![World::default()],
    };
    let subscriptions = listener.subscriptions.iter().filter_map(|subscription| {
        let (channel, since) = subscription.answered.as_ref()?;
        Some((channel, &subscription.wanted, *since < entry.offset))
    });
    let concerned: Vec<_> = subscriptions.filter(|(_, wanted, _)| wanted.model == entry.key.0).collect();
    let unsure: Vec<usize> = (0..concerned.len()).filter(|place| !concerned[*place].2).collect();
    let mut all = Vec::new();
    for choice in 0..1_u32 << unsure.len() {
        let is_left_out =
            |place: usize| unsure.iter().position(|other| *other == place).is_some_and(|bit| choice & (1 << bit) == 0);
        for world in &worlds {
            let chosen = concerned.iter().enumerate().filter(|(place, _)| !is_left_out(*place));
            let chosen = chosen.map(|(_, (channel, wanted, _))| (*channel, *wanted));
            let told = told(evidence, listener.who, entry, chosen, world);
            if !all.contains(&told) {
                all.push(told);
            }
        }
    }
    all
}

fn told<'a>(
    evidence: &Evidence,
    who: Who,
    entry: &Entry,
    subscriptions: impl Iterator<Item = (&'a String, &'a Wanted)>,
    world: &World,
) -> Option<Expected> {
    let (model, id) = (entry.key.0, entry.key.1.as_str());
    let (before, after) = (entry.before.document(), entry.after.document());
    let reads = |document: &Document| may_read(evidence, who, model, document, world);
    let (channels, entered, left) = (Vec::new(), Vec::new(), Vec::new());
    let mut expected = Expected { event: "", channels, entered, left, silent: false, world: *world };
    for (channel, wanted) in subscriptions {
        let shows = |document: &Document| reads(document) && evidence.is_wanted(wanted, model, id, document);
        match (before, after) {
            (None, Some(after)) if shows(after) => expected.channels.push(channel.clone()),
            (Some(before), None) if shows(before) => expected.channels.push(channel.clone()),
            (Some(before), Some(after)) => match (shows(before), shows(after)) {
                (true, true) => expected.channels.push(channel.clone()),
                (false, true) => {
                    expected.silent |= !reads(before);
                    expected.channels.push(channel.clone());
                    expected.entered.push(channel.clone());
                }
                (true, false) => {
                    expected.silent |= !reads(after);
                    expected.left.push(channel.clone());
                }
                (false, false) => {}
            },
            _ => {}
        }
    }
    expected.event = match (before, after) {
        (None, _) => "model_created",
        (_, None) => "model_deleted",
        _ => "model_updated",
    };
    for channels in [&mut expected.channels, &mut expected.entered, &mut expected.left] {
        channels.sort_unstable();
    }
    (!expected.channels.is_empty() || !expected.left.is_empty()).then_some(expected)
}

fn may_read(evidence: &Evidence, who: Who, model: &str, document: &Document, world: &World) -> bool {
    match model {
        PAPER => evidence.may_read_paper(who, document, world),
        _ => evidence.may_read(who, model, document),
    }
}

fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// What is wrong with a frame; none when it says what it should.
fn misfit(frame: &Value, expected: &Expected, entry: &Entry, who: Who) -> Option<String> {
    let metadata = &frame["metadata"];
    let differs = |what: &str, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
        Some(format!("{what} is {is:?}, should be {should:?}"))
    };
    if frame["event"] != expected.event {
        return differs("event", &frame["event"], &expected.event);
    }
    if metadata["id"] != json!(entry.key.1) || metadata["type"] != entry.key.0 {
        return differs("document", metadata, &entry.key);
    }
    if let Some(rejected) = &entry.rejected {
        return if frame["data"]["type"] == rejected.slug {
            None
        } else {
            differs("problem", &frame["data"], &rejected.slug)
        };
    }
    if metadata["version"] != json!(entry.version()) {
        return differs("version", &metadata["version"], &entry.version());
    }
    for (name, should) in [("channels", &expected.channels), ("entered", &expected.entered), ("left", &expected.left)] {
        let is = texts(&metadata[name]);
        if is != *should {
            return differs(name, &is, should);
        }
    }
    let data = &frame["data"];
    let seen = |document: Option<&Document>| {
        document
            .map(|document| if entry.key.0 == PAPER { expected.world.seen(who, document) } else { document.clone() })
    };
    match (seen(entry.before.document()).as_ref(), seen(entry.after.document()).as_ref()) {
        (None, Some(after)) if shown(data).as_ref() != Some(after) => differs("data", data, after),
        (Some(before), None) if data["userId"].as_str() != before.owner.as_deref() => differs("owner", data, before),
        (Some(before), Some(after)) => {
            let patches = data.as_array().cloned().unwrap_or_default();
            let patched = Document { version: after.version, ..after_patches(before, &patches) };
            if expected.silent && !patches.is_empty() {
                return differs("data", data, &"nothing, for the document cannot be read");
            }
            if !expected.silent && patched != *after {
                return differs("the document after the patches", &patched, after);
            }
            let document = shown(&frame["document"]);
            let should = (!expected.entered.is_empty()).then_some(after);
            if document.as_ref() != should { differs("document", &document, &should) } else { None }
        }
        _ => None,
    }
}

fn check_listener(evidence: &Evidence, timeline: &Timeline, listener: &Listener, findings: &mut Findings) {
    let Findings { faults, n_frames, .. } = findings;
    let device = &listener.device;
    if let Some(silent) = listener.subscriptions.iter().find(|subscription| subscription.answered.is_none()) {
        faults.push(format!("{device}: its subscription to {:?} was never answered", silent.wanted));
    }
    let mut has_heard_last = false;
    for (number, connection) in listener.connections.iter().enumerate() {
        let heard = &connection.heard;
        let mut fault = |place: usize, what: String| {
            faults.push(format!("{device}, connection {number}: {what}\n{}", story(listener, number, place)));
        };
        if connection.since.as_ref().is_some_and(|since| *since != connection.start) {
            fault(0, format!("asked for {:?}, resumed from {}", connection.since, connection.start));
        }
        if let Some((acknowledged, surely)) = &connection.from_cursor {
            let most = acknowledged.as_ref().unwrap_or(&evidence.base);
            if connection.start > *most || surely.as_ref().is_some_and(|surely| connection.start < *surely) {
                fault(
                    0,
                    format!("resumed from {}; acknowledged {acknowledged:?}, surely {surely:?}", connection.start),
                );
            }
        }
        let mut place = 0;
        let reach = heard.last().map(|last| last.offset.clone()).unwrap_or_default();
        let mut last_offset = connection.start.clone();
        for (number, one) in heard.iter().enumerate() {
            // Progress says of what came before that it was all.
            let is_progress = one.is_progress();
            if one.offset < last_offset || one.offset == last_offset && !is_progress {
                fault(number, format!("out of order: {} after {last_offset}", one.offset));
            }
            last_offset.clone_from(&one.offset);
        }
        let within = |entry: &&Entry| entry.offset > connection.start && entry.offset <= reach;
        for entry in timeline.entries.iter().filter(within) {
            while let Some(alien) = heard.get(place).filter(|heard| heard.offset < entry.offset) {
                if !alien.is_progress() {
                    fault(place, format!("was told of {}, which is nothing to it", alien.offset));
                }
                place += 1;
            }
            let frame = heard.get(place).filter(|heard| heard.offset == entry.offset && !heard.is_progress());
            // What comes next was decided later.
            let by = heard.get(place).map(|heard| heard.at);
            if let Some(alteration) = entry.alteration {
                let subscriptions = listener.subscriptions.iter().filter_map(|subscription| {
                    let (channel, since) = subscription.answered.as_ref()?;
                    Some((channel, &subscription.wanted, *since < entry.offset))
                });
                let subscriptions: Vec<_> = subscriptions.collect();
                let told = frame.map(|heard| texts(&heard.frame["data"]["channels"])).unwrap_or_default();
                let worlds = &timeline.worlds;
                let misfit =
                    worlds.misfit(evidence, listener.who, (alteration, &entry.offset), &told, &subscriptions, by);
                let is_resync = frame.is_none_or(|heard| {
                    let known = |channel: &String| subscriptions.iter().any(|(other, ..)| *other == channel);
                    heard.is_resync()
                        && heard.frame["data"]["reason"] == "rules"
                        && !told.is_empty()
                        && told.iter().all(known)
                });
                if !is_resync || misfit.is_some() {
                    fault(
                        place,
                        format!("{misfit:?}, was told {:?} at {}", frame.map(|heard| &heard.frame), entry.offset),
                    );
                }
                place += usize::from(frame.is_some());
                continue;
            }
            let all = expected_of(evidence, timeline, listener, entry, by);
            match frame.map(|heard| &heard.frame) {
                None if all.contains(&None) => {}
                None => fault(place, format!("was not told of {entry:?}: {all:?}\n{}", timeline.history(&entry.key))),
                Some(frame) => {
                    *n_frames += 1;
                    place += 1;
                    has_heard_last |= entry.offset == evidence.last;
                    let misfits: Vec<_> = all
                        .iter()
                        .map(|expected| match expected {
                            Some(expected) => misfit(frame, expected, entry, listener.who),
                            None => Some("it should not be told".to_owned()),
                        })
                        .collect();
                    if !misfits.contains(&None) {
                        let history = timeline.history(&entry.key);
                        fault(place, format!("{misfits:?} in {frame}, which is about {entry:?}\n{history}"));
                    }
                }
            }
        }
        for (place, alien) in heard.iter().enumerate().skip(place) {
            if !alien.is_progress() {
                fault(place, format!("was told of {}, which is nothing to it", alien.offset));
            }
        }
    }
    if !has_heard_last {
        faults.push(format!("{device} has not heard the last change\n{}", story(listener, usize::MAX, 0)));
    }
}

/// The connections of a device, and what one of them heard about a place.
fn story(listener: &Listener, connection: usize, place: usize) -> String {
    let mut lines = vec![format!("  subscriptions: {:?}", listener.subscriptions)];
    for (number, one) in listener.connections.iter().enumerate() {
        let (first, last) = (one.heard.first().map(|heard| &heard.offset), one.heard.last().map(|heard| &heard.offset));
        lines.push(format!(
            "  connection {number}: since {:?} cursor {:?}, from {}; heard {} ({first:?} to {last:?}); {}",
            one.since,
            one.from_cursor,
            one.start,
            one.heard.len(),
            one.end
        ));
        if number == connection {
            let from = place.saturating_sub(CONTEXT);
            let around = one.heard.iter().enumerate().skip(from).take(2 * CONTEXT);
            lines.extend(around.map(|(number, heard)| format!("    {number}: {}", brief(&heard.frame.to_string()))));
        }
    }
    lines.join("\n")
}

/// What was refused at once, and what was read: true of a moment between what was accepted before and what was asked for since.
fn check_moments(evidence: &Evidence, timeline: &Timeline, faults: &mut Vec<String>) {
    let moments = Moments::of(evidence, timeline);
    for (place, offset) in &timeline.offsets {
        let write = &evidence.writes[*place];
        let accepted = moments.accepted_before(write.began);
        if *offset <= accepted {
            faults.push(format!(
                "{offset} is not after {accepted}, which was accepted before it was asked for: {write:?}"
            ));
        }
    }
    for write in &evidence.writes {
        let Said::Refused { slug } = &write.said else { continue };
        let states =
            timeline.states(&write.key, moments.accepted_before(write.began), moments.asked_before(write.ended));
        let decide = |state: &State| evidence.decide(write.who, write.key.0, &write.op, state);
        if !states.iter().any(|state| matches!(decide(state), Verdict::Refused(other) if other == slug)) {
            faults.push(format!(
                "refused with {slug}, which is true of none of {states:?}: {write:?}\n{}",
                timeline.history(&write.key)
            ));
        }
    }
    for listener in &evidence.listeners {
        for look in &listener.looks {
            check_look(evidence, timeline, &moments, (listener, look), faults);
        }
    }
    let offsets: HashMap<&str, &String> = evidence
        .writes
        .iter()
        .filter_map(|write| match &write.said {
            Said::Accepted { change } => Some((change.as_str(), write.fate.offset()?)),
            _ => None,
        })
        .collect();
    for read in &evidence.reads {
        let Some(after) = offsets.get(read.after.as_str()) else { continue };
        let states = timeline.states(&read.key, (*after).clone(), moments.asked_before(read.ended));
        let readable =
            |state: &&State| state.document().is_some_and(|document| evidence.may_read(read.who, read.key.0, document));
        let is_true = match &read.found {
            None => !states.iter().all(|state| readable(&state)),
            Some(found) => {
                let found = shown(found);
                states.iter().filter(readable).any(|state| state.document() == found.as_ref())
            }
        };
        if !is_true {
            faults.push(format!("read what is true of none of {states:?}: {read:?}\n{}", timeline.history(&read.key)));
        }
    }
}

/// Items that were asked for anew show what is in force: no less than what was known when they were asked for, and all of it.
fn check_look(
    evidence: &Evidence,
    timeline: &Timeline,
    moments: &Moments,
    (listener, look): (&Listener, &Look),
    faults: &mut Vec<String>,
) {
    let who = listener.who;
    let least = timeline.worlds.n_known_before(look.began);
    let worlds = timeline.worlds.between(&look.heard, least, Some(look.ended));
    let from = look.heard.clone().max(look.offset.clone());
    let upto = moments.asked_before(look.ended);
    let shows = |key: &Key, document: &Document, world: &World| {
        evidence.may_read_paper(who, document, world) && evidence.is_wanted(&look.wanted, key.0, &key.1, document)
    };
    let mut shown_ids = HashSet::new();
    let mut fault = |what: String| {
        faults.push(format!(
            "{}: {what}, asked for {:?} after {} and {worlds:?}",
            listener.device, look.wanted, look.heard
        ));
    };
    for item in &look.items {
        let key = (PAPER, item["id"].as_str().unwrap_or_default().to_owned());
        let states = timeline.states(&key, from.clone(), upto.clone());
        let item = shown(item);
        let is_true = states.iter().filter_map(State::document).any(|document| {
            worlds.iter().any(|world| shows(&key, document, world) && Some(&world.seen(who, document)) == item.as_ref())
        });
        if !is_true {
            fault(format!("{key:?} is shown as {}, which is true of none of {}", brief(&item), brief(&states)));
        }
        if !shown_ids.insert(key.1.clone()) {
            fault(format!("{key:?} is shown twice"));
        }
    }
    for key in timeline.states.keys().filter(|key| key.0 == PAPER && !shown_ids.contains(&key.1)) {
        let states = timeline.states(key, from.clone(), upto.clone());
        let is_there = |state: &State| {
            state.document().is_some_and(|document| worlds.iter().all(|world| shows(key, document, world)))
        };
        if states.iter().all(is_there) {
            fault(format!("{key:?} is not shown, which is {}", brief(&states)));
        }
    }
}

/// Up to which offset the log went at a time: at least, and at most.
struct Moments {
    accepted: Vec<(Instant, Offset)>,
    asked: Vec<(Instant, Offset)>,
}

impl Moments {
    fn of(evidence: &Evidence, timeline: &Timeline) -> Self {
        let asked = timeline.offsets.iter().map(|(place, offset)| (evidence.writes[*place].began, offset.clone()));
        Self { accepted: timeline::accepted(evidence), asked: timeline::rising(evidence, asked.collect()) }
    }

    fn accepted_before(&self, time: Instant) -> Offset {
        timeline::before(&self.accepted, time)
    }

    fn asked_before(&self, time: Instant) -> Offset {
        timeline::before(&self.asked, time)
    }
}

fn check_stored(evidence: &Evidence, timeline: &Timeline, faults: &mut Vec<String>) {
    let mut n_live: BTreeMap<&str, u64> = BTreeMap::new();
    let mut keys: HashSet<&Key> = timeline.states.keys().collect();
    keys.extend(evidence.stored.keys());
    for key in keys {
        let state = timeline.last_state(key);
        *n_live.entry(key.0).or_default() += u64::from(state.document().is_some());
        let stored = evidence.stored.get(key).and_then(shown);
        if state.document() != stored.as_ref() {
            let history = timeline.history(key);
            faults.push(format!("{key:?} is stored as {stored:?}, should be {state:?}\n{history}"));
        }
    }
    for (model, counted) in &evidence.counted {
        let should = n_live.get(model).copied().unwrap_or(0);
        if *counted != should {
            faults.push(format!("{counted} documents of {model} are counted, should be {should}"));
        }
    }
    for write in &evidence.writes {
        match (&write.said, &write.fate) {
            (Said::Accepted { .. }, Fate::Absent) => faults.push(format!("accepted, and lost: {write:?}")),
            (_, Fate::Pending) => faults.push(format!("accepted, and never decided: {write:?}")),
            _ => {}
        }
    }
}
