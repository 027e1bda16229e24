use std::time::Duration;

use nexxus_storage::model::{ChangeId, Document, Event, Timestamp};
use serde_json::{Value, json};

use super::*;

fn definition(at: u64, title: Value, rules: Value) -> Value {
    json!({
        "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, at),
        "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z", "rules": rules,
        "schema": { "task": { "title": title, "rank": { "type": "number", "filterable": true } }, "note": {} },
    })
}

fn text() -> Value {
    json!({ "type": "string", "filterable": true })
}

fn application(definition: Value) -> Option<Arc<Application>> {
    let record = serde_json::from_value(definition).expect("a record");
    Some(Arc::new(Application::compile(record).expect("an application")))
}

fn entry(at: u64, event: Event) -> Entry {
    Entry { offset: Offset::new(1, at), change_id: ChangeId::generate(), time: Timestamp::now(), event }
}

/// A subscription as the server makes it, of a device of its own.
fn subscription(number: u8, more: Value) -> records::Subscription {
    let mut record = json!({
        "app": "a", "id": format!("{number:032x}"), "device": format!("d{number}"), "model": "task", "since": Offset::new(1, 5),
    });
    for (name, value) in more.as_object().expect("an object") {
        record[name] = value.clone();
    }
    let filter = record.get("filter").map(|filter| {
        let schema = application(definition(1, text(), json!({}))).expect("an application");
        let model = schema.schema.model("task").expect("a model").clone();
        nexxus_storage::model::Filter::parse(filter, &model, true).expect("a filter")
    });
    if let Some(filter) = &filter {
        record["filter"] = serde_json::from_str(filter.canonical()).expect("JSON");
    }
    if record.get("channel").is_none() {
        let part =
            |name: &str, key: &str| record[key].as_str().map_or(String::new(), |value| format!(":{name}:{value}"));
        let hash = filter.map_or(String::new(), |filter| format!(":filter:{}", filter.hash()));
        let model = record["model"].as_str().expect("a model");
        record["channel"] =
            json!(format!("app:a{}:model:{model}{}{hash}", part("user", "userId"), part("id", "modelId")));
    }
    serde_json::from_value(record).expect("a record")
}

fn various() -> Vec<records::Subscription> {
    [
        json!({}),
        json!({ "user": "u1" }),
        json!({ "user": "u1", "modelId": "t1" }),
        json!({ "user": "u2", "userId": "u1", "filter": { "title": "x", "rank": { "$gt": 1, "$lte": 5 } } }),
        json!({ "user": "u2", "filter": { "$or": [{ "title": { "$prefix": "x" } }, { "$not": { "rank": 3 } }] } }),
        json!({ "user": "u2", "filter": { "title": { "$in": ["2026-01-01T00:00:00Z", "a", "2"] } } }),
        json!({ "admin": true, "filter": { "title": { "$exists": false } } }),
        json!({ "admin": true, "user": "u2" }),
        json!({ "user": "u1", "id": "named-by-somebody" }),
        json!({ "user": "u1", "channel": "app:a:model:task:filter:of-old" }),
        json!({ "user": "u1", "filter": { "title": "2026-01-01T00:00:00Z" } }),
        json!({ "user": "u1", "model": "note" }),
        json!({ "user": "u1", "model": "gone" }),
    ]
    .into_iter()
    .zip(1..)
    .map(|(more, number)| subscription(number, more))
    .collect()
}

fn crowd(application: Option<Arc<Application>>) -> Crowd {
    let mut crowd = Crowd::of(application);
    for subscription in various() {
        crowd.matcher.connect(&subscription.device, "q");
        crowd.subscribe(subscription, Some(UserFacts::default()));
    }
    crowd
}

/// Takes in an entry at once.
fn follow(crowd: &mut Crowd, entry: &Entry) -> Channels {
    follow_in_slices(crowd, entry, Duration::MAX, |_| unreachable!("it is one slice"))
}

fn follow_in_slices(crowd: &mut Crowd, entry: &Entry, slice: Duration, between: impl Fn(&mut Crowd)) -> Channels {
    if !crowd.follow(entry) {
        return Channels::new();
    }
    loop {
        match crowd.go_on(slice) {
            Progress::More => between(crowd),
            Progress::Done(channels) => return channels,
            Progress::Lost => panic!("it was begun"),
        }
    }
}

fn records(crowd: &Crowd) -> Vec<records::Subscription> {
    let listeners = crowd.matcher.subscriptions().map(|number| Listener { crowd, number });
    let mut records: Vec<_> = listeners.filter_map(|listener| Some(listener.record()?.into_owned())).collect();
    records.sort_by(|one, other| {
        one.device.as_str().len().cmp(&other.device.as_str().len()).then(one.device.cmp(&other.device))
    });
    records
}

/// What the devices hear of a document that is created.
fn hearing(crowd: &Crowd, document: Value) -> Vec<String> {
    let mut flat = json!({
        "id": "t1", "type": "task", "appId": "a", "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:00.000Z", "version": 1,
    });
    for (name, value) in document.as_object().expect("an object") {
        flat[name] = value.clone();
    }
    let document: Document = serde_json::from_value(flat).expect("a document");
    let hits = crowd.matcher.matching(&entry(100, Event::Created { document }));
    let devices = hits.iter().flat_map(|hit| &hit.devices).flat_map(|(_, devices)| devices);
    let mut devices: Vec<_> = devices.map(|device| device.to_string()).collect();
    devices.sort_by_key(|device| (device.len(), device.clone()));
    devices
}

#[test]
fn records_are_put_together_again_under_any_schema() {
    let date = json!({ "type": "date", "filterable": true });
    let plain = json!({ "type": "string" });
    let mut crowd = crowd(application(definition(1, text(), json!({}))));
    assert_eq!(records(&crowd), various());
    // What the server made is not kept: the odd ones are (an admin with a user, another name, another key, no model).
    assert_eq!(crowd.kept.len(), 4);
    for (at, title) in [(10, date), (11, plain), (12, text()), (13, json!({ "type": "array", "arrayType": "string" }))]
    {
        crowd.define(application(definition(at, title, json!({ "task": { "read": "owner" } }))));
        assert_eq!(records(&crowd), various(), "{at}");
    }
    crowd.define(None);
    assert_eq!(records(&crowd), various());
    crowd.define(application(definition(20, text(), json!({}))));
    assert_eq!((records(&crowd), crowd.kept.len()), (various(), 4));
    for record in various() {
        crowd.unsubscribe(&record.id);
        crowd.unsubscribe(&record.id);
    }
    assert!(
        crowd.kept.is_empty()
            && crowd.n_subscriptions() == 0
            && crowd.users.find(&"u1".parse().expect("an id")).is_none()
    );
}

#[test]
fn subscriptions_follow_definitions_and_users() {
    let mut crowd = crowd(application(definition(1, text(), json!({}))));
    let x = json!({ "title": "x", "rank": 2, "userId": "u1" });
    assert_eq!(hearing(&crowd, x.clone()), ["d2", "d3", "d4", "d5", "d8", "d9", "d10"]);
    // Only who must hear it now.
    let owner = definition(10, text(), json!({ "task": { "read": "owner" } }));
    let before = definition(1, text(), json!({}));
    let altered = follow(&mut crowd, &entry(10, Event::Defined { definition: owner, before: Some(before) }));
    let devices: Vec<_> = altered.iter().map(|(device, _)| device.to_string()).collect();
    assert_eq!(devices, ["d10", "d11", "d2", "d3", "d4", "d5", "d6", "d9"], "not admins, nor what is about no task");
    assert_eq!(hearing(&crowd, x.clone()), ["d2", "d3", "d8", "d9", "d10"]);
    // A user becomes an admin.
    let facts = |user_type: &str| UserFacts { user_type: Some(user_type.to_owned()), ..UserFacts::default() };
    let changed = Event::UserChanged { user: "u2".parse().expect("an id"), before: None, after: Some(facts("admin")) };
    let altered = follow(&mut crowd, &entry(11, changed));
    assert_eq!(altered.iter().map(|(device, _)| device.as_str()).collect::<Vec<_>>(), ["d4", "d5", "d6"]);
    assert_eq!(hearing(&crowd, x.clone()), ["d2", "d3", "d4", "d5", "d8", "d9", "d10"]);
    // One that is not known.
    let changed = Event::UserChanged { user: "u9".parse().expect("an id"), before: None, after: Some(facts("admin")) };
    assert!(follow(&mut crowd, &entry(12, changed)).is_empty());
    // A filter that fits no longer hears nothing, until it fits again.
    crowd.define(application(definition(13, json!({ "type": "string" }), json!({}))));
    assert_eq!(hearing(&crowd, x.clone()), ["d2", "d3", "d8", "d9", "d10"]);
    crowd.define(application(definition(14, text(), json!({}))));
    assert_eq!(hearing(&crowd, x), ["d2", "d3", "d4", "d5", "d8", "d9", "d10"]);
}

#[test]
fn an_older_definition_is_not_taken() {
    let mut crowd = crowd(application(definition(10, text(), json!({}))));
    let older = definition(3, text(), json!({ "task": { "read": "none" } }));
    follow(&mut crowd, &entry(3, Event::Defined { definition: older, before: None }));
    assert_eq!(crowd.application.as_ref().map(|it| it.record.offset), Some(Offset::new(1, 10)));
    let deleted = json!({ "deleted": true });
    let mut definition = definition(11, text(), json!({}));
    definition["deleted"] = deleted["deleted"].clone();
    follow(&mut crowd, &entry(11, Event::Defined { definition, before: None }));
    assert!(crowd.application.is_none() && !crowd.is_over());
}

/// Whoever loads subscriptions and then reads the feed is told of some twice.
#[test]
fn a_user_whose_subscription_is_told_of_twice_is_still_known() {
    let rules = json!({ "task": { "read": { "title": "$user.details.team" } } });
    let mut crowd = Crowd::of(application(definition(1, text(), rules)));
    let team =
        |team: &str| UserFacts { user_type: None, details: [("team".to_owned(), json!(team))].into_iter().collect() };
    let theirs = subscription(1, json!({ "user": "u1" }));
    crowd.matcher.connect(&theirs.device, "q");
    let user = theirs.user.clone().expect("a user");
    crowd.subscribe(theirs.clone(), Some(team("a")));
    crowd.subscribe(theirs, None);
    crowd.know(&user, team("b"));
    assert_eq!(crowd.facts_of(&user), Some(&team("b")));
    assert_eq!(hearing(&crowd, json!({ "title": "a" })), [""; 0], "no longer readable");
    assert_eq!(hearing(&crowd, json!({ "title": "b" })), ["d1"]);
}

/// Every kind of subscription ten times over, each of a device of its own.
fn many(application: Option<Arc<Application>>) -> Crowd {
    let mut crowd = Crowd::of(application);
    for round in 0..10_u8 {
        for (number, subscription) in (round * 13..).zip(various()) {
            let id = match subscription.id.as_str() {
                "named-by-somebody" => format!("named-{number}"),
                _ => format!("{number:032x}"),
            };
            let (id, device) = (id.parse().expect("an id"), format!("d{number}").parse().expect("an id"));
            crowd.matcher.connect(&device, "q");
            crowd.subscribe(records::Subscription { id, device, ..subscription }, Some(UserFacts::default()));
        }
    }
    crowd
}

/// What each group of equal subscriptions is, and how many are in it.
fn groups(crowd: &Crowd) -> Vec<(String, usize)> {
    let mut groups: HashMap<String, usize> = HashMap::new();
    for number in crowd.matcher.subscriptions() {
        let (listening, effective) = (crowd.matcher.listening(number), crowd.matcher.effective(number));
        *groups.entry(format!("{listening:?} {effective:?}")).or_default() += 1;
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort();
    groups
}

#[test]
fn slices_come_to_the_same_as_asking_and_compiling_each() {
    let hidden = json!({ "type": "string", "filterable": true, "hidden": true });
    let by_rule = |read: Value| json!({ "task": { "read": read } });
    let mut open = definition(16, text(), json!({}));
    open["authEnabled"] = json!(false);
    let mut deleted = definition(17, text(), json!({}));
    deleted["deleted"] = json!(true);
    let definitions = [
        definition(10, text(), by_rule(json!("owner"))),
        definition(11, text(), by_rule(json!({ "$or": [{ "userId": "$user.id" }, { "title": "x" }] }))),
        definition(12, text(), by_rule(json!({ "title": "x" }))),
        definition(13, hidden, by_rule(json!({ "title": "x" }))),
        definition(14, json!({ "type": "date", "filterable": true }), by_rule(json!("public"))),
        definition(15, text(), json!({ "note": { "read": "owner" } })),
        open,
        deleted,
        definition(18, text(), by_rule(json!("none"))),
    ];
    let mut before = definition(1, text(), json!({}));
    let (mut slowly, mut by_slices) = (many(application(before.clone())), many(application(before.clone())));
    for (at, definition) in (10..).zip(definitions) {
        let event = Event::Defined { definition: definition.clone(), before: Some(before) };
        let entry = entry(at, event);
        let expected = slowly.altered_by(&Alteration::of(&entry).expect("an alteration"));
        slowly.define(defined_by(&entry, &definition));
        let altered = follow_in_slices(&mut by_slices, &entry, Duration::ZERO, |_| {});
        assert_eq!(altered, expected, "{at}");
        assert_eq!(groups(&by_slices), groups(&slowly), "{at}");
        assert_eq!((records(&by_slices), by_slices.kept.len()), (records(&slowly), slowly.kept.len()), "{at}");
        before = definition;
    }
    assert_eq!(by_slices.matcher.n_unindexed(), slowly.matcher.n_unindexed());
}

#[test]
fn subscriptions_come_and_go_between_slices() {
    let before = definition(1, text(), json!({}));
    let mut crowd = many(application(before.clone()));
    let owner = definition(10, text(), json!({ "task": { "read": "owner" } }));
    let changed = entry(10, Event::Defined { definition: owner, before: Some(before) });
    // It takes the number of one that goes, which was come to already; the last one goes unreached.
    let late = records::Subscription { since: Offset::new(1, 10), ..subscription(250, json!({ "user": "u1" })) };
    let (first, last) = (format!("{:032x}", 0), format!("{:032x}", 129));
    let altered = follow_in_slices(&mut crowd, &changed, Duration::ZERO, |crowd| {
        crowd.unsubscribe(&first.parse().expect("an id"));
        crowd.unsubscribe(&last.parse().expect("an id"));
        crowd.matcher.connect(&late.device, "q");
        crowd.subscribe(late.clone(), None);
    });
    let is_told = |device: &str| altered.iter().any(|(known, _)| known.as_str() == device);
    assert!(is_told("d14") && !is_told("d250") && !is_told("d129"), "{altered:?}");
    let heard = hearing(&crowd, json!({ "title": "x", "rank": 2, "userId": "u1" }));
    assert!(heard.contains(&"d250".to_owned()) && !heard.contains(&"d0".to_owned()), "{heard:?}");
    let mine =
        records(&crowd).iter().filter(|record| record.user.as_ref().is_some_and(|user| user.as_str() == "u1")).count();
    assert!(mine > 50, "{mine}");
    for record in records(&crowd) {
        crowd.unsubscribe(&record.id);
    }
    assert!(crowd.kept.is_empty() && crowd.n_subscriptions() == 0);
    // Read anew meanwhile: nobody knows who has to ask.
    assert!(matches!(Crowd::default().go_on(Duration::ZERO), Progress::Lost));
}

#[test]
fn a_definition_that_is_not_done_does_not_outlast_the_next() {
    let before = definition(1, text(), json!({}));
    let rules = |read: &str| json!({ "task": { "read": read } });
    let (none, owner) = (definition(10, text(), rules("none")), definition(11, text(), rules("owner")));
    let (mut crowd, mut other) = (many(application(before.clone())), many(application(before.clone())));
    assert!(crowd.follow(&entry(10, Event::Defined { definition: none.clone(), before: Some(before.clone()) })));
    assert!(matches!(crowd.go_on(Duration::ZERO), Progress::More));
    follow(&mut crowd, &entry(11, Event::Defined { definition: owner.clone(), before: Some(none.clone()) }));
    other.define(application(owner.clone()));
    assert_eq!(groups(&crowd), groups(&other));
    assert!(crowd.follow(&entry(12, Event::Defined { definition: none, before: Some(owner) })));
    assert!(matches!(crowd.go_on(Duration::ZERO), Progress::More));
    crowd.define(application(before.clone()));
    other.define(application(before));
    assert_eq!(groups(&crowd), groups(&other));
}
