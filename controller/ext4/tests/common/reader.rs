//! A reader of ext4 for these tests, written from the kernel's documentation and sharing nothing with the writer.
//! It understands what the writer may use, and fails on anything else.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::inventory::{BLOCK, Content, Entry, Time};

const EXTENTS: u32 = 0x8_0000;
const EA_INODE: u32 = 0x20_0000;

/// An image that is open.
pub struct Image {
    file: File,
    inodes_per_group: u64,
    blocks: u64,
}

/// The bytes of an inode.
pub struct Inode(Vec<u8>);

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn wide(bytes: &[u8], low: usize, high: usize) -> u64 {
    u64::from(word(bytes, low)) | u64::from(word(bytes, high)) << 32
}

impl Image {
    pub fn open(path: &Path) -> Image {
        let mut image = Image {
            file: File::open(path).unwrap(),
            inodes_per_group: 0,
            blocks: 0,
        };
        let superblock = image.bytes(1024, 1024);
        assert_eq!(half(&superblock, 0x38), 0xef53);
        assert_eq!((word(&superblock, 0x18), half(&superblock, 0x58)), (2, 256));
        image.inodes_per_group = word(&superblock, 0x28).into();
        image.blocks = wide(&superblock, 0x04, 0x150);
        image
    }

    fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn block(&self, number: u64) -> Vec<u8> {
        assert!(number > 0 && number < self.blocks, "block {number}");
        self.bytes(number * BLOCK as u64, BLOCK)
    }

    pub fn inode(&self, number: u32) -> Inode {
        let (group, within) = (
            u64::from(number - 1) / self.inodes_per_group,
            u64::from(number - 1) % self.inodes_per_group,
        );
        let descriptor = self.bytes(BLOCK as u64 + group * 64, 64);
        let table = wide(&descriptor, 0x08, 0x28);
        Inode(self.bytes(table * BLOCK as u64 + within * 256, 256))
    }

    /// Runs of an inode's blocks: first block in the file, place, length.
    fn extents(&self, inode: &Inode) -> Vec<(u64, u64, u64)> {
        assert_ne!(word(&inode.0, 0x20) & EXTENTS, 0);
        let mut found = Vec::new();
        let mut nodes = vec![inode.0[0x28..0x64].to_vec()];
        while let Some(node) = nodes.pop() {
            assert_eq!(half(&node, 0), 0xf30a);
            let count = usize::from(half(&node, 2));
            let entries = (1..=count).map(|at| &node[at * 12..at * 12 + 12]);
            if half(&node, 6) == 0 {
                found.extend(entries.map(|entry| {
                    let length = half(entry, 4);
                    assert!(length <= 32768, "an unwritten extent");
                    let place = u64::from(word(entry, 8)) | u64::from(half(entry, 6)) << 32;
                    (u64::from(word(entry, 0)), place, u64::from(length))
                }));
            } else {
                // The first is taken off first.
                nodes.extend(entries.rev().map(|entry| {
                    let place = u64::from(word(entry, 4)) | u64::from(half(entry, 8)) << 32;
                    self.block(place)
                }));
            }
        }
        let in_order = |pair: &[(u64, u64, u64)]| pair[0].0 + pair[0].2 <= pair[1].0;
        assert!(found.windows(2).all(in_order), "{found:?}");
        found
    }

    /// An inode's whole content, holes as zeroes.
    pub fn content(&self, inode: &Inode) -> Vec<u8> {
        let mut bytes = vec![0; inode.size() as usize];
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        for (logical, place, length) in self.extents(inode) {
            for at in 0..length {
                let start = (logical + at) as usize * BLOCK;
                bytes[start..start + BLOCK].copy_from_slice(&self.block(place + at));
            }
        }
        bytes.truncate(inode.size() as usize);
        bytes
    }

    fn sum(&self, inode: &Inode) -> Content {
        let mut content = Content::default();
        for (logical, place, length) in self.extents(inode) {
            for at in 0..length {
                let block = self.block(place + at);
                assert!(block.iter().any(|byte| *byte != 0), "a block of zeroes is kept");
                content.block(logical + at, &block);
            }
        }
        content
    }

    /// The names in a directory, without the dots: name, inode, type.
    pub fn names(&self, directory: &Inode) -> Vec<(Vec<u8>, u32, u8)> {
        let mut names = Vec::new();
        for block in self.content(directory).chunks(BLOCK) {
            let mut at = 0;
            while at < BLOCK {
                let entry = &block[at..];
                let (inode, length) = (word(entry, 0), usize::from(half(entry, 4)));
                assert!(length >= 8 && length % 4 == 0 && at + length <= BLOCK);
                let name = &entry[8..8 + usize::from(entry[6])];
                if inode != 0 && name != b"." && name != b".." {
                    names.push((name.to_vec(), inode, entry[7]));
                }
                at += length;
            }
        }
        names
    }

    fn xattrs(&self, inode: &Inode) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        let inside = &inode.0[128 + usize::from(half(&inode.0, 0x80))..];
        if word(inside, 0) == 0xea02_0000 {
            self.xattr_entries(&inside[4..], 0, &mut found);
        }
        let place = u64::from(word(&inode.0, 0x68)) | u64::from(half(&inode.0, 0x76)) << 32;
        if place != 0 {
            let block = self.block(place);
            assert_eq!((word(&block, 0), word(&block, 4), word(&block, 8)), (0xea02_0000, 1, 1));
            self.xattr_entries(&block, 32, &mut found);
        }
        found
    }

    fn xattr_entries(&self, space: &[u8], first: usize, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let mut at = first;
        while word(space, at) != 0 {
            let entry = &space[at..];
            let name = &entry[16..16 + usize::from(entry[0])];
            let (value_inode, size) = (word(entry, 4), word(entry, 8) as usize);
            let value = match value_inode {
                0 => {
                    let offset = usize::from(half(entry, 2));
                    space[offset..offset + size].to_vec()
                }
                number => {
                    let inode = self.inode(number);
                    assert_ne!(word(&inode.0, 0x20) & EA_INODE, 0);
                    assert_eq!(inode.size(), size as u64);
                    self.content(&inode)
                }
            };
            let (name, value) = match entry[1] {
                1 => ([b"user.", name].concat(), value),
                2 => (b"system.posix_acl_access".to_vec(), portable_acl(&value)),
                3 => (b"system.posix_acl_default".to_vec(), portable_acl(&value)),
                4 => ([b"trusted.", name].concat(), value),
                6 => ([b"security.", name].concat(), value),
                index => panic!("name index {index}"),
            };
            assert_eq!(found.insert(name, value), None);
            at += 16 + usize::from(entry[0]).next_multiple_of(4);
        }
    }

    /// Everything that the root leads to but `lost+found`, by path.
    pub fn tree(&self) -> BTreeMap<Vec<u8>, Entry> {
        let mut tree = BTreeMap::new();
        let mut todo = vec![(Vec::new(), 2, 2)];
        while let Some((path, number, kind)) = todo.pop() {
            let inode = self.inode(number);
            let entry = self.entry(number, &inode);
            assert_eq!(
                kind,
                b" -dcbpsl".iter().position(|k| *k == entry.kind as u8).unwrap() as u8
            );
            if entry.kind == 'd' {
                for (name, number, kind) in self.names(&inode) {
                    if !(path.is_empty() && name == b"lost+found") {
                        todo.push(([&path[..], b"/", &name].concat(), number, kind));
                    }
                }
            }
            assert_eq!(tree.insert(path, entry), None);
        }
        tree
    }

    fn entry(&self, number: u32, inode: &Inode) -> Entry {
        let mode = half(&inode.0, 0);
        let kind = match mode >> 12 {
            0x1 => 'p',
            0x2 => 'c',
            0x4 => 'd',
            0x6 => 'b',
            0x8 => '-',
            0xa => 'l',
            0xc => 's',
            other => panic!("type {other}"),
        };
        let id = |low, high| u32::from(half(&inode.0, low)) | u32::from(half(&inode.0, high)) << 16;
        let target = match (kind, inode.size()) {
            ('l', size) if size < 60 => inode.0[0x28..0x28 + size as usize].to_vec(),
            ('l', _) => self.content(inode),
            _ => Vec::new(),
        };
        Entry {
            kind,
            mode: u32::from(mode & 0o7777),
            uid: id(0x02, 0x78),
            gid: id(0x18, 0x7a),
            links: inode.links().into(),
            size: if kind == 'd' { 0 } else { inode.size() },
            device: match kind {
                'b' | 'c' => inode.device(),
                _ => (0, 0),
            },
            times: [(0x08, 0x8c), (0x10, 0x88), (0x0c, 0x84), (0x90, 0x94)].map(|(low, extra)| inode.time(low, extra)),
            inode: number.into(),
            xattrs: self.xattrs(inode),
            content: match kind {
                '-' => self.sum(inode),
                _ => Content::default(),
            },
            target,
        }
    }
}

impl Inode {
    fn size(&self) -> u64 {
        wide(&self.0, 0x04, 0x6c)
    }

    pub fn links(&self) -> u16 {
        half(&self.0, 0x1a)
    }

    fn time(&self, low: usize, extra: usize) -> Time {
        let extra = word(&self.0, extra);
        let seconds = i64::from(word(&self.0, low) as i32) + (i64::from(extra & 3) << 32);
        (seconds, extra >> 2)
    }

    fn device(&self) -> (u32, u32) {
        let (old, new) = (word(&self.0, 0x28), word(&self.0, 0x2c));
        if old != 0 || new == 0 {
            return (old >> 8 & 0xff, old & 0xff);
        }
        (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
    }
}

/// From ext4's own form to the one that getxattr gives.
fn portable_acl(disk: &[u8]) -> Vec<u8> {
    assert_eq!(word(disk, 0), 1);
    let mut acl = 2u32.to_le_bytes().to_vec();
    let mut at = 4;
    while at < disk.len() {
        acl.extend_from_slice(&disk[at..at + 4]);
        let named = matches!(half(disk, at), 0x02 | 0x08);
        at += 4;
        if named {
            acl.extend_from_slice(&disk[at..at + 4]);
            at += 4;
        } else {
            acl.extend_from_slice(&[0xff; 4]);
        }
    }
    acl
}
