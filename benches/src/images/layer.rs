//! A layer that is being made: a tar in a file, then its blobs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// All that is made is of this time.
pub const TIME: u64 = 1_700_000_000;
/// Files up to this size are remembered: later layers are made of them.
const SMALL: u64 = 16 << 10;

/// A tar that grows.
pub struct Layer {
    tar: Builder<BufWriter<Sum<File>>>,
    path: PathBuf,
    /// Names that are there, and what they are.
    names: BTreeMap<String, EntryType>,
    /// Contents of small regular files.
    pub small: BTreeMap<String, Vec<u8>>,
}

/// The same layer in its three forms.
pub struct Made {
    /// Digest of the tar.
    pub diff_id: String,
    /// Entries in it.
    pub entries: usize,
    /// Bytes of the tar.
    pub tar: Blob,
    /// gzip, level 6.
    pub gzip: Blob,
    /// zstd, level 3.
    pub zstd: Blob,
}

/// A blob in the directory of blobs.
#[derive(Clone)]
pub struct Blob {
    /// `sha256:...`
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Layer {
    /// Begins a layer; its tar is kept in `dir` until it is finished.
    pub fn begin(dir: &Path) -> Result<Layer> {
        let path = dir.join("layer.tar");
        let out = BufWriter::with_capacity(1 << 20, Sum::new(File::create(&path)?));
        Ok(Layer {
            tar: Builder::new(out),
            path,
            names: BTreeMap::new(),
            small: BTreeMap::new(),
        })
    }

    /// A header of our own making.
    pub fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(TIME);
        header.set_size(0);
        header
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        let mut header = Layer::header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)?;
        self.names.insert(path.to_owned(), EntryType::Regular);
        Ok(())
    }

    /// A regular file with extended attributes.
    pub fn file_with(&mut self, path: &str, mode: u32, content: &[u8], xattrs: &[(&str, &[u8])]) -> Result<()> {
        self.parents(path)?;
        let names: Vec<String> = xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let pax = names
            .iter()
            .map(String::as_str)
            .zip(xattrs.iter().map(|(_, value)| *value));
        self.tar.append_pax_extensions(pax)?;
        self.file(path, mode, content)
    }

    /// A directory.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.other(path, Layer::header(EntryType::Directory, mode))
    }

    /// Something without content and without a target.
    pub fn other(&mut self, path: &str, mut header: Header) -> Result<()> {
        if header.entry_type().is_dir() && self.names.get(path).is_some_and(|kind| kind.is_dir()) {
            return Ok(());
        }
        self.parents(path)?;
        self.names.insert(path.to_owned(), header.entry_type());
        Ok(self.tar.append_data(&mut header, path, io::empty())?)
    }

    /// A symbolic or a hard link.
    pub fn link(&mut self, path: &str, mut header: Header, target: &str) -> Result<()> {
        self.parents(path)?;
        self.names.insert(path.to_owned(), header.entry_type());
        Ok(self.tar.append_link(&mut header, path, target)?)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) if !self.names.contains_key(parent) => self.directory(parent, 0o755),
            _ => Ok(()),
        }
    }

    /// What a Debian package installs, with /usr merged as Debian's installer merges it.
    pub fn package(&mut self, deb: &Path) -> Result<()> {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("dpkg-deb")?;
        let out = child.stdout.take().context("dpkg-deb has no output")?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 16, out));
        for entry in archive.entries()? {
            self.member(&mut entry?).with_context(|| deb.display().to_string())?;
        }
        ensure!(child.wait()?.success(), "dpkg-deb fails for {}", deb.display());
        Ok(())
    }

    fn member(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let merged = |path: &Path| -> Result<String> {
            let path = path.to_str().context("a name is not UTF-8")?;
            let path = path.trim_start_matches("./").trim_end_matches('/');
            let first = path.split('/').next().unwrap_or_default();
            let merge = matches!(first, "bin" | "sbin" | "lib" | "lib32" | "lib64" | "libx32");
            Ok(if merge { format!("usr/{path}") } else { path.to_owned() })
        };
        let path = merged(&entry.path()?)?;
        // Two packages never have the same file, but merging may make two of one.
        if path.is_empty() || self.names.get(&path).is_some_and(|kind| !kind.is_dir()) {
            return Ok(());
        }
        let mut header = entry.header().clone();
        match header.entry_type() {
            EntryType::Regular if entry.size() <= SMALL => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                self.parents(&path)?;
                self.tar.append_data(&mut header, &path, content.as_slice())?;
                self.names.insert(path.clone(), EntryType::Regular);
                self.small.insert(path, content);
                Ok(())
            }
            EntryType::Regular => {
                self.parents(&path)?;
                self.names.insert(path.clone(), EntryType::Regular);
                Ok(self.tar.append_data(&mut header, &path, entry)?)
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.context("a link without a target")?;
                self.link(&path, header, target.to_str().context("a target is not UTF-8")?)
            }
            EntryType::Link => {
                let target = merged(&entry.link_name()?.context("a link without a target")?)?;
                self.link(&path, header, &target)
            }
            EntryType::Directory => self.other(&path, header),
            kind => anyhow::bail!("{path} is of the type {kind:?}"),
        }
    }

    /// Names in this layer that are directly below a directory.
    pub fn below<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = &'a str> {
        let name = move |path: &'a String| {
            path.strip_prefix(dir)?
                .strip_prefix('/')
                .filter(|name| !name.contains('/'))
        };
        self.names.keys().filter_map(name)
    }

    /// Ends the layer and puts its three forms into the directory of blobs.
    pub fn finish(self, blobs: &Path) -> Result<Made> {
        let entries = self.names.len();
        let mut out = self.tar.into_inner()?;
        out.flush()?;
        let tar = out.into_inner().map_err(io::IntoInnerError::into_error)?.blob();
        let open = || File::open(&self.path);
        let temporary = |name: &str| self.path.with_extension(name);
        let mut gzip =
            flate2::write::GzEncoder::new(Sum::new(File::create(temporary("gz"))?), flate2::Compression::new(6));
        io::copy(&mut open()?, &mut gzip)?;
        let gzip = gzip.finish()?.blob();
        let mut zstd = zstd::Encoder::new(Sum::new(File::create(temporary("zst"))?), 3)?;
        io::copy(&mut open()?, &mut zstd)?;
        let zstd = zstd.finish()?.blob();
        for (name, blob) in [("tar", &tar), ("gz", &gzip), ("zst", &zstd)] {
            std::fs::rename(temporary(name), blobs.join(blob.digest.trim_start_matches("sha256:")))?;
        }
        Ok(Made {
            diff_id: tar.digest.clone(),
            entries,
            tar,
            gzip,
            zstd,
        })
    }
}

/// Hashes and counts what is written through it.
struct Sum<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W> Sum<W> {
    fn new(inner: W) -> Sum<W> {
        Sum {
            inner,
            hasher: Sha256::new(),
            size: 0,
        }
    }

    fn blob(self) -> Blob {
        Blob {
            digest: digest(self.hasher),
            size: self.size,
        }
    }
}

impl<W: Write> Write for Sum<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// `sha256:...`
pub fn digest(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}
