//! Reading the change log for one connection: after a resume, after joining, after having been too slow. The change log is the
//! mailbox; what a device would have got live is matched here against its own subscriptions, under today's rules.

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::{
    ErrorKind,
    changelog::LogEntry,
    model::{AppId, DeviceId, Entry, Event, Offset, UserId, change::UserFacts},
    registry::{Key, Kind, records},
};
use tracing::warn;

use crate::{
    domain::{
        Application, Domain,
        alteration::Alteration,
        frame::{self, Audience, Frames},
        view::View,
    },
    service::Failure,
};

/// Entries that are read at once.
const PAGE: usize = 256;

/// Whose mailbox is read.
pub struct Mailbox {
    pub domain: Domain,
    pub app: AppId,
    pub device: DeviceId,
    pub user: Option<UserId>,
}

/// Some frames, and where to go on.
pub struct Caught {
    pub frames: Vec<Bytes>,
    pub next: Offset,
    /// Nothing more is in the log now.
    pub end: bool,
    /// The log no longer reaches back to where it was asked from.
    pub gone: bool,
}

/// A subscription of the device, ready for replay.
struct Replayed {
    record: records::Subscription,
    view: Option<View>,
}

impl Mailbox {
    /// What stands in the log above an offset for this device; nothing above `upto`.
    pub async fn read(&self, since: Offset, upto: Option<Offset>) -> Result<Caught, Failure> {
        let mut page = match self.domain.backends.change_log.read(&self.app, since, PAGE).await {
            Ok(page) => page,
            Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::Invalid) => return self.start_anew().await,
            Err(error) => return Err(error.into()),
        };
        if let Some(upto) = upto {
            page.entries.truncate(page.entries.partition_point(|entry| entry.entry.offset <= upto));
            page.next = page.next.min(upto);
        }
        let frames = if page.entries.is_empty() { Vec::new() } else { self.frames(&page.entries).await? };
        Ok(Caught { frames, next: page.next, end: page.end, gone: false })
    }

    async fn frames(&self, entries: &[LogEntry]) -> Result<Vec<Bytes>, Failure> {
        // Without rules nothing can be shown, and nothing may be passed over.
        let application = self.domain.catalog.find(&self.app);
        let application = application.ok_or_else(|| format!("there is no application {}", self.app))?;
        // After the page: a subscription that is not in this list was made above everything in the page.
        let facts = self.facts().await?;
        let subscriptions = self.subscriptions(&application, &facts).await?;
        let mut frames = Vec::new();
        for entry in entries {
            self.replay(&application, &facts, &subscriptions, &entry.entry, &mut frames);
        }
        Ok(frames)
    }

    /// The history does not reach back: everything has to be asked for anew, from where the log stands now.
    async fn start_anew(&self) -> Result<Caught, Failure> {
        let channels = self.channels().await?;
        let marks = self.domain.backends.change_log.marks(&self.app).await?;
        let frames = if channels.is_empty() {
            Vec::new()
        } else {
            vec![frame::resync_required(&channels, None, None, Some(marks.applied))]
        };
        Ok(Caught { frames, next: marks.applied, end: true, gone: true })
    }

    /// The channels that the device is subscribed to.
    pub async fn channels(&self) -> Result<Vec<Arc<str>>, Failure> {
        let mut channels: Vec<Arc<str>> =
            self.records().await?.into_iter().map(|record| record.channel.into()).collect();
        channels.sort_unstable();
        Ok(channels)
    }

    async fn records(&self) -> Result<Vec<records::Subscription>, Failure> {
        let prefix = format!("{}/", self.device);
        Ok(self.domain.backends.registry.load_all(Kind::Subscription, Some(&self.app), &prefix).await?)
    }

    async fn facts(&self) -> Result<UserFacts, Failure> {
        let Some(user) = &self.user else { return Ok(UserFacts::default()) };
        let record: Option<(records::User, u64)> =
            self.domain.backends.registry.load(&Key::user(&self.app, user)).await?;
        Ok(record.map(|(user, _)| user.facts).unwrap_or_default())
    }

    async fn subscriptions(&self, application: &Application, facts: &UserFacts) -> Result<Vec<Replayed>, Failure> {
        let compile = |record: records::Subscription| {
            let view = View::compile(&record, application, facts)
                .inspect_err(|error| warn!(app = %self.app, %error, "a subscription fits no longer"))
                .ok();
            Replayed { record, view }
        };
        Ok(self.records().await?.into_iter().map(compile).collect())
    }

    fn replay(
        &self,
        application: &Application,
        facts: &UserFacts,
        subscriptions: &[Replayed],
        entry: &Entry,
        frames: &mut Vec<Bytes>,
    ) {
        match &entry.event {
            Event::Rejected { document, device: Some(device), problem } if *device == self.device => {
                frames.push(frame::change_rejected(entry.change_id, document.as_ref(), problem, entry.offset));
            }
            Event::Defined { .. } | Event::UserChanged { .. } => {
                let Some(alteration) = Alteration::of(entry) else { return };
                let altered = |record: &records::Subscription| alteration.alters(record, Some(application), facts);
                frames.extend(resync(subscriptions, entry.offset, altered));
            }
            Event::Created { .. } | Event::Updated { .. } | Event::Deleted { .. } => {
                frames.extend(change(application, subscriptions, entry));
            }
            _ => {}
        }
    }
}

fn resync(
    subscriptions: &[Replayed],
    offset: Offset,
    altered: impl Fn(&records::Subscription) -> bool,
) -> Option<Bytes> {
    let mut channels: Vec<Arc<str>> = subscriptions
        .iter()
        .filter(|subscription| altered(&subscription.record))
        .map(|subscription| subscription.record.channel.as_str().into())
        .collect();
    channels.sort_unstable();
    (!channels.is_empty()).then(|| frame::resync_required(&channels, Some("rules"), Some(0), Some(offset)))
}

/// The frame of a change, if one of the subscriptions hears of it.
fn change(application: &Application, subscriptions: &[Replayed], entry: &Entry) -> Option<Bytes> {
    let model = entry.model()?;
    let mut views = subscriptions
        .iter()
        .filter(|subscription| subscription.record.since < entry.offset && subscription.record.model == *model)
        .filter_map(|subscription| subscription.view.as_ref())
        .peekable();
    views.peek()?;
    let before = entry.before();
    let after = entry.after();
    let steps: Vec<_> =
        views.filter_map(|view| Some((&view.key, view.step(before.as_ref(), after)?, view.privileged))).collect();
    if steps.is_empty() {
        return None;
    }
    Frames::of(application, entry).change(&Audience::of(steps))
}
