//! The blocks of a directory: one plain block, or a hash index over sorted leaves.

use crate::checksum::{crc, inode_seed};
use crate::dirhash::{HALF_MD4, Hash, half_md4};
use crate::layout::BLOCK;

/// Bytes of the entry that holds a block's checksum.
const TAIL: usize = 12;
/// Bytes of a leaf that entries may use.
const ROOM: usize = BLOCK - TAIL;
/// Offset of the index entries (with their count) in the first block and in the others.
const ROOT_INDEX: usize = 32;
const NODE_INDEX: usize = 8;
/// Index entries that fit, with a checksum of 8 bytes behind them.
const IN_ROOT: usize = (BLOCK - ROOT_INDEX - 8) / 8;
const IN_NODE: usize = (BLOCK - NODE_INDEX - 8) / 8;

/// File type in an entry.
pub(crate) const DIRECTORY: u8 = 2;

/// One name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    pub(crate) kind: u8,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        (8 + self.name.len()).next_multiple_of(4)
    }
}

/// What the blocks of a directory depend on beside its entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    /// Inode of the directory.
    pub(crate) own: u32,
    /// Inode of the directory above.
    pub(crate) parent: u32,
    pub(crate) file_system_seed: u32,
    pub(crate) hash_seed: [u32; 4],
}

/// A directory's content.
pub(crate) struct Built {
    pub(crate) bytes: Vec<u8>,
    /// Whether its first block is an index.
    pub(crate) indexed: bool,
}

/// Builds a directory in time linear in its entries but for one sort; `None` when an index of two levels is too small.
pub(crate) fn build(context: &Context, entries: &[Entry]) -> Option<Built> {
    let dots = [
        Entry {
            name: b".",
            inode: context.own,
            kind: DIRECTORY,
        },
        Entry {
            name: b"..",
            inode: context.parent,
            kind: DIRECTORY,
        },
    ];
    let seed = inode_seed(context.file_system_seed, context.own);
    let needed: usize = dots.iter().chain(entries).map(Entry::size).sum();
    if needed <= ROOM {
        let mut bytes = Vec::with_capacity(BLOCK);
        push_leaf(&mut bytes, dots.iter().chain(entries), seed);
        return Some(Built { bytes, indexed: false });
    }
    let mut hashed: Vec<(Hash, &Entry)> = entries
        .iter()
        .map(|entry| (half_md4(entry.name, &context.hash_seed), entry))
        .collect();
    hashed.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(b.1.name)));
    let leaves = pack(&hashed);
    let nodes = match leaves.len() {
        count if count <= IN_ROOT => 0,
        count => count.div_ceil(IN_NODE),
    };
    if nodes > IN_ROOT {
        return None;
    }
    let first_leaf = 1 + nodes as u32;
    let index: Vec<(u32, u32)> = leaves
        .iter()
        .zip(first_leaf..)
        .map(|(leaf, block)| (leaf.first_hash, block))
        .collect();
    let mut bytes = Vec::with_capacity((first_leaf as usize + leaves.len()) * BLOCK);
    if nodes == 0 {
        push_root(&mut bytes, &dots, 0, &index, seed);
    } else {
        let parts = index.chunks(IN_NODE);
        let above: Vec<(u32, u32)> = parts.clone().zip(1..).map(|(part, block)| (part[0].0, block)).collect();
        push_root(&mut bytes, &dots, 1, &above, seed);
        for part in parts {
            push_node(&mut bytes, part, seed);
        }
    }
    for leaf in &leaves {
        let entries = hashed[leaf.range.clone()].iter().map(|(_, entry)| *entry);
        push_leaf(&mut bytes, entries, seed);
    }
    Some(Built { bytes, indexed: true })
}

/// A block without names, as `lost+found` has them in reserve.
pub(crate) fn push_empty(bytes: &mut Vec<u8>, context: &Context) {
    let seed = inode_seed(context.file_system_seed, context.own);
    push_leaf(bytes, std::iter::empty(), seed);
}

/// Which of the sorted entries one leaf holds.
struct Leaf {
    range: std::ops::Range<usize>,
    /// Hash in the index; its lowest bit says that the leaf before ends with the same hash.
    first_hash: u32,
}

fn pack(hashed: &[(Hash, &Entry)]) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut room = 0;
    for (at, (hash, entry)) in hashed.iter().enumerate() {
        match leaves.last_mut() {
            Some(leaf) if entry.size() <= room => leaf.range.end = at + 1,
            _ => {
                let continued = at > 0 && hashed[at - 1].0.major == hash.major;
                leaves.push(Leaf {
                    range: at..at + 1,
                    first_hash: hash.major | u32::from(continued),
                });
                room = ROOM;
            }
        }
        room -= entry.size();
    }
    leaves
}

fn push_entry(bytes: &mut Vec<u8>, entry: &Entry, length: usize) {
    let end = bytes.len() + length;
    bytes.extend_from_slice(&entry.inode.to_le_bytes());
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(&[entry.name.len() as u8, entry.kind]);
    bytes.extend_from_slice(entry.name);
    bytes.resize(end, 0);
}

fn push_leaf<'a>(bytes: &mut Vec<u8>, entries: impl Iterator<Item = &'a Entry<'a>>, seed: u32) {
    let start = bytes.len();
    let mut last = None;
    for entry in entries {
        last = Some(bytes.len());
        push_entry(bytes, entry, entry.size());
    }
    // The last record reaches to the checksum; in an empty block it is an unused one.
    let last = last.unwrap_or(start);
    bytes.resize(start + ROOM, 0);
    let length = (start + ROOM - last) as u16;
    bytes[last + 4..last + 6].copy_from_slice(&length.to_le_bytes());
    let sum = crc(seed, &bytes[start..]);
    bytes.extend_from_slice(&[0, 0, 0, 0, TAIL as u8, 0, 0, 0xde]);
    bytes.extend_from_slice(&sum.to_le_bytes());
}

/// The first block of an index: the two dots, the second of which hides everything else, then the index.
fn push_root(bytes: &mut Vec<u8>, dots: &[Entry; 2], levels: u8, index: &[(u32, u32)], seed: u32) {
    let start = bytes.len();
    push_entry(bytes, &dots[0], 12);
    push_entry(bytes, &dots[1], 12);
    let hidden = (BLOCK - 12) as u16;
    bytes[start + 16..start + 18].copy_from_slice(&hidden.to_le_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, HALF_MD4, 8, levels, 0]);
    push_index(bytes, start, index, IN_ROOT, seed);
}

/// Another block of an index: one unused entry that hides everything.
fn push_node(bytes: &mut Vec<u8>, index: &[(u32, u32)], seed: u32) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(BLOCK as u16).to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    push_index(bytes, start, index, IN_NODE, seed);
}

/// The index itself: its capacity and count lie where the first entry would have its hash.
fn push_index(bytes: &mut Vec<u8>, start: usize, index: &[(u32, u32)], limit: usize, seed: u32) {
    bytes.extend_from_slice(&(limit as u16).to_le_bytes());
    bytes.extend_from_slice(&(index.len() as u16).to_le_bytes());
    for (at, (hash, block)) in index.iter().enumerate() {
        if at > 0 {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        bytes.extend_from_slice(&block.to_le_bytes());
    }
    // The checksum covers the entries in use and the tail, with zeroes in its own place.
    let used = crc(seed, &bytes[start..]);
    let sum = crc(used, &[0; 8]);
    bytes.resize(start + BLOCK - 4, 0);
    bytes.extend_from_slice(&sum.to_le_bytes());
}
