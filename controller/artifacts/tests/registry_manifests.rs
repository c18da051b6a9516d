//! Manifests, indexes, tags and descriptors as registries give them, good and bad.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::scripted::{Image, open_with, source};
use support::web::{Fault, Reply, Request, Web};
use support::{MANIFEST, Tar, gzip, image, settle};
use vmlet_artifacts::types::*;

fn is_blob(request: &Request, digest: &str) -> bool {
    request.path.ends_with(&format!("/blobs/{digest}"))
}

fn usual(_: &mut Limits) {}

/// Pulls in a fresh store; a failure leaves nothing.
async fn pull(web: &Web) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let result = image(&artifacts, &mut woken, "vm", source(web)).await;
    assert_eq!(artifacts.inventory().await.len(), usize::from(result.is_ok()));
    artifacts.shutdown().await;
    assert_eq!(left(dir.path()), 0);
    result
}

fn left(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("artifacts/tmp")).unwrap().count()
}

fn asked(web: &Web, digest: &str) -> usize {
    web.log().iter().filter(|request| is_blob(request, digest)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_a_repository_or_a_blob_that_is_not_there_is_told_apart() {
    let image = Image::usual();
    let web = image.serve(|request| request.path.contains("manifests").then(|| Reply::new(404)));
    let failure = pull(&web).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("NotFound", true));
    assert!(
        failure
            .message
            .contains(&format!("{}/app:latest: the server", web.address)),
        "{failure:?}"
    );
    assert_eq!(web.count("manifests"), 1, "no busy loop");
    let digest = image.layer(2).0;
    let wanted = digest.clone();
    let web = image.serve(move |request| is_blob(request, &wanted).then(|| Reply::new(404)));
    let failure = pull(&web).await.unwrap_err();
    assert_eq!(failure.reason, "NotFound");
    assert!(failure.message.contains(&digest), "{failure:?}");
    assert_eq!(asked(&web, &digest), 1, "no busy loop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_is_told_by_its_first_cause_with_what_to_check() {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let source = Source::Oci {
        // Nobody listens on tcpmux.
        reference: "127.0.0.1:1/app:1".into(),
        platform: None,
    };
    let failure = image(&artifacts, &mut woken, "vm", source).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("Unavailable", false));
    let begin = "127.0.0.1:1/app:1: no connection: Connection refused";
    assert!(failure.message.starts_with(begin), "{failure:?}");
    assert!(failure.message.contains("check that the server runs"), "{failure:?}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h50_h59_manifests_that_are_cut_garbage_too_large_or_not_the_asked_one_are_refused() {
    let image = Image::usual();
    let manifest = image.manifest.clone();
    let manifests = move |reply: Reply| {
        image.serve(move |request| {
            request
                .path
                .contains("manifests")
                .then(|| reply.clone().header("content-type", MANIFEST))
        })
    };
    for (reply, reason) in [
        (Reply::new(200).body(&manifest).fault(Fault::Cut(50)), "Unavailable"),
        (Reply::new(200).body(&manifest[..50]), "Malformed"),
        (Reply::new(200).body(b"<html>"), "Malformed"),
        (Reply::new(200).body(b"[]"), "Malformed"),
        (Reply::new(200).body(b""), "Malformed"),
        (Reply::new(200).body(&vec![b' '; (4 << 20) + 1]), "TooLarge"),
        (
            Reply::new(200).body(br#"{"schemaVersion":1,"fsLayers":[]}"#),
            "UnsupportedFormat",
        ),
    ] {
        let failure = pull(&manifests(reply)).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
    }
    let digest = Image::usual().digest();
    let web = manifests(Reply::new(200).header("docker-content-digest", &digest).body(b"{}"));
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(&web),
        digest: Some(digest),
        credentials: Vec::new(),
    };
    let failure = support::wanted(&artifacts, &mut woken, &who, &want).await;
    assert_eq!(
        failure.unwrap_err().reason,
        "WrongDigest",
        "the digest decides, whatever the header says"
    );
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h57_an_index_leads_to_the_platform_or_says_what_there_is() {
    use serde_json::json;
    use vmlet_artifacts::reference::Digest;
    let image = Image::usual();
    let index =
        |entries: serde_json::Value| serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap();
    let entry = |bytes: &[u8], arch: &str| {
        json!({ "mediaType": MANIFEST, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len(),
            "platform": { "os": "linux", "architecture": arch } })
    };
    let serve = |documents: Vec<Vec<u8>>| {
        image.serve(move |request| {
            let version = request.path.strip_prefix("/v2/app/manifests/")?;
            let found = documents
                .iter()
                .find(|bytes| Digest::sha256(bytes).to_string() == version);
            let found = if version == "latest" { documents.first() } else { found };
            found.map(|bytes| Reply::new(200).body(bytes))
        })
    };
    let two = index(json!([entry(b"other", "arm64"), entry(&image.manifest, "amd64")]));
    pull(&serve(vec![two])).await.unwrap();
    let failure = pull(&serve(vec![index(json!([
        entry(b"other", "arm64"),
        entry(b"more", "s390x")
    ]))]))
    .await
    .unwrap_err();
    assert_eq!(failure.reason, "UnsupportedPlatform");
    assert!(failure.message.contains("linux/arm64, linux/s390x"), "{failure:?}");
    let failure = pull(&serve(vec![index(json!([]))])).await.unwrap_err();
    assert_eq!(failure.reason, "UnsupportedPlatform");
    assert!(failure.message.contains("none of the 0 entries"), "{failure:?}");
}

/// The digest decides what an answer may be: nobody can lead in circles, however the answers are.
#[tokio::test(flavor = "multi_thread")]
async fn h57_a_registry_that_answers_an_index_with_itself_is_refused_at_once() {
    use serde_json::{Value, json};
    use vmlet_artifacts::reference::Digest;
    let image = Image::usual();
    let index = |entries: Value| serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap();
    let entry = |bytes: &[u8]| {
        json!({ "mediaType": "application/vnd.oci.image.index.v1+json", "digest": Digest::sha256(bytes).to_string(),
            "size": bytes.len(), "platform": { "os": "linux", "architecture": "amd64" } })
    };
    let inner = index(json!([entry(&image.manifest)]));
    let outer = index(json!([entry(&inner)]));
    assert_eq!(inner.len(), outer.len(), "it is not their size that tells them apart");
    // The outer index for the one that it names; the inner one for the manifest that that one names.
    let named = [Digest::sha256(&inner).to_string(), image.digest()];
    for (lie, wrong) in named.iter().enumerate() {
        let (answers, documents) = (named.clone(), [outer.clone(), inner.clone()]);
        let web = image.serve(move |request| {
            let version = request.path.strip_prefix("/v2/app/manifests/")?;
            let depth = answers.iter().position(|named| named == version).map_or(0, |at| at + 1);
            let body = documents.get(if depth > lie { lie } else { depth })?;
            // It claims to be what was asked for.
            Some(Reply::new(200).header("docker-content-digest", version).body(body))
        });
        let failure = pull(&web).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("WrongDigest", true),
            "{failure:?}"
        );
        assert!(failure.message.contains(wrong), "{failure:?}");
        assert_eq!(web.count(wrong), 1, "it is not asked for again");
        assert_eq!(web.count("/blobs/"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h57_of_indexes_in_indexes_four_are_followed_and_no_document_is_asked_for_beyond_them() {
    use serde_json::json;
    use vmlet_artifacts::reference::Digest;
    let image = Image::usual();
    let mut documents = vec![image.manifest.clone()];
    for depth in 1..=6 {
        let inner = &documents[0];
        let entry = json!({ "mediaType": MANIFEST, "digest": Digest::sha256(inner).to_string(), "size": inner.len(),
            "platform": { "os": "linux", "architecture": "amd64" } });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        documents.insert(0, serde_json::to_vec(&index).unwrap());
        let all = documents.clone();
        let web = image.serve(move |request| {
            let version = request.path.strip_prefix("/v2/app/manifests/")?;
            let found = all.iter().find(|bytes| Digest::sha256(bytes).to_string() == version);
            let found = if version == "latest" { all.first() } else { found };
            found.map(|bytes| Reply::new(200).body(bytes))
        });
        let result = pull(&web).await;
        if depth <= 4 {
            result.unwrap();
            continue;
        }
        let failure = result.unwrap_err();
        assert_eq!((failure.reason.as_str(), failure.terminal), ("Malformed", true));
        assert!(failure.message.contains("nested too deeply"), "{failure:?}");
        assert_eq!((web.count("/manifests/"), web.count("/blobs/")), (5, 0), "{depth}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h57_an_index_has_as_many_entries_as_4_mib_hold_and_not_one_byte_more() {
    use serde_json::json;
    let image = Image::usual();
    let entry = |arch: &str| {
        json!({ "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": arch } })
        .to_string()
    };
    let (other, own) = (entry("other"), entry("amd64"));
    let index = |size: usize| {
        // The one that counts is the last.
        let mut text = r#"{"schemaVersion":2,"manifests":["#.to_owned();
        while text.len() + other.len() + own.len() + 3 < size {
            text.push_str(&other);
            text.push(',');
        }
        text.push_str(&own);
        text.push_str("]}");
        text.push_str(&" ".repeat(size - text.len()));
        text.into_bytes()
    };
    for (size, good) in [(4 << 20, true), ((4 << 20) + 1, false)] {
        let index = index(size);
        let web = image.serve(move |request| {
            let asked = request.path.ends_with("/manifests/latest");
            asked.then(|| Reply::new(200).body(&index))
        });
        match pull(&web).await {
            Ok(_) => assert!(good, "{size}"),
            Err(failure) => {
                let said = (failure.reason.as_str(), failure.terminal, good);
                assert_eq!(said, ("TooLarge", true, false), "{failure:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h49_the_size_that_an_index_states_is_that_of_the_manifest() {
    use serde_json::json;
    let image = Image::usual();
    for (more, reason) in [(0, None), (1, Some("Malformed"))] {
        let entry = json!({ "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len() + more });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        let web = image.serve(move |request| {
            let asked = request.path.ends_with("/manifests/latest");
            asked.then(|| Reply::new(200).body(index.as_bytes()))
        });
        let failure = pull(&web).await.err();
        assert_eq!(failure.as_ref().map(|f| f.reason.as_str()), reason, "{failure:?}");
        if let Some(failure) = failure {
            let length = image.manifest.len();
            let words = format!("has {} bytes, but it has {length}", length + 1);
            assert!(failure.message.contains(&words), "{failure:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_resolved_for_its_own_platform_only() {
    let image = Image::usual();
    let web = image.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let who = Interest("image".into());
    let want = |platform: &str| ResolveWant {
        source: Source::Oci {
            reference: format!("{}/app:latest", web.address),
            platform: Some(platform.into()),
        },
        credentials: Vec::new(),
    };
    let failure = settle(&mut woken, || artifacts.resolve(&who, want("linux/arm64")))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("UnsupportedPlatform", true)
    );
    for word in [&format!("{}/app:latest", web.address), "linux/amd64", "linux/arm64"] {
        assert!(failure.message.contains(word), "{failure:?}");
    }
    let resolved = settle(&mut woken, || artifacts.resolve(&who, want("linux/amd64")))
        .await
        .unwrap();
    assert_eq!(resolved.digest, image.digest());
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_does_not_move_what_is_pinned() {
    let (old, new) = (
        Image::usual(),
        Image::of(&[(Tar::new().done(), gzip(&Tar::new().done()))]),
    );
    let moved = new.clone();
    let web = old.serve(move |request| request.path.ends_with("/latest").then(|| moved.answer(request)));
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(&web),
        digest: Some(old.digest()),
        credentials: Vec::new(),
    };
    let disk = support::wanted(&artifacts, &mut woken, &who, &want).await.unwrap();
    assert_eq!(disk.digest, old.digest());
    assert_eq!(web.count("/latest"), 0);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d17_a_tag_that_moves_while_it_is_pulled_gives_what_it_was_to_whoever_asked_before() {
    let of = |name: &str| {
        let tar = Tar::new().file(name, 0o644, name.as_bytes()).done();
        Image::of(&[(tar.clone(), gzip(&tar))])
    };
    let (old, new) = (of("old"), of("new"));
    let (moved, has_moved) = (new.clone(), AtomicBool::new(false));
    let by_tag = old.clone();
    let web = old.serve(move |request| {
        // With the first answer to anybody it is another image's.
        if request.path.ends_with("/manifests/latest") {
            let image = if has_moved.swap(true, Ordering::SeqCst) {
                &moved
            } else {
                &by_tag
            };
            return Some(image.answer(request));
        }
        let of_new = moved.answer(request);
        (!of_new.is(404)).then_some(of_new)
    });
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let disk = image(&artifacts, &mut woken, "first", source(&web)).await.unwrap();
    assert_eq!(disk.digest, old.digest());
    assert_eq!(support::debugfs(&disk.path, "cat /old"), "old");
    // Who asks now gets what the tag is now, and nobody else is moved by that.
    let other = image(&artifacts, &mut woken, "second", source(&web)).await.unwrap();
    assert_eq!(other.digest, new.digest());
    let again = image(&artifacts, &mut woken, "first", source(&web)).await.unwrap();
    assert_eq!((&again.digest, &again.path), (&disk.digest, &disk.path));
    assert_eq!(web.count("/latest"), 2);
    artifacts.shutdown().await;

    // Two nodes that are told the digest have the same disk, whatever the tag says there.
    let mut hashes = Vec::new();
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let want = ImageWant {
            source: source(&web),
            digest: Some(old.digest()),
            credentials: Vec::new(),
        };
        let disk = support::wanted(&artifacts, &mut woken, &Interest("vm".into()), &want).await;
        hashes.push(disk.unwrap().content_hash.clone());
        artifacts.shutdown().await;
    }
    assert!(hashes[0] == disk.content_hash && hashes[1] == disk.content_hash);
    assert_eq!(web.count("/latest"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn h55_h56_layers_are_asked_of_the_registry_and_never_of_their_urls_and_unknown_types_are_refused() {
    use serde_json::{Value, json};
    let usual = Image::usual();
    let elsewhere = Web::start(|_| Reply::new(200));
    let with = |media_type: &str| {
        let mut manifest: Value = serde_json::from_slice(&usual.manifest).unwrap();
        manifest["layers"][1]["mediaType"] = json!(media_type);
        manifest["layers"][1]["urls"] = json!([elsewhere.url("/layer")]);
        manifest.as_object_mut().unwrap().remove("mediaType");
        Image {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            ..usual.clone()
        }
    };
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        // It lies: the bytes are gzip.
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ] {
        pull(&with(media_type).serve(|_| None)).await.unwrap();
    }
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "text/x.tar",
        "",
    ] {
        let failure = pull(&with(media_type).serve(|_| None)).await.unwrap_err();
        assert_eq!(failure.reason, "UnsupportedFormat", "{failure:?}");
        assert!(failure.message.contains(media_type), "{failure:?}");
    }
    assert!(elsewhere.log().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn h49_descriptors_whose_sizes_lie_are_refused() {
    use serde_json::{Value, json};
    let usual = Image::usual();
    for (place, by, reason) in [
        ("layers", 1, "Unavailable"),
        ("layers", -1, "TooLarge"),
        ("config", -1, "TooLarge"),
        ("config", 1, "Malformed"),
    ] {
        let mut manifest: Value = serde_json::from_slice(&usual.manifest).unwrap();
        let size = if place == "config" {
            &mut manifest["config"]["size"]
        } else {
            &mut manifest["layers"][2]["size"]
        };
        *size = json!(size.as_i64().unwrap() + by);
        let image = Image {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            ..usual.clone()
        };
        let failure = pull(&image.serve(|_| None)).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{place} {by}: {failure:?}");
    }
}
