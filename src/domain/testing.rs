//! Ground for tests of the domain: the real embedded backends in a directory of their own, without any worker.

use std::sync::Arc;

use nexxus_storage::{
    model::{AppId, ChangeId, DeviceId, Document, Entry, Event, Offset, Timestamp, change::UserFacts},
    registry::{
        Expect,
        records::{self, User},
    },
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Application, Catalog, Domain, Identified, Identity, users::Login, users::NewUser};
use crate::{
    config::{Config, Running, Sources},
    messages::{Routes, route::Route},
    service::Readiness,
};

pub(crate) struct Ground {
    pub(crate) domain: Domain,
    _dir: TempDir,
}

impl Ground {
    pub(crate) async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let flag = |key: &str, value: &str| ("--test".to_owned(), key.to_owned(), value.to_owned());
        let flags = vec![
            flag("data.dir", &dir.path().to_string_lossy()),
            flag("data.segment_bytes", "8MiB"),
            flag("data.reserve", "0"),
            flag("limits.subscriptions_per_device", "3"),
        ];
        let sources = Sources { file: None, environment: Vec::new(), flags };
        let (config, layers) = Config::load(&sources).expect("a configuration");
        let config = Arc::new(Running::begin(config, layers));
        let backends = nexxus_storage::open(config.now().storage()).await.expect("backends");
        let catalog = Catalog::open(backends.registry.clone()).await.expect("a catalog");
        let identity = Identity::open(backends.registry.clone(), config.clone()).await.expect("an identity");
        let routes = Routes { writer: Route::new("writer", 1), transport_manager: Route::new("transport-manager", 1) };
        let domain = Domain {
            config,
            backends,
            catalog,
            identity,
            routes: Arc::new(routes),
            readiness: Readiness::default(),
            cursors: Arc::default(),
            stopping: crate::service::Stop::new(),
        };
        Self { domain, _dir: dir }
    }

    /// Defines an application `a` as the writer would.
    pub(crate) async fn app(&self, settings: Value) -> Arc<Application> {
        let now = Timestamp::now();
        let mut definition = json!({
            "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "createdAt": now, "updatedAt": now,
            "offset": Offset::new(1, 0), "rules": {},
            "schema": { "note": {
                "text": { "type": "string", "filterable": true }, "secret": { "type": "string", "hidden": true },
            }},
        });
        for (name, value) in settings.as_object().expect("an object") {
            definition[name] = value.clone();
        }
        let record: records::Application = serde_json::from_value(definition).expect("a definition");
        let application = Application::compile(record.clone()).expect("an application");
        for (name, model) in &application.schema.models {
            self.domain.backends.documents.define(&record.id, name, &model.filterable()).await.expect("defined");
        }
        self.domain.backends.registry.put(&record, Expect::Anything).await.expect("written");
        self.domain.catalog.refresh().await.expect("refreshed");
        self.domain.catalog.find(&record.id).expect("an application")
    }

    /// Logs and applies a new document as the writer would; gives its offset.
    pub(crate) async fn create(&self, app: &Application, id: &str, owner: Option<&User>, fields: Value) -> Offset {
        let now = Timestamp::now();
        let document = Document {
            app: app.id().clone(),
            model: "note".parse().expect("a name"),
            id: id.parse().expect("an id"),
            user: owner.map(|owner| owner.id.clone()),
            created_at: now,
            updated_at: now,
            version: 1,
            fields: fields.as_object().expect("an object").clone(),
        };
        let backends = &self.domain.backends;
        let tail = backends.change_log.marks(app.id()).await.expect("marks").head;
        let offset = if tail == Offset::default() { Offset::new(1, 1) } else { tail.next() };
        let entry = Entry { offset, change_id: ChangeId::generate(), time: now, event: Event::Created { document } };
        let logged = backends.change_log.append(app.id(), tail, vec![entry]).await.expect("logged");
        backends.documents.apply(app.id(), &logged).await.expect("applied");
        backends.change_log.mark_applied(app.id(), offset).await.expect("marked");
        offset
    }

    pub(crate) async fn register(&self, app: &Application, name: &str) -> (User, Login) {
        let new = NewUser {
            username: name.to_owned(),
            password: format!("{name}-password"),
            user_type: None,
            details: Map::new(),
        };
        let login = self.domain.register_user(app, new, None).await.expect("registered");
        let user = self.domain.user_named(app.id(), name).await.expect("read").expect("a user");
        (user, login)
    }

    pub(crate) async fn identify(
        &self,
        app: &Application,
        token: &str,
        device: Option<&str>,
    ) -> Result<Identified, u16> {
        let device = device.map(|device| DeviceId::parse(device).expect("an id"));
        let outcome = self.domain.identity.authenticate(app, Some(token), device.as_ref()).await;
        outcome.map_err(|problem| problem.status)
    }

    /// What the writer does when it applies a change of a user.
    pub(crate) async fn change_facts(&self, app: &AppId, user: &User, facts: UserFacts) {
        let user = self.domain.user(app, &user.id).await.expect("a user");
        let changed = User { facts, ..user };
        self.domain.backends.registry.put(&changed, Expect::Anything).await.expect("written");
    }
}
