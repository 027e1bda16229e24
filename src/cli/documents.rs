//! `nexxus get|query|create|patch|delete`: documents.

use clap::Args;
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::Value;

use super::{
    Exit,
    client::{self, Client, Target, json_argument},
    output::{items_of, plain, say, say_items, say_one},
};

const UNIVERSAL: [&str; 2] = ["id", "version"];

/// Show a document.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The model, e.g. task.
    model: String,
    /// The document's id.
    id: String,
    #[command(flatten)]
    target: Target,
}

/// Find documents.
#[derive(Debug, Args)]
pub(super) struct Query {
    /// The model, e.g. task.
    model: String,
    /// Which ones, e.g. '{"status":"todo","priority":{"$gte":3}}': JSON, @FILE, or - for stdin.
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// In which order, e.g. -priority,createdAt.
    #[arg(long, value_name = "FIELDS", allow_hyphen_values = true)]
    sort: Option<String>,
    /// How many at most.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Go on where another query ended.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Create a document.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// The model, e.g. task.
    model: String,
    /// Its fields: JSON, @FILE, or - for stdin.
    #[arg(value_name = "JSON")]
    fields: String,
    #[command(flatten)]
    target: Target,
}

/// Change a document.
#[derive(Debug, Args)]
pub(super) struct Patch {
    /// The model, e.g. task.
    model: String,
    /// The document's id.
    id: String,
    /// Nexxus patches, a JSON Patch (an array), or a JSON Merge Patch (an object): JSON, @FILE, or - for stdin.
    #[arg(value_name = "JSON")]
    patch: String,
    #[command(flatten)]
    target: Target,
}

/// Delete a document.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The model, e.g. task.
    model: String,
    /// The document's id.
    id: String,
    #[command(flatten)]
    target: Target,
}

impl Get {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let document = client.get(&["model", &self.model, &self.id]).await?;
        client::print(&client, &document, || say_one(&document, &UNIVERSAL))
    }
}

impl Query {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let filter = self.filter.map(|filter| json_argument("the filter", &filter)).transpose()?;
        let parameters = [
            ("filter", filter.map(|filter| filter.to_string())),
            ("sort", self.sort),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("cursor", self.cursor),
        ];
        let given: Vec<(&str, String)> =
            parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let request = client.request(Method::GET, &["model", &self.model])?.query(&given);
        let page = client.answer(request).await?;
        client::print(&client, &page, || say_page(&page))
    }
}

impl Create {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let fields = json_argument("the document", &self.fields)?;
        let accepted = client.post(&["model", &self.model], &fields).await?;
        let id = plain(accepted["id"].as_str().unwrap_or_default());
        say_accepted(&client, &accepted, &self.model, &id, "created")
    }
}

impl Patch {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let patch = json_argument("the patch", &self.patch)?;
        let request = client.request(Method::PATCH, &["model", &self.model, &self.id])?;
        let accepted = client.answer(request.header(CONTENT_TYPE, notation(&patch)).body(patch.to_string())).await?;
        say_accepted(&client, &accepted, &self.model, &self.id, "patched")
    }
}

impl Delete {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        let accepted = client.delete(&["model", &self.model, &self.id]).await?;
        say_accepted(&client, &accepted, &self.model, &self.id, "deleted")
    }
}

/// A table without what is the same in all rows.
fn say_page(page: &Value) -> Result<(), Exit> {
    let mut shown = page.clone();
    for item in shown["items"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        item.retain(|name, _| !matches!(name.as_str(), "appId" | "type"));
    }
    say_items(&shown, &UNIVERSAL, "nothing found")?;
    if let Some(cursor) = page["cursor"].as_str().filter(|_| !items_of(page).is_empty()) {
        eprintln!("there is more: --cursor {}", plain(cursor));
    }
    Ok(())
}

fn say_accepted(client: &Client, accepted: &Value, model: &str, id: &str, done: &str) -> Result<(), Exit> {
    client::print(client, accepted, || {
        let change = accepted["changeId"].as_str().unwrap_or_default();
        say(&format!("{done} {model} {id}  (change {})", plain(change)))
    })
}

/// The notation of a patch, by its shape: an object is a merge patch; the paths of a JSON Patch are texts, those of Nexxus
/// patches are lists.
fn notation(patch: &Value) -> &'static str {
    match patch {
        Value::Object(_) => "application/merge-patch+json",
        Value::Array(operations) if operations.first().is_some_and(|first| first["path"].is_string()) => {
            "application/json-patch+json"
        }
        _ => "application/json",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shape_of_a_patch_tells_its_notation() {
        for (patch, expected) in [
            (json!({ "a": 1 }), "application/merge-patch+json"),
            (json!([{ "op": "add", "path": "/a", "value": 1 }]), "application/json-patch+json"),
            (json!([{ "op": "replace", "path": ["a"], "value": [1] }]), "application/json"),
            (json!([]), "application/json"),
            (json!("odd"), "application/json"),
        ] {
            assert_eq!(notation(&patch), expected, "{patch}");
        }
    }
}
