//! Who may use what is in the store already (KEP-2535): whoever could pull it, and nobody else.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use base64::Engine as _;
use support::scripted::{Image, credential, open_with, source};
use support::web::{Reply, Request, Web};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::registry::blob::file_name;
use vmlet_artifacts::types::*;

const LIMITS: fn(&mut Limits) = |_| ();

fn small() -> Image {
    let tar = support::Tar::new().file("x", 0o644, b"x\n").done();
    Image::of(&[(tar.clone(), support::gzip(&tar))])
}

fn basic(password: &str) -> String {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("me:{password}"));
    format!("Basic {login}")
}

/// A registry that wants one of these passwords, and none at all once it is `public`.
fn private(image: &Image, passwords: &'static [&'static str], public: &Arc<AtomicBool>) -> Web {
    let public = public.clone();
    image.serve(move |request| {
        let given = request.header("authorization");
        let good = passwords.iter().any(|password| given == Some(&basic(password)));
        let open = request.path == "/v2/" || public.load(Ordering::SeqCst);
        (!good && !open).then(|| Reply::new(401).header("www-authenticate", "Basic realm=\"registry\""))
    })
}

fn closed() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

struct Node {
    artifacts: Artifacts,
    woken: mpsc::Receiver<Interest>,
}

impl Node {
    async fn open(dir: &std::path::Path) -> Node {
        let (artifacts, woken) = open_with(dir, LIMITS).await;
        Node { artifacts, woken }
    }

    /// Asks for the image by its digest, as an agent does.
    async fn ask(&mut self, who: &str, web: &Web, password: Option<&str>) -> Result<Arc<ImageDisk>, Failure> {
        let want = ImageWant {
            source: source(web),
            digest: Some(small().digest()),
            credentials: password.map(|p| credential(web, p)).into_iter().collect(),
        };
        let who = Interest(who.into());
        support::wanted(&self.artifacts, &mut self.woken, &who, &want).await
    }
}

/// Requests beyond those before, as `METHOD path`, without the question whether this is plain HTTP.
fn since(web: &Web, before: usize) -> Vec<String> {
    let log = web.log();
    let asked = log[before..].iter().filter(|r| r.path != "/v2/");
    asked.map(|r| format!("{} {}", r.method, r.path)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_without_a_login_is_free_for_all_and_nobody_is_asked_again() {
    let web = small().serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    node.ask("first", &web, None).await.unwrap();
    let before = web.log().len();
    node.ask("second", &web, None).await.unwrap();
    node.ask("third", &web, Some("whatever")).await.unwrap();
    assert_eq!(web.log().len(), before);
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_for_another_registry_does_not_make_a_public_image_private() {
    let web = small().serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    let want = ImageWant {
        source: source(&web),
        digest: Some(small().digest()),
        credentials: vec![Credential {
            registry: "other.example".into(),
            ..credential(&web, "x")
        }],
    };
    let who = Interest("first".into());
    support::wanted(&node.artifacts, &mut node.woken, &who, &want)
        .await
        .unwrap();
    let before = web.log().len();
    node.ask("second", &web, None).await.unwrap();
    assert_eq!(web.log().len(), before);
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_that_is_here_is_given_to_those_whom_the_registry_lets_in_after_one_head() {
    let web = private(&small(), &["owner", "friend"], &closed());
    let manifest = format!("/v2/app/manifests/{}", small().digest());
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    node.ask("owner", &web, Some("owner")).await.unwrap();

    for (who, password) in [("thief", Some("wrong")), ("nobody", None)] {
        let before = web.log().len();
        let failure = node.ask(who, &web, password).await.unwrap_err();
        assert_eq!(failure.reason, "Unauthorized", "{who}");
        assert!(failure.message.contains("app:latest"), "{failure:?}");
        let asked = since(&web, before);
        assert!(
            asked.iter().all(|r| *r == format!("HEAD {manifest}")),
            "{who}: {asked:?}"
        );
    }
    let before = web.log().len();
    node.ask("friend", &web, Some("friend")).await.unwrap();
    let asked = since(&web, before);
    assert!(
        !asked.is_empty() && asked.iter().all(|r| *r == format!("HEAD {manifest}")),
        "{asked:?}"
    );

    // It is remembered by the login, not by the asker, and across restarts.
    node.artifacts.shutdown().await;
    drop(node);
    let mut node = Node::open(dir.path()).await;
    let before = web.log().len();
    node.ask("another of friend's", &web, Some("friend")).await.unwrap();
    node.ask("another of owner's", &web, Some("owner")).await.unwrap();
    assert_eq!(web.log().len(), before, "nobody is asked again");
    assert_eq!(
        node.ask("thief", &web, Some("wrong")).await.unwrap_err().reason,
        "Unauthorized"
    );
    let access = dir.path().join("artifacts/access");
    for entry in std::fs::read_dir(access).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for secret in ["owner", "friend", "wrong"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_that_becomes_public_is_free_for_all_once_somebody_was_let_in_without_a_login() {
    let public = closed();
    let web = private(&small(), &["owner"], &public);
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    node.ask("owner", &web, Some("owner")).await.unwrap();
    node.ask("nobody", &web, None).await.unwrap_err();
    node.artifacts.release(&Interest("nobody".into())).await;
    public.store(true, Ordering::SeqCst);
    node.ask("passer-by", &web, None).await.unwrap();
    let before = web.log().len();
    node.ask("stranger", &web, Some("whatever")).await.unwrap();
    assert_eq!(web.log().len(), before);
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_an_image_keeps_it_when_its_login_is_gone() {
    let web = private(&small(), &["owner"], &closed());
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    node.ask("vm", &web, Some("owner")).await.unwrap();
    drop(node);
    // After a restart, with the pull secret deleted: the disk of a VM stands on it.
    let mut node = Node::open(dir.path()).await;
    let before = web.log().len();
    node.ask("vm", &web, None).await.unwrap();
    assert_eq!(web.log().len(), before);
    assert_eq!(
        node.ask("another vm", &web, None).await.unwrap_err().reason,
        "Unauthorized"
    );
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_knows_no_head_is_asked_by_get_and_one_with_another_digest_is_not_believed() {
    let refuses = small().serve(|request| (request.method == "HEAD").then(|| Reply::new(405)));
    let lies = small().serve(|request| {
        let other = format!("sha256:{}", "0".repeat(64));
        (request.method == "HEAD").then(|| Reply::new(200).header("docker-content-digest", &other))
    });
    // The same content by another name is no contradiction.
    let renames = small().serve(|request| {
        let same = format!("sha512:{}", "0".repeat(128));
        (request.method == "HEAD").then(|| Reply::new(200).header("docker-content-digest", &same))
    });
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path()).await;
    node.ask("first", &refuses, Some("one")).await.unwrap();
    node.ask("second", &refuses, Some("two")).await.unwrap();
    assert!(refuses.log().iter().any(|r| r.method == "HEAD"));
    // Each is asked for all of it first.
    for (who, web) in [("fifth", &renames), ("sixth", &lies)] {
        node.ask(who, web, Some("one")).await.unwrap();
        assert!(
            !web.log()
                .iter()
                .any(|r| r.method == "HEAD" && r.path.contains("/manifests/"))
        );
    }
    node.ask("fourth", &renames, Some("four")).await.unwrap();
    assert!(renames.log().iter().any(|r| r.method == "HEAD"));
    assert_eq!(
        node.ask("third", &lies, Some("three")).await.unwrap_err().reason,
        "WrongDigest"
    );
    node.artifacts.shutdown().await;
}

/// Another image with the layers and the configuration of this one.
fn copied(image: &Image) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).expect("JSON");
    manifest["annotations"] = serde_json::json!({ "made": "by somebody else" });
    Image {
        manifest: serde_json::to_vec(&manifest).expect("JSON"),
        blobs: image.blobs.clone(),
    }
}

/// A registry with the private image `app` and with its copy `other`, to whose layer it answers this.
fn two_repositories(layer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Web {
    let (image, other) = (small(), copied(&small()));
    let blob = format!("/v2/app/blobs/{}", image.layer(0).0);
    Web::start(move |request| {
        let Some(rest) = request.path.strip_prefix("/v2/other/") else {
            let let_in = request.path == "/v2/" || request.header("authorization") == Some(&basic("owner"));
            let refused = Reply::new(401).header("www-authenticate", "Basic realm=\"registry\"");
            return if let_in { image.answer(request) } else { refused };
        };
        let same = Request {
            path: format!("/v2/app/{rest}"),
            ..request.clone()
        };
        let special = if same.path == blob { layer(&same) } else { None };
        special.unwrap_or_else(|| other.answer(&same))
    })
}

fn other(web: &Web) -> Source {
    Source::Oci {
        reference: format!("{}/other:latest", web.address),
        platform: Some("linux/amd64".into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_here_is_not_given_to_who_only_names_its_digest() {
    for (status, reason) in [(404, "NotFound"), (401, "Unauthorized"), (403, "Unauthorized")] {
        let web = two_repositories(move |_| Some(Reply::new(status)));
        let layer = small().layer(0).0;
        let dir = tempfile::tempdir().expect("a directory");
        let mut node = Node::open(dir.path()).await;
        node.ask("owner", &web, Some("owner")).await.expect("its own");
        let thief = support::image(&node.artifacts, &mut node.woken, "thief", other(&web)).await;
        let thief = thief.expect_err("a theft");
        assert_eq!(thief.reason, reason, "{thief:?}");
        let asked = web
            .log()
            .into_iter()
            .filter(|r| r.path == format!("/v2/other/blobs/{layer}"));
        assert_eq!(asked.map(|r| r.method).next().as_deref(), Some("HEAD"));
        // It hears what somebody hears to whom nothing is here.
        let empty = tempfile::tempdir().expect("a directory");
        let mut fresh = Node::open(empty.path()).await;
        let honest = support::image(&fresh.artifacts, &mut fresh.woken, "thief", other(&web)).await;
        assert_eq!(honest.expect_err("it has no such layer").message, thief.message);
        node.artifacts.shutdown().await;
        fresh.artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_here_is_used_after_one_head_by_those_who_may_have_it() {
    // The last two know no HEAD, or sign their URLs for GET alone: a byte is asked for instead.
    for status in [None, Some(405), Some(403)] {
        let web = two_repositories(move |request| status.filter(|_| request.method == "HEAD").map(Reply::new));
        let layer = small().layer(0).0;
        let dir = tempfile::tempdir().expect("a directory");
        let mut node = Node::open(dir.path()).await;
        node.ask("owner", &web, Some("owner")).await.expect("its own");
        let disk = support::image(&node.artifacts, &mut node.woken, "friend", other(&web)).await;
        disk.expect("it may have it");
        let asked = web
            .log()
            .into_iter()
            .filter(|r| r.path == format!("/v2/other/blobs/{layer}"));
        let asked: Vec<_> = asked
            .map(|r| (r.method.clone(), r.header("range").map(str::to_owned)))
            .collect();
        let mut expected = vec![("HEAD".to_owned(), None)];
        expected.extend(status.map(|_| ("GET".to_owned(), Some("bytes=0-0".to_owned()))));
        assert_eq!(asked, expected);
        node.artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_registry_gave_is_not_given_on_the_word_of_another() {
    let image = small();
    let owner = private(&image, &["owner"], &closed());
    let layer = image.layer(0).0;
    let lost = layer.clone();
    // It says that it has everything.
    let liar = copied(&image).serve(move |request| {
        let wanted = request.path.ends_with(&lost);
        wanted.then(|| Reply::new(if request.method == "HEAD" { 200 } else { 404 }))
    });
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::open(dir.path()).await;
    node.ask("owner", &owner, Some("owner")).await.expect("its own");
    let thief = support::image(&node.artifacts, &mut node.woken, "thief", source(&liar)).await;
    assert_eq!(thief.expect_err("a theft").reason, "NotFound");
    // Nor is it the file of a URL.
    let digest: Digest = layer.parse().expect("a digest");
    let file = Source::Http {
        url: liar.url(&format!("/v2/app/blobs/{layer}")),
        sha256: digest.hex().to_owned(),
    };
    let thief = support::image(&node.artifacts, &mut node.woken, "another", file).await;
    assert_eq!(thief.expect_err("a theft").reason, "NotFound");
    node.artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_of_a_partial_download_is_asked_for_only_by_those_who_may_have_it() {
    let (digest, bytes) = small().layer(0);
    for missing in [0, 1] {
        let web = two_repositories(|_| Some(Reply::new(404)));
        let dir = tempfile::tempdir().expect("a directory");
        let blobs = dir.path().join("artifacts/blobs");
        std::fs::create_dir_all(&blobs).expect("a directory");
        let partial = blobs.join(file_name(&web.address, &digest.parse().expect("a digest")));
        std::fs::write(&partial, &bytes[..bytes.len() - missing]).expect("written");
        let mut node = Node::open(dir.path()).await;
        let thief = support::image(&node.artifacts, &mut node.woken, "thief", other(&web)).await;
        assert_eq!(thief.expect_err("a theft").reason, "NotFound");
        node.ask("owner", &web, Some("owner")).await.expect("its own");
        let gets = web
            .log()
            .into_iter()
            .filter(|r| r.method == "GET" && r.path.ends_with(&digest));
        assert_eq!(gets.filter(|r| r.header("authorization").is_some()).count(), missing);
        node.artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_opened_by_no_other_registry_than_one_that_gives_all_of_it() {
    let image = small();
    let owner = private(&image, &["owner"], &closed());
    let says_yes = Web::start(|request| {
        let yes = Reply::new(200)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .header("docker-content-digest", &small().digest());
        if request.method == "HEAD" || request.path == "/v2/" {
            yes
        } else {
            Reply::new(404)
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::open(dir.path()).await;
    let disk = node.ask("owner", &owner, Some("owner")).await.expect("its own");
    node.ask("thief", &says_yes, None).await.expect_err("a theft");
    node.ask("another", &owner, None)
        .await
        .expect_err("it is as private as before");
    // Who has all of it may have it; that is remembered, and its registry is believed from then on.
    let honest = private(&image, &["friend", "second"], &closed());
    let same = node
        .ask("friend", &honest, Some("friend"))
        .await
        .expect("it is there too");
    assert_eq!(same.path, disk.path);
    let before = honest.log().len();
    node.ask("second", &honest, Some("second"))
        .await
        .expect("it may have it");
    let manifest = format!("HEAD /v2/app/manifests/{}", image.digest());
    let asked = since(&honest, before);
    assert!(
        !asked.is_empty() && asked.iter().all(|request| *request == manifest),
        "{asked:?}"
    );
    node.artifacts.shutdown().await;
}
