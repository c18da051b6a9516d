//! What `depmod` makes when a kernel package is installed: which module depends on which, and which one a
//! device or a file system asks for. Packages do not hold it, and without it no `modprobe` finds anything.
//!
//! Text for busybox (`modules.dep`, `modules.alias`, `modules.symbols`), tries for kmod (`modules.*.bin`).
//! Same modules, same bytes.

mod elf;
mod trie;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use elf::Module;
use trie::Index;

/// The largest file that is read, in bytes, unpacked.
const MAX_FILE: u64 = 64 << 20;

/// Collects a kernel's modules and makes its index files.
#[derive(Debug, Default)]
pub struct Indexer {
    modules: Vec<Known>,
    order: Vec<String>,
    builtin: Vec<String>,
    builtin_info: Vec<u8>,
    /// The package has an index of its own.
    indexed: bool,
}

#[derive(Debug)]
struct Known {
    /// Below `lib/modules/VERSION`.
    path: String,
    name: String,
    depends: Vec<String>,
    aliases: Vec<String>,
    soft: Vec<String>,
    exports: Vec<String>,
}

impl Indexer {
    /// Takes in a file of the package; `path` is below `lib/modules/VERSION`. What is of no interest is not
    /// read, and a module that is none is left out: nobody could load it.
    ///
    /// # Errors
    /// Those of `content`.
    pub fn file(&mut self, path: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut all = || {
            let mut bytes = Vec::new();
            content.take(size.min(MAX_FILE)).read_to_end(&mut bytes).map(|_| bytes)
        };
        match path {
            "modules.dep" => self.indexed = true,
            "modules.order" => self.order = lines(&all()?),
            "modules.builtin" => self.builtin = lines(&all()?),
            "modules.builtin.modinfo" => self.builtin_info = all()?,
            _ if module_name(path).is_some() && size <= MAX_FILE => {
                let packed = all()?;
                match module(path, packed) {
                    Some(known) => self.modules.push(known),
                    None => tracing::warn!("{path:?} is no kernel module: it is not indexed"),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The index files: names (below `lib/modules/VERSION`) and contents. None at all for a package that
    /// has them, or that has no modules.
    pub fn finish(mut self) -> Vec<(&'static str, Vec<u8>)> {
        if self.indexed || self.modules.is_empty() {
            return Vec::new();
        }
        // As the kernel's build lists them: where two serve one device, the first one is to be taken.
        let places: BTreeMap<&str, usize> = self
            .order
            .iter()
            .enumerate()
            .map(|(n, path)| (path.as_str(), n))
            .collect();
        let place = |path: &str| {
            let plain = path.find(".ko").map_or(path, |at| &path[..at + 3]);
            places.get(plain).copied().unwrap_or(usize::MAX)
        };
        self.modules
            .sort_by(|a, b| (place(&a.path), &a.path).cmp(&(place(&b.path), &b.path)));
        let builtin: Vec<String> = self.builtin.iter().filter_map(|path| module_name(path)).collect();
        let mut files = self.dependencies();
        files.extend(self.aliases());
        files.extend(self.symbols());
        files.push(("modules.softdep", self.soft_dependencies()));
        files.push(("modules.devname", self.device_names()));
        let mut index = Index::default();
        for name in &builtin {
            index.insert(name, "", 0);
        }
        files.push(("modules.builtin.bin", index.write()));
        files.push(("modules.builtin.alias.bin", builtin_aliases(&self.builtin_info)));
        files.sort_unstable_by_key(|(name, _)| *name);
        files
    }

    fn dependencies(&self) -> Vec<(&'static str, Vec<u8>)> {
        let by_name: BTreeMap<&str, &Known> = self.modules.iter().map(|m| (m.name.as_str(), m)).collect();
        let (mut all, mut index) = (String::new(), Index::default());
        for (place, module) in self.modules.iter().enumerate() {
            let mut order = Vec::new();
            load_order(module, &by_name, &mut BTreeSet::new(), &mut order);
            // Read from its end: what is to be loaded first stands last. The module itself stands first.
            order.pop();
            let mut line = format!("{}:", module.path);
            for needed in order.iter().rev() {
                line.extend([" ", &needed.path]);
            }
            index.insert(&module.name, &line, place as u32);
            all.extend([&line, "\n"]);
        }
        vec![("modules.dep", all.into_bytes()), ("modules.dep.bin", index.write())]
    }

    fn aliases(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut all = String::from("# Aliases extracted from modules themselves.\n");
        let mut index = Index::default();
        for (place, module) in self.modules.iter().enumerate() {
            for alias in &module.aliases {
                all.push_str(&format!("alias {alias} {}\n", module.name));
                index.insert(&underscores(alias), &module.name, place as u32);
            }
        }
        vec![
            ("modules.alias", all.into_bytes()),
            ("modules.alias.bin", index.write()),
        ]
    }

    fn symbols(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut all = String::from("# Aliases for symbols, used by symbol_request().\n");
        let mut index = Index::default();
        for (place, module) in self.modules.iter().enumerate() {
            for symbol in &module.exports {
                all.push_str(&format!("alias symbol:{symbol} {}\n", module.name));
                index.insert(&format!("symbol:{symbol}"), &module.name, place as u32);
            }
        }
        vec![
            ("modules.symbols", all.into_bytes()),
            ("modules.symbols.bin", index.write()),
        ]
    }

    fn soft_dependencies(&self) -> Vec<u8> {
        let mut all = String::from("# Soft dependencies extracted from modules themselves.\n");
        for module in &self.modules {
            for soft in &module.soft {
                all.push_str(&format!("softdep {} {soft}\n", module.name));
            }
        }
        all.into_bytes()
    }

    /// Device nodes by which a module is loaded when somebody opens them.
    fn device_names(&self) -> Vec<u8> {
        let mut all = String::from("# Device nodes to trigger on-demand module loading.\n");
        for module in &self.modules {
            let name = module.aliases.iter().find_map(|alias| alias.strip_prefix("devname:"));
            let number = module.aliases.iter().find_map(|alias| {
                let (kind, numbers) = alias.split_once("-major-")?;
                let kind = match kind {
                    "char" => 'c',
                    "block" => 'b',
                    _ => return None,
                };
                let (major, minor) = numbers.split_once('-')?;
                Some((kind, major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
            });
            if let (Some(name), Some((kind, major, minor))) = (name, number) {
                all.push_str(&format!("{} {name} {kind}{major}:{minor}\n", module.name));
            }
        }
        all.into_bytes()
    }
}

/// A module behind all that it needs. What is missing is built in, or the package is not whole: the kernel
/// says so when it is loaded. The set of those begun ends cycles.
fn load_order<'a>(
    module: &'a Known,
    by_name: &BTreeMap<&str, &'a Known>,
    begun: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a Known>,
) {
    if !begun.insert(&module.name) {
        return;
    }
    for needed in module.depends.iter().filter_map(|name| by_name.get(name.as_str())) {
        load_order(needed, by_name, begun, order);
    }
    order.push(module);
}

/// None: it is no module.
fn module(path: &str, packed: Vec<u8>) -> Option<Known> {
    let bytes = unpacked(path, packed)?;
    let module = Module::parse(&bytes)?;
    let info = module.info()?;
    // A value must not make two lines of one, nor an alias two words.
    let all = |wanted: &str| -> Vec<&str> {
        let values = info.iter().filter(|(key, _)| *key == wanted).map(|(_, value)| *value);
        values.filter(|value| !value.contains(['\n', '\r'])).collect()
    };
    let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect::<Vec<_>>();
    Some(Known {
        path: path.to_owned(),
        name: module_name(path)?,
        depends: all("depends")
            .iter()
            .flat_map(|value| value.split(','))
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
        aliases: owned(all("alias")).into_iter().filter(|a| !a.contains(' ')).collect(),
        soft: owned(all("softdep")),
        exports: module.exports().into_iter().map(str::to_owned).collect(),
    })
}

fn unpacked(path: &str, packed: Vec<u8>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = |reader: &mut dyn Read| reader.take(MAX_FILE + 1).read_to_end(&mut bytes).ok();
    match path.rsplit('.').next() {
        Some("gz") => limited(&mut flate2::read::MultiGzDecoder::new(packed.as_slice()))?,
        Some("xz") => limited(&mut lzma_rust2::XzReader::new(packed.as_slice(), true))?,
        Some("zst") => limited(&mut zstd::stream::read::Decoder::new(packed.as_slice()).ok()?)?,
        _ => return Some(packed),
    };
    (bytes.len() as u64 <= MAX_FILE).then_some(bytes)
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

/// `kernel/net/a-b.ko.xz` is the module `a_b`. None: not a module.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    let plain = !name.is_empty() && !path.contains(['\n', ' ']);
    plain.then(|| name.replace('-', "_"))
}

/// `-` is `_`, but for what stands in brackets (`alias_normalize` of libkmod).
fn underscores(alias: &str) -> String {
    let mut inside = false;
    alias
        .chars()
        .map(|c| {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                _ => {}
            }
            if c == '-' && !inside { '_' } else { c }
        })
        .collect()
}

/// Aliases of what is built in, from `NAME.alias=VALUE`.
fn builtin_aliases(info: &[u8]) -> Vec<u8> {
    let mut index = Index::default();
    for (key, value) in elf::entries(info) {
        if let Some(name) = key.strip_suffix(".alias") {
            index.insert(&underscores(value), name, 0);
        }
    }
    index.write()
}

#[cfg(test)]
mod tests;
