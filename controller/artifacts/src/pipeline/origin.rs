//! Where manifests and blobs come from: a registry, or an OCI image layout (image specification,
//! image-layout.md) in a directory below the import directory.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use futures::stream;
use reqwest::{Body, Response};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::Inner;
use crate::error::{PullError, Reason};
use crate::layers::show;
use crate::reference::{Digest, ParseError, Reference};
use crate::registry::{Fetched, Registry};
use crate::types::{Credential, Source};

const INDEX: &str = "index.json";
const CHUNK: usize = 256 << 10;

/// Answers for manifests and blobs.
#[derive(Clone)]
pub enum Origin {
    /// Over the network.
    Registry(Registry),
    /// From the local disk.
    Layout(Layout),
}

impl Inner {
    /// The origin of a source, and the manifest in it to begin with.
    pub async fn origin(
        &self,
        source: &Source,
        digest: Option<&str>,
        credentials: &[Credential],
    ) -> Result<(Origin, String), PullError> {
        let bad = |error: ParseError| PullError::new(Reason::BadReference, error.to_string());
        let digest = digest.map(|digest| digest.parse::<Digest>().map_err(bad)).transpose()?;
        match source {
            Source::Oci { reference, .. } => {
                let mut reference: Reference = reference.parse().map_err(bad)?;
                reference.digest = digest.or(reference.digest);
                let version = reference.version();
                let registry = Registry::open(self.http.clone(), self.limits.clone(), reference, credentials).await?;
                Ok((Origin::Registry(registry), version))
            }
            Source::Path { path } => {
                let layout = Layout::open(self.import_dir.as_deref(), path, self.limits.manifest_bytes)?;
                Ok((
                    Origin::Layout(layout),
                    digest.map_or_else(|| INDEX.to_owned(), |digest| digest.to_string()),
                ))
            }
            Source::Http { .. } => {
                let why = "files from web servers cannot be used yet; push it to a registry";
                Err(PullError::new(Reason::UnsupportedFormat, format!("{source}: {why}")))
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

    /// A small blob; its digest is enforced.
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        match self {
            Origin::Registry(registry) => registry.small_blob(digest, size).await,
            Origin::Layout(layout) => layout.checked(digest),
        }
    }

    /// A blob's bytes, from the start or from an offset; not checked. Polling the answer may block.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, PullError> {
        match self {
            Origin::Registry(registry) => registry.blob(digest, from).await,
            Origin::Layout(layout) => layout.blob(digest),
        }
    }
}

/// An OCI image layout in a directory.
#[derive(Clone)]
pub struct Layout {
    name: String,
    dir: Arc<OwnedFd>,
    most: u64,
}

impl Layout {
    /// Opens the layout at `path` below `import_dir`. Nothing outside of it is reached: not by
    /// `..`, not by an absolute path, not by a symbolic link. Small files have at most `most` bytes.
    fn open(import_dir: Option<&Path>, path: &str, most: u64) -> Result<Layout, PullError> {
        let shown = show(path.as_bytes());
        let Some(import_dir) = import_dir else {
            let why = "imports from this machine's disk are switched off; start the agent with an import directory";
            return Err(PullError::new(Reason::ImportDisabled, format!("path {shown}: {why}")));
        };
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, import_dir, directory, Mode::empty())
            .map_err(|error| PullError::io(format!("the import directory {}", import_dir.display()), &error.into()))?;
        let dir = openat2(
            &root,
            path,
            directory,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        let dir = dir.map_err(|error| refused(&format!("path {shown}"), error))?;
        Ok(Layout {
            name: format!("path {shown}"),
            dir: Arc::new(dir),
            most,
        })
    }

    fn file(&self, file: &str) -> Result<File, PullError> {
        // A pipe in the place of a file must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat2(
            &*self.dir,
            file,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        );
        let name = format!("{}: {file}", self.name);
        let opened = File::from(fd.map_err(|error| refused(&name, error))?);
        let metadata = opened.metadata().map_err(|error| PullError::io(&name, &error))?;
        if metadata.is_file() {
            Ok(opened)
        } else {
            Err(PullError::new(Reason::Malformed, format!("{name} is no file")))
        }
    }

    fn small(&self, file: &str) -> Result<Vec<u8>, PullError> {
        let mut bytes = Vec::new();
        let read = self.file(file)?.take(self.most + 1).read_to_end(&mut bytes);
        read.map_err(|error| PullError::io(format!("{}: {file}", self.name), &error))?;
        if bytes.len() as u64 > self.most {
            return Err(PullError::new(
                Reason::TooLarge,
                format!("{}: {file} has more than {} bytes", self.name, self.most),
            ));
        }
        Ok(bytes)
    }

    fn checked(&self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        let file = place(digest);
        let bytes = self.small(&file)?;
        if digest.matches(&bytes) {
            return Ok(bytes);
        }
        Err(PullError::new(
            Reason::WrongDigest,
            format!("{}: {file} is damaged: it has another digest than its name", self.name),
        ))
    }

    fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        let (digest, bytes) = match version.parse::<Digest>() {
            Ok(digest) => (digest.clone(), self.checked(&digest)?),
            Err(_) => {
                let bytes = self.small(INDEX)?;
                (Digest::sha256(&bytes), bytes)
            }
        };
        // What it is follows from its shape; this is for people.
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        Ok(Fetched {
            digest,
            media_type,
            bytes,
        })
    }

    /// As if a server without Range had sent it: the reader skips what it has.
    fn blob(&self, digest: &Digest) -> Result<Response, PullError> {
        let file = self.file(&place(digest))?;
        let chunks = stream::try_unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK];
            let n = file.read(&mut chunk)?;
            chunk.truncate(n);
            Ok::<_, std::io::Error>((n > 0).then_some((chunk, file)))
        });
        Ok(Response::from(http::Response::new(Body::wrap_stream(chunks))))
    }
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn refused(name: &str, error: rustix::io::Errno) -> PullError {
    use rustix::io::Errno;
    let (reason, why) = match error {
        Errno::NOENT | Errno::NOTDIR => (
            Reason::NotFound,
            "there is no such thing in the import directory; it must be an OCI image layout",
        ),
        Errno::XDEV | Errno::LOOP => (
            Reason::BadReference,
            "it leads out of the import directory; name a path relative to it, without links",
        ),
        Errno::INVAL | Errno::NAMETOOLONG => (Reason::BadReference, "this is no path"),
        error => return PullError::io(name, &error.into()),
    };
    PullError::new(reason, format!("{name}: {why}"))
}
