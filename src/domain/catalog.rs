//! The applications, compiled: what the registry keeps as JSON is parsed once and kept up to date from the registry's feed.

use std::{collections::HashMap, sync::Arc};

use nexxus_storage::{
    Error, ErrorKind, Registry, Result,
    model::{AppId, Rules, Schema},
    registry::{
        Feed, Kind, News,
        records::{self, decode},
    },
};
use parking_lot::RwLock;
use tokio::sync::Mutex;
use tracing::error;

use crate::service::{Failure, Stop};

/// An application with its schema and rules ready for use.
#[derive(Debug, PartialEq)]
pub struct Application {
    pub record: records::Application,
    pub schema: Schema,
    pub rules: Rules,
}

impl Application {
    /// Compiles a definition. `Corrupt` when it does not parse: definitions are checked before they are stored.
    pub fn compile(record: records::Application) -> Result<Self> {
        let corrupt = |what: &str, errors: Vec<nexxus_storage::model::FieldError>| {
            Error::new(ErrorKind::Corrupt, "compile application", format!("{what} of {}: {errors:?}", record.id))
        };
        let schema = Schema::parse(&record.schema).map_err(|errors| corrupt("schema", errors))?;
        let rules = if record.auth_enabled {
            Rules::parse(&record.rules, &schema).map_err(|errors| corrupt("rules", errors))?
        } else {
            Rules::open()
        };
        Ok(Self { record, schema, rules })
    }

    pub fn id(&self) -> &AppId {
        &self.record.id
    }
}

/// Every application that is not deleted.
pub struct Catalog {
    applications: RwLock<HashMap<AppId, Arc<Application>>>,
    feed: Mutex<Box<dyn Feed>>,
    registry: Arc<dyn Registry>,
}

impl Catalog {
    pub async fn open(registry: Arc<dyn Registry>) -> Result<Arc<Self>> {
        let feed = Mutex::new(registry.feed(&[Kind::Application]).await?);
        let catalog = Arc::new(Self { applications: RwLock::default(), feed, registry });
        catalog.reload().await?;
        Ok(catalog)
    }

    pub fn find(&self, app: &AppId) -> Option<Arc<Application>> {
        self.applications.read().get(app).cloned()
    }

    /// All of them, by id.
    pub fn list(&self) -> Vec<Arc<Application>> {
        let mut all: Vec<_> = self.applications.read().values().cloned().collect();
        all.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        all
    }

    /// Takes in every definition that was written before this call. Gives the applications that changed.
    pub async fn refresh(&self) -> Result<Vec<AppId>> {
        let mut feed = self.feed.lock().await;
        let news = feed.read().await?;
        if news.contains(&News::Reload) {
            self.reload().await?;
            return Ok(self.applications.read().keys().cloned().collect());
        }
        let mut changed = Vec::new();
        for news in news {
            let News::Written { key, value } = news else { continue };
            let Ok(app) = AppId::parse(&key.id) else { continue };
            match value {
                Some(value) => self.take(decode(&key, &value)?),
                None => self.drop_application(&app),
            }
            changed.push(app);
        }
        Ok(changed)
    }

    /// Keeps the catalog up to date until told to stop.
    pub async fn follow(self: Arc<Self>, stop: Stop) -> Result<(), Failure> {
        // A feed of its own, so that waiting holds no lock against a `refresh` that someone waits for.
        let mut wake = self.registry.feed(&[Kind::Application]).await?;
        self.refresh().await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = wake.changed() => changed?,
            }
            wake.read().await?;
            self.refresh().await?;
        }
    }

    async fn reload(&self) -> Result<()> {
        let all: Vec<records::Application> = self.registry.load_all(Kind::Application, None, "").await?;
        self.applications.write().clear();
        for record in all {
            self.take(record);
        }
        Ok(())
    }

    fn take(&self, record: records::Application) {
        if record.deleted {
            return self.drop_application(&record.id);
        }
        let id = record.id.clone();
        match Application::compile(record) {
            Ok(application) => {
                self.applications.write().insert(id, Arc::new(application));
            }
            // The others go on; this one answers as if it were not there, and the log names it.
            Err(error) => {
                error!(app = %id, %error, "an application cannot be used");
                self.drop_application(&id);
            }
        }
    }

    fn drop_application(&self, app: &AppId) {
        self.applications.write().remove(app);
    }
}
