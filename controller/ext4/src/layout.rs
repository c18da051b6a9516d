//! Where everything lies: pure arithmetic on block numbers.
//!
//! The plan of an image is a function of its size alone, so that file data can be placed before anything about the
//! tree is known. Block numbers fit into 32 bits since the largest image has 2^28 blocks.

use std::ops::Range;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of a block, for offsets.
pub(crate) const BLOCK64: u64 = BLOCK as u64;
/// Blocks of a group: as many as one block of bitmap can describe.
pub(crate) const BLOCKS_PER_GROUP: u32 = 32768;
/// Inodes of a group, whatever the size: one for each 16 KiB, also after growth.
pub(crate) const INODES_PER_GROUP: u32 = 8192;
/// Bytes of an inode record.
pub(crate) const INODE_SIZE: usize = 256;
/// Blocks of one group's inode table.
pub(crate) const TABLE_BLOCKS: u32 = INODES_PER_GROUP * INODE_SIZE as u32 / BLOCK as u32;
/// log2 of the groups that keep their metadata together.
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 3;
/// Groups that keep their metadata together.
pub(crate) const GROUPS_PER_FLEX: u32 = 1 << LOG_GROUPS_PER_FLEX;
/// Bytes of a group descriptor.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
/// Descriptor blocks, those in use and those reserved for growth: enough for 1 TiB.
pub(crate) const DESCRIPTOR_BLOCKS: u32 = 128;
/// Blocks at the start of a group that carries a copy of the superblock and the descriptors.
const BACKUP_BLOCKS: u32 = 1 + DESCRIPTOR_BLOCKS;
/// Blocks of the journal: 64 MiB.
pub(crate) const JOURNAL_BLOCKS: u32 = 16384;
/// Fewest blocks that are worth a last, partial group (beyond its own metadata).
const LEAST_IN_LAST_GROUP: u32 = 64;
/// Inodes 1 to 10 are the file system's own; the next is the first free one.
pub(crate) const FIRST_INODE: u32 = 11;

/// Smallest image in bytes: one whole group, half of which is the journal.
pub const MIN_SIZE: u64 = BLOCKS_PER_GROUP as u64 * BLOCK64;
/// Largest image in bytes: what the descriptor blocks can describe.
pub const MAX_SIZE: u64 = 1 << 40;

/// The plan of an image of a certain number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    blocks: u32,
}

impl Layout {
    /// The plan for a file of `size` bytes. A last group too small to be useful is left out.
    pub(crate) fn for_size(size: u64) -> Option<Layout> {
        if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return None;
        }
        let blocks = u32::try_from(size / BLOCK64).ok()?;
        let (whole, rest) = (blocks / BLOCKS_PER_GROUP, blocks % BLOCKS_PER_GROUP);
        let mut overhead = LEAST_IN_LAST_GROUP;
        if has_backup(whole) {
            overhead += BACKUP_BLOCKS;
        }
        if whole.is_multiple_of(GROUPS_PER_FLEX) {
            // Such a group begins a flex group and so holds its metadata, with the gaps for seven groups to come.
            overhead += 2 * GROUPS_PER_FLEX + TABLE_BLOCKS;
        }
        if rest < overhead {
            return Some(Layout::for_groups(whole));
        }
        Some(Layout { blocks })
    }

    /// The plan for a number of whole groups.
    pub(crate) fn for_groups(groups: u32) -> Layout {
        Layout {
            blocks: groups * BLOCKS_PER_GROUP,
        }
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Number of groups, the last of which may be partial.
    pub(crate) fn groups(&self) -> u32 {
        self.blocks.div_ceil(BLOCKS_PER_GROUP)
    }

    /// Blocks of group `group`.
    pub(crate) fn group(&self, group: u32) -> Range<u32> {
        let start = group * BLOCKS_PER_GROUP;
        start..(start + BLOCKS_PER_GROUP).min(self.blocks)
    }

    /// Descriptor blocks in use.
    pub(crate) fn descriptor_blocks(&self) -> u32 {
        self.groups().div_ceil((BLOCK / DESCRIPTOR_SIZE) as u32)
    }

    /// Descriptor blocks reserved for growth.
    pub(crate) fn reserved_descriptor_blocks(&self) -> u32 {
        DESCRIPTOR_BLOCKS - self.descriptor_blocks()
    }

    /// Groups that carry a copy of the superblock, without group 0.
    pub(crate) fn backups(&self) -> impl Iterator<Item = u32> {
        (1..self.groups()).filter(|group| has_backup(*group))
    }

    /// Every block range of `group` that is taken before any content, in ascending order.
    pub(crate) fn reserved(&self, group: u32) -> Vec<Range<u32>> {
        let mut ranges = Vec::with_capacity(6);
        let start = group * BLOCKS_PER_GROUP;
        if has_backup(group) {
            ranges.push(start..start + BACKUP_BLOCKS);
        }
        if group.is_multiple_of(GROUPS_PER_FLEX) {
            let members = GROUPS_PER_FLEX.min(self.groups() - group);
            ranges.push(block_bitmap(group)..block_bitmap(group) + members);
            ranges.push(inode_bitmap(group)..inode_bitmap(group) + members);
            ranges.push(inode_table(group)..inode_table(group) + members * TABLE_BLOCKS);
        }
        if group == 0 {
            ranges.push(journal());
            ranges.push(resize_map()..resize_map() + 1);
        }
        ranges
    }

    /// Blocks that the last group reserves for itself, wherever they lie, and group 0 for the whole file system.
    pub(crate) fn overhead_of_last(&self) -> u64 {
        let last = self.groups() - 1;
        let mut blocks = 2 + TABLE_BLOCKS;
        if has_backup(last) {
            blocks += BACKUP_BLOCKS;
        }
        if last == 0 {
            blocks += JOURNAL_BLOCKS + 1;
        }
        blocks.into()
    }

    /// The ranges of `group` that are free before any content, in ascending order.
    pub(crate) fn gaps(&self, group: u32) -> Vec<Range<u32>> {
        let whole = self.group(group);
        let mut gaps = Vec::with_capacity(6);
        let mut next = whole.start;
        for taken in self.reserved(group) {
            if next < taken.start {
                gaps.push(next..taken.start);
            }
            next = taken.end;
        }
        if next < whole.end {
            gaps.push(next..whole.end);
        }
        gaps
    }
}

/// Whether a group carries the superblock: 0, 1 and the powers of 3, 5 and 7 (sparse_super).
pub(crate) fn has_backup(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

/// First block of the metadata that the groups around `group` keep together.
fn flex_start(group: u32) -> u32 {
    let first = group - group % GROUPS_PER_FLEX;
    first * BLOCKS_PER_GROUP + if has_backup(first) { BACKUP_BLOCKS } else { 0 }
}

/// Block of the block bitmap of `group`.
pub(crate) fn block_bitmap(group: u32) -> u32 {
    flex_start(group) + group % GROUPS_PER_FLEX
}

/// Block of the inode bitmap of `group`.
pub(crate) fn inode_bitmap(group: u32) -> u32 {
    flex_start(group) + GROUPS_PER_FLEX + group % GROUPS_PER_FLEX
}

/// First block of the inode table of `group`.
pub(crate) fn inode_table(group: u32) -> u32 {
    flex_start(group) + 2 * GROUPS_PER_FLEX + group % GROUPS_PER_FLEX * TABLE_BLOCKS
}

/// Blocks of the journal, right behind the metadata of the first flex group.
pub(crate) fn journal() -> Range<u32> {
    let start = flex_start(0) + 2 * GROUPS_PER_FLEX + GROUPS_PER_FLEX * TABLE_BLOCKS;
    start..start + JOURNAL_BLOCKS
}

/// The double-indirect block of the resize inode.
pub(crate) fn resize_map() -> u32 {
    journal().end
}
