//! `nexxus serve`: configuration, start, the addresses, run, drain.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::Exit;
use crate::{
    config::{Config, Role, Sources},
    node::Node,
    service::Stop,
    telemetry,
};

#[derive(Debug, Args)]
pub struct Serve {
    /// Settings, in TOML [default: nexxus.toml, where it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept (`data.dir`).
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the API listens (`api.listen`).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// What this process does: some of api, writer, transport-manager, websocket [default: everything].
    #[arg(long, value_name = "ROLES", value_delimiter = ',', value_parser = Role::from_str)]
    role: Vec<Role>,
}

impl Serve {
    fn load(&self) -> Result<Config, Exit> {
        let usage = |error: crate::config::ConfigError| Exit::Usage(error.to_string());
        let mut sources = Sources::of_process(self.config.as_deref()).map_err(usage)?;
        let mut flag = |flag: &str, key: &str, value: Option<String>| {
            sources.flags.extend(value.map(|value| (flag.to_owned(), key.to_owned(), value)));
        };
        flag("--data", "data.dir", self.data.as_ref().map(|dir| dir.display().to_string()));
        flag("--listen", "api.listen", self.listen.clone());
        let (config, _) = Config::load(&sources).map_err(usage)?;
        if self.role.is_empty() { Ok(config) } else { config.with_roles(self.role.iter().copied().collect()).map_err(usage) }
    }
}

pub fn run(serve: Serve) -> Result<(), Exit> {
    let config = serve.load()?;
    telemetry::start(&config.log).map_err(|error| Exit::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Exit::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let stop = stop_on_signals()?;
        let node = Node::start(config).await.map_err(|error| Exit::Failed(error.to_string()))?;
        say_where(&node);
        node.run(stop).await.map_err(|error| Exit::Failed(error.to_string()))
    })
}

fn say_where(node: &Node) {
    let data = node.config().data.dir.display().to_string();
    info!(api = node.addresses.api_url(), websocket = node.addresses.websocket_url(), data, "ready");
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once, which is safe: nothing that was confirmed
/// is lost.
fn stop_on_signals() -> Result<Stop, Exit> {
    let failed = |error: std::io::Error| Exit::Failed(format!("cannot listen for signals: {error}"));
    let (mut term, mut int) =
        (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?);
    let stop = Stop::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if stopping.is_cancelled() {
                std::process::exit(130);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}
