//! Layer and file system errors in the words of a pull.

use std::io;

use crate::error::{PullError, Reason};
use crate::layers::{LayerError, StoreError};
use crate::reference::Digest;

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

/// The same for one of several layers, whose digests are named where they are known.
pub fn one_layer(whole: &str, at: usize, digests: &[Digest], error: LayerError) -> PullError {
    let digest = digests.get(at).map(|digest| format!(" ({digest})")).unwrap_or_default();
    layer(&format!("layer {}{digest} of {whole}", at + 1), error)
}

/// The same for what the file system writer says.
pub fn store(what: &str, error: StoreError) -> PullError {
    use vmlet_ext4::Error;
    let reason = match &error {
        StoreError::Io(source) | StoreError::Ext4(Error::Io { source, .. }) => return PullError::io(what, source),
        StoreError::Ext4(Error::Abandoned) => return PullError::cancelled(),
        StoreError::Ext4(error) | StoreError::Entry { error, .. } => match error {
            Error::DoesNotFit { .. } | Error::TooManyInodes { .. } | Error::FileTooLarge { .. } => Reason::TooLarge,
            _ => Reason::Malformed,
        },
    };
    PullError::new(reason, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_nobody_wants_any_more_is_no_fault_of_the_image() {
        let error = store("the disk", vmlet_ext4::Error::Abandoned.into());
        assert_eq!((error.reason, error.is_terminal()), (Reason::Cancelled, false));
        let error = store("the disk", vmlet_ext4::Error::TreeTooLarge.into());
        assert_eq!((error.reason, error.is_terminal()), (Reason::Malformed, true));
    }
}
