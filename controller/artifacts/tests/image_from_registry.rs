//! From a real registry to a disk: the whole crate, with nothing scripted.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::{Registry, Tar, check, debugfs, open, settle};
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

fn layers() -> Vec<Vec<u8>> {
    let big = b"0123456789abcdef".repeat(40_000);
    let lower = Tar::new()
        .dir("etc/")
        .file("etc/gone", 0o644, b"hidden by the upper layer")
        .file("etc/changed", 0o644, b"old")
        .dir("bin/")
        .file("bin/app", 0o4755, &big)
        .hardlink("bin/same", "bin/app")
        .symlink("sbin", "bin")
        .done();
    let upper = Tar::new()
        .file("etc/.wh.gone", 0o644, b"")
        .file("etc/changed", 0o600, b"new\n")
        .file("sbin/added", 0o755, b"through the link\n")
        .done();
    vec![lower, upper]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_two_layers_becomes_a_clean_disk_with_the_merged_tree() {
    let Some(registry) = Registry::start() else { return };
    let digest = registry.image("team/app", &layers()).await;
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    let want = ImageWant {
        source: registry.source("team/app"),
        digest: None,
        credentials: Vec::new(),
    };
    let disk = settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap();

    assert_eq!(disk.digest, digest);
    assert_eq!(disk.config.entrypoint, ["/bin/app"]);
    assert_eq!(disk.config.user.as_deref(), Some("app"));
    check(&disk.path);
    assert_eq!(debugfs(&disk.path, "cat /etc/changed"), "new\n");
    assert_eq!(debugfs(&disk.path, "cat /bin/added"), "through the link\n");
    assert_eq!(
        debugfs(&disk.path, "cat /bin/same").as_bytes(),
        b"0123456789abcdef".repeat(40_000)
    );
    let etc = debugfs(&disk.path, "ls -p /etc");
    assert!(
        etc.contains("/100600/1000/1001/changed/") && !etc.contains("gone"),
        "{etc}"
    );
    let app = debugfs(&disk.path, "stat /bin/app");
    assert!(app.contains("Mode:  04755") && app.contains("Links: 2"), "{app}");
    assert!(debugfs(&disk.path, "stat /sbin").contains("\"bin\""));
    // What was downloaded stays for images that share it, until nobody has used it for a while.
    assert_eq!(
        std::fs::read_dir(dir.path().join("artifacts/blobs")).unwrap().count(),
        2
    );
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_layers_than_transfers_at_a_time_and_one_layer_twice_are_merged_in_order() {
    let Some(registry) = Registry::start() else { return };
    let mut tars: Vec<Vec<u8>> = (0..11)
        .map(|n| {
            Tar::new()
                .file("last", 0o644, format!("{n}\n").as_bytes())
                .file(&format!("f{n}"), 0o644, b"")
                .done()
        })
        .collect();
    tars.push(tars[3].clone());
    tars.push(tars[3].clone());
    registry.image("many", &tars).await;
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    let want = ImageWant {
        source: registry.source("many"),
        digest: None,
        credentials: Vec::new(),
    };
    let disk = settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap();
    check(&disk.path);
    assert_eq!(debugfs(&disk.path, "cat /last"), "3\n");
    let root = debugfs(&disk.path, "ls -p /");
    assert!((0..11).all(|n| root.contains(&format!("/f{n}/"))), "{root}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_configuration_names_publishes_nothing() {
    let Some(registry) = Registry::start() else { return };
    let tars = layers();
    let lie = vec![
        Digest::sha256(b"something else").to_string(),
        Digest::sha256(&tars[1]).to_string(),
    ];
    registry.image_with("liar", &tars, &lie).await;
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    let want = ImageWant {
        source: registry.source("liar"),
        digest: None,
        credentials: Vec::new(),
    };
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("WrongDigest", true),
        "{failure:?}"
    );
    assert!(artifacts.inventory().await.is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_tag_and_another_platform_are_told_apart() {
    let Some(registry) = Registry::start() else { return };
    registry.image("team/app", &layers()).await;
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open(dir.path()).await;
    let who = Interest("vm-1".into());
    let mut want = ImageWant {
        source: registry.source("nothing/here"),
        digest: None,
        credentials: Vec::new(),
    };
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "NotFound", "{failure:?}");
    want.source = Source::Oci {
        reference: format!("{}/team/app", registry.address),
        platform: Some("linux/arm64".into()),
    };
    let failure = settle(&mut woken, || artifacts.ensure_image(&who, want.clone()))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "UnsupportedPlatform", "{failure:?}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_built_into_a_file_has_the_asked_size_and_leaves_nothing_else() {
    let Some(registry) = Registry::start() else { return };
    let digest = registry.image("team/app", &layers()).await;
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("disk.img");
    let mut build = FileBuild {
        reference: format!("{}/team/app", registry.address),
        output: output.clone(),
        replace: true,
        size: Some(512 << 20),
        platform: Some("linux/amd64".into()),
        credentials: Vec::new(),
        registries: Default::default(),
        limits: Default::default(),
    };
    let disk = build_image_file(build.clone(), Progress::default(), CancellationToken::new())
        .await
        .unwrap();
    assert_eq!((disk.digest, disk.size_bytes), (digest, 512 << 20));
    check(&output);
    assert_eq!(debugfs(&output, "cat /etc/changed"), "new\n");

    // Too small, and no such image: what was there stays.
    build.output = dir.path().join("other.img");
    build.size = Some(4096);
    assert!(
        build_image_file(build.clone(), Progress::default(), CancellationToken::new())
            .await
            .is_err()
    );
    build.output = output.clone();
    build.reference = format!("{}/team/none", registry.address);
    assert!(
        build_image_file(build, Progress::default(), CancellationToken::new())
            .await
            .is_err()
    );
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["disk.img"]);
    check(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_came_to_be_during_a_build_is_kept_and_a_build_that_is_cancelled_leaves_nothing() {
    let Some(registry) = Registry::start() else { return };
    registry.image("team/app", &layers()).await;
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("disk.img");
    let build = FileBuild {
        reference: format!("{}/team/app", registry.address),
        output: output.clone(),
        replace: false,
        size: None,
        platform: Some("linux/amd64".into()),
        credentials: Vec::new(),
        registries: Default::default(),
        limits: Default::default(),
    };
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let error = build_image_file(build.clone(), Progress::default(), cancelled)
        .await
        .unwrap_err();
    assert_eq!(error.reason, vmlet_artifacts::error::Reason::Cancelled, "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    std::fs::write(&output, "precious").unwrap();
    let error = build_image_file(build, Progress::default(), CancellationToken::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
