//! Where manifests and blobs come from: a registry, an OCI image layout, or one file.

use reqwest::{Response, StatusCode, Url};

use super::Inner;
use super::local::{INDEX, Import, Layout, Section, import};
use crate::error::{PullError, Reason};
use crate::layers::show;
use crate::reference::{Digest, ParseError, Reference};
use crate::registry::blob::{Transfer, file_name};
use crate::registry::http::{Http, Route, range, success};
use crate::registry::{Fetched, Registry};
use crate::types::{Credential, Source};

/// A source, opened.
pub enum Opened {
    /// It has manifests; this is the one to begin with.
    Image(Origin, String),
    /// It is one file.
    File(FileSource),
}

/// Answers for manifests and blobs.
#[derive(Clone)]
pub enum Origin {
    /// Over the network.
    Registry(Registry),
    /// From the local disk.
    Layout(Layout),
}

/// One file.
pub struct FileSource {
    /// For messages.
    pub name: String,
    /// What its bytes must be; `None` for a file of this machine that is only to be looked at.
    pub digest: Option<Digest>,
    /// Where it is.
    pub place: FilePlace,
}

/// Where a file is.
pub enum FilePlace {
    /// Behind a URL.
    Web(WebFile),
    /// On the local disk.
    Disk(Section),
}

/// A file behind a URL.
#[derive(Clone)]
pub struct WebFile {
    http: Http,
    url: Url,
    name: String,
}

/// What is downloaded, whole or from an offset.
#[derive(Clone)]
pub enum Remote {
    /// Blobs of a registry.
    Registry(Registry),
    /// One file, whatever its digest.
    Web(WebFile),
}

impl Inner {
    /// Opens a source. `digest` is what it is pinned to.
    ///
    /// # Errors
    /// A reference, URL or path that is none, and what the registry or the disk say.
    pub async fn open(
        &self,
        source: &Source,
        digest: Option<&str>,
        credentials: &[Credential],
    ) -> Result<Opened, PullError> {
        let bad = |error: ParseError| PullError::new(Reason::BadReference, format!("{source}: {error}"));
        let digest = digest.map(|digest| digest.parse::<Digest>().map_err(bad)).transpose()?;
        match source {
            Source::Oci { reference, .. } => {
                let mut reference: Reference = reference.parse().map_err(bad)?;
                reference.digest = digest.or(reference.digest);
                let version = reference.version();
                let registry = Registry::open(self.http.clone(), self.limits.clone(), reference, credentials)?;
                Ok(Opened::Image(Origin::Registry(registry), version))
            }
            Source::Path { path } => match import(self.import_dir.as_deref(), path, self.limits.manifest_bytes)? {
                Import::Layout(layout) => {
                    let version = digest.map_or_else(|| INDEX.to_owned(), |digest| digest.to_string());
                    Ok(Opened::Image(Origin::Layout(layout), version))
                }
                Import::File(section) => Ok(Opened::File(FileSource {
                    name: format!("path {}", show(path.as_bytes())),
                    digest,
                    place: FilePlace::Disk(section),
                })),
            },
            Source::Http { url, sha256 } => {
                let named: Digest = format!("sha256:{}", sha256.to_ascii_lowercase()).parse().map_err(bad)?;
                if digest.is_some_and(|pinned| pinned != named) {
                    let why = format!("{source}: another digest is pinned than its sha256");
                    return Err(PullError::new(Reason::BadReference, why));
                }
                Ok(Opened::File(FileSource {
                    name: source.to_string(),
                    digest: Some(named),
                    place: FilePlace::Web(WebFile::new(self.http.clone(), url, source.to_string())?),
                }))
            }
        }
    }
}

impl Origin {
    /// For messages and records.
    pub fn name(&self) -> String {
        match self {
            Origin::Registry(registry) => registry.reference().to_string(),
            Origin::Layout(layout) => layout.name.clone(),
        }
    }

    /// A manifest or index; a digest is enforced.
    pub async fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        match self {
            Origin::Registry(registry) => registry.manifest(version).await,
            Origin::Layout(layout) => layout.manifest(version),
        }
    }

    /// A small blob of this size; its digest is enforced.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        match self {
            Origin::Registry(registry) => registry.small_blob(digest, size).await,
            Origin::Layout(layout) => layout.small_blob(digest, size),
        }
    }
}

impl WebFile {
    fn new(http: Http, url: &str, name: String) -> Result<WebFile, PullError> {
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| PullError::new(Reason::BadReference, format!("{name} is no http or https URL")))?;
        Ok(WebFile { http, url, name })
    }

    async fn get(&self, from: u64) -> Result<Response, PullError> {
        let route = Route {
            url: &self.url,
            named: &self.url,
            plain: true,
        };
        let response = self.http.get(route, &range(from), None, &self.name).await?;
        if from > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        success(response, &self.name)
    }
}

impl Remote {
    /// The name of the file in which a blob of it is kept.
    pub fn file_name(&self, digest: &Digest) -> String {
        match self {
            Remote::Registry(registry) => file_name(&registry.reference().registry, digest),
            Remote::Web(file) => file_name(&file.url.origin().ascii_serialization(), digest),
        }
    }

    /// Whether the asker may have a blob that is here already. A web server has nothing to say: the sha256 that the
    /// asker names is the key.
    pub async fn may_have(&self, digest: &Digest) -> Result<(), PullError> {
        match self {
            Remote::Registry(registry) => registry.has_blob(digest).await,
            Remote::Web(_) => Ok(()),
        }
    }

    /// A blob's bytes, from the start or from an offset; not checked. "416 Range Not Satisfiable" is an answer.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Transfer, PullError> {
        match self {
            Remote::Registry(registry) => registry.blob(digest, from).await,
            Remote::Web(file) => Ok(Transfer {
                response: file.get(from).await?,
                mirror: None,
            }),
        }
    }
}
