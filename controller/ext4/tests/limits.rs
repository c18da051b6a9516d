//! What does not fit is a typed error, and what just fits is a clean image.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::*;
use tempfile::NamedTempFile;
use vmlet_ext4::{Error, FreeSpace, Inode, Kind, NodeId, Options, Size, Tree, Writer};

fn create_error(change: impl FnOnce(&mut Options)) -> Error {
    let mut options = options(Size::Fixed(256 * MIB));
    change(&mut options);
    let file = NamedTempFile::new().unwrap();
    Writer::create(file.reopen().unwrap(), options).unwrap_err()
}

#[test]
fn impossible_options_are_refused() {
    for size in [0, 1, 128 * MIB - 1, (1 << 40) + 1, u64::MAX] {
        let error = create_error(|options| options.size = Size::Fixed(size));
        assert!(matches!(error, Error::SizeOutOfRange { .. }), "{error}");
    }
    let error = create_error(|options| options.label = vec![b'x'; 17]);
    assert!(matches!(error, Error::BadLabel { .. }), "{error}");
    let error = create_error(|options| {
        options.size = Size::Auto {
            free: FreeSpace::default(),
        };
        options.max_size = 100 * MIB;
    });
    assert!(matches!(error, Error::SizeOutOfRange { .. }), "{error}");
}

#[test]
fn data_beyond_the_end_does_not_fit() {
    let (_file, mut writer) = image(Size::Fixed(128 * MIB));
    let mut all = writer.begin_file().unwrap();
    let error = (0..200).find_map(|_| all.write(&vec![1; MIB as usize]).err()).unwrap();
    assert!(
        matches!(error, Error::DoesNotFit { size } if size == 128 * MIB),
        "{error}"
    );
}

#[test]
fn an_image_filled_to_the_last_block_is_clean_and_one_more_does_not_fit() {
    // 12144 blocks are free in an image of one group.
    let blocks = |count: usize| {
        let (file, mut writer) = image(Size::Fixed(128 * MIB));
        let mut all = writer.begin_file().unwrap();
        for _ in 0..count {
            all.write(&[1; 4096])?;
        }
        let all = all.finish()?;
        let mut tree = Tree::new(attributes(0o755));
        put(&mut tree, NodeId::ROOT, b"all", Kind::File(all))?;
        let summary = writer.finish(tree)?;
        check(file.path());
        Ok(summary.free / 4096)
    };
    let free = blocks(0).unwrap();
    assert_eq!(blocks(free as usize).unwrap(), 0);
    let error: Error = blocks(free as usize + 1).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { .. }), "{error}");
}

#[test]
fn an_automatic_image_ends_at_its_largest_size() {
    let file = NamedTempFile::new().unwrap();
    let mut options = options(Size::Auto {
        free: FreeSpace {
            percent: 0,
            bytes: 300 * MIB,
        },
    });
    options.max_size = 300 * MIB;
    let writer = Writer::create(file.reopen().unwrap(), options).unwrap();
    let error = writer.finish(Tree::new(attributes(0o755))).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { .. }), "{error}");
}

#[test]
fn more_inodes_than_the_size_has_are_refused() {
    let named = |count: u32| {
        let (file, writer) = image(Size::Fixed(128 * MIB));
        let mut tree = Tree::new(attributes(0o755));
        for number in 0..count {
            put(&mut tree, NodeId::ROOT, format!("{number}").as_bytes(), Kind::Socket)?;
        }
        let summary = writer.finish(tree)?;
        check(file.path());
        Ok::<_, Error>(summary)
    };
    assert_eq!(named(8192 - 11).unwrap().free_inodes, 0);
    let error = named(8192 - 10).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooManyInodes {
                needed: 8193,
                available: 8192,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn names_are_any_bytes_but_slash_and_nul_up_to_255() {
    let (file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    for name in [&[0xff; 255][..], b"\xc3\x28\n\\\"", b"...", b" ", b"a:b", b"\x01"] {
        put(&mut tree, NodeId::ROOT, name, Kind::Fifo).unwrap();
    }
    for name in [&[b'x'; 256][..], b"", b".", b"..", b"a/b", b"/", b"a\0b"] {
        let error = put(&mut tree, NodeId::ROOT, name, Kind::Fifo).unwrap_err();
        assert!(matches!(error, Error::BadName { .. }), "{error}");
    }
    finish(&file, writer, tree);
}

#[test]
fn a_name_twice_in_one_directory_is_refused_with_its_path() {
    let (_file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    let usr = put(&mut tree, NodeId::ROOT, b"usr", Kind::Directory).unwrap();
    let bin = put(&mut tree, usr, b"bin", Kind::Directory).unwrap();
    put(&mut tree, bin, b"sh", Kind::Fifo).unwrap();
    put(&mut tree, bin, b"ash", Kind::Fifo).unwrap();
    put(&mut tree, bin, b"sh", Kind::Socket).unwrap();
    let message = writer.finish(tree).unwrap_err().to_string();
    assert_eq!(message, r#"the name "sh" appears twice in the directory "/usr/bin""#);
}

#[test]
fn an_inode_has_65000_names_and_not_one_more() {
    let (file, mut writer) = image(Size::Fixed(256 * MIB));
    let content = data(&mut writer, b"shared");
    let mut tree = Tree::new(attributes(0o755));
    let shared = put(&mut tree, NodeId::ROOT, b"0", Kind::File(content)).unwrap();
    for number in 1..65_000 {
        tree.link(NodeId::ROOT, format!("{number}").as_bytes(), shared).unwrap();
    }
    let error = tree.link(NodeId::ROOT, b"one more", shared).unwrap_err();
    assert!(matches!(error, Error::TooManyLinks { .. }), "{error}");
    finish(&file, writer, tree);
}

#[test]
fn directories_have_one_name_and_only_they_have_children() {
    let mut tree = Tree::new(attributes(0o755));
    let directory = put(&mut tree, NodeId::ROOT, b"d", Kind::Directory).unwrap();
    let fifo = put(&mut tree, directory, b"f", Kind::Fifo).unwrap();
    for (parent, child) in [
        (NodeId::ROOT, directory),
        (directory, directory),
        (directory, NodeId::ROOT),
    ] {
        let error = tree.link(parent, b"again", child).unwrap_err();
        assert!(matches!(error, Error::DirectoryLinkedTwice { .. }), "{error}");
    }
    let error = tree.link(fifo, b"child", fifo).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
    let stranger = put(&mut tree, directory, b"g", Kind::Fifo).unwrap();
    let error = Tree::new(attributes(0o755))
        .link(NodeId::ROOT, b"x", stranger)
        .unwrap_err();
    assert!(matches!(error, Error::UnknownInode { .. }), "{error}");
}

#[test]
fn directories_that_only_reach_each_other_are_left_out() {
    let (file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    let node = |tree: &mut Tree| {
        tree.add(Inode {
            kind: Kind::Directory,
            attributes: attributes(0o755),
            xattrs: vec![],
        })
        .unwrap()
    };
    let (a, b) = (node(&mut tree), node(&mut tree));
    tree.link(a, b"b", b).unwrap();
    tree.link(b, b"a", a).unwrap();
    assert_eq!(finish(&file, writer, tree).inodes, 11);
}

#[test]
fn odd_symlinks_and_devices_are_refused() {
    let mut tree = Tree::new(attributes(0o755));
    let mut refused = |kind| put(&mut tree, NodeId::ROOT, b"x", kind).unwrap_err();
    for length in [0, 4096] {
        assert!(matches!(
            refused(Kind::Symlink(vec![b'x'; length])),
            Error::BadSymlink { .. }
        ));
    }
    assert!(matches!(refused(Kind::Symlink(b"a\0b".to_vec())), Error::NulInSymlink));
    for (major, minor) in [(4096, 0), (0, 1 << 20)] {
        assert!(matches!(
            refused(Kind::CharDevice { major, minor }),
            Error::BadDevice { .. }
        ));
        assert!(matches!(
            refused(Kind::BlockDevice { major, minor }),
            Error::BadDevice { .. }
        ));
    }
}

#[test]
fn attributes_that_ext4_cannot_hold_are_refused() {
    let mut tree = Tree::new(attributes(0o755));
    let mut refused = |name: &[u8], value: &[u8]| {
        let xattrs = vec![(name.to_vec(), value.to_vec())];
        put_inode(&mut tree, NodeId::ROOT, b"x", Kind::Fifo, attributes(0o644), xattrs).unwrap_err()
    };
    let long = [b"user.".to_vec(), vec![b'x'; 256]].concat();
    for name in [&b"user."[..], b"foo", b"system.other", b"user.a\0b", b"", &long] {
        let error = refused(name, b"value");
        assert!(matches!(error, Error::BadXattr { .. }), "{error}");
    }
    let error = refused(b"user.big", &[1; 4096]);
    assert!(matches!(error, Error::XattrsTooLarge { .. }), "{error}");
    let error = refused(b"system.posix_acl_access", b"nonsense");
    assert!(matches!(error, Error::BadAcl { .. }), "{error}");
    let error = refused(b"system.posix_acl_default", &[2, 0, 0, 0]);
    assert!(matches!(error, Error::BadXattr { .. }), "{error}");
}

#[test]
fn a_file_named_lost_found_is_refused_and_a_directory_kept() {
    let (_file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"lost+found", Kind::Fifo).unwrap();
    assert!(matches!(writer.finish(tree), Err(Error::BadName { .. })));
    let (file, writer) = image(Size::Fixed(256 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    let kept = put(&mut tree, NodeId::ROOT, b"lost+found", Kind::Directory).unwrap();
    put(&mut tree, kept, b"#1", Kind::Fifo).unwrap();
    assert_eq!(finish(&file, writer, tree).inodes, 12);
}

#[test]
fn wide_directories_and_deep_trees_are_clean() {
    let (file, writer) = image(Size::Auto {
        free: FreeSpace::default(),
    });
    let mut tree = Tree::new(attributes(0o755));
    for (name, count) in [(b"a", 64_998), (b"b", 64_999)] {
        let wide = put(&mut tree, NodeId::ROOT, name, Kind::Directory).unwrap();
        for number in 0..count {
            put(&mut tree, wide, format!("{number}").as_bytes(), Kind::Directory).unwrap();
        }
    }
    let mut at = NodeId::ROOT;
    for _ in 0..5000 {
        at = put(&mut tree, at, b"deeper", Kind::Directory).unwrap();
    }
    finish(&file, writer, tree);
}

#[test]
fn a_directory_of_long_names_gets_a_two_level_index() {
    let (file, writer) = image(Size::Auto {
        free: FreeSpace::default(),
    });
    let mut tree = Tree::new(attributes(0o755));
    let shared = put(&mut tree, NodeId::ROOT, b"shared", Kind::Fifo).unwrap();
    for number in 0..12_000 {
        tree.link(NodeId::ROOT, format!("{number:0>255}").as_bytes(), shared)
            .unwrap();
    }
    finish(&file, writer, tree);
    if let Some(output) = debugfs(file.path(), "htree_dump /") {
        let output = String::from_utf8_lossy(&output);
        assert!(output.contains("Indirect levels: 1"), "{}", &output[..300]);
    }
}
