//! Hazards of hard links, within one layer and across layers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::debugfs;
use support::disk::on_disk;
use support::raw::{Member, both, dir, file, hardlink, list, malformed, symlink, tar, tree};

#[test]
fn h09_a_hard_link_out_of_the_root_is_refused() {
    malformed(&[&[hardlink("a", "../../etc/passwd")]], "`..`");
}

#[test]
fn h10_an_absolute_target_of_a_hard_link_means_the_images_root() {
    both(
        &[file("a", "x"), hardlink("b", "/a")],
        &[("/a", "\"x\" x2"), ("/b", "\"x\" x2")],
    );
}

#[test]
fn h11_a_hard_link_to_a_symbolic_link_is_a_name_of_the_link() {
    both(
        &[file("a", "x"), symlink("l", "a"), hardlink("m", "l")],
        &[("/a", "\"x\""), ("/l", "-> a x2"), ("/m", "-> a x2")],
    );
}

#[test]
fn h12_a_hard_link_to_a_directory_is_refused() {
    let members = [dir("d"), hardlink("e", "d")];
    malformed(&[&members], "directory");
    malformed(&[&members[..1], &members[1..]], "directory");
    malformed(&[&[hardlink("e", "/")]], "directory");
    // It was a file until the link's own parent had to be there.
    malformed(&[&[file("b", "x"), hardlink("b/a", "b")]], "directory");
}

#[test]
fn h13_a_hard_link_before_its_source_or_without_one_is_refused() {
    malformed(&[&[hardlink("b", "a"), file("a", "x")]], "does not exist");
    malformed(&[&[file("c", "x")], &[hardlink("b", "a")]], "does not exist");
    // Hidden by its own layer.
    malformed(
        &[&[file("a", "x")], &[file(".wh.a", ""), hardlink("b", "a")]],
        "does not exist",
    );
}

#[test]
fn h14_a_hard_link_to_a_file_of_a_lower_layer_is_found_also_through_links() {
    let lower = [dir("usr"), file("usr/a", "x"), symlink("lib", "usr")];
    assert_eq!(
        list(&[&lower, &[hardlink("b", "lib/a")]]),
        tree(&[
            ("/b", "\"x\" x2"),
            ("/lib", "-> usr"),
            ("/usr", "dir"),
            ("/usr/a", "\"x\" x2")
        ])
    );
}

#[test]
fn h15_other_names_keep_the_old_inode_when_the_first_one_goes_or_is_replaced() {
    let lower = [file("a", "old"), hardlink("b", "a"), hardlink("c", "a")];
    assert_eq!(
        list(&[&lower, &[file(".wh.a", "")]]),
        tree(&[("/b", "\"old\" x2"), ("/c", "\"old\" x2")])
    );
    let replaced = tree(&[("/a", "\"new\""), ("/b", "\"old\" x2"), ("/c", "\"old\" x2")]);
    assert_eq!(list(&[&lower, &[file("a", "new")]]), replaced);
    let one = [&lower[..], &[file("a", "new")]].concat();
    assert_eq!(list(&[&one]), replaced, "in one layer");
    // A link in the place of its own source is no change.
    assert_eq!(list(&[&lower, &[hardlink("a", "b")]])["/a"], "\"old\" x3");
}

#[test]
fn h16_the_65001st_link_is_a_clean_error() {
    let links = |count: usize| {
        let mut members = vec![file("a", "x")];
        members.extend((1..count).map(|n| hardlink(&format!("l{n}"), "a")));
        tar(&members)
    };
    let disk = on_disk(vec![links(65_000)]).unwrap();
    assert!(debugfs(disk.path(), "stat /a").contains("Links: 65000"));
    let more = |count: usize| {
        let members: Vec<Member> = (0..count).map(|n| hardlink(&format!("m{n}"), "a")).collect();
        tar(&members)
    };
    on_disk(vec![links(64_999), more(1)]).unwrap();
    let across = on_disk(vec![links(64_999), more(2)]).unwrap_err();
    assert!(
        across.starts_with("layer 2: \"m1\": ") && across.contains("65000"),
        "{across}"
    );
    let error = on_disk(vec![links(65_001)]).unwrap_err();
    assert!(
        error.contains("65000") || error.contains("65 000") || error.contains("links"),
        "{error}"
    );
}
