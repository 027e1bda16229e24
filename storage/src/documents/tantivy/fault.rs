//! What tantivy's errors mean to callers.

use std::io;

use tantivy::{
    TantivyError,
    directory::error::{OpenReadError, OpenWriteError},
};

use crate::{Error, ErrorKind};

/// Tells what a failed call on the index means.
pub(super) fn fault(operation: &'static str, error: TantivyError) -> Error {
    let kind = match &error {
        TantivyError::DataCorruption(_) | TantivyError::IncompatibleIndex(_) => ErrorKind::Corrupt,
        TantivyError::LockFailure(..) => ErrorKind::Unavailable,
        error if is_disk_full(error) => ErrorKind::DiskFull,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, operation, "document index").with_source(error)
}

/// Whether the file system said no: the same thing may work later.
pub(super) fn is_io(error: &TantivyError) -> bool {
    io_error(error).is_some() || matches!(error, TantivyError::LockFailure(..))
}

fn is_disk_full(error: &TantivyError) -> bool {
    io_error(error)
        .is_some_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

fn io_error(error: &TantivyError) -> Option<&io::Error> {
    match error {
        TantivyError::IoError(error)
        | TantivyError::OpenReadError(OpenReadError::IoError { io_error: error, .. })
        | TantivyError::OpenWriteError(OpenWriteError::IoError { io_error: error, .. }) => Some(error),
        _ => None,
    }
}
