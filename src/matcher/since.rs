//! An offset in twelve bytes, of which there may be millions.

use nexxus_storage::model::Offset;

/// From where on a subscription is told of changes: those at or below it are in the items that the subscriber got. The epoch, and
/// the halves of the position.
#[derive(Default, Clone, Copy)]
pub(super) struct Since([u32; 3]);

impl From<Offset> for Since {
    fn from(offset: Offset) -> Self {
        Self([offset.epoch, offset.position as u32, (offset.position >> 32) as u32])
    }
}

impl From<Since> for Offset {
    fn from(Since([epoch, low, high]): Since) -> Self {
        Self::new(epoch, u64::from(low) | u64::from(high) << 32)
    }
}
