//! vmlet's kernel artefact: a kernel file and its modules, as two zstd blobs.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::Path;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vmlet_ext4::{FreeSpace, Size, Writer};

use super::super::fetch::Bytes;
use super::super::image::Found;
use super::super::{Inner, disk, failure};
use super::{KERNEL, MODULES_DISK, MODULES_TAR, is_version};
use crate::error::{PullError, Reason};
use crate::layers::apply::read_layer;
use crate::layers::budget::Budget;
use crate::layers::decode::decoder;
use crate::layers::disk::DiskStore;
use crate::layers::merge::{Layer, RecordKind, Tree};
use crate::layers::{LayerError, show};
use crate::modules_index::Indexer;
use crate::pulls::work::{BuiltKernel, WorkContext};
use crate::registry::manifest::{Descriptor, Manifest};
use crate::types::{BootFormat, Limits};

/// `artifactType` of the manifest.
pub const ARTIFACT: &str = crate::registry::manifest::KERNEL;
const CONFIG: &str = "application/vnd.vmlet.kernel.config.v1+json";
const IMAGE: &str = "application/vnd.vmlet.kernel.image.v1+zstd";
const MODULES: &str = "application/vnd.vmlet.kernel.modules.v1.tar+zstd";

/// The artefact's configuration.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    version: String,
    architecture: String,
    boot_format: BootFormat,
}

impl Inner {
    /// Unpacks a kernel artefact in `cx.dir`.
    pub async fn kernel_artefact(
        &self,
        name: &str,
        found: Found,
        platform: &str,
        cx: &WorkContext,
    ) -> Result<BuiltKernel, PullError> {
        let name = name.to_owned();
        let parts = parts(&name, &found.manifest)?;
        let fits = |what: &str, part: &Descriptor, most: u64, flag: &str| {
            let why = || format!("{name}: its {what} has {} bytes, more than {most} ({flag})", part.size);
            let fits = part.size <= most;
            fits.then_some(())
                .ok_or_else(|| PullError::new(Reason::TooLarge, why()))
        };
        fits("kernel", &parts.0, self.limits.kernel_bytes, "--max-kernel-mib")?;
        if let Some(modules) = &parts.1 {
            fits(
                "archive of modules",
                modules,
                self.limits.uncompressed_bytes,
                "--max-image-gib",
            )?;
        }
        let config = &found.manifest.config;
        let digest = config.digest()?;
        let bytes = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            bytes = found.origin.small_blob(&digest, config.size) => bytes?,
        };
        let configuration = configuration(&name, &bytes, platform)?;
        let mut wanted = vec![(parts.0.digest()?, parts.0.size)];
        if let Some(modules) = &parts.1 {
            wanted.push((modules.digest()?, modules.size));
        }
        let has_modules = parts.1.is_some();
        let (dir, limits, given) = (cx.dir.clone(), self.limits.clone(), configuration.clone());
        let cancel = cx.cancel.clone();
        let identity = found.digest.to_string();
        self.with_blobs(cx, &found.origin, wanted, move |blobs| {
            if let Some(kernel) = blobs.first() {
                unpack_kernel(&name, &dir.join(KERNEL), kernel, &given, &limits)?;
            }
            if let Some(modules) = blobs.get(1) {
                unpack_modules(&name, &identity, &dir, modules, &given.version, &limits, &cancel)?;
            }
            Ok(())
        })
        .await?;
        Ok(BuiltKernel {
            kernel: KERNEL.into(),
            boot_format: configuration.boot_format,
            version: configuration.version,
            modules_tar: has_modules.then(|| MODULES_TAR.into()),
            modules_disk: has_modules.then(|| MODULES_DISK.into()),
            initrd: None,
        })
    }
}

/// The kernel's descriptor, and the modules' if there are any.
fn parts(name: &str, manifest: &Manifest) -> Result<(Descriptor, Option<Descriptor>), PullError> {
    if manifest.config.media_type != CONFIG {
        let media_type = show(manifest.config.media_type.as_bytes());
        let why = format!("{name}: its configuration has the unknown type {media_type}");
        return Err(PullError::new(Reason::UnsupportedFormat, why));
    }
    let (mut kernel, mut modules) = (None, None);
    for layer in &manifest.layers {
        let place = match layer.media_type.as_str() {
            IMAGE => &mut kernel,
            MODULES => &mut modules,
            other => {
                return Err(PullError::new(
                    Reason::UnsupportedFormat,
                    format!("{name}: a layer has the unknown type {}", show(other.as_bytes())),
                ));
            }
        };
        if place.replace(layer.clone()).is_some() {
            return Err(PullError::new(
                Reason::Malformed,
                format!("{name}: it has two layers of the type {}", layer.media_type),
            ));
        }
    }
    let kernel =
        kernel.ok_or_else(|| PullError::new(Reason::MissingFile, format!("{name}: it has no kernel in it")))?;
    Ok((kernel, modules))
}

fn configuration(name: &str, bytes: &[u8], platform: &str) -> Result<Configuration, PullError> {
    let broken = |why: String| PullError::new(Reason::Malformed, format!("{name}: its configuration is broken: {why}"));
    let configuration: Configuration = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    let version = &configuration.version;
    if !is_version(version) {
        return Err(broken(format!("{} is no kernel release", show(version.as_bytes()))));
    }
    let architecture = &configuration.architecture;
    if platform.split('/').nth(1) != Some(architecture.as_str()) {
        return Err(PullError::new(
            Reason::UnsupportedPlatform,
            format!("{name} is for {architecture:.100}, not for {platform}"),
        ));
    }
    Ok(configuration)
}

/// Refuses what is not compressed as its type says.
fn inflate(blob: &Bytes, limits: &Limits) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = blob.reader();
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic)?;
    if magic != [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not compressed with zstd",
        ));
    }
    decoder(io::Cursor::new(magic).chain(reader), limits.zstd_window_bytes)
}

fn unpack_kernel(name: &str, to: &Path, blob: &Bytes, given: &Configuration, limits: &Limits) -> Result<(), PullError> {
    let what = format!("{name}: its kernel");
    let local = |error: io::Error| PullError::io(&what, &error);
    let read = |error: io::Error| failure::layer(&what, LayerError::Read(error));
    let mut file = File::options().write(true).create_new(true).open(to).map_err(local)?;
    let most = limits.kernel_bytes;
    let mut input = inflate(blob, limits).map_err(read)?.take(most.saturating_add(1));
    let mut buffer = vec![0; 256 << 10];
    let (mut start, mut size) = (Vec::new(), 0);
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read(error)),
        };
        size += n as u64;
        if size > most {
            let why = format!("{what} has more than {most} bytes");
            return Err(PullError::new(Reason::TooLarge, why));
        }
        start.extend_from_slice(&buffer[..n.min(1024 - start.len())]);
        file.write_all(&buffer[..n]).map_err(local)?;
    }
    let fits = match given.boot_format {
        BootFormat::PvhElf => start.starts_with(b"\x7fELF"),
        BootFormat::BzImage => start.get(0x202..0x206) == Some(b"HdrS"),
    };
    if !fits {
        return Err(PullError::new(
            Reason::Malformed,
            format!(
                "{what} is not of the format {:?} that its configuration names",
                given.boot_format
            ),
        ));
    }
    file.sync_all().map_err(local)
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// The modules' blob becomes a tar and a disk.
fn unpack_modules(
    name: &str,
    identity: &str,
    dir: &Path,
    blob: &Bytes,
    version: &str,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), PullError> {
    let what = format!("{name}: its modules");
    let local = |error: io::Error| PullError::io(&what, &error);
    let tar = new_file(&dir.join(MODULES_TAR)).map_err(local)?;
    let input = inflate(blob, limits).map_err(|error| failure::layer(&what, LayerError::Read(error)))?;
    let mut input = Copied {
        input,
        copy: io::BufWriter::with_capacity(256 << 10, tar),
        left: limits.uncompressed_bytes,
        most: limits.uncompressed_bytes,
        failed: None,
    };
    let copied = io::copy(&mut input, &mut io::sink());
    if let Some(error) = input.failed.take() {
        return Err(local(error));
    }
    copied.map_err(|error| failure::layer(&what, LayerError::Read(error)))?;
    let tar = input.copy.into_inner().map_err(|error| local(error.into_error()))?;
    tar.sync_all().map_err(local)?;
    modules_disk(&what, identity, dir, version, limits, cancel)
}

/// The tar of `lib/modules/<version>` in `dir` becomes a disk with what is below it, and with the index that
/// `modprobe` needs.
pub fn modules_disk(
    what: &str,
    identity: &str,
    dir: &Path,
    version: &str,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), PullError> {
    let local = |error: io::Error| PullError::io(what, &error);
    let wrong = |error: LayerError| failure::layer(what, error);
    // Nothing is ever written to it.
    let size = Size::Auto {
        free: FreeSpace { percent: 0, bytes: 0 },
    };
    let options = disk::options(&format!("the modules of {identity}"), size);
    let file = new_file(&dir.join(MODULES_DISK)).map_err(local)?;
    let writer = Writer::create(file, options).map_err(|error| failure::store(what, error.into()))?;
    let mut store = DiskStore::new(writer);
    let mut tree = Tree::within(Budget::new(limits, cancel));
    let tar = File::open(dir.join(MODULES_TAR)).map_err(local)?;
    let layer = read_layer(
        io::BufReader::with_capacity(256 << 10, &tar),
        &mut store,
        limits,
        tree.budget(),
    );
    let layer = layer.map_err(wrong)?;
    let root = format!("lib/modules/{version}");
    only_below(&layer, &root).map_err(wrong)?;
    tree.apply(layer).map_err(wrong)?;
    let index = index(&tar, &root).map_err(local)?;
    let index = read_layer(&index[..], &mut store, limits, tree.budget()).map_err(wrong)?;
    tree.apply(index).map_err(wrong)?;
    for lost in tree.take_discarded() {
        crate::layers::apply::Store::discard(&mut store, lost).map_err(wrong)?;
    }
    let top = tree.lookup(root.as_bytes()).map_err(wrong)?;
    let top = top.ok_or_else(|| PullError::new(Reason::MissingFile, format!("{what}: there is no {root} in them")))?;
    store
        .finish_below(tree, top, cancel)
        .map_err(|error| failure::store(what, error))?;
    Ok(())
}

/// A tar with the index files of the modules in `tar`.
fn index(mut tar: &File, root: &str) -> io::Result<Vec<u8>> {
    tar.seek(io::SeekFrom::Start(0))?;
    let mut indexer = Indexer::default();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let below = std::str::from_utf8(&path).ok().and_then(|path| {
            let path = path.trim_start_matches("./").strip_prefix(root)?;
            path.strip_prefix('/')
        });
        if let Some(below) = below.filter(|_| entry.header().entry_type().is_file()) {
            let size = entry.size();
            indexer.file(below, size, &mut entry)?;
        }
    }
    let mut made = tar::Builder::new(Vec::new());
    for (name, content) in indexer.finish() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        made.append_data(&mut header, format!("{root}/{name}"), &content[..])?;
    }
    made.into_inner()
}

/// The tar goes into initrds as it is, so it may hold nothing but what it is for.
fn only_below<D>(layer: &Layer<D>, root: &str) -> Result<(), LayerError> {
    if let Some(path) = layer.whiteouts.iter().chain(&layer.opaques).next() {
        return Err(LayerError::Malformed(format!(
            "{} is a whiteout, which has no place there",
            show(path)
        )));
    }
    for record in layer.records.iter() {
        let path = &record.path[..];
        let inside = path
            .strip_prefix(root.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        let above = path.is_empty()
            || root
                .as_bytes()
                .strip_prefix(path)
                .is_some_and(|rest| rest.first() == Some(&b'/'));
        if !(inside || above && matches!(record.kind, RecordKind::Directory)) {
            return Err(LayerError::Malformed(format!("{} is not below {root}", show(path))));
        }
    }
    Ok(())
}

/// Keeps a copy of what is read through it, and counts.
struct Copied<R> {
    input: R,
    copy: io::BufWriter<File>,
    left: u64,
    most: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Copied<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("they have more than {} bytes when they are uncompressed", self.most),
            )
        })?;
        if let Err(error) = self.copy.write_all(&buf[..n]) {
            self.failed = Some(error);
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debugfs(disk: &Path, command: &str) -> String {
        let output = std::process::Command::new("debugfs")
            .args(["-R", command])
            .arg(disk)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("debugfs runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_disk_of_a_real_kernel_has_the_index_that_its_package_lacks() {
        let given = std::env::var_os("VMLET_TEST_MODULES").map(std::path::PathBuf::from);
        let Some(given) = given.filter(|path| path.exists()) else {
            println!("skipped: VMLET_TEST_MODULES names no file");
            return;
        };
        let mut archive = tar::Archive::new(File::open(&given).expect("opens"));
        let version = archive.entries().expect("a tar").flatten().find_map(|entry| {
            let path = entry.path().ok()?.to_string_lossy().into_owned();
            let version = path
                .trim_start_matches("./")
                .strip_prefix("lib/modules/")?
                .split('/')
                .next()?
                .to_owned();
            (!version.is_empty()).then_some(version)
        });
        let version = version.expect("lib/modules/VERSION");
        let make = || {
            let dir = tempfile::tempdir().expect("a directory");
            std::os::unix::fs::symlink(&given, dir.path().join(MODULES_TAR)).expect("links");
            modules_disk(
                "test",
                "identity",
                dir.path(),
                &version,
                &Limits::default(),
                &CancellationToken::new(),
            )
            .expect("made");
            dir
        };
        let (one, other) = (make(), make());
        let disk = one.path().join(MODULES_DISK);
        let line = "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko";
        assert!(debugfs(&disk, "cat /modules.dep").lines().any(|l| l == line));
        for name in [
            "modules.dep.bin",
            "modules.alias",
            "modules.alias.bin",
            "modules.builtin.alias.bin",
        ] {
            assert!(
                debugfs(&disk, &format!("stat /{name}")).contains("Type: regular"),
                "{name}"
            );
        }
        let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(MODULES_DISK)).expect("reads");
        assert!(bytes(&one) == bytes(&other), "same modules, same bytes");
    }
}
