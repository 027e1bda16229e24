//! Documents that were written lately: what was accepted for them may not be applied yet, so a write to one of them is judged only
//! when it is (contract §11: a write that follows a 202 is judged after it). Other documents are judged at once.
//!
//! A document stays here until a barrier that was sent after its last write has passed. What nobody asks for again is taken out when
//! there are many: so there are never more than twice as many as are accepted and not applied, and some thousands.

use std::collections::HashMap;

use nexxus_storage::model::{AppId, ChangeId, Problem, change::Subject};
use parking_lot::Mutex;

use super::Api;

/// From so many documents of an application on, those are looked for that are applied by now.
const MANY: usize = 4_096;

#[derive(Default)]
pub(super) struct Recent {
    of: Mutex<HashMap<AppId, Writes>>,
}

/// The last write of each document.
type Written = HashMap<Subject, ChangeId>;

struct Writes {
    written: Written,
    tidy_at: usize,
}

impl Recent {
    /// Notes a write that was published. Gives whether there are so many that they should be tidied up.
    fn note(&self, app: &AppId, document: Subject, change: ChangeId) -> bool {
        let mut of = self.of.lock();
        let writes = of.entry(app.clone()).or_insert_with(|| Writes { written: HashMap::new(), tidy_at: MANY });
        writes.written.insert(document, change);
        let is_due = writes.written.len() >= writes.tidy_at;
        if is_due {
            // The next time when as many have come again, however this tidying ends.
            writes.tidy_at = writes.written.len() * 2;
        }
        is_due
    }

    fn last_write(&self, app: &AppId, document: &Subject) -> Option<ChangeId> {
        self.of.lock().get(app)?.written.get(document).copied()
    }

    fn all(&self, app: &AppId) -> Written {
        self.of.lock().get(app).map(|writes| writes.written.clone()).unwrap_or_default()
    }

    /// These writes are applied; documents that were written again since stay.
    fn applied(&self, app: &AppId, applied: &Written) {
        let mut of = self.of.lock();
        let Some(writes) = of.get_mut(app) else { return };
        writes.written.retain(|document, change| applied.get(document) != Some(change));
        writes.tidy_at = MANY.max(writes.written.len() * 2);
        if writes.written.is_empty() {
            of.remove(app);
        }
    }
}

impl Api {
    /// A write to this document was published.
    pub(super) fn note_write(&self, app: &AppId, document: Subject, change: ChangeId) {
        if self.recent.note(app, document, change) {
            let (api, app) = (self.clone(), app.clone());
            tokio::spawn(async move {
                let written = api.recent.all(&app);
                if api.pass_barrier(&app).await.is_ok() {
                    api.recent.applied(&app, &written);
                }
            });
        }
    }

    /// Waits until what was accepted for a document is applied.
    pub(super) async fn settle(&self, app: &AppId, document: &Subject) -> Result<(), Problem> {
        let Some(change) = self.recent.last_write(app, document) else { return Ok(()) };
        self.pass_barrier(app).await?;
        self.recent.applied(app, &HashMap::from([(document.clone(), change)]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::{DocumentId, ModelName};

    use super::*;

    fn document(number: usize) -> Subject {
        Subject {
            model: ModelName::parse("task").expect("a name"),
            id: DocumentId::parse(&format!("d{number}")).expect("an id"),
        }
    }

    #[test]
    fn a_document_stays_until_its_last_write_is_applied() {
        let (recent, app) = (Recent::default(), AppId::parse("a").expect("an id"));
        let (first, second) = (ChangeId::generate(), ChangeId::generate());
        recent.note(&app, document(1), first);
        let snapshot = recent.all(&app);
        recent.note(&app, document(1), second);
        recent.applied(&app, &snapshot);
        assert_eq!(recent.last_write(&app, &document(1)), Some(second));
        recent.applied(&app, &recent.all(&app));
        assert_eq!(recent.last_write(&app, &document(1)), None);
        assert!(recent.of.lock().is_empty());
    }

    #[test]
    fn many_are_tidied_up_now_and_then() {
        let (recent, app) = (Recent::default(), AppId::parse("a").expect("an id"));
        let n_times = (0..3 * MANY).filter(|number| recent.note(&app, document(*number), ChangeId::generate())).count();
        assert_eq!(n_times, 2, "at 4,096 and at 8,192");
        recent.applied(&app, &recent.all(&app));
        assert!(recent.of.lock().is_empty());
    }
}
