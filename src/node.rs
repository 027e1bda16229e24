//! The composition root: opens the backends, starts the services of the asked roles, and stops them in order.

#![warn(missing_docs)]

use std::{net::SocketAddr, path::Path, sync::Arc};

use nexxus_storage::Backends;
use serde_json::json;
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    api,
    config::{Config, Role, Running},
    domain::{Catalog, Domain, Identity},
    http,
    messages::{Routes, route::Route},
    pipeline,
    service::{Failure, Readiness, Services, Stop},
    transport::{self, websocket},
};

/// The order in which services stop: upstream first, so that what was accepted still flows down.
const PHASES: [&str; 5] = ["api", "writer", "transport-manager", "transport", "domain"];

/// A running node.
pub struct Node {
    domain: Domain,
    services: Services,
    /// Where it listens: the real ports, also where port 0 was asked for.
    pub addresses: Addresses,
}

/// Where a node listens.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// The API, where this node runs it.
    pub api: Option<SocketAddr>,
    /// The WebSocket's own port, where it has one.
    pub websocket: Option<SocketAddr>,
}

impl Addresses {
    /// The URL of the API, where this node runs it.
    pub fn api_url(&self) -> Option<String> {
        self.api.map(|address| format!("http://{address}"))
    }

    /// The URL that WebSocket clients connect to: the own port, else `/ws` beside the API.
    pub fn websocket_url(&self) -> Option<String> {
        match (self.websocket, self.api) {
            (Some(own), _) => Some(format!("ws://{own}/")),
            (None, Some(api)) => Some(format!("ws://{api}/ws")),
            (None, None) => None,
        }
    }
}

impl Node {
    /// Opens everything and begins to serve. Ports are bound before anything else is changed: a port that is taken fails early.
    pub async fn start(settings: Running) -> Result<Self, Failure> {
        let config = settings.now();
        let api_listener = match config.runs(Role::Api) {
            true => Some(bind(config.api.listen, "api.listen or --listen").await?),
            false => None,
        };
        let websocket_listener = match (config.runs(Role::Websocket), config.websocket_listen()) {
            (true, Some(address)) => Some(bind(address, "workers.websocket.port").await?),
            _ => None,
        };
        let addresses = Addresses {
            api: api_listener.as_ref().map(TcpListener::local_addr).transpose()?,
            websocket: websocket_listener.as_ref().map(TcpListener::local_addr).transpose()?,
        };
        let domain = open(Arc::new(settings)).await?;
        let mut node = Self { services: Services::in_phases(&PHASES), domain, addresses };
        node.run_roles(api_listener, websocket_listener).await?;
        node.announce().await?;
        Ok(node)
    }

    /// Starts the services of each role. Adding a role is adding a line here.
    async fn run_roles(&mut self, api: Option<TcpListener>, own: Option<TcpListener>) -> Result<(), Failure> {
        let (domain, services) = (&self.domain, &mut self.services);
        let config = domain.config.now();
        let starting = domain.readiness.latch("node");
        services.spawn("domain", "catalog", |stop| domain.catalog.clone().follow(stop));
        services.spawn("domain", "identity", |stop| domain.identity.clone().follow(stop));
        services.spawn("domain", "devices", |stop| domain.clone().keep_devices(stop));
        if !config.backup.every.0.is_zero() {
            services.spawn("domain", "backups", |stop| domain.clone().keep_backups(stop));
        }
        if config.runs(Role::TransportManager) {
            pipeline::run_transport_manager(domain, services).await?;
        }
        if config.runs(Role::Writer) {
            pipeline::run_writer(domain, services);
        }
        let hub = match config.runs(Role::Websocket) {
            true => Some(transport::run_websocket(domain, services).await?),
            false => None,
        };
        if let Some(listener) = api {
            let mut router = api::router(domain.clone());
            if let Some(hub) = &hub {
                router = router.merge(websocket::router(hub.clone()));
            }
            services.spawn("api", "api", |stop| http::serve(listener, router, stop));
        }
        if let Some((listener, hub)) = own.zip(hub) {
            let router = websocket::own_router(hub);
            services.spawn("api", "websocket", |stop| http::serve(listener, router, stop));
        }
        drop(starting);
        Ok(())
    }

    /// Writes where this node listens into the data directory, for the command line on the same machine.
    async fn announce(&self) -> Result<(), Failure> {
        let addresses = json!({
            "api": self.addresses.api_url(),
            "websocket": self.addresses.websocket_url(),
            "pid": std::process::id(),
        });
        let path = self.domain.config.now().data.dir.join("server.json");
        write_whole(&path, format!("{addresses:#}\n").as_bytes()).await
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<Config> {
        self.domain.config.now()
    }

    /// The settings, to be read again.
    pub fn settings(&self) -> Arc<Running> {
        self.domain.config.clone()
    }

    /// Whether there is no application yet.
    pub fn is_empty(&self) -> bool {
        self.domain.catalog.list().is_empty()
    }

    /// Serves until told to stop, then drains under the deadline; an error when a service or a backend fails before.
    pub async fn run(mut self, stop: Stop) -> Result<(), Failure> {
        let failed = tokio::select! {
            () = stop.cancelled() => None,
            failure = self.services.failed() => Some(failure),
            error = self.domain.backends.failed() => Some(error.into()),
        };
        info!("stopping");
        self.domain.stopping.cancel();
        let within = self.domain.config.now().server.shutdown_timeout.into();
        let in_time = self.services.stop(within).await;
        let closed = self.domain.backends.close().await;
        let _gone = tokio::fs::remove_file(self.domain.config.now().data.dir.join("server.json")).await;
        match (failed, closed, in_time) {
            (Some(failure), ..) => Err(failure),
            (None, Err(error), _) => Err(error.into()),
            (None, Ok(()), false) => Err("not everything had ended at the deadline of server.shutdown_timeout".into()),
            (None, Ok(()), true) => Ok(()),
        }
    }
}

async fn bind(address: SocketAddr, settings: &str) -> Result<TcpListener, Failure> {
    let refused = |error| format!("cannot listen on {address}: {error}; {settings} names another address or port");
    TcpListener::bind(address).await.map_err(|error| refused(error).into())
}

async fn open(settings: Arc<Running>) -> Result<Domain, Failure> {
    let config = settings.now();
    let backends: Backends = nexxus_storage::open(config.storage()).await?;
    let catalog = Catalog::open(backends.registry.clone()).await?;
    let identity = Identity::open(backends.registry.clone(), settings.clone()).await?;
    let writer = &config.workers.writer;
    let transport_manager = &config.workers.transport_manager;
    let routes = Arc::new(Routes {
        writer: Route::new(&*writer.queue, writer.partitions),
        transport_manager: Route::new(&*transport_manager.queue, transport_manager.partitions),
    });
    let (readiness, cursors) = (Readiness::default(), Arc::default());
    Ok(Domain { config: settings, backends, catalog, identity, routes, readiness, cursors, stopping: Stop::new() })
}

/// Writes a file so that readers see the old or the new one, never a part.
async fn write_whole(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let draft = path.with_extension("tmp");
    tokio::fs::write(&draft, content).await?;
    tokio::fs::rename(&draft, path).await?;
    Ok(())
}
