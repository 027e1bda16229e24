//! The domain on the real embedded backends.

use nexxus_storage::{
    model::{DeviceId, Offset, Timestamp, change::UserFacts},
    registry::{
        Expect, Key, Kind,
        records::{Device, Session, Subscription},
    },
};
use serde_json::{Value, json};

use super::{
    identity::Revoked,
    read::Search,
    subscriptions::Request,
    testing::Ground,
    users::{NewUser, UserChange},
};

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).expect("an id")
}

#[tokio::test]
async fn a_revocation_holds_from_its_return_on() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (anna, login) = ground.register(&app, "anna").await;
    let known = ground.identify(&app, &login.token, None).await.expect("known");
    assert_eq!(known.caller.user.as_ref(), Some(&anna.id));
    assert_eq!(known.caller.device.as_ref(), Some(&login.device));
    // From the cache now; what changes is seen all the same.
    let facts = UserFacts { user_type: Some("admin".into()), ..UserFacts::default() };
    ground.change_facts(app.id(), &anna, facts).await;
    assert!(ground.identify(&app, &login.token, None).await.expect("known").caller.admin);
    ground.change_facts(app.id(), &anna, UserFacts::default()).await;
    assert!(!ground.identify(&app, &login.token, None).await.expect("known").caller.admin);

    let mut revocations = ground.domain.identity.revocations();
    ground.domain.end_sessions(app.id(), &anna.id, None).await.expect("ended");
    assert_eq!(ground.identify(&app, &login.token, None).await, Err(401));
    let session = known.login.expect("a login").session;
    assert_eq!(revocations.recv().await, Ok(Revoked::Session(app.id().clone(), session)));
}

#[tokio::test]
async fn tokens_act_as_devices_of_their_user_only() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let ((anna, login), (_, of_ben)) = (ground.register(&app, "anna").await, ground.register(&app, "ben").await);
    let bound = ground.domain.open_session(&app, &anna, Some(&device("phone")), None).await.expect("a session");
    for (token, named, outcome) in [
        (&login.token, None, Ok(login.device.as_str())),
        (&login.token, Some("phone"), Ok("phone")),
        (&login.token, Some("unheard-of"), Ok("unheard-of")),
        (&bound.token, None, Ok("phone")),
        (&bound.token, Some("phone"), Ok("phone")),
        (&bound.token, Some("unheard-of"), Err(401)),
        (&of_ben.token, Some("phone"), Err(403)),
        (&"nonsense".to_owned(), None, Err(401)),
    ] {
        let found = ground.identify(&app, token, named).await;
        let found = found.map(|identified| identified.caller.device.expect("a device"));
        assert_eq!(found.as_ref().map(DeviceId::as_str).map_err(|status| *status), outcome, "{named:?}");
    }
    // Taking the device away takes its tokens, and those alone.
    assert_eq!(ground.domain.remove_device(app.id(), &device("phone")).await, Ok(true));
    assert_eq!(ground.identify(&app, &bound.token, None).await, Err(401));
    assert!(ground.identify(&app, &login.token, None).await.is_ok());
    assert!(ground.identify(&app, &of_ben.token, Some("phone")).await.is_ok(), "it is anybody's now");
}

#[tokio::test]
async fn a_spent_refresh_token_ends_the_session_after_a_moment() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (_, first) = ground.register(&app, "anna").await;
    let second = ground.domain.refresh_login(&app, &first.refresh_token).await.expect("refreshed");
    let again = ground.domain.refresh_login(&app, &first.refresh_token).await.expect("the same answer");
    assert_eq!(again.refresh_token, second.refresh_token);
    // Half a minute passes.
    let registry = &ground.domain.backends.registry;
    let sessions: Vec<Session> = registry.load_all(Kind::Session, Some(app.id()), "").await.expect("sessions");
    let earlier = Timestamp::from_ms(Timestamp::now().as_ms() - 31_000).expect("a time");
    let aged = Session { refreshed_at: earlier, ..sessions[0].clone() };
    registry.put(&aged, Expect::Anything).await.expect("written");
    assert_eq!(ground.domain.refresh_login(&app, &first.refresh_token).await.expect_err("spent").status, 401);
    assert_eq!(ground.domain.refresh_login(&app, &second.refresh_token).await.expect_err("ended").status, 401);
    assert_eq!(ground.identify(&app, &second.token, None).await, Err(401));
}

#[tokio::test]
async fn logins_make_room_for_later_ones() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (anna, first) = ground.register(&app, "anna").await;
    let on = |id: Option<DeviceId>| {
        let (ground, app, anna) = (&ground, &app, &anna);
        async move { ground.domain.open_session(app, anna, id.as_ref(), None).await.expect("a session") }
    };
    let oldest = on(Some(device("phone"))).await;
    // Of two in the same millisecond either is the oldest.
    let begun = Timestamp::now();
    while Timestamp::now() <= begun {
        tokio::task::yield_now().await;
    }
    for _ in 0..16 {
        on(Some(device("phone"))).await;
    }
    assert_eq!(ground.identify(&app, &oldest.token, None).await, Err(401), "a device has 16 sessions");
    assert!(ground.identify(&app, &first.token, None).await.is_ok());
    for _ in 0..99 {
        on(None).await;
    }
    let devices = ground.domain.devices_of(app.id(), &anna.id).await.expect("devices");
    assert_eq!(devices.len(), 100);
    assert_eq!(ground.identify(&app, &first.token, None).await, Err(401), "a user has 100 devices");
}

#[tokio::test]
async fn a_name_is_one_users_and_a_failed_registration_leaves_nothing() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (anna, login) = ground.register(&app, "anna").await;
    let new = |name: &str| NewUser::parse(json!({ "username": name, "password": "long enough" })).expect("a user");
    assert_eq!(ground.domain.add_user(&app, new("anna")).await.expect_err("taken").status, 409);
    // A device of somebody else.
    let refused = ground.domain.register_user(&app, new("ben"), Some(&login.device)).await.expect_err("refused");
    assert_eq!(refused.status, 409);
    assert_eq!(ground.domain.user_named(app.id(), "ben").await, Ok(None));
    assert_eq!(ground.domain.users(app.id(), None, 10).await.expect("users").len(), 1);
    let change = UserChange::parse(json!({ "password": "even longer" })).expect("a change");
    ground.domain.change_password(&app, &anna.id, &change, None, true).await.expect("changed");
    assert_eq!(ground.identify(&app, &login.token, None).await, Err(401), "all have to sign in anew");
    let outcome = ground.domain.login(&app, "anna", "anna-password".into(), None).await;
    assert_eq!(outcome.expect_err("the old password").status, 401);
    ground.domain.login(&app, "anna", "even longer".into(), None).await.expect("the new password");
}

#[tokio::test]
async fn connections_of_a_device_are_counted_by_generation() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (_, login) = ground.register(&app, "anna").await;
    let identified = ground.identify(&app, &login.token, None).await.expect("known");
    let phone = device("phone");
    let connect = || ground.domain.connect_device(&app, &identified, &phone, "q1");
    let (first, was_known) = connect().await.expect("connected");
    assert_eq!((first.generation, was_known), (1, false));
    let (second, was_known) = connect().await.expect("connected");
    assert_eq!((second.generation, was_known), (2, true));
    // The end of the first says nothing about the second.
    ground.domain.disconnect_device(app.id(), &phone, "q1", 1).await.expect("recorded");
    assert_eq!(ground.domain.is_connected(app.id(), &phone).await.ok(), Some(true));
    ground.domain.disconnect_device(app.id(), &phone, "q1", 2).await.expect("recorded");
    assert_eq!(ground.domain.is_connected(app.id(), &phone).await.ok(), Some(false));
    // One that is to be forgotten at once stays while it is connected elsewhere.
    ground.domain.register_device(&app, &identified, Some(phone.clone()), None, Some(0)).await.expect("changed");
    for queue in ["q1", "q2"] {
        ground.domain.connect_device(&app, &identified, &phone, queue).await.expect("connected");
    }
    ground.domain.disconnect_device(app.id(), &phone, "q1", 3).await.expect("recorded");
    assert!(ground.domain.device(app.id(), &phone).await.is_ok());
    ground.domain.disconnect_device(app.id(), &phone, "q2", 4).await.expect("recorded");
    assert_eq!(ground.domain.device(app.id(), &phone).await.expect_err("gone").status, 404);
}

#[tokio::test]
async fn a_cursor_goes_forward_only() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (_, login) = ground.register(&app, "anna").await;
    let device: Device = ground.domain.device(app.id(), &login.device).await.expect("a device");
    assert_eq!(ground.domain.cursor_of(&device).await, Ok(device.registered_at));
    for (offset, at_once, stands) in [
        (Offset::new(1, 5), false, Offset::new(1, 5)),
        (Offset::new(1, 3), true, Offset::new(1, 5)),
        (Offset::new(1, 9), true, Offset::new(1, 9)),
        (Offset::new(1, 7), true, Offset::new(1, 9)),
        (Offset::new(2, 1), false, Offset::new(2, 1)),
    ] {
        ground.domain.acknowledge(&device.app, &device.id, offset, at_once).await.expect("acknowledged");
        assert_eq!(ground.domain.cursor_of(&device).await, Ok(stands), "{offset}");
    }
    let key = Key::cursor(app.id(), &device.id);
    assert!(ground.domain.backends.registry.get(&key).await.expect("read").is_some());
}

#[tokio::test]
async fn subscriptions_reflect_what_is_applied() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (anna, login) = ground.register(&app, "anna").await;
    let identified = ground.identify(&app, &login.token, None).await.expect("known");
    let subscribe = |body: Value| {
        let (ground, app, identified) = (&ground, &app, &identified);
        let request = Request::parse(body).expect("a request");
        async move { ground.domain.subscribe(app, identified, Some(&device("phone")), request, None).await }
    };
    let first = ground.create(&app, "n1", Some(&anna), json!({ "text": "x", "secret": "s" })).await;
    let subscribed = subscribe(json!({ "model": "note" })).await.expect("subscribed");
    assert_eq!((subscribed.created, subscribed.offset), (true, first));
    assert_eq!(subscribed.to_json()["items"][0]["text"], "x");
    assert_eq!(subscribed.items.items[0].fields.get("secret"), None, "hidden");
    let second = ground.create(&app, "n2", None, json!({ "text": "y" })).await;
    let again = subscribe(json!({ "model": "note", "filter": null })).await.expect("subscribed");
    assert_eq!((again.created, again.offset, again.items.items.len()), (false, second, 2));
    // What it heard first is still what is never replayed: another tab may be behind.
    assert_eq!(again.subscription.map(|subscription| subscription.since), Some(first));

    for (body, n_items) in
        [(json!({ "model": "note", "modelId": "n2" }), 1), (json!({ "model": "note", "filter": { "text": "x" } }), 1)]
    {
        assert_eq!(subscribe(body.clone()).await.expect("subscribed").items.items.len(), n_items, "{body}");
    }
    let refused = subscribe(json!({ "model": "note", "modelId": "n1" })).await.expect_err("one too many");
    assert_eq!(refused.status, 429);
    let held: Vec<Subscription> = ground.domain.subscriptions_of(&app, &device("phone")).await.expect("subscriptions");
    assert_eq!(held.len(), 3);
    for subscription in &held {
        ground.domain.unsubscribe(&app, &device("phone"), &subscription.id).await.expect("ended");
        let again = ground.domain.unsubscribe(&app, &device("phone"), &subscription.id).await;
        assert_eq!(again.expect_err("gone").status, 404);
    }
}

#[tokio::test]
async fn a_refused_subscription_leaves_nothing_behind() {
    let ground = Ground::open().await;
    let app = ground.app(json!({})).await;
    let (_, login) = ground.register(&app, "anna").await;
    let identified = ground.identify(&app, &login.token, None).await.expect("known");
    for (body, status) in [
        (json!({ "model": "nothing" }), 404),
        (json!({ "model": "note", "filter": { "secret": "s" } }), 400),
        (json!({ "model": "note", "sort": "secret" }), 400),
    ] {
        let request = Request::parse(body.clone()).expect("a request");
        let outcome = ground.domain.subscribe(&app, &identified, Some(&device("phone")), request, None).await;
        assert_eq!(outcome.expect_err("refused").status, status, "{body}");
    }
    assert_eq!(ground.domain.subscriptions_of(&app, &device("phone")).await.expect("none"), []);
    assert_eq!(ground.domain.device(app.id(), &device("phone")).await.expect_err("none").status, 404);
}

#[tokio::test]
async fn reads_are_under_the_rules_as_they_are_now() {
    let ground = Ground::open().await;
    let app = ground.app(json!({ "rules": { "note": { "read": { "text": "$user.details.word" } } } })).await;
    let (anna, login) = ground.register(&app, "anna").await;
    let offset = ground.create(&app, "n1", None, json!({ "text": "x", "secret": "s" })).await;
    ground.create(&app, "n2", None, json!({ "text": "y" })).await;
    let (note, id) = ("note".parse().expect("a name"), "n1".parse().expect("an id"));
    for (word, sees) in [(None, false), (Some("x"), true), (Some("z"), false)] {
        let details = word.map(|word| json!({ "word": word }).as_object().expect("an object").clone());
        let facts = UserFacts { details: details.unwrap_or_default(), ..UserFacts::default() };
        ground.change_facts(app.id(), &anna, facts).await;
        let caller = ground.identify(&app, &login.token, None).await.expect("known").caller;
        let read = ground.domain.read_document(&app, &caller, &note, &id).await.expect("read");
        assert_eq!(read.is_some(), sees, "{word:?}");
        assert!(read.is_none_or(|document| !document.fields.contains_key("secret")));
        let search = Search { count: true, at_least: Some(offset), ..Search::default() };
        let items = ground.domain.search(&app, &caller, &note, search).await.expect("found");
        assert_eq!((items.items.len(), items.total), (usize::from(sees), Some(u64::from(sees))), "{word:?}");
    }
    let anonymous = nexxus_storage::model::Caller::default();
    let refused = ground.domain.read_document(&app, &anonymous, &note, &id).await;
    assert_eq!(refused.expect_err("nobody in particular").status, 401);
    assert_eq!(ground.domain.wait_for(&app, &offset.to_string()).await, Ok(offset));
    assert_eq!(ground.domain.wait_for(&app, "nonsense").await.expect_err("nonsense").status, 400);
}
