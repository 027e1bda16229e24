//! How far one application is matched, and what is ready for each transport worker.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::{
    Result,
    model::{AppId, ChangeId, DeviceId, Entry, Event, Offset, Timestamp},
    queue::{Message, Payload},
};

use super::{Outbox, roster::Roster};
use crate::{
    domain::{Domain, frame},
    messages::{Covers, DeviceMessage, ToDevices},
};

/// How often a worker hears that the log went on although nothing was for its devices.
const SILENCE: Duration = Duration::from_millis(100);
/// Devices that have to ask anew are spread over this many seconds.
const SPREAD_SECONDS: u32 = 10;

pub(super) struct Matched {
    /// Everything up to here was matched.
    pub(super) upto: Offset,
    /// What waits to be sent, by queue.
    ready: HashMap<Arc<str>, Vec<DeviceMessage>>,
    /// What each queue was told: up to where, and when.
    told: HashMap<Arc<str>, (Offset, Instant)>,
}

impl Matched {
    /// Begins where the log stood before what has come now.
    pub(super) async fn begin(domain: &Domain, app: &AppId, entries: &[Arc<Entry>]) -> Result<Self> {
        let upto = match entries.first() {
            Some(first) => Offset::new(first.offset.epoch, first.offset.position.saturating_sub(1)),
            None => domain.backends.change_log.marks(app).await?.applied,
        };
        Ok(Self { upto, ready: HashMap::new(), told: HashMap::new() })
    }

    /// The same place, with nothing ready. What was collected is lost: the gap that this leaves before what is sent next makes
    /// the workers read it from the change log.
    pub(super) fn forgotten(mut self) -> Self {
        self.ready.clear();
        self.told.values_mut().for_each(|(upto, _)| *upto = self.upto);
        self
    }

    pub(super) fn is_next(&self, offset: Offset) -> bool {
        offset.epoch == self.upto.epoch && offset == self.upto.next()
    }

    pub(super) fn begin_epoch(&mut self, offset: Offset) {
        self.upto = Offset::new(offset.epoch, 0);
    }

    pub(super) fn skip_to_before(&mut self, offset: Offset) {
        self.upto = Offset::new(offset.epoch, offset.position.saturating_sub(1));
    }

    /// Matches one entry: the frames it makes wait for [`Matched::send`].
    pub(super) fn take(&mut self, roster: &Roster, app: &AppId, entry: &Entry) {
        if let Event::Rejected { document, device: Some(device), problem } = &entry.event {
            let frame = frame::change_rejected(entry.change_id, document.as_ref(), problem, entry.offset);
            self.ready_for(roster, app, device, entry.offset, &frame);
        }
        if let (Some(application), Some(matcher)) = (roster.application(app), roster.matcher(app)) {
            let frames = frame::Frames::of(application, entry);
            let mut encoded: Vec<(Arc<frame::Audience>, bytes::Bytes)> = Vec::new();
            for hit in matcher.matching(entry) {
                let known = encoded.iter().find(|(audience, _)| Arc::ptr_eq(audience, &hit.audience));
                let text = match known {
                    Some((_, text)) => text.clone(),
                    None => {
                        let Some(text) = frames.change(&hit.audience) else { continue };
                        encoded.push((hit.audience.clone(), text.clone()));
                        text
                    }
                };
                self.ready.entry(hit.queue).or_default().push(DeviceMessage {
                    offset: entry.offset,
                    devices: hit.devices,
                    frame: text,
                });
            }
        }
        self.upto = entry.offset;
    }

    /// Tells every subscriber of the entry's model to ask anew.
    pub(super) fn give_up(&mut self, roster: &Roster, app: &AppId, entry: &Entry) {
        if let (Some(matcher), Some(model)) = (roster.matcher(app), entry.model()) {
            let lost = matcher.channels_where(|_, view| view.channel.model == *model);
            self.resync(roster, app, lost, Some("internal"), entry.offset);
        }
        self.upto = entry.offset;
    }

    /// `resync_required` for these channels, at a position of the log.
    pub(super) fn resync(
        &mut self,
        roster: &Roster,
        app: &AppId,
        channels: Vec<(DeviceId, Vec<Arc<str>>)>,
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
            self.ready.entry(queue.clone()).or_default().push(DeviceMessage {
                offset,
                devices: vec![device.clone()],
                frame: frame.clone(),
            });
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
        if self.told.len() > matcher.queues().count() {
            self.told.retain(|told, _| matcher.queues().any(|queue| queue == told));
        }
    }
}

fn to_message(app: &AppId, message: ToDevices) -> Message {
    Message {
        id: ChangeId::generate(),
        app: Some(app.clone()),
        offset: Some(message.covers.upto),
        time: Timestamp::now(),
        trace: None,
        dead: None,
        durable: false,
        payload: Payload::new(Arc::new(message)),
    }
}
