//! The members of a tar stream, with everything that PAX and GNU say about them put together.
//!
//! The parser is our own because the `tar` crate holds headers of any size in memory, applies
//! neither fractional times nor PAX sparse maps, and cannot read negative numbers. Like Go's
//! archive/tar (which writes most layers), global PAX headers are read over and not applied, and
//! links, directories and nodes never have content whatever their size field says.

use std::io::{self, Read};

use super::header::{BLOCK, Header, sparse_pairs};
use super::pax::Pax;
use super::sparse::{MOST_REGIONS, SparseMap, too_many_regions};
use super::{LayerError, show};

/// Content of a PAX header or a GNU long name; Go's limit too.
const MOST_META: u64 = 1 << 20;
/// Header blocks of extensions before one member.
const MOST_EXTENSIONS: usize = 64;

/// One member.
#[derive(Debug)]
pub struct Member {
    /// The name, byte for byte.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, without overlay's own.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file; its content comes from [`Members::content`].
    File {
        /// Size in bytes, holes included.
        size: u64,
    },
    /// Another name of an earlier file.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A piece of a file's content.
#[derive(Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zero bytes that the archive does not hold.
    Hole(u64),
}

/// Reads members one after the other.
pub struct Members<R> {
    input: Counted<R>,
    /// Stored bytes of the current member that were not read yet, and the padding behind them.
    stored: u64,
    padding: u64,
    sparse: Option<SparseMap>,
    ended: bool,
    /// Members so far.
    count: u64,
}

struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// What is wrong with a PAX header; told when it is known whose it is.
    wrong: Option<LayerError>,
}

impl Extensions {
    /// The name of the member that they belong to. In this order as Go's archive/tar has it.
    fn name(&self, header: &Header<'_>) -> Vec<u8> {
        let sparse = self.pax.sparse.real_name();
        let name = sparse.or(self.long_name.as_ref()).or(self.pax.path.as_ref());
        name.cloned().unwrap_or_else(|| header.name())
    }
}

impl<R: Read> Members<R> {
    /// Reads from the start of a tar stream.
    pub fn new(input: R) -> Members<R> {
        Members {
            input: Counted {
                inner: input,
                position: 0,
            },
            stored: 0,
            padding: 0,
            sparse: None,
            ended: false,
            count: 0,
        }
    }

    /// The input, after the end: what follows the end-of-archive blocks is for the caller to read.
    pub fn into_inner(self) -> R {
        self.input.inner
    }

    /// Where in the stream the content of the current member begins or goes on.
    pub fn position(&self) -> u64 {
        self.input.position
    }

    /// Whether the current member's content is stored as it is, without a sparse map.
    pub fn is_plain(&self) -> bool {
        self.sparse.is_none()
    }

    /// The next member; `None` at the end of the archive. Content that was not read is read over.
    ///
    /// # Errors
    /// A broken archive. After an error nothing more can be read.
    #[allow(clippy::should_implement_trait, reason = "fallible and lending: not an iterator")]
    pub fn next(&mut self) -> Result<Option<Member>, LayerError> {
        let count = self.count;
        self.skip_content().map_err(|error| error.of_number(count))?;
        let member = self.headers().map_err(|error| error.of_number(count + 1))?;
        let Some((block, extensions)) = member else {
            return Ok(None);
        };
        self.count += 1;
        let header = Header::checked(&block);
        let name = extensions.name(&header);
        let member = self.member(&header, extensions, &name);
        let member = member.map_err(|error| error.of(&name))?;
        Ok(Some(Member { name, ..member }))
    }

    /// The headers of one member: its own, and what stands before it.
    fn headers(&mut self) -> Result<Option<([u8; BLOCK], Extensions)>, LayerError> {
        let mut extensions = Extensions::default();
        for _ in 0..=MOST_EXTENSIONS {
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block)?;
            match header.flag() {
                b'x' => {
                    let content = self.meta(&header)?;
                    // One that follows another takes its place, as in Go.
                    extensions.pax = Pax::default();
                    if let Err(error) = extensions.pax.read(&content) {
                        extensions.wrong.get_or_insert(error);
                    }
                }
                b'g' => {
                    self.meta(&header)?;
                }
                b'L' => extensions.long_name = until_nul(self.meta(&header)?),
                b'K' => extensions.long_link = until_nul(self.meta(&header)?),
                _ => return Ok(Some((block, extensions))),
            }
        }
        Err(LayerError::malformed(format!(
            "there are more than {MOST_EXTENSIONS} extension headers before one member"
        )))
    }

    /// The next piece of the current file's content; `None` at its end.
    ///
    /// # Errors
    /// A stream that is cut off.
    pub fn content<'b>(
        &mut self,
        buf: &'b mut [u8],
        progress: &mut Position,
    ) -> Result<Option<Segment<'b>>, LayerError> {
        let mut most = self.stored;
        if let Some(map) = &self.sparse {
            // Regions that are read, and empty ones, of which there may be a million.
            while let Some((offset, length)) = map.regions.get(progress.region)
                && progress.offset >= offset + length
            {
                progress.region += 1;
            }
            let Some(&(offset, length)) = map.regions.get(progress.region) else {
                let hole = map.size - progress.offset;
                progress.offset = map.size;
                return Ok((hole > 0).then_some(Segment::Hole(hole)));
            };
            if progress.offset < offset {
                let hole = offset - progress.offset;
                progress.offset = offset;
                return Ok(Some(Segment::Hole(hole)));
            }
            most = offset + length - progress.offset;
        }
        if most == 0 {
            return Ok(None);
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        let n = self.input.read(&mut buf[..most]).map_err(LayerError::Read)?;
        if n == 0 {
            return Err(cut_off());
        }
        self.stored -= n as u64;
        progress.offset += n as u64;
        Ok(Some(Segment::Data(&buf[..n])))
    }

    fn skip_content(&mut self) -> Result<(), LayerError> {
        let skip = self.stored + self.padding;
        (self.stored, self.padding, self.sparse) = (0, 0, None);
        let skipped = io::copy(&mut self.input.by_ref().take(skip), &mut io::sink()).map_err(LayerError::Read)?;
        if skipped == skip { Ok(()) } else { Err(cut_off()) }
    }

    /// The next block that is not the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut zeros = 0;
        while zeros < 2 {
            // A stream that ends where a header could begin is complete without its end blocks.
            if !self.block(&mut block)? {
                break;
            }
            if block.iter().any(|&b| b != 0) {
                if zeros > 0 {
                    return Err(LayerError::malformed(
                        "a lone zero block stands between the members of the tar",
                    ));
                }
                return Ok(Some(block));
            }
            zeros += 1;
        }
        self.ended = true;
        Ok(None)
    }

    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, LayerError> {
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]).map_err(LayerError::Read)? {
                0 if have == 0 => return Ok(false),
                0 => return Err(cut_off()),
                n => have += n,
            }
        }
        Ok(true)
    }

    fn meta(&mut self, header: &Header<'_>) -> Result<Vec<u8>, LayerError> {
        let size = size(header.size()?)?;
        if size > MOST_META {
            return Err(LayerError::TooLarge(format!(
                "an extension header has {size} bytes, more than {MOST_META}"
            )));
        }
        let mut content = vec![0; size as usize];
        self.input.read_exact(&mut content).map_err(end_is_cut_off)?;
        self.padding = padding(size);
        self.skip_content()?;
        Ok(content)
    }

    /// All of a member but its name.
    fn member(&mut self, header: &Header<'_>, extensions: Extensions, name: &[u8]) -> Result<Member, LayerError> {
        let Extensions {
            pax, long_link, wrong, ..
        } = extensions;
        if let Some(error) = wrong {
            return Err(error);
        }
        let link = long_link.or(pax.link).unwrap_or_else(|| header.link());
        let stored = size(match pax.size {
            Some(size) => size.into(),
            None => header.size()?,
        })?;
        let device = || -> Result<(u32, u32), LayerError> {
            let (major, minor) = header.device()?;
            let number = |n: i128| {
                u32::try_from(n).map_err(|_| LayerError::malformed(format!("the device number {n} is impossible")))
            };
            Ok((number(major)?, number(minor)?))
        };
        let kind = match header.flag() {
            0 if name.ends_with(b"/") => MemberKind::Directory,
            0 | b'0' | b'7' | b'S' => {
                self.stored = stored;
                self.padding = padding(stored);
                if header.flag() == b'S' {
                    self.sparse = Some(self.old_sparse(header)?);
                } else {
                    self.sparse = pax.sparse.map(&mut self.input, &mut self.stored)?;
                }
                MemberKind::File {
                    size: self.sparse.as_ref().map_or(stored, |map| map.size),
                }
            }
            b'1'..=b'6' if pax.sparse.is_sparse() => {
                return Err(LayerError::malformed(
                    "it is described as a sparse file, but is no file",
                ));
            }
            b'1' => MemberKind::HardLink(link),
            b'2' => MemberKind::Symlink(link),
            b'3' => device().map(|(major, minor)| MemberKind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| MemberKind::BlockDevice(major, minor))?,
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            flag => {
                return Err(LayerError::Unsupported(format!(
                    "it is a tar member of the unknown type {}",
                    show(&[flag])
                )));
            }
        };
        let id = |what: &str, pax: Option<u64>, header: i128| {
            let id = pax.map_or(header, i128::from);
            u32::try_from(id).map_err(|_| LayerError::malformed(format!("the {what} {id} has no room in 32 bits")))
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => {
                let seconds = header.mtime()?;
                (
                    i64::try_from(seconds).unwrap_or(if seconds < 0 { i64::MIN } else { i64::MAX }),
                    0,
                )
            }
        };
        let mode = header.mode()?;
        if mode < 0 {
            return Err(LayerError::malformed(format!("the mode {mode} is impossible")));
        }
        Ok(Member {
            mode: (mode & 0o7777) as u16,
            uid: id("owner", pax.uid, header.uid()?)?,
            gid: id("group", pax.gid, header.gid()?)?,
            mtime,
            xattrs: pax.xattrs,
            kind,
            name: Vec::new(),
        })
    }

    fn old_sparse(&mut self, header: &Header<'_>) -> Result<SparseMap, LayerError> {
        let (mut pairs, mut more, real) = header.sparse()?;
        let size = size(real)?;
        let mut block = [0; BLOCK];
        while more {
            if !self.block(&mut block)? {
                return Err(cut_off());
            }
            pairs.extend(sparse_pairs(&block[..504])?);
            if pairs.len() > MOST_REGIONS {
                return Err(too_many_regions());
            }
            more = block[504] != 0;
        }
        SparseMap::from_signed(&pairs, size, self.stored)
    }
}

/// How far into a file's content a reader is. One per member.
#[derive(Debug, Default)]
pub struct Position {
    region: usize,
    offset: u64,
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// An empty name is none.
fn until_nul(mut name: Vec<u8>) -> Option<Vec<u8>> {
    if let Some(end) = name.iter().position(|&b| b == 0) {
        name.truncate(end);
    }
    (!name.is_empty()).then_some(name)
}

fn cut_off() -> LayerError {
    LayerError::malformed("the tar is cut off")
}

/// A size, below 2^63: sums of a few cannot overflow, and no file system has larger files.
fn size(size: i128) -> Result<u64, LayerError> {
    i64::try_from(size)
        .ok()
        .and_then(|size| u64::try_from(size).ok())
        .ok_or_else(|| LayerError::malformed(format!("the size {size} is impossible")))
}

fn end_is_cut_off(error: io::Error) -> LayerError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        cut_off()
    } else {
        LayerError::Read(error)
    }
}
