//! A small client for OCI registries (distribution-spec) and plain http(s) files.
//!
//! Our own, because the `oci-client` crate reads manifests and errors of any size into memory, sends Basic
//! credentials to whatever realm a registry names, and lets redirects be followed unseen.
//! Here: bodies are bounded, credentials go to the configured registry and token servers of its own
//! domain only, redirects never carry them, keep https, and never lead to link-local or (from
//! outside) to loopback addresses. Time-outs are for standing still, not for the whole.

mod auth;
pub mod blob;
pub mod manifest;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Mutex;

use crate::error::{PullError, Reason};
use crate::reference::{Digest, Reference};
use crate::types::{Credential, Limits};

const REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(15);

/// A session with one registry; cheap to clone, tokens are shared.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    http: Client,
    limits: Limits,
    reference: Reference,
    credential: Option<Credential>,
    base: Url,
    authorization: Mutex<HashMap<String, String>>,
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

/// A client with our bounds, for [`Registry`] and plain downloads.
pub fn http_client(limits: &Limits) -> Result<Client, PullError> {
    // reqwest comes without cryptography of its own and takes the process's. Where the program has
    // chosen none yet, this is the choice; losing that race to somebody else is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("vmlet/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .read_timeout(limits.stall_timeout)
        .build()
        .map_err(|error| PullError::new(Reason::Internal, format!("cannot set up TLS: {error}")))
}

impl Registry {
    /// Opens a session. A registry on loopback is asked whether it speaks plain HTTP.
    pub async fn open(
        http: Client,
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
            && http
                .get(probe)
                .send()
                .await
                .is_ok_and(|answer| answer.status() != StatusCode::BAD_REQUEST)
        {
            base = plain;
        }
        let credential = credentials
            .iter()
            .find(|c| c.registry == reference.registry || c.registry == host)
            .cloned();
        Ok(Registry(Arc::new(Inner {
            http,
            limits,
            reference,
            credential,
            base,
            authorization: Mutex::default(),
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
        let bytes = bounded(response, self.0.limits.manifest_bytes, &name).await?;
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

    /// Fetches a small blob into memory.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        if size > self.0.limits.manifest_bytes {
            return Err(PullError::new(
                Reason::TooLarge,
                format!("the configuration {digest} has {size} bytes; that is too many"),
            ));
        }
        let (response, name) = self.get(&format!("blobs/{digest}"), HeaderMap::new()).await?;
        let bytes = bounded(response, size, &name).await?;
        if !digest.matches(&bytes) {
            return Err(PullError::new(
                Reason::WrongDigest,
                format!("{name}: its content has another digest"),
            ));
        }
        Ok(bytes)
    }

    /// Starts a download of a blob at an offset.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, PullError> {
        Ok(self.get(&format!("blobs/{digest}"), range(from)).await?.0)
    }

    /// GET with authentication; answers a success, and a name for messages.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<(Response, String), PullError> {
        let inner = &*self.0;
        let name = format!("{}/{} ({path})", inner.reference.registry, inner.reference.repository);
        let url = inner
            .base
            .join(&format!("v2/{}/{path}", inner.reference.repository))
            .map_err(|_| PullError::new(Reason::BadReference, format!("{name}: it makes no URL")))?;
        let key = "pull".to_owned();
        let known = inner.authorization.lock().await.get(&key).cloned();
        let mut response = follow(&inner.http, url.clone(), headers.clone(), known.as_deref(), &name).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // One at a time: whoever comes second finds the first one's token.
            let mut tokens = inner.authorization.lock().await;
            let fresh = match tokens.get(&key) {
                Some(current) if Some(current) != known.as_ref() => current.clone(),
                _ => {
                    let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
                    let challenges: Vec<String> =
                        challenges.filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
                    auth::authorize(
                        &inner.http,
                        &inner.base,
                        &inner.reference,
                        inner.credential.as_ref(),
                        &challenges,
                    )
                    .await?
                }
            };
            tokens.insert(key, fresh.clone());
            drop(tokens);
            response = follow(&inner.http, url, headers, Some(&fresh), &name).await?;
        }
        Ok((success(response, &name)?, name))
    }
}

/// Headers that ask for what follows `from`.
pub(crate) fn range(from: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if from > 0
        && let Ok(value) = format!("bytes={from}-").parse()
    {
        headers.insert(RANGE, value);
    }
    headers
}

/// GET that follows redirects under our rules. `authorization` goes to the first origin only.
pub(crate) async fn follow(
    http: &Client,
    first: Url,
    headers: HeaderMap,
    authorization: Option<&str>,
    name: &str,
) -> Result<Response, PullError> {
    let refuse = |why: &str| Err(PullError::new(Reason::BadReference, format!("{name}: {why}")));
    let mut url = first.clone();
    for _ in 0..=REDIRECTS {
        if is_link_local(&url) {
            return refuse("it leads to a link-local address, which is never asked");
        }
        let mut request = http.get(url.clone()).headers(headers.clone());
        if let Some(value) = authorization
            && url.origin() == first.origin()
        {
            request = request.header(AUTHORIZATION, value);
        }
        let response = request.send().await.map_err(|error| unreachable(name, error))?;
        let status = response.status();
        if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let next = response
            .headers()
            .get(LOCATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|to| url.join(to).ok());
        let Some(next) = next else {
            return refuse("it redirects to nowhere");
        };
        if !(next.scheme() == "https" || next.scheme() == "http" && url.scheme() == "http" && is_loopback(&next)) {
            return refuse("it redirects away from https");
        }
        if is_loopback(&next) && !is_loopback(&first) {
            return refuse("it redirects to this machine");
        }
        url = next;
    }
    refuse("it redirects for ever")
}

/// Turns an answer that is no success into the error that it means.
pub(crate) fn success(response: Response, name: &str) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let reason = match status.as_u16() {
        401 | 403 => Reason::Unauthorized,
        404 | 410 => Reason::NotFound,
        429 => Reason::RateLimited,
        408 | 500..=599 => Reason::Unavailable,
        _ => Reason::UnsupportedFormat,
    };
    let hint = match reason {
        Reason::Unauthorized => "; check the pull secret and that it may read this repository",
        Reason::NotFound => "; check the name and the tag, and whether it needs a login",
        _ => "",
    };
    let message = format!("{name}: the server answered {status}{hint}");
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().parse::<u64>().ok());
    Err(match after {
        Some(seconds) if reason.is_transient() => {
            PullError::retry_after(reason, message, Duration::from_secs(seconds.min(3600)))
        }
        _ => PullError::new(reason, message),
    })
}

/// Reads a whole body of at most `most` bytes.
pub(crate) async fn bounded(response: Response, most: u64, name: &str) -> Result<Vec<u8>, PullError> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| unreachable(name, error))?;
        if (bytes.len() + chunk.len()) as u64 > most {
            return Err(PullError::new(
                Reason::TooLarge,
                format!("{name}: it is larger than {most} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A transport error in our words. The URL is left out: it may hold a signature.
pub(crate) fn unreachable(name: &str, error: reqwest::Error) -> PullError {
    let error = error.without_url();
    let reason = if error.is_timeout() && !error.is_connect() {
        Reason::Stalled
    } else {
        Reason::Unavailable
    };
    let mut message = format!("{name}: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    PullError::new(reason, message)
}

fn address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

fn is_loopback(url: &Url) -> bool {
    url.host_str() == Some("localhost") || address(url).is_some_and(|ip| ip.is_loopback())
}

fn is_link_local(url: &Url) -> bool {
    match address(url) {
        Some(IpAddr::V4(ip)) => ip.is_link_local() || ip.is_unspecified(),
        Some(IpAddr::V6(ip)) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_link_local())
        }
        None => false,
    }
}
