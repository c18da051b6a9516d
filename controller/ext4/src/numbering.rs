//! Which inode number each node of a tree gets.

use crate::error::Error;
use crate::layout::FIRST_INODE;
use crate::superblock::ROOT_INODE;
use crate::time::Timestamp;
use crate::tree::{Attributes, Inode, Kind, NodeKind, Tree};

/// The name in the root that only a directory can have: e2fsck puts there what it finds. It is made if it is missing.
pub const LOST_AND_FOUND: &str = "lost+found";

/// Inode numbers, without gaps, beginning with the first that is not reserved.
#[derive(Debug)]
pub(crate) struct Numbering {
    /// Inode of each node; 0 when no name leads to it.
    pub(crate) inode_of: Vec<u32>,
    /// Nodes in ascending order of their inodes, without the root.
    pub(crate) order: Vec<u32>,
}

impl Numbering {
    /// Inode of a node.
    pub(crate) fn inode(&self, node: u32) -> u32 {
        self.inode_of[node as usize]
    }

    fn give(&mut self, node: u32) {
        self.inode_of[node as usize] = FIRST_INODE + self.order.len() as u32;
        self.order.push(node);
    }
}

/// Numbers everything that the root reaches, the children of a directory side by side, and sorts every directory.
///
/// The order of the names decides, not that of the calls. `lost+found` is made if it is missing and comes first.
pub(crate) fn number(tree: &mut Tree, created: Timestamp, wanted: &dyn Fn() -> bool) -> Result<Numbering, Error> {
    let lost_and_found = lost_and_found(tree, created)?;
    let mut numbering = Numbering {
        inode_of: vec![0; tree.nodes.len()],
        order: Vec::with_capacity(tree.nodes.len()),
    };
    let root = tree.root().0;
    numbering.inode_of[root as usize] = ROOT_INODE;
    numbering.give(lost_and_found);
    // Names in directories that nothing reaches do not count.
    for node in &mut tree.nodes {
        node.links = 0;
    }
    let mut pending = vec![root];
    while let Some(node) = pending.pop() {
        let NodeKind::Directory(index) = tree.nodes[node as usize].kind else {
            continue;
        };
        Error::unless(wanted)?;
        tree.sort_children(index)?;
        let children = &tree.directories[index as usize].children;
        for child in children {
            tree.nodes[child.node as usize].links += 1;
            if numbering.inode(child.node) == 0 {
                numbering.give(child.node);
            }
        }
        // A directory has one name, so it comes here once; the first is to be taken off first.
        pending.extend(children.iter().rev().map(|child| child.node));
    }
    Ok(numbering)
}

/// The node of `lost+found`, which e2fsck wants to be a directory.
fn lost_and_found(tree: &mut Tree, created: Timestamp) -> Result<u32, Error> {
    let NodeKind::Directory(root) = tree.nodes[tree.root().0 as usize].kind else {
        return Err(Error::TreeTooLarge);
    };
    let children = &tree.directories[root as usize].children;
    let present = children
        .iter()
        .find(|child| tree.name(child) == LOST_AND_FOUND.as_bytes());
    if let Some(child) = present {
        return match tree.nodes[child.node as usize].kind {
            NodeKind::Directory(_) => Ok(child.node),
            _ => Err(Error::BadName {
                name: LOST_AND_FOUND.to_owned(),
                reason: "in the root of ext4 this must be a directory",
            }),
        };
    }
    let node = tree.add(Inode {
        kind: Kind::Directory,
        attributes: Attributes::new(0o700, 0, 0, created),
        xattrs: Vec::new(),
    })?;
    tree.link(tree.root(), LOST_AND_FOUND.as_bytes(), node)?;
    Ok(node.0)
}
