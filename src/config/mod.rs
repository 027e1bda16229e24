//! The settings, typed and valid at the door. `packaging/nexxus.toml` says what each is for.

mod load;
mod running;
mod value;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, str::FromStr, time};

use nexxus_storage::open::{ElasticsearchSettings, RedisSettings, Settings};
use serde::Deserialize;

pub use running::{Reloaded, Running};

pub use load::{ConfigError, DEFAULTS, Layers, Source, Sources, USUAL_FILE};
/// `data.dir` where nothing else is said.
pub const DEFAULT_DATA_DIR: &str = "data";

pub use value::{Duration, Reserve, Share, Size};

/// All settings of a process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub api: Api,
    pub server: Server,
    pub data: Data,
    pub history: History,
    pub backup: Backup,
    pub devices: Devices,
    pub auth: Auth,
    pub limits: Limits,
    pub log: Log,
    pub workers: Workers,
    pub message_queue: Adapter,
    pub change_log: Adapter,
    pub registry: Adapter,
    pub redis: Redis,
    pub database: Database,
    /// What this process does; everything unless `--role` says otherwise.
    #[serde(skip, default = "Role::all")]
    pub roles: BTreeSet<Role>,
}

/// `[api]`: where the HTTP API listens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
}

/// `[server]`: how the process ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub shutdown_timeout: Duration,
}

/// `[data]`: where and how the embedded engine keeps everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub dir: PathBuf,
    pub reserve: Reserve,
    pub segment_bytes: Size,
    pub overlay_bytes: Size,
    pub index_writer_bytes: Size,
    pub commit_every: Duration,
}

/// `[history]`: how far the change log reaches back.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    pub max_age: Duration,
    pub max_bytes: Size,
}

/// `[backup]`: copies made while the server runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Zero: never by itself.
    pub every: Duration,
    pub keep: usize,
    pub dir: PathBuf,
}

/// `[devices]`: how long devices outlive their connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    pub keep_for: Duration,
    pub keep_for_max: Duration,
}

/// `[auth]`: tokens and their secrets.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Empty: made at the first start.
    pub admin_token: String,
    /// Empty: made at the first start.
    pub jwt_secret: String,
    pub token_ttl: Duration,
    pub refresh_ttl: Duration,
}

impl std::fmt::Debug for Auth {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("token_ttl", &self.token_ttl).field("refresh_ttl", &self.refresh_ttl).finish()
    }
}

/// `[limits]`: what one caller may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub enabled: bool,
    pub body_bytes: Size,
    pub document_bytes: Size,
    pub subscriptions_per_device: usize,
    pub connection_buffer_bytes: Size,
    pub replay_share: Share,
}

/// `[log]`: what the process says of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

/// `[workers]`: the stages that this process may run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    pub writer: Stage,
    pub transport_manager: Stage,
    pub websocket: Transport,
    pub sse: Unbuilt,
    pub mqtt: Unbuilt,
}

/// `[workers.writer]`, `[workers.transport_manager]`: a stage of the pipeline.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    pub enabled: bool,
    pub instances: u32,
    pub queue: String,
    pub prefetch: usize,
    pub auto_ack: bool,
    pub partitions: u32,
}

/// `[workers.websocket]`: a transport to devices.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transport {
    pub enabled: bool,
    pub queue: String,
    pub prefetch: usize,
    pub auto_ack: bool,
    pub port: u16,
}

/// A transport that is reserved.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unbuilt {
    pub enabled: bool,
}

/// Which engine stands behind a seam.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    pub adapter: String,
}

/// `[database]`: which engine holds the documents, and where it is.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub adapter: String,
    pub nodes: Vec<String>,
    /// Empty: none.
    pub username: String,
    pub password: String,
    /// Empty: none.
    pub api_key: String,
    /// Empty: those that the system trusts.
    pub ca_file: String,
    pub prefix: String,
    pub shards: u32,
    pub replicas: u32,
    pub timeout: Duration,
}

impl std::fmt::Debug for Database {
    /// Without what may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("adapter", &self.adapter).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Database {
    fn elasticsearch(&self) -> ElasticsearchSettings {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        ElasticsearchSettings {
            nodes: self.nodes.clone(),
            username: given(&self.username),
            password: given(&self.password),
            api_key: given(&self.api_key),
            ca_file: given(&self.ca_file).map(PathBuf::from),
            prefix: self.prefix.clone(),
            shards: self.shards,
            replicas: self.replicas,
            timeout: self.timeout.into(),
        }
    }

    /// What is wrong with a setting.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if !(1..=1024).contains(&self.shards) {
            return Some(("database.shards", "1 to 1024 are allowed"));
        }
        if self.replicas > 32 {
            return Some(("database.replicas", "0 to 32 are allowed"));
        }
        if self.timeout.0 < time::Duration::from_millis(100) {
            return Some(("database.timeout", "at least 100ms are needed"));
        }
        if self.nodes.is_empty() {
            return Some(("database.nodes", "at least one is needed"));
        }
        (!self.api_key.is_empty() && !self.username.is_empty())
            .then_some(("database.api_key", "either it or database.username is needed, not both"))
    }
}

/// `[redis]`: where the servers are that hold the registry, the change log, or both.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub mode: RedisMode,
    pub nodes: Vec<String>,
    /// Empty: those that the system trusts.
    pub ca_file: String,
    pub prefix: String,
    /// Empty, or `1s`.
    pub may_lose: String,
}

/// `redis.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    Single,
    Cluster,
}

impl std::fmt::Debug for Redis {
    /// Without the nodes, which may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("mode", &self.mode).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    fn settings(&self) -> RedisSettings {
        RedisSettings {
            cluster: self.mode == RedisMode::Cluster,
            nodes: self.nodes.clone(),
            ca_file: Some(PathBuf::from(&self.ca_file)).filter(|file| !file.as_os_str().is_empty()),
            prefix: self.prefix.clone(),
            may_lose: !self.may_lose.is_empty(),
        }
    }

    /// What is wrong with a setting.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if self.nodes.is_empty() {
            return Some(("redis.nodes", "at least one is needed"));
        }
        if self.mode == RedisMode::Single && self.nodes.len() > 1 {
            return Some(("redis.nodes", "with redis.mode = \"single\" one is allowed"));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(is_plain) {
            return Some(("redis.prefix", "1 to 64 letters, digits and any of . _ : - are allowed"));
        }
        (!["", "1s"].contains(&&*self.may_lose)).then_some(("redis.may_lose", "\"\" and \"1s\" are allowed"))
    }
}

/// What a process can do (`--role`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Api,
    Writer,
    TransportManager,
    Websocket,
}

impl Role {
    /// Every role by the name that `--role` takes.
    pub const NAMES: [(&str, Role); 4] = [
        ("api", Role::Api),
        ("writer", Role::Writer),
        ("transport-manager", Role::TransportManager),
        ("websocket", Role::Websocket),
    ];

    /// Every role: what a process runs unless told otherwise.
    pub fn all() -> BTreeSet<Role> {
        Self::NAMES.into_iter().map(|(_, role)| role).collect()
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, role)| role).ok_or_else(|| {
            format!("there is no role {text}; the roles are {}", Self::NAMES.map(|(name, _)| name).join(", "))
        })
    }
}

impl Config {
    /// The settings, checked, and where each comes from. An error names the key, the place, and what is allowed.
    pub fn load(sources: &Sources) -> Result<(Self, Layers), ConfigError> {
        let layers = Layers::merge(sources)?;
        let config: Self = serde_path_to_error::deserialize(layers.to_table()).map_err(|error| {
            let key = error.path().to_string();
            ConfigError(format!("`{key}` ({}): {}", layers.source(&key), error.inner().message()))
        })?;
        config.check(&layers)?;
        Ok((config, layers))
    }

    /// What the types cannot say.
    fn check(&self, layers: &Layers) -> Result<(), ConfigError> {
        let refuse = |key: &str, why: &str| Err(ConfigError(format!("`{key}` ({}): {why}", layers.source(key))));
        if let Err(refused) = self.storage().check_adapters() {
            return refuse(refused.key, &refused.why);
        }
        if let Some(bad) = self.log.level.split(',').find(|part| !is_log_directive(part)) {
            return refuse(
                "log.level",
                &format!("\"{bad}\" is no level: error, warn, info, debug, trace, off and MODULE=LEVEL are allowed"),
            );
        }
        if self.api.listen.port() != 0 && self.api.listen.port() == self.workers.websocket.port {
            return refuse(
                "workers.websocket.port",
                "it is the API's; 0 means that there is only /ws on the API's port",
            );
        }
        if self.workers.sse.enabled {
            return refuse("workers.sse.enabled", "this transport is not built yet");
        }
        if self.workers.mqtt.enabled {
            return refuse("workers.mqtt.enabled", "this transport is not built yet");
        }
        for (name, stage) in [("writer", &self.workers.writer), ("transport_manager", &self.workers.transport_manager)]
        {
            let key = |setting: &str| format!("workers.{name}.{setting}");
            if stage.auto_ack {
                return refuse(
                    &key("auto_ack"),
                    "what a crash interrupts would be lost; only transports may, which heal from the change log",
                );
            }
            if !stage.enabled {
                return refuse(&key("enabled"), "with embedded queues nobody else could do its work");
            }
            if !(1..=1024).contains(&stage.partitions) {
                return refuse(&key("partitions"), "1 to 1024 are allowed");
            }
            if stage.instances != stage.partitions {
                return refuse(
                    &key("instances"),
                    "with embedded queues one process works on all partitions: say the same number as in partitions",
                );
            }
            if stage.queue.is_empty() || stage.queue.ends_with(".dead") {
                return refuse(&key("queue"), "a name is needed that does not end in .dead");
            }
            if !(1..=100_000).contains(&stage.prefetch) {
                return refuse(&key("prefetch"), "1 to 100000 are allowed");
            }
        }
        if self.workers.writer.queue == self.workers.transport_manager.queue {
            return refuse("workers.transport_manager.queue", "it is the writer's");
        }
        if !(1..=100_000).contains(&self.workers.websocket.prefetch) {
            return refuse("workers.websocket.prefetch", "1 to 100000 are allowed");
        }
        let sizes = [
            ("data.segment_bytes", self.data.segment_bytes, 1 << 20, 1 << 30),
            ("data.overlay_bytes", self.data.overlay_bytes, 1 << 20, 1 << 36),
            ("data.index_writer_bytes", self.data.index_writer_bytes, 15 << 20, 4 << 30),
            ("limits.body_bytes", self.limits.body_bytes, 1 << 10, 1 << 26),
            ("limits.document_bytes", self.limits.document_bytes, 1 << 10, 1 << 24),
            ("limits.connection_buffer_bytes", self.limits.connection_buffer_bytes, 1 << 10, 1 << 26),
        ];
        for (key, size, least, most) in sizes {
            if !(least..=most).contains(&size.0) {
                return refuse(key, &format!("{} to {} are allowed", Size(least), Size(most)));
            }
        }
        if self.limits.replay_share.percent == 0 {
            return refuse("limits.replay_share", "1% to 100% are allowed");
        }
        // A command holds the whole document, and a record never spans two segments.
        if self.data.segment_bytes.0 < 4 * self.limits.document_bytes.0.max(self.limits.body_bytes.0) {
            return refuse("data.segment_bytes", "at least four times the largest body and document");
        }
        if !self.backup.every.0.is_zero() {
            if let Some(why) = self.refuses_backups() {
                return refuse("backup.every", &why);
            }
            if self.backup.every.as_secs() == 0 || self.backup.keep == 0 || self.backup.dir.as_os_str().is_empty() {
                return refuse("backup.every", "at least a second, with backup.keep of at least 1, and a backup.dir");
            }
        }
        if let Some((key, why)) = self.redis.fault().or_else(|| self.database.fault()) {
            return refuse(key, why);
        }
        if self.data.commit_every.0.is_zero() {
            return refuse("data.commit_every", "more than nothing is needed");
        }
        if self.devices.keep_for > self.devices.keep_for_max {
            return refuse("devices.keep_for", "it is more than devices.keep_for_max");
        }
        if self.auth.token_ttl.as_secs() == 0 || self.auth.refresh_ttl < self.auth.token_ttl {
            return refuse("auth.refresh_ttl", "tokens last at least a second, and logins at least as long as tokens");
        }
        if !self.auth.jwt_secret.is_empty() && self.auth.jwt_secret.len() < 32 {
            return refuse("auth.jwt_secret", "at least 32 characters are needed");
        }
        if !self.auth.admin_token.is_empty() && self.auth.admin_token.len() < 16 {
            return refuse("auth.admin_token", "at least 16 characters are needed");
        }
        Ok(())
    }

    /// Why there are no backups with these adapters, if there are none: what is in another engine is not in the data directory.
    pub fn refuses_backups(&self) -> Option<String> {
        let adapters = [
            ("message_queue", &self.message_queue.adapter, "embedded"),
            ("change_log", &self.change_log.adapter, "journal"),
            ("registry", &self.registry.adapter, "sled"),
            ("database", &self.database.adapter, "tantivy"),
        ];
        let (section, other, _) = adapters.into_iter().find(|(_, chosen, own)| *chosen != own)?;
        Some(format!(
            "a backup is of the embedded engines, and {section}.adapter is \"{other}\": use `nexxus export`, and the snapshots of {other}"
        ))
    }

    /// Whether this process has a role.
    pub fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role) && (role != Role::Websocket || self.workers.websocket.enabled)
    }

    /// Limits the process to some roles.
    pub fn with_roles(mut self, roles: BTreeSet<Role>) -> Result<Self, ConfigError> {
        if roles != Role::all() {
            return Err(ConfigError(
                "`--role`: roles in separate processes need shared engines, and these are embedded ones: leave it out"
                    .to_owned(),
            ));
        }
        self.roles = roles;
        Ok(self)
    }

    /// The WebSocket's own address, where it has one.
    pub fn websocket_listen(&self) -> Option<SocketAddr> {
        let port = self.workers.websocket.port;
        (port != 0).then(|| SocketAddr::new(self.api.listen.ip(), port))
    }

    /// What the storage needs to know.
    pub fn storage(&self) -> Settings {
        Settings {
            queues: self.message_queue.adapter.clone(),
            change_log: self.change_log.adapter.clone(),
            registry: self.registry.adapter.clone(),
            documents: self.database.adapter.clone(),
            dir: self.data.dir.clone(),
            reserve: self.data.reserve.0,
            segment_bytes: self.data.segment_bytes.0 as u32,
            history_age: self.history.max_age.into(),
            history_bytes: self.history.max_bytes.0,
            overlay_bytes: self.data.overlay_bytes.bytes(),
            index_writer_bytes: self.data.index_writer_bytes.bytes(),
            commit_every: self.data.commit_every.into(),
            redis: self.redis.settings(),
            elasticsearch: self.database.elasticsearch(),
        }
    }
}

/// `info`, `nexxus_storage=debug`.
fn is_log_directive(part: &str) -> bool {
    let level = part.rsplit('=').next().unwrap_or_default().trim();
    ["error", "warn", "info", "debug", "trace", "off"].iter().any(|known| level.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let sources = Sources {
            file: Some(("nexxus.toml".into(), file.into())),
            environment: environment.iter().map(own).collect(),
            flags: flags.iter().map(|(key, value)| (format!("--{key}"), (*key).into(), (*value).into())).collect(),
        };
        Config::load(&sources).map(|(config, _)| config).map_err(|error| error.to_string())
    }

    #[test]
    fn nodes_are_a_list_wherever_they_come_from() {
        let file = "[database]\nnodes = [\"http://a:9200\", \"http://b:9200\"]\n";
        assert_eq!(load(file, &[], &[]).expect("valid").database.nodes, ["http://a:9200", "http://b:9200"]);
        let environment = [("NEXXUS_DATABASE__NODES", "http://c:9200, http://d:9200")];
        assert_eq!(load(file, &environment, &[]).expect("valid").database.nodes, ["http://c:9200", "http://d:9200"]);
        for (bad, why) in [
            ("nodes = \"http://a\"", "`database.nodes` (nexxus.toml, line 2) has to be a list of texts"),
            ("nodes = []", "`database.nodes` (nexxus.toml, line 2): at least one is needed"),
            ("shards = 0", "`database.shards` (nexxus.toml, line 2): 1 to 1024 are allowed"),
            ("api_key = \"k\"\nusername = \"u\"", "either it or database.username is needed, not both"),
            ("timeout = \"1ms\"", "at least 100ms are needed"),
        ] {
            let error = load(&format!("[database]\n{bad}\n"), &[], &[]).expect_err(bad);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn redis_is_checked_at_the_door() {
        let good = load("[redis]\nmode = \"cluster\"\nnodes = [\"a:1\", \"b:2\"]\nmay_lose = \"1s\"\n", &[], &[])
            .expect("valid");
        let settings = good.storage().redis;
        assert!(settings.cluster && settings.may_lose && settings.ca_file.is_none());
        assert_eq!((settings.nodes.len(), &*settings.prefix), (2, "nexxus"));
        for (bad, why) in [
            ("nodes = []", "`redis.nodes` (nexxus.toml, line 2): at least one is needed"),
            ("nodes = [\"a\", \"b\"]", "with redis.mode = \"single\" one is allowed"),
            ("prefix = \"a{b}\"", "`redis.prefix` (nexxus.toml, line 2): 1 to 64 letters"),
            ("may_lose = \"1h\"", "`redis.may_lose` (nexxus.toml, line 2): \"\" and \"1s\" are allowed"),
            ("mode = \"sentinel\"", "redis.mode"),
        ] {
            let error = load(&format!("[redis]\n{bad}\n"), &[], &[]).expect_err(bad);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_later_source_wins() {
        let file = "[workers.writer]\nprefetch = 10\n[data]\ndir = \"from-file\"\n";
        let environment = [("NEXXUS_WORKERS__WRITER__PREFETCH", "20"), ("NEXXUS_URL", "http://ignored")];
        let config = load(file, &environment, &[("data.dir", "from-flag")]).expect("valid");
        assert_eq!(config.workers.writer.prefetch, 20);
        assert_eq!(config.data.dir, PathBuf::from("from-flag"));
        assert_eq!(config.devices.keep_for.as_secs(), 120);
    }

    #[test]
    fn a_mistake_names_the_key_the_place_and_what_is_allowed() {
        for (file, environment, said) in [
            ("[api]\nlisten = 3000\n", vec![], "`api.listen` (nexxus.toml, line 2) has to be a text in quotes"),
            (
                "[api]\nlistn = \"x\"\n",
                vec![],
                "unknown setting `api.listn` (nexxus.toml, line 2): there is no `listn`; [api] knows listen",
            ),
            ("[apy]\nlisten = \"x\"\n", vec![], "there is no section `apy`; the sections are api, "),
            ("api = 3\n", vec![], "`api` (nexxus.toml, line 1) is a section, not a setting: it needs a table, [api]"),
            (
                "",
                vec![("NEXXUS_WORKERZ__WRITER__PREFETCH", "20")],
                "there is no section `workerz.writer`; the sections",
            ),
            (
                "[api]\nlisten = \"nowhere\"\n",
                vec![],
                "`api.listen` (nexxus.toml, line 2): \"nowhere\" is no address with a port",
            ),
            (
                "",
                vec![("NEXXUS_WORKERS__WRITER__PREFETCH", "many")],
                "`workers.writer.prefetch` (variable NEXXUS_WORKERS__WRITER__PREFETCH) has to be a whole number",
            ),
            (
                "[server]\nshutdown_timeout = \"soon\"\n",
                vec![],
                "`server.shutdown_timeout` (nexxus.toml, line 2): a duration is",
            ),
            ("[workers.mqtt]\nenabled = true\n", vec![], "not built yet"),
            ("[workers.writer]\nauto_ack = true\n", vec![], "would be lost"),
            ("[workers.writer]\nprefetch = 0\n", vec![], "1 to 100000 are allowed"),
            (
                "[log]\nformat = \"xml\"\n",
                vec![],
                "`log.format` (nexxus.toml, line 2): unknown variant `xml`, expected `text` or `json`",
            ),
            (
                "[log]\nlevel = \"loud\"\n",
                vec![],
                "`log.level` (nexxus.toml, line 2): \"loud\" is no level: error, warn",
            ),
            ("[log]\nlevel = \"info,nexxus=loud\"\n", vec![], "\"nexxus=loud\" is no level"),
            (
                "[database]\nadapter = \"postgres\"\n",
                vec![],
                "`database.adapter` (nexxus.toml, line 2): there is no adapter \"postgres\": \"tantivy\"",
            ),
            (
                "",
                vec![("NEXXUS_MESSAGE_QUEUE__ADAPTER", "rabbitmq")],
                "`message_queue.adapter` (variable NEXXUS_MESSAGE_QUEUE__ADAPTER): compiled without the feature \"rabbitmq\"",
            ),
            ("[workers.websocket]\nport = 3000\n", vec![], "it is the API's"),
            ("[data]\nindex_writer_bytes = \"1MiB\"\n", vec![], "15MiB to 4GiB are allowed"),
            (
                "[data]\nreserve = \"a lot\"\n",
                vec![],
                "`data.reserve` (nexxus.toml, line 2): a share of the disk, e.g. \"5%\"",
            ),
            ("[auth]\njwt_secret = \"short\"\n", vec![], "at least 32 characters"),
            ("nonsense", vec![], "nexxus.toml: "),
        ] {
            let error = load(file, &environment, &[]).expect_err(file);
            assert!(error.contains(said), "{error}\ndoes not say\n{said}");
            assert!(!error.contains("short"), "a secret is shown");
        }
    }

    #[test]
    fn every_setting_of_the_defaults_file_has_a_sentence() {
        // The types refuse what they do not know, and what is missing: the file and they agree already.
        load("", &[], &[]).expect("the defaults are valid");
        let mut explained = false;
        let mut sections: BTreeSet<String> = BTreeSet::new();
        for line in DEFAULTS.lines() {
            match line.trim() {
                line if line.starts_with('#') => explained = true,
                line if line.starts_with('[') => {
                    sections.insert(line.to_owned());
                    explained = false;
                }
                line if line.contains('=') => {
                    // What transport_manager shares with writer is said there.
                    let is_said = sections.contains("[workers.transport_manager]") && !line.starts_with("enabled");
                    assert!(explained || is_said, "no sentence before {line}");
                }
                _ => explained = false,
            }
        }
    }

    #[test]
    fn backups_are_of_the_embedded_engines_only() {
        let mut config = load("", &[], &[]).expect("valid");
        assert_eq!((config.refuses_backups(), config.backup.every.as_secs()), (None, 0));
        for (section, engine) in [("message_queue", "rabbitmq"), ("database", "elasticsearch")] {
            let mut clustered = config.clone();
            match section {
                "database" => clustered.database.adapter = engine.into(),
                _ => clustered.message_queue.adapter = engine.into(),
            }
            let why = clustered.refuses_backups().expect("refused");
            assert!(why.contains(&format!("{section}.adapter is \"{engine}\": use `nexxus export`")), "{why}");
        }
        config.backup.every = "1h".parse().expect("a duration");
        for bad in ["every = \"10ms\"", "every = \"1h\"\nkeep = 0", "every = \"1h\"\ndir = \"\""] {
            let error = load(&format!("[backup]\n{bad}\n"), &[], &[]).expect_err(bad);
            assert!(error.contains("`backup.every`"), "{error}");
        }
    }
}
