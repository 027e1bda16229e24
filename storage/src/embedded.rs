//! The embedded engine: one journal, and the four adapters that stand on it, opened, kept in bounds and closed in order.

pub mod indexer;
pub(crate) mod wire;

use crate::Result;

/// The parts of the embedded engine that live outside the four seams. Cheap to clone.
#[derive(Clone)]
pub struct Engine {}

impl Engine {
    pub async fn failed(&self) -> crate::Error {
        todo!()
    }

    pub async fn close(&self) -> Result<()> {
        todo!()
    }
}
