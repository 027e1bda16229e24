//! The cursors of devices: acknowledged in memory, written together about once a second.

use std::collections::HashMap;

use nexxus_storage::{
    Registry, Result,
    model::{AppId, DeviceId, Offset},
    registry::{
        Expect, Key, Write,
        records::{Cursor, Typed},
    },
};
use parking_lot::Mutex;

use crate::domain::identity::in_calls;

type Acknowledged = HashMap<(AppId, DeviceId), Offset>;

/// What was acknowledged and is not written yet: at most one offset for each device.
#[derive(Default)]
pub struct Cursors {
    state: Mutex<State>,
    /// One flush at a time; who waits for it finds its own acknowledgement written by the one before.
    flushing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    waiting: Acknowledged,
    /// Being written: still to be seen, until the registry shows it.
    writing: Acknowledged,
}

impl Cursors {
    pub(super) fn acknowledge(&self, app: &AppId, device: &DeviceId, offset: Offset) {
        raise(&mut self.state.lock().waiting, (app.clone(), device.clone()), offset);
    }

    /// The highest acknowledged offset, written or not.
    pub(super) async fn get(&self, registry: &dyn Registry, app: &AppId, device: &DeviceId) -> Result<Option<Offset>> {
        let key = (app.clone(), device.clone());
        // In this order: what is written between the two steps is seen by the second.
        let unwritten = {
            let state = self.state.lock();
            state.waiting.get(&key).max(state.writing.get(&key)).copied()
        };
        let written: Option<(Cursor, u64)> = registry.load(&Key::cursor(app, device)).await?;
        Ok(unwritten.max(written.map(|(cursor, _)| cursor.offset)))
    }

    /// The device is gone.
    pub(super) fn forget(&self, app: &AppId, device: &DeviceId) {
        self.state.lock().waiting.remove(&(app.clone(), device.clone()));
    }

    /// Writes what was acknowledged before this call. What could not be written waits for the next flush.
    pub(super) async fn flush(&self, registry: &dyn Registry) -> Result<()> {
        let _one_at_a_time = self.flushing.lock().await;
        let mut by_app: HashMap<AppId, Vec<(DeviceId, Offset)>> = HashMap::new();
        {
            let mut state = self.state.lock();
            state.writing = std::mem::take(&mut state.waiting);
            for ((app, device), offset) in &state.writing {
                by_app.entry(app.clone()).or_default().push((device.clone(), *offset));
            }
        }
        let outcome = write(registry, by_app).await;
        let mut state = self.state.lock();
        let written = std::mem::take(&mut state.writing);
        if outcome.is_err() {
            written.into_iter().for_each(|(key, offset)| raise(&mut state.waiting, key, offset));
        }
        outcome
    }
}

fn raise(acknowledged: &mut Acknowledged, key: (AppId, DeviceId), offset: Offset) {
    let known = acknowledged.entry(key).or_insert(offset);
    *known = offset.max(*known);
}

async fn write(registry: &dyn Registry, by_app: HashMap<AppId, Vec<(DeviceId, Offset)>>) -> Result<()> {
    for (app, acknowledged) in by_app {
        let mut writes = Vec::with_capacity(acknowledged.len());
        for (device, offset) in acknowledged {
            let cursor = Cursor { app: app.clone(), device, offset };
            let stored: Option<(Cursor, u64)> = registry.load(&cursor.key()).await?;
            let is_news = stored.is_none_or(|(stored, _)| stored.offset < offset);
            // A device that was removed meanwhile leaves no cursor behind.
            if is_news && registry.get(&Key::device(&app, &cursor.device)).await?.is_some() {
                writes.push(Write::put(&cursor, Expect::Anything)?);
            }
        }
        for some in in_calls(writes) {
            registry.write(some).await?;
        }
    }
    Ok(())
}
