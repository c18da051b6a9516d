//! A small client for OCI registries (distribution-spec) and plain http(s) files.
//!
//! Our own, because the `oci-client` crate reads manifests and errors of any size into memory, sends Basic
//! credentials to whatever realm a registry names, and lets redirects be followed unseen.
//! Here: bodies are bounded, credentials go to the configured registry and token servers of its own
//! domain only, redirects never carry them, keep https, and never lead to link-local or (from
//! outside) to loopback addresses. Time-outs are for standing still, not for the whole.
//!
//! An image may have mirrors ([`config`]): for each request the hosts are asked in order until one gives what is wanted,
//! the reference's own last. Those in trouble are asked after the others, those that asked for a pause not before it is
//! over, and one that had wrong content under a digest not for that one again ([`health`]).

mod addresses;
mod auth;
mod authorities;
pub mod blob;
mod challenge;
mod clients;
pub mod config;
mod endpoint;
mod health;
pub mod http;
pub mod manifest;
mod proxy;
mod session;
mod ways;

use std::sync::Arc;

use self::blob::{Mirror, Transfer};
use self::endpoint::Endpoint;
use self::http::Http;
use self::ways::Ways;
use crate::error::{PullError, Reason};
use crate::reference::{Digest, Reference};
use crate::types::{Credential, Limits};

/// Those who give one image; cheap to clone, tokens are shared.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    http: Http,
    limits: Limits,
    reference: Reference,
    /// In order; the last is no mirror.
    endpoints: Vec<Endpoint>,
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
    /// Gets ready to ask for an image. Nothing is sent yet.
    ///
    /// # Errors
    /// The operator has blocked it.
    pub fn open(
        http: Http,
        limits: Limits,
        reference: Reference,
        credentials: &[Credential],
    ) -> Result<Registry, PullError> {
        let targets = http.registries().targets(&reference);
        let targets = targets.map_err(|why| PullError::new(Reason::BadReference, format!("{reference}: {why}")))?;
        let endpoint = |target| Endpoint::new(&http, &limits, &reference, target, credentials);
        let endpoints = targets.into_iter().map(endpoint).collect();
        Ok(Registry(Arc::new(Inner {
            http,
            limits,
            reference,
            endpoints,
        })))
    }

    /// What is asked for.
    pub fn reference(&self) -> &Reference {
        &self.0.reference
    }

    fn ways<'a>(&'a self, digest: Option<&'a Digest>) -> Ways<'a> {
        Ways::new(self.0.http.health(), &self.0.reference, &self.0.endpoints, digest)
    }

    /// Fetches a manifest by tag or digest; a digest is enforced.
    ///
    /// # Errors
    /// Of the last host, naming what the others said.
    pub async fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        let digest = version.parse::<Digest>().ok();
        let mut round = 0;
        loop {
            let mut ways = self.ways(digest.as_ref());
            while let Some(endpoint) = ways.next() {
                match endpoint.manifest(version).await {
                    // A page of some proxy, say. The registry's own word is for the caller to judge.
                    Ok(fetched)
                        if ways.is_mirror(endpoint)
                            && let Err(error) = manifest::parse(&fetched.bytes, self.0.limits.layers) =>
                    {
                        ways.failed(endpoint, error);
                    }
                    Ok(fetched) => return Ok(fetched),
                    Err(error) => ways.failed(endpoint, error),
                }
            }
            ways.again(&mut round).await?;
        }
    }

    /// Asks whether we may have a manifest, without fetching it; answers with its media type.
    ///
    /// # Errors
    /// Of the last host, naming what the others said.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<String, PullError> {
        let mut round = 0;
        loop {
            let mut ways = self.ways(Some(digest));
            while let Some(endpoint) = ways.next() {
                match endpoint.has_manifest(digest).await {
                    Ok(media_type) => return Ok(media_type),
                    Err(error) => ways.failed(endpoint, error),
                }
            }
            ways.again(&mut round).await?;
        }
    }

    /// Asks whether we may have a blob, without fetching it.
    ///
    /// # Errors
    /// Of the last host, naming what the others said.
    pub async fn has_blob(&self, digest: &Digest) -> Result<(), PullError> {
        let mut round = 0;
        loop {
            let mut ways = self.ways(Some(digest));
            while let Some(endpoint) = ways.next() {
                match endpoint.has_blob(digest).await {
                    Ok(()) => return Ok(()),
                    Err(error) => ways.failed(endpoint, error),
                }
            }
            ways.again(&mut round).await?;
        }
    }

    /// Fetches a small blob into memory.
    ///
    /// # Errors
    /// Of the last host, naming what the others said; a size that is too large.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        if size > self.0.limits.manifest_bytes {
            return Err(PullError::new(
                Reason::TooLarge,
                format!("the configuration {digest} has {size} bytes; that is too many"),
            ));
        }
        let mut round = 0;
        loop {
            let mut ways = self.ways(Some(digest));
            while let Some(endpoint) = ways.next() {
                match endpoint.small_blob(digest, size).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => ways.failed(endpoint, error),
                }
            }
            ways.again(&mut round).await?;
        }
    }

    /// Starts a download of a blob at an offset. Beside a success, "416 Range Not Satisfiable" is an answer. Who
    /// downloads tries again by itself.
    ///
    /// # Errors
    /// Of the last host, naming what the others said.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Transfer, PullError> {
        let mut ways = self.ways(Some(digest));
        while let Some(endpoint) = ways.next() {
            match endpoint.blob(digest, from).await {
                Ok(response) => {
                    let mirror = ways.is_mirror(endpoint);
                    return Ok(Transfer {
                        response,
                        mirror: mirror.then(|| Mirror::new(&endpoint.target.host, self.0.http.health())),
                    });
                }
                Err(error) => ways.failed(endpoint, error),
            }
        }
        Err(ways.error())
    }
}
