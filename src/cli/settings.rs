//! `nexxus config`: whether the configuration is valid, and where each value comes from.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit,
    output::{say, say_json, table},
};
use crate::config::{Config, ConfigError, Layers, Sources};

/// Check and show the configuration.
#[derive(Debug, Args)]
pub(super) struct Settings {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    flags: Flags,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Say whether the configuration is valid.
    Check,
    /// Show every setting with its value and where that comes from; secrets are masked.
    Show,
}

/// The settings that flags give.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Flags {
    /// Settings, in TOML [default: nexxus.toml, where it is there].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where everything is kept (data.dir).
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where the API listens (api.listen).
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

impl Flags {
    pub(super) fn load(&self) -> Result<(Config, Layers), ConfigError> {
        let mut sources = Sources::of_process(self.config.as_deref())?;
        let data = self.data.as_ref().map(|dir| dir.display().to_string());
        for (flag, key, value) in [("--data", "data.dir", data), ("--listen", "api.listen", self.listen.clone())] {
            sources.flags.extend(value.map(|value| (flag.to_owned(), key.to_owned(), value)));
        }
        Config::load(&sources)
    }
}

impl Settings {
    pub(super) fn run(self) -> Result<(), Exit> {
        let (_, layers) = self.flags.load()?;
        match (self.command, self.json) {
            (Command::Check, false) => say("the configuration is valid"),
            (Command::Check, true) => say_json(&json!({ "valid": true })),
            (Command::Show, false) => say(&table(&layers.iter().map(row).collect::<Vec<_>>())),
            (Command::Show, true) => {
                let item = |(key, value, source): (&str, &toml::Value, &crate::config::Source)| json!({ "key": key, "value": shown(key, value), "source": source.to_string() });
                say_json(&json!({ "items": layers.iter().map(item).collect::<Vec<Value>>() }))
            }
        }
    }
}

fn row((key, value, source): (&str, &toml::Value, &crate::config::Source)) -> Vec<String> {
    vec![key.to_owned(), shown(key, value).to_string(), source.to_string()]
}

/// The value, unless it is a secret: then only whether it is set.
fn shown(key: &str, value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) if is_secret(key) && !text.is_empty() => "***".into(),
        toml::Value::String(text) if key.ends_with("nodes") => without_user(text).into(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Boolean(is_so) => (*is_so).into(),
        toml::Value::Array(values) => values.iter().map(|value| shown(key, value)).collect(),
        other => other.to_string().into(),
    }
}

/// The URL of a node, whose user and password are secrets.
fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

fn is_secret(key: &str) -> bool {
    ["token", "secret", "password", "url", "api_key"].iter().any(|word| key.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn secrets_are_masked_and_nothing_else() {
        let secret = toml::Value::from("very-secret");
        for (key, expected) in [
            ("auth.admin_token", "\"***\""),
            ("auth.jwt_secret", "\"***\""),
            ("message_queue.url", "\"***\""),
            ("data.dir", "\"very-secret\""),
        ] {
            assert_eq!(row((key, &secret, &Source::Default))[1], expected, "{key}");
        }
        let nodes = toml::Value::from(vec!["https://u:p@ss@a:9200", "http://b"]);
        let expected = r#"["https://***@a:9200","http://b"]"#;
        assert_eq!(row(("database.nodes", &nodes, &Source::Default))[1], expected);
        assert_eq!(row(("auth.admin_token", &toml::Value::from(""), &Source::Default))[1], "\"\"");
        let ttl = row(("auth.token_ttl", &toml::Value::from("1h"), &Source::Flag("--x".to_owned())));
        assert_eq!(ttl, ["auth.token_ttl", "\"1h\"", "flag --x"]);
    }
}
