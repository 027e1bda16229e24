//! What stands in the records of a journal, and of which applications' changes some may be gone.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    Error, ErrorKind, Result,
    changelog::embedded::{codec, heads_in},
    journal::{Kind, Record, doctor::Loss},
    model::{AppId, Offset},
    queue::embedded::codec::peek,
    registry::sled::doctor::keys_written,
};

/// What of one application's change log can be read.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFound {
    pub application: AppId,
    pub epoch: u32,
    /// Entries of that epoch.
    pub entries: u64,
    /// The first and the last position among them; 0: there is none.
    pub first: u64,
    pub last: u64,
}

/// What of one queue can be read.
#[derive(Debug, Clone, Serialize)]
pub struct QueueFound {
    pub queue: String,
    /// Messages, settled ones among them.
    pub messages: u64,
}

#[derive(Default)]
pub(super) struct Streams {
    pub(super) n_records: u64,
    /// Records that are whole and cannot be decoded.
    pub(super) n_unreadable: u64,
    logs: BTreeMap<AppId, Log>,
    queues: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Log {
    epoch: u32,
    entries: u64,
    first: u64,
    last: u64,
    /// The head that was told.
    head: u64,
    /// Entries are missing between others, or at the end.
    has_gap: bool,
    /// The last record that speaks of it.
    seen_at: u64,
}

impl Log {
    fn enter(&mut self, epoch: u32) {
        if epoch > self.epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    fn add(&mut self, offset: Offset) {
        self.enter(offset.epoch);
        if offset.epoch < self.epoch {
            return;
        }
        self.has_gap |= self.entries > 0 && offset.position != self.last + 1;
        if self.entries == 0 {
            self.first = offset.position;
        }
        self.entries += 1;
        self.last = offset.position;
    }
}

impl Streams {
    pub(super) fn add(&mut self, record: &Record) {
        self.n_records += 1;
        if self.take(record).is_err() {
            self.n_unreadable += 1;
        }
    }

    fn take(&mut self, record: &Record) -> Result<()> {
        match record.kind {
            Kind::LogEntry => {
                let head = codec::peek(&record.payload)?;
                let app = AppId::parse(head.app)
                    .map_err(|error| Error::new(ErrorKind::Corrupt, "examine", error.to_string()))?;
                let log = self.logs.entry(app).or_default();
                log.add(head.offset);
                log.seen_at = record.sequence;
            }
            Kind::LogState => {
                for (app, head) in heads_in(&record.payload)? {
                    let log = self.logs.entry(app).or_default();
                    log.enter(head.epoch);
                    if head.epoch == log.epoch {
                        log.head = log.head.max(head.position);
                    }
                    log.seen_at = record.sequence;
                }
            }
            Kind::QueueMessage => *self.queues.entry(peek(&record.payload)?.0.to_owned()).or_default() += 1,
            Kind::Registry => drop(keys_written(record)?),
            Kind::QueueState => {}
        }
        Ok(())
    }

    /// The applications that these losses may have cost changes: entries are missing between what there is, or nothing tells that
    /// there were none at the end. What is missing before the oldest entry is as good as released.
    pub(super) fn affected(&self, losses: &[Loss]) -> Vec<AppId> {
        let is_affected = |log: &Log| {
            let lacks_its_end = log.entries > 0 && log.head > log.last;
            log.has_gap || lacks_its_end || losses.iter().any(|loss| loss.first > log.seen_at)
        };
        let logs = self.logs.iter().filter(|(_, log)| !losses.is_empty() && is_affected(log));
        logs.map(|(app, _)| app.clone()).collect()
    }

    pub(super) fn logs(&self) -> Vec<LogFound> {
        let found = |(app, log): (&AppId, &Log)| LogFound {
            application: app.clone(),
            epoch: log.epoch,
            entries: log.entries,
            first: log.first,
            last: log.last,
        };
        self.logs.iter().map(found).collect()
    }

    pub(super) fn queues(&self) -> Vec<QueueFound> {
        let found = |(queue, messages): (&String, &u64)| QueueFound { queue: queue.clone(), messages: *messages };
        self.queues.iter().map(found).collect()
    }
}
