//! Whole-system load: starts the real release binary, speaks real HTTP and WebSocket, and prints what it measured.
//!
//! ```text
//! cargo bench --bench load -- creates            durable creates/s, 64 keep-alive clients, one subscriber
//! cargo bench --bench load -- latency            write → frame at 1,000 writes/s, get-by-id beside it
//! cargo bench --bench load -- start              start to ready: on nothing, and on 1 M documents; idle memory
//! ```
//!
//! The generator runs on the same machine as the server: figures are of both together. Say the machine's load beside them.

mod client;
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
    /// Start to ready, on nothing and on many documents; memory of the idle server.
    Start {
        #[arg(long, default_value_t = 1_000_000)]
        documents: u64,
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
        Scenario::Start { documents } => scenarios::start(documents).await,
    }
}
