//! The rules of the house that a test can hold (ARCHITECTURE.md).

use std::path::{Path, PathBuf};

/// Longest file, in lines, before it has to be split. Tests may be longer.
const MOST_LINES: usize = 650;

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// The code without the tests that follow it.
    fn code(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        ["/tests", "tests/", "examples/", "benches/", "conformance/", "testing", "properties.rs"]
            .iter()
            .any(|part| self.path.contains(part))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["src", "storage/src", "tests", "storage/tests", "examples", "benches", "storage/benches"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn collect(folder: &Path, into: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a text");
            let path = path.strip_prefix(root()).expect("below the root").display().to_string();
            into.push(Source { path, text });
        }
    }
}

/// Fails with every line that breaks a rule.
fn refuse(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

fn lines_with<'s>(source: &'s Source, wanted: impl Fn(&str) -> bool + 's) -> impl Iterator<Item = String> + 's {
    let lines = (1..).zip(source.code().lines());
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    lines
        .filter(move |(_, line)| is_code(line) && wanted(line))
        .map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim()))
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |source: &Source| !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs");
    let silent = sources().into_iter().filter(silent).map(|source| source.path);
    refuse("a file opens with //!", silent.collect());
}

#[test]
fn files_are_short() {
    let long = sources().into_iter().filter(|source| !source.is_test() && source.code().lines().count() > MOST_LINES);
    refuse("a file does one thing", long.map(|source| source.path).collect());
}

#[test]
fn storage_does_not_know_the_server() {
    let manifest = std::fs::read_to_string(root().join("storage/Cargo.toml")).expect("a manifest");
    assert!(!manifest.lines().any(|line| line.starts_with("nexxus ")), "storage depends on nexxus");
}

#[test]
fn api_pipeline_and_transport_do_not_import_one_another() {
    let mut broken = Vec::new();
    let siblings = ["api", "pipeline", "transport"];
    for source in sources() {
        for own in siblings.iter().filter(|own| source.path.starts_with(&format!("src/{own}/"))) {
            for other in siblings.iter().filter(|other| *other != own) {
                broken.extend(lines_with(&source, |line| {
                    line.contains(&format!("crate::{other}")) || line.trim_start().starts_with(&format!("{other}::"))
                }));
            }
        }
    }
    refuse("siblings talk through queues", broken);
}

#[test]
fn what_is_below_does_not_import_what_is_above() {
    let above = ["crate::api", "crate::pipeline", "crate::transport", "crate::node", "crate::cli"];
    let below = [
        "src/domain/",
        "src/matcher/",
        "src/messages/",
        "src/worker/",
        "src/config/",
        "src/http.rs",
        "src/service.rs",
        "src/telemetry.rs",
    ];
    let is_below = |source: &Source| below.iter().any(|part| source.path.starts_with(part));
    let broken = sources()
        .iter()
        .filter(|source| is_below(source))
        .flat_map(|source| lines_with(source, |line| above.iter().any(|name| line.contains(name))).collect::<Vec<_>>())
        .collect();
    refuse("dependencies point one way", broken);
}

#[test]
fn features_choose_adapters_and_nothing_else() {
    let mut broken = Vec::new();
    let homes = ["storage/src/open.rs", "storage/src/failpoint.rs"];
    for source in sources().iter().filter(|source| !homes.contains(&&*source.path) && !source.is_test()) {
        let lines: Vec<&str> = source.code().lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let chooses = lines.get(number + 1).is_some_and(|next| next.trim_start().starts_with("pub mod "));
            if line.contains("cfg(feature") && !chooses || line.contains("cfg!(feature") {
                broken.push(format!("{}:{}: {line}", source.path, number + 1));
            }
        }
    }
    refuse("cfg(feature) stands in open.rs, failpoint.rs, on mod lines and in tests", broken);
}

#[test]
fn an_engine_is_named_in_its_adapter_only() {
    let engines = [
        ("tantivy::", "storage/src/documents/tantivy"),
        ("sled::", "storage/src/registry/sled"),
        ("redis::", "storage/src/redis_servers"),
        ("json_patch::", "storage/src/model/patch"),
        ("fail::", "storage/src/failpoint.rs"),
        ("axum::", "src/"),
    ];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (engine, home) in engines.iter().filter(|(_, home)| !source.path.starts_with(home)) {
            let names = |line: &str| {
                line.match_indices(engine).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|character| !character.is_alphanumeric() && !"_:".contains(character))
                })
            };
            broken.extend(
                lines_with(source, |line| names(line) && !line.contains(&format!("self::{engine}")))
                    .map(|line| format!("{line} (home: {home})")),
            );
        }
    }
    refuse("an engine's crate is named only in its adapter", broken);
}

#[test]
fn the_vocabulary_and_the_matcher_do_no_io() {
    let words = ["tokio::", "std::fs", "std::net", "async fn", ".await"];
    let is_pure = |source: &Source| {
        (source.path.starts_with("storage/src/model/") || source.path.starts_with("src/matcher/")) && !source.is_test()
    };
    let broken = sources()
        .iter()
        .filter(|source| is_pure(source))
        .flat_map(|source| lines_with(source, |line| words.iter().any(|word| line.contains(word))).collect::<Vec<_>>())
        .collect();
    refuse("model and matcher are pure", broken);
}

#[test]
fn nothing_is_left_for_later_in_secret() {
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("#[", "ignore")];
    let broken = sources()
        .iter()
        .flat_map(|source| {
            let lines = (1..).zip(source.text.lines());
            let is_left = |line: &str| words.iter().any(|word| line.contains(word));
            lines
                .filter(|(_, line)| is_left(line))
                .map(|(number, line)| format!("{}:{number}: {line}", source.path))
                .collect::<Vec<_>>()
        })
        .collect();
    refuse("no placeholder, no ignored test", broken);
}

#[test]
fn a_stage_has_one_name_everywhere() {
    for stage in ["writer", "transport-manager"] {
        let module = stage.replace('-', "_");
        assert!(root().join(format!("src/pipeline/{module}")).is_dir(), "no module {module}");
        let defaults = std::fs::read_to_string(root().join("packaging/nexxus.toml")).expect("the defaults");
        assert!(
            defaults.contains(&format!("[workers.{module}]")) && defaults.contains(&format!("queue = \"{stage}\""))
        );
    }
}

#[test]
fn the_map_names_every_module() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    let mut missing = Vec::new();
    for folder in ["src", "storage/src"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name().into_string().expect("a name");
            let is_named = map.contains(&format!("`{name}`")) || map.contains(&format!("`{name}/`"));
            if !is_named && name != "lib.rs" {
                missing.push(format!("{folder}/{name}"));
            }
        }
    }
    refuse("ARCHITECTURE.md names every module", missing);
}
