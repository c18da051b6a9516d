//! Things that look like kernels.

/// A 64-bit ELF with the PVH note, and a banner that names the release.
pub fn vmlinux(release: &str) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
    elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
    elf[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&4u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    elf[96..104].copy_from_slice(&24u64.to_le_bytes());
    for number in [4u32, 8, 18] {
        elf.extend_from_slice(&number.to_le_bytes());
    }
    elf.extend_from_slice(b"Xen\0");
    elf.extend_from_slice(&[0; 8]);
    elf.extend_from_slice(format!("\0Linux version {release} (builder) #1\0").as_bytes());
    elf.extend_from_slice(&[0; 4096]);
    elf
}

/// A bzImage around a vmlinux, compressed with zstd.
pub fn bzimage(release: &str) -> Vec<u8> {
    let vmlinux = vmlinux(release);
    let mut payload = zstd::encode_all(&vmlinux[..], 3).unwrap();
    payload.extend_from_slice(&(vmlinux.len() as u32).to_le_bytes());
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    let version = format!("{release} (builder) #1\0");
    image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    image[0x248..0x24c].copy_from_slice(&0u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(&payload);
    image
}
