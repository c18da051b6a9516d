//! Tars byte by byte, also such as no tool writes, and the tree that layers merge to.

use std::collections::BTreeMap;
use std::io::Cursor;

use vmlet_artifacts::layers::LayerError;
use vmlet_artifacts::layers::apply::{Content, Input, Store, flatten};
use vmlet_artifacts::layers::member::Segment;
use vmlet_artifacts::layers::merge::{Inode, Node, NodeId, ROOT, Tree};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::Limits;

/// One member, to be changed at will.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub flag: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub device: (u64, u64),
    pub content: Vec<u8>,
    /// What the header says, if not the content's length.
    pub size: Option<u64>,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

pub fn member(flag: u8, name: &str) -> Member {
    Member {
        name: name.into(),
        flag,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        link: Vec::new(),
        device: (0, 0),
        content: Vec::new(),
        size: None,
        pax: Vec::new(),
    }
}

pub fn file(name: &str, content: &str) -> Member {
    Member {
        content: content.into(),
        ..member(b'0', name)
    }
}

pub fn dir(name: &str) -> Member {
    Member {
        mode: 0o755,
        ..member(b'5', name)
    }
}

pub fn symlink(name: &str, target: &str) -> Member {
    Member {
        link: target.into(),
        ..member(b'2', name)
    }
}

pub fn hardlink(name: &str, target: &str) -> Member {
    Member {
        link: target.into(),
        ..member(b'1', name)
    }
}

impl Member {
    pub fn pax(mut self, key: &str, value: &[u8]) -> Member {
        self.pax.push((key.into(), value.into()));
        self
    }

    pub fn mode(mut self, mode: u32) -> Member {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Member {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let content: Vec<u8> = self.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            Member {
                content,
                ..member(b'x', "PaxHeaders/x")
            }
            .write(out);
        }
        if self.name.len() > 100 {
            Member {
                content: [&self.name[..], b"\0"].concat(),
                ..member(b'L', "././@LongLink")
            }
            .write(out);
        }
        if self.link.len() > 100 {
            Member {
                content: [&self.link[..], b"\0"].concat(),
                ..member(b'K', "././@LongLink")
            }
            .write(out);
        }
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8], most: usize| {
            let bytes = &bytes[..bytes.len().min(most)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.name, 100);
        put(100, &number(u64::from(self.mode), 8), 8);
        put(108, &number(self.uid, 8), 8);
        put(116, &number(self.gid, 8), 8);
        put(124, &number(self.size.unwrap_or(self.content.len() as u64), 12), 12);
        let mtime = match u64::try_from(self.mtime) {
            Ok(seconds) => number(seconds, 12),
            Err(_) => [&[0xff; 4][..], &self.mtime.to_be_bytes()].concat(),
        };
        put(136, &mtime, 12);
        put(156, &[self.flag], 1);
        put(157, &self.link, 100);
        put(257, b"ustar\x0000", 8);
        put(329, &number(self.device.0, 8), 8);
        put(337, &number(self.device.1, 8), 8);
        seal(&mut block);
        out.extend_from_slice(&block);
        out.extend_from_slice(&self.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// Octal, or base 256 where that does not fit.
fn number(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0width$o}", width = width - 1);
    if octal.len() < width {
        return [octal.as_bytes(), b"\0"].concat();
    }
    let mut bytes = vec![0; width];
    bytes[width - 8..].copy_from_slice(&value.to_be_bytes());
    bytes[0] |= 0x80;
    bytes
}

/// Puts the checksum in.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = [key, b"=", value, b"\n"].concat();
    let mut length = body.len() + 2;
    while format!("{length} ").len() + body.len() != length {
        length += 1;
    }
    [format!("{length} ").as_bytes(), &body].concat()
}

/// Members without the end of an archive.
pub fn open_tar(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        member.write(&mut out);
    }
    out
}

pub fn tar(members: &[Member]) -> Vec<u8> {
    let mut out = open_tar(members);
    out.extend_from_slice(&[0; 1024]);
    out
}

/// Keeps content in memory; holes are counted.
#[derive(Default)]
pub struct Memory {
    pub discarded: usize,
}

#[derive(Debug, Default, PartialEq)]
pub struct Kept {
    pub bytes: Vec<u8>,
    pub holes: u64,
}

impl Store for Memory {
    type Data = Kept;

    fn store(&mut self, content: &mut dyn Content) -> Result<Kept, LayerError> {
        let mut kept = Kept::default();
        let mut buf = vec![0; 4096];
        while let Some(segment) = content.next(&mut buf)? {
            match segment {
                Segment::Data(bytes) => kept.bytes.extend_from_slice(bytes),
                Segment::Hole(length) => {
                    kept.holes += length;
                    kept.bytes.resize(kept.bytes.len() + length as usize, 0);
                }
            }
        }
        Ok(kept)
    }

    fn discard(&mut self, _: Kept) -> Result<(), LayerError> {
        self.discarded += 1;
        Ok(())
    }
}

/// Applies layers of these bytes, each with its true diff_id.
pub fn apply(layers: Vec<Vec<u8>>, limits: &Limits) -> Result<Tree<Kept>, LayerError> {
    let input = |bytes: Vec<u8>| Input {
        diff_id: None::<Digest>,
        bytes: Box::new(Cursor::new(bytes)),
    };
    let layers = layers.into_iter().map(input).collect();
    flatten(layers, &mut Memory::default(), limits, &Default::default(), &|| ()).map_err(|(_, error)| error)
}

pub fn merge(layers: &[&[Member]]) -> Result<Tree<Kept>, LayerError> {
    apply(layers.iter().map(|members| tar(members)).collect(), &Limits::default())
}

/// The error that layers are refused with.
pub fn refused(layers: &[&[Member]]) -> LayerError {
    match merge(layers) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

/// The same members as one layer, and as one layer each.
pub fn both(members: &[Member], expected: &[(&str, &str)]) {
    assert_eq!(list(&[members]), tree(expected), "in one layer");
    let single: Vec<&[Member]> = members.chunks(1).collect();
    assert_eq!(list(&single), tree(expected), "in layers of their own");
}

/// Layers are refused with a word about their form.
pub fn malformed(layers: &[&[Member]], part: &str) {
    match refused(layers) {
        LayerError::Malformed(why) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// What is in a tree: path to a word about it. Names of one inode have one number.
pub fn list(layers: &[&[Member]]) -> BTreeMap<String, String> {
    listed(&merge(layers).unwrap())
}

pub fn listed(tree: &Tree<Kept>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo: Vec<(String, NodeId)> = vec![(String::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let (node, _, _, links) = tree.get(id).unwrap();
        let word = match node {
            Node::Directory(children) => {
                for (name, child) in children {
                    todo.push((format!("{path}/{}", name.escape_ascii()), *child));
                }
                "dir".to_owned()
            }
            Node::Inode(Inode::File(kept)) => format!("{:?}", String::from_utf8_lossy(&kept.bytes)),
            Node::Inode(Inode::Symlink(target)) => format!("-> {}", target.escape_ascii()),
            Node::Inode(Inode::CharDevice(major, minor)) => format!("c {major}:{minor}"),
            Node::Inode(Inode::BlockDevice(major, minor)) => format!("b {major}:{minor}"),
            Node::Inode(Inode::Fifo) => "fifo".to_owned(),
        };
        let many = if links > 1 { format!(" x{links}") } else { String::new() };
        if !path.is_empty() {
            all.insert(path, format!("{word}{many}"));
        }
    }
    all
}

/// The same as [`list`], from literals.
pub fn tree(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(path, word)| ((*path).to_owned(), (*word).to_owned()))
        .collect()
}

/// `mode uid:gid` of what stands at a path.
pub fn attributes(tree: &mut Tree<Kept>, path: &str) -> (u16, u32, u32, (i64, u32)) {
    let id = tree.lookup(path.as_bytes()).unwrap().unwrap();
    let own = tree.get(id).unwrap().1;
    (own.mode, own.uid, own.gid, (own.mtime, own.mtime_nsec))
}

pub type Xattr = (Vec<u8>, Vec<u8>);

pub fn xattrs(tree: &mut Tree<Kept>, path: &str) -> Vec<Xattr> {
    let id = tree.lookup(path.as_bytes()).unwrap().unwrap();
    tree.get(id).unwrap().2.as_deref().unwrap_or_default().to_vec()
}

pub fn content<'a>(tree: &'a mut Tree<Kept>, path: &str) -> &'a Kept {
    let id = tree.lookup(path.as_bytes()).unwrap().unwrap();
    match tree.get(id).unwrap().0 {
        Node::Inode(Inode::File(kept)) => kept,
        other => panic!("{other:?}"),
    }
}
