//! vmlet's kernel artefact from a real registry.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use serde_json::json;
use support::{MANIFEST, Registry, Tar, check, debugfs, open, settle};
use vmlet_artifacts::types::*;

const VERSION: &str = "6.1.0-test";

async fn push(registry: &Registry, repository: &str, kernel: &[u8], modules: &[u8]) -> String {
    let config = json!({ "version": VERSION, "architecture": "amd64", "bootFormat": "pvhElf" });
    let config = registry
        .blob(
            repository,
            "application/vnd.vmlet.kernel.config.v1+json",
            &serde_json::to_vec(&config).unwrap(),
        )
        .await;
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let layers = [
        registry
            .blob(repository, "application/vnd.vmlet.kernel.image.v1+zstd", &zstd(kernel))
            .await,
        registry
            .blob(
                repository,
                "application/vnd.vmlet.kernel.modules.v1.tar+zstd",
                &zstd(modules),
            )
            .await,
    ];
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.vmlet.kernel.v1",
        "config": config, "layers": layers,
    });
    registry.manifest(repository, "latest", MANIFEST, &manifest).await
}

fn want(registry: &Registry, repository: &str) -> KernelWant {
    let source = registry.source(repository);
    KernelWant {
        source,
        digest: None,
        credentials: Vec::new(),
        kernel_path: None,
        initrd_path: None,
        modules_path: None,
    }
}

fn modules() -> Vec<u8> {
    let root = format!("lib/modules/{VERSION}");
    Tar::new()
        .dir("lib/")
        .dir("lib/modules/")
        .dir(&format!("{root}/"))
        .file(&format!("{root}/modules.dep"), 0o644, b"kernel/a.ko:\n")
        .dir(&format!("{root}/kernel/"))
        .file(&format!("{root}/kernel/a.ko"), 0o644, &b"module".repeat(2000))
        .done()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_artefact_becomes_a_kernel_a_tar_and_a_disk_of_its_modules() {
    let Some(registry) = Registry::start() else { return };
    let kernel = [b"\x7fELF".to_vec(), vec![7; 100_000]].concat();
    let digest = push(&registry, "kernel", &kernel, &modules()).await;
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    let files = settle(&mut woken, || artifacts.ensure_kernel(&who, want(&registry, "kernel")))
        .await
        .unwrap();
    assert_eq!(
        (files.digest.as_str(), files.version.as_str(), files.boot_format),
        (digest.as_str(), VERSION, BootFormat::PvhElf)
    );
    assert_eq!(std::fs::read(&files.kernel).unwrap(), kernel);
    assert_eq!(std::fs::read(files.modules_tar.as_ref().unwrap()).unwrap(), modules());
    let disk = files.modules_disk.as_ref().unwrap();
    check(disk);
    assert_eq!(debugfs(disk, "cat /modules.dep"), "kernel/a.ko:\n");
    assert_eq!(debugfs(disk, "cat /kernel/a.ko").as_bytes(), b"module".repeat(2000));
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_of_another_format_and_files_elsewhere_than_among_the_modules_are_refused() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    push(&registry, "text", b"no kernel", &modules()).await;
    let failure = settle(&mut woken, || artifacts.ensure_kernel(&who, want(&registry, "text")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "Malformed", "{failure:?}");
    push(
        &registry,
        "stray",
        b"\x7fELF",
        &Tar::new().file("etc/passwd", 0o644, b"x").done(),
    )
    .await;
    let other = Interest("vm-2".into());
    let failure = settle(&mut woken, || artifacts.ensure_kernel(&other, want(&registry, "stray")))
        .await
        .unwrap_err();
    assert!(
        failure.reason == "Malformed" && failure.message.contains("etc/passwd"),
        "{failure:?}"
    );
    assert!(artifacts.inventory().await.is_empty());
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_artefact_is_no_image_and_an_image_needs_a_kernel_in_it() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    push(&registry, "kernel", b"\x7fELF", &modules()).await;
    let who = Interest("vm-1".into());
    let image = ImageWant {
        source: registry.source("kernel"),
        digest: None,
        credentials: Vec::new(),
    };
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, image.clone()))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
    registry.image("image", &[modules()]).await;
    let other = Interest("vm-2".into());
    let failure = settle(&mut woken, || artifacts.ensure_kernel(&other, want(&registry, "image")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "MissingFile", "{failure:?}");
    artifacts.shutdown().await;
}
