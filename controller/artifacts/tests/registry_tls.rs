//! Registries behind TLS (matrix rows D16 and D23): what is not trusted is refused, in words that help, and nothing is ever
//! said in the clear instead.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::scripted::{Image, open_with_registries, source};
use support::settle;
use support::web::{Identity, Reply, Web};
use vmlet_artifacts::registry::config::Registries;
use vmlet_artifacts::types::*;

fn small() -> Image {
    let tar = support::Tar::new().file("x", 0o644, b"x\n").done();
    Image::of(&[(tar.clone(), support::gzip(&tar))])
}

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// What a server shows that is good in these years.
    fn identity(&self, name: &str, from: i32, to: i32) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key);
        Arc::new(config.unwrap())
    }

    fn good(&self) -> Identity {
        self.identity("127.0.0.1", 2020, 2120)
    }
}

fn secure(image: &Image, identity: Identity) -> Web {
    let image = image.clone();
    Web::secure(Arc::new(Mutex::new(identity)), move |request| image.answer(request))
}

/// A configuration with these authorities for a registry.
fn trusting(dir: &Path, web: &Web, authority: &Authority) -> Registries {
    std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
    let text = format!("[[registry]]\nlocation = \"{}\"\nca = \"ca.pem\"\n", web.address);
    Registries::parse(&dir.join("registries.conf"), &text).unwrap()
}

async fn pull(web: &Web, registries: Registries) -> Result<Arc<ImageDisk>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    let result = support::image(&artifacts, &mut woken, "vm", source(web)).await;
    artifacts.shutdown().await;
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_authority_is_trusted_where_it_is_named_and_nowhere_else() {
    let (image, own) = (small(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let web = secure(&image, own.good());
    pull(&web, trusting(dir.path(), &web, &own)).await.unwrap();
    let another = secure(&image, own.good());
    for registries in [trusting(dir.path(), &web, &own), Registries::default()] {
        let failure = pull(&another, registries).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Unavailable", false),
            "{failure:?}"
        );
        assert!(failure.message.contains("UnknownIssuer"), "{failure:?}");
        assert!(failure.message.contains("name it with ca"), "{failure:?}");
        assert!(another.log().is_empty(), "nothing is said in the clear");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_expired_not_yet_valid_or_for_another_name_is_refused_with_what_to_check() {
    let (image, own) = (small(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    for (identity, part) in [
        (own.identity("127.0.0.1", 2000, 2010), "check this machine's clock"),
        (own.identity("127.0.0.1", 2110, 2120), "check this machine's clock"),
        (own.identity("elsewhere.example", 2020, 2120), "for another name"),
    ] {
        let web = secure(&image, identity);
        let failure = pull(&web, trusting(dir.path(), &web, &own)).await.unwrap_err();
        assert_eq!(
            (failure.reason.as_str(), failure.terminal),
            ("Unavailable", false),
            "{failure:?}"
        );
        assert!(failure.message.contains(part), "{failure:?}");
        assert!(web.log().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d23_what_was_refused_for_its_certificate_is_pulled_once_that_is_good_without_a_restart() {
    let (image, own) = (small(), Authority::new());
    for bad in [
        own.identity("127.0.0.1", 2000, 2010),
        own.identity("127.0.0.1", 2110, 2120),
    ] {
        let identity = Arc::new(Mutex::new(bad));
        let shown = image.clone();
        let web = Web::secure(identity.clone(), move |request| shown.answer(request));
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with_registries(dir.path(), trusting(dir.path(), &web, &own)).await;
        let failure = support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap_err();
        // Not for ever: it is tried again by itself.
        assert!(
            !failure.terminal && failure.message.contains("certificate"),
            "{failure:?}"
        );
        let wait = failure.retry_at.duration_since(std::time::SystemTime::now());
        assert!(wait.is_ok_and(|wait| wait.as_secs() <= 11), "{failure:?}");
        *identity.lock().unwrap() = own.good();
        // Somebody comes anew, which is not made to wait.
        artifacts.release(&Interest("vm".into())).await;
        support::image(&artifacts, &mut woken, "vm", source(&web))
            .await
            .unwrap();
        artifacts.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_are_exchanged_on_disk_are_taken_without_a_restart() {
    let image = small();
    let (old, new) = (Authority::new(), Authority::new());
    let identity = Arc::new(Mutex::new(old.good()));
    let shown = image.clone();
    let web = Web::secure(identity.clone(), move |request| shown.answer(request));
    let conf = tempfile::tempdir().unwrap();
    let registries = trusting(conf.path(), &web, &old);
    let dir = tempfile::tempdir().unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    let mut n = 0;
    let mut resolve = async || {
        n += 1;
        let who = Interest(format!("asker {n}"));
        let want = ResolveWant {
            source: Source::Oci {
                reference: format!("{}/app:latest", web.address),
                // Another key each time: what is known is not asked for again.
                platform: Some(format!("linux/amd64/v{n}")),
            },
            credentials: Vec::new(),
        };
        settle(&mut woken, || artifacts.resolve(&who, want.clone()))
            .await
            .map_err(|failure| failure.message)
    };
    let answered = |result: Result<_, String>| result.map_or_else(|error| error, |_| String::new());
    assert!(!answered(resolve().await).contains("certificate"));
    *identity.lock().unwrap() = new.good();
    assert!(answered(resolve().await).contains("certificate"));
    // While the file is being exchanged it may be missing, or half there: what was known still holds.
    std::fs::write(conf.path().join("ca.pem"), "-----BEGIN").unwrap();
    *identity.lock().unwrap() = old.good();
    assert!(!answered(resolve().await).contains("certificate"));
    *identity.lock().unwrap() = new.good();
    std::fs::write(conf.path().join("ca.pem"), &new.pem).unwrap();
    assert!(!answered(resolve().await).contains("certificate"));
    artifacts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tls_is_refused() {
    // To whatever it is told, it answers with TLS 1.0.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut heard = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 5];
            if stream.read_exact(&mut hello).is_err() {
                break;
            }
            heard.push(hello);
            let mut body = vec![0; usize::from(u16::from_be_bytes([hello[3], hello[4]])).min(16_384)];
            if hello[0] != 0x16 || stream.read_exact(&mut body).is_err() {
                continue;
            }
            // ServerHello: TLS 1.0, a random, no session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
            let mut answer = vec![0x16, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1];
            answer.extend_from_slice(&[7; 32]);
            answer.extend_from_slice(&[0, 0, 0x2f, 0]);
            let _ = stream.write_all(&answer);
            let _ = stream.read(&mut [0; 16]);
        }
        heard
    });
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[[registry]]\nlocation = \"{address}\"\ninsecure = false\n");
    let registries = Registries::parse(Path::new("registries.conf"), &text).unwrap();
    let (artifacts, mut woken) = open_with_registries(dir.path(), registries).await;
    let from = Source::Oci {
        reference: format!("{address}/app:latest"),
        platform: None,
    };
    let failure = support::image(&artifacts, &mut woken, "vm", from).await.unwrap_err();
    assert_eq!(failure.reason, "Unavailable", "{failure:?}");
    artifacts.shutdown().await;
    drop(std::net::TcpStream::connect(&address).unwrap());
    let heard = server.join().unwrap();
    assert!(
        !heard.is_empty() && heard.iter().all(|hello| hello[0] == 0x16),
        "only TLS was spoken: {heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_behind_tls_may_send_to_no_place_without() {
    let (image, own) = (small(), Authority::new());
    let plain = image.serve(|_| None);
    let to = plain.url("/v2/app/manifests/latest");
    let web = Web::secure(Arc::new(Mutex::new(own.good())), move |_| Reply::redirect(&to));
    let dir = tempfile::tempdir().unwrap();
    let failure = pull(&web, trusting(dir.path(), &web, &own)).await.unwrap_err();
    assert_eq!(failure.reason, "BadReference", "{failure:?}");
    assert!(failure.message.contains("away from https"), "{failure:?}");
    assert!(plain.log().is_empty());
}
