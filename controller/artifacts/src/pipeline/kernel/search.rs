//! Where in a merged tree a kernel, its modules and its initrd are. Pure.

use crate::error::{PullError, Reason};
use crate::layers::merge::{Inode, Node, NodeId, Tree};
use crate::layers::path::normalise;
use crate::layers::{LayerError, show};
use crate::types::Limits;

/// Places of kernels, the best first: a directory, and how the name in it begins.
const KERNELS: [(&str, &str); 6] = [
    ("boot", "vmlinux"),
    ("", "vmlinux"),
    ("boot", "vmlinuz"),
    ("", "vmlinuz"),
    ("boot", "bzImage"),
    ("boot", "Image"),
];
/// Places of directories named by releases, with modules in them; and kernels on image-based systems.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// Looks for files in a tree.
pub struct Search<'a, D> {
    /// The source, for messages.
    pub name: &'a str,
    /// The tree.
    pub tree: &'a mut Tree<D>,
    /// Bounds on paths.
    pub limits: &'a Limits,
}

/// A file that was found: its path, for people, and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it was found.
    pub path: String,
    /// What was found.
    pub node: NodeId,
}

impl<D> Search<'_, D> {
    /// The kernel: at `path`, or in the usual places.
    ///
    /// # Errors
    /// None, or several equally good ones.
    pub fn kernel(&mut self, path: Option<&str>) -> Result<Found, PullError> {
        if let Some(path) = path {
            return self.file("kernel", path);
        }
        for (directory, prefix) in KERNELS {
            let named = self
                .children(directory)?
                .into_iter()
                .filter(|(name, _)| name.starts_with(prefix.as_bytes()));
            if let Some(found) = self.only(directory, named.collect())? {
                return Ok(found);
            }
        }
        for modules in MODULES {
            let mut inside = Vec::new();
            for (release, _) in self.children(modules)? {
                let path = [modules.as_bytes(), b"/", &release, b"/vmlinuz"].concat();
                if let Some(node) = self.lookup(&path)? {
                    inside.push(([&release[..], b"/vmlinuz"].concat(), node));
                }
            }
            if let Some(found) = self.only(modules, inside)? {
                return Ok(found);
            }
        }
        let why = "there is no boot/vmlinux*, vmlinux*, boot/vmlinuz*, vmlinuz*, boot/bzImage*, boot/Image* or \
            lib/modules/*/vmlinuz in it; name its path in kernelPath";
        Err(self.missing(why))
    }

    /// A file that must be at a path.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&mut self, what: &str, path: &str) -> Result<Found, PullError> {
        let (normal, shown) = (self.normal(what, path)?, show(path.as_bytes()));
        match self.lookup(&normal)? {
            Some(node) if self.is_file(node) => Ok(Found {
                path: path.to_owned(),
                node,
            }),
            Some(_) => Err(self.missing(&format!("{shown} ({what}Path) is no file"))),
            None => Err(self.missing(&format!("there is no {shown} ({what}Path) in it"))),
        }
    }

    /// The directory of the modules of a release: at `path`, or in the usual places. Answers with the release
    /// that its name says where `version` is not known.
    ///
    /// # Errors
    /// No directory at `path`; modules of other releases only; several, and no release known.
    pub fn modules(
        &mut self,
        path: Option<&str>,
        version: Option<&str>,
    ) -> Result<Option<(NodeId, String)>, PullError> {
        if let Some(path) = path {
            let (normal, shown) = (self.normal("modules", path)?, show(path.as_bytes()));
            let node = self.lookup(&normal)?.filter(|node| self.is_directory(*node));
            let node =
                node.ok_or_else(|| self.missing(&format!("there is no directory {shown} (modulesPath) in it")))?;
            let last = normal.rsplit(|&b| b == b'/').next().unwrap_or_default();
            let release = version.map_or_else(|| String::from_utf8_lossy(last).into_owned(), str::to_owned);
            return Ok(Some((node, release)));
        }
        let mut others = Vec::new();
        for modules in MODULES {
            for (release, node) in self.children(modules)? {
                let release = String::from_utf8_lossy(&release).into_owned();
                if !self.is_directory(node) || others.iter().any(|(_, known)| *known == node) {
                    continue;
                }
                if version == Some(&release) {
                    return Ok(Some((node, release)));
                }
                others.push((release, node));
            }
        }
        match (version, &others[..]) {
            (_, []) => Ok(None),
            (None, [(release, node)]) => Ok(Some((*node, release.clone()))),
            _ => {
                let there: Vec<&str> = others.iter().map(|(release, _)| release.as_str()).take(20).collect();
                let there = there.join(", ");
                Err(self.missing(&match version {
                    Some(version) => format!("the kernel is {version}, but the modules are of {there}"),
                    None => format!("it has modules of {there}; name their directory in modulesPath"),
                }))
            }
        }
    }

    /// The names in a directory, in byte order; none where there is no directory.
    pub fn children(&mut self, directory: &str) -> Result<Vec<(Vec<u8>, NodeId)>, PullError> {
        let node = self.lookup(directory.as_bytes())?;
        Ok(node.map(|node| self.names(node)).unwrap_or_default())
    }

    /// The names in the directory that a node is.
    pub fn names(&self, node: NodeId) -> Vec<(Vec<u8>, NodeId)> {
        match self.tree.get(node) {
            Some((Node::Directory(children), ..)) => children.iter().map(|(name, id)| (name.to_vec(), *id)).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether a node is a directory.
    pub fn is_directory(&self, node: NodeId) -> bool {
        matches!(self.tree.get(node), Some((Node::Directory(_), ..)))
    }

    /// Whether a node is a plain file.
    pub fn is_file(&self, node: NodeId) -> bool {
        matches!(self.tree.get(node), Some((Node::Inode(Inode::File(_)), ..)))
    }

    /// The one file among names of a directory; several names of one file are one.
    fn only(&mut self, directory: &str, named: Vec<(Vec<u8>, NodeId)>) -> Result<Option<Found>, PullError> {
        let mut files: Vec<Found> = Vec::new();
        for (name, _) in named {
            let path = [directory.as_bytes(), b"/", &name].concat();
            // Links are followed, inside of the image.
            if let Some(node) = self.lookup(&path)?
                && self.is_file(node)
                && !files.iter().any(|known| known.node == node)
            {
                let path = String::from_utf8_lossy(&path).trim_start_matches('/').to_owned();
                files.push(Found { path, node });
            }
        }
        match &files[..] {
            [] => Ok(None),
            [only] => Ok(Some(only.clone())),
            several => {
                let names: Vec<&str> = several.iter().map(|found| found.path.as_str()).take(20).collect();
                let why = format!("it has several kernels ({}); name one in kernelPath", names.join(", "));
                Err(self.missing(&why))
            }
        }
    }

    fn lookup(&mut self, path: &[u8]) -> Result<Option<NodeId>, PullError> {
        let found = self.tree.lookup(path);
        found.map_err(|error: LayerError| PullError::new(Reason::Malformed, format!("{}: {error}", self.name)))
    }

    fn normal(&self, what: &str, path: &str) -> Result<Vec<u8>, PullError> {
        normalise(path.as_bytes(), self.limits.path_bytes)
            .map_err(|error| PullError::new(Reason::BadReference, format!("{what}Path: {error}")))
    }

    fn missing(&self, why: &str) -> PullError {
        PullError::new(Reason::MissingFile, format!("{}: {why}", self.name))
    }
}
