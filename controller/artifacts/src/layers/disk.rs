//! The merged tree as an ext4 file system.

use vmlet_ext4::{Attributes, FileData, Kind, Summary, Timestamp, Writer};

use super::apply::{Content, Store};
use super::member::Segment;
use super::merge::{self, Inode, Node, NodeId, ROOT, Tree};
use super::{LayerError, StoreError};

const CHUNK: usize = 128 << 10;

/// Streams file data to its final place in an ext4 image.
pub struct DiskStore {
    writer: Writer,
    buffer: Vec<u8>,
}

impl DiskStore {
    /// Stores into `writer`'s image.
    pub fn new(writer: Writer) -> DiskStore {
        DiskStore {
            writer,
            buffer: vec![0; CHUNK],
        }
    }

    /// Writes the metadata of `tree` and syncs the image.
    ///
    /// # Errors
    /// A tree that ext4 cannot hold, or a failing disk.
    pub fn finish(self, tree: Tree<FileData>) -> Result<Summary, StoreError> {
        self.finish_below(tree, ROOT)
    }

    /// The same for what is below the directory `top` only, which becomes the root.
    ///
    /// # Errors
    /// A tree that ext4 cannot hold, or a failing disk.
    pub fn finish_below(self, tree: Tree<FileData>, top: NodeId) -> Result<Summary, StoreError> {
        let tree = to_ext4(tree, top)?;
        Ok(self.writer.finish(tree)?)
    }
}

impl Store for DiskStore {
    type Data = FileData;

    fn store(&mut self, content: &mut dyn Content) -> Result<FileData, LayerError> {
        let mut file = self.writer.begin_file().map_err(ext4)?;
        while let Some(segment) = content.next(&mut self.buffer)? {
            match segment {
                Segment::Data(bytes) => file.write(bytes).map_err(ext4)?,
                Segment::Hole(length) => file.hole(length).map_err(ext4)?,
            }
        }
        file.finish().map_err(ext4)
    }

    fn check(&self, xattrs: &[(Vec<u8>, Vec<u8>)], directory: bool) -> Result<(), LayerError> {
        vmlet_ext4::check_xattrs(xattrs, directory).map_err(ext4)
    }

    fn discard(&mut self, data: FileData) -> Result<(), LayerError> {
        self.writer.discard(data).map_err(ext4)
    }
}

fn ext4(error: vmlet_ext4::Error) -> LayerError {
    LayerError::Store(StoreError::Ext4(error))
}

fn attributes(from: merge::Attributes) -> Attributes {
    let (sec, nsec) = from.mtime;
    Attributes::new(from.mode, from.uid, from.gid, Timestamp { sec, nsec })
}

/// Turns what is at and below `top` into an ext4 tree with `top` as its root.
///
/// # Errors
/// What ext4 cannot hold: too many links, attributes that are too large.
pub fn to_ext4(mut from: Tree<FileData>, top: NodeId) -> Result<vmlet_ext4::Tree, vmlet_ext4::Error> {
    let mut ids: Vec<Option<vmlet_ext4::NodeId>> = vec![None; from.len()];
    let Some((Node::Directory(children), own, xattrs)) = from.take(top) else {
        return Ok(vmlet_ext4::Tree::new(attributes(merge::IMPLIED)));
    };
    let mut to = vmlet_ext4::Tree::new(attributes(own));
    let root = to.root();
    to.set_root_xattrs(xattrs.as_deref().unwrap_or_default())?;
    let mut todo = vec![(root, children)];
    while let Some((parent, children)) = todo.pop() {
        for (name, id) in children {
            if let Some(known) = ids.get(id.index()).copied().flatten() {
                to.link(parent, &name, known)?;
                continue;
            }
            let Some((node, own, xattrs)) = from.take(id) else {
                continue;
            };
            let (kind, below) = match node {
                Node::Directory(children) => (Kind::Directory, Some(children)),
                Node::Inode(Inode::File(data)) => (Kind::File(data), None),
                Node::Inode(Inode::Symlink(target)) => (Kind::Symlink(target), None),
                Node::Inode(Inode::CharDevice(major, minor)) => (Kind::CharDevice { major, minor }, None),
                Node::Inode(Inode::BlockDevice(major, minor)) => (Kind::BlockDevice { major, minor }, None),
                Node::Inode(Inode::Fifo) => (Kind::Fifo, None),
            };
            let xattrs = xattrs.map(Vec::from).unwrap_or_default();
            let made = to.add(vmlet_ext4::Inode {
                kind,
                attributes: attributes(own),
                xattrs,
            })?;
            to.link(parent, &name, made)?;
            match below {
                Some(children) => todo.push((made, children)),
                None => ids[id.index()] = Some(made),
            }
        }
    }
    Ok(to)
}
