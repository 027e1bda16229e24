//! Which server holds which keys: the one there is, or what a cluster says.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::RwLock;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError, TlsCertificates, Value,
};
use tokio::{sync::Mutex, time::Instant};

use super::{
    fault::{self, fault},
    listening::Listening,
    node::{Node, Outcome},
};
use crate::{Error, ErrorKind, Result, open::RedisSettings};

const SLOTS: u16 = 16_384;
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(300);

pub(super) struct Slots {
    /// What was configured: where one begins to ask.
    seeds: Vec<Arc<Node>>,
    /// How every other server is reached: as the first one, but for its address.
    pattern: ConnectionInfo,
    certificates: Option<TlsCertificates>,
    listening: Arc<Listening>,
    cluster: bool,
    known: RwLock<Known>,
    /// Held by whoever asks the cluster.
    asking: Mutex<()>,
}

#[derive(Default)]
struct Known {
    nodes: HashMap<String, Arc<Node>>,
    /// By slot; empty when the cluster has to be asked.
    owners: Vec<Option<Arc<Node>>>,
    /// When the cluster was last asked.
    asked: Option<Instant>,
    closed: bool,
}

impl Slots {
    /// `Invalid` when the nodes of the settings are no addresses of Redis.
    pub(super) fn new(settings: &RedisSettings, listening: Arc<Listening>) -> Result<Self> {
        let certificates = certificates(settings)?;
        let mut infos = settings.nodes.iter().map(|node| connection_info(node));
        let Some(pattern) = infos.next() else { return invalid("`redis.nodes` is empty".to_owned()) };
        let pattern = pattern?;
        if !settings.cluster && settings.nodes.len() > 1 {
            return invalid("`redis.nodes` names several servers, `redis.mode` is \"single\"".to_owned());
        }
        let mut slots = Self {
            seeds: Vec::new(),
            pattern: pattern.clone(),
            certificates,
            listening,
            cluster: settings.cluster,
            known: RwLock::default(),
            asking: Mutex::default(),
        };
        for info in std::iter::once(Ok(pattern)).chain(infos) {
            let node = slots.node(info?)?;
            slots.known.write().nodes.insert(node.address().to_owned(), node.clone());
            slots.seeds.push(node);
        }
        Ok(slots)
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster
    }

    pub(super) fn seeds(&self) -> &[Arc<Node>] {
        &self.seeds
    }

    pub(super) fn is_closed(&self) -> bool {
        self.known.read().closed
    }

    pub(super) fn close(&self) {
        let mut known = self.known.write();
        known.closed = true;
        known.owners = Vec::new();
        known.nodes.values().chain(&self.seeds).for_each(|node| node.close());
    }

    /// Asks the cluster anew before the next call; but not all the time, while a part of it is away.
    pub(super) fn forget(&self) {
        let mut known = self.known.write();
        if self.cluster && known.asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN_AFTER) {
            known.owners = Vec::new();
        }
    }

    /// The server of a slot.
    pub(super) async fn route(&self, operation: &'static str, slot: u16, deadline: Instant) -> Result<Arc<Node>> {
        if !self.cluster {
            return Ok(self.seeds[0].clone());
        }
        loop {
            match self.known.read().owners.get(usize::from(slot)) {
                Some(Some(node)) => return Ok(node.clone()),
                Some(None) => {}
                None => {}
            }
            let refreshed = self.refresh(deadline).await;
            if let Err(error) = refreshed
                && Instant::now() + super::REST >= deadline
            {
                return Err(fault(operation, "", &error));
            }
            let is_owned = matches!(self.known.read().owners.get(usize::from(slot)), Some(Some(_)));
            if !is_owned {
                if Instant::now() + super::REST >= deadline || self.is_closed() {
                    let message = "no server of the cluster holds the key";
                    return Err(Error::new(ErrorKind::Unavailable, operation, message));
                }
                tokio::time::sleep(super::REST).await;
                self.forget();
            }
        }
    }

    /// Every server that holds slots.
    pub(super) async fn masters(&self, deadline: Instant) -> Result<Vec<Arc<Node>>> {
        if !self.cluster {
            return Ok(self.seeds.clone());
        }
        self.refresh(deadline).await.map_err(|error| fault("open redis", "", &error))?;
        let known = self.known.read();
        let mut masters: Vec<Arc<Node>> = Vec::new();
        for owner in known.owners.iter().flatten() {
            if !masters.iter().any(|known| Arc::ptr_eq(known, owner)) {
                masters.push(owner.clone());
            }
        }
        Ok(masters)
    }

    /// Finds out which connections for channels are gone without a word.
    pub(super) async fn ping_channels(&self, deadline: Instant) {
        let nodes: Vec<Arc<Node>> = self.known.read().nodes.values().cloned().collect();
        join_all(nodes.iter().map(|node| node.ping_channels(deadline))).await;
    }

    /// Where a call has to go after `MOVED` or `ASK`, and whether it has to ask there.
    pub(super) fn redirected(&self, from: &Node, error: &RedisError) -> Result<Option<(Arc<Node>, bool)>> {
        let Some((address, _)) = error.redirect_node() else { return Ok(None) };
        let asking = error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::Ask);
        if !asking {
            self.forget();
        }
        let Some((host, port)) = address.rsplit_once(':') else { return Ok(None) };
        // A server that does not know its own name means: where you are.
        let host = if host.is_empty() { from.address().rsplit_once(':').map_or("", |(host, _)| host) } else { host };
        let Ok(port) = port.parse() else { return Ok(None) };
        Ok(Some((self.known_node(host, port)?, asking)))
    }

    async fn refresh(&self, deadline: Instant) -> Result<(), RedisError> {
        let _one = self.asking.lock().await;
        if !self.known.read().owners.is_empty() {
            return Ok(());
        }
        let mut asked: Vec<Arc<Node>> = self.known.read().nodes.values().cloned().collect();
        // Who is connected answers at once.
        asked.sort_by_key(|node| !node.is_connected());
        let mut last = fault::io(std::io::ErrorKind::NotConnected, "no server of the cluster answers");
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        for node in asked.iter().chain(&self.seeds) {
            match node.send(&command, false, deadline.min(Instant::now() + super::PATIENCE / 2)).await {
                Outcome::Answer(value) => {
                    if self.learn(node, &value).is_some() {
                        return Ok(());
                    }
                }
                Outcome::Refused(error) | Outcome::NotSent(error) | Outcome::Unknown(error) => last = error,
            }
        }
        Err(last)
    }

    /// Takes in an answer to `CLUSTER SLOTS`. None when it tells of no server.
    fn learn(&self, from: &Node, value: &Value) -> Option<()> {
        let Value::Array(ranges) = value else { return None };
        let mut owners: Vec<Option<Arc<Node>>> = vec![None; usize::from(SLOTS)];
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &range[..] else { return None };
            let [host, Value::Int(port), ..] = &master[..] else { return None };
            let host = match host {
                Value::BulkString(host) if !host.is_empty() => std::str::from_utf8(host).ok()?,
                Value::SimpleString(host) if !host.is_empty() => host,
                _ => from.address().rsplit_once(':')?.0,
            };
            let node = self.known_node(host, u16::try_from(*port).ok()?).ok()?;
            let range = usize::try_from(*first).ok()?..=usize::try_from(*last).ok()?;
            owners.get_mut(range)?.fill(Some(node));
        }
        let any = owners.iter().any(Option::is_some);
        let mut known = self.known.write();
        known.owners = owners;
        known.asked = Some(Instant::now());
        drop(known);
        self.listening.nudge();
        any.then_some(())
    }

    fn known_node(&self, host: &str, port: u16) -> Result<Arc<Node>> {
        let address = format!("{host}:{port}");
        if let Some(node) = self.known.read().nodes.get(&address) {
            return Ok(node.clone());
        }
        let (host, info) = (host.to_owned(), self.pattern.clone());
        let addr = match info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let node = self.node(info.set_addr(addr))?;
        let mut known = self.known.write();
        if known.closed {
            node.close();
        }
        Ok(known.nodes.entry(address).or_insert(node).clone())
    }

    fn node(&self, info: ConnectionInfo) -> Result<Arc<Node>> {
        let address = address_of(info.addr());
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        };
        let client = client.map_err(|error| {
            Error::new(ErrorKind::Invalid, "open redis", format!("`redis.nodes`: {address}")).with_source(error)
        })?;
        Ok(Arc::new(Node::new(address, client, self.listening.clone())))
    }
}

fn address_of(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port}"),
        other => other.to_string(),
    }
}

/// `redis://[user:password@]host:port[/db]`, with `rediss` for TLS, or `host:port`.
fn connection_info(node: &str) -> Result<ConnectionInfo> {
    let url = if node.contains("://") { node.to_owned() } else { format!("redis://{node}") };
    let parsed = url.as_str().into_connection_info().map_err(|error| {
        let message = "`redis.nodes`: a node is written redis://[user:password@]host:port, with rediss for TLS";
        Error::new(ErrorKind::Invalid, "open redis", message).with_source(error)
    })?;
    let settings = parsed.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(parsed.set_redis_settings(settings))
}

fn certificates(settings: &RedisSettings) -> Result<Option<TlsCertificates>> {
    if !settings.nodes.iter().any(|node| node.starts_with("rediss://")) {
        return Ok(None);
    }
    // A choice that stands already is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let Some(file) = &settings.ca_file else { return Ok(None) };
    let root_cert = std::fs::read(file).map_err(|error| {
        Error::new(ErrorKind::Invalid, "open redis", format!("`redis.ca_file`: {}", file.display())).with_source(error)
    })?;
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) }))
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, "open redis", message))
}

/// The slot of a key: by the part in the first braces where there is one, else by all of it.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum: u16, byte| {
        (0..8).fold(
            sum ^ (u16::from(*byte) << 8),
            |sum, _| if sum & 0x8000 != 0 { (sum << 1) ^ 0x1021 } else { sum << 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (key, slot) in [("foo", 12_182), ("{foo}bar", 12_182), ("a{foo}{b}", 12_182), ("bar", 5_061)] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
        assert_eq!(slot_of(b"{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag is none");
        assert_eq!(slot_of(b"a{b"), crc16(b"a{b") % SLOTS);
    }

    #[test]
    fn nodes_are_addresses_with_or_without_credentials() {
        for (node, address) in [
            ("127.0.0.1:6379", Some("127.0.0.1:6379")),
            ("redis://u:p@h:1", Some("h:1")),
            ("rediss://h", Some("h:6379")),
            ("http://h", None),
        ] {
            let found = connection_info(node).map(|info| address_of(info.addr()));
            assert_eq!(found.ok().as_deref(), address, "{node}");
        }
    }
}
