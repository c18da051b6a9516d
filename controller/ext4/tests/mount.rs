//! What Linux itself reads, writes and grows: needs root and loop devices, and says so where they are missing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use common::*;
use vmlet_ext4::{Attributes, FreeSpace, Kind, NodeId, Size, Timestamp, Tree};

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn xattr(path: &std::path::Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
    value.truncate(length);
    value
}

#[test]
fn linux_reads_everything_and_writes_on() {
    let (file, mut writer) = image(Size::Auto {
        free: FreeSpace {
            percent: 0,
            bytes: 200 * MIB,
        },
    });
    let content: Vec<u8> = (0..1_000_003u32).map(|at| (at * 7 / 3) as u8).collect();
    let whole = data(&mut writer, &content);
    let mut sparse = writer.begin_file().unwrap();
    sparse.write(b"begin").unwrap();
    sparse.hole(1 << 33).unwrap();
    sparse.write(b"end").unwrap();
    let sparse = sparse.finish().unwrap();
    let mut tree = Tree::new(attributes(0o1751));
    let none = u32::MAX;
    let access = acl(&[
        (1, 6, none),
        (2, 7, 1000),
        (4, 4, none),
        (8, 5, 2000),
        (16, 7, none),
        (32, 0, none),
    ]);
    let xattrs = vec![
        (
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (b"system.posix_acl_access".to_vec(), access.clone()),
        (b"trusted.binary".to_vec(), (0..=255).collect()),
        (b"user.empty".to_vec(), vec![]),
        (b"user.large".to_vec(), vec![0xa5; 3000]),
    ];
    let owner = Attributes {
        mode: 0o4674,
        uid: 100_000,
        gid: 200_000,
        atime: Timestamp {
            sec: 5_000_000_000,
            nsec: 1,
        },
        mtime: Timestamp {
            sec: -5,
            nsec: 999_999_999,
        },
        ctime: Timestamp { sec: 77, nsec: 3 },
        crtime: Timestamp { sec: 88, nsec: 4 },
    };
    let node = put_inode(
        &mut tree,
        NodeId::ROOT,
        b"whole",
        Kind::File(whole),
        owner,
        xattrs.clone(),
    )
    .unwrap();
    tree.link(NodeId::ROOT, b"again", node).unwrap();
    put(&mut tree, NodeId::ROOT, b"sparse", Kind::File(sparse)).unwrap();
    let default = vec![(b"system.posix_acl_default".to_vec(), access.clone())];
    let shared = put_inode(
        &mut tree,
        NodeId::ROOT,
        b"shared",
        Kind::Directory,
        attributes(0o2775),
        default,
    )
    .unwrap();
    let long = vec![b't'; 2000];
    put(&mut tree, shared, b"short", Kind::Symlink(b"../whole".to_vec())).unwrap();
    put(&mut tree, shared, b"long", Kind::Symlink(long.clone())).unwrap();
    put(
        &mut tree,
        NodeId::ROOT,
        b"device",
        Kind::CharDevice {
            major: 300,
            minor: 70_000,
        },
    )
    .unwrap();
    put(
        &mut tree,
        NodeId::ROOT,
        b"disk",
        Kind::BlockDevice { major: 8, minor: 1 },
    )
    .unwrap();
    put(&mut tree, NodeId::ROOT, b"pipe", Kind::Fifo).unwrap();
    put(&mut tree, NodeId::ROOT, b"socket", Kind::Socket).unwrap();
    let wide = put(&mut tree, NodeId::ROOT, b"wide", Kind::Directory).unwrap();
    for number in 0..20_000 {
        tree.link(wide, format!("{number}-\u{e4}").as_bytes(), node).unwrap();
    }
    finish(&file, writer, tree);

    let Some(mounted) = Mounted::new(file.path()) else {
        return;
    };
    let root = mounted.path();
    let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
    assert_eq!(meta("").mode() & 0o7777, 0o1751);
    let found = meta("whole");
    assert_eq!((found.mode(), found.uid(), found.gid()), (0o104674, 100_000, 200_000));
    assert_eq!((found.mtime(), found.mtime_nsec()), (-5, 999_999_999));
    assert_eq!((found.atime(), found.atime_nsec()), (5_000_000_000, 1));
    assert_eq!((found.ctime(), found.ctime_nsec()), (77, 3));
    assert_eq!(found.nlink(), 20_002);
    assert_eq!(found.ino(), meta("again").ino());
    for (name, value) in &xattrs {
        let name = std::str::from_utf8(name).unwrap();
        assert_eq!(&xattr(&root.join("whole"), name), value, "{name}");
    }
    assert_eq!(xattr(&root.join("shared"), "system.posix_acl_default"), access);
    assert!(std::fs::read(root.join("whole")).unwrap() == content);
    assert_eq!(meta("sparse").len(), (1 << 33) + 8);
    assert_eq!(meta("sparse").blocks(), 16);
    assert_eq!(
        std::fs::read_link(root.join("shared/short")).unwrap().to_str(),
        Some("../whole")
    );
    assert_eq!(
        std::fs::read_link(root.join("shared/long"))
            .unwrap()
            .as_os_str()
            .as_encoded_bytes(),
        long
    );
    assert!(meta("device").file_type().is_char_device());
    let number = meta("device").rdev();
    assert_eq!((rustix::fs::major(number), rustix::fs::minor(number)), (300, 70_000));
    assert!(meta("disk").file_type().is_block_device());
    assert!(meta("pipe").file_type().is_fifo() && meta("socket").file_type().is_socket());
    // By name, through the index, and all of them in one listing.
    for number in 0..20_000 {
        assert_eq!(meta(&format!("wide/{number}-\u{e4}")).ino(), found.ino());
    }
    let listed: BTreeSet<_> = std::fs::read_dir(root.join("wide"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed.len(), 20_000);

    // Linux writes on: into the index, into new files, and takes away.
    for number in 0..3000 {
        std::fs::write(root.join(format!("wide/new {number}")), vec![1; number]).unwrap();
        std::fs::remove_file(root.join(format!("wide/{number}-\u{e4}"))).unwrap();
    }
    std::fs::write(root.join("shared/new"), vec![3; 100 * MIB as usize]).unwrap();
    assert_eq!(
        xattr(&root.join("shared/new"), "system.posix_acl_access").len(),
        access.len()
    );
    std::fs::remove_file(root.join("sparse")).unwrap();
    rustix::fs::lsetxattr(root.join("again"), "user.more", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    mounted.unmount();
    check(file.path());
}

#[test]
fn a_mounted_image_grows_to_a_terabyte() {
    let (file, mut writer) = image(Size::Fixed(512 * MIB));
    let content = data(&mut writer, &[5; 100_000]);
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"kept", Kind::File(content)).unwrap();
    finish(&file, writer, tree);
    let Some(resize) = tool("resize2fs") else {
        return;
    };
    file.as_file().set_len(1 << 40).unwrap();
    let Some(mounted) = Mounted::new(file.path()) else {
        return;
    };
    let source = Command::new("findmnt")
        .args(["-no", "SOURCE"])
        .arg(mounted.path())
        .output()
        .unwrap();
    let output = Command::new(resize).arg(text(&source).trim()).output().unwrap();
    if text(&output).contains("Permission denied") {
        println!("skipped: growing a mounted file system needs CAP_SYS_RESOURCE");
        mounted.unmount();
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    let space = rustix::fs::statvfs(mounted.path()).unwrap();
    assert!(space.f_blocks * space.f_frsize > 1_000_000 * MIB, "{}", space.f_blocks);
    assert_eq!(space.f_files, 8192 * 8192);
    assert!(std::fs::read(mounted.path().join("kept")).unwrap() == [5; 100_000]);
    std::fs::write(mounted.path().join("new"), vec![6; 10_000_000]).unwrap();
    mounted.unmount();
    check(file.path());
}
