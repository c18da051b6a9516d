//! Which modules a boot needs, taken from the archive of all of a kernel's modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{InitrdError, elf};

/// Wanted, in the order of insertion. pvpanic first: a panic after it is told to the host.
/// What is missing is built in, or this kernel has no such device.
const WANTED: [&str; 8] = [
    "pvpanic_pci",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "button",
    "ext4",
];

/// The largest module that is believed, in bytes, unpacked.
const MAX_MODULE: u64 = 64 << 20;
/// The most files that an archive of modules may hold.
const MAX_FILES: usize = 100_000;

/// A module to insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, `_` for `-`.
    pub name: String,
    /// The ELF object.
    pub content: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
}

struct Place {
    offset: u64,
    size: u64,
    packing: Packing,
}

/// The wanted modules of a tar archive and all they depend on, dependencies first. An uncompressed
/// archive is not read through: its headers, and then the few members that matter.
pub fn closure(tar: &Path) -> Result<Vec<Module>, InitrdError> {
    let io = |error| InitrdError::Io {
        path: PathBuf::from(tar),
        error,
    };
    let file = File::open(tar).map_err(io)?;
    let places = index(&file).map_err(io)?;
    let mut found = Found {
        file: &file,
        places: &places,
        done: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        if places.contains_key(name) {
            found.add(name)?;
        }
    }
    Ok(found.modules)
}

fn index(file: &File) -> io::Result<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for (count, entry) in archive.entries_with_seek()?.enumerate() {
        let entry = entry?;
        if count >= MAX_FILES {
            return Err(io::Error::other(format!(
                "the archive holds more than {MAX_FILES} files"
            )));
        }
        let path = entry.path_bytes();
        let file_name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let Ok(file_name) = std::str::from_utf8(file_name) else {
            continue;
        };
        let packings = [
            (".ko", Packing::None),
            (".ko.gz", Packing::Gzip),
            (".ko.xz", Packing::Xz),
            (".ko.zst", Packing::Zstd),
        ];
        let module = packings
            .into_iter()
            .find_map(|(suffix, packing)| Some((file_name.strip_suffix(suffix)?, packing)));
        if let Some((name, packing)) = module.filter(|_| entry.header().entry_type().is_file()) {
            places.insert(
                name.replace('-', "_"),
                Place {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                    packing,
                },
            );
        }
    }
    Ok(places)
}

struct Found<'a> {
    file: &'a File,
    places: &'a BTreeMap<String, Place>,
    done: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Found<'_> {
    /// Adds a module behind what it depends on. The set of those begun ends cycles.
    fn add(&mut self, name: &str) -> Result<(), InitrdError> {
        let bad = |problem: String| InitrdError::BadModule {
            name: name.to_owned(),
            problem,
        };
        if !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let place = self
            .places
            .get(name)
            .ok_or_else(|| bad("a module depends on it, and it is missing".to_owned()))?;
        let content = unpack(self.file, place).map_err(|error| bad(error.to_string()))?;
        let entries =
            elf::modinfo(&content).ok_or_else(|| bad("it is no ELF object with a .modinfo section".to_owned()))?;
        let values = |key| entries.iter().filter(move |(k, _)| *k == key).map(|(_, value)| *value);
        let hard = values("depends")
            .flat_map(|value| value.split(','))
            .filter(|d| !d.is_empty())
            .map(|d| d.replace('-', "_"));
        let soft = values("softdep")
            .flat_map(before)
            .map(|d| d.replace('-', "_"))
            .filter(|d| self.places.contains_key(d));
        for dependency in soft.chain(hard).collect::<Vec<_>>() {
            self.add(&dependency)?;
        }
        self.modules.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

/// The names after `pre:` of a softdep.
fn before(softdep: &str) -> impl Iterator<Item = &str> {
    let mut pre = false;
    softdep.split_whitespace().filter(move |word| {
        if word.ends_with(':') {
            pre = *word == "pre:";
        }
        pre && !word.ends_with(':')
    })
}

fn unpack(file: &File, place: &Place) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {MAX_MODULE} bytes"));
    if place.size > MAX_MODULE {
        return Err(too_large());
    }
    let mut raw = vec![0u8; place.size as usize];
    file.read_exact_at(&mut raw, place.offset)?;
    let mut unpacked = Vec::new();
    let mut limited = |reader: &mut dyn Read| reader.take(MAX_MODULE + 1).read_to_end(&mut unpacked);
    match place.packing {
        Packing::None => return Ok(raw),
        Packing::Gzip => limited(&mut flate2::read::MultiGzDecoder::new(raw.as_slice()))?,
        Packing::Xz => limited(&mut lzma_rust2::XzReader::new(raw.as_slice(), true))?,
        Packing::Zstd => limited(&mut zstd::stream::read::Decoder::new(raw.as_slice())?)?,
    };
    if unpacked.len() as u64 > MAX_MODULE {
        return Err(too_large());
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::initrd::elf::module_with;

    fn archive(members: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut tar = tar::Builder::new(file.reopen().expect("opens"));
        for (path, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, content.as_slice())
                .expect("appended");
        }
        tar.finish().expect("finished");
        file
    }

    fn names(members: &[(&str, Vec<u8>)]) -> Vec<String> {
        let tar = archive(members);
        closure(tar.path())
            .expect("a closure")
            .into_iter()
            .map(|m| m.name)
            .collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = names(&[
            (
                "lib/modules/6/kernel/virtio_blk.ko",
                module_with(b"depends=virtio,virtio_ring\0"),
            ),
            ("lib/modules/6/kernel/virtio-rng.ko", module_with(b"depends=virtio\0")),
            ("lib/modules/6/kernel/virtio.ko", module_with(b"depends=\0")),
            ("lib/modules/6/kernel/virtio_ring.ko", module_with(b"depends=virtio\0")),
            ("lib/modules/6/kernel/unrelated.ko", module_with(b"depends=\0")),
            ("lib/modules/6/kernel/pvpanic-pci.ko", module_with(b"depends=\0")),
        ]);
        assert_eq!(
            order,
            ["pvpanic_pci", "virtio", "virtio_ring", "virtio_blk", "virtio_rng"]
        );
    }

    #[test]
    fn soft_dependencies_are_taken_when_they_are_there() {
        let ext4 = module_with(b"softdep=pre: crc32c-intel absent post: after\0depends=jbd2\0");
        let order = names(&[
            ("ext4.ko", ext4),
            ("jbd2.ko", module_with(b"depends=\0")),
            ("crc32c-intel.ko", module_with(b"")),
            ("after.ko", module_with(b"")),
        ]);
        assert_eq!(order, ["crc32c_intel", "jbd2", "ext4"]);
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let plain = module_with(b"depends=\0");
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("a writer");
        xz.write_all(&plain).expect("written");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("written");
        let tar = archive(&[
            ("button.ko.xz", xz.finish().expect("finished")),
            ("ext4.ko.zst", zstd::encode_all(plain.as_slice(), 1).expect("packed")),
            ("virtio_net.ko.gz", gzip.finish().expect("finished")),
        ]);
        let modules = closure(tar.path()).expect("a closure");
        assert_eq!(modules.len(), 3);
        assert!(modules.iter().all(|module| module.content == plain));
    }

    #[test]
    fn a_cycle_ends_and_a_missing_dependency_is_named() {
        assert_eq!(
            names(&[
                ("button.ko", module_with(b"depends=ext4\0")),
                ("ext4.ko", module_with(b"depends=button\0"))
            ])
            .len(),
            2
        );
        let tar = archive(&[("button.ko", module_with(b"depends=gone\0"))]);
        let error = closure(tar.path()).expect_err("refused").to_string();
        assert!(error.contains("gone"), "{error}");
        let tar = archive(&[("button.ko", b"rubbish".to_vec())]);
        assert!(matches!(closure(tar.path()), Err(InitrdError::BadModule { .. })));
    }

    #[test]
    fn an_archive_without_modules_needs_none() {
        assert_eq!(names(&[("lib/modules/6/modules.builtin", vec![])]), [] as [&str; 0]);
    }
}
