//! Extended attributes: in the space behind an inode, and what finds no room there in one block.

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

    /// The hash over name and value that readers of a block compare.
    fn hash(&self) -> u32 {
        let by_name = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(by_name, |hash, chunk| {
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
    let (_, outside) = split(&taken);
    let needed = outside.iter().map(|xattr| xattr.size()).sum();
    if needed > IN_BLOCK {
        return Err(Error::XattrsTooLarge {
            needed,
            available: IN_BLOCK,
        });
    }
    Ok(Some(Box::new(taken)))
}

/// Which attributes go into the inode, and which into the block. Both parts stay sorted.
fn split(xattrs: &[Xattr]) -> (Vec<&Xattr>, Vec<&Xattr>) {
    let mut left = IN_INODE - INODE_HEADER - END;
    xattrs.iter().partition(|xattr| {
        let fits = xattr.size() <= left;
        if fits {
            left -= xattr.size();
        }
        fits
    })
}

/// The bytes behind an inode, and the block if there is one (its checksum is still to be set).
pub(crate) fn encode(xattrs: &[Xattr]) -> ([u8; IN_INODE], Option<Vec<u8>>) {
    let mut space = [0; IN_INODE];
    let (inside, outside) = split(xattrs);
    if !inside.is_empty() {
        space[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // In the inode, offsets of values count from the first entry.
        place(&mut space[INODE_HEADER..], 0, &inside);
    }
    if outside.is_empty() {
        return (space, None);
    }
    let mut block = vec![0; BLOCK];
    place(&mut block, BLOCK_HEADER, &outside);
    let together = outside
        .iter()
        .fold(0u32, |hash, xattr| hash.rotate_left(16) ^ xattr.hash());
    for (offset, word) in [(0, MAGIC), (4, 1), (8, 1), (12, together)] {
        block[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    (space, Some(block))
}

/// Writes entries from `first` on and their values from the end backwards.
fn place(space: &mut [u8], first: usize, xattrs: &[&Xattr]) {
    let mut entry = first;
    let mut end = space.len();
    for xattr in xattrs {
        let value = &xattr.value;
        let mut offset = 0;
        if !value.is_empty() {
            end -= value.len().next_multiple_of(4);
            space[end..end + value.len()].copy_from_slice(value);
            offset = end;
        }
        space[entry] = xattr.length;
        space[entry + 1] = xattr.index;
        space[entry + 2..entry + 4].copy_from_slice(&(offset as u16).to_le_bytes());
        space[entry + 8..entry + 12].copy_from_slice(&(value.len() as u32).to_le_bytes());
        space[entry + 12..entry + 16].copy_from_slice(&xattr.hash().to_le_bytes());
        space[entry + ENTRY..entry + ENTRY + xattr.name.len()].copy_from_slice(&xattr.name);
        entry += xattr.entry_size();
    }
}

/// Sets the checksum of an attribute block that will lie at `place`.
pub(crate) fn seal(block: &mut [u8], place: u32, file_system_seed: u32) {
    let seed = crc(file_system_seed, &u64::from(place).to_le_bytes());
    let sum = crc(seed, block);
    block[16..20].copy_from_slice(&sum.to_le_bytes());
}
