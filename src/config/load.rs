//! Where settings come from: the compiled-in defaults, a file, the environment, flags; the later wins. A mistake is one sentence
//! that names the key, where it stands, and what is allowed.

use std::{collections::BTreeMap, fmt, path::Path};

use toml::{Table, Value};

/// `packaging/nexxus.toml`: documentation and defaults are one file.
pub const DEFAULTS: &str = include_str!("../../packaging/nexxus.toml");
/// The file that is read when no other is named.
pub const USUAL_FILE: &str = "nexxus.toml";
const ENVIRONMENT_PREFIX: &str = "NEXXUS_";
/// Variables of the client commands, which are no settings.
const CLIENT_VARIABLES: [&str; 4] = ["NEXXUS_URL", "NEXXUS_TOKEN", "NEXXUS_APP", "NEXXUS_DEVICE"];

/// A mistake in the settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `packaging/nexxus.toml`, compiled in.
    Default,
    /// A file: its name, and the line.
    File(String),
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file) => f.write_str(file),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What settings are made of.
#[derive(Debug, Default)]
pub struct Sources {
    /// The file's name and text.
    pub file: Option<(String, String)>,
    /// Variables by their whole names, `NEXXUS_DATA__DIR`.
    pub environment: Vec<(String, String)>,
    /// The flag as it was given, the key it sets, the value.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// From the process: the file that is named, or `nexxus.toml` where it is there; the environment.
    pub fn of_process(file: Option<&Path>) -> Result<Self, ConfigError> {
        let usual = Path::new(USUAL_FILE);
        let path = file.or_else(|| usual.exists().then_some(usual));
        let file = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| ConfigError(format!("cannot read {}: {error}", path.display())))?;
                Some((path.display().to_string(), text))
            }
            None => None,
        };
        let environment = std::env::vars().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
        Ok(Self { file, environment, flags: Vec::new() })
    }
}

/// Every setting by its key, with the place it comes from.
#[derive(Debug, Clone)]
pub struct Layers {
    values: BTreeMap<String, (Value, Source)>,
}

impl Layers {
    /// Puts the sources over one another; the later wins. A key that is not known, or of another type than its default, is an error.
    pub fn merge(sources: &Sources) -> Result<Self, ConfigError> {
        let defaults: Table =
            DEFAULTS.parse().map_err(|error| ConfigError(format!("the compiled-in defaults: {error}")))?;
        let mut flat = BTreeMap::new();
        flatten("", &defaults, &mut flat);
        let values = flat.into_iter().map(|(key, value)| (key, (value, Source::Default))).collect();
        let mut layers = Self { values };
        if let Some((name, text)) = &sources.file {
            layers.take_file(name, text)?;
        }
        for (name, text) in &sources.environment {
            layers.take_variable(name, text)?;
        }
        for (flag, key, text) in &sources.flags {
            layers.take_text(key, text, Source::Flag(flag.clone()))?;
        }
        Ok(layers)
    }

    fn take_file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|error| ConfigError(format!("{name}: {error}")))?;
        let mut flat = BTreeMap::new();
        flatten("", &table, &mut flat);
        for (key, value) in flat {
            let line = line_of(text, &key).map(|line| format!(", line {line}")).unwrap_or_default();
            self.take(&key, value, Source::File(format!("{name}{line}")))?;
        }
        Ok(())
    }

    fn take_variable(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        if CLIENT_VARIABLES.contains(&name) {
            return Ok(());
        }
        let key = name.trim_start_matches(ENVIRONMENT_PREFIX).to_ascii_lowercase().replace("__", ".");
        self.take_text(&key, text, Source::Variable(name.to_owned()))
    }

    /// A value given as text is read as what the default is.
    fn take_text(&mut self, key: &str, text: &str, source: Source) -> Result<(), ConfigError> {
        let default = self.known(key, &source)?.clone();
        let value = match default {
            Value::String(_) => Some(Value::String(text.to_owned())),
            Value::Integer(_) => text.parse().ok().map(Value::Integer),
            Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
            // In files they are lists; elsewhere commas part them.
            Value::Array(_) => Some(Value::Array(text.split(',').map(|part| part.trim().into()).collect())),
            _ => None,
        };
        let value = value.ok_or_else(|| mismatch(key, &source, &default))?;
        self.take(key, value, source)
    }

    fn take(&mut self, key: &str, value: Value, source: Source) -> Result<(), ConfigError> {
        let default = self.known(key, &source)?;
        if std::mem::discriminant(default) != std::mem::discriminant(&value) {
            return Err(mismatch(key, &source, default));
        }
        self.values.insert(key.to_owned(), (value, source));
        Ok(())
    }

    fn known(&self, key: &str, source: &Source) -> Result<&Value, ConfigError> {
        if let Some((value, _)) = self.values.get(key) {
            return Ok(value);
        }
        let within = format!("{key}.");
        if self.values.keys().any(|known| known.starts_with(&within)) {
            return Err(ConfigError(format!(
                "`{key}` ({source}) is a section, not a setting: it needs a table, [{key}]"
            )));
        }
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
        let siblings: Vec<&str> = self
            .values
            .keys()
            .filter_map(|known| known.strip_prefix(&prefix))
            .filter(|rest| !rest.contains('.'))
            .collect();
        let hint = if !section.is_empty() && !siblings.is_empty() {
            format!("there is no `{name}`; [{section}] knows {}", siblings.join(", "))
        } else {
            let mut sections: Vec<&str> =
                self.values.keys().filter_map(|known| known.rsplit_once('.')).map(|(section, _)| section).collect();
            sections.dedup();
            let missing = if section.is_empty() { name } else { section };
            format!("there is no section `{missing}`; the sections are {}", sections.join(", "))
        };
        Err(ConfigError(format!("unknown setting `{key}` ({source}): {hint}")))
    }

    /// Everything as one table, for deserialization.
    pub fn to_table(&self) -> Table {
        let mut table = Table::new();
        for (key, (value, _)) in &self.values {
            let mut target = &mut table;
            let mut names = key.split('.').peekable();
            while let Some(name) = names.next() {
                if names.peek().is_none() {
                    target.insert(name.to_owned(), value.clone());
                    break;
                }
                let entry = target.entry(name).or_insert_with(|| Value::Table(Table::new()));
                let Value::Table(inner) = entry else { break };
                target = inner;
            }
        }
        table
    }

    /// Each key with its value, and where that comes from.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Source)> {
        self.values.iter().map(|(key, (value, source))| (key.as_str(), value, source))
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).map(|(value, _)| value)
    }

    /// Takes one setting over from others.
    pub(super) fn adopt(&mut self, key: &str, others: &Self) {
        if let Some((key, setting)) = others.values.get_key_value(key) {
            self.values.insert(key.clone(), setting.clone());
        }
    }

    /// Where the value of a key comes from, in words.
    pub fn source(&self, key: &str) -> String {
        self.values.get(key).map_or_else(|| "default".to_owned(), |(_, source)| source.to_string())
    }
}

fn mismatch(key: &str, source: &Source, default: &Value) -> ConfigError {
    let wanted = match default {
        Value::String(_) => "a text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        _ => "another type",
    };
    ConfigError(format!("`{key}` ({source}) has to be {wanted}"))
}

fn flatten(prefix: &str, table: &Table, into: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(&key, inner, into),
            Value::Table(_) => {}
            other => {
                into.insert(key, other.clone());
            }
        }
    }
}

/// The line in which a key is set.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut section = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = format!("{}.", name.trim());
        } else if let Some((name, _)) = line.split_once('=')
            && format!("{section}{}", name.trim()) == key
        {
            return Some(number);
        }
    }
    None
}
