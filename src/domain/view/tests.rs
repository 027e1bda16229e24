//! What a change is to a subscription: every step, readable or not.

use nexxus_storage::model::{AppId, DocumentId, ModelName, Offset, Timestamp, UserId};
use serde_json::{Value, json};

use super::*;

fn application(rules: Value) -> Application {
    let record = json!({
        "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, 1),
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z", "rules": { "note": rules },
        "schema": {
            "note": { "n": { "type": "number", "filterable": true }, "open": { "type": "boolean", "filterable": true } },
            "page": {},
        },
    });
    Application::compile(serde_json::from_value(record).expect("a record")).expect("an application")
}

/// A view of anna: `members` of the subscription beside its model.
fn view(application: &Application, members: Value, facts: &UserFacts) -> Result<View> {
    let mut record = json!({
        "id": "s", "app": "a", "device": "phone", "user": "anna", "model": "note", "channel": "key", "since": Offset::new(1, 1),
        "admin": false, "createdAt": "2026-01-01T00:00:00Z",
    });
    for (name, value) in members.as_object().expect("an object") {
        record[name] = value.clone();
    }
    View::compile(&serde_json::from_value(record).expect("a subscription"), application, facts)
}

/// `MODEL/ID OWNER N`, readable when its `open` is true: written in capitals when it is not.
fn document(text: &str) -> Option<Document> {
    let mut words = text.split(' ');
    let (model, id) = words.next()?.split_once('/')?;
    let owner = words.next().expect("an owner");
    let n: i64 = words.next().expect("a number").parse().expect("a number");
    let Value::Object(fields) = json!({ "n": n, "open": owner != owner.to_uppercase() }) else { panic!("no object") };
    Some(Document {
        app: AppId::parse("a").expect("an id"),
        model: ModelName::parse(model).expect("a name"),
        id: DocumentId::parse(id).expect("an id"),
        user: Some(UserId::parse(&owner.to_lowercase()).expect("an id")),
        created_at: Timestamp::from_ms(1).expect("a time"),
        updated_at: Timestamp::from_ms(1).expect("a time"),
        version: 1,
        fields,
    })
}

#[test]
fn every_step() {
    // Anna reads what is hers and what is open.
    let rules = json!({ "read": { "$or": [{ "userId": "$user.id" }, { "open": true }] } });
    let application = application(rules);
    let view = |members| view(&application, members, &UserFacts::default()).expect("a view");
    let (all, one) = (view(json!({})), view(json!({ "modelId": "1" })));
    let (of_ben, big) = (view(json!({ "userId": "ben" })), view(json!({ "filter": { "n": { "$gte": 5 } } })));
    let entered = |unreadable| Some(Step::Entered { unreadable });
    let left = |unreadable| Some(Step::Left { unreadable });
    let none = "";
    for (name, view, before, after, expected) in [
        // Without a filter.
        ("all", &all, none, "note/1 anna 1", Some(Step::Created)),
        ("all", &all, none, "note/1 BEN 1", None),
        ("all", &all, none, "page/1 anna 1", None),
        ("all", &all, "note/1 anna 1", "note/1 anna 2", Some(Step::Stayed)),
        ("all", &all, "note/1 BEN 1", "note/1 BEN 2", None),
        ("all", &all, "note/1 anna 1", none, Some(Step::Deleted)),
        ("all", &all, "note/1 BEN 1", none, None),
        // Only who may read it changes: it was, or is, not to be shown at all.
        ("all", &all, "note/1 BEN 1", "note/1 ben 1", entered(true)),
        ("all", &all, "note/1 ben 1", "note/1 BEN 1", left(true)),
        ("all", &all, "note/1 BEN 1", "note/1 ANNA 1", entered(true)),
        // One document.
        ("one", &one, none, "note/1 anna 1", Some(Step::Created)),
        ("one", &one, none, "note/2 anna 1", None),
        ("one", &one, "note/1 anna 1", "note/1 anna 2", Some(Step::Stayed)),
        ("one", &one, "note/2 anna 1", none, None),
        // Those of a user: a change of the owner enters and leaves, readable all the time.
        ("of ben", &of_ben, "note/1 anna 1", "note/1 ben 1", entered(false)),
        ("of ben", &of_ben, "note/1 ben 1", "note/1 anna 1", left(false)),
        ("of ben", &of_ben, "note/1 ben 1", "note/1 ben 2", Some(Step::Stayed)),
        ("of ben", &of_ben, "note/1 anna 1", "note/1 anna 2", None),
        ("of ben", &of_ben, "note/1 anna 1", "note/1 BEN 1", None),
        ("of ben", &of_ben, "note/1 ben 1", "note/1 BEN 1", left(true)),
        // A filter.
        ("big", &big, none, "note/1 ben 5", Some(Step::Created)),
        ("big", &big, none, "note/1 ben 4", None),
        ("big", &big, "note/1 ben 4", "note/1 ben 5", entered(false)),
        ("big", &big, "note/1 ben 5", "note/1 ben 6", Some(Step::Stayed)),
        ("big", &big, "note/1 ben 5", "note/1 ben 4", left(false)),
        ("big", &big, "note/1 ben 5", none, Some(Step::Deleted)),
        ("big", &big, "note/1 ben 4", none, None),
        // Both at once.
        ("big", &big, "note/1 BEN 4", "note/1 ben 5", entered(true)),
        ("big", &big, "note/1 ben 5", "note/1 BEN 4", left(true)),
        ("big", &big, "note/1 BEN 5", "note/1 ben 4", None),
        ("big", &big, "note/1 BEN 5", none, None),
        ("nothing", &all, none, none, None),
    ] {
        let step = view.step(document(before).as_ref(), document(after).as_ref());
        assert_eq!(step, expected, "{name}: {before} -> {after}");
    }
}

#[test]
fn admins_see_everything_and_by_what_they_are() {
    let application = application(json!({ "read": "owner" }));
    let of_ben = document("note/1 ben 1");
    let facts = UserFacts { user_type: Some("admin".to_owned()), ..UserFacts::default() };
    for (members, facts, shows) in [
        (json!({}), UserFacts::default(), false),
        (json!({}), facts, true),
        (json!({ "admin": true, "user": null }), UserFacts::default(), true),
    ] {
        let view = view(&application, members.clone(), &facts).expect("a view");
        assert_eq!((view.shows(of_ben.as_ref().expect("a document")), view.privileged), (shows, shows), "{members}");
    }
}

#[test]
fn what_does_not_fit_the_schema_is_no_view() {
    let application = application(json!({}));
    for members in
        [json!({ "model": "gone" }), json!({ "filter": { "gone": 1 } }), json!({ "filter": { "n": "text" } })]
    {
        let error = view(&application, members.clone(), &UserFacts::default()).expect_err("no view");
        assert_eq!(error.kind, ErrorKind::Invalid, "{members}");
    }
}
