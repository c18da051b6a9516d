//! What a file is, by its bytes: an archive, a root file system's tar, a bare ext4, a kernel.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::archive::{Archive, may_begin_with};
use super::fetch::Bytes;
use super::local::Section;
use super::{ext4, failure};
use crate::error::{PullError, Reason};
use crate::layers::LayerError;
use crate::layers::decode::decoder;
use crate::layers::header::{BLOCK, Header};
use crate::layers::member::Members;
use crate::layers::path::normalise;
use crate::types::Limits;

/// Enough for the headers of a tar's first members and for a superblock.
const PEEK: usize = 64 << 10;
/// Temporary, and without a name as soon as it is open.
const SPOOL: &str = "spool";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A tar that begins as an archive of an image does.
    Archive,
    /// Another tar.
    Tar,
    /// A bare ext4 file system.
    Ext4,
    /// An ELF or a bzImage.
    Kernel,
}

/// A file that was looked at.
pub struct Looked {
    /// What it is.
    pub content: Content,
    /// Its first bytes, uncompressed.
    pub start: Vec<u8>,
    /// All of it from the start, uncompressed and bounded.
    pub bytes: Box<dyn Read + Send>,
    /// Whether it is not compressed.
    pub plain: bool,
}

/// Looks at the first bytes of a file, under its compression.
///
/// # Errors
/// Bytes that do not come, and files that nothing can be made of.
pub fn look(name: &str, bytes: &Bytes, limits: &Limits) -> Result<Looked, PullError> {
    let wrong = |error| failure::layer(name, LayerError::Read(error));
    let mut raw = bytes.reader();
    let mut first = Vec::with_capacity(8);
    raw.by_ref().take(8).read_to_end(&mut first).map_err(wrong)?;
    let plain = matches!(
        crate::layers::decode::detect(&first).map_err(wrong)?,
        crate::layers::decode::Compression::None
    );
    let inflated = decoder(Cursor::new(first).chain(raw), limits.zstd_window_bytes).map_err(wrong)?;
    let mut inflated = Bounded {
        inner: inflated,
        left: limits.uncompressed_bytes,
        most: limits.uncompressed_bytes,
    };
    let mut start = Vec::with_capacity(PEEK);
    inflated
        .by_ref()
        .take(PEEK as u64)
        .read_to_end(&mut start)
        .map_err(wrong)?;
    let content = classify(&start, limits).map_err(|what| {
        let takes = "it must be an OCI or docker archive, a tar of a root file system, or a bare ext4 file system (for kernels: a vmlinux or a bzImage), plain or compressed with gzip or zstd";
        PullError::new(Reason::UnsupportedFormat, format!("{name} is {what}; {takes}"))
    })?;
    Ok(Looked {
        content,
        bytes: Box::new(Cursor::new(start.clone()).chain(inflated)),
        start,
        plain,
    })
}

/// What these first bytes begin; or else what they look like.
fn classify(start: &[u8], limits: &Limits) -> Result<Content, &'static str> {
    let header = start
        .first_chunk::<BLOCK>()
        .is_some_and(|block| Header::parse(block).is_ok());
    if header {
        return Ok(if first_name(start, limits).is_some_and(|name| may_begin_with(&name)) {
            Content::Archive
        } else {
            Content::Tar
        });
    }
    if start.starts_with(b"\x7fELF") || start.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Content::Kernel);
    }
    if ext4::is_superblock(start) {
        return Ok(Content::Ext4);
    }
    Err(match start {
        [] => "empty",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image",
        [b'K', b'D', b'M', ..] => "a VMDK disk image",
        [b'h', b's', b'q', b's', ..] => "a squashfs",
        [b'P', b'K', 3, 4, ..] => "a zip file",
        [b'0', b'7', b'0', b'7', b'0', ..] => "a cpio archive",
        [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => "a Debian package",
        [b'<', ..] => "a page of HTML or XML",
        [b'{' | b'[', ..] => "JSON",
        // An empty tar is nothing but zeros.
        _ if start.len() >= 2 * BLOCK && start.len() < PEEK && start.iter().all(|&b| b == 0) => {
            return Ok(Content::Tar);
        }
        _ if start.get(510..512) == Some(&[0x55, 0xaa]) => "a disk with partitions",
        _ => "of no format that is known here",
    })
}

/// The name of a tar's first member that is not its root.
fn first_name(start: &[u8], limits: &Limits) -> Option<Vec<u8>> {
    let mut members = Members::new(start);
    loop {
        let member = members.next().ok()??;
        let path = normalise(&member.name, limits.path_bytes).ok()?;
        if !path.is_empty() {
            return Some(path);
        }
    }
}

/// Brings a tar into one file that can be read in any order. What was downloaded whole and is not
/// compressed is there already.
///
/// # Errors
/// Bytes that do not come, a broken tar, the disk.
pub fn spool(name: &str, bytes: &Bytes, mut looked: Looked, dir: &Path, limits: &Limits) -> Result<Archive, PullError> {
    let local = |error: io::Error| PullError::io(name, &error);
    let wrong = |error| failure::layer(name, LayerError::Read(error));
    let file = match bytes {
        Bytes::Coming(growing) if looked.plain => {
            io::copy(&mut looked.bytes, &mut io::sink()).map_err(wrong)?;
            growing.file()
        }
        _ => None,
    };
    let file = match file {
        Some(file) => file,
        None => {
            let mut file = unnamed(&dir.join(SPOOL)).map_err(local)?;
            copy(&mut looked.bytes, &mut file).map_err(|end| end.say(local, wrong))?;
            Arc::new(file)
        }
    };
    Archive::list(name, Section::whole(file).map_err(local)?, limits)
}

/// A new file without a name: it goes with its last user, whatever happens.
pub fn unnamed(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Which side of a copy failed.
pub enum CopyError {
    /// Where it came from.
    Read(io::Error),
    /// Where it went to.
    Write(io::Error),
}

impl CopyError {
    /// Puts it into words.
    pub fn say(self, write: impl Fn(io::Error) -> PullError, read: impl Fn(io::Error) -> PullError) -> PullError {
        match self {
            CopyError::Read(error) => read(error),
            CopyError::Write(error) => write(error),
        }
    }
}

/// Copies, and tells apart which side failed.
///
/// # Errors
/// Of either side.
pub fn copy(from: &mut dyn Read, to: &mut dyn Write) -> Result<u64, CopyError> {
    let mut buffer = vec![0; 256 << 10];
    let mut copied = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        copied += n as u64;
    }
}

struct Bounded<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has more than {} bytes when it is uncompressed", self.most),
            )
        })?;
        Ok(n)
    }
}
