//! `nexxus app`: applications, as the admin.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::{
    Exit,
    client::{self, Client, Target},
    output::{items_of, say, say_json, table},
};

/// Make, change and list applications (needs the admin token).
#[derive(Debug, Args)]
pub(super) struct App {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the application that a file defines, or change the existing one to it.
    Apply {
        /// The definition, in JSON: id, name, schema, rules, …; `-` for stdin.
        file: String,
        /// Change the schema even where stored documents do not fit the new one.
        #[arg(long)]
        force: bool,
    },
    /// List the applications.
    List,
    /// Show the definition of an application.
    Show {
        /// The application's id.
        id: String,
    },
    /// Delete an application with all its users and documents.
    Delete {
        /// The application's id.
        id: String,
    },
}

impl App {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        match self.command {
            Command::Apply { file, force } => apply(&client, &file, force).await,
            Command::List => list(&client).await,
            Command::Show { id } => say_json(&client.get(&["application", &id]).await?),
            Command::Delete { id } => {
                let answer = client.delete(&["application", &id]).await?;
                client::print(&client, &answer, || say(&format!("application {id} deleted")))
            }
        }
    }
}

async fn apply(client: &Client, file: &str, force: bool) -> Result<(), Exit> {
    let text = client::text_of_file(file.strip_prefix('@').unwrap_or(file).as_ref())?;
    let definition = client::json_of(file, &text)?;
    let Some(id) = definition["id"].as_str().map(str::to_owned) else {
        return Err(Exit::Usage(format!("{file} names no application: it needs a member \"id\", a text")));
    };
    let (answer, done) = match client.get(&["application", &id]).await {
        Ok(_) => (change(client, &id, &definition, force).await?, "changed"),
        Err(error) if error.is_not_found() => (client.post(&["application"], &definition).await?, "made"),
        Err(error) => return Err(error),
    };
    client::print(client, &answer, || say(&format!("application {id} {done}")))
}

async fn change(client: &Client, id: &str, definition: &Value, force: bool) -> Result<Value, Exit> {
    let request = client.request(Method::PUT, &["application", id])?.json(definition);
    client.answer(if force { request.query(&[("force", "true")]) } else { request }).await
}

async fn list(client: &Client) -> Result<(), Exit> {
    let list = client.get(&["application"]).await?;
    client::print(client, &list, || {
        let items = items_of(&list);
        if items.is_empty() {
            return say("no applications; make one with `nexxus app apply FILE`");
        }
        let mut rows = vec![["id", "name", "models", "users"].map(str::to_owned).to_vec()];
        rows.extend(items.iter().map(row));
        say(&table(&rows))
    })
}

fn row(app: &Value) -> Vec<String> {
    let text = |name: &str| super::output::shown(app.get(name));
    let models = app["schema"].as_object().map(|schema| schema.keys().cloned().collect::<Vec<_>>().join(", "));
    let users = if app["authEnabled"] == false { "none needed" } else { "sign in" };
    vec![text("id"), text("name"), models.unwrap_or_default(), users.to_owned()]
}
