//! What the tests share: images in temporary files, and the e2fsprogs that judge them.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod inventory;
pub mod model;
pub mod reader;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::{NamedTempFile, TempDir};
use vmlet_ext4::{
    Attributes, Checksums, Error, FileData, Inode, Kind, NodeId, Options, Size, Summary, Timestamp, Tree, Writer,
};

pub const MIB: u64 = 1 << 20;
pub const TIME: Timestamp = Timestamp {
    sec: 1_700_000_000,
    nsec: 123_456_789,
};

/// Options of most tests.
pub fn options(size: Size) -> Options {
    Options::new([0x17; 16], [0x29; 16], size)
}

/// Attributes of most tests.
pub fn attributes(mode: u16) -> Attributes {
    Attributes::new(mode, 0, 0, TIME)
}

/// A new image and the writer for it.
pub fn image(size: Size) -> (NamedTempFile, Writer) {
    let file = NamedTempFile::new().unwrap();
    let writer = Writer::create(file.reopen().unwrap(), options(size)).unwrap();
    (file, writer)
}

/// A content.
pub fn data(writer: &mut Writer, bytes: &[u8]) -> FileData {
    let mut file = writer.begin_file().unwrap();
    file.write(bytes).unwrap();
    file.finish().unwrap()
}

/// Adds an inode without xattrs under a name.
pub fn put(tree: &mut Tree, parent: NodeId, name: &[u8], kind: Kind) -> Result<NodeId, Error> {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    put_inode(tree, parent, name, kind, attributes(mode), vec![])
}

/// Adds an inode under a name.
pub fn put_inode(
    tree: &mut Tree,
    parent: NodeId,
    name: &[u8],
    kind: Kind,
    attributes: Attributes,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<NodeId, Error> {
    let id = tree.add(Inode {
        kind,
        attributes,
        xattrs,
    })?;
    tree.link(parent, name, id)?;
    Ok(id)
}

/// Finishes an image and has e2fsck judge it. Whatever was written, given up or left out: the checksums are the file's.
pub fn finish(file: &NamedTempFile, writer: Writer, tree: Tree) -> Summary {
    let summary = writer.finish(tree).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), summary.size);
    let found = Checksums::of_file(file.as_file()).unwrap();
    let [noted, found] = [&summary.checksums, &found].map(|sums| sums.iter().collect::<BTreeSet<_>>());
    let unlike: BTreeSet<u32> = noted.symmetric_difference(&found).map(|(block, _)| *block).collect();
    assert!(
        unlike.is_empty(),
        "the checksums of blocks {unlike:?} are not the file's"
    );
    check(file.path());
    summary
}

/// What an image has of everything, wherever it lies.
pub fn figures(summary: &Summary) -> [u64; 5] {
    let Summary {
        size,
        used,
        free,
        inodes,
        free_inodes,
        ..
    } = *summary;
    [size, used, free, inodes, free_inodes]
}

/// A program, of e2fsprogs mostly; `None`, with a printed word, where it is not installed.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        println!("skipped: {name} is not installed");
    }
    found
}

/// Fails unless e2fsck finds nothing at all to say about an image.
pub fn check(image: &Path) {
    let Some(e2fsck) = tool("e2fsck") else { return };
    let output = Command::new(e2fsck).arg("-fn").arg(image).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// Runs one request of debugfs and returns what it prints; `None` where debugfs is missing.
pub fn debugfs(image: &Path, request: &str) -> Option<Vec<u8>> {
    let output = Command::new(tool("debugfs")?)
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    Some(output.stdout)
}

/// Everything a program said.
pub fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// An image attached to a mount point of its own for as long as this lives.
pub struct Mounted {
    pub directory: TempDir,
}

impl Mounted {
    /// Mounts an image read-write through a loop device; `None`, with a printed word, where that is not possible.
    pub fn new(image: &Path) -> Option<Mounted> {
        if !rustix::process::geteuid().is_root() || File::open("/dev/loop-control").is_err() {
            println!("skipped: mounting needs root and loop devices");
            return None;
        }
        let directory = TempDir::new().unwrap();
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(image)
            .arg(directory.path())
            .output()
            .unwrap();
        let said = text(&output);
        if said.contains("loop device") || said.contains("permission denied") {
            println!("skipped: {said}");
            return None;
        }
        assert!(output.status.success(), "{said}");
        Some(Mounted { directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Unmounts it, so that the image is complete again.
    pub fn unmount(self) {
        let output = Command::new("umount").arg(self.path()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only after a failure: leave nothing mounted behind.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}
