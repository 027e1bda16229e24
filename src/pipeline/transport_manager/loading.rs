//! Reads the crowd of an application from the registry, page by page: a million subscriptions are never there as records at once.
//!
//! Pages are read and decoded ahead, beside what is done with the page before. Users are read one by one while they are few; with
//! every full page of subscriptions whose users had to be looked up, a stretch of all users is read in their order, which
//! costs a fraction of looking each of them up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::{
    Error, ErrorKind, Registry, Result,
    model::{AppId, UserId, change::UserFacts},
    registry::{
        Kind,
        records::{self, Typed},
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
};
use tracing::{error, info};

use crate::{
    domain::Domain,
    matcher::crowd::{Compiled, Crowd},
};

/// Records that are read at once.
const PAGE: usize = 2_000;
/// Pages that wait to be taken in.
const AHEAD: usize = 2;
/// Pages of users that are read after a full page of subscriptions with unknown users.
const PAGES_OF_USERS: usize = 10;
const TELL_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Loading<'l> {
    domain: &'l Domain,
    app: &'l AppId,
    /// What rules know of users stays as of the matched place in the log, where it is known.
    before: Option<&'l Crowd>,
    crowd: Crowd,
    users: Option<Pages<records::User>>,
    /// Every user up to this one is in the crowd.
    users_upto: Option<UserId>,
    n_looked_up: usize,
    told: Instant,
}

impl<'l> Loading<'l> {
    /// `crowd`: an empty one, with its application.
    pub(super) fn new(domain: &'l Domain, app: &'l AppId, before: Option<&'l Crowd>, crowd: Crowd) -> Self {
        let (users, users_upto, n_looked_up, told) = (None, None, 0, Instant::now());
        Self { domain, app, before, crowd, users, users_upto, n_looked_up, told }
    }

    pub(super) async fn load(mut self) -> Result<Crowd> {
        let mut pages: Pages<records::Subscription> =
            Pages::read(self.domain.backends.registry.clone(), Kind::Subscription, self.app);
        let mut compiling: Option<JoinHandle<Vec<Compiled>>> = None;
        while let Some(page) = pages.next().await? {
            let n_before = self.n_looked_up;
            let is_full = page.is_full;
            let next = self.compile(page.records).await?;
            if let Some(compiled) = compiling.replace(next) {
                self.take(compiled).await?;
            }
            if is_full && self.n_looked_up > n_before {
                self.read_users().await?;
            }
            if self.told.elapsed() >= TELL_EVERY {
                info!(app = %self.app, subscriptions = self.crowd.n_subscriptions(), "loading the matcher");
                self.told = Instant::now();
            }
        }
        if let Some(compiled) = compiling {
            self.take(compiled).await?;
        }
        self.crowd.forget_idle_users();
        let mut pages: Pages<records::Connection> =
            Pages::read(self.domain.backends.registry.clone(), Kind::Connection, self.app);
        while let Some(page) = pages.next().await? {
            for connection in page.records {
                self.crowd.matcher.connect(&connection.device, &connection.queue);
            }
        }
        Ok(self.crowd)
    }

    /// Compiles subscriptions on another thread, while those before them are taken in.
    async fn compile(&mut self, records: Vec<records::Subscription>) -> Result<JoinHandle<Vec<Compiled>>> {
        let mut with_facts = Vec::with_capacity(records.len());
        for record in records {
            let facts = match &record.user {
                Some(user) => Some(self.shared_facts_of(user).await?),
                None => None,
            };
            with_facts.push((record, facts));
        }
        let application = self.crowd.application.clone();
        Ok(tokio::task::spawn_blocking(move || {
            let compile = |(record, facts): (_, Option<Arc<UserFacts>>)| {
                Compiled::new(record, application.as_deref(), &facts.unwrap_or_default())
            };
            with_facts.into_iter().map(compile).collect()
        }))
    }

    async fn take(&mut self, compiled: JoinHandle<Vec<Compiled>>) -> Result<()> {
        let internal = |error: JoinError| Error::new(ErrorKind::Internal, "compile subscriptions", error.to_string());
        for compiled in compiled.await.map_err(internal)? {
            self.crowd.take(compiled);
        }
        Ok(())
    }

    async fn shared_facts_of(&mut self, user: &UserId) -> Result<Arc<UserFacts>> {
        if let Some(facts) = self.crowd.shared_facts_of(user) {
            return Ok(facts);
        }
        let facts = self.facts_of(user).await?;
        self.crowd.expect_user(user, facts);
        Ok(self.crowd.shared_facts_of(user).unwrap_or_default())
    }

    async fn facts_of(&mut self, user: &UserId) -> Result<UserFacts> {
        if let Some(facts) = self.before.and_then(|before| before.facts_of(user)) {
            return Ok(facts.clone());
        }
        if self.users_upto.as_ref().is_some_and(|upto| user <= upto) {
            // There is no such user.
            return Ok(UserFacts::default());
        }
        self.n_looked_up += 1;
        self.domain.facts_of(self.app, user).await
    }

    async fn read_users(&mut self) -> Result<()> {
        let users =
            self.users.get_or_insert_with(|| Pages::read(self.domain.backends.registry.clone(), Kind::User, self.app));
        for _ in 0..PAGES_OF_USERS {
            let Some(page) = users.next().await? else { break };
            for user in page.records {
                let known = self.before.and_then(|before| before.facts_of(&user.id));
                let facts = known.map_or(user.facts, UserFacts::clone);
                self.crowd.expect_user(&user.id, facts);
                self.users_upto = Some(user.id);
            }
        }
        Ok(())
    }
}

/// The records of a kind, read ahead by a task of their own. It ends when this is dropped.
struct Pages<T> {
    pages: mpsc::Receiver<Result<Page<T>>>,
}

struct Page<T> {
    records: Vec<T>,
    is_full: bool,
}

impl<T: Typed + Send + 'static> Pages<T> {
    fn read(registry: Arc<dyn Registry>, kind: Kind, app: &AppId) -> Self {
        let (tx, pages) = mpsc::channel(AHEAD);
        let app = app.clone();
        tokio::spawn(async move {
            let mut after: Option<String> = None;
            loop {
                let page = registry.list(kind, Some(&app), "", after.as_deref(), PAGE).await;
                let is_last = page.as_ref().map_or(true, |page| page.len() < PAGE);
                after = page.as_ref().ok().and_then(|page| page.last()).map(|last| last.key.id.clone());
                let decoded = page.map(|page| Page { is_full: !is_last, records: decode(&page) });
                if tx.send(decoded).await.is_err() || is_last {
                    return;
                }
            }
        });
        Self { pages }
    }

    /// None after the last.
    async fn next(&mut self) -> Result<Option<Page<T>>> {
        self.pages.recv().await.transpose()
    }
}

fn decode<T: Typed>(page: &[nexxus_storage::registry::Record]) -> Vec<T> {
    let decoded = page.iter().filter_map(|record| {
        // The others go on.
        record.decode().inspect_err(|error| error!(key = %record.key.id, %error, "a record cannot be read")).ok()
    });
    decoded.collect()
}
