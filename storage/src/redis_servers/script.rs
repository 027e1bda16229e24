//! Lua scripts: what has to happen at once happens in one of them.

use std::sync::LazyLock;

use redis::Cmd;

use super::{Arguments, Effect};

/// A script, sent by its hash. Its first line says which calls it makes (`flags=no-writes`), and whether it may run when the memory of
/// the server is full (`flags=allow-oom`).
pub(crate) struct Script {
    text: &'static str,
    hash: LazyLock<String, Box<dyn FnOnce() -> String + Send>>,
    effect: Effect,
}

impl Script {
    pub(crate) fn new(effect: Effect, text: &'static str) -> Self {
        let hash = Box::new(move || redis::Script::new(text).get_hash().to_owned()) as Box<_>;
        Self { text, hash: LazyLock::new(hash), effect }
    }

    pub(super) fn effect(&self) -> Effect {
        self.effect
    }

    pub(super) fn by_hash(&self, keys: &[&str], arguments: &Arguments) -> Cmd {
        call("EVALSHA", &self.hash, keys, arguments)
    }

    pub(super) fn by_text(&self, keys: &[&str], arguments: &Arguments) -> Cmd {
        call("EVAL", self.text, keys, arguments)
    }
}

fn call(name: &str, script: &str, keys: &[&str], arguments: &Arguments) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(keys.len()).arg(keys);
    arguments.put_into(&mut command);
    command
}
