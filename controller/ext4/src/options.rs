//! What a caller decides about an image.

use crate::error::{Error, printable};
use crate::layout::{BLOCK64, BLOCKS_PER_GROUP, Layout, MAX_SIZE, MIN_SIZE};
use crate::time::Timestamp;

/// Identity and size of an image. Equal options and equal calls give equal bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// UUID of the file system. It may be changed later, also while mounted: checksums do not depend on it.
    pub uuid: [u8; 16],
    /// Seed of the directory hash; it should be as hard to guess as a UUID.
    pub hash_seed: [u8; 16],
    /// Size of the file system.
    pub size: Size,
    /// Bound of an automatic size in bytes; data that does not fit below it is refused while it streams in.
    pub max_size: u64,
    /// Volume label, at most 16 bytes.
    pub label: Vec<u8>,
    /// Time of creation: of the superblock, of `lost+found` and of the journal.
    pub created: Timestamp,
}

impl Options {
    /// Options without a label, created in 1970, bounded by [`MAX_SIZE`].
    pub fn new(uuid: [u8; 16], hash_seed: [u8; 16], size: Size) -> Options {
        Options {
            uuid,
            hash_seed,
            size,
            max_size: MAX_SIZE,
            label: Vec::new(),
            created: Timestamp::default(),
        }
    }

    /// The layout that data is placed by, or why there is none.
    pub(crate) fn layout(&self) -> Result<Layout, Error> {
        if self.label.len() > 16 || self.label.contains(&0) {
            return Err(Error::BadLabel {
                label: printable(&self.label),
            });
        }
        let size = match self.size {
            Size::Fixed(bytes) => bytes,
            // An automatic size is a number of whole groups.
            Size::Auto { .. } => {
                self.max_size / (u64::from(BLOCKS_PER_GROUP) * BLOCK64) * (u64::from(BLOCKS_PER_GROUP) * BLOCK64)
            }
        };
        Layout::for_size(size).ok_or(Error::SizeOutOfRange {
            size,
            minimum: MIN_SIZE,
            maximum: MAX_SIZE,
        })
    }
}

/// How large an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Exactly so many bytes. A remainder too small for a block group of its own stays unused behind the file system
    /// (growing the file system later takes it in).
    Fixed(u64),
    /// As small as the content and the free space allow, in steps of 128 MiB.
    Auto {
        /// Space that must remain.
        free: FreeSpace,
    },
}

/// Space that must remain in an image of automatic size: the larger of the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// Percent of what the content takes, in blocks and likewise in inodes.
    pub percent: u32,
    /// Bytes.
    pub bytes: u64,
}
