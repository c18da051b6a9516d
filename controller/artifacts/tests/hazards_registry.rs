//! Hazards of what a registry says and of how a pull ends. Those of transfers are in registry_faults.rs, those of logins
//! in registry_auth.rs, and those of manifests and descriptors in registry_manifests.rs, all named by their numbers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use support::raw::{file, tar};
use support::scripted::{Image, noise, open_with, source};
use support::web::{Fault, Reply, Web};
use support::{MANIFEST, check, debugfs, gzip, image, zstd};
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::registry::blob::file_name;
use vmlet_artifacts::types::*;

/// An image of one layer with the file `/name`.
fn named(name: &str) -> Image {
    let tar = tar(&[file(name, name)]);
    Image::of(&[(tar.clone(), gzip(&tar))])
}

/// The file of a blob in a store.
fn blob(store: &Path, web: &Web, digest: &str) -> PathBuf {
    let digest = digest.parse().expect("a digest");
    store.join("blobs").join(file_name(&web.address, &digest))
}

fn change(image: &Image, how: impl FnOnce(&mut Value)) -> Image {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    how(&mut manifest);
    Image {
        manifest: serde_json::to_vec(&manifest).unwrap(),
        blobs: image.blobs.clone(),
    }
}

/// Another configuration, with its descriptor.
fn configured(image: &Image, how: impl FnOnce(&mut Value)) -> Image {
    let mut config: Value = serde_json::from_slice(&image.blobs[0].1).unwrap();
    how(&mut config);
    let bytes = serde_json::to_vec(&config).unwrap();
    let digest = Digest::sha256(&bytes).to_string();
    let mut changed = change(image, |manifest| {
        manifest["config"]["digest"] = json!(digest);
        manifest["config"]["size"] = json!(bytes.len());
    });
    changed.blobs[0] = (digest, bytes);
    changed
}

async fn pull(web: &Web) -> Result<Arc<ImageDisk>, Failure> {
    pull_for(web, "linux/amd64").await
}

/// Pulls into a fresh store; a failure leaves nothing.
async fn pull_for(web: &Web, platform: &str) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let source = Source::Oci {
        reference: format!("{}/app:latest", web.address),
        platform: Some(platform.to_owned()),
    };
    let result = image(&artifacts, &mut woken, "vm", source).await;
    if let Ok(disk) = &result {
        check(&disk.path);
    }
    assert_eq!(artifacts.inventory().await.len(), usize::from(result.is_ok()));
    artifacts.shutdown().await;
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn h49_a_negative_size_is_refused_before_anything_is_asked_for() {
    for place in ["config", "layers"] {
        let image = change(&named("f"), |manifest| match place {
            "config" => manifest["config"]["size"] = json!(-1),
            _ => manifest["layers"][0]["size"] = json!(-1),
        });
        let web = image.serve(|_| None);
        let failure = pull(&web).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Malformed", true),
            "{failure:?}"
        );
        assert_eq!(web.count("/blobs/"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h50_a_manifest_that_is_not_the_one_its_index_names_is_refused() {
    let (wanted, other) = (named("wanted"), named("other"));
    let entry = json!({ "mediaType": MANIFEST, "digest": wanted.digest(), "size": wanted.manifest.len(),
        "platform": { "os": "linux", "architecture": "amd64" } });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    let (index, path) = (
        serde_json::to_vec(&index).unwrap(),
        format!("/manifests/{}", wanted.digest()),
    );
    let claimed = wanted.digest();
    let web = other.clone().serve(move |request| match request.path.as_str() {
        at if at.ends_with("/manifests/latest") => Some(Reply::new(200).body(&index)),
        at if at.ends_with(&path) => Some(
            Reply::new(200)
                .header("docker-content-digest", &claimed)
                .body(&other.manifest),
        ),
        _ => None,
    });
    let failure = pull(&web).await.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("WrongDigest", true),
        "{failure:?}"
    );
    assert!(failure.message.contains(&wanted.digest()), "{failure:?}");
    assert_eq!(web.count("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn h51_a_configuration_with_more_or_fewer_layers_than_the_manifest_is_refused() {
    let own = Digest::sha256(b"x").to_string();
    for diff_ids in [json!([]), json!([own, own])] {
        let web = configured(&named("f"), |config| config["rootfs"]["diff_ids"] = diff_ids).serve(|_| None);
        let failure = pull(&web).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Malformed", true),
            "{failure:?}"
        );
        assert!(
            failure.message.contains("it has 1 layers, but its configuration names"),
            "{failure:?}"
        );
    }
    let web = configured(&named("f"), |config| {
        config["rootfs"]["diff_ids"][0] = json!("sha256:12")
    })
    .serve(|_| None);
    assert_eq!(pull(&web).await.unwrap_err().reason, "Malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn h55_the_bytes_say_how_a_layer_is_compressed() {
    let plain = tar(&[file("f", "x")]);
    let types = ["tar", "tar+gzip", "tar+zstd"].map(|end| format!("application/vnd.oci.image.layer.v1.{end}"));
    for packed in [plain.clone(), gzip(&plain), zstd(&plain)] {
        for media_type in &types {
            let image = change(&Image::of(&[(plain.clone(), packed.clone())]), |manifest| {
                manifest["layers"][0]["mediaType"] = json!(media_type);
            });
            let disk = pull(&image.serve(|_| None)).await.unwrap();
            assert_eq!(disk.config.cmd, ["/bin/app"]);
        }
    }
    // What the specification does not have is named.
    let xz = Image::of(&[(plain, b"\xfd7zXZ\0rest of it".to_vec())]);
    let failure = pull(&xz.serve(|_| None)).await.unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
    assert!(
        failure.message.contains("layer 1 (sha256:") && failure.message.contains("xz"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h55_docker_and_oci_types_may_be_mixed_and_artefacts_are_no_images() {
    let docker = change(&named("f"), |manifest| {
        manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
        manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    });
    pull(&docker.serve(|_| None)).await.unwrap();
    let config = change(&docker, |manifest| {
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    });
    pull(&config.serve(|_| None)).await.unwrap();
    let artefact = change(&named("f"), |manifest| {
        manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    });
    let failure = pull(&artefact.serve(|_| None)).await.unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
    assert!(
        failure.message.contains("is an artefact, not an image to run"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_whose_root_is_not_made_of_layers_is_refused() {
    for (kind, said) in [
        (json!("foo"), "a rootfs of the type \"foo\""),
        (json!("LAYERS"), "a rootfs of the type"),
        (Value::Null, "its configuration is broken"),
    ] {
        let web = configured(&named("f"), |config| config["rootfs"]["type"] = kind).serve(|_| None);
        let failure = pull(&web).await.expect_err("no layers");
        assert_eq!((failure.reason.as_str(), failure.terminal), ("Malformed", true));
        assert!(failure.message.contains(said), "{failure:?}");
    }
    let missing = configured(&named("f"), |config| {
        config["rootfs"].as_object_mut().expect("an object").remove("type");
    });
    let failure = pull(&missing.serve(|_| None)).await.expect_err("no type");
    assert!(failure.message.contains("missing field `type`"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_may_say_so_with_null() {
    let image = Image::of(&[]);
    for (layers, diff_ids) in [(json!([]), json!([])), (Value::Null, Value::Null)] {
        let image = configured(&image, |config| config["rootfs"]["diff_ids"] = diff_ids);
        let image = change(&image, |manifest| manifest["layers"] = layers);
        pull(&image.serve(|_| None)).await.expect("an empty disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h58_the_index_decides_what_runs_here() {
    let names = ["plain", "v1", "v3", "attestation", "other"];
    let images = names.map(named);
    let entry = |at: usize, platform: Value| json!({ "mediaType": MANIFEST, "digest": images[at].digest(), "size": images[at].manifest.len(), "platform": platform });
    let amd64 = |variant: Value| json!({ "os": "linux", "architecture": "amd64", "variant": variant });
    let serve = |entries: Vec<Value>| {
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap();
        let images = images.clone();
        Web::start(move |request| {
            if request.path.ends_with("/manifests/latest") {
                return Reply::new(200).body(&index);
            }
            // Whichever image it is of.
            let answers = images.iter().map(|image| image.answer(request));
            answers
                .into_iter()
                .find(|reply| !reply.is(404))
                .unwrap_or_else(|| Reply::new(404))
        })
    };
    let mut proof = entry(3, amd64(Value::Null));
    proof["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let unknown = entry(3, json!({ "os": "unknown", "architecture": "unknown" }));
    let (v1, v3) = (entry(1, amd64(json!("v1"))), entry(2, amd64(json!("v3"))));
    let other = entry(4, json!({ "os": "linux", "architecture": "riscv64" }));
    let (plain, bare) = (entry(0, amd64(Value::Null)), entry(0, Value::Null));
    for (entries, platform, expected) in [
        (
            vec![proof.clone(), unknown.clone(), plain.clone()],
            "linux/amd64",
            Ok("plain"),
        ),
        (vec![unknown.clone(), bare.clone()], "linux/amd64", Ok("plain")),
        (vec![bare.clone(), other.clone()], "linux/amd64", Err("linux/riscv64")),
        (vec![v3.clone(), v1.clone()], "linux/amd64/v2", Ok("v1")),
        (vec![v1.clone(), v3.clone()], "linux/amd64/v4", Ok("v3")),
        (vec![v3.clone(), v1, plain], "linux/amd64", Ok("plain")),
        (vec![v3], "linux/amd64/v2", Err("linux/amd64")),
        (vec![proof, unknown], "linux/amd64", Err("none of the 2 entries")),
    ] {
        let web = serve(entries.clone());
        match (pull_for(&web, platform).await, expected) {
            (Ok(disk), Ok(name)) => {
                let at = names.iter().position(|known| *known == name).unwrap();
                assert_eq!(disk.digest, images[at].digest(), "{name}: {entries:?}");
            }
            (Err(failure), Err(part)) => {
                assert_eq!(
                    (failure.reason.as_str(), failure.terminal),
                    ("UnsupportedPlatform", true)
                );
                assert!(failure.message.contains(part), "{part}: {failure:?}");
            }
            (result, _) => panic!("{entries:?}: {result:?}"),
        }
    }
}

fn sha512(bytes: &[u8]) -> String {
    let hex: String = Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

#[tokio::test(flavor = "multi_thread")]
async fn h60_a_manifest_without_media_type_and_digests_by_sha512_are_taken() {
    let mut image = change(&named("f"), |manifest| {
        manifest.as_object_mut().unwrap().remove("mediaType");
    });
    pull(&image.serve(|_| None)).await.unwrap();
    let plain = tar(&[file("f", "f")]);
    image = configured(&image, |config| config["rootfs"]["diff_ids"] = json!([sha512(&plain)]));
    image = change(&image, |manifest| {
        manifest["layers"][0]["digest"] = json!(sha512(&image.blobs[1].1));
        manifest["config"]["digest"] = json!(sha512(&image.blobs[0].1));
    });
    for (digest, bytes) in &mut image.blobs {
        *digest = sha512(bytes);
    }
    pull(&image.serve(|_| None)).await.unwrap();
    // They are checked like any other.
    let wrong = configured(&image, |config| {
        config["rootfs"]["diff_ids"] = json!([sha512(b"other")])
    });
    assert_eq!(pull(&wrong.serve(|_| None)).await.unwrap_err().reason, "WrongDigest");
    let digest = image.blobs[1].0.clone();
    let web = image.serve(move |request| {
        request
            .path
            .ends_with(&digest)
            .then(|| Reply::new(200).body(&gzip(&plain)[1..]))
    });
    assert!(pull(&web).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn h60_schema_1_is_refused_with_what_to_do() {
    let old = Image {
        manifest:
            br#"{"schemaVersion":1,"name":"app","tag":"latest","fsLayers":[{"blobSum":"sha256:00"}],"history":[]}"#
                .to_vec(),
        ..named("f")
    };
    let failure = pull(&old.serve(|_| None)).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("UnsupportedFormat", true));
    assert!(
        failure.message.contains("push it again with a current tool"),
        "{failure:?}"
    );
}

const CHILD: &str = "VMLET_TEST_KILLED_PULL";

/// Not a test of its own: the process that [`h62_a_pull_that_is_killed_leaves_nothing_that_counts`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn killed_pull() {
    let Some((dir, reference)) = std::env::var(CHILD).ok().and_then(|text| {
        let (dir, reference) = text.split_once('\n')?;
        Some((dir.to_owned(), reference.to_owned()))
    }) else {
        return;
    };
    let (artifacts, mut woken) = open_with(Path::new(&dir), |_| ()).await;
    let source = Source::Oci {
        reference,
        platform: Some("linux/amd64".into()),
    };
    let _ = image(&artifacts, &mut woken, "vm", source).await;
}

/// A process that pulls `app:latest` until it is killed, which it is when this is dropped.
struct Killed(Child);

impl Killed {
    fn start(dir: &Path, web: &Web) -> Killed {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_pull", "--nocapture"])
            .env(CHILD, format!("{}\n{}/app:latest", dir.display(), web.address))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Killed(child.unwrap())
    }

    /// Waits for what can be seen from outside.
    fn until(&mut self, seen: impl Fn() -> bool) {
        while !seen() {
            assert!(self.0.try_wait().unwrap().is_none(), "the pull waits for the rest");
            std::thread::yield_now();
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Of a file that need not be there.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// What is in a directory that need not be there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    found.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn h62_a_pull_that_is_killed_leaves_nothing_that_counts() {
    let usual = Image::usual();
    let (large, bytes) = usual.layer(1);
    for part in [0, 1000, bytes.len() / 2, bytes.len() - 1] {
        let stalled = large.clone();
        let (body, (asked, told)) = (bytes.clone(), tokio::sync::oneshot::channel());
        let asked = std::sync::Mutex::new(Some(asked));
        let web = usual.serve(move |request| {
            if !request.path.ends_with(&stalled) {
                return None;
            }
            // The first time only.
            let _ = asked.lock().unwrap().take()?.send(());
            Some(Reply::new(200).body(&body).fault(Fault::Stall(part)))
        });
        let dir = tempfile::tempdir().unwrap();
        let mut child = Killed::start(dir.path(), &web);
        told.await.unwrap();
        // The bytes that come are kept as they come.
        let partial = blob(&dir.path().join("artifacts"), &web, &large);
        child.until(|| size(&partial) >= part as u64);
        let temporary = || std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count();
        assert_eq!(temporary(), 1);
        drop(child);

        let before = web.log().len();
        let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
        assert_eq!(temporary(), 0, "the next start removes what nobody owns");
        assert!(artifacts.inventory().await.is_empty(), "nothing was published");
        let disk = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap();
        check(&disk.path);
        assert_eq!(debugfs(&disk.path, "cat /last"), "last\n");
        let from: Vec<_> = web.log()[before..]
            .iter()
            .filter(|r| r.method == "GET" && r.path.ends_with(&large))
            .map(|r| r.from().unwrap_or(0))
            .collect();
        assert_eq!(
            from,
            [part],
            "what came is checked and used, and only the rest is asked for"
        );
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h62_a_pull_that_is_killed_while_its_disk_grows_leaves_no_disk_and_the_next_one_goes_on() {
    // Many times what is gathered before it is written, and hardly compressible.
    let whole = Image::with_noise(2_000_000);
    let (large, bytes) = whole.layer(1);
    let part = bytes.len() * 3 / 4;
    let (held, body) = (large.clone(), bytes.clone());
    let killed = Arc::new(AtomicBool::new(false));
    let over = killed.clone();
    let web = whole.serve(move |request| {
        let stall = || Reply::new(200).body(&body).fault(Fault::Stall(part));
        (request.path.ends_with(&held) && !over.load(Ordering::SeqCst)).then(stall)
    });
    let dir = tempfile::tempdir().unwrap();
    let mut child = Killed::start(dir.path(), &web);
    let store = dir.path().join("artifacts");
    // All that came is in its place, and of what came most is on the disk: no more happens until the rest comes.
    child.until(|| {
        let came = size(&blob(&store, &web, &large)) == part as u64;
        let jobs = entries(&store.join("tmp")).into_iter();
        let grown = jobs.map(|job| size(&job.join("disk.ext4")));
        came && grown.sum::<u64>() > 1 << 20
    });
    assert!(
        entries(&store.join("images")).is_empty(),
        "nothing half has its final name"
    );
    drop(child);
    killed.store(true, Ordering::SeqCst);
    let before = web.log().len();

    // What the killed one left.
    let [job] = &entries(&store.join("tmp"))[..] else {
        panic!("one job had begun")
    };
    assert!(size(&job.join("disk.ext4")) > 1 << 20);
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    assert!(!job.exists(), "the next start removes what nobody owns");
    assert!(entries(&store.join("images")).is_empty() && artifacts.inventory().await.is_empty());
    let disk = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap();
    check(&disk.path);
    assert_eq!(debugfs(&disk.path, "cat /first"), "first\n");
    assert_eq!(debugfs(&disk.path, "cat /last"), "last\n");
    let dump = dir.path().join("noise");
    debugfs(&disk.path, &format!("dump /noise {}", dump.display()));
    assert!(std::fs::read(&dump).unwrap() == noise(2_000_000));
    let log = web.log();
    let asked = log[before..].iter();
    let asked = asked.filter(|request| request.method == "GET" && request.path.ends_with(&large));
    let asked: Vec<_> = asked.map(|request| request.from()).collect();
    assert_eq!(asked, [Some(part)], "what came is used, and only the rest is asked for");
    artifacts.shutdown().await;
    assert!(entries(&store.join("tmp")).is_empty());
}
