//! Looks for inputs that the parser, the canonical form or the packed form get wrong: filters and nearly filters, and bytes that
//! were filters before something happened to them. `NEXXUS_FUZZ_SECONDS` lets it look for so long (see CONTRIBUTING).

use std::time::{Duration, Instant};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::super::packed::{Fields, matches, pack, unpack};
use crate::model::{
    Document, Filter, Model,
    filter::{FILTER_CONDITIONS, FILTER_DEPTH, FILTER_VALUES},
    testing::{any_json, document, filter, filter_fields, model, naive_matches},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// JSON that is a filter, nearly one, at and past every limit, or nothing of the kind.
fn any_filter(model: &Arc<Model>) -> BoxedStrategy<Value> {
    let fields: Vec<String> = filter_fields(model).iter().map(|field| field.path.to_string()).collect();
    let field = || prop::sample::select(fields.clone());
    let around = |limit: usize| limit.saturating_sub(2)..limit + 3;
    let valid = || filter(model);
    let nested = (valid(), around(FILTER_DEPTH)).prop_map(|(inner, depth)| {
        (0..depth)
            .fold(inner, |inner, at| if at % 2 == 0 { json!({ "$not": inner }) } else { json!({ "$or": [inner] }) })
    });
    let values = (field(), any_json(), around(FILTER_VALUES), any::<bool>()).prop_map(|(field, value, n, negated)| {
        let values: Vec<Value> = (0..n).map(|at| if at == 7 { value.clone() } else { json!(at.to_string()) }).collect();
        json!({ field: { if negated { "$nin" } else { "$in" }: values } })
    });
    let wide = (field(), any_json(), around(FILTER_CONDITIONS)).prop_map(|(field, value, n)| {
        json!({ "$or": (0..n).map(|at| json!({ field.clone(): if at == 5 { value.clone() } else { json!(at) } })).collect::<Vec<_>>() })
    });
    let strange =
        (field(), any_json(), valid()).prop_map(|(field, value, inner)| json!({ field: value, "$not": inner }));
    let text = ".{0,40}".prop_map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
    prop_oneof![8 => valid(), 2 => nested, 2 => values, 2 => wide, 3 => strange, 2 => any_json(), 1 => text].boxed()
}

/// What happens to a text on its way: at a place a byte becomes another, some are lost, come twice, or foreign ones come in.
#[derive(Debug, Clone)]
enum Damage {
    Becomes(u8),
    Loses(usize),
    Repeats(usize),
    Gets(Vec<u8>),
}

fn any_damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    // What means something in JSON, in filters, or to whoever counts in bytes.
    let tokens = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\\",
        "\\u0000",
        "\\ud800",
        "null",
        "true",
        "-0.0",
        "1e400",
        "-1e-400",
        "9007199254740993",
        "$and",
        "$or",
        "$not",
        "$in",
        "$gt",
        "$prefix",
        "$exists",
        "$user.id",
        "\u{feff}",
        "\u{10ffff}",
        "{\"$not\":",
        "[[[[[[[[",
        "\"\"",
    ];
    let token = prop::sample::select(tokens.map(str::as_bytes).to_vec()).prop_map(<[u8]>::to_vec);
    let bytes = prop::collection::vec(any::<u8>(), 1..8);
    let damage = prop_oneof![
        2 => any::<u8>().prop_map(Damage::Becomes),
        2 => (1..40_usize).prop_map(Damage::Loses),
        2 => (1..80_usize).prop_map(Damage::Repeats),
        3 => token.prop_map(Damage::Gets),
        1 => bytes.prop_map(Damage::Gets),
    ];
    (any::<prop::sample::Index>(), damage)
}

fn damaged(filter: &Value, damages: &[(prop::sample::Index, Damage)]) -> Vec<u8> {
    let mut bytes = filter.to_string().into_bytes();
    for (place, damage) in damages {
        let place = place.index(bytes.len() + 1);
        let end = |length: usize| (place + length).min(bytes.len());
        match damage {
            Damage::Becomes(byte) => bytes.iter_mut().skip(place).take(1).for_each(|other| *other = *byte),
            Damage::Loses(length) => drop(bytes.drain(place..end(*length))),
            Damage::Repeats(length) => bytes.splice(place..place, bytes[place..end(*length)].to_vec()).for_each(drop),
            Damage::Gets(more) => bytes.splice(place..place, more.iter().copied()).for_each(drop),
        }
    }
    bytes
}

/// As a request comes: bytes, of which many are no JSON, and few a filter.
fn any_bytes(model: &Arc<Model>) -> BoxedStrategy<Vec<u8>> {
    let damages = prop::collection::vec(any_damage(), 1..6);
    let pieces = prop::collection::vec(any_damage(), 0..40).prop_map(|pieces| damaged(&json!({}), &pieces));
    prop_oneof![
        6 => (any_filter(model), damages).prop_map(|(filter, damages)| damaged(&filter, &damages)),
        1 => pieces,
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
    .boxed()
}

fn check(model: &Model, filter: &Value, documents: &[Document], privileged: bool) -> Result<(), TestCaseError> {
    let Ok(parsed) = Filter::parse(filter, model, privileged) else { return Ok(()) };
    let canonical: Value = serde_json::from_str(parsed.canonical()).expect("JSON");
    prop_assert_eq!(Filter::parse(&canonical, model, privileged), Ok(parsed.clone()), "{}", canonical);
    prop_assert_eq!(parsed.condition().canonical(), parsed.canonical());
    prop_assert_eq!(&parsed.condition().normalized(), parsed.condition());
    let (mut fields, mut packed) = (Fields::default(), Vec::new());
    pack(parsed.condition(), &mut fields, &mut packed);
    prop_assert_eq!(unpack(&packed, &fields), Some(parsed.condition().clone()));
    for document in documents {
        let expected = naive_matches(filter, document, model);
        prop_assert_eq!(parsed.matches(document), expected, "{} on {:?}", filter, document);
        prop_assert_eq!(matches(&packed, &fields, document), expected);
        prop_assert_eq!(parsed.condition().clone().negated().matches(document), !expected);
    }
    Ok(())
}

/// Runs cases as long as it is told to.
fn fuzz<S: Strategy>(cases: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds = std::env::var("NEXXUS_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1);
    let (begun, mut n_cases) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        // A runner counts its cases over all its runs.
        let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(cases, &check);
        assert!(outcome.is_ok(), "{}", outcome.err().map(|failure| failure.to_string()).unwrap_or_default());
        n_cases += 100;
    }
    println!("{n_cases} cases in {:?}", begun.elapsed());
}

#[test]
fn fuzz_filter_parser() {
    let cases = model().prop_flat_map(|model| {
        (Just(model.clone()), any_filter(&model), prop::collection::vec(document(&model), 4), any::<bool>())
    });
    fuzz(&cases, |(model, filter, documents, privileged)| check(&model, &filter, &documents, privileged));
}

#[test]
fn fuzz_filter_bytes() {
    let cases = model().prop_flat_map(|model| {
        (Just(model.clone()), any_bytes(&model), prop::collection::vec(document(&model), 2), any::<bool>())
    });
    fuzz(&cases, |(model, bytes, documents, privileged)| match serde_json::from_slice(&bytes) {
        Ok(filter) => check(&model, &filter, &documents, privileged),
        Err(_) => Ok(()),
    });
}
