//! The transport manager: finds who must hear of each change, and hands the frames to the transport workers that hold them.
//!
//! Before it matches a batch it brings its matchers up to the registry. Positions are dense per application: it takes exactly
//! the next one, drops lower ones, and reads a hole from the change log before it goes on. What it sends says what it covers,
//! so no message to a transport is precious: a worker that misses one sees the gap and reads the change log itself.

mod matched;
mod roster;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use nexxus_storage::{
    Error, ErrorKind, Result,
    model::{AppId, Entry},
};

use self::{matched::Matched, roster::Roster};
use crate::{
    domain::Domain,
    messages::Change,
    worker::{Outbox, Received, Worker},
};

/// The worker of the stage `transport-manager`.
pub struct TransportManager {
    domain: Domain,
    roster: Roster,
    matched: HashMap<AppId, Matched>,
}

impl TransportManager {
    /// Loads every subscription and connection before it gives a worker that matches.
    pub async fn open(domain: Domain) -> Result<Self> {
        let roster = Roster::open(&domain).await?;
        Ok(Self { domain, roster, matched: HashMap::new() })
    }

    /// Takes entries of one application in order, filling holes from the change log.
    async fn take(&mut self, app: &AppId, entries: &[Arc<Entry>], out: &mut Outbox) -> Result<()> {
        let mut matched = match self.matched.remove(app) {
            Some(matched) => matched,
            None => Matched::begin(&self.domain, app, entries).await?,
        };
        let outcome = self.match_all(&mut matched, app, entries, out).await;
        if outcome.is_ok() {
            self.matched.insert(app.clone(), matched);
        } else {
            // Tried again from where it stood: workers see the gap that this may leave, and read the change log.
            self.matched.insert(app.clone(), matched.forgotten());
        }
        outcome
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
            if !matched.is_next(entry.offset) {
                self.read_hole(matched, app, entry).await?;
            }
            if matched.is_next(entry.offset) {
                self.match_one(matched, app, entry)?;
            }
        }
        matched.send(app, &self.roster, out);
        Ok(())
    }

    /// Everything in the log between what was matched and this entry.
    async fn read_hole(&mut self, matched: &mut Matched, app: &AppId, entry: &Entry) -> Result<()> {
        if matched.upto.epoch != entry.offset.epoch {
            matched.begin_epoch(entry.offset);
        }
        loop {
            match self.domain.backends.change_log.read_logged(app, matched.upto, 1_000).await {
                Ok(page) => {
                    let entries: Vec<_> =
                        page.entries.into_iter().take_while(|read| read.entry.offset < entry.offset).collect();
                    if entries.is_empty() {
                        return Ok(());
                    }
                    for read in entries {
                        self.match_one(matched, app, &read.entry)?;
                    }
                }
                // Trimmed: nobody can be told any more; the workers' own catch-up says `resync_required`.
                Err(error) if error.kind == ErrorKind::Gone => {
                    matched.skip_to_before(entry.offset);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn match_one(&mut self, matched: &mut Matched, app: &AppId, entry: &Arc<Entry>) -> Result<()> {
        self.roster.follow_log(app, entry, matched)?;
        matched.take(&self.roster, app, entry);
        Ok(())
    }

    /// What the log holds beyond what was announced: a dropped message at its end would never show as a hole.
    async fn look_at_heads(&mut self, out: &mut Outbox) -> Result<()> {
        let apps: Vec<AppId> = self.roster.applications();
        for app in apps {
            let marks = self.domain.backends.change_log.marks(&app).await?;
            let upto = self.matched.get(&app).map(|matched| matched.upto);
            let since = match upto {
                Some(upto) if upto < marks.applied => upto,
                Some(_) => {
                    self.take(&app, &[], out).await?;
                    continue;
                }
                None => marks.applied,
            };
            let page = match self.domain.backends.change_log.read(&app, since, 1_000).await {
                Ok(page) => page,
                Err(error) if error.kind == ErrorKind::Gone => continue,
                Err(error) => return Err(error),
            };
            let entries: Vec<_> = page.entries.into_iter().map(|read| read.entry).collect();
            self.take(&app, &entries, out).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Worker for TransportManager {
    type Input = Change;

    async fn handle(&mut self, batch: &[Received<Change>], out: &mut Outbox) -> Result<(), Error> {
        self.roster.refresh(&self.domain).await?;
        let mut by_app: BTreeMap<&AppId, Vec<Arc<Entry>>> = BTreeMap::new();
        for change in batch {
            by_app.entry(&change.body.app).or_default().push(change.body.entry.clone());
        }
        for (app, entries) in by_app {
            self.take(app, &entries, out).await?;
        }
        Ok(())
    }

    /// Nobody can be told what could not be matched: the subscribers of its model ask anew.
    async fn dead(&mut self, change: &Received<Change>, _reason: &str, out: &mut Outbox) -> Result<(), Error> {
        let (app, entry) = (&change.body.app, &change.body.entry);
        let mut matched = match self.matched.remove(app) {
            Some(matched) => matched,
            None => Matched::begin(&self.domain, app, std::slice::from_ref(entry)).await?,
        };
        if entry.offset > matched.upto {
            matched.give_up(&self.roster, app, entry);
            matched.send(app, &self.roster, out);
        }
        self.matched.insert(app.clone(), matched);
        Ok(())
    }

    async fn tick(&mut self, out: &mut Outbox) -> Result<(), Error> {
        self.roster.refresh(&self.domain).await?;
        self.look_at_heads(out).await
    }
}
