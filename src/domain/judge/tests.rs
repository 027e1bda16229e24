//! Operation × state × rule → outcome, as one table.

use nexxus_storage::model::{AppId, Offset, Patch, change::UserFacts, patch::Op};
use serde_json::json;

use super::*;

const NOTE: &str = "note";

fn application(rules: Value) -> Application {
    let record = json!({
        "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, 1), "rules": { NOTE: rules },
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
        "schema": { NOTE: {
            "text": { "type": "string", "required": true, "filterable": true }, "n": { "type": "number", "filterable": true },
            "pinned": { "type": "boolean", "readOnly": true },
        } },
    });
    Application::compile(serde_json::from_value(record).expect("a record")).expect("an application")
}

/// Of `anna`, of `ben`, of nobody (no user), or the admin.
fn caller(name: &str) -> Caller {
    let user = (name == "anna" || name == "ben").then(|| UserId::parse(name).expect("an id"));
    Caller { admin: name == "admin", user, facts: UserFacts::default(), device: None }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_ms(second * 1_000).expect("a time")
}

fn document(owner: &str, text: &str) -> Document {
    let Value::Object(fields) = json!({ "text": text, "n": 5 }) else { panic!("no object") };
    Document {
        app: AppId::parse("a").expect("an id"),
        model: ModelName::parse(NOTE).expect("a name"),
        id: DocumentId::parse("d").expect("an id"),
        user: Some(UserId::parse(owner).expect("an id")),
        created_at: time(10),
        updated_at: time(50),
        version: 5,
        fields,
    }
}

/// `absent`, `deleted` (its delete was version 7), or a document of version 5: of `anna`, of `ben`.
fn state(name: &str) -> Option<Stored> {
    match name {
        "absent" => None,
        "deleted" => Some(Stored::Deleted { version: 7 }),
        owner => Some(Stored::Live(document(owner, "old"))),
    }
}

/// What is asked for: `create TEXT`, `patch TEXT`, `count N`, `same`, `nonsense`, `pin`, `delete`; with ` if V` only at a version.
fn judge(
    application: &Application,
    caller: &Caller,
    operation: &str,
    stored: Option<&Stored>,
) -> Result<Event, Problem> {
    let judge = Judge { application, caller, now: time(100), document_bytes: 200 };
    let (operation, expected) = match operation.split_once(" if ") {
        Some((operation, version)) => (operation, Some(version.parse().expect("a version"))),
        None => (operation, None),
    };
    let expected = expected.map(|version| Expected { version, created_at: None });
    let (verb, text) = operation.split_once(' ').unwrap_or((operation, ""));
    let subject = Subject {
        model: ModelName::parse(if verb == "lost" { "page" } else { NOTE }).expect("a name"),
        id: DocumentId::parse("d").expect("an id"),
    };
    let replace = |field: &str, value: Value| {
        PatchSet::Nexxus(vec![Patch { op: Op::Replace, path: vec![field.to_owned()], value: vec![value] }])
    };
    let patch = |patch: PatchSet| judge.patch(&subject, &patch, expected, stored);
    match verb {
        "create" => {
            let mut fields = Map::new();
            if !text.is_empty() {
                fields.insert("text".into(), json!(text));
            }
            judge.create(&subject.model, &subject.id, New { owner: caller.user.clone(), fields }, stored)
        }
        "delete" => judge.delete(&subject, expected, stored),
        "patch" => patch(replace("text", json!(text))),
        "count" => {
            patch(PatchSet::Nexxus(vec![Patch { op: Op::Incr, path: vec!["n".to_owned()], value: vec![json!(1)] }]))
        }
        "same" => patch(replace("text", json!("old"))),
        "nonsense" => patch(replace("other", json!(1))),
        "strip" => patch(replace("text", Value::Null)),
        "pin" => patch(replace("pinned", json!(true))),
        "test" => patch(PatchSet::JsonPatch(
            serde_json::from_value(json!([{ "op": "test", "path": "/text", "value": text }])).expect("a patch"),
        )),
        "lost" => patch(replace("text", json!("x"))),
        other => panic!("{other}?"),
    }
}

/// The outcome in a word: what happened and the version it made, or the kind of the problem.
fn outcome(decided: Result<Event, Problem>) -> String {
    match decided {
        Ok(Event::Created { document }) => format!("created {}", document.version),
        Ok(Event::Updated { document, .. }) => format!("updated {}", document.version),
        Ok(Event::Deleted { version, .. }) => format!("deleted {version}"),
        Ok(Event::Unchanged { .. }) => "unchanged".to_owned(),
        Ok(other) => format!("{other:?}"),
        Err(problem) => format!("{:?}", problem.kind),
    }
}

#[test]
fn every_operation_on_every_state_under_every_rule() {
    let usual = json!({});
    let open = json!({ "read": "public", "create": "public", "update": "public", "delete": "public" });
    let private = json!({ "read": "owner" });
    let closed = json!({ "create": "none", "update": "none", "delete": "none" });
    let admins = json!({ "read": "admin", "create": "admin", "update": "admin", "delete": "admin" });
    let drafts =
        json!({ "create": { "text": "draft" }, "update": { "text": { "$in": ["old", "new"] } }, "delete": { "n": 5 } });
    let long = "x".repeat(200);
    let too_long = [format!("create {long}"), format!("patch {long}")];
    for (rules, who, operation, stored, expected) in [
        // Creating: the state decides, then the schema, then the rule.
        (&usual, "anna", "create new", "absent", "created 1"),
        (&usual, "anna", "create new", "deleted", "created 8"),
        (&usual, "anna", "create new", "anna", "Exists"),
        (&usual, "anna", "create new", "ben", "Exists"),
        (&usual, "nobody", "create new", "absent", "Forbidden"),
        (&usual, "admin", "create new", "absent", "created 1"),
        (&usual, "anna", "create", "absent", "InvalidDocument"),
        (&usual, "anna", &too_long[0], "absent", "TooLarge"),
        (&open, "nobody", "create new", "absent", "created 1"),
        (&closed, "anna", "create new", "absent", "Forbidden"),
        (&closed, "admin", "create new", "absent", "created 1"),
        (&admins, "anna", "create new", "absent", "Forbidden"),
        (&drafts, "anna", "create draft", "absent", "created 1"),
        (&drafts, "anna", "create final", "absent", "Forbidden"),
        // Patching.
        (&usual, "anna", "patch new", "anna", "updated 6"),
        (&usual, "anna", "count", "anna", "updated 6"),
        (&usual, "anna", "patch new", "ben", "Forbidden"),
        (&usual, "admin", "patch new", "ben", "updated 6"),
        (&usual, "nobody", "patch new", "ben", "NotFound"),
        (&usual, "anna", "patch new", "absent", "NotFound"),
        (&usual, "anna", "patch new", "deleted", "NotFound"),
        (&usual, "anna", "lost", "anna", "NotFound"),
        (&usual, "anna", "patch new if 5", "anna", "updated 6"),
        (&usual, "anna", "patch new if 4", "anna", "PreconditionFailed"),
        (&usual, "anna", "same", "anna", "unchanged"),
        (&usual, "anna", "same if 4", "anna", "PreconditionFailed"),
        (&usual, "anna", "test old", "anna", "unchanged"),
        (&usual, "anna", "test new", "anna", "PreconditionFailed"),
        (&usual, "anna", "nonsense", "anna", "InvalidDocument"),
        (&usual, "anna", "strip", "anna", "InvalidDocument"),
        (&usual, "anna", "pin", "anna", "InvalidDocument"),
        (&usual, "admin", "pin", "anna", "updated 6"),
        (&usual, "anna", &too_long[1], "anna", "TooLarge"),
        (&open, "nobody", "patch new", "ben", "updated 6"),
        (&closed, "anna", "patch new", "anna", "Forbidden"),
        (&closed, "anna", "same", "anna", "Forbidden"),
        // Who may not read it is not told that it is there, whatever they ask.
        (&private, "ben", "patch new", "anna", "NotFound"),
        (&private, "ben", "patch new if 4", "anna", "NotFound"),
        (&private, "ben", "nonsense", "anna", "NotFound"),
        (&private, "ben", "delete", "anna", "NotFound"),
        (&private, "anna", "patch new", "anna", "updated 6"),
        (&admins, "anna", "patch new", "anna", "NotFound"),
        // The rule holds on the document before and after.
        (&drafts, "ben", "patch new", "anna", "updated 6"),
        (&drafts, "ben", "patch final", "anna", "Forbidden"),
        (&drafts, "ben", "count", "anna", "updated 6"),
        // Deleting.
        (&usual, "anna", "delete", "anna", "deleted 6"),
        (&usual, "anna", "delete", "ben", "Forbidden"),
        (&usual, "anna", "delete", "absent", "NotFound"),
        (&usual, "anna", "delete", "deleted", "NotFound"),
        (&usual, "anna", "delete if 5", "anna", "deleted 6"),
        (&usual, "anna", "delete if 6", "anna", "PreconditionFailed"),
        (&usual, "admin", "delete", "ben", "deleted 6"),
        (&closed, "anna", "delete", "anna", "Forbidden"),
        (&drafts, "ben", "delete", "anna", "deleted 6"),
        (&admins, "admin", "delete", "anna", "deleted 6"),
    ] {
        let decided = judge(&application(rules.clone()), &caller(who), operation, state(stored).as_ref());
        assert_eq!(outcome(decided), expected, "{rules}: {who} {operation} on {stored}");
    }
}

#[test]
fn a_changed_document_keeps_what_is_not_changed() {
    let (application, anna) = (application(json!({})), caller("anna"));
    let Ok(Event::Created { document: made }) = judge(&application, &anna, "create new", None) else {
        panic!("it is made")
    };
    assert_eq!((made.created_at, made.updated_at, made.user), (time(100), time(100), anna.user.clone()));
    let Ok(Event::Updated { document: patched, before, patches }) =
        judge(&application, &anna, "patch new", state("anna").as_ref())
    else {
        panic!("it is patched")
    };
    assert_eq!((patched.created_at, patched.updated_at), (time(10), time(100)));
    assert_eq!(patched.fields, *json!({ "text": "new", "n": 5 }).as_object().expect("an object"));
    assert_eq!(patches.len(), 1);
    // With what was at the changed paths, the document before can be had again.
    assert!(serde_json::to_string(&before).expect("JSON").contains("old"), "{before:?}");
    // A clock that went back does not make a change older than the one before.
    let late = Stored::Live(Document { updated_at: time(500), ..document("anna", "old") });
    let Ok(Event::Updated { document: patched, .. }) = judge(&application, &anna, "patch new", Some(&late)) else {
        panic!("it is patched")
    };
    assert_eq!(patched.updated_at, time(500));
}

#[test]
fn an_etag_names_one_life_of_an_id() {
    let stored = document("anna", "old");
    for (version, created_at, met) in
        [(5, None, true), (4, None, false), (5, Some(time(10)), true), (5, Some(time(11)), false)]
    {
        assert_eq!(Expected { version, created_at }.is_met_by(&stored), met, "{version} {created_at:?}");
    }
}

#[test]
fn a_document_is_measured_as_the_json_that_it_is() {
    for fields in [
        json!({}),
        json!({ "a": 1.5, "b": [true, null, "x"], "c": { "d": "ä\n\"\u{1}" } }),
        json!({ "long": "y".repeat(1_000), "small": -1e-300 }),
    ] {
        let fields = fields.as_object().expect("an object");
        let bytes = serde_json::to_string(fields).expect("JSON").len();
        assert_eq!(json_bytes(fields), bytes);
        assert!(most_bytes(fields) >= bytes, "the quick look never says too few");
    }
}

mod importing {
    use nexxus_storage::{model::Offset, registry::records};
    use serde_json::json;

    use super::super::*;

    fn application() -> Application {
        let now = Timestamp::now();
        let definition = json!({
            "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "createdAt": now, "updatedAt": now,
            "offset": Offset::new(1, 0), "rules": {}, "schema": { "task": { "title": { "type": "string" } } },
        });
        let record: records::Application = serde_json::from_value(definition).expect("a definition");
        Application::compile(record).expect("an application")
    }

    fn task(version: u64, title: &str) -> Document {
        let document = json!({
            "id": "d", "type": "task", "appId": "a", "version": version, "title": title,
            "createdAt": "2020-01-01T00:00:00.000Z", "updatedAt": "2020-01-02T00:00:00.000Z",
        });
        serde_json::from_value(document).expect("a document")
    }

    #[test]
    fn an_import_puts_what_is_newer_and_leaves_what_is_not_older() {
        let application = application();
        let caller = Caller { admin: true, ..Caller::default() };
        let judge = Judge { application: &application, caller: &caller, now: Timestamp::now(), document_bytes: 1_000 };
        let live = |version| Some(Stored::Live(task(version, "old")));
        for (stored, notify, expected) in [
            (None, false, "model_imported"),
            (None, true, "model_created"),
            (live(2), false, "model_imported"),
            (live(2), true, "model_updated"),
            (live(3), true, "unchanged"),
            (live(9), false, "unchanged"),
            (Some(Stored::Deleted { version: 2 }), true, "model_created"),
            (Some(Stored::Deleted { version: 3 }), false, "unchanged"),
        ] {
            let event = judge.import(&task(3, "new"), notify, stored.as_ref()).expect("decided");
            assert_eq!(serde_json::to_value(&event).expect("json")["event"], expected, "{stored:?} {notify}");
            if let Event::Created { document } | Event::Updated { document, .. } | Event::Imported { document } = event
            {
                assert_eq!(document, task(3, "new"), "version and times are kept");
            }
        }
        let too_large = judge.import(&task(1, &"x".repeat(2_000)), false, None).expect_err("refused");
        assert_eq!(too_large.kind, ProblemKind::TooLarge);
        let mut unknown = task(1, "x");
        unknown.fields.insert("nonsense".into(), json!(1));
        assert_eq!(judge.import(&unknown, false, None).expect_err("refused").kind, ProblemKind::InvalidDocument);
    }
}
