//! A tree as a list of decisions, which can be written as an image and said in words without one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::SizeRange;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vmlet_ext4::{Attributes, FileData, Inode, Kind, NodeId, Timestamp, Tree, Writer};

use super::inventory::{BLOCK, Content, Entry, Time};

pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A piece of a file.
#[derive(Clone, Debug)]
pub enum Piece {
    /// So many equal bytes.
    Bytes(u8, usize),
    /// These bytes.
    Data(Vec<u8>),
    Hole(u64),
}

/// What is made.
#[derive(Clone, Debug)]
pub enum What {
    File(Vec<Piece>),
    /// A content that is written and then discarded: no name comes of it.
    Lost(Vec<Piece>),
    Directory,
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
    /// Another name for an earlier inode that is no directory: its place among them, modulo their number.
    Link(usize),
}

/// One thing to make.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its directory: the place among those before it, modulo their number; 0 is the root.
    pub parent: usize,
    pub name: Vec<u8>,
    pub what: What,
    pub attributes: Attributes,
    pub xattrs: Xattrs,
}

/// A whole tree.
#[derive(Clone, Debug)]
pub struct Model {
    pub root: Attributes,
    pub root_xattrs: Xattrs,
    pub items: Vec<Item>,
}

impl Model {
    pub fn new(root: Attributes) -> Model {
        Model {
            root,
            root_xattrs: Vec::new(),
            items: Vec::new(),
        }
    }

    /// Adds something to the root.
    pub fn push(&mut self, name: &[u8], what: What, attributes: Attributes, xattrs: Xattrs) {
        self.items.push(Item {
            parent: 0,
            name: name.to_vec(),
            what,
            attributes,
            xattrs,
        });
    }

    /// Writes all contents, and gives the tree that names them.
    pub fn write(&self, writer: &mut Writer) -> Tree {
        let mut tree = Tree::new(self.root);
        tree.set_root_xattrs(&self.root_xattrs).unwrap();
        let mut directories = vec![NodeId::ROOT];
        let mut others = Vec::new();
        let mut taken = BTreeSet::new();
        for item in &self.items {
            let parent = directories[item.parent % directories.len()];
            if let What::Lost(pieces) = &item.what {
                let data = stream(writer, pieces);
                writer.discard(data).unwrap();
                continue;
            }
            let nothing_to_link = matches!(item.what, What::Link(_)) && others.is_empty();
            if nothing_to_link || !taken.insert((parent, &item.name)) {
                continue;
            }
            let kind = match &item.what {
                What::File(pieces) => Kind::File(stream(writer, pieces)),
                What::Directory => Kind::Directory,
                What::Symlink(target) => Kind::Symlink(target.clone()),
                What::Character(major, minor) => Kind::CharDevice {
                    major: *major,
                    minor: *minor,
                },
                What::Block(major, minor) => Kind::BlockDevice {
                    major: *major,
                    minor: *minor,
                },
                What::Fifo => Kind::Fifo,
                What::Socket => Kind::Socket,
                What::Link(which) => {
                    let node = others[which % others.len()];
                    tree.link(parent, &item.name, node).unwrap();
                    continue;
                }
                What::Lost(_) => unreachable!("seen above"),
            };
            let directory = kind == Kind::Directory;
            let inode = Inode {
                kind,
                attributes: item.attributes,
                xattrs: item.xattrs.clone(),
            };
            let node = tree.add(inode).unwrap();
            tree.link(parent, &item.name, node).unwrap();
            if directory { &mut directories } else { &mut others }.push(node);
        }
        tree
    }

    /// What a reader must find.
    pub fn expected(&self) -> BTreeMap<Vec<u8>, Entry> {
        let mut tree: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        // lost+found is a directory in the root that is not listed.
        let mut root = entry('d', &self.root, &self.root_xattrs, 0);
        root.links = 3;
        tree.insert(Vec::new(), root);
        let mut directories = vec![Vec::new()];
        let mut others: Vec<Vec<u8>> = Vec::new();
        for (number, item) in (1..).zip(&self.items) {
            let parent = directories[item.parent % directories.len()].clone();
            let path = [&parent[..], b"/", &item.name].concat();
            if tree.contains_key(&path) || matches!(item.what, What::Lost(_)) {
                continue;
            }
            let new = |kind| entry(kind, &item.attributes, &item.xattrs, number);
            let found = match &item.what {
                What::Link(_) if others.is_empty() => continue,
                What::Link(which) => {
                    let mut same = tree[&others[which % others.len()]].clone();
                    same.links += 1;
                    for other in tree.values_mut().filter(|other| other.inode == same.inode) {
                        other.links += 1;
                    }
                    tree.insert(path, same);
                    continue;
                }
                What::File(pieces) => {
                    let (size, content) = content(pieces);
                    Entry {
                        size,
                        content,
                        ..new('-')
                    }
                }
                What::Directory => {
                    tree.get_mut(&parent).unwrap().links += 1;
                    directories.push(path.clone());
                    Entry { links: 2, ..new('d') }
                }
                What::Symlink(target) => Entry {
                    size: target.len() as u64,
                    target: target.clone(),
                    ..new('l')
                },
                What::Character(major, minor) => Entry {
                    device: (*major, *minor),
                    ..new('c')
                },
                What::Block(major, minor) => Entry {
                    device: (*major, *minor),
                    ..new('b')
                },
                What::Fifo => new('p'),
                What::Socket => new('s'),
                What::Lost(_) => continue,
            };
            if found.kind != 'd' {
                others.push(path.clone());
            }
            tree.insert(path, found);
        }
        tree
    }
}

fn stream(writer: &mut Writer, pieces: &[Piece]) -> FileData {
    let mut file = writer.begin_file().unwrap();
    for piece in pieces {
        match piece {
            Piece::Bytes(byte, length) => file.write(&vec![*byte; *length]).unwrap(),
            Piece::Data(bytes) => file.write(bytes).unwrap(),
            Piece::Hole(length) => file.hole(*length).unwrap(),
        }
    }
    file.finish().unwrap()
}

fn content(pieces: &[Piece]) -> (u64, Content) {
    let mut size = 0;
    let mut blocks: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut put = |size: u64, bytes: &[u8]| {
        let (mut at, mut rest) = (size, bytes);
        while !rest.is_empty() {
            let within = at as usize % BLOCK;
            let (here, later) = rest.split_at(rest.len().min(BLOCK - within));
            // A zero is a hole, however it came in.
            if here.iter().any(|byte| *byte != 0) {
                let block = blocks.entry(at / BLOCK as u64).or_insert_with(|| vec![0; BLOCK]);
                block[within..within + here.len()].copy_from_slice(here);
            }
            at += here.len() as u64;
            rest = later;
        }
    };
    for piece in pieces {
        size += match piece {
            Piece::Hole(length) => *length,
            Piece::Bytes(byte, length) => {
                put(size, &vec![*byte; *length]);
                *length as u64
            }
            Piece::Data(bytes) => {
                put(size, bytes);
                bytes.len() as u64
            }
        };
    }
    let mut content = Content::default();
    for (index, block) in blocks {
        content.block(index, &block);
    }
    (size, content)
}

fn entry(kind: char, attributes: &Attributes, xattrs: &Xattrs, inode: u64) -> Entry {
    let Attributes {
        atime,
        mtime,
        ctime,
        crtime,
        ..
    } = *attributes;
    Entry {
        kind,
        mode: u32::from(attributes.mode & 0o7777),
        uid: attributes.uid,
        gid: attributes.gid,
        links: 1,
        size: 0,
        device: (0, 0),
        times: [atime, mtime, ctime, crtime].map(kept),
        inode,
        xattrs: xattrs.iter().cloned().collect(),
        content: Content::default(),
        target: Vec::new(),
    }
}

/// The nearest time that ext4 can say: 34 bits of seconds, beginning in 1901.
fn kept(time: Timestamp) -> Time {
    const LATEST: i64 = 0x3_7fff_ffff;
    match time.sec {
        ..-0x8000_0000 => (-0x8000_0000, 0),
        sec if sec > LATEST => (LATEST, 999_999_999),
        sec => (sec, time.nsec),
    }
}

/// A portable access list.
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// A file capability as `setcap` stores it (VFS_CAP_REVISION_2).
pub fn capability(permitted: u32) -> Vec<u8> {
    [0x0200_0001, permitted, 0, 0, 0].map(u32::to_le_bytes).concat()
}

/// So many cases, always the same ones; PROPTEST_RNG_SEED and PROPTEST_CASES in the environment make others of them.
pub fn cases(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(7);
    }
    config.failure_persistence = None;
    config
}

/// Any tree of so many things. What Linux would not show (users' attributes of what is no file or directory) is left
/// out, so that it can be compared there, too.
pub fn any_model(items: impl Into<SizeRange>) -> impl Strategy<Value = Model> {
    let root = (any_attributes(), any_xattrs(true, true));
    (root, prop::collection::vec(any_item(), items)).prop_map(|((root, root_xattrs), items)| Model {
        root,
        root_xattrs,
        items,
    })
}

fn any_item() -> impl Strategy<Value = Item> {
    let with_xattrs = any_what().prop_flat_map(|what| {
        let directory = matches!(what, What::Directory);
        let users = directory || matches!(what, What::File(_));
        (Just(what), any_xattrs(users, directory))
    });
    (any::<u16>(), any_name(), with_xattrs, any_attributes()).prop_map(|(parent, name, (what, xattrs), attributes)| {
        Item {
            parent: parent.into(),
            name,
            what,
            attributes,
            xattrs,
        }
    })
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("a name has no slash and no NUL", |byte| !matches!(byte, 0 | b'/'));
    let length = prop_oneof![8 => 1..20usize, 1 => 1..256usize, 1 => Just(255)];
    let name = length.prop_flat_map(move |length| prop::collection::vec(byte.clone(), length));
    name.prop_filter("dots have a meaning", |name| name != b"." && name != b"..")
}

fn any_what() -> impl Strategy<Value = What> {
    let piece = prop_oneof![
        (any::<u8>(), 0..20_000usize).prop_map(|(byte, length)| Piece::Bytes(byte, length)),
        (1..4u8, (1..4usize).prop_map(|n| n * BLOCK)).prop_map(|(byte, length)| Piece::Bytes(byte, length)),
        (0..20_000u64).prop_map(Piece::Hole),
        (1..1000u64).prop_map(|n| Piece::Hole(n * BLOCK as u64)),
        (0..1u64 << 36).prop_map(Piece::Hole),
    ];
    let pieces = prop::collection::vec(piece, 0..12);
    let target = prop_oneof![1..80usize, 1..4096usize].prop_flat_map(|n| prop::collection::vec(1..=255u8, n));
    let device = (0..4096u32, prop_oneof![0..256u32, 0..1u32 << 20]);
    prop_oneof![
        6 => pieces.clone().prop_map(What::File),
        1 => pieces.prop_map(What::Lost),
        6 => Just(What::Directory),
        2 => target.prop_map(What::Symlink),
        1 => device.clone().prop_map(|(major, minor)| What::Character(major, minor)),
        1 => device.prop_map(|(major, minor)| What::Block(major, minor)),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
        3 => any::<usize>().prop_map(What::Link),
    ]
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let seconds = prop_oneof![
        -0x8000_0000..=0x3_7fff_ffffi64,
        0..2_000_000_000i64,
        prop::sample::select(vec![
            i64::MIN,
            -0x8000_0001,
            -1,
            0x7fff_ffff,
            0x8000_0000,
            0x3_8000_0000,
            i64::MAX
        ]),
    ];
    let time = (seconds, 0..1_000_000_000u32).prop_map(|(sec, nsec)| Timestamp { sec, nsec });
    (
        0..0o10000u16,
        any::<u32>(),
        any::<u32>(),
        [time.clone(), time.clone(), time.clone(), time],
    )
        .prop_map(|(mode, uid, gid, [atime, mtime, ctime, crtime])| Attributes {
            mode,
            uid,
            gid,
            atime,
            mtime,
            ctime,
            crtime,
        })
}

fn any_xattrs(users: bool, directory: bool) -> impl Strategy<Value = Xattrs> {
    let prefix = if users {
        "(user|trusted|security)"
    } else {
        "(trusted|security)"
    };
    let name = proptest::string::string_regex(&format!("{prefix}\\.[a-z.]{{1,30}}")).unwrap();
    let value = prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..40),
        2 => prop::collection::vec(any::<u8>(), 0..600),
        1 => (1..=255u8, 2000..=65_536usize).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let acls = (any::<bool>(), any::<bool>(), any_acl(), any_acl());
    let some = (prop::collection::btree_map(name, value, 0..5), any::<bool>(), acls);
    let some = some.prop_map(move |(plain, capable, (access, default, first, second))| {
        let mut all: Xattrs = plain
            .into_iter()
            .map(|(name, value)| (name.into_bytes(), value))
            .collect();
        if capable && users && !directory {
            all.push((b"security.capability".to_vec(), capability(0x400)));
        }
        if access && users {
            all.push((b"system.posix_acl_access".to_vec(), first));
        }
        if default && directory {
            all.push((b"system.posix_acl_default".to_vec(), second));
        }
        all
    });
    prop_oneof![2 => Just(Xattrs::new()), 1 => some]
}

/// A valid access list in Linux's order.
fn any_acl() -> impl Strategy<Value = Vec<u8>> {
    let named = || prop::collection::btree_map(any::<u32>(), 0..8u16, 0..4);
    (named(), named(), [0..8u16, 0..8, 0..8, 0..8]).prop_map(|(users, groups, [owner, group, mask, other])| {
        let none = u32::MAX;
        let mut entries = vec![(0x01, owner, none)];
        entries.extend(users.iter().map(|(id, may)| (0x02, *may, *id)));
        entries.push((0x04, group, none));
        entries.extend(groups.iter().map(|(id, may)| (0x08, *may, *id)));
        if entries.len() > 2 {
            entries.push((0x10, mask, none));
        }
        entries.push((0x20, other, none));
        acl(&entries)
    })
}
