//! What a command does to the document that it meets. Pure: a command, a state, a decision.
//!
//! The writer decides by it; the API asks it first, on what is stored then, so that a refusal comes at once where it can.

use nexxus_storage::{
    documents::Stored,
    model::{
        Caller, Document, DocumentId, Event, FieldError, Model, ModelName, PatchSet, Problem, Timestamp, UserId,
        change::Subject, patch, problem::ProblemKind, rules::Action,
    },
};
use serde_json::{Map, Value};

use super::Application;
use crate::messages::Expected;

/// What a command is judged by: the application as it is (for the writer: at this point of the log), who asked, and when.
pub struct Judge<'a> {
    /// The application, with the schema and the rules in force.
    pub application: &'a Application,
    /// Who asks.
    pub caller: &'a Caller,
    /// The time that a changed document gets.
    pub now: Timestamp,
    /// Largest document, in bytes of JSON.
    pub document_bytes: usize,
}

/// The fields and the owner of a document to be made.
pub struct New {
    /// Whose it becomes.
    pub owner: Option<UserId>,
    /// Its own fields, in canonical form.
    pub fields: Map<String, Value>,
}

impl Judge<'_> {
    /// The document that a create makes, whatever its fields; 409 when the id is taken.
    pub fn make(
        &self,
        model: &ModelName,
        id: &DocumentId,
        new: New,
        stored: Option<&Stored>,
    ) -> Result<Document, Problem> {
        let version = match stored {
            Some(Stored::Live(_)) => {
                return Err(Problem::new(ProblemKind::Exists, format!("{model} {id} exists already")));
            }
            Some(Stored::Deleted { version }) => version + 1,
            None => 1,
        };
        Ok(Document {
            app: self.application.id().clone(),
            model: model.clone(),
            id: id.clone(),
            user: new.owner,
            created_at: self.now,
            updated_at: self.now,
            version,
            fields: new.fields,
        })
    }

    /// The creation of a document: 409 when the id is taken, 422 when it does not fit the schema, 413 when it is too large, 403.
    pub fn create(
        &self,
        model: &ModelName,
        id: &DocumentId,
        new: New,
        stored: Option<&Stored>,
    ) -> Result<Event, Problem> {
        let definition = self.model(model)?;
        let document = self.make(model, id, new, stored)?;
        definition.check(&document.fields).map_err(invalid)?;
        self.fits(&document)?;
        self.allow(Action::Create, &document)?;
        Ok(Event::Created { document })
    }

    /// The change of a document: 404 when it is not there or not visible, 412, 403 (before and after are judged), 422, 413. A
    /// patch that changes nothing is [`Event::Unchanged`].
    pub fn patch(
        &self,
        subject: &Subject,
        patch: &PatchSet,
        expected: Option<Expected>,
        stored: Option<&Stored>,
    ) -> Result<Event, Problem> {
        let definition = self.model(&subject.model)?;
        let before = self.meet(subject, expected, stored)?;
        self.allow(Action::Update, before)?;
        let patched = patch.apply(before, definition, self.caller)?;
        if patched.patches.is_empty() {
            return Ok(Event::Unchanged { document: Some(subject.clone()) });
        }
        let mut document = patched.document;
        document.version = before.version + 1;
        document.updated_at = self.now.max(before.updated_at);
        self.fits(&document)?;
        self.allow(Action::Update, &document)?;
        Ok(Event::Updated { document, before: patched.before, patches: patched.patches })
    }

    /// The end of a document: 404 when it is not there or not visible, 412, 403.
    pub fn delete(
        &self,
        subject: &Subject,
        expected: Option<Expected>,
        stored: Option<&Stored>,
    ) -> Result<Event, Problem> {
        self.model(&subject.model)?;
        let before = self.meet(subject, expected, stored)?;
        self.allow(Action::Delete, before)?;
        Ok(Event::Deleted { document: before.clone(), version: before.version + 1 })
    }

    /// Puts a document as it was elsewhere, with its version and times. What is stored with that version or a later one stays, a delete
    /// too: so twice is once, and an import never takes back what was done since.
    pub fn import(&self, document: &Document, notify: bool, stored: Option<&Stored>) -> Result<Event, Problem> {
        let definition = self.model(&document.model)?;
        let known = match stored {
            Some(Stored::Live(stored)) => stored.version,
            Some(Stored::Deleted { version }) => *version,
            None => 0,
        };
        if known >= document.version {
            let subject = Subject { model: document.model.clone(), id: document.id.clone() };
            return Ok(Event::Unchanged { document: Some(subject) });
        }
        definition.check(&document.fields).map_err(invalid)?;
        self.fits(document)?;
        let document = document.clone();
        Ok(match stored {
            _ if !notify => Event::Imported { document },
            Some(Stored::Live(stored)) => {
                let (patches, before) = patch::between(stored, &document);
                Event::Updated { document, before, patches }
            }
            _ => Event::Created { document },
        })
    }

    /// The definition of a model; 404 when there is none.
    pub fn model(&self, name: &ModelName) -> Result<&Model, Problem> {
        match self.application.schema.model(name.as_str()) {
            Some(model) => Ok(model),
            None => Err(Problem::new(ProblemKind::NotFound, format!("there is no model {name}"))),
        }
    }

    /// The document that a write meets, if this caller may know of it and it is the expected one.
    fn meet<'s>(
        &self,
        subject: &Subject,
        expected: Option<Expected>,
        stored: Option<&'s Stored>,
    ) -> Result<&'s Document, Problem> {
        let document = match stored {
            Some(Stored::Live(document)) if self.application.rules.allows(Action::Read, self.caller, document) => {
                document
            }
            _ => return Err(no_document(subject)),
        };
        match expected {
            Some(expected) if !expected.is_met_by(document) => Err(Problem::new(
                ProblemKind::PreconditionFailed,
                format!("the document has version {}, not the one named in If-Match", document.version),
            )),
            _ => Ok(document),
        }
    }

    /// 403 when the rules do not let the caller do this with the document.
    pub fn allow(&self, action: Action, document: &Document) -> Result<(), Problem> {
        if self.application.rules.allows(action, self.caller, document) {
            return Ok(());
        }
        let what = match action {
            Action::Create => "create this document",
            Action::Update => "update this document, or not in this way",
            Action::Delete => "delete this document",
            Action::Read => "read this document",
        };
        Err(Problem::new(ProblemKind::Forbidden, format!("the rules do not let you {what}")))
    }

    /// Whether the document is small enough.
    pub fn fits(&self, document: &Document) -> Result<(), Problem> {
        if most_bytes(&document.fields) <= self.document_bytes {
            return Ok(());
        }
        let bytes = json_bytes(&document.fields);
        if bytes <= self.document_bytes {
            return Ok(());
        }
        Err(Problem::new(
            ProblemKind::TooLarge,
            format!("the document would have {bytes} bytes, at most {} are allowed", self.document_bytes),
        ))
    }
}

impl Expected {
    /// Whether the document is the version that was named; with the ETag also the same life of its id.
    pub fn is_met_by(self, document: &Document) -> bool {
        self.version == document.version && self.created_at.is_none_or(|created_at| created_at == document.created_at)
    }
}

fn no_document(subject: &Subject) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {} {}", subject.model, subject.id))
}

/// 422 with these faults.
pub fn invalid(errors: Vec<FieldError>) -> Problem {
    Problem::new(ProblemKind::InvalidDocument, "the document does not fit the schema").with_errors(errors)
}

/// At least the length of the JSON of these fields: few documents come near the limit, so most need not be written to be counted.
fn most_bytes(fields: &Map<String, Value>) -> usize {
    // A control character becomes six.
    fn text(text: &str) -> usize {
        2 + 6 * text.len()
    }
    fn most_of(value: &Value) -> usize {
        match value {
            Value::Null | Value::Bool(_) => 5,
            // The longest double.
            Value::Number(_) => 24,
            Value::String(content) => text(content),
            Value::Array(elements) => 2 + elements.iter().map(|element| 1 + most_of(element)).sum::<usize>(),
            Value::Object(fields) => most_bytes(fields),
        }
    }
    2 + fields.iter().map(|(name, content)| 2 + text(name) + most_of(content)).sum::<usize>()
}

/// The length of the JSON of these fields, without writing it.
fn json_bytes(fields: &Map<String, Value>) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, fields) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests;
