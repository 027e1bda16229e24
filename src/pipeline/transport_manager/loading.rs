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
    Error, ErrorKind, Registry, Result, failpoint,
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
        failpoint::wait_at("transport-manager.load", || self.app.to_string()).await;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nexxus_storage::{
        model::{Channel, Filter, Offset},
        registry::{Expect, Key, Write},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{Application, testing::Ground};

    /// More than two pages of subscriptions, and more users than are looked up one by one.
    const N: usize = 2 * PAGE + 100;

    fn user_of(n: usize) -> String {
        // Not in the order of the devices.
        format!("user-{:05}", n * 7 % N)
    }

    fn subscription(app: &Application, n: usize) -> records::Subscription {
        let note = app.schema.model("note").expect("a model");
        let filter = Filter::parse(&json!({ "text": format!("text {n}") }), note, false).expect("a filter");
        let canonical: Value = serde_json::from_str(filter.canonical()).expect("JSON");
        let mut channel = Channel {
            app: app.id().clone(),
            model: "note".parse().expect("a name"),
            id: None,
            user: None,
            filter: Some(Arc::new(filter)),
        };
        // One whose model is gone, and one that listens to all.
        match n {
            1 => channel.model = "gone".parse().expect("a name"),
            2 => channel.filter = None,
            _ => {}
        }
        serde_json::from_value(json!({
            "app": app.id(), "id": format!("{n:032x}"), "device": format!("device-{n:05}"), "user": user_of(n), "model": channel.model,
            "filter": channel.filter.as_ref().map(|_| canonical), "channel": channel.to_string(), "since": Offset::new(1, n as u64),
        }))
        .expect("a subscription")
    }

    fn user(app: &Application, n: usize) -> records::User {
        serde_json::from_value(json!({
            "app": app.id(), "id": user_of(n), "username": user_of(n), "userType": format!("type-{}", n % 3), "details": {},
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        }))
        .expect("a user")
    }

    /// The users whose number ends with 9 have no record.
    async fn fill(ground: &Ground, app: &Application) {
        let mut writes = Vec::new();
        for n in 0..N {
            writes.push(Write::put(&subscription(app, n), Expect::Anything).expect("a record"));
            if n % 10 != 9 {
                writes.push(Write::put(&user(app, n), Expect::Anything).expect("a record"));
            }
        }
        let idle = records::User { id: "idle".parse().expect("an id"), ..user(app, 0) };
        writes.push(Write::put(&idle, Expect::Anything).expect("a record"));
        let unreadable = Key::new(Kind::Subscription, Some(app.id()), "device-00000/unreadable");
        writes.push(Write { key: unreadable, value: Some("{}".into()), expect: Expect::Anything });
        for part in writes.chunks(1_000) {
            ground.domain.backends.registry.write(part.to_vec()).await.expect("written");
        }
        for n in (0..N).step_by(2) {
            let connection: records::Connection = serde_json::from_value(
                json!({ "app": app.id(), "device": format!("device-{n:05}"), "queue": "q1", "generation": 1 }),
            )
            .expect("a connection");
            ground.domain.backends.registry.put(&connection, Expect::Anything).await.expect("written");
        }
    }

    #[tokio::test]
    async fn everybody_who_listens_is_there_as_the_registry_has_them() {
        let ground = Ground::open().await;
        let app = ground.app(json!({})).await;
        fill(&ground, &app).await;
        let load = async |before| {
            let loading = Loading::new(&ground.domain, app.id(), before, Crowd::of(Some(app.clone())));
            loading.load().await.expect("loaded")
        };
        let crowd = load(None).await;
        assert_eq!(crowd.n_subscriptions(), N, "all but the unreadable one");

        let heard = parking_lot::Mutex::new(BTreeMap::new());
        let channels = crowd.channels_where(|listener| {
            let record = listener.record().expect("a record").into_owned();
            heard.lock().insert(record.id.to_string(), record);
            true
        });
        let expected: BTreeMap<_, _> =
            (0..N).step_by(2).map(|n| subscription(&app, n)).map(|record| (record.id.to_string(), record)).collect();
        assert_eq!(channels.len(), expected.len(), "those who are connected");
        assert!(heard.into_inner() == expected);

        for n in 0..N {
            let id = user_of(n).parse().expect("an id");
            let facts = if n % 10 == 9 { UserFacts::default() } else { user(&app, n).facts };
            assert_eq!(crowd.facts_of(&id), Some(&facts), "{n}");
        }
        assert_eq!(crowd.facts_of(&"idle".parse().expect("an id")), None);

        // What rules know of a user stays as of the log, whatever the registry has meanwhile.
        let changed = records::User { facts: UserFacts::default(), ..user(&app, 0) };
        ground.domain.backends.registry.put(&changed, Expect::Anything).await.expect("written");
        let again = load(Some(&crowd)).await;
        assert_eq!(again.facts_of(&changed.id), Some(&user(&app, 0).facts));
        assert_eq!(again.n_subscriptions(), N);
    }
}
