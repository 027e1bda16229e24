//! Real tables through the whole system: a week of earthquakes and four years of weather. Every row is created, some are patched and
//! deleted, while devices listen by model, by id, by user and by filter. What each gets is checked against a computation over
//! the tables that shares no code with the server.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::harness::{Device, Server, User};

const EARTHQUAKES: &str = include_str!("../data/earthquakes.csv");
const WEATHER: &str = include_str!("../data/seattle-weather.csv");
const N_WRITERS: usize = 8;

/// A row, as the tests compute with it.
#[derive(Clone, Debug)]
struct Row {
    model: &'static str,
    id: String,
    fields: Map<String, Value>,
    /// Which of the two users owns it.
    owner: usize,
}

/// What a listener is told of a change: event, document, version, and whether it entered or left.
type Told = (String, String, u64, &'static str);

/// The step that is made on a row after its creation.
#[derive(Clone, Copy)]
enum Edit {
    None,
    Stronger,
    Delete,
}

fn rows(model: &'static str, table: &str, texts: &[&str], id: impl Fn(&Map<String, Value>) -> String) -> Vec<Row> {
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let names: Vec<String> = reader.headers().expect("a header").iter().map(str::to_owned).collect();
    let row = |(number, record): (usize, Result<csv::StringRecord, csv::Error>)| {
        let record = record.expect("a row");
        let mut fields = Map::new();
        for (name, text) in names.iter().zip(record.iter()).filter(|(_, text)| !text.is_empty()) {
            let value = if texts.contains(&name.as_str()) {
                json!(text)
            } else {
                json!(text.parse::<f64>().expect("a number"))
            };
            fields.insert(name.clone(), value);
        }
        let id = id(&fields);
        fields.remove("id");
        Row { model, id, fields, owner: number % 2 }
    };
    reader.records().enumerate().map(row).collect()
}

fn edit_of(number: usize) -> Edit {
    match number {
        number if number % 10 == 3 => Edit::Stronger,
        number if number % 15 == 5 => Edit::Delete,
        _ => Edit::None,
    }
}

/// The field that is raised by one, and the rows as the edit leaves them.
fn edited(row: &Row, edit: Edit) -> Option<Row> {
    match edit {
        Edit::Delete => None,
        Edit::None => Some(row.clone()),
        Edit::Stronger => {
            let mut row = row.clone();
            let name = raised(row.model);
            let value = row.fields.get(name).and_then(Value::as_f64).unwrap_or(0.0);
            row.fields.insert(name.to_owned(), json!(value + 1.0));
            Some(row)
        }
    }
}

fn raised(model: &str) -> &'static str {
    if model == "quake" { "mag" } else { "precipitation" }
}

/// Everything that a listener must be told, were it told of each document by itself.
fn expected(rows: &[Row], hears: &dyn Fn(&Row) -> bool) -> Vec<Told> {
    let mut told = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let mut tell = |event: &str, version, how| told.push((event.to_owned(), row.id.clone(), version, how));
        let was = hears(row);
        if was {
            tell("model_created", 1, "");
        }
        let edit = edit_of(number);
        match (edit, edited(row, edit)) {
            (Edit::None, _) => {}
            (_, None) if was => tell("model_deleted", 2, ""),
            (_, None) => {}
            (_, Some(after)) => match (was, hears(&after)) {
                (true, true) => tell("model_updated", 2, ""),
                (false, true) => tell("model_updated", 2, "entered"),
                (true, false) => tell("model_updated", 2, "left"),
                (false, false) => {}
            },
        }
    }
    told.sort();
    told
}

fn told_by(frame: &Value, id: &str) -> Told {
    let is_listed = |name: &str| frame["metadata"][name].as_array().is_some_and(|channels| !channels.is_empty());
    let how = match (is_listed("entered"), is_listed("left")) {
        (true, false) => "entered",
        (false, true) => "left",
        _ => "",
    };
    let event = frame["event"].as_str().expect("an event").to_owned();
    (event, id.to_owned(), frame["metadata"]["version"].as_u64().expect("a version"), how)
}

/// Takes as many frames as are expected and checks them, their order included.
async fn check(name: &str, mut device: Device, expected: Vec<Told>) {
    let mut told = Vec::new();
    let mut last_offset = String::new();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..expected.len() {
        let frame = device.next().await;
        let id = frame["metadata"]["id"].as_str().expect("an id").to_owned();
        let offset = frame["offset"].as_str().expect("an offset").to_owned();
        assert!(offset > last_offset, "{name}: offsets rise");
        last_offset = offset;
        let news = told_by(&frame, &id);
        let before = versions.insert(id, news.2);
        assert!(before < Some(news.2), "{name}: versions rise");
        told.push(news);
    }
    told.sort();
    assert_eq!(told, expected, "{name}");
}

async fn write(user: &User, row: &Row, edit: Edit) {
    let mut body = row.fields.clone();
    body.insert("id".to_owned(), json!(row.id));
    user.create(row.model, Value::Object(body)).await;
    let path = format!("/model/{}/{}", row.model, row.id);
    let answer = match edit {
        Edit::None => return,
        Edit::Stronger => {
            let patch = json!([{ "op": "incr", "path": [raised(row.model)], "value": [1] }]);
            user.call(Method::PATCH, &path, patch).await
        }
        Edit::Delete => user.call(Method::DELETE, &path, Value::Null).await,
    };
    assert_eq!(answer.status, 202, "{}", answer.body);
}

fn schema() -> Value {
    let number = json!({ "type": "number", "filterable": true });
    let text = json!({ "type": "string", "filterable": true });
    json!({
        "quake": {
            "time": { "type": "date", "filterable": true }, "mag": number, "magType": text, "place": { "type": "string" }, "net": text,
            "status": text, "type_": text, "felt": number, "sig": number, "longitude": number, "latitude": number, "depth": number,
        },
        "weather": {
            "date": { "type": "date", "filterable": true }, "precipitation": number, "temp_max": number, "temp_min": number,
            "wind": number, "weather": text,
        },
    })
}

fn tables() -> (Vec<Row>, Vec<Row>) {
    let texts = ["id", "magType", "place", "net", "status", "type"];
    let mut quakes = rows("quake", EARTHQUAKES, &texts, |fields| fields["id"].as_str().expect("an id").to_owned());
    for quake in &mut quakes {
        // `type` is the name of a universal field; times are in milliseconds, the API takes seconds.
        let kind = quake.fields.remove("type").expect("a type");
        quake.fields.insert("type_".to_owned(), kind);
        let time = quake.fields["time"].as_f64().expect("a time");
        quake.fields.insert("time".to_owned(), json!(time / 1000.0));
    }
    let days = rows("weather", WEATHER, &["date", "weather"], |fields| {
        format!("day-{}", fields["date"].as_str().expect("a date"))
    });
    let as_date = |mut row: Row| {
        let date = format!("{}T00:00:00Z", row.fields["date"].as_str().expect("a date"));
        row.fields.insert("date".to_owned(), json!(date));
        row
    };
    (quakes, days.into_iter().map(as_date).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_of_the_tables_gets_exactly_its_share() {
    let (quakes, days) = tables();
    assert_eq!((quakes.len(), days.len()), (1_707, 1_461));
    let server = Server::start().await;
    let rules = json!({ "quake": { "update": "user", "delete": "user" }, "weather": { "read": "owner" } });
    let app = server.app("tables", schema(), rules).await;
    let users = [app.user("usgs").await, app.user("noaa").await];
    let number = |row: &Row, name: &str| row.fields.get(name).and_then(Value::as_f64);

    type Hears = Box<dyn Fn(&Row) -> bool>;
    let one = quakes[13].id.clone();
    let listeners: Vec<(&str, usize, Value, bool, Hears)> = vec![
        ("all quakes", 0, json!({ "model": "quake", "limit": 0 }), true, Box::new(|_| true)),
        ("one quake", 1, json!({ "model": "quake", "modelId": one }), true, Box::new(move |row| row.id == one)),
        (
            "quakes of a user",
            0,
            json!({ "model": "quake", "userId": users[1].id }),
            true,
            Box::new(|row| row.owner == 1),
        ),
        (
            "strong quakes",
            1,
            json!({ "model": "quake", "filter": { "mag": { "$gte": 4.5 }, "net": { "$in": ["us", "ak"] } } }),
            true,
            Box::new(move |row| {
                number(row, "mag").is_some_and(|mag| mag >= 4.5)
                    && ["us", "ak"].contains(&row.fields["net"].as_str().unwrap_or(""))
            }),
        ),
        (
            "unfelt or deep",
            0,
            json!({ "model": "quake", "filter": { "$or": [{ "felt": { "$exists": false } }, { "$not": { "depth": { "$lt": 100 } } }] } }),
            true,
            Box::new(move |row| {
                !row.fields.contains_key("felt") || !number(row, "depth").is_some_and(|depth| depth < 100.0)
            }),
        ),
        (
            // Edits only raise: here documents leave.
            "weak quakes",
            1,
            json!({ "model": "quake", "filter": { "mag": { "$lt": 2 } } }),
            true,
            Box::new(move |row| number(row, "mag").is_some_and(|mag| mag < 2.0)),
        ),
        ("own days", 0, json!({ "model": "weather" }), false, Box::new(|row| row.owner == 0)),
        (
            "own wet winter days",
            1,
            json!({ "model": "weather", "filter": { "precipitation": { "$gt": 10, "$lte": 40 }, "temp_max": { "$lt": 8 }, "weather": { "$prefix": "r" } } }),
            false,
            Box::new(move |row| {
                let (rain, warmth) =
                    (number(row, "precipitation").unwrap_or(-1.0), number(row, "temp_max").unwrap_or(99.0));
                row.owner == 1
                    && rain > 10.0
                    && rain <= 40.0
                    && warmth < 8.0
                    && row.fields["weather"].as_str().is_some_and(|text| text.starts_with('r'))
            }),
        ),
    ];
    let mut listening = Vec::new();
    for (place, (name, user, subscription, on_quakes, hears)) in listeners.into_iter().enumerate() {
        let mut device = users[user].device(&format!("listener-{place}")).await;
        device.subscribe(subscription).await;
        let expected = expected(if on_quakes { &quakes } else { &days }, &hears);
        assert!(!expected.is_empty(), "{name} hears of something");
        listening.push(tokio::spawn(check(name, device, expected)));
    }

    let mut writing = Vec::new();
    for writer in 0..N_WRITERS {
        let all: Vec<(usize, Row)> =
            quakes.iter().cloned().enumerate().chain(days.iter().cloned().enumerate()).collect();
        let users = users.clone();
        writing.push(tokio::spawn(async move {
            for (number, row) in all.into_iter().skip(writer).step_by(N_WRITERS) {
                write(&users[row.owner], &row, edit_of(number)).await;
            }
        }));
    }
    for task in writing.into_iter().chain(listening) {
        task.await.expect("no panic");
    }

    // What is stored is what the tables say.
    let after = users[0].create("quake", json!({ "id": "last" })).await.1;
    let request =
        users[0].request(Method::GET, "/model/quake?count=true&limit=5&sort=-mag,time").header("nxx-after", &after);
    let found = users[0].send(request).await.body;
    let mut left: Vec<Row> =
        quakes.iter().enumerate().filter_map(|(number, row)| edited(row, edit_of(number))).collect();
    assert_eq!(found["total"], json!(left.len() + 1));
    left.retain(|row| row.fields.contains_key("mag"));
    left.sort_by(|a, b| {
        let key = |row: &Row, name: &str| number(row, name).unwrap_or(f64::MAX);
        key(b, "mag").total_cmp(&key(a, "mag")).then(key(a, "time").total_cmp(&key(b, "time"))).then(a.id.cmp(&b.id))
    });
    let strongest: Vec<&str> = left.iter().take(5).map(|row| row.id.as_str()).collect();
    let listed: Vec<&str> =
        found["items"].as_array().expect("items").iter().filter_map(|item| item["id"].as_str()).collect();
    assert_eq!(listed, strongest);
}
