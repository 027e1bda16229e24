//! `nexxus serve`: configuration, start, the addresses, run, drain.

use std::{collections::BTreeSet, io, str::FromStr, sync::Arc};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{
    Exit, demo,
    greeting::{Place, empty_server},
    output::say,
    settings::Flags,
};
use crate::{
    config::{Config, ConfigError, Layers, LogFormat, Role, Running},
    node::Node,
    service::Stop,
    telemetry,
};

/// Run the server: everything in one process, kept in one directory.
///
/// Without a configuration file it listens on loopback and keeps its data in ./data. SIGTERM and Ctrl-C stop it: it finishes what is
/// in flight, within server.shutdown_timeout; a second one ends it at once. SIGHUP reads the configuration again.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    flags: Flags,
    /// What this process does: some of api, writer, transport-manager, websocket [default: everything].
    #[arg(long, value_name = "ROLES", value_delimiter = ',', value_parser = Role::from_str)]
    role: Vec<Role>,
    /// With a small application to try, in a data directory of its own (./nexxus-demo).
    #[arg(long)]
    demo: bool,
}

pub(super) fn run(serve: Serve) -> Result<(), Exit> {
    let is_demo = serve.demo;
    let (config, layers) = serve.load()?;
    telemetry::start(&config.log).map_err(|error| Exit::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Exit::Failed(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(async {
        let stop = stop_on_signals()?;
        // Before anything takes long: without it, the signal would end the process.
        let hangups = signal(SignalKind::hangup()).map_err(no_signals)?;
        tokio::spawn(telemetry::keep());
        let settings = Running::begin(config, layers);
        let node = Node::start(settings).await.map_err(|error| Exit::Failed(error.to_string()))?;
        tokio::spawn(reload_on_hangups(hangups, serve, node.settings()));
        let greeted = greet(&node, is_demo, &stop).await;
        if greeted.is_err() {
            stop.cancel();
        }
        let ended = node.run(stop).await.map_err(|error| Exit::Failed(error.to_string()));
        greeted.and(ended)
    });
    // Whatever still runs has had its time; a thread that hangs must not keep the process from ending.
    runtime.shutdown_background();
    ended
}

impl Serve {
    fn load(&self) -> Result<(Config, Layers), ConfigError> {
        let mut flags = self.flags.clone();
        if self.demo {
            flags.data.get_or_insert_with(|| demo::DIRECTORY.into());
        }
        let (config, layers) = flags.load()?;
        let roles: BTreeSet<Role> = self.role.iter().copied().collect();
        let config = if roles.is_empty() { config } else { config.with_roles(roles)? };
        Ok((config, layers))
    }
}

/// Says where everything is, and what to do next; with `--demo` after the application is there.
async fn greet(node: &Node, is_demo: bool, stop: &Stop) -> Result<(), Exit> {
    let config = node.config();
    let (api, websocket) = (node.addresses.api_url(), node.addresses.websocket_url());
    info!(api, websocket, data = %config.data.dir.display(), "ready");
    let place = Place::of(&config, api, websocket);
    let said = if is_demo {
        tokio::select! {
            said = demo::prepare(&place) => said?,
            () = stop.cancelled() => return Ok(()),
        }
    } else if node.is_empty() {
        empty_server(&place)
    } else {
        place.lines()
    };
    // Who reads JSON from the log has the line above; and a server whose output nobody reads goes on.
    match config.log.format {
        LogFormat::Text => say(&said).or_else(|exit| if exit == Exit::Unread { Ok(()) } else { Err(exit) }),
        LogFormat::Json => Ok(()),
    }
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once, which is safe: nothing that was confirmed
/// is lost.
fn stop_on_signals() -> Result<Stop, Exit> {
    let mut term = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(no_signals)?;
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

fn no_signals(error: io::Error) -> Exit {
    Exit::Failed(format!("cannot listen for signals: {error}"))
}

/// Reads the configuration again at each SIGHUP. What is not valid changes nothing.
async fn reload_on_hangups(mut hangups: Signal, serve: Serve, settings: Arc<Running>) {
    while hangups.recv().await.is_some() {
        let (config, layers) = match serve.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                error!(%error, "the configuration is not valid, the one in force stays");
                continue;
            }
        };
        let reloaded = settings.reload(config, layers);
        if let Err(error) = telemetry::change_level(&settings.now().log.level) {
            error!(%error, "the log level cannot be changed");
        }
        info!(changed = reloaded.changed.join(", "), "read the configuration again");
        if !reloaded.postponed.is_empty() {
            warn!(settings = reloaded.postponed.join(", "), "these take effect at the next start");
        }
    }
}
