//! Images: finding the platform's manifest, and turning its layers into a disk.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vmlet_ext4::{Size, Writer};

use super::archive::{Archive, Flavour};
use super::content::{Content, Looked, look, spool};
use super::fetch::{Bytes, on_thread, stop_all};
use super::local::{Here, INDEX, Layout};
use super::origin::{FileSource, Opened, Origin};
use super::{Inner, disk, ext4, failure};
use crate::error::{PullError, Reason};
use crate::layers::apply::{Input, flatten};
use crate::layers::disk::DiskStore;
use crate::layers::{LayerError, show};
use crate::pulls::work::{BuiltImage, WorkContext};
use crate::reference::{Digest, Platform};
use crate::registry::manifest::{Document, Manifest, choose, is_config, is_layer, or_null, parse};
use crate::types::{Credential, ImageConfig, Limits, Source};

/// File name of an image's disk in the job's directory.
pub const DISK: &str = "disk.ext4";
const NESTED: usize = 4;

/// A manifest that was found for a platform.
pub struct Found {
    pub origin: Origin,
    pub digest: Digest,
    pub media_type: String,
    pub platform: String,
    /// Whether an index says that it is for this platform.
    pub stated: bool,
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
    r#type: String,
    #[serde(deserialize_with = "or_null")]
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

/// What a configuration says.
pub struct Configured {
    /// Digests of the uncompressed layers, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// How to run it.
    pub run: ImageConfig,
}

/// What became of one file.
enum Step {
    /// The disk is made; its content's hash.
    Disk(String),
    /// It is an archive, to be looked into.
    Archive(Archive, Flavour),
}

impl Inner {
    /// Follows indexes to the manifest of a platform.
    pub async fn find(&self, origin: Origin, mut version: String, platform: &str) -> Result<Found, PullError> {
        let wanted: Platform = platform
            .parse()
            .map_err(|e: crate::reference::ParseError| PullError::new(Reason::UnsupportedPlatform, e.to_string()))?;
        let named = |error: PullError| PullError {
            message: format!("{}: {}", origin.name(), error.message),
            ..error
        };
        let mut seen = HashSet::new();
        let mut stated = false;
        let mut size = None;
        for _ in 0..=NESTED {
            let fetched = origin.manifest(&version).await?;
            let is = fetched.bytes.len() as u64;
            if let Some(said) = size.filter(|said| *said != is) {
                let why = format!("its index says that manifest {version} has {said} bytes, but it has {is}");
                return Err(named(PullError::new(Reason::Malformed, why)));
            }
            if !seen.insert(fetched.digest.clone()) {
                break;
            }
            match parse(&fetched.bytes, self.limits.layers).map_err(named)? {
                Document::Manifest(manifest) => {
                    let (digest, media_type) = (fetched.digest, fetched.media_type);
                    return Ok(Found {
                        origin,
                        digest,
                        media_type,
                        platform: wanted.to_string(),
                        stated,
                        manifest: *manifest,
                    });
                }
                Document::Index(entries) => {
                    let entry = choose(&entries, &wanted).map_err(named)?;
                    stated = entry.platform.is_some();
                    size = Some(entry.size);
                    version = entry.digest().map_err(named)?.to_string();
                }
            }
        }
        Err(PullError::new(
            Reason::Malformed,
            format!("{}: its indexes are nested too deeply", origin.name()),
        ))
    }

    /// Builds the disk in `cx.dir`; answers with the digest of the manifest, or of the file.
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
        let opened = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            opened = self.open(source, digest, credentials) => opened?,
        };
        match opened {
            Opened::Image(origin, version) => self.image_of(&name, origin, version, platform, cx, size).await,
            Opened::File(file) => self.image_in(&file, platform, cx, size).await,
        }
    }

    fn disk(&self, cx: &WorkContext, size: Size) -> Disk {
        Disk {
            path: cx.dir.join(DISK),
            size,
            limits: self.limits.clone(),
            cancel: cx.cancel.clone(),
        }
    }

    /// The image that a manifest describes.
    async fn image_of(
        &self,
        name: &str,
        origin: Origin,
        version: String,
        platform: &str,
        cx: &WorkContext,
        size: Size,
    ) -> Result<(Digest, BuiltImage), PullError> {
        let (found, wanted, configuration) = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            both = async {
                let found = self.find(origin, version, platform).await?;
                let config = &found.manifest.config;
                if !is_config(&config.media_type) {
                    let media_type = show(config.media_type.as_bytes());
                    let why = format!("{name} is an artefact, not an image to run (its configuration is {media_type})");
                    return Err(PullError::new(Reason::UnsupportedFormat, why));
                }
                let wanted = wanted(name, &found.manifest, &self.limits)?;
                let bytes = found.origin.small_blob(&config.digest()?, config.size).await?;
                Ok::<_, PullError>((found, wanted, bytes))
            } => both?,
        };
        let Configured { diff_ids, run } = configured(name, &configuration, platform, found.manifest.layers.len())?;
        let (disk, digest) = (self.disk(cx, size), found.digest.clone());
        let named = digests(&wanted);
        let make = move |blobs: &[Bytes]| {
            let layers = inputs(blobs, diff_ids.into_iter().map(Some));
            let stop = || stop_all(blobs);
            disk.build(&digest, &named, layers, &stop)
        };
        let content_hash = self.with_blobs(cx, &found.origin, wanted, make).await?;
        Ok((found.digest, built(content_hash, run)))
    }

    /// The image that one file is, or holds.
    async fn image_in(
        &self,
        file: &FileSource,
        platform: &str,
        cx: &WorkContext,
        size: Size,
    ) -> Result<(Digest, BuiltImage), PullError> {
        let name = file.name.clone();
        let Some(digest) = file.digest.clone() else {
            return Err(PullError::new(Reason::Internal, format!("{name}: it has no digest")));
        };
        let (disk, dir, limits, identity) = (self.disk(cx, size), cx.dir.clone(), self.limits.clone(), digest.clone());
        let (what, unpacked) = (name.clone(), cx.clone());
        let step = self.with_file(cx, file, move |bytes| {
            let looked = look(&what, bytes, &limits)?;
            match looked.content {
                Content::Kernel => {
                    let why = "it is a kernel; name it in a Kernel, and in the image a root file system";
                    Err(PullError::new(Reason::UnsupportedFormat, format!("{what}: {why}")))
                }
                Content::Ext4 => take_ext4(&what, looked, &disk.path).map(Step::Disk),
                Content::Tar => {
                    let layers = vec![Input {
                        bytes: looked.bytes,
                        diff_id: None,
                    }];
                    let stop = || stop_all(std::slice::from_ref(bytes));
                    disk.build(&identity, &[], layers, &stop).map(Step::Disk)
                }
                Content::Archive => {
                    let archive = spool(&what, bytes, looked, &dir, &limits)?;
                    if let Some(flavour) = archive.flavour() {
                        return Ok(Step::Archive(archive, flavour));
                    }
                    // Its names only looked like those of an archive.
                    let all = Bytes::Here(Here::new(&unpacked, &what, archive.bytes().clone(), None));
                    let layers = inputs(std::slice::from_ref(&all), [None]);
                    disk.build(&identity, &[], layers, &|| ()).map(Step::Disk)
                }
            }
        });
        let (archive, flavour) = match step.await? {
            Step::Disk(content_hash) => return Ok((digest, built(content_hash, ImageConfig::default()))),
            Step::Archive(archive, flavour) => (archive, flavour),
        };
        cx.progress.set_stage("unpacking");
        cx.progress.set_done(0);
        match flavour {
            Flavour::Oci => {
                let layout = Layout::in_archive(name.clone(), archive.into(), self.limits.manifest_bytes);
                let (_, image) = self
                    .image_of(&name, Origin::Layout(layout), INDEX.to_owned(), platform, cx, size)
                    .await?;
                Ok((digest, image))
            }
            Flavour::Docker => {
                let image = archive.docker_image(&name, &self.limits)?;
                let Configured { diff_ids, run } = configured(&name, &image.config, platform, image.layers.len())?;
                let layers: Vec<Bytes> = docker_layers(cx, &name, image.layers);
                let (disk, identity) = (self.disk(cx, size), Digest::sha256(&image.config));
                let make = move || {
                    // A docker archive names its layers by what they are uncompressed.
                    let layers = inputs(&layers, diff_ids.iter().cloned().map(Some));
                    disk.build(&identity, &diff_ids, layers, &|| ())
                };
                let content_hash = on_thread(cx, make).await?;
                Ok((digest, built(content_hash, run)))
            }
        }
    }
}

/// The layers of a docker archive. Their digests follow from the configuration's `diff_ids`.
pub fn docker_layers(cx: &WorkContext, name: &str, layers: Vec<(String, super::local::Section)>) -> Vec<Bytes> {
    cx.progress
        .set_total(layers.iter().map(|(_, section)| section.length).sum());
    let here = |(layer, section)| Bytes::Here(Here::new(cx, &format!("{name}: {layer}"), section, None));
    layers.into_iter().map(here).collect()
}

/// Layers and what they must be.
pub fn inputs(blobs: &[Bytes], diff_ids: impl IntoIterator<Item = Option<Digest>>) -> Vec<Input> {
    let input = |(blob, diff_id): (&Bytes, Option<Digest>)| Input {
        bytes: blob.reader(),
        diff_id,
    };
    blobs.iter().zip(diff_ids).map(input).collect()
}

/// Digests of blobs, for messages.
pub fn digests(wanted: &[(Digest, u64)]) -> Vec<Digest> {
    wanted.iter().map(|(digest, _)| digest.clone()).collect()
}

/// The blobs of an image's layers, with their sizes. Together they may have no more bytes than the bound for what they
/// are uncompressed: beyond it they are padding.
pub fn wanted(name: &str, manifest: &Manifest, limits: &Limits) -> Result<Vec<(Digest, u64)>, PullError> {
    let bytes = manifest.layers.iter().map(|layer| layer.size);
    let (bytes, most) = (bytes.fold(0, u64::saturating_add), limits.uncompressed_bytes);
    if bytes > most {
        let why = format!("{name}: its layers have {bytes} bytes, more than {most} (--max-image-gib)");
        return Err(PullError::new(Reason::TooLarge, why));
    }

    let layer = |layer: &crate::registry::manifest::Descriptor| {
        if is_layer(&layer.media_type) {
            return Ok((layer.digest()?, layer.size));
        }
        let media_type = show(layer.media_type.as_bytes());
        let why = format!("{name}: a layer has the unknown type {media_type}");
        Err(PullError::new(Reason::UnsupportedFormat, why))
    };
    manifest.layers.iter().map(layer).collect()
}

/// Checks that the configuration of an image says nothing against a platform.
pub fn check_platform(name: &str, bytes: &[u8], platform: &str) -> Result<(), PullError> {
    read_configuration(name, bytes, platform).map(drop)
}

fn read_configuration(name: &str, bytes: &[u8], platform: &str) -> Result<Configuration, PullError> {
    let configuration: Configuration = serde_json::from_slice(bytes).map_err(|error| {
        PullError::new(
            Reason::Malformed,
            format!("{name}: its configuration is broken: {error}"),
        )
    })?;
    let theirs = format!("{}/{}", configuration.os, configuration.architecture);
    let fits = platform == theirs || platform.starts_with(&format!("{theirs}/"));
    if !configuration.architecture.is_empty() && !fits {
        let why = format!("{name} is for {theirs:.100} alone, not for {platform}; build it for that, or set platform");
        return Err(PullError::new(Reason::UnsupportedPlatform, why));
    }
    Ok(configuration)
}

/// Reads the configuration of an image with so many layers, and checks that it is for this platform.
pub fn configured(name: &str, bytes: &[u8], platform: &str, layers: usize) -> Result<Configured, PullError> {
    let broken = |why: String| PullError::new(Reason::Malformed, format!("{name}: {why}"));
    let configuration = read_configuration(name, bytes, platform)?;
    let RootFs { r#type, diff_ids } = configuration.rootfs;
    if r#type != "layers" {
        // OCI image specification, config.md.
        let is = show(r#type.as_bytes());
        return Err(broken(format!(
            "its configuration has a rootfs of the type {is}, not of layers"
        )));
    }
    if diff_ids.len() != layers {
        let named = diff_ids.len();
        return Err(broken(format!(
            "it has {layers} layers, but its configuration names {named}"
        )));
    }
    let diff_ids = diff_ids
        .iter()
        .map(|diff_id| diff_id.parse())
        .collect::<Result<_, crate::reference::ParseError>>()
        .map_err(|error| broken(format!("its configuration is broken: {error}")))?;
    let run = configuration.config.unwrap_or_default();
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Configured {
        diff_ids,
        run: ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            user: some(run.user),
            working_dir: some(run.working_dir),
            stop_signal: some(run.stop_signal),
        },
    })
}

fn built(content_hash: String, config: ImageConfig) -> BuiltImage {
    BuiltImage {
        disk: DISK.into(),
        content_hash,
        config,
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// A bare ext4 becomes the disk as it is.
fn take_ext4(name: &str, mut looked: Looked, path: &Path) -> Result<String, PullError> {
    let what = format!("{name}: its ext4 file system");
    let local = |error: io::Error| PullError::io(&what, &error);
    let size = ext4::check(&looked.start)
        .map_err(|why| PullError::new(Reason::UnsupportedFormat, format!("{what} cannot be used: {why}")))?;
    let file = new_file(path).map_err(local)?;
    let (length, checksums) = ext4::copy(&mut looked.bytes, &file)
        .map_err(|end| end.say(local, |error| failure::layer(&what, LayerError::Read(error))))?;
    if length < size {
        let why = format!("{what} is cut off: it has {size} bytes, and there are {length}");
        return Err(PullError::new(Reason::Malformed, why));
    }
    Ok(disk::content_hash(&checksums, length))
}

/// A disk that is to be made.
struct Disk {
    path: PathBuf,
    size: Size,
    limits: Limits,
    cancel: CancellationToken,
}

impl Disk {
    fn build(
        &self,
        identity: &Digest,
        named: &[Digest],
        layers: Vec<Input>,
        stop: &(dyn Fn() + Sync),
    ) -> Result<String, PullError> {
        let what = format!("the disk of {identity}");
        let io = |error: io::Error| PullError::io(&what, &error);
        let file = new_file(&self.path).map_err(io)?;
        let options = disk::options(&what, self.size);
        let writer = Writer::create(file, options).map_err(|e| failure::store(&what, e.into()))?;
        let mut store = DiskStore::new(writer);
        let tree = flatten(layers, &mut store, &self.limits, &self.cancel, stop)
            .map_err(|(at, error)| failure::one_layer(&identity.to_string(), at, named, error))?;
        let summary = store
            .finish(tree, &self.cancel)
            .map_err(|error| failure::store(&what, error))?;
        Ok(disk::content_hash(&summary.checksums, summary.size))
    }
}
