//! OCI image layouts below the import directory.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::Path;

#[allow(dead_code, reason = "shared with the tests that use a registry")]
mod support;

use serde_json::{Value, json};
use support::{MANIFEST, Tar, check, debugfs, settle};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::sha256(bytes);
    let dir = layout.join("blobs/sha256");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(digest.hex()), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
}

fn write_layout(layout: &Path) -> String {
    let tar = Tar::new().file("hello", 0o644, b"imported\n").done();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&tar).to_string()] },
    });
    let config = blob(
        layout,
        "application/vnd.oci.image.config.v1+json",
        &serde_json::to_vec(&config).unwrap(),
    );
    let layer = blob(layout, "application/vnd.oci.image.layer.v1.tar", &tar);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let manifest = blob(layout, MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    fs::write(
        layout.join("index.json"),
        serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [manifest] })).unwrap(),
    )
    .unwrap();
    digest
}

async fn open(dir: &Path, import: Option<&Path>) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(16);
    let mut config = Config::new(dir.join("artifacts"));
    config.import_dir = import.map(Path::to_path_buf);
    config.platform = "linux/amd64".into();
    (Artifacts::open(config, wake).await.unwrap(), woken)
}

fn want(path: &str) -> ImageWant {
    ImageWant {
        source: Source::Path { path: path.into() },
        digest: None,
        credentials: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_in_the_import_directory_becomes_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("import");
    let digest = write_layout(&import.join("images/app"));
    let (artifacts, mut woken) = open(dir.path(), Some(&import)).await;
    let who = Interest("vm-1".into());
    let disk = settle(&mut woken, || artifacts.ensure_image(&who, want("images/app")))
        .await
        .unwrap();
    assert_eq!(disk.digest, digest);
    check(&disk.path);
    assert_eq!(debugfs(&disk.path, "cat /hello"), "imported\n");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_of_the_import_directory_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let (import, outside) = (dir.path().join("import"), dir.path().join("outside"));
    write_layout(&outside);
    fs::create_dir_all(import.join("inner")).unwrap();
    std::os::unix::fs::symlink(&outside, import.join("link")).unwrap();
    // Its files lead out.
    for file in ["oci-layout", "index.json"] {
        std::os::unix::fs::symlink(outside.join(file), import.join("inner").join(file)).unwrap();
    }
    let (artifacts, mut woken) = open(dir.path(), Some(&import)).await;
    let absolute = outside.to_str().unwrap();
    for (n, path) in ["../outside", "inner/../../outside", "link", absolute, "inner"]
        .into_iter()
        .enumerate()
    {
        let who = Interest(format!("vm-{n}"));
        let failure = settle(&mut woken, || artifacts.ensure_image(&who, want(path)))
            .await
            .unwrap_err();
        assert_eq!(failure.reason, "BadReference", "{path}: {failure:?}");
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_a_layout_by_its_marker_and_of_version_1_0_only() {
    for (marker, reason, said) in [
        (None, "NotFound", "oci-layout: there is no such thing"),
        (
            Some("{}"),
            "Malformed",
            "its oci-layout is broken: missing field `imageLayoutVersion`",
        ),
        (
            Some(r#"{"imageLayoutVersion":"9.9.9"}"#),
            "UnsupportedFormat",
            "the version \"9.9.9\"",
        ),
        (
            Some(r#"{"imageLayoutVersion":"1.0"}"#),
            "UnsupportedFormat",
            "the version",
        ),
        (Some(r#"{"imageLayoutVersion":"1.0.7"}"#), "", ""),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let import = dir.path().join("import");
        write_layout(&import.join("app"));
        let file = import.join("app/oci-layout");
        match marker {
            None => fs::remove_file(file).expect("removed"),
            Some(text) => fs::write(file, text).expect("written"),
        }
        let (artifacts, mut woken) = open(dir.path(), Some(&import)).await;
        let who = Interest("vm-1".into());
        match settle(&mut woken, || artifacts.ensure_image(&who, want("app"))).await {
            Ok(_) => assert_eq!(reason, "", "{marker:?}"),
            Err(failure) => {
                assert_eq!(failure.reason, reason, "{failure:?}");
                assert!(failure.message.contains(said), "{failure:?}");
            }
        }
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_directory_that_is_not_there_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("nope/dir");
    let (artifacts, mut woken) = open(dir.path(), Some(&import)).await;
    let who = Interest("vm-1".into());
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want("app")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "StoreFailed", "{failure:?}");
    let wanted = format!(
        "the import directory {}: No such file or directory (os error 2); create it, or start the agent with another --import-dir",
        import.display()
    );
    assert!(failure.message.contains(&wanted), "{failure:?}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_import_directory_and_with_a_damaged_blob_nothing_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let import = dir.path().join("import");
    write_layout(&import.join("app"));
    let (artifacts, mut woken) = open(dir.path(), None).await;
    let who = Interest("vm-1".into());
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want("app")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "ImportDisabled", "{failure:?}");
    artifacts.shutdown().await;

    let tar = Tar::new().file("hello", 0o644, b"imported\n").done();
    let layer = import.join("app/blobs/sha256").join(Digest::sha256(&tar).hex());
    let changed = Tar::new().file("hello", 0o644, b"tampered\n").done();
    fs::write(layer, changed).unwrap();
    let other = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(other.path(), Some(&import)).await;
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want("app")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "WrongDigest", "{failure:?}");
    assert!(artifacts.inventory().await.is_empty());
    artifacts.shutdown().await;
}
