//! Hazards of a tar's members and of what wraps them: headers, extensions, compression, bounds. What members say beside
//! their content: hazards_attributes.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::io::Cursor;

use support::disk::on_disk;
use support::raw::{
    Member, Memory, apply, attributes, content as content_of, dir, file, list, listed, member, merge, open_tar,
    refused, seal, symlink, tar, tree, xattrs,
};
use support::{gzip, zstd};
use vmlet_artifacts::layers::LayerError;
use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::Limits;

fn one(bytes: Vec<u8>) -> Result<Vec<String>, LayerError> {
    let found = apply(vec![bytes], &Limits::default())?;
    Ok(listed(&found).into_keys().collect())
}

#[test]
fn h33_pax_overrides_size_owner_and_path() {
    let mut over = file("wrong", "content").pax("path", b"right").pax("size", b"7");
    over.size = Some(0);
    over = over.pax("uid", b"4294967295").pax("gid", b"70000");
    // The header's size is what a reader without PAX would skip: none.
    let mut tree = merge(&[&[over, file("after", "x")]]).unwrap();
    assert_eq!(content_of(&mut tree, "right").bytes, b"content");
    assert_eq!(attributes(&mut tree, "right"), (0o644, u32::MAX, 70_000, (0, 0)));
    assert!(tree.lookup(b"wrong").unwrap().is_none() && tree.lookup(b"after").unwrap().is_some());
    // linkpath, too.
    let link = symlink("l", "wrong").pax("linkpath", b"right");
    assert_eq!(list(&[&[link]])["/l"], "-> right");
}

#[test]
fn h33_of_two_pax_headers_before_a_member_the_second_counts_alone() {
    let header = |records: &[u8]| Member {
        content: records.to_vec(),
        ..member(b'x', "PaxHeaders/x")
    };
    let first = header(b"14 path=first\n12 uid=1234\n27 SCHILY.xattr.user.a=old\n");
    let second = header(b"27 SCHILY.xattr.user.b=new\n");
    let mut tree = merge(&[&[first.clone(), second, file("a", "x"), file("b", "y")]]).unwrap();
    assert_eq!(listed(&tree), self::tree(&[("/a", "\"x\""), ("/b", "\"y\"")]));
    assert_eq!(attributes(&mut tree, "a").1, 0);
    assert_eq!(xattrs(&mut tree, "a"), [(b"user.b".to_vec(), b"new".to_vec())]);
    // One that is broken is not made good by another.
    assert!(merge(&[&[header(b"5 a=b"), first, file("a", "x")]]).is_err());
}

#[test]
fn h35_the_real_name_of_a_sparse_file_is_one_of_sparse_files_only() {
    let named = file("plain", "x").pax("GNU.sparse.name", b"real");
    assert_eq!(list(&[std::slice::from_ref(&named)]), tree(&[("/plain", "\"x\"")]));
    let version = named
        .clone()
        .pax("GNU.sparse.major", b"0")
        .pax("GNU.sparse.minor", b"1");
    assert_eq!(list(&[&[version]]), tree(&[("/plain", "\"x\"")]));
    let directory = dir("plain").pax("GNU.sparse.name", b"real");
    assert_eq!(list(&[&[directory]]), tree(&[("/plain", "dir")]));
    let map = |member: Member| member.pax("GNU.sparse.size", b"1").pax("GNU.sparse.map", b"0,1");
    assert_eq!(list(&[&[map(named)]]), tree(&[("/real", "\"x\"")]));
    // It wins over all other names.
    let long = file(&"g".repeat(120), "x")
        .pax("path", b"pax")
        .pax("GNU.sparse.name", b"real");
    assert_eq!(list(&[&[map(long)]]), tree(&[("/real", "\"x\"")]));
    for member in [dir("d"), symlink("s", "x"), member(b'6', "p")] {
        let error = merge(&[&[map(member)]]).map(drop).unwrap_err();
        assert!(error.to_string().contains("but is no file"), "{error}");
    }
}

#[test]
fn h33_numbers_of_a_header_may_have_nuls_and_spaces_on_both_sides() {
    let with = |size: &[u8; 12], mode: &[u8; 8]| {
        let mut bytes = tar(&[file("a", "content"), file("after", "x")]);
        let header: &mut [u8; 512] = bytes.first_chunk_mut().unwrap();
        header[124..136].copy_from_slice(size);
        header[100..108].copy_from_slice(mode);
        seal(header);
        apply(vec![bytes], &Limits::default())
    };
    for (size, mode) in [
        (b"00000000007\0", b"0000755\0"),
        (b"\x0000000000007", b"\x000000755"),
        (b"\0\0\0\0\0\0\0\0\0\x007 ", b"\0 \x00755 \0"),
        (b"          7 ", b"   755 \0"),
    ] {
        let mut tree = with(size, mode).unwrap();
        assert_eq!(content_of(&mut tree, "a").bytes, b"content");
        assert_eq!(attributes(&mut tree, "a").0, 0o755);
        assert!(tree.lookup(b"after").unwrap().is_some());
    }
    for (size, mode) in [
        (b"\0\0x\0\0\0\0\0\0\0\x007", b"0000755\0"),
        (b"00000000007\0", b"\x00755 7\0\0"),
    ] {
        let error = with(size, mode).map(drop).unwrap_err();
        assert!(error.to_string().contains("\"a\" has a bad "), "{error}");
    }
}

#[test]
fn h34_a_global_pax_header_is_no_entry_and_is_not_applied() {
    let global = Member {
        content: b"52 comment=0123456789012345678901234567890123456789\n12 path=bad\n".to_vec(),
        ..member(b'g', "pax_global_header")
    };
    assert_eq!(list(&[&[global, file("a", "x")]]), tree(&[("/a", "\"x\"")]));
}

#[test]
fn h35_sparse_files_of_every_format_have_their_size_name_and_holes() {
    let hole = 1 << 20;
    let size = (hole + 3).to_string();
    let real = size.as_bytes();
    let mut block = format!("1\n{hole}\n3\n").into_bytes();
    block.resize(512, 0);
    let one_zero = Member {
        content: [&block[..], b"end"].concat(),
        ..file("GNUSparseFile.1/s", "")
    };
    let one_zero = one_zero
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"s")
        .pax("GNU.sparse.realsize", real);
    let map = format!("{hole},3");
    let zero_one = file("GNUSparseFile.1/s", "end")
        .pax("GNU.sparse.name", b"s")
        .pax("GNU.sparse.size", real)
        .pax("GNU.sparse.numblocks", b"1")
        .pax("GNU.sparse.map", map.as_bytes());
    let zero_zero = file("s", "end")
        .pax("GNU.sparse.size", real)
        .pax("GNU.sparse.numblocks", b"1")
        .pax("GNU.sparse.offset", hole.to_string().as_bytes())
        .pax("GNU.sparse.numbytes", b"3");
    let mut old = tar(&[Member {
        content: b"end".to_vec(),
        ..member(b'S', "s")
    }]);
    let mut header: [u8; 512] = old[..512].try_into().unwrap();
    header[257..265].copy_from_slice(b"ustar  \0");
    header[386..398].copy_from_slice(format!("{hole:011o}\0").as_bytes());
    header[398..410].copy_from_slice(b"00000000003\0");
    header[483..495].copy_from_slice(format!("{:011o}\0", hole + 3).as_bytes());
    seal(&mut header);
    old[..512].copy_from_slice(&header);
    for (what, bytes) in [
        ("1.0", tar(&[one_zero, file("after", "x")])),
        ("0.1", tar(&[zero_one, file("after", "x")])),
        ("0.0", tar(&[zero_zero, file("after", "x")])),
        ("old GNU", old),
    ] {
        let mut tree = apply(vec![bytes], &Limits::default()).unwrap();
        let kept = content_of(&mut tree, "s");
        assert_eq!((kept.bytes.len(), kept.holes), (hole + 3, hole as u64), "{what}");
        assert!(kept.bytes.ends_with(b"\0end"), "{what}");
        if what != "old GNU" {
            assert!(tree.lookup(b"after").unwrap().is_some(), "{what}");
        }
    }
}

/// What has no hole in it is 1, 2, 3 ... letters; a hole stands between them, and at the end.
fn regions(first: usize) -> (Vec<(usize, usize)>, Vec<u8>, Vec<u8>) {
    let size = 31 * 10_000;
    let mut map: Vec<(usize, usize)> = (0..30).map(|n| (first + n * 10_000, n + 1)).collect();
    let (mut stored, mut whole) = (Vec::new(), vec![0; size]);
    for &(at, length) in &map {
        let letters = vec![b'a' + (length % 26) as u8; length];
        whole[at..at + length].copy_from_slice(&letters);
        stored.extend(letters);
    }
    // As GNU tar ends a map when a hole is last.
    map.push((size, 0));
    (map, stored, whole)
}

/// One sparse file `/s` in old GNU's form: 4 regions in the header, 21 in each block behind it.
fn old_gnu(map: &[(usize, usize)], stored: &[u8], size: usize) -> Vec<u8> {
    let fill = |table: &mut [u8], pairs: &[(usize, usize)]| {
        for (at, (offset, length)) in pairs.iter().enumerate() {
            let pair = format!("{offset:011o}\0{length:011o}\0");
            table[at * 24..at * 24 + 24].copy_from_slice(pair.as_bytes());
        }
    };
    let member = Member {
        content: stored.to_vec(),
        ..member(b'S', "s")
    };
    let mut bytes = open_tar(&[member]);
    let data = bytes.split_off(512);
    let header: &mut [u8; 512] = bytes.first_chunk_mut().unwrap();
    header[257..265].copy_from_slice(b"ustar  \0");
    let (inside, outside) = map.split_at(map.len().min(4));
    fill(&mut header[386..482], inside);
    header[482] = u8::from(!outside.is_empty());
    header[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    seal(header);
    let mut left = outside.chunks(21).peekable();
    while let Some(pairs) = left.next() {
        let mut block = [0; 512];
        fill(&mut block, pairs);
        block[504] = u8::from(left.peek().is_some());
        bytes.extend_from_slice(&block);
    }
    [bytes, data, tar(&[file("after", "x")])].concat()
}

#[test]
fn h35_sparse_files_of_many_regions_with_a_hole_at_the_end_are_exact_in_every_format() {
    for first in [0, 7] {
        let (map, stored, whole) = regions(first);
        let size = whole.len().to_string();
        let content = |before: &[u8]| Member {
            content: [before, &stored].concat(),
            ..file("GNUSparseFile.1/s", "")
        };
        let sized = |member: Member| member.pax("GNU.sparse.size", size.as_bytes());
        let join = |between: &str, end: &str| {
            let numbers = map
                .iter()
                .map(|(offset, length)| format!("{offset}{between}{length}{end}"));
            numbers.collect::<String>()
        };
        let mut lines = format!("{}\n{}", map.len(), join("\n", "\n")).into_bytes();
        lines.resize(lines.len().next_multiple_of(512), 0);
        let one_zero = content(&lines)
            .pax("GNU.sparse.major", b"1")
            .pax("GNU.sparse.minor", b"0")
            .pax("GNU.sparse.name", b"s")
            .pax("GNU.sparse.realsize", size.as_bytes());
        let list = join(",", ",");
        let zero_one = sized(content(b""))
            .pax("GNU.sparse.name", b"s")
            .pax("GNU.sparse.map", list.trim_end_matches(',').as_bytes());
        let pair = |member: Member, (offset, length): &(usize, usize)| {
            let member = member.pax("GNU.sparse.offset", offset.to_string().as_bytes());
            member.pax("GNU.sparse.numbytes", length.to_string().as_bytes())
        };
        let zero_zero = map.iter().fold(sized(content(b"")).pax("path", b"s"), pair);
        for (what, bytes) in [
            ("1.0", tar(&[one_zero, file("after", "x")])),
            ("0.1", tar(&[zero_one, file("after", "x")])),
            ("0.0", tar(&[zero_zero, file("after", "x")])),
            ("old GNU", old_gnu(&map, &stored, whole.len())),
        ] {
            let mut tree = apply(vec![bytes.clone()], &Limits::default()).unwrap();
            let kept = content_of(&mut tree, "s");
            assert!(kept.bytes == whole, "{what}");
            assert_eq!(kept.holes, (whole.len() - stored.len()) as u64, "{what}");
            assert_eq!(content_of(&mut tree, "after").bytes, b"x", "{what}");
            let disk = on_disk(vec![bytes]).unwrap();
            assert!(
                support::debugfs(disk.path(), "cat /s").as_bytes() == whole,
                "{what} on the disk"
            );
        }
    }
    // Without an extension block, with one that is full, and with one more region.
    let (map, ..) = regions(0);
    for count in [1, 4, 5, 25, 26] {
        let stored = vec![b'x'; map[..count].iter().map(|(_, length)| length).sum()];
        let bytes = old_gnu(&map[..count], &stored, 310_000);
        let mut tree = apply(vec![bytes], &Limits::default()).unwrap();
        let kept = content_of(&mut tree, "s");
        let (last, length) = map[count - 1];
        assert_eq!(kept.bytes.len(), 310_000);
        assert!(kept.bytes[last..].starts_with(&stored[..length]) && kept.bytes[last + length] == 0);
        assert!(tree.lookup(b"after").unwrap().is_some(), "{count}");
    }
}

#[test]
fn h36_long_runs_of_zeros_take_no_room_on_the_disk() {
    use std::os::unix::fs::MetadataExt;
    let mut zeros = file("z", "");
    zeros.content = vec![0; 32 << 20];
    let disk = on_disk(vec![tar(&[zeros])]).unwrap();
    assert!(support::debugfs(disk.path(), "stat /z").contains("Size: 33554432"));
    let occupied = std::fs::metadata(disk.path()).unwrap().blocks() * 512;
    assert!(occupied < 4 << 20, "{occupied}");
}

#[test]
fn h44_old_and_contiguous_files_are_files_and_unknown_types_are_refused() {
    let of = |flag, name| Member {
        content: b"x".to_vec(),
        ..member(flag, name)
    };
    let mut old_dir = member(0, "d/");
    old_dir.mode = 0o755;
    assert_eq!(
        list(&[&[of(0, "nul"), of(b'7', "seven"), old_dir]]),
        tree(&[("/d", "dir"), ("/nul", "\"x\""), ("/seven", "\"x\"")])
    );
    for flag in [b'8', b'A', b'D', b'M', b'N', b'V', 0xff] {
        match refused(&[&[member(flag, "odd")]]) {
            LayerError::Unsupported(why) => assert!(why.contains("odd") && why.contains("unknown type"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn h45_large_directories_and_deep_trees_are_neither_slow_nor_a_matter_of_the_stack() {
    let mut members: Vec<Member> = (0..20_000).map(|n| file(&format!("many/f{n}"), "")).collect();
    members.extend((0..66_000).map(|n| dir(&format!("subs/d{n}"))));
    let deep = ["d"; 1500].join("/");
    members.push(file(&format!("{deep}/x"), "deep"));
    // On a small stack: nothing recurses.
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let tree = merge(&[&members]).unwrap();
        drop(tree);
        let mut small: Vec<Member> = members.into_iter().step_by(20).collect();
        small.push(file(&format!("{deep}/x"), "deep"));
        on_disk(vec![tar(&small)]).map(drop).unwrap();
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn h46_damaged_archives_are_refused_and_a_missing_end_alone_is_not() {
    let good = open_tar(&[file("a", "content"), file("b", "x")]);
    assert_eq!(one(good.clone()).unwrap(), ["/a", "/b"], "without its end");
    assert_eq!(
        one([&good[..], &[0; 512]].concat()).unwrap(),
        ["/a", "/b"],
        "with half of its end"
    );
    assert!(one(Vec::new()).unwrap().is_empty(), "an empty layer");
    for cut in [1, 511, 513, 600, 1023, 1025, good.len() - 1] {
        let error = one(good[..cut].to_vec()).unwrap_err();
        assert!(matches!(error, LayerError::Malformed(_)), "cut at {cut}: {error:?}");
    }
    let mut flipped = good.clone();
    flipped[1024 + 3] ^= 1;
    assert!(one(flipped).unwrap_err().to_string().contains("checksum"));
    let mut wrapped = file("a", "");
    wrapped.size = Some(u64::MAX);
    assert!(matches!(refused(&[&[wrapped]]), LayerError::Malformed(_)));
    let mut huge = file("a", "x");
    huge.size = Some(1 << 50);
    assert!(matches!(refused(&[&[huge]]), LayerError::Malformed(_)));
    // Numbers below zero, in base 256: only a time may be one.
    let below_zero = |range: std::ops::Range<usize>| {
        let mut bytes = open_tar(&[file("a", "x")]);
        let header: &mut [u8; 512] = bytes.first_chunk_mut().unwrap();
        header[range].fill(0xff);
        seal(header);
        one(bytes)
    };
    for (range, what) in [
        (100..108, "the mode -1"),
        (108..116, "the owner -1"),
        (116..124, "the group -1"),
        (124..136, "the size -1"),
    ] {
        let error = below_zero(range).unwrap_err();
        assert!(matches!(error, LayerError::Malformed(_)), "{error:?}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    assert_eq!(below_zero(136..148).unwrap(), ["/a"]);
    let mut node = open_tar(&[member(b'3', "n")]);
    let header: &mut [u8; 512] = node.first_chunk_mut().unwrap();
    header[329..337].fill(0xff);
    seal(header);
    let error = one(node).unwrap_err();
    assert!(error.to_string().contains("the device number -1"), "{error}");
    let mut sparse = old_gnu(&[(0, 1)], b"x", 5);
    let header: &mut [u8; 512] = sparse.first_chunk_mut().unwrap();
    for range in [386..398, 398..410, 483..495] {
        let good = *header;
        header[range].fill(0xff);
        seal(header);
        let error = one(header.to_vec()).unwrap_err();
        assert!(matches!(error, LayerError::Malformed(_)), "{error:?}");
        *header = good;
    }
    // A lone zero block inside.
    let lone = [&open_tar(&[file("a", "x")])[..], &[0; 512], &tar(&[file("b", "x")])].concat();
    assert!(matches!(one(lone).unwrap_err(), LayerError::Malformed(_)));
}

#[test]
fn h47_what_follows_the_end_is_no_entry_but_belongs_to_the_digest() {
    let bytes = [&tar(&[file("a", "x")])[..], b"trailing", &tar(&[file("b", "x")])].concat();
    let with = |digest: Digest, bytes: Vec<u8>| {
        let layers = vec![Input {
            bytes: Box::new(Cursor::new(bytes)),
            diff_id: Some(digest),
        }];
        flatten(
            layers,
            &mut Memory::default(),
            &Limits::default(),
            &Default::default(),
            &|| (),
        )
    };
    let tree = with(Digest::sha256(&bytes), bytes.clone()).ok().unwrap();
    assert_eq!(listed(&tree).len(), 1);
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let (_, error) = with(Digest::sha256(&bytes), other).err().unwrap();
    assert!(matches!(error, LayerError::WrongDiffId { .. }));
}

#[test]
fn h51_another_diff_id_is_refused_with_both() {
    let bytes = tar(&[file("a", "x")]);
    let expected = Digest::sha256(b"something else");
    let layers = vec![Input {
        bytes: Box::new(Cursor::new(gzip(&bytes))),
        diff_id: Some(expected.clone()),
    }];
    let (at, error) = flatten(
        layers,
        &mut Memory::default(),
        &Limits::default(),
        &Default::default(),
        &|| (),
    )
    .err()
    .unwrap();
    let text = error.to_string();
    assert!(
        at == 0 && text.contains(&expected.to_string()) && text.contains(&Digest::sha256(&bytes).to_string()),
        "{text}"
    );
}

#[test]
fn h52_h53_streams_of_many_parts_are_one_and_damaged_ones_are_refused() {
    let bytes = tar(&[file("a", "content"), file("b", "more")]);
    let (left, right) = bytes.split_at(700);
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0][..], b"xx"].concat();
    for (what, layer) in [
        ("plain", bytes.clone()),
        ("gzip", gzip(&bytes)),
        ("gzip of many members", [gzip(left), gzip(b""), gzip(right)].concat()),
        ("gzip with zeros behind it", [gzip(&bytes), vec![0; 5000]].concat()),
        ("zstd", zstd(&bytes)),
        (
            "zstd of many frames",
            [skippable.clone(), zstd(left), skippable.clone(), zstd(right), skippable].concat(),
        ),
    ] {
        assert_eq!(one(layer).unwrap(), ["/a", "/b"], "{what}");
    }
    let mut crc = gzip(&bytes);
    let at = crc.len() - 6;
    crc[at] ^= 1;
    for (what, layer) in [
        ("garbage behind gzip", [gzip(&bytes), b"garbage".to_vec()].concat()),
        ("a wrong checksum", crc),
        ("cut gzip", gzip(&bytes)[..60].to_vec()),
        ("cut zstd", zstd(&bytes)[..60].to_vec()),
        ("garbage behind zstd", [zstd(&bytes), b"garbage".to_vec()].concat()),
        (
            "a window of 2 GiB",
            vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0],
        ),
        ("gzip in gzip", gzip(&gzip(&bytes))),
        ("xz", b"\xfd7zXZ\0rest of it".to_vec()),
        ("bzip2", b"BZh91AY&SY".to_vec()),
    ] {
        assert!(one(layer).is_err(), "{what}");
    }
}

#[test]
fn h54_bombs_stop_at_their_bounds_and_not_one_byte_before() {
    let limits = |bytes: u64, entries: u64| Limits {
        uncompressed_bytes: bytes,
        entries,
        ..Limits::default()
    };
    let bytes = tar(&[file("a", ""), file("b", "")]);
    let size = bytes.len() as u64;
    let packed = gzip(&bytes);
    assert!(apply(vec![packed.clone()], &limits(size, 2)).is_ok());
    let too_large = |result: Result<_, LayerError>| match result {
        Err(LayerError::TooLarge(_)) => true,
        Err(LayerError::Read(error)) => error.kind() == std::io::ErrorKind::FileTooLarge,
        _ => false,
    };
    assert!(too_large(apply(vec![packed.clone()], &limits(size - 1, 2))));
    assert!(too_large(apply(vec![packed.clone()], &limits(size, 1))));
    // The bounds are those of the image, not of each layer.
    assert!(apply(vec![packed.clone(), packed.clone()], &limits(2 * size, 4)).is_ok());
    assert!(too_large(apply(
        vec![packed.clone(), packed.clone()],
        &limits(2 * size - 1, 4)
    )));
    assert!(too_large(apply(
        vec![packed.clone(), packed.clone()],
        &limits(2 * size, 3)
    )));
    // A gigabyte of zeros in a kilobyte.
    let mut zeros = file("z", "");
    zeros.content = vec![0; 64 << 20];
    let bomb = zstd(&tar(&[zeros]));
    assert!(bomb.len() < 64 << 10);
    assert!(too_large(apply(vec![bomb], &limits(1 << 20, 10))));
    // What a sparse file says is not what it brings: its bound is the disk's, when it is written.
    let sparse = file("s", "")
        .pax("GNU.sparse.size", b"9223372036854775807")
        .pax("GNU.sparse.map", b"");
    let error = on_disk(vec![tar(&[sparse])]).map(drop).unwrap_err();
    assert!(!error.is_empty());
}
