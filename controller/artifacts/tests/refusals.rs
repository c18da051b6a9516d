//! A refusal names the entry and the rule; the layer is named by who reads it (here: its place, in a pull also its digest).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::disk::{on_disk, on_disk_within};
use support::raw::{Member, dir, file, hardlink, member, open_tar, seal, symlink, tar};
use support::scripted::{Image, open_with, source};
use support::{Tar, gzip, image, zstd};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Size};

/// The words of a refusal of these members in a second layer.
fn words(members: &[Member]) -> String {
    words_of(tar(members))
}

fn words_of(layer: Vec<u8>) -> String {
    let first = tar(&[dir("below"), file("below/f", "x"), symlink("loop", "loop")]);
    on_disk(vec![first, layer]).map(drop).unwrap_err()
}

fn deep(mut member: Member) -> Member {
    member.name = b"some/where/odd".to_vec();
    member
}

#[test]
fn a_refused_entry_is_named_with_its_layer_and_the_rule() {
    let odd = || deep(file("", "x"));
    let device = Member {
        device: (4096, 0),
        ..deep(member(b'3', ""))
    };
    for (refused, rule) in [
        (odd().pax("size", b"x"), "the PAX record \"size\""),
        (odd().pax("size", b"-1"), "the PAX record \"size\""),
        (odd().pax("mtime", b"soon"), "the PAX record \"mtime\""),
        (odd().pax("uid", b"4294967296"), "has no room in 32 bits"),
        (odd().pax("linkpath", b"a\0b"), "NUL byte"),
        (odd().pax("SCHILY.xattr.", b"v"), "impossible name"),
        (odd().pax("SCHILY.xattr.user.a\0b", b"v"), "impossible name"),
        (odd().pax("SCHILY.xattr.other.a", b"v"), "ext4 keeps user."),
        (odd().pax("SCHILY.xattr.user.a", &[7; 65_537]), "65536 bytes"),
        (odd().pax("SCHILY.xattr.system.posix_acl_access", b"odd"), "the ACL in"),
        (
            odd().pax("SCHILY.xattr.system.posix_acl_default", &2u32.to_le_bytes()),
            "only a directory",
        ),
        (odd().pax("size", b"18446744073709551615"), "is impossible"),
        (odd().pax("GNU.sparse.map", b"1,2,3"), "list of pairs"),
        (odd().pax("GNU.sparse.map", b"0,1"), "real size"),
        (odd().pax("GNU.sparse.numbytes", b"1"), "no offset"),
        (odd().pax("GNU.sparse.major", b"2"), "unknown version"),
        (
            odd().pax("GNU.sparse.map", b"0,9").pax("GNU.sparse.size", b"9"),
            "hold 9 bytes, the archive 1",
        ),
        (
            odd()
                .pax("GNU.sparse.major", b"1")
                .pax("GNU.sparse.minor", b"0")
                .pax("GNU.sparse.realsize", b"1"),
            "the map of a sparse file is cut off",
        ),
        (deep(member(b'S', "")), "the regions of a sparse file"),
        (deep(member(b'Q', "")), "unknown type"),
        (device, "impossible number 4096:0"),
        (odd().owner(1 << 32, 0), "the owner 4294967296"),
        (deep(symlink("", "")), "impossible target"),
        (deep(hardlink("", "../x")), "`..`"),
        (deep(hardlink("", "none")), "does not exist"),
        (deep(hardlink("", "below")), "the directory"),
    ] {
        // The member before it is not to blame.
        let mut refused = refused;
        if refused.flag == b'S' {
            refused.content = b"not what the empty table says".to_vec();
        }
        let said = words(&[file("good", "x"), refused]);
        assert!(
            said.starts_with("layer 2: ") && said.contains("\"some/where/odd\""),
            "{said}"
        );
        assert!(said.contains(rule), "{rule}: {said}");
        assert_eq!(said.matches("some/where/odd").count(), 1, "{said}");
    }
}

#[test]
fn names_that_are_refused_themselves_are_named() {
    let long = "n".repeat(256);
    for (name, rule) in [
        ("a/../b", "`..`"),
        ("a/.wh.", "names no entry"),
        ("a/.wh.x/y", "below a whiteout"),
        ("loop/x", "loop of symbolic links"),
        ("loop/.wh.x", "loop of symbolic links"),
        ("./", "not a directory"),
        (&long, "256 bytes"),
    ] {
        let said = words(&[file(name, "x")]);
        assert!(said.starts_with("layer 2: ") && said.contains(rule), "{said}");
        // A marker is named by what it hides.
        let begin = &name[..name.len().min(4)];
        assert!(said.contains(&format!("\"{begin}")) || name == "./", "{name}: {said}");
    }
}

#[test]
fn the_name_is_the_one_that_pax_or_gnu_give_it() {
    let long = format!("{}/odd", "d".repeat(120));
    let said = words(&[file(&long, "x").pax("uid", b"none")]);
    assert!(said.contains(&long), "{said}");
    let said = words(&[file("short", "x").pax("path", b"the/real/name").pax("gid", b"none")]);
    assert!(
        said.contains("\"the/real/name\": ") && !said.contains("short"),
        "{said}"
    );
}

#[test]
fn an_entry_without_a_name_is_named_by_its_number() {
    let mut damaged = open_tar(&[file("a", ""), file("b", ""), file("c", "")]);
    damaged[1024] ^= 1;
    let said = words_of(damaged);
    assert!(
        said.contains("layer 2: entry 3: ") && said.contains("checksum"),
        "{said}"
    );
    let good = open_tar(&[file("a", "content"), file("b", "x")]);
    let said = words_of(good[..1100].to_vec());
    assert!(said.contains("entry 2: the tar is cut off"), "{said}");
    // In the middle of a content, its owner is known.
    let said = words_of(good[..514].to_vec());
    assert!(said.contains("\"a\": the tar is cut off"), "{said}");
    let said = words_of([&open_tar(&[file("a", "")])[..], &[0; 512], &tar(&[file("b", "")])].concat());
    assert!(said.contains("entry 2: a lone zero block"), "{said}");
    let mut header = open_tar(&[member(b'x', "x")]);
    let block: &mut [u8; 512] = header.first_chunk_mut().unwrap();
    block[124..136].copy_from_slice(b"00010000000\0");
    seal(block);
    let said = words_of(header);
    assert!(
        said.contains("entry 1: an extension header has 2097152 bytes"),
        "{said}"
    );
}

#[test]
fn what_stands_in_the_place_of_lost_and_found_is_named_with_its_layer() {
    let (plain, there) = ([file("a", "x")], [file("lost+found", "x")]);
    let disk = |layers: &[&[Member]]| on_disk(layers.iter().map(|members| tar(members)).collect()).map(drop);
    let rule = "\"lost+found\": in the root of ext4 this must be a directory";
    let said = |layers: &[&[Member]]| disk(layers).unwrap_err();
    assert_eq!(said(&[&plain, &there, &plain]), format!("layer 2: {rule}"));
    assert_eq!(
        said(&[&there, &[symlink("lost+found", "a")]]),
        format!("layer 2: {rule}")
    );
    // By another way to the root, and as another name.
    let around = [symlink("here", "."), file("here/lost+found", "x")];
    assert_eq!(said(&[&plain, &around]), format!("layer 2: {rule}"));
    assert_eq!(
        said(&[&plain, &[hardlink("lost+found", "a")]]),
        format!("layer 2: {rule}")
    );
    // What a later layer takes away or replaces is none, and elsewhere it is a name like any other.
    disk(&[&there, &[file(".wh.lost+found", "")]]).unwrap();
    disk(&[&there, &[dir("lost+found"), file("lost+found/x", "x")]]).unwrap();
    disk(&[&[file("d/lost+found", "x")]]).unwrap();
}

#[test]
fn a_damaged_stream_is_told_with_the_last_entry_that_was_whole() {
    // What deflate and zstd cannot make shorter.
    let noise: String = (0..400_000u64)
        .map(|n| char::from(b'a' + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as u8 % 26))
        .collect();
    let members = [file("first", &noise), file("second", &noise), file("third", "x")];
    let bytes = tar(&members);
    let ends = |count: usize| open_tar(&members[..count]).len();
    for pack in [gzip, zstd] {
        let whole = pack(&bytes);
        let part = |end: usize| pack(&bytes[..end]).len();
        // In the middle of the second entry, and of the first: zstd has its bytes in blocks of 128 KiB.
        let middle = (part(ends(1)) + part(ends(2))) / 2;
        let said = words_of(whole[..middle].to_vec());
        assert!(said.starts_with("layer 2: after entry \"first\": "), "{said}");
        let said = words_of(whole[..part(ends(1)) / 2].to_vec());
        assert!(said.starts_with("layer 2: ") && !said.contains("after entry"), "{said}");
    }
    // Cut at the end, a wrong sum there, and garbage behind it.
    let whole = gzip(&bytes);
    let said = words_of(whole[..whole.len() - 3].to_vec());
    assert!(said.starts_with("layer 2: after entry \"third\": "), "{said}");
    let mut sum = whole.clone();
    let at = sum.len() - 8;
    sum[at] ^= 1;
    let said = words_of(sum);
    assert!(said.starts_with("layer 2: after entry \"third\": "), "{said}");
    let said = words_of([whole, b"garbage".to_vec()].concat());
    assert_eq!(
        said,
        "layer 2: after entry \"third\": there is garbage after the end of the gzip stream"
    );
}

#[test]
fn the_bound_of_uncompressed_bytes_is_told_with_its_layer_and_entry() {
    let said = |most: u64, layer: &[Member]| {
        let limits = Limits {
            uncompressed_bytes: most,
            ..Limits::default()
        };
        let layers = vec![tar(&[file("below", "")]), tar(layer)];
        let free = FreeSpace { percent: 0, bytes: 0 };
        on_disk_within(&limits, Size::Auto { free }, layers)
            .map(drop)
            .unwrap_err()
    };
    let layer = [file("small", ""), file("large", &"\0".repeat(10_000))];
    let rule = |most: u64| format!("the image has more than {most} bytes when it is uncompressed");
    // The first layer has 1536 bytes.
    assert_eq!(said(4000, &layer), format!("layer 2: \"large\": {}", rule(4000)));
    assert_eq!(said(2300, &layer), format!("layer 2: entry 2: {}", rule(2300)));
    assert_eq!(said(2000, &layer), format!("layer 2: entry 1: {}", rule(2000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_names_the_layer_by_place_and_digest() {
    let good = Tar::new().file("first", 0o644, b"first\n").done();
    let bad = tar(&[file("good", ""), hardlink("some/where/odd", "none")]);
    let layers = [good, bad].map(|tar| (tar.clone(), gzip(&tar)));
    let digest = Digest::sha256(&layers[1].1);
    let served = Image::of(&layers);
    let whole = served.digest();
    let web = served.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let failure = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("Malformed", true),
        "{failure:?}"
    );
    let expected = format!("layer 2 ({digest}) of {whole}: \"some/where/odd\" is a hard link to \"none\"");
    assert!(failure.message.contains(&expected), "{failure:?}");
    artifacts.shutdown().await;
}
