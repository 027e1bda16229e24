//! Which queue a message goes to: stage, and partition of the application.

use std::hash::Hasher;

use nexxus_storage::model::AppId;

/// The stages in the order in which a change passes them. The name of a stage is its queue, role, module and metric label.
pub const WRITER: &str = "writer";
/// The stage that finds who hears of a change: its name, and the usual name of its queue.
pub const TRANSPORT_MANAGER: &str = "transport-manager";
/// The stage that holds WebSocket connections: its name.
pub const WEBSOCKET: &str = "websocket";

/// Where the messages of each stage go. Applications are spread over the partitions of a stage by hash; with one partition the
/// queue has the plain name of the stage, with more it is `NAME.0`, `NAME.1`, ….
#[derive(Debug, Clone)]
pub struct Routes {
    /// Where commands go.
    pub writer: Route,
    /// Where changes go.
    pub transport_manager: Route,
}

/// The queues of a stage: one for each partition; an application's messages all go to the same one.
#[derive(Debug, Clone)]
pub struct Route {
    queue: String,
    partitions: u32,
}

impl Route {
    /// `partitions`: into how many queues the stage is split; at least one.
    pub fn new(queue: impl Into<String>, partitions: u32) -> Self {
        Self { queue: queue.into(), partitions: partitions.max(1) }
    }

    /// The queue for messages of this application.
    pub fn queue_of(&self, app: &AppId) -> String {
        let mut hasher = Fnv1a::default();
        hasher.write(app.as_str().as_bytes());
        self.queue_of_partition((hasher.finish() % u64::from(self.partitions)) as u32)
    }

    /// Every queue of the stage.
    pub fn queues(&self) -> Vec<String> {
        (0..self.partitions).map(|partition| self.queue_of_partition(partition)).collect()
    }

    fn queue_of_partition(&self, partition: u32) -> String {
        if self.partitions == 1 { self.queue.clone() } else { format!("{}.{partition}", self.queue) }
    }
}

/// FNV-1a, 64 bit (Fowler, Noll, Vo): the partition of an application must be the same in every process and release, which
/// the hashers of the standard library do not promise.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_keeps_its_partition() {
        let app = AppId::parse("tasks").expect("an id");
        assert_eq!(Route::new("writer", 1).queue_of(&app), "writer");
        assert_eq!(Route::new("writer", 16).queue_of(&app), "writer.13");
        assert_eq!(Route::new("writer", 2).queues(), ["writer.0", "writer.1"]);
    }
}
