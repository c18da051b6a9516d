//! The same layers through umoci and through vmlet: a root made of Debian packages, and a layer of changes above it. Needs
//! root, umoci, and `VMLET_TEST_GUEST` (an OCI layout, `scripts/guest-image` makes it); what vmlet does otherwise than umoci is
//! said in docs/images.md and left out here.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../ext4/tests/common/inventory.rs"]
mod inventory;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../ext4/tests/common/reader.rs"]
mod reader;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use inventory::{BLOCK, Content, Entry, lines};
use support::raw::{Member, dir, file, hardlink, member, symlink, tar};
use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

/// The layer of the image of Debian packages: the largest blob of the layout.
fn debian(layout: &Path) -> Vec<u8> {
    let blobs = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let largest = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = Vec::new();
    let packed = fs::File::open(largest).unwrap();
    flate2::read::MultiGzDecoder::new(packed)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn changes() -> Vec<u8> {
    let link = |name, target| Member {
        mode: 0o777,
        ..symlink(name, target)
    };
    let device = Member {
        device: (10, 200),
        ..member(b'3', "srv/tun").mode(0o600)
    };
    tar(&[
        file("usr/bin/.wh.vi", ""),
        dir("etc").mode(0o751).owner(3, 4),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n").pax("mtime", b"1600000000.123456789"),
        file(".wh.root", ""),
        dir("srv").mode(0o1777),
        file("srv/f", "content").mode(0o4755).owner(100_000, 7),
        hardlink("srv/g", "srv/f"),
        hardlink("srv/busybox", "usr/bin/busybox"),
        link("srv/l", "../etc/passwd"),
        hardlink("srv/m", "srv/l"),
        member(b'6', "srv/pipe").mode(0o622),
        device,
        file("srv/x", "x").pax("SCHILY.xattr.user.note", b"\x00\xffvalue"),
        file("bin/through-a-link", "usr-merge"),
        file("var/tmp/.wh..wh..opq", ""),
        file("var/tmp/new", "new"),
        file("tmp", "no directory any more"),
    ])
}

/// umoci's tree, as the host's file system has it.
fn unpacked(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        if meta.is_dir() {
            todo.extend(
                fs::read_dir(&full)
                    .unwrap()
                    .map(|entry| path.join(entry.unwrap().file_name())),
            );
        }
        let name = match path.as_os_str().as_bytes() {
            b"" => Vec::new(),
            name => [b"/", name].concat(),
        };
        let kind = meta.file_type();
        let kind = match () {
            () if kind.is_dir() => 'd',
            () if kind.is_symlink() => 'l',
            () if kind.is_file() => '-',
            () if kind.is_fifo() => 'p',
            () if kind.is_char_device() => 'c',
            () => 'b',
        };
        let mut content = Content::default();
        if kind == '-' {
            let bytes = fs::read(&full).unwrap();
            let blocks = bytes.chunks(BLOCK).zip(0..);
            let filled = blocks.filter(|(block, _)| block.iter().any(|byte| *byte != 0));
            filled.for_each(|(block, index)| content.block(index, block));
        }
        let number = meta.rdev();
        let mut entry = Entry {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            links: meta.nlink(),
            size: if kind == 'd' { 0 } else { meta.len() },
            device: (0, 0),
            times: [(0, 0), (meta.mtime(), meta.mtime_nsec() as u32), (0, 0), (0, 0)],
            inode: meta.ino(),
            xattrs: BTreeMap::new(),
            content,
            target: match kind {
                'l' => fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec(),
                _ => Vec::new(),
            },
        };
        if matches!(kind, 'b' | 'c') {
            entry.device = (
                (number >> 8 & 0xfff) as u32,
                (number & 0xff | number >> 12 & 0xf_ff00) as u32,
            );
        }
        let mut value = [0; 4096];
        if kind == '-'
            && let Ok(length) = rustix::fs::lgetxattr(&full, "user.note", &mut value[..])
        {
            entry.xattrs.insert(b"user.note".to_vec(), value[..length].to_vec());
        }
        tree.insert(name, entry);
    }
    tree
}

fn ours(layers: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Entry> {
    let place = tempfile::NamedTempFile::new().unwrap();
    let size = Size::Auto {
        free: FreeSpace::default(),
    };
    let writer = Writer::create(place.reopen().unwrap(), Options::new([1; 16], [2; 16], size)).unwrap();
    let mut store = DiskStore::new(writer);
    let input = |bytes: &Vec<u8>| Input {
        bytes: Box::new(Cursor::new(bytes.clone())),
        diff_id: None,
    };
    let inputs = layers.iter().map(input).collect();
    let tree = flatten(inputs, &mut store, &Limits::default(), &|| ())
        .map_err(|(_, error)| error)
        .unwrap();
    store.finish(tree).unwrap();
    support::check(place.path());
    let mut tree = reader::Image::open(place.path()).tree();
    for entry in tree.values_mut() {
        entry.times = [(0, 0), entry.times[1], (0, 0), (0, 0)];
    }
    tree
}

#[test]
fn the_same_layers_give_the_same_tree_as_with_umoci() {
    let Some(layout) = std::env::var_os("VMLET_TEST_GUEST")
        .map(PathBuf::from)
        .filter(|path| path.exists())
    else {
        println!("skipped: VMLET_TEST_GUEST names no image");
        return;
    };
    if !rustix::process::geteuid().is_root() || Command::new("umoci").arg("--version").output().is_err() {
        println!("skipped: it needs root and umoci");
        return;
    }
    let layers = [debian(&layout), changes()];
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    let archive = support::archive(&layers, false);
    tar::Archive::new(&archive[..]).unpack(&image).unwrap();
    let index = image.join("index.json");
    let mut named: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    named["manifests"][0]["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "app" });
    fs::write(&index, serde_json::to_vec(&named).unwrap()).unwrap();
    let bundle = work.path().join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image", &format!("{}:app", image.display())])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let (mut theirs, mut ours) = (unpacked(&bundle.join("rootfs")), ours(&layers));
    // The root is a directory below another one there, and has a lost+found here.
    for tree in [&mut theirs, &mut ours] {
        tree.get_mut(&b""[..]).unwrap().links = 0;
    }
    let (theirs, ours) = (lines(&theirs), lines(&ours));
    let different: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).collect();
    assert!(
        different.is_empty() && missing.is_empty(),
        "vmlet: {different:#?}\numoci: {missing:#?}"
    );
    assert!(ours.len() > 300, "{}", ours.len());
}
