//! The record of an inode.

use crate::checksum::{crc, inode_seed};
use crate::layout::INODE_SIZE;
use crate::tree::{Node, NodeKind, Times};
use crate::xattr::{IN_INODE, INODE_FIELDS};

/// The inode maps its blocks by extents.
pub(crate) const EXTENTS_FLAG: u32 = 0x8_0000;
/// The directory begins with an index.
pub(crate) const INDEX_FLAG: u32 = 0x1000;

/// The inode holds the value of an extended attribute.
pub(crate) const VALUE_FLAG: u32 = 0x20_0000;

/// File type bits of a regular file.
pub(crate) const REGULAR: u16 = 0x8000;

/// Bytes of the extra fields that every inode has.
const EXTRA_SIZE: u16 = 32;

/// The fields of an inode that this writer uses; all others are zero.
#[derive(Debug)]
pub(crate) struct Record {
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) times: Times,
    pub(crate) links: u16,
    pub(crate) size: u64,
    /// 4 KiB blocks that it owns, those of its extent tree and attributes among them.
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    /// Version of the inode; for the value of an extended attribute, the inodes that share it.
    pub(crate) version: u32,
    /// Extent tree, symlink target or device number.
    pub(crate) block: [u8; 60],
    /// Block of extended attributes, or 0.
    pub(crate) xattr_block: u32,
    pub(crate) xattrs: [u8; IN_INODE],
}

impl Record {
    /// A record without content: that of a node, with its type, owner and times.
    pub(crate) fn of(node: &Node) -> Record {
        Record {
            mode: type_bits(&node.kind) | node.mode,
            uid: node.uid,
            gid: node.gid,
            times: node.times(),
            // The tree lets no more than 65 000 links in.
            links: node.links as u16,
            size: 0,
            blocks: 0,
            flags: 0,
            version: 0,
            block: [0; 60],
            xattr_block: 0,
            xattrs: [0; IN_INODE],
        }
    }

    /// The bytes of inode `number`, with their checksum.
    pub(crate) fn encode(&self, number: u32, file_system_seed: u32) -> [u8; INODE_SIZE] {
        let mut bytes = [0; INODE_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        let low = |value: u32| (value as u16).to_le_bytes();
        let high = |value: u32| ((value >> 16) as u16).to_le_bytes();
        // Without the huge_file flag of an inode, its blocks are counted in 512 bytes.
        let sectors = self.blocks * 8;
        put(0x00, &self.mode.to_le_bytes());
        put(0x02, &low(self.uid));
        put(0x04, &(self.size as u32).to_le_bytes());
        put(0x08, &self.times.atime.seconds.to_le_bytes());
        put(0x0c, &self.times.ctime.seconds.to_le_bytes());
        put(0x10, &self.times.mtime.seconds.to_le_bytes());
        put(0x18, &low(self.gid));
        put(0x1a, &self.links.to_le_bytes());
        put(0x1c, &(sectors as u32).to_le_bytes());
        put(0x20, &self.flags.to_le_bytes());
        put(0x24, &self.version.to_le_bytes());
        put(0x28, &self.block);
        put(0x68, &self.xattr_block.to_le_bytes());
        put(0x6c, &((self.size >> 32) as u32).to_le_bytes());
        put(0x74, &((sectors >> 32) as u16).to_le_bytes());
        put(0x78, &high(self.uid));
        put(0x7a, &high(self.gid));
        put(0x80, &EXTRA_SIZE.to_le_bytes());
        put(0x84, &self.times.ctime.extra.to_le_bytes());
        put(0x88, &self.times.mtime.extra.to_le_bytes());
        put(0x8c, &self.times.atime.extra.to_le_bytes());
        put(0x90, &self.times.crtime.seconds.to_le_bytes());
        put(0x94, &self.times.crtime.extra.to_le_bytes());
        put(INODE_FIELDS, &self.xattrs);
        let sum = crc(inode_seed(file_system_seed, number), &bytes);
        bytes[0x7c..0x7e].copy_from_slice(&low(sum));
        bytes[0x82..0x84].copy_from_slice(&high(sum));
        bytes
    }
}

/// The type bits of `i_mode`.
fn type_bits(kind: &NodeKind) -> u16 {
    match kind {
        NodeKind::Fifo => 0x1000,
        NodeKind::CharDevice { .. } => 0x2000,
        NodeKind::Directory(_) => 0x4000,
        NodeKind::BlockDevice { .. } => 0x6000,
        NodeKind::File(_) => REGULAR,
        NodeKind::Symlink(_) => 0xa000,
        NodeKind::Socket => 0xc000,
    }
}

/// The file type in a directory entry.
pub(crate) fn entry_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::File(_) => 1,
        NodeKind::Directory(_) => crate::directory::DIRECTORY,
        NodeKind::CharDevice { .. } => 3,
        NodeKind::BlockDevice { .. } => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
        NodeKind::Symlink(_) => 7,
    }
}

/// `i_block` of a device: the old 16-bit form where the number fits it, the new one in the second word otherwise.
pub(crate) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        block[0..4].copy_from_slice(&(major << 8 | minor).to_le_bytes());
    } else {
        let number = (minor & 0xff) | major << 8 | (minor & !0xff) << 12;
        block[4..8].copy_from_slice(&number.to_le_bytes());
    }
    block
}
