use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::image::tests::{bzimage, elf, lz4_payload};
use super::*;

const VERSION: &str = "6.1.0-1-test";

/// A package's files: image, modules plain and packed, an index, and things that do not belong.
fn files() -> Vec<(String, Vec<u8>)> {
    let modules = format!("lib/modules/{VERSION}");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gz, b"module b").expect("written");
    let zst = zstd::encode_all(&b"module c"[..], 3).expect("packed");
    vec![
        (format!("{modules}/kernel/c.ko.zst"), zst),
        (format!("{modules}/kernel/a.ko"), b"module a".to_vec()),
        (format!("{modules}/kernel/b.ko.gz"), gz.finish().expect("packed")),
        (
            format!("{modules}/modules.dep"),
            b"kernel/c.ko.zst: kernel/b.ko.gz\n".to_vec(),
        ),
        (format!("{modules}/modules.dep.bin"), b"stale".to_vec()),
        (format!("{modules}/kernel/README"), b"no".to_vec()),
        ("usr/share/doc/x".to_owned(), b"no".to_vec()),
        (format!("boot/vmlinuz-{VERSION}"), bzimage(&lz4_payload(&elf(18)))),
    ]
}

fn tree(root: &Path, files: &[(String, Vec<u8>)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }
}

fn deb(path: &Path, files: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(zstd::stream::write::Encoder::new(Vec::new(), 3).expect("zstd"));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(77);
        tar.append_data(&mut header, format!("./{name}"), content.as_slice())
            .expect("appended");
    }
    let data = tar.into_inner().expect("tar").finish().expect("zstd");
    let mut ar = b"!<arch>\n".to_vec();
    for (name, content) in [("debian-binary", &b"2.0"[..]), ("data.tar.zst", &data)] {
        let header = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            0,
            100_644,
            content.len()
        );
        ar.extend_from_slice(header.as_bytes());
        ar.extend_from_slice(content);
        if content.len() % 2 == 1 {
            ar.push(b'\n');
        }
    }
    fs::write(path, ar).expect("written");
}

fn blob(layout: &Path, descriptor: &serde_json::Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let bytes = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).expect("a blob");
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

#[test]
fn a_package_and_its_directory_give_the_same_artefact_bit_by_bit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, package_file) = (dir.path().join("root"), dir.path().join("k.deb"));
    tree(&root, &files());
    deb(&package_file, &files());
    let out = [dir.path().join("1"), dir.path().join("2")];
    let first = package(&Source::Dir(root), &out[0]).expect("packaged");
    let second = package(&Source::Deb(package_file), &out[1]).expect("packaged");
    assert_eq!(first, second);
    assert_eq!(first.version, VERSION);
    for file in ["index.json", "oci-layout"] {
        assert_eq!(
            fs::read(out[0].join(file)).expect("there"),
            fs::read(out[1].join(file)).expect("there")
        );
    }
    let left: Vec<_> = fs::read_dir(dir.path())
        .expect("there")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left.len(), 4, "no temporary stays: {left:?}");
}

#[test]
fn the_layout_holds_a_bootable_image_and_unpacked_modules_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    tree(&root, &files());
    let out = dir.path().join("out");
    let made = package(&Source::Dir(root), &out).expect("packaged");
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
    let index = parse(&fs::read(out.join("index.json")).expect("an index"));
    assert_eq!(index["manifests"][0]["digest"], made.digest);
    let manifest = parse(&blob(&out, &index["manifests"][0]));
    assert_eq!(manifest["artifactType"], layout::ARTIFACT_TYPE);
    let config = parse(&blob(&out, &manifest["config"]));
    assert_eq!(
        config,
        serde_json::json!({"version": VERSION, "architecture": "amd64", "bootFormat": "pvhElf"})
    );
    let image = zstd::decode_all(blob(&out, &manifest["layers"][0]).as_slice()).expect("zstd");
    assert_eq!(image, elf(18));
    let tar = zstd::decode_all(blob(&out, &manifest["layers"][1]).as_slice()).expect("zstd");
    let mut found = Vec::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        assert_eq!(entry.header().mtime().expect("a time"), 0);
        let mut content = String::new();
        entry.read_to_string(&mut content).expect("read");
        let path = entry.path().expect("a path").display().to_string();
        found.push((path.replace(&format!("lib/modules/{VERSION}/"), ""), content));
    }
    let expected = [
        ("kernel/a.ko", "module a"),
        ("kernel/b.ko", "module b"),
        ("kernel/c.ko", "module c"),
        ("modules.dep", "kernel/c.ko: kernel/b.ko\n"),
    ]
    .map(|(path, content)| (path.to_owned(), content.to_owned()));
    assert_eq!(found, expected);
}

#[test]
fn an_existing_output_is_refused_and_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    tree(&root, &files());
    let out = dir.path().join("out");
    fs::write(&out, "mine").expect("written");
    assert!(matches!(
        package(&Source::Dir(root), &out),
        Err(PackageError::Exists(_))
    ));
    assert_eq!(fs::read(&out).expect("there"), b"mine");
}

#[test]
fn a_source_that_is_no_kernel_publishes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let file = dir.path().join("k.deb");
    let mut two = files();
    two.push(("boot/vmlinuz-other".to_owned(), b"x".to_vec()));
    let mut escaping = files();
    escaping[1].0 = format!("lib/modules/{VERSION}/a.ko/");
    for (what, files) in [("none", vec![]), ("two", two), ("a path", escaping)] {
        deb(&file, &files);
        let error = package(&Source::Deb(file.clone()), &out).expect_err(what);
        assert!(matches!(error, PackageError::BadSource { .. }), "{what}: {error}");
    }
    deb(&file, &super::tests::files());
    let whole = fs::read(&file).expect("there");
    for length in [0, 5, 100, whole.len() / 2, whole.len() * 2 / 3] {
        fs::write(&file, &whole[..length]).expect("cut");
        let error = package(&Source::Deb(file.clone()), &out).expect_err("cut short");
        let told = error.to_string();
        assert!(
            told.contains("Debian package"),
            "{length} of {} bytes: {told}",
            whole.len()
        );
    }
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "only the package");
}
