//! Applications whose records the registry has lost: the history still holds the definitions that were made or changed in its time.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::repair::blocking;
use crate::{
    Registry, Result,
    changelog::embedded::codec,
    embedded::Engine,
    journal::{Kind, Record, doctor::Patient},
    model::{AppId, Event},
    registry::sled::doctor::keys_written,
    registry::{Expect, Key, Kind as RecordKind, Write, records::Application},
};

/// What is to be done about an application that nothing defines.
pub(super) const WHAT_TO_DO: &str =
    "made again under the same name, it has its documents again; its users have to register anew";

/// The last definition of each application that the history holds. One that cannot be read is none.
#[derive(Default)]
struct Definitions(BTreeMap<AppId, Application>);

impl Definitions {
    fn take(&mut self, record: &Record) {
        if record.kind != Kind::LogEntry {
            return;
        }
        let Ok((app, logged)) = codec::decode(&record.payload, record.sequence) else { return };
        let Event::Defined { definition, .. } = &logged.entry.event else { return };
        let Ok(definition) = serde_json::from_value::<Application>(definition.clone()) else { return };
        let definition = Application { offset: logged.entry.offset, ..definition };
        match self.0.entry(app) {
            btree_map::Entry::Vacant(place) => drop(place.insert(definition)),
            btree_map::Entry::Occupied(mut known) if known.get().offset < definition.offset => {
                drop(known.insert(definition))
            }
            btree_map::Entry::Occupied(_) => {}
        }
    }
}

/// The applications that the history defines, and those whose records the registry takes from the journal by itself.
pub(super) fn in_journal(patient: &Patient) -> Result<(BTreeSet<AppId>, BTreeSet<AppId>)> {
    let (mut definitions, mut recorded) = (Definitions::default(), BTreeSet::new());
    patient.visit(&mut |record: &Record| {
        definitions.take(record);
        if record.kind == Kind::Registry {
            // What cannot be read is told of elsewhere.
            let keys = keys_written(record).unwrap_or_default();
            let applications = keys.into_iter().filter(|key| key.kind == RecordKind::Application);
            recorded.extend(applications.filter_map(|key| AppId::parse(&key.id).ok()));
        }
    })?;
    Ok((definitions.0.into_keys().collect(), recorded))
}

/// Writes the applications that the registry lacks, as the history defines them. Gives those, and those of `all` that nothing defines.
pub(super) async fn salvage(engine: &Engine, all: Vec<AppId>) -> Result<(Vec<AppId>, Vec<AppId>)> {
    let registry = engine.registry()?;
    let mut lacking = BTreeSet::new();
    for app in all {
        if registry.get(&Key::application(&app)).await?.is_none() {
            lacking.insert(app);
        }
    }
    if lacking.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let journal = engine.journal().clone();
    let defined = blocking(move || {
        let mut definitions = Definitions::default();
        journal.replay(1, &mut |record| {
            definitions.take(&record);
            Ok(())
        })?;
        Ok(definitions)
    });
    let mut defined = defined.await?;
    let mut salvaged = Vec::new();
    for app in &lacking {
        if let Some(definition) = defined.0.remove(app) {
            registry.write(vec![Write::put(&definition, Expect::Absent)?]).await?;
            salvaged.push(app.clone());
        }
    }
    lacking.retain(|app| !salvaged.contains(app));
    Ok((salvaged, lacking.into_iter().collect()))
}
