//! What a member's header says, across layers: the upper layer's word replaces the lower one's whole, and what is
//! damaged or odd in one layer changes nothing in another. The same hazards within one layer: hazards_members.rs
//! and hazards_attributes.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::slice::from_ref;

use support::disk::on_disk;
use support::raw::{Member, Memory, attributes, content, dir, file, hardlink, list, member, merge, open_tar, tar};
use support::raw::{listed, symlink, tree, xattrs};
use support::{gzip, zstd};
use vmlet_artifacts::layers::LayerError;
use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::Limits;

const OVERRIDES: [(&str, &[u8]); 4] = [
    ("path", b"right"),
    ("size", b"7"),
    ("uid", b"70000"),
    ("gid", b"4294967295"),
];

fn overridden(text: &str) -> Member {
    let member = file("wrong", text);
    let member = OVERRIDES
        .iter()
        .fold(member, |member, (key, value)| member.pax(key, value));
    Member {
        size: Some(0),
        ..member
    }
}

#[test]
fn h33_overrides_hold_for_one_member_of_one_layer() {
    // Over a plain file, below one, and not for the layer above.
    let mut tree = merge(&[
        &[file("right", "old")],
        &[overridden("content")],
        &[file("wrong", "own")],
    ])
    .unwrap();
    assert_eq!(content(&mut tree, "right").bytes, b"content");
    assert_eq!(attributes(&mut tree, "right"), (0o644, 70_000, u32::MAX, (0, 0)));
    assert_eq!(content(&mut tree, "wrong").bytes, b"own");
    assert_eq!(attributes(&mut tree, "wrong"), (0o644, 0, 0, (0, 0)));
    let mut tree = merge(&[&[overridden("content")], &[file("right", "new")]]).unwrap();
    assert_eq!(attributes(&mut tree, "right"), (0o644, 0, 0, (0, 0)));
    // A whiteout by an overridden name hides what it really names.
    let hidden = file("x", "").pax("path", b"d/.wh.f");
    assert_eq!(list(&[&[file("d/f", "x")], &[hidden]]), self::tree(&[("/d", "dir")]));
}

#[test]
fn h34_a_global_header_says_nothing_to_the_layers_above() {
    let global = Member {
        content: b"12 path=bad\n12 uid=1234\n".to_vec(),
        ..member(b'g', "pax_global_header")
    };
    let mut tree = merge(&[&[global.clone(), file("a", "x")], &[file("b", "y"), global]]).unwrap();
    assert_eq!(listed(&tree), self::tree(&[("/a", "\"x\""), ("/b", "\"y\"")]));
    assert_eq!(attributes(&mut tree, "b").1, 0);
}

#[test]
fn h35_h36_sparse_and_dense_files_replace_each_other_and_give_room_back() {
    let sparse = || {
        file("GNUSparseFile.1/s", "end")
            .pax("GNU.sparse.name", b"s")
            .pax("GNU.sparse.size", b"1048579")
            .pax("GNU.sparse.numblocks", b"1")
            .pax("GNU.sparse.map", b"1048576,3")
    };
    let mut dense = file("s", "");
    dense.content = vec![0x5a; 8 << 20];
    let mut merged = merge(&[&[dense.clone()], &[sparse()]]).unwrap();
    let kept = content(&mut merged, "s");
    assert_eq!((kept.bytes.len(), kept.holes), (1_048_579, 1 << 20));
    let mut merged = merge(&[&[sparse()], &[dense.clone()]]).unwrap();
    assert_eq!(
        (content(&mut merged, "s").bytes.len(), content(&mut merged, "s").holes),
        (8 << 20, 0)
    );
    // A name of the old content keeps it.
    let mut merged = merge(&[&[sparse(), hardlink("t", "s")], &[dense.clone()]]).unwrap();
    assert_eq!(content(&mut merged, "t").holes, 1 << 20);

    let room = |layers: &[&[Member]]| {
        let disk = on_disk(layers.iter().map(|members| tar(members)).collect()).unwrap();
        std::fs::metadata(disk.path()).unwrap().blocks() * 512
    };
    let mut zeros = file("s", "");
    zeros.content = vec![0; 8 << 20];
    let least = room(&[&[zeros.clone()]]);
    for upper in [zeros, sparse(), file(".wh.s", "")] {
        let now = room(&[&[dense.clone()], &[upper]]);
        assert!(
            now < least + (1 << 20),
            "{now} bytes, and {least} without the lower layer"
        );
    }
}

#[test]
fn h37_nodes_replace_and_are_replaced() {
    let device = |flag, major, minor| Member {
        device: (major, minor),
        ..member(flag, "n")
    };
    let others = [
        (device(b'3', 1, 3), "c 1:3"),
        (device(b'4', 300, 70_000), "b 300:70000"),
        (member(b'6', "n"), "fifo"),
        (file("n", "x"), "\"x\""),
        (symlink("n", "x"), "-> x"),
        // What overlayfs calls a whiteout is a device like any other here.
        (device(b'3', 0, 0), "c 0:0"),
    ];
    for (lower, old) in &others {
        for (upper, word) in &others {
            assert_eq!(list(&[from_ref(lower), from_ref(upper)]), tree(&[("/n", word)]));
        }
        assert!(list(&[from_ref(lower), &[file(".wh.n", "")]]).is_empty());
        let linked = list(&[from_ref(lower), &[hardlink("m", "n"), file("n", "new")]]);
        assert_eq!(linked, tree(&[("/m", old), ("/n", "\"new\"")]));
    }
}

#[test]
fn h38_a_mode_is_that_of_the_last_layer_that_has_the_entry() {
    for (old, new) in [(0o4755, 0o644), (0o644, 0o2755), (0o7777, 0), (0, 0o1777)] {
        let with = |mode| [file("f", "x").mode(mode), dir("d").mode(mode)];
        let mut tree = merge(&[&with(old), &with(new)]).unwrap();
        assert_eq!(attributes(&mut tree, "f").0, new as u16, "no bit of the old one stays");
        assert_eq!(attributes(&mut tree, "d").0, new as u16);
    }
    // A link says nothing about the mode, owner and time of what it names.
    let mut link = hardlink("g", "f").mode(0o777).owner(9, 9);
    link.mtime = 99;
    let mut tree = merge(&[&[file("f", "x").mode(0o4711)], &[link]]).unwrap();
    assert_eq!(attributes(&mut tree, "g"), (0o4711, 0, 0, (0, 0)));
}

#[test]
fn h39_h40_attributes_go_with_the_entry_that_had_them() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capable = || {
        file("f", "x")
            .pax("SCHILY.xattr.security.capability", &capability)
            .pax("SCHILY.xattr.user.a", b"\0old")
    };
    let mut tree = merge(&[&[capable()], &[file("f", "new")]]).unwrap();
    assert!(
        xattrs(&mut tree, "f").is_empty(),
        "a new program has no capability of the old one"
    );
    let renewed = file("f", "new").pax("SCHILY.xattr.user.a", b"new");
    let mut tree = merge(&[&[capable()], &[renewed]]).unwrap();
    assert_eq!(xattrs(&mut tree, "f"), [(b"user.a".to_vec(), b"new".to_vec())]);
    // Another name, a moved parent, an untouched neighbour: they keep it.
    let link = hardlink("g", "f").pax("SCHILY.xattr.user.a", b"of a link");
    let mut tree = merge(&[&[capable()], &[link, file("other", "")]]).unwrap();
    assert_eq!(xattrs(&mut tree, "g").len(), 2);
    assert_eq!(xattrs(&mut tree, "f"), xattrs(&mut tree, "g"));
    // Overlay's marks do not work in another layer's place either.
    let marked = dir("d").pax("SCHILY.xattr.trusted.overlay.opaque", b"y");
    let mut tree = merge(&[&[dir("d"), file("d/x", "x")], &[marked]]).unwrap();
    assert!(xattrs(&mut tree, "d").is_empty() && tree.lookup(b"d/x").unwrap().is_some());
    let disk = on_disk(vec![tar(&[capable()]), tar(&[hardlink("g", "f"), file("f", "new")])]).unwrap();
    assert!(support::debugfs(disk.path(), "ea_get -x /g security.capability").contains("01 00 00 02"));
    assert!(!support::debugfs(disk.path(), "ea_list /f").contains("security"));
}

#[test]
fn h41_a_directory_entry_without_an_access_list_takes_it_away() {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, id) in [
        (0x01u16, u32::MAX),
        (0x02, 1000),
        (0x04, u32::MAX),
        (0x10, u32::MAX),
        (0x20, u32::MAX),
    ] {
        acl.extend_from_slice(&[tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let listed = |name: &str| {
        dir(name)
            .pax("SCHILY.xattr.system.posix_acl_access", &acl)
            .pax("SCHILY.xattr.system.posix_acl_default", &acl)
    };
    let lower = tar(&[listed("gone"), listed("kept")]);
    let disk = on_disk(vec![lower, tar(&[dir("gone"), file("gone/x", ""), file("kept/x", "")])]).unwrap();
    let lists = |name: &str| {
        support::debugfs(disk.path(), &format!("ea_list /{name}"))
            .matches("posix_acl")
            .count()
    };
    assert_eq!((lists("gone"), lists("kept"), lists("kept/x")), (0, 2, 0));
}

#[test]
fn h42_h43_owner_and_time_are_those_of_the_last_layer_also_when_older() {
    let at = |owner, seconds| {
        let mut file = file("f", "x").owner(owner, owner);
        file.mtime = seconds;
        file
    };
    for (lower, upper) in [((0, 1 << 33), (u64::from(u32::MAX), -1)), ((1 << 31, -5), (0, 1 << 33))] {
        let mut tree = merge(&[&[at(lower.0, lower.1)], &[at(upper.0, upper.1)]]).unwrap();
        assert_eq!(
            attributes(&mut tree, "f"),
            (0o644, upper.0 as u32, upper.0 as u32, (upper.1, 0))
        );
    }
    // What is put into or removed from a directory does not touch its time.
    let mut old = dir("d");
    old.mtime = 77;
    let fine = old.clone().pax("mtime", b"77.000000001");
    let mut tree = merge(&[&[fine, file("d/a", "")], &[file("d/b", "")], &[file("d/.wh.a", "")]]).unwrap();
    assert_eq!(attributes(&mut tree, "d").3, (77, 1));
}

#[test]
fn h44_old_types_replace_across_layers_and_an_unknown_one_is_refused_in_its_layer() {
    let of = |flag, content: &str| Member {
        content: content.into(),
        ..member(flag, "f")
    };
    for flags in [[0, b'7'], [b'7', 0], [b'0', 0]] {
        assert_eq!(
            list(&[&[of(flags[0], "old")], &[of(flags[1], "new")]]),
            tree(&[("/f", "\"new\"")])
        );
    }
    let said = on_disk(vec![tar(&[of(0, "x")]), tar(&[of(b'V', "x")])])
        .map(drop)
        .unwrap_err();
    assert!(
        said.starts_with("layer 2: \"f\"") && said.contains("unknown type"),
        "{said}"
    );
}

#[test]
fn h45_large_directories_are_changed_by_upper_layers_in_linear_time() {
    let lower: Vec<Member> = (0..20_000).map(|n| file(&format!("many/f{n}"), "")).collect();
    let hidden: Vec<Member> = (0..20_000)
        .step_by(2)
        .map(|n| file(&format!("many/.wh.f{n}"), ""))
        .collect();
    let again: Vec<Member> = (0..20_000).step_by(4).map(|n| dir(&format!("many/f{n}"))).collect();
    let found = list(&[&lower, &hidden, &again]);
    assert_eq!(found.len(), 1 + 10_000 + 5000);
    assert_eq!((&*found["/many/f1"], &*found["/many/f4"]), ("\"\"", "dir"));
    assert!(!found.contains_key("/many/f2"));
}

#[test]
fn h46_h47_damage_or_junk_in_one_layer_is_told_with_its_place_and_moves_nothing_else() {
    let good = tar(&[file("a", "x")]);
    let cut = open_tar(&[file("b", "content")])[..600].to_vec();
    for (layers, place) in [
        (vec![cut.clone(), good.clone()], "layer 1: "),
        (vec![good.clone(), gzip(&cut), good.clone()], "layer 2: "),
        (vec![good.clone(), good.clone(), cut], "layer 3: "),
    ] {
        let said = on_disk(layers).map(drop).unwrap_err();
        assert!(said.starts_with(place) && said.contains("cut off"), "{said}");
    }
    // Behind its end a layer may have anything, however it is packed; the next one begins at its own start.
    let junk = [&good[..], b"junk", &tar(&[file("ghost", "x")])].concat();
    let above = tar(&[file("c", "z")]);
    let layers = [junk.clone(), gzip(&junk), zstd(&junk), above];
    let inputs = layers
        .iter()
        .zip([&junk, &junk, &junk, &layers[3]])
        .map(|(bytes, plain)| Input {
            bytes: Box::new(Cursor::new(bytes.clone())),
            diff_id: Some(Digest::sha256(plain)),
        });
    let merged = flatten(
        inputs.collect(),
        &mut Memory::default(),
        &Limits::default(),
        &Default::default(),
        &|| (),
    );
    let merged = merged.map_err(|(at, error)| (at, error.to_string())).unwrap();
    assert_eq!(listed(&merged), tree(&[("/a", "\"x\""), ("/c", "\"z\"")]));
}

#[test]
fn h51_h52_h53_each_layer_has_its_own_digest_and_compression() {
    let layers: Vec<Vec<u8>> = (0..3).map(|n| tar(&[file(&format!("f{n}"), "x")])).collect();
    let packed = [layers[0].clone(), gzip(&layers[1]), zstd(&layers[2])];
    let with = |names: [usize; 3], packed: &[Vec<u8>; 3]| {
        let inputs = packed.iter().zip(names).map(|(bytes, name)| Input {
            bytes: Box::new(Cursor::new(bytes.clone())),
            diff_id: Some(Digest::sha256(&layers[name])),
        });
        flatten(
            inputs.collect(),
            &mut Memory::default(),
            &Limits::default(),
            &Default::default(),
            &|| (),
        )
        .map(|tree| listed(&tree).len())
    };
    assert_eq!(with([0, 1, 2], &packed).ok(), Some(3));
    for (names, at) in [([0, 2, 1], 1), ([0, 1, 1], 2), ([1, 1, 2], 0)] {
        let (failed, error) = with(names, &packed).err().unwrap();
        assert!(
            failed == at && matches!(error, LayerError::WrongDiffId { .. }),
            "{failed}: {error}"
        );
    }
    for at in 1..3 {
        let mut cut = packed.clone();
        let half = cut[at].len() / 2;
        cut[at].truncate(half);
        let (failed, error) = with([0, 1, 2], &cut).err().unwrap();
        assert!(
            failed == at && matches!(error, LayerError::Read(_)),
            "{failed}: {error}"
        );
    }
}
