//! Layer and file system errors in the words of a pull.

use std::io;

use crate::error::{PullError, Reason};
use crate::layers::{LayerError, StoreError};

/// `what` names the layer or the image.
pub fn layer(what: &str, error: LayerError) -> PullError {
    let reason = match &error {
        LayerError::Malformed(_) => Reason::Malformed,
        LayerError::Unsupported(_) => Reason::UnsupportedFormat,
        LayerError::TooLarge(_) => Reason::TooLarge,
        LayerError::WrongDiffId { .. } => Reason::WrongDigest,
        LayerError::Store(_) => {
            let LayerError::Store(error) = error else {
                return PullError::new(Reason::Internal, what);
            };
            return store(what, error);
        }
        LayerError::Read(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<PullError>()) {
            Some(inner) => return inner.clone(),
            None if error.kind() == io::ErrorKind::FileTooLarge => Reason::TooLarge,
            None if error.kind() == io::ErrorKind::Unsupported => Reason::UnsupportedFormat,
            None => Reason::Malformed,
        },
    };
    PullError::new(reason, format!("{what}: {error}"))
}

/// The same for what the file system writer says.
pub fn store(what: &str, error: StoreError) -> PullError {
    match error {
        StoreError::Io(error) => PullError::io(what, &error),
        StoreError::Ext4(vmlet_ext4::Error::Io { source, .. }) => PullError::io(what, &source),
        StoreError::Ext4(error @ (vmlet_ext4::Error::DoesNotFit { .. } | vmlet_ext4::Error::TooManyInodes { .. })) => {
            PullError::new(Reason::TooLarge, format!("{what}: {error}"))
        }
        StoreError::Ext4(error) => PullError::new(Reason::Malformed, format!("{what}: {error}")),
    }
}
