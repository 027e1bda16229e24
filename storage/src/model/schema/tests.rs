use super::*;
use serde_json::json;

/// A model of its definition.
fn model(fields: Value) -> Model {
    Model::parse(&fields).expect("a valid model")
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

/// The pointers of the faults.
fn paths<T: std::fmt::Debug>(result: Result<T, Vec<FieldError>>) -> Vec<String> {
    result.expect_err("faults").into_iter().map(|error| error.path).collect()
}

fn task() -> Model {
    model(json!({
        "title": { "type": "string", "required": true, "minLength": 1, "maxLength": 5 },
        "status": { "type": "string", "enum": ["todo", "done"], "default": "todo", "filterable": true },
        "priority": { "type": "number", "minimum": 0, "maximum": 10, "filterable": true },
        "done": { "type": "boolean" },
        "due": { "type": "date" },
        "tags": { "type": "array", "arrayType": "string", "minLength": 1, "maxLength": 3, "filterable": true },
        "scores": { "type": "array", "arrayType": "number", "maximum": 5 },
        "meta": { "type": "object", "properties": {
            "id": { "type": "string", "filterable": true },
            "color": { "type": "string", "default": "red" },
            "inner": { "type": "object", "properties": { "x": { "type": "number", "required": true } } },
        } },
        "steps": { "type": "array", "arrayType": "object", "properties": {
            "name": { "type": "string", "required": true },
            "at": { "type": "date" },
            "note": { "type": "string", "hidden": true },
        } },
        "secret": { "type": "string", "hidden": true, "filterable": true },
        "views": { "type": "number", "readOnly": true },
    }))
}

#[test]
fn a_schema_comes_back_as_it_was_given() {
    let given = json!({ "task": {
        "title": { "type": "string", "required": true, "filterable": true, "maxLength": 100 },
        "tags": { "type": "array", "arrayType": "string", "enum": ["a"] },
        "meta": { "type": "object", "properties": { "n": { "type": "number", "minimum": 0.5, "hidden": true } } },
    }, "empty-2": {} });
    let schema = Schema::parse(&given).expect("valid");
    assert_eq!(serde_json::to_value(&schema).expect("json"), given);
    assert!(schema.model("task").is_some_and(|model| model.has_hidden()) && schema.model("none").is_none());
}

#[test]
fn definitions_that_make_no_sense_are_refused_with_their_place() {
    for (field, at) in [
        (json!("string"), ""),
        (json!({}), ""),
        (json!({ "type": "text" }), "/type"),
        (json!({ "type": null }), "/type"),
        (json!({ "type": "string", "requird": true }), "/requird"),
        (json!({ "type": "string", "required": 1 }), "/required"),
        (json!({ "type": "string", "arrayType": "string" }), "/arrayType"),
        (json!({ "type": "array" }), ""),
        (json!({ "type": "array", "arrayType": "array" }), "/arrayType"),
        (json!({ "type": "array", "arrayType": "object" }), ""),
        (json!({ "type": "object" }), ""),
        (json!({ "type": "object", "properties": [] }), "/properties"),
        (json!({ "type": "string", "properties": {} }), "/properties"),
        (json!({ "type": "object", "properties": { "a-b": { "type": "date" } } }), "/properties/a-b"),
        (json!({ "type": "object", "properties": {}, "filterable": true }), "/filterable"),
        (json!({ "type": "array", "arrayType": "object", "properties": {}, "filterable": true }), "/filterable"),
        (
            json!({ "type": "array", "arrayType": "object", "properties": {
                "o": { "type": "object", "properties": { "a": { "type": "string", "filterable": true } } } } }),
            "/properties/o/properties/a/filterable",
        ),
        (json!({ "type": "number", "minLength": 1 }), "/minLength"),
        (json!({ "type": "string", "minLength": -1 }), "/minLength"),
        (json!({ "type": "string", "minLength": 2, "maxLength": 1 }), "/maxLength"),
        (json!({ "type": "string", "minimum": 1 }), "/minimum"),
        (json!({ "type": "number", "minimum": 2, "maximum": 1 }), "/maximum"),
        (json!({ "type": "number", "minimum": "1" }), "/minimum"),
        (json!({ "type": "string", "enum": [] }), "/enum"),
        (json!({ "type": "string", "enum": "a" }), "/enum"),
        (json!({ "type": "string", "enum": ["a", 1] }), "/enum/1"),
        (json!({ "type": "object", "properties": {}, "enum": [{}] }), "/enum"),
        (json!({ "type": "string", "default": 1 }), "/default"),
        (json!({ "type": "string", "enum": ["a"], "default": "b" }), "/default"),
        (json!({ "type": "array", "arrayType": "number", "default": [1, null] }), "/default/1"),
    ] {
        let schema = json!({ "m": { "f": field } });
        assert_eq!(paths(Schema::parse(&schema)), [format!("/m/f{at}")], "{field}");
    }
}

#[test]
fn names_follow_the_contract() {
    let field = json!({ "type": "string", "filterable": true });
    for good in ["a", "A_9", "x".repeat(64).as_str(), "ID"] {
        assert!(Model::parse(&json!({ good: field })).is_ok(), "{good}");
    }
    for bad in ["", "9a", "_a", "a-b", "a.b", "ä", "$a", &"x".repeat(65), "id", "userId", "version", "type"] {
        assert_eq!(Model::parse(&json!({ bad: field })).expect_err("refused").len(), 1, "{bad}");
    }
    assert_eq!(paths(Model::parse(&json!({ "or": field }))), ["/or/filterable"]);
    assert!(Model::parse(&json!({ "or": { "type": "string" } })).is_ok());
    assert_eq!(paths(Schema::parse(&json!({ "a.b": {}, "a/b": {} }))), ["/a.b", "/a~1b"]);
    assert_eq!(paths(Schema::parse(&json!([]))), [""]);
}

#[test]
fn every_fault_of_a_schema_is_told_and_their_number_bounded() {
    let schema = json!({ "a": { "x": 1, "y": {} }, "b": { "z": { "type": "strin" } } });
    assert_eq!(paths(Schema::parse(&schema)), ["/a/x", "/a/y", "/b/z/type"]);
    let many: Map<String, Value> = (0..500).map(|n| (format!("f{n}"), json!(1))).collect();
    assert_eq!(paths(Model::parse(&many.into())).len(), 50);
}

#[test]
fn schemas_are_bounded_in_depth_and_number() {
    let nested = |depth: usize, innermost: Value| {
        (1..depth)
            .fold(json!({ "leaf": innermost }), |inner, _| json!({ "o": { "type": "object", "properties": inner } }))
    };
    let string = json!({ "type": "string" });
    let array = json!({ "type": "array", "arrayType": "string" });
    assert!(Model::parse(&nested(DOCUMENT_DEPTH, string.clone())).is_ok());
    assert!(Model::parse(&nested(DOCUMENT_DEPTH + 1, string.clone())).is_err());
    assert!(Model::parse(&nested(DOCUMENT_DEPTH - 1, array.clone())).is_ok());
    assert!(Model::parse(&nested(DOCUMENT_DEPTH, array)).is_err());
    let many = |n: usize| (0..n).map(|n| (format!("f{n}"), string.clone())).collect::<Map<_, _>>();
    assert!(Model::parse(&many(DOCUMENT_FIELDS).into()).is_ok());
    assert_eq!(paths(Model::parse(&many(DOCUMENT_FIELDS + 1).into())), [""]);
}

#[test]
fn a_new_document_gets_its_canonical_form() {
    let given = json!({
        "title": "x", "priority": 3.0, "done": null, "due": "2026-11-24T19:11:29+02:00", "tags": ["b", "a"],
        "scores": [-0.0, 1.5, 2.0], "meta": { "color": null, "inner": { "x": -4e0 } }, "steps": [{ "name": "n", "at": 0 }],
    });
    let accepted = task().accept(object(given), false).expect("fits");
    let stored = json!({
        "title": "x", "status": "todo", "priority": 3, "due": "2026-11-24T17:11:29.000Z", "tags": ["b", "a"],
        "scores": [0, 1.5, 2], "meta": { "color": "red", "inner": { "x": -4 } },
        "steps": [{ "name": "n", "at": "1970-01-01T00:00:00.000Z" }],
    });
    assert_eq!(Value::Object(accepted.clone()), stored);
    assert_eq!(Value::Object(accepted.clone()).to_string(), stored.to_string());
    assert_eq!(task().check(&accepted), Ok(()));
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    for (given, at) in [
        (json!({ "titel": 1 }), vec!["/titel"]),
        (json!({ "unknown": null }), vec!["/unknown"]),
        (json!({ "createdAt": 1 }), vec!["/createdAt"]),
        (json!({ "title": 1 }), vec!["/title"]),
        (json!({ "title": "" }), vec!["/title"]),
        (json!({ "title": "äöüßéx" }), vec!["/title"]),
        (json!({ "title": null }), vec!["/title"]),
        (json!({ "status": "open" }), vec!["/status"]),
        (json!({ "status": 1 }), vec!["/status"]),
        (json!({ "priority": "3" }), vec!["/priority"]),
        (json!({ "priority": 10.5 }), vec!["/priority"]),
        (json!({ "priority": -1 }), vec!["/priority"]),
        (json!({ "done": "true" }), vec!["/done"]),
        (json!({ "due": "tomorrow" }), vec!["/due"]),
        (json!({ "due": true }), vec!["/due"]),
        (json!({ "tags": "a" }), vec!["/tags"]),
        (json!({ "tags": [] }), vec!["/tags"]),
        (json!({ "tags": ["a", null, 1] }), vec!["/tags/1", "/tags/2"]),
        (json!({ "tags": ["a", "b", "c", "d"] }), vec!["/tags"]),
        (json!({ "scores": [1, 6, [1]] }), vec!["/scores/1", "/scores/2"]),
        (json!({ "meta": [] }), vec!["/meta"]),
        (json!({ "meta": { "inner": {} } }), vec!["/meta/inner/x"]),
        (json!({ "meta": { "a/b~": 1 } }), vec!["/meta/a~1b~0"]),
        (json!({ "steps": [{}, { "name": "n", "x": 1 }, 3] }), vec!["/steps/0/name", "/steps/1/x", "/steps/2"]),
        (json!({ "priority": 99, "done": 1, "x": 1 }), vec!["/done", "/priority", "/x"]),
    ] {
        let mut fields = object(given.clone());
        fields.entry("title").or_insert(json!("x"));
        assert_eq!(paths(task().accept(fields, true)), at, "{given}");
    }
    assert!(task().accept(object(json!({ "title": "äöüßé" })), false).is_ok());
}

#[test]
fn numbers_stay_within_what_every_client_tells_apart() {
    let model = model(json!({ "n": { "type": "number" } }));
    for (text, stored) in [
        ("9007199254740992", Some("9007199254740992")),
        ("-9007199254740992", Some("-9007199254740992")),
        ("9007199254740992.0", Some("9007199254740992")),
        ("9007199254740993", None),
        ("-9007199254740993", None),
        ("18446744073709551615", None),
        ("1e300", None),
        ("5e-324", Some("5e-324")),
        ("0.1", Some("0.1")),
        ("-0.0", Some("0")),
        ("-0", Some("0")),
        ("1e3", Some("1000")),
    ] {
        let fields = object(serde_json::from_str(&format!(r#"{{"n":{text}}}"#)).expect("json"));
        let got = model.accept(fields, false).ok().map(|fields| fields["n"].to_string());
        assert_eq!(got.as_deref(), stored, "{text}");
    }
}

#[test]
fn sizes_are_bounded() {
    let model = model(json!({
        "key": { "type": "string", "filterable": true }, "text": { "type": "string" },
        "keys": { "type": "array", "arrayType": "string", "filterable": true },
        "rows": { "type": "array", "arrayType": "object", "properties": { "a": { "type": "number" } } },
    }));
    let check = |given: Value, at: Option<&str>| match at {
        None => assert!(model.accept(object(given), false).is_ok()),
        Some(at) => assert_eq!(paths(model.accept(object(given), false)), [at]),
    };
    let longest = "x".repeat(FILTERABLE_STRING_BYTES);
    check(json!({ "key": longest, "keys": [longest], "text": format!("{longest}x") }), None);
    check(json!({ "key": format!("{longest}x") }), Some("/key"));
    check(json!({ "keys": ["a", format!("{longest}x")] }), Some("/keys/1"));
    check(json!({ "keys": vec!["a"; ARRAY_ELEMENTS] }), None);
    check(json!({ "keys": vec!["a"; ARRAY_ELEMENTS + 1] }), Some("/keys"));
    check(json!({ "rows": vec![json!({ "a": 1 }); DOCUMENT_FIELDS - 1] }), None);
    check(json!({ "rows": vec![json!({ "a": 1 }); DOCUMENT_FIELDS] }), Some(""));
}

#[test]
fn only_admins_know_hidden_fields_and_set_read_only_ones() {
    let refused = task().accept(object(json!({ "title": "x", "secret": "s", "views": 1, "foo": 1 })), false);
    let messages: Vec<_> = refused.expect_err("refused").into_iter().map(|e| (e.path, e.message)).collect();
    assert_eq!(messages[0], ("/foo".into(), "unknown field".into()));
    assert_eq!(messages[1], ("/secret".into(), "unknown field".into()));
    assert_eq!(messages[2].0, "/views");
    // A null gives a hidden field away no more than a value does.
    assert_eq!(paths(task().accept(object(json!({ "title": "x", "secret": null })), false)), ["/secret"]);
    assert!(task().accept(object(json!({ "title": "x", "views": null })), false).is_ok());
    assert_eq!(
        paths(task().accept(object(json!({ "title": "x", "steps": [{ "name": "n", "note": "x" }] })), false)),
        ["/steps/0/note"]
    );
    assert!(task().accept(object(json!({ "title": "x", "secret": "s", "views": 1 })), true).is_ok());

    let model = model(json!({ "secret": { "type": "string", "hidden": true, "required": true } }));
    let error = model.accept(Map::new(), false).expect_err("refused").remove(0);
    assert!(error.path.is_empty() && !error.message.contains("secret"));
    assert_eq!(paths(model.accept(Map::new(), true)), ["/secret"]);
}

#[test]
fn hidden_fields_vanish_from_what_others_see() {
    let mut fields = object(json!({ "title": "x", "secret": "s", "steps": [{ "name": "n", "note": "x" }] }));
    task().hide(&mut fields);
    assert_eq!(Value::Object(fields), json!({ "title": "x", "steps": [{ "name": "n" }] }));
    let is_hidden = |path: &str| task().is_hidden(&path.split('.').map(str::to_owned).collect::<Vec<_>>());
    for hidden in ["secret", "secret.x", "steps.0.note", "steps.-.note"] {
        assert!(is_hidden(hidden), "{hidden}");
    }
    for shown in ["title", "steps", "steps.0", "steps.0.name", "meta", "meta.color", "nothing", "note"] {
        assert!(!is_hidden(shown), "{shown}");
    }
    assert!(!task().is_hidden(&[]));
}

#[test]
fn stored_documents_are_checked_as_they_are() {
    let check = |fields: Value| task().check(&object(fields));
    assert_eq!(check(json!({ "title": "x", "secret": "s", "views": 1 })), Ok(()));
    for (fields, at) in [
        (json!({}), "/title"),
        (json!({ "title": "x", "done": null }), "/done"),
        (json!({ "title": "x", "priority": 1.0 }), "/priority"),
        (json!({ "title": "x", "due": 0 }), "/due"),
        (json!({ "title": "x", "due": "2026-11-24T19:11:29+02:00" }), "/due"),
        (json!({ "title": "x", "gone": 1 }), "/gone"),
    ] {
        assert_eq!(paths(check(fields)), [at]);
    }
    // From before the field was required.
    let model = model(json!({ "a": { "type": "string", "required": true, "default": "x" } }));
    assert_eq!(model.check(&Map::new()), Ok(()));
    assert_eq!(model.accept(Map::new(), false), Ok(object(json!({ "a": "x" }))));
}

#[test]
fn paths_lead_through_objects_only() {
    let task = task();
    assert_eq!(task.field(&["meta", "inner", "x"]).map(|field| field.field_type), Some(FieldType::Number));
    for nowhere in [&["meta", "x"][..], &["title", "x"], &["steps", "name"], &["steps", "0", "name"], &[]] {
        assert!(task.field(nowhere).is_none(), "{nowhere:?}");
    }
    let filterable: Vec<_> =
        task.filterable().into_iter().map(|field| (field.path.to_string(), field.kind, field.is_array)).collect();
    assert_eq!(
        filterable,
        [
            ("meta.id".to_owned(), Kind::String, false),
            ("priority".to_owned(), Kind::Number, false),
            ("secret".to_owned(), Kind::String, false),
            ("status".to_owned(), Kind::String, false),
            ("tags".to_owned(), Kind::String, true),
        ]
    );
}

#[test]
fn filters_and_sorts_name_filterable_and_universal_fields() {
    let named =
        |path: &str, privileged: bool| task().filter_field(path, privileged).map(|field| field.path.to_string());
    for path in ["createdAt", "meta.id", "tags"] {
        assert_eq!(named(path, false), Ok(path.to_owned()));
    }
    assert_eq!(named("secret", true), Ok("secret".to_owned()));
    for (path, error) in [
        ("secret", UnusableField::Unknown),
        ("nothing", UnusableField::Unknown),
        ("steps.name", UnusableField::Unknown),
        ("", UnusableField::Unknown),
        ("title", UnusableField::NotFilterable),
        ("meta", UnusableField::NotFilterable),
    ] {
        assert_eq!(named(path, false), Err(error), "{path}");
    }
}

#[test]
fn a_schema_change_tells_what_it_conflicts_with() {
    let old = json!({ "type": "string", "maxLength": 10, "enum": ["a", "b"], "filterable": true });
    for (old, new, at) in [
        (old.clone(), json!({ "type": "string", "enum": ["c", "b", "a"], "hidden": true }), None),
        (old.clone(), json!({ "type": "string" }), None),
        (old.clone(), json!({ "type": "string", "default": "x", "required": true }), None),
        (old.clone(), json!({ "type": "string", "required": true }), Some("/m/f/required")),
        (old.clone(), json!({ "type": "string", "enum": ["a"] }), Some("/m/f/enum")),
        (old.clone(), json!({ "type": "string", "maxLength": 9 }), Some("/m/f/maxLength")),
        (old.clone(), json!({ "type": "string", "minLength": 1 }), Some("/m/f/minLength")),
        (old.clone(), json!({ "type": "string", "minLength": 0 }), None),
        (old.clone(), json!({ "type": "number" }), Some("/m/f/type")),
        (old.clone(), Value::Null, Some("/m/f")),
        (json!({ "type": "string" }), old.clone(), Some("/m/f/enum")),
        (json!({ "type": "number" }), json!({ "type": "number", "minimum": -5 }), Some("/m/f/minimum")),
        (json!({ "type": "number", "maximum": 5 }), json!({ "type": "number", "maximum": 4.5 }), Some("/m/f/maximum")),
        (json!({ "type": "number", "maximum": 5 }), json!({ "type": "number", "maximum": 5.5 }), None),
        (
            json!({ "type": "array", "arrayType": "string" }),
            json!({ "type": "array", "arrayType": "number" }),
            Some("/m/f/arrayType"),
        ),
        (
            json!({ "type": "object", "properties": { "x": { "type": "string" } } }),
            json!({ "type": "object", "properties": { "y": { "type": "string" } } }),
            Some("/m/f/properties/x"),
        ),
        (
            json!({ "type": "object", "properties": {} }),
            json!({ "type": "object", "properties": { "y": { "type": "string", "required": true } } }),
            Some("/m/f/properties/y/required"),
        ),
        (
            json!({ "type": "string", "required": true, "default": "x" }),
            json!({ "type": "string", "required": true }),
            Some("/m/f/default"),
        ),
    ] {
        let parse = |field: &Value| {
            let fields = if field.is_null() { json!({}) } else { json!({ "f": field }) };
            Schema::parse(&json!({ "m": fields })).expect("valid")
        };
        let found: Vec<_> = parse(&old).conflicts(&parse(&new)).into_iter().map(|error| error.path).collect();
        assert_eq!(found.first().map(String::as_str), at, "{old} to {new}");
    }
    let one = Schema::parse(&json!({ "m": { "f": { "type": "string", "filterable": true } } })).expect("valid");
    assert_eq!(one.conflicts(&Schema::default())[0].path, "/m");
    assert!(Schema::default().conflicts(&one).is_empty());
}

#[test]
fn fields_that_can_no_longer_be_filtered_are_named() {
    let schema =
        |field: Value| Schema::parse(&json!({ "m": { "o": { "type": "object", "properties": { "f": field } } } }));
    let old = schema(json!({ "type": "string", "filterable": true })).expect("valid");
    let name = ModelName::parse("m").expect("a name");
    for (field, expect) in [
        (json!({ "type": "string" }), true),
        (json!({ "type": "number", "filterable": true }), true),
        (json!({ "type": "string", "filterable": true, "hidden": true }), false),
    ] {
        let gone = old.no_longer_filterable(&schema(field).expect("valid"));
        assert_eq!(gone, if expect { vec![(name.clone(), "o.f".into())] } else { vec![] });
    }
    assert_eq!(old.no_longer_filterable(&Schema::default()), [(name, "o.f".into())]);
}
