//! The contract on a server and on a cluster, and what is particular to Redis.

use async_trait::async_trait;

use super::*;
use crate::{
    conformance::registry::Subject,
    open::RedisSettings,
    redis::tests::{connect, settings},
    registry_conformance,
};

struct OnRedis {
    settings: RedisSettings,
    registry: Arc<RedisRegistry>,
}

impl OnRedis {
    async fn new(cluster: bool) -> Self {
        let settings = settings(cluster);
        let registry = Arc::new(RedisRegistry::open(connect(&settings).await).await.expect("a registry"));
        Self { settings, registry }
    }
}

#[async_trait]
impl Subject for OnRedis {
    fn registry(&self) -> Arc<dyn Registry> {
        self.registry.clone()
    }

    /// Another process on the same servers.
    async fn crash(&mut self) {
        self.registry = Arc::new(RedisRegistry::open(connect(&self.settings).await).await.expect("a registry"));
    }
}

registry_conformance!(on_one_server, || OnRedis::new(false));
registry_conformance!(on_a_cluster, || OnRedis::new(true));
