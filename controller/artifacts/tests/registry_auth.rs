//! Who gets in with what, and where credentials never go.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use base64::Engine as _;
use support::scripted::{Image, credential, open_with, source};
use support::web::{Fault, Reply, Request, Web};
use vmlet_artifacts::types::*;

fn small() -> Image {
    let tar = support::Tar::new().file("x", 0o644, b"x\n").done();
    let other = support::Tar::new().file("y", 0o644, b"y\n").done();
    Image::of(&[
        (tar.clone(), support::gzip(&tar)),
        (other.clone(), support::gzip(&other)),
    ])
}

fn basic(password: &str) -> String {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("me:{password}"));
    format!("Basic {login}")
}

/// Pulls by digest, which is one job and so one session.
async fn pull(image: &Image, web: &Web, credentials: Vec<Credential>) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with(dir.path(), |_| ()).await;
    let who = Interest("vm".into());
    let want = ImageWant {
        source: source(web),
        digest: Some(image.digest()),
        credentials,
    };
    let result = support::wanted(&artifacts, &mut woken, &who, &want).await;
    artifacts.shutdown().await;
    result
}

/// A registry that wants a Bearer token, and its token server in one. Each token is good for so many requests.
fn bearer(image: &Image, password: Option<&'static str>, uses: usize) -> Web {
    let image = image.clone();
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Web::start(move |request| {
        let authorization = request.header("authorization");
        if request.path.starts_with("/token") {
            if password.is_some_and(|password| authorization != Some(&basic(password))) {
                return Reply::new(401);
            }
            used.store(0, Ordering::SeqCst);
            let n = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200).body(format!("{{\"token\":\"t{n}\"}}").as_bytes());
        }
        if request.path == "/v2/" {
            return Reply::new(200);
        }
        let current = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        if authorization == Some(&current) && used.fetch_add(1, Ordering::SeqCst) < uses {
            return image.answer(request);
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"the service\"");
        Reply::new(401).header("www-authenticate", &challenge)
    })
}

fn with_basic(image: &Image, password: &'static str) -> Web {
    image.serve(move |request| {
        let good = request.path == "/v2/" || request.header("authorization") == Some(&basic(password));
        (!good).then(|| Reply::new(401).header("www-authenticate", "Basic realm=\"registry\""))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_one_token_is_fetched_for_all_requests_of_a_pull() {
    let image = small();
    for (password, credentials) in [(None, false), (Some("right"), true)] {
        let web = bearer(&image, password, usize::MAX);
        let given = credentials.then(|| credential(&web, "right")).into_iter().collect();
        pull(&image, &web, given).await.unwrap();
        assert_eq!(web.count("/token"), 1);
        let asked = web
            .log()
            .into_iter()
            .find(|request| request.path.starts_with("/token"))
            .unwrap();
        assert!(asked.path.contains("scope=repository%3Aapp%3Apull"), "{}", asked.path);
        assert!(asked.path.contains("service=the+service"), "{}", asked.path);
        // The password goes to the token server, and the token to the registry.
        for request in web.log() {
            let sent = request.header("authorization").unwrap_or_default();
            assert_eq!(
                sent.starts_with("Basic"),
                credentials && request.path.starts_with("/token"),
                "{request:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_are_read_as_their_specification_writes_them_and_not_by_what_is_in_them() {
    let image = small();
    let tokens = [
        r#"{"token":"t"}"#,
        r#"{"token":"","access_token":"t"}"#,
        r#"{"token":null,"access_token":"t"}"#,
    ];
    for (headers, token) in [
        // The realm of an error is none, nor is what a value says.
        &[r#"Bearer error_realm="http://HOST/evil",error="realm=\"http://HOST/evil\"", realm="http://HOST/token",service="s""#][..],
        &[r#"bEARER Realm = "http://HOST/\token" , SERVICE=s"#],
        &[r#"Negotiate YWJj==, Digest realm="http://HOST/evil", Bearer service="s",realm="http://HOST/token""#],
        &["Digest realm=\"http://HOST/evil\"", "Bearer realm=\"http://HOST/token\",service=s"],
    ]
    .into_iter()
    .zip(tokens.into_iter().cycle())
    {
        let web = image.serve(move |request| {
            if request.path.starts_with("/token?") {
                return Some(Reply::new(200).body(token.as_bytes()));
            }
            let good = request.path == "/v2/" || request.header("authorization") == Some("Bearer t");
            let host = request.header("host").unwrap_or_default();
            let refused = headers.iter().fold(Reply::new(401), |reply, header| {
                reply.header("www-authenticate", &header.replace("HOST", host))
            });
            (!good).then_some(refused)
        });
        pull(&image, &web, Vec::new()).await.expect(headers[0]);
        assert_eq!((web.count("/token"), web.count("/evil")), (1, 0));
        assert_eq!(web.count("&service=s"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_is_renewed_and_nothing_is_downloaded_twice() {
    let image = small();
    let web = bearer(&image, Some("right"), 2);
    pull(&image, &web, vec![credential(&web, "right")]).await.unwrap();
    assert!(web.count("/token") >= 2, "{}", web.count("/token"));
    for (digest, _) in &image.blobs {
        assert_eq!(sent(&web, digest), 1, "{digest}");
    }
}

/// How often something was sent, in whole or in part.
fn sent(web: &Web, digest: &str) -> usize {
    let answers = web.answers(digest).into_iter();
    answers.filter(|(_, status)| [200, 206].contains(status)).count()
}

/// A registry whose token is good until `expires` says otherwise of a request; the next one is good for ever.
fn expiring(image: &Image, expires: impl Fn(&Request, &Image) -> (bool, Reply) + Send + Sync + 'static) -> Web {
    let image = image.clone();
    let (issued, expired) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Web::start(move |request| {
        if request.path.starts_with("/token") {
            let n = issued.fetch_add(1, Ordering::SeqCst);
            return Reply::new(200).body(format!("{{\"token\":\"t{n}\"}}").as_bytes());
        }
        if request.path == "/v2/" {
            return Reply::new(200);
        }
        let good = format!("Bearer t{}", expired.load(Ordering::SeqCst));
        if request.header("authorization") == Some(&good) {
            let (now, reply) = expires(request, &image);
            expired.fetch_max(usize::from(now), Ordering::SeqCst);
            return reply;
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\"");
        Reply::new(401).header("www-authenticate", &challenge)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn d15_a_token_that_expires_at_the_third_of_seven_blobs_is_renewed_once_and_each_blob_is_sent_once() {
    let layers: Vec<_> = (0..7u8)
        .map(|n| {
            let tar = support::Tar::new().file(&format!("f{n}"), 0o644, &[n]).done();
            (tar.clone(), support::gzip(&tar))
        })
        .collect();
    let image = Image::of(&layers);
    let (third, asked) = (image.layer(2).0, AtomicUsize::new(0));
    let web = expiring(&image, move |request, image| {
        if request.path.ends_with(&third) && asked.fetch_add(1, Ordering::SeqCst) == 0 {
            let host = request.header("host").unwrap_or_default();
            let challenge = format!("Bearer realm=\"http://{host}/token\"");
            return (true, Reply::new(401).header("www-authenticate", &challenge));
        }
        (false, image.answer(request))
    });
    pull(&image, &web, Vec::new()).await.unwrap();
    assert_eq!(web.count("/token"), 2);
    for (digest, _) in &image.blobs {
        assert_eq!(sent(&web, digest), 1, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d15_a_token_that_expires_between_a_cut_and_its_resume_is_renewed_and_the_rest_is_asked_for_only() {
    let image = Image::usual();
    let (large, bytes) = image.layer(1);
    let digest = large.clone();
    let web = expiring(&image, move |request, image| {
        if request.path.ends_with(&digest) && request.from().is_none() {
            return (true, Reply::new(200).body(&bytes).fault(Fault::Cut(100_000)));
        }
        (false, image.answer(request))
    });
    pull(&image, &web, Vec::new()).await.unwrap();
    assert_eq!(web.count("/token"), 2);
    for n in [0, 2] {
        assert_eq!(sent(&web, &image.layer(n).0), 1);
    }
    // Whichever request got the new token, the large blob is never sent from its start again.
    let answers = web.answers(&large);
    let statuses: Vec<u16> = answers.iter().map(|(_, status)| *status).collect();
    assert!(matches!(statuses[..], [200, 401, 206] | [200, 206]), "{statuses:?}");
    assert!(
        answers[1..]
            .iter()
            .all(|(request, _)| request.from().is_some_and(|from| from > 0)),
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_ever_is_told_without_the_password_and_without_a_storm() {
    let image = small();
    let always = |status: u16, challenge: &'static str| {
        image.serve(move |request| {
            (request.path != "/v2/").then(|| Reply::new(status).header("www-authenticate", challenge))
        })
    };
    for web in [
        always(401, "Basic realm=\"x\""),
        always(401, ""),
        always(403, "Basic realm=\"x\""),
        always(401, "Negotiate"),
        bearer(&image, Some("another"), usize::MAX),
        bearer(&image, None, 0),
    ] {
        let failure = pull(&image, &web, vec![credential(&web, "hunter2")]).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Unauthorized", true),
            "{failure:?}"
        );
        assert!(
            !failure.message.contains("hunter2") && !failure.message.contains(&basic("hunter2")[6..]),
            "{failure:?}"
        );
        assert!(web.log().len() <= 6, "{}", web.log().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_a_login_is_asked_for() {
    let image = small();
    let failure = pull(&image, &with_basic(&image, "right"), Vec::new())
        .await
        .unwrap_err();
    assert!(failure.message.contains("wants a login"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_credentials_fail_the_next_are_tried() {
    let image = small();
    for web in [with_basic(&image, "right"), bearer(&image, Some("right"), usize::MAX)] {
        let elsewhere = Credential {
            registry: "elsewhere.example".into(),
            username: "me".into(),
            password: "not for you".into(),
        };
        let given = vec![
            elsewhere,
            credential(&web, "wrong"),
            credential(&web, "right"),
            credential(&web, "later"),
        ];
        pull(&image, &web, given).await.unwrap();
        let sent: Vec<String> = web
            .log()
            .iter()
            .filter_map(|r| r.header("authorization").map(str::to_owned))
            .collect();
        assert!(
            sent.contains(&basic("wrong")) && sent.contains(&basic("right")),
            "{sent:?}"
        );
        assert!(
            !sent.contains(&basic("later")) && !sent.contains(&basic("not for you")),
            "{sent:?}"
        );
    }
    // Those that are let in but may not read this repository count as refused, too.
    let web = image.serve(|request| {
        let sent = request.header("authorization").unwrap_or_default();
        match sent {
            _ if request.path == "/v2/" => None,
            "" => Some(Reply::new(401).header("www-authenticate", "Basic realm=\"x\"")),
            sent if sent == basic("right") => None,
            _ => Some(Reply::new(403)),
        }
    });
    pull(&image, &web, vec![credential(&web, "wrong"), credential(&web, "right")])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn h61_a_redirect_to_another_host_carries_no_authorization() {
    let image = small();
    let blobs = image.clone();
    let storage = Web::start(move |request| {
        let digest = request.path.trim_start_matches('/');
        let blob = blobs.blobs.iter().find(|(known, _)| known == digest);
        blob.map_or(Reply::new(404), |(_, bytes)| Reply::ranged(request, bytes))
    });
    let there = storage.address.clone();
    let inner = with_basic_redirect(&image, there);
    pull(&image, &inner, vec![credential(&inner, "right")]).await.unwrap();
    assert_eq!(storage.log().len(), 3);
    for request in storage.log() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

/// That a transfer is taken up again changes nothing about it.
#[tokio::test(flavor = "multi_thread")]
async fn h61_where_a_redirect_leads_no_token_follows_also_when_the_rest_is_asked_for() {
    let image = small();
    let blobs = image.clone();
    let (last, so_far) = (image.layer(1).0, AtomicUsize::new(0));
    let storage = Web::start(move |request| {
        let digest = request.path.trim_start_matches('/');
        let Some((_, bytes)) = blobs.blobs.iter().find(|(known, _)| known == digest) else {
            return Reply::new(404);
        };
        let reply = Reply::ranged(request, bytes);
        match digest == last && so_far.fetch_add(1, Ordering::SeqCst) == 0 {
            true => reply.fault(Fault::Cut(10)),
            false => reply,
        }
    });
    // Another name of this machine, and another port.
    let port = storage.address.rsplit_once(':').unwrap().1.to_owned();
    let web = expiring(&image, move |request, image| {
        let reply = match request.path.rsplit_once("/blobs/") {
            Some((_, digest)) => Reply::redirect(&format!("http://localhost:{port}/{digest}")),
            None => image.answer(request),
        };
        (false, reply)
    });
    pull(&image, &web, vec![credential(&web, "right")]).await.unwrap();
    for request in storage.log() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
    let last = image.layer(1).0;
    let asked = storage
        .log()
        .into_iter()
        .filter(|request| request.path.ends_with(&last));
    let asked: Vec<_> = asked.map(|request| request.from()).collect();
    assert_eq!(asked, [None, Some(10)]);
    // The registry has it each time: it is asked where the rest is.
    let told = web.answers(&last).into_iter().filter(|(_, status)| *status == 307);
    let told: Vec<_> = told
        .map(|(request, _)| request.header("authorization") == Some("Bearer t0"))
        .collect();
    assert_eq!(told, [true, true]);
}

fn with_basic_redirect(image: &Image, to: String) -> Web {
    image.serve(move |request: &Request| {
        if request.path == "/v2/" {
            return None;
        }
        if request.header("authorization") != Some(&basic("right")) {
            return Some(Reply::new(401).header("www-authenticate", "Basic realm=\"x\""));
        }
        let digest = request.path.rsplit_once("/blobs/").map(|(_, digest)| digest)?;
        Some(Reply::redirect(&format!("http://{to}/{digest}")))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_lead_nowhere_that_they_must_not() {
    let image = small();
    for (to, part) in [
        ("http://169.254.169.254/latest/meta-data", "never asked"),
        ("https://169.254.169.254/latest/meta-data", "never asked"),
        ("https://[fe80::1]/", "never asked"),
        ("https://[::ffff:169.254.169.254]/", "never asked"),
        ("https://100.100.100.200/", "never asked"),
        ("http://registry.example/", "away from https"),
        ("file:///etc/passwd", "away from https"),
        ("ftp://127.0.0.1/", "away from https"),
        ("/v2/app/manifests/latest", "for ever"),
        ("http://[not a url", "to nowhere"),
    ] {
        let web = image.serve(move |request| request.path.contains("/app/").then(|| Reply::redirect(to)));
        let failure = pull(&image, &web, Vec::new()).await.unwrap_err();
        assert_eq!(failure.reason, "BadReference", "{to}: {failure:?}");
        assert!(
            failure.message.contains(part) || to.starts_with("http://169"),
            "{to}: {failure:?}"
        );
        assert!(web.log().len() <= 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_elsewhere_gets_no_password() {
    let image = small();
    let foreign = Web::start(|_| Reply::new(200).body(b"{\"token\":\"t\"}"));
    let port = foreign.address.rsplit_once(':').unwrap().1.to_owned();
    for (realm, part) in [
        ("https://evil.example/token".to_owned(), "another domain"),
        ("http://evil.example/token".to_owned(), "not behind https"),
        ("http://169.254.169.254/token".to_owned(), "not behind https"),
        ("https://169.254.169.254/token".to_owned(), "another domain"),
        // The same machine under another name is another host.
        (format!("http://localhost:{port}/token"), "not behind https"),
        ("file:///etc/passwd".to_owned(), "not behind https"),
        ("nonsense".to_owned(), "no usable token server"),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
        let web = image.serve(move |request| {
            (request.path != "/v2/").then(|| Reply::new(401).header("www-authenticate", &challenge))
        });
        let failure = pull(&image, &web, vec![credential(&web, "hunter2")]).await.unwrap_err();
        assert_eq!(failure.reason, "Unauthorized", "{realm}: {failure:?}");
        assert!(failure.message.contains(part), "{realm}: {failure:?}");
    }
    assert!(foreign.log().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_that_answers_nonsense_or_too_much_is_refused() {
    let image = small();
    for (body, reason) in [
        (b"not json".to_vec(), "Unauthorized"),
        (b"{}".to_vec(), "Unauthorized"),
        (b"{\"token\":\"a\\r\\nHost: x\"}".to_vec(), "Unauthorized"),
        (vec![b' '; (1 << 20) + 1], "TooLarge"),
    ] {
        let web = image.serve(move |request| {
            if request.path.starts_with("/token") {
                return Some(Reply::new(200).body(&body));
            }
            let host = request.header("host").unwrap_or_default();
            let challenge = format!("Bearer realm=\"http://{host}/token\"");
            (request.path != "/v2/").then(|| Reply::new(401).header("www-authenticate", &challenge))
        });
        let failure = pull(&image, &web, Vec::new()).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
    }
}
