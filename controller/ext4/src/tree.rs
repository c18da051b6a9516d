//! The tree of names and inodes that a finished image shall hold.

use crate::error::{Error, printable};
use crate::time::{Encoded, Timestamp};
use crate::writer::FileData;
use crate::xattr::{self, Xattr};

/// Most names that one inode may have.
pub const MAX_LINKS: u32 = 65_000;
/// Longest name in bytes.
pub const MAX_NAME: usize = 255;
/// Longest target of a symlink in bytes.
pub const MAX_TARGET: usize = 4095;

/// Owner, permissions and times of an inode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions with the set-user, set-group and sticky bits; other bits are ignored, the kind decides about them.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
}

impl Attributes {
    /// Attributes with all four times equal.
    pub fn new(mode: u16, uid: u32, gid: u32, time: Timestamp) -> Attributes {
        Attributes {
            mode,
            uid,
            gid,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
        }
    }
}

/// What an inode is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with the content that a [`crate::Writer`] took in.
    File(FileData),
    /// A directory, empty until children are linked into it.
    Directory,
    /// A symbolic link to these bytes, 1 to 4095 of them.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number, below 4096.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, below 4096.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode to be added to a [`Tree`].
#[derive(Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Owner, permissions and times.
    pub attributes: Attributes,
    /// Extended attributes, names and values as getxattr gives them. ACLs (`system.posix_acl_access` and
    /// `system.posix_acl_default`) are converted to ext4's own form.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// The root directory of every tree.
    pub const ROOT: NodeId = NodeId(0);
}

/// Inodes and the names that lead to them, beginning with the root directory.
///
/// Directories need not be complete before others begin, and depth is not limited. An entry costs 84 bytes of
/// memory beside its name, its xattrs and the target of a symlink, a directory 40 more, and one whose four times differ 32 more.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    pub(crate) directories: Vec<Directory>,
    /// All names, one behind another.
    names: Vec<u8>,
}

/// An inode in memory.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names that lead to it; for a directory 0 or 1.
    pub(crate) links: u32,
    times: StoredTimes,
    #[allow(
        clippy::box_collection,
        reason = "one word instead of three, in a record that exists a million times"
    )]
    pub(crate) xattrs: Option<Box<Vec<Xattr>>>,
    pub(crate) kind: NodeKind,
}

/// The four times of an inode, encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) atime: Encoded,
    pub(crate) mtime: Encoded,
    pub(crate) ctime: Encoded,
    pub(crate) crtime: Encoded,
}

/// The same in fewer bytes: most often all four are one.
#[derive(Debug)]
enum StoredTimes {
    Same(Encoded),
    Each(Box<Times>),
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    File(FileData),
    /// An index into the directories.
    Directory(u32),
    Symlink(Box<[u8]>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// The children of a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Node of the directory above; the root is its own.
    pub(crate) parent: u32,
    name: Name,
    /// Children that are directories.
    pub(crate) subdirectories: u32,
    pub(crate) children: Vec<Child>,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    name: Name,
    pub(crate) node: u32,
}

/// A name in the list of all names.
#[derive(Debug, Clone, Copy, Default)]
struct Name {
    offset: u32,
    length: u8,
}

const ROOT: u32 = 0;

impl Tree {
    /// A tree of an empty root directory.
    pub fn new(root: Attributes) -> Tree {
        let mut tree = Tree {
            nodes: Vec::new(),
            directories: Vec::new(),
            names: Vec::new(),
        };
        tree.push_directory();
        tree.nodes.push(Node::new(NodeKind::Directory(0), root, None));
        tree
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    /// Gives the root directory its extended attributes, in place of those it had.
    ///
    /// # Errors
    /// As [`Tree::add`] for the attributes.
    pub fn set_root_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Error> {
        self.nodes[ROOT as usize].xattrs = xattr::take_in(xattrs, true)?;
        Ok(())
    }

    /// Adds an inode that has no name yet. One that never gets a name is left out of the image.
    ///
    /// # Errors
    /// A symlink target, device number or extended attribute that ext4 cannot hold; more than 2^32 inodes.
    pub fn add(&mut self, inode: Inode) -> Result<NodeId, Error> {
        let directory = matches!(inode.kind, Kind::Directory);
        let xattrs = xattr::take_in(&inode.xattrs, directory)?;
        let id = u32::try_from(self.nodes.len()).map_err(|_| Error::TreeTooLarge)?;
        let kind = match inode.kind {
            Kind::File(data) => NodeKind::File(data),
            Kind::Directory => NodeKind::Directory(self.push_directory()),
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_TARGET {
                    return Err(Error::BadSymlink { length: target.len() });
                }
                if target.contains(&0) {
                    return Err(Error::NulInSymlink);
                }
                NodeKind::Symlink(target.into())
            }
            Kind::CharDevice { major, minor } => {
                check_device(major, minor)?;
                NodeKind::CharDevice { major, minor }
            }
            Kind::BlockDevice { major, minor } => {
                check_device(major, minor)?;
                NodeKind::BlockDevice { major, minor }
            }
            Kind::Fifo => NodeKind::Fifo,
            Kind::Socket => NodeKind::Socket,
        };
        self.nodes.push(Node::new(kind, inode.attributes, xattrs));
        Ok(NodeId(id))
    }

    /// Gives `node` the name `name` in the directory `parent`. A second name for the same inode is a hard link.
    ///
    /// That a name is used twice is found out by [`crate::Writer::finish`].
    ///
    /// # Errors
    /// A name that is empty, `.`, `..`, longer than 255 bytes or has a slash or NUL; a parent that is not a directory;
    /// a second name for a directory; the 65 001st name of an inode.
    pub fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<(), Error> {
        check_name(name)?;
        let (Some(above), Some(target)) = (self.nodes.get(parent.0 as usize), self.nodes.get(node.0 as usize)) else {
            return Err(Error::UnknownInode { name: printable(name) });
        };
        let NodeKind::Directory(above) = above.kind else {
            return Err(Error::NotADirectory { name: printable(name) });
        };
        let directory = match target.kind {
            NodeKind::Directory(index) => Some(index),
            _ => None,
        };
        if directory.is_some() && (target.links > 0 || node.0 == ROOT) {
            return Err(Error::DirectoryLinkedTwice { name: printable(name) });
        }
        if target.links >= MAX_LINKS {
            return Err(Error::TooManyLinks { name: printable(name) });
        }
        let stored = self.push_name(name)?;
        self.nodes[node.0 as usize].links += 1;
        if let Some(index) = directory {
            let below = &mut self.directories[index as usize];
            below.parent = parent.0;
            below.name = stored;
        }
        let above = &mut self.directories[above as usize];
        above.subdirectories += u32::from(directory.is_some());
        above.children.push(Child {
            name: stored,
            node: node.0,
        });
        Ok(())
    }

    fn push_directory(&mut self) -> u32 {
        let index = self.directories.len() as u32;
        self.directories.push(Directory {
            parent: ROOT,
            name: Name::default(),
            subdirectories: 0,
            children: Vec::new(),
        });
        index
    }

    fn push_name(&mut self, name: &[u8]) -> Result<Name, Error> {
        let offset = u32::try_from(self.names.len()).map_err(|_| Error::TreeTooLarge)?;
        self.names.extend_from_slice(name);
        Ok(Name {
            offset,
            length: name.len() as u8,
        })
    }

    /// The name of a child.
    pub(crate) fn name(&self, child: &Child) -> &[u8] {
        name_in(&self.names, child.name)
    }

    /// Sorts the children of a directory by name and refuses a name that is there twice.
    pub(crate) fn sort_children(&mut self, directory: u32) -> Result<(), Error> {
        let names = &self.names;
        let name = |child: &Child| name_in(names, child.name);
        let children = &mut self.directories[directory as usize].children;
        children.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let twice = children.windows(2).position(|pair| name(&pair[0]) == name(&pair[1]));
        match twice {
            None => Ok(()),
            Some(at) => {
                let child = self.directories[directory as usize].children[at];
                Err(Error::DuplicateName {
                    directory: printable(&self.path(directory)),
                    name: printable(self.name(&child)),
                })
            }
        }
    }

    /// The path of a directory, for messages.
    pub(crate) fn path(&self, directory: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = directory;
        while at != 0 {
            let directory = &self.directories[at as usize];
            names.push(name_in(&self.names, directory.name));
            let NodeKind::Directory(above) = self.nodes[directory.parent as usize].kind else {
                break;
            };
            at = above;
        }
        names.push(b"");
        names.reverse();
        match names.len() {
            1 => b"/".to_vec(),
            _ => names.join(&b'/'),
        }
    }
}

impl From<Times> for StoredTimes {
    fn from(times: Times) -> StoredTimes {
        let mtime = times.mtime;
        match times == Times::all(mtime) {
            true => StoredTimes::Same(mtime),
            false => StoredTimes::Each(Box::new(times)),
        }
    }
}

impl Times {
    /// All four the same.
    pub(crate) fn all(time: Encoded) -> Times {
        Times {
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
        }
    }
}

impl Node {
    pub(crate) fn times(&self) -> Times {
        match &self.times {
            StoredTimes::Same(time) => Times::all(*time),
            StoredTimes::Each(times) => **times,
        }
    }

    #[allow(
        clippy::box_collection,
        reason = "one word instead of three, in a record that exists a million times"
    )]
    fn new(kind: NodeKind, attributes: Attributes, xattrs: Option<Box<Vec<Xattr>>>) -> Node {
        Node {
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            links: 0,
            times: Times {
                atime: attributes.atime.encode(),
                mtime: attributes.mtime.encode(),
                ctime: attributes.ctime.encode(),
                crtime: attributes.crtime.encode(),
            }
            .into(),
            xattrs,
            kind,
        }
    }
}

fn name_in(names: &[u8], name: Name) -> &[u8] {
    let start = name.offset as usize;
    &names[start..start + usize::from(name.length)]
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    let reason = match name {
        b"" => "it is empty",
        b"." | b".." => "it has a meaning of its own in every directory",
        _ if name.len() > MAX_NAME => "it is longer than 255 bytes",
        _ if name.contains(&b'/') => "it has a slash",
        _ if name.contains(&0) => "it has a NUL byte",
        _ => return Ok(()),
    };
    Err(Error::BadName {
        name: printable(name),
        reason,
    })
}

fn check_device(major: u32, minor: u32) -> Result<(), Error> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(Error::BadDevice { major, minor });
    }
    Ok(())
}
