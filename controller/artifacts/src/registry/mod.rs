//! A small client for OCI registries (distribution-spec) and plain http(s) files.
//!
//! Our own, because the `oci-client` crate reads manifests and errors of any size into memory, sends Basic
//! credentials to whatever realm a registry names, and lets redirects be followed unseen.
//! Here: bodies are bounded, credentials go to the configured registry and token servers of its own
//! domain only, redirects never carry them, keep https, and never lead to link-local or (from
//! outside) to loopback addresses. Time-outs are for standing still, not for the whole.

mod addresses;
mod auth;
pub mod blob;
pub mod http;
pub mod manifest;

use std::sync::Arc;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Mutex;

use self::addresses::is_loopback;
use self::http::{Http, Route, range, success};
use crate::error::{PullError, Reason};
use crate::reference::{Digest, Reference};
use crate::types::{Credential, Limits};

/// A session with one registry; cheap to clone, tokens are shared.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    http: Http,
    limits: Limits,
    reference: Reference,
    /// Those for this registry, in the order in which they are tried.
    credentials: Vec<Credential>,
    base: Url,
    session: Mutex<Session>,
}

/// How the registry lets us in.
#[derive(Default)]
struct Session {
    /// Index of the credential in use.
    credential: usize,
    /// What the registry asked for last.
    challenges: Vec<String>,
    authorization: Option<String>,
}

/// A manifest as it came.
pub struct Fetched {
    /// Its digest.
    pub digest: Digest,
    /// Its Content-Type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Registry {
    /// Opens a session. A registry on loopback is asked whether it speaks plain HTTP.
    pub async fn open(
        http: Http,
        limits: Limits,
        reference: Reference,
        credentials: &[Credential],
    ) -> Result<Registry, PullError> {
        let host = reference.host().to_owned();
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|_| PullError::new(Reason::BadReference, format!("{host} is no registry host")))
        };
        let mut base = url("https")?;
        if is_loopback(&base)
            && let plain = url("http")?
            && let Ok(probe) = plain.join("v2/")
            && http.speaks_http(probe).await
        {
            base = plain;
        }
        let credentials = credentials.iter().filter(|c| reference.is_for(&c.registry));
        let credentials = credentials.cloned().collect();
        Ok(Registry(Arc::new(Inner {
            http,
            limits,
            reference,
            credentials,
            base,
            session: Mutex::default(),
        })))
    }

    /// What is asked for.
    pub fn reference(&self) -> &Reference {
        &self.0.reference
    }

    /// Fetches a manifest by tag or digest; a digest is enforced.
    pub async fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, reqwest::header::HeaderValue::from_static(manifest::ACCEPT));
        let (response, name) = self.get(&format!("manifests/{version}"), headers).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("");
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = self
            .0
            .http
            .bounded(response, self.0.limits.manifest_bytes, &name)
            .await?;
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

    /// Asks whether we may have a manifest, without fetching it; answers with its media type.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<String, PullError> {
        let path = format!("manifests/{digest}");
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, reqwest::header::HeaderValue::from_static(manifest::ACCEPT));
        let (response, name) = self.answer(Method::HEAD, &path, headers).await?;
        if matches!(
            response.status(),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ) {
            return Ok(self.manifest(&digest.to_string()).await?.media_type);
        }
        let response = success(response, &name)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        if let Some(other) = header("docker-content-digest").filter(|there| *there != digest.to_string()) {
            let why = format!("{name}: the registry has {other:.160} when asked for {digest}");
            return Err(PullError::new(Reason::WrongDigest, why));
        }
        Ok(header("content-type").unwrap_or_default().to_owned())
    }

    /// Fetches a small blob into memory.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        if size > self.0.limits.manifest_bytes {
            return Err(PullError::new(
                Reason::TooLarge,
                format!("the configuration {digest} has {size} bytes; that is too many"),
            ));
        }
        let (response, name) = self.get(&format!("blobs/{digest}"), HeaderMap::new()).await?;
        let bytes = self.0.http.bounded(response, size, &name).await?;
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

    /// Starts a download of a blob at an offset. Beside a success, "416 Range Not Satisfiable" is an answer.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, PullError> {
        let (response, name) = self
            .answer(Method::GET, &format!("blobs/{digest}"), range(from))
            .await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        success(response, &name)
    }

    /// GET with authentication; answers a success, and a name for messages.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<(Response, String), PullError> {
        let (response, name) = self.answer(Method::GET, path, headers).await?;
        Ok((success(response, &name)?, name))
    }

    /// A request with authentication; answers whatever came, and a name for messages.
    async fn answer(&self, method: Method, path: &str, headers: HeaderMap) -> Result<(Response, String), PullError> {
        let inner = &*self.0;
        let name = inner.name(path);
        let url = inner
            .base
            .join(&format!("v2/{}/{path}", inner.reference.repository))
            .map_err(|_| PullError::new(Reason::BadReference, format!("{name}: it makes no URL")))?;
        let route = Route {
            url: &url,
            named: &inner.base,
            plain: false,
        };
        let mut sent = inner.session.lock().await.authorization.clone();
        let mut response = inner
            .http
            .send(&method, route, &headers, sent.as_deref(), &name)
            .await?;
        let mut fresh = false;
        // Each round takes over what another request has got meanwhile, renews a token once, or uses a
        // credential up.
        while matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let mut session = inner.session.lock().await;
            if session.authorization.is_some() && session.authorization != sent {
                fresh = false;
            } else {
                if response.status() == StatusCode::UNAUTHORIZED {
                    let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
                    session.challenges = challenges.filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
                }
                let expired = response.status() == StatusCode::UNAUTHORIZED && !fresh;
                if !expired && (sent.is_none() || !session.next(inner.credentials.len())) {
                    break;
                }
                session.authorization = Some(inner.authorize(&mut session).await?);
                fresh = true;
            }
            sent = session.authorization.clone();
            drop(session);
            response = inner
                .http
                .send(&method, route, &headers, sent.as_deref(), &name)
                .await?;
        }
        Ok((response, name))
    }
}

impl Inner {
    /// What is asked for, in the words of the reference: a part of it is named beside it.
    fn name(&self, path: &str) -> String {
        match path.split_once('/') {
            Some(("manifests", version)) if version == self.reference.version() => self.reference.to_string(),
            Some(("manifests", digest)) => format!("{} (manifest {digest})", self.reference),
            Some((_, digest)) => format!("{} (blob {digest})", self.reference),
            None => format!("{} ({path})", self.reference),
        }
    }

    /// Answers the challenges with the credential in use, or with the next one that does not fail.
    async fn authorize(&self, session: &mut Session) -> Result<String, PullError> {
        loop {
            let credential = self.credentials.get(session.credential);
            match auth::authorize(&self.http, &self.base, &self.reference, credential, &session.challenges).await {
                Err(error) if error.reason == Reason::Unauthorized && session.next(self.credentials.len()) => {}
                result => return result,
            }
        }
    }
}

impl Session {
    /// Goes on to the next of `count` credentials, if there is one.
    fn next(&mut self, count: usize) -> bool {
        let more = self.credential + 1 < count;
        self.credential += usize::from(more);
        more
    }
}
