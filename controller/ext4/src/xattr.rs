//! Extended attributes: in the space behind an inode, and what finds no room there in one block. Values for which the
//! block is too small get an inode each (the `ea_inode` feature), the largest first.

use crate::acl;
use crate::checksum::crc;
use crate::error::{Error, printable};
use crate::layout::{BLOCK, INODE_SIZE};

const MAGIC: u32 = 0xea02_0000;
/// Bytes of an inode that its fixed fields take.
pub(crate) const INODE_FIELDS: usize = 128 + 32;
/// Bytes behind them.
pub(crate) const IN_INODE: usize = INODE_SIZE - INODE_FIELDS;
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
/// Four zero bytes end the list of entries.
const END: usize = 4;
/// Room for entries and values in a block.
const IN_BLOCK: usize = BLOCK - BLOCK_HEADER - END;
const ENTRY: usize = 16;

/// Longest value: Linux gives and takes no longer one (XATTR_SIZE_MAX).
pub const MAX_VALUE: usize = 65_536;

const ACCESS: u8 = 2;
const DEFAULT: u8 = 3;

/// One attribute as it lies on the disk: prefixes are numbers, ACLs are in ext4's own form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    index: u8,
    // The length stands before the name because a block is sorted this way.
    length: u8,
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Xattr {
    /// Takes in an attribute as getxattr would give it; `None` when it says nothing (an empty ACL).
    pub(crate) fn new(name: &[u8], value: &[u8], directory: bool) -> Result<Option<Xattr>, Error> {
        let bad = |reason| Error::BadXattr {
            name: printable(name),
            reason,
        };
        let acl = |index| {
            if index == DEFAULT && !directory {
                return Err(bad("only a directory has a default ACL"));
            }
            let disk = acl::to_disk(value).map_err(|reason| Error::BadAcl {
                name: printable(name),
                reason,
            })?;
            Ok(disk.map(|disk| Xattr {
                index,
                length: 0,
                name: Box::default(),
                value: disk.into(),
            }))
        };
        match name {
            b"system.posix_acl_access" => return acl(ACCESS),
            b"system.posix_acl_default" => return acl(DEFAULT),
            _ => {}
        }
        let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
        let split = |(index, prefix)| name.strip_prefix(prefix).map(|rest| (index, rest));
        let Some((index, rest)) = prefixes.into_iter().find_map(split) else {
            return Err(bad("ext4 keeps user., trusted., security. and the two POSIX ACLs"));
        };
        if rest.is_empty() {
            return Err(bad("nothing follows its prefix"));
        }
        if rest.contains(&0) {
            return Err(bad("it has a NUL byte"));
        }
        let length = u8::try_from(rest.len()).map_err(|_| bad("it is longer than 255 bytes"))?;
        if value.len() > MAX_VALUE {
            return Err(bad("its value is longer than 65536 bytes, the most that Linux has"));
        }
        Ok(Some(Xattr {
            index,
            length,
            name: rest.into(),
            value: value.into(),
        }))
    }

    fn entry_size(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry_size() + self.value.len().next_multiple_of(4)
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.value
    }

    /// The hash over name and value that readers of a block compare.
    fn hash(&self) -> u32 {
        self.hash_with(&self.value)
    }

    /// The hash over the name and these bytes.
    fn hash_with(&self, value: &[u8]) -> u32 {
        let by_name = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        value.chunks(4).fold(by_name, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Checks and takes in all attributes of one inode, so that they surely fit.
#[allow(
    clippy::box_collection,
    reason = "one word instead of three, in a record that exists a million times"
)]
pub(crate) fn take_in(xattrs: &[(Vec<u8>, Vec<u8>)], directory: bool) -> Result<Option<Box<Vec<Xattr>>>, Error> {
    let mut taken = Vec::with_capacity(xattrs.len());
    for (name, value) in xattrs {
        taken.extend(Xattr::new(name, value, directory)?);
    }
    if taken.is_empty() {
        return Ok(None);
    }
    taken.sort_unstable();
    let same = |pair: &&[Xattr]| pair[0].index == pair[1].index && pair[0].name == pair[1].name;
    if let Some(pair) = taken.windows(2).find(same) {
        return Err(Error::BadXattr {
            name: printable(&pair[0].name),
            reason: "it is given twice",
        });
    }
    // Even without any value the entries may be too many.
    Plan::of(&taken).map_err(|needed| Error::XattrsTooLarge {
        needed,
        available: IN_BLOCK,
    })?;
    Ok(Some(Box::new(taken)))
}

/// The bytes that these extended attributes of one inode take on the disk beside it: whole blocks, that of the names and
/// those of each value that has an inode of its own, and these inodes. Fails if an inode cannot have them together.
///
/// # Errors
/// Those of [`crate::Tree::add`] that concern extended attributes.
pub fn check(xattrs: &[(Vec<u8>, Vec<u8>)], directory: bool) -> Result<u64, Error> {
    let Some(taken) = take_in(xattrs, directory)? else {
        return Ok(0);
    };
    let own = |xattr: &&Xattr| INODE_SIZE + xattr.value.len().next_multiple_of(BLOCK);
    let plan = Plan::of(&taken);
    let block = plan.is_ok_and(|plan| plan.places.contains(&Place::Block));
    let values: usize = apart(&taken).iter().map(own).sum();
    Ok((values + if block { BLOCK } else { 0 }) as u64)
}

/// Where each of the sorted attributes of an inode goes.
struct Plan {
    places: Vec<Place>,
    /// Those whose value has an inode of its own.
    apart: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Inode,
    Block,
}

impl Plan {
    /// Attributes go into the inode as long as they fit, then into the block; while that is too small, the largest value
    /// gets an inode of its own. Fails with the bytes that the block would need in the end.
    fn of(xattrs: &[Xattr]) -> Result<Plan, usize> {
        let mut apart = vec![false; xattrs.len()];
        loop {
            let mut left = IN_INODE - INODE_HEADER - END;
            let mut needed = 0;
            let mut place = |(xattr, apart): (&Xattr, &bool)| {
                if *apart {
                    // Never in the inode: e2fsck takes a short symlink that owns blocks and has no attribute block for
                    // one whose target lies in these blocks.
                    needed += xattr.entry_size();
                    return Place::Block;
                }
                if xattr.size() <= left {
                    left -= xattr.size();
                    return Place::Inode;
                }
                needed += xattr.size();
                Place::Block
            };
            let places = xattrs.iter().zip(&apart).map(&mut place).collect();
            if needed <= IN_BLOCK {
                return Ok(Plan { places, apart });
            }
            let values = xattrs.iter().map(|xattr| xattr.value.len()).enumerate();
            // The first of the largest: `max_by_key` alone would take the last.
            let largest = values.rev().filter(|(at, length)| !apart[*at] && *length > 0);
            match largest.max_by_key(|(_, length)| *length) {
                Some((at, _)) => apart[at] = true,
                None => return Err(needed),
            }
        }
    }
}

/// Attributes whose values need an inode each, in their order.
pub(crate) fn apart(xattrs: &[Xattr]) -> Vec<&Xattr> {
    let apart = Plan::of(xattrs).map(|plan| plan.apart).unwrap_or_default();
    let pairs = xattrs.iter().zip(apart);
    pairs.filter(|(_, apart)| *apart).map(|(xattr, _)| xattr).collect()
}

/// An attribute as it is laid out: its value, or the inode that has it.
struct Placed<'a> {
    xattr: &'a Xattr,
    value: &'a [u8],
    /// 0 without one.
    inode: u32,
    hash: u32,
}

/// The bytes behind an inode, and the block if there is one (its checksum is still to be set). Values that have an inode
/// of their own are in those from `first_value` on, in the order of [`apart`].
pub(crate) fn encode(xattrs: &[Xattr], first_value: u32, file_system_seed: u32) -> ([u8; IN_INODE], Option<Vec<u8>>) {
    let mut space = [0; IN_INODE];
    // That there is a plan was seen when the attributes were taken in.
    let Ok(plan) = Plan::of(xattrs) else {
        return (space, None);
    };
    let mut next = first_value;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for ((xattr, apart), place) in xattrs.iter().zip(&plan.apart).zip(&plan.places) {
        let placed = if *apart {
            let inode = next;
            next += 1;
            let sum = value_sum(&xattr.value, file_system_seed).to_le_bytes();
            Placed {
                xattr,
                value: &[],
                inode,
                hash: xattr.hash_with(&sum),
            }
        } else {
            Placed {
                xattr,
                value: &xattr.value,
                inode: 0,
                hash: xattr.hash(),
            }
        };
        match place {
            Place::Inode => inside.push(placed),
            Place::Block => outside.push(placed),
        }
    }
    if !inside.is_empty() {
        space[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // In the inode, offsets of values count from the first entry.
        lay_out(&mut space[INODE_HEADER..], 0, &inside);
    }
    if outside.is_empty() {
        return (space, None);
    }
    let mut block = vec![0; BLOCK];
    lay_out(&mut block, BLOCK_HEADER, &outside);
    let together = outside
        .iter()
        .fold(0u32, |hash, placed| hash.rotate_left(16) ^ placed.hash);
    for (offset, word) in [(0, MAGIC), (4, 1), (8, 1), (12, together)] {
        block[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    (space, Some(block))
}

/// Writes entries from `first` on and their values from the end backwards.
fn lay_out(space: &mut [u8], first: usize, xattrs: &[Placed]) {
    let mut entry = first;
    let mut end = space.len();
    for placed in xattrs {
        let Placed { xattr, value, .. } = placed;
        let mut offset = 0;
        if !value.is_empty() {
            end -= value.len().next_multiple_of(4);
            space[end..end + value.len()].copy_from_slice(value);
            offset = end;
        }
        space[entry] = xattr.length;
        space[entry + 1] = xattr.index;
        space[entry + 2..entry + 4].copy_from_slice(&(offset as u16).to_le_bytes());
        space[entry + 4..entry + 8].copy_from_slice(&placed.inode.to_le_bytes());
        space[entry + 8..entry + 12].copy_from_slice(&(xattr.value.len() as u32).to_le_bytes());
        space[entry + 12..entry + 16].copy_from_slice(&placed.hash.to_le_bytes());
        space[entry + ENTRY..entry + ENTRY + xattr.name.len()].copy_from_slice(&xattr.name);
        entry += xattr.entry_size();
    }
}

/// Checksum of a value that has an inode of its own.
pub(crate) fn value_sum(value: &[u8], file_system_seed: u32) -> u32 {
    crc(file_system_seed, value)
}

/// Sets the checksum of an attribute block that will lie at `place`.
pub(crate) fn seal(block: &mut [u8], place: u32, file_system_seed: u32) {
    let seed = crc(file_system_seed, &u64::from(place).to_le_bytes());
    let sum = crc(seed, block);
    block[16..20].copy_from_slice(&sum.to_le_bytes());
}
