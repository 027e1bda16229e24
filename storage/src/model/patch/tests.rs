//! What patches do, case by case.

use serde_json::{Value, json};

use super::*;
use crate::model::{AppId, DocumentId, ModelName, Timestamp, problem::ProblemKind};

mod guarded;
mod refusals;
mod rfc;

const NEXXUS: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";

pub(super) fn model() -> Model {
    Model::parse(&json!({
        "title": { "type": "string", "required": true },
        "note": { "type": "string" },
        "priority": { "type": "number" },
        "done": { "type": "boolean" },
        "due": { "type": "date" },
        "tags": { "type": "array", "arrayType": "string" },
        "days": { "type": "array", "arrayType": "date" },
        "meta": { "type": "object", "properties": {
            "count": { "type": "number" },
            "tags": { "type": "array", "arrayType": "string" },
            "deep": { "type": "object", "properties": { "x": { "type": "number" }, "y": { "type": "string" } } },
        } },
    }))
    .expect("a model")
}

/// The same with fields that only admins see or set.
pub(super) fn guarded_model() -> Model {
    Model::parse(&json!({
        "title": { "type": "string" },
        "score": { "type": "number", "readOnly": true },
        "secret": { "type": "string", "hidden": true },
        "tags": { "type": "array", "arrayType": "string" },
        "meta": { "type": "object", "properties": {
            "a": { "type": "number" },
            "by": { "type": "string", "readOnly": true },
            "secret": { "type": "number", "hidden": true },
            "deep": { "type": "object", "properties": {
                "x": { "type": "number" }, "secret": { "type": "array", "arrayType": "string", "hidden": true },
            } },
        } },
        "items": { "type": "array", "arrayType": "object", "properties": {
            "x": { "type": "number" },
            "by": { "type": "string", "readOnly": true },
            "secret": { "type": "string", "hidden": true },
        } },
        "vault": { "type": "object", "hidden": true, "properties": { "x": { "type": "number" } } },
    }))
    .expect("a model")
}

pub(super) fn document(fields: Value) -> Document {
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    Document {
        app: AppId::parse("shop").expect("an id"),
        model: ModelName::parse("task").expect("a name"),
        id: DocumentId::parse("d1").expect("an id"),
        user: Some(UserId::parse("anna").expect("an id")),
        created_at: Timestamp::from_ms(1_000).expect("a time"),
        updated_at: Timestamp::from_ms(2_000).expect("a time"),
        version: 3,
        fields,
    }
}

pub(super) fn caller(admin: bool) -> Caller {
    Caller { admin, ..Caller::default() }
}

fn apply(model: &Model, admin: bool, fields: &Value, media_type: &str, body: &Value) -> Result<Patched, Problem> {
    let patch = PatchSet::parse(media_type, body).expect("a patch").map_err(fault::unreadable)?;
    patch.apply(&document(fields.clone()), model, &caller(admin))
}

/// The fields after, and what subscribers get.
#[track_caller]
fn check(fields: Value, media_type: &str, body: Value, after: Value, told: Value) {
    let patched =
        apply(&model(), false, &fields, media_type, &body).unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
    assert_eq!(Value::Object(patched.document.fields.clone()), after, "{body}");
    assert_eq!(json!(patched.patches), told, "{body}");
    assert_eq!(patched.before.restore(&patched.document).fields, document(fields).fields, "{body}");
}

/// One Nexxus patch that is told as it came.
#[track_caller]
fn check_exact(fields: Value, patch: Value, after: Value) {
    check(fields, NEXXUS, json!([patch.clone()]), after, json!([patch]));
}

/// The kind of problem and the paths of its errors.
#[track_caller]
fn check_refused(model: &Model, fields: &Value, media_type: &str, body: Value, kind: ProblemKind, paths: &[&str]) {
    let problem = apply(model, false, fields, media_type, &body).expect_err(&body.to_string());
    let found: Vec<&str> = problem.errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!((problem.kind, found.as_slice()), (kind, paths), "{body}: {problem:?}");
}

#[test]
fn nexxus_patches_are_told_as_they_came() {
    check_exact(
        json!({"title": "a"}),
        json!({"op": "replace", "path": ["title"], "value": ["b"]}),
        json!({"title": "b"}),
    );
    check_exact(
        json!({"title": "a", "priority": 1}),
        json!({"op": "incr", "path": ["priority"], "value": [2.5]}),
        json!({"title": "a", "priority": 3.5}),
    );
    check_exact(
        json!({"title": "a"}),
        json!({"op": "decr", "path": ["priority"], "value": [2]}),
        json!({"title": "a", "priority": -2}),
    );
    check_exact(
        json!({"title": "a", "tags": ["x"]}),
        json!({"op": "append", "path": ["tags", "title"], "value": ["y", "!"]}),
        json!({"title": "a!", "tags": ["x", "y"]}),
    );
    check_exact(
        json!({"title": "a", "tags": ["x"]}),
        json!({"op": "prepend", "path": ["tags", "title"], "value": [["y", "z"], "!"]}),
        json!({"title": "!a", "tags": ["y", "z", "x"]}),
    );
    check_exact(
        json!({"title": "a", "meta": {"count": 1}, "done": true}),
        json!({"op": "remove", "path": ["meta.count", "done"]}),
        json!({"title": "a", "meta": {}}),
    );
    check_exact(
        json!({"title": "a"}),
        json!({"op": "replace", "path": ["meta.deep.x"], "value": [1]}),
        json!({"title": "a", "meta": {"deep": {"x": 1}}}),
    );
}

#[test]
fn nexxus_patches_are_told_by_their_result_where_they_are_not_exact() {
    let title = || json!({"title": "a"});
    let replace = |path: &str, value: Value| json!([{"op": "replace", "path": [path], "value": [value]}]);
    for (fields, body, after, told) in [
        // What is created: a client without the schema could not know what it is.
        (
            title(),
            json!([{"op": "append", "path": ["tags"], "value": ["x"]}]),
            json!({"title": "a", "tags": ["x"]}),
            replace("tags", json!(["x"])),
        ),
        (
            title(),
            json!([{"op": "prepend", "path": ["note"], "value": ["x"]}]),
            json!({"title": "a", "note": "x"}),
            replace("note", json!("x")),
        ),
        (
            title(),
            json!([{"op": "decr", "path": ["meta.deep.x"], "value": [2]}]),
            json!({"title": "a", "meta": {"deep": {"x": -2}}}),
            replace("meta.deep.x", json!(-2)),
        ),
        // Canonical form.
        (
            title(),
            json!([{"op": "replace", "path": ["due", "priority"], "value": ["2026-01-02T03:04:05+01:00", 2.0]}]),
            json!({"title": "a", "due": "2026-01-02T02:04:05.000Z", "priority": 2}),
            json!([{"op": "replace", "path": ["due", "priority"], "value": ["2026-01-02T02:04:05.000Z", 2]}]),
        ),
        (
            title(),
            json!([{"op": "append", "path": ["days"], "value": [[0, "1970-01-01T00:00:01Z"]]}]),
            json!({"title": "a", "days": ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:01.000Z"]}),
            replace("days", json!(["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:01.000Z"])),
        ),
        (
            title(),
            json!([{"op": "replace", "path": ["meta"], "value": [{"count": null, "deep": {"x": 1.0, "y": null}}]}]),
            json!({"title": "a", "meta": {"deep": {"x": 1}}}),
            replace("meta", json!({"deep": {"x": 1}})),
        ),
        // Null is absence.
        (
            json!({"title": "a", "done": true}),
            json!([{"op": "replace", "path": ["done"], "value": [null]}]),
            title(),
            json!([{"op": "remove", "path": ["done"]}]),
        ),
        // Steps that meet.
        (
            title(),
            json!([{"op": "replace", "path": ["title", "title"], "value": ["b", "c"]}]),
            json!({"title": "c"}),
            replace("title", json!("c")),
        ),
        (
            title(),
            json!([{"op": "replace", "path": ["meta.count", "meta.deep.x"], "value": [1, 2]}]),
            json!({"title": "a", "meta": {"count": 1, "deep": {"x": 2}}}),
            replace("meta", json!({"count": 1, "deep": {"x": 2}})),
        ),
        (
            json!({"title": "a", "meta": {"count": 1}}),
            json!([
                {"op": "incr", "path": ["meta.count"], "value": [1]},
                {"op": "replace", "path": ["meta"], "value": [{"deep": {}}]},
                {"op": "append", "path": ["title"], "value": ["b"]},
            ]),
            json!({"title": "ab", "meta": {"deep": {}}}),
            json!([
                {"op": "remove", "path": ["meta.count"]},
                {"op": "replace", "path": ["meta.deep"], "value": [{}]},
                {"op": "append", "path": ["title"], "value": ["b"]},
            ]),
        ),
        // Steps that only add stay.
        (
            json!({"title": "a", "priority": 1, "tags": []}),
            json!([
                {"op": "incr", "path": ["priority"], "value": [5]},
                {"op": "decr", "path": ["priority"], "value": [2]},
                {"op": "append", "path": ["tags", "tags"], "value": ["x", "y"]},
            ]),
            json!({"title": "a", "priority": 4, "tags": ["x", "y"]}),
            json!([
                {"op": "incr", "path": ["priority"], "value": [5]},
                {"op": "decr", "path": ["priority"], "value": [2]},
                {"op": "append", "path": ["tags", "tags"], "value": ["x", "y"]},
            ]),
        ),
    ] {
        check(fields, NEXXUS, body, after, told);
    }
}

#[test]
fn what_changes_nothing_is_no_change() {
    let fields = json!({
        "title": "a", "priority": 1, "due": "2026-01-02T02:04:05.000Z", "tags": ["x"], "meta": {"count": 1},
    });
    for (media_type, body) in [
        (NEXXUS, json!([{"op": "replace", "path": ["title", "priority"], "value": ["a", 1.0]}])),
        (NEXXUS, json!([{"op": "replace", "path": ["due"], "value": ["2026-01-02T03:04:05+01:00"]}])),
        (NEXXUS, json!([{"op": "remove", "path": ["done", "meta.deep.x", "meta.tags"]}])),
        (NEXXUS, json!([{"op": "replace", "path": ["meta.deep.x"], "value": [null]}])),
        (NEXXUS, json!([{"op": "append", "path": ["title", "tags"], "value": ["", []]}])),
        (NEXXUS, json!([{"op": "incr", "path": ["priority"], "value": [0]}])),
        (
            NEXXUS,
            json!([
                {"op": "incr", "path": ["priority", "meta.count"], "value": [2, 0]},
                {"op": "replace", "path": ["done", "title"], "value": [true, "b"]},
                {"op": "decr", "path": ["priority"], "value": [2]},
                {"op": "remove", "path": ["done"]},
                {"op": "replace", "path": ["title"], "value": ["a"]},
            ]),
        ),
        (
            NEXXUS,
            json!([
                {"op": "remove", "path": ["meta"]},
                {"op": "replace", "path": ["meta.count"], "value": [1]},
            ]),
        ),
        (JSON_PATCH, json!([])),
        (
            JSON_PATCH,
            json!([
                {"op": "test", "path": "/title", "value": "a"},
                {"op": "test", "path": "/version", "value": 3.0},
                {"op": "test", "path": "/userId", "value": "anna"},
                {"op": "test", "path": "/done", "value": null},
                {"op": "move", "from": "/title", "path": "/note"},
                {"op": "move", "from": "/note", "path": "/title"},
                {"op": "add", "path": "/done", "value": null},
                {"op": "replace", "path": "/due", "value": "2026-01-02T03:04:05+01:00"},
            ]),
        ),
        (MERGE_PATCH, json!({})),
        (MERGE_PATCH, json!({"title": "a", "done": null, "meta": {"deep": null}, "priority": 1.0})),
    ] {
        check(fields.clone(), media_type, body, fields.clone(), json!([]));
    }
}

#[test]
fn standards_are_told_as_the_least_nexxus_patches() {
    let fields = || json!({"title": "a", "tags": ["x", "y"], "meta": {"count": 1, "deep": {"x": 1, "y": "z"}}});
    for (media_type, body, after, told) in [
        (
            JSON_PATCH,
            json!([
                {"op": "add", "path": "/tags/1", "value": "n"},
                {"op": "add", "path": "/tags/-", "value": "e"},
                {"op": "remove", "path": "/tags/0"},
                {"op": "replace", "path": "/meta/deep/x", "value": 2},
                {"op": "copy", "from": "/id", "path": "/note"},
                {"op": "move", "from": "/meta/count", "path": "/priority"},
            ]),
            json!({
                "title": "a", "tags": ["n", "y", "e"], "note": "d1", "priority": 1,
                "meta": {"deep": {"x": 2, "y": "z"}},
            }),
            json!([
                {"op": "remove", "path": ["meta.count"]},
                {"op": "replace", "path": ["meta.deep.x", "tags", "note", "priority"], "value": [2, ["n", "y", "e"], "d1", 1]},
            ]),
        ),
        (
            JSON_PATCH,
            json!([{"op": "replace", "path": "", "value": {"title": "b", "version": 3}}]),
            json!({"title": "b"}),
            json!([
                {"op": "remove", "path": ["meta", "tags"]},
                {"op": "replace", "path": ["title"], "value": ["b"]},
            ]),
        ),
        (
            MERGE_PATCH,
            json!({"title": "b", "tags": null, "meta": {"deep": {"x": null}, "tags": ["t"]}}),
            json!({"title": "b", "meta": {"count": 1, "deep": {"y": "z"}, "tags": ["t"]}}),
            json!([
                {"op": "remove", "path": ["meta.deep.x", "tags"]},
                {"op": "replace", "path": ["meta.tags", "title"], "value": [["t"], "b"]},
            ]),
        ),
    ] {
        check(fields(), media_type, body, after, told);
    }
}

#[test]
fn what_a_changed_schema_left_behind_can_be_removed() {
    let fields = json!({"title": "a", "old": 1, "meta": {"old": {"x": 1}}});
    check(
        fields.clone(),
        NEXXUS,
        json!([{"op": "remove", "path": ["old", "meta.old"]}]),
        json!({"title": "a", "meta": {}}),
        json!([{"op": "remove", "path": ["old", "meta.old"]}]),
    );
    // Another change is refused as long as they are there; none is to blame in the body.
    let body = json!([{"op": "replace", "path": ["title"], "value": ["b"]}]);
    check_refused(&model(), &fields, NEXXUS, body, ProblemKind::InvalidDocument, &["", ""]);
}

#[test]
fn travels_as_it_came() {
    for (media_type, body, wire) in [
        (
            NEXXUS,
            json!([{"op": "remove", "path": ["a"]}, {"op": "incr", "path": ["b"], "value": [1]}]),
            json!({"format": "nexxus", "ops": [{"op": "remove", "path": ["a"]}, {"op": "incr", "path": ["b"], "value": [1]}]}),
        ),
        (
            JSON_PATCH,
            json!([{"op": "test", "path": "/a~1b", "value": null}]),
            json!({"format": "json-patch", "ops": [{"op": "test", "path": "/a~1b", "value": null}]}),
        ),
        (MERGE_PATCH, json!({"a": null}), json!({"format": "merge-patch", "ops": {"a": null}})),
    ] {
        let patch = PatchSet::parse(media_type, &body).expect("a patch").expect("valid");
        assert_eq!(serde_json::to_value(&patch).expect("json"), wire);
        assert_eq!(serde_json::from_value::<PatchSet>(wire).expect("a patch"), patch);
    }
    // Not from a parser, but from a queue.
    let uneven = PatchSet::Nexxus(vec![Patch { op: Op::Replace, path: vec!["title".into()], value: vec![] }]);
    let problem = uneven.apply(&document(json!({})), &model(), &caller(true)).expect_err("uneven");
    assert_eq!(problem.kind, ProblemKind::InvalidPatch);
}

#[test]
fn what_lies_between_two_states_leads_from_one_to_the_other_and_back() {
    for (before, after, n_patches) in [
        (
            json!({ "title": "a", "meta": { "count": 1 }, "note": "x" }),
            json!({ "title": "a", "meta": { "count": 2 } }),
            2,
        ),
        (json!({ "title": "a" }), json!({ "title": "b", "tags": ["x"], "done": false }), 3),
        (json!({ "title": "a" }), json!({ "title": "a" }), 0),
    ] {
        let (before, mut after) = (document(before), document(after));
        after.version = before.version + 1;
        let (patches, replaced) = between(&before, &after);
        assert_eq!(patches.len(), n_patches);
        assert_eq!(replaced.restore(&after).fields, before.fields);
        let patched = PatchSet::Nexxus(patches).apply(&before, &model(), &caller(true)).expect("they apply");
        assert_eq!(patched.document.fields, after.fields);
    }
    let (before, after) =
        (document(json!({})), Document { user: Some("ben".parse().expect("an id")), ..document(json!({})) });
    let (patches, replaced) = between(&before, &after);
    assert_eq!((patches[0].path.as_slice(), replaced.user), (&["userId".to_owned()][..], before.user));
}
