//! What holds for every schema and every document.

use super::*;
use crate::model::testing;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::json;

/// A definition of one field, with limits that values of [`value`] often meet and often miss.
fn definition(depth: u32) -> BoxedStrategy<Value> {
    let length = || option::weighted(0.3, 0u64..3);
    let bound = || option::weighted(0.3, -1i64..3);
    let some = |values: &'static [&'static str]| option::weighted(0.3, vec(select(values), 1..4));
    let string = (length(), length(), some(&["", "a", "ab"]), option::weighted(0.3, Just("a"))).prop_map(
        |(least, most, one_of, default)| {
            json!({ "type": "string", "minLength": least, "maxLength": most, "enum": one_of, "default": default })
        },
    );
    let number = (bound(), bound(), option::weighted(0.3, vec(0i64..3, 1..4))).prop_map(
        |(least, most, one_of)| json!({ "type": "number", "minimum": least, "maximum": most, "enum": one_of }),
    );
    let array = (length(), length(), some(&["a", "b"])).prop_map(|(least, most, one_of)| {
        json!({ "type": "array", "arrayType": "string", "minLength": least, "maxLength": most, "enum": one_of })
    });
    let field = prop_oneof![4 => string, 3 => number, 3 => array, 1 => Just(json!({ "type": "date" }))];
    let field = if depth == 0 {
        field.boxed()
    } else {
        let object = (definition(depth - 1), definition(depth - 1), any::<bool>()).prop_map(|(a, b, is_array)| {
            let properties = json!({ "a": a, "b": b });
            let (field_type, element) = if is_array { ("array", json!("object")) } else { ("object", Value::Null) };
            json!({ "type": field_type, "arrayType": element, "properties": properties })
        });
        prop_oneof![3 => field, 2 => object].boxed()
    };
    (field, prop::bool::weighted(0.3))
        .prop_map(|(mut field, required)| {
            field["required"] = json!(required);
            field
        })
        .boxed()
}

/// A definition and what it may become: each member kept, or taken from a fresh one, at any depth.
fn step() -> BoxedStrategy<(Value, Value)> {
    (definition(1), definition(1), vec(prop::bool::weighted(0.25), 40))
        .prop_map(|(old, fresh, picks)| {
            let mut picks = picks.into_iter();
            let new = mixed(&old, &fresh, &mut picks);
            (old, new)
        })
        .boxed()
}

fn mixed(old: &Value, fresh: &Value, picks: &mut impl Iterator<Item = bool>) -> Value {
    let (Value::Object(old), Value::Object(fresh)) = (old, fresh) else {
        return if picks.next() == Some(true) { fresh.clone() } else { old.clone() };
    };
    let names: std::collections::BTreeSet<_> = old.keys().chain(fresh.keys()).collect();
    let member = |of: &Map<String, Value>, name: &str| of.get(name).cloned().unwrap_or(Value::Null);
    let members = names.into_iter().map(|name| {
        let fresh = member(fresh, name);
        (name.clone(), if fresh.is_null() { member(old, name) } else { mixed(&member(old, name), &fresh, picks) })
    });
    Value::Object(members.collect())
}

/// A value that often fits a definition, in or out of canonical form.
fn value(depth: u32) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        select(vec!["", "a", "ab", "äöü", "2026-11-24T17:11:29+01:00"]).prop_map(Value::from),
        select(vec![json!(-1), json!(0.0), json!(1), json!(2.5), json!(1e300)]),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let members = || option::weighted(0.7, value(depth - 1));
    let object = (members(), members()).prop_map(|(a, b)| {
        let members = a.map(|a| ("a".to_owned(), a)).into_iter().chain(b.map(|b| ("b".to_owned(), b)));
        Value::Object(members.collect())
    });
    prop_oneof![2 => leaf, 2 => vec(value(depth - 1), 0..4).prop_map(Value::Array), 2 => object].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_accepted_is_canonical(field in definition(1), values in vec(value(2), 20), privileged in any::<bool>()) {
        let Ok(model) = Model::parse(&json!({ "f": field })) else { return Ok(()) };
        for value in values {
            let Ok(accepted) = model.accept(Map::from_iter([("f".to_owned(), value)]), privileged) else { continue };
            prop_assert_eq!(model.check(&accepted), Ok(()));
            prop_assert_eq!(model.accept(accepted.clone(), privileged), Ok(accepted));
        }
    }

    #[test]
    fn documents_survive_a_change_without_conflicts((old, new) in step(), values in vec(value(2), 20)) {
        let model = |field: &Value| Schema::parse(&json!({ "m": { "f": field } }));
        let (Ok(old), Ok(new)) = (model(&old), model(&new)) else { return Ok(()) };
        if old.conflicts(&new).is_empty() {
            for value in values {
                let fields = Map::from_iter([("f".to_owned(), value)]);
                if let Ok(stored) = old.models["m"].accept(fields, true) {
                    prop_assert_eq!(new.models["m"].check(&stored), Ok(()), "{:?}", stored);
                }
            }
        }
        prop_assert_eq!(new.conflicts(&new), vec![]);
    }

    #[test]
    fn nothing_makes_schemas_and_documents_panic(json in testing::any_json(), model in testing::model()) {
        for schema in [json.clone(), json!({ "m": json }), json!({ "m": { "f": json } })] {
            if let Ok(schema) = Schema::parse(&schema) {
                let again = serde_json::to_value(&schema).expect("json");
                prop_assert_eq!(Schema::parse(&again), Ok(schema));
            }
        }
        if let Value::Object(fields) = json {
            if let Ok(accepted) = model.accept(fields.clone(), true) {
                prop_assert_eq!(model.check(&accepted), Ok(()));
            }
            if let Err(errors) = model.check(&fields) {
                prop_assert!((1..=50).contains(&errors.len()));
            }
        }
    }
}
