//! *Decide*: what a command does to the document that it meets. Pure: a command, a state, a decision.

use nexxus_storage::{
    documents::Stored,
    model::{
        AppId, Caller, ChangeId, Document, DocumentId, Event, Model, ModelName, PatchSet, Problem, Timestamp, UserId,
        change::Subject, problem::ProblemKind, rules::Action,
    },
};
use serde_json::{Map, Value};

use crate::{domain::Application, messages::Expected};

/// What the writer judges a command by: the application as the log has it at this point, who asked, and when.
pub(super) struct Judge<'a> {
    pub(super) application: &'a Application,
    pub(super) caller: &'a Caller,
    pub(super) change: ChangeId,
    pub(super) now: Timestamp,
    /// Largest document, in bytes of JSON.
    pub(super) document_bytes: usize,
}

/// The fields and the owner of a document to be made.
pub(super) struct New {
    pub(super) owner: Option<UserId>,
    pub(super) fields: Map<String, Value>,
}

impl Judge<'_> {
    pub(super) fn create(&self, model: &ModelName, id: &DocumentId, new: New, stored: Option<&Stored>) -> Event {
        let subject = Subject { model: model.clone(), id: id.clone() };
        self.or_refusal(subject, || {
            let definition = self.model(model)?;
            let version = match stored {
                Some(Stored::Live(_)) => {
                    return Err(Problem::new(ProblemKind::Exists, format!("{model} {id} exists already")));
                }
                Some(Stored::Deleted { version }) => version + 1,
                None => 1,
            };
            let document = Document {
                app: self.application.id().clone(),
                model: model.clone(),
                id: id.clone(),
                user: new.owner,
                created_at: self.now,
                updated_at: self.now,
                version,
                fields: new.fields,
            };
            definition.check(&document.fields).map_err(invalid)?;
            self.fits(&document)?;
            self.allow(Action::Create, &document)?;
            Ok(Event::Created { document })
        })
    }

    pub(super) fn patch(
        &self,
        subject: Subject,
        patch: &PatchSet,
        expected: Option<Expected>,
        stored: Option<&Stored>,
    ) -> Event {
        self.or_refusal(subject.clone(), || {
            let definition = self.model(&subject.model)?;
            let before = self.meet(&subject, expected, stored)?;
            self.allow(Action::Update, before)?;
            let patched = patch.apply(before, definition, self.caller)?;
            if patched.patches.is_empty() {
                return Ok(Event::Unchanged { document: Some(subject) });
            }
            let mut document = patched.document;
            document.version = before.version + 1;
            document.updated_at = self.now.max(before.updated_at);
            self.fits(&document)?;
            self.allow(Action::Update, &document)?;
            Ok(Event::Updated { document, before: patched.before, patches: patched.patches })
        })
    }

    pub(super) fn delete(&self, subject: Subject, expected: Option<Expected>, stored: Option<&Stored>) -> Event {
        self.or_refusal(subject.clone(), || {
            self.model(&subject.model)?;
            let before = self.meet(&subject, expected, stored)?;
            self.allow(Action::Delete, before)?;
            Ok(Event::Deleted { document: before.clone(), version: before.version + 1 })
        })
    }

    fn or_refusal(&self, subject: Subject, decide: impl FnOnce() -> Result<Event, Problem>) -> Event {
        decide().unwrap_or_else(|problem| self.refusal(Some(subject), problem))
    }

    pub(super) fn refusal(&self, document: Option<Subject>, problem: Problem) -> Event {
        Event::Rejected { document, device: self.caller.device.clone(), problem: problem.with_change_id(self.change) }
    }

    fn model(&self, name: &ModelName) -> Result<&Model, Problem> {
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
            _ => return Err(no_document(self.application.id(), subject)),
        };
        match expected {
            Some(expected) if !expected.is_met_by(document) => Err(Problem::new(
                ProblemKind::PreconditionFailed,
                format!("the document has version {}, not the one named in If-Match", document.version),
            )),
            _ => Ok(document),
        }
    }

    fn allow(&self, action: Action, document: &Document) -> Result<(), Problem> {
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

    fn fits(&self, document: &Document) -> Result<(), Problem> {
        // A cheap lower bound first: few documents come near the limit.
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

fn no_document(_app: &AppId, subject: &Subject) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no {} {}", subject.model, subject.id))
}

fn invalid(errors: Vec<nexxus_storage::model::FieldError>) -> Problem {
    Problem::new(ProblemKind::InvalidDocument, "the document does not fit the schema").with_errors(errors)
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
