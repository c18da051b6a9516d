//! Images that are one file: below the import directory, or behind a URL.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::web::{Fault, Reply, Web};
use support::{Tar, archive, check, debugfs, gzip, image, open_with_import, path, zstd};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

fn root() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .dir("./etc/")
        .file("./etc/hello", 0o640, b"from a file\n")
        .symlink("./link", "etc/hello")
        .done()
}

/// A bare ext4 of the smallest size.
fn file_system() -> Vec<u8> {
    use vmlet_ext4::{Attributes, MIN_SIZE, Options, Size, Timestamp, Tree, Writer};
    let mut file = tempfile::tempfile().unwrap();
    let writer = Writer::create(
        file.try_clone().unwrap(),
        Options::new([1; 16], [2; 16], Size::Fixed(MIN_SIZE)),
    );
    let root = Attributes::new(0o755, 0, 0, Timestamp::default());
    writer.unwrap().finish(Tree::new(root)).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new()
            .file("etc/gone", 0o644, b"old")
            .file("etc/kept", 0o644, b"kept\n")
            .done(),
        Tar::new()
            .file("etc/.wh.gone", 0o644, b"")
            .file("new", 0o755, b"new\n")
            .done(),
    ]
}

fn sum(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

fn http(url: String, bytes: &[u8]) -> Source {
    Source::Http {
        url,
        sha256: Digest::sha256(bytes).hex().to_owned(),
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_of_a_root_file_system_becomes_a_disk_however_it_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let plain = root();
    for (name, bytes) in [
        ("root.tar", plain.clone()),
        ("root.tar.gz", gzip(&plain)),
        ("no-suffix", zstd(&plain)),
    ] {
        fs::write(dir.path().join("import").join(name), &bytes).unwrap();
        let disk = image(&artifacts, &mut woken, name, path(name)).await.unwrap();
        assert_eq!(disk.digest, sum(&bytes), "the file's own digest");
        assert_eq!(disk.config, ImageConfig::default());
        check(&disk.path);
        assert_eq!(debugfs(&disk.path, "cat /etc/hello"), "from a file\n");
        assert!(debugfs(&disk.path, "stat /etc/hello").contains("Mode:  0640"));
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oci_archive_and_a_docker_archive_are_the_image_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    for (name, bytes) in [
        ("oci.tar", archive(&layers(), false)),
        ("oci.tar.gz", gzip(&archive(&layers(), false))),
        ("docker.tar", archive(&layers(), true)),
        ("docker.tar.zst", zstd(&archive(&layers(), true))),
    ] {
        fs::write(dir.path().join("import").join(name), &bytes).unwrap();
        let disk = image(&artifacts, &mut woken, name, path(name)).await.unwrap();
        assert_eq!(disk.digest, sum(&bytes), "{name}");
        assert_eq!(disk.config.cmd, ["/bin/app"], "{name}");
        check(&disk.path);
        assert_eq!(debugfs(&disk.path, "cat /etc/kept"), "kept\n", "{name}");
        let names = debugfs(&disk.path, "ls -p /etc");
        assert!(names.contains("kept") && !names.contains("gone"), "{name}: {names}");
        let published = disk.path.parent().unwrap();
        assert_eq!(count(published), 2, "the disk and its record: {name}");
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_system_whose_first_name_looks_like_an_archives_is_still_one() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let tar = Tar::new().dir("blobs/").file("blobs/x", 0o644, b"x\n").done();
    fs::write(dir.path().join("import/root.tar"), &tar).unwrap();
    let disk = image(&artifacts, &mut woken, "vm", path("root.tar")).await.unwrap();
    assert_eq!(debugfs(&disk.path, "cat /blobs/x"), "x\n");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_ext4_is_taken_as_it_is_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("import");
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let bytes = file_system();
    fs::write(import.join("plain.ext4"), &bytes).unwrap();
    fs::write(import.join("packed"), zstd(&bytes)).unwrap();
    for name in ["plain.ext4", "packed"] {
        let disk = image(&artifacts, &mut woken, name, path(name)).await.unwrap();
        assert_eq!(disk.size_bytes, bytes.len() as u64);
        assert!(fs::read(&disk.path).unwrap() == bytes, "{name}: byte for byte");
        let blocks = fs::metadata(&disk.path).unwrap().blocks() * 512;
        assert!(blocks < 8 << 20, "{name}: its zeros are holes: {blocks}");
    }

    let damaged = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    for (name, bytes, reason) in [
        ("cut", bytes[..bytes.len() - 4096].to_vec(), "Malformed"),
        ("sum", damaged(1024 + 4, &[1]), "UnsupportedFormat"),
        ("features", damaged(1024 + 0x60, &[0xff; 4]), "UnsupportedFormat"),
        (
            "mbr",
            [vec![7; 510], vec![0x55, 0xaa], vec![0; 4096]].concat(),
            "UnsupportedFormat",
        ),
        ("qcow2", b"QFI\xfb\0\0\0\x03".repeat(600), "UnsupportedFormat"),
        ("empty", Vec::new(), "UnsupportedFormat"),
        ("text", b"hello".repeat(1000), "UnsupportedFormat"),
        ("xz", b"\xfd7zXZ\0rest".to_vec(), "UnsupportedFormat"),
    ] {
        fs::write(import.join(name), &bytes).unwrap();
        let failure = image(&artifacts, &mut woken, name, path(name)).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{name}: {failure:?}");
        assert!(failure.message.contains(name), "{failure:?}");
    }
    artifacts.shutdown().await;
    assert_eq!(count(&dir.path().join("artifacts/tmp")), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_broken_or_ambiguous_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("import");
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let entry = r#"{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}"#;
    let two = Tar::new()
        .file("manifest.json", 0o644, format!("[{entry},{entry}]").as_bytes())
        .done();
    let missing = Tar::new()
        .file("manifest.json", 0o644, format!("[{entry}]").as_bytes())
        .done();
    let garbage = Tar::new().file("manifest.json", 0o644, b"]").done();
    let good = archive(&layers(), false);
    // Not padded to a tar's end: inside of a blob.
    let cut = good[..700].to_vec();
    for (name, bytes, part) in [
        ("two", two, "holds 2 images (a:1, a:1)"),
        ("missing", missing, "\"c.json\", which is not in it"),
        ("garbage", garbage, "manifest.json is broken"),
        ("cut", cut, "cut off"),
    ] {
        fs::write(import.join(name), &bytes).unwrap();
        let failure = image(&artifacts, &mut woken, name, path(name)).await.unwrap_err();
        assert_eq!(failure.reason, "Malformed", "{name}: {failure:?}");
        assert!(failure.message.contains(part), "{failure:?}");
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_inside_the_import_directory_are_files() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("import");
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    fs::write(dir.path().join("outside.tar"), root()).unwrap();
    std::os::unix::fs::symlink(dir.path().join("outside.tar"), import.join("link")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(import.join("pipe"))
        .status()
        .unwrap();
    assert!(made.success());
    for (name, reason) in [
        ("../outside.tar", "BadReference"),
        ("link", "BadReference"),
        ("pipe", "UnsupportedFormat"),
        ("nothing", "NotFound"),
    ] {
        let failure = image(&artifacts, &mut woken, name, path(name)).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{name}: {failure:?}");
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_the_pinned_one_any_more_makes_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    fs::write(dir.path().join("import/root.tar"), root()).unwrap();
    let who = Interest("vm".into());
    let want = ImageWant {
        source: path("root.tar"),
        digest: Some(sum(b"what it was")),
        credentials: Vec::new(),
    };
    let failure = support::settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "WrongDigest", "{failure:?}");
    assert!(artifacts.inventory().await.is_empty());
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_a_url_becomes_a_disk_and_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    for (at, bytes) in [gzip(&root()), archive(&layers(), false), archive(&layers(), true)]
        .into_iter()
        .enumerate()
    {
        let served = bytes.clone();
        let web = Web::start(move |request| match request.path.as_str() {
            "/file?sig=secret" => Reply::ranged(request, &served),
            _ => Reply::new(404),
        });
        let disk = image(
            &artifacts,
            &mut woken,
            &format!("vm-{at}"),
            http(web.url("/file?sig=secret"), &bytes),
        )
        .await
        .unwrap();
        assert_eq!(disk.digest, sum(&bytes));
        check(&disk.path);
        assert_eq!(web.count("/file"), 1);
        let cached = artifacts.inventory().await;
        assert!(
            cached.iter().all(|cached| !cached.source.contains("secret")),
            "{cached:?}"
        );
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_of_a_file_that_breaks_off_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let bytes = root();
    let served = bytes.clone();
    let web = Web::start(move |request| {
        let reply = Reply::ranged(request, &served);
        if request.from().is_none() {
            reply.fault(Fault::Reset(1000))
        } else {
            reply
        }
    });
    let disk = image(&artifacts, &mut woken, "vm", http(web.url("/root.tar"), &bytes))
        .await
        .unwrap();
    assert_eq!(debugfs(&disk.path, "cat /etc/hello"), "from a file\n");
    let ranges: Vec<_> = web
        .log()
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(
        ranges[1].as_deref().is_some_and(|range| range != "bytes=0-"),
        "{ranges:?}"
    );
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_a_url_is_its_sum_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let served = root();
    let web = Web::start(move |request| match request.path.as_str() {
        "/root.tar" => Reply::ranged(request, &served),
        "/metadata" => Reply::redirect("http://169.254.169.254/latest"),
        "/file" => Reply::redirect("file:///etc/passwd"),
        "/loop" => Reply::redirect("/loop"),
        "/moved" => Reply::redirect("/root.tar"),
        _ => Reply::new(404),
    });
    for (at, part, reason) in [
        ("/root.tar", "the digest", "WrongDigest"),
        ("/metadata", "never asked", "BadReference"),
        ("/file", "away from https", "BadReference"),
        ("/loop", "for ever", "BadReference"),
        ("/none", "404", "NotFound"),
    ] {
        let failure = image(&artifacts, &mut woken, at, http(web.url(at), b"another file"))
            .await
            .unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
        assert!(failure.message.contains(part), "{failure:?}");
    }
    assert!(artifacts.inventory().await.is_empty());
    let disk = image(&artifacts, &mut woken, "moved", http(web.url("/moved"), &root()))
        .await
        .unwrap();
    check(&disk.path);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_url_goes_to_its_host_only_and_into_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let served = root();
    let storage = Web::start(move |request| Reply::ranged(request, &served));
    let to = storage.url("/root.tar");
    let web = Web::start(move |request| match request.path.as_str() {
        "/moved" => Reply::redirect(&to),
        _ => Reply::new(404),
    });
    let url = |path: &str| format!("http://me:hunter2@{}{path}", web.address);
    let disk = image(&artifacts, &mut woken, "vm", http(url("/moved"), &root())).await;
    check(&disk.unwrap().path);
    assert!(
        web.log()[0]
            .header("authorization")
            .is_some_and(|sent| sent.starts_with("Basic "))
    );
    assert_eq!(storage.log()[0].header("authorization"), None);
    let failure = image(&artifacts, &mut woken, "none", http(url("/none"), b"x"))
        .await
        .unwrap_err();
    assert!(!failure.message.contains("hunter2"), "{failure:?}");
    assert!(
        artifacts
            .inventory()
            .await
            .iter()
            .all(|cached| !cached.source.contains("hunter2"))
    );
    artifacts.shutdown().await;
}
