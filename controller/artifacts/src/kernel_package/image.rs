//! From `vmlinuz` to what a VMM boots directly.
//!
//! A bzImage is a setup header (Linux `Documentation/arch/x86/boot.rst`) and a compressed `vmlinux`;
//! one with the PVH note (Xen `docs/misc/pvh.pandoc`) needs neither firmware nor decompressor.

use std::io::{self, Read};

use super::{bad, lz4};

/// Bounds the image of a kernel that is packaged, packed or not.
pub const MAX_IMAGE: u64 = 512 << 20;

/// How the image wants to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ELF with a PVH entry point.
    PvhElf,
    /// Linux's own boot protocol.
    BzImage,
}

/// The best image that `kernel` holds: its `vmlinux` if that has the PVH entry, else itself.
///
/// # Errors
/// What cannot be booted; `FileTooLarge` for a `vmlinux` of more than `most` bytes.
pub fn bootable(kernel: &[u8], most: u64) -> io::Result<(Vec<u8>, Format)> {
    if kernel.starts_with(b"\x7fELF") {
        return if has_pvh_note(kernel) {
            Ok((kernel.to_vec(), Format::PvhElf))
        } else {
            Err(bad("the kernel is an ELF without a PVH entry (CONFIG_PVH)"))
        };
    }
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("the kernel is neither a bzImage nor an ELF"));
    }
    let vmlinux = expand(payload(kernel)?, most)?;
    Ok(match vmlinux {
        Some(vmlinux) if has_pvh_note(&vmlinux) => (vmlinux, Format::PvhElf),
        _ => (kernel.to_vec(), Format::BzImage),
    })
}

/// The release that a kernel names: in a bzImage's setup header (`kernel_version`), or in the banner of a vmlinux.
pub fn release(kernel: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let text = if kernel.get(0x202..0x206) == Some(b"HdrS") {
        let at = usize::from(u16_at(kernel, 0x20e)?);
        kernel.get(at.checked_add(0x200)?..).filter(|_| at > 0)?
    } else {
        let digit = |at: &usize| kernel.get(at + BANNER.len()).is_some_and(u8::is_ascii_digit);
        let at = kernel
            .windows(BANNER.len())
            .enumerate()
            .filter(|(_, text)| *text == BANNER)
            .map(|(at, _)| at)
            .find(digit)?;
        &kernel[at + BANNER.len()..]
    };
    let end = text.iter().take(65).position(|&b| b == b' ' || b == 0)?;
    String::from_utf8(text[..end].to_vec())
        .ok()
        .filter(|text| !text.is_empty())
}

/// The compressed part, as the setup header says where.
fn payload(kernel: &[u8]) -> io::Result<&[u8]> {
    let short = || bad("the kernel's payload lies outside of its file");
    let number = |at| u32_at(kernel, at).ok_or_else(short);
    let sectors = match kernel.get(0x1f1).copied().ok_or_else(short)? {
        0 => 4,
        other => usize::from(other),
    };
    let start = (sectors + 1) * 512 + number(0x248)? as usize;
    let length = number(0x24c)? as usize;
    kernel.get(start..start + length).ok_or_else(short)
}

/// The payload, expanded; `None` for a compression that is not known here.
fn expand(payload: &[u8], most: u64) -> io::Result<Option<Vec<u8>>> {
    if payload.starts_with(&[0x1f, 0x8b]) {
        return bounded(flate2::read::GzDecoder::new(payload), most).map(Some);
    }
    // All but gzip, which has it already, get the expanded length behind them (`size_append`).
    let Some((packed, trailer)) = payload.split_last_chunk::<4>() else {
        return Ok(None);
    };
    let expanded = if packed.starts_with(&lz4::MAGIC) {
        lz4::expand(packed, most)?
    } else if packed.starts_with(b"\xfd7zXZ\0") {
        bounded(lzma_rust2::XzReader::new(packed, false), most)?
    } else if packed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bounded(zstd::stream::read::Decoder::with_buffer(packed)?.single_frame(), most)?
    } else {
        return Ok(None);
    };
    if expanded.len() != u32::from_le_bytes(*trailer) as usize {
        return Err(bad("the kernel's payload expands to another size than it says"));
    }
    Ok(Some(expanded))
}

fn bounded(reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(most.saturating_add(1)).read_to_end(&mut out)?;
    if out.len() as u64 > most {
        return Err(too_large(most));
    }
    Ok(out)
}

/// Of a kernel that is larger when it is expanded.
pub(super) fn too_large(most: u64) -> io::Error {
    let why = format!("the kernel expands to more than {most} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, why)
}

/// Whether a 64-bit ELF carries `XEN_ELFNOTE_PHYS32_ENTRY`.
fn has_pvh_note(elf: &[u8]) -> bool {
    search_notes(elf).unwrap_or(false)
}

fn search_notes(elf: &[u8]) -> Option<bool> {
    const PT_NOTE: u32 = 4;
    const PHYS32_ENTRY: u32 = 18;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Some(false);
    }
    let table = usize::try_from(u64_at(elf, 0x20)?).ok()?;
    let size = usize::from(u16_at(elf, 0x36)?);
    let count = usize::from(u16_at(elf, 0x38)?);
    for index in 0..count {
        let header = elf.get(table.checked_add(index * size)?..)?;
        if u32_at(header, 0)? != PT_NOTE {
            continue;
        }
        let start = usize::try_from(u64_at(header, 8)?).ok()?;
        let length = usize::try_from(u64_at(header, 32)?).ok()?;
        let mut notes = elf.get(start..start.checked_add(length)?)?;
        while let (Some(name), Some(value), Some(kind)) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8)) {
            let padded = |length: u32| (length as usize).div_ceil(4) * 4;
            if kind == PHYS32_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
                return Some(true);
            }
            let Some(rest) = notes.get(12 + padded(name) + padded(value)..) else {
                break;
            };
            notes = rest;
        }
    }
    Some(false)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A 64-bit ELF with one note and nothing else.
    pub fn elf(kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
        elf[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&4u32.to_le_bytes());
        elf[72..80].copy_from_slice(&120u64.to_le_bytes());
        elf[96..104].copy_from_slice(&24u64.to_le_bytes());
        for number in [4, 8, kind] {
            elf.extend_from_slice(&u32::to_le_bytes(number));
        }
        elf.extend_from_slice(b"Xen\0");
        elf.extend_from_slice(&[0; 8]);
        elf
    }

    /// A bzImage around a payload.
    pub fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    /// LZ4 of literals only, as Debian packs its kernels, with the trailer.
    pub fn lz4_payload(content: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0];
        let mut rest = content.len() - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
        block.extend_from_slice(content);
        [
            &lz4::MAGIC[..],
            &(block.len() as u32).to_le_bytes(),
            &block,
            &(content.len() as u32).to_le_bytes(),
        ]
        .concat()
    }

    /// In each compression that is known.
    fn payloads(vmlinux: &[u8]) -> [Vec<u8>; 3] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, vmlinux).expect("written");
        let mut zstd = zstd::encode_all(vmlinux, 3).expect("packed");
        zstd.extend_from_slice(&(vmlinux.len() as u32).to_le_bytes());
        [lz4_payload(vmlinux), gzip.finish().expect("packed"), zstd]
    }

    #[test]
    fn every_compression_gives_the_same_vmlinux() {
        let vmlinux = elf(18);
        for payload in payloads(&vmlinux) {
            let (image, format) = bootable(&bzimage(&payload), MAX_IMAGE).expect("sound");
            assert_eq!((image, format), (vmlinux.clone(), Format::PvhElf));
        }
    }

    #[test]
    fn a_kernel_has_as_many_bytes_as_it_may_in_every_compression_and_not_one_more() {
        let vmlinux = elf(18);
        for payload in payloads(&vmlinux) {
            let (image, size) = (bzimage(&payload), vmlinux.len() as u64);
            assert_eq!(bootable(&image, size).expect("it fits").0, vmlinux);
            let error = bootable(&image, size - 1).expect_err("one byte too many");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
        }
    }

    #[test]
    fn a_kernel_without_the_note_or_of_unknown_compression_stays_a_bzimage() {
        for payload in [lz4_payload(&elf(17)), b"BZh9 something".to_vec()] {
            let whole = bzimage(&payload);
            assert_eq!(
                bootable(&whole, MAX_IMAGE).expect("sound"),
                (whole.clone(), Format::BzImage)
            );
        }
    }

    #[test]
    fn a_payload_outside_of_the_file_or_of_the_wrong_size_is_an_error() {
        let mut payload = lz4_payload(&elf(18));
        let whole = bzimage(&payload);
        assert!(bootable(&whole[..whole.len() - 1], MAX_IMAGE).is_err());
        *payload.last_mut().expect("a trailer") ^= 1;
        assert!(bootable(&bzimage(&payload), MAX_IMAGE).is_err());
        assert!(bootable(b"short", MAX_IMAGE).is_err());
        assert!(bootable(&elf(17), MAX_IMAGE).is_err());
    }
}
