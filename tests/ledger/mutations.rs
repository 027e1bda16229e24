//! Whether the checker can fail: each of these changes a good evidence in one place, and has to be seen.

use std::sync::Arc;

use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    check::check,
    evidence::{Evidence, Fate, Heard, Listener, Said},
};

type Mutation = fn(&mut Evidence, &mut StdRng) -> Option<()>;

const MUTATIONS: [(&str, Mutation); 12] = [
    ("a frame is lost", lose_frame),
    ("two frames change places", reorder),
    ("a frame comes twice", double),
    ("a frame comes that nobody may see", leak),
    ("nobody is told of what is altered", tell_of_no_alteration),
    ("somebody is told of what is not altered", tell_of_too_much),
    ("an item is missing among those asked for anew", lose_item),
    ("a patch is another", alter),
    ("an accepted write is lost", lose_write),
    ("a write is made twice", write_twice),
    ("a counter is one too high", miscount),
    ("a document is gone", lose_document),
];

pub(crate) fn are_seen(evidence: &Evidence, chance: &mut StdRng) {
    for (name, mutate) in MUTATIONS {
        let mut changed = evidence.clone();
        // A small run may have no place for it.
        if (0..50).any(|_| mutate(&mut changed, chance).is_some()) {
            assert!(!check(&changed).faults.is_empty(), "the checker of {} does not see that {name}", evidence.app);
        } else {
            println!("{}: no place where {name}", evidence.app);
        }
    }
}

/// A connection that heard some changes, and one of them that is not the last.
fn somewhere<'e>(evidence: &'e mut Evidence, chance: &mut StdRng) -> Option<(&'e mut Vec<Heard>, usize)> {
    let n_listeners = evidence.listeners.len();
    somewhere_in(evidence.listeners.get_mut(chance.random_range(0..n_listeners))?, chance)
}

fn somewhere_in<'e>(listener: &'e mut Listener, chance: &mut StdRng) -> Option<(&'e mut Vec<Heard>, usize)> {
    let n_connections = listener.connections.len();
    let heard = &mut listener.connections.get_mut(chance.random_range(0..n_connections))?.heard;
    if heard.len() < 3 {
        return None;
    }
    let place = chance.random_range(0..heard.len() - 1);
    let is_change = |place: usize| heard[place].frame["metadata"]["channels"].is_array();
    (is_change(place) && is_change(place + 1)).then_some((heard, place))
}

fn lose_frame(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    // Of a device that heard of it for sure: others may have subscribed just then.
    let place = evidence.listeners.iter().position(|listener| listener.device.starts_with("plain"))?;
    evidence.listeners.swap(0, place);
    let (heard, place) = somewhere_in(evidence.listeners.get_mut(0)?, chance)?;
    heard.remove(place);
    Some(())
}

fn reorder(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let (heard, place) = somewhere(evidence, chance)?;
    heard.swap(place, place + 1);
    Some(())
}

fn double(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let (heard, place) = somewhere(evidence, chance)?;
    let again = heard[place].clone();
    heard.insert(place, again);
    Some(())
}

fn leak(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let auditor = evidence.listeners.iter().find(|listener| listener.device == "auditor")?.clone();
    let (heard, place) = somewhere(evidence, chance)?;
    let (from, upto) = (heard[place].offset.clone(), heard[place + 1].offset.clone());
    let all = auditor.connections.iter().flat_map(|connection| &connection.heard);
    let hidden = all.into_iter().find(|heard| heard.offset > from && heard.offset < upto)?;
    heard.insert(place + 1, hidden.clone());
    Some(())
}

fn tell_of_no_alteration(evidence: &mut Evidence, _: &mut StdRng) -> Option<()> {
    let all = evidence.listeners.iter_mut().flat_map(|listener| &mut listener.connections);
    let mut n_lost = 0;
    for connection in all {
        let n_heard = connection.heard.len();
        connection.heard.retain(|heard| !heard.is_resync());
        n_lost += n_heard - connection.heard.len();
    }
    (n_lost > 0).then_some(())
}

fn tell_of_too_much(evidence: &mut Evidence, _: &mut StdRng) -> Option<()> {
    for listener in &mut evidence.listeners {
        let of_tasks =
            listener.subscriptions.iter().find(|subscription| subscription.wanted.model == crate::model::TASK);
        let Some((channel, _)) = of_tasks.and_then(|subscription| subscription.answered.clone()) else { continue };
        let mut heard = listener.connections.iter_mut().flat_map(|connection| &mut connection.heard);
        let Some(heard) = heard.find(|heard| heard.is_resync()) else { continue };
        let mut frame = (*heard.frame).clone();
        frame["data"]["channels"].as_array_mut()?.push(json!(channel));
        heard.frame = Arc::new(frame);
        return Some(());
    }
    None
}

fn lose_item(evidence: &mut Evidence, _: &mut StdRng) -> Option<()> {
    let mut looks = evidence.listeners.iter_mut().flat_map(|listener| &mut listener.looks);
    // All of them: one may have been on its way at that moment.
    let look = looks.find(|look| look.items.len() > 3)?;
    look.items.clear();
    Some(())
}

fn alter(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let (heard, place) = somewhere(evidence, chance)?;
    let mut frame = (*heard[place].frame).clone();
    let value = frame.get_mut("data")?.get_mut(0)?.get_mut("value")?.get_mut(0)?;
    *value = match value {
        Value::Number(_) => json!(999),
        _ => json!("another"),
    };
    heard[place].frame = Arc::new(frame);
    Some(())
}

fn lose_write(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let n_writes = evidence.writes.len();
    let write = evidence.writes.get_mut(chance.random_range(0..n_writes))?;
    if !matches!(write.said, Said::Accepted { .. }) {
        return None;
    }
    write.fate = Fate::Absent;
    Some(())
}

/// A write whose answer is known stands at a second position: nobody wrote that one.
fn write_twice(evidence: &mut Evidence, chance: &mut StdRng) -> Option<()> {
    let n_writes = evidence.writes.len();
    let places = (chance.random_range(0..n_writes), chance.random_range(0..n_writes));
    if places.0 == places.1 {
        return None;
    }
    let first = evidence.writes[places.0].fate.offset()?.clone();
    let second = evidence.writes.get_mut(places.1)?;
    matches!(second.fate, Fate::Applied { .. }).then_some(())?;
    second.fate = Fate::Applied { offset: first };
    Some(())
}

fn miscount(evidence: &mut Evidence, _: &mut StdRng) -> Option<()> {
    let document = evidence.stored.values_mut().find(|document| document["n"].is_number())?;
    document["n"] = json!(document["n"].as_f64()? + 1.0);
    Some(())
}

fn lose_document(evidence: &mut Evidence, _: &mut StdRng) -> Option<()> {
    let key = evidence.stored.keys().next()?.clone();
    evidence.stored.remove(&key);
    Some(())
}
