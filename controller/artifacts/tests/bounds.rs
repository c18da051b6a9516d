//! Every bound at its limit and one beyond. Others of them are with their hazards: entries and uncompressed bytes (h54),
//! names (h30), targets of symbolic links (h31), links (h16), followed links (h08), nested indexes (h57).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::io::{Cursor, Read};

use support::disk::{on_disk, on_disk_of, on_disk_within};
use support::raw::{Member, apply, dir, file, hardlink, list, member, open_tar, seal, symlink, tar};
use support::scripted::{Image, open_with, source};
use support::web::{Reply, Web};
use support::{Tar, gzip, image, zstd};
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::layers::apply::{Content, Input, Store, flatten};
use vmlet_artifacts::layers::budget::Budget;
use vmlet_artifacts::layers::decode::decoder;
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::layers::member::Segment;
use vmlet_artifacts::layers::merge::{Layer, Tree};
use vmlet_artifacts::layers::{LayerError, StoreError};
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::{Failure, ImageDisk, Limits, Source};
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

/// Reads everything and keeps nothing but the number of pieces that are holes.
#[derive(Default)]
struct Counts {
    bytes: u64,
}

impl Store for Counts {
    type Data = ();

    fn store(&mut self, content: &mut dyn Content) -> Result<(), LayerError> {
        let mut buffer = vec![0; 64 << 10];
        while let Some(segment) = content.next(&mut buffer)? {
            self.bytes += match segment {
                Segment::Data(bytes) => bytes.len() as u64,
                Segment::Hole(length) => length,
            };
        }
        Ok(())
    }

    fn discard(&mut self, (): ()) -> Result<(), LayerError> {
        Ok(())
    }
}

/// Reads one layer; gives the bytes of its files.
fn read(layer: Vec<u8>) -> Result<u64, LayerError> {
    let input = Input {
        bytes: Box::new(Cursor::new(layer)),
        diff_id: None,
    };
    let mut counts = Counts::default();
    // On a small stack: nothing recurses, whatever a layer says.
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn_scoped(scope, || {
                flatten(
                    vec![input],
                    &mut counts,
                    &Limits::default(),
                    &Default::default(),
                    &|| (),
                )
                .map(drop)
            });
        reading.unwrap().join().unwrap().map_err(|(_, error)| error)
    })?;
    Ok(counts.bytes)
}

fn too_large<T: std::fmt::Debug>(result: Result<T, LayerError>, part: &str) {
    match result {
        Err(LayerError::TooLarge(why)) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_bounds_are_those_that_the_documents_name() {
    let limits = Limits::default();
    assert_eq!((limits.manifest_bytes, limits.layers), (4 << 20, 512));
    assert_eq!((limits.entries, limits.path_bytes), (2_000_000, 4096));
    assert_eq!(limits.metadata_bytes, 512 << 20);
    assert_eq!(
        (limits.uncompressed_bytes, limits.zstd_window_bytes),
        (64 << 30, 128 << 20)
    );
    assert_eq!((limits.kernel_bytes, limits.initrd_bytes), (512 << 20, 2 << 30));
    assert_eq!(limits.stall_timeout.as_secs(), 60);
}

/// An image whose manifest and configuration have so many bytes, the rest of them spaces.
fn padded(manifest: usize, config: usize) -> Image {
    let tar = Tar::new().file("f", 0o644, b"x").done();
    let mut image = Image::of(&[(tar.clone(), gzip(&tar))]);
    let pad = |bytes: &mut Vec<u8>, length: usize| bytes.resize(length.max(bytes.len()), b' ');
    pad(&mut image.blobs[0].1, config);
    image.blobs[0].0 = Digest::sha256(&image.blobs[0].1).to_string();
    let mut document: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    document["config"]["digest"] = image.blobs[0].0.clone().into();
    document["config"]["size"] = image.blobs[0].1.len().into();
    image.manifest = serde_json::to_vec(&document).unwrap();
    pad(&mut image.manifest, manifest);
    image
}

async fn pull(served: &Image, limits: impl FnOnce(&mut Limits)) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    let web = served.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), limits).await;
    let result = image(&artifacts, &mut woken, "vm", source(&web)).await;
    artifacts.shutdown().await;
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    if result.is_err() {
        assert_eq!(
            web.count("/blobs/"),
            usize::from(web.count(&served.blobs[0].0) > 0),
            "no layer is asked for"
        );
    }
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_and_a_configuration_have_4_mib_at_most() {
    const MOST: usize = 4 << 20;
    pull(&padded(MOST, MOST), |_| ()).await.unwrap();
    for (manifest, config) in [(MOST + 1, 0), (0, MOST + 1), (64 << 20, 0)] {
        let failure = pull(&padded(manifest, config), |_| ()).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("TooLarge", true),
            "{failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_layers_have_as_many_bytes_as_uncompressed_ones_at_most_and_no_more_is_asked_for() {
    let tars = [1u8, 2].map(|n| Tar::new().file("f", 0o644, &[n]).done());
    // Behind a small layer: zeros, and frames that are skipped.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18][..], &50_000u32.to_le_bytes(), &[7; 50_000]].concat();
    let layers = [
        (tars[0].clone(), [gzip(&tars[0]), vec![0; 50_000]].concat()),
        (tars[1].clone(), [zstd(&tars[1]), skipped].concat()),
    ];
    let sum: u64 = layers.iter().map(|(_, blob)| blob.len() as u64).sum();
    let served = Image::of(&layers);
    let most = |bytes: u64| move |limits: &mut Limits| limits.uncompressed_bytes = bytes;
    pull(&served, most(sum)).await.expect("at the limit");
    let failure = pull(&served, most(sum - 1)).await.expect_err("beyond it");
    assert_eq!((failure.reason.as_str(), failure.terminal), ("TooLarge", true));
    let said = format!("{sum} bytes, more than {} (--max-image-gib)", sum - 1);
    assert!(failure.message.contains(&said), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_512_layers_at_most() {
    let layers = |count: usize| {
        let layer = |n: usize| {
            let tar = tar(&[file("last", &n.to_string())]);
            (tar.clone(), gzip(&tar))
        };
        Image::of(&(0..count).map(layer).collect::<Vec<_>>())
    };
    let web = layers(512).serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let disk = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap();
    assert_eq!(support::debugfs(&disk.path, "cat /last"), "511");
    artifacts.shutdown().await;
    for count in [513, 5000] {
        let failure = pull(&layers(count), |_| ()).await.unwrap_err();
        assert_eq!((failure.reason.as_str(), failure.terminal), ("TooLarge", true));
        assert!(
            failure.message.contains(&format!("{count} layers, more than 512")),
            "{failure:?}"
        );
    }
}

/// A zstd frame of one raw block whose header asks for this window.
fn frame(descriptor: u8, content: &[u8]) -> Vec<u8> {
    let header = 1 | (content.len() as u32) << 3;
    let block = &header.to_le_bytes()[..3];
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, descriptor][..], block, content].concat()
}

#[test]
fn a_zstd_window_has_128_mib_at_most() {
    let bytes = tar(&[file("a", "x")]);
    let (exponent, eighth) = (|n: u8| n << 3, 1);
    assert_eq!(read(frame(exponent(17), &bytes)).unwrap(), 1);
    for descriptor in [exponent(17) | eighth, exponent(18), exponent(31) | 7] {
        let error = read(frame(descriptor, &bytes)).unwrap_err();
        assert!(
            matches!(&error, LayerError::Read(inner) if inner.kind() == std::io::ErrorKind::FileTooLarge),
            "{error:?}"
        );
        assert!(error.to_string().contains("zstd --long=27"), "{error}");
    }
    // A single segment has its size as its window.
    let single = |size: u64| {
        let frame = frame(0, &bytes);
        [&frame[..4], &[0xe0], &size.to_le_bytes(), &frame[6..]].concat()
    };
    let inflate = |frame: Vec<u8>| decoder(Cursor::new(frame), 128 << 20).unwrap().read(&mut [0; 512]);
    inflate(single(bytes.len() as u64)).unwrap();
    inflate(single((128 << 20) + 1)).unwrap_err();
}

#[test]
fn a_path_has_4096_bytes_at_most() {
    let path = |length: usize| {
        let mut path = "d/".repeat(length / 2);
        path.extend(std::iter::repeat_n('x', length - path.len()));
        path
    };
    let (longest, longer) = (format!("{}xx", path(4094)), format!("{}xxx", path(4094)));
    assert_eq!((longest.len(), longer.len()), (4096, 4097));
    assert!(list(&[&[file(&longest, "x"), hardlink("l", &longest)]]).contains_key("/l"));
    on_disk(vec![tar(&[file(&longest, "x")])]).unwrap();
    too_large(read(tar(&[file(&longer, "x")])), "4097 bytes, more than 4096");
    too_large(read(tar(&[hardlink("l", &longer)])), "4097 bytes, more than 4096");
    too_large(read(tar(&[file("x", "").pax("path", longer.as_bytes())])), "4097 bytes");
    // A marker has the bytes of its own name.
    let marker = format!("{}.wh.{}", "d/".repeat(2000), "m".repeat(91));
    assert!(marker.len() < 4096 && read(tar(&[file(&marker, "")])).is_ok());
}

#[test]
fn an_extension_header_has_1_mib_at_most_and_64_of_them_stand_before_a_member() {
    const MOST: usize = 1 << 20;
    // "LENGTH comment=...\n": seven digits, a space, the keyword and its sign, the end of the line.
    let comment = |length: usize| vec![b'c'; length - 7 - 1 - 8 - 1];
    assert_eq!(read(tar(&[file("f", "x").pax("comment", &comment(MOST))])).unwrap(), 1);
    let said = "an extension header has 1048577 bytes, more than 1048576";
    too_large(read(tar(&[file("f", "x").pax("comment", &comment(MOST + 1))])), said);
    for flag in [b'g', b'L', b'K', b'x'] {
        let with = |length: usize| Member {
            content: vec![b' '; length],
            ..member(flag, "extension")
        };
        too_large(read(tar(&[with(MOST + 1), file("f", "x")])), said);
    }
    let global = Member {
        content: b"12 path=bad\n".to_vec(),
        ..member(b'g', "global")
    };
    let many = |count: usize| {
        let mut members = vec![global.clone(); count];
        members.push(file("f", "x"));
        tar(&members)
    };
    assert_eq!(read(many(64)).unwrap(), 1);
    let error = read(many(65)).unwrap_err();
    assert!(error.to_string().contains("more than 64 extension headers"), "{error}");
}

#[test]
fn extended_attributes_are_bounded_in_number_name_and_value() {
    let with = |count: usize| {
        let attribute = |member: Member, n: usize| member.pax(&format!("SCHILY.xattr.user.{n:04}"), b"");
        tar(&[(0..count).fold(file("f", "x"), attribute)])
    };
    assert_eq!(read(with(1024)).unwrap(), 1);
    too_large(read(with(1025)), "\"f\": it has more than 1024 extended attributes");
    // Names of four bytes: four in the inode, and as many in the block as 20 bytes each have room.
    let most = 4 + (4096 - 32 - 4) / 20;
    on_disk(vec![with(most)]).unwrap();
    let said = on_disk(vec![with(most + 1)]).map(drop).unwrap_err();
    assert!(said.contains("\"f\": the names of the extended attributes"), "{said}");

    let named = |length: usize| tar(&[file("f", "x").pax(&format!("SCHILY.xattr.user.{}", "n".repeat(length)), b"v")]);
    on_disk(vec![named(250)]).unwrap();
    let said = on_disk(vec![named(251)]).map(drop).unwrap_err();
    assert!(said.contains("impossible name"), "{said}");
    let valued = |length: usize| tar(&[file("f", "x").pax("SCHILY.xattr.user.v", &vec![7; length])]);
    on_disk(vec![valued(65_536)]).unwrap();
    let said = on_disk(vec![valued(65_537)]).map(drop).unwrap_err();
    assert!(said.contains("\"f\": ") && said.contains("65536 bytes"), "{said}");
}

#[test]
fn a_sparse_file_has_a_million_regions_at_most_in_every_format() {
    const MOST: usize = 1 << 20;
    // 1.0: lines in the data. Empty regions are regions, and cost no stack.
    let lines = |count: usize| {
        let mut content = format!("{count}\n").into_bytes();
        content.extend(std::iter::repeat_n(b"0\n0\n", count).flatten());
        content.resize(content.len().next_multiple_of(512), 0);
        let member = file("GNUSparseFile.1/s", "").pax("GNU.sparse.major", b"1");
        let member = member.pax("GNU.sparse.minor", b"0").pax("GNU.sparse.realsize", b"5");
        tar(&[
            Member {
                content,
                ..member.pax("GNU.sparse.name", b"s")
            },
            file("after", "x"),
        ])
    };
    assert_eq!(read(lines(MOST)).unwrap(), 6);
    too_large(
        read(lines(MOST + 1)),
        "\"s\": the sparse file has more than 1048576 regions",
    );
    // 0.1: as many as a header has room for.
    let map = "0,0,".repeat(250_000) + "0,0";
    let mapped = file("s", "")
        .pax("GNU.sparse.size", b"5")
        .pax("GNU.sparse.map", map.as_bytes());
    assert_eq!(read(tar(&[mapped, file("after", "x")])).unwrap(), 6);
    // Old GNU: 4 in the header, 21 in each block behind it.
    let old = |count: usize| {
        let mut bytes = open_tar(&[member(b'S', "s")]);
        let pair = |block: &mut [u8], at: usize| block[at..at + 24].copy_from_slice(b"00000000000\x0000000000000\0");
        let header: &mut [u8; 512] = bytes.first_chunk_mut().unwrap();
        header[257..265].copy_from_slice(b"ustar  \0");
        (0..4).for_each(|n| pair(header, 386 + n * 24));
        header[482] = 1;
        header[483..495].copy_from_slice(b"00000000005\0");
        seal(header);
        let mut left = count - 4;
        while left > 0 {
            let mut block = [0; 512];
            let here = left.min(21);
            (0..here).for_each(|n| pair(&mut block, n * 24));
            left -= here;
            block[504] = u8::from(left > 0);
            bytes.extend_from_slice(&block);
        }
        bytes.extend(open_tar(&[file("after", "x")]));
        bytes
    };
    assert_eq!(read(old(MOST)).unwrap(), 6);
    too_large(
        read(old(MOST + 1)),
        "\"s\": the sparse file has more than 1048576 regions",
    );
}

#[test]
fn sizes_of_members_end_where_ext4s_files_end_and_never_overflow() {
    let most = u64::from(u32::MAX) * 4096;
    let holey = |size: u64| {
        let size = size.to_string();
        tar(&[file("s", "")
            .pax("GNU.sparse.size", size.as_bytes())
            .pax("GNU.sparse.map", b"")])
    };
    let disk = on_disk(vec![holey(most)]).unwrap();
    assert!(support::debugfs(disk.path(), "stat /s").contains(&format!("Size: {most}")));
    for size in [most + 1, i64::MAX as u64, u64::MAX] {
        let said = on_disk(vec![holey(size)]).map(drop).unwrap_err();
        assert!(
            said.contains("\"s\": a file of") && said.contains("too large"),
            "{said}"
        );
    }
    // What is read over has a size, too.
    for size in [1u64 << 63, u64::MAX] {
        let pax = file(".wh.x", "").pax("size", size.to_string().as_bytes());
        let header = Member {
            size: Some(size),
            ..file(".wh.x", "")
        };
        for member in [pax, header] {
            let error = read(tar(&[member, file("after", "x")])).unwrap_err();
            assert!(
                error.to_string().contains(&format!("the size {size} is impossible")),
                "{error}"
            );
        }
    }
    let last = file(".wh.x", "").pax("size", (u64::MAX >> 1).to_string().as_bytes());
    let error = read(tar(&[last, file("after", "x")])).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_disk_of_a_fixed_size_is_filled_to_its_last_block_and_no_further() {
    let with = |blocks: usize| {
        let mut full = file("full", "");
        full.content = vec![7; blocks * 4096];
        on_disk_of(Size::Fixed(128 << 20), vec![zstd(&tar(&[full]))])
    };
    let empty = support::debugfs(with(0).unwrap().path(), "stats");
    let free = empty
        .lines()
        .find_map(|line| line.strip_prefix("Free blocks:"))
        .unwrap();
    let free: usize = free.trim().parse().unwrap();
    with(free).unwrap();
    let said = with(free + 1).map(drop).unwrap_err();
    assert!(said.contains("does not fit") && said.contains("larger size"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_fit_leaves_no_file_and_says_what_to_do() {
    let mut large = file("large", "");
    large.content = vec![7; 140 << 20];
    let bytes = tar(&[large]);
    let web = Image::of(&[(bytes.clone(), zstd(&bytes))]).serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let Source::Oci { reference, platform } = source(&web) else {
        panic!("not a registry")
    };
    let build = FileBuild {
        reference,
        output: dir.path().join("disk.img"),
        replace: true,
        size: Some(128 << 20),
        platform,
        credentials: Vec::new(),
        registries: Default::default(),
        limits: Limits::default(),
    };
    let error = build_image_file(build, Progress::default(), CancellationToken::new())
        .await
        .unwrap_err();
    assert_eq!(error.reason.as_str(), "TooLarge");
    assert!(
        error.message.contains("does not fit") && error.message.contains("larger size"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_a_url_ends_at_its_bound_also_when_it_is_inflated() {
    // It takes less on the disk than in the tar.
    let bytes = tar(&[file("f", &"x".repeat(4096))]);
    let size = bytes.len() as u64;
    for (served, most, fits) in [
        (bytes.clone(), size, true),
        (bytes.clone(), size - 1, false),
        (gzip(&bytes), size, true),
        (gzip(&bytes), size - 1, false),
    ] {
        let sha256 = Digest::sha256(&served).hex().to_owned();
        let web = Web::start(move |request| Reply::ranged(request, &served));
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), |limits| limits.uncompressed_bytes = most).await;
        let source = Source::Http {
            url: web.url("/file"),
            sha256,
        };
        let result = image(&artifacts, &mut woken, "vm", source).await;
        match result {
            Ok(_) => assert!(fits, "{most} of {size}"),
            Err(failure) => assert!(!fits && failure.reason == "TooLarge", "{most} of {size}: {failure:?}"),
        }
        artifacts.shutdown().await;
    }
}

#[test]
fn forty_links_are_followed_and_not_one_more() {
    let chain = |count: usize| {
        let mut members = vec![symlink("l0", "end")];
        members.extend((1..count).map(|n| symlink(&format!("l{n}"), &format!("l{}", n - 1))));
        members.push(file(&format!("l{}/x", count - 1), "x"));
        apply(vec![tar(&members)], &Limits::default())
    };
    chain(40).unwrap();
    let error = chain(41).map(drop).unwrap_err();
    assert!(error.to_string().contains("loop of symbolic links"), "{error}");
}

/// Applies layers with some of the bounds lowered.
fn within(change: impl FnOnce(&mut Limits), layers: &[&[Member]]) -> Result<(), LayerError> {
    let mut limits = Limits::default();
    change(&mut limits);
    apply(layers.iter().map(|members| tar(members)).collect(), &limits).map(drop)
}

#[test]
fn directories_that_only_paths_imply_are_entries() {
    let entries = |most: u64, layers: &[&[Member]]| within(|limits| limits.entries = most, layers);
    let said = |most: u64| format!("the image has more than {most} entries (implied directories count)");
    // One of the layer, three of its path; a later one finds them there.
    let (deep, beside) = ([file("a/b/c/f", "x")], [file("a/b/c/g", "x")]);
    entries(4, &[&deep]).unwrap();
    too_large(entries(3, &[&deep]), &format!("\"a/b/c/f\": {}", said(3)));
    entries(5, &[&deep, &beside]).unwrap();
    too_large(entries(4, &[&deep, &beside]), &format!("\"a/b/c/g\": {}", said(4)));
    // What was hidden was there: two entries, a marker, and three directories twice.
    let again = [file(".wh.a", ""), deep[0].clone()];
    entries(9, &[&deep, &again]).unwrap();
    too_large(entries(8, &[&deep, &again]), &said(8));
    // A link to nothing, used as a parent: its two names, and two entries.
    let dangling = [symlink("l", "/x/y"), file("l/f", "x")];
    entries(4, &[&dangling]).unwrap();
    too_large(entries(3, &[&dangling]), &format!("\"l/f\": {}", said(3)));
    // A file that is used as a directory becomes one.
    let instead = [file("d", "x"), file("d/f", "x")];
    entries(3, &[&instead]).unwrap();
    too_large(entries(2, &[&instead]), &said(2));
}

#[test]
fn what_is_kept_in_memory_of_all_entries_is_bounded() {
    let metadata = |most: u64, layers: &[&[Member]]| within(|limits| limits.metadata_bytes = most, layers);
    let bounded = |most: u64, layers: &[&[Member]], last: &str| {
        metadata(most, layers).unwrap();
        let rule = format!("the image has more than {} bytes of paths, link targets and", most - 1);
        too_large(metadata(most - 1, layers), &format!("\"{last}\": {rule}"));
    };
    // Paths, in all layers, also of markers and of what is hidden; content is none of it.
    bounded(8, &[&[file("ab", "content")], &[file(".wh.ab", "")]], ".wh.ab");
    // Targets; those that are impossible are counted before they are judged.
    bounded(5, &[&[symlink("s", "long")]], "s");
    bounded(3, &[&[file("a", ""), hardlink("l", "a")]], "l");
    too_large(
        metadata(1 << 19, &[&[symlink("s", &"t".repeat(1 << 19))]]),
        "\"s\": the image has more than",
    );
    // Attributes with names and values, and 128 for each.
    let attributed = file("f", "")
        .pax("SCHILY.xattr.user.a", b"value")
        .pax("SCHILY.xattr.user.b", b"");
    bounded(1 + (6 + 5 + 128) + (6 + 128), &[&[attributed]], "f");
    // The names of implied directories.
    bounded(2 + 3 + 1, &[&[symlink("l", "d"), file("l/f", "")]], "l/f");
}

#[test]
fn what_an_image_takes_on_its_disk_is_bounded_like_its_bytes() {
    const BLOCK: u64 = 4096;
    let within = |most: u64, layers: &[&[Member]]| {
        let limits = Limits {
            uncompressed_bytes: most,
            ..Limits::default()
        };
        let free = FreeSpace { percent: 0, bytes: 0 };
        let layers = layers.iter().map(|members| tar(members)).collect();
        on_disk_within(&limits, Size::Auto { free }, layers).map(drop)
    };
    let bounded = |blocks: u64, beside: u64, layers: &[&[Member]], last: &str| {
        let most = blocks * BLOCK + beside;
        within(most, layers).unwrap();
        let said = within(most - 1, layers).unwrap_err();
        let rule = format!("{last}: the image takes more than {} bytes on the disk", most - 1);
        assert!(said.starts_with(&rule), "{rule}: {said}");
    };
    // A sparse file of regions of one byte, each of which takes a block. What an upper layer hides was written, too.
    let regions: Vec<String> = (0..100).map(|n| format!("{},1", n * BLOCK)).collect();
    let sparse = file("s", &"x".repeat(100))
        .pax("GNU.sparse.size", (100 * BLOCK).to_string().as_bytes())
        .pax("GNU.sparse.map", regions.join(",").as_bytes());
    bounded(100, 0, &[std::slice::from_ref(&sparse)], "layer 1: \"s\"");
    bounded(
        101,
        0,
        &[std::slice::from_ref(&sparse), &[file("s", "x")]],
        "layer 2: \"s\"",
    );
    // Files of one byte; holes and runs of zeros are free.
    let tiny: Vec<Member> = (0..40).map(|n| file(&format!("f{n}"), "x")).collect();
    bounded(40, 0, &[&tiny], "layer 1: \"f39\"");
    let mut zeros = file("z", "");
    zeros.content = vec![0; 64 << 10];
    within(100 << 10, &[&[zeros]]).unwrap();
    // Extended attributes of which the values get an inode each: as many as have no room in one block with the others.
    let named = |member: Member, n: usize| member.pax(&format!("SCHILY.xattr.user.{n:03}"), &[7; 400]);
    let many = (0..20).fold(file("f", ""), named);
    // 20 of 20 + 400 bytes, of which 9 have room in 4060 bytes together with the names of the others.
    bounded(1 + 11, 11 * 256, &[&[many]], "layer 1: \"f\"");
    bounded(
        1,
        0,
        &[&[file("f", "").pax("SCHILY.xattr.user.v", &[7; 100])]],
        "layer 1: \"f\"",
    );
    bounded(
        3,
        256,
        &[&[file("f", "").pax("SCHILY.xattr.user.v", &[7; 5000])]],
        "layer 1: \"f\"",
    );
    // Directories, also implied ones, and targets that have no room in the inode.
    let dirs: Vec<Member> = (0..20).map(|n| dir(&format!("d{n}"))).collect();
    bounded(20, 0, &[&dirs], "layer 1: \"d19\"");
    bounded(3, 0, &[&[file("a/b/c/f", "")]], "layer 1: \"a/b/c/f\"");
    let links = |length: usize| -> Vec<Member> {
        let target = "t".repeat(length);
        (0..20).map(|n| symlink(&format!("l{n}"), &target)).collect()
    };
    bounded(20, 0, &[&links(60)], "layer 1: \"l19\"");
    within(20 << 10, &[&links(59)]).unwrap();
}

#[test]
fn an_entry_is_not_worth_walking_more_than_128_components() {
    // 4 entries allowed, 512 components. One each for the directory, the link, and the link used as a parent.
    let through = |components: usize| {
        let target = "./".repeat(components - 1) + "d";
        let members = [dir("d"), symlink("l", &target), file("l/f", "")];
        within(|limits| limits.entries = 4, &[&members])
    };
    through(512 - 3).unwrap();
    too_large(through(512 - 2), "\"l/f\": more than 512 components of paths and links");
}

#[test]
fn a_merge_and_its_disk_end_soon_after_nobody_wants_them() {
    let cancel = CancellationToken::new();
    let cancelled = |error: LayerError| match error {
        LayerError::Read(error) => error.to_string().contains("nobody wants it"),
        _ => false,
    };
    // Walking: the layer was read before.
    let mut tree = Tree::<()>::within(Budget::new(&Limits::default(), &cancel));
    let whiteouts = vec![b"a/b/c/d".to_vec(); 1 << 12];
    let layer = |whiteouts| Layer {
        whiteouts,
        ..Layer::default()
    };
    tree.apply(layer(whiteouts.clone())).unwrap();
    cancel.cancel();
    assert!(cancelled(tree.apply(layer(whiteouts)).unwrap_err()));
    // Reading, also where all bytes are there.
    let layers = || {
        vec![Input {
            bytes: Box::new(Cursor::new(tar(&[file("f", "x")]))),
            diff_id: None,
        }]
    };
    let merged = flatten(layers(), &mut Counts::default(), &Limits::default(), &cancel, &|| ());
    assert!(cancelled(merged.map(drop).unwrap_err().1));
    // Writing what was merged while somebody wanted it: nothing of it is left.
    let disk = tempfile::NamedTempFile::new().unwrap();
    let options = Options::new([1; 16], [2; 16], Size::Fixed(256 << 20));
    let mut store = DiskStore::new(Writer::create(disk.reopen().unwrap(), options).unwrap());
    let wanted = CancellationToken::new();
    let Ok(tree) = flatten(layers(), &mut store, &Limits::default(), &wanted, &|| ()) else {
        panic!("it is wanted")
    };
    wanted.cancel();
    let error = store.finish(tree, &wanted).unwrap_err();
    assert!(
        matches!(error, StoreError::Ext4(vmlet_ext4::Error::Abandoned)),
        "{error}"
    );
    assert_eq!(disk.as_file().metadata().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_beyond_a_bound_of_its_entries_names_layer_entry_and_rule() {
    let layer = |members: &[Member]| (tar(members), gzip(&tar(members)));
    let served = Image::of(&[layer(&[dir("a")]), layer(&[file("a/b/c/f", "x")])]);
    let web = served.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |limits| limits.entries = 3).await;
    let failure = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("TooLarge", true));
    let rule = "\"a/b/c/f\": the image has more than 3 entries";
    assert!(failure.message.contains("layer 2 (sha256:"), "{failure:?}");
    assert!(failure.message.contains(rule), "{failure:?}");
    artifacts.shutdown().await;
}
