//! The composition of the backends: the only place that knows which adapter stands behind which seam.

use std::sync::Arc;

use crate::{ChangeLog, Documents, Queues, Registry, Result};

/// The four seams, opened.
#[derive(Clone)]
pub struct Backends {
    pub queues: Arc<dyn Queues>,
    pub change_log: Arc<dyn ChangeLog>,
    pub registry: Arc<dyn Registry>,
    pub documents: Arc<dyn Documents>,
}

/// Opens every backend.
pub async fn open() -> Result<Backends> {
    todo!()
}
