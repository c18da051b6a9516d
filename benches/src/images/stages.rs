//! The stages of the floor run alone, one after the other, with their inputs in memory: their sum shows what the
//! floor's own threads and channels cost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use vmlet_artifacts::layers::decode::decoder;

use super::fetch::{Layer, get};
use super::floor::{WINDOW, fill, scratch};
use super::measure::own_cpu;
use super::scan::{Place, scan};

const CHUNK: usize = 64 << 10;

/// CPU time of each stage.
pub async fn alone(http: &reqwest::Client, layers: &[Layer], output: &Path) -> Result<Vec<(&'static str, Duration)>> {
    let mut stages = Vec::new();
    let start = own_cpu();
    for layer in layers {
        let mut stream = get(http, &layer.url).await?.bytes_stream();
        while let Some(bytes) = stream.next().await {
            bytes?;
        }
    }
    stages.push(("GET", own_cpu() - start));
    let mut blobs = Vec::new();
    for layer in layers {
        blobs.push(get(http, &layer.url).await?.bytes().await?);
    }

    let start = own_cpu();
    for blob in &blobs {
        hash(blob);
    }
    stages.push(("sha256 of the blobs", own_cpu() - start));

    let tee = scratch(output)?;
    let start = own_cpu();
    let mut at = 0;
    for piece in blobs.iter().flat_map(|blob| blob.chunks(CHUNK)) {
        tee.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    stages.push(("pwrite of the blobs", own_cpu() - start));
    drop(tee);

    let mut buffer = vec![1; CHUNK];
    let start = own_cpu();
    for blob in &blobs {
        let mut bytes = decoder(io::Cursor::new(blob), WINDOW)?;
        while fill(&mut bytes, &mut buffer)? > 0 {}
    }
    stages.push(("inflate", own_cpu() - start));

    let mut tars = Vec::new();
    for blob in &blobs {
        let mut tar = Vec::new();
        io::copy(&mut decoder(io::Cursor::new(blob), WINDOW)?, &mut tar)?;
        tars.push(tar);
    }
    drop(blobs);
    let start = own_cpu();
    for tar in &tars {
        hash(tar);
    }
    stages.push(("sha256 of the tars", own_cpu() - start));

    let file = File::create(output).with_context(|| output.display().to_string())?;
    let start = own_cpu();
    let mut place = Place::new(file);
    for tar in &tars {
        scan(tar.as_slice(), &mut place)?;
    }
    place.finish()?;
    stages.push(("tar scan, pwrite of the files, fsync", own_cpu() - start));
    Ok(stages)
}

fn hash(bytes: &[u8]) {
    let mut hasher = Sha256::new();
    for piece in bytes.chunks(CHUNK) {
        hasher.update(piece);
    }
    std::hint::black_box(hasher.finalize());
}
