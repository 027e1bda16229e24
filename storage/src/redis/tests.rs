//! What the tests on a real Redis share: where it is (`tests/cluster/up redis redis-cluster`), and a prefix of its own for each.

use super::Redis;
use crate::open::RedisSettings;

/// Settings for the server, or the cluster, of the tests. Where none runs the tests fail.
pub(crate) fn settings(cluster: bool) -> RedisSettings {
    let (variable, usual) = match cluster {
        false => ("NEXXUS_TEST_REDIS", "redis://127.0.0.1:26001"),
        true => ("NEXXUS_TEST_REDIS_CLUSTER", "redis://127.0.0.1:26011"),
    };
    RedisSettings {
        cluster,
        nodes: vec![std::env::var(variable).unwrap_or_else(|_| usual.to_owned())],
        ca_file: None,
        prefix: format!("test-{}", ulid::Ulid::generate()),
        may_lose: false,
    }
}

pub(crate) async fn connect(settings: &RedisSettings) -> Redis {
    Redis::connect(settings).await.expect("Redis: start it with tests/cluster/up redis redis-cluster")
}
