//! From compressed layers to one merged tree: what runs while an image is pulled.
//!
//! Two threads: one inflates ahead, through all layers in order; the caller's own hashes, parses
//! and stores. Data is stored layer by layer in order, so that equal layers give equal bytes.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use tokio_util::sync::CancellationToken;

use super::budget::{Budget, wanted};
use super::member::{MemberKind, Members, Position, Segment};
use super::merge::{Attributes, Inode, Layer, NodeId, Record, RecordKind, Tree};
use super::path::{Named, classify, normalise};
use super::{LayerError, TooManyBytes, decode, show};
use crate::reference::{Digest, Hasher};
use crate::types::Limits;

/// Where file data goes.
pub trait Store {
    /// Names stored data.
    type Data;

    /// Takes a file's content in; it is called for one file at a time, in the archive's order.
    ///
    /// # Errors
    /// Those of the content, and those of the store.
    fn store(&mut self, content: &mut dyn Content) -> Result<Self::Data, LayerError>;

    /// The name in the root that is kept for a directory, if there is one.
    fn only_directory(&self) -> Option<&'static str> {
        None
    }

    /// The bytes that are needed to keep these extended attributes of one entry, beside those that any entry needs.
    ///
    /// # Errors
    /// Those that could not be kept.
    fn check(&self, _xattrs: &[(Vec<u8>, Vec<u8>)], _directory: bool) -> Result<u64, LayerError> {
        Ok(0)
    }

    /// Data that lost to a later layer.
    ///
    /// # Errors
    /// Those of the store.
    fn discard(&mut self, data: Self::Data) -> Result<(), LayerError>;
}

/// A file's content, piece by piece.
pub trait Content {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// A broken archive or a failed read.
    fn next<'b>(&mut self, buf: &'b mut [u8]) -> Result<Option<Segment<'b>>, LayerError>;

    /// Is told how many more bytes the content takes where it is kept.
    ///
    /// # Errors
    /// They are too many for the image.
    fn take(&mut self, bytes: u64) -> Result<(), LayerError>;
}

/// One layer to be applied.
pub struct Input {
    /// Its compressed bytes.
    pub bytes: Box<dyn Read + Send>,
    /// Digest of its decompressed bytes, if the image names it.
    pub diff_id: Option<Digest>,
}

/// A layer's place in the image, and what is wrong with it.
pub type Failed = (usize, LayerError);

const CHUNK: usize = 64 << 10;
const CHUNKS_AHEAD: usize = 32;

enum Piece {
    Bytes(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Reads, checks and merges all layers, the lowest first. `stop` is called when it fails, so that
/// a thread that waits for bytes stops waiting. Whoever fires `cancel` does not wait for long.
///
/// # Errors
/// The first layer that cannot be used, and why; cancellation.
pub fn flatten<S: Store>(
    layers: Vec<Input>,
    store: &mut S,
    limits: &Limits,
    cancel: &CancellationToken,
    stop: &(dyn Fn() + Sync),
) -> Result<Tree<S::Data>, Failed> {
    let (diff_ids, sources): (Vec<_>, Vec<_>) = layers.into_iter().map(|layer| (layer.diff_id, layer.bytes)).unzip();
    let window = limits.zstd_window_bytes;
    let (send, receive) = sync_channel(CHUNKS_AHEAD);
    let (used, emptied) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || inflate(sources, window, &send, &emptied));
        let result = merge(diff_ids, &receive, &used, store, limits, cancel);
        // The other thread ends when nobody listens any more.
        drop(receive);
        if result.is_err() {
            stop();
        }
        result
    })
}

fn merge<S: Store>(
    diff_ids: Vec<Option<Digest>>,
    pieces: &Receiver<Piece>,
    used: &Sender<Vec<u8>>,
    store: &mut S,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Tree<S::Data>, Failed> {
    let mut tree = Tree::within(Budget::new(limits, cancel));
    let mut bytes_left = limits.uncompressed_bytes;
    // What stands where only a directory may, and the layer that it came with.
    let mut misplaced: Option<(usize, NodeId)> = None;
    for (at, diff_id) in diff_ids.into_iter().enumerate() {
        let step = || {
            let mut input = Hashed::new(
                Inflated {
                    pieces,
                    used,
                    cancel,
                    piece: Vec::new(),
                    at: 0,
                    ended: false,
                },
                &diff_id,
                bytes_left,
                limits.uncompressed_bytes,
            );
            let layer = read_layer(&mut input, store, limits, tree.budget())?;
            // What follows the archive's end is no entry, but belongs to the layer's digest.
            let rest = io::copy(&mut input, &mut io::sink());
            rest.map_err(|error| LayerError::Read(error).after(layer.last()))?;
            bytes_left = input.left;
            input.check(diff_id)?;
            tree.apply(layer)?;
            for lost in tree.take_discarded() {
                store.discard(lost)?;
            }
            let now = store
                .only_directory()
                .and_then(|name| tree.other_in_root(name.as_bytes()));
            misplaced = now.map(|id| match misplaced {
                Some((before, same)) if same == id => (before, id),
                _ => (at, id),
            });
            Ok(())
        };
        step().map_err(|error| (at, error))?;
    }
    // A later layer may have made it good.
    if let Some(((at, _), name)) = misplaced.zip(store.only_directory()) {
        let why = format!(
            "{}: in the root of ext4 this must be a directory",
            show(name.as_bytes())
        );
        return Err((at, LayerError::Malformed(why)));
    }
    Ok(tree)
}

/// Reads one layer's tar; file data goes to `store`.
///
/// # Errors
/// Broken archives, exceeded limits, failures of the store.
pub fn read_layer<S: Store>(
    input: impl Read,
    store: &mut S,
    limits: &Limits,
    budget: &mut Budget,
) -> Result<Layer<S::Data>, LayerError> {
    let mut members = Members::new(input);
    let mut layer = Layer::default();
    while let Some(member) = members.next().map_err(|error| error.after(layer.last()))? {
        let refused = |error: LayerError| error.of(&member.name);
        budget.entry().and_then(|()| budget.member(&member)).map_err(refused)?;
        let path = normalise(&member.name, limits.path_bytes).map_err(refused)?;
        let path = match classify(path).map_err(refused)? {
            Named::Entry(path) => path,
            Named::Whiteout(path) => {
                layer.whiteouts.push(path);
                continue;
            }
            Named::Opaque(path) => {
                layer.opaques.push(path);
                continue;
            }
            Named::Ignored => continue,
        };
        if !member.xattrs.is_empty() && !matches!(member.kind, MemberKind::HardLink(_)) {
            let directory = member.kind == MemberKind::Directory;
            let taken = store.check(&member.xattrs, directory);
            taken.and_then(|bytes| budget.disk(bytes)).map_err(refused)?;
        }
        let kind = match member.kind {
            MemberKind::File { .. } => {
                let mut content = Rest {
                    members: &mut members,
                    position: Position::default(),
                    budget,
                };
                let stored = store.store(&mut content);
                let stored = stored.map_err(|error| refused(error).after(layer.last()));
                RecordKind::Inode(Inode::File(stored?))
            }
            MemberKind::Directory => RecordKind::Directory,
            MemberKind::HardLink(target) => {
                RecordKind::HardLink(normalise(&target, limits.path_bytes).map_err(refused)?)
            }
            MemberKind::Symlink(target) => RecordKind::Inode(Inode::Symlink(target)),
            MemberKind::CharDevice(major, minor) => {
                check_device(&path, major, minor)?;
                RecordKind::Inode(Inode::CharDevice(major, minor))
            }
            MemberKind::BlockDevice(major, minor) => {
                check_device(&path, major, minor)?;
                RecordKind::Inode(Inode::BlockDevice(major, minor))
            }
            MemberKind::Fifo => RecordKind::Inode(Inode::Fifo),
        };
        layer.records.push(Record {
            path: path.into_boxed_slice(),
            attributes: Attributes {
                mode: member.mode,
                uid: member.uid,
                gid: member.gid,
                mtime: member.mtime.0,
                mtime_nsec: member.mtime.1,
            },
            xattrs: (!member.xattrs.is_empty()).then(|| member.xattrs.into_boxed_slice()),
            kind,
        });
    }
    Ok(layer)
}

fn check_device(path: &[u8], major: u32, minor: u32) -> Result<(), LayerError> {
    if major < 1 << 12 && minor < 1 << 20 {
        return Ok(());
    }
    Err(LayerError::malformed(format!(
        "the device {} has the impossible number {major}:{minor}",
        show(path)
    )))
}

struct Rest<'a, R> {
    members: &'a mut Members<R>,
    position: Position,
    budget: &'a mut Budget,
}

impl<R: Read> Content for Rest<'_, R> {
    fn next<'b>(&mut self, buf: &'b mut [u8]) -> Result<Option<Segment<'b>>, LayerError> {
        self.members.content(buf, &mut self.position)
    }

    fn take(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.budget.disk(bytes)
    }
}

fn inflate(sources: Vec<Box<dyn Read + Send>>, window: u64, pieces: &SyncSender<Piece>, emptied: &Receiver<Vec<u8>>) {
    for source in sources {
        let last = match inflate_one(source, window, pieces, emptied) {
            Ok(true) => Piece::End,
            Ok(false) => return,
            Err(error) => Piece::Failed(error),
        };
        if pieces.send(last).is_err() {
            return;
        }
    }
}

/// False when nobody listens any more.
fn inflate_one(
    source: Box<dyn Read + Send>,
    window: u64,
    pieces: &SyncSender<Piece>,
    emptied: &Receiver<Vec<u8>>,
) -> io::Result<bool> {
    let mut bytes = decode::decoder(source, window)?;
    loop {
        // The same memory goes round and round: it is in the cache, and no page of it is new.
        let mut piece = emptied.try_recv().unwrap_or_default();
        piece.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match bytes.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What came before it was whole.
                    piece.truncate(filled);
                    return match pieces.send(Piece::Bytes(piece)) {
                        Ok(()) => Err(error),
                        Err(_) => Ok(false),
                    };
                }
            }
        }
        if filled == 0 {
            return Ok(true);
        }
        piece.truncate(filled);
        if pieces.send(Piece::Bytes(piece)).is_err() {
            return Ok(false);
        }
    }
}

/// One layer's bytes from the inflating thread.
struct Inflated<'a> {
    pieces: &'a Receiver<Piece>,
    /// Where read pieces go to be filled again.
    used: &'a Sender<Vec<u8>>,
    cancel: &'a CancellationToken,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Inflated<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            wanted(self.cancel)?;
            match self.pieces.recv() {
                Ok(Piece::Bytes(piece)) => {
                    // Nobody takes it any more once all is inflated.
                    let _ = self.used.send(std::mem::replace(&mut self.piece, piece));
                    self.at = 0;
                }
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::Failed(error)) => return Err(error),
                Err(_) => return Err(io::Error::other("the inflating thread ended too early")),
            }
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Hashes and counts what is read through it.
struct Hashed<R> {
    inner: R,
    hasher: Option<Hasher>,
    left: u64,
    /// What was left at the beginning of the image.
    most: u64,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R, digest: &Option<Digest>, left: u64, most: u64) -> Self {
        Hashed {
            inner,
            hasher: digest.as_ref().map(Digest::hasher),
            left,
            most,
        }
    }

    fn check(self, expected: Option<Digest>) -> Result<(), LayerError> {
        let Some((hasher, expected)) = self.hasher.zip(expected) else {
            return Ok(());
        };
        let actual = hasher.finish();
        if actual == expected {
            return Ok(());
        }
        Err(LayerError::WrongDiffId {
            expected: expected.to_string(),
            actual: actual.to_string(),
        })
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            let bound = TooManyBytes(self.most);
            io::Error::new(io::ErrorKind::FileTooLarge, bound)
        })?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        Ok(n)
    }
}
