//! What became of an image.

use crate::checksums::Checksums;

/// Figures of a finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Length of the file in bytes.
    pub size: u64,
    /// Bytes in use in the file system: data and metadata, the sparse journal and the inode tables among them.
    pub used: u64,
    /// Bytes that are free in the file system.
    pub free: u64,
    /// Inodes in use, the ten reserved ones among them.
    pub inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
    /// What was written, block by block.
    pub checksums: Checksums,
}
