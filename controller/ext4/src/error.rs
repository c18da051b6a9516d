//! What can go wrong, in words that name the object and the remedy.

use std::io;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file below the image could not be written.
    #[error("cannot {action} the image file: {source}")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Whoever waited for the image does not want it any more ([`crate::Writer::finish_while`]).
    #[error("the image was given up: nobody wants it any more")]
    Abandoned,
    /// The content needs more blocks than the file system has.
    #[error("the content does not fit: all {size} bytes of the file system are taken; give it a larger size")]
    DoesNotFit {
        /// Size of the file system in bytes (for an automatic size, the largest that was allowed).
        size: u64,
    },
    /// The content needs more inodes than the file system has (8192 for each 128 MiB).
    #[error(
        "the content does not fit: it has {needed} inodes and a file system of {size} bytes has room for {available}; give it a larger size"
    )]
    TooManyInodes {
        /// Inodes that the tree needs, the reserved ones among them.
        needed: u64,
        /// Inodes of the file system.
        available: u64,
        /// Size of the file system in bytes.
        size: u64,
    },
    /// The requested size lies outside of what this geometry serves.
    #[error("a size of {size} bytes is not possible: choose one between {minimum} and {maximum}")]
    SizeOutOfRange {
        /// The size that was asked for, in bytes.
        size: u64,
        /// Smallest possible size in bytes.
        minimum: u64,
        /// Largest possible size in bytes.
        maximum: u64,
    },
    /// A volume label longer than 16 bytes, or with a NUL in it.
    #[error("the label {label:?} is not possible: it may have 16 bytes and no NUL")]
    BadLabel {
        /// The label, made printable.
        label: String,
    },
    /// A single file longer than ext4 can describe with 4 KiB blocks.
    #[error("a file of {size} bytes is too large: ext4 ends at {maximum}")]
    FileTooLarge {
        /// Size the file would have, in bytes.
        size: u64,
        /// Largest possible size in bytes.
        maximum: u64,
    },
    /// A file name that ext4 cannot hold.
    #[error("the name {name:?} is not possible: {reason}")]
    BadName {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The same name twice in one directory.
    #[error("the name {name:?} appears twice in the directory {directory:?}")]
    DuplicateName {
        /// Path of the directory, made printable.
        directory: String,
        /// The name, made printable.
        name: String,
    },
    /// More than 65 000 names for one inode.
    #[error("{name:?} would be the 65001st link of its inode: ext4 allows 65000; store the content twice")]
    TooManyLinks {
        /// The name that was one too many, made printable.
        name: String,
    },
    /// A second name for a directory, or one for the root.
    #[error("{name:?} would be a second name of a directory: directories have exactly one")]
    DirectoryLinkedTwice {
        /// The name, made printable.
        name: String,
    },
    /// A child was given to something that is no directory.
    #[error("{name:?} cannot be put under an inode that is not a directory")]
    NotADirectory {
        /// Name of the child, made printable.
        name: String,
    },
    /// An id that this tree never gave out.
    #[error("{name:?} uses an inode id that does not belong to this tree")]
    UnknownInode {
        /// The name that was to be linked, made printable.
        name: String,
    },
    /// A directory that needs more than a two-level index.
    #[error("the directory {directory:?} has too many entries ({entries}) for a two-level index")]
    DirectoryTooLarge {
        /// Path of the directory, made printable.
        directory: String,
        /// Number of its entries.
        entries: usize,
    },
    /// More entries than a tree can count.
    #[error("the tree has too many entries: ids and names are counted in 32 bits")]
    TreeTooLarge,
    /// A symlink target that is empty or longer than 4095 bytes.
    #[error("a symlink target of {length} bytes is not possible: it must have 1 to 4095")]
    BadSymlink {
        /// Length of the target in bytes.
        length: usize,
    },
    /// A symlink target with a NUL byte, which no program could read back.
    #[error("a symlink target with a NUL byte is not possible")]
    NulInSymlink,
    /// A device number beyond 12 bits of major or 20 bits of minor.
    #[error("the device {major}:{minor} is not possible: Linux has 12 bits of major and 20 of minor")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute name that ext4 has no place for.
    #[error("the extended attribute {name:?} is not possible: {reason}")]
    BadXattr {
        /// Name of the attribute, made printable.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An ACL that Linux would not accept.
    #[error("the ACL in {name:?} is not valid: {reason}")]
    BadAcl {
        /// Name of the attribute.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The attributes of one inode are too many: their names alone do not fit into the inode and one block.
    #[error(
        "the names of the extended attributes of one inode need {needed} bytes: ext4 keeps them in the inode and one block of {available} bytes"
    )]
    XattrsTooLarge {
        /// Bytes that they need in a block.
        needed: usize,
        /// Bytes that a block has for them.
        available: usize,
    },
}

impl Error {
    /// [`Error::Abandoned`] unless the image is still wanted.
    pub(crate) fn unless(wanted: &dyn Fn() -> bool) -> Result<(), Error> {
        if wanted() { Ok(()) } else { Err(Error::Abandoned) }
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, source }
    }
}

/// Bytes from outside as text for a message: lossy, never raw control characters ({:?} escapes them).
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
