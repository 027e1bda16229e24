//! The transport manager: finds who must hear of each change, and hands the frames to the transport workers that hold them.
//!
//! Before it matches a batch it brings its matchers up to the registry. Positions are dense per application: it takes exactly
//! the next one, drops lower ones, and reads a hole from the change log before it goes on. What it sends says what it covers,
//! so no message to a transport is precious: a worker that misses one sees the gap and reads the change log itself.
//!
//! A new definition takes long where there are many subscriptions: it is taken in by slices, between which other applications are
//! matched. What comes meanwhile of its own application is dropped, and read from the change log when it is done.

mod loading;
mod matched;
mod roster;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nexxus_storage::{
    Error, ErrorKind, Result,
    changelog::Page,
    failpoint,
    model::{AppId, Entry, Offset},
};

use self::{matched::Matched, roster::Roster};
use crate::{
    domain::Domain,
    matcher::crowd::Progress,
    messages::Change,
    worker::{Outbox, Received, Worker},
};

/// Entries that are read from the log at once.
const PAGE: usize = 1_000;
/// How long others wait for a definition at a time.
const SLICE: Duration = Duration::from_millis(20);

/// The worker of the stage `transport-manager`.
pub struct TransportManager {
    domain: Domain,
    roster: Roster,
    /// How far each application is matched.
    matched: HashMap<AppId, Matched>,
    /// The entries that are not wholly taken in. Of their applications nothing is matched until then.
    begun: BTreeMap<AppId, Arc<Entry>>,
    /// How long to go on with one of them at a time.
    slice: Duration,
    /// The applications that the outbox is about. It was lost, if they are still here when the next one is begun.
    telling: Vec<AppId>,
}

impl TransportManager {
    /// Loads every subscription and connection of the applications whose changes come by a queue, before it gives a worker that
    /// matches.
    pub async fn open(domain: Domain, queue: String) -> Result<Self> {
        let roster = Roster::open(domain.clone(), queue).await?;
        Ok(Self { domain, roster, matched: HashMap::new(), begun: BTreeMap::new(), slice: SLICE, telling: Vec::new() })
    }

    fn begin(&mut self) {
        for app in self.telling.drain(..) {
            if let Some(matched) = self.matched.get_mut(&app) {
                matched.lose();
            }
        }
    }

    /// Takes entries of one application in order, filling holes from the change log. `upto`: what counts as matched where nothing
    /// is known.
    async fn take(&mut self, app: &AppId, upto: Offset, entries: &[Arc<Entry>], out: &mut Outbox) -> Result<()> {
        if self.begun.contains_key(app) {
            // They are read from the log when their turn comes.
            return Ok(());
        }
        let mut matched = self.matched.remove(app).unwrap_or_else(|| Matched::begin(upto));
        self.telling.push(app.clone());
        let outcome = self.match_all(&mut matched, app, entries, out).await;
        if outcome.is_err() {
            matched.lose();
        }
        self.keep(app, matched);
        outcome
    }

    /// Nothing is kept of an application that is gone.
    fn keep(&mut self, app: &AppId, matched: Matched) {
        if self.roster.matcher(app).is_some() {
            self.matched.insert(app.clone(), matched);
        }
    }

    async fn match_all(
        &mut self,
        matched: &mut Matched,
        app: &AppId,
        entries: &[Arc<Entry>],
        out: &mut Outbox,
    ) -> Result<()> {
        for entry in entries {
            if entry.offset <= matched.upto {
                continue;
            }
            if !matched.is_next(entry.offset) && !self.read_hole(matched, app, entry, out).await? {
                break;
            }
            failpoint::reach_about("transport-manager.match", || {
                entry.after().map(|document| document.id.to_string()).unwrap_or_default()
            })?;
            if !self.match_one(matched, app, entry, out) {
                break;
            }
        }
        matched.send(app, &self.roster, out);
        Ok(())
    }

    /// Everything in the log between what was matched and this entry. False when it takes longer.
    async fn read_hole(&mut self, matched: &mut Matched, app: &AppId, entry: &Entry, out: &mut Outbox) -> Result<bool> {
        if matched.upto.epoch != entry.offset.epoch {
            // What was shown may be gone.
            let begin = Offset::new(entry.offset.epoch, 0);
            let all = self.roster.channels_where(app, |listener| listener.since() < begin);
            matched.resync(&self.roster, app, all, None, begin);
            matched.upto = begin;
        }
        while !matched.is_next(entry.offset) {
            let Some(page) = self.read(app, matched.upto).await? else {
                self.leap(matched, app, before(entry.offset)).await?;
                return Ok(true);
            };
            let n_before = page.entries.partition_point(|read| read.entry.offset < entry.offset);
            if n_before == 0 {
                let message = format!("log of {app}: nothing between {} and {}", matched.upto, entry.offset);
                return Err(Error::new(ErrorKind::Unavailable, "read hole", message));
            }
            for read in page.entries.iter().take(n_before) {
                if !self.match_one(matched, app, &read.entry, out) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// What is logged above an offset; none when the log does not reach back to it any more.
    async fn read(&self, app: &AppId, since: Offset) -> Result<Option<Page>> {
        match self.domain.backends.change_log.read_logged(app, since, PAGE).await {
            Ok(page) => Ok(Some(page)),
            Err(error) if error.kind == ErrorKind::Gone => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes on above an offset. Nobody can be told what lies before: the workers see the gap, and say `resync_required`.
    async fn leap(&mut self, matched: &mut Matched, app: &AppId, upto: Offset) -> Result<()> {
        self.roster.leap(app).await?;
        matched.upto = upto;
        matched.lose();
        Ok(())
    }

    /// False when it takes longer: then it is among those that were begun.
    fn match_one(&mut self, matched: &mut Matched, app: &AppId, entry: &Arc<Entry>, out: &mut Outbox) -> bool {
        if self.roster.follow(app, entry) {
            return self.follow_on(matched, app, entry, out);
        }
        self.match_followed(matched, app, entry, out);
        true
    }

    fn match_followed(&self, matched: &mut Matched, app: &AppId, entry: &Entry, out: &mut Outbox) {
        matched.take(&self.roster, app, entry);
        if matched.is_full() {
            matched.send(app, &self.roster, out);
        }
    }

    /// Goes on with an entry that takes longer. Says whether it is done.
    fn follow_on(&mut self, matched: &mut Matched, app: &AppId, entry: &Arc<Entry>, out: &mut Outbox) -> bool {
        let progress = self.roster.go_on(app, self.slice);
        if matches!(progress, Progress::More) {
            self.begun.insert(app.clone(), entry.clone());
            return false;
        }
        self.begun.remove(app);
        if entry.offset <= matched.upto {
            return true; // Given up meanwhile.
        }
        if let Progress::Done(altered) = progress {
            matched.resync(&self.roster, app, altered, Some("rules"), entry.offset);
            self.match_followed(matched, app, entry, out);
        } else {
            // The workers see a gap, and find out by the log.
            self.match_followed(matched, app, entry, out);
            matched.lose();
        }
        true
    }

    /// Where the log ends of what has been applied, for [`look_at_head`](Self::look_at_head).
    async fn heads(&self, apps: Vec<AppId>) -> Result<Vec<(AppId, Offset)>> {
        let mut heads = Vec::with_capacity(apps.len());
        for app in apps {
            let marks = self.domain.backends.change_log.marks(&app).await?;
            heads.push((app, marks.applied));
        }
        Ok(heads)
    }

    /// What the log holds beyond what was announced, up to what was applied when the roster was brought up to date: a dropped
    /// message at its end would never show as a hole.
    async fn look_at_head(&mut self, app: &AppId, applied: Offset, out: &mut Outbox) -> Result<()> {
        while !self.begun.contains_key(app) {
            let upto = self.matched.get(app).map_or(applied, |matched| matched.upto);
            if upto >= applied {
                // To those that were told nothing for a while, also where there is nothing new.
                return self.take(app, applied, &[], out).await;
            }
            let since = if upto.epoch == applied.epoch { upto } else { Offset::new(applied.epoch, 0) };
            let Some(page) = self.read(app, since).await? else {
                let mut matched = Matched::begin(upto);
                self.leap(&mut matched, app, applied).await?;
                self.keep(app, matched);
                continue;
            };
            let mut entries: Vec<_> = page.entries.into_iter().map(|read| read.entry).collect();
            entries.truncate(entries.partition_point(|entry| entry.offset <= applied));
            if entries.is_empty() {
                return Ok(());
            }
            self.take(app, applied, &entries, out).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Worker for TransportManager {
    type Input = Change;

    async fn handle(&mut self, batch: &[Received<Change>], out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        let mut by_app: BTreeMap<&AppId, Vec<Arc<Entry>>> = BTreeMap::new();
        for change in batch {
            by_app.entry(&change.body.app).or_default().push(change.body.entry.clone());
        }
        self.roster.refresh_about(&by_app.keys().copied().collect::<Vec<_>>()).await?;
        for (app, entries) in by_app {
            let Some(first) = entries.first() else { continue };
            self.take(app, before(first.offset), &entries, out).await?;
        }
        Ok(())
    }

    async fn told(&mut self) -> Result<(), Error> {
        self.telling.clear();
        Ok(())
    }

    /// Nobody can be told what could not be matched: the subscribers of its model ask anew (all, where it is about no model).
    async fn dead(&mut self, change: &Received<Change>, _reason: &str, out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        let (app, entry) = (&change.body.app, &change.body.entry);
        let mut matched = self.matched.remove(app).unwrap_or_else(|| Matched::begin(before(entry.offset)));
        if entry.offset > matched.upto {
            if !matched.is_next(entry.offset) {
                matched.lose();
            }
            let lost = self.roster.channels_where(app, |listener| {
                listener.since() < entry.offset
                    && entry.model().is_none_or(|model| listener.model().is_none_or(|its| its == model))
            });
            matched.resync(&self.roster, app, lost, Some("internal"), entry.offset);
            matched.upto = entry.offset;
            matched.send(app, &self.roster, out);
            self.telling.push(app.clone());
        }
        self.keep(app, matched);
        Ok(())
    }

    async fn tick(&mut self, out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        self.roster.refresh().await?;
        let heads = self.heads(self.roster.connected()).await?;
        // After the marks: whoever is not known yet has connected, or subscribed, above them.
        self.roster.refresh().await?;
        for (app, applied) in heads {
            self.look_at_head(&app, applied, out).await?;
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.begun.is_empty()
    }

    async fn go_on(&mut self, out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        let Some((app, entry)) = self.begun.first_key_value().map(|(app, entry)| (app.clone(), entry.clone())) else {
            return Ok(());
        };
        let mut matched = self.matched.remove(&app).unwrap_or_else(|| Matched::begin(before(entry.offset)));
        self.telling.push(app.clone());
        let is_done = self.follow_on(&mut matched, &app, &entry, out);
        if is_done {
            matched.send(&app, &self.roster, out);
        }
        self.keep(&app, matched);
        if is_done {
            // What came meanwhile.
            let heads = self.heads(vec![app.clone()]).await?;
            self.roster.refresh_about(&[&app]).await?;
            for (app, applied) in heads {
                self.look_at_head(&app, applied, out).await?;
            }
        }
        Ok(())
    }
}

/// The offset before this one, in its epoch.
fn before(offset: Offset) -> Offset {
    Offset::new(offset.epoch, offset.position.saturating_sub(1))
}
