//! What lies on the disk, as e2fsck and debugfs see it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};

use common::*;
use vmlet_ext4::{Attributes, FreeSpace, Kind, NodeId, Size, Timestamp, Tree};

#[test]
fn an_empty_tree_is_clean_at_every_kind_of_size() {
    let group = 128 * MIB;
    for size in [
        group,
        group + 4096,
        2 * group - 8192,
        // A ninth group alone begins a flex group, a tenth carries a backup.
        8 * group + MIB,
        8 * group + 3 * MIB,
        9 * group + 4096,
        9 * group + MIB,
        64 * group + 5 * MIB,
        100 << 30,
        1 << 40,
        group + 12345,
    ] {
        let (file, writer) = image(Size::Fixed(size));
        let summary = finish(&file, writer, Tree::new(attributes(0o755)));
        assert_eq!(summary.size, size);
        let allocated = file.as_file().metadata().unwrap().blocks() * 512;
        assert!(allocated < 24 * MIB, "{size}: {allocated}");
    }
}

#[test]
fn an_automatic_size_leaves_the_space_that_was_asked_for() {
    for (percent, bytes, content) in [(0, 0, 0), (50, 0, 300), (0, 1000 * MIB, 10), (10, MIB, 1100)] {
        let (file, mut writer) = image(Size::Auto {
            free: FreeSpace { percent, bytes },
        });
        let mut all = writer.begin_file().unwrap();
        for _ in 0..content {
            all.write(&vec![7; MIB as usize]).unwrap();
        }
        let all = all.finish().unwrap();
        let mut tree = Tree::new(attributes(0o755));
        put(&mut tree, NodeId::ROOT, b"all", Kind::File(all)).unwrap();
        let summary = finish(&file, writer, tree);
        assert!(summary.free >= bytes, "{summary:?}");
        assert!(summary.free >= content * MIB * u64::from(percent) / 100, "{summary:?}");
        assert_eq!(summary.size % (128 * MIB), 0);
        assert!(summary.free < bytes.max(content * MIB * u64::from(percent) / 100) + 128 * MIB);
    }
}

#[test]
fn many_inodes_make_an_automatic_image_larger() {
    let (file, writer) = image(Size::Auto {
        free: FreeSpace::default(),
    });
    let mut tree = Tree::new(attributes(0o755));
    for number in 0..20_000 {
        let name = format!("{number}");
        put(&mut tree, NodeId::ROOT, name.as_bytes(), Kind::Fifo).unwrap();
    }
    let summary = finish(&file, writer, tree);
    assert_eq!(summary.size, 3 * 128 * MIB);
    assert_eq!(summary.inodes, 20_000 + 11);
}

#[test]
fn the_geometry_is_the_one_for_life() {
    let (file, writer) = image(Size::Fixed(2 << 30));
    finish(&file, writer, Tree::new(attributes(0o755)));
    let Some(output) = debugfs(file.path(), "stats") else {
        return;
    };
    let output = String::from_utf8(output).unwrap();
    for line in [
        "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg metadata_csum_seed sparse_super \
         large_file huge_file dir_nlink extra_isize metadata_csum",
        "unsigned_directory_hash",
        "Reserved GDT blocks:      127",
        "Inodes per group:         8192",
        "Flex block group size:    8",
        "Journal inode:            8",
        "Filesystem state:         clean",
        "Reserved block count:     0",
    ] {
        assert!(output.contains(line), "{line} is missing in {output}");
    }
    assert_eq!(
        output.matches("Inode table at").count() + output.matches("inode table at").count(),
        16
    );
    let journal = String::from_utf8(debugfs(file.path(), "stat <8>").unwrap()).unwrap();
    assert!(journal.contains("Size: 67108864"), "{journal}");
    // ITABLE_ZEROED, or the kernel would write all inode tables after the first mount.
    let mut descriptors = [0; 16 * 64];
    file.as_file().read_exact_at(&mut descriptors, 4096).unwrap();
    for (group, descriptor) in descriptors.chunks(64).enumerate() {
        assert_eq!(descriptor[0x12] & 4, 4, "group {group}");
    }
}

#[test]
fn every_superblock_copy_and_descriptor_copy_is_valid() {
    let (file, writer) = image(Size::Fixed(4 << 30));
    finish(&file, writer, Tree::new(attributes(0o755)));
    let read = |block: u64| {
        let mut bytes = vec![0; 4096];
        file.as_file().read_exact_at(&mut bytes, block * 4096).unwrap();
        bytes
    };
    let primary = &read(0)[1024..2048];
    for group in [1, 3, 5, 7, 9, 25, 27u16] {
        let copy = &read(u64::from(group) * 32768)[..1024];
        assert_eq!(copy[..0x5a], primary[..0x5a]);
        assert_eq!(copy[0x5a..0x5c], group.to_le_bytes());
        assert_eq!(copy[0x5c..0x3fc], primary[0x5c..0x3fc]);
        let sum = !crc32c::crc32c(&copy[..0x3fc]);
        assert_eq!(copy[0x3fc..], sum.to_le_bytes());
        assert_eq!(read(u64::from(group) * 32768 + 1), read(1));
    }
}

#[test]
fn every_kind_of_inode_keeps_its_attributes() {
    let (file, mut writer) = image(Size::Fixed(256 * MIB));
    let content = data(&mut writer, b"content");
    let mut tree = Tree::new(attributes(0o1777));
    let times = Attributes {
        mode: 0o6751,
        uid: 0x1234_5678,
        gid: 0xfedc_ba98,
        atime: Timestamp { sec: -1, nsec: 1 },
        mtime: Timestamp {
            sec: 1 << 32,
            nsec: 999_999_999,
        },
        ctime: Timestamp {
            sec: 0x7fff_ffff,
            nsec: 0,
        },
        crtime: Timestamp { sec: 0, nsec: 7 },
    };
    let kinds = [
        (&b"file"[..], Kind::File(content)),
        (b"directory", Kind::Directory),
        (b"fifo", Kind::Fifo),
        (b"socket", Kind::Socket),
        (b"old-device", Kind::CharDevice { major: 5, minor: 1 }),
        (
            b"new-device",
            Kind::BlockDevice {
                major: 4095,
                minor: 0xf_ffff,
            },
        ),
        (b"link", Kind::Symlink(b"file".to_vec())),
    ];
    for (name, kind) in kinds {
        put_inode(&mut tree, NodeId::ROOT, name, kind, times, vec![]).unwrap();
    }
    finish(&file, writer, tree);
    for (name, kind, device) in [
        ("file", "regular", ""),
        ("directory", "directory", ""),
        ("fifo", "FIFO", ""),
        ("socket", "socket", ""),
        ("old-device", "character special", "05:01 (hex 05:01)"),
        ("new-device", "block special", "(hex fff:fffff)"),
        ("link", "symlink", "Fast link dest: \"file\""),
    ] {
        let Some(output) = debugfs(file.path(), &format!("stat {name}")) else {
            return;
        };
        let output = String::from_utf8(output).unwrap();
        for part in [
            kind,
            device,
            "Mode:  06751",
            "User: 305419896   Group: -19088744",
            "atime: 0xffffffff:00000004",
            "mtime: 0x00000000:ee6b27fd",
            "ctime: 0x7fffffff:00000000",
            "crtime: 0x00000000:0000001c",
        ] {
            assert!(output.contains(part), "{part} is missing in {output}");
        }
    }
}

#[test]
fn symlinks_around_the_inline_limit_are_clean() {
    let (file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    for length in [1, 58, 59, 60, 61, 3000, 4094, 4095] {
        let name = format!("link-{length}");
        put(
            &mut tree,
            NodeId::ROOT,
            name.as_bytes(),
            Kind::Symlink(vec![b't'; length]),
        )
        .unwrap();
    }
    finish(&file, writer, tree);
    for length in [59, 60, 4095] {
        if let Some(output) = debugfs(file.path(), &format!("stat link-{length}")) {
            let output = String::from_utf8(output).unwrap();
            assert_eq!(output.contains("Fast link dest"), length < 60, "{output}");
            assert!(output.contains(&format!("Size: {length}")), "{output}");
        }
    }
}

#[test]
fn holes_take_no_space_and_content_survives_around_them() {
    let (file, mut writer) = image(Size::Fixed(256 * MIB));
    let mut content = Vec::new();
    let mut sparse = writer.begin_file().unwrap();
    for (byte, length) in [
        (1, 10_000),
        (0, 1_000_000),
        (2, 1),
        (0, 3),
        (0, 4096 * 5),
        (3, 70_000),
        (0, 9000),
    ] {
        if byte == 0 && length != 3 {
            sparse.hole(length).unwrap();
        } else {
            sparse.write(&vec![byte; length as usize]).unwrap();
        }
        content.resize(content.len() + length as usize, byte);
    }
    let sparse = sparse.finish().unwrap();
    assert_eq!(sparse.size(), content.len() as u64);
    assert!(sparse.allocated() <= 24 * 4096, "{}", sparse.allocated());
    let mut huge = writer.begin_file().unwrap();
    huge.hole((1 << 43) + 5).unwrap();
    huge.write(b"end").unwrap();
    let huge = huge.finish().unwrap();
    let nothing_but_holes = data(&mut writer, &[0; 123_456]);
    assert_eq!(nothing_but_holes.allocated(), 0);
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"sparse", Kind::File(sparse)).unwrap();
    put(&mut tree, NodeId::ROOT, b"huge", Kind::File(huge)).unwrap();
    put(&mut tree, NodeId::ROOT, b"zeroes", Kind::File(nothing_but_holes)).unwrap();
    finish(&file, writer, tree);
    if let Some(read) = debugfs(file.path(), "cat sparse") {
        assert!(read == content);
    }
    if let Some(read) = debugfs(file.path(), "cat zeroes") {
        assert!(read == [0; 123_456]);
    }
}

#[test]
fn a_file_in_thousands_of_pieces_gets_a_deep_extent_tree() {
    let (file, mut writer) = image(Size::Fixed(512 * MIB));
    let mut pieces = writer.begin_file().unwrap();
    let mut content = Vec::new();
    for piece in 0..6000u32 {
        let block = [piece.to_le_bytes(), (piece + 1).to_le_bytes()].concat().repeat(512);
        pieces.write(&block).unwrap();
        content.extend_from_slice(&block);
        pieces.hole(4096).unwrap();
        content.resize(content.len() + 4096, 0);
    }
    let pieces = pieces.finish().unwrap();
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"pieces", Kind::File(pieces)).unwrap();
    finish(&file, writer, tree);
    if let Some(read) = debugfs(file.path(), "cat pieces") {
        assert!(read == content);
    }
}

#[test]
fn discarded_contents_leave_no_trace_and_their_blocks_hold_metadata() {
    let (file, mut writer) = image(Size::Fixed(512 * MIB));
    let loser = data(&mut writer, &b"secret of a lower layer ".repeat(100_000));
    let winner = data(&mut writer, b"winner");
    let unnamed = data(&mut writer, &b"secret without a name ".repeat(100_000));
    let mut dropped = writer.begin_file().unwrap();
    dropped.write(&b"secret of a broken layer ".repeat(100_000)).unwrap();
    drop(dropped);
    writer.discard(loser).unwrap();
    drop(data(
        &mut writer,
        &b"secret that is dropped when it is whole ".repeat(100_000),
    ));
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"winner", Kind::File(winner)).unwrap();
    tree.add(vmlet_ext4::Inode {
        kind: Kind::File(unnamed),
        attributes: attributes(0o644),
        xattrs: vec![],
    })
    .unwrap();
    let summary = finish(&file, writer, tree);
    let bytes = std::fs::read(file.path()).unwrap();
    let traces = bytes
        .chunks(4096)
        .filter(|block| **block != [0; 4096])
        .filter(|block| block.windows(6).any(|window| window == b"secret"));
    assert_eq!(traces.count(), 0);
    let (other, mut writer) = image(Size::Fixed(512 * MIB));
    let winner = data(&mut writer, b"winner");
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"winner", Kind::File(winner)).unwrap();
    assert_eq!(figures(&finish(&other, writer, tree)), figures(&summary));
}

#[test]
fn equal_calls_give_equal_bytes() {
    let write = || {
        let (file, mut writer) = image(Size::Auto {
            free: FreeSpace { percent: 10, bytes: 0 },
        });
        let mut tree = Tree::new(attributes(0o755));
        for number in 0..500u32 {
            let content = data(&mut writer, &number.to_le_bytes().repeat(number as usize));
            if number % 3 == 0 {
                writer.discard(content).unwrap();
            } else {
                let name = format!("{number}");
                put(&mut tree, NodeId::ROOT, name.as_bytes(), Kind::File(content)).unwrap();
            }
        }
        finish(&file, writer, tree);
        std::fs::read(file.path()).unwrap()
    };
    assert!(write() == write());
}

#[test]
fn a_content_that_is_dropped_gives_back_its_own_blocks_and_no_others() {
    let (file, mut writer) = image(Size::Fixed(512 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    drop(data(&mut writer, &[3; 10_000]));
    // Over the borders of groups, where nothing is reserved between them.
    let long = data(&mut writer, &vec![5; 330 * MIB as usize]);
    drop(data(&mut writer, &[4; 10_000]));
    put(&mut tree, NodeId::ROOT, b"long", Kind::File(long)).unwrap();
    let summary = finish(&file, writer, tree);
    let (other, mut writer) = image(Size::Fixed(512 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    let long = data(&mut writer, &vec![5; 330 * MIB as usize]);
    put(&mut tree, NodeId::ROOT, b"long", Kind::File(long)).unwrap();
    assert_eq!(figures(&finish(&other, writer, tree)), figures(&summary));
}

#[test]
fn much_data_is_synced_ahead_and_what_was_given_up_of_it_is_gone_from_the_file() {
    let (file, mut writer) = image(Size::Fixed(512 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    for number in 0..60u8 {
        let content = data(&mut writer, &vec![number | 1; MIB as usize]);
        if number % 2 == 0 {
            writer.discard(content).unwrap();
        } else {
            // Directories in places that were given up, while the rest goes to the disk.
            let directory = put(&mut tree, NodeId::ROOT, &[b'a' + number], Kind::Directory).unwrap();
            put(&mut tree, directory, b"content", Kind::File(content)).unwrap();
        }
    }
    finish(&file, writer, tree);
    let allocated = file.as_file().metadata().unwrap().blocks() * 512;
    assert!((30 * MIB..32 * MIB).contains(&allocated), "{allocated}");
}
