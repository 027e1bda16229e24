//! How far one application is matched, and what is ready for each transport worker.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::{
    model::{AppId, ChangeId, DeviceId, Entry, Event, Offset},
    queue::{Message, Payload},
};

use super::{Outbox, roster::Roster};
use crate::{
    domain::frame,
    matcher::crowd::Channels,
    messages::{Covers, DeviceMessage, ToDevices},
};

/// How often a worker hears that the log went on although nothing was for its devices.
const SILENCE: Duration = Duration::from_millis(100);
/// Bytes that wait to be sent of one application; past it they are sent before more is matched.
const MOST_READY: usize = 1 << 20;
/// Devices that have to ask anew are spread over this many seconds.
const SPREAD_SECONDS: u32 = 10;

pub(super) struct Matched {
    /// Everything up to here was matched.
    pub(super) upto: Offset,
    /// What waits to be sent, by queue.
    ready: HashMap<Arc<str>, Vec<DeviceMessage>>,
    /// About how many bytes of memory that takes.
    ready_bytes: usize,
    /// What each queue was told: up to where, and when.
    told: HashMap<Arc<str>, (Offset, Instant)>,
}

impl Matched {
    /// Everything up to an offset is not of interest.
    pub(super) fn begin(upto: Offset) -> Self {
        Self { upto, ready: HashMap::new(), ready_bytes: 0, told: HashMap::new() }
    }

    /// What was collected, or is on its way out, is lost. Each queue is told next where that ends: its worker sees the gap before it,
    /// and reads the change log.
    pub(super) fn lose(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
        self.told.clear();
    }

    pub(super) fn is_next(&self, offset: Offset) -> bool {
        offset.epoch == self.upto.epoch && offset == self.upto.next()
    }

    /// Whether so much is ready that it should be sent before more is matched: queues bound their bytes.
    pub(super) fn is_full(&self) -> bool {
        self.ready_bytes >= MOST_READY
    }

    /// Matches one entry: the frames it makes wait for [`Matched::send`].
    pub(super) fn take(&mut self, roster: &Roster, app: &AppId, entry: &Entry) {
        self.upto = entry.offset;
        let Some(matcher) = roster.matcher(app).filter(|matcher| matcher.has_connections()) else { return };
        if let Event::Rejected { document, device: Some(device), problem } = &entry.event
            && !matcher.queues_of(device).is_empty()
        {
            let frame = frame::change_rejected(entry.change_id, document.as_ref(), problem, entry.offset);
            self.ready_for(roster, app, device, entry.offset, &frame);
        }
        let Some(application) = roster.application(app) else { return };
        let frames = frame::Frames::of(application, entry);
        for hit in matcher.matching(entry) {
            let Some(frame) = frames.change(&hit.audience) else { continue };
            for (queue, devices) in hit.devices {
                self.make_ready(&queue, DeviceMessage { offset: entry.offset, devices, frame: frame.clone() });
            }
        }
    }

    /// `resync_required` for these channels, at a position of the log.
    pub(super) fn resync(
        &mut self,
        roster: &Roster,
        app: &AppId,
        channels: Channels,
        reason: Option<&str>,
        offset: Offset,
    ) {
        for (place, (device, channels)) in (0..).zip(channels) {
            let after = Some(place % SPREAD_SECONDS);
            let text = frame::resync_required(&channels, reason, after, Some(offset));
            self.ready_for(roster, app, &device, offset, &text);
        }
    }

    fn ready_for(&mut self, roster: &Roster, app: &AppId, device: &DeviceId, offset: Offset, frame: &bytes::Bytes) {
        for queue in roster.matcher(app).map_or(&[][..], |matcher| matcher.queues_of(device)) {
            let message = DeviceMessage { offset, devices: vec![device.clone()], frame: frame.clone() };
            self.make_ready(queue, message);
        }
    }

    fn make_ready(&mut self, queue: &Arc<str>, message: DeviceMessage) {
        self.ready_bytes += message.weight();
        match self.ready.get_mut(queue) {
            Some(messages) => messages.push(message),
            None => drop(self.ready.insert(queue.clone(), vec![message])),
        }
    }

    /// Sends what is ready, and to the other workers of the application what was covered.
    pub(super) fn send(&mut self, app: &AppId, roster: &Roster, out: &mut Outbox) {
        let now = Instant::now();
        let Some(matcher) = roster.matcher(app) else { return };
        for queue in matcher.queues() {
            let messages = self.ready.remove(queue).unwrap_or_default();
            let (after, last) = self.told.get(queue).copied().unwrap_or((self.upto, now));
            let is_new = !self.told.contains_key(queue);
            let is_due = now.duration_since(last) >= SILENCE && after != self.upto;
            if messages.is_empty() && !is_new && !is_due {
                continue;
            }
            // A queue that was told nothing yet: its worker reads the log up to here by itself, and joins.
            let covers = Covers { app: app.clone(), after, upto: self.upto };
            out.publish(&**queue, to_message(app, ToDevices { covers, messages }));
            self.told.insert(queue.clone(), (self.upto, now));
        }
        self.ready.clear();
        self.ready_bytes = 0;
        if self.told.len() > matcher.queues().count() {
            self.told.retain(|told, _| matcher.queues().any(|queue| queue == told));
        }
    }
}

fn to_message(app: &AppId, message: ToDevices) -> Message {
    let offset = Some(message.covers.upto);
    let message = Message::new(ChangeId::generate(), Some(app.clone()), Payload::new(Arc::new(message)));
    Message { offset, durable: false, ..message }
}
