//! What a change of an application's definition or of a user alters for subscriptions: the same live and in a replay.

use std::collections::BTreeMap;

use nexxus_storage::{
    model::{Entry, Event, ModelName, Offset, UserId, change::UserFacts, filter::Condition, schema::Field},
    registry::records,
};

use super::{Application, view::View};

/// An entry of the change log after which some subscriptions have to be asked for anew.
pub struct Alteration {
    offset: Offset,
    cause: Cause,
}

enum Cause {
    /// The definitions before and after; none when one of them cannot be read: then everything may be altered.
    Definition(Option<Box<(Application, Application)>>),
    User {
        user: UserId,
        before: UserFacts,
        after: UserFacts,
    },
}

impl Alteration {
    /// None for entries that alter nothing.
    pub fn of(entry: &Entry) -> Option<Self> {
        let cause = match &entry.event {
            Event::Defined { before: Some(before), definition } => {
                let compiled = |definition: &serde_json::Value| {
                    Application::compile(serde_json::from_value(definition.clone()).ok()?).ok()
                };
                Cause::Definition(compiled(before).zip(compiled(definition)).map(Box::new))
            }
            Event::UserChanged { user, before, after } => Cause::User {
                user: user.clone(),
                before: before.clone().unwrap_or_default(),
                after: after.clone().unwrap_or_default(),
            },
            _ => return None,
        };
        Some(Self { offset: entry.offset, cause })
    }

    /// The user that it is about, when only subscriptions of that one may be altered.
    pub fn user(&self) -> Option<&UserId> {
        match &self.cause {
            Cause::User { user, .. } => Some(user),
            Cause::Definition(_) => None,
        }
    }

    /// Whether subscriptions to a model, made at an offset, may be altered at all: quicker to say than
    /// [`alters`](Self::alters), which says it of each.
    pub fn may_alter(&self, model: &ModelName, since: Offset) -> bool {
        self.is_after(since) && self.is_about(model)
    }

    /// Whether it lies behind an offset: what was read there may be altered.
    pub fn is_after(&self, since: Offset) -> bool {
        since < self.offset
    }

    /// Whether subscriptions to a model may be altered.
    pub fn is_about(&self, model: &ModelName) -> bool {
        match &self.cause {
            Cause::Definition(Some(both)) => !both.0.is_alike_for(&both.1, model),
            _ => true,
        }
    }

    /// Whether it is, for a model, the step from one application to another: then what was compiled for them can be compared.
    pub fn leads(&self, before: &Application, after: &Application, model: &ModelName) -> bool {
        match &self.cause {
            Cause::Definition(Some(both)) => both.0.is_alike_for(before, model) && both.1.is_alike_for(after, model),
            _ => false,
        }
    }

    /// Whether the subscription may get other answers than before. `application`, `facts`: as they are otherwise.
    pub fn alters(
        &self,
        subscription: &records::Subscription,
        application: Option<&Application>,
        facts: &UserFacts,
    ) -> bool {
        if !self.may_alter(&subscription.model, subscription.since) {
            return false;
        }
        match &self.cause {
            Cause::Definition(None) => true,
            Cause::Definition(Some(both)) => {
                let (before, after) = &**both;
                Answer::of(subscription, before, facts) != Answer::of(subscription, after, facts)
            }
            Cause::User { user, before, after } => {
                let answer = |facts| Answer::of(subscription, application?, facts);
                subscription.user.as_ref() == Some(user) && answer(before) != answer(after)
            }
        }
    }
}

/// What decides which documents a subscription shows, and which of their fields. Other words for the same are the same: parts in
/// another order, a rule that asks what the filter asks already, rights that change nothing for this model.
#[derive(PartialEq)]
pub struct Answer {
    condition: Condition,
    /// The paths that it does not show.
    hidden: Vec<String>,
}

impl Answer {
    fn of(subscription: &records::Subscription, application: &Application, facts: &UserFacts) -> Option<Self> {
        let view = View::compile(subscription, application, facts).ok()?;
        Some(Self::to(&view.effective(), view.privileged, &subscription.model, application))
    }

    /// Of a subscription that asks for all of this, as it was compiled for an application.
    pub fn to(effective: &Condition, privileged: bool, model: &ModelName, application: &Application) -> Self {
        let mut hidden = Vec::new();
        if let Some(model) = application.schema.model(model.as_str())
            && !privileged
        {
            collect_hidden("", &model.fields, &mut hidden);
        }
        Self { condition: effective.normalized(), hidden }
    }
}

fn collect_hidden(prefix: &str, fields: &BTreeMap<String, Field>, hidden: &mut Vec<String>) {
    for (name, field) in fields {
        let path = format!("{prefix}{name}");
        match &field.properties {
            _ if field.hidden => hidden.push(path),
            Some(properties) => collect_hidden(&format!("{path}."), properties, hidden),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexxus_storage::model::{ChangeId, Timestamp};
    use serde_json::{Value, json};

    fn definition(schema: Value, rules: Value) -> Value {
        json!({
            "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, 1),
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
            "schema": schema, "rules": rules,
        })
    }

    fn subscription(model: &str, filter: Option<Value>, since: u64) -> records::Subscription {
        let mut record = json!({
            "app": "a", "id": format!("s-{model}"), "device": "d", "user": "u", "model": model, "channel": format!("app:a:model:{model}"),
            "since": Offset::new(1, since),
        });
        if let Some(filter) = filter {
            record["filter"] = filter;
        }
        serde_json::from_value(record).expect("a subscription")
    }

    fn entry(event: Event) -> Entry {
        Entry { offset: Offset::new(1, 10), change_id: ChangeId::generate(), time: Timestamp::now(), event }
    }

    fn task(more: Value) -> Value {
        let mut fields = json!({ "title": { "type": "string", "filterable": true }, "cost": { "type": "number" } });
        for (name, field) in more.as_object().expect("fields") {
            fields[name] = field.clone();
        }
        json!({ "task": fields, "note": { "text": { "type": "string" } } })
    }

    #[test]
    fn a_definition_alters_only_what_it_is_about() {
        let before = definition(task(json!({})), json!({}));
        let hides_cost = task(json!({ "cost": { "type": "number", "hidden": true } }));
        let forgets_title = task(json!({ "title": { "type": "string" } }));
        let by_title = Some(json!({ "title": "x" }));
        for (what, after, model, filter, altered) in [
            (
                "another model's rules",
                definition(task(json!({})), json!({ "note": { "read": "owner" } })),
                "task",
                None,
                false,
            ),
            ("its rules", definition(task(json!({})), json!({ "task": { "read": "owner" } })), "task", None, true),
            (
                "who may write",
                definition(task(json!({})), json!({ "task": { "update": "admin" } })),
                "task",
                None,
                false,
            ),
            ("a new field", definition(task(json!({ "more": { "type": "string" } })), json!({})), "task", None, false),
            ("a field is hidden", definition(hides_cost.clone(), json!({})), "task", None, true),
            ("another model's field is hidden", definition(hides_cost, json!({})), "note", None, false),
            (
                "its filter is not allowed any more",
                definition(forgets_title.clone(), json!({})),
                "task",
                by_title,
                true,
            ),
            ("a filter that it does not have", definition(forgets_title, json!({})), "task", None, false),
            ("what cannot be read", json!({}), "note", None, true),
            (
                "the rule asks what the filter asks already",
                definition(task(json!({})), json!({ "task": { "read": { "title": "x" } } })),
                "task",
                Some(json!({ "title": { "$in": ["x"] } })),
                false,
            ),
            (
                "the rule asks more than the filter",
                definition(task(json!({})), json!({ "task": { "read": { "title": "x" } } })),
                "task",
                Some(json!({ "title": { "$prefix": "x" } })),
                true,
            ),
            (
                "the rule says the same in other words",
                definition(task(json!({})), json!({ "task": { "read": { "$or": [{}, { "title": "x" }] } } })),
                "task",
                None,
                false,
            ),
            (
                "everybody may read what every user may",
                definition(task(json!({})), json!({ "task": { "read": "public" } })),
                "task",
                None,
                false,
            ),
            ("nobody may read", definition(task(json!({})), json!({ "task": { "read": "none" } })), "task", None, true),
            ("the model is gone", definition(json!({ "note": {} }), json!({})), "task", None, true),
            (
                "the filter means something else",
                definition(
                    task(json!({ "title": { "type": "array", "arrayType": "string", "filterable": true } })),
                    json!({}),
                ),
                "task",
                Some(json!({ "title": "x" })),
                true,
            ),
        ] {
            let entry = entry(Event::Defined { definition: after, before: Some(before.clone()) });
            let alteration = Alteration::of(&entry).expect("an alteration");
            let alters =
                |since| alteration.alters(&subscription(model, filter.clone(), since), None, &UserFacts::default());
            assert_eq!(alters(9), altered, "{what}");
            assert!(!alters(10), "{what}: its items are from afterwards");
        }
        assert!(Alteration::of(&entry(Event::Defined { definition: before, before: None })).is_none(), "it is new");
        assert!(Alteration::of(&entry(Event::Unchanged { document: None })).is_none());
    }

    #[test]
    fn rules_in_another_order_alter_nothing() {
        let rule = |one: &str, other: &str| {
            let read = json!({ "$or": [{ "title": one }, { "$and": [{ "title": other }, { "userId": "$user.id" }] }] });
            let turned = json!({ "$or": [{ "userId": "$user.id", "title": other }, { "title": { "$eq": one } }] });
            [read, turned].map(|read| definition(task(json!({})), json!({ "task": { "read": read } })))
        };
        let [before, after] = rule("x", "y");
        let alters = |before: &Value, after: Value, filter: Option<Value>| {
            let entry = entry(Event::Defined { definition: after, before: Some(before.clone()) });
            let alteration = Alteration::of(&entry).expect("an alteration");
            alteration.alters(&subscription("task", filter, 9), None, &UserFacts::default())
        };
        assert!(!alters(&before, after, None));
        let [_, other] = rule("x", "z");
        assert!(alters(&before, other, None));
    }

    #[test]
    fn a_user_alters_what_rules_ask_of_it() {
        let rules = json!({ "task": { "read": { "title": "$user.details.team" } } });
        let mut schema = task(json!({}));
        schema["secret"] = json!({ "code": { "type": "string", "hidden": true } });
        let application = serde_json::from_value(definition(schema, rules)).expect("a record");
        let application = Application::compile(application).expect("an application");
        let facts = |user_type: Option<&str>, team: Option<&str>| UserFacts {
            user_type: user_type.map(str::to_owned),
            details: team.map(|team| ("team".to_owned(), json!(team))).into_iter().collect(),
        };
        for (what, before, after, model, altered) in [
            ("its team", facts(None, Some("a")), facts(None, Some("b")), "task", true),
            ("the team is not asked for", facts(None, Some("a")), facts(None, Some("b")), "note", false),
            ("its type is not asked for", facts(None, Some("a")), facts(Some("editor"), Some("a")), "task", false),
            ("it loses what is asked for", facts(None, Some("a")), facts(None, None), "task", true),
            ("it never had what is asked for", facts(None, None), facts(Some("editor"), None), "task", false),
            ("it becomes an admin", facts(None, None), facts(Some("admin"), None), "task", true),
            ("it becomes an admin, and sees no more", facts(None, None), facts(Some("admin"), None), "note", false),
            ("it sees hidden fields as an admin", facts(None, None), facts(Some("admin"), None), "secret", true),
            ("it is no admin any more", facts(Some("admin"), None), facts(None, None), "secret", true),
        ] {
            let user = UserId::parse("u").expect("an id");
            let changed = Event::UserChanged { user, before: Some(before), after: Some(after) };
            let alteration = Alteration::of(&entry(changed)).expect("an alteration");
            let alters = |record| alteration.alters(&record, Some(&application), &UserFacts::default());
            assert_eq!(alters(subscription(model, None, 9)), altered, "{what}");
            let others = records::Subscription { user: UserId::parse("v").ok(), ..subscription(model, None, 9) };
            assert!(!alters(others), "{what}: of another user");
        }
    }
}
