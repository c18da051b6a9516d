//! The merged tree as an ext4 file system.

use tokio_util::sync::CancellationToken;
use vmlet_ext4::{Attributes, FileData, Kind, Summary, Timestamp, Writer};

use super::apply::{Content, Store};
use super::member::Segment;
use super::merge::{self, Inode, Node, NodeId, ROOT, Tree};
use super::{LayerError, StoreError};

const CHUNK: usize = 128 << 10;
/// How often it is asked whether anybody still wants the result.
const NODES_PER_LOOK: usize = 1 << 12;

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

    /// Writes the metadata of `tree` and syncs the image. Whoever fires `cancel` waits for no more than a sync.
    ///
    /// # Errors
    /// A tree that ext4 cannot hold, or a failing disk; cancellation.
    pub fn finish(self, tree: Tree<FileData>, cancel: &CancellationToken) -> Result<Summary, StoreError> {
        self.finish_below(tree, ROOT, cancel)
    }

    /// The same for what is below the directory `top` only, which becomes the root.
    ///
    /// # Errors
    /// A tree that ext4 cannot hold, or a failing disk; cancellation.
    pub fn finish_below(
        self,
        tree: Tree<FileData>,
        top: NodeId,
        cancel: &CancellationToken,
    ) -> Result<Summary, StoreError> {
        let wanted = || !cancel.is_cancelled();
        let tree = to_ext4(tree, top, &wanted)?;
        Ok(self.writer.finish_while(tree, &wanted)?)
    }
}

impl Store for DiskStore {
    type Data = FileData;

    fn store(&mut self, content: &mut dyn Content) -> Result<FileData, LayerError> {
        let mut file = self.writer.begin_file().map_err(ext4)?;
        let mut taken = 0;
        while let Some(segment) = content.next(&mut self.buffer)? {
            match segment {
                Segment::Data(bytes) => file.write(bytes).map_err(ext4)?,
                Segment::Hole(length) => file.hole(length).map_err(ext4)?,
            }
            content.take(file.allocated() - taken)?;
            taken = file.allocated();
        }
        let data = file.finish().map_err(ext4)?;
        if let Err(error) = content.take(data.allocated() - taken) {
            self.discard(data)?;
            return Err(error);
        }
        Ok(data)
    }

    fn only_directory(&self) -> Option<&'static str> {
        Some(vmlet_ext4::LOST_AND_FOUND)
    }

    fn check(&self, xattrs: &[(Vec<u8>, Vec<u8>)], directory: bool) -> Result<u64, LayerError> {
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
    let time = Timestamp {
        sec: from.mtime,
        nsec: from.mtime_nsec,
    };
    Attributes::new(from.mode, from.uid, from.gid, time)
}

/// Attributes, and what Linux makes of them when an access list is set behind them, which is the order of umoci: the mode
/// becomes what the list says, and a list that says no more than a mode is not kept.
fn with_access_list(mut own: merge::Attributes, xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
    let at = xattrs.iter().position(|(name, _)| name == b"system.posix_acl_access");
    if let Some((at, mode)) = at.and_then(|at| Some((at, vmlet_ext4::acl_mode(&xattrs[at].1)?))) {
        own.mode = own.mode & !0o777 | mode.permissions;
        if mode.is_all {
            xattrs.remove(at);
        }
    }
    attributes(own)
}

/// Turns what is at and below `top` into an ext4 tree with `top` as its root.
///
/// The inodes come first and the names after them, so that a node is held in one of the two trees only.
///
/// # Errors
/// What ext4 cannot hold: too many links, attributes that are too large. That it is not `wanted` any more.
pub fn to_ext4(
    from: Tree<FileData>,
    top: NodeId,
    wanted: &dyn Fn() -> bool,
) -> Result<vmlet_ext4::Tree, vmlet_ext4::Error> {
    let Some((Node::Directory(_), own, xattrs, _)) = from.get(top) else {
        return Ok(vmlet_ext4::Tree::new(attributes(merge::IMPLIED)));
    };
    let mut root_xattrs = xattrs.as_deref().unwrap_or_default().to_vec();
    let mut to = vmlet_ext4::Tree::new(with_access_list(*own, &mut root_xattrs));
    let root = to.root();
    to.set_root_xattrs(&root_xattrs)?;
    // What is not below `top` gets no name that the root reaches, and is left out for that.
    let mut ids = vec![root; from.len()];
    let mut directories = Vec::new();
    for (id, node, own, xattrs) in from.into_nodes() {
        let (kind, children) = match node {
            Node::Directory(children) => (Kind::Directory, Some(children)),
            Node::Inode(Inode::File(data)) => (Kind::File(data), None),
            Node::Inode(Inode::Symlink(target)) => (Kind::Symlink(target), None),
            Node::Inode(Inode::CharDevice(major, minor)) => (Kind::CharDevice { major, minor }, None),
            Node::Inode(Inode::BlockDevice(major, minor)) => (Kind::BlockDevice { major, minor }, None),
            Node::Inode(Inode::Fifo) => (Kind::Fifo, None),
        };
        if id.index().is_multiple_of(NODES_PER_LOOK) && !wanted() {
            return Err(vmlet_ext4::Error::Abandoned);
        }
        if id != top {
            let mut xattrs = xattrs.map(Vec::from).unwrap_or_default();
            // Links have no access lists in Linux.
            let attributes = match kind {
                Kind::Symlink(_) => attributes(own),
                _ => with_access_list(own, &mut xattrs),
            };
            ids[id.index()] = to.add(vmlet_ext4::Inode {
                kind,
                attributes,
                xattrs,
            })?;
        }
        directories.extend(children.map(|children| (ids[id.index()], children)));
    }
    for (parent, children) in directories {
        for (name, id) in children {
            // The directory above `top` has a name for it.
            if id != top {
                to.link(parent, &name, ids[id.index()])?;
            }
        }
    }
    Ok(to)
}
