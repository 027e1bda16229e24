//! Generators of models, documents, filters and callers for property tests, and a second evaluator of filters.
//!
//! Values come from small pools full of edges, so that filters hit often and hit where it hurts: absent fields, empty arrays and
//! strings, code points above the surrogates, strings that look like numbers and dates, numbers at the ends of what is exact, one
//! instant in several spellings. [`naive_matches`] reads filters as JSON and shares nothing with the parser and the evaluator.

use std::sync::Arc;

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
    strategy::Union,
};
use serde_json::{Map, Value, json};

use super::{
    AppId, Caller, Document, DocumentId, Model, ModelName, Timestamp, UserId,
    change::UserFacts,
    filter::{Field, Kind},
    schema::{self, FieldType, UNIVERSAL_FIELDS},
};

mod naive;

pub use naive::{naive_grants, naive_matches};

const STRINGS: [&str; 20] = [
    "",
    "a",
    "A",
    "ab",
    "abc",
    "b",
    "z",
    "é",
    "e\u{301}",
    "\u{ffff}",
    "\u{10000}",
    "a\u{0}b",
    "two words",
    "\"\\\n/~",
    "5",
    "true",
    "null",
    "2026-11-24T17:11:29Z",
    "$user.id",
    "user-1",
];

const USERS: [&str; 3] = ["user-1", "user-2", "a"];

fn numbers() -> Vec<Value> {
    let texts = [
        "0",
        "-0.0",
        "1",
        "1.0",
        "-1",
        "5",
        "5.0",
        "5e0",
        "7",
        "0.1",
        "0.30000000000000004",
        "1.5",
        "-1.5",
        "1e-7",
        "5e-324",
        "1000000000000000.5",
        "9007199254740991",
        "9007199254740992",
        "-9007199254740992",
        "9007199254740992.0",
    ];
    texts.iter().map(|text| serde_json::from_str(text).expect("a number")).collect()
}

fn dates() -> Vec<Value> {
    vec![
        json!("2026-11-24T17:11:29.123Z"),
        json!("2026-11-24T19:11:29.123+02:00"),
        json!("2026-11-24t17:11:29.1239z"),
        json!("2026-11-24T17:11:29Z"),
        json!(1_795_540_289),
        json!(1_795_540_289.5),
        json!(0),
        json!("1970-01-01T00:00:00Z"),
        json!(-1.5),
        json!("0001-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59.999Z"),
        json!("2024-02-29T12:00:00-11:30"),
    ]
}

/// A value that a field or element of this type takes, as a client may write it: mostly one of a few, so that documents and
/// filters meet.
fn primitive(field_type: FieldType) -> BoxedStrategy<Value> {
    let often = |values: &[Value], all: Vec<Value>| prop_oneof![3 => select(values.to_vec()), 2 => select(all)].boxed();
    match field_type {
        FieldType::Number => often(&[json!(1), json!(5.0), json!(1.5)], numbers()),
        FieldType::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        FieldType::Date => often(&dates()[..3], dates()),
        _ => often(&[json!("a"), json!("ab"), json!("b")], STRINGS.iter().map(|text| json!(text)).collect()),
    }
}

fn of_kind(kind: Kind) -> BoxedStrategy<Value> {
    primitive(match kind {
        Kind::String => FieldType::String,
        Kind::Number => FieldType::Number,
        Kind::Boolean => FieldType::Boolean,
        Kind::Date => FieldType::Date,
    })
}

/// The definition of a model with one to six fields, nested up to three deep, most of them filterable.
pub fn model_definition() -> BoxedStrategy<Value> {
    let primitives = || select(vec!["string", "number", "boolean", "date"]);
    let flags = || (prop::bool::weighted(0.85), prop::bool::weighted(0.15));
    let leaf = prop_oneof![
        3 => (primitives(), flags()).prop_map(|(field_type, (filterable, hidden))| {
            json!({ "type": field_type, "filterable": filterable, "hidden": hidden })
        }),
        2 => (primitives(), flags()).prop_map(|(element, (filterable, hidden))| {
            json!({ "type": "array", "arrayType": element, "filterable": filterable, "hidden": hidden })
        }),
        1 => primitives().prop_map(|inner| {
            json!({ "type": "array", "arrayType": "object", "properties": { "a": { "type": inner } } })
        }),
    ];
    let names = || select(vec!["a", "b", "c", "d", "e", "id2"]).prop_map(str::to_owned);
    let field = leaf.prop_recursive(2, 8, 3, move |inner| {
        (btree_map(names(), inner, 1..4), prop::bool::weighted(0.15))
            .prop_map(|(properties, hidden)| json!({ "type": "object", "properties": properties, "hidden": hidden }))
    });
    btree_map(names(), field, 1..6).prop_map(|fields| json!(fields)).boxed()
}

/// A model as [`model_definition`] defines it.
pub fn model() -> BoxedStrategy<Arc<Model>> {
    model_definition().prop_map(|fields| Arc::new(Model::parse(&fields).expect("a valid model"))).boxed()
}

/// Fields of a document as a client may send them: some left out, some null.
pub fn raw_fields(model: &Model) -> BoxedStrategy<Map<String, Value>> {
    raw_object(&model.fields)
}

fn raw_object(definitions: &std::collections::BTreeMap<String, schema::Field>) -> BoxedStrategy<Map<String, Value>> {
    let members: Vec<_> = definitions
        .iter()
        .map(|(name, field)| {
            let (name, value) = (name.clone(), raw_value(field));
            prop_oneof![
                5 => value.prop_map(Some),
                1 => Just(None),
                1 => Just(Some(Value::Null)),
            ]
            .prop_map(move |value| value.map(|value| (name.clone(), value)))
        })
        .collect();
    members.prop_map(|members| members.into_iter().flatten().collect()).boxed()
}

fn raw_value(field: &schema::Field) -> BoxedStrategy<Value> {
    let single = match &field.properties {
        Some(properties) => raw_object(properties).prop_map(Value::Object).boxed(),
        None => primitive(field.array_type.unwrap_or(field.field_type)),
    };
    match field.array_type {
        Some(_) => vec(single, 0..4).prop_map(Value::Array).boxed(),
        None => single,
    }
}

/// A stored document of the model, in canonical form. Its id is one of many, so that a handful rarely collides.
pub fn document(model: &Arc<Model>) -> BoxedStrategy<Document> {
    let time = || select(dates()).prop_map(|date| Timestamp::from_json(&date).expect("a date"));
    let model = Arc::clone(model);
    let fields = raw_fields(&model).prop_map(move |fields| model.accept(fields, true).expect("fitting fields"));
    ("[a-c][A-Z._~@+=-]{0,1}[0-9a-z]{1,6}", option::weighted(0.8, select(&USERS[..])), time(), time(), 1u64..6, fields)
        .prop_map(|(id, user, created_at, updated_at, version, fields)| Document {
            app: AppId::parse("app").expect("an id"),
            model: ModelName::parse("thing").expect("a name"),
            id: DocumentId::parse(&id).expect("an id"),
            user: user.map(|user| UserId::parse(user).expect("an id")),
            created_at,
            updated_at,
            version,
            fields,
        })
        .boxed()
}

/// Every field that a filter of an admin may name.
pub fn filter_fields(model: &Model) -> Vec<Field> {
    UNIVERSAL_FIELDS.iter().filter_map(|name| Field::universal(name)).chain(model.filterable()).collect()
}

/// A filter of the model as an admin may write it, in any spelling, always a valid one.
pub fn filter(model: &Model) -> BoxedStrategy<Value> {
    filter_of(filter_fields(model), false)
}

/// A filter as a rule has it: with `$user.…` values.
pub fn rule_filter(model: &Model) -> BoxedStrategy<Value> {
    filter_of(filter_fields(model), true)
}

fn filter_of(fields: Vec<Field>, user_values: bool) -> BoxedStrategy<Value> {
    // The model's own fields more often than the universal ones, however few they are.
    let (universal, own): (Vec<_>, Vec<_>) = fields.into_iter().partition(|field| field.is_universal);
    let groups: Vec<_> = [universal, own]
        .into_iter()
        .filter(|group| !group.is_empty())
        .map(|group| {
            let weight = if group[0].is_universal { 1 } else { 3 };
            let tests: Vec<_> = group.into_iter().map(|field| field_test(field, user_values)).collect();
            (weight, Union::new(tests).boxed())
        })
        .collect();
    let member = Union::new_weighted(groups);
    let members = prop_oneof![6 => vec(member.clone(), 1), 3 => vec(member, 0..4)];
    let plain = members.prop_map(|members| Value::Object(members.into_iter().collect()));
    let spelled = |name: &'static str| select(vec![name.to_owned(), format!("${name}")]);
    plain
        .prop_recursive(3, 12, 3, move |inner| {
            prop_oneof![
                (spelled("and"), vec(inner.clone(), 0..4)).prop_map(|(key, parts)| json!({ key: parts })),
                (spelled("or"), vec(inner.clone(), 0..4)).prop_map(|(key, parts)| json!({ key: parts })),
                (spelled("not"), inner.clone()).prop_map(|(key, part)| json!({ key: part })),
                (inner.clone(), inner).prop_map(|(one, other)| match (one, other) {
                    (Value::Object(one), Value::Object(other)) => Value::Object(one.into_iter().chain(other).collect()),
                    (one, _) => one,
                }),
            ]
        })
        .boxed()
}

/// What a filter says of one field: its path, and a value or operators.
fn field_test(field: Field, user_values: bool) -> BoxedStrategy<(String, Value)> {
    let value = || operand(&field, user_values);
    let list = vec(value(), 0..4).prop_map(Value::Array).boxed();
    let list = if user_values { prop_oneof![4 => list, 1 => Just(json!("$user.details.list"))].boxed() } else { list };
    let nullable = || prop_oneof![6 => value(), 1 => Just(Value::Null)];
    let mut operators = vec![
        operator("eq", nullable()),
        operator("ne", nullable()),
        operator("in", list.clone()),
        operator("nin", list),
        operator("exists", any::<bool>().prop_map(Value::from)),
    ];
    if field.is_array {
        operators.push(operator("contains", value()));
    } else if field.kind != Kind::Boolean {
        operators.extend(["gt", "gte", "lt", "lte"].map(|name| operator(name, value())));
        if field.kind == Kind::String {
            operators.push(operator("prefix", value()));
        }
    }
    let several = vec(Union::new(operators), 1..4).prop_map(|operators| Value::Object(operators.into_iter().collect()));
    let path = field.path.to_string();
    prop_oneof![1 => nullable(), 2 => several].prop_map(move |test| (path.clone(), test)).boxed()
}

fn operator(name: &'static str, value: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<(String, Value)> {
    (any::<bool>(), value)
        .prop_map(move |(bare, value)| (if bare { name.to_owned() } else { format!("${name}") }, value))
        .boxed()
}

/// A value to compare a field with.
fn operand(field: &Field, user_values: bool) -> BoxedStrategy<Value> {
    let plain = match &*field.path {
        "id" if field.is_universal => "[a-c][A-Z._~@+=-]{0,1}[0-9a-z]{0,1}".prop_map(Value::from).boxed(),
        "userId" if field.is_universal => select(&USERS[..]).prop_map(Value::from).boxed(),
        "type" if field.is_universal => select(vec!["thing", "things"]).prop_map(Value::from).boxed(),
        "version" if field.is_universal => (0u64..7).prop_map(Value::from).boxed(),
        _ => of_kind(field.kind),
    };
    if !user_values {
        return plain;
    }
    // A rule takes `$user.…` for the caller's, so the plain string of that name cannot be said.
    let plain = plain.prop_filter("a value of the caller", |value| value != "$user.id");
    let mut names =
        vec!["$user.details.s", "$user.details.n", "$user.details.o.b", "$user.details.none", "$user.details.list"];
    if field.kind == Kind::String {
        names.extend(["$user.id", "$user.type"]);
    }
    prop_oneof![2 => plain, 1 => select(names).prop_map(Value::from)].boxed()
}

/// Somebody who is no admin: with or without a user, a type, and details of several kinds.
pub fn caller() -> BoxedStrategy<Caller> {
    let detail = || {
        option::weighted(
            0.7,
            prop_oneof![
                primitive(FieldType::String),
                primitive(FieldType::Number),
                primitive(FieldType::Date),
                any::<bool>().prop_map(Value::from),
                Just(Value::Null),
            ],
        )
    };
    let list = prop_oneof![
        vec(primitive(FieldType::String), 0..3),
        vec(primitive(FieldType::Number), 0..3),
        vec(prop_oneof![primitive(FieldType::String), primitive(FieldType::Number)], 0..3),
    ];
    let details = (detail(), detail(), detail(), option::of(list)).prop_map(|(s, n, b, list)| {
        let mut details = Map::new();
        details.extend(s.map(|value| ("s".to_owned(), value)));
        details.extend(n.map(|value| ("n".to_owned(), value)));
        details.extend(b.map(|value| ("o".to_owned(), json!({ "b": value }))));
        details.extend(list.map(|value| ("list".to_owned(), Value::Array(value))));
        details
    });
    (option::weighted(0.8, select(&USERS[..])), option::of(select(vec!["a", "b"])), details)
        .prop_map(|(user, user_type, details)| Caller {
            admin: false,
            user: user.map(|user| UserId::parse(user).expect("an id")),
            facts: UserFacts { user_type: user_type.map(str::to_owned), details },
            device: None,
        })
        .boxed()
}

/// A model, some of its documents, and a filter.
pub fn filtered_documents(n: usize) -> BoxedStrategy<(Arc<Model>, Vec<Document>, Value)> {
    model()
        .prop_flat_map(move |model| {
            (vec(document(&model), n), filter(&model)).prop_map({
                let model = Arc::clone(&model);
                move |(documents, filter)| (Arc::clone(&model), documents, filter)
            })
        })
        .boxed()
}

/// JSON that is often nearly a filter, a schema or a rule, and often nothing of the kind.
pub fn any_json() -> BoxedStrategy<Value> {
    let words = || {
        prop_oneof![
            select(vec![
                "$and",
                "or",
                "$not",
                "$eq",
                "in",
                "$nin",
                "gt",
                "$lte",
                "$exists",
                "contains",
                "$prefix",
                "$bad",
                "a",
                "b",
                "a.b",
                "id",
                "userId",
                "createdAt",
                "version",
                "type",
                "arrayType",
                "properties",
                "required",
                "default",
                "enum",
                "minLength",
                "maximum",
                "string",
                "array",
                "object",
                "number",
                "$user",
                "$user.id",
                "$user.details.",
                "$user.details.x",
                "owner",
                "read",
                "",
            ])
            .prop_map(str::to_owned),
            ".{0,4}",
        ]
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        words().prop_map(Value::from),
    ];
    leaf.prop_recursive(12, 64, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            btree_map(words(), inner, 0..4).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    /// Generators that never hit prove nothing.
    #[test]
    fn filters_hit_often_and_miss_often() {
        let mut runner = TestRunner::deterministic();
        let (mut hits, mut trivial, mut granted) = (0, 0, 0);
        for _ in 0..500 {
            let (model, documents, filter) = filtered_documents(8).new_tree(&mut runner).expect("a tree").current();
            let n_hits = documents.iter().filter(|document| naive_matches(&filter, document, &model)).count();
            hits += n_hits;
            trivial += usize::from(n_hits == 0 || n_hits == documents.len());
            let rule = rule_filter(&model).new_tree(&mut runner).expect("a tree").current();
            let caller = caller().new_tree(&mut runner).expect("a tree").current();
            granted += documents.iter().filter(|document| naive_grants(&rule, document, &model, &caller)).count();
        }
        assert!((800..3200).contains(&hits), "{hits} of 4000 match");
        assert!(trivial < 400, "{trivial} of 500 filters tell no documents apart");
        assert!((400..3600).contains(&granted), "{granted} of 4000 are granted");
    }
}
