//! Two real tables, what is done with them, who listens, and what each listener has to be told: a computation over the rows that shares
//! no code with the server. Plain data in, plain data out: the whole-system test and `examples/real_tables.rs` both use it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

const EARTHQUAKES: &str = include_str!("../data/earthquakes.csv");
const WEATHER: &str = include_str!("../data/seattle-weather.csv");
/// The model whose only document is made last: a listener that is told of it has been told of everything before it.
pub(crate) const END: &str = "end";

/// A row of a table, as the document that is made of it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) model: &'static str,
    pub(crate) id: String,
    pub(crate) fields: Map<String, Value>,
    /// Which of the two users owns it.
    pub(crate) owner: usize,
    pub(crate) edit: Edit,
}

/// The step that is made on a row after its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    None,
    /// One field is raised by one.
    Raise(&'static str),
    Delete,
}

/// Both tables.
pub(crate) struct Tables {
    pub(crate) quakes: Vec<Row>,
    pub(crate) days: Vec<Row>,
}

/// Who listens to what.
pub(crate) struct Listener {
    pub(crate) name: &'static str,
    /// Which of the two users it belongs to.
    pub(crate) user: usize,
    pub(crate) subscription: Value,
    hears: Box<dyn Fn(&Row) -> bool + Send>,
}

/// What a listener is told of a change: event, document, version, and whether it entered or left.
pub(crate) type Told = (String, String, u64, &'static str);

/// How often a listener was told of what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) created: usize,
    pub(crate) entered: usize,
    pub(crate) changed: usize,
    pub(crate) left: usize,
    pub(crate) deleted: usize,
}

/// The application that takes the tables: everybody edits earthquakes, a day is seen by its owner only.
pub(crate) fn definition(id: &str) -> Value {
    let number = json!({ "type": "number", "filterable": true });
    let text = json!({ "type": "string", "filterable": true });
    let date = json!({ "type": "date", "filterable": true });
    let schema = json!({
        "quake": {
            "time": date, "mag": number, "magType": text, "place": { "type": "string" }, "net": text, "status": text, "type_": text,
            "felt": number, "sig": number, "longitude": number, "latitude": number, "depth": number,
        },
        "weather": {
            "date": date, "precipitation": number, "temp_max": number, "temp_min": number, "wind": number, "weather": text,
        },
        END: {},
    });
    let rules = json!({ "quake": { "update": "user", "delete": "user" }, "weather": { "read": "owner" } });
    json!({ "id": id, "name": "Real tables", "schema": schema, "rules": rules })
}

impl Tables {
    pub(crate) fn read() -> Self {
        let texts = ["id", "magType", "place", "net", "status", "type"];
        let mut quakes = rows("quake", "mag", EARTHQUAKES, &texts);
        for quake in &mut quakes {
            quake.id = quake.take("id").as_str().expect("an id").to_owned();
            // `type` is the name of a universal field; times are in milliseconds, the API takes seconds.
            let kind = quake.take("type");
            quake.fields.insert("type_".to_owned(), kind);
            let time = quake.take("time").as_f64().expect("a time");
            quake.fields.insert("time".to_owned(), json!(time / 1000.0));
        }
        let mut days = rows("weather", "precipitation", WEATHER, &["date", "weather"]);
        for day in &mut days {
            let date = day.take("date").as_str().expect("a date").to_owned();
            day.fields.insert("date".to_owned(), json!(format!("{date}T00:00:00Z")));
            day.id = format!("day-{date}");
        }
        Self { quakes, days }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Row> {
        self.quakes.iter().chain(&self.days)
    }

    /// Listeners of two users with these ids: by model, by document, by user, by filter.
    pub(crate) fn listeners(&self, users: [&str; 2]) -> Vec<Listener> {
        let one = self.quakes[13].id.clone();
        let by_id = json!({ "model": "quake", "modelId": one });
        let by_user = json!({ "model": "quake", "userId": users[1] });
        let strong = json!({ "mag": { "$gte": 4.5 }, "net": { "$in": ["us", "ak"] } });
        let unfelt = json!({ "$or": [{ "felt": { "$exists": false } }, { "$not": { "depth": { "$lt": 100 } } }] });
        let wet = json!({ "precipitation": { "$gt": 10, "$lte": 40 }, "temp_max": { "$lt": 8 }, "weather": { "$prefix": "r" } });
        let filtered = |model: &str, filter: Value| json!({ "model": model, "filter": filter });
        vec![
            listener("all quakes", 0, json!({ "model": "quake", "limit": 0 }), |row| row.model == "quake"),
            listener("one quake", 1, by_id, move |row| row.id == one),
            listener("quakes of a user", 0, by_user, |row| row.model == "quake" && row.owner == 1),
            listener("strong quakes", 1, filtered("quake", strong), |row| {
                row.number("mag").is_some_and(|mag| mag >= 4.5) && ["us", "ak"].contains(&row.text("net"))
            }),
            listener("unfelt or deep quakes", 0, filtered("quake", unfelt), |row| {
                let is_shallow = row.number("depth").is_some_and(|depth| depth < 100.0);
                row.model == "quake" && (!row.fields.contains_key("felt") || !is_shallow)
            }),
            // Edits only raise: here documents leave.
            listener("weak quakes", 1, filtered("quake", json!({ "mag": { "$lt": 2 } })), |row| {
                row.number("mag").is_some_and(|mag| mag < 2.0)
            }),
            listener("own days", 0, json!({ "model": "weather" }), |row| row.model == "weather" && row.owner == 0),
            listener("own wet winter days", 1, filtered("weather", wet), |row| {
                let is_wet = row.number("precipitation").is_some_and(|rain| rain > 10.0 && rain <= 40.0);
                let is_cold = row.number("temp_max").is_some_and(|warmth| warmth < 8.0);
                row.owner == 1 && is_wet && is_cold && row.text("weather").starts_with('r')
            }),
        ]
    }
}

fn listener(
    name: &'static str,
    user: usize,
    subscription: Value,
    hears: impl Fn(&Row) -> bool + Send + 'static,
) -> Listener {
    Listener { name, user, subscription, hears: Box::new(hears) }
}

/// The rows of a table, with numbers wherever no text is named. An empty cell is an absent field.
fn rows(model: &'static str, raised: &'static str, table: &str, texts: &[&str]) -> Vec<Row> {
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let names: Vec<String> = reader.headers().expect("a header").iter().map(str::to_owned).collect();
    let row = |(number, record): (usize, Result<csv::StringRecord, csv::Error>)| {
        let record = record.expect("a row");
        let cells = names.iter().zip(record.iter()).filter(|(_, text)| !text.is_empty());
        let value = |name: &str, text: &str| match texts.contains(&name) {
            true => json!(text),
            false => json!(text.parse::<f64>().expect("a number")),
        };
        let fields = cells.map(|(name, text)| (name.clone(), value(name, text))).collect();
        let edit = match number {
            number if number % 10 == 3 => Edit::Raise(raised),
            number if number % 15 == 5 => Edit::Delete,
            _ => Edit::None,
        };
        Row { model, id: String::new(), fields, owner: number % 2, edit }
    };
    reader.records().enumerate().map(row).collect()
}

impl Row {
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.fields.get(name)?.as_f64()
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn take(&mut self, name: &str) -> Value {
        self.fields.remove(name).expect("a field of every row")
    }

    /// The body that creates it.
    pub(crate) fn body(&self) -> Value {
        let mut body = self.fields.clone();
        body.insert("id".to_owned(), json!(self.id));
        Value::Object(body)
    }

    /// What the edit leaves of it.
    pub(crate) fn edited(&self) -> Option<Row> {
        let mut row = self.clone();
        match self.edit {
            Edit::Delete => return None,
            Edit::None => {}
            Edit::Raise(name) => {
                let raised = self.number(name).unwrap_or(0.0) + 1.0;
                row.fields.insert(name.to_owned(), json!(raised));
            }
        }
        Some(row)
    }
}

impl Listener {
    /// Everything that it must be told, sorted, were it told of each document by itself.
    pub(crate) fn expected(&self, tables: &Tables) -> Vec<Told> {
        let mut told = Vec::new();
        for row in tables.all() {
            let mut tell = |event: &str, version, how| told.push((event.to_owned(), row.id.clone(), version, how));
            let was = (self.hears)(row);
            if was {
                tell("model_created", 1, "");
            }
            match row.edited() {
                _ if row.edit == Edit::None => {}
                None if was => tell("model_deleted", 2, ""),
                None => {}
                Some(after) => match (was, (self.hears)(&after)) {
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

    /// Compares the frames that it got, in the order in which they came, with what it had to get.
    pub(crate) fn check(&self, frames: &[Value], tables: &Tables) -> Result<Share, String> {
        let name = self.name;
        let mut versions = BTreeMap::new();
        let mut last_offset = "";
        let mut told = Vec::new();
        for frame in frames {
            let news = told_by(frame).ok_or_else(|| format!("{name}: what is this? {frame}"))?;
            let offset = frame["offset"].as_str().unwrap_or_default();
            if offset <= last_offset {
                return Err(format!("{name}: offset {offset} came after {last_offset}"));
            }
            last_offset = offset;
            let before = versions.insert(news.1.clone(), news.2);
            if before >= Some(news.2) {
                return Err(format!("{name}: {} went from version {before:?} to {}", news.1, news.2));
            }
            told.push(news);
        }
        told.sort();
        let expected = self.expected(tables);
        if told != expected {
            let missed = expected.iter().filter(|news| told.binary_search(news).is_err()).take(3).collect::<Vec<_>>();
            let extra = told.iter().filter(|news| expected.binary_search(news).is_err()).take(3).collect::<Vec<_>>();
            return Err(format!("{name}: missed {missed:?} …, was told {extra:?} … that do not concern it"));
        }
        Ok(share(&told))
    }
}

fn told_by(frame: &Value) -> Option<Told> {
    let metadata = &frame["metadata"];
    let is_listed = |name: &str| metadata[name].as_array().is_some_and(|channels| !channels.is_empty());
    let how = match (is_listed("entered"), is_listed("left")) {
        (true, false) => "entered",
        (false, true) => "left",
        _ => "",
    };
    let text = |value: &Value| Some(value.as_str()?.to_owned());
    Some((text(&frame["event"])?, text(&metadata["id"])?, metadata["version"].as_u64()?, how))
}

fn share(told: &[Told]) -> Share {
    let mut share = Share::default();
    for (event, _, _, how) in told {
        let counted = match (event.as_str(), *how) {
            ("model_created", _) => &mut share.created,
            ("model_deleted", _) => &mut share.deleted,
            (_, "entered") => &mut share.entered,
            (_, "left") => &mut share.left,
            _ => &mut share.changed,
        };
        *counted += 1;
    }
    share
}
