//! The bounds of kernels and of their initrds, at the limit and one byte beyond, wherever they come from.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use support::kernels::{bzimage, vmlinux};
use support::scripted::{Image, open_with, source};
use support::web::Web;
use support::{MANIFEST, Tar, gzip, settle, zstd};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

const RELEASE: &str = "6.1.0-9-test";

/// Pulls a kernel into a fresh store; a failure leaves nothing.
async fn pull(web: &Web, initrd: bool, limits: impl FnOnce(&mut Limits)) -> Result<Arc<KernelFiles>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), limits).await;
    let want = KernelWant {
        source: source(web),
        digest: None,
        credentials: Vec::new(),
        kernel_path: None,
        initrd_path: initrd.then(|| "boot/initrd".to_owned()),
        modules_path: None,
    };
    let who = Interest("vm".into());
    let result = settle(&mut woken, || artifacts.ensure_kernel(&who, want.clone())).await;
    assert_eq!(artifacts.inventory().await.len(), usize::from(result.is_ok()));
    if let Ok(files) = &result {
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(length(&files.kernel), vmlinux(RELEASE).len() as u64);
        assert_eq!(files.initrd.as_deref().map(length), initrd.then_some(5000));
    }
    artifacts.shutdown().await;
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    result
}

/// An ordinary image with a kernel and an initrd in it.
fn image(kernel: &[u8]) -> Web {
    let tar = Tar::new()
        .file("boot/vmlinuz", 0o644, kernel)
        .file("boot/initrd", 0o644, &[7; 5000])
        .done();
    Image::of(&[(tar.clone(), gzip(&tar))]).serve(|_| None)
}

/// vmlet's own artefact.
fn artefact(kernel: &[u8]) -> Web {
    artefact_of(zstd(kernel)).0
}

/// The same with a kernel that is compressed already, and that one's digest.
fn artefact_of(kernel: Vec<u8>) -> (Web, String) {
    let digest = Digest::sha256(&kernel).to_string();
    let config = json!({ "version": RELEASE, "architecture": "amd64", "bootFormat": "pvhElf" });
    let mut blobs = Vec::new();
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let digest = Digest::sha256(&bytes).to_string();
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        blobs.push((digest, bytes));
        descriptor
    };
    let config = blob(
        "application/vnd.vmlet.kernel.config.v1+json",
        serde_json::to_vec(&config).unwrap(),
    );
    let kernel = blob("application/vnd.vmlet.kernel.image.v1+zstd", kernel);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.vmlet.kernel.v1",
        "config": config, "layers": [kernel] });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    (Image { manifest, blobs }.serve(|_| None), digest)
}

fn too_large(result: Result<Arc<KernelFiles>, Failure>, part: &str) {
    let failure = result.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("TooLarge", true),
        "{failure:?}"
    );
    assert!(failure.message.contains(part), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_ends_at_its_bound_as_it_comes_and_expanded() {
    let plain = vmlinux(RELEASE);
    let size = plain.len() as u64;
    let packed = bzimage(RELEASE);
    assert!((packed.len() as u64) < size, "it is the expanded one that is bounded");
    let size_of = |bytes: u64| move |limits: &mut Limits| limits.kernel_bytes = bytes;
    for (web, part) in [
        (artefact(&plain), "its kernel has more than"),
        (image(&plain), "more than"),
        (image(&packed), "the kernel expands to more than"),
    ] {
        pull(&web, false, size_of(size)).await.unwrap();
        too_large(pull(&web, false, size_of(size - 1)).await, part);
    }
    // The one that is packed is one, too.
    let web = image(&packed);
    let less = packed.len() as u64 - 1;
    too_large(pull(&web, false, size_of(less)).await, &format!("more than {less}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_comes_with_more_bytes_than_its_bound_is_not_asked_for() {
    let plain = vmlinux(RELEASE);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18][..], &50_000u32.to_le_bytes(), &[7; 50_000]].concat();
    let packed = [zstd(&plain), skipped].concat();
    let most = packed.len() as u64;
    let (web, digest) = artefact_of(packed.clone());
    pull(&web, false, |limits| limits.kernel_bytes = most)
        .await
        .expect("at the limit");
    let before = web.count(&digest);
    let said = format!("its kernel has {most} bytes, more than {} (--max-kernel-mib)", most - 1);
    too_large(pull(&web, false, |limits| limits.kernel_bytes = most - 1).await, &said);
    assert_eq!(web.count(&digest), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initrd_ends_at_its_bound() {
    let web = image(&bzimage(RELEASE));
    pull(&web, true, |limits| limits.initrd_bytes = 5000).await.unwrap();
    let less = pull(&web, true, |limits| limits.initrd_bytes = 4999).await;
    too_large(less, "boot/initrd has 5000 bytes, more than 4999");
    // Who does not ask for it does not care.
    pull(&web, false, |limits| limits.initrd_bytes = 1).await.unwrap();
}
