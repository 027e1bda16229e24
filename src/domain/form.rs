//! Reading the JSON object of a request member by member, so that every fault is told at once and with its place.

use std::{fmt::Display, str::FromStr};

use nexxus_storage::model::{FieldError, Problem, problem::ProblemKind};
use serde_json::{Map, Value};

/// The members of an object that are not read yet, and the faults found so far. Null is absence.
#[derive(Debug, Default)]
pub struct Form {
    members: Map<String, Value>,
    faults: Vec<FieldError>,
}

impl Form {
    /// 400 when it is no object.
    pub fn of(body: Value) -> Result<Self, Problem> {
        match body {
            Value::Object(members) => Ok(Self { members, faults: Vec::new() }),
            _ => {
                let fault = FieldError::new("", "not an object");
                Err(Problem::new(ProblemKind::Malformed, "the body has to be a JSON object").with_errors(vec![fault]))
            }
        }
    }

    /// Takes a member as it is.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            _ => self.fault(name, "a string"),
        }
    }

    /// A text that has to be there; empty when it is not, which is a fault.
    pub fn required_text(&mut self, name: &str) -> String {
        if self.members.get(name).is_none_or(Value::is_null) {
            self.fault::<()>(name, "is missing");
        }
        self.text(name).unwrap_or_default()
    }

    /// A text that is an id or something else that is read from a text.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => self.fault(name, &error.to_string()),
        }
    }

    /// A whole number, not negative.
    pub fn integer(&mut self, name: &str) -> Option<u64> {
        let value = self.value(name)?;
        // 5.0 is an integer, too, in JSON.
        let integral = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..9e15).contains(number));
        match value.as_u64().or(integral.map(|number| number as u64)) {
            Some(integer) => Some(integer),
            None => self.fault(name, "a whole number, not negative"),
        }
    }

    /// A boolean.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(flag) => Some(flag),
            _ => self.fault(name, "true or false"),
        }
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.value(name)? {
            Value::Object(members) => Some(members),
            _ => self.fault(name, "an object"),
        }
    }

    /// A text with commas between its parts, or an array of texts.
    pub fn list(&mut self, name: &str) -> Option<Vec<String>> {
        match self.value(name)? {
            Value::String(text) => Some(parts(&text)),
            Value::Array(elements) if elements.iter().all(Value::is_string) => {
                let text = |element| if let Value::String(text) = element { Some(text) } else { None };
                Some(elements.into_iter().filter_map(text).collect())
            }
            _ => self.fault(name, "a string or an array of strings"),
        }
    }

    /// Notes a fault of a member.
    pub fn fault<T>(&mut self, name: &str, message: &str) -> Option<T> {
        self.faults.push(FieldError::new(format!("/{}", escaped(name)), message));
        None
    }

    /// Whether a fault of this member was noted.
    pub fn has_fault(&self, name: &str) -> bool {
        self.faults.iter().any(|fault| fault.path.strip_prefix('/') == Some(name))
    }

    /// Notes faults that have their places already.
    pub fn faults(&mut self, faults: impl IntoIterator<Item = FieldError>) {
        self.faults.extend(faults);
    }

    /// Refuses with all faults, if there are any; what nobody asked for is one.
    pub fn finish(mut self, kind: ProblemKind) -> Result<(), Problem> {
        let unknown: Vec<_> = std::mem::take(&mut self.members).into_iter().map(|(name, _)| name).take(50).collect();
        for name in unknown {
            self.fault::<()>(&name, "unknown");
        }
        match self.faults.first() {
            None => Ok(()),
            Some(first) => {
                let detail = format!("{}: {}", first.path, first.message);
                Err(Problem::new(kind, detail).with_errors(self.faults))
            }
        }
    }
}

/// The parts of a text with commas between them, without blanks around them and without empty ones.
pub fn parts(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A name as a part of a JSON Pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::DeviceId;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_fault_is_told_with_its_place() {
        let body = json!({
            "name": 5, "id": "a b", "keepFor": -1, "flag": "yes", "details": [], "sort": [1], "nothing": null, "a/b": 1,
        });
        let mut form = Form::of(body).expect("an object");
        assert_eq!(form.text("name"), None);
        assert_eq!(form.parsed::<DeviceId>("id"), None);
        assert_eq!(form.integer("keepFor"), None);
        assert_eq!(form.flag("flag"), None);
        assert_eq!(form.object("details"), None);
        assert_eq!(form.list("sort"), None);
        assert_eq!(form.text("nothing"), None);
        assert_eq!(form.required_text("password"), "");
        let problem = form.finish(ProblemKind::InvalidDocument).expect_err("refused");
        assert_eq!(problem.status, 422);
        let paths: Vec<_> = problem.errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["/name", "/id", "/keepFor", "/flag", "/details", "/sort", "/password", "/a~1b"]);
    }

    #[test]
    fn what_fits_is_taken() {
        let body = json!({ "name": "x", "keepFor": 60.0, "sort": "-a, b,", "fields": ["c"], "on": true });
        let mut form = Form::of(body).expect("an object");
        assert_eq!(form.required_text("name"), "x");
        assert_eq!(form.integer("keepFor"), Some(60));
        assert_eq!(form.list("sort"), Some(vec!["-a".to_owned(), "b".to_owned()]));
        assert_eq!(form.list("fields"), Some(vec!["c".to_owned()]));
        assert_eq!(form.flag("on"), Some(true));
        form.finish(ProblemKind::Malformed).expect("no fault");
        assert_eq!(Form::of(json!([])).expect_err("no object").status, 400);
    }
}
