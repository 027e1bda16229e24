//! Owners, hidden and read-only fields: who may change them, and what others get to see.

use serde_json::{Value, json};

use super::*;

#[test]
fn only_an_admin_gives_a_document_to_somebody_else() {
    let fields = json!({"title": "a"});
    let told = |op: &str, value: Value| json!([{"op": op, "path": ["userId"], "value": value}]);
    for (media_type, body, owner, patches) in [
        (NEXXUS, told("replace", json!(["bob"])), Some("bob"), told("replace", json!(["bob"]))),
        (NEXXUS, told("replace", json!(["anna"])), Some("anna"), json!([])),
        (NEXXUS, told("remove", json!([])), None, json!([{"op": "remove", "path": ["userId"]}])),
        (
            JSON_PATCH,
            json!([{"op": "add", "path": "/userId", "value": "bob"}]),
            Some("bob"),
            told("replace", json!(["bob"])),
        ),
        (JSON_PATCH, json!([{"op": "remove", "path": "/userId"}]), None, json!([{"op": "remove", "path": ["userId"]}])),
        (JSON_PATCH, json!([{"op": "add", "path": "", "value": {"title": "a"}}]), Some("anna"), json!([])),
        (MERGE_PATCH, json!({"userId": "bob"}), Some("bob"), told("replace", json!(["bob"]))),
        (MERGE_PATCH, json!({"userId": null}), None, json!([{"op": "remove", "path": ["userId"]}])),
    ] {
        let patched =
            apply(&model(), true, &fields, media_type, &body).unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
        assert_eq!(patched.document.user.as_ref().map(UserId::as_str), owner, "{body}");
        assert_eq!(json!(patched.patches), patches, "{body}");
        assert_eq!(patched.before.user.as_ref().map(UserId::as_str), Some("anna"), "{body}");
    }
    for body in [told("replace", json!(["no/id"])), told("replace", json!([7])), told("append", json!(["x"]))] {
        let problem = apply(&model(), true, &fields, NEXXUS, &body).expect_err("no owner");
        assert_eq!(problem.kind, ProblemKind::InvalidDocument, "{body}");
    }
}

#[test]
fn who_does_not_see_a_field_does_not_patch_it() {
    let fields = json!({
        "title": "a", "score": 1, "secret": "s", "meta": {"a": 1, "by": "anna", "secret": 7, "deep": {"secret": ["x"]}},
    });
    for (media_type, body, paths) in [
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["secret", "vault.x"], "value": ["s", 1]}]),
            vec!["/0/path/0", "/0/path/1"],
        ),
        (NEXXUS, json!([{"op": "remove", "path": ["secret", "meta.secret"]}]), vec!["/0/path/0", "/0/path/1"]),
        (
            NEXXUS,
            json!([{"op": "replace", "path": ["meta"], "value": [{"by": "anna", "secret": 7}]}]),
            vec!["/0/value/0/secret"],
        ),
        (NEXXUS, json!([{"op": "incr", "path": ["score"], "value": [1]}]), vec!["/0/value/0"]),
        (NEXXUS, json!([{"op": "remove", "path": ["meta.by"]}]), vec!["/0/path/0"]),
        (NEXXUS, json!([{"op": "remove", "path": ["meta"]}]), vec!["/0/path/0"]),
        (NEXXUS, json!([{"op": "replace", "path": ["meta"], "value": [{"by": "bob"}]}]), vec!["/0/value/0/by"]),
        (JSON_PATCH, json!([{"op": "add", "path": "/secret", "value": "s"}]), vec!["/0/value"]),
        (JSON_PATCH, json!([{"op": "replace", "path": "/score", "value": 2}]), vec!["/0/value"]),
        (MERGE_PATCH, json!({"secret": null, "meta": {"secret": null}}), vec!["/meta/secret", "/secret"]),
        (MERGE_PATCH, json!({"vault": {"x": 1}, "title": "b"}), vec!["/vault"]),
        (MERGE_PATCH, json!({"meta": {"by": null}}), vec!["/meta/by"]),
    ] {
        check_refused(&guarded_model(), &fields, media_type, body, ProblemKind::InvalidDocument, &paths);
    }
    for (path, kind) in
        [("/secret", ProblemKind::PreconditionFailed), ("/meta/deep/secret", ProblemKind::PreconditionFailed)]
    {
        let body = json!([{"op": "test", "path": path, "value": "s"}]);
        check_refused(&guarded_model(), &fields, JSON_PATCH, body, kind, &["/0"]);
    }
    check_refused(
        &guarded_model(),
        &fields,
        JSON_PATCH,
        json!([{"op": "copy", "from": "/secret", "path": "/title"}]),
        ProblemKind::PatchConflict,
        &["/0/from"],
    );
}

#[test]
fn a_hidden_field_looks_like_one_that_is_not_there() {
    let fields = json!({"title": "a", "score": 1, "secret": "s", "meta": {"secret": 7}});
    let bodies = |name: &str| {
        [
            (NEXXUS, json!([{"op": "replace", "path": [name, "title"], "value": [1, 2]}])),
            (NEXXUS, json!([{"op": "remove", "path": [name]}])),
            (NEXXUS, json!([{"op": "replace", "path": ["meta", "title"], "value": [{name: 7}, 2]}])),
            (NEXXUS, json!([{"op": "replace", "path": ["meta"], "value": [{name: null}]}])),
            (JSON_PATCH, json!([{"op": "add", "path": format!("/{name}"), "value": []}])),
            (JSON_PATCH, json!([{"op": "add", "path": format!("/meta/{name}"), "value": null}])),
            (JSON_PATCH, json!([{"op": "test", "path": format!("/{name}"), "value": "s"}])),
            (JSON_PATCH, json!([{"op": "remove", "path": format!("/meta/{name}")}])),
            (MERGE_PATCH, json!({name: "s"})),
            (MERGE_PATCH, json!({name: null})),
            (MERGE_PATCH, json!({name: {"x": 1}, "title": 2, "score": 3})),
            (MERGE_PATCH, json!({"meta": {name: 1, "by": "me"}})),
        ]
    };
    for ((media_type, hidden), (_, missing)) in bodies("secret").into_iter().zip(bodies("secrets")) {
        let [hidden, missing] = [hidden, missing].map(|body| {
            let problem = apply(&guarded_model(), false, &fields, media_type, &body).expect_err(&body.to_string());
            serde_json::to_string(&problem).expect("json").replace("secrets", "secret")
        });
        assert_eq!(hidden, missing);
    }
}

#[test]
fn hidden_fields_stay_when_what_holds_them_is_replaced() {
    let fields = json!({"title": "a", "secret": "s", "meta": {"a": 1, "secret": 7, "deep": {"x": 1, "secret": ["x"]}}});
    let kept = json!({"title": "a", "secret": "s", "meta": {"a": 2, "secret": 7, "deep": {"secret": ["x"]}}});
    for (media_type, body) in [
        (NEXXUS, json!([{"op": "replace", "path": ["meta"], "value": [{"a": 2}]}])),
        (JSON_PATCH, json!([{"op": "add", "path": "/meta", "value": {"a": 2}}])),
        (MERGE_PATCH, json!({"meta": {"a": 2, "deep": null}})),
    ] {
        let patched = apply(&guarded_model(), false, &fields, media_type, &body)
            .unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
        assert_eq!(Value::Object(patched.document.fields.clone()), kept, "{body}");
        let told = json!([
            {"op": "replace", "path": ["meta.a"], "value": [2]},
            {"op": "remove", "path": ["meta.deep.x"]},
        ]);
        let mut patches = patched.patches.clone();
        patches.sort_by_key(|patch| patch.op == Op::Remove);
        assert_eq!(json!(patches), told, "{body}");
    }
}

#[test]
fn elements_keep_what_they_hide() {
    let element = |x: i64, secret: &str| json!({"x": x, "by": format!("u{x}"), "secret": secret});
    let fields = json!({"items": [element(1, "a"), element(2, "b"), element(3, "c")]});
    let seen = |x: i64| json!({"x": x, "by": format!("u{x}")});
    for (media_type, body, items) in [
        // In place, also next to others that stay.
        (
            JSON_PATCH,
            json!([{"op": "replace", "path": "/items/1/x", "value": 9}]),
            json!([element(1, "a"), {"x": 9, "by": "u2", "secret": "b"}, element(3, "c")]),
        ),
        (JSON_PATCH, json!([{"op": "remove", "path": "/items/0"}]), json!([element(2, "b"), element(3, "c")])),
        (
            JSON_PATCH,
            json!([{"op": "move", "from": "/items/2", "path": "/items/0"}]),
            json!([element(3, "c"), element(1, "a"), element(2, "b")]),
        ),
        (
            MERGE_PATCH,
            json!({"items": [{"x": 0}, seen(3), seen(1)]}),
            json!([{"x": 0, "secret": "b"}, element(3, "c"), element(1, "a")]),
        ),
        (MERGE_PATCH, json!({"items": [{"x": 0}, seen(1)]}), json!([{"x": 0}, element(1, "a")])),
        (
            NEXXUS,
            json!([{"op": "prepend", "path": ["items"], "value": [{"x": 0}]}]),
            json!([{"x": 0}, element(1, "a"), element(2, "b"), element(3, "c")]),
        ),
    ] {
        let patched = apply(&guarded_model(), false, &fields, media_type, &body)
            .unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
        assert_eq!(patched.document.fields["items"], items, "{body}");
    }
    for (media_type, body, path) in [
        (JSON_PATCH, json!([{"op": "add", "path": "/items/-", "value": {"x": 4, "by": "me"}}]), "/0/value/by"),
        (JSON_PATCH, json!([{"op": "replace", "path": "/items/0/by", "value": "me"}]), "/0/value"),
        (JSON_PATCH, json!([{"op": "add", "path": "/items/-", "value": {"x": 4, "secret": "me"}}]), "/0/value/secret"),
        (MERGE_PATCH, json!({"items": [seen(1), seen(2), {"x": 3, "by": "me"}]}), "/items/2/by"),
    ] {
        check_refused(&guarded_model(), &fields, media_type, body, ProblemKind::InvalidDocument, &[path]);
    }
}

#[test]
fn others_get_the_patches_of_what_they_see() {
    let model = guarded_model();
    let check = |fields: Value, body: Value, visible: Value| {
        let patched =
            apply(&model, true, &fields, MERGE_PATCH, &body).unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
        assert_eq!(json!(visible_patches(&patched.patches, &model)), visible, "{body}");
    };
    check(json!({}), json!({"secret": "x", "vault": {"x": 1}}), json!([]));
    check(
        json!({}),
        json!({"secret": "x", "title": "a", "meta": {"a": 1, "secret": 2}}),
        json!([{"op": "replace", "path": ["meta", "title"], "value": [{"a": 1}, "a"]}]),
    );
    // An object that was made for the sake of a hidden field is seen.
    let body = json!([{"op": "replace", "path": ["meta.deep.secret"], "value": [["x"]]}]);
    let patched = apply(&model, true, &json!({}), NEXXUS, &body).expect("patched");
    let visible = json!([{"op": "replace", "path": ["meta"], "value": [{"deep": {}}]}]);
    assert_eq!(json!(visible_patches(&patched.patches, &model)), visible);
}
