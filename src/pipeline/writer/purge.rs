//! What a deleted application leaves behind is removed in the background: nobody waits for it, and what a crash interrupts goes on at
//! the next start. Its log stays until the history has passed it.

use nexxus_storage::{
    Result,
    model::AppId,
    registry::{Expect, Key, Kind, Write, records},
};
use tracing::info;

use crate::domain::Domain;

/// Records that are removed at once.
const PAGE: usize = 500;
/// What belongs to an application: users last, so that what refers to them goes first.
const KINDS: [Kind; 8] = [
    Kind::Subscription,
    Kind::Session,
    Kind::Cursor,
    Kind::Device,
    Kind::UserDevice,
    Kind::UserName,
    Kind::User,
    Kind::Idempotency,
];

/// The deleted applications of a queue whose remains are still there.
pub(super) async fn remains(domain: &Domain, queue: &str) -> Result<Vec<AppId>> {
    let all: Vec<records::Application> = domain.backends.registry.load_all(Kind::Application, None, "").await?;
    let remaining = all.into_iter().filter(|application| application.deleted && !application.purged);
    let ours = remaining.filter(|application| domain.routes.writer.queue_of(&application.id) == queue);
    Ok(ours.map(|application| application.id).collect())
}

/// Removes up to so many pages of what a deleted application leaves behind; whether nothing is left. Only the writer of the application
/// calls it: in its order with a definition that makes the application again.
pub(super) async fn purge(domain: &Domain, app: &AppId, n_pages: usize) -> Result<bool> {
    let (registry, key) = (&domain.backends.registry, Key::application(app));
    let Some((application, revision)) = registry.load::<records::Application>(&key).await? else { return Ok(true) };
    if !application.deleted || application.purged {
        return Ok(true);
    }
    domain.backends.documents.drop_application(app).await?;
    let mut n_left = n_pages;
    for kind in KINDS {
        loop {
            let page = registry.list(kind, Some(app), "", None, PAGE).await?;
            if page.is_empty() {
                break;
            }
            if n_left == 0 {
                return Ok(false);
            }
            n_left -= 1;
            registry.write(page.into_iter().map(|record| Write::remove(record.key)).collect()).await?;
        }
    }
    let purged = records::Application { purged: true, ..application };
    registry.put(&purged, Expect::Revision(revision)).await?;
    info!(%app, "nothing is left of the deleted application");
    Ok(true)
}
