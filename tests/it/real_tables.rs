//! Real tables through the whole system: a week of earthquakes and four years of weather. Every row is created, some are patched and
//! deleted, while devices listen by model, by id, by user and by filter; each gets exactly its share ([`crate::tables`]).

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    harness::{Device, Server, User},
    tables::{END, Edit, Row, Tables},
};

const N_WRITERS: usize = 8;

async fn write(user: &User, row: &Row) {
    user.create(row.model, row.body()).await;
    let path = format!("/model/{}/{}", row.model, row.id);
    let answer = match row.edit {
        Edit::None => return,
        Edit::Raise(field) => {
            let patch = json!([{ "op": "incr", "path": [field], "value": [1] }]);
            user.call(Method::PATCH, &path, patch).await
        }
        Edit::Delete => user.call(Method::DELETE, &path, Value::Null).await,
    };
    answer.expect(StatusCode::ACCEPTED);
}

/// All frames up to the end.
async fn listen(mut device: Device) -> Vec<Value> {
    // Some hear nothing until everything is written.
    device.patience *= 15;
    let mut frames = Vec::new();
    loop {
        let frame = device.next().await;
        if frame["metadata"]["type"] == END {
            return frames;
        }
        frames.push(frame);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_of_the_tables_gets_exactly_its_share() {
    let tables = Tables::read();
    assert_eq!((tables.quakes.len(), tables.days.len()), (1_707, 1_461));
    let server = Server::start().await;
    let app = server.app_as(crate::tables::definition("tables")).await;
    let users = [app.user("usgs").await, app.user("noaa").await];

    let mut listening = Vec::new();
    for (place, listener) in tables.listeners([&users[0].id, &users[1].id]).into_iter().enumerate() {
        let mut device = users[listener.user].device(&format!("listener-{place}")).await;
        device.subscribe(listener.subscription.clone()).await;
        device.subscribe(json!({ "model": END })).await;
        listening.push((listener, tokio::spawn(listen(device))));
    }
    let mut writing = Vec::new();
    for writer in 0..N_WRITERS {
        let rows: Vec<Row> = tables.all().skip(writer).step_by(N_WRITERS).cloned().collect();
        let users = users.clone();
        writing.push(tokio::spawn(async move {
            for row in rows {
                write(&users[row.owner], &row).await;
            }
        }));
    }
    for task in writing {
        task.await.expect("no panic");
    }
    let last = users[0].create(END, json!({})).await.1;
    for (listener, task) in listening {
        let frames = task.await.expect("no panic");
        assert!(!frames.is_empty(), "{} hears of something", listener.name);
        listener.check(&frames, &tables).unwrap_or_else(|why| panic!("{why}"));
    }
    check_stored(&users[0], &tables, &last).await;
}

/// What is stored is what the tables say.
async fn check_stored(user: &User, tables: &Tables, last: &str) {
    let request = user.request(Method::GET, "/model/quake?count=true&limit=5&sort=-mag,time").header("nxx-after", last);
    let found = user.send(request).await.expect(StatusCode::OK);
    let mut left: Vec<Row> = tables.quakes.iter().filter_map(Row::edited).collect();
    assert_eq!(found["total"], json!(left.len()));
    left.retain(|row| row.fields.contains_key("mag"));
    left.sort_by(|a, b| {
        let key = |row: &Row, name: &str| row.number(name).expect("a number");
        key(b, "mag").total_cmp(&key(a, "mag")).then(key(a, "time").total_cmp(&key(b, "time"))).then(a.id.cmp(&b.id))
    });
    let strongest: Vec<&str> = left.iter().take(5).map(|row| row.id.as_str()).collect();
    let listed: Vec<&str> =
        found["items"].as_array().expect("items").iter().filter_map(|item| item["id"].as_str()).collect();
    assert_eq!(listed, strongest);
}
