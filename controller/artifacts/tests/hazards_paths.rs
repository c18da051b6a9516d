//! Hazards of names, symbolic links and whiteouts, within one layer and across layers. Hard links: hazards_links.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::raw::{
    Member, apply, attributes, both, dir, file, hardlink, list, listed, malformed, member, merge, refused, seal,
    symlink, tar, tree, xattrs,
};
use vmlet_artifacts::layers::LayerError;
use vmlet_artifacts::types::Limits;

#[test]
fn h01_a_member_that_climbs_is_refused() {
    malformed(&[&[file("../../etc/passwd", "x")]], "`..`");
    malformed(&[&[file("/../x", "x")]], "`..`");
}

#[test]
fn h02_a_member_that_climbs_but_stays_inside_is_refused_too() {
    malformed(&[&[file("a/../b", "x")]], "`..`");
    malformed(&[&[dir("a/..")]], "`..`");
}

#[test]
fn h03_all_spellings_of_a_name_are_one_entry() {
    both(
        &[
            file("a/b", "1"),
            file("/a/b", "2"),
            file("./a//b", "3"),
            file("a/./b/", "4"),
        ],
        &[("/a", "dir"), ("/a/b", "\"4\"")],
    );
}

#[test]
fn h04_a_write_through_an_absolute_link_stays_in_the_image() {
    both(
        &[dir("tmp"), dir("tmp/x"), symlink("out", "/tmp/x"), file("out/p", "x")],
        &[
            ("/out", "-> /tmp/x"),
            ("/tmp", "dir"),
            ("/tmp/x", "dir"),
            ("/tmp/x/p", "\"x\""),
        ],
    );
}

#[test]
fn h05_a_link_that_climbs_out_is_clamped_at_the_root() {
    both(
        &[symlink("up", "../../../.."), file("up/p", "x")],
        &[("/p", "\"x\""), ("/up", "-> ../../../..")],
    );
}

#[test]
fn h05_dot_dot_in_a_link_takes_back_what_is_before_it_whatever_that_is() {
    // A file is no directory by that, and what is missing is not made.
    for target in [
        "file/../d",
        "missing/../d",
        "d/missing/deep/../..",
        "/file/../missing/../d",
        "s/../file/../../d",
    ] {
        both(
            &[
                dir("d"),
                file("file", "x"),
                symlink("s", "d"),
                symlink("l", target),
                file("l/f", "y"),
            ],
            &[
                ("/d", "dir"),
                ("/d/f", "\"y\""),
                ("/file", "\"x\""),
                ("/l", &format!("-> {target}")),
                ("/s", "-> d"),
            ],
        );
    }
    // What comes last is used as a directory, and becomes one.
    both(
        &[file("file", "x"), symlink("l", "other/../file"), file("l/f", "y")],
        &[("/file", "dir"), ("/file/f", "\"y\""), ("/l", "-> other/../file")],
    );
    // The same on the way to a marker's directory, and to the source of a hard link.
    let lower = [
        dir("d"),
        file("d/f", "x"),
        file("file", "x"),
        symlink("l", "file/../missing/../d"),
    ];
    let kept = [("/d", "dir"), ("/file", "\"x\""), ("/l", "-> file/../missing/../d")];
    assert_eq!(list(&[&lower, &[file("l/.wh.f", "")]]), tree(&kept));
    assert_eq!(list(&[&lower, &[file("l/.wh..wh..opq", "")]]), tree(&kept));
    let linked = list(&[&lower, &[hardlink("g", "l/f")]]);
    assert_eq!(linked["/g"], "\"x\" x2");
}

#[test]
fn h06_a_parent_that_is_a_link_to_a_directory_is_followed() {
    both(
        &[
            dir("usr"),
            dir("usr/lib"),
            symlink("lib", "usr/lib"),
            file("lib/x", "x"),
        ],
        &[
            ("/lib", "-> usr/lib"),
            ("/usr", "dir"),
            ("/usr/lib", "dir"),
            ("/usr/lib/x", "\"x\""),
        ],
    );
}

#[test]
fn h07_a_directory_entry_over_a_link_makes_a_directory() {
    both(
        &[
            dir("real"),
            file("real/kept", "x"),
            symlink("d", "real"),
            dir("d"),
            file("d/new", "y"),
        ],
        &[
            ("/d", "dir"),
            ("/d/new", "\"y\""),
            ("/real", "dir"),
            ("/real/kept", "\"x\""),
        ],
    );
}

#[test]
fn h08_a_loop_of_links_in_the_way_is_refused() {
    let members = [symlink("a", "b"), symlink("b", "a"), file("a/x", "x")];
    malformed(&[&members], "loop");
    malformed(&[&members[..2], &members[2..]], "loop");
    // Forty are fine.
    let mut chain = vec![dir("end")];
    chain.push(symlink("l0", "end"));
    for n in 1..40 {
        chain.push(symlink(&format!("l{n}"), &format!("l{}", n - 1)));
    }
    chain.push(file("l39/x", "x"));
    assert!(list(&[&chain]).contains_key("/end/x"));
}

#[test]
fn h17_an_opaque_marker_hides_lower_layers_wherever_it_stands() {
    let lower = [dir("d"), file("d/old", "x"), dir("d/sub"), file("d/sub/old", "x")];
    let (marker, new, deep) = (
        file("d/.wh..wh..opq", ""),
        file("d/new", "y"),
        file("d/sub/deep/new", "y"),
    );
    let expected = tree(&[
        ("/d", "dir"),
        ("/d/new", "\"y\""),
        ("/d/sub", "dir"),
        ("/d/sub/deep", "dir"),
        ("/d/sub/deep/new", "\"y\""),
    ]);
    for upper in [
        [marker.clone(), new.clone(), deep.clone()],
        [new.clone(), marker.clone(), deep.clone()],
        [new.clone(), deep.clone(), marker.clone()],
    ] {
        assert_eq!(list(&[&lower, &upper]), expected);
    }
    // It hides nothing of its own layer.
    let own = [new, marker];
    assert_eq!(list(&[&own]), tree(&[("/d", "dir"), ("/d/new", "\"y\"")]));
}

#[test]
fn h18_a_whiteout_hides_lower_layers_only_in_both_orders() {
    let lower = [dir("d"), file("d/old", "x"), file("f", "old")];
    for upper in [
        [
            file(".wh.d", ""),
            dir("d"),
            file("d/new", "y"),
            file(".wh.f", ""),
            file("f", "new"),
        ],
        [
            dir("d"),
            file("d/new", "y"),
            file("f", "new"),
            file(".wh.f", ""),
            file(".wh.d", ""),
        ],
    ] {
        let expected = tree(&[("/d", "dir"), ("/d/new", "\"y\""), ("/f", "\"new\"")]);
        assert_eq!(list(&[&lower, &upper]), expected);
    }
}

#[test]
fn h19_a_whiteout_of_nothing_is_nothing_and_makes_no_parent() {
    assert!(list(&[&[file(".wh.none", ""), file("no/such/.wh.dir", "")]]).is_empty());
    assert!(list(&[&[], &[file("no/.wh..wh..opq", "")]]).is_empty());
}

#[test]
fn h20_a_whiteout_through_a_linked_directory_follows_the_link() {
    let lower = [
        dir("usr"),
        file("usr/x", "x"),
        file("usr/y", "y"),
        symlink("lib", "usr"),
    ];
    assert_eq!(
        list(&[&lower, &[file("lib/.wh.x", "")]]),
        tree(&[("/lib", "-> usr"), ("/usr", "dir"), ("/usr/y", "\"y\"")])
    );
    assert_eq!(
        list(&[&lower, &[file("lib/.wh..wh..opq", "")]]),
        tree(&[("/lib", "-> usr"), ("/usr", "dir")])
    );
    // The link itself can be hidden, too.
    assert!(list(&[&lower, &[file(".wh.lib", "")]]).contains_key("/usr/x"));
}

#[test]
fn h20_a_whiteout_through_a_link_of_its_own_layer_is_one_of_nothing() {
    // Markers act on what is below, and there the link is not yet.
    let lower = [dir("usr"), file("usr/x", "x")];
    let expected = tree(&[("/lib", "-> usr"), ("/usr", "dir"), ("/usr/x", "\"x\"")]);
    for marker in ["lib/.wh.x", "lib/.wh..wh..opq"] {
        assert_eq!(list(&[&lower, &[symlink("lib", "usr"), file(marker, "")]]), expected);
        assert_eq!(list(&[&lower, &[file(marker, ""), symlink("lib", "usr")]]), expected);
    }
    // Of a directory below that the link replaces, it hides what goes with it.
    let replaced = [&lower[..], &[dir("lib"), file("lib/x", "y")]].concat();
    assert_eq!(
        list(&[&replaced, &[symlink("lib", "usr"), file("lib/.wh.x", "")]]),
        expected
    );
}

/// The same tree whatever the order of the upper layer's markers among its entries: as given, first, last.
fn anywhere(lower: &[Member], upper: &[Member], expected: &[(&str, &str)]) {
    let is_marker = |member: &&Member| String::from_utf8_lossy(&member.name).contains(".wh.");
    let (markers, entries): (Vec<&Member>, Vec<&Member>) = upper.iter().partition(is_marker);
    let join = |parts: [&[&Member]; 2]| -> Vec<Member> { parts.concat().into_iter().cloned().collect() };
    let backwards: Vec<&Member> = markers.iter().rev().copied().collect();
    for upper in [
        upper.to_vec(),
        join([&markers, &entries]),
        join([&backwards, &entries]),
        join([&entries, &backwards]),
    ] {
        let names: Vec<_> = upper
            .iter()
            .map(|member| member.name.escape_ascii().to_string())
            .collect();
        assert_eq!(list(&[lower, &upper]), tree(expected), "{names:?}");
    }
}

#[test]
fn h20_a_marker_does_not_follow_a_link_that_its_own_layer_replaces_or_hides() {
    let lower = [
        dir("usr"),
        dir("usr/lib"),
        file("usr/lib/keep", "x"),
        symlink("lib", "usr/lib"),
    ];
    let kept = [("/usr", "dir"), ("/usr/lib", "dir"), ("/usr/lib/keep", "\"x\"")];
    let with = |more: &[(&'static str, &'static str)]| [&kept[..], more].concat();
    let (opaque, whiteout) = (file("lib/.wh..wh..opq", ""), file("lib/.wh.keep", ""));
    for marker in [opaque.clone(), whiteout.clone()] {
        let now = with(&[("/lib", "dir"), ("/lib/new", "\"y\"")]);
        anywhere(&lower, &[dir("lib"), marker.clone(), file("lib/new", "y")], &now);
        anywhere(
            &lower,
            &[file(".wh.lib", ""), marker.clone(), dir("lib"), file("lib/new", "y")],
            &now,
        );
        anywhere(
            &lower,
            &[file(".wh.lib", ""), marker.clone(), file("lib/new", "y")],
            &now,
        );
        anywhere(&lower, &[file("lib", "y"), marker.clone()], &with(&[("/lib", "\"y\"")]));
        anywhere(
            &lower,
            &[member(b'6', "lib"), marker.clone()],
            &with(&[("/lib", "fifo")]),
        );
        anywhere(
            &lower,
            &[symlink("lib", "usr"), marker.clone()],
            &with(&[("/lib", "-> usr")]),
        );
        anywhere(&lower, &[file(".wh.lib", ""), marker.clone()], &kept);
        // By another way to the same link.
        let aliased = [&lower[..], &[symlink("here", "."), symlink("up", "usr/../here")]].concat();
        let all = with(&[("/here", "-> ."), ("/lib", "dir"), ("/up", "-> usr/../here")]);
        anywhere(&aliased, &[dir("here/lib"), marker.clone()], &all);
        anywhere(&aliased, &[dir("up/lib"), marker.clone()], &all);
        let hidden = with(&[("/here", "-> ."), ("/up", "-> usr/../here")]);
        anywhere(&aliased, &[file("up/.wh.lib", ""), marker.clone()], &hidden);
        // An entry that goes through a link that is replaced is another one: this link is still there, and followed.
        let other = [&lower[..], &[dir("d"), symlink("d/l", "../usr/lib"), symlink("e", "d")]].concat();
        let through = file(
            &String::from_utf8(marker.name.clone()).unwrap().replace("lib/", "d/l/"),
            "",
        );
        anywhere(
            &other,
            &[dir("e"), dir("e/l"), through],
            &[
                ("/d", "dir"),
                ("/d/l", "-> ../usr/lib"),
                ("/e", "dir"),
                ("/e/l", "dir"),
                ("/lib", "-> usr/lib"),
                ("/usr", "dir"),
                ("/usr/lib", "dir"),
            ],
        );
    }
    // A link that goes with its directory; one of two on the way.
    let deep = [&lower[..], &[dir("d"), symlink("d/l", "/lib"), symlink("m", "d/l")]].concat();
    let through = [file("d/l/.wh.keep", ""), file("m/.wh..wh..opq", "")];
    let rest = with(&[("/lib", "-> usr/lib"), ("/m", "-> d/l")]);
    for gone in [file(".wh.d", ""), file("d/.wh..wh..opq", ""), file("d", "y")] {
        let word = match &gone.name[..] {
            b".wh.d" => None,
            b"d" => Some("\"y\""),
            _ => Some("dir"),
        };
        let now: Vec<_> = rest.iter().copied().chain(word.map(|word| ("/d", word))).collect();
        anywhere(&deep, &[&[gone][..], &through].concat(), &now);
    }
    let now = with(&[("/d", "dir"), ("/d/l", "-> /lib"), ("/lib", "dir"), ("/m", "-> d/l")]);
    anywhere(&deep, &[&[dir("lib")][..], &through].concat(), &now);
    // A loop that the layer ends.
    let round = [&lower[..], &[symlink("a", "b"), symlink("b", "a")]].concat();
    let now = with(&[("/a", "dir"), ("/b", "-> a"), ("/lib", "-> usr/lib")]);
    anywhere(
        &round,
        &[dir("a"), file("a/.wh.keep", ""), file("b/.wh..wh..opq", "")],
        &now,
    );
    // Through a link that it hides itself a marker goes.
    let own = [dir("usr"), file("usr/x", "x"), symlink("usr/self", ".")];
    anywhere(&own, &[file("usr/self/.wh..wh..opq", "")], &[("/usr", "dir")]);
    anywhere(
        &own,
        &[file("usr/self/.wh.self", "")],
        &[("/usr", "dir"), ("/usr/x", "\"x\"")],
    );
}

#[test]
fn h21_whiteouts_without_a_name_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."] {
        malformed(&[&[dir("d"), file("d/x", "x")], &[file(name, "")]], "names no entry");
    }
    malformed(&[&[file(".wh.d/x", "x")]], "below a whiteout");
}

#[test]
fn h22_an_opaque_marker_at_the_root_hides_everything_below() {
    let lower = [dir("a"), file("a/b", "x"), file("c", "x")];
    let upper = [file("new", "y"), file(".wh..wh..opq", "")];
    assert_eq!(list(&[&lower, &upper]), tree(&[("/new", "\"y\"")]));
}

#[test]
fn h23_markers_never_appear() {
    let upper = [
        file(".wh.a", ""),
        file("d/.wh..wh..opq", ""),
        file(".wh..wh.plnk/1", ""),
        file(".wh..wh.aufs", ""),
    ];
    assert!(list(&[&[file("a", "x")], &upper]).is_empty());
    // Nor by way of a link: layer.md has no such names. As a link's text they are text.
    for target in [".wh.x", "d/.wh.x", ".wh..wh..opq", ".wh.x/../.wh.y"] {
        let members = [symlink("l", target), file("l/f", "x")];
        malformed(&[&members], "\"l/f\": a symbolic link leads it to \".wh.");
        malformed(&[&members[..1], &members[1..]], "the name of a whiteout marker");
        both(&members[..1], &[("/l", &format!("-> {target}"))]);
    }
}

#[test]
fn h24_what_was_deleted_does_not_come_back_with_a_deeper_entry() {
    let lower = [dir("a"), dir("a/b"), file("a/b/old", "x"), file("a/old", "x")];
    let upper = [file(".wh.a", ""), file("a/b/c/new", "y")];
    let expected = tree(&[
        ("/a", "dir"),
        ("/a/b", "dir"),
        ("/a/b/c", "dir"),
        ("/a/b/c/new", "\"y\""),
    ]);
    assert_eq!(list(&[&lower, &upper]), expected);
    assert_eq!(list(&[&lower, &upper[..1], &upper[1..]]), expected, "in a later layer");
}

#[test]
fn h25_the_last_of_a_name_wins() {
    both(&[file("a", "1"), file("a", "2"), file("a", "3")], &[("/a", "\"3\"")]);
}

#[test]
fn h26_a_change_of_type_removes_what_was_there_with_all_below_it() {
    let tests: [(Member, &str); 4] = [
        (file("d", "x"), "\"x\""),
        (symlink("d", "/e"), "-> /e"),
        (member(b'6', "d"), "fifo"),
        (
            Member {
                device: (1, 3),
                ..member(b'3', "d")
            },
            "c 1:3",
        ),
    ];
    for (now, word) in tests {
        both(&[dir("d"), file("d/x", "x"), now.clone()], &[("/d", word)]);
        both(&[now, dir("d")], &[("/d", "dir")]);
    }
    // There and back: nothing old is left.
    both(
        &[dir("d"), file("d/x", "x"), file("d", "f"), dir("d")],
        &[("/d", "dir")],
    );
    // A file that is used as a directory is one.
    both(&[file("d", "f"), file("d/x", "x")], &[("/d", "dir"), ("/d/x", "\"x\"")]);
}

#[test]
fn h27_a_directory_over_a_directory_replaces_attributes_and_keeps_children() {
    let old = dir("d").mode(0o700).owner(1, 2).pax("SCHILY.xattr.user.old", b"1");
    let new = dir("d").mode(0o1777).owner(3, 4).pax("SCHILY.xattr.user.new", b"2");
    let (inner, split): (Vec<Member>, _) = (
        vec![old.clone(), file("d/x", "x"), new.clone()],
        [old, file("d/x", "x"), new],
    );
    for layers in [vec![&inner[..]], split.chunks(1).collect()] {
        let mut tree = merge(&layers).unwrap();
        assert_eq!(attributes(&mut tree, "d"), (0o1777, 3, 4, (0, 0)));
        assert_eq!(xattrs(&mut tree, "d"), [(b"user.new".to_vec(), b"2".to_vec())]);
        assert!(tree.lookup(b"d/x").unwrap().is_some());
    }
}

#[test]
fn h28_implied_directories_are_0755_and_existing_ones_keep_their_attributes() {
    let mut kept = dir("tmp").mode(0o1777).owner(5, 6);
    kept.mtime = 77;
    let members = [kept, file("tmp/x", "x"), file("new/sub/x", "x")];
    for layers in [vec![&members[..]], members.chunks(1).collect()] {
        let mut tree = merge(&layers).unwrap();
        assert_eq!(attributes(&mut tree, "tmp"), (0o1777, 5, 6, (77, 0)));
        assert_eq!(attributes(&mut tree, "new/sub"), (0o755, 0, 0, (0, 0)));
    }
}

#[test]
fn h29_the_roots_own_entry_counts_and_must_be_a_directory() {
    let mut tree = merge(&[&[file("x", "x")]]).unwrap();
    assert_eq!(attributes(&mut tree, ""), (0o755, 0, 0, (0, 0)));
    let mut tree = merge(&[&[file("x", "x")], &[dir("./").mode(0o711).owner(1, 2)]]).unwrap();
    assert_eq!(attributes(&mut tree, ""), (0o711, 1, 2, (0, 0)));
    malformed(&[&[file("./", "x")]], "not a directory");
    malformed(&[&[symlink("/", "x")]], "not a directory");
}

#[test]
fn h30_names_of_255_bytes_are_exact_and_one_more_is_refused() {
    let longest = "n".repeat(255);
    let deep = ["d"; 100].join("/") + "/" + &longest;
    let found = list(&[&[file(&longest, "x"), file(&deep, "y")]]);
    assert_eq!(found[&format!("/{longest}")], "\"x\"");
    assert_eq!(found[&format!("/{deep}")], "\"y\"");
    malformed(&[&[file(&"n".repeat(256), "x")]], "256 bytes");
    malformed(
        &[&[symlink("l", &"n".repeat(256)), file("l/x", "x")]],
        "longer than 255",
    );
    assert!(matches!(
        refused(&[&[file(&"d/".repeat(2049), "x")]]),
        LayerError::TooLarge(_)
    ));
}

#[test]
fn h30_a_whiteout_hides_a_name_of_255_bytes_and_is_refused_for_one_more() {
    for (length, above) in [(251, ""), (252, ""), (255, ""), (255, "d/")] {
        let (name, beside) = ("n".repeat(length), format!("{above}beside"));
        let lower = [file(&format!("{above}{name}"), "x"), file(&beside, "y")];
        let found = list(&[&lower, &[file(&format!("{above}.wh.{name}"), "")]]);
        assert_eq!(found, list(&[&[file(&beside, "y")]]), "{length}");
    }
    for name in ["n".repeat(256), format!("d/{}", "n".repeat(256))] {
        let marker = name.replacen('n', ".wh.n", 1);
        malformed(&[&[file(&marker, "")]], "has 256 bytes; a file system holds 255");
    }
}

/// A file of this name, with what a ustar header has before it.
fn prefixed(prefix: &str, name: &str, change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut bytes = tar(&[file(name, "x"), file("after", "y")]);
    let header: &mut [u8; 512] = bytes.first_chunk_mut().unwrap();
    header[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
    change(header);
    seal(header);
    bytes
}

#[test]
fn h30_the_prefix_of_ustar_and_of_star_is_the_beginning_of_the_name() {
    let names = |bytes: Vec<u8>| {
        let found = listed(&apply(vec![bytes], &Limits::default()).unwrap());
        let is_file = |(path, word): (String, String)| (word == "\"x\"").then_some(path);
        let names: Vec<String> = found.into_iter().filter_map(is_file).collect();
        names.join(" ")
    };
    let longest = "n".repeat(100);
    let path = |length: usize| format!("{}d", "d/".repeat(length / 2));
    for (prefix, name) in [("d", "f"), (&*path(154), &*longest), ("/d/", "f")] {
        let whole = format!("/{}/{name}", prefix.trim_matches('/'));
        assert_eq!(names(prefixed(prefix, name, |_| ())), whole);
        // A length of its own stands for both parts.
        assert_eq!(whole.len() - 1, prefix.trim_matches('/').len() + 1 + name.len());
    }
    // star has 131 bytes of it, and two times behind them.
    let star = |header: &mut [u8; 512]| {
        header[476..500].copy_from_slice(b"14524770137 14524770137 ");
        header[508..512].copy_from_slice(b"tar\0");
    };
    for prefix in ["d", &path(128), &path(130)] {
        assert_eq!(names(prefixed(prefix, &longest, star)), format!("/{prefix}/{longest}"));
    }
    // GNU keeps times in its place, and tar of 1979 nothing.
    let gnu = |header: &mut [u8; 512]| header[257..265].copy_from_slice(b"ustar  \0");
    for times in [
        "14524770137",
        "14524770137\x0014524770137",
        "\0",
        " 7 \0",
        "\0usr/lib",
        "12345670123",
    ] {
        assert_eq!(names(prefixed(times, "f", gnu)), "/f");
    }
    // Go before 1.8 wrote a prefix behind GNU's magic; it is one where it is no time, and ASCII.
    for prefix in [
        "usr",
        "usr/lib/something/long",
        &path(154),
        "14524770137/x",
        "14524770137\x0014524770137x",
    ] {
        let whole = prefix.split('\0').next().unwrap();
        assert_eq!(names(prefixed(prefix, &longest, gnu)), format!("/{whole}/{longest}"));
    }
    assert_eq!(names(prefixed("usr/l\u{ed}b", "f", gnu)), "/f");
    assert_eq!(names(prefixed("junk", "f", |header| header[257..265].fill(0))), "/f");
    // Rules for names hold for what both make.
    let wrong = apply(vec![prefixed("a/..", "b", |_| ())], &Limits::default()).map(drop);
    assert!(matches!(wrong, Err(LayerError::Malformed(why)) if why.contains("`..`")));
    let marker = tar(&[file("d/f", "x")]);
    let hidden = apply(vec![marker, prefixed("d", ".wh.f", |_| ())], &Limits::default()).unwrap();
    assert_eq!(listed(&hidden), tree(&[("/after", "\"y\""), ("/d", "dir")]));
}

#[test]
fn h30_a_long_name_by_pax_is_exact_as_one_by_gnu_is() {
    let parent = ["d"; 100].join("/");
    for name in [format!("{parent}/{}", "n".repeat(255)), "m".repeat(101)] {
        let by_pax = file("short", "x").pax("path", name.as_bytes());
        let link = hardlink("link", "short").pax("linkpath", name.as_bytes());
        let found = list(&[&[by_pax], &[link]]);
        assert_eq!(found, list(&[&[file(&name, "x"), hardlink("link", &name)]]));
        assert_eq!(found[&format!("/{name}")], "\"x\" x2");
        // GNU's long names win over PAX, whichever is first.
        let (gnu, target) = ("g".repeat(120), "t".repeat(120));
        let long = file(&gnu, "x").pax("path", name.as_bytes());
        assert_eq!(list(&[&[long]]), list(&[&[file(&gnu, "x")]]));
        let link = symlink("l", &target).pax("linkpath", name.as_bytes());
        assert_eq!(list(&[&[link]]), list(&[&[symlink("l", &target)]]));
        let by_gnu = Member {
            content: b"gnu".to_vec(),
            ..member(b'L', "././@LongLink")
        };
        let by_pax = file("short", "x").pax("path", name.as_bytes());
        assert_eq!(list(&[&[by_gnu, by_pax.clone()]]), tree(&[("/gnu", "\"x\"")]));
        // An empty one is none.
        let empty = Member {
            content: vec![0],
            ..member(b'L', "././@LongLink")
        };
        assert_eq!(list(&[&[empty, by_pax]]), list(&[&[file(&name, "x")]]));
    }
}

#[test]
fn h31_symbolic_links_have_targets_of_1_to_4095_bytes() {
    for length in [1, 59, 60, 61, 100, 101, 3000, 4095] {
        let target = "t".repeat(length);
        assert_eq!(list(&[&[symlink("l", &target)]])["/l"], format!("-> {target}"));
    }
    malformed(&[&[symlink("l", "")]], "impossible target");
    malformed(&[&[symlink("l", &"t".repeat(4096))]], "impossible target");
}

#[test]
fn h32_names_and_targets_are_bytes() {
    let mut raw = file("x", "x");
    raw.name = b"d/\xff\xfe\x01\n".to_vec();
    let mut link = symlink("l", "x");
    link.link = b"\x80/\xff".to_vec();
    let found = list(&[&[raw, link]]);
    assert_eq!(found["/d/\\xff\\xfe\\x01\\n"], "\"x\"");
    assert_eq!(found["/l"], "-> \\x80/\\xff");
}
