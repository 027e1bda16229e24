use std::sync::Arc;

use super::*;
use crate::model::{Timestamp, testing};
use proptest::prelude::*;
use serde_json::{Map, json};

fn schema() -> Schema {
    Schema::parse(&json!({ "task": {
        "team": { "type": "string", "filterable": true },
        "level": { "type": "number", "filterable": true },
        "due": { "type": "date", "filterable": true },
        "open": { "type": "boolean", "filterable": true },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
        "secret": { "type": "string", "filterable": true, "hidden": true },
        "text": { "type": "string" },
    } }))
    .expect("a schema")
}

fn task() -> ModelName {
    ModelName::parse("task").expect("a name")
}

fn caller(user: Option<&str>, user_type: Option<&str>, details: Value) -> Caller {
    Caller {
        admin: false,
        user: user.map(|user| UserId::parse(user).expect("an id")),
        facts: UserFacts {
            user_type: user_type.map(str::to_owned),
            details: details.as_object().cloned().unwrap_or_default(),
        },
        device: None,
    }
}

fn document(user: Option<&str>, fields: Value) -> Document {
    Document {
        app: "app".parse().expect("an id"),
        model: task(),
        id: "d".parse().expect("an id"),
        user: user.map(|user| user.parse().expect("an id")),
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
        version: 1,
        fields: fields.as_object().cloned().unwrap_or_default(),
    }
}

/// Whether a read rule lets the caller see the document.
fn reads(rule: Value, caller: &Caller, document: &Document) -> bool {
    let rules = Rules::parse(&json!({ "task": { "read": rule } }), &schema()).expect("rules");
    rules.allows(Action::Read, caller, document)
}

#[test]
fn words_mean_what_they_say() {
    let mine = document(Some("u"), json!({}));
    let nobodys = document(None, json!({}));
    let (user, other, nobody) =
        (caller(Some("u"), None, json!({})), caller(Some("v"), None, json!({})), Caller::default());
    let admin = Caller { admin: true, ..Caller::default() };
    for (rule, expect) in [
        // user on its own, other on it, nobody on it, user on nobody's, admin
        ("public", [true, true, true, true, true]),
        ("user", [true, true, false, true, true]),
        ("owner", [true, false, false, false, true]),
        ("admin", [false, false, false, false, true]),
        ("none", [false, false, false, false, true]),
    ] {
        let got = [(&user, &mine), (&other, &mine), (&nobody, &mine), (&user, &nobodys), (&admin, &mine)]
            .map(|(caller, document)| reads(json!(rule), caller, document));
        assert_eq!(got, expect, "{rule}");
    }
}

#[test]
fn defaults_hold_for_what_is_not_named() {
    let user = caller(Some("v"), None, json!({}));
    let theirs = document(Some("u"), json!({}));
    for rules in [json!(null), json!({}), json!({ "task": null }), json!({ "task": { "read": null } })] {
        let rules = Rules::parse(&rules, &schema()).expect("rules");
        let got = Action::ALL.map(|action| rules.allows(action, &user, &theirs));
        assert_eq!(got, [true, true, false, false]);
        assert!(Action::ALL.iter().all(|action| !rules.allows(*action, &Caller::default(), &theirs)));
    }
    let rules = Rules::parse(&json!({ "task": { "delete": "public" } }), &schema()).expect("rules");
    assert!(rules.allows(Action::Delete, &Caller::default(), &theirs));
    assert!(!rules.allows(Action::Update, &Caller::default(), &theirs));
}

#[test]
fn without_authentication_everything_is_public() {
    let theirs = document(Some("u"), json!({}));
    assert!(Action::ALL.iter().all(|action| Rules::open().allows(*action, &Caller::default(), &theirs)));
}

#[test]
fn rules_that_do_not_fit_are_refused_with_their_place() {
    for (rules, at) in [
        (json!([]), ""),
        (json!({ "tasks": {} }), "/tasks"),
        (json!({ "task": "public" }), "/task"),
        (json!({ "task": { "write": "user" } }), "/task/write"),
        (json!({ "task": { "write": null } }), "/task/write"),
        (json!({ "task": { "read": "everybody" } }), "/task/read"),
        (json!({ "task": { "read": true } }), "/task/read"),
        (json!({ "task": { "read": [] } }), "/task/read"),
        (json!({ "task": { "read": { "nothing": 1 } } }), "/task/read/nothing"),
        (json!({ "task": { "read": { "text": "a" } } }), "/task/read/text"),
        (json!({ "task": { "read": { "team": "$user" } } }), "/task/read/team"),
        (json!({ "task": { "read": { "team": "$user.name" } } }), "/task/read/team"),
        (json!({ "task": { "read": { "team": "$user.details" } } }), "/task/read/team"),
        (json!({ "task": { "read": { "team": "$user.details." } } }), "/task/read/team"),
        (json!({ "task": { "read": { "team": "$user.details.a..b" } } }), "/task/read/team"),
        (json!({ "task": { "read": { "level": "$user.id" } } }), "/task/read/level"),
        (json!({ "task": { "read": { "due": { "$in": ["$user.type"] } } } }), "/task/read/due/$in/0"),
        (json!({ "task": { "read": { "team": { "$in": "$user.id" } } } }), "/task/read/team/$in"),
        (json!({ "task": { "read": { "team": { "$exists": "$user.id" } } } }), "/task/read/team/$exists"),
        (json!({ "task": { "read": { "tags": { "$gt": "$user.id" } } } }), "/task/read/tags/$gt"),
        (json!({ "task": { "read": { "level": { "$prefix": "$user.id" } } } }), "/task/read/level/$prefix"),
    ] {
        let errors = Rules::parse(&rules, &schema()).expect_err("refused");
        assert_eq!(errors.iter().map(|error| &*error.path).collect::<Vec<_>>(), [at], "{rules}");
    }
    let several = json!({ "task": { "read": 1, "create": 2 }, "x": {} });
    assert_eq!(Rules::parse(&several, &schema()).expect_err("refused").len(), 3);
}

#[test]
fn values_of_the_caller_are_bound_by_the_kind_of_the_field() {
    let document = document(
        Some("u"),
        json!({ "team": "red", "level": 3, "due": "2026-11-24T17:11:29.000Z", "open": true, "tags": ["a", "b"] }),
    );
    for (rule, details, expect) in [
        (json!({ "userId": "$user.id" }), json!({}), true),
        (json!({ "team": "$user.type" }), json!({}), true),
        (json!({ "team": "$user.details.team" }), json!({ "team": "red" }), true),
        (json!({ "team": "$user.details.team" }), json!({ "team": "blue" }), false),
        (json!({ "team": { "$ne": "$user.details.team" } }), json!({ "team": "blue" }), true),
        (json!({ "team": "$user.details.org.team" }), json!({ "org": { "team": "red" } }), true),
        (json!({ "team": { "$prefix": "$user.details.team" } }), json!({ "team": "re" }), true),
        (json!({ "level": "$user.details.n" }), json!({ "n": 3.0 }), true),
        (json!({ "level": { "$lte": "$user.details.n" } }), json!({ "n": 3 }), true),
        (json!({ "level": { "$lt": "$user.details.n", "$gt": 1 } }), json!({ "n": 3 }), false),
        (json!({ "level": { "$gt": "$user.details.n" } }), json!({ "n": 2.5 }), true),
        (json!({ "level": { "$gte": "$user.details.n" } }), json!({ "n": 4 }), false),
        (json!({ "due": "$user.details.d" }), json!({ "d": "2026-11-24T19:11:29+02:00" }), true),
        (json!({ "open": "$user.details.b" }), json!({ "b": true }), true),
        (json!({ "tags": "$user.details.tag" }), json!({ "tag": "b" }), true),
        (json!({ "tags": { "$contains": "$user.details.tag" } }), json!({ "tag": "x" }), false),
        (json!({ "team": { "$in": ["blue", "$user.details.team"] } }), json!({ "team": "red" }), true),
        (json!({ "team": { "$nin": ["blue", "$user.details.team"] } }), json!({ "team": "red" }), false),
        (json!({ "team": { "$in": "$user.details.teams" } }), json!({ "teams": ["blue", "red"] }), true),
        (json!({ "team": { "$in": "$user.details.teams" } }), json!({ "teams": [] }), false),
        (json!({ "team": { "$nin": "$user.details.teams" } }), json!({ "teams": [] }), true),
        // Of a wrong type: as good as not there, for the condition and for its negation.
        (json!({ "team": "$user.details.team" }), json!({ "team": 1 }), false),
        (json!({ "team": { "$ne": "$user.details.team" } }), json!({ "team": ["red"] }), false),
        (json!({ "level": { "$ne": "$user.details.n" } }), json!({ "n": "4" }), false),
        (json!({ "level": { "$ne": "$user.details.n" } }), json!({ "n": 1e300 }), false),
        (json!({ "due": { "$ne": "$user.details.d" } }), json!({ "d": "soon" }), false),
        (json!({ "team": { "$nin": "$user.details.teams" } }), json!({ "teams": ["blue", 1] }), false),
        (json!({ "team": { "$nin": "$user.details.teams" } }), json!({ "teams": "blue" }), false),
        // Rules may name hidden fields; in rules no string is what it says if it begins with `$user.`.
        (json!({ "secret": null }), json!({}), true),
    ] {
        assert_eq!(
            reads(rule.clone(), &caller(Some("u"), Some("red"), details.clone()), &document),
            expect,
            "{rule} {details}"
        );
    }
}

#[test]
fn what_the_caller_does_not_have_grants_nothing_either_way() {
    let document = document(Some("u"), json!({ "team": "red", "level": 3 }));
    let lacking = [
        (caller(Some("v"), None, json!({})), "$user.type"),
        (caller(Some("v"), None, json!({ "team": null })), "$user.details.team"),
        (caller(Some("v"), None, json!({ "team": "x" })), "$user.details.team.deeper"),
        (Caller::default(), "$user.id"),
        // Details without a user are nobody's.
        (caller(None, Some("red"), json!({ "team": "red" })), "$user.type"),
        (caller(None, Some("red"), json!({ "team": "red" })), "$user.details.team"),
    ];
    for (caller, name) in &lacking {
        for (rule, expect) in [
            (json!({ "team": name }), false),
            (json!({ "team": { "$ne": name } }), false),
            (json!({ "$not": { "team": name } }), false),
            (json!({ "$not": { "$not": { "team": name } } }), false),
            (json!({ "$not": { "team": { "$ne": name } } }), false),
            (json!({ "team": { "$in": [name, "red"] } }), false),
            (json!({ "team": { "$nin": [name, "blue"] } }), false),
            (json!({ "team": { "$gt": name } }), false),
            (json!({ "$not": { "team": { "$gt": name } } }), false),
            (json!({ "team": { "$prefix": name } }), false),
            (json!({ "level": 3, "team": name }), false),
            // A branch that does not need it still grants.
            (json!({ "$or": [{ "team": name }, { "level": 3 }] }), true),
            (json!({ "$or": [{ "team": { "$ne": name } }, { "level": 4 }] }), false),
            // Not both, whatever the value is, as the level is another anyway.
            (json!({ "$not": { "level": 4, "team": name } }), true),
            (json!({ "$not": { "level": 3, "team": name } }), false),
            (json!({ "$not": { "$or": [{ "level": 4 }, { "team": name }] } }), false),
        ] {
            assert_eq!(reads(rule.clone(), caller, &document), expect, "{rule} for {caller:?}");
        }
    }
}

#[test]
fn rules_know_the_fields_they_name() {
    let rules = json!({ "task": {
        "read": { "$or": [{ "team": "$user.details.team" }, { "$not": { "open": true } }] },
        "delete": { "level": { "$in": [1, "$user.details.n"] } },
    } });
    let rules = Rules::parse(&rules, &schema()).expect("rules");
    for (path, expect) in [("team", true), ("open", true), ("level", true), ("due", false), ("userId", false)] {
        assert_eq!(rules.names_field(&task(), path), expect, "{path}");
    }
    assert!(!rules.names_field(&ModelName::parse("other").expect("a name"), "team"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn binding_grants_what_is_true_whatever_is_missing(
        (model, documents, rule, caller) in testing::model().prop_flat_map(|model| (
            Just(Arc::clone(&model)),
            prop::collection::vec(testing::document(&model), 6),
            testing::rule_filter(&model),
            testing::caller(),
        ))
    ) {
        let schema = Schema { models: [(ModelName::parse("thing").expect("a name"), Arc::clone(&model))].into() };
        let rules = Rules::parse(&json!({ "thing": { "read": rule } }), &schema)
            .map_err(|errors| TestCaseError::fail(format!("{errors:?}")))?;
        for document in &documents {
            let expect = testing::naive_grants(&rule, document, &model, &caller);
            prop_assert_eq!(rules.allows(Action::Read, &caller, document), expect, "{} {:?} {:?}", rule, caller, document);
        }
    }

    #[test]
    fn nothing_makes_rules_panic(json in testing::any_json(), model in testing::model()) {
        let schema = Schema { models: [(ModelName::parse("a").expect("a name"), model)].into() };
        for rules in [json.clone(), json!({ "a": json }), json!({ "a": { "read": json } })] {
            if let Ok(rules) = Rules::parse(&rules, &schema) {
                rules.condition(&ModelName::parse("a").expect("a name"), Action::Read, &Caller::default());
            }
        }
    }
}

#[test]
fn callers_travel_as_json() {
    let details = Map::from_iter([("team".to_owned(), json!("red"))]);
    let caller = caller(Some("u"), Some("t"), Value::Object(details));
    let json = serde_json::to_value(&caller).expect("json");
    assert_eq!(serde_json::from_value::<Caller>(json).expect("a caller"), caller);
}
