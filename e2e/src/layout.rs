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

/// Pushes the first manifest of the layout in `dir` (with all that it names) as `reference` and returns
/// the manifest's digest. What the registry has already is not sent again.
pub async fn push(dir: &Path, reference: &str) -> Result<String> {
    let index: Value = serde_json::from_slice(
        &std::fs::read(dir.join("index.json")).with_context(|| format!("{} is no OCI layout", dir.display()))?,
    )?;
    let descriptor = index.pointer("/manifests/0").context("index.json lists no manifest")?;
    let digest = text(descriptor, "/digest")?;
    let media_type = text(descriptor, "/mediaType")?;
    let bytes = std::fs::read(blob_path(dir, digest)?)?;
    let manifest: Value = serde_json::from_slice(&bytes)?;
    let layers = manifest
        .pointer("/layers")
        .and_then(Value::as_array)
        .context("an index inside of an index is not supported")?;
    let mut blobs = Vec::new();
    for blob in manifest.pointer("/config").into_iter().chain(layers) {
        let digest = text(blob, "/digest")?;
        blobs.push((digest.to_owned(), std::fs::read(blob_path(dir, digest)?)?));
    }
    push_parts(reference, blobs, bytes, media_type).await
}

/// Pushes an image that consists of `config` (the part named "config" of an image configuration) on the
/// layers of the layout in `dir`, for tests that need the same root with another entrypoint.
pub async fn push_variant(dir: &Path, reference: &str, config: Value) -> Result<String> {
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
    let digest = text(&index, "/manifests/0/digest")?;
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(blob_path(dir, digest)?)?)?;
    let old = std::fs::read(blob_path(dir, text(&manifest, "/config/digest")?)?)?;
    let mut image: Value = serde_json::from_slice(&old)?;
    image["config"] = config;
    let image = image.to_string().into_bytes();
    manifest["config"]["digest"] = digest_of(&image).into();
    manifest["config"]["size"] = image.len().into();
    let mut blobs = vec![(digest_of(&image), image)];
    for layer in manifest
        .pointer("/layers")
        .and_then(Value::as_array)
        .context("no layers")?
    {
        let digest = text(layer, "/digest")?;
        blobs.push((digest.to_owned(), std::fs::read(blob_path(dir, digest)?)?));
    }
    let media_type = text(&manifest, "/mediaType")?.to_owned();
    push_parts(reference, blobs, manifest.to_string().into_bytes(), &media_type).await
}

async fn push_parts(
    reference: &str,
    blobs: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
    media_type: &str,
) -> Result<String> {
    let target = Target::parse(reference)?;
    let http = crate::registry::http_client()?;
    for (digest, bytes) in blobs {
        push_blob(&http, &target, &digest, bytes).await?;
    }
    let digest = digest_of(&manifest);
    let url = format!("{}/manifests/{}", target.base, target.tag);
    let answer = http
        .put(&url)
        .header(CONTENT_TYPE, media_type)
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
