//! What registries do beyond failing once (rows of the fault matrix that `registry_faults`, `registry_auth`,
//! `registry_manifests`, `registry_mirrors` and `registry_tls` do not play): tokens over many pulls, trickles, bodies without
//! end, absurd manifests, twenty pulls at once.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::scripted::{Image, credential, open_with, source};
use support::web::{Fault, Reply, Request, Web};
use support::{MANIFEST, Tar, gzip, settle, zstd};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::types::*;

/// Long enough for a busy machine, short enough for a test.
const SHORT: Duration = Duration::from_secs(1);

fn small(content: &[u8]) -> Image {
    let tar = Tar::new().file("x", 0o644, content).done();
    Image::of(&[(tar.clone(), gzip(&tar))])
}

/// Pulls where there is one slot. A failure has freed it: another image is pulled then.
async fn pull_with(web: &Web, limits: impl FnOnce(&mut Limits)) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_slots(dir.path(), 1, limits).await;
    let result = support::image(&artifacts, &mut woken, "vm", source(web)).await;
    if result.is_err() {
        let good = small(b"good").serve(|_| None);
        support::image(&artifacts, &mut woken, "next", source(&good))
            .await
            .unwrap();
        assert_eq!(artifacts.inventory().await.len(), 1);
    }
    artifacts.shutdown().await;
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0);
    result
}

async fn open_slots(
    dir: &Path,
    slots: usize,
    limits: impl FnOnce(&mut Limits),
) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(64);
    let mut config = Config::new(dir.join("artifacts"));
    config.max_parallel_pulls = slots;
    config.platform = "linux/amd64".into();
    limits(&mut config.limits);
    (Artifacts::open(config, wake).await.unwrap(), woken)
}

/// `app0`, `app1`, ... with an image each; the first word is of `first`.
fn many(images: Vec<Image>, first: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Web {
    Web::start(move |request| {
        if let Some(reply) = first(request) {
            return reply;
        }
        let (n, rest) = request
            .path
            .strip_prefix("/v2/app")
            .and_then(|rest| rest.split_once('/'))
            .unwrap_or(("", ""));
        let path = format!("/v2/app/{rest}");
        match n.parse::<usize>() {
            Ok(n) => images[n].answer(&Request {
                path,
                ..request.clone()
            }),
            Err(_) => Reply::new(200),
        }
    })
}

fn nth(web: &Web, n: usize) -> Source {
    Source::Oci {
        reference: format!("{}/app{n}:latest", web.address),
        platform: None,
    }
}

/// A registry whose token server says this beside the token.
fn with_tokens(image: &Image, more: &'static str) -> Web {
    let issued = AtomicUsize::new(0);
    image.serve(move |request| {
        if request.path.starts_with("/token") {
            let n = issued.fetch_add(1, Ordering::SeqCst);
            return Some(Reply::new(200).body(format!("{{\"token\":\"t{n}\"{more}}}").as_bytes()));
        }
        let sent = request.header("authorization").unwrap_or_default();
        if request.path == "/v2/" || sent.starts_with("Bearer t") {
            return None;
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        Some(Reply::new(401).header("www-authenticate", &challenge))
    })
}

/// Resolves and pulls, as two jobs.
async fn resolve_and_pull(image: &Image, web: &Web, credentials: Vec<Credential>) {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let who = Interest("image".into());
    let want = ResolveWant {
        source: source(web),
        credentials: credentials.clone(),
    };
    settle(&mut woken, || artifacts.resolve(&who, want.clone()))
        .await
        .unwrap();
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(web),
        digest: Some(image.digest()),
        credentials,
    };
    support::wanted(&artifacts, &mut woken, &who, &want).await.unwrap();
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_token_is_kept_until_it_expires_also_from_one_pull_to_the_next() {
    let image = small(b"x");
    for more in [
        "",
        ",\"expires_in\":300",
        ",\"expires_in\":3600,\"issued_at\":\"2015-01-01T00:00:00Z\"",
    ] {
        let web = with_tokens(&image, more);
        resolve_and_pull(&image, &web, vec![credential(&web, "right")]).await;
        assert_eq!(web.count("/token"), 1, "{more}");
    }
    // A life shorter than a request takes: each job may need its own.
    let web = with_tokens(&image, ",\"expires_in\":1");
    resolve_and_pull(&image, &web, Vec::new()).await;
    assert!(web.count("/token") > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_token_is_not_lent_to_those_who_have_another_login() {
    let image = small(b"x");
    let web = with_tokens(&image, "");
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    for (n, credentials) in [vec![credential(&web, "one")], vec![credential(&web, "two")], vec![]]
        .into_iter()
        .enumerate()
    {
        let who = Interest(format!("asker {n}"));
        let want = ResolveWant {
            source: source(&web),
            credentials,
        };
        settle(&mut woken, || artifacts.resolve(&who, want.clone()))
            .await
            .unwrap();
        assert_eq!(web.count("/token"), n + 1);
    }
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_server_that_fails_every_other_time_is_outlived() {
    let image = Image::usual();
    let seen = AtomicUsize::new(0);
    let web = image.serve(move |request| {
        let odd = request.path != "/v2/" && seen.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        odd.then(|| Reply::new(503))
    });
    pull_with(&web, |_| ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_head_or_a_body_that_comes_byte_by_byte_is_given_up_and_frees_its_slot() {
    let image = small(b"x");
    for part in ["/manifests/", "/blobs/"] {
        let shown = image.clone();
        let web = image.serve(move |request| {
            let trickle = Fault::Trickle(Duration::from_millis(50));
            request
                .path
                .contains(part)
                .then(|| shown.answer(request).fault(trickle))
        });
        let failure = pull_with(&web, |limits| limits.stall_timeout = SHORT)
            .await
            .unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Stalled", false),
            "{failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_token_a_manifest_or_a_configuration_that_does_not_come_is_given_up_too() {
    let image = small(b"x");
    let config = image.blobs[0].0.clone();
    let pulls = ["/token", "/manifests/", &config].map(|part| {
        let (shown, silent) = (image.clone(), part.to_owned());
        let web = image.serve(move |request| match request.path.contains(&silent) {
            // Half of it comes, and no more.
            true if silent != "/token" => Some(shown.answer(request).fault(Fault::Stall(20))),
            true => Some(Reply::new(200).fault(Fault::Silence)),
            false if silent == "/token" && request.path != "/v2/" => {
                let host = request.header("host").unwrap_or_default();
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
                Some(Reply::new(401).header("www-authenticate", &challenge))
            }
            false => None,
        });
        async move {
            let pulled = pull_with(&web, |limits| limits.stall_timeout = SHORT).await;
            (pulled.unwrap_err(), web)
        }
    });
    for (failure, web) in futures::future::join_all(pulls).await {
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Stalled", false),
            "{failure:?}"
        );
        assert!(web.log().len() <= 8, "no storm: {:?}", web.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_while_one_pull_stands_still_the_others_go_on() {
    let stuck = Image::usual();
    let (digest, bytes) = stuck.layer(1);
    for fault in [Fault::Silence, Fault::Stall(1000)] {
        let (wanted, body) = (digest.clone(), bytes.clone());
        let (asked, told) = tokio::sync::oneshot::channel();
        let asked = std::sync::Mutex::new(Some(asked));
        let web = stuck.serve(move |request| {
            if !request.path.ends_with(&wanted) {
                return None;
            }
            asked.lock().unwrap().take().map(|asked| asked.send(()));
            Some(Reply::new(200).body(&body).fault(fault))
        });
        let dir = tempfile::tempdir().unwrap();
        // Nothing is given up in the time of a test.
        let (artifacts, mut woken) = open_slots(dir.path(), 2, |limits| limits.stall_timeout = 100 * SHORT).await;
        let who = Interest("stuck".into());
        let want = ImageWant {
            source: source(&web),
            digest: Some(stuck.digest()),
            credentials: Vec::new(),
        };
        assert!(matches!(
            artifacts.ensure_image(&who, want.clone()).await,
            State::Waiting(_)
        ));
        told.await.unwrap();
        for n in 0..3u8 {
            let other = small(&[n]).serve(|_| None);
            let name = format!("other {n}");
            support::image(&artifacts, &mut woken, &name, source(&other))
                .await
                .unwrap();
        }
        let state = artifacts.ensure_image(&who, want).await;
        assert!(
            matches!(&state, State::Waiting(waiting) if matches!(waiting.phase, Phase::Running)),
            "{state:?}"
        );
        // And it ends when nobody wants it any more, however long the server would be silent.
        artifacts.release(&who).await;
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d11_a_body_without_end_is_cut_at_its_size() {
    let image = small(b"x");
    let digests = [image.blobs[0].0.clone(), image.blobs[1].0.clone()];
    for part in ["/manifests/", "/token", &digests[0], &digests[1]] {
        let part = part.to_owned();
        let web = image.serve(move |request| {
            if request.path.contains(&part) {
                return Some(Reply::new(200).body(&[b' '; 8192]).fault(Fault::Endless));
            }
            if part == "/token" && request.path != "/v2/" {
                let host = request.header("host").unwrap_or_default();
                let challenge = format!("Bearer realm=\"http://{host}/token\"");
                return Some(Reply::new(401).header("www-authenticate", &challenge));
            }
            None
        });
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        assert_eq!(failure.reason, "TooLarge", "{failure:?}");
        artifacts.shutdown().await;
        let blobs = std::fs::read_dir(dir.path().join("artifacts/blobs")).unwrap();
        let kept: u64 = blobs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= image.blobs[1].1.len() as u64, "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_a_manifest_with_very_many_layers_is_refused() {
    let image = small(b"x");
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let layer = manifest["layers"][0].clone();
    for (layers, reason) in [(513, "TooLarge"), (20_000, "TooLarge"), (100_000, "TooLarge")] {
        manifest["layers"] = serde_json::Value::Array(vec![layer.clone(); layers]);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let web = image.serve(move |request| {
            let reply = || Reply::new(200).header("content-type", MANIFEST).body(&bytes);
            request.path.contains("manifests").then(reply)
        });
        let failure = pull_with(&web, |_| ()).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            (reason, true),
            "{layers}: {failure:?}"
        );
        assert_eq!(web.count("/blobs/"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d18_twenty_images_that_are_pulled_together_download_a_shared_blob_once() {
    let shared = Tar::new().file("shared", 0o644, &[7; 100_000]).done();
    let shared = (shared.clone(), gzip(&shared));
    let images: Vec<Image> = (0..20u8)
        .map(|n| {
            let own = Tar::new().file("own", 0o644, &[n]).done();
            Image::of(&[shared.clone(), (own.clone(), gzip(&own))])
        })
        .collect();
    let digest = images[0].layer(0).0;
    let web = many(images.clone(), |_| None);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_slots(dir.path(), 20, |_| ()).await;
    let wants: Vec<_> = (0..20)
        .map(|n| {
            let want = ImageWant {
                source: nth(&web, n),
                digest: Some(images[n].digest()),
                credentials: Vec::new(),
            };
            (Interest(format!("vm-{n}")), want)
        })
        .collect();
    let all = async {
        loop {
            let mut ready = 0;
            for (who, want) in &wants {
                match artifacts.ensure_image(who, want.clone()).await {
                    State::Ready(_) => ready += 1,
                    State::Waiting(_) => {}
                    State::Failed(failure) => panic!("{failure:?}"),
                }
            }
            if ready == wants.len() {
                return;
            }
            woken.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
    // The others only ask whether they may have it.
    let asked = |method: &str| {
        let log = web.log();
        log.iter()
            .filter(|r| r.method == method && r.path.ends_with(&digest))
            .count()
    };
    assert_eq!((asked("GET"), asked("HEAD")), (1, 19));
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d20_layers_with_corrupt_tails_or_garbage_behind_are_refused_and_leave_nothing() {
    let tar = Tar::new().file("x", 0o644, &[1; 50_000]).done();
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 6].to_vec();
    let flipped = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 6;
        bytes[at] ^= 0x40;
        bytes
    };
    let checked = |bytes: &[u8]| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    for blob in [
        cut(gzip(&tar)),
        flipped(gzip(&tar)),
        [gzip(&tar), b"garbage".to_vec()].concat(),
        gzip(&gzip(&tar)),
        cut(zstd(&tar)),
        flipped(checked(&tar)),
        [zstd(&tar), b"garbage".to_vec()].concat(),
    ] {
        let web = Image::of(&[(tar.clone(), blob)]).serve(|_| None);
        let failure = pull_with(&web, |_| ()).await.unwrap_err();
        assert!(
            failure.terminal && ["Malformed", "WrongDigest"].contains(&failure.reason.as_str()),
            "{failure:?}"
        );
    }
    // A window of nearly 4 TiB, and one just beyond the bound: in the head of a frame of one block.
    for window in [31 << 3 | 7, 18 << 3] {
        let block = (1 | (tar.len() as u32) << 3).to_le_bytes();
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, window], &block[..3], &tar].concat();
        let web = Image::of(&[(tar.clone(), frame)]).serve(|_| None);
        let failure = pull_with(&web, |_| ()).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("TooLarge", true),
            "{failure:?}"
        );
        assert!(failure.message.contains("window"), "{failure:?}");
    }
    // And those that look odd and are not: several members, and a media type that says otherwise.
    let half = tar.len() / 2;
    let members = [gzip(&tar[..half]), gzip(&tar[half..])].concat();
    for blob in [members, zstd(&tar), tar.clone()] {
        let web = Image::of(&[(tar.clone(), blob)]).serve(|_| None);
        pull_with(&web, |_| ()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d21_a_bomb_stops_at_the_bound_and_frees_its_slot() {
    let zeros = Tar::new().file("zeros", 0o644, &vec![0; 32 << 20]).done();
    for blob in [zstd(&zeros), gzip(&zeros)] {
        assert!(blob.len() < 1 << 20, "{}", blob.len());
        let web = Image::of(&[(zeros.clone(), blob)]).serve(|_| None);
        let failure = pull_with(&web, |limits| limits.uncompressed_bytes = 1 << 20)
            .await
            .unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("TooLarge", true),
            "{failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d23_the_life_of_a_token_does_not_hang_on_what_its_server_thinks_of_the_time() {
    let image = small(b"x");
    for more in [
        ",\"expires_in\":0",
        ",\"expires_in\":-1",
        ",\"expires_in\":9223372036854775807",
        ",\"expires_in\":300,\"issued_at\":\"2040-01-01T00:00:00Z\"",
        ",\"expires_in\":300,\"issued_at\":\"1990-01-01T00:00:00Z\"",
    ] {
        let web = with_tokens(&image, more);
        resolve_and_pull(&image, &web, Vec::new()).await;
        assert_eq!(web.count("/token"), 1, "{more}");
    }
}
