//! The index against the slow way: every subscription tested by itself, through all of subscribing and unsubscribing.

use std::{collections::BTreeMap, sync::Arc};

use nexxus_storage::model::{
    ChangeId, Channel, Document, Event, Filter, Offset, Timestamp, UserId, change::Before, filter::Condition, testing,
};
use proptest::prelude::*;

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

/// What each device should hear: three devices share the subscriptions.
fn plainly(views: &[(usize, View)], entry: &Entry) -> BTreeMap<DeviceId, Audience> {
    let before = entry.before();
    let mut steps: BTreeMap<DeviceId, Vec<(Arc<str>, Step)>> = BTreeMap::new();
    for (number, view) in views {
        if let Some(step) = view.step(before.as_ref(), entry.after()) {
            steps.entry(device(number % 3)).or_default().push((view.key.clone(), step));
        }
    }
    let audience = |steps: Vec<(Arc<str>, Step)>| Audience::of(steps.iter().map(|(key, step)| (key, *step, false)));
    steps.into_iter().map(|(device, steps)| (device, audience(steps))).collect()
}

fn case() -> impl Strategy<Value = (Vec<(usize, View)>, Document, Document, Vec<bool>)> {
    testing::model().prop_flat_map(|model| {
        let filters = proptest::collection::vec(
            (
                proptest::option::weighted(0.8, testing::filter(&model)),
                any::<bool>(),
                0usize..4,
                testing::filter(&model),
                any::<bool>(),
            ),
            1..12,
        );
        let documents = (testing::document(&model), testing::document(&model));
        (filters, documents, proptest::collection::vec(any::<bool>(), 12)).prop_map(
            move |(filters, (before, mut after), gone)| {
                after.id = before.id.clone();
                after.created_at = before.created_at;
                after.version = before.version + 1;
                let parse = |filter: &serde_json::Value| Filter::parse(filter, &model, true).expect("a valid filter");
                let views = filters.iter().enumerate().map(|(number, (filter, by_id, by_user, rule, ruled))| {
                    let user = [None, Some("user-1"), Some("user-2"), None][*by_user];
                    let readable = if *ruled { parse(rule).condition().clone() } else { Condition::All };
                    (number, view(&before, filter.as_ref().map(parse), *by_id && number % 4 == 0, user, readable))
                });
                (views.collect(), before, after, gone)
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_index_finds_exactly_who_must_hear((views, before, after, gone) in case()) {
        let mut matcher = Matcher::default();
        for number in 0..3 {
            matcher.connect(device(number), QUEUE);
        }
        let id = |number: usize| SubscriptionId::parse(&format!("subscription-{number}")).expect("an id");
        // One device has one subscription on a channel: a second one on it takes its place.
        let mut views = views;
        let mut seen = std::collections::HashSet::new();
        views.retain(|(number, view)| seen.insert((number % 3, view.key.clone())));
        for (number, view) in &views {
            matcher.subscribe(id(*number), device(number % 3), Offset::default(), view.clone());
        }
        let entries = [entry(None, Some(&after)), entry(Some(&before), Some(&after)), entry(Some(&before), None)];
        for entry in &entries {
            prop_assert_eq!(heard(&matcher, entry), plainly(&views, entry));
        }
        views.retain(|(number, _)| {
            if gone[*number] {
                matcher.unsubscribe(&id(*number));
            }
            !gone[*number]
        });
        for entry in &entries {
            prop_assert_eq!(heard(&matcher, entry), plainly(&views, entry));
        }
        for (number, _) in &views {
            matcher.unsubscribe(&id(*number));
        }
        prop_assert!(matcher.models.is_empty() && matcher.subscriptions.is_empty());
    }
}

fn document() -> Document {
    serde_json::from_value(serde_json::json!({
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
    matcher.subscribe(
        subscription(1),
        device(1),
        Offset::default(),
        view(&document, None, false, None, Condition::All),
    );
    let created = entry(None, Some(&document));
    assert!(matcher.matching(&created).is_empty(), "nobody is connected");
    matcher.connect(device(1), "q1");
    matcher.connect(device(1), "q2");
    matcher.connect(device(1), "q2");
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
        matcher.connect(device(number), QUEUE);
        matcher.subscribe(subscription(number), device(number), Offset::new(1, since), all());
    }
    let created = entry(None, Some(&document));
    assert_eq!(heard(&matcher, &created).into_keys().collect::<Vec<_>>(), [device(0)]);
    // The same where a device has several subscriptions.
    let by_id = view(&document, None, true, None, Condition::All);
    matcher.subscribe(subscription(3), device(1), Offset::new(1, 0), by_id);
    let heard = heard(&matcher, &created);
    assert_eq!(heard.keys().cloned().collect::<Vec<_>>(), [device(0), device(1)]);
    assert_eq!(heard[&device(1)].channels.iter().map(|key| &**key).collect::<Vec<_>>(), ["app:a:model:task:id:d"]);
}

fn model(fields: serde_json::Value) -> nexxus_storage::model::Model {
    nexxus_storage::model::Model::parse(&fields).expect("a model")
}

#[test]
fn a_filter_that_means_something_else_now_is_another_group() {
    let mut matcher = Matcher::default();
    let document = document();
    let definition = |is_array: bool| match is_array {
        true => model(serde_json::json!({ "tags": { "type": "array", "arrayType": "string", "filterable": true } })),
        false => model(serde_json::json!({ "tags": { "type": "string", "filterable": true } })),
    };
    let filtered = |is_array| {
        let filter =
            Filter::parse(&serde_json::json!({ "tags": "a" }), &definition(is_array), false).expect("a filter");
        view(&document, Some(filter), false, None, Condition::All)
    };
    assert_eq!(filtered(false).key, filtered(true).key);
    for number in 0..2 {
        matcher.connect(device(number), QUEUE);
        matcher.subscribe(subscription(number), device(number), Offset::default(), filtered(false));
    }
    let created = entry(None, Some(&document));
    assert!(heard(&matcher, &created).is_empty());
    // The schema changes; subscriptions are compiled anew one by one.
    for number in 0..2 {
        matcher.subscribe(subscription(number), device(number), Offset::default(), filtered(true));
        assert_eq!(heard(&matcher, &created).len(), number + 1);
    }
}

#[test]
fn groups_are_found_by_their_most_telling_equality() {
    let mut matcher = Matcher::default();
    let document = document();
    let model = model(serde_json::json!({
        "kind": { "type": "string", "filterable": true }, "holder": { "type": "string", "filterable": true },
    }));
    for number in 0..100 {
        let filter = serde_json::json!({ "kind": "a", "holder": format!("h{number}") });
        let filter = Filter::parse(&filter, &model, false).expect("a filter");
        matcher.connect(device(number), QUEUE);
        let view = view(&document, Some(filter), false, None, Condition::All);
        matcher.subscribe(subscription(number), device(number), Offset::default(), view);
    }
    let index = &matcher.models[&document.model];
    let candidates = index.candidates(None, Some(&document));
    assert!(candidates.len() <= 2, "{} groups are asked", candidates.len());
    assert_eq!(heard(&matcher, &entry(None, Some(&document))).into_keys().collect::<Vec<_>>(), [device(1)]);
}
