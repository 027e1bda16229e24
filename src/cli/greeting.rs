//! What the server says on its terminal when it is ready.

use std::path::{Path, PathBuf};

use super::output::table;
use crate::config::{Config, DEFAULT_DATA_DIR};

/// Where a running server is, for people.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub api: String,
    pub websocket: String,
    pub data: PathBuf,
    /// The admin token, where the configuration has one; else it is in the data directory.
    pub configured_token: Option<String>,
    /// How to call this program.
    pub program: String,
}

impl Place {
    pub(super) fn of(config: &Config, api: Option<String>, websocket: Option<String>) -> Self {
        let configured = &config.auth.admin_token;
        Self {
            api: api.unwrap_or_default(),
            websocket: websocket.unwrap_or_default(),
            data: config.data.dir.clone(),
            configured_token: (!configured.is_empty()).then(|| configured.clone()),
            program: program(),
        }
    }

    pub(super) fn admin_token_file(&self) -> PathBuf {
        self.data.join("admin_token")
    }

    /// Addresses and places, aligned.
    pub(super) fn lines(&self) -> String {
        self.lines_with(Vec::new(), &quoted(&self.data))
    }

    /// The same, with these between the addresses and the places.
    pub(super) fn lines_with(&self, between: Vec<[String; 2]>, data: &str) -> String {
        let token = match self.configured_token {
            Some(_) => "token as configured (auth.admin_token)".to_owned(),
            None => format!("token in {}", quoted(&self.admin_token_file())),
        };
        let row = |name: &str, value: &str| [format!("  {name}"), value.to_owned()];
        let mut rows = vec![row("Console", &format!("{}/", self.api)), row("API", &self.api)];
        if !self.websocket.is_empty() {
            rows.push(row("WebSocket", &self.websocket));
        }
        rows.extend(between);
        rows.extend([row("Admin", &token), row("Data", data)]);
        table(&rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>())
    }

    /// The flag that leads client commands here, where they would not find it by themselves.
    fn data_flag(&self) -> String {
        if self.data == Path::new(DEFAULT_DATA_DIR) { String::new() } else { format!(" --data {}", quoted(&self.data)) }
    }
}

/// What the server says that has no application yet.
pub(super) fn empty_server(place: &Place) -> String {
    let Place { program, .. } = place;
    let (addresses, data) = (place.lines(), place.data_flag());
    format!(
        r#"nexxus is ready

{addresses}

There is no application yet. To make the first one, with a user:

  {program} app apply -{data} <<'END'
  {{ "id": "notes", "name": "Notes", "schema": {{ "note": {{ "text": {{ "type": "string", "required": true }} }} }} }}
  END
  {program} user add anna --app notes{data}

Then see a change arrive. In a second terminal:

  {program} tail note --app notes{data}

and in a third one:

  {program} create note '{{"text":"hello"}}' --app notes{data}

`{program} serve --demo` has one to look at. Ctrl-C stops it."#
    )
}

/// How to call this program from the working directory: `nexxus` where the shell finds it, else its path.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "nexxus".to_owned() };
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&directories).any(|directory| directory.join("nexxus") == path);
    if is_found {
        return "nexxus".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    quoted(&callable(path.strip_prefix(here).unwrap_or(&path)))
}

/// A name without a directory is looked for by the shell elsewhere.
fn callable(path: &Path) -> PathBuf {
    if path.components().count() == 1 { Path::new(".").join(path) } else { path.to_owned() }
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+=@%:,".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(data: &str, configured_token: Option<&str>) -> Place {
        Place {
            api: "http://127.0.0.1:3000".to_owned(),
            websocket: "ws://127.0.0.1:8080/".to_owned(),
            data: data.into(),
            configured_token: configured_token.map(str::to_owned),
            program: "nexxus".to_owned(),
        }
    }

    #[test]
    fn addresses_line_up() {
        let expected = "  Console    http://127.0.0.1:3000/\n  API        http://127.0.0.1:3000\n  \
                        WebSocket  ws://127.0.0.1:8080/\n  Admin      token in data/admin_token\n  Data       data";
        assert_eq!(place("data", None).lines(), expected);
        assert!(place("data", Some("very-secret")).lines().contains("token as configured"));
        assert!(!place("data", Some("very-secret")).lines().contains("very-secret"));
    }

    #[test]
    fn what_is_to_be_copied_works_where_it_is_printed() {
        assert!(empty_server(&place("data", None)).contains("nexxus tail note --app notes\n"));
        let elsewhere = empty_server(&place("my data", None));
        assert!(elsewhere.contains("nexxus tail note --app notes --data 'my data'\n"), "{elsewhere}");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("")), "''");
        for (path, called) in
            [("nexxus", "./nexxus"), ("target/release/nexxus", "target/release/nexxus"), ("/a/b", "/a/b")]
        {
            assert_eq!(quoted(&callable(Path::new(path))), called);
        }
        // The application that is shown is one.
        let text = empty_server(&place("data", None));
        let definition = text.lines().find(|line| line.trim().starts_with('{')).expect("a definition");
        let definition: serde_json::Value = serde_json::from_str(definition).expect("JSON");
        nexxus_storage::model::Schema::parse(&definition["schema"]).expect("a schema");
    }
}
