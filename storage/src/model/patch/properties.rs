//! What holds of all patches, against an application of them that shares nothing with the real one.

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::{
    tests::{caller, document, guarded_model, model},
    *,
};
use crate::model::{
    Timestamp,
    problem::ProblemKind,
    schema::{self, FieldType},
};

/// A client that knows no schema: it takes what it is told, on the document as it got it. It fails on what it would have to
/// guess.
fn naive(document: &mut Value, patches: &[Patch]) {
    for patch in patches {
        for (nth, path) in patch.path.iter().enumerate() {
            let mut place = &mut *document;
            let names: Vec<&str> = path.split('.').collect();
            for name in &names[..names.len() - 1] {
                let object = place.as_object_mut().expect("a path through objects");
                if !object.contains_key(*name) {
                    assert_eq!(patch.op, Op::Replace, "only `replace` makes objects: {path}");
                }
                place = object.entry(*name).or_insert_with(|| json!({}));
            }
            let object = place.as_object_mut().expect("a path through objects");
            naive_op(object, names[names.len() - 1], patch.op, patch.value.get(nth));
        }
    }
}

fn naive_op(object: &mut Map<String, Value>, name: &str, op: Op, value: Option<&Value>) {
    let current = object.get(name).cloned();
    let value = value.cloned().unwrap_or(Value::Null);
    let result = match (op, current, value) {
        (Op::Remove, Some(_), Value::Null) => {
            object.remove(name);
            return;
        }
        (Op::Replace, _, value) => value,
        (Op::Append, Some(Value::String(old)), Value::String(new)) => json!(old + &new),
        (Op::Prepend, Some(Value::String(old)), Value::String(new)) => json!(new + &old),
        (Op::Append, Some(Value::Array(old)), Value::Array(new)) => json!([old, new].concat()),
        (Op::Prepend, Some(Value::Array(old)), Value::Array(new)) => json!([new, old].concat()),
        (Op::Append, Some(Value::Array(old)), new) => json!([old, vec![new]].concat()),
        (Op::Prepend, Some(Value::Array(old)), new) => json!([vec![new], old].concat()),
        (Op::Incr, old, by) => {
            number(old.map_or(0.0, |old| old.as_f64().expect("a number")) + by.as_f64().expect("a number"))
        }
        (Op::Decr, old, by) => {
            number(old.map_or(0.0, |old| old.as_f64().expect("a number")) - by.as_f64().expect("a number"))
        }
        (op, current, value) => panic!("{op:?} of {current:?} with {value}"),
    };
    assert!(!result.is_null(), "a null in {name}");
    object.insert(name.to_owned(), result);
}

fn number(float: f64) -> Value {
    if float.fract() == 0.0 { json!(float as i64) } else { json!(float) }
}

fn canonical(fields: Value, model: &Model) -> Value {
    let Value::Object(mut fields) = fields else { panic!("fields are an object") };
    model.canonicalize(&mut fields, true);
    Value::Object(fields)
}

fn canonical_value(mut value: Value, field: &schema::Field) -> Value {
    field.canonicalize(&mut value, true);
    value
}

fn text() -> BoxedStrategy<Value> {
    select(vec!["", "a", "b", "ä€"]).prop_map(|text| json!(text)).boxed()
}

fn num() -> BoxedStrategy<Value> {
    prop_oneof![
        (-3_i64..4).prop_map(|number| json!(number)),
        select(vec![json!(0.5), json!(-0.0), json!(2.0), json!(0.1), json!(9_007_199_254_740_992_i64)]),
    ]
    .boxed()
}

fn texts() -> BoxedStrategy<Value> {
    vec(text(), 0..3).prop_map(Value::Array).boxed()
}

fn when() -> BoxedStrategy<Value> {
    select(vec![json!(0), json!("1970-01-01T01:00:00+01:00"), json!("2026-01-02T03:04:05Z"), json!(1.5)]).boxed()
}

/// An object of some of these fields.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> =
        fields.into_iter().map(|(name, value)| option::of(value).prop_map(move |value| (name, value))).collect();
    fields
        .prop_map(|fields| {
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
        })
        .boxed()
}

type Fields = Vec<(&'static str, BoxedStrategy<Value>)>;

fn deep() -> Fields {
    vec![("x", num()), ("y", text())]
}

fn meta() -> Fields {
    vec![("count", num()), ("tags", texts()), ("deep", object(deep()))]
}

fn top() -> Fields {
    vec![
        ("title", text()),
        ("note", text()),
        ("priority", num()),
        ("due", when()),
        ("tags", texts()),
        ("days", vec(when(), 0..3).prop_map(Value::Array).boxed()),
        ("meta", object(meta())),
    ]
}

fn guarded() -> Fields {
    vec![
        ("title", text()),
        ("score", num()),
        ("secret", text()),
        ("tags", texts()),
        (
            "meta",
            object(vec![
                ("a", num()),
                ("by", text()),
                ("secret", num()),
                ("deep", object(vec![("x", num()), ("secret", texts())])),
            ]),
        ),
        ("vault", object(vec![("x", num())])),
        ("items", items(true)),
    ]
}

fn items(all: bool) -> BoxedStrategy<Value> {
    let mut fields = vec![("x", num())];
    if all {
        fields.extend(vec![("by", text()), ("secret", text())]);
    }
    vec(object(fields), 0..4).prop_map(Value::Array).boxed()
}

/// A document with some of these fields, as it is stored.
fn stored(fields: Fields, model: fn() -> Model) -> BoxedStrategy<Document> {
    object(fields).prop_map(move |fields| document(canonical(fields, &model()))).boxed()
}

fn one_patch(paths: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Patch> {
    let any_op = select(vec![Op::Replace, Op::Replace, Op::Remove, Op::Append, Op::Prepend, Op::Incr, Op::Decr]);
    let one = prop::sample::select((0..paths.len()).collect::<Vec<_>>())
        .prop_flat_map(move |which| {
            let (path, value) = paths[which].clone();
            (Just(path), prop_oneof![9 => value, 1 => Just(Value::Null)])
        })
        .boxed();
    (any_op, vec(one, 1..3))
        .prop_map(|(op, parts)| {
            let (path, value) = parts.into_iter().map(|(path, value)| (path.to_owned(), value)).unzip();
            Patch { op, path, value: if op == Op::Remove { vec![] } else { value } }
        })
        .boxed()
}

fn paths() -> Fields {
    let mut paths = top();
    paths.extend(vec![
        ("tags", text()),
        ("priority", num()),
        ("title", text()),
        ("days", when()),
        ("meta.count", num()),
        ("meta.count", num()),
        ("meta.tags", texts()),
        ("meta.tags", text()),
        ("meta.deep", object(deep())),
        ("meta.deep.x", num()),
        ("meta.deep.y", text()),
    ]);
    paths
}

fn guarded_paths() -> Fields {
    let mut paths = guarded();
    paths.extend(vec![
        ("meta.a", num()),
        ("meta.secret", num()),
        ("meta.deep.x", num()),
        ("meta.deep.secret", texts()),
        ("meta.deep", object(vec![("x", num())])),
        ("meta", object(vec![("a", num()), ("deep", object(vec![("x", num())]))])),
        ("vault.x", num()),
        ("items", items(false)),
        ("items", object(vec![("x", num()), ("by", text())])),
        ("tags", text()),
    ]);
    paths
}

/// What is asked of the patches, by the words of the contract and nothing else; none where it asks to refuse them.
fn asked(fields: &Map<String, Value>, patches: &[Patch], model: &Model) -> Option<Map<String, Value>> {
    let mut fields = fields.clone();
    for patch in patches {
        for (nth, path) in patch.path.iter().enumerate() {
            let names: Vec<&str> = path.split('.').collect();
            let field = model.field(&names)?;
            let value = canonical_value(patch.value.get(nth).cloned().unwrap_or_default(), field);
            let elements = || -> Vec<Value> {
                let given = &patch.value[nth];
                let all = if given.is_array() { given.clone() } else { json!([given]) };
                canonical_value(all, field).as_array().cloned().unwrap_or_default()
            };
            let old = fields_at(&fields, &names).cloned();
            let is_fit = |old: &Value| {
                old.is_string() == (field.field_type == FieldType::String)
                    && old.is_array() == (field.field_type == FieldType::Array)
            };
            if !matches!(patch.op, Op::Replace | Op::Remove) && !old.as_ref().is_none_or(is_fit) {
                return None;
            }
            let new = match (patch.op, field.field_type, old) {
                (Op::Remove, ..) => None,
                (Op::Replace, ..) => Some(value).filter(|value| !value.is_null()),
                (Op::Append, FieldType::String, old) => {
                    Some(json!(format!("{}{}", old.as_ref().and_then(Value::as_str).unwrap_or(""), value.as_str()?)))
                }
                (Op::Prepend, FieldType::String, old) => {
                    Some(json!(format!("{}{}", value.as_str()?, old.as_ref().and_then(Value::as_str).unwrap_or(""))))
                }
                (Op::Append, FieldType::Array, old) => {
                    Some(json!([old.and_then(|old| old.as_array().cloned()).unwrap_or_default(), elements()].concat()))
                }
                (Op::Prepend, FieldType::Array, old) => {
                    Some(json!([elements(), old.and_then(|old| old.as_array().cloned()).unwrap_or_default()].concat()))
                }
                (Op::Incr | Op::Decr, FieldType::Number, old) => {
                    let sign = if patch.op == Op::Incr { 1 } else { -1 };
                    let old = old.unwrap_or_else(|| json!(0));
                    if let (Some(old), Some(by)) = (old.as_i64(), value.as_i64())
                        && (old + sign * by).abs() > 1 << 53
                    {
                        return None;
                    }
                    let sum = old.as_f64().expect("a number") + sign as f64 * value.as_f64()?;
                    Some(number(sum))
                }
                _ => return None,
            };
            set(&mut fields, &names, new);
        }
    }
    model.check(&fields).is_ok().then_some(fields)
}

fn fields_at<'v>(fields: &'v Map<String, Value>, names: &[&str]) -> Option<&'v Value> {
    let (first, rest) = names.split_first()?;
    let value = fields.get(*first)?;
    if rest.is_empty() { Some(value) } else { fields_at(value.as_object()?, rest) }
}

fn set(fields: &mut Map<String, Value>, names: &[&str], value: Option<Value>) {
    match (names, value) {
        ([name], Some(value)) => drop(fields.insert((*name).to_owned(), value)),
        ([name], None) => drop(fields.remove(*name)),
        ([name, rest @ ..], value) => {
            if value.is_some() || fields.contains_key(*name) {
                let inner = fields.entry(*name).or_insert_with(|| json!({}));
                set(inner.as_object_mut().expect("an object"), rest, value);
            }
        }
        ([], _) => {}
    }
}

/// What holds of every patched document.
fn check(before: &Document, patched: &Patched, model: &Model) {
    let flat = |document: &Document| serde_json::to_value(document).expect("json");
    // The patches lead there, and there are none when there is nothing to tell.
    let mut told = flat(before);
    naive(&mut told, &patched.patches);
    assert_eq!(told, flat(&patched.document), "told {:?}", patched.patches);
    assert_eq!(patched.patches.is_empty(), patched.document == *before);
    // So do they for those who see less.
    let seen = |document: &Document| {
        let mut document = document.clone();
        model.hide(&mut document.fields);
        document
    };
    let mut shown = flat(&seen(before));
    naive(&mut shown, &visible_patches(&patched.patches, model));
    assert_eq!(shown, flat(&seen(&patched.document)), "told {:?}", patched.patches);
    // They are Nexxus patches themselves, and say the same.
    if !patched.patches.is_empty() {
        let again = PatchSet::parse("application/json", &json!(patched.patches)).expect("a patch").expect("readable");
        let again = again.apply(before, model, &caller(true)).expect("applies");
        assert_eq!(again.document, patched.document);
    }
    // The way back.
    let mut after = patched.document.clone();
    after.version += 1;
    after.updated_at = Timestamp::now();
    assert_eq!(patched.before.restore(&after), *before);
    let paths: Vec<_> = patched.before.fields.iter().map(|(path, _)| path).collect();
    for (nth, path) in paths.iter().enumerate() {
        assert!(
            paths.iter().skip(nth + 1).all(|other| !other.starts_with(path) && !path.starts_with(other)),
            "{paths:?}"
        );
    }
    // Nothing else was touched, and the result is as it is to be stored.
    assert_eq!(canonical(json!(patched.document.fields), model), json!(patched.document.fields));
}

/// The same change in three notations.
fn in_three_notations(changes: &[(&str, Value)], before: &Document) -> [(&'static str, Value); 3] {
    let nexxus =
        changes.iter().map(|(path, value)| json!({"op": "replace", "path": [path], "value": [value]})).collect();
    let (mut merge, mut operations, mut known) = (json!({}), Vec::new(), before.fields.clone());
    for (path, value) in changes {
        let names: Vec<&str> = path.split('.').collect();
        let nested = names.iter().rev().fold(value.clone(), |value, name| json!({*name: value}));
        // One merge patch after the other is one merge patch, as long as no value is an object.
        merge_members(&mut merge, &nested);
        for depth in 1..names.len() {
            if !value.is_null() && fields_at(&known, &names[..depth]).is_none() {
                operations.push(json!({"op": "add", "path": format!("/{}", names[..depth].join("/")), "value": {}}));
                set(&mut known, &names[..depth], Some(json!({})));
            }
        }
        let pointer = format!("/{}", names.join("/"));
        if !value.is_null() {
            operations.push(json!({"op": "add", "path": pointer, "value": value}));
        } else if fields_at(&known, &names).is_some() {
            operations.push(json!({"op": "remove", "path": pointer}));
        }
        set(&mut known, &names, Some(value.clone()).filter(|value| !value.is_null()));
    }
    [
        ("application/json", nexxus),
        ("application/merge-patch+json", merge),
        ("application/json-patch+json", operations.into()),
    ]
}

fn merge_members(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge_members(into.entry(name.clone()).or_insert_with(|| json!({})), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// Any JSON, with names that mean something here.
fn any_json() -> BoxedStrategy<Value> {
    let name = || {
        select(vec![
            "op", "path", "value", "from", "title", "meta", "deep", "x", "tags", "id", "userId", "", "a.b", "nope",
        ])
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        name().prop_map(|text| json!(text)),
        select(vec![
            "replace",
            "append",
            "incr",
            "remove",
            "add",
            "move",
            "copy",
            "test",
            "/",
            "/tags/-",
            "/meta/deep",
            "~"
        ])
        .prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::Array),
            vec((name(), inner), 0..5).prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<Map<_, _>>()
                .into()),
        ]
    })
    .boxed()
}

/// Something like a JSON Patch.
fn any_json_patch() -> BoxedStrategy<Value> {
    let pointer = || {
        select(vec![
            "",
            "/title",
            "/tags",
            "/tags/0",
            "/tags/-",
            "/meta",
            "/meta/deep",
            "/meta/deep/x",
            "/meta/tags/1",
            "/id",
            "/userId",
            "/nope",
            "/",
        ])
    };
    let op = select(vec!["add", "remove", "replace", "move", "copy", "test"]);
    let value = prop_oneof![any_json(), object(top()), texts(), num(), text()];
    vec((op, pointer(), pointer(), value), 0..6)
        .prop_map(|operations| {
            let operation = |(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value});
            operations.into_iter().map(operation).collect()
        })
        .boxed()
}

fn any_body() -> BoxedStrategy<Value> {
    let patch = |paths: Fields| vec(one_patch(paths), 0..4).prop_map(|patches| json!(patches));
    prop_oneof![any_json(), any_json_patch(), patch(paths()), patch(guarded_paths()), object(top()), object(guarded())]
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn nexxus_patches_do_what_they_say(before in stored(top(), model), patches in vec(one_patch(paths()), 1..5)) {
        let model = model();
        let patch = PatchSet::Nexxus(patches.clone());
        let asked = asked(&before.fields, &patches, &model);
        match patch.apply(&before, &model, &caller(false)) {
            Ok(patched) => {
                prop_assert_eq!(Some(&patched.document.fields), asked.as_ref().or((patched.document == before).then_some(&before.fields)));
                check(&before, &patched, &model);
            }
            Err(problem) => {
                prop_assert_eq!(problem.kind, ProblemKind::InvalidDocument);
                prop_assert_eq!(asked, None, "{:?}", problem);
            }
        }
    }

    #[test]
    fn every_view_is_led_from_before_to_after(
        before in stored(guarded(), guarded_model),
        patches in vec(one_patch(guarded_paths()), 1..5),
        admin: bool,
    ) {
        let model = guarded_model();
        if let Ok(patched) = PatchSet::Nexxus(patches).apply(&before, &model, &caller(admin)) {
            check(&before, &patched, &model);
            if !admin {
                let guarded = |document: &Document| {
                    ["secret", "score", "vault", "meta.secret", "meta.by", "meta.deep.secret"]
                        .map(|path| fields_at(&document.fields, &path.split('.').collect::<Vec<_>>()).cloned())
                };
                prop_assert_eq!(guarded(&patched.document), guarded(&before));
                // What an element hides comes from one that was there.
                let elements = |document: &Document| document.fields.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                let secrets = |document: &Document| elements(document).iter().filter_map(|element| element.get("secret").cloned()).collect::<Vec<_>>();
                let mut known = secrets(&before);
                for secret in secrets(&patched.document) {
                    let place = known.iter().position(|known| *known == secret);
                    known.remove(place.expect("a secret that was there"));
                }
            }
        }
    }

    #[test]
    fn three_notations_agree(
        before in stored(top(), model),
        changes in vec(select(vec![
            ("title", json!("x")), ("note", json!("y")), ("note", Value::Null), ("priority", json!(2.0)), ("priority", Value::Null),
            ("tags", json!(["a", "b"])), ("tags", Value::Null), ("due", json!(0)), ("meta.count", json!(1)), ("meta.count", Value::Null),
            ("meta.deep.x", json!(2)), ("meta.deep.y", json!("z")), ("meta.tags", json!([])),
        ]), 1..6),
    ) {
        let mut before = before;
        before.fields.insert("title".to_owned(), json!("a"));
        // A merge patch that removes inside an object makes the object; the others do not.
        before.fields.entry("meta").or_insert_with(|| json!({}));
        let model = model();
        let mut results = in_three_notations(&changes, &before).map(|(media_type, body)| {
            let patch = PatchSet::parse(media_type, &body).expect("a patch").expect("readable");
            let patched = patch.apply(&before, &model, &caller(false)).unwrap_or_else(|problem| panic!("{body}: {problem:?}"));
            check(&before, &patched, &model);
            patched.document
        }).into_iter();
        let first = results.next();
        prop_assert!(results.all(|document| Some(&document) == first.as_ref()));
    }

    #[test]
    fn nothing_that_is_sent_makes_it_panic(
        before in prop_oneof![stored(top(), model), stored(guarded(), guarded_model)],
        body in any_body(),
        admin: bool,
    ) {
        for model in [model(), guarded_model()] {
            for media_type in ["application/json", "application/json-patch+json", "application/merge-patch+json"] {
                let parsed = PatchSet::parse(media_type, &body).expect("a patch");
                let Ok(patch) = parsed else { continue };
                if let Ok(patched) = patch.apply(&before, &model, &caller(admin)) {
                    check(&before, &patched, &model);
                }
            }
            // What came over a queue was not read by the parser.
            for format in ["nexxus", "json-patch", "merge-patch"] {
                if let Ok(patch) = serde_json::from_value::<PatchSet>(json!({"format": format, "ops": body}))
                    && let Ok(patched) = patch.apply(&before, &model, &caller(admin))
                {
                    check(&before, &patched, &model);
                }
            }
        }
    }
}
