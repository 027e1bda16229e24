//! `nexxus user` and `nexxus token`: the users of an application, as the admin.

use clap::{Args, Subcommand};
use rand::RngExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Exit,
    client::{self, Client, Target, json_argument, text_argument},
    output::{items_of, say, say_items, say_one},
};
use crate::config::Duration;

const COLUMNS: [&str; 4] = ["username", "id", "userType", "createdAt"];

/// Add, list and remove users of an application (needs the admin token).
#[derive(Debug, Args)]
pub(super) struct User {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a user.
    Add {
        /// The user's name.
        name: String,
        #[command(flatten)]
        password: Password,
        /// What kind of user; `admin` passes every rule `admin`.
        #[arg(long, value_name = "TYPE")]
        user_type: Option<String>,
        /// Details of the user: JSON, @FILE, or - for stdin.
        #[arg(long, value_name = "JSON")]
        details: Option<String>,
    },
    /// List the users.
    List,
    /// Show a user.
    Show {
        /// The user's name.
        name: String,
    },
    /// Give a user another password.
    Passwd {
        /// The user's name.
        name: String,
        #[command(flatten)]
        password: Password,
    },
    /// Remove a user; what belongs to the user stays.
    Delete {
        /// The user's name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct Password {
    /// The password, @FILE, or - for stdin. Left out, one is made up and printed.
    #[arg(long)]
    password: Option<String>,
}

/// Make tokens for users (needs the admin token).
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token for a user and print it. With --device it is bound to that device.
    Create {
        /// The user's name.
        #[arg(long, value_name = "NAME")]
        user: String,
        /// How long it is valid, e.g. 12h [default: auth.token_ttl].
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Duration>,
    },
}

impl User {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        client.app()?;
        match self.command {
            Command::Add { name, password, user_type, details } => {
                let details = details.map(|details| json_argument("the details", &details)).transpose()?;
                add(&client, name, password, user_type, details).await
            }
            Command::List => {
                let list = client.get(&["admin", "users"]).await?;
                client::print(&client, &list, || say_items(&list, &COLUMNS, "no users"))
            }
            Command::Show { name } => {
                let user = find(&client, &name).await?;
                client::print(&client, &user, || say_one(&user, &COLUMNS))
            }
            Command::Passwd { name, password } => passwd(&client, &name, password).await,
            Command::Delete { name } => {
                let id = id_of(&find(&client, &name).await?)?;
                let answer = client.delete(&["admin", "users", &id]).await?;
                client::print(&client, &answer, || say(&format!("user {name} deleted")))
            }
        }
    }
}

impl Token {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        let TokenCommand::Create { user, ttl } = self.command;
        client.app()?;
        let id = id_of(&find(&client, &user).await?)?;
        let token = create_token(&client, &id, client.device(), ttl).await?;
        client::print(&client, &token, || say(token["token"].as_str().unwrap_or_default()))
    }
}

/// Makes a token for a user, bound to a device where one is named.
pub(super) async fn create_token(
    client: &Client,
    user: &str,
    device: Option<&str>,
    ttl: Option<Duration>,
) -> Result<Value, Exit> {
    let body = without_nulls(json!({ "device": device, "ttl": ttl.map(Duration::as_secs) }));
    client.post(&["admin", "users", user, "token"], &body).await
}

async fn add(
    client: &Client,
    name: String,
    password: Password,
    user_type: Option<String>,
    details: Option<Value>,
) -> Result<(), Exit> {
    let (password, is_made_up) = password.chosen()?;
    let body = json!({ "username": name, "password": password, "userType": user_type, "details": details });
    let answer = client.post(&["admin", "users"], &without_nulls(body)).await?;
    client::print(client, &with_password(answer.clone(), &password, is_made_up), || {
        say(&format!("user {name} added"))?;
        say_made_up(&password, is_made_up)
    })
}

async fn passwd(client: &Client, name: &str, password: Password) -> Result<(), Exit> {
    let id = id_of(&find(client, name).await?)?;
    let (password, is_made_up) = password.chosen()?;
    let request = client.request(Method::PATCH, &["admin", "users", &id])?;
    let answer = client.answer(request.json(&json!({ "password": password }))).await?;
    client::print(client, &with_password(answer, &password, is_made_up), || {
        say(&format!("user {name} has a new password"))?;
        say_made_up(&password, is_made_up)
    })
}

/// The user of this name.
pub(super) async fn find(client: &Client, name: &str) -> Result<Value, Exit> {
    let app = client.app()?;
    let request = client.request(Method::GET, &["admin", "users"])?.query(&[("username", name)]);
    let list = client.answer(request).await?;
    let found = items_of(&list).iter().find(|user| user["username"] == name);
    found.cloned().ok_or_else(|| Exit::Failed(format!("there is no user {name} in {app}")))
}

pub(super) fn id_of(user: &Value) -> Result<String, Exit> {
    let id = user["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| Exit::Failed("the server answered a user without an id".to_owned()))
}

impl Password {
    /// The password, and whether it was made up here.
    fn chosen(self) -> Result<(String, bool), Exit> {
        match self.password {
            Some(password) => Ok((text_argument(&password)?, false)),
            None => Ok((made_up_password(), true)),
        }
    }
}

/// 20 characters that are hard to mistake: 100 bits.
fn made_up_password() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = rand::rng();
    (0..20).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

fn say_made_up(password: &str, is_made_up: bool) -> Result<(), Exit> {
    if is_made_up { say(&format!("password: {password}")) } else { Ok(()) }
}

fn with_password(mut answer: Value, password: &str, is_made_up: bool) -> Value {
    if let (Value::Object(members), true) = (&mut answer, is_made_up) {
        members.insert("password".to_owned(), password.into());
    }
    answer
}

/// What was not said is not sent.
pub(super) fn without_nulls(mut body: Value) -> Value {
    if let Value::Object(members) = &mut body {
        members.retain(|_, value| !value.is_null());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_made_up_where_none_is_given() {
        let (made_up, is_made_up) = Password { password: None }.chosen().expect("a password");
        assert!(is_made_up && made_up.len() == 20, "{made_up}");
        assert_ne!(made_up, made_up_password());
        assert_eq!(Password { password: Some("mine".to_owned()) }.chosen(), Ok(("mine".to_owned(), false)));
        assert_eq!(with_password(json!({ "id": 1 }), "p", true), json!({ "id": 1, "password": "p" }));
        assert_eq!(with_password(json!({ "id": 1 }), "p", false), json!({ "id": 1 }));
    }

    #[test]
    fn what_was_not_said_is_not_sent() {
        assert_eq!(without_nulls(json!({ "a": null, "b": 1 })), json!({ "b": 1 }));
    }
}
