//! Kernels that are one file, or lie in an ordinary image: exactly their files are taken out.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::Path;

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::kernels::{bzimage, vmlinux};
use support::web::{Reply, Web};
use support::{Tar, archive, check, debugfs, gzip, open_with_import, path, settle, zstd};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

const RELEASE: &str = "6.1.0-9-test";

fn want(source: Source) -> KernelWant {
    KernelWant {
        source,
        digest: None,
        credentials: Vec::new(),
        kernel_path: None,
        initrd_path: None,
        modules_path: None,
    }
}

async fn kernel(
    artifacts: &Artifacts,
    woken: &mut mpsc::Receiver<Interest>,
    who: &str,
    want: KernelWant,
) -> Result<std::sync::Arc<KernelFiles>, Failure> {
    let who = Interest(who.into());
    settle(woken, || artifacts.ensure_kernel(&who, want.clone())).await
}

/// A distribution's way: links, packed modules, an initrd, and things that are none of ours.
fn tree(release: &str) -> Tar {
    let modules = format!("usr/lib/modules/{release}");
    Tar::new()
        .dir("boot/")
        .file(&format!("boot/vmlinuz-{release}"), 0o600, &bzimage(release))
        .symlink("boot/vmlinuz", &format!("vmlinuz-{release}"))
        .file("boot/initrd.img", 0o600, b"an initrd")
        .symlink("vmlinuz", &format!("boot/vmlinuz-{release}"))
        .symlink("lib", "usr/lib")
        .file(&format!("{modules}/kernel/a.ko"), 0o644, b"module a")
        .file(&format!("{modules}/kernel/b.ko.gz"), 0o644, &gzip(b"module b"))
        .file(
            &format!("{modules}/modules.dep"),
            0o644,
            b"kernel/b.ko.gz: kernel/a.ko\n",
        )
        .symlink(&format!("{modules}/build"), "/usr/src/linux")
        .file("etc/passwd", 0o644, b"root")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn check_whole(files: &KernelFiles) {
    assert_eq!(
        (files.version.as_str(), files.boot_format),
        (RELEASE, BootFormat::PvhElf)
    );
    assert_eq!(
        fs::read(&files.kernel).unwrap(),
        vmlinux(RELEASE),
        "the vmlinux in the bzImage"
    );
    let disk = files.modules_disk.as_ref().unwrap();
    check(disk);
    assert_eq!(debugfs(disk, "cat /kernel/b.ko"), "module b");
    assert_eq!(debugfs(disk, "cat /modules.dep"), "kernel/b.ko: kernel/a.ko\n");
    let tar = fs::read(files.modules_tar.as_ref().unwrap()).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let found: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    let expected = ["kernel/a.ko", "kernel/b.ko", "modules.dep"];
    assert_eq!(found, expected.map(|name| format!("lib/modules/{RELEASE}/{name}")));
    let published = names(files.kernel.parent().unwrap());
    assert_eq!(published, ["kernel", "modules.ext4", "modules.tar", "record.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_in_a_tar_an_image_and_an_archive_is_the_same_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let tar = tree(RELEASE).done();
    let layers = [tar.clone(), Tar::new().file("etc/more", 0o644, b"x").done()];
    let mut made = Vec::new();
    for (name, bytes) in [
        ("tree.tar.gz", gzip(&tar)),
        ("oci", archive(&layers, false)),
        ("docker", archive(&layers, true)),
    ] {
        fs::write(dir.path().join("import").join(name), &bytes).unwrap();
        let files = kernel(&artifacts, &mut woken, name, want(path(name))).await.unwrap();
        check_whole(&files);
        assert_eq!(files.digest, Digest::sha256(&bytes).to_string());
        made.push(fs::read(files.modules_tar.as_ref().unwrap()).unwrap());
    }
    assert!(made.windows(2).all(|two| two[0] == two[1]));
    artifacts.shutdown().await;
    assert_eq!(names(&dir.path().join("artifacts/tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_merged_before_a_kernel_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let upper = Tar::new()
        .file("boot/.wh.vmlinuz-6.0.0-old", 0o644, b"")
        .file("usr/lib/modules/.wh.6.0.0-old", 0o644, b"")
        .done();
    let lower = tree(RELEASE)
        .file("boot/vmlinuz-6.0.0-old", 0o600, &bzimage("6.0.0-old"))
        .file("usr/lib/modules/6.0.0-old/kernel/a.ko", 0o644, b"old")
        .done();
    fs::write(
        dir.path().join("import/both"),
        archive(std::slice::from_ref(&lower), false),
    )
    .unwrap();
    fs::write(dir.path().join("import/one"), archive(&[lower, upper], false)).unwrap();
    let failure = kernel(&artifacts, &mut woken, "both", want(path("both")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "MissingFile");
    assert!(failure.message.contains("several kernels (boot/vmlinuz"), "{failure:?}");
    check_whole(&kernel(&artifacts, &mut woken, "one", want(path("one"))).await.unwrap());
    // Or the one that is wanted is named.
    let named = KernelWant {
        kernel_path: Some("/boot/vmlinuz-6.0.0-old".into()),
        ..want(path("both"))
    };
    let old = kernel(&artifacts, &mut woken, "named", named).await.unwrap();
    assert_eq!(old.version, "6.0.0-old");
    assert_eq!(debugfs(old.modules_disk.as_ref().unwrap(), "cat /kernel/a.ko"), "old");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_paths_are_taken_and_followed_inside_of_the_image_only() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    fs::write(dir.path().join("import/secret"), b"of the host").unwrap();
    let tar = tree(RELEASE)
        .file("opt/kernel", 0o644, &vmlinux(RELEASE))
        .symlink("opt/link", "/opt/kernel")
        .file("opt/mods/kernel/own.ko", 0o644, b"own")
        .symlink("opt/escape", "../../../../../../etc/hostname")
        .done();
    fs::write(dir.path().join("import/tree"), &tar).unwrap();
    let named = |kernel: &str, modules: &str, initrd: &str| KernelWant {
        kernel_path: Some(kernel.into()),
        modules_path: Some(modules.into()),
        initrd_path: Some(initrd.into()),
        ..want(path("tree"))
    };
    let files = kernel(
        &artifacts,
        &mut woken,
        "vm",
        named("opt/link", "opt/mods", "boot/initrd.img"),
    )
    .await;
    let files = files.unwrap();
    assert_eq!(files.version, RELEASE);
    assert_eq!(fs::read(files.initrd.as_ref().unwrap()).unwrap(), b"an initrd");
    assert_eq!(
        debugfs(files.modules_disk.as_ref().unwrap(), "cat /kernel/own.ko"),
        "own"
    );
    for (at, (k, m, i, reason, part)) in [
        (
            "opt/none",
            "opt/mods",
            "boot/initrd.img",
            "MissingFile",
            "\"opt/none\" (kernelPath)",
        ),
        ("opt", "opt/mods", "boot/initrd.img", "MissingFile", "is no file"),
        (
            "opt/escape",
            "opt/mods",
            "boot/initrd.img",
            "MissingFile",
            "\"opt/escape\"",
        ),
        ("../tree", "opt/mods", "boot/initrd.img", "BadReference", "`..`"),
        (
            "opt/kernel",
            "opt/none",
            "boot/initrd.img",
            "MissingFile",
            "(modulesPath)",
        ),
        ("opt/kernel", "opt/mods", "boot/none", "MissingFile", "(initrdPath)"),
        (
            "etc/passwd",
            "opt/mods",
            "boot/initrd.img",
            "UnsupportedFormat",
            "cannot be booted",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let failure = kernel(&artifacts, &mut woken, &format!("bad-{at}"), named(k, m, i))
            .await
            .unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
        assert!(failure.message.contains(part), "{failure:?}");
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_of_another_release_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    let tar = Tar::new()
        .file("boot/vmlinuz", 0o600, &bzimage(RELEASE))
        .file("lib/modules/6.2.0/kernel/a.ko", 0o644, b"a")
        .done();
    fs::write(dir.path().join("import/tree"), &tar).unwrap();
    let failure = kernel(&artifacts, &mut woken, "vm", want(path("tree")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "MissingFile");
    assert!(
        failure.message.contains("6.1.0-9-test") && failure.message.contains("6.2.0"),
        "{failure:?}"
    );
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_kernel_from_disk_or_from_a_url_is_booted_as_it_boots_best() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    for (name, bytes) in [
        ("vmlinux", vmlinux(RELEASE)),
        ("bzImage", bzimage(RELEASE)),
        ("packed", zstd(&vmlinux(RELEASE))),
    ] {
        fs::write(dir.path().join("import").join(name), &bytes).unwrap();
        let served = bytes.clone();
        let web = Web::start(move |request| Reply::ranged(request, &served));
        let url = Source::Http {
            url: web.url("/kernel"),
            sha256: Digest::sha256(&bytes).hex().to_owned(),
        };
        for (at, source) in [path(name), url].into_iter().enumerate() {
            let files = kernel(&artifacts, &mut woken, &format!("{name}-{at}"), want(source))
                .await
                .unwrap();
            assert_eq!(
                (files.version.as_str(), files.boot_format),
                (RELEASE, BootFormat::PvhElf),
                "{name}"
            );
            assert_eq!(fs::read(&files.kernel).unwrap(), vmlinux(RELEASE), "{name}");
            assert!(files.modules_tar.is_none() && files.modules_disk.is_none() && files.initrd.is_none());
        }
    }
    let named = KernelWant {
        kernel_path: Some("boot/x".into()),
        ..want(path("vmlinux"))
    };
    let failure = kernel(&artifacts, &mut woken, "named", named).await.unwrap_err();
    assert!(failure.message.contains("leave the paths out"), "{failure:?}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_no_image_and_a_file_without_a_kernel_is_no_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_import(dir.path()).await;
    fs::write(dir.path().join("import/vmlinux"), vmlinux(RELEASE)).unwrap();
    fs::write(
        dir.path().join("import/root"),
        Tar::new().file("etc/x", 0o644, b"x").done(),
    )
    .unwrap();
    let mut no_pvh = vmlinux(RELEASE);
    no_pvh[128] = 17;
    fs::write(dir.path().join("import/no-pvh"), no_pvh).unwrap();
    let failure = support::image(&artifacts, &mut woken, "image", path("vmlinux"))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
    let failure = kernel(&artifacts, &mut woken, "root", want(path("root")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "MissingFile", "{failure:?}");
    let failure = kernel(&artifacts, &mut woken, "no-pvh", want(path("no-pvh")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
    artifacts.shutdown().await;
}
