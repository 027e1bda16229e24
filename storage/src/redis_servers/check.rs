//! What a server has to be like, looked at before anything is written: it must keep what it confirmed.

use std::collections::HashMap;

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::{
    PATIENCE, Redis,
    fault::{self, fault, is_refusal_of_credentials},
    node::{Node, Outcome},
};
use crate::{Error, ErrorKind, Result, open::RedisSettings};

/// Looks at every server that holds keys.
pub(super) async fn servers(redis: &Redis, settings: &RedisSettings) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let slots = &redis.shared.slots;
    if !settings.cluster {
        return server(&slots.masters(deadline).await?[0], settings).await;
    }
    // The seeds first: what is no cluster has no slots.
    let mut last = None;
    for seed in slots.seeds() {
        match server(seed, &RedisSettings { may_lose: true, ..settings.clone() }).await {
            Err(error) if error.kind == ErrorKind::Unavailable => last = Some(error),
            Err(error) => return Err(error),
            Ok(()) => {
                for master in slots.masters(deadline).await? {
                    server(&master, settings).await?;
                }
                return Ok(());
            }
        }
    }
    Err(last.unwrap_or_else(|| fault("open redis", "", &fault::io(std::io::ErrorKind::NotConnected, "no seed"))))
}

async fn server(node: &Node, settings: &RedisSettings) -> Result<()> {
    let mut command = redis::cmd("INFO");
    command.arg("everything");
    let info = match answer(node, &command).await? {
        Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        other => return refuse(node, format!("INFO is answered by {other:.40?}")),
    };
    let facts: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    look_at(node, settings, &facts)?;
    if !settings.may_lose {
        look_at_fsync(node, &facts).await?;
    }
    Ok(())
}

fn look_at(node: &Node, settings: &RedisSettings, facts: &HashMap<&str, &str>) -> Result<()> {
    let fact = |name: &str| facts.get(name).copied().unwrap_or_default();
    let version = fact("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 7) {
        return refuse(node, format!("it is version {version}, 7.0 or later is needed"));
    }
    if settings.cluster != (fact("cluster_enabled") == "1") {
        let (is, mode) =
            if settings.cluster { ("no part of a cluster", "single") } else { ("part of a cluster", "cluster") };
        return refuse(node, format!("it is {is}: set `redis.mode` to \"{mode}\""));
    }
    if !settings.cluster && fact("role") != "master" {
        return refuse(node, "it is a replica: name the server that takes writes in `redis.nodes`".to_owned());
    }
    let policy = fact("maxmemory_policy");
    if policy != "noeviction" && !policy.is_empty() {
        let why = "it would throw records away when its memory is full";
        return refuse(node, format!("`maxmemory-policy` is {policy}, {why}: set it to noeviction"));
    }
    Ok(())
}

async fn look_at_fsync(node: &Node, facts: &HashMap<&str, &str>) -> Result<()> {
    const OR: &str = "or say `redis.may_lose = \"1s\"` where the last second of confirmed changes may be lost";
    if facts.get("aof_enabled").copied() != Some("1") {
        return refuse(node, format!("`appendonly` is off: set it to yes and `appendfsync` to always, {OR}"));
    }
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("appendfsync");
    let found = match node.send(&command, false, Instant::now() + PATIENCE).await {
        Outcome::Answer(value) => value,
        Outcome::Refused(error) => {
            return refuse(node, format!("`appendfsync` cannot be read ({error}): allow CONFIG GET, {OR}"));
        }
        Outcome::NotSent(error) | Outcome::Unknown(error) => return Err(fault("open redis", node.address(), &error)),
    };
    let policy = match found {
        Value::Map(pairs) => pairs.into_iter().next().map(|(_, value)| value),
        Value::Array(values) => values.into_iter().nth(1),
        _ => None,
    };
    match policy {
        Some(Value::BulkString(policy)) if policy == b"always" => Ok(()),
        Some(Value::BulkString(policy)) => {
            let policy = String::from_utf8_lossy(&policy).into_owned();
            refuse(node, format!("`appendfsync` is {policy}: set it to always, {OR}"))
        }
        _ => refuse(node, format!("`appendfsync` cannot be read: allow CONFIG GET, {OR}")),
    }
}

async fn answer(node: &Node, command: &Cmd) -> Result<Value> {
    match node.send(command, false, Instant::now() + PATIENCE).await {
        Outcome::Answer(value) => Ok(value),
        Outcome::Refused(error) | Outcome::NotSent(error) | Outcome::Unknown(error) => {
            if is_refusal_of_credentials(&error) {
                return refuse(node, format!("it refuses the user or the password of `redis.nodes` ({error})"));
            }
            if error.kind() == redis::ErrorKind::RESP3NotSupported {
                return refuse(node, "it is older than 7.0".to_owned());
            }
            let mut fault = fault("open redis", node.address(), &error);
            if fault.kind == ErrorKind::Timeout {
                fault.kind = ErrorKind::Unavailable;
            }
            Err(fault)
        }
    }
}

fn refuse<T>(node: &Node, why: String) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, "open redis", format!("the server at {}: {why}", node.address())))
}
