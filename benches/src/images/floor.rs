//! The floor: GET, sha256, inflate, sha256, tar scan, pwrite to aligned offsets, fsync, and nothing else.
//!
//! It uses the crates of the product (HTTP client, sha256, inflaters), tees the blobs to a file and syncs as the product
//! does, and has as many threads as can be busy: one fetches, one inflates, one places. It writes no metadata and checks
//! nothing but the digests. No pipeline that has to do these things can be expected to be faster.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use vmlet_artifacts::layers::decode::decoder;

use super::fetch::{Layer, get};
use super::scan::{Place, scan};

/// The product's bound.
pub const WINDOW: u64 = 128 << 20;
/// What one thread hands to the next at a time. It should stay in a core's own cache.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 32;

/// Runs the probe: `output` gets the data of all layers.
pub fn run(runtime: &tokio::runtime::Handle, http: &reqwest::Client, layers: &[Layer], output: &Path) -> Result<()> {
    let tee = scratch(output)?;
    let file = File::create(output).with_context(|| output.display().to_string())?;
    let (fetched, to_inflate) = sync_channel(CHUNKS);
    let (inflated, mut to_place) = sync_channel(CHUNKS);
    let (empty, emptied) = channel();
    for _ in 0..CHUNKS {
        empty.send(Vec::new())?;
    }
    std::thread::scope(|scope| {
        let fetcher = scope.spawn(|| runtime.block_on(fetch(http, layers, &tee, fetched)));
        let inflater = scope.spawn(move || inflate(layers.len(), to_inflate, inflated, emptied));
        let mut place = Place::new(file);
        let placed = layers.iter().try_for_each(|layer| {
            let mut hashed = Hashed {
                pieces: Pieces::new(&mut to_place),
                used: &empty,
                hasher: Sha256::new(),
            };
            scan(&mut hashed, &mut place)?;
            check(&layer.diff_id, hashed.hasher)
        });
        let placed = placed.and_then(|()| Ok(place.finish()?));
        // The others end when nobody listens any more.
        drop(to_place);
        let ended =
            |thread: std::thread::Result<Result<()>>| thread.unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")));
        let (fetched, inflated) = (ended(fetcher.join()), ended(inflater.join()));
        placed.and(fetched).and(inflated)
    })
}

/// A file without a name beside the output.
pub fn scratch(output: &Path) -> Result<File> {
    let dir = output
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok(tempfile::tempfile_in(dir)?)
}

/// Fails if what was hashed is not what was named.
pub fn check(expected: &str, hasher: Sha256) -> Result<()> {
    let actual = hasher
        .finalize()
        .iter()
        .fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"));
    ensure!(actual == expected, "the digest is {actual}, not {expected}");
    Ok(())
}

/// Bytes of one layer, then its end.
enum Piece<B> {
    Bytes(B),
    End,
}

async fn fetch(
    http: &reqwest::Client,
    layers: &[Layer],
    tee: &File,
    to: SyncSender<Piece<bytes::Bytes>>,
) -> Result<()> {
    let mut at = 0;
    for layer in layers {
        let mut hasher = Sha256::new();
        let mut stream = get(http, &layer.url).await?.bytes_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            tee.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
            hasher.update(&bytes);
            to.send(Piece::Bytes(bytes)).context("the inflating thread has ended")?;
        }
        check(&layer.digest, hasher)?;
        to.send(Piece::End).context("the inflating thread has ended")?;
    }
    Ok(())
}

fn inflate(
    layers: usize,
    mut from: Receiver<Piece<bytes::Bytes>>,
    to: SyncSender<Piece<Vec<u8>>>,
    emptied: Receiver<Vec<u8>>,
) -> Result<()> {
    for _ in 0..layers {
        let mut pieces = Pieces::new(&mut from);
        let mut bytes = decoder(&mut pieces, WINDOW)?;
        loop {
            let mut piece = emptied.recv().context("the placing thread has ended")?;
            piece.resize(CHUNK, 0);
            let n = fill(&mut bytes, &mut piece)?;
            piece.truncate(n);
            if n == 0 {
                break;
            }
            to.send(Piece::Bytes(piece)).context("the placing thread has ended")?;
        }
        to.send(Piece::End).context("the placing thread has ended")?;
    }
    Ok(())
}

/// Reads until the buffer is full or nothing comes.
pub fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Reads one layer's pieces.
struct Pieces<'a, B> {
    from: &'a mut Receiver<Piece<B>>,
    now: Option<B>,
    at: usize,
    ended: bool,
}

impl<'a, B: AsRef<[u8]>> Pieces<'a, B> {
    fn new(from: &'a mut Receiver<Piece<B>>) -> Self {
        Pieces {
            from,
            now: None,
            at: 0,
            ended: false,
        }
    }

    /// Makes the next piece the current one and returns the last one.
    fn turn(&mut self) -> io::Result<Option<B>> {
        let used = self.now.take();
        self.at = 0;
        match self.from.recv() {
            Ok(Piece::Bytes(bytes)) => self.now = Some(bytes),
            Ok(Piece::End) => self.ended = true,
            Err(_) => return Err(io::Error::other("the thread before this one has ended")),
        }
        Ok(used)
    }

    fn rest(&self) -> &[u8] {
        self.now.as_ref().map_or(&[], |bytes| &bytes.as_ref()[self.at..])
    }

    fn copy_to(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.rest().len());
        buf[..n].copy_from_slice(&self.rest()[..n]);
        self.at += n;
        n
    }
}

impl<B: AsRef<[u8]>> Read for Pieces<'_, B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest().is_empty() && !self.ended {
            self.turn()?;
        }
        Ok(self.copy_to(buf))
    }
}

/// Hashes pieces as they come and gives their memory back.
struct Hashed<'a> {
    pieces: Pieces<'a, Vec<u8>>,
    used: &'a Sender<Vec<u8>>,
    hasher: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.pieces.rest().is_empty() && !self.pieces.ended {
            if let Some(used) = self.pieces.turn()? {
                let _ = self.used.send(used);
            }
            self.hasher.update(self.pieces.rest());
        }
        Ok(self.pieces.copy_to(buf))
    }
}
