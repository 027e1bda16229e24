//! Who is found, by what, and where the frames go.

mod properties;

use std::{collections::BTreeMap, sync::Arc};

use nexxus_storage::model::{
    ChangeId, Channel, Document, Event, Filter, Model, Offset, Timestamp, UserId, change::Before, filter::Condition,
};
use serde_json::{Value, json};

use super::*;

const QUEUE: &str = "websockets-transport_1";

fn view(document: &Document, filter: Option<Filter>, id: bool, user: Option<&str>, readable: Condition) -> View {
    let channel = Channel {
        app: document.app.clone(),
        model: document.model.clone(),
        id: id.then(|| document.id.clone()),
        user: user.map(|user| UserId::parse(user).expect("an id")),
        filter: filter.map(Arc::new),
    };
    View { key: channel.to_string().into(), channel, readable, privileged: false }
}

/// The entry that leads from one document to the other.
fn entry(before: Option<&Document>, after: Option<&Document>) -> Entry {
    let event = match (before, after) {
        (None, Some(after)) => Event::Created { document: after.clone() },
        (Some(before), None) => Event::Deleted { document: before.clone(), version: before.version + 1 },
        (Some(before), Some(after)) => {
            let names: std::collections::BTreeSet<_> = before.fields.keys().chain(after.fields.keys()).collect();
            let fields = names.iter().map(|name| (vec![(*name).clone()], before.fields.get(*name).cloned())).collect();
            let kept = Before { updated_at: before.updated_at, user: before.user.clone(), fields };
            Event::Updated { document: after.clone(), before: kept, patches: Vec::new() }
        }
        (None, None) => Event::Unchanged { document: None },
    };
    Entry { offset: Offset::new(1, 1), change_id: ChangeId::generate(), time: Timestamp::now(), event }
}

fn device(number: usize) -> DeviceId {
    DeviceId::parse(&format!("device-{number}")).expect("an id")
}

/// What each device hears, from the index.
fn heard(matcher: &Matcher, entry: &Entry) -> BTreeMap<DeviceId, Audience> {
    let mut heard = BTreeMap::new();
    for hit in matcher.matching(entry) {
        for (queue, devices) in hit.devices {
            assert_eq!(&*queue, QUEUE);
            for device in devices {
                assert!(heard.insert(device, hit.audience.clone()).is_none(), "a device hears of a change once");
            }
        }
    }
    heard
}

fn document() -> Document {
    serde_json::from_value(json!({
        "id": "d", "type": "task", "appId": "a", "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
        "version": 1, "kind": "a", "holder": "h1", "tags": ["a"],
    }))
    .expect("a document")
}

fn subscription(number: usize) -> SubscriptionId {
    SubscriptionId::parse(&format!("subscription-{number}")).expect("an id")
}

#[test]
fn connections_decide_where_a_frame_goes() {
    let mut matcher = Matcher::default();
    let document = document();
    let all = view(&document, None, false, None, Condition::All);
    matcher.subscribe(&subscription(1), &device(1), Offset::default(), Some(&all));
    let created = entry(None, Some(&document));
    assert!(matcher.matching(&created).is_empty(), "nobody is connected");
    matcher.connect(&device(1), "q1");
    matcher.connect(&device(1), "q2");
    matcher.connect(&device(1), "q2");
    let hits = matcher.matching(&created);
    let queues: Vec<_> = hits[0].devices.iter().map(|(queue, devices)| (queue.to_string(), devices.len())).collect();
    assert_eq!((hits.len(), queues), (1, vec![("q1".into(), 1), ("q2".into(), 1)]));
    matcher.disconnect(&device(1), "q1");
    matcher.disconnect(&device(1), "q1");
    assert_eq!(matcher.queues().map(|queue| queue.to_string()).collect::<Vec<_>>(), ["q2"]);
    assert_eq!(matcher.matching(&created).len(), 1);
}

#[test]
fn nobody_is_told_what_its_items_show() {
    let mut matcher = Matcher::default();
    let document = document();
    let all = || view(&document, None, false, None, Condition::All);
    for (number, since) in [(0, 0), (1, 1), (2, 2)] {
        matcher.connect(&device(number), QUEUE);
        matcher.subscribe(&subscription(number), &device(number), Offset::new(1, since), Some(&all()));
    }
    let created = entry(None, Some(&document));
    assert_eq!(heard(&matcher, &created).into_keys().collect::<Vec<_>>(), [device(0)]);
    // The same where a device has several subscriptions.
    let by_id = view(&document, None, true, None, Condition::All);
    matcher.subscribe(&subscription(3), &device(1), Offset::new(1, 0), Some(&by_id));
    let heard = heard(&matcher, &created);
    assert_eq!(heard.keys().cloned().collect::<Vec<_>>(), [device(0), device(1)]);
    assert_eq!(heard[&device(1)].channels.iter().map(|key| &**key).collect::<Vec<_>>(), ["app:a:model:task:id:d"]);
}

fn model(fields: Value) -> Model {
    Model::parse(&fields).expect("a model")
}

#[test]
fn a_filter_that_means_something_else_now_is_another_group() {
    let mut matcher = Matcher::default();
    let document = document();
    let definition = |is_array: bool| match is_array {
        true => model(json!({ "tags": { "type": "array", "arrayType": "string", "filterable": true } })),
        false => model(json!({ "tags": { "type": "string", "filterable": true } })),
    };
    let filtered = |is_array| {
        let filter = Filter::parse(&json!({ "tags": "a" }), &definition(is_array), false).expect("a filter");
        view(&document, Some(filter), false, None, Condition::All)
    };
    assert_eq!(filtered(false).key, filtered(true).key);
    for number in 0..2 {
        matcher.connect(&device(number), QUEUE);
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&filtered(false)));
    }
    let created = entry(None, Some(&document));
    assert!(heard(&matcher, &created).is_empty());
    // The schema changes; subscriptions are compiled anew one by one.
    for number in 0..2 {
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&filtered(true)));
        assert_eq!(heard(&matcher, &created).len(), number + 1);
    }
}

/// How many of those that listen to one document each are asked about a document.
fn n_asked(matcher: &Matcher, before: Option<&Document>, after: Option<&Document>) -> usize {
    let index = matcher.models.values().next().and_then(|number| matcher.indexes.get(*number)).expect("an index");
    index.candidates(before, after).len()
}

fn rich() -> Model {
    model(json!({
        "kind": { "type": "string", "filterable": true }, "holder": { "type": "string", "filterable": true },
        "price": { "type": "number", "filterable": true }, "due": { "type": "date", "filterable": true },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
        "open": { "type": "boolean", "filterable": true },
    }))
}

fn document_of(fields: Value) -> Document {
    let fields = rich().accept(fields.as_object().cloned().expect("fields"), true).expect("fitting fields");
    Document { fields, ..document() }
}

/// A thousand filters, each made for a number; one or few of them match a document, and hardly more are asked.
#[test]
fn few_are_asked_of_many() {
    let text = |number: usize| format!("h{number:04}");
    type Made = fn(usize, &dyn Fn(usize) -> String) -> Value;
    let filters: [(&str, Made, Value, usize); 10] = [
        ("one value, whatever the others are", |n, text| json!({ "kind": "a", "holder": text(n) }), json!({}), 1),
        ("a value and a range", |n, text| json!({ "holder": text(n), "price": { "$gt": 1 } }), json!({}), 1),
        ("several values", |n, text| json!({ "holder": { "$in": [text(n), text(n + 5_000)] } }), json!({}), 1),
        ("an element", |n, text| json!({ "tags": { "$contains": text(n) } }), json!({}), 2),
        ("a range", |n, _| json!({ "price": { "$gte": n, "$lt": n + 3 } }), json!({}), 3),
        ("a range of times", |n, _| json!({ "due": { "$gt": 3 * n, "$lt": 3 * n + 5 } }), json!({}), 2),
        ("a range of strings", |n, text| json!({ "holder": { "$gte": text(n), "$lt": text(n + 2) } }), json!({}), 2),
        ("a prefix", |n, text| json!({ "holder": { "$prefix": &text(n)[..4] } }), json!({}), 1),
        ("alternatives", |n, text| json!({ "$or": [{ "holder": text(n) }, { "price": n + 7 }] }), json!({}), 2),
        (
            "a part with alternatives",
            |n, text| json!({ "kind": { "$ne": "b" }, "$or": [{ "holder": text(n) }] }),
            json!({}),
            1,
        ),
    ];
    let after =
        document_of(json!({ "kind": "a", "holder": "h0500", "price": 500, "due": 1501, "tags": ["h0007", "h0009"] }));
    for (what, filter, _, n_hit) in filters {
        let mut matcher = Matcher::default();
        for number in 0..1_000 {
            let filter = Filter::parse(&filter(number, &text), &rich(), false).expect("a filter");
            matcher.connect(&device(number), QUEUE);
            let view = view(&after, Some(filter), false, None, Condition::All);
            matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&view));
        }
        let created = entry(None, Some(&after));
        assert_eq!(heard(&matcher, &created).len(), if what == "a prefix" { 10 } else { n_hit }, "{what}");
        let asked = n_asked(&matcher, None, Some(&after));
        assert!(asked <= n_hit + 2, "{what}: {asked} groups are asked");
        assert_eq!(matcher.n_unindexed(), 0, "{what}");
    }
}

/// "My own documents" of many users, by an owner rule and no filter.
#[test]
fn owner_rules_cost_no_scan() {
    let mut matcher = Matcher::default();
    let owned_by = |user: &str| Document { user: UserId::parse(user).ok(), ..document() };
    for number in 0..1_000 {
        let user = format!("user-{number}");
        let rule = json!({ "userId": user });
        let rule = Filter::parse(&rule, &rich(), false).expect("a filter").condition().clone();
        matcher.connect(&device(number), QUEUE);
        let view = view(&document(), None, false, None, rule);
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&view));
    }
    let (before, after) = (owned_by("user-3"), owned_by("user-700"));
    assert_eq!(n_asked(&matcher, Some(&before), Some(&after)), 2);
    let heard = heard(&matcher, &entry(Some(&before), Some(&after)));
    assert_eq!(heard.keys().cloned().collect::<Vec<_>>(), [device(3), device(700)]);
    assert!(heard.values().all(|audience| audience.silent), "what it was, or is, they may not read");
}

/// A value that many ask for is left for a range that few do.
#[test]
fn a_crowded_value_is_not_what_a_group_is_found_by() {
    let mut matcher = Matcher::default();
    let after = document_of(json!({ "kind": "a", "price": 500 }));
    for number in 0..2_000 {
        let filter = json!({ "kind": "a", "price": { "$gte": number, "$lte": number } });
        let filter = Filter::parse(&filter, &rich(), false).expect("a filter");
        let view = view(&after, Some(filter), false, None, Condition::All);
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&view));
    }
    assert!(n_asked(&matcher, None, Some(&after)) <= 32);
}

#[test]
fn what_cannot_be_indexed_is_counted() {
    let mut matcher = Matcher::default();
    let filter = |filter: Value| Some(Filter::parse(&filter, &rich(), false).expect("a filter"));
    let views = [
        (None, false),
        (filter(json!({})), false),
        (filter(json!({ "$or": [] })), false),
        (filter(json!({ "type": "task" })), true),
        (filter(json!({ "kind": { "$ne": "b" } })), true),
        (filter(json!({ "kind": { "$exists": false } })), true),
        (filter(json!({ "$or": [{ "kind": "a" }, { "$not": { "kind": "b" } }] })), true),
        (filter(json!({ "kind": { "$exists": true } })), false),
    ];
    let mut n_expected = 0;
    for (number, (filter, is_counted)) in views.into_iter().enumerate() {
        let view = view(&document(), filter, false, None, Condition::All);
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(&view));
        n_expected += usize::from(is_counted);
        assert_eq!(matcher.n_unindexed(), n_expected, "{number}");
    }
    for number in 0..8 {
        matcher.unsubscribe(matcher.find(&subscription(number)).expect("it is known"));
    }
    assert!(matcher.is_empty() && matcher.models.is_empty());
}

/// Filters at every limit: found, exact, and gone without a trace.
#[test]
fn pathological_filters_neither_stall_nor_stay() {
    let deep = (0..7).fold(json!({ "price": 1 }), |inner, n| match n % 2 {
        0 => json!({ "$not": inner }),
        _ => json!({ "$or": [inner, { "kind": "deep" }] }),
    });
    let ranges = |n: usize| {
        (0..32).map(|at| json!({ "price": { "$gte": at * 9 + n, "$lt": at * 9 + n + 2 } })).collect::<Vec<_>>()
    };
    let values = |n: usize| (0..256).map(|at| format!("v{}", at * 7 + n)).collect::<Vec<_>>();
    let many_values =
        |n: usize| (0..64).map(|at| json!({ "holder": { "$in": values(n * 64 + at) } })).collect::<Vec<_>>();
    let filters: Vec<Value> = (0..8)
        .flat_map(|n| {
            [
                json!({ "$or": ranges(n) }),
                json!({ "$or": (0..64).map(|at| json!({ "price": { "$gt": at * 1_000 + n } })).collect::<Vec<_>>() }),
                json!({ "$not": { "$or": ranges(n) } }),
                json!({ "holder": { "$in": values(n) } }),
                json!({ "holder": { "$nin": values(n) } }),
                json!({ "$or": many_values(n) }),
                json!({ "$and": ranges(n).into_iter().map(|range| json!({ "$not": range })).collect::<Vec<_>>() }),
                json!({ "$and": [deep.clone(), { "price": { "$ne": n } }] }),
                json!({ "$not": {} }),
                json!({ "holder": { "$prefix": "v".repeat(8_000 + n) } }),
            ]
        })
        .collect();
    let views: Vec<View> = filters
        .iter()
        .map(|filter| {
            let filter = Filter::parse(filter, &rich(), false).expect("within the limits");
            view(&document(), Some(filter), false, None, Condition::All)
        })
        .collect();
    let mut matcher = Matcher::default();
    for (number, view) in views.iter().enumerate() {
        matcher.connect(&device(number), QUEUE);
        matcher.subscribe(&subscription(number), &device(number), Offset::default(), Some(view));
    }
    let before = document_of(json!({ "price": 20, "holder": "v9" }));
    let after = document_of(json!({ "price": 25, "holder": "v".repeat(8_100) }));
    for (before, after) in [(None, Some(&before)), (Some(&before), Some(&after)), (Some(&after), None)] {
        let expected = views.iter().filter(|view| view.step(before, after).is_some()).count();
        assert_eq!(heard(&matcher, &entry(before, after)).len(), expected);
    }
    for number in 0..views.len() {
        matcher.disconnect(&device(number), QUEUE);
        matcher.unsubscribe(matcher.find(&subscription(number)).expect("it is known"));
    }
    assert!(matcher.is_empty() && matcher.models.is_empty() && matcher.groups.is_empty());
}

#[test]
fn what_a_subscription_listens_to_can_be_told() {
    let mut matcher = Matcher::default();
    let filter = Filter::parse(&json!({ "holder": "x", "price": { "$lt": 5 } }), &rich(), false).expect("a filter");
    for (by_id, user, filter) in
        [(false, None, None), (true, None, Some(&filter)), (false, Some("u"), Some(&filter)), (true, Some("u"), None)]
    {
        let view = view(&document(), filter.cloned(), by_id, user, Condition::All);
        let number = matcher.subscribe(&subscription(1), &device(1), Offset::new(7, u64::MAX - 1), Some(&view));
        let listening = matcher.listening(number).expect("it hears");
        assert_eq!(listening.key, view.key);
        assert_eq!((listening.id, listening.user), (view.channel.id.clone(), view.channel.user.clone()));
        assert_eq!(listening.filter.as_ref(), filter.map(Filter::condition));
        assert_eq!(matcher.since_of(number), Offset::new(7, u64::MAX - 1));
        // A key that cannot be made from the rest.
        let odd = View { key: "app:a:model:task:filter:odd".into(), ..view };
        matcher.change(number, Some(&odd));
        assert_eq!(matcher.channel_of(number), Some(odd.key));
    }
    assert_eq!((matcher.n_subscriptions(), matcher.groups.len()), (1, 1));
}
