//! What is refused, with which status, and where the fault stands in the body.

use serde_json::{Value, json};

use super::*;

#[test]
fn a_body_that_cannot_be_read_is_refused_with_its_faults() {
    let deep = (0..40).fold(json!(1), |value, _| json!({"a": value}));
    let long = vec!["a"; 40].join(".");
    for (media_type, body, paths) in [
        (NEXXUS, json!({}), vec![""]),
        (NEXXUS, json!([]), vec![""]),
        (NEXXUS, json!([1, {}]), vec!["/0", "/1/op", "/1/path"]),
        (
            NEXXUS,
            json!([{"op": "set", "path": "title", "value": ["x"], "a/b": 1}]),
            vec!["/0/a~1b", "/0/op", "/0/path"],
        ),
        (NEXXUS, json!([{"op": "replace", "path": ["a", "b"], "value": ["x"]}]), vec!["/0/value"]),
        (NEXXUS, json!([{"op": "replace", "path": ["a"], "value": "x"}]), vec!["/0/value"]),
        (NEXXUS, json!([{"op": "replace", "path": ["a"]}]), vec!["/0/value"]),
        (NEXXUS, json!([{"op": "remove", "path": ["a"], "value": [1]}]), vec!["/0/value"]),
        (NEXXUS, json!([{"op": "remove", "path": []}]), vec!["/0/path"]),
        (
            NEXXUS,
            json!([{"op": "remove", "path": ["a", 1, "", "b..c", long]}]),
            vec!["/0/path/1", "/0/path/2", "/0/path/3", "/0/path/4"],
        ),
        (NEXXUS, json!([{"op": "incr", "path": ["a", "b"], "value": [1, "1"]}]), vec!["/0/value/1"]),
        (NEXXUS, json!([{"op": "replace", "path": ["a"], "value": [deep]}]), vec!["/0/value/0"]),
        (NEXXUS, Value::Array(vec![json!({"op": "remove", "path": ["a"]}); 1_001]), vec![""]),
        (NEXXUS, json!([{"op": "remove", "path": vec!["a"; 1_001]}]), vec![""]),
        (JSON_PATCH, json!({"op": "remove", "path": "/a"}), vec![""]),
        (JSON_PATCH, json!([{"op": "spam", "path": "/a"}, {"path": "/a"}, 1]), vec!["/0/op", "/1/op", "/2"]),
        (
            JSON_PATCH,
            json!([{"op": "add", "path": "a", "value": 1}, {"op": "add", "path": "/a~2", "value": 1}]),
            vec!["/0/path", "/1/path"],
        ),
        (JSON_PATCH, json!([{"op": "add", "path": "/a"}, {"op": "test"}]), vec!["/0/value", "/1/path", "/1/value"]),
        (JSON_PATCH, json!([{"op": "copy", "path": "/a"}]), vec!["/0/from"]),
        (JSON_PATCH, json!([{"op": "move", "from": "/a", "path": "/a/b"}]), vec!["/0/path"]),
        (JSON_PATCH, json!([{"op": "remove", "path": "/a".repeat(40)}]), vec!["/0/path"]),
        (MERGE_PATCH, json!([]), vec![""]),
        (MERGE_PATCH, json!(null), vec![""]),
        (MERGE_PATCH, deep.clone(), vec![""]),
    ] {
        check_refused(&model(), &json!({}), media_type, body, ProblemKind::InvalidPatch, &paths);
    }
    assert!(PatchSet::parse("text/plain", &json!([])).is_none());
    assert!(PatchSet::parse("Application/JSON", &json!([])).is_some());
}

#[test]
fn what_does_not_fit_is_refused_where_it_stands_in_the_body() {
    let fields = json!({"title": "a", "priority": 9_007_199_254_740_991_i64, "tags": ["x"], "meta": {"count": 1}});
    for (media_type, body, paths) in [
        (NEXXUS, json!([{"op": "replace", "path": ["title", "priority"], "value": ["b", "high"]}]), vec!["/0/value/1"]),
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["nope", "meta.nope"], "value": [1, 2]}]),
            vec!["/0/path/0", "/0/path/1"],
        ),
        (NEXXUS, json!([{"op": "remove", "path": ["nope"]}, {"op": "remove", "path": ["title"]}]), vec!["/0/path/0"]),
        (NEXXUS, json!([{"op": "remove", "path": ["title"]}]), vec!["/0/path/0"]),
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["tags.0", "title.x"], "value": [1, 2]}]),
            vec!["/0/path/0", "/0/path/1"],
        ),
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["meta"], "value": [{"deep": {"x": "no"}}]}]),
            vec!["/0/value/0/deep/x"],
        ),
        (NEXXUS, json!([{"op": "append", "path": ["tags"], "value": [null]}]), vec!["/0/value/0"]),
        (
            NEXXUS,
            json!([{"op": "append", "path": ["priority", "title"], "value": [1, 1]}]),
            vec!["/0/path/0", "/0/value/1"],
        ),
        (NEXXUS, json!([{"op": "incr", "path": ["title"], "value": [1]}]), vec!["/0/path/0"]),
        (NEXXUS, json!([{"op": "incr", "path": ["priority"], "value": [2]}]), vec!["/0/value/0"]),
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["id", "version", "userId", "type.x"], "value": ["x", 1, "bob", 1]}]),
            vec!["/0/path/0", "/0/path/1", "/0/path/2", "/0/path/3"],
        ),
        (
            JSON_PATCH,
            json!([{"op": "add", "path": "/tags/-", "value": "y"}, {"op": "add", "path": "/tags/-", "value": 1}]),
            vec!["/1/value"],
        ),
        (JSON_PATCH, json!([{"op": "add", "path": "/nope", "value": 1}]), vec!["/0/value"]),
        (JSON_PATCH, json!([{"op": "copy", "from": "/tags", "path": "/title"}]), vec!["/0/path"]),
        (
            JSON_PATCH,
            json!([{"op": "remove", "path": "/version"}, {"op": "move", "from": "/id", "path": "/note"}]),
            vec!["/0/path", "/1/from"],
        ),
        (JSON_PATCH, json!([{"op": "replace", "path": "/userId", "value": "bob"}]), vec!["/0/path"]),
        (JSON_PATCH, json!([{"op": "replace", "path": "", "value": {"title": "x", "id": "y"}}]), vec![""]),
        (JSON_PATCH, json!([{"op": "replace", "path": "", "value": 1}]), vec![""]),
        (MERGE_PATCH, json!({"title": 1, "meta": {"deep": {"x": "no"}}}), vec!["/meta/deep/x", "/title"]),
        (MERGE_PATCH, json!({"title": null}), vec!["/title"]),
        (MERGE_PATCH, json!({"nope": null, "meta": {"nope": null}}), vec!["/meta/nope", "/nope"]),
        (MERGE_PATCH, json!({"updatedAt": null, "userId": "bob"}), vec!["/userId", "/updatedAt"]),
    ] {
        check_refused(&model(), &fields, media_type, body, ProblemKind::InvalidDocument, &paths);
    }
}

#[test]
fn a_json_patch_without_target_is_a_conflict_and_a_failed_test_a_precondition() {
    use ProblemKind::{PatchConflict, PreconditionFailed};
    let fields = json!({"title": "a", "tags": ["x"]});
    for (operation, kind, path) in [
        (json!({"op": "remove", "path": "/done"}), PatchConflict, "/1/path"),
        (json!({"op": "remove", "path": ""}), PatchConflict, "/1/path"),
        (json!({"op": "replace", "path": "/tags/1", "value": "y"}), PatchConflict, "/1/path"),
        (json!({"op": "replace", "path": "/tags/-", "value": "y"}), PatchConflict, "/1/path"),
        (json!({"op": "add", "path": "/tags/2", "value": "y"}), PatchConflict, "/1/path"),
        (json!({"op": "add", "path": "/tags/01", "value": "y"}), PatchConflict, "/1/path"),
        (json!({"op": "add", "path": "/meta/count", "value": 1}), PatchConflict, "/1/path"),
        (json!({"op": "copy", "from": "/note", "path": "/title"}), PatchConflict, "/1/from"),
        (json!({"op": "test", "path": "/title", "value": "a"}), PreconditionFailed, "/1"),
        (json!({"op": "test", "path": "/note", "value": "a"}), PreconditionFailed, "/1"),
        (json!({"op": "test", "path": "/tags", "value": null}), PreconditionFailed, "/1"),
    ] {
        let body = json!([{"op": "add", "path": "/title", "value": "b"}, operation]);
        check_refused(&model(), &fields, JSON_PATCH, body, kind, &[path]);
    }
}

#[test]
fn a_json_patch_cannot_grow_without_bound() {
    let copies = |n: usize| -> Value {
        let once = json!({"op": "copy", "from": "/tags", "path": "/meta/tags/-"});
        let back = json!({"op": "copy", "from": "/meta/tags", "path": "/tags/-"});
        (0..n).flat_map(|_| [once.clone(), back.clone()]).collect()
    };
    let fields = json!({"title": "a", "tags": ["x".repeat(1_000)], "meta": {"tags": []}});
    let problem = apply(&model(), false, &fields, JSON_PATCH, &copies(500)).expect_err("too much");
    assert_eq!(problem.kind, ProblemKind::InvalidDocument, "{problem:?}");
    let into: Value = (0..1_000)
        .map(|_| json!({"op": "copy", "from": "/meta", "path": "/meta/deep"}))
        .chain([json!({"op": "move", "from": "/meta", "path": "/note"})])
        .take(1_000)
        .collect();
    assert!(apply(&model(), false, &json!({"meta": {}}), JSON_PATCH, &into).is_err());
}

#[test]
fn faults_are_told_up_to_a_limit() {
    let fields = json!({"title": "a"});
    let element = json!({"by": "me", "secret": "x", "nope": 1});
    for (media_type, body) in [
        (NEXXUS, json!([{"op": "replace", "path": ["items"], "value": [vec![element.clone(); 900]]}])),
        (NEXXUS, json!([{"op": "remove", "path": vec!["nope"; 900]}])),
        (NEXXUS, Value::Array(vec![json!(1); 900])),
        (JSON_PATCH, Value::Array(vec![json!({"op": "remove", "path": "/id"}); 900])),
        (JSON_PATCH, Value::Array(vec![json!({}); 900])),
        (MERGE_PATCH, json!({"items": vec![element; 900]})),
        (
            MERGE_PATCH,
            (0..900).map(|nth| (format!("nope{nth}"), Value::Null)).collect::<serde_json::Map<_, _>>().into(),
        ),
    ] {
        let problem = apply(&guarded_model(), false, &fields, media_type, &body).expect_err("faults");
        assert_eq!(problem.errors.len(), 50, "{media_type}");
    }
}
