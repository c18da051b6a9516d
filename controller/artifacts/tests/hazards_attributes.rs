//! Hazards of what a member says beside its content: device numbers, modes, extended attributes, access lists, owners and
//! times. The same across layers: hazards_layers.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::disk::on_disk;
use support::raw::{Member, attributes, dir, file, list, member, merge, refused, tar, tree, xattrs};
use vmlet_artifacts::layers::LayerError;

#[test]
fn h37_device_nodes_and_fifos_need_no_privilege_and_keep_large_numbers() {
    let device = |flag, name, major, minor| Member {
        device: (major, minor),
        ..member(flag, name)
    };
    let members = [
        device(b'3', "null", 1, 3),
        device(b'4', "large", 300, 70_000),
        device(b'3', "most", 4095, 1_048_575),
        member(b'6', "pipe"),
    ];
    let expected = tree(&[
        ("/large", "b 300:70000"),
        ("/most", "c 4095:1048575"),
        ("/null", "c 1:3"),
        ("/pipe", "fifo"),
    ]);
    assert_eq!(list(&[&members]), expected);
    for bad in [device(b'3', "x", 4096, 0), device(b'4', "x", 0, 1_048_576)] {
        assert!(matches!(refused(&[&[bad]]), LayerError::Malformed(_)));
    }
    let disk = on_disk(vec![tar(&members)]).unwrap();
    let stat = support::debugfs(disk.path(), "stat /large");
    assert!(stat.contains("300") && stat.contains("70000"), "{stat}");
}

#[test]
fn h38_modes_are_exact() {
    for mode in [0, 0o666, 0o777, 0o1777, 0o2755, 0o4755, 0o7777] {
        let mut tree = merge(&[&[file("f", "x").mode(mode).owner(7, 8), dir("d").mode(mode)]]).unwrap();
        assert_eq!(attributes(&mut tree, "f"), (mode as u16, 7, 8, (0, 0)));
        assert_eq!(attributes(&mut tree, "d").0, mode as u16);
    }
    // The type bits that some tools add are not part of it.
    let mut tree = merge(&[&[file("f", "x").mode(0o100_644)]]).unwrap();
    assert_eq!(attributes(&mut tree, "f").0, 0o644);
}

#[test]
fn h39_h40_extended_attributes_are_kept_byte_for_byte_but_overlays_own() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut with = file("f", "x").pax("SCHILY.xattr.security.capability", &capability);
    with = with
        .pax("SCHILY.xattr.user.binary", b"\0\n=\xff")
        .pax("SCHILY.xattr.trusted.x", &[7; 100]);
    with = with
        .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .pax("SCHILY.xattr.user.overlay.redirect", b"/etc");
    for n in 0..60 {
        with = with.pax(&format!("SCHILY.xattr.user.n{n}"), b"v");
    }
    let mut tree = merge(&[&[with.clone()]]).unwrap();
    let found = xattrs(&mut tree, "f");
    assert_eq!(found.len(), 63);
    assert!(found.contains(&(b"security.capability".to_vec(), capability.to_vec())));
    assert!(found.contains(&(b"user.binary".to_vec(), b"\0\n=\xff".to_vec())));
    assert!(
        found
            .iter()
            .all(|(name, _)| !name.windows(8).any(|part| part == b"overlay."))
    );
    let disk = on_disk(vec![tar(&[with])]).unwrap();
    let stat = support::debugfs(disk.path(), "ea_get -x /f security.capability");
    assert!(stat.contains("01 00 00 02 00 04"), "{stat}");
    on_disk(vec![tar(&[file("f", "x").pax("SCHILY.xattr.user.large", &[7; 4000])])]).unwrap();
    on_disk(vec![tar(&[
        file("f", "x").pax("SCHILY.xattr.user.largest", &[7; 65_536])
    ])])
    .unwrap();
    // What Linux cannot give is a clean error.
    let huge = file("f", "x").pax("SCHILY.xattr.user.huge", &[7; 65_537]);
    assert!(on_disk(vec![tar(&[huge])]).is_err());
}

#[test]
fn h41_access_lists_become_ext4s_own_form() {
    // Version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let with = file("f", "x")
        .mode(0o640)
        .pax("SCHILY.xattr.system.posix_acl_access", &acl);
    let disk = on_disk(vec![tar(&[with])]).unwrap();
    let stat = support::debugfs(disk.path(), "ea_get -x /f system.posix_acl_access");
    // debugfs turns it back into the generic form.
    assert!(stat.contains("02 00 00 00") && stat.contains("e8 03 00 00"), "{stat}");
    let broken = file("f", "x").pax("SCHILY.xattr.system.posix_acl_access", &acl[..7]);
    assert!(on_disk(vec![tar(&[broken])]).is_err());
}

#[test]
fn h40_h41_attributes_in_other_forms_than_schily_xattr_are_not_kept() {
    let text = b"user::rw-,user:1000:r--,group::r--,mask::r--,other::---";
    let other = |member: Member| {
        member
            .pax("SCHILY.acl.access", text)
            .pax("SCHILY.acl.default", text)
            .pax("RHT.security.selinux", b"system_u:object_r:bin_t:s0")
            .pax("LIBARCHIVE.xattr.user.x", b"aGVsbG8=")
    };
    let kept = other(file("kept", "x")).pax("SCHILY.xattr.user.x", b"hello");
    let mut tree = merge(&[&[other(file("f", "x")), other(dir("d")), kept]]).unwrap();
    assert_eq!(xattrs(&mut tree, "f"), []);
    assert_eq!(xattrs(&mut tree, "d"), []);
    assert_eq!(attributes(&mut tree, "f").0, 0o644);
    assert_eq!(xattrs(&mut tree, "kept"), [(b"user.x".to_vec(), b"hello".to_vec())]);
}

/// An access list of these permissions, those of a user 1000 and the mask if it has some.
fn access_list(owner: u16, group: u16, others: u16, mask: Option<u16>) -> Vec<u8> {
    let named = mask.map(|mask| [(0x02, 7, 1000), (0x10, mask, u32::MAX)]);
    let mut entries = vec![
        (0x01u16, owner, u32::MAX),
        (0x04, group, u32::MAX),
        (0x20, others, u32::MAX),
    ];
    entries.extend(named.into_iter().flatten());
    let entry = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let entries: Vec<u8> = entries.into_iter().flat_map(entry).collect();
    [&2u32.to_le_bytes()[..], &entries].concat()
}

#[test]
fn h41_the_mode_of_an_entry_with_an_access_list_is_what_the_list_says() {
    let listed = |member: Member, list: &[u8]| member.pax("SCHILY.xattr.system.posix_acl_access", list);
    let (masked, plain) = (access_list(6, 4, 0, Some(7)), access_list(6, 4, 0, None));
    let disk = on_disk(vec![tar(&[
        listed(dir("./").mode(0o755), &access_list(7, 5, 1, Some(5))),
        listed(file("masked", "x").mode(0o600), &masked),
        listed(file("set", "x").mode(0o6777), &masked),
        listed(file("plain", "x").mode(0o777), &plain),
        listed(dir("d").mode(0o1777), &access_list(7, 0, 0, None)),
        dir("default")
            .mode(0o700)
            .pax("SCHILY.xattr.system.posix_acl_default", &plain),
    ])])
    .unwrap();
    for (name, mode, lists) in [
        ("/", "0751", 1),
        ("/masked", "0670", 1),
        ("/set", "06670", 1),
        // A list that is nothing but a mode is none.
        ("/plain", "0640", 0),
        ("/d", "01700", 0),
        // Of what is made in a directory it says something.
        ("/default", "0700", 1),
    ] {
        let stat = support::debugfs(disk.path(), &format!("stat {name}"));
        let found = stat.split("Mode:").nth(1).unwrap().split_whitespace().next().unwrap();
        assert_eq!(found, mode, "{name}: {stat}");
        let list = support::debugfs(disk.path(), &format!("ea_list {name}"));
        assert_eq!(list.matches("posix_acl").count(), lists, "{name}: {list}");
    }
}

#[test]
fn h42_owners_are_32_bits_and_no_more() {
    for id in [65_535, 65_536, 2_097_151, 2_097_152, (1 << 31) + 5, u64::from(u32::MAX)] {
        let mut tree = merge(&[&[file("f", "x").owner(id, id)]]).unwrap();
        let (_, uid, gid, _) = attributes(&mut tree, "f");
        assert_eq!((u64::from(uid), u64::from(gid)), (id, id));
    }
    for bad in [
        file("f", "x").owner(1 << 32, 0),
        file("f", "x").pax("gid", b"4294967296"),
    ] {
        assert!(matches!(refused(&[&[bad]]), LayerError::Malformed(_)));
    }
}

#[test]
fn h43_times_keep_nanoseconds_before_1970_and_after_2038() {
    let at = |mtime| {
        let mut file = file("f", "x");
        file.mtime = mtime;
        file
    };
    for seconds in [0, -1, -86_400, 4_102_444_800, 1 << 33] {
        let mut tree = merge(&[&[at(seconds)]]).unwrap();
        assert_eq!(attributes(&mut tree, "f").3, (seconds, 0));
    }
    let mut tree = merge(&[&[at(5).pax("mtime", b"-1.25")]]).unwrap();
    assert_eq!(attributes(&mut tree, "f").3, (-2, 750_000_000));
    // Beyond what ext4 can say (34 bits from 1901 on), the time is the nearest that it can.
    for (seconds, said) in [
        (15_032_385_535, "mtime: 0x7fffffff:00000003"),
        (15_032_385_536, "mtime: 0x7fffffff:ee6b27ff"),
        (1 << 40, "mtime: 0x7fffffff:ee6b27ff"),
        (i64::MAX, "mtime: 0x7fffffff:ee6b27ff"),
        (-2_147_483_648, "mtime: 0x80000000:00000000"),
        (-2_147_483_649, "mtime: 0x80000000:00000000"),
        (i64::MIN, "mtime: 0x80000000:00000000"),
    ] {
        let disk = on_disk(vec![tar(&[at(seconds)])]).unwrap();
        let stat = support::debugfs(disk.path(), "stat /f");
        assert!(stat.contains(said), "{seconds}: {stat}");
    }
}
