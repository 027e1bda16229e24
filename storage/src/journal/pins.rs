//! Pins: records that somebody reads for longer, and that may not be given back meanwhile.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::segments::Segments;

#[derive(Default)]
pub(super) struct Pins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_number: u64,
    /// By number, the sequence from which on everything is kept.
    pins: BTreeMap<u64, u64>,
}

impl Pins {
    pub(super) fn pin(of: &Arc<Segments>, from: u64) -> Pin {
        let mut state = of.pins.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        state.pins.insert(number, from);
        Pin { of: of.clone(), number }
    }

    pub(super) fn lowest(&self) -> u64 {
        self.state.lock().pins.values().copied().min().unwrap_or(u64::MAX)
    }
}

/// Keeps records from being given back until it is dropped.
pub struct Pin {
    of: Arc<Segments>,
    number: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.of.pins.state.lock().pins.remove(&self.number);
    }
}
