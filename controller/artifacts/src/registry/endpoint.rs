//! One host that is asked for an image, and how it lets us in.

use std::sync::Arc;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::{Mutex, OnceCell};

use super::addresses::is_loopback;
use super::auth;
use super::config::Target;
use super::http::{Http, Route, range, success, unencoded};
use super::session::{Authorization, Session};
use super::{Fetched, manifest};
use crate::authfile::Login;
use crate::error::{PullError, Reason};
use crate::pulls::identity::hash;
use crate::reference::{Digest, Reference};
use crate::types::{Credential, Limits};

/// A host, with the repository's name there.
pub struct Endpoint {
    http: Http,
    limits: Limits,
    /// Whom, and for what.
    pub target: Target,
    /// What the user asked for, for messages.
    wanted: Reference,
    /// The repository as it is named here.
    place: Reference,
    /// In the order in which they are tried.
    logins: Vec<Login>,
    /// Found out when it is asked first.
    base: OnceCell<Url>,
    session: Arc<Mutex<Session>>,
}

impl Endpoint {
    /// `credentials` are those of the one who asks; only the reference's own host gets them. Beside these there are the
    /// operator's own, for any host.
    pub fn new(
        http: &Http,
        limits: &Limits,
        wanted: &Reference,
        target: Target,
        credentials: &[Credential],
    ) -> Endpoint {
        let place = Reference {
            registry: target.host.clone(),
            repository: target.repository.clone(),
            tag: None,
            digest: None,
        };
        let given = credentials.iter().filter(|c| target.own && wanted.is_for(&c.registry));
        let mut logins: Vec<Login> = given.cloned().map(Login::Given).collect();
        if let Some(authfile) = http.registries().authfile() {
            // By the name that the user knows where that is another for the same host.
            logins.extend(authfile.logins(if target.own { wanted } else { &place }));
        }
        let mut key = vec![place.host(), place.repository.as_str()];
        for login in &logins {
            key.extend(login.identity());
        }
        let session = http.sessions().of(hash(&key));
        Endpoint {
            http: http.clone(),
            limits: limits.clone(),
            wanted: wanted.clone(),
            target,
            place,
            logins,
            base: OnceCell::new(),
            session,
        }
    }

    /// The URL of its root: plain HTTP where the operator says so, and on loopback where it answers.
    async fn base(&self) -> Result<&Url, PullError> {
        let host = self.place.host();
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|_| PullError::new(Reason::BadReference, format!("{host} is no registry host")))
        };
        let find = async || {
            let secure = url("https")?;
            let plain = url("http")?;
            let said = self.http.registries().plain(&plain);
            let speaks = match said {
                Some(plain) => plain,
                None if is_loopback(&plain) => {
                    let probe = plain.join("v2/").unwrap_or_else(|_| plain.clone());
                    self.http.speaks_http(probe).await
                }
                None => false,
            };
            Ok(if speaks { plain } else { secure })
        };
        self.base.get_or_try_init(find).await
    }

    /// What is asked for, in the words of the reference: a part of it is named beside it.
    pub fn name(&self, path: &str) -> String {
        match path.split_once('/') {
            Some(("manifests", version)) if version == self.wanted.version() => self.wanted.to_string(),
            Some(("manifests", digest)) => format!("{} (manifest {digest})", self.wanted),
            Some((_, digest)) => format!("{} (blob {digest})", self.wanted),
            None => format!("{} ({path})", self.wanted),
        }
    }

    /// A manifest by tag or digest; a digest is enforced.
    pub async fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        let (response, name) = self.get(&format!("manifests/{version}"), accept()).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = self.http.bounded(response, self.limits.manifest_bytes, &name).await?;
        let digest = match version.parse::<Digest>() {
            Ok(wanted) if wanted.matches(&bytes) => wanted,
            Ok(wanted) => {
                let got = Digest::sha256(&bytes);
                return Err(PullError::new(
                    Reason::WrongDigest,
                    format!("{name}: the registry sent {got} when asked for {wanted}"),
                ));
            }
            Err(_) => Digest::sha256(&bytes),
        };
        Ok(Fetched {
            digest,
            media_type,
            bytes,
        })
    }

    /// Whether we may have a manifest, without fetching it; answers with its media type.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<String, PullError> {
        let (response, name) = self
            .answer(Method::HEAD, &format!("manifests/{digest}"), accept())
            .await?;
        if matches!(
            response.status(),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ) {
            return Ok(self.manifest(&digest.to_string()).await?.media_type);
        }
        let response = success(response, &name)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        // A registry may name the same content by another algorithm.
        let same = |there: &str| match there.parse::<Digest>() {
            Ok(there) => there == *digest || there.algorithm() != digest.algorithm(),
            Err(_) => false,
        };
        if let Some(other) = header("docker-content-digest").filter(|there| !same(there)) {
            let why = format!("{name}: the registry has {other:.160} when asked for {digest}");
            return Err(PullError::new(Reason::WrongDigest, why));
        }
        Ok(header("content-type").unwrap_or_default().to_owned())
    }

    /// Whether we may have a blob, without fetching it.
    pub async fn has_blob(&self, digest: &Digest) -> Result<(), PullError> {
        let path = format!("blobs/{digest}");
        let (mut response, name) = self.answer(Method::HEAD, &path, HeaderMap::new()).await?;
        // Some know no HEAD, and a signed URL to which one is redirected may be for GET alone.
        let unclear = [
            StatusCode::BAD_REQUEST,
            StatusCode::FORBIDDEN,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::NOT_IMPLEMENTED,
        ];
        if unclear.contains(&response.status()) {
            let mut first = HeaderMap::new();
            first.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            (response, _) = self.answer(Method::GET, &path, first).await?;
        }
        success(response, &name).map(drop)
    }

    /// A small blob, whole.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        let (response, name) = self.get(&format!("blobs/{digest}"), HeaderMap::new()).await?;
        let bytes = self.http.bounded(response, size, &name).await?;
        if !digest.matches(&bytes) {
            return Err(PullError::new(
                Reason::WrongDigest,
                format!("{name}: its content has another digest"),
            ));
        }
        if bytes.len() as u64 != size {
            let why = format!("{name}: it has {} bytes, but the manifest says {size}", bytes.len());
            return Err(PullError::new(Reason::Malformed, why));
        }
        Ok(bytes)
    }

    /// Starts a transfer at an offset. Beside a success, "416 Range Not Satisfiable" is an answer where one was asked for.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, PullError> {
        let (response, name) = self
            .answer(Method::GET, &format!("blobs/{digest}"), range(from))
            .await?;
        if from > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        unencoded(response, &name)
    }

    /// GET with authentication; answers a success, and a name for messages.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<(Response, String), PullError> {
        let (response, name) = self.answer(Method::GET, path, headers).await?;
        Ok((unencoded(response, &name)?, name))
    }

    /// A request with authentication; answers whatever came, and a name for messages.
    async fn answer(&self, method: Method, path: &str, headers: HeaderMap) -> Result<(Response, String), PullError> {
        let name = self.name(path);
        let base = self.base().await?;
        let url = base
            .join(&format!("v2/{}/{path}", self.place.repository))
            .map_err(|_| PullError::new(Reason::BadReference, format!("{name}: it makes no URL")))?;
        let route = Route {
            url: &url,
            named: base,
            plain: false,
        };
        let mut sent = self.session.lock().await.authorization();
        let mut response = self.http.send(&method, route, &headers, sent.as_deref(), &name).await?;
        let mut fresh = false;
        // Each round takes over what another request has got meanwhile, renews a token once, or uses a
        // login up.
        while matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let mut session = self.session.lock().await;
            let known = session.authorization();
            if known.is_some() && known != sent {
                fresh = false;
                sent = known;
            } else {
                if response.status() == StatusCode::UNAUTHORIZED {
                    let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
                    session.challenges = challenges.filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
                }
                let expired = response.status() == StatusCode::UNAUTHORIZED && !fresh;
                if !expired && (sent.is_none() || !session.next(self.logins.len())) {
                    session.reset();
                    break;
                }
                let authorization = self.authorize(base, &mut session).await?;
                // However short its life is, it is good for this request.
                sent = Some(authorization.value.clone());
                session.renew(authorization);
                fresh = true;
            }
            drop(session);
            response = self.http.send(&method, route, &headers, sent.as_deref(), &name).await?;
        }
        Ok((response, name))
    }

    /// Answers the challenges with the login in use, or with the next one that does not fail.
    async fn authorize(&self, base: &Url, session: &mut Session) -> Result<Authorization, PullError> {
        loop {
            let asked = auth::Asked {
                base,
                place: &self.place,
                wanted: &self.wanted,
                challenges: &session.challenges,
            };
            let result = match self.logins.get(session.login) {
                None => auth::authorize(&self.http, &asked, None).await,
                Some(login) => match login.credential().await {
                    Ok(credential) => auth::authorize(&self.http, &asked, credential.as_ref()).await,
                    Err(error) => Err(PullError {
                        message: format!("{}: {}", self.wanted, error.message),
                        ..error
                    }),
                },
            };
            match result {
                Err(error) if error.reason == Reason::Unauthorized && session.next(self.logins.len()) => {}
                Err(error) => {
                    session.reset();
                    return Err(error);
                }
                authorization => return authorization,
            }
        }
    }
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
    headers
}
