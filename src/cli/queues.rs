//! `nexxus queue`: what waits in the queues, and what was given up.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Exit,
    client::{self, Client, Target},
    output::{plain, say, say_items, say_json},
};

/// Look into queues; list, retry and drop messages that were given up (needs the admin token).
#[derive(Debug, Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the queues: what waits in each, and what was given up.
    List,
    /// Messages that failed too often.
    #[command(subcommand)]
    Dead(Dead),
}

#[derive(Debug, Subcommand)]
enum Dead {
    /// List the messages that were given up in a queue, oldest first.
    List {
        /// The queue that they failed in, e.g. writer.
        queue: String,
        /// Only those behind this one.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show a message, whole.
    Show {
        /// The queue that it failed in, e.g. writer.
        queue: String,
        /// The message's id.
        id: String,
    },
    /// Put messages back into their queue.
    #[command(override_usage = "nexxus queue dead retry [OPTIONS] <QUEUE> <ID>...|--all")]
    Retry {
        /// The queue that they failed in, e.g. writer.
        queue: String,
        #[command(flatten)]
        which: Which,
    },
    /// Drop messages for good.
    #[command(override_usage = "nexxus queue dead drop [OPTIONS] <QUEUE> <ID>...|--all")]
    Drop {
        /// The queue that they failed in, e.g. writer.
        queue: String,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The messages' ids.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that are there now.
    #[arg(long)]
    all: bool,
}

impl Queue {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let client = self.target.client()?;
        match self.command {
            Command::List => {
                let list = client.get(&["admin", "queues"]).await?;
                client::print(&client, &list, || {
                    say_items(&list, &["name", "ready", "unacked", "dead", "oldest"], "no queues")
                })
            }
            Command::Dead(Dead::List { queue, after, limit }) => list(&client, &queue, after, limit).await,
            Command::Dead(Dead::Show { queue, id }) => {
                say_json(&client.get(&["admin", "queues", &queue, "dead", &id]).await?)
            }
            Command::Dead(Dead::Retry { queue, which }) => settle(&client, &queue, "retry", which).await,
            Command::Dead(Dead::Drop { queue, which }) => settle(&client, &queue, "drop", which).await,
        }
    }
}

async fn list(client: &Client, queue: &str, after: Option<String>, limit: Option<u32>) -> Result<(), Exit> {
    let parameters = [("after", after), ("limit", limit.map(|limit| limit.to_string()))];
    let given: Vec<(&str, String)> = parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let request = client.request(Method::GET, &["admin", "queues", queue, "dead"])?.query(&given);
    let list = client.answer(request).await?;
    client::print(client, &list, || {
        say_items(&flat(&list), &["id", "time", "tries", "reason"], "no dead messages")?;
        if let Some(next) = list["next"].as_str() {
            eprintln!("there are more: --after {}", plain(next));
        }
        Ok(())
    })
}

/// The list with what is said of each death beside the rest.
fn flat(list: &Value) -> Value {
    let mut list = list.clone();
    for item in list["items"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(Value::Object(death)) = item.remove("dead") {
            item.extend(death);
        }
    }
    list
}

async fn settle(client: &Client, queue: &str, how: &str, which: Which) -> Result<(), Exit> {
    let body = if which.all { json!({ "all": true }) } else { json!({ "ids": which.ids }) };
    let answer = client.post(&["admin", "queues", queue, "dead", how], &body).await?;
    client::print(client, &answer, || say(&settled(&answer, how, queue)))?;
    let n_missing = (which.ids.len() as u64).saturating_sub(count(&answer).unwrap_or_default());
    match n_missing {
        0 => Ok(()),
        1 => Err(Exit::Failed(format!("1 of them is no dead message of {}", plain(queue)))),
        n_missing => Err(Exit::Failed(format!("{n_missing} of them are no dead messages of {}", plain(queue)))),
    }
}

fn count(answer: &Value) -> Option<u64> {
    ["retried", "dropped"].iter().find_map(|name| answer[*name].as_u64())
}

fn settled(answer: &Value, how: &str, queue: &str) -> String {
    let done = if how == "retry" { "put back" } else { "dropped" };
    match count(answer) {
        Some(1) => format!("1 message of {} {done}", plain(queue)),
        Some(count) => format!("{count} messages of {} {done}", plain(queue)),
        None => format!("messages of {} {done}", plain(queue)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_counted() {
        assert_eq!(settled(&json!({ "retried": 1, "items": [] }), "retry", "writer"), "1 message of writer put back");
        assert_eq!(settled(&json!({ "dropped": 0 }), "drop", "writer"), "0 messages of writer dropped");
    }

    #[test]
    fn a_death_is_told_with_its_message() {
        let list = json!({ "items": [{ "id": "1", "dead": { "reason": "poison", "tries": 5 } }, { "id": "2", "dead": null }] });
        assert_eq!(flat(&list), json!({ "items": [{ "id": "1", "reason": "poison", "tries": 5 }, { "id": "2" }] }));
    }
}
