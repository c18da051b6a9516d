//! Images: finding the platform's manifest, and turning its layers into a disk.

use std::collections::HashSet;
use std::fs::File;

use serde::Deserialize;
use vmlet_ext4::{Size, Writer};

use super::fetch::end_all;
use super::origin::Origin;
use super::{Inner, disk, failure};
use crate::error::{PullError, Reason};
use crate::layers::apply::{Input, flatten};
use crate::layers::disk::DiskStore;
use crate::layers::show;
use crate::pulls::work::{BuiltImage, WorkContext};
use crate::reference::{Digest, Platform};
use crate::registry::manifest::{Document, Manifest, choose, parse};
use crate::types::{Credential, ImageConfig, Source};

/// File name of an image's disk in the job's directory.
pub const DISK: &str = "disk.ext4";
const NESTED: usize = 4;

/// A manifest that was found for a platform.
pub struct Found {
    pub origin: Origin,
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
    pub async fn find(
        &self,
        source: &Source,
        digest: Option<&str>,
        platform: &str,
        credentials: &[Credential],
    ) -> Result<Found, PullError> {
        let wanted: Platform = platform
            .parse()
            .map_err(|e: crate::reference::ParseError| PullError::new(Reason::UnsupportedPlatform, e.to_string()))?;
        let (origin, mut version) = self.origin(source, digest, credentials).await?;
        let mut seen = HashSet::new();
        for _ in 0..=NESTED {
            let fetched = origin.manifest(&version).await?;
            if !seen.insert(fetched.digest.clone()) {
                break;
            }
            match parse(&fetched.bytes, self.limits.layers)? {
                Document::Manifest(manifest) => {
                    let (digest, media_type) = (fetched.digest, fetched.media_type);
                    return Ok(Found {
                        origin,
                        digest,
                        media_type,
                        platform: wanted.to_string(),
                        manifest,
                    });
                }
                Document::Index(entries) => version = choose(&entries, &wanted)?.digest()?.to_string(),
            }
        }
        Err(PullError::new(
            Reason::Malformed,
            format!("{}: its indexes are nested too deeply", origin.name()),
        ))
    }

    /// Builds the disk in `cx.dir`; answers with the manifest's digest too.
    pub async fn image(
        &self,
        source: &Source,
        digest: Option<&str>,
        platform: &str,
        credentials: &[Credential],
        cx: &WorkContext,
        size: Size,
    ) -> Result<(Digest, BuiltImage), PullError> {
        let name = source.to_string();
        cx.progress.set_stage("pulling");
        let (found, configuration) = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            both = async {
                let found = self.find(source, digest, platform, credentials).await?;
                let config = &found.manifest.config;
                let bytes = found.origin.small_blob(&config.digest()?, config.size).await?;
                Ok::<_, PullError>((found, bytes))
            } => both?,
        };
        let broken = |why: String| PullError::new(Reason::Malformed, format!("{name}: {why}"));
        if !found.manifest.config.media_type.contains("image.config")
            && !found.manifest.config.media_type.contains("container.image")
        {
            return Err(PullError::new(
                Reason::UnsupportedFormat,
                format!("{name} is an artefact, not an image to run"),
            ));
        }
        let configuration: Configuration = serde_json::from_slice(&configuration)
            .map_err(|error| broken(format!("its configuration is broken: {error}")))?;
        let theirs = format!("{}/{}", configuration.os, configuration.architecture);
        if !configuration.architecture.is_empty()
            && !(platform == theirs || platform.starts_with(&format!("{theirs}/")))
        {
            return Err(PullError::new(
                Reason::UnsupportedPlatform,
                format!("{name} is for {theirs}, not for {platform}"),
            ));
        }
        let diff_ids = configuration.rootfs.diff_ids;
        if diff_ids.len() != found.manifest.layers.len() {
            return Err(broken(format!(
                "it has {} layers, but its configuration names {}",
                found.manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let mut wanted = Vec::new();
        let mut expected = Vec::new();
        for (layer, diff_id) in found.manifest.layers.iter().zip(diff_ids) {
            if !layer.media_type.contains(".tar") {
                let why = format!(
                    "{name}: a layer has the unknown type {}",
                    show(layer.media_type.as_bytes())
                );
                return Err(PullError::new(Reason::UnsupportedFormat, why));
            }
            let diff_id: Digest = diff_id
                .parse()
                .map_err(|error| broken(format!("its configuration is broken: {error}")))?;
            wanted.push((layer.digest()?, layer.size));
            expected.push(diff_id);
        }
        let (dir, limits, digest) = (cx.dir.clone(), self.limits.clone(), found.digest.clone());
        let content_hash = self
            .with_blobs(cx, &found.origin, wanted, move |blobs| {
                let layers = blobs.iter().zip(expected);
                let layers = layers
                    .map(|(blob, diff_id)| Input {
                        bytes: Box::new(blob.reader()),
                        diff_id: Some(diff_id),
                    })
                    .collect();
                let stop = || end_all(blobs, &PullError::cancelled());
                build(&dir.join(DISK), &digest, layers, &limits, size, &stop)
            })
            .await?;
        let run = configuration.config.unwrap_or_default();
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let image = BuiltImage {
            disk: DISK.into(),
            content_hash,
            config: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                user: some(run.user),
                working_dir: some(run.working_dir),
                stop_signal: some(run.stop_signal),
            },
        };
        Ok((found.digest, image))
    }
}

fn build(
    path: &std::path::Path,
    identity: &Digest,
    layers: Vec<Input>,
    limits: &crate::types::Limits,
    size: Size,
    stop: &(dyn Fn() + Sync),
) -> Result<String, PullError> {
    let what = format!("the disk of {identity}");
    let io = |error: std::io::Error| PullError::io(&what, &error);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(io)?;
    let reading = file.try_clone().map_err(io)?;
    let options = disk::options(&what, size);
    let writer = Writer::create(file, options).map_err(|e| failure::store(&what, e.into()))?;
    let mut store = DiskStore::new(writer);
    let tree = flatten(layers, &mut store, limits, stop)
        .map_err(|(at, error)| failure::layer(&format!("layer {} of {identity}", at + 1), error))?;
    store.finish(tree).map_err(|error| failure::store(&what, error))?;
    disk::content_hash(&reading).map_err(io)
}
