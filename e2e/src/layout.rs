//! Pushes an OCI image layout to a registry that speaks plain HTTP.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Where something is pushed to: "127.0.0.1:5000/guest:latest" in its parts.
#[derive(Clone, Debug)]
struct Target {
    base: String,
    tag: String,
}

impl Target {
    fn parse(reference: &str) -> Result<Target> {
        let (host, path) = reference
            .split_once('/')
            .with_context(|| format!("{reference:?} is not HOST:PORT/NAME[:TAG]"))?;
        let (name, tag) = path.split_once(':').unwrap_or((path, "latest"));
        Ok(Target {
            base: format!("http://{host}/v2/{name}"),
            tag: tag.to_owned(),
        })
    }
}

/// An image or another artifact that has been read into memory, to be changed and pushed.
#[derive(Clone, Debug)]
pub struct Artifact {
    manifest: Value,
    media_type: String,
    /// Bytes of the configuration and of the layers, in the manifest's order.
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Artifact {
    /// Reads the first manifest of the layout in `dir` with all that it names.
    pub fn read(dir: &Path) -> Result<Artifact> {
        let index: Value = serde_json::from_slice(
            &std::fs::read(dir.join("index.json")).with_context(|| format!("{} is no OCI layout", dir.display()))?,
        )?;
        let descriptor = index.pointer("/manifests/0").context("index.json lists no manifest")?;
        let media_type = text(descriptor, "/mediaType")?.to_owned();
        let manifest: Value = serde_json::from_slice(&std::fs::read(blob_path(dir, text(descriptor, "/digest")?)?)?)?;
        let config = std::fs::read(blob_path(dir, text(&manifest, "/config/digest")?)?)?;
        let layers = manifest
            .pointer("/layers")
            .and_then(Value::as_array)
            .context("an index inside of an index is not supported")?
            .iter()
            .map(|layer| Ok(std::fs::read(blob_path(dir, text(layer, "/digest")?)?)?))
            .collect::<Result<_>>()?;
        Ok(Artifact {
            manifest,
            media_type,
            config,
            layers,
        })
    }

    /// The same contents in other bytes: every layer and the configuration get digests that nothing else
    /// has. Layers must be gzip without a file name, or zstd.
    pub fn made_unique(mut self, word: &str) -> Result<Artifact> {
        for layer in &mut self.layers {
            mark(layer, word)?;
        }
        // JSON may have white space at its end.
        self.config.push(b'\n');
        self.manifest["annotations"]["dev.vmlet.e2e"] = word.into();
        Ok(self)
    }

    /// Puts a layer of one file on top: `size` bytes that do not compress, the same for the same `word`.
    pub fn with_file(mut self, path: &str, size: usize, word: &str) -> Result<Artifact> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, noise(size, word).as_slice())?;
        let layer = tar.into_inner()?;
        let mut image: Value = serde_json::from_slice(&self.config)?;
        image
            .pointer_mut("/rootfs/diff_ids")
            .and_then(Value::as_array_mut)
            .context("the configuration has no diff_ids")?
            .push(digest_of(&layer).into());
        self.config = image.to_string().into_bytes();
        self.manifest
            .pointer_mut("/layers")
            .and_then(Value::as_array_mut)
            .context("the manifest has no layers")?
            .push(serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar"}));
        self.layers.push(layer);
        Ok(self)
    }

    /// Digest of the last layer.
    pub fn last_layer(&self) -> Option<String> {
        self.layers.last().map(|layer| digest_of(layer))
    }

    /// Number of blobs: the configuration and the layers.
    pub fn blobs(&self) -> usize {
        1 + self.layers.len()
    }

    /// Pushes it as `reference` and returns the manifest's digest. What the registry has already is not
    /// sent again.
    pub async fn push(mut self, reference: &str) -> Result<String> {
        let target = Target::parse(reference)?;
        let http = crate::registry::http_client()?;
        describe(&mut self.manifest["config"], &self.config);
        push_blob(&http, &target, &digest_of(&self.config), self.config).await?;
        for (at, layer) in self.layers.into_iter().enumerate() {
            describe(&mut self.manifest["layers"][at], &layer);
            push_blob(&http, &target, &digest_of(&layer), layer).await?;
        }
        let manifest = self.manifest.to_string().into_bytes();
        let digest = digest_of(&manifest);
        let url = format!("{}/manifests/{}", target.base, target.tag);
        let answer = http
            .put(&url)
            .header(CONTENT_TYPE, self.media_type)
            .body(manifest)
            .send()
            .await?;
        ensure!(
            answer.status() == StatusCode::CREATED,
            "PUT {url}: {}: {}",
            answer.status(),
            answer.text().await?
        );
        Ok(digest)
    }
}

/// Pushes the first manifest of the layout in `dir` (with all that it names) as `reference` and returns
/// the manifest's digest.
pub async fn push(dir: &Path, reference: &str) -> Result<String> {
    Artifact::read(dir)?.push(reference).await
}

fn describe(descriptor: &mut Value, blob: &[u8]) {
    descriptor["digest"] = digest_of(blob).into();
    descriptor["size"] = blob.len().into();
}

/// Changes compressed bytes and not what they inflate to: a file name for gzip (RFC 1952, 2.3.1), a
/// skippable frame for zstd (RFC 8878, 3.1.2).
fn mark(layer: &mut Vec<u8>, word: &str) -> Result<()> {
    match layer.get(..4) {
        Some([0x1f, 0x8b, 8, 0]) => {
            layer[3] = 8;
            layer.splice(10..10, word.bytes().chain([0]));
        }
        Some([0x28, 0xb5, 0x2f, 0xfd]) => {
            layer.extend(0x184D_2A50_u32.to_le_bytes());
            layer.extend(u32::try_from(word.len())?.to_le_bytes());
            layer.extend(word.bytes());
        }
        _ => bail!("a layer is neither zstd nor gzip without a file name"),
    }
    Ok(())
}

/// Bytes that look random (SplitMix64).
fn noise(size: usize, word: &str) -> Vec<u8> {
    let mut state = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

async fn push_blob(http: &reqwest::Client, target: &Target, digest: &str, bytes: Vec<u8>) -> Result<()> {
    ensure!(
        digest_of(&bytes) == digest,
        "the layout's blob {digest} has other bytes than its name says"
    );
    if http
        .head(format!("{}/blobs/{digest}", target.base))
        .send()
        .await?
        .status()
        == StatusCode::OK
    {
        return Ok(());
    }
    let url = format!("{}/blobs/uploads/", target.base);
    let answer = http.post(&url).send().await.with_context(|| format!("POST {url}"))?;
    ensure!(
        answer.status() == StatusCode::ACCEPTED,
        "POST {url}: {}",
        answer.status()
    );
    let location = answer
        .headers()
        .get(LOCATION)
        .context("the registry names no upload location")?
        .to_str()?;
    let mut location = answer.url().join(location)?;
    location.query_pairs_mut().append_pair("digest", digest);
    let answer = http
        .put(location)
        .header(CONTENT_TYPE, "application/octet-stream")
        .body(bytes)
        .send()
        .await?;
    ensure!(
        answer.status() == StatusCode::CREATED,
        "upload of {digest}: {}: {}",
        answer.status(),
        answer.text().await?
    );
    Ok(())
}

fn digest_of(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("{pointer} is missing"))
}

fn blob_path(dir: &Path, digest: &str) -> Result<std::path::PathBuf> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(dir.join("blobs/sha256").join(hex))
        }
        _ => bail!("{digest:?} is no sha256 digest"),
    }
}
