//! A deterministic writer for the "newc" cpio archives that the kernel unpacks as its initrd.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
//! Inode numbers count up, times, owners and devices are zero: same entries, same bytes.

use crate::config::{CONFIG_PATH, GuestConfig};

const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const CHARACTER: u32 = 0o020000;

/// An archive that is being written into memory.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    inodes: u32,
}

impl Writer {
    /// An empty archive.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a directory; parents must have been added before. No leading slash.
    pub fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name, DIRECTORY | (mode & 0o7777), (0, 0), &[]);
    }

    /// Adds a regular file (the format holds less than 4 GiB of it).
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | (mode & 0o7777), (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, CHARACTER | (mode & 0o7777), (major, minor), &[]);
    }

    /// Ends the archive. Its length is a multiple of four, so that another may follow it.
    pub fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", 0, 0, 1, 0, (0, 0));
        self.out
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inodes += 1;
        let links = if mode & 0o170000 == DIRECTORY { 2 } else { 1 };
        self.header(name, self.inodes, mode, links, content.len() as u32, device);
        self.out.extend_from_slice(content);
        self.pad();
    }

    fn header(&mut self, name: &str, inode: u32, mode: u32, links: u32, size: u32, device: (u32, u32)) {
        let name_size = name.len() as u32 + 1;
        self.out.extend_from_slice(b"070701");
        let fields = [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        for field in fields {
            self.out.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.out.len().is_multiple_of(4) {
            self.out.push(0);
        }
    }
}

/// The archive to append to an initrd so that the guest finds `config`.
///
/// The initrd before it must end on a multiple of four bytes ([`pad4`]).
pub fn config_cpio(config: &GuestConfig) -> Vec<u8> {
    // A struct of strings, numbers and lists always has a JSON form.
    let json = serde_json::to_vec(config).unwrap_or_default();
    let mut writer = Writer::new();
    writer.directory("vmlet", 0o700);
    writer.file(CONFIG_PATH, 0o600, &json);
    writer.finish()
}

/// How many zero bytes bring a length to a multiple of four, where the kernel looks for the next archive.
pub fn pad4(length: u64) -> usize {
    ((4 - length % 4) % 4) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut writer = Writer::new();
        writer.directory("d", 0o755);
        writer.file("d/f", 0o644, b"hello");
        let text = String::from_utf8(writer.finish()).expect("ascii");
        let zero = "00000000";
        let directory = format!(
            "07070100000001000041ED{zero}{zero}00000002{}00000002{zero}d\0",
            zero.repeat(6)
        );
        let file = format!(
            "07070100000002000081A4{zero}{zero}00000001{zero}00000005{}00000004{zero}d/f\0\0\0hello\0\0\0",
            zero.repeat(4)
        );
        let trailer = format!(
            "070701{zero}{zero}{zero}{zero}00000001{}0000000B{zero}TRAILER!!!\0\0\0\0",
            zero.repeat(6)
        );
        assert_eq!(text, directory + &file + &trailer);
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn a_configuration_gives_the_same_bytes_twice() {
        let config = GuestConfig {
            hostname: "a".into(),
            ..GuestConfig::default()
        };
        assert_eq!(config_cpio(&config), config_cpio(&config));
        assert_ne!(config_cpio(&config), config_cpio(&GuestConfig::default()));
    }

    #[test]
    fn padding_reaches_the_next_multiple_of_four() {
        assert_eq!([0, 1, 2, 3, 4].map(pad4), [0, 3, 2, 1, 0]);
    }
}
