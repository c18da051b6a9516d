//! Merging layers under the OCI rules (image specification, layer.md), in memory.
//!
//! Pure: file data is an opaque handle `D`. A layer's whiteouts hide what lower layers have,
//! wherever in the layer they stand (markers.rs); after them its entries apply in order, the last one of a name
//! wins. Paths are walked through symbolic links as the kernel would with the image as its root: a
//! link never leads out of it. Nothing here recurses, so depth costs no stack.

use std::borrow::Cow;
use std::collections::BTreeMap;

use vmlet_ext4::MAX_LINKS;

use super::budget::Budget;
use super::chunks::Chunks;
use super::markers::Gone;
use super::path::split;
use super::{LayerError, show};

/// The root's place in [`Tree`].
pub const ROOT: NodeId = NodeId(0);
/// What the kernel allows in one walk.
pub(super) const MOST_LINKS: usize = 40;
const MOST_TARGET: usize = 4095;

/// Names an inode of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// A dense number, for tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Owner, mode and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds.
    pub mtime: i64,
    /// Nanoseconds after it.
    pub mtime_nsec: u32,
}

/// A directory that no layer has an entry for: what manifest.md leaves open is 0755 root:root at
/// the epoch, so that equal layers give equal trees.
pub const IMPLIED: Attributes = Attributes {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: 0,
    mtime_nsec: 0,
};

/// Extended attributes; two words when there are none.
pub type Xattrs = Option<Box<[(Vec<u8>, Vec<u8>)]>>;

/// One entry of a layer.
#[derive(Debug)]
pub struct Record<D> {
    /// Normalised path.
    pub path: Box<[u8]>,
    /// Owner, mode and time.
    pub attributes: Attributes,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// What it is.
    pub kind: RecordKind<D>,
}

/// What an entry is.
#[derive(Debug)]
pub enum RecordKind<D> {
    /// An inode of its own.
    Inode(Inode<D>),
    /// A directory.
    Directory,
    /// Another name for what stands at this normalised path.
    HardLink(Vec<u8>),
}

/// An inode that is no directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Inode<D> {
    /// A file with its data.
    File(D),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// All records of one layer.
#[derive(Debug)]
pub struct Layer<D> {
    /// Paths that the layer hides.
    pub whiteouts: Vec<Vec<u8>>,
    /// Directories whose lower content the layer hides.
    pub opaques: Vec<Vec<u8>>,
    /// Entries, in the archive's order.
    pub records: Chunks<Record<D>>,
}

impl<D> Layer<D> {
    /// The path of the last entry.
    pub(super) fn last(&self) -> Option<&[u8]> {
        let at = self.records.len().checked_sub(1)?;
        self.records.get(at).map(|record| &record.path[..])
    }
}

impl<D> Default for Layer<D> {
    fn default() -> Self {
        Layer {
            whiteouts: Vec::new(),
            opaques: Vec::new(),
            records: Chunks::default(),
        }
    }
}

/// What a node of the tree is.
#[derive(Debug)]
pub enum Node<D> {
    /// A directory with its names, in byte order.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// Anything else.
    Inode(Inode<D>),
}

struct Slot<D> {
    node: Node<D>,
    attributes: Attributes,
    xattrs: Xattrs,
    links: u32,
}

/// Where a path leads.
pub(super) struct Walked<'p> {
    /// The nodes on the way there from below the root, with their names; all but the last are directories.
    known: Vec<(NodeId, Cow<'p, [u8]>)>,
    /// What would be below the last of them, and is not there.
    missing: Vec<Cow<'p, [u8]>>,
    /// How many symbolic links were followed.
    pub(super) links: usize,
    /// The last of them is among what is [`Gone`]: the path leads nowhere.
    barred: bool,
}

impl Walked<'_> {
    /// The node that the path leads to, if there is one.
    pub(super) fn found(&self) -> Option<NodeId> {
        let last = self.known.last().map_or(ROOT, |(id, _)| *id);
        (self.missing.is_empty() && !self.barred).then_some(last)
    }
}

/// The merged file system.
pub struct Tree<D> {
    slots: Chunks<Option<Slot<D>>>,
    discarded: Vec<D>,
    budget: Budget,
}

impl<D> Default for Tree<D> {
    fn default() -> Self {
        Tree::within(Budget::default())
    }
}

impl<D> Tree<D> {
    /// An empty root, in which no more is made than `budget` has room for.
    pub fn within(budget: Budget) -> Tree<D> {
        let root = Slot {
            node: Node::Directory(BTreeMap::new()),
            attributes: IMPLIED,
            xattrs: None,
            links: 1,
        };
        Tree {
            slots: std::iter::once(Some(root)).collect(),
            discarded: Vec::new(),
            budget,
        }
    }

    /// What is left for the layers that come.
    pub fn budget(&mut self) -> &mut Budget {
        &mut self.budget
    }

    /// Applies one layer on top of what is there.
    ///
    /// # Errors
    /// Entries that cannot exist. The tree is unusable then.
    pub fn apply(&mut self, layer: Layer<D>) -> Result<(), LayerError> {
        self.hide(&layer)?;
        for record in layer.records {
            let path = record.path;
            self.record(&path, record.attributes, record.xattrs, record.kind)
                .map_err(|error| error.of(&path))?;
        }
        Ok(())
    }

    /// Data that lost to later layers since the last call.
    pub fn take_discarded(&mut self) -> Vec<D> {
        std::mem::take(&mut self.discarded)
    }

    /// The node at `path`, links followed on the way and at the end; `None` if there is none.
    pub fn lookup(&mut self, path: &[u8]) -> Result<Option<NodeId>, LayerError> {
        Ok(self.follow(path, &Gone::default())?.found())
    }

    /// What has this name in the root, if it is no directory.
    pub(super) fn other_in_root(&self, name: &[u8]) -> Option<NodeId> {
        let Node::Directory(children) = self.get(ROOT)?.0 else {
            return None;
        };
        let id = *children.get(name)?;
        matches!(self.get(id)?.0, Node::Inode(_)).then_some(id)
    }

    /// One node: what it is, its attributes and its number of names.
    pub fn get(&self, id: NodeId) -> Option<(&Node<D>, &Attributes, &Xattrs, u32)> {
        let slot = self.slots.get(id.index())?.as_ref()?;
        Some((&slot.node, &slot.attributes, &slot.xattrs, slot.links))
    }

    /// All nodes, in the order of their ids, to be turned into something else. What was read is no longer held.
    pub fn into_nodes(self) -> impl Iterator<Item = (NodeId, Node<D>, Attributes, Xattrs)> {
        let ids = (0..).map(NodeId);
        ids.zip(self.slots).filter_map(|(id, slot)| {
            let slot = slot?;
            Some((id, slot.node, slot.attributes, slot.xattrs))
        })
    }

    /// Upper bound of [`NodeId::index`].
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn record(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        xattrs: Xattrs,
        kind: RecordKind<D>,
    ) -> Result<(), LayerError> {
        let Some((parent_path, name)) = split(path) else {
            let RecordKind::Directory = kind else {
                return Err(LayerError::malformed("the root of the layer is not a directory"));
            };
            return self.set(ROOT, attributes, xattrs);
        };
        let parent = self
            .resolve(parent_path, true)?
            .ok_or_else(|| LayerError::malformed("there is no directory for it to be in"))?;
        // The source of a link is looked up when the directory is there, which may have taken its place, and before the
        // name is, which it may be itself.
        let linked = match &kind {
            RecordKind::HardLink(target) => Some(self.link_source(path, target)?),
            _ => None,
        };
        let existing = self.children_mut(parent)?.get(name).copied();
        let id = match kind {
            RecordKind::Directory => {
                if let Some(id) = existing
                    && matches!(self.slot(id)?.node, Node::Directory(_))
                {
                    return self.set(id, attributes, xattrs);
                }
                self.add(Node::Directory(BTreeMap::new()), attributes, xattrs)?
            }
            RecordKind::Inode(inode) => {
                if let Inode::Symlink(target) = &inode
                    && (target.is_empty() || target.len() > MOST_TARGET || target.contains(&0))
                {
                    return Err(LayerError::malformed(format!(
                        "the symbolic link {} has an impossible target ({} bytes)",
                        show(path),
                        target.len()
                    )));
                }
                self.add(Node::Inode(inode), attributes, xattrs)?
            }
            RecordKind::HardLink(_) => {
                let Some(id) = linked else { return Ok(()) };
                if existing == Some(id) {
                    return Ok(());
                }
                let links = &mut self.slot_mut(id)?.links;
                if *links == MAX_LINKS {
                    return Err(LayerError::malformed(format!(
                        "it would be the {}st name of one file; ext4 ends at {MAX_LINKS}",
                        MAX_LINKS + 1
                    )));
                }
                *links += 1;
                id
            }
        };
        if let Some(old) = self.children_mut(parent)?.insert(name.into(), id) {
            self.unlink(old);
        }
        Ok(())
    }

    fn link_source(&mut self, path: &[u8], target: &[u8]) -> Result<NodeId, LayerError> {
        let id = match split(target) {
            Some((parent, name)) => match self.resolve(parent, false)? {
                Some(parent) => self.children_mut(parent)?.get(name).copied(),
                None => None,
            },
            None => Some(ROOT),
        };
        let Some(id) = id else {
            return Err(LayerError::malformed(format!(
                "{} is a hard link to {}, which does not exist (yet)",
                show(path),
                show(target)
            )));
        };
        if matches!(self.slot(id)?.node, Node::Directory(_)) {
            return Err(LayerError::malformed(format!(
                "{} is a hard link to the directory {}",
                show(path),
                show(target)
            )));
        }
        Ok(id)
    }

    fn set(&mut self, id: NodeId, attributes: Attributes, xattrs: Xattrs) -> Result<(), LayerError> {
        let slot = self.slot_mut(id)?;
        slot.attributes = attributes;
        slot.xattrs = xattrs;
        Ok(())
    }

    fn add(&mut self, node: Node<D>, attributes: Attributes, xattrs: Xattrs) -> Result<NodeId, LayerError> {
        let id = u32::try_from(self.slots.len())
            .map_err(|_| LayerError::TooLarge("the image has more entries than can be counted".into()))?;
        self.slots.push(Some(Slot {
            node,
            attributes,
            xattrs,
            links: 1,
        }));
        Ok(NodeId(id))
    }

    /// Takes one name of `id` away; with its last name it goes, and everything below it.
    pub(super) fn unlink(&mut self, id: NodeId) {
        let mut gone = vec![id];
        while let Some(id) = gone.pop() {
            let Some(place) = self.slots.get_mut(id.index()) else {
                continue;
            };
            let Some(slot) = place else { continue };
            slot.links -= 1;
            if slot.links > 0 {
                continue;
            }
            match place.take().map(|slot| slot.node) {
                Some(Node::Directory(children)) => gone.extend(children.into_values()),
                Some(Node::Inode(Inode::File(data))) => self.discarded.push(data),
                _ => {}
            }
        }
    }

    /// The directory at `path`, with links followed inside the root. With `create`, what is
    /// missing is made, also where a dangling link leads; a non-directory in the way is replaced,
    /// because the layer says by using it as one that it is a directory now.
    fn resolve(&mut self, path: &[u8], create: bool) -> Result<Option<NodeId>, LayerError> {
        let Walked { known, missing, .. } = self.follow(path, &Gone::default())?;
        let mut here = known.last().map_or(ROOT, |(id, _)| *id);
        let directory = matches!(self.slot(here)?.node, Node::Directory(_));
        if missing.is_empty() && directory {
            return Ok(Some(here));
        }
        if !create {
            return Ok(None);
        }
        if let Some((_, name)) = known.last().filter(|_| !directory) {
            let parent = known.iter().rev().nth(1).map_or(ROOT, |(id, _)| *id);
            here = self.make_implied(parent, name)?;
        }
        for name in &missing {
            here = self.make_implied(here, name)?;
        }
        Ok(Some(here))
    }

    /// Where `path` leads: nothing is made on the way. A `..` in a link's target takes the last component back, whatever
    /// that is, so that `file/../d` and `missing/../d` are `d`. The walk ends at a link that is `gone`.
    ///
    /// # Errors
    /// `Malformed` for a loop of links; the budget's.
    pub(super) fn follow<'p>(&mut self, path: &'p [u8], gone: &Gone) -> Result<Walked<'p>, LayerError> {
        let mut known: Vec<(NodeId, Cow<'p, [u8]>)> = Vec::new();
        let mut missing: Vec<Cow<'p, [u8]>> = Vec::new();
        let mut links = 0;
        // How many of `known` there were before the first that is gone, and all below it with it.
        let mut whole = usize::MAX;
        let mut todo: Vec<Cow<'p, [u8]>> = path.split(|&b| b == b'/').rev().map(Cow::Borrowed).collect();
        while let Some(component) = todo.pop() {
            self.budget.step()?;
            match &*component {
                b"" | b"." => continue,
                b".." => {
                    if missing.pop().is_none() {
                        known.pop();
                    }
                    if known.len() <= whole {
                        whole = usize::MAX;
                    }
                    continue;
                }
                _ => {}
            }
            let here = known.last().map_or(ROOT, |(id, _)| *id);
            let next = match &self.slot(here)?.node {
                Node::Directory(children) if missing.is_empty() => children.get(&*component).copied(),
                _ => None,
            };
            let Some(next) = next else {
                missing.push(component);
                continue;
            };
            let lost = whole < usize::MAX || gone.has(here, &component);
            let Node::Inode(Inode::Symlink(target)) = &self.slot(next)?.node else {
                if lost {
                    whole = whole.min(known.len());
                }
                known.push((next, component));
                continue;
            };
            links += 1;
            if lost {
                let barred = true;
                return Ok(Walked {
                    known,
                    missing,
                    links,
                    barred,
                });
            }
            if links > MOST_LINKS {
                return Err(LayerError::malformed(format!(
                    "{} leads through a loop of symbolic links",
                    show(path)
                )));
            }
            if target.starts_with(b"/") {
                known.clear();
                whole = usize::MAX;
            }
            todo.extend(target.split(|&b| b == b'/').rev().map(|part| Cow::Owned(part.to_vec())));
        }
        let barred = false;
        Ok(Walked {
            known,
            missing,
            links,
            barred,
        })
    }

    fn make_implied(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, LayerError> {
        if name.len() > 255 {
            return Err(LayerError::malformed(format!(
                "the name {} is longer than 255 bytes",
                show(name)
            )));
        }
        // Such a name is a marker's: "it is not possible to create an image root filesystem which contains a file or directory
        // name beginning with .wh." (layer.md). A link's target can lead here.
        if name.starts_with(b".wh.") {
            return Err(LayerError::malformed(format!(
                "a symbolic link leads it to {}, the name of a whiteout marker",
                show(name)
            )));
        }
        self.budget.implied(name)?;
        let made = self.add(Node::Directory(BTreeMap::new()), IMPLIED, None)?;
        if let Some(old) = self.children_mut(parent)?.insert(name.into(), made) {
            self.unlink(old);
        }
        Ok(made)
    }

    fn slot(&self, id: NodeId) -> Result<&Slot<D>, LayerError> {
        self.slots.get(id.index()).and_then(Option::as_ref).ok_or_else(gone)
    }

    fn slot_mut(&mut self, id: NodeId) -> Result<&mut Slot<D>, LayerError> {
        self.slots.get_mut(id.index()).and_then(Option::as_mut).ok_or_else(gone)
    }

    /// The names in a directory, if it is one and still there.
    pub(super) fn names(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, NodeId>> {
        self.children_mut(id).ok()
    }

    fn children_mut(&mut self, id: NodeId) -> Result<&mut BTreeMap<Box<[u8]>, NodeId>, LayerError> {
        match &mut self.slot_mut(id)?.node {
            Node::Directory(children) => Ok(children),
            Node::Inode(_) => Err(gone()),
        }
    }
}

/// Cannot happen: a name always leads to a node. An error all the same, never a panic.
fn gone() -> LayerError {
    LayerError::malformed("the merged tree is inconsistent: a name leads nowhere")
}
