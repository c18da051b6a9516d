//! Superblock, group descriptors, the journal's own superblock and the map of the resize inode.

use crate::checksum::{crc, file_system_seed};
use crate::dirhash::HALF_MD4;
use crate::layout::{
    self, BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, FIRST_INODE, INODE_SIZE, INODES_PER_GROUP, JOURNAL_BLOCKS,
    LOG_GROUPS_PER_FLEX, Layout,
};
use crate::options::Options;

/// Bytes of a superblock.
pub(crate) const SUPERBLOCK_SIZE: usize = 1024;
/// Inode of the root directory.
pub(crate) const ROOT_INODE: u32 = 2;
/// Inode that owns the descriptor blocks reserved for growth.
pub(crate) const RESIZE_INODE: u32 = 7;
/// Inode of the journal.
pub(crate) const JOURNAL_INODE: u32 = 8;

/// has_journal, ext_attr, resize_inode, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extents, 64bit, flex_bg, metadata_csum_seed.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000;
/// ea_inode, of which only images with large extended attributes make use.
const VALUE_INODES: u32 = 0x400;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// Figures of the whole file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u32,
    /// Whether values of extended attributes have inodes of their own.
    pub(crate) value_inodes: bool,
}

/// The superblock as group `group` carries it.
pub(crate) fn superblock(
    options: &Options,
    layout: &Layout,
    totals: &Totals,
    journal_map: &[u8; 60],
    group: u32,
) -> [u8; SUPERBLOCK_SIZE] {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    let mut put = |offset: usize, value: &[u8]| {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    let created = options.created.encode().seconds.to_le_bytes();
    let created_high = [(options.created.sec.max(0) >> 32) as u8];
    put(0x00, &(layout.groups() * INODES_PER_GROUP).to_le_bytes());
    put(0x04, &layout.blocks().to_le_bytes());
    put(0x0c, &(totals.free_blocks as u32).to_le_bytes());
    put(0x10, &totals.free_inodes.to_le_bytes());
    // log2 of the block size beyond 1 KiB, of blocks and of clusters.
    put(0x18, &2u32.to_le_bytes());
    put(0x1c, &2u32.to_le_bytes());
    put(0x20, &BLOCKS_PER_GROUP.to_le_bytes());
    put(0x24, &BLOCKS_PER_GROUP.to_le_bytes());
    put(0x28, &INODES_PER_GROUP.to_le_bytes());
    put(0x30, &created);
    // No check after a number of mounts.
    put(0x36, &u16::MAX.to_le_bytes());
    put(0x38, &0xef53u16.to_le_bytes());
    // Cleanly unmounted; continue after errors, as mke2fs sets it.
    put(0x3a, &1u16.to_le_bytes());
    put(0x3c, &1u16.to_le_bytes());
    put(0x40, &created);
    // Revision 1: with the fields that follow.
    put(0x4c, &1u32.to_le_bytes());
    put(0x54, &FIRST_INODE.to_le_bytes());
    put(0x58, &(INODE_SIZE as u16).to_le_bytes());
    put(0x5a, &(group as u16).to_le_bytes());
    put(0x5c, &COMPATIBLE.to_le_bytes());
    let incompatible = INCOMPATIBLE | if totals.value_inodes { VALUE_INODES } else { 0 };
    put(0x60, &incompatible.to_le_bytes());
    put(0x64, &READ_ONLY_COMPATIBLE.to_le_bytes());
    put(0x68, &options.uuid);
    put(0x78, &options.label);
    let reserved = layout.reserved_descriptor_blocks() as u16;
    put(0xce, &reserved.to_le_bytes());
    put(0xe0, &JOURNAL_INODE.to_le_bytes());
    put(0xec, &options.hash_seed);
    put(0xfc, &[HALF_MD4]);
    // What follows backs the journal inode up: its map, then both halves of its size.
    put(0xfd, &[1]);
    put(0xfe, &(DESCRIPTOR_SIZE as u16).to_le_bytes());
    // user_xattr and acl are on by default.
    put(0x100, &0xcu32.to_le_bytes());
    put(0x108, &created);
    put(0x10c, journal_map);
    put(0x14c, &(JOURNAL_BLOCKS * BLOCK as u32).to_le_bytes());
    put(0x15c, &32u16.to_le_bytes());
    put(0x15e, &32u16.to_le_bytes());
    // Directory hashes take bytes as unsigned.
    put(0x160, &2u32.to_le_bytes());
    put(0x174, &[LOG_GROUPS_PER_FLEX]);
    // CRC32c.
    put(0x175, &[1]);
    put(0x270, &file_system_seed(&options.uuid).to_le_bytes());
    put(0x274, &created_high);
    put(0x276, &created_high);
    put(0x277, &created_high);
    let sum = crc(!0, &bytes[..SUPERBLOCK_SIZE - 4]);
    bytes[SUPERBLOCK_SIZE - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What a group descriptor says beside places.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GroupFigures {
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    /// Inodes at the end of the table that were never used.
    pub(crate) unused_inodes: u32,
    /// Checksum of the block bitmap; `None` when the bitmap follows from the layout and is not written.
    pub(crate) block_bitmap: Option<u32>,
    /// Checksum of the inode bitmap; `None` when no inode is in use and the bitmap is not written.
    pub(crate) inode_bitmap: Option<u32>,
}

const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;
/// True of every inode table here: what is not written is a hole of the file. So no thread zeroes it after a mount.
const TABLE_ZEROED: u16 = 4;

/// The descriptor of one group.
pub(crate) fn descriptor(group: u32, figures: &GroupFigures, file_system_seed: u32) -> [u8; DESCRIPTOR_SIZE] {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    let mut put = |offset: usize, value: &[u8]| {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    let low = |value: u32| (value as u16).to_le_bytes();
    let high = |value: u32| ((value >> 16) as u16).to_le_bytes();
    let mut flags = TABLE_ZEROED;
    if figures.block_bitmap.is_none() {
        flags |= BLOCKS_UNINITIALISED;
    }
    if figures.inode_bitmap.is_none() {
        flags |= INODES_UNINITIALISED;
    }
    let block_sum = figures.block_bitmap.unwrap_or(0);
    let inode_sum = figures.inode_bitmap.unwrap_or(0);
    put(0x00, &layout::block_bitmap(group).to_le_bytes());
    put(0x04, &layout::inode_bitmap(group).to_le_bytes());
    put(0x08, &layout::inode_table(group).to_le_bytes());
    put(0x0c, &low(figures.free_blocks));
    put(0x0e, &low(figures.free_inodes));
    put(0x10, &low(figures.directories));
    put(0x12, &flags.to_le_bytes());
    put(0x18, &low(block_sum));
    put(0x1a, &low(inode_sum));
    put(0x1c, &low(figures.unused_inodes));
    put(0x38, &high(block_sum));
    put(0x3a, &high(inode_sum));
    let sum = crc(crc(file_system_seed, &group.to_le_bytes()), &bytes);
    bytes[0x1e..0x20].copy_from_slice(&low(sum));
    bytes
}

/// The first block of an empty journal, in jbd2's big-endian words. The rest of the journal is a hole.
pub(crate) fn journal_superblock(uuid: &[u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    let words: [(usize, u32); 7] = [
        (0x00, 0xc03b_3998),
        // A version 2 superblock.
        (0x04, 4),
        (0x0c, BLOCK as u32),
        (0x10, JOURNAL_BLOCKS),
        // The log begins behind this block, its first transaction will be number 1, and there is none yet.
        (0x14, 1),
        (0x18, 1),
        // One file system uses it.
        (0x40, 1),
    ];
    for (offset, word) in words {
        bytes[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
    }
    bytes[0x30..0x40].copy_from_slice(uuid);
    bytes
}

/// What the resize inode maps: its double-indirect block points to the reserved descriptor blocks of group 0, and each
/// of these to its copies in the groups that carry a superblock.
pub(crate) struct ResizeMap {
    /// `i_block` of the inode.
    pub(crate) root: [u8; 60],
    /// Blocks to be written.
    pub(crate) blocks: Vec<(u32, Vec<u8>)>,
    /// Blocks that the inode owns.
    pub(crate) owned: u64,
}

/// Size that the resize inode claims: everything that a double-indirect map can reach.
pub(crate) const RESIZE_SIZE: u64 = (12 + 1024 + 1024 * 1024) * BLOCK as u64;

/// Builds the map of the resize inode.
pub(crate) fn resize_map(layout: &Layout) -> ResizeMap {
    const DOUBLE_INDIRECT: usize = 13;
    let backups: Vec<u32> = layout.backups().collect();
    let reserved = layout.reserved_descriptor_blocks();
    let first = 1 + layout.descriptor_blocks();
    let mut map = vec![0; BLOCK];
    let mut blocks = Vec::new();
    for block in first..first + reserved {
        let slot = (block as usize - 1) * 4;
        map[slot..slot + 4].copy_from_slice(&block.to_le_bytes());
        let mut copies = vec![0; BLOCK];
        for (slot, group) in copies.chunks_exact_mut(4).zip(&backups) {
            slot.copy_from_slice(&(group * BLOCKS_PER_GROUP + block).to_le_bytes());
        }
        blocks.push((block, copies));
    }
    blocks.push((layout::resize_map(), map));
    let mut root = [0; 60];
    root[DOUBLE_INDIRECT * 4..DOUBLE_INDIRECT * 4 + 4].copy_from_slice(&layout::resize_map().to_le_bytes());
    ResizeMap {
        root,
        blocks,
        owned: 1 + u64::from(reserved) * (1 + backups.len() as u64),
    }
}
