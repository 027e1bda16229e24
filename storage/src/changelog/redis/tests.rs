//! The contract on a server and on a cluster, and what is particular to Redis.

use async_trait::async_trait;

use super::*;
use crate::{
    change_log_conformance,
    conformance::change_log::Subject,
    open::RedisSettings,
    redis::tests::{connect, settings},
};

const HISTORY: History = History { age: Duration::from_secs(3600), bytes: 1 << 30 };

struct OnRedis {
    settings: RedisSettings,
    log: RedisChangeLog,
}

impl OnRedis {
    async fn new(cluster: bool) -> Self {
        let settings = settings(cluster);
        let log = RedisChangeLog::new(connect(&settings).await, HISTORY);
        Self { settings, log }
    }
}

#[async_trait]
impl Subject for OnRedis {
    fn change_log(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.log.clone())
    }

    /// Another process on the same servers; who takes over an application first applies what is logged.
    async fn crash(&mut self) {
        self.log = RedisChangeLog::new(connect(&self.settings).await, HISTORY);
        for app in self.log.applications().await.expect("applications") {
            let head = self.log.marks(&app).await.expect("marks").head;
            self.log.mark_applied(&app, head).await.expect("apply what was logged");
        }
    }
}

change_log_conformance!(on_one_server, || OnRedis::new(false));
change_log_conformance!(on_a_cluster, || OnRedis::new(true));
