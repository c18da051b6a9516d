//! Images: finding the platform's manifest, and turning its layers into a disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

use super::{Inner, failure};
use crate::error::{PullError, Reason};
use crate::layers::apply::{Input, flatten};
use crate::layers::disk::DiskStore;
use crate::pulls::work::{BuiltImage, WorkContext};
use crate::reference::{Digest, Platform, Reference};
use crate::registry::Registry;
use crate::registry::manifest::{Document, Manifest, choose, parse};
use crate::types::{Credential, ImageConfig};

const DISK: &str = "disk.ext4";
const NESTED: usize = 4;

/// A base disk's size: room for the content to be lived in; overlays grow further in the guest.
pub fn disk_size() -> Size {
    Size::Auto { free: FreeSpace { percent: 25, bytes: 256 << 20 } }
}

/// A manifest that was found for a platform.
pub struct Found {
    pub registry: Registry,
    pub digest: Digest,
    pub media_type: String,
    pub platform: String,
    pub manifest: Manifest,
}

/// The image configuration, as far as it is used.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
    config: Option<Run>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

impl Inner {
    /// Follows indexes to the manifest of a platform.
    pub async fn find(&self, reference: Reference, platform: &str, credentials: &[Credential]) -> Result<Found, PullError> {
        let wanted: Platform = platform.parse().map_err(|e: crate::reference::ParseError| PullError::new(Reason::UnsupportedPlatform, e.to_string()))?;
        let registry = Registry::open(self.http.clone(), self.limits.clone(), reference, credentials).await?;
        let mut version = registry.reference().version();
        let mut seen = HashSet::new();
        for _ in 0..=NESTED {
            let fetched = registry.manifest(&version).await?;
            if !seen.insert(fetched.digest.clone()) {
                break;
            }
            match parse(&fetched.bytes, self.limits.layers)? {
                Document::Manifest(manifest) => {
                    let (digest, media_type) = (fetched.digest, fetched.media_type);
                    return Ok(Found { registry, digest, media_type, platform: wanted.to_string(), manifest });
                }
                Document::Index(entries) => version = choose(&entries, &wanted)?.digest()?.to_string(),
            }
        }
        Err(PullError::new(Reason::Malformed, format!("{}: its indexes are nested too deeply", registry.reference())))
    }

    /// Builds the disk in `cx.dir`.
    pub async fn image(&self, reference: Reference, platform: &str, credentials: &[Credential], cx: &WorkContext, size: Size) -> Result<BuiltImage, PullError> {
        let name = reference.to_string();
        cx.progress.set_stage("pulling");
        let (found, configuration) = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            both = async {
                let found = self.find(reference, platform, credentials).await?;
                let config = &found.manifest.config;
                let bytes = found.registry.small_blob(&config.digest()?, config.size).await?;
                Ok::<_, PullError>((found, bytes))
            } => both?,
        };
        let broken = |why: String| PullError::new(Reason::Malformed, format!("{name}: {why}"));
        if !found.manifest.config.media_type.contains("image.config") && !found.manifest.config.media_type.contains("container.image") {
            return Err(PullError::new(Reason::UnsupportedFormat, format!("{name} is an artefact, not an image to run")));
        }
        let configuration: Configuration =
            serde_json::from_slice(&configuration).map_err(|error| broken(format!("its configuration is broken: {error}")))?;
        let theirs = format!("{}/{}", configuration.os, configuration.architecture);
        if !configuration.architecture.is_empty() && !(platform == theirs || platform.starts_with(&format!("{theirs}/"))) {
            return Err(PullError::new(Reason::UnsupportedPlatform, format!("{name} is for {theirs}, not for {platform}")));
        }
        let diff_ids = configuration.rootfs.diff_ids;
        if diff_ids.len() != found.manifest.layers.len() {
            return Err(broken(format!("it has {} layers, but its configuration names {}", found.manifest.layers.len(), diff_ids.len())));
        }
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        let mut parts = Vec::new();
        for (layer, diff_id) in found.manifest.layers.iter().zip(diff_ids) {
            if !layer.media_type.contains(".tar") && !layer.media_type.contains("diff.tar") {
                return Err(PullError::new(Reason::UnsupportedFormat, format!("{name}: a layer has the unknown type {:.200?}", layer.media_type)));
            }
            let diff_id: Digest = diff_id.parse().map_err(|error| broken(format!("its configuration is broken: {error}")))?;
            parts.push((layer.digest()?, layer.size, diff_id));
        }
        cx.progress.set_total(parts.iter().map(|part| part.1).fold(0, u64::saturating_add));
        for (digest, size, diff_id) in parts {
            let blob = self.downloads.start(cx, &found.registry, digest, size);
            layers.push(Input { bytes: Box::new(blob.growing.reader()), diff_id: Some(diff_id) });
            blobs.push(blob);
        }
        let growing: Vec<_> = blobs.iter().map(|blob| blob.growing.clone()).collect();
        let (dir, limits, digest) = (cx.dir.clone(), self.limits.clone(), found.digest.clone());
        let building = cx.spawn_blocking(move || {
            let result = build(&dir.join(DISK), &digest, layers, &limits, size, &growing);
            if let Err(error) = &result {
                for blob in &growing {
                    blob.end(Err(error.clone()));
                }
            }
            result
        });
        let result = building.await.unwrap_or_else(|_| Err(PullError::new(Reason::Internal, "the thread that builds the disk panicked")));
        if result.is_err() {
            cx.cancel.cancel();
        }
        cx.join_blocking().await;
        for blob in blobs {
            self.downloads.done(blob, &cx.blobs, result.is_ok());
        }
        let run = configuration.config.unwrap_or_default();
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(BuiltImage {
            disk: DISK.into(),
            content_hash: result?,
            config: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                user: some(run.user),
                working_dir: some(run.working_dir),
                stop_signal: some(run.stop_signal),
            },
        })
    }
}

fn build(
    path: &std::path::Path,
    identity: &Digest,
    layers: Vec<Input>,
    limits: &crate::types::Limits,
    size: Size,
    growing: &[crate::registry::blob::Growing],
) -> Result<String, PullError> {
    let what = format!("the disk of {identity}");
    let io = |error: std::io::Error| PullError::io(&what, &error);
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(io)?;
    let reading = file.try_clone().map_err(io)?;
    // Identity from the digest: equal images give equal bytes.
    let seed = Sha256::digest(format!("vmlet disk of {identity}").as_bytes());
    let (mut uuid, mut hash_seed) = ([0u8; 16], [0u8; 16]);
    uuid.copy_from_slice(&seed[..16]);
    hash_seed.copy_from_slice(&seed[16..]);
    (uuid[6], uuid[8]) = (uuid[6] & 0x0f | 0x80, uuid[8] & 0x3f | 0x80);
    let writer = Writer::create(file, Options::new(uuid, hash_seed, size)).map_err(|e| failure::store(&what, e.into()))?;
    let mut store = DiskStore::new(writer);
    let stop = || {
        for blob in growing {
            blob.end(Err(PullError::cancelled()));
        }
    };
    let tree = flatten(layers, &mut store, limits, &stop).map_err(|(at, error)| {
        failure::layer(&format!("layer {} of {identity}", at + 1), error)
    })?;
    store.finish(tree).map_err(|error| failure::store(&what, error))?;
    content_hash(&reading).map_err(io)
}

/// SHA-256 over (index, content) of every 4 KiB block that is not all zeros, and the size: the
/// same for equal bytes however sparsely a file system keeps them.
pub fn content_hash(file: &File) -> std::io::Result<String> {
    use rustix::fs::{SeekFrom, seek};
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / 4096 * 4096,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = data.max(at);
        let n = At(file, at).take(buffer.len() as u64).read(&mut buffer)?;
        let mut filled = n;
        while filled < buffer.len() && filled % 4096 != 0 {
            match file.read_at(&mut buffer[filled..], at + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        if filled == 0 {
            break;
        }
        for (index, block) in buffer[..filled].chunks(4096).enumerate() {
            if block.iter().any(|&b| b != 0) {
                hasher.update((at / 4096 + index as u64).to_le_bytes());
                hasher.update(block);
            }
        }
        at += filled as u64;
    }
    hasher.update(size.to_le_bytes());
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

struct At<'a>(&'a File, u64);

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(buf, self.1)
    }
}
