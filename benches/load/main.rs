//! Whole-system load: starts the real release binary, speaks real HTTP and WebSocket, and prints what it measured.
//!
//! ```text
//! cargo bench --bench load -- creates            durable creates/s, 64 keep-alive clients, one subscriber
//! cargo bench --bench load -- latency            write → frame at 1,000 writes/s, get-by-id beside it
//! cargo bench --bench load -- start              start to ready: on nothing, on 1 M documents, after a kill -9; idle memory
//! cargo bench --bench load -- resume             one device comes back to 100,000 missed changes, 1,000 of them its own
//! cargo bench --bench load -- storm              10,000 devices come back at once after a restart
//! cargo bench --bench load -- slow               10 of 1,000 subscribers stop reading for 20 s at 2,000 changes/s
//! cargo bench --bench load -- backup             backups of 1 M documents while 2,000/s are written, and the restore
//! cargo bench --bench load -- filtered           writes/s with 10,000 filtered subscribers, one hit each, against 1
//! cargo bench --bench load -- fan-out            one change to 5,000 subscribers; saturation with 1,000
//! cargo bench --bench load -- idle               memory of 10,000 idle subscribed connections
//! cargo bench --bench load -- subscriptions      start to ready with 1 M filtered subscriptions; memory of each
//! ```
//!
//! With `NEXXUS_LOAD_CORE=0` the server runs on that core alone. Many connections need as many open files: `ulimit -n`.
//!
//! The generator runs on the same machine as the server: figures are of both together. Say the machine's load beside them.

mod backups;
mod client;
mod crowds;
mod returning;
mod scenarios;
mod server;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
    /// Given by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Scenario {
    /// Durable creates a second, closed loop.
    Creates {
        #[arg(long, default_value_t = 64)]
        clients: usize,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// From the write to its frame, at a paced rate, with reads beside it.
    Latency {
        #[arg(long, default_value_t = 1000)]
        rate: u64,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// One device resumes over many missed changes.
    Resume {
        #[arg(long, default_value_t = 100_000)]
        missed: u64,
        /// One in so many is its own.
        #[arg(long, default_value_t = 100)]
        own_each: u64,
    },
    /// Many devices resume at once after a restart.
    Storm {
        #[arg(long, default_value_t = 10_000)]
        devices: u64,
        #[arg(long, default_value_t = 1_000)]
        missed: u64,
    },
    /// Some subscribers stop reading.
    Slow {
        #[arg(long, default_value_t = 1_000)]
        subscribers: u64,
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
    },
    /// Backups beside paced writes, against the same writes without.
    Backup {
        #[arg(long, default_value_t = 1_000_000)]
        documents: u64,
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
    },
    /// Start to ready, on nothing and on many documents; memory of the idle server.
    Start {
        #[arg(long, default_value_t = 1_000_000)]
        documents: u64,
    },
    /// What filtered subscribers cost a write.
    Filtered {
        #[arg(long, default_value_t = 10_000)]
        subscribers: usize,
        #[arg(long, default_value_t = 8)]
        seconds: u64,
    },
    /// One change to all subscribers of a channel, and as many as go.
    FanOut {
        #[arg(long, default_value_t = 5_000)]
        subscribers: usize,
        #[arg(long, default_value_t = 1_000)]
        saturated: usize,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Memory of idle subscribed connections.
    Idle {
        #[arg(long, default_value_t = 10_000)]
        subscribers: usize,
    },
    /// Start to ready with many subscriptions, and their memory.
    Subscriptions {
        #[arg(long, default_value_t = 1_000_000)]
        count: usize,
        #[arg(long, default_value_t = 1)]
        per_device: usize,
    },
}

#[tokio::main]
async fn main() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load of the machine before: {}", load.trim());
    match Arguments::parse().scenario {
        Scenario::Creates { clients, seconds, repeat } => {
            for _ in 0..repeat {
                scenarios::creates(clients, seconds).await;
            }
        }
        Scenario::Latency { rate, seconds, repeat } => {
            for _ in 0..repeat {
                scenarios::latency(rate, seconds).await;
            }
        }
        Scenario::Resume { missed, own_each } => returning::resume(missed, own_each).await,
        Scenario::Storm { devices, missed } => returning::storm(devices, missed).await,
        Scenario::Slow { subscribers, rate } => returning::slow(subscribers, rate).await,
        Scenario::Backup { documents, rate } => backups::backup(documents, rate).await,
        Scenario::Start { documents } => scenarios::start(documents).await,
        Scenario::Filtered { subscribers, seconds } => crowds::filtered(subscribers, seconds).await,
        Scenario::FanOut { subscribers, saturated, seconds } => crowds::fan_out(subscribers, saturated, seconds).await,
        Scenario::Idle { subscribers } => crowds::idle(subscribers).await,
        Scenario::Subscriptions { count, per_device } => crowds::subscriptions(count, per_device).await,
    }
}
