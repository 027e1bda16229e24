//! Access rules (contract §6): who may read, create, update and delete what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    DeviceId, Document, FieldError, Model, ModelName, Schema, UserId,
    change::UserFacts,
    filter::{Condition, Field, Scalar, Template, Test},
    pointer::{At, Faults},
};

/// Who asks. Travels with every command, so that the writer judges the caller as the API saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// The admin token, or a user whose type is `admin`: past all rules.
    #[serde(default)]
    pub admin: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default)]
    pub facts: UserFacts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    Create,
    Update,
    Delete,
}

/// The rules of an application. Made by [`Rules::parse`], so they fit its schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    models: BTreeMap<ModelName, ModelRules>,
    /// Everything is public.
    open: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelRules {
    read: Rule,
    create: Rule,
    update: Rule,
    delete: Rule,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Public,
    /// Any signed-in user.
    User,
    /// The user that the document belongs to.
    Owner,
    Admin,
    /// Nobody but admins, who are past all rules.
    None,
    Filter(Template),
}

const DEFAULT_RULES: ModelRules =
    ModelRules { read: Rule::User, create: Rule::User, update: Rule::Owner, delete: Rule::Owner };

impl Rules {
    /// Reads `{ MODEL: { read, create, update, delete } }`; what is not named (or null) has the default: read and create
    /// `user`, update and delete `owner`. Every fault is reported (the first 50), each with a JSON Pointer below the rules.
    pub fn parse(rules: &Value, schema: &Schema) -> Result<Self, Vec<FieldError>> {
        let mut faults = Faults::default();
        let mut models = BTreeMap::new();
        match rules {
            Value::Null => {}
            Value::Object(given) => {
                for (name, rules) in given {
                    let at = At::ROOT.name(name);
                    match schema.models.get_key_value(name.as_str()) {
                        Some((name, model)) => {
                            models.insert(name.clone(), ModelRules::parse(rules, model, &at, &mut faults));
                        }
                        None => faults.add(&at, "the schema has no such model"),
                    }
                }
            }
            _ => faults.add(&At::ROOT, "rules are an object of models"),
        }
        faults.result(Self { models, open: false })
    }

    /// The rules of an application without users (`authEnabled: false`): everything is public.
    pub fn open() -> Self {
        Self { models: BTreeMap::new(), open: true }
    }

    /// What a document has to fulfil for this caller to do this: `$user.*` bound to the caller's values, [`Condition::All`]
    /// for admins. A condition on a `$user` value that the caller does not have does not hold, and its negation neither.
    pub fn condition(&self, model: &ModelName, action: Action, caller: &Caller) -> Condition {
        if self.open || caller.admin {
            return Condition::All;
        }
        match self.of(model).rule(action) {
            Rule::Public => Condition::All,
            Rule::User if caller.user.is_some() => Condition::All,
            Rule::Owner => caller.user.as_ref().map_or(Condition::None, is_owner),
            Rule::User | Rule::Admin | Rule::None => Condition::None,
            Rule::Filter(template) => template.bind(caller),
        }
    }

    pub fn allows(&self, action: Action, caller: &Caller, document: &Document) -> bool {
        self.condition(&document.model, action, caller).matches(document)
    }

    /// Whether both rule alike who reads a model.
    pub fn reads_alike(&self, other: &Rules, model: &ModelName) -> bool {
        self.open == other.open && self.of(model).read == other.of(model).read
    }

    /// Whether a filter among the rules of a model names the field at this dotted path; such a field has to stay filterable.
    pub fn names_field(&self, model: &ModelName, path: &str) -> bool {
        let mut named = false;
        for action in Action::ALL {
            if let Rule::Filter(template) = self.of(model).rule(action) {
                template.each_field(&mut |field| named |= *field.path == *path);
            }
        }
        named
    }

    fn of(&self, model: &ModelName) -> &ModelRules {
        self.models.get(model).unwrap_or(&DEFAULT_RULES)
    }
}

impl Action {
    pub const ALL: [Action; 4] = [Action::Read, Action::Create, Action::Update, Action::Delete];
}

fn is_owner(user: &UserId) -> Condition {
    match Field::universal("userId") {
        Some(field) => Condition::Test(field, Test::Eq(Scalar::String(user.as_str().into()))),
        None => Condition::None,
    }
}

impl ModelRules {
    fn parse(rules: &Value, model: &Model, at: &At<'_>, faults: &mut Faults) -> Self {
        let mut parsed = DEFAULT_RULES;
        let given = match rules {
            Value::Null => return parsed,
            Value::Object(given) => given,
            _ => {
                faults.add(at, "the rules of a model are an object of read, create, update, delete");
                return parsed;
            }
        };
        for (name, rule) in given {
            let at = at.name(name);
            let slot = match name.as_str() {
                "read" => &mut parsed.read,
                "create" => &mut parsed.create,
                "update" => &mut parsed.update,
                "delete" => &mut parsed.delete,
                _ => {
                    faults.add(&at, "unknown; there are rules for read, create, update, delete");
                    continue;
                }
            };
            if !rule.is_null()
                && let Some(rule) = Rule::parse(rule, model, &at, faults)
            {
                *slot = rule;
            }
        }
        parsed
    }

    fn rule(&self, action: Action) -> &Rule {
        match action {
            Action::Read => &self.read,
            Action::Create => &self.create,
            Action::Update => &self.update,
            Action::Delete => &self.delete,
        }
    }
}

impl Rule {
    fn parse(rule: &Value, model: &Model, at: &At<'_>, faults: &mut Faults) -> Option<Self> {
        match rule {
            Value::String(word) => match word.as_str() {
                "public" => return Some(Self::Public),
                "user" => return Some(Self::User),
                "owner" => return Some(Self::Owner),
                "admin" => return Some(Self::Admin),
                "none" => return Some(Self::None),
                _ => {}
            },
            Value::Object(_) => match Template::parse(rule, model) {
                Ok(template) => return Some(Self::Filter(template)),
                Err(error) => {
                    faults.push(error.under(&at.pointer()));
                    return None;
                }
            },
            _ => {}
        }
        faults.add(at, "a rule is public, user, owner, admin, none, or a filter");
        None
    }
}

#[cfg(test)]
mod tests;
