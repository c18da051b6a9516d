//! Layers under the OCI rules: raw bytes in, one merged tree out.
//!
//! ```text
//! blob bytes ─ decode ─▶ tar bytes ─ tar ─▶ members ─ apply ─▶ records ─ merge ─▶ Tree ─ disk ─▶ ext4
//!             (gzip,     (hashed:          (PAX, GNU,        (one small     (whiteouts, links,
//!              zstd)      diff_id)          sparse)           per member)    paths inside the root)
//! ```
//! File data goes to its final place while it streams through; only records are kept. Nothing is
//! mounted, staged or extracted, and no name from an image ever becomes a path of the host.

pub mod apply;
pub mod budget;
pub mod chunks;
pub mod decode;
pub mod disk;
pub mod header;
mod markers;
pub mod member;
pub mod merge;
pub mod path;
pub mod pax;
pub mod sparse;
pub mod spool;

use std::io;

use crate::error::PullError;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive breaks the tar format or the OCI layer rules.
    #[error("{0}")]
    Malformed(String),
    /// The compression or entry type is not one that can be used.
    #[error("{0}")]
    Unsupported(String),
    /// A bound was exceeded.
    #[error("{0}")]
    TooLarge(String),
    /// The decompressed bytes are not those that the image configuration names.
    #[error("its content has the digest {actual}, but the image configuration names {expected}")]
    WrongDiffId {
        /// What the configuration says.
        expected: String,
        /// What the bytes are.
        actual: String,
    },
    /// Reading the compressed bytes failed: corrupt compression, or the transfer ended.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// Keeping file data failed: the local disk, or a limit of the file system that is written.
    #[error("{0}")]
    Store(#[source] StoreError),
}

/// The bound of an image's uncompressed bytes was exceeded.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the image has more than {0} bytes when it is uncompressed")]
pub(crate) struct TooManyBytes(pub(crate) u64);

/// Why file data could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system writer refused or failed.
    #[error(transparent)]
    Ext4(#[from] vmlet_ext4::Error),
    /// The same, about one entry of a layer.
    #[error("{entry}: {error}")]
    Entry {
        /// Its path, as [`show`] has it.
        entry: String,
        /// What is wrong with it.
        error: vmlet_ext4::Error,
    },
    /// The local file failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LayerError {
    pub(crate) fn malformed(message: impl Into<String>) -> LayerError {
        LayerError::Malformed(message.into())
    }

    /// Says which entry is refused, if that is not said yet. What is wrong with the whole layer stays as it is.
    pub(crate) fn of(self, entry: &[u8]) -> LayerError {
        let entry = show(entry);
        let named = |message: String| match message.contains(&entry) {
            true => message,
            false => format!("{entry}: {message}"),
        };
        self.worded(named, &entry)
    }

    /// The same for an entry whose name is not known: it is the `number`th one, from 1.
    pub(crate) fn of_number(self, number: u64) -> LayerError {
        let entry = format!("entry {number}");
        self.worded(|message| format!("{entry}: {message}"), &entry)
    }

    /// Says behind which entry of the layer the bytes end or are damaged. Without one it is the first that is. What is wrong
    /// with the transfer, or with the machine, stays as it is.
    pub(crate) fn after(self, entry: Option<&[u8]>) -> LayerError {
        let (LayerError::Read(error), Some(entry)) = (&self, entry) else {
            return self;
        };
        let inner = error.get_ref();
        if error.raw_os_error().is_some() || inner.is_some_and(|inner| inner.is::<PullError>()) {
            return self;
        }
        let message = format!("after entry {}: {error}", show(entry));
        LayerError::Read(io::Error::new(error.kind(), message))
    }

    fn worded(self, named: impl Fn(String) -> String, entry: &str) -> LayerError {
        match self {
            LayerError::Malformed(message) => LayerError::Malformed(named(message)),
            LayerError::Unsupported(message) => LayerError::Unsupported(named(message)),
            LayerError::TooLarge(message) => LayerError::TooLarge(named(message)),
            LayerError::Store(StoreError::Ext4(error)) if !matches!(error, vmlet_ext4::Error::Io { .. }) => {
                let entry = entry.to_owned();
                LayerError::Store(StoreError::Entry { entry, error })
            }
            LayerError::Read(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<TooManyBytes>()) {
                Some(bound) => LayerError::TooLarge(named(bound.to_string())),
                None => LayerError::Read(error),
            },
            other => other,
        }
    }
}

/// Shows raw bytes from an archive in a message: printable, quoted and of bounded length.
pub(crate) fn show(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = &bytes[..bytes.len().min(MOST)];
    let dots = if bytes.len() > MOST { "…" } else { "" };
    format!("\"{}{dots}\"", cut.escape_ascii())
}
