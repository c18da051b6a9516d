//! Mirrors: who is asked in which order, and what happens when one of them fails or lies (matrix row D22).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use base64::Engine as _;
use support::scripted::{Image, credential, open_with_registries, source};
use support::web::{Fault, Reply, Request, Web};
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::authfile::Authfile;
use vmlet_artifacts::pipeline::{FileBuild, build_image_file};
use vmlet_artifacts::pulls::work::Progress;
use vmlet_artifacts::registry::config::Registries;
use vmlet_artifacts::types::*;

fn small() -> Image {
    let tar = support::Tar::new().file("x", 0o644, b"x\n").done();
    let other = support::Tar::new().file("y", 0o644, b"y\n").done();
    Image::of(&[
        (tar.clone(), support::gzip(&tar)),
        (other.clone(), support::gzip(&other)),
    ])
}

/// A configuration that puts these mirrors before a registry.
fn mirrored(origin: &Web, mirrors: &[(&Web, &str)]) -> Registries {
    let mut text = format!("[[registry]]\nlocation = \"{}\"\n", origin.address);
    for (mirror, more) in mirrors {
        text.push_str(&format!(
            "[[registry.mirror]]\nlocation = \"{}\"\n{more}\n",
            mirror.address
        ));
    }
    Registries::parse(Path::new("registries.conf"), &text).unwrap()
}

/// Resolves the tag and pulls what it means.
async fn pull(origin: &Web, registries: Registries, credentials: Vec<Credential>) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(origin),
        digest: None,
        credentials,
    };
    let result = support::wanted(&artifacts, &mut woken, &who, &want).await;
    artifacts.shutdown().await;
    result
}

fn build(origin: &Web, registries: Registries, dir: &Path) -> FileBuild {
    FileBuild {
        reference: format!("{}/app:latest", origin.address),
        output: dir.join("disk"),
        replace: true,
        size: None,
        platform: Some("linux/amd64".into()),
        credentials: Vec::new(),
        registries,
        limits: Limits::default(),
    }
}

/// What was asked for beyond the question whether this is plain HTTP.
fn asked(web: &Web) -> usize {
    web.log().iter().filter(|request| request.path != "/v2/").count()
}

fn manifests(web: &Web) -> usize {
    web.count("/manifests/")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_mirror_that_has_it_gives_everything_and_nobody_else_is_asked() {
    let image = small();
    let (first, second, origin) = (image.serve(|_| None), image.serve(|_| None), image.serve(|_| None));
    pull(&origin, mirrored(&origin, &[(&first, ""), (&second, "")]), Vec::new())
        .await
        .unwrap();
    assert!(asked(&first) >= 4);
    assert_eq!((asked(&second), asked(&origin)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_has_its_repositories_below_a_path() {
    let image = small();
    let plain = image.clone();
    let mirror = Web::start(move |request| {
        let path = request.path.replace("/v2/hub/app/", "/v2/app/");
        if path == request.path && path != "/v2/" {
            return Reply::new(404);
        }
        plain.answer(&Request {
            path,
            ..request.clone()
        })
    });
    let origin = image.serve(|_| None);
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}/hub\"\n",
        origin.address, mirror.address
    );
    let registries = Registries::parse(Path::new("registries.conf"), &text).unwrap();
    pull(&origin, registries, Vec::new()).await.unwrap();
    assert_eq!(asked(&origin), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_down_or_lacks_it_or_refuses_is_passed_over() {
    let image = small();
    for failing in [
        image.serve(|request| (request.path != "/v2/").then(|| Reply::new(404))),
        image.serve(|request| (request.path != "/v2/").then(|| Reply::new(503))),
        image.serve(|request| (request.path != "/v2/").then(|| Reply::new(403))),
        image.serve(|request| (request.path != "/v2/").then(|| Reply::new(429).header("retry-after", "60"))),
        image.serve(|request| (request.path != "/v2/").then(|| Reply::redirect("file:///etc/passwd"))),
        image.serve(|request| {
            request
                .path
                .contains("manifests")
                .then(|| Reply::new(200).body(b"<html>captive</html>"))
        }),
    ] {
        let origin = image.serve(|_| None);
        pull(&origin, mirrored(&origin, &[(&failing, "")]), Vec::new())
            .await
            .unwrap();
        assert!(asked(&failing) >= 1 && manifests(&origin) >= 1);
    }
    // Nobody there at all.
    let gone = image.serve(|_| None);
    let origin = image.serve(|_| None);
    let registries = mirrored(&origin, &[(&gone, "")]);
    drop(gone);
    pull(&origin, registries, Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_while_the_registry_itself_is_down() {
    let image = small();
    let (mirror, origin) = (image.serve(|_| None), image.serve(|_| None));
    let registries = mirrored(&origin, &[(&mirror, "")]);
    let was = source(&origin);
    drop(origin);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    support::image(&artifacts, &mut woken, "vm", was).await.unwrap();
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_each_is_named_with_what_it_said_and_the_registry_itself_decides() {
    let image = small();
    let mirror = image.serve(|request| (request.path != "/v2/").then(|| Reply::new(503)));
    let origin = image.serve(|request| (request.path != "/v2/").then(|| Reply::new(404)));
    let failure = pull(&origin, mirrored(&origin, &[(&mirror, "")]), Vec::new())
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "NotFound", "{failure:?}");
    assert!(
        !failure.terminal,
        "the mirror may have it when it is up again: {failure:?}"
    );
    let said = |host: &Web, what: &str| {
        failure
            .message
            .contains(&format!("{}: the server answered {what}", host.address))
    };
    assert!(said(&mirror, "503") && said(&origin, "404"), "{failure:?}");
    let mirror = image.serve(|request| (request.path != "/v2/").then(|| Reply::new(404)));
    let failure = pull(&origin, mirrored(&origin, &[(&mirror, "")]), Vec::new())
        .await
        .unwrap_err();
    assert!(failure.terminal, "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_of_a_mirror_is_found_out_by_its_digest_and_fetched_from_the_next() {
    let image = small();
    // A manifest that is asked for by digest.
    let lies = image.serve(|request| {
        request
            .path
            .contains("manifests/sha256")
            .then(|| Reply::new(200).body(b"{}"))
    });
    let origin = image.serve(|_| None);
    pull(
        &origin,
        mirrored(&origin, &[(&lies, "pull-from-mirror = \"digest-only\"")]),
        Vec::new(),
    )
    .await
    .unwrap();
    assert!(manifests(&lies) >= 1 && manifests(&origin) >= 1);
    // A configuration, and a layer: right size, too long, garbage from the start.
    for (at, change) in [(0, 0), (1, 0), (1, 1), (2, 2)] {
        let (digest, good) = image.blobs[at].clone();
        let mut bad = good.clone();
        match change {
            0 => *bad.last_mut().unwrap() ^= 1,
            1 => bad.extend_from_slice(b"more"),
            _ => bad.fill(0x55),
        }
        let wanted = digest.clone();
        let lies = image.serve(move |request| request.path.ends_with(&wanted).then(|| Reply::new(200).body(&bad)));
        let origin = image.serve(|_| None);
        let dir = tempfile::tempdir().unwrap();
        let disk = build_image_file(
            build(&origin, mirrored(&origin, &[(&lies, "")]), dir.path()),
            Progress::default(),
            CancellationToken::new(),
        );
        support::check(&disk.await.unwrap().path);
        assert_eq!(lies.count(&digest), 1, "it is not asked for it again");
        assert_eq!(origin.count(&digest), 1, "{at} {change}");
        assert_eq!(manifests(&origin), 0, "what is right is taken from the mirror");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tries_again_soon_when_a_mirror_had_wrong_content() {
    let image = small();
    let (digest, mut bad) = image.layer(0);
    *bad.last_mut().unwrap() ^= 1;
    let wanted = digest.clone();
    let lies = image.serve(move |request| request.path.ends_with(&wanted).then(|| Reply::new(200).body(&bad)));
    let origin = image.serve(|_| None);
    let failure = pull(&origin, mirrored(&origin, &[(&lies, "")]), Vec::new())
        .await
        .unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("WrongDigest", false),
        "{failure:?}"
    );
    assert!(
        failure.message.contains(&format!("the mirror {}", lies.address)),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_mirror_breaks_off_is_resumed_at_the_next() {
    let image = Image::usual();
    let (digest, bytes) = image.layer(1);
    let wanted = digest.clone();
    let first = AtomicBool::new(true);
    // It gives some, and then nothing any more.
    let mirror = image.serve(move |request| {
        let mine = request.path.ends_with(&wanted);
        let fault = if first.swap(!mine && first.load(Ordering::SeqCst), Ordering::SeqCst) {
            100_000
        } else {
            0
        };
        mine.then(|| Reply::ranged(request, &bytes).fault(Fault::Cut(fault)))
    });
    let origin = image.serve(|_| None);
    pull(&origin, mirrored(&origin, &[(&mirror, "")]), Vec::new())
        .await
        .unwrap();
    let from: Vec<_> = origin
        .log()
        .iter()
        .filter(|r| r.path.ends_with(&digest))
        .map(Request::from)
        .collect();
    assert!(matches!(from[..], [Some(from)] if from >= 65_536), "{from:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_one_host_asks_for_is_kept_while_the_others_are_asked() {
    let image = small();
    let limited = image.serve(|request| (request.path != "/v2/").then(|| Reply::new(429).header("retry-after", "600")));
    let origin = image.serve(|_| None);
    pull(&origin, mirrored(&origin, &[(&limited, "")]), Vec::new())
        .await
        .unwrap();
    assert_eq!(asked(&limited), 1);
    // And with all of them busy: the pull is tried again as usual, and the hosts are left alone.
    let busy = image.serve(|request| (request.path != "/v2/").then(|| Reply::new(429).header("retry-after", "600")));
    let failure = pull(&busy, mirrored(&busy, &[(&limited, "")]), Vec::new())
        .await
        .unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("RateLimited", false));
    let wait = failure
        .retry_at
        .duration_since(std::time::SystemTime::now())
        .unwrap_or_default();
    assert!(wait.as_secs() < 20, "{wait:?}");
}

fn basic(password: &str) -> String {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("me:{password}"));
    format!("Basic {login}")
}

fn private(image: &Image, password: &'static str) -> Web {
    image.serve(move |request| {
        let good = request.path == "/v2/" || request.header("authorization") == Some(&basic(password));
        (!good).then(|| Reply::new(401).header("www-authenticate", "Basic realm=\"registry\""))
    })
}

fn authfile(dir: &Path, host: &Web, password: &str) -> Authfile {
    let auths = serde_json::json!({ "auths": { &host.address: { "username": "me", "password": password } } });
    let path = dir.join("auth.json");
    std::fs::write(&path, auths.to_string()).unwrap();
    Authfile::read(&path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mirror_gets_the_logins_of_the_registry() {
    let image = small();
    let mirror = private(&image, "for nobody");
    let origin = private(&image, "right");
    // From the one who asks, also under the mirror's own name, and from the operator.
    let given = vec![credential(&origin, "right"), credential(&mirror, "pull secret")];
    pull(&origin, mirrored(&origin, &[(&mirror, "")]), given).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let registries = mirrored(&origin, &[(&mirror, "")]).with_authfile(authfile(dir.path(), &origin, "right"));
    pull(&origin, registries, Vec::new()).await.unwrap();
    assert!(asked(&mirror) >= 2);
    for request in mirror.log() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_the_operators_login_for_it() {
    let image = small();
    let mirror = private(&image, "mirror");
    let origin = image.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let registries = mirrored(&origin, &[(&mirror, "")]).with_authfile(authfile(dir.path(), &mirror, "mirror"));
    pull(&origin, registries, vec![credential(&origin, "other")])
        .await
        .unwrap();
    assert_eq!(asked(&origin), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_be_blocked() {
    let origin = small().serve(|_| None);
    let text = format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", origin.address);
    let registries = Registries::parse(Path::new("registries.conf"), &text).unwrap();
    let failure = pull(&origin, registries, Vec::new()).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.terminal), ("BadReference", true));
    assert!(
        failure.message.contains("registries.conf, line 1, blocks it"),
        "{failure:?}"
    );
    assert!(origin.log().is_empty());
}
