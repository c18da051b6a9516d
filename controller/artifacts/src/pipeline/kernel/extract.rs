//! Exactly the files of a kernel, from the layers of an ordinary image.
//!
//! The layers are merged under the same rules as for a disk, with all data in one private file; then the
//! kernel, its modules and its initrd are taken out. No path of the image becomes a path of the host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::super::content::{copy, unnamed};
use super::super::failure;
use super::artefact::modules_disk;
use super::search::Search;
use super::{INITRD, KERNEL, MODULES_DISK, MODULES_TAR, is_version};
use crate::error::{PullError, Reason};
use crate::kernel_package::collect::{Collector, Kernel};
use crate::kernel_package::image::{Format, bootable, release};
use crate::kernel_package::layout::tar_of_modules;
use crate::layers::apply::{Input, flatten};
use crate::layers::merge::{Inode, Node, NodeId, Tree};
use crate::layers::spool::{Spool, Spooled};
use crate::pulls::work::{BuiltKernel, KernelPaths};
use crate::reference::Digest;
use crate::types::{BootFormat, Limits};

const SPOOL: &str = "spool";
const MODULES_SPOOL: &str = "modules.spool";
const MOST_DEPTH: usize = 32;
/// For a kernel that does not say what it is, and has no modules that do.
const UNKNOWN: &str = "unknown";

/// What to take out, and where to.
pub struct Extract {
    /// The source, for messages.
    pub name: String,
    /// What the modules' disk gets its UUID from.
    pub identity: String,
    /// Where in the image things are.
    pub paths: KernelPaths,
    /// The job's directory.
    pub dir: PathBuf,
    /// Bounds.
    pub limits: Limits,
    /// The job's.
    pub cancel: CancellationToken,
}

impl Extract {
    /// Merges the layers, which have these digests as far as they are known, and takes the files out.
    ///
    /// # Errors
    /// Those of layers, a kernel that is missing or does not boot, the disk.
    pub fn run(self, layers: Vec<Input>, named: &[Digest], stop: &(dyn Fn() + Sync)) -> Result<BuiltKernel, PullError> {
        let name = &self.name;
        let local = |error: io::Error| PullError::io(name, &error);
        let mut spool = Spool::new(unnamed(&self.dir.join(SPOOL)).map_err(local)?);
        let mut tree = flatten(layers, &mut spool, &self.limits, &self.cancel, stop)
            .map_err(|(at, error)| failure::one_layer(name, at, named, error))?;
        let mut search = Search {
            name,
            tree: &mut tree,
            limits: &self.limits,
        };
        let found = search.kernel(self.paths.kernel.as_deref())?;
        let initrd = self
            .paths
            .initrd
            .as_deref()
            .map(|path| search.file("initrd", path))
            .transpose()?;
        let what = format!("{name}: {}", found.path);
        let most = self.limits.kernel_bytes;
        let image = read(&what, &spool, data(search.tree, found.node), most)?;
        let (format, said) = write_kernel(&what, &image, most, &self.dir)?;
        let by_name = found.path.rsplit_once("vmlinu").and_then(|(_, rest)| rest.get(2..));
        let version = said.or_else(|| by_name.filter(|text| is_version(text)).map(str::to_owned));
        let modules = search.modules(self.paths.modules.as_deref(), version.as_deref())?;
        let version = modules.as_ref().map(|(_, release)| release.clone()).or(version);
        let version = version.unwrap_or_else(|| UNKNOWN.to_owned());
        if !is_version(&version) {
            let why = format!("{name}: {version:?} is no kernel release");
            return Err(PullError::new(Reason::Malformed, why));
        }
        let has_modules = match modules {
            Some((top, _)) => self.modules(&search, &spool, top, &version, image)?,
            None => false,
        };
        if let Some(initrd) = &initrd {
            let what = format!("{name}: {}", initrd.path);
            let bytes = spooled(&what, data(search.tree, initrd.node), self.limits.initrd_bytes)?;
            let mut file = new(&self.dir.join(INITRD)).map_err(local)?;
            copy(&mut spool.open(bytes), &mut file).map_err(|end| end.say(local, local))?;
            file.sync_all().map_err(local)?;
        }
        Ok(BuiltKernel {
            kernel: KERNEL.into(),
            boot_format: format,
            version,
            modules_tar: has_modules.then(|| MODULES_TAR.into()),
            modules_disk: has_modules.then(|| MODULES_DISK.into()),
            initrd: initrd.map(|_| INITRD.into()),
        })
    }

    /// Unpacks modules into a tar and a disk; false when there are none.
    fn modules(
        &self,
        search: &Search<'_, Spooled>,
        spool: &Spool,
        top: NodeId,
        version: &str,
        image: Vec<u8>,
    ) -> Result<bool, PullError> {
        let what = format!("{}: its modules", self.name);
        let local = |error: io::Error| PullError::io(&what, &error);
        let wrong = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                PullError::new(Reason::Malformed, format!("{what}: {error}"))
            }
            _ => PullError::io(&what, &error),
        };
        let place = self.dir.join(MODULES_SPOOL);
        let mut collector = Collector::new(&place).map_err(local)?;
        let mut todo = vec![(top, format!("lib/modules/{version}"), 0)];
        while let Some((directory, path, depth)) = todo.pop() {
            for (name, node) in search.names(directory) {
                // No kernel names a file so; links (`build`, `source`) are not followed.
                let Ok(name) = String::from_utf8(name) else { continue };
                let path = format!("{path}/{name}");
                if search.is_directory(node) && depth < MOST_DEPTH {
                    todo.push((node, path, depth + 1));
                } else if let Some(data) = data(search.tree, node) {
                    collector.file(&path, &mut spool.open(data)).map_err(wrong)?;
                }
            }
        }
        let kernel: Kernel = collector.finish_as(version.to_owned(), image).map_err(wrong)?;
        let empty = kernel.modules.is_empty();
        if !empty {
            let mut tar = io::BufWriter::new(new(&self.dir.join(MODULES_TAR)).map_err(local)?);
            tar_of_modules(&kernel, &mut tar).map_err(local)?;
            tar.into_inner()
                .map_err(|error| local(error.into_error()))?
                .sync_all()
                .map_err(local)?;
            modules_disk(&what, &self.identity, &self.dir, version, &self.limits, &self.cancel)?;
        }
        std::fs::remove_file(&place).map_err(local)?;
        Ok(!empty)
    }
}

/// A file that is nothing but a kernel, of at most so many bytes.
///
/// # Errors
/// Bytes that do not come, a kernel that does not boot, the disk.
pub fn bare(
    name: &str,
    bytes: &mut dyn Read,
    most: u64,
    dir: &Path,
    wrong: impl Fn(io::Error) -> PullError,
) -> Result<BuiltKernel, PullError> {
    let mut image = Vec::new();
    bytes
        .take(most.saturating_add(1))
        .read_to_end(&mut image)
        .map_err(wrong)?;
    if image.len() as u64 > most {
        let why = format!("{name}: it has more than {most} bytes");
        return Err(PullError::new(Reason::TooLarge, why));
    }
    let (boot_format, version) = write_kernel(name, &image, most, dir)?;
    Ok(BuiltKernel {
        kernel: KERNEL.into(),
        boot_format,
        version: version.unwrap_or_else(|| UNKNOWN.to_owned()),
        modules_tar: None,
        modules_disk: None,
        initrd: None,
    })
}

/// Writes what a VMM boots of a kernel, at most so many bytes; answers with its format and the release that it names.
fn write_kernel(what: &str, image: &[u8], most: u64, dir: &Path) -> Result<(BootFormat, Option<String>), PullError> {
    let local = |error: io::Error| PullError::io(what, &error);
    let (bytes, format) = bootable(image, most).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::FileTooLarge => Reason::TooLarge,
            _ => Reason::UnsupportedFormat,
        };
        PullError::new(reason, format!("{what} cannot be booted: {error}"))
    })?;
    let mut file = new(&dir.join(KERNEL)).map_err(local)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(local)?;
    let version = release(image)
        .or_else(|| release(&bytes))
        .filter(|text| is_version(text));
    let format = match format {
        Format::PvhElf => BootFormat::PvhElf,
        Format::BzImage => BootFormat::BzImage,
    };
    Ok((format, version))
}

fn new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

fn data(tree: &Tree<Spooled>, node: NodeId) -> Option<&Spooled> {
    match tree.get(node)?.0 {
        Node::Inode(Inode::File(data)) => Some(data),
        _ => None,
    }
}

fn spooled<'a>(what: &str, data: Option<&'a Spooled>, most: u64) -> Result<&'a Spooled, PullError> {
    let data = data.ok_or_else(|| PullError::new(Reason::MissingFile, format!("{what} is no file")))?;
    if data.size > most {
        let why = format!("{what} has {} bytes, more than {most}", data.size);
        return Err(PullError::new(Reason::TooLarge, why));
    }
    Ok(data)
}

fn read(what: &str, spool: &Spool, data: Option<&Spooled>, most: u64) -> Result<Vec<u8>, PullError> {
    let data = spooled(what, data, most)?;
    let mut bytes = Vec::with_capacity(data.size as usize);
    let read = spool.open(data).read_to_end(&mut bytes);
    read.map_err(|error| PullError::io(what, &error))?;
    Ok(bytes)
}
