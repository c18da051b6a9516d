//! Extents: which blocks of a file lie where, and the tree in which an inode keeps them.

use crate::checksum::crc;
use crate::layout::BLOCK;

/// A run of blocks of a file that lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block within the file.
    pub(crate) logical: u32,
    /// First block on the disk.
    pub(crate) physical: u32,
    /// Number of blocks, at most [`MAX_LENGTH`].
    pub(crate) length: u32,
}

/// Longest run that one extent can describe.
const MAX_LENGTH: u32 = 32768;
/// Entries that fit into an inode.
const IN_INODE: usize = 4;
/// Entries that fit into a block, with the checksum behind them.
const IN_BLOCK: usize = (BLOCK - HEADER - 4) / ENTRY;
const HEADER: usize = 12;
const ENTRY: usize = 12;
const MAGIC: u16 = 0xf30a;

/// The extents of one file in ascending order. Nearly every file has at most one, which costs no allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Extents {
    #[default]
    None,
    One(Extent),
    #[allow(
        clippy::box_collection,
        reason = "one word instead of three, in a record that exists a million times"
    )]
    Many(Box<Vec<Extent>>),
}

impl Extents {
    /// Appends a run, joined with the one before where they touch.
    pub(crate) fn push(&mut self, mut extent: Extent) {
        if let Some(last) = self.last_mut()
            && last.logical + last.length == extent.logical
            && last.physical + last.length == extent.physical
        {
            let joined = extent.length.min(MAX_LENGTH - last.length);
            last.length += joined;
            extent.logical += joined;
            extent.physical += joined;
            extent.length -= joined;
        }
        while extent.length > 0 {
            let piece = Extent {
                length: extent.length.min(MAX_LENGTH),
                ..extent
            };
            self.append(piece);
            extent.logical += piece.length;
            extent.physical += piece.length;
            extent.length -= piece.length;
        }
    }

    fn append(&mut self, extent: Extent) {
        *self = match std::mem::take(self) {
            Extents::None => Extents::One(extent),
            Extents::One(first) => Extents::Many(Box::new(vec![first, extent])),
            Extents::Many(mut all) => {
                all.push(extent);
                Extents::Many(all)
            }
        };
    }

    fn last_mut(&mut self) -> Option<&mut Extent> {
        match self {
            Extents::None => None,
            Extents::One(extent) => Some(extent),
            Extents::Many(all) => all.last_mut(),
        }
    }

    /// All of them, in ascending order.
    pub(crate) fn as_slice(&self) -> &[Extent] {
        match self {
            Extents::None => &[],
            Extents::One(extent) => std::slice::from_ref(extent),
            Extents::Many(all) => all,
        }
    }

    /// Number of blocks described.
    pub(crate) fn blocks(&self) -> u64 {
        self.as_slice().iter().map(|e| u64::from(e.length)).sum()
    }
}

/// An extent tree ready to be written: what goes into the inode, and the blocks below it.
pub(crate) struct Tree {
    /// `i_block` of the inode.
    pub(crate) root: [u8; 60],
    /// The nodes below, each with its place.
    pub(crate) blocks: Vec<(u32, Vec<u8>)>,
}

/// Builds the tree over `extents`, asking `allocate` for the place of each node below the inode.
pub(crate) fn tree<E>(
    extents: &[Extent],
    inode_seed: u32,
    mut allocate: impl FnMut() -> Result<u32, E>,
) -> Result<Tree, E> {
    let mut entries: Vec<[u8; ENTRY]> = extents.iter().map(leaf_entry).collect();
    let mut first_logical: Vec<u32> = extents.iter().map(|e| e.logical).collect();
    let mut blocks = Vec::new();
    let mut depth = 0;
    while entries.len() > IN_INODE {
        let mut above = Vec::new();
        let mut first_above = Vec::new();
        for (node, first) in entries.chunks(IN_BLOCK).zip(first_logical.chunks(IN_BLOCK)) {
            let place = allocate()?;
            let mut block = vec![0; BLOCK];
            fill(&mut block, node, IN_BLOCK, depth);
            let tail = HEADER + IN_BLOCK * ENTRY;
            let sum = crc(inode_seed, &block[..tail]);
            block[tail..tail + 4].copy_from_slice(&sum.to_le_bytes());
            blocks.push((place, block));
            above.push(index_entry(first[0], place));
            first_above.push(first[0]);
        }
        (entries, first_logical) = (above, first_above);
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &entries, IN_INODE, depth);
    Ok(Tree { root, blocks })
}

fn fill(node: &mut [u8], entries: &[[u8; ENTRY]], capacity: usize, depth: u16) {
    node[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    node[2..4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    node[4..6].copy_from_slice(&(capacity as u16).to_le_bytes());
    node[6..8].copy_from_slice(&depth.to_le_bytes());
    for (place, entry) in node[HEADER..].chunks_exact_mut(ENTRY).zip(entries) {
        place.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[0..4].copy_from_slice(&extent.logical.to_le_bytes());
    // 32768 means a whole initialised extent; only larger values mean an unwritten one.
    entry[4..6].copy_from_slice(&(extent.length as u16).to_le_bytes());
    entry[8..12].copy_from_slice(&extent.physical.to_le_bytes());
    entry
}

fn index_entry(logical: u32, place: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[0..4].copy_from_slice(&logical.to_le_bytes());
    entry[4..8].copy_from_slice(&place.to_le_bytes());
    entry
}
