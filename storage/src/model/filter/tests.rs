mod fuzz;

use super::*;
use crate::model::testing;
use proptest::prelude::*;
use serde_json::json;

fn model() -> Model {
    Model::parse(&json!({
        "status": { "type": "string", "filterable": true },
        "priority": { "type": "number", "filterable": true },
        "done": { "type": "boolean", "filterable": true },
        "due": { "type": "date", "filterable": true },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
        "counts": { "type": "array", "arrayType": "number", "filterable": true },
        "meta": { "type": "object", "properties": {
            "a": { "type": "object", "properties": { "b": { "type": "number", "filterable": true } } },
        } },
        "text": { "type": "string" },
        "secret": { "type": "string", "filterable": true, "hidden": true },
        "vault": { "type": "object", "hidden": true, "properties": { "x": { "type": "string", "filterable": true } } },
        "rows": { "type": "array", "arrayType": "object", "properties": { "x": { "type": "string" } } },
    }))
    .expect("a model")
}

fn parse(filter: &Value) -> Filter {
    Filter::parse(filter, &model(), false).unwrap_or_else(|error| panic!("{filter}: {error:?}"))
}

#[test]
fn canonical_texts() {
    for (filter, canonical) in [
        (json!({}), r#"{}"#),
        (json!({ "$and": [] }), r#"{}"#),
        (json!({ "$and": [{}, {}] }), r#"{}"#),
        (json!({ "id": { "$exists": true } }), r#"{}"#),
        (json!({ "status": { "$nin": [] } }), r#"{}"#),
        (json!({ "$or": [{}, { "done": true }] }), r#"{}"#),
        (json!({ "$or": [] }), r#"{"$or":[]}"#),
        (json!({ "$not": {} }), r#"{"$or":[]}"#),
        (json!({ "status": { "$in": [] } }), r#"{"$or":[]}"#),
        (json!({ "version": null }), r#"{"$or":[]}"#),
        (json!({ "priority": { "$gt": 3, "$lt": 3 } }), r#"{"$or":[]}"#),
        (json!({ "priority": { "$gt": 3, "$lte": 3 }, "done": true }), r#"{"$or":[]}"#),
        (json!({ "status": "todo" }), r#"{"status":"todo"}"#),
        (json!({ "status": { "eq": "todo" } }), r#"{"status":"todo"}"#),
        (json!({ "status": { "$in": ["todo", "todo"] } }), r#"{"status":"todo"}"#),
        (json!({ "tags": { "contains": "x" } }), r#"{"tags":"x"}"#),
        (json!({ "status": null }), r#"{"status":{"$exists":false}}"#),
        (json!({ "status": { "$eq": null } }), r#"{"status":{"$exists":false}}"#),
        (json!({ "status": { "$ne": null } }), r#"{"status":{"$exists":true}}"#),
        (json!({ "status": { "$prefix": "" } }), r#"{"status":{"$exists":true}}"#),
        (json!({ "userId": { "$exists": true } }), r#"{"userId":{"$exists":true}}"#),
        (json!({ "$not": { "status": "a" } }), r#"{"status":{"$ne":"a"}}"#),
        (json!({ "$not": { "not": { "status": "a" } } }), r#"{"status":"a"}"#),
        (json!({ "$not": { "priority": { "gt": 1 } } }), r#"{"$not":{"priority":{"$gt":1}}}"#),
        (json!({ "status": { "$nin": ["b", "a", "b"] } }), r#"{"status":{"$nin":["a","b"]}}"#),
        (json!({ "priority": { "$in": [10, 9.0, -1, 1.5] } }), r#"{"priority":{"$in":[-1,1.5,9,10]}}"#),
        (
            json!({ "status": { "in": ["\u{10000}", "\u{ffff}"] } }),
            "{\"status\":{\"$in\":[\"\u{ffff}\",\"\u{10000}\"]}}",
        ),
        (json!({ "priority": 5.0 }), r#"{"priority":5}"#),
        (json!({ "priority": -0.0 }), r#"{"priority":0}"#),
        (json!({ "due": 0 }), r#"{"due":"1970-01-01T00:00:00.000Z"}"#),
        (json!({ "due": { "$lt": "2026-11-24T19:11:29+02:00" } }), r#"{"due":{"$lt":"2026-11-24T17:11:29.000Z"}}"#),
        (json!({ "priority": { "lt": 7, "gte": 3 } }), r#"{"priority":{"$gte":3,"$lt":7}}"#),
        (json!({ "priority": { "$gte": 3, "$lte": 3 } }), r#"{"priority":{"$gte":3,"$lte":3}}"#),
        (json!({ "priority": { "$gte": 3, "gte": 3, "$lte": 3 } }), r#"{"priority":{"$gte":3,"$lte":3}}"#),
        (
            json!({ "$and": [{ "priority": { "gt": 1, "lt": 9 } }, { "priority": { "gte": 2, "lte": 9 } }] }),
            r#"{"priority":{"$gte":2,"$lt":9}}"#,
        ),
        (json!({ "status": "a", "done": true }), r#"{"done":true,"status":"a"}"#),
        (json!({ "$and": [{ "status": "a" }, { "and": [{ "done": true }] }] }), r#"{"done":true,"status":"a"}"#),
        (
            json!({ "or": [{ "status": "b" }, { "$or": [{ "status": "a" }, { "status": "b" }] }] }),
            r#"{"$or":[{"status":"a"},{"status":"b"}]}"#,
        ),
        (json!({ "status": { "$ne": "a", "ne": "b" } }), r#"{"$and":[{"status":{"$ne":"b"}}],"status":{"$ne":"a"}}"#),
        (
            json!({ "$or": [{ "status": "a" }, { "done": true }], "or": [{ "status": "b" }, { "done": true }] }),
            r#"{"$and":[{"$or":[{"done":true},{"status":"b"}]}],"$or":[{"done":true},{"status":"a"}]}"#,
        ),
        (json!({ "status": "\"\\\n/" }), r#"{"status":"\"\\\n/"}"#),
        (json!({ "meta.a.b": { "ne": 1, "gt": 0 } }), r#"{"meta.a.b":{"$gt":0,"$ne":1}}"#),
    ] {
        let parsed = parse(&filter);
        assert_eq!(parsed.canonical(), canonical, "{filter}");
        assert_eq!(parse(&serde_json::from_str(canonical).expect("json")), parsed, "{filter}");
    }
}

#[test]
fn the_hash_is_of_the_canonical_text() {
    let filter = parse(&json!({ "status": { "eq": "todo" } }));
    // printf '%s' '{"status":"todo"}' | sha256sum | cut -c1-32
    assert_eq!(filter.hash(), "1e6fd0a4dfddbe9a7724c1a024007e34");
}

#[test]
fn bad_filters_are_refused_with_their_place() {
    let deep = |depth: usize| (0..depth).fold(json!({ "status": "a" }), |inner, _| json!({ "$not": inner }));
    let many = |n: usize| json!({ "$or": (0..n).map(|n| json!({ "priority": n })).collect::<Vec<_>>() });
    let deep_pointer = "/$not".repeat(FILTER_DEPTH + 1);
    for (filter, at) in [
        (json!([]), ""),
        (json!("status"), ""),
        (json!({ "$nor": [] }), "/$nor"),
        (json!({ "$eq": 1 }), "/$eq"),
        (json!({ "$and": {} }), "/$and"),
        (json!({ "or": [1] }), "/or/0"),
        (json!({ "$not": [] }), "/$not"),
        (json!({ "unknown": 1 }), "/unknown"),
        (json!({ "a/b~": 1 }), "/a~1b~0"),
        (json!({ "": 1 }), "/"),
        (json!({ "text": "a" }), "/text"),
        (json!({ "meta": {} }), "/meta"),
        (json!({ "meta.a": 1 }), "/meta.a"),
        (json!({ "meta": { "a.b": 1 } }), "/meta"),
        (json!({ "meta.a.b.c": 1 }), "/meta.a.b.c"),
        (json!({ "meta.": 1 }), "/meta."),
        (json!({ "rows.x": "a" }), "/rows.x"),
        (json!({ "secret": "a" }), "/secret"),
        (json!({ "vault.x": "a" }), "/vault.x"),
        (json!({ "$or": [{}, { "secret": "a" }] }), "/$or/1/secret"),
        (json!({ "status": {} }), "/status"),
        (json!({ "status": ["a"] }), "/status"),
        (json!({ "status": 1 }), "/status"),
        (json!({ "status": { "$regex": "a" } }), "/status/$regex"),
        (json!({ "status": { "$not": { "$eq": "a" } } }), "/status/$not"),
        (json!({ "status": { "$$eq": "a" } }), "/status/$$eq"),
        (json!({ "status": { "$exists": 1 } }), "/status/$exists"),
        (json!({ "status": { "$contains": "a" } }), "/status/$contains"),
        (json!({ "status": { "$gt": null } }), "/status/$gt"),
        (json!({ "status": { "$in": "a" } }), "/status/$in"),
        (json!({ "status": { "$in": ["a", null] } }), "/status/$in/1"),
        (json!({ "status": { "nin": [null] } }), "/status/nin/0"),
        (json!({ "status": { "$in": vec!["a"; FILTER_VALUES + 1] } }), "/status/$in"),
        (json!({ "status": { "$prefix": 1 } }), "/status/$prefix"),
        (json!({ "tags": { "$prefix": "a" } }), "/tags/$prefix"),
        (json!({ "tags": { "$gt": "a" } }), "/tags/$gt"),
        (json!({ "tags": { "$contains": null } }), "/tags/$contains"),
        (json!({ "tags": ["a"] }), "/tags"),
        (json!({ "counts": "a" }), "/counts"),
        (json!({ "priority": "3" }), "/priority"),
        (json!({ "priority": { "$lt": 1e300 } }), "/priority/$lt"),
        (json!({ "priority": 9_007_199_254_740_993i64 }), "/priority"),
        (json!({ "priority": { "$prefix": 1 } }), "/priority/$prefix"),
        (json!({ "done": { "$gte": false } }), "/done/$gte"),
        (json!({ "done": "true" }), "/done"),
        (json!({ "due": "tomorrow" }), "/due"),
        (json!({ "due": true }), "/due"),
        (json!({ "createdAt": { "$gt": "x" } }), "/createdAt/$gt"),
        (json!({ "version": "1" }), "/version"),
        (deep(FILTER_DEPTH + 1), deep_pointer.as_str()),
        (many(FILTER_CONDITIONS + 1), "/$or/64/priority"),
    ] {
        let error = Filter::parse(&filter, &model(), false).expect_err("refused");
        assert_eq!(error.path, at, "{filter}: {}", error.message);
    }
    for good in [deep(FILTER_DEPTH), many(FILTER_CONDITIONS), json!({ "status": { "$in": vec!["a"; FILTER_VALUES] } })]
    {
        parse(&good);
    }
}

#[test]
fn what_is_too_deep_only_in_canonical_form_is_refused_too() {
    let twice = json!({ "status": { "$prefix": "a", "prefix": "b" } });
    let inner = (0..FILTER_DEPTH).fold(twice, |inner, _| json!({ "$or": [inner, { "done": true }] }));
    // Flat in the end: the `$or` are one.
    parse(&inner);
    let twice = json!({ "status": { "$prefix": "a", "prefix": "b" } });
    let inner = (0..FILTER_DEPTH).fold(twice, |inner, _| json!({ "$not": { "$and": [inner, { "done": true }] } }));
    assert!(Filter::parse(&inner, &model(), false).is_err());
}

#[test]
fn hidden_fields_look_unknown_to_all_but_admins() {
    for path in ["secret", "vault.x"] {
        let filter = json!({ path: "a" });
        let refused = Filter::parse(&filter, &model(), false).expect_err("refused");
        let unknown = Filter::parse(&json!({ "no": "a" }), &model(), false).expect_err("refused");
        assert_eq!(refused.message, unknown.message);
        assert!(Filter::parse(&filter, &model(), true).is_ok());
    }
}

fn document(fields: Value) -> Document {
    let mut flat = json!({
        "id": "d1", "type": "task", "appId": "app", "createdAt": "2026-11-24T17:11:29.123Z",
        "updatedAt": "2026-11-24T17:11:30.000Z", "version": 3,
    });
    flat.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    serde_json::from_value(flat).expect("a document")
}

#[test]
fn what_filters_mean() {
    for (fields, filter, expect) in [
        // Missing, null and [] do not exist; "" and 0 do.
        (json!({}), json!({ "status": { "$ne": "a" } }), true),
        (json!({}), json!({ "status": { "$nin": ["a"] } }), true),
        (json!({}), json!({ "status": { "$exists": false } }), true),
        (json!({}), json!({ "status": null }), true),
        (json!({}), json!({ "status": { "$ne": null } }), false),
        (json!({}), json!({ "status": { "$lt": "z" } }), false),
        (json!({}), json!({ "$not": { "status": { "$lt": "z" } } }), true),
        (json!({ "status": "" }), json!({ "status": { "$exists": true } }), true),
        (json!({ "priority": 0 }), json!({ "priority": { "$exists": true } }), true),
        (json!({ "tags": [] }), json!({ "tags": null }), true),
        (json!({ "tags": [] }), json!({ "tags": { "$ne": "a" } }), true),
        // Arrays: "has such an element".
        (json!({ "tags": ["a", "b"] }), json!({ "tags": "b" }), true),
        (json!({ "tags": ["a", "b"] }), json!({ "tags": { "$ne": "b" } }), false),
        (json!({ "tags": ["a", "b"] }), json!({ "tags": { "$in": ["x", "b"] } }), true),
        (json!({ "tags": ["a", "b"] }), json!({ "tags": { "$nin": ["x", "b"] } }), false),
        (json!({ "counts": [1, 2.5] }), json!({ "counts": { "$contains": 2.5 } }), true),
        // Strings compare by code point, not by UTF-16 unit and not by any language.
        (json!({ "status": "\u{10000}" }), json!({ "status": { "$gt": "\u{ffff}" } }), true),
        (json!({ "status": "Z" }), json!({ "status": { "$lt": "a" } }), true),
        (json!({ "status": "é" }), json!({ "status": "e\u{301}" }), false),
        (json!({ "status": "étage" }), json!({ "status": { "$prefix": "é" } }), true),
        // Numbers and dates are what they are worth.
        (json!({ "priority": 5 }), json!({ "priority": { "$gte": 5.0, "$lt": 5.5 } }), true),
        (json!({ "priority": 9_007_199_254_740_992i64 }), json!({ "priority": 9_007_199_254_740_991i64 }), false),
        (json!({ "due": "2026-11-24T17:11:29.000Z" }), json!({ "due": "2026-11-24T19:11:29+02:00" }), true),
        (json!({ "due": "0999-01-01T00:00:00.000Z" }), json!({ "due": { "$lt": 0 } }), true),
        // Paths, universal fields.
        (json!({ "meta": { "a": { "b": 1 } } }), json!({ "meta.a.b": 1 }), true),
        (json!({ "meta": {} }), json!({ "meta.a.b": null }), true),
        (json!({}), json!({ "id": { "$prefix": "d" }, "type": "task", "appId": "app", "version": 3 }), true),
        (json!({}), json!({ "createdAt": "2026-11-24T17:11:29.123Z", "updatedAt": { "$gt": 1.5 } }), true),
        (json!({}), json!({ "userId": null }), true),
        (json!({ "userId": "u" }), json!({ "userId": { "$in": ["u", "v"] } }), true),
        // A value of another type, left behind by a forced change of schema, is as good as missing.
        (json!({ "priority": "5", "tags": "a", "status": ["a"], "due": "x" }), json!({ "priority": 5 }), false),
        (json!({ "priority": "5", "tags": "a" }), json!({ "priority": null, "tags": { "$ne": "a" } }), true),
        (json!({ "status": ["a"], "due": "x" }), json!({ "status": null, "due": null }), true),
    ] {
        assert_eq!(parse(&filter).matches(&document(fields.clone())), expect, "{filter} on {fields}");
    }
}

#[test]
fn conditions_stay_simple_when_they_meet() {
    let condition = |filter: Value| parse(&filter).condition().clone();
    let (a, b) = (condition(json!({ "status": "a" })), condition(json!({ "done": true })));
    assert_eq!(Condition::All.and(a.clone()), a);
    assert_eq!(a.clone().and(Condition::None), Condition::None);
    assert_eq!(a.clone().and(a.clone()), a);
    let both = Condition::And([a.clone(), b.clone()].into());
    assert_eq!(a.clone().and(b.clone()), both);
    assert_eq!(both.clone().and(a), both);
    assert_eq!(
        condition(json!({ "priority": { "gt": 1 } })).and(condition(json!({ "priority": { "lt": 0 } }))),
        Condition::None
    );
    let mut paths = Vec::new();
    both.negated().each_field(&mut |field| paths.push(field.path.to_string()));
    assert_eq!(paths, ["status", "done"]);
}

#[test]
fn universal_fields_have_their_kinds() {
    for (name, kind) in [("id", Kind::String), ("updatedAt", Kind::Date), ("version", Kind::Number)] {
        assert_eq!(Field::universal(name).map(|field| (field.kind, field.is_universal)), Some((kind, true)));
    }
    assert_eq!(Field::universal("title"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn means_the_same_as_the_naive_evaluator((model, documents, filter) in testing::filtered_documents(8)) {
        let parsed = Filter::parse(&filter, &model, true).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        for document in &documents {
            let expect = testing::naive_matches(&filter, document, &model);
            prop_assert_eq!(parsed.matches(document), expect, "{} on {:?}", filter, document);
            prop_assert_eq!(parsed.condition().clone().negated().matches(document), !expect);
        }
    }

    #[test]
    fn the_canonical_text_is_the_same_filter((model, documents, filter) in testing::filtered_documents(4)) {
        let parsed = Filter::parse(&filter, &model, true).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let canonical: Value = serde_json::from_str(parsed.canonical()).expect("json");
        prop_assert_eq!(&canonical.to_string(), parsed.canonical(), "sorted and without spaces");
        prop_assert_eq!(&Filter::parse(&canonical, &model, true).expect("a filter"), &parsed);
        for document in &documents {
            prop_assert_eq!(testing::naive_matches(&canonical, document, &model), parsed.matches(document));
        }
    }

    #[test]
    fn spelling_does_not_matter((model, _, filter) in testing::filtered_documents(0)) {
        let parsed = Filter::parse(&filter, &model, true).expect("a filter");
        let again = Filter::parse(&respelled(&filter), &model, true).expect("a filter");
        prop_assert_eq!(again.hash(), parsed.hash());
        prop_assert_eq!(&Filter::parse(&json!({ "$and": [filter.clone()] }), &model, true).expect("a filter"), &parsed);
        prop_assert_eq!(&Filter::parse(&json!({ "$or": [filter, { "$or": [] }] }), &model, true).expect("a filter"), &parsed);
    }

    #[test]
    fn nothing_makes_the_parser_panic(json in testing::any_json(), model in testing::model()) {
        if let Ok(filter) = Filter::parse(&json, &model, false) {
            let again: Value = serde_json::from_str(filter.canonical()).expect("json");
            prop_assert_eq!(Filter::parse(&again, &model, false), Ok(filter));
        }
    }
}

/// The same filter with `$` left out or put in, lists turned round, plain values as `$eq`.
fn respelled(filter: &Value) -> Value {
    let flip = |name: &str| name.strip_prefix('$').map_or_else(|| format!("${name}"), str::to_owned);
    let list = |filters: &Value| filters.as_array().expect("a list").iter().rev().map(respelled).collect::<Value>();
    let members = filter.as_object().expect("a filter").iter().rev().map(|(key, value)| match key.as_str() {
        "$and" | "and" | "$or" | "or" => (flip(key), list(value)),
        "$not" | "not" => (flip(key), respelled(value)),
        path => match value {
            Value::Object(operators) => {
                let operators = operators.iter().map(|(name, value)| {
                    let value = match value {
                        Value::Array(values) => values.iter().rev().cloned().collect(),
                        other => other.clone(),
                    };
                    (flip(name), value)
                });
                (path.to_owned(), Value::Object(operators.collect()))
            }
            value => (path.to_owned(), json!({ "eq": value })),
        },
    });
    Value::Object(members.collect())
}
