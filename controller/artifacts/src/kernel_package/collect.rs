//! The files of a kernel that go into the artefact: its image and its modules.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::bad;
use super::image::MAX_IMAGE;

/// Bounds one module or index, expanded.
const MAX_FILE: u64 = 256 << 20;
/// Bounds all of them together.
const MAX_TOTAL: u64 = 4 << 30;
const MAX_FILES: usize = 100_000;
const MAX_DEPTH: usize = 32;

/// A kernel as it was read.
pub struct Kernel {
    /// Its release.
    pub version: String,
    /// The `vmlinuz`, as it was found.
    pub image: Vec<u8>,
    /// Path (`lib/modules/VERSION/...`) to place in the spool, in the order of the artefact.
    pub modules: BTreeMap<String, Place>,
    /// The contents of `modules`.
    pub spool: PathBuf,
}

/// Where in the spool a file is.
#[derive(Clone, Copy)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Takes the files of a source one by one, in whatever order it has them.
pub struct Collector {
    images: BTreeMap<String, Vec<u8>>,
    modules: BTreeMap<String, Place>,
    spool: BufWriter<File>,
    path: PathBuf,
    end: u64,
    expanded: bool,
}

impl Collector {
    /// Collects into a new file `spool`.
    pub fn new(spool: &Path) -> io::Result<Collector> {
        Ok(Collector {
            images: BTreeMap::new(),
            modules: BTreeMap::new(),
            spool: BufWriter::new(File::create_new(spool)?),
            path: spool.to_path_buf(),
            end: 0,
            expanded: false,
        })
    }

    /// Takes a regular file if it belongs to a kernel; `path` is relative to the root.
    pub fn file(&mut self, path: &str, content: &mut dyn Read) -> io::Result<()> {
        let path = path.strip_prefix("usr/").unwrap_or(path);
        if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
            if !valid_version(version) {
                return Err(bad(format!("{path}: not a kernel release")));
            }
            if self.images.len() >= 2 {
                return Ok(()); // More than one is refused at the end; no need to hold them all.
            }
            let mut image = Vec::new();
            content.take(MAX_IMAGE + 1).read_to_end(&mut image)?;
            if image.len() as u64 > MAX_IMAGE {
                return Err(bad(format!("{path}: larger than {MAX_IMAGE} bytes")));
            }
            self.images.insert(version.to_owned(), image);
        } else if let Some(name) = path.strip_prefix("lib/modules/") {
            self.module(name, content)?;
        }
        Ok(())
    }

    fn module(&mut self, name: &str, content: &mut dyn Read) -> io::Result<()> {
        let components: Vec<&str> = name.split('/').collect();
        if components.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(bad(format!("lib/modules/{name}: not a plain path")));
        }
        let file = components[components.len() - 1];
        let index = components.len() == 2 && file.starts_with("modules.");
        let (stem, expanded) = match file.rsplit_once('.') {
            Some((stem, suffix @ ("xz" | "zst" | "gz"))) if stem.ends_with(".ko") => {
                let reader: Box<dyn Read + '_> = match suffix {
                    "xz" => Box::new(lzma_rust2::XzReader::new(content, true)),
                    "zst" => Box::new(zstd::stream::read::Decoder::new(content)?),
                    _ => Box::new(flate2::read::MultiGzDecoder::new(content)),
                };
                self.expanded = true;
                (&name[..name.len() - suffix.len() - 1], reader)
            }
            _ if file.ends_with(".ko") || index => (name, Box::new(content) as Box<dyn Read + '_>),
            _ => return Ok(()),
        };
        let path = format!("lib/modules/{stem}");
        if self.modules.contains_key(&path) {
            return Err(bad(format!("{path}: comes twice")));
        }
        if self.modules.len() >= MAX_FILES {
            return Err(bad(format!("more than {MAX_FILES} modules")));
        }
        let limit = MAX_FILE.min(MAX_TOTAL - self.end);
        let length = io::copy(&mut expanded.take(limit + 1), &mut self.spool)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        if length > limit {
            return Err(bad(format!("{path}: too large")));
        }
        if length == 0 && !index {
            return Err(bad(format!("{path}: empty")));
        }
        self.modules.insert(
            path,
            Place {
                offset: self.end,
                length,
            },
        );
        self.end += length;
        Ok(())
    }

    /// One image and the modules of the same release.
    pub fn finish(mut self) -> io::Result<Kernel> {
        if self.images.len() > 1 {
            let names: Vec<String> = self.images.into_keys().collect();
            return Err(bad(format!("several kernels ({}); keep one", names.join(", "))));
        }
        let (version, image) = self
            .images
            .pop_first()
            .ok_or_else(|| bad("no boot/vmlinuz-VERSION; is it a linux-image package?"))?;
        self.finish_as(version, image)
    }

    /// The modules of a release, with an image from elsewhere.
    pub fn finish_as(mut self, version: String, image: Vec<u8>) -> io::Result<Kernel> {
        self.spool.flush()?;
        let prefix = format!("lib/modules/{version}/");
        let stale = self.expanded;
        // The binary indexes of a kernel with packed modules would name files that are packed no more.
        self.modules.retain(|path, _| {
            path.strip_prefix(&prefix)
                .is_some_and(|name| !(stale && name == "modules.dep.bin"))
        });
        let mut kernel = Kernel {
            version,
            image,
            modules: self.modules,
            spool: self.path,
        };
        if stale {
            kernel.rename_in("modules.dep", self.end)?;
            kernel.rename_in("modules.order", self.end)?;
        }
        Ok(kernel)
    }
}

impl Kernel {
    /// In a text index, names the modules as they are now.
    fn rename_in(&mut self, index: &str, end: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let path = format!("lib/modules/{}/{index}", self.version);
        let Some(place) = self.modules.get_mut(&path) else {
            return Ok(());
        };
        let spool = File::options().read(true).write(true).open(&self.spool)?;
        let mut text = vec![0; place.length as usize];
        spool.read_exact_at(&mut text, place.offset)?;
        let text = String::from_utf8(text).map_err(|_| bad(format!("{path}: not text")))?;
        let renamed = [".ko.xz", ".ko.zst", ".ko.gz"]
            .iter()
            .fold(text, |text, packed| text.replace(packed, ".ko"));
        // Only shorter: it fits where the old one was, and `end` bounds it.
        debug_assert!(place.offset + renamed.len() as u64 <= end);
        spool.write_all_at(renamed.as_bytes(), place.offset)?;
        place.length = renamed.len() as u64;
        Ok(())
    }
}

/// A release becomes part of paths and of JSON: what `uname -r` may be, and no more.
fn valid_version(version: &str) -> bool {
    (1..=64).contains(&version.len())
        && !version.starts_with('.')
        && version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte))
}

/// Reads a directory tree. Links are not followed: `build` and `source` lead out of it.
pub fn read_dir(root: &Path, spool: &Path) -> io::Result<Kernel> {
    let mut collector = Collector::new(spool)?;
    for top in ["boot", "lib/modules", "usr/lib/modules"] {
        // Where /lib is a link to usr/lib, the tree would otherwise be read twice.
        let first = root.join(top.split('/').next().unwrap_or(top));
        if fs::symlink_metadata(&first).is_ok_and(|found| found.is_dir()) {
            walk(root, top, 0, &mut collector)?;
        }
    }
    collector.finish()
}

fn walk(root: &Path, at: &str, depth: usize, collector: &mut Collector) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(at)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth == 0 => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Some(name) = entry.file_name().to_str().map(|name| format!("{at}/{name}")) else {
            continue; // No kernel names a file so.
        };
        if kind.is_dir() && at != "boot" {
            if depth >= MAX_DEPTH {
                return Err(bad(format!("{name}: more than {MAX_DEPTH} directories deep")));
            }
            walk(root, &name, depth + 1, collector)?;
        } else if kind.is_file() {
            collector.file(&name, &mut File::open(entry.path())?)?;
        }
    }
    Ok(())
}
