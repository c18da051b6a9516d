//! Files of this machine as sources: below the import directory, and inside archives.
//!
//! Nothing outside of the import directory is reached: not by `..`, not by an absolute path, not by a
//! symbolic link. What is read may change while it is read, so everything is hashed as it goes by.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use crate::error::{PullError, Reason};
use crate::layers::show;
use crate::pulls::work::{Progress, WorkContext};
use crate::reference::{Digest, Hasher};
use crate::registry::Fetched;

/// What makes a directory an OCI image layout.
const MARKER: &str = "oci-layout";
/// The entry point of an OCI image layout.
pub const INDEX: &str = "index.json";

/// A file, or a part of one.
#[derive(Clone, Debug)]
pub struct Section {
    file: Arc<File>,
    start: u64,
    /// Bytes.
    pub length: u64,
}

impl Section {
    /// All of a file, as long as it is now.
    pub fn whole(file: Arc<File>) -> io::Result<Section> {
        let length = file.metadata()?.len();
        Ok(Section { file, start: 0, length })
    }

    /// A part of this one.
    pub fn part(&self, start: u64, length: u64) -> Section {
        Section {
            file: self.file.clone(),
            start: self.start + start,
            length,
        }
    }

    /// Reads from the start.
    pub fn reader(&self) -> SectionReader {
        SectionReader {
            section: self.clone(),
            at: 0,
        }
    }
}

/// Reads a [`Section`].
pub struct SectionReader {
    section: Section,
    at: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.section.length - self.at;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self
            .section
            .file
            .read_at(&mut buf[..most], self.section.start + self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A section to be used by a job: read with progress, cancelled with the job, and checked.
#[derive(Clone)]
pub struct Here {
    /// For messages.
    pub name: String,
    /// The bytes.
    pub section: Section,
    /// What they must be, if that is known.
    pub digest: Option<Digest>,
    /// The job's.
    pub cancel: CancellationToken,
    /// The job's.
    pub progress: Progress,
}

impl Here {
    /// For a job.
    pub fn new(cx: &WorkContext, name: &str, section: Section, digest: Option<Digest>) -> Here {
        Here {
            name: name.to_owned(),
            section,
            digest,
            cancel: cx.cancel.clone(),
            progress: cx.progress.clone(),
        }
    }

    /// Reads from the start; the end is only reported when the digest holds.
    pub fn reader(&self) -> HereReader {
        HereReader {
            hasher: self.digest.as_ref().map(Digest::hasher),
            bytes: self.section.reader(),
            here: self.clone(),
        }
    }
}

/// Reads a [`Here`].
pub struct HereReader {
    here: Here,
    bytes: SectionReader,
    hasher: Option<Hasher>,
}

impl Read for HereReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.here.cancel.is_cancelled() {
            return Err(io::Error::other(PullError::cancelled()));
        }
        let n = self.bytes.read(buf)?;
        self.here.progress.add_done(n as u64);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        if n == 0
            && !buf.is_empty()
            && let Some((hasher, expected)) = self.hasher.take().zip(self.here.digest.as_ref())
        {
            let actual = hasher.finish();
            if actual != *expected {
                let why = format!("{}: it has the digest {actual} and not {expected}", self.here.name);
                return Err(io::Error::other(PullError::new(Reason::WrongDigest, why)));
            }
        }
        Ok(n)
    }
}

/// What stands at a path of the import directory.
pub enum Import {
    /// A directory: an OCI image layout.
    Layout(Layout),
    /// A plain file.
    File(Section),
}

/// Opens what is at `path` below `import_dir`. Small files of a layout have at most `most` bytes.
///
/// # Errors
/// No import directory, nothing there, or a path that leads out.
pub fn import(import_dir: Option<&Path>, path: &str, most: u64) -> Result<Import, PullError> {
    let name = format!("path {}", show(path.as_bytes()));
    let Some(import_dir) = import_dir else {
        let why = "imports from this machine's disk are switched off; start the agent with an import directory";
        return Err(PullError::new(Reason::ImportDisabled, format!("{name}: {why}")));
    };
    let root = open_import_dir(import_dir)?;
    let open = |flags| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, path, flags, Mode::empty(), resolve).map_err(|error| refused(&name, error))
    };
    let found = open(OFlags::PATH | OFlags::CLOEXEC)?;
    let stat = fstat(&found).map_err(|error| refused(&name, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(Import::Layout(Layout {
            files: Files::Directory(Arc::new(found)),
            name,
            most,
        })),
        FileType::RegularFile => {
            // A pipe that takes the file's place must not hold us up.
            let file = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?);
            plain(&name, file).map(Import::File)
        }
        _ => Err(PullError::new(
            Reason::UnsupportedFormat,
            format!("{name} is neither a file nor a directory"),
        )),
    }
}

/// The import directory itself.
///
/// # Errors
/// It is not there, is no directory, or is closed to us.
pub fn open_import_dir(import_dir: &Path) -> Result<OwnedFd, PullError> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, import_dir, directory, Mode::empty()).map_err(|error| {
        let (dir, error) = (import_dir.display(), std::io::Error::from(error));
        let message =
            format!("the import directory {dir}: {error}; create it, or start the agent with another --import-dir");
        PullError::new(Reason::StoreFailed, message)
    })
}

fn plain(name: &str, file: File) -> Result<Section, PullError> {
    let metadata = file.metadata().map_err(|error| PullError::io(name, &error))?;
    if !metadata.is_file() {
        return Err(PullError::new(Reason::Malformed, format!("{name} is no file")));
    }
    Section::whole(Arc::new(file)).map_err(|error| PullError::io(name, &error))
}

/// The files of a layout.
#[derive(Clone)]
enum Files {
    Directory(Arc<OwnedFd>),
    Archive(Arc<Archive>),
}

/// An OCI image layout (image specification, image-layout.md): in a directory, or in an archive.
#[derive(Clone)]
pub struct Layout {
    /// For messages.
    pub name: String,
    files: Files,
    most: u64,
}

impl Layout {
    /// The layout in an archive.
    pub fn in_archive(name: String, archive: Arc<Archive>, most: u64) -> Layout {
        Layout {
            name,
            files: Files::Archive(archive),
            most,
        }
    }

    fn file(&self, file: &str) -> Result<Section, PullError> {
        let name = format!("{}: {file}", self.name);
        match &self.files {
            Files::Directory(dir) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let fd = openat2(&**dir, file, flags, Mode::empty(), resolve);
                plain(&name, File::from(fd.map_err(|error| refused(&name, error))?))
            }
            Files::Archive(archive) => archive.file(file.as_bytes()).ok_or_else(|| {
                PullError::new(
                    Reason::NotFound,
                    format!("{name}: there is no such file in the archive"),
                )
            }),
        }
    }

    fn small(&self, file: &str) -> Result<Vec<u8>, PullError> {
        small(&format!("{}: {file}", self.name), &self.file(file)?, self.most)
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

    /// Whether it is a layout of a version that is known.
    fn check(&self) -> Result<(), PullError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let refused = |reason, why: &str| Err(PullError::new(reason, format!("{}: its {MARKER} {why}", self.name)));
        let version = match serde_json::from_slice::<Marker>(&self.small(MARKER)?) {
            Ok(marker) => marker.image_layout_version,
            Err(error) => return refused(Reason::Malformed, &format!("is broken: {error}")),
        };
        let patch = version.strip_prefix("1.0.");
        if patch.is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(());
        }
        let version = show(version.as_bytes());
        let why = format!("names the version {version:.100}; only 1.0.0 and its like are known");
        refused(Reason::UnsupportedFormat, &why)
    }

    /// A manifest or index; a digest is enforced.
    pub fn manifest(&self, version: &str) -> Result<Fetched, PullError> {
        self.check()?;
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

    /// A small blob of this size; its digest is enforced.
    pub fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, PullError> {
        let bytes = self.checked(digest)?;
        if bytes.len() as u64 == size {
            Ok(bytes)
        } else {
            Err(self.wrong_size(digest, bytes.len() as u64, size))
        }
    }

    /// A blob of this size.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Section, PullError> {
        let section = self.file(&place(digest))?;
        if section.length == size {
            Ok(section)
        } else {
            Err(self.wrong_size(digest, section.length, size))
        }
    }

    fn wrong_size(&self, digest: &Digest, actual: u64, size: u64) -> PullError {
        let why = format!("{digest} has {actual} bytes, but the manifest says {size}");
        PullError::new(Reason::Malformed, format!("{}: {why}", self.name))
    }
}

/// Reads a small file whole.
pub fn small(name: &str, section: &Section, most: u64) -> Result<Vec<u8>, PullError> {
    if section.length > most {
        return Err(PullError::new(
            Reason::TooLarge,
            format!("{name} has more than {most} bytes"),
        ));
    }
    let mut bytes = Vec::new();
    let read = section.reader().read_to_end(&mut bytes);
    read.map_err(|error| PullError::io(name, &error))?;
    Ok(bytes)
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn refused(name: &str, error: rustix::io::Errno) -> PullError {
    use rustix::io::Errno;
    let (reason, why) = match error {
        Errno::NOENT | Errno::NOTDIR => (
            Reason::NotFound,
            "there is no such thing in the import directory; a directory must be an OCI image layout",
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
