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
fn h10_an_absolute_target_is_found_in_lower_layers_also_through_linked_directories() {
    let lower = [dir("usr"), dir("usr/lib"), file("usr/lib/a", "x")];
    let middle = [
        symlink("lib", "usr/lib"),
        symlink("far", "/usr/lib"),
        symlink("up", "../../lib"),
    ];
    let upper = ["/usr/lib/a", "/lib/a", "/far/a", "/up/a", "//./lib//a"];
    let mut upper: Vec<Member> = (0..).zip(upper).map(|(n, to)| hardlink(&format!("l{n}"), to)).collect();
    // The link's own directory is found in the same way.
    upper.push(hardlink("/lib/b", "/far/a"));
    let found = list(&[&lower, &middle, &upper]);
    for name in ["/l0", "/l1", "/l2", "/l3", "/l4", "/usr/lib/a", "/usr/lib/b"] {
        assert_eq!(found[name], "\"x\" x7", "{name}");
    }
    let whole = [&lower[..], &middle[..], &upper[..]].concat();
    assert_eq!(list(&[&whole]), found, "in one layer");
    let disk = on_disk([&lower[..], &middle, &upper].map(tar).to_vec()).unwrap();
    let stat = debugfs(disk.path(), "stat /l3");
    assert!(stat.contains("Links: 7"), "{stat}");
    // What the upper layer has put in the way counts.
    let moved = [
        dir("new"),
        file("new/a", "y"),
        symlink("lib", "/new"),
        hardlink("b", "/lib/a"),
    ];
    let found = list(&[&lower, &middle, &moved]);
    assert_eq!(
        (&*found["/b"], &*found["/usr/lib/a"]),
        ("\"y\" x2", "\"x\""),
        "{found:?}"
    );
    malformed(&[&lower, &[hardlink("b", "/lib/a")]], "does not exist");
}

#[test]
fn h11_a_hard_link_to_a_symbolic_link_is_a_name_of_the_link() {
    both(
        &[file("a", "x"), symlink("l", "a"), hardlink("m", "l")],
        &[("/a", "\"x\""), ("/l", "-> a x2"), ("/m", "-> a x2")],
    );
}

#[test]
fn h11_a_symbolic_link_of_a_lower_layer_is_linked_itself_wherever_it_leads() {
    // To a file, to a directory, to nothing, to itself, and out of the image.
    for target in ["f", "d", "/missing", "l", "../../etc/passwd"] {
        let lower = [dir("d"), file("d/f", "x"), file("f", "y"), symlink("d/l", target)];
        let upper = [symlink("way", "/d"), hardlink("m", "/way/l"), hardlink("d/n", "m")];
        let mut found = list(&[&lower, &upper]);
        for name in ["/d/l", "/m", "/d/n"] {
            assert_eq!(found.remove(name), Some(format!("-> {target} x3")), "{name}");
        }
        let rest = [("/d", "dir"), ("/d/f", "\"x\""), ("/f", "\"y\""), ("/way", "-> /d")];
        assert_eq!(found, tree(&rest));
        let disk = on_disk([&lower[..], &upper].map(tar).to_vec()).unwrap();
        let stat = ["/d/l", "/m", "/d/n"].map(|name| debugfs(disk.path(), &format!("stat {name}")));
        assert!(
            stat[0].contains("Type: symlink") && stat[0].contains("Links: 3"),
            "{}",
            stat[0]
        );
        assert!(stat[0] == stat[1] && stat[0] == stat[2], "one inode: {stat:?}");
        // The name that was first may go.
        let gone = list(&[&lower, &upper, &[file("d/.wh.l", "")]]);
        assert_eq!((gone.get("/d/l"), &*gone["/m"]), (None, &*format!("-> {target} x2")));
    }
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
