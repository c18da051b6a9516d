//! What does not fit is a typed error, and what just fits is a clean image.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::reader::Image;
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
    // A name there is none, and does not count as a link.
    let kept = put(&mut tree, NodeId::ROOT, b"kept", Kind::Fifo).unwrap();
    tree.link(a, b"lost", kept).unwrap();
    assert_eq!(finish(&file, writer, tree).inodes, 12);
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
    let error = refused(b"user.big", &[1; 65_537]);
    assert!(matches!(error, Error::BadXattr { .. }), "{error}");
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
fn large_attributes_get_inodes_of_their_own_and_names_fill_one_block() {
    let named = |count: usize, value: &[u8]| {
        let (file, writer) = image(Size::Fixed(256 * MIB));
        let mut tree = Tree::new(attributes(0o755));
        let xattrs = (0..count).map(|n| (format!("user.{n:011}").into_bytes(), value.to_vec()));
        let xattrs: Vec<_> = xattrs.collect();
        let inode = Inode {
            kind: Kind::Directory,
            attributes: attributes(0o755),
            xattrs: xattrs.clone(),
        };
        let node = tree.add(inode)?;
        tree.link(NodeId::ROOT, b"d", node)?;
        finish(&file, writer, tree);
        let found = Image::open(file.path()).tree().remove(&b"/d"[..]).unwrap().xattrs;
        assert_eq!(found, xattrs.into_iter().collect());
        Ok::<_, Error>(features(&file) & 0x400 != 0)
    };
    // An entry with such a name takes 28 bytes: 145 fit into a block. Two small ones have room in the inode.
    assert!(!named(2, b"abc").unwrap());
    assert!(named(3, &[7; 65_536]).unwrap());
    assert!(named(145, &[9; 5000]).unwrap());
    let error = named(146, &[9; 5000]).unwrap_err();
    assert!(matches!(error, Error::XattrsTooLarge { .. }), "{error}");
    // What fits into one block needs no feature that others do not need.
    assert!(!named(1, &[5; 4032]).unwrap());
    assert!(named(1, &[5; 4036]).unwrap());
}

fn features(file: &NamedTempFile) -> u32 {
    let mut word = [0; 4];
    file.as_file().read_exact_at(&mut word, 1024 + 0x60).unwrap();
    u32::from_le_bytes(word)
}

#[test]
fn a_file_ends_at_the_last_block_that_ext4_can_count() {
    const MOST: u64 = 0xffff_ffff * 4096;
    let (file, mut writer) = image(Size::Fixed(256 * MIB));
    let mut longest = writer.begin_file().unwrap();
    longest.write(b"begin").unwrap();
    longest.hole(MOST - 8).unwrap();
    longest.write(b"end").unwrap();
    let error = longest.write(b"x").unwrap_err();
    assert!(matches!(error, Error::FileTooLarge { size, maximum } if size == MOST + 1 && maximum == MOST));
    let longest = longest.finish().unwrap();
    assert_eq!((longest.size(), longest.allocated()), (MOST, 8192));
    let mut tree = Tree::new(attributes(0o755));
    put(&mut tree, NodeId::ROOT, b"longest", Kind::File(longest)).unwrap();
    finish(&file, writer, tree);
    let mut more = image(Size::Fixed(256 * MIB)).1;
    let mut more = more.begin_file().unwrap();
    assert!(matches!(more.hole(u64::MAX), Err(Error::FileTooLarge { .. })));
}

#[test]
fn an_image_that_cannot_be_finished_leaves_an_empty_file() {
    let length = |file: &NamedTempFile| file.as_file().metadata().unwrap().len();
    // Dropped, too full for its data, and too small for its inodes.
    let (file, writer) = image(Size::Fixed(128 * MIB));
    assert_eq!(length(&file), 128 * MIB);
    drop(writer);
    assert_eq!(length(&file), 0);
    let (file, mut writer) = image(Size::Fixed(128 * MIB));
    let mut all = writer.begin_file().unwrap();
    while all.write(&vec![1; MIB as usize]).is_ok() {}
    drop(all);
    drop(writer);
    assert_eq!(length(&file), 0);
    let (file, writer) = image(Size::Fixed(128 * MIB));
    let mut tree = Tree::new(attributes(0o755));
    for number in 0..8192 {
        put(&mut tree, NodeId::ROOT, format!("{number}").as_bytes(), Kind::Fifo).unwrap();
    }
    assert!(matches!(writer.finish(tree), Err(Error::TooManyInodes { .. })));
    assert_eq!(length(&file), 0);
}

#[test]
fn an_image_that_nobody_wants_any_more_is_given_up_at_once_and_leaves_an_empty_file() {
    const INODES: u32 = 5000;
    const DIRECTORIES: u32 = 20;
    // Gives how often it was asked, and what came of it when the answer was no after so many times.
    let finish = |wanted_for: usize| {
        let (file, mut writer) = image(Size::Auto {
            free: FreeSpace::default(),
        });
        let mut tree = Tree::new(attributes(0o755));
        let mut directory = NodeId::ROOT;
        for number in 0..INODES {
            if number.is_multiple_of(INODES / DIRECTORIES) {
                directory = put(&mut tree, NodeId::ROOT, format!("{number}").as_bytes(), Kind::Directory).unwrap();
            }
            let content = data(&mut writer, &[7; 100]);
            put(
                &mut tree,
                directory,
                format!("{number} f").as_bytes(),
                Kind::File(content),
            )
            .unwrap();
        }
        let asked = Cell::new(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            asked.get() <= wanted_for
        };
        let finished = writer.finish_while(tree, &wanted);
        (asked.get(), finished, file)
    };
    let (asked, finished, file) = finish(usize::MAX);
    finished.unwrap();
    check(file.path());
    // For each directory (the root and lost+found are two more), on the way through the inodes, and before the sync.
    assert_eq!(asked, (DIRECTORIES + 2 + INODES / 1024 + 1) as usize);
    for wanted_for in 0..asked {
        let (asked, finished, file) = finish(wanted_for);
        assert!(matches!(finished, Err(Error::Abandoned)), "{wanted_for}");
        assert_eq!(asked, wanted_for + 1, "it is asked no more after a no");
        assert_eq!(file.as_file().metadata().unwrap().len(), 0, "{wanted_for}");
    }
}

#[test]
fn directories_of_66_000_directories_and_100_000_files_take_linear_time() {
    let begin = Instant::now();
    let (file, writer) = image(Size::Auto {
        free: FreeSpace::default(),
    });
    let mut tree = Tree::new(attributes(0o755));
    // 64 998 is the most that its link count can say.
    let wide = [
        ("files", 100_000, (|| Kind::Fifo) as fn() -> Kind),
        ("most", 64_998, || Kind::Directory),
        ("more", 66_000, || Kind::Directory),
    ];
    for (name, count, kind) in wide {
        let directory = put(&mut tree, NodeId::ROOT, name.as_bytes(), Kind::Directory).unwrap();
        for number in 0..count {
            put(&mut tree, directory, format!("entry {number}").as_bytes(), kind()).unwrap();
        }
    }
    writer.finish(tree).unwrap();
    // It takes about a second, also in a debug build; one insertion after the other takes minutes.
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    check(file.path());
    let image = Image::open(file.path());
    for (name, inode, _) in image.names(&image.inode(2)) {
        let (count, links) = match &name[..] {
            b"files" => (100_000, 2),
            b"most" => (64_998, 65_000),
            b"more" => (66_000, 1),
            _ => continue,
        };
        let directory = image.inode(inode);
        assert_eq!((image.names(&directory).len(), directory.links()), (count, links));
    }
}

#[test]
fn a_tree_of_a_hundred_thousand_levels_needs_no_stack() {
    const LEVELS: usize = 100_000;
    let build = || {
        let (file, writer) = image(Size::Auto {
            free: FreeSpace::default(),
        });
        let mut tree = Tree::new(attributes(0o755));
        let mut at = NodeId::ROOT;
        for _ in 0..LEVELS {
            at = put(&mut tree, at, b"deeper", Kind::Directory).unwrap();
        }
        writer.finish(tree).unwrap();
        file
    };
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let file = small.spawn(build).unwrap().join().unwrap();
    check(file.path());
    let image = Image::open(file.path());
    let (mut inode, mut levels) = (image.inode(2), 0);
    while let Some((_, below, _)) = image.names(&inode).into_iter().find(|(name, ..)| name == b"deeper") {
        (inode, levels) = (image.inode(below), levels + 1);
    }
    assert_eq!(levels, LEVELS);
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
