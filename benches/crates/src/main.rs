//! `vmlet-bench-crates HOST:PORT/NAME:TAG DISK BYTES`: an image of a registry that speaks plain HTTP as an ext4 of so many
//! bytes, made by crates of others.
//!
//! One thread fetches (oci-client checks the blobs' digests), another inflates and reads the tars. mkext4 wants all sizes
//! before the first byte, so contents are spooled to a file without a name until the last layer is read. It knows what the
//! images of the set need and no more: layers that go through symbolic links, names that are not UTF-8, sparse files and a
//! `diff_id` that does not match are none of its business. Nothing is synced.

mod tree;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use tree::Tree;

const BUFFER: usize = 256 << 10;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [reference, disk, bytes] = args.as_slice() else {
        bail!("usage: vmlet-bench-crates HOST:PORT/NAME:TAG DISK BYTES");
    };
    let reference: Reference = reference.parse()?;
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let (manifest, _) = client.pull_image_manifest(&reference, &RegistryAuth::Anonymous).await?;
    let (layers, coming): (Vec<_>, Vec<_>) = manifest
        .layers
        .iter()
        .map(|layer| {
            let (to, from) = sync_channel(64);
            ((layer.clone(), to), (layer.media_type.clone(), Coming::new(from)))
        })
        .unzip();
    let fetching = tokio::spawn(async move {
        for (layer, to) in layers {
            // Whoever reads has failed, and says why.
            if !fetch(&client, &reference, &layer, to).await? {
                break;
            }
        }
        Ok::<_, anyhow::Error>(())
    });
    let (disk, bytes) = (disk.clone(), bytes.parse()?);
    let made = tokio::task::spawn_blocking(move || make(coming, Path::new(&disk), bytes)).await?;
    fetching.await?.and(made)
}

/// False when nobody listens any more.
async fn fetch(client: &Client, reference: &Reference, layer: &OciDescriptor, to: SyncSender<Vec<u8>>) -> Result<bool> {
    let mut stream = client.pull_blob_stream(reference, layer).await?.stream;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?.to_vec();
        if tokio::task::block_in_place(|| to.send(bytes)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn make(layers: Vec<(String, Coming)>, disk: &Path, bytes: u64) -> Result<()> {
    let dir = disk.parent().context("the disk has no directory")?;
    let spool = tempfile::tempfile_in(dir)?;
    let mut tree = Tree::new(bytes, BufWriter::with_capacity(1 << 20, spool.try_clone()?))?;
    for (media_type, coming) in layers {
        let mut inflated: Box<dyn Read> = if media_type.ends_with("gzip") {
            Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(
                BUFFER, coming,
            )))
        } else if media_type.ends_with("zstd") {
            Box::new(zstd::Decoder::new(coming)?)
        } else {
            Box::new(coming)
        };
        tree.layer(&mut inflated)?;
        io::copy(&mut inflated, &mut io::sink())?;
    }
    let (builder, contents, mut spooled) = tree.finish();
    spooled.flush()?;
    let layout = builder.seal()?;
    let mut sink = mkext4::sink::FileSink::create(disk, layout.image_len())?;
    let mut writer = layout.writer(&mut sink)?;
    for (handle, at, size) in contents {
        let part = Part { file: &spool, at };
        writer.fill(handle, &mut part.take(size))?;
    }
    writer.finish()?;
    Ok(())
}

/// Reads what another thread fetches.
struct Coming {
    from: Receiver<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
}

impl Coming {
    fn new(from: Receiver<Vec<u8>>) -> Coming {
        Coming {
            from,
            now: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Coming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.now.len() {
            let Ok(next) = self.from.recv() else { return Ok(0) };
            (self.now, self.at) = (next, 0);
        }
        let n = buf.len().min(self.now.len() - self.at);
        buf[..n].copy_from_slice(&self.now[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Reads the spool from an offset on.
struct Part<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
