//! What the commands print: lines, tables, JSON, problems.

use std::io::{ErrorKind, Write as _};

use serde_json::{Map, Value};

use super::Exit;

/// Longest cell of a table, in characters; what is longer is cut.
const CELL: usize = 48;

/// Prints a line to stdout. [`Exit::Unread`] when nobody reads it.
pub(super) fn say(line: &str) -> Result<(), Exit> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Exit::Unread),
        Err(error) => Err(Exit::Failed(format!("cannot print: {error}"))),
    }
}

/// Prints JSON, for programs (and people who like it).
pub(super) fn say_json(value: &Value) -> Result<(), Exit> {
    say(&format!("{value:#}"))
}

/// Columns that are worth less than the others: they stand last.
const LAST: [&str; 3] = ["userId", "createdAt", "updatedAt"];

/// Prints the items of a list: these columns first, then whatever else the items have.
pub(super) fn say_items(list: &Value, columns: &[&str], none: &str) -> Result<(), Exit> {
    let items: Vec<&Map<String, Value>> = items_of(list).iter().filter_map(Value::as_object).collect();
    if items.is_empty() {
        return say(none);
    }
    let others = items.iter().flat_map(|item| item.keys()).map(String::as_str).filter(|name| !LAST.contains(name));
    let mut names: Vec<&str> = Vec::new();
    for name in columns.iter().copied().chain(others).chain(LAST) {
        if !names.contains(&name) && items.iter().any(|item| item.contains_key(name)) {
            names.push(name);
        }
    }
    let cells = |item: &&Map<String, Value>| names.iter().map(|name| cell(item.get(*name))).collect();
    let mut rows: Vec<Vec<String>> = vec![names.iter().map(|name| (*name).to_owned()).collect()];
    rows.extend(items.iter().map(cells));
    say(&table(&rows))
}

/// Prints one thing: a line for each of its members, these first.
pub(super) fn say_one(thing: &Value, first: &[&str]) -> Result<(), Exit> {
    let Some(members) = thing.as_object() else { return say_json(thing) };
    let others = members.keys().map(String::as_str).filter(|name| !first.contains(name));
    let names = first.iter().copied().filter(|name| members.contains_key(*name)).chain(others);
    let rows: Vec<Vec<String>> = names.map(|name| vec![name.to_owned(), shown(members.get(name))]).collect();
    say(&table(&rows))
}

/// `items` of a list, however empty.
pub(super) fn items_of(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Rows with aligned columns, two spaces apart.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A value as a person reads it: texts without quotes, everything else as JSON. Nothing in it can steer a terminal.
pub(super) fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => plain(text),
        Some(other) => other.to_string(),
    }
}

/// The text without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn cell(value: Option<&Value>) -> String {
    let text = shown(value);
    match text.char_indices().nth(CELL - 1) {
        Some((end, _)) if text.chars().nth(CELL).is_some() => format!("{}…", &text[..end]),
        _ => text,
    }
}

/// A problem (RFC 9457) for a person: what happened, why, and each fault with its place.
pub(super) fn problem(problem: &Value) -> String {
    let text = |name: &str| plain(problem[name].as_str().unwrap_or_default());
    let (title, detail) = (text("title"), text("detail"));
    let mut said = match (title.is_empty(), detail.is_empty()) {
        (false, false) if title != detail => format!("{title}: {detail}"),
        (false, _) => title,
        (true, false) => detail,
        (true, true) => problem.to_string(),
    };
    if let Some(operation) = problem["operation"].as_u64() {
        said.push_str(&format!("\n  operation {operation} of the batch"));
    }
    let faults = problem["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> =
        faults.iter().map(|fault| vec![shown(fault.get("path")), shown(fault.get("message"))]).collect();
    for line in table(&rows).lines() {
        said.push_str(&format!("\n  {line}"));
    }
    if let Some(seconds) = problem["retryAfter"].as_u64() {
        said.push_str(&format!("\n  try again in {seconds} s"));
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let rows: Vec<Vec<String>> = vec![row(&["id", "name"]), row(&["1", "Änderung", "x"]), row(&["long one"])];
        assert_eq!(table(&rows), "id        name\n1         Änderung  x\nlong one");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn cells_are_short_and_harmless() {
        assert_eq!(cell(Some(&json!("a".repeat(CELL)))), "a".repeat(CELL));
        assert_eq!(cell(Some(&json!("ä".repeat(CELL + 1)))), format!("{}…", "ä".repeat(CELL - 1)));
        assert_eq!(cell(Some(&json!("\u{1b}[2Jgone"))), "\u{fffd}[2Jgone");
        assert_eq!(cell(Some(&json!({ "a": [1] }))), r#"{"a":[1]}"#);
        assert_eq!(cell(None), "");
    }

    #[test]
    fn a_problem_says_what_why_and_where() {
        let whole = json!({
            "type": "invalid-document", "title": "It does not fit the schema", "status": 422, "detail": "2 faults",
            "errors": [{ "path": "/title", "message": "is required" }, { "path": "/priority", "message": "is no number" }],
            "operation": 3, "retryAfter": 5,
        });
        let expected = "It does not fit the schema: 2 faults\n  operation 3 of the batch\n  /title     is required\n  \
                        /priority  is no number\n  try again in 5 s";
        assert_eq!(problem(&whole), expected);
        assert_eq!(problem(&json!({ "title": "Not allowed", "detail": "Not allowed" })), "Not allowed");
        assert_eq!(problem(&json!({ "detail": "why" })), "why");
        assert_eq!(problem(&json!({ "odd": 1 })), r#"{"odd":1}"#);
    }
}
