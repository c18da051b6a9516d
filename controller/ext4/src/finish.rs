//! The second half: names get inodes, inodes get records, and the file system gets its figures.
//!
//! One pass over the inodes in ascending order, each record written when everything it points to has its place. Then
//! the size, if it was left open, and the descriptors, bitmaps and superblocks that depend on it.

use crate::checksum::{crc, file_system_seed, inode_seed};
use crate::directory::{self, Context, Entry};
use crate::error::Error;
use crate::extent::{self, Extent, Extents};
use crate::groups;
use crate::inode::{EXTENTS_FLAG, INDEX_FLAG, REGULAR, Record, VALUE_FLAG, device, entry_type};
use crate::layout::{self, BLOCK, BLOCK64, FIRST_INODE, INODE_SIZE, INODES_PER_GROUP};
use crate::numbering::{Numbering, number};
use crate::summary::Summary;
use crate::superblock::{JOURNAL_INODE, RESIZE_INODE, RESIZE_SIZE, ROOT_INODE, journal_superblock, resize_map};
use crate::time::Encoded;
use crate::tree::{MAX_LINKS, Node, NodeKind, Times, Tree};
use crate::writer::Writer;
use crate::xattr;

/// Blocks of `lost+found`: its entries are made when nothing else can be allocated any more.
const LOST_AND_FOUND_BLOCKS: usize = 4;

/// Blocks of data from which on it pays to sync them before the metadata: 16 MiB.
const SYNCED_AHEAD: u64 = 4096;

/// How many inodes are written before it is asked again whether the image is still wanted: some milliseconds' work.
const INODES_PER_LOOK: u32 = 1024;

/// Writes everything that is not file data, while it is wanted.
pub(crate) fn finish(mut writer: Writer, mut tree: Tree, wanted: &dyn Fn() -> bool) -> Result<Summary, Error> {
    let created = Times::all(writer.options.created.encode());
    let numbering = number(&mut tree, writer.options.created, wanted)?;
    let first_value = u64::from(FIRST_INODE) + numbering.order.len() as u64;
    let inodes = first_value - 1 + values(&tree, &numbering);
    groups::check_inodes(&writer, inodes)?;
    let inodes = inodes as u32;
    for (node, inode) in tree.nodes.iter_mut().zip(&numbering.inode_of) {
        if *inode == 0
            && let NodeKind::File(data) = &mut node.kind
        {
            writer.discard(std::mem::take(data))?;
        }
    }
    // Contents that were dropped without a word.
    let used = tree.nodes.iter().flat_map(|node| match &node.kind {
        NodeKind::File(data) => data.extents.as_slice(),
        _ => &[],
    });
    let used = used.map(|extent| extent.physical..extent.physical + extent.length);
    writer.allocator.reclaim(used);
    writer.allocator.sort_returned();
    settle(&mut writer)?;
    let file_system_seed = file_system_seed(&writer.options.uuid);
    let mut pass = Pass {
        hash_seed: hash_seed(&writer.options.hash_seed),
        writer: &mut writer,
        tree: &tree,
        numbering: &numbering,
        file_system_seed,
        directories: Vec::new(),
        first_value: first_value as u32,
        values: Vec::new(),
    };
    let root = pass.record(0)?;
    let mut table = Table::new(file_system_seed);
    // The size decides what the resize inode maps, so the ten inodes before all others are written last.
    for (inode, node) in (FIRST_INODE..).zip(&numbering.order) {
        if inode.is_multiple_of(INODES_PER_LOOK) {
            Error::unless(wanted)?;
        }
        let record = pass.record(*node)?;
        table.push(inode, &record, pass.writer)?;
    }
    let values = std::mem::take(&mut pass.values);
    for (inode, value) in (pass.first_value..).zip(&values) {
        if inode.is_multiple_of(INODES_PER_LOOK) {
            Error::unless(wanted)?;
        }
        let record = pass.value_record(inode, value)?;
        table.push(inode, &record, pass.writer)?;
    }
    let (directories, values) = (pass.directories, !values.is_empty());
    let layout = groups::choose_layout(&mut writer, inodes)?;

    let map = resize_map(&layout);
    let resize = Record {
        size: RESIZE_SIZE,
        blocks: map.owned,
        block: map.root,
        ..internal(created)
    };
    let mut extents = Extents::None;
    extents.push(Extent {
        logical: 0,
        physical: layout::journal().start,
        length: layout::JOURNAL_BLOCKS,
    });
    // One extent: nothing lies below the inode.
    let journal_tree = extent::tree(extents.as_slice(), 0, || Err(writer.full()))?;
    let journal = Record {
        size: u64::from(layout::JOURNAL_BLOCKS) * BLOCK64,
        blocks: layout::JOURNAL_BLOCKS.into(),
        flags: EXTENTS_FLAG,
        block: journal_tree.root,
        ..internal(created)
    };
    let reserved = [(ROOT_INODE, root), (RESIZE_INODE, resize), (JOURNAL_INODE, journal)];
    table.finish(&reserved, &mut writer)?;
    for (place, block) in &map.blocks {
        writer.output.write(*place, block)?;
    }
    let journal_block = journal_superblock(&writer.options.uuid);
    writer.output.write(layout::journal().start, &journal_block)?;

    let inodes = groups::Inodes {
        count: inodes,
        directories: &directories,
        values,
    };
    groups::write(&mut writer, layout, inodes, &journal_tree.root, wanted)
}

/// Punches what came back out of the file, as long as it is cheap: it was hardly written to the disk yet, and is not going
/// to be. Metadata may take these places again. What remains goes to the disk while the metadata is made.
fn settle(writer: &mut Writer) -> Result<(), Error> {
    let returned: Vec<_> = writer.allocator.returned().cloned().collect();
    for range in returned {
        writer.output.punch(range)?;
    }
    if writer.allocator.in_use() >= SYNCED_AHEAD {
        writer.output.sync_ahead()?;
    }
    Ok(())
}

/// How many values of extended attributes need an inode of their own.
fn values(tree: &Tree, numbering: &Numbering) -> u64 {
    let nodes = std::iter::once(tree.root().0).chain(numbering.order.iter().copied());
    let xattrs = nodes.filter_map(|node| tree.nodes[node as usize].xattrs.as_ref());
    xattrs.map(|xattrs| xattr::apart(xattrs).len() as u64).sum()
}

fn hash_seed(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| u32::from_le_bytes(words[at]))
}

/// A record of one of the file system's own files.
fn internal(times: Times) -> Record {
    Record {
        mode: REGULAR | 0o600,
        uid: 0,
        gid: 0,
        times,
        links: 1,
        size: 0,
        blocks: 0,
        flags: 0,
        version: 0,
        block: [0; 60],
        xattr_block: 0,
        xattrs: [0; xattr::IN_INODE],
    }
}

/// What the pass over all inodes needs.
struct Pass<'a> {
    writer: &'a mut Writer,
    tree: &'a Tree,
    numbering: &'a Numbering,
    file_system_seed: u32,
    hash_seed: [u32; 4],
    /// Directories of each group.
    directories: Vec<u32>,
    /// The inode of the first of the following.
    first_value: u32,
    /// Values of extended attributes that have an inode of their own.
    values: Vec<Value>,
}

/// A value of an extended attribute that is on the disk and waits for its inode: there may be millions of them.
struct Value {
    /// Bytes of it, and their checksum.
    size: u32,
    sum: u32,
    extents: Extents,
}

impl Pass<'_> {
    /// Writes what a node owns beside its record, and returns the record.
    fn record(&mut self, index: u32) -> Result<Record, Error> {
        let tree = self.tree;
        let node = &tree.nodes[index as usize];
        let inode = self.numbering.inode(index);
        let mut record = Record::of(node);
        match &node.kind {
            NodeKind::File(data) => {
                record.size = data.size;
                self.map(&mut record, inode, data.extents.as_slice())?;
            }
            NodeKind::Directory(directory) => {
                self.directory(&mut record, inode, *directory)?;
            }
            NodeKind::Symlink(target) => {
                record.size = target.len() as u64;
                if target.len() < record.block.len() {
                    record.block[..target.len()].copy_from_slice(target);
                } else {
                    let mut block = target.to_vec();
                    block.resize(BLOCK, 0);
                    self.store(&mut record, inode, &block)?;
                }
            }
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                record.block = device(*major, *minor);
            }
            NodeKind::Fifo | NodeKind::Socket => {}
        }
        self.attributes(&mut record, node)?;
        Ok(record)
    }

    /// Writes the blocks of a directory.
    fn directory(&mut self, record: &mut Record, inode: u32, index: u32) -> Result<(), Error> {
        let directory = &self.tree.directories[index as usize];
        let entries: Vec<Entry> = directory
            .children
            .iter()
            .map(|child| Entry {
                name: self.tree.name(child),
                inode: self.numbering.inode(child.node),
                kind: entry_type(&self.tree.nodes[child.node as usize].kind),
            })
            .collect();
        let context = Context {
            own: inode,
            parent: self.numbering.inode(directory.parent),
            file_system_seed: self.file_system_seed,
            hash_seed: self.hash_seed,
        };
        let Some(mut built) = directory::build(&context, &entries) else {
            return Err(Error::DirectoryTooLarge {
                directory: crate::error::printable(&self.tree.path(index)),
                entries: entries.len(),
            });
        };
        if inode == FIRST_INODE && !built.indexed {
            for _ in 1..LOST_AND_FOUND_BLOCKS {
                directory::push_empty(&mut built.bytes, &context);
            }
        }
        // A name for itself, one in its parent, and one in each directory below; 1 stands for "too many to count".
        let links = directory.subdirectories.saturating_add(2);
        record.links = if links > MAX_LINKS { 1 } else { links as u16 };
        record.size = built.bytes.len() as u64;
        self.store(record, inode, &built.bytes)?;
        if built.indexed {
            record.flags |= INDEX_FLAG;
        }
        let group = ((inode - 1) / INODES_PER_GROUP) as usize;
        if self.directories.len() <= group {
            self.directories.resize(group + 1, 0);
        }
        self.directories[group] += 1;
        Ok(())
    }

    /// Writes content that the pass itself made, whole blocks of it, and maps it.
    fn store(&mut self, record: &mut Record, inode: u32, bytes: &[u8]) -> Result<(), Error> {
        let extents = self.write(bytes)?;
        self.map(record, inode, extents.as_slice())
    }

    /// Writes whole blocks.
    fn write(&mut self, bytes: &[u8]) -> Result<Extents, Error> {
        let mut extents = Extents::None;
        let mut rest = bytes;
        let mut logical = 0;
        while !rest.is_empty() {
            let want = (rest.len() / BLOCK) as u32;
            let Some(place) = self.writer.allocator.take_for_metadata(want) else {
                return Err(self.writer.full());
            };
            let length = place.len() as u32;
            let (now, later) = rest.split_at(length as usize * BLOCK);
            self.writer.output.write(place.start, now)?;
            extents.push(Extent {
                logical,
                physical: place.start,
                length,
            });
            logical += length;
            rest = later;
        }
        Ok(extents)
    }

    /// Maps extents into a record, with the tree below it if they are many.
    fn map(&mut self, record: &mut Record, inode: u32, extents: &[Extent]) -> Result<(), Error> {
        let seed = inode_seed(self.file_system_seed, inode);
        let tree = extent::tree(extents, seed, || self.writer.metadata_block())?;
        for (place, block) in &tree.blocks {
            self.writer.output.write(*place, block)?;
        }
        record.flags |= EXTENTS_FLAG;
        record.block = tree.root;
        let data: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        record.blocks += data + tree.blocks.len() as u64;
        Ok(())
    }

    /// Stores the value of an extended attribute.
    fn value(&mut self, value: &[u8]) -> Result<Value, Error> {
        let mut blocks = value.to_vec();
        blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        Ok(Value {
            // No longer than 64 KiB.
            size: value.len() as u32,
            sum: xattr::value_sum(value, self.file_system_seed),
            extents: self.write(&blocks)?,
        })
    }

    /// The inode of a value: it says the checksum of the value in place of an access time, and how many share it in place of
    /// a version (here always one).
    fn value_record(&mut self, inode: u32, value: &Value) -> Result<Record, Error> {
        let created = self.writer.options.created.encode();
        let sum = Encoded {
            seconds: value.sum,
            extra: 0,
        };
        let mut record = Record {
            size: value.size.into(),
            flags: VALUE_FLAG,
            version: 1,
            ..internal(Times {
                atime: sum,
                mtime: created,
                ctime: Encoded::default(),
                crtime: created,
            })
        };
        self.map(&mut record, inode, value.extents.as_slice())?;
        Ok(record)
    }

    /// Places the extended attributes of a node.
    fn attributes(&mut self, record: &mut Record, node: &Node) -> Result<(), Error> {
        let Some(xattrs) = &node.xattrs else {
            return Ok(());
        };
        let first = self.first_value + self.values.len() as u32;
        let (inside, block) = xattr::encode(xattrs, first, self.file_system_seed);
        for xattr in xattr::apart(xattrs) {
            // What a value takes is on the account of the inode that it belongs to.
            record.blocks += xattr.value().len().div_ceil(BLOCK) as u64;
            let value = self.value(xattr.value())?;
            self.values.push(value);
        }
        record.xattrs = inside;
        if let Some(mut block) = block {
            let place = self.writer.metadata_block()?;
            xattr::seal(&mut block, place, self.file_system_seed);
            self.writer.output.write(place, &block)?;
            record.xattr_block = place;
            record.blocks += 1;
        }
        Ok(())
    }
}

/// Writes records into the inode tables, block after block.
struct Table {
    file_system_seed: u32,
    /// The first block of all, which is written last.
    first: Vec<u8>,
    /// The block being filled.
    block: Vec<u8>,
    /// Its place, 0 while there is none.
    place: u32,
}

impl Table {
    fn new(file_system_seed: u32) -> Table {
        Table {
            file_system_seed,
            first: vec![0; BLOCK],
            block: vec![0; BLOCK],
            place: 0,
        }
    }

    fn push(&mut self, inode: u32, record: &Record, writer: &mut Writer) -> Result<(), Error> {
        let (place, offset) = position(inode);
        let bytes = record.encode(inode, self.file_system_seed);
        if place == layout::inode_table(0) {
            self.first[offset..offset + INODE_SIZE].copy_from_slice(&bytes);
            return Ok(());
        }
        if place != self.place {
            self.flush(writer)?;
            self.place = place;
        }
        self.block[offset..offset + INODE_SIZE].copy_from_slice(&bytes);
        Ok(())
    }

    fn flush(&mut self, writer: &mut Writer) -> Result<(), Error> {
        if self.place != 0 {
            writer.output.write(self.place, &self.block)?;
            self.block.fill(0);
        }
        Ok(())
    }

    fn finish(mut self, reserved: &[(u32, Record)], writer: &mut Writer) -> Result<(), Error> {
        self.flush(writer)?;
        for (inode, record) in reserved {
            self.push(*inode, record, writer)?;
        }
        writer.output.write(layout::inode_table(0), &self.first)
    }
}

/// Block and offset of an inode's record.
fn position(inode: u32) -> (u32, usize) {
    let index = inode - 1;
    let (group, within) = (index / INODES_PER_GROUP, index % INODES_PER_GROUP);
    let per_block = (BLOCK / INODE_SIZE) as u32;
    (
        layout::inode_table(group) + within / per_block,
        (within % per_block) as usize * INODE_SIZE,
    )
}

/// Checksum of a bitmap.
pub(crate) fn bitmap_sum(file_system_seed: u32, bitmap: &[u8]) -> u32 {
    crc(file_system_seed, bitmap)
}
