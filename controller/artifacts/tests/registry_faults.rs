//! A registry that fails in every way that registries do: what is promised holds, and nothing partial is left.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::scripted::{Image, credential, open_with, source};
use support::web::{Fault, Reply, Request, Web};
use support::{Tar, check, debugfs, gzip, image};
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;
use vmlet_artifacts::registry::blob::file_name;
use vmlet_artifacts::types::*;

/// Long enough for a busy machine, short enough for a test.
const SHORT: Duration = Duration::from_secs(1);

fn usual(_: &mut Limits) {}

fn impatient(limits: &mut Limits) {
    limits.stall_timeout = SHORT;
}

/// The file of a blob in the store; its directory is there.
fn place(dir: &Path, web: &Web, digest: &str) -> PathBuf {
    let blobs = dir.join("artifacts/blobs");
    fs::create_dir_all(&blobs).expect("a directory");
    blobs.join(file_name(&web.address, &digest.parse().expect("a digest")))
}

fn is_blob(request: &Request, digest: &str) -> bool {
    request.path.ends_with(&format!("/blobs/{digest}"))
}

/// Pulls in a fresh store; everything but the outcome is checked here.
async fn pull(web: &Web) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    pull_with(web, usual).await
}

async fn pull_with(web: &Web, limits: fn(&mut Limits)) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), limits).await;
    let result = image(&artifacts, &mut woken, "vm", source(web)).await;
    match &result {
        Ok(disk) => whole(disk),
        Err(_) => assert!(artifacts.inventory().await.is_empty()),
    }
    artifacts.shutdown().await;
    assert_eq!(fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    result
}

fn whole(disk: &ImageDisk) {
    check(&disk.path);
    assert_eq!(debugfs(&disk.path, "cat /first"), "first\n");
    assert_eq!(debugfs(&disk.path, "cat /last"), "last\n");
    assert!(debugfs(&disk.path, "stat /noise").contains("Size: 1200000"));
}

/// A fault in the first answers for the large layer.
fn faulty(image: &Image, times: usize, fault: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Web {
    let (digest, bytes) = image.layer(1);
    let so_far = AtomicUsize::new(0);
    image.serve(move |request| {
        let now = is_blob(request, &digest) && so_far.fetch_add(1, Ordering::SeqCst) < times;
        now.then(|| fault(Reply::ranged(request, &bytes)))
    })
}

fn ranges(web: &Web, digest: &str) -> Vec<Option<usize>> {
    web.log()
        .iter()
        .filter(|r| r.method == "GET" && is_blob(r, digest))
        .map(Request::from)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn h48_a_blob_that_is_cut_or_reset_goes_on_by_range() {
    for fault in [Fault::Cut(100_000), Fault::Reset(100_000)] {
        let image = Image::usual();
        let web = faulty(&image, 2, move |reply| reply.fault(fault));
        pull(&web).await.unwrap();
        let asked = ranges(&web, &image.layer(1).0);
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert_eq!(asked[0], None);
        assert!(
            asked[1] <= asked[2] && asked[2].is_some_and(|from| from > 0),
            "{asked:?}"
        );
        for n in [0, 2] {
            assert_eq!(ranges(&web, &image.layer(n).0), [None], "the others are asked for once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_range_sends_everything_again_and_nothing_is_joined_wrongly() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let so_far = AtomicUsize::new(0);
    let wanted = digest.clone();
    let web = image.serve(move |request| {
        let reply = is_blob(request, &wanted).then(|| Reply::new(200).body(&bytes))?;
        let first = so_far.fetch_add(1, Ordering::SeqCst) == 0;
        Some(if first { reply.fault(Fault::Cut(70_000)) } else { reply })
    });
    pull(&web).await.unwrap();
    assert_eq!(ranges(&web, &digest).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_of_a_range_may_be_written_in_any_case() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let wanted = digest.clone();
    let web = image.serve(move |request| {
        let from = request.from().filter(|_| is_blob(request, &wanted))?;
        let range = format!("Bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        Some(Reply::new(206).header("content-range", &range).body(&bytes[from..]))
    });
    let dir = tempfile::tempdir().unwrap();
    let file = place(dir.path(), &web, &digest);
    fs::write(&file, &image.layer(1).1[..50_000]).unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let disk = support::image(&artifacts, &mut woken, "vm", source(&web)).await;
    whole(&disk.unwrap());
    assert_eq!(ranges(&web, &digest), [Some(50_000)]);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_wrong_content_range_is_asked_without_range() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let wanted = digest.clone();
    let web = image.serve(move |request| {
        if !is_blob(request, &wanted) {
            return None;
        }
        Some(match (request.from(), request.header("range")) {
            // Some offset of its own.
            (Some(_), _) => Reply::new(206)
                .header("content-range", "bytes 5-99/100")
                .body(&bytes[5..]),
            (None, _) => Reply::new(200).body(&bytes),
        })
    });
    // What is there from before makes the first question one with Range.
    let dir = tempfile::tempdir().unwrap();
    let file = place(dir.path(), &web, &digest);
    fs::write(&file, &image.layer(1).1[..50_000]).unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    whole(
        &support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap(),
    );
    assert_eq!(ranges(&web, &digest), [Some(50_000), None]);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_download_that_the_server_does_not_continue_is_asked_for_whole() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let no_ranges = |cut: usize| {
        let (wanted, bytes, so_far) = (digest.clone(), bytes.clone(), AtomicUsize::new(0));
        image.serve(move |request| {
            if !is_blob(request, &wanted) || request.method == "HEAD" {
                return None;
            }
            if request.from().is_some() {
                return Some(Reply::new(416));
            }
            let cuts = so_far.fetch_add(1, Ordering::SeqCst) < cut;
            let reply = Reply::new(200).body(&bytes);
            Some(if cuts { reply.fault(Fault::Cut(50_000)) } else { reply })
        })
    };
    // What this pull has fetched, and it is not asked with a range again.
    let web = no_ranges(2);
    pull(&web).await.expect("pulled");
    let asked = ranges(&web, &digest);
    assert!(matches!(asked[..], [None, Some(_), None, None]), "{asked:?}");
    // What is there from before, good and not.
    for (partial, good) in [(bytes[..50_000].to_vec(), true), (vec![0x55; 50_000], false)] {
        let web = no_ranges(0);
        let dir = tempfile::tempdir().expect("a directory");
        let file = place(dir.path(), &web, &digest);
        fs::write(&file, partial).expect("written");
        if !good {
            let (artifacts, mut woken) = open_with(dir.path(), usual).await;
            let failure = support::image(&artifacts, &mut woken, "vm", source(&web)).await;
            let failure = failure.expect_err("garbage");
            assert_eq!((failure.reason.as_str(), failure.terminal), ("Unavailable", false));
            assert!(failure.message.contains("damaged"), "{failure:?}");
            assert!(!file.exists());
            artifacts.shutdown().await;
        }
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let disk = support::image(&artifacts, &mut woken, "vm", source(&web)).await;
        whole(&disk.expect("pulled"));
        let asked = ranges(&web, &digest);
        assert_eq!(asked[..2], [Some(50_000), None]);
        assert_eq!(asked.len(), if good { 2 } else { 3 });
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_range_that_nobody_asked_for_is_an_error_like_any_other() {
    let image = Image::usual();
    let digest = image.layer(1).0;
    let wanted = digest.clone();
    let web = image.serve(move |request| is_blob(request, &wanted).then(|| Reply::new(416)));
    let failure = pull(&web).await.expect_err("no blob");
    assert_eq!((failure.reason.as_str(), failure.terminal), ("UnsupportedFormat", true));
    assert!(
        failure
            .message
            .contains("the server answered 416 Range Not Satisfiable"),
        "{failure:?}"
    );
    assert_eq!(ranges(&web, &digest), [None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn h62_a_partial_download_with_other_bytes_is_found_out_and_thrown_away() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let web = image.serve(|_| None);
    // Such that the content is found broken at once, and such that only the digest tells.
    let mut late = bytes[..bytes.len() - 1].to_vec();
    *late.last_mut().unwrap() ^= 1;
    for partial in [vec![0x55; 50_000], late] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(place(dir.path(), &web, &digest), partial).unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Unavailable", false),
            "{failure:?}"
        );
        assert!(failure.message.contains("damaged"), "{failure:?}");
        assert!(artifacts.inventory().await.is_empty());
        artifacts.shutdown().await;
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        whole(
            &support::image(&artifacts, &mut woken, "vm", source(&web))
                .await
                .unwrap(),
        );
        artifacts.shutdown().await;
    }
}

/// The image with another size for its large layer in the manifest.
fn lying(image: &Image, size: usize) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).expect("JSON");
    manifest["layers"][1]["size"] = size.into();
    Image {
        manifest: serde_json::to_vec(&manifest).expect("JSON"),
        blobs: image.blobs.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_about_a_size_changes_nothing_of_a_blob_that_others_read() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    for size in [10, bytes.len() + 1000] {
        // As a server would that is in league with the manifest.
        let (wanted, mut longer) = (digest.clone(), bytes.clone());
        longer.resize(bytes.len() + 1000, 7);
        let now = Arc::new(Mutex::new(lying(&image, size)));
        let served = now.clone();
        let web = Web::start(move |request| match is_blob(request, &wanted) {
            true => Reply::ranged(request, &longer),
            false => served.lock().expect("no panic").answer(request),
        });
        let dir = tempfile::tempdir().expect("a directory");
        let file = place(dir.path(), &web, &digest);
        fs::write(&file, &bytes).expect("written");
        let reader = fs::File::open(&file).expect("opened");
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let failure = support::image(&artifacts, &mut woken, "liar", source(&web))
            .await
            .expect_err("a lie");
        assert_eq!(failure.reason, "Malformed", "{failure:?}");
        assert!(failure.message.contains(&format!("says {size}")), "{failure:?}");
        let mut read = vec![0; bytes.len()];
        reader.read_exact_at(&mut read, 0).expect("all is there");
        assert!(read == bytes && reader.metadata().expect("its size").len() == bytes.len() as u64);
        *now.lock().expect("no panic") = image.clone();
        let disk = support::image(&artifacts, &mut woken, "honest", source(&web)).await;
        whole(&disk.expect("the blob is here"));
        assert_eq!(ranges(&web, &digest), [], "it is still there");
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_download_that_is_too_long_is_begun_anew_beside_those_who_read_it() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let web = image.serve(|_| None);
    let dir = tempfile::tempdir().expect("a directory");
    let file = place(dir.path(), &web, &digest);
    let garbage = vec![0x55; bytes.len() + 1];
    fs::write(&file, &garbage).expect("written");
    let reader = fs::File::open(&file).expect("opened");
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let disk = support::image(&artifacts, &mut woken, "vm", source(&web)).await;
    whole(&disk.expect("pulled"));
    let mut read = vec![0; garbage.len()];
    reader.read_exact_at(&mut read, 0).expect("all is there");
    assert!(read == garbage);
    assert_eq!(ranges(&web, &digest), [None]);
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h62_a_download_is_resumed_by_the_next_process() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let half = bytes.len() / 2;
    let web = faulty(&image, 1, move |reply| reply.fault(Fault::Stall(half)));
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(&web),
        digest: Some(image.digest()),
        credentials: Vec::new(),
    };
    loop {
        let state = artifacts.ensure_image(&who, want.clone()).await;
        let State::Waiting(waiting) = state else {
            panic!("{state:?}")
        };
        if waiting.done_bytes >= half as u64 {
            break;
        }
        tokio::task::yield_now().await;
    }
    artifacts.shutdown().await;
    let (artifacts, mut woken_again) = open_with(dir.path(), |_| ()).await;
    whole(
        &support::image(&artifacts, &mut woken_again, "vm", source(&web))
            .await
            .unwrap(),
    );
    let asked = ranges(&web, &digest);
    assert!(matches!(asked[..], [None, Some(from)] if from >= half), "{asked:?}");
    assert!(woken.try_recv().is_err());
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_server_that_heals_are_outlived() {
    let image = Image::usual();
    for status in [500, 502, 503, 504, 408] {
        let web = faulty(&image, 2, move |_| Reply::new(status));
        pull(&web).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_server_that_does_not_heal_are_told_and_tried_again_later() {
    let image = Image::usual();
    let web = faulty(&image, usize::MAX, |_| Reply::new(503));
    let failure = pull(&web).await.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("Unavailable", false),
        "{failure:?}"
    );
    assert!(
        failure.message.contains("503") && failure.message.contains(&web.address),
        "{failure:?}"
    );
    assert!(ranges(&web, &image.layer(1).0).len() <= 4, "no storm");
    let web = image.serve(|request| request.path.contains("manifests").then(|| Reply::new(500)));
    let failure = pull(&web).await.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("Unavailable", false),
        "{failure:?}"
    );
    // Nobody there at all.
    let gone = image.serve(|_| None);
    let was = source(&gone);
    drop(gone);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let failure = support::image(&artifacts, &mut woken, "vm", was).await.unwrap_err();
    assert_eq!(failure.reason, "Unavailable", "{failure:?}");
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_retry_after_is_waited_for_bounded_and_by_all_pulls_of_the_registry() {
    let image = Image::usual();
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(900));
    for (value, least, most) in [
        (Some("120".to_owned()), 118, 125),
        (Some(date), 890, 905),
        (Some("1000000000".to_owned()), 3590, 3605),
        (Some("soon".to_owned()), 8, 12),
        (None, 8, 12),
    ] {
        let web = image.serve(move |request| {
            let limited = || {
                let reply = Reply::new(429);
                value
                    .as_ref()
                    .map_or(reply.clone(), |value| reply.header("retry-after", value))
            };
            request.path.contains("/app/").then(limited)
        });
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        let wait = failure
            .retry_at
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .as_secs();
        assert_eq!((failure.reason.as_str(), failure.terminal), ("RateLimited", false));
        assert!((least..=most).contains(&wait), "{wait} s: {failure:?}");
        if least > 100 {
            let other = Source::Oci {
                reference: format!("{}/other:latest", web.address),
                platform: None,
            };
            let want = ResolveWant {
                source: other,
                credentials: Vec::new(),
            };
            let state = artifacts.resolve(&Interest("other".into()), want).await;
            let held = matches!(&state, State::Waiting(w) if matches!(w.phase, Phase::BackingOff { .. }));
            assert!(held, "{state:?}");
            assert_eq!(web.count("/other/"), 0);
        }
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_asked_for_as_they_are_and_refused_with_a_content_encoding() {
    let image = Image::usual();
    let parts = ["/manifests/", "/token", &image.blobs[0].0, &image.layer(1).0];
    for part in parts {
        let (answers, encoded) = (image.clone(), part.to_owned());
        let web = image.serve(move |request| {
            let reply = behind_a_token(request).unwrap_or_else(|| answers.answer(request));
            let encodes = request.path.contains(&encoded) && reply.is(200);
            Some(if encodes {
                reply.header("content-encoding", "gzip")
            } else {
                reply
            })
        });
        let failure = pull(&web).await.expect_err(part);
        assert_eq!((failure.reason.as_str(), failure.terminal), ("UnsupportedFormat", true));
        assert!(failure.message.contains("with Content-Encoding gzip"), "{failure:?}");
        for request in web.log().iter().filter(|request| request.path != "/v2/") {
            assert_eq!(request.header("accept-encoding"), Some("identity"), "{}", request.path);
        }
    }
    let web = image.serve({
        let image = image.clone();
        move |request| Some(image.answer(request).header("content-encoding", "Identity"))
    });
    pull(&web).await.expect("that is none");
}

fn build(web: &Web, dir: &Path) -> FileBuild {
    FileBuild {
        reference: format!("{}/app:latest", web.address),
        output: dir.join("disk.img"),
        replace: false,
        size: None,
        platform: Some("linux/amd64".into()),
        credentials: Vec::new(),
        registries: Default::default(),
        limits: Limits::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_built_without_a_store_waits_for_a_registry_that_asks_for_time() {
    let image = Image::usual();
    let parts = ["/manifests/".to_owned(), image.blobs[0].0.clone(), image.layer(1).0];
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    let mut builds = Vec::new();
    for part in parts {
        for (status, after) in [(429, Some("1")), (429, Some(&*date)), (429, None), (503, Some("1"))] {
            let (place, so_far, after) = (part.clone(), AtomicUsize::new(0), after.map(str::to_owned));
            let web = image.serve(move |request| {
                let first = request.path.contains(&place) && so_far.fetch_add(1, Ordering::SeqCst) == 0;
                let reply = first.then(|| Reply::new(status))?;
                Some(
                    after
                        .iter()
                        .fold(reply, |reply, after| reply.header("retry-after", after)),
                )
            });
            let part = part.clone();
            builds.push(async move {
                let dir = tempfile::tempdir().expect("a directory");
                let progress = Progress::default();
                let building = tokio::spawn(build_image_file(
                    build(&web, dir.path()),
                    progress.clone(),
                    CancellationToken::new(),
                ));
                while !building.is_finished() && !progress.stage().starts_with("waiting") {
                    tokio::task::yield_now().await;
                }
                let said = progress.stage();
                let disk = building.await.expect("no panic").expect("built");
                assert!(said.ends_with("s, as the registry asks"), "{said}");
                whole(&disk);
                let asked = web
                    .log()
                    .into_iter()
                    .filter(|r| r.method == "GET" && r.path.contains(&part));
                assert_eq!(asked.count(), 2, "{part} {status}");
            });
        }
    }
    futures::future::join_all(builds).await;
    // Longer than anybody waits before a terminal.
    let web = image.serve(|request| {
        let manifest = request.path.contains("/manifests/");
        manifest.then(|| Reply::new(429).header("retry-after", "121"))
    });
    let dir = tempfile::tempdir().expect("a directory");
    let error = build_image_file(build(&web, dir.path()), Progress::default(), CancellationToken::new()).await;
    let error = error.expect_err("too long");
    assert!(error.message.contains("it asks for 121 s"), "{error}");
    assert_eq!(web.count("/manifests/"), 1);
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

/// A registry that is asked for a token first.
fn behind_a_token(request: &Request) -> Option<Reply> {
    if request.path.starts_with("/token") {
        return Some(Reply::new(200).body(b"{\"token\":\"t\"}"));
    }
    let host = request.header("host").unwrap_or_default();
    let challenge = format!("Bearer realm=\"http://{host}/token\"");
    let let_in = request.path == "/v2/" || request.header("authorization") == Some("Bearer t");
    (!let_in).then(|| Reply::new(401).header("www-authenticate", &challenge))
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_retry_after_counts_wherever_in_a_pull_it_is_said() {
    let image = Image::usual();
    let (large, bytes) = image.layer(1);
    let blob = format!("/blobs/{large}");
    for (part, status, reason) in [
        ("/token", 429, "RateLimited"),
        ("/token", 503, "Unavailable"),
        ("/manifests/", 503, "Unavailable"),
        (&*blob, 429, "RateLimited"),
        (&*blob, 503, "Unavailable"),
        // In the middle of it, when the rest is asked for.
        ("rest", 429, "RateLimited"),
        ("rest", 503, "Unavailable"),
    ] {
        let (digest, body, place) = (large.clone(), bytes.clone(), part.to_owned());
        let healed = Arc::new(AtomicBool::new(false));
        let heals = healed.clone();
        let web = image.serve(move |request| {
            if heals.load(Ordering::SeqCst) {
                return None;
            }
            let limited = match &*place {
                "rest" => is_blob(request, &digest) && request.from().is_some(),
                part => request.path.contains(part),
            };
            if limited {
                return Some(Reply::new(status).header("retry-after", "120"));
            }
            let cut = place == "rest" && is_blob(request, &digest) && request.header("authorization").is_some();
            let cut = cut.then(|| Reply::new(200).body(&body).fault(Fault::Cut(100_000)));
            cut.or_else(|| behind_a_token(request))
        });
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        let place = format!("{part} {status}: {failure:?}");
        assert_eq!((failure.reason.as_str(), failure.terminal), (reason, false), "{place}");
        let wait = failure.retry_at.duration_since(SystemTime::now()).unwrap_or_default();
        assert!((110..=125).contains(&wait.as_secs()), "{place}");
        assert!(failure.message.contains(&status.to_string()), "{place}");
        // It is not asked again, neither for this nor for anything else.
        let refused = web.answers("").iter().filter(|(_, said)| *said == status).count();
        assert_eq!(refused, 1, "{place}");
        let want = ResolveWant {
            source: Source::Oci {
                reference: format!("{}/other:latest", web.address),
                platform: None,
            },
            credentials: Vec::new(),
        };
        let state = artifacts.resolve(&Interest("other".into()), want).await;
        let held = matches!(&state, State::Waiting(w) if matches!(w.phase, Phase::BackingOff { .. }));
        assert!(held && web.count("/other/") == 0, "{place}: {state:?}");
        artifacts.shutdown().await;
        assert_eq!(fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
        if part != "rest" {
            continue;
        }
        // What came before is there when the time has come.
        let before = ranges(&web, &large).len();
        healed.store(true, Ordering::SeqCst);
        let (artifacts, mut woken) = open_with(dir.path(), usual).await;
        let disk = support::image(&artifacts, &mut woken, "vm", source(&web)).await;
        whole(&disk.unwrap());
        assert!(ranges(&web, &large)[before].is_some_and(|from| from > 0));
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_retry_after_said_to_one_who_asks_for_what_is_here_already_is_kept_too() {
    let image = Image::usual();
    let web = image.serve(|request| {
        let head = request.method == "HEAD";
        head.then(|| Reply::new(429).header("retry-after", "120"))
            .or_else(|| behind_a_token(request))
    });
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let want = |credentials| ImageWant {
        source: source(&web),
        digest: Some(image.digest()),
        credentials,
    };
    let first = want(vec![credential(&web, "one")]);
    support::wanted(&artifacts, &mut woken, &Interest("first".into()), &first)
        .await
        .unwrap();
    let second = want(vec![credential(&web, "two")]);
    let failure = support::wanted(&artifacts, &mut woken, &Interest("second".into()), &second)
        .await
        .unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("RateLimited", false));
    let wait = failure.retry_at.duration_since(SystemTime::now()).unwrap_or_default();
    assert!((110..=125).contains(&wait.as_secs()), "{failure:?}");
    // Who has it keeps it.
    support::wanted(&artifacts, &mut woken, &Interest("first".into()), &first)
        .await
        .unwrap();
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_transfer_that_stands_still_is_given_up_by_the_name_of_its_limit_and_frees_its_slot() {
    let image = Image::usual();
    for fault in [Fault::Silence, Fault::Stall(0)] {
        let web = faulty(&image, usize::MAX, move |reply| reply.fault(fault));
        let dir = tempfile::tempdir().unwrap();
        let (wake, mut woken) = tokio::sync::mpsc::channel(16);
        let mut config = Config::new(dir.path().join("artifacts"));
        (config.max_parallel_pulls, config.limits.stall_timeout) = (1, SHORT);
        let artifacts = Artifacts::open(config, wake).await.unwrap();
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Stalled", false),
            "{failure:?}"
        );
        let said = failure.message.ends_with(": no data for 1 s (--stall-timeout)");
        assert!(said, "{failure:?}");
        let good = Image::of(&[(Tar::new().done(), gzip(&Tar::new().done()))]);
        let good_web = good.serve(|_| None);
        support::image(&artifacts, &mut woken, "other", source(&good_web))
            .await
            .unwrap();
        artifacts.shutdown().await;
    }
    // Before the manifest, too.
    let web = image.serve(|request| {
        request
            .path
            .contains("manifests")
            .then(|| Reply::new(200).fault(Fault::Silence))
    });
    let failure = pull_with(&web, impatient).await.unwrap_err();
    assert_eq!(failure.reason, "Stalled");
    assert!(
        failure.message.ends_with(": no data for 1 s (--stall-timeout)"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_with_each_connection_is_a_stall_too_and_no_storm_of_requests() {
    let image = Image::usual();
    for orderly in [true, false] {
        let (digest, bytes) = image.layer(1);
        let (wanted, so_far) = (digest.clone(), AtomicUsize::new(0));
        let web = image.serve(move |request| {
            // In the end it gives in, so that this test ends also where nobody gives up.
            if !is_blob(request, &wanted) || so_far.fetch_add(1, Ordering::SeqCst) > 30 {
                return None;
            }
            let from = request.from().unwrap_or(0);
            if !orderly {
                return Some(Reply::ranged(request, &bytes).fault(Fault::Cut(1)));
            }
            let range = format!("bytes {from}-{from}/{}", bytes.len());
            let status = if from == 0 { 200 } else { 206 };
            let reply = Reply::new(status).header("content-range", &range);
            Some(reply.body(&bytes[from..=from]))
        });
        let failure = pull_with(&web, impatient).await.expect_err("a stall");
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Stalled", false),
            "{failure:?}"
        );
        assert!(failure.message.contains("bytes came in"), "{failure:?}");
        let asked = ranges(&web, &digest).len();
        assert!((3..=9).contains(&asked), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stall_is_outlived() {
    let image = Image::usual();
    let web = faulty(&image, 1, |reply| reply.fault(Fault::Stall(1000)));
    pull_with(&web, impatient).await.unwrap();
    assert_eq!(ranges(&web, &image.layer(1).0), [None, Some(1000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn h48_content_with_another_digest_is_refused_with_both_digests_and_removed() {
    let image = Image::usual();
    let (digest, mut bytes) = image.layer(1);
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    let actual = vmlet_artifacts::reference::Digest::sha256(&bytes).to_string();
    let wanted = digest.clone();
    // A header that claims the right digest convinces nobody.
    let web = image.serve(move |request| {
        is_blob(request, &wanted).then(|| Reply::new(200).header("docker-content-digest", &wanted).body(&bytes))
    });
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
        .await
        .unwrap_err();
    // Although the stream is found broken before its end is reached.
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("WrongDigest", true),
        "{failure:?}"
    );
    assert!(
        failure.message.contains(&digest) && failure.message.contains(&actual),
        "{failure:?}"
    );
    assert!(!place(dir.path(), &web, &digest).exists());
    assert!(artifacts.inventory().await.is_empty());
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h48_h49_a_blob_longer_or_shorter_than_announced_is_refused_and_takes_no_more_room() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let mut longer = bytes.clone();
    longer.extend_from_slice(&vec![7; 500_000]);
    let wanted = digest.clone();
    let web = image.serve(move |request| is_blob(request, &wanted).then(|| Reply::new(200).body(&longer)));
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "TooLarge", "{failure:?}");
    assert!(!place(dir.path(), &web, &digest).exists());
    artifacts.shutdown().await;

    let wanted = digest.clone();
    let web = image.serve(move |request| {
        is_blob(request, &wanted).then(|| match request.from() {
            None => Reply::new(200).body(&bytes[..1000]),
            Some(_) => Reply::new(206).header("content-range", "bytes 1000-999/1000"),
        })
    });
    let failure = pull(&web).await.unwrap_err();
    assert_eq!(failure.reason, "Unavailable", "{failure:?}");
    assert!(failure.message.contains("ends it after 1000 of"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_images_share_is_downloaded_once() {
    let shared = Tar::new().file("shared", 0o644, b"shared\n").done();
    let shared = (shared.clone(), gzip(&shared));
    let images: Vec<Image> = (0..5u8)
        .map(|n| {
            let own = Tar::new().file("own", 0o644, &[n]).done();
            Image::of(&[shared.clone(), (own.clone(), gzip(&own))])
        })
        .collect();
    let all = images.clone();
    let web = Web::start(move |request| {
        let (n, rest) = request
            .path
            .strip_prefix("/v2/app")
            .and_then(|rest| rest.split_once('/'))
            .unwrap_or(("", ""));
        let plain = Request {
            path: format!("/v2/app/{rest}"),
            ..request.clone()
        };
        match n.parse::<usize>() {
            Ok(n) => all[n].answer(&plain),
            Err(_) => Reply::new(200),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), usual).await;
    for n in 0..images.len() {
        let source = Source::Oci {
            reference: format!("{}/app{n}:latest", web.address),
            platform: None,
        };
        support::image(&artifacts, &mut woken, &format!("vm-{n}"), source)
            .await
            .unwrap();
    }
    assert_eq!(ranges(&web, &images[0].layer(0).0).len(), 1);
    artifacts.shutdown().await;
}
