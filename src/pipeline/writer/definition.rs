//! Commands about an application and its users rather than its documents: decided and applied in the same order, so that every
//! change is judged by the schema, the rules and the user of its place in the log.

use std::sync::Arc;

use nexxus_storage::{
    Error, ErrorKind, Result,
    model::{Entry, Event, FieldError, ModelName, Problem, Schema, UserId, change::UserFacts, problem::ProblemKind},
    registry::{
        Expect, Key, Kind, Write,
        records::{self, UserDevice, UserName},
    },
};
use serde_json::Value;

use super::{
    lane::{Lane, no_application, refusal},
    purge,
};
use crate::{domain::Application, messages::Command, worker::Received};

/// How often a conditional write of a registry record is tried when others write the same record.
const RACES: usize = 20;

impl Lane {
    pub(super) async fn define(
        &mut self,
        command: &Received<Command>,
        definition: &Value,
        forced: bool,
        new: bool,
    ) -> Result<Event> {
        let next: records::Application = match serde_json::from_value(definition.clone()) {
            Ok(next) => next,
            Err(error) => return Ok(refusal(command, invalid(error.to_string()))),
        };
        // Nothing is logged that cannot be applied.
        if let Err(error) = Application::compile(next.clone()) {
            return Ok(refusal(command, invalid(error.message)));
        }
        match (&self.application, new) {
            (Some(_), true) => {
                let problem = Problem::new(ProblemKind::Exists, format!("application {} exists already", self.app));
                return Ok(refusal(command, problem));
            }
            (None, false) => return Ok(refusal(command, no_application(&self.app))),
            (None, true) => self.begin_log().await?,
            (Some(current), false) => {
                let current = current.clone();
                if !forced && !next.deleted {
                    let conflicts = self.conflicts(&current, &next).await?;
                    if !conflicts.is_empty() {
                        let detail = "stored documents or open subscriptions stand against the new definition";
                        let problem = Problem::new(ProblemKind::Conflict, detail).with_errors(conflicts);
                        return Ok(refusal(command, problem));
                    }
                }
            }
        }
        let created_at = self.application.as_ref().map_or(self.now(), |current| current.record.created_at);
        let record = records::Application { created_at, updated_at: self.now(), ..next };
        let before = self.application.as_ref().and_then(|current| serde_json::to_value(&current.record).ok());
        match serde_json::to_value(&record) {
            Ok(definition) => Ok(Event::Defined { definition, before }),
            Err(error) => Ok(refusal(command, invalid(error.to_string()))),
        }
    }

    /// An application begins with an epoch of its own: offsets of others name nothing in it. One that is made again begins a new
    /// one: offsets of its former life name nothing any more.
    async fn begin_log(&mut self) -> Result<()> {
        let is_reborn = self.tail.is_some_and(|tail| tail != nexxus_storage::model::Offset::default());
        self.tail = Some(self.domain.backends.change_log.begin_epoch(&self.app).await?);
        if is_reborn {
            self.reborn = Some(self.now());
        }
        Ok(())
    }

    /// What in the new definition stands against stored documents or open subscriptions.
    async fn conflicts(&self, current: &Application, next: &records::Application) -> Result<Vec<FieldError>> {
        let Ok(schema) = Schema::parse(&next.schema) else {
            return Ok(vec![FieldError::new("/schema", "not a valid schema")]);
        };
        let mut conflicts = Vec::new();
        for conflict in current.schema.conflicts(&schema) {
            let model = conflict.path.split('/').nth(1).and_then(|name| ModelName::parse(name).ok());
            let concerns_documents = match model {
                Some(model) => self.domain.backends.documents.count(&self.app, &model).await? > 0,
                None => true,
            };
            if concerns_documents {
                conflicts.push(conflict.under("/schema"));
            }
        }
        conflicts.extend(self.subscriptions_against(&schema).await?);
        Ok(conflicts)
    }

    /// Subscriptions whose filter the new schema no longer allows.
    async fn subscriptions_against(&self, schema: &Schema) -> Result<Vec<FieldError>> {
        let registry = &self.domain.backends.registry;
        let subscriptions: Vec<records::Subscription> =
            registry.load_all(Kind::Subscription, Some(&self.app), "").await?;
        let mut conflicts = Vec::new();
        for subscription in subscriptions {
            let path = format!("/schema/{}", subscription.model);
            let fits = match (schema.model(subscription.model.as_str()), &subscription.filter) {
                (None, _) => Err("an open subscription is on this model".to_owned()),
                (Some(model), Some(filter)) => nexxus_storage::model::Filter::parse(filter, model, true)
                    .map(drop)
                    .map_err(|error| format!("an open subscription filters by it: {}", error.message)),
                (Some(_), None) => Ok(()),
            };
            if let Err(message) = fits {
                conflicts.push(FieldError::new(path, message));
            }
            if conflicts.len() >= 20 {
                break;
            }
        }
        Ok(conflicts)
    }

    pub(super) async fn apply_definition(&mut self, entry: &Entry, definition: &Value) -> Result<()> {
        let corrupt = |error: serde_json::Error| {
            Error::new(ErrorKind::Corrupt, "apply definition", format!("application {}", self.app)).with_source(error)
        };
        let mut record: records::Application = serde_json::from_value(definition.clone()).map_err(corrupt)?;
        record.offset = entry.offset;
        let registry = self.domain.backends.registry.clone();
        let key = Key::application(&self.app);
        let mut stored: Option<(records::Application, u64)> = registry.load(&key).await?;
        if stored.as_ref().is_some_and(|(stored, _)| stored.offset >= record.offset) {
            return Ok(());
        }
        let deleted = record.deleted;
        if stored.as_ref().is_some_and(|(stored, _)| stored.deleted && !stored.purged) {
            // Made again before all of its former life was gone.
            purge::purge(&self.domain, &self.app, usize::MAX).await?;
            stored = registry.load(&key).await?;
        }
        let application = Application::compile(record.clone())?;
        for (name, model) in &application.schema.models {
            self.domain.backends.documents.define(&self.app, name, &model.filterable()).await?;
        }
        registry.put(&record, stored.map_or(Expect::Absent, |(_, revision)| Expect::Revision(revision))).await?;
        self.domain.catalog.refresh().await?;
        self.application = if deleted { None } else { Some(Arc::new(application)) };
        Ok(())
    }

    pub(super) async fn change_user(
        &mut self,
        command: &Received<Command>,
        user: &UserId,
        after: Option<&UserFacts>,
        expected: Option<&UserFacts>,
    ) -> Result<Event> {
        let key = Key::user(&self.app, user);
        let stored: Option<(records::User, u64)> = self.domain.backends.registry.load(&key).await?;
        let Some((stored, _)) = stored else {
            let problem = Problem::new(ProblemKind::NotFound, format!("there is no user {user}"));
            return Ok(refusal(command, problem));
        };
        if after == Some(&stored.facts) {
            return Ok(Event::Unchanged { document: None });
        }
        if expected.is_some_and(|expected| *expected != stored.facts) {
            let problem = Problem::new(ProblemKind::Conflict, format!("the user {user} was changed by somebody else"));
            return Ok(refusal(command, problem));
        }
        Ok(Event::UserChanged { user: user.clone(), before: Some(stored.facts), after: after.cloned() })
    }

    pub(super) async fn apply_user(&mut self, user: &UserId, after: Option<&UserFacts>) -> Result<()> {
        let Some(after) = after else { return self.remove_user(user).await };
        let registry = &self.domain.backends.registry;
        let key = Key::user(&self.app, user);
        for _ in 0..RACES {
            let stored: Option<(records::User, u64)> = registry.load(&key).await?;
            let Some((stored, revision)) = stored else { return Ok(()) };
            let changed = records::User { facts: after.clone(), updated_at: self.now(), ..stored };
            match registry.put(&changed, Expect::Revision(revision)).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => return outcome,
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "apply user", format!("user {user} is written by too many at once")))
    }

    async fn remove_user(&self, user: &UserId) -> Result<()> {
        let registry = &self.domain.backends.registry;
        let key = Key::user(&self.app, user);
        let Some((stored, _)) = registry.load::<records::User>(&key).await? else { return Ok(()) };
        let devices: Vec<UserDevice> =
            registry.load_all(Kind::UserDevice, Some(&self.app), &format!("{user}/")).await?;
        for device in devices {
            self.domain.remove_device(&self.app, &device.device).await.map_err(|problem| {
                Error::new(
                    ErrorKind::Unavailable,
                    "remove user",
                    format!("device {}: {}", device.device, problem.detail),
                )
            })?;
        }
        let mut removals = vec![Write::remove(key)];
        let name_key = Key::user_name(&self.app, &stored.username);
        let name: Option<(UserName, u64)> = registry.load(&name_key).await?;
        if name.is_some_and(|(name, _)| name.user == *user) {
            removals.push(Write::remove(name_key));
        }
        registry.write(removals).await
    }
}

fn invalid(detail: String) -> Problem {
    Problem::new(ProblemKind::InvalidDefinition, detail)
}
