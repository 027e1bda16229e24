//! The settings of a running process: some of them change when it is told to read its configuration again (SIGHUP).

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Auth, Config, Layers, Log};

/// What takes effect without a restart: sections, and single settings.
const RELOADED: [&str; 6] = ["limits.", "devices.", "server.", "auth.token_ttl", "auth.refresh_ttl", "log.level"];

/// Of these, what is looked at once, at the start.
const NOT_RELOADED: [&str; 1] = ["limits.replay_share"];

/// The settings in force.
pub struct Running {
    current: Mutex<Arc<Config>>,
    /// As they were written, to tell what has changed.
    layers: Mutex<Layers>,
}

/// What a reload brought: the keys whose values are others now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Those are in force.
    pub changed: Vec<String>,
    /// Those take effect at the next start.
    pub postponed: Vec<String>,
}

impl Running {
    /// What a process starts with.
    pub fn begin(config: Config, layers: Layers) -> Self {
        Self { current: Mutex::new(Arc::new(config)), layers: Mutex::new(layers) }
    }

    /// The settings in force at this moment.
    pub fn now(&self) -> Arc<Config> {
        self.current.lock().clone()
    }

    /// Takes in what takes effect without a restart. The rest stays as it is, and is named at each reload until then.
    pub fn reload(&self, next: Config, layers: Layers) -> Reloaded {
        let mut reloaded = Reloaded::default();
        let mut before = self.layers.lock();
        let mut merged = before.clone();
        for (key, value, _) in layers.iter() {
            if before.value(key) == Some(value) {
                continue;
            }
            if is_reloaded(key) {
                reloaded.changed.push(key.to_owned());
                merged.adopt(key, &layers);
            } else {
                reloaded.postponed.push(key.to_owned());
            }
        }
        *before = merged;
        let mut current = self.current.lock();
        let old = current.as_ref().clone();
        *current = Arc::new(Config {
            server: next.server,
            devices: next.devices,
            limits: next.limits,
            auth: Auth { token_ttl: next.auth.token_ttl, refresh_ttl: next.auth.refresh_ttl, ..old.auth },
            log: Log { level: next.log.level, ..old.log },
            ..old
        });
        reloaded
    }
}

fn is_reloaded(key: &str) -> bool {
    let is_of = |known: &str| key == known || known.ends_with('.') && key.starts_with(known);
    RELOADED.into_iter().any(is_of) && !NOT_RELOADED.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn load(file: &str) -> (Config, Layers) {
        let file = Some(("nexxus.toml".to_owned(), file.to_owned()));
        Config::load(&Sources { file, ..Sources::default() }).expect("valid")
    }

    #[test]
    fn a_reload_takes_in_what_it_can_and_names_the_rest() {
        let (config, layers) = load("[limits]\nbody_bytes = \"2KiB\"\n");
        let running = Running::begin(config, layers);
        let (next, layers) = load(
            "[limits]\nbody_bytes = \"4KiB\"\nreplay_share = \"10%\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n[auth]\ntoken_ttl = \"5m\"\n\
             [api]\nlisten = \"127.0.0.1:4000\"\n",
        );
        let reloaded = running.reload(next.clone(), layers.clone());
        assert_eq!(reloaded.changed, ["auth.token_ttl", "limits.body_bytes", "log.level"]);
        assert_eq!(reloaded.postponed, ["api.listen", "limits.replay_share", "log.format"]);
        let now = running.now();
        assert_eq!((now.limits.body_bytes.bytes(), now.log.level.as_str()), (4096, "debug"));
        assert_eq!((now.auth.token_ttl.as_secs(), now.api.listen.port()), (300, 3000));
        assert_eq!(now.log.format, crate::config::LogFormat::Text);
        let again = running.reload(next, layers);
        assert_eq!((again.changed.len(), again.postponed.len()), (0, 3));
    }
}
