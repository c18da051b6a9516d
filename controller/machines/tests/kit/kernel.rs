//! Kernels of a few instructions: enough for QEMU to start and for its life to be seen, in a tenth of a
//! second and without Linux. They are ELF files with the PVH entry note, entered in 32-bit mode.

/// Halts for ever.
pub const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Powers off by the ACPI port of QEMU's q35 as its firmware sets it up: `outw(0x604, 0x2000)`.
pub const POWER_OFF: &[u8] = &[
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];
/// Resets by the reset control register: `outb(0xcf9, 6)`.
pub const RESET: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];
/// Spins for a second or more, then writes to every page between 2 MiB and 256 MiB, again and again.
pub const HOG: &[u8] = &[
    0xb9, 0x00, 0x00, 0x00, 0x40, // mov ecx, 0x40000000
    0x49, // dec ecx
    0x75, 0xfd, // jnz -3
    0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
    0x89, 0x3f, // mov [edi], edi
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0x81, 0xff, 0x00, 0x00, 0x00, 0x10, // cmp edi, 0x10000000
    0x72, 0xf0, // jb to the mov
    0xeb, 0xe9, // jmp to the beginning of the walk
];

const LOAD_AT: u32 = 0x10_0000;

/// An ELF that QEMU boots by its PVH note.
pub fn elf(code: &[u8]) -> Vec<u8> {
    // Header, two program headers, the note, the code.
    let (headers, note_size) = (64 + 2 * 56, 24);
    let code_at = headers + note_size;
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend(2u16.to_le_bytes()); // executable
    out.extend(62u16.to_le_bytes()); // x86-64
    out.extend(1u32.to_le_bytes());
    let entry = u64::from(LOAD_AT) + code_at as u64;
    out.extend(entry.to_le_bytes());
    out.extend(64u64.to_le_bytes()); // program headers
    out.extend(0u64.to_le_bytes()); // no section headers
    out.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let total = (code_at + code.len()) as u64;
    let mut segment = |kind: u32, flags: u32, offset: u64, size: u64| {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        let address = u64::from(LOAD_AT) + offset;
        for word in [offset, address, address, size, size, 4] {
            out.extend(word.to_le_bytes());
        }
    };
    segment(1, 7, 0, total); // PT_LOAD
    segment(4, 4, headers as u64, note_size as u64); // PT_NOTE
    // XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
    for word in [4u32, 8, 18] {
        out.extend(word.to_le_bytes());
    }
    out.extend(b"Xen\0");
    out.extend(entry.to_le_bytes());
    out.extend(code);
    out
}
