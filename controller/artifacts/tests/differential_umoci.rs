//! The same layers through umoci and through vmlet: roots made of Debian packages, with layers of changes above them. What
//! vmlet does otherwise than umoci is said in docs/images.md and left out here: directories without an entry have a time
//! of their own with each, and ext4's root has a `lost+found`.
//!
//! Needs root, umoci, and images: `VMLET_TEST_GUEST`, an OCI layout (`scripts/guest-image` makes it), in every run;
//! `VMLET_TEST_SYSTEMD`, one layer of a whole Debian, and `VMLET_TEST_IMAGES`, the directory of layouts that
//! `scripts/image-set` makes (a Debian with compilers in seven layers, 240 MB compressed), in the slow lane.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../ext4/tests/common/inventory.rs"]
mod inventory;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../ext4/tests/common/reader.rs"]
mod reader;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use inventory::{BLOCK, Content, Entry, lines};
use serde_json::{Value, json};
use support::raw::{Member, dir, file, hardlink, member, symlink, tar};
use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::layers::path::normalise;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

type Tree = BTreeMap<Vec<u8>, Entry>;

fn document(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// The layers of the one image of a layout, compressed as they are.
fn layers(layout: &Path) -> Vec<Vec<u8>> {
    let manifest = document(&blob(layout, &document(&layout.join("index.json"))["manifests"][0]));
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| fs::read(blob(layout, layer)).unwrap()).collect()
}

fn inflated(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

/// A layer of changes over a Debian that has this program.
fn changes(program: &str) -> Vec<u8> {
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
        hardlink("srv/program", program),
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
fn unpacked(root: &Path) -> Tree {
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
        let mut names = vec![0; 65_536];
        let length = rustix::fs::llistxattr(&full, &mut names[..]).unwrap();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(&full, name, &mut value[..]).unwrap();
            entry.xattrs.insert(name.to_vec(), value[..length].to_vec());
        }
        tree.insert(name, entry);
    }
    tree
}

fn ours(layers: &[Vec<u8>]) -> Tree {
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
    let tree = flatten(inputs, &mut store, &Limits::default(), &Default::default(), &|| ())
        .map_err(|(_, error)| error)
        .unwrap();
    store.finish(tree, &Default::default()).unwrap();
    support::check(place.path());
    let mut tree = reader::Image::open(place.path()).tree();
    for entry in tree.values_mut() {
        entry.times = [(0, 0), entry.times[1], (0, 0), (0, 0)];
    }
    tree
}

/// The directories that some layer has an entry for.
fn with_entries(layers: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    for layer in layers {
        let bytes = vmlet_artifacts::layers::decode::decoder(Cursor::new(layer), 1 << 27).unwrap();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let entry = entry.unwrap();
            if entry.header().entry_type().is_dir() {
                let path = normalise(&entry.path_bytes(), 4096).unwrap();
                found.insert(if path.is_empty() {
                    path
                } else {
                    [b"/", &path[..]].concat()
                });
            }
        }
    }
    found
}

/// Whether umoci can be asked here.
fn umoci() -> bool {
    let here = rustix::process::geteuid().is_root() && Command::new("umoci").arg("--version").output().is_ok();
    if !here {
        println!("skipped: it needs root and umoci");
    }
    here
}

fn environment(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: {name} names nothing");
    }
    path
}

/// Unpacks the image of a layout with umoci, and these same layers with vmlet; gives the number of equal entries.
fn same(layout: &Path, layers: &[Vec<u8>]) -> usize {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    fs::create_dir(&image).unwrap();
    std::os::unix::fs::symlink(layout.join("blobs"), image.join("blobs")).unwrap();
    fs::copy(layout.join("oci-layout"), image.join("oci-layout")).unwrap();
    let mut index = document(&layout.join("index.json"));
    index["manifests"][0]["annotations"] = json!({ "org.opencontainers.image.ref.name": "app" });
    fs::write(image.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let bundle = work.path().join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image", &format!("{}:app", image.display())])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let (mut theirs, mut ours) = (unpacked(&bundle.join("rootfs")), ours(layers));
    let known = with_entries(layers);
    for tree in [&mut theirs, &mut ours] {
        // The root is a directory below another one there, and has a lost+found here.
        tree.get_mut(&b""[..]).unwrap().links = 0;
        for (path, entry) in tree.iter_mut() {
            if entry.kind == 'd' && !known.contains(path) {
                entry.times = Default::default();
            }
        }
    }
    let (theirs, ours) = (lines(&theirs), lines(&ours));
    let sets = [&theirs, &ours].map(|lines| lines.iter().collect::<BTreeSet<_>>());
    let only = |at: usize| sets[at].difference(&sets[1 - at]).take(20).collect::<Vec<_>>();
    let (missing, different) = (only(0), only(1));
    assert!(
        different.is_empty() && missing.is_empty(),
        "vmlet: {different:#?}\numoci: {missing:#?}"
    );
    ours.len()
}

/// The same for layers that no layout has yet.
fn same_in_a_layout(layers: &[Vec<u8>]) -> usize {
    let place = tempfile::tempdir().unwrap();
    let layout = place.path().join("layout");
    let archive = support::archive(layers, false);
    tar::Archive::new(&archive[..]).unpack(&layout).unwrap();
    same(&layout, layers)
}

#[test]
fn a_small_debian_with_changes_is_the_same_as_with_umoci() {
    let Some(guest) = environment("VMLET_TEST_GUEST").filter(|_| umoci()) else {
        return;
    };
    let debian = layers(&guest).iter().map(|layer| inflated(layer)).collect::<Vec<_>>();
    let found = same_in_a_layout(&[&debian[..], &[changes("usr/bin/busybox")]].concat());
    assert!(found > 300, "{found}");
}

#[test]
fn a_whole_debian_with_changes_is_the_same_as_with_umoci() {
    let Some(layer) = environment("VMLET_TEST_SYSTEMD").filter(|_| umoci()) else {
        return;
    };
    let found = same_in_a_layout(&[inflated(&fs::read(layer).unwrap()), changes("usr/bin/dpkg")]);
    assert!(found > 1000, "{found}");
}

#[test]
fn images_of_many_layers_of_debian_packages_are_the_same_as_with_umoci() {
    let Some(images) = environment("VMLET_TEST_IMAGES").filter(|_| umoci()) else {
        return;
    };
    for (name, least) in [("minimal", 1), ("derived", 20_000)] {
        let layout = images.join(name);
        let found = same(&layout, &layers(&layout));
        assert!(found > least, "{name}: {found}");
    }
}
