//! What rules know of a user: its type, and its details under the application's `userDetailSchema` (per user type, that of
//! `default` for all). Without a schema the details are free.

use nexxus_storage::model::{
    AppId, Caller, Document, DocumentId, FieldError, Model, ModelName, PatchSet, Problem, Timestamp, change::UserFacts,
    problem::ProblemKind,
};
use serde_json::{Map, Value};

use super::forms::UserChange;
use crate::domain::{Application, identity::ADMIN};

/// The entry of a `userDetailSchema` that counts for every type.
const FOR_ALL: &str = "default";
/// Largest free details, as JSON.
const FREE_DETAILS_BYTES: usize = 16 * 1024;

/// Whether a `userDetailSchema` can be used: an object of user types, each with fields like a model's. Faults with JSON Pointers
/// below it.
pub fn check_detail_schema(schema: &Value) -> Result<(), Vec<FieldError>> {
    let Value::Object(types) = schema else {
        return Err(vec![FieldError::new("", "an object of user types, each with its fields")]);
    };
    let mut faults = Vec::new();
    for name in types.keys() {
        let at = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        // Together with those for all, for that is how they are used.
        if let Err(found) = Model::parse(&Value::Object(fields_for(types, Some(name)))) {
            faults.extend(found.into_iter().map(|fault| fault.under(&at)));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn fields_for(types: &Map<String, Value>, user_type: Option<&str>) -> Map<String, Value> {
    let mut fields = Map::new();
    for name in [Some(FOR_ALL), user_type].into_iter().flatten() {
        if let Some(Value::Object(own)) = types.get(name) {
            fields.extend(own.clone());
        }
    }
    fields
}

impl Application {
    /// The fields of the details of such users; none where they are free.
    pub(super) fn details_model(&self, user_type: Option<&str>) -> Option<Model> {
        let types = self.record.user_detail_schema.as_ref()?.as_object()?;
        // It was checked when the application was defined.
        Some(Model::parse(&Value::Object(fields_for(types, user_type))).unwrap_or_default())
    }

    /// The facts of a new user; 422 for a type that may not register, and for details that do not fit.
    pub(super) fn new_facts(
        &self,
        user_type: Option<String>,
        details: Map<String, Value>,
        by_admin: bool,
    ) -> Result<UserFacts, Problem> {
        if let Some(user_type) = &user_type
            && !by_admin
        {
            let listed = self.record.user_types.as_deref().unwrap_or_default();
            if user_type == ADMIN || !listed.contains(user_type) {
                return Err(invalid(vec![FieldError::new(
                    "/userType",
                    "users of this type cannot register themselves",
                )]));
            }
        }
        let details = match self.details_model(user_type.as_deref()) {
            Some(model) => model.accept(details, by_admin).map_err(in_details)?,
            None => free(details)?,
        };
        Ok(UserFacts { user_type, details })
    }

    pub(super) fn changed_facts(
        &self,
        user: &nexxus_storage::registry::records::User,
        change: &UserChange,
        by_admin: bool,
    ) -> Result<Option<UserFacts>, Problem> {
        if change.user_type.is_some() && !by_admin {
            return Err(invalid(vec![FieldError::new("/userType", "only an admin changes it")]));
        }
        if change.user_type.is_none() && change.details.is_none() {
            return Ok(None);
        }
        let user_type = change.user_type.clone().unwrap_or_else(|| user.facts.user_type.clone());
        let given = change.details.clone().unwrap_or_default();
        let details = match self.details_model(user_type.as_deref()) {
            Some(model) => patched(&user.facts.details, given, &model, by_admin)?,
            None => {
                let mut details = Value::Object(user.facts.details.clone());
                merge(&mut details, Value::Object(given));
                match details {
                    Value::Object(details) => free(details)?,
                    _ => Map::new(),
                }
            }
        };
        Ok(Some(UserFacts { user_type, details }))
    }
}

/// Details after a merge patch, under the same rules as the fields of a document.
fn patched(
    details: &Map<String, Value>,
    patch: Map<String, Value>,
    model: &Model,
    by_admin: bool,
) -> Result<Map<String, Value>, Problem> {
    let document = as_document(details.clone())?;
    let caller = Caller { admin: by_admin, ..Caller::default() };
    let patched = PatchSet::MergePatch(Value::Object(patch)).apply(&document, model, &caller);
    let fields = match patched {
        Ok(patched) => patched.document.fields,
        Err(problem) if problem.errors.is_empty() => return Err(problem),
        Err(problem) => return Err(in_details(problem.errors)),
    };
    // Another type may ask for other details, also where none were changed.
    model.check(&fields).map_err(in_details)?;
    Ok(fields)
}

fn as_document(fields: Map<String, Value>) -> Result<Document, Problem> {
    let internal = |_| Problem::new(ProblemKind::Internal, "the details cannot be read");
    let now = Timestamp::now();
    Ok(Document {
        app: AppId::parse("details").map_err(internal)?,
        model: ModelName::parse("details").map_err(internal)?,
        id: DocumentId::parse("details").map_err(internal)?,
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields,
    })
}

/// RFC 7396, for details without a schema.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            match value {
                Value::Null => drop(target.remove(&name)),
                value => merge(target.entry(name).or_insert(Value::Null), value),
            }
        }
    }
}

/// Details without a schema: nulls are absence, and their size is bounded.
fn free(details: Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    let mut kept = Value::Object(Map::new());
    merge(&mut kept, Value::Object(details));
    let Value::Object(kept) = kept else { return Ok(Map::new()) };
    let n_bytes = serde_json::to_vec(&kept).map_or(usize::MAX, |text| text.len());
    if n_bytes > FREE_DETAILS_BYTES {
        return Err(in_details(vec![FieldError::new("", format!("at most {FREE_DETAILS_BYTES} bytes"))]));
    }
    Ok(kept)
}

fn in_details(faults: Vec<FieldError>) -> Problem {
    invalid(faults.into_iter().map(|fault| fault.under("/details")).collect())
}

fn invalid(faults: Vec<FieldError>) -> Problem {
    let detail = faults.first().map(|fault| format!("{}: {}", fault.path, fault.message)).unwrap_or_default();
    Problem::new(ProblemKind::InvalidDocument, detail).with_errors(faults)
}

#[cfg(test)]
mod tests {
    use nexxus_storage::{
        model::{Offset, UserId},
        registry::records,
    };
    use serde_json::json;

    use super::*;

    fn app(user_types: Value, schema: Value) -> Application {
        let now = Timestamp::now();
        Application::compile(records::Application {
            id: AppId::parse("a").expect("an id"),
            name: "a".into(),
            description: None,
            schema: json!({}),
            rules: Value::Null,
            auth_enabled: true,
            allow_multiple_login: true,
            user_types: serde_json::from_value(user_types).expect("types"),
            user_detail_schema: Some(schema).filter(|schema| !schema.is_null()),
            created_at: now,
            updated_at: now,
            offset: Offset::default(),
            deleted: false,
            purged: false,
        })
        .expect("an application")
    }

    fn hospital() -> Application {
        app(
            json!(["nurse", "admin"]),
            json!({
                "default": { "name": { "type": "string" }, "grade": { "type": "number", "readOnly": true } },
                "nurse": { "ward": { "type": "number", "required": true }, "note": { "type": "string", "hidden": true } },
            }),
        )
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn paths(problem: Problem) -> Vec<String> {
        assert_eq!(problem.status, 422, "{problem:?}");
        problem.errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn only_listed_types_register_themselves() {
        for (app, user_type, by_admin, fits) in [
            (hospital(), None, false, true),
            (hospital(), Some("doctor"), false, false),
            (hospital(), Some("admin"), false, false),
            (hospital(), Some("admin"), true, true),
            (hospital(), Some("doctor"), true, true),
            (app(json!(null), json!(null)), Some("any"), false, false),
            (app(json!(null), json!(null)), Some("any"), true, true),
            (app(json!(["any"]), json!(null)), Some("any"), false, true),
        ] {
            let outcome = app.new_facts(user_type.map(str::to_owned), Map::new(), by_admin);
            assert_eq!(outcome.is_ok(), fits, "{user_type:?} {by_admin}");
            if let Err(problem) = outcome {
                assert_eq!(paths(problem), ["/userType"]);
            }
        }
    }

    #[test]
    fn details_fit_the_schema_of_their_type() {
        let app = hospital();
        for (user_type, details, by_admin, outcome) in [
            (None, json!({ "name": "x" }), false, Ok(json!({ "name": "x" }))),
            (None, json!({ "ward": 3 }), false, Err(vec!["/details/ward"])),
            (None, json!({ "grade": 1 }), false, Err(vec!["/details/grade"])),
            (None, json!({ "grade": 1, "name": null }), true, Ok(json!({ "grade": 1 }))),
            (Some("nurse"), json!({ "ward": 3.0, "name": "x" }), false, Ok(json!({ "name": "x", "ward": 3 }))),
            (Some("nurse"), json!({}), false, Err(vec!["/details/ward"])),
            (Some("nurse"), json!({ "ward": "x", "note": "n" }), false, Err(vec!["/details/note", "/details/ward"])),
        ] {
            let facts = app.new_facts(user_type.map(str::to_owned), object(details.clone()), by_admin);
            let outcome = outcome.map(object).map_err(|paths| paths.into_iter().map(str::to_owned).collect::<Vec<_>>());
            let found = facts.map(|facts| facts.details).map_err(|problem| {
                let mut found = paths(problem);
                found.sort();
                found
            });
            assert_eq!(found, outcome, "{user_type:?} {details}");
        }
    }

    #[test]
    fn details_change_by_merging() {
        let app = hospital();
        let facts = UserFacts {
            user_type: Some("nurse".into()),
            details: object(json!({ "name": "x", "ward": 3, "grade": 2, "note": "n" })),
        };
        let user = records::User {
            app: app.id().clone(),
            id: UserId::generate(),
            username: "u".into(),
            password_hash: None,
            facts,
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
        };
        for (body, by_admin, outcome) in [
            (json!({}), false, Ok(None)),
            (
                json!({ "details": { "name": null, "ward": 4 } }),
                false,
                Ok(Some(json!({ "ward": 4, "grade": 2, "note": "n" }))),
            ),
            (json!({ "details": { "grade": 3 } }), false, Err(vec!["/details/grade"])),
            (
                json!({ "details": { "grade": 3, "note": null } }),
                true,
                Ok(Some(json!({ "name": "x", "ward": 3, "grade": 3 }))),
            ),
            (json!({ "details": { "ward": null } }), false, Err(vec!["/details/ward"])),
            (json!({ "details": { "new": 1 } }), true, Err(vec!["/details/new"])),
            (json!({ "userType": "admin" }), false, Err(vec!["/userType"])),
            // The details of a nurse do not fit those of another type.
            (json!({ "userType": null }), true, Err(vec!["/details"])),
            (
                json!({ "userType": null, "details": { "ward": null, "note": null } }),
                true,
                Ok(Some(json!({ "name": "x", "grade": 2 }))),
            ),
        ] {
            let change = UserChange::parse(body.clone()).expect("a change");
            match (app.changed_facts(&user, &change, by_admin), outcome) {
                (Ok(facts), Ok(details)) => assert_eq!(facts.map(|facts| facts.details), details.map(object), "{body}"),
                (Err(problem), Err(expected)) => {
                    let found = paths(problem);
                    assert!(found.iter().zip(&expected).all(|(path, at)| path.starts_with(at)), "{body}: {found:?}");
                }
                (found, expected) => panic!("{body}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn free_details_are_bounded_and_hold_no_nulls() {
        let app = app(json!(null), json!(null));
        let facts =
            app.new_facts(None, object(json!({ "a": null, "b": { "c": null, "d": [1] } })), false).expect("facts");
        assert_eq!(Value::Object(facts.details), json!({ "b": { "d": [1] } }));
        let large = object(json!({ "a": "x".repeat(FREE_DETAILS_BYTES) }));
        assert_eq!(paths(app.new_facts(None, large, true).expect_err("too large")), ["/details"]);
    }

    #[test]
    fn a_detail_schema_is_checked_type_by_type() {
        assert_eq!(check_detail_schema(&json!({ "default": { "a": { "type": "string" } }, "nurse": {} })), Ok(()));
        for (schema, path) in [
            (json!([]), ""),
            (json!({ "nurse": { "a": { "type": "nothing" } } }), "/nurse/a/type"),
            (json!({ "a/b": { "a": {} } }), "/a~1b/a"),
        ] {
            assert_eq!(check_detail_schema(&schema).expect_err("refused")[0].path, path, "{schema}");
        }
    }
}
