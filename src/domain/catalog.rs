//! The applications, compiled: what the registry keeps as JSON is parsed once and kept up to date from the registry's feed.

use std::{collections::HashMap, sync::Arc};

use nexxus_storage::{
    Error, ErrorKind, Registry, Result,
    model::{AppId, ModelName, Rules, Schema},
    registry::{
        Feed, Kind, News,
        records::{self, decode},
    },
};
use parking_lot::RwLock;
use tokio::sync::Mutex;
use tracing::error;

use super::outlast;
use crate::service::{Failure, Stop};

/// An application with its schema and rules ready for use.
#[derive(Debug, PartialEq)]
pub struct Application {
    /// The definition, as the registry keeps it.
    pub record: records::Application,
    /// Its models.
    pub schema: Schema,
    /// Who may do what; everybody everything, where the application has no users.
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

    /// The application's id.
    pub fn id(&self) -> &AppId {
        &self.record.id
    }

    /// Whether both show the same of a model to whoever subscribes to it.
    pub fn is_alike_for(&self, other: &Self, model: &ModelName) -> bool {
        self.record.auth_enabled == other.record.auth_enabled
            && self.schema.model(model.as_str()) == other.schema.model(model.as_str())
            && self.rules.reads_alike(&other.rules, model)
    }

    /// Whether both show the same of a model, but for whom: filters mean the same.
    pub fn differs_in_rules_for(&self, other: &Self, model: &ModelName) -> bool {
        let both = self.schema.model(model.as_str()).zip(other.schema.model(model.as_str()));
        self.record.auth_enabled == other.record.auth_enabled && both.is_some_and(|(one, other)| one == other)
    }
}

/// Every application that is not deleted.
pub struct Catalog {
    applications: RwLock<HashMap<AppId, Arc<Application>>>,
    source: Mutex<Source>,
    registry: Arc<dyn Registry>,
}

struct Source {
    feed: Box<dyn Feed>,
    /// Something that the feed told was not taken in.
    is_stale: bool,
}

impl Catalog {
    /// Reads every definition. [`Catalog::follow`] keeps it up to date after that.
    pub async fn open(registry: Arc<dyn Registry>) -> Result<Arc<Self>> {
        let source = Mutex::new(Source { feed: registry.feed(&[Kind::Application]).await?, is_stale: false });
        let catalog = Arc::new(Self { applications: RwLock::default(), source, registry });
        catalog.reload().await?;
        Ok(catalog)
    }

    /// The application as last taken in; none where there is none or it was deleted.
    pub fn find(&self, app: &AppId) -> Option<Arc<Application>> {
        self.applications.read().get(app).cloned()
    }

    /// All of them, by id.
    pub fn list(&self) -> Vec<Arc<Application>> {
        let mut all: Vec<_> = self.applications.read().values().cloned().collect();
        all.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        all
    }

    /// Takes in every definition that was written before this call.
    pub async fn refresh(&self) -> Result<()> {
        let mut source = self.source.lock().await;
        let news = source.feed.read().await?;
        // What was read and not taken in, because of an error or because the caller is gone, the feed does not tell again.
        if std::mem::replace(&mut source.is_stale, true) || news.contains(&News::Reload) {
            self.reload().await?;
        } else {
            news.into_iter().for_each(|news| self.take_news(news));
        }
        source.is_stale = false;
        Ok(())
    }

    fn take_news(&self, news: News) {
        let News::Written { key, value } = news else { return };
        let Ok(app) = AppId::parse(&key.id) else { return };
        let application = value.and_then(|value| match decode(&key, &value) {
            Ok(record) => compile(record),
            Err(error) => {
                error!(%app, %error, "a definition cannot be read");
                None
            }
        });
        let mut applications = self.applications.write();
        match application {
            Some(application) => drop(applications.insert(app, application)),
            None => drop(applications.remove(&app)),
        }
    }

    /// Keeps the catalog up to date until told to stop.
    pub async fn follow(self: Arc<Self>, stop: Stop) -> Result<(), Failure> {
        // A feed of its own, so that waiting holds no lock against a `refresh` that someone waits for.
        let mut wake = self.registry.feed(&[Kind::Application]).await?;
        loop {
            let following = async {
                self.refresh().await?;
                wake.changed().await?;
                wake.read().await
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                followed = following => if let Err(error) = followed {
                    outlast("the catalog", error).await?;
                },
            }
        }
    }

    async fn reload(&self) -> Result<()> {
        let all: Vec<records::Application> = self.registry.load_all(Kind::Application, None, "").await?;
        let all = all.into_iter().filter_map(|record| Some((record.id.clone(), compile(record)?))).collect();
        // At once: in between, applications would seem to be gone.
        *self.applications.write() = all;
        Ok(())
    }
}

/// None for what is deleted, and for what cannot be used: the others go on, this one answers as if it were not there, and the log
/// names it.
fn compile(record: records::Application) -> Option<Arc<Application>> {
    if record.deleted {
        return None;
    }
    let app = record.id.clone();
    Application::compile(record)
        .inspect_err(|error| error!(%app, %error, "an application cannot be used"))
        .ok()
        .map(Arc::new)
}
