//! The command line (contract §10). All commands but `serve`, `config` and `completions` are clients of the HTTP API.

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A realtime synchronisation backend: a REST API, durable documents, and every change pushed to the devices that subscribed to
/// it.
#[derive(Debug, Parser)]
#[command(name = "nexxus", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::Serve),
}

/// What a command ends with when it does not succeed.
#[derive(Debug)]
pub enum Exit {
    /// It failed: exit code 1.
    Failed(String),
    /// It was called wrongly, or the configuration is wrong: exit code 2.
    Usage(String),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(serve) => serve::run(serve),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Failed(why)) => {
            eprintln!("nexxus: {why}");
            ExitCode::from(1)
        }
        Err(Exit::Usage(why)) => {
            eprintln!("nexxus: {why}");
            ExitCode::from(2)
        }
    }
}
