//! The operator's settings at work: proxies, plain HTTP, the machine's own logins, helpers, identity tokens.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use base64::Engine as _;
use support::scripted::{Image, open_with_registries, source};
use support::web::{Reply, Request, Web};
use vmlet_artifacts::authfile::Authfile;
use vmlet_artifacts::registry::config::Registries;
use vmlet_artifacts::types::*;

fn small() -> Image {
    let tar = support::Tar::new().file("x", 0o644, b"x\n").done();
    Image::of(&[(tar.clone(), support::gzip(&tar))])
}

fn basic(user: &str, password: &str) -> String {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {login}")
}

async fn pull(source: Source, registries: Registries, credentials: Vec<Credential>) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source,
        digest: None,
        credentials,
    };
    let result = support::wanted(&artifacts, &mut woken, &who, &want).await;
    artifacts.shutdown().await;
    result
}

fn registries(text: &str) -> Registries {
    Registries::parse(Path::new("registries.conf"), text).unwrap()
}

fn oci(reference: &str) -> Source {
    Source::Oci {
        reference: reference.into(),
        platform: None,
    }
}

/// A proxy before `lab.example:5000`, which speaks plain HTTP.
fn proxy(image: &Image) -> Web {
    let image = image.clone();
    Web::start(move |request| {
        if request.header("proxy-authorization") != Some(&basic("me", "hunter2")) {
            return Reply::new(407);
        }
        match request.path.strip_prefix("http://lab.example:5000") {
            Some(path) => image.answer(&Request {
                path: path.to_owned(),
                ..request.clone()
            }),
            None => Reply::new(502),
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_behind_a_proxy_is_pulled_from_where_the_file_says_so() {
    let image = small();
    let proxy = proxy(&image);
    let file = format!(
        "[[registry]]\nlocation = \"lab.example:5000\"\ninsecure = true\nproxy = \"http://me:hunter2@{}\"\n",
        proxy.address
    );
    pull(oci("lab.example:5000/app:latest"), registries(&file), Vec::new())
        .await
        .unwrap();
    assert!(
        proxy
            .log()
            .iter()
            .all(|request| request.header("host") == Some("lab.example:5000"))
    );
    // By the environment's variables, too.
    let variables = format!("http://me:hunter2@{}", proxy.address);
    let get = move |name: &str| (name == "http_proxy").then(|| variables.clone());
    let plain = registries("[[registry]]\nlocation = \"lab.example:5000\"\ninsecure = true\n");
    pull(
        oci("lab.example:5000/app:latest"),
        plain.with_environment(get).unwrap(),
        Vec::new(),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_word_in_the_file_a_registry_elsewhere_is_never_spoken_to_in_the_clear() {
    let image = small();
    let proxy = proxy(&image);
    // Named by its proxy only.
    let file = format!(
        "[[registry]]\nlocation = \"lab.example:5000\"\nproxy = \"http://me:hunter2@{}\"\n",
        proxy.address
    );
    let failure = pull(oci("lab.example:5000/app:latest"), registries(&file), Vec::new())
        .await
        .unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("Unavailable", false),
        "{failure:?}"
    );
    let through = format!("(asked through the proxy {})", proxy.address);
    assert!(
        failure.message.contains(&through) && !failure.message.contains("hunter2"),
        "{failure:?}"
    );
    assert!(!proxy.log().is_empty());
    assert!(
        proxy.log().iter().all(|request| request.method == "CONNECT"),
        "{:?}",
        proxy.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_on_this_machine_is_not_asked_through_the_proxy_of_the_environment() {
    let image = small();
    let web = image.serve(|_| None);
    let get = |name: &str| (name == "ALL_PROXY").then(|| "http://127.0.0.1:1".to_owned());
    let settings = Registries::default().with_environment(get).unwrap();
    pull(source(&web), settings, Vec::new()).await.unwrap();
}

fn private(image: &Image, user: &'static str, password: &'static str) -> Web {
    image.serve(move |request| {
        let good = request.path == "/v2/" || request.header("authorization") == Some(&basic(user, password));
        (!good).then(|| Reply::new(401).header("www-authenticate", "Basic realm=\"registry\""))
    })
}

fn authfile(dir: &Path, text: &serde_json::Value) -> Authfile {
    let path = dir.join("auth.json");
    std::fs::write(&path, text.to_string()).unwrap();
    Authfile::read(&path).unwrap().helpers_in(dir)
}

fn helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_own_login_is_used_beside_pull_secrets_and_the_narrowest_first() {
    let image = small();
    let web = private(&image, "team", "right");
    let dir = tempfile::tempdir().unwrap();
    let host = &web.address;
    let logins = serde_json::json!({ "auths": {
        host: { "username": "host", "password": "wrong" },
        format!("{host}/app"): { "username": "team", "password": "right" },
        format!("{host}/other"): { "username": "other", "password": "wrong" },
    }});
    let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
    pull(source(&web), settings.clone(), Vec::new()).await.unwrap();
    let sent = |password: &str, user: &str| {
        web.log()
            .iter()
            .any(|request| request.header("authorization") == Some(&basic(user, password)))
    };
    assert!(!sent("wrong", "host") && !sent("wrong", "other"));
    // A pull secret comes first, and its refusal is no end.
    let given = Credential {
        registry: host.clone(),
        username: "secret".into(),
        password: "old".into(),
    };
    pull(source(&web), settings, vec![given]).await.unwrap();
    assert!(sent("old", "secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_of_the_authfile_is_asked_and_its_secret_is_nowhere() {
    let image = small();
    let web = private(&image, "from-helper", "hunter2");
    let dir = tempfile::tempdir().unwrap();
    let script = r#"read -r server; printf '{"ServerURL":"%s","Username":"from-helper","Secret":"hunter2"}' "$server""#;
    helper(dir.path(), "house", script);
    for logins in [
        serde_json::json!({ "credHelpers": { &web.address: "house" } }),
        serde_json::json!({ "credsStore": "house" }),
    ] {
        let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
        pull(source(&web), settings, Vec::new()).await.unwrap();
    }
    // What it has is refused, or it fails.
    let other = private(&image, "nobody", "nothing");
    let logins = serde_json::json!({ "credHelpers": { &other.address: "house" } });
    let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
    let failure = pull(source(&other), settings.clone(), Vec::new()).await.unwrap_err();
    assert_eq!(failure.reason, "Unauthorized");
    assert!(!format!("{failure:?}{settings:?}").contains("hunter2"));
    helper(dir.path(), "house", "echo hunter2; exit 1");
    let failure = pull(source(&other), settings, Vec::new()).await.unwrap_err();
    assert_eq!(
        (failure.reason.as_str(), failure.terminal),
        ("Unauthorized", false),
        "{failure:?}"
    );
    assert!(
        failure.message.contains("docker-credential-house failed"),
        "{failure:?}"
    );
    assert!(!failure.message.contains("hunter2"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_needs_no_helper() {
    let image = small();
    let web = image.serve(|_| None);
    let dir = tempfile::tempdir().unwrap();
    helper(
        dir.path(),
        "house",
        &format!("touch {}; exit 1", dir.path().join("asked").display()),
    );
    let logins = serde_json::json!({ "credsStore": "house" });
    let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
    pull(source(&web), settings, Vec::new()).await.unwrap();
    assert!(!dir.path().join("asked").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_by_post_and_sent_nowhere_else() {
    let image = small();
    let web = image.serve(|request| {
        if request.path == "/token" && request.method == "POST" {
            let form = [
                "grant_type=refresh_token",
                "refresh_token=id%26word",
                "scope=repository%3Aapp%3Apull",
                "service=s",
            ];
            let good = form.iter().all(|part| request.body.contains(part));
            return Some(match good {
                true => Reply::new(200).body(br#"{"access_token":"good","expires_in":300}"#),
                false => Reply::new(400),
            });
        }
        if request.path == "/v2/" || request.header("authorization") == Some("Bearer good") {
            return None;
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        Some(Reply::new(401).header("www-authenticate", &challenge))
    });
    let dir = tempfile::tempdir().unwrap();
    let logins = serde_json::json!({ "auths": { &web.address: { "identitytoken": "id&word" } } });
    let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
    pull(source(&web), settings, Vec::new()).await.unwrap();
    assert_eq!(web.count("/token"), 1);
    for request in web.log().iter().filter(|request| request.path != "/token") {
        assert!(!format!("{request:?}").contains("word"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_not_posted_where_a_redirect_leads() {
    let image = small();
    let elsewhere = Web::start(|_| Reply::new(200).body(br#"{"access_token":"x"}"#));
    let to = elsewhere.url("/token");
    let web = image.serve(move |request| {
        if request.path == "/token" {
            return Some(Reply::redirect(&to));
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        (request.path != "/v2/").then(|| Reply::new(401).header("www-authenticate", &challenge))
    });
    let dir = tempfile::tempdir().unwrap();
    let logins = serde_json::json!({ "auths": { &web.address: { "identitytoken": "identity" } } });
    let settings = Registries::default().with_authfile(authfile(dir.path(), &logins));
    let failure = pull(source(&web), settings, Vec::new()).await.unwrap_err();
    assert!(failure.message.contains("redirects a secret"), "{failure:?}");
    assert!(elsewhere.log().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machines_own_login_opens_is_open_to_all_who_ask_here_and_a_pull_secret_opens_it_to_its_owner_only() {
    let image = small();
    let web = private(&image, "me", "right");
    let conf = tempfile::tempdir().unwrap();
    let logins = serde_json::json!({ "auths": { &web.address: { "username": "me", "password": "right" } } });
    let own = Registries::default().with_authfile(authfile(conf.path(), &logins));
    let secret = support::scripted::credential(&web, "right");
    for (settings, given, stranger) in [(own, vec![], true), (Registries::default(), vec![secret], false)] {
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with_registries(dir.path(), settings).await;
        let want = |credentials| ImageWant {
            source: source(&web),
            digest: Some(image.digest()),
            credentials,
        };
        let first = Interest("first".into());
        support::wanted(&artifacts, &mut woken, &first, &want(given.clone()))
            .await
            .unwrap();
        let second = Interest("second".into());
        let result = support::wanted(&artifacts, &mut woken, &second, &want(vec![])).await;
        assert_eq!(result.is_ok(), stranger, "{result:?}");
        artifacts.shutdown().await;
    }
}
