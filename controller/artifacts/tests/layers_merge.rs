//! The OCI merge rules, without tars and disks.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use vmlet_artifacts::layers::merge::{IMPLIED, Inode, Layer, Node, Record, RecordKind, Tree};

fn record(path: &str, kind: RecordKind<u32>) -> Record<u32> {
    Record {
        path: path.as_bytes().into(),
        attributes: IMPLIED,
        xattrs: None,
        kind,
    }
}

fn file(path: &str, data: u32) -> Record<u32> {
    record(path, RecordKind::Inode(Inode::File(data)))
}

fn link(path: &str, target: &str) -> Record<u32> {
    record(path, RecordKind::Inode(Inode::Symlink(target.into())))
}

fn layer(records: Vec<Record<u32>>) -> Layer<u32> {
    Layer {
        records: records.into_iter().collect(),
        ..Layer::default()
    }
}

fn content(tree: &mut Tree<u32>, path: &str) -> Option<u32> {
    let id = tree.lookup(path.as_bytes()).unwrap()?;
    match tree.get(id)?.0 {
        Node::Inode(Inode::File(data)) => Some(*data),
        _ => None,
    }
}

#[test]
fn an_opaque_directory_hides_what_is_below_it_but_not_what_its_own_layer_adds() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![file("d/old", 1), file("d/sub/deep", 2), file("other", 3)]))
        .unwrap();
    let mut upper = layer(vec![file("d/new", 4)]);
    upper.opaques.push(b"d".to_vec());
    tree.apply(upper).unwrap();
    assert_eq!(content(&mut tree, "d/old"), None);
    assert_eq!(content(&mut tree, "d/sub/deep"), None);
    assert_eq!(
        (content(&mut tree, "d/new"), content(&mut tree, "other")),
        (Some(4), Some(3))
    );
    let mut lost = tree.take_discarded();
    lost.sort_unstable();
    assert_eq!(lost, [1, 2]);
}

#[test]
fn a_whiteout_hides_only_lower_layers() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![file("a", 1), file("b", 2)])).unwrap();
    let mut upper = layer(vec![file("a", 3)]);
    upper
        .whiteouts
        .extend([b"a".to_vec(), b"b".to_vec(), b"never/there".to_vec()]);
    tree.apply(upper).unwrap();
    assert_eq!((content(&mut tree, "a"), content(&mut tree, "b")), (Some(3), None));
}

#[test]
fn a_link_that_climbs_or_is_absolute_stays_inside_the_image() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![
        link("up", "../../../../etc"),
        link("abs", "/etc"),
        file("etc/there", 1),
    ]))
    .unwrap();
    tree.apply(layer(vec![file("up/a", 2), file("abs/b", 3)])).unwrap();
    assert_eq!(
        (
            content(&mut tree, "etc/a"),
            content(&mut tree, "etc/b"),
            content(&mut tree, "etc/there")
        ),
        (Some(2), Some(3), Some(1))
    );
}

#[test]
fn links_in_a_circle_are_an_error_or_nothing_but_never_a_hang() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![link("a", "b"), link("b", "a")])).unwrap();
    assert!(tree.lookup(b"a/x").ok().flatten().is_none());
    let _ = tree.apply(layer(vec![file("a/x", 1)]));
}

#[test]
fn a_hard_link_keeps_the_data_when_its_first_name_goes() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![
        file("first", 7),
        record("second", RecordKind::HardLink(b"first".to_vec())),
    ]))
    .unwrap();
    let mut upper = layer(Vec::new());
    upper.whiteouts.push(b"first".to_vec());
    tree.apply(upper).unwrap();
    assert_eq!(
        (content(&mut tree, "first"), content(&mut tree, "second")),
        (None, Some(7))
    );
    assert!(tree.take_discarded().is_empty());
    assert!(
        tree.apply(layer(vec![record("x", RecordKind::HardLink(b"missing".to_vec()))]))
            .is_err()
    );
}

#[test]
fn a_file_in_the_place_of_a_directory_removes_all_below_it() {
    let mut tree = Tree::default();
    tree.apply(layer(vec![file("d/a", 1), file("d/b/c", 2)])).unwrap();
    tree.apply(layer(vec![file("d", 3)])).unwrap();
    assert_eq!((content(&mut tree, "d"), content(&mut tree, "d/a")), (Some(3), None));
    assert_eq!(tree.take_discarded().len(), 2);
}
