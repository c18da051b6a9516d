//! The `.modinfo` section of a kernel module.

/// The entries `key=value` of a module's `.modinfo`. None: not a 64-bit little-endian ELF with one.
pub fn modinfo(elf: &[u8]) -> Option<Vec<(&str, &str)>> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = number(elf, 0x28, 8)?;
    let size = number(elf, 0x3a, 2)?;
    let count = number(elf, 0x3c, 2)?;
    let names_index = number(elf, 0x3e, 2)?;
    let section = |index: usize| -> Option<(usize, &[u8])> {
        let header = headers.checked_add(index.checked_mul(size)?)?;
        let start = number(elf, header.checked_add(0x18)?, 8)?;
        let length = number(elf, header.checked_add(0x20)?, 8)?;
        Some((number(elf, header, 4)?, elf.get(start..start.checked_add(length)?)?))
    };
    let (_, names) = section(names_index)?;
    // A section without bytes in the file (.bss) may claim any size; it is not the one looked for.
    let (_, content) = (0..count)
        .filter_map(section)
        .find(|(name, _)| names.get(*name..).is_some_and(|rest| rest.starts_with(b".modinfo\0")))?;
    let entries = content
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='));
    Some(entries.collect())
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let mut word = [0u8; 8];
    word[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

/// A module with this `.modinfo` and nothing else.
#[cfg(test)]
pub fn module_with(modinfo: &[u8]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf.extend_from_slice(modinfo);
    elf.extend_from_slice(names);
    let headers = elf.len();
    for (name, start, length) in [
        (0u32, 0, 0),
        (1, 64, modinfo.len()),
        (10, 64 + modinfo.len(), names.len()),
    ] {
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf[0x28..0x30].copy_from_slice(&(headers as u64).to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let elf = module_with(b"license=GPL\0depends=virtio,virtio_ring\0");
        assert_eq!(
            modinfo(&elf),
            Some(vec![("license", "GPL"), ("depends", "virtio,virtio_ring")])
        );
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let elf = module_with(b"depends=a\0");
        for length in 0..elf.len() {
            let _ = modinfo(&elf[..length]);
        }
        for at in 0..elf.len() {
            let mut bad = elf.clone();
            bad[at] = 0xff;
            let _ = modinfo(&bad);
        }
        assert_eq!(modinfo(b"not an elf"), None);
    }
}
