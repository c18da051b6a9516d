//! What an index needs to know of a kernel module: its `.modinfo` and the symbols that it exports.

/// A module file.
pub struct Module<'a> {
    elf: &'a [u8],
    headers: usize,
    header_size: usize,
    count: usize,
    names: &'a [u8],
}

struct Section<'a> {
    name: &'a [u8],
    content: &'a [u8],
    link: usize,
}

impl<'a> Module<'a> {
    /// Reads the section table. None: not a 64-bit little-endian ELF with one.
    pub fn parse(elf: &'a [u8]) -> Option<Module<'a>> {
        if elf.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let mut module = Module {
            elf,
            headers: number(elf, 0x28, 8)?,
            header_size: number(elf, 0x3a, 2)?,
            count: number(elf, 0x3c, 2)?,
            names: &[],
        };
        module.names = module.section(number(elf, 0x3e, 2)?)?.content;
        Some(module)
    }

    /// The entries `key=value` of `.modinfo`; those that are no text are left out.
    pub fn info(&self) -> Option<Vec<(&'a str, &'a str)>> {
        let content = self.named(b".modinfo")?.content;
        Some(entries(content).collect())
    }

    /// The names of exported symbols: each has one `__ksymtab_NAME` beside it.
    pub fn exports(&self) -> Vec<&'a str> {
        let Some(table) = self.named(b".symtab") else {
            return Vec::new();
        };
        let Some(strings) = self.section(table.link).map(|section| section.content) else {
            return Vec::new();
        };
        table
            .content
            .chunks_exact(24)
            .filter_map(|symbol| {
                let name = text_at(strings, number(symbol, 0, 4)?)?;
                std::str::from_utf8(name.strip_prefix(b"__ksymtab_")?).ok()
            })
            .collect()
    }

    fn named(&self, name: &[u8]) -> Option<Section<'a>> {
        // A section without bytes in the file (.bss) may claim any size; it is not one that is looked for.
        (0..self.count)
            .filter_map(|index| self.section(index))
            .find(|section| section.name == name)
    }

    fn section(&self, index: usize) -> Option<Section<'a>> {
        let header = self.headers.checked_add(index.checked_mul(self.header_size)?)?;
        let field = |offset: usize, length| number(self.elf, header.checked_add(offset)?, length);
        let start = field(0x18, 8)?;
        Some(Section {
            name: text_at(self.names, field(0, 4)?).unwrap_or_default(),
            content: self.elf.get(start..start.checked_add(field(0x20, 8)?)?)?,
            link: field(0x28, 4)?,
        })
    }
}

/// The entries of a `.modinfo`, or of `modules.builtin.modinfo`.
pub fn entries(content: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    content
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
}

fn text_at(strings: &[u8], at: usize) -> Option<&[u8]> {
    strings.get(at..)?.split(|byte| *byte == 0).next()
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let mut word = [0u8; 8];
    word[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

/// A module with this `.modinfo` that exports these symbols, and nothing else.
#[cfg(test)]
pub fn module_with(modinfo: &[u8], exports: &[&str]) -> Vec<u8> {
    let names = b"\0.modinfo\0.symtab\0.strtab\0.shstrtab\0";
    let mut strings = vec![0u8];
    let mut symbols = vec![0u8; 24];
    for export in exports {
        let mut symbol = [0u8; 24];
        symbol[..4].copy_from_slice(&(strings.len() as u32).to_le_bytes());
        symbols.extend(symbol);
        strings.extend(format!("__ksymtab_{export}\0").bytes());
    }
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut headers = vec![0u8; 64];
    for (name, link, content) in [
        (1u32, 0u32, modinfo),
        (10, 3, &symbols),
        (18, 0, &strings),
        (26, 0, names),
    ] {
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(elf.len() as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(content.len() as u64).to_le_bytes());
        header[0x28..0x2c].copy_from_slice(&link.to_le_bytes());
        headers.extend(header);
        elf.extend_from_slice(content);
    }
    let at = elf.len() as u64;
    elf[0x28..0x30].copy_from_slice(&at.to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 5, 0, 4, 0]);
    elf.extend(headers);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_and_exports_are_read() {
        let elf = module_with(b"license=GPL\0depends=a,b\0", &["one", "two"]);
        let module = Module::parse(&elf).expect("a module");
        assert_eq!(module.info(), Some(vec![("license", "GPL"), ("depends", "a,b")]));
        assert_eq!(module.exports(), ["one", "two"]);
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let elf = module_with(b"depends=a\0", &["one"]);
        let read = |bytes: &[u8]| {
            if let Some(module) = Module::parse(bytes) {
                let _ = (module.info(), module.exports());
            }
        };
        for length in 0..elf.len() {
            read(&elf[..length]);
        }
        for at in 0..elf.len() {
            let mut bad = elf.clone();
            bad[at] = 0xff;
            read(&bad);
        }
    }
}
