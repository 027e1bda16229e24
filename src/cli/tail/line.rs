//! A change as one line for a person: `updated  task 0192…  status="done"`.

use serde_json::{Map, Value};

use crate::cli::output::{plain, shown};

/// Of every document; not worth repeating on each line.
const UNIVERSAL: [&str; 7] = ["id", "type", "appId", "userId", "createdAt", "updatedAt", "version"];

/// The line of a `model_…` frame, as one who listens on this channel sees it.
pub(super) fn of(frame: &Value, channel: Option<&str>) -> String {
    let metadata = &frame["metadata"];
    let says = |name: &str| channel.is_some_and(|channel| names(frame, name, channel));
    let (done, what) = match frame["event"].as_str() {
        Some("model_created") => ("created", fields(&frame["data"])),
        Some("model_deleted") => ("deleted", String::new()),
        _ if says("left") => ("left", patches(&frame["data"])),
        _ if says("entered") => ("entered", fields(&frame["document"])),
        _ => ("updated", patches(&frame["data"])),
    };
    let name = format!("{} {}", shown(metadata.get("type")), shown(metadata.get("id")));
    format!("{done:<8} {name}  v{}  {what}", metadata["version"]).trim_end().to_owned()
}

/// Whether a list of the frame's metadata names this channel.
pub(super) fn names(frame: &Value, list: &str, channel: &str) -> bool {
    frame["metadata"][list].as_array().is_some_and(|channels| channels.iter().any(|other| other == channel))
}

fn fields(document: &Value) -> String {
    let empty = Map::new();
    let members = document.as_object().unwrap_or(&empty).iter();
    let own = members.filter(|(name, _)| !UNIVERSAL.contains(&name.as_str()));
    own.map(|(name, value)| format!("{}={value}", plain(name))).collect::<Vec<_>>().join(" ")
}

fn patches(patches: &Value) -> String {
    let mut said = Vec::new();
    for patch in patches.as_array().into_iter().flatten() {
        let paths = patch["path"].as_array().into_iter().flatten();
        for (index, path) in paths.enumerate() {
            let (path, value) = (shown(Some(path)), &patch["value"][index]);
            said.push(match patch["op"].as_str() {
                Some("incr") => format!("{path}+={value}"),
                Some("decr") => format!("{path}-={value}"),
                Some("append") => format!("{path}<<{value}"),
                Some("prepend") => format!("{path}>>{value}"),
                Some("remove") => format!("-{path}"),
                _ => format!("{path}={value}"),
            });
        }
    }
    said.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_change_is_one_line() {
        let metadata = |list: &str| json!({ "id": "1", "type": "task", "version": 3, list: ["ours"] });
        let patch = |op: &str, path: &str, value: Value| json!({ "op": op, "path": [path], "value": [value] });
        for (frame, expected) in [
            (
                json!({ "event": "model_created", "metadata": metadata("channels"),
                    "data": { "id": "1", "type": "task", "appId": "a", "version": 3, "title": "Buy \"milk\"\n", "n": 1 } }),
                r#"created  task 1  v3  n=1 title="Buy \"milk\"\n""#,
            ),
            (json!({ "event": "model_deleted", "metadata": metadata("channels") }), "deleted  task 1  v3"),
            (
                json!({ "event": "model_updated", "metadata": metadata("channels"), "data": [
                    patch("replace", "status", json!("done")), patch("incr", "n", json!(2)), patch("decr", "m", json!(1)),
                    patch("append", "tags", json!("x")), patch("prepend", "tags", json!("y")),
                    { "op": "remove", "path": ["due", "gone"] },
                ] }),
                r#"updated  task 1  v3  status="done" n+=2 m-=1 tags<<"x" tags>>"y" -due -gone"#,
            ),
            (
                json!({ "event": "model_updated", "metadata": metadata("left"), "data": [patch("replace", "a", json!(1))] }),
                "left     task 1  v3  a=1",
            ),
            (
                json!({ "event": "model_updated", "metadata": metadata("entered"), "data": [], "document": { "a": 1 } }),
                "entered  task 1  v3  a=1",
            ),
        ] {
            assert_eq!(of(&frame, Some("ours")), expected);
        }
    }
}
