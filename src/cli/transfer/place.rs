//! How far an export has come: what a file holds says what is still to be written.

use serde_json::Value;

/// What is exported of an application, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Application,
    User,
    Device,
    Subscription,
    Document,
}

impl Stage {
    const ALL: [(&str, Self); 5] = [
        ("application", Self::Application),
        ("user", Self::User),
        ("device", Self::Device),
        ("subscription", Self::Subscription),
        ("document", Self::Document),
    ];

    /// What a line holds, and of which stage that is.
    pub(super) fn of(line: &Value) -> Option<(Self, &Value)> {
        Self::ALL.into_iter().find_map(|(name, stage)| Some((stage, line.get(name)?)))
    }

    pub(super) fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// The last thing in a file. Things are written in the order of this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) app: String,
    pub(super) stage: Stage,
    /// The model of a document; empty for everything else.
    pub(super) model: String,
    /// What the next page comes after.
    pub(super) after: String,
}

impl Place {
    /// Where a line stands; none for the first and the last line of a file.
    pub(super) fn of(line: &Value) -> Option<Self> {
        let (stage, thing) = Stage::of(line)?;
        let text = |name: &str| thing[name].as_str().unwrap_or_default().to_owned();
        let (app, model, after) = match stage {
            Stage::Application => (text("id"), String::new(), String::new()),
            Stage::Subscription => (text("app"), String::new(), format!("{}/{}", text("device"), text("id"))),
            Stage::User | Stage::Device => (text("app"), String::new(), text("id")),
            Stage::Document => (text("appId"), text("type"), text("id")),
        };
        Some(Self { app, stage, model, after })
    }

    /// Where to go on in a stage of an application (and a model): after this; none when all of it was written.
    pub(super) fn resume(last: Option<&Self>, app: &str, stage: Stage, model: &str) -> Option<String> {
        let Some(last) = last else { return Some(String::new()) };
        let (asked, reached) = ((app, stage, model), (&*last.app, last.stage, &*last.model));
        match asked.cmp(&reached) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal if stage == Stage::Application => None,
            std::cmp::Ordering::Equal => Some(last.after.clone()),
            std::cmp::Ordering::Greater => Some(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_export_goes_on_after_its_last_line() {
        let check = |line: Value, app: &str, stage: Stage, model: &str, expected: Option<&str>| {
            let last = Place::of(&line);
            assert_eq!(Place::resume(last.as_ref(), app, stage, model).as_deref(), expected, "{line} {app} {stage:?}");
        };
        let document = json!({ "document": { "appId": "b", "type": "task", "id": "d7" } });
        check(document.clone(), "a", Stage::Document, "zebra", None);
        check(document.clone(), "b", Stage::User, "", None);
        check(document.clone(), "b", Stage::Document, "note", None);
        check(document.clone(), "b", Stage::Document, "task", Some("d7"));
        check(document.clone(), "b", Stage::Document, "visit", Some(""));
        check(document, "c", Stage::Application, "", Some(""));
        check(json!({ "application": { "id": "b" } }), "b", Stage::Application, "", None);
        check(json!({ "application": { "id": "b" } }), "b", Stage::User, "", Some(""));
        let subscription = json!({ "subscription": { "app": "b", "device": "p", "id": "s" } });
        check(subscription, "b", Stage::Subscription, "", Some("p/s"));
        check(json!({ "nexxus": {} }), "a", Stage::Application, "", Some(""));
    }

    #[test]
    fn stages_are_named_as_lines_are() {
        for (name, stage) in Stage::ALL {
            assert_eq!(stage.name(), name);
        }
    }
}
