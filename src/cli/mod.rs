//! The command line (contract §10). All commands but `serve`, `restore`, `doctor`, `config` and `completions` are clients of the HTTP API.

mod applications;
mod backup;
mod client;
mod completions;
mod demo;
mod doctor;
mod documents;
mod greeting;
mod output;
mod progress;
mod queues;
mod serve;
mod settings;
mod tail;
mod transfer;
mod users;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::config::ConfigError;

/// A realtime synchronisation backend: a REST API, durable documents, and every change pushed to the devices that subscribed to
/// it.
#[derive(Debug, Parser)]
#[command(name = "nexxus", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    App(applications::App),
    User(users::User),
    Token(users::Token),
    Get(documents::Get),
    Query(documents::Query),
    Create(documents::Create),
    Patch(documents::Patch),
    Delete(documents::Delete),
    Tail(tail::Tail),
    Queue(queues::Queue),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Doctor(doctor::Doctor),
    Export(transfer::Export),
    Import(transfer::Import),
    Config(settings::Settings),
    Completions(completions::Completions),
}

/// Why a command ends without having done everything it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Exit {
    /// It failed: exit code 1.
    Failed(String),
    /// The server refused, with this problem: exit code 1.
    Refused(Value),
    /// It was called wrongly, or the configuration is wrong: exit code 2.
    Usage(String),
    /// Nobody reads what it prints any more (`nexxus tail … | head -1`): exit code 0.
    Unread,
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(serve) => serve::run(serve),
        Command::App(app) => client::run(app.run()),
        Command::User(user) => client::run(user.run()),
        Command::Token(token) => client::run(token.run()),
        Command::Get(get) => client::run(get.run()),
        Command::Query(query) => client::run(query.run()),
        Command::Create(create) => client::run(create.run()),
        Command::Patch(patch) => client::run(patch.run()),
        Command::Delete(delete) => client::run(delete.run()),
        Command::Tail(tail) => client::run(tail.run()),
        Command::Queue(queue) => client::run(queue.run()),
        Command::Backup(backup) => client::run(backup.run()),
        Command::Restore(restore) => restore.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Export(export) => client::run(export.run()),
        Command::Import(import) => client::run(import.run()),
        Command::Config(settings) => settings.run(),
        Command::Completions(completions) => completions.run(),
    };
    let (code, said) = match outcome {
        Ok(()) | Err(Exit::Unread) => return ExitCode::SUCCESS,
        Err(Exit::Failed(why)) => (1, why),
        Err(Exit::Refused(problem)) => (1, output::problem(&problem)),
        Err(Exit::Usage(why)) => (2, why),
    };
    eprintln!("nexxus: {said}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        for line in [
            "serve",
            "serve --role api,writer,transport-manager,websocket --data d --listen 127.0.0.1:0 --config f",
            "serve --demo",
            "app apply app.json",
            "app apply - --force",
            "app list --json",
            "app show tasks --url http://localhost:3000 --token t",
            "app delete tasks",
            "user add anna --app tasks --password secret --user-type editor --details {}",
            "user --app tasks list",
            "user show anna",
            "user passwd anna --password -",
            "user delete anna",
            "token create --user anna --device phone --ttl 30d",
            "get task 1",
            "query task --filter {} --sort -priority,createdAt --limit 5",
            "create task {}",
            "patch task 1 [] --device phone",
            "delete task 1",
            "tail task --filter @f.json --since last --json",
            "queue list",
            "queue dead list writer --after 1 --limit 10",
            "queue dead show writer 1",
            "queue dead retry writer 1 2",
            "queue dead drop writer --all",
            "backup nexxus.backup --json",
            "backup nexxus.backup --url http://localhost:3000 --token t",
            "restore nexxus.backup --data d",
            "export all.jsonl",
            "export --app tasks tasks.jsonl.zst --json",
            "import all.jsonl",
            "import tasks.jsonl.zst --notify",
            "restore nexxus.backup --config f --json",
            "doctor --data d",
            "doctor --repair --json --config f",
            "config check",
            "config show --json --config f",
            "completions bash",
        ] {
            let words = std::iter::once("nexxus").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}\n{error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "",
            "serve --role cook",
            "app",
            "user add",
            "token create",
            "query task --limit many",
            "token create --user anna --ttl soon",
            "queue dead retry writer",
            "queue dead drop writer 1 --all",
            "backup",
            "restore --data d",
            "export",
            "import --notify",
            "completions dos",
        ] {
            let words = std::iter::once("nexxus").chain(line.split(' ').filter(|word| !word.is_empty()));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}\n{error}");
        }
    }
}
