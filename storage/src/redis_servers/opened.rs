//! What of an installation stands on Redis: the registry, the change log, or both, over the same connections.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Redis;
use crate::{
    ChangeLog, Registry, Result,
    changelog::redis::{History, RedisChangeLog},
    open::{Settings, Shared},
    registry::redis::RedisRegistry,
};

/// How long a server may take to say that it is there.
const AILS_AFTER: Duration = Duration::from_secs(2);

pub(crate) struct OnRedis {
    redis: Redis,
    registry: Option<Arc<RedisRegistry>>,
    change_log: Option<RedisChangeLog>,
}

impl OnRedis {
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        let redis = Redis::connect(&settings.redis).await?;
        let registry = match &*settings.registry {
            "redis" => Some(Arc::new(RedisRegistry::open(redis.clone()).await?)),
            _ => None,
        };
        let history = History { age: settings.history_age, bytes: settings.history_bytes };
        let change_log = (settings.change_log == "redis").then(|| RedisChangeLog::new(redis.clone(), history));
        Ok(Self { redis, registry, change_log })
    }
}

#[async_trait]
impl Shared for OnRedis {
    fn registry(&self) -> Option<Arc<dyn Registry>> {
        self.registry.clone().map(|registry| registry as _)
    }

    fn change_log(&self) -> Option<Arc<dyn ChangeLog>> {
        self.change_log.clone().map(|log| Arc::new(log) as _)
    }

    async fn ailment(&self) -> Option<String> {
        self.redis.ailment(AILS_AFTER).await
    }

    fn statistics(&self) -> (&'static str, Value) {
        ("redis", json!({ "calls": self.redis.calls() }))
    }

    async fn close(&self) -> Result<()> {
        let registry = match &self.registry {
            Some(registry) => registry.close().await,
            None => Ok(()),
        };
        if let Some(change_log) = &self.change_log {
            change_log.close();
        }
        self.redis.close();
        registry
    }
}
