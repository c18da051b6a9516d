//! Manifests and indexes (OCI image specification, Docker schema 2), and choosing a platform. Pure.

use serde::Deserialize;

use crate::error::{PullError, Reason};
use crate::reference::{Digest, Platform};

/// Media types asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Configurations of images that can be run (OCI image specification 1.1; Docker image manifest version 2, schema 2).
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Layers. Those that may not be distributed are asked for as all others; their `urls` are not followed. How a
/// layer is compressed is found by looking.
const LAYERS: [&str; 11] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Whether a media type is that of an image's configuration.
pub fn is_config(media_type: &str) -> bool {
    CONFIGS.contains(&media_type)
}

/// Whether a media type is that of a layer of files.
pub fn is_layer(media_type: &str) -> bool {
    LAYERS.contains(&media_type)
}

/// A descriptor, as far as it is used. `urls` is left out on purpose: they are never followed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of what it describes.
    #[serde(default)]
    pub media_type: String,
    /// Digest, not yet checked for its form.
    pub digest: String,
    /// Size in bytes; a negative one does not parse.
    pub size: u64,
    /// For entries of an index.
    pub platform: Option<IndexPlatform>,
    /// Annotations.
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A platform in an index.
#[derive(Clone, Debug, Deserialize)]
pub struct IndexPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl Descriptor {
    /// The digest, checked.
    pub fn digest(&self) -> Result<Digest, PullError> {
        self.digest
            .parse()
            .map_err(|error| PullError::new(Reason::Malformed, format!("the manifest is broken: {error}")))
    }
}

/// An image (or artefact) manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What the artefact is, if it is no image.
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What a manifest URL answered.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    layers: Option<serde_json::Value>,
    fs_layers: Option<serde_json::Value>,
}

/// Reads a document by its shape: the optional `mediaType` says nothing more.
pub fn parse(bytes: &[u8], max_layers: usize) -> Result<Document, PullError> {
    let broken = |why: String| PullError::new(Reason::Malformed, format!("the manifest is broken: {why}"));
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(PullError::new(
            Reason::UnsupportedFormat,
            "the image has a schema 1 manifest; push it again with a current tool",
        ));
    }
    match (shape.manifests, shape.layers) {
        (Some(_), Some(_)) => Err(broken("it has both `manifests` and `layers`".into())),
        (Some(entries), None) => Ok(Document::Index(entries)),
        (None, _) => {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
            if manifest.layers.len() > max_layers {
                let many = manifest.layers.len();
                return Err(PullError::new(
                    Reason::TooLarge,
                    format!("the image has {many} layers, more than {max_layers}"),
                ));
            }
            Ok(Document::Manifest(manifest))
        }
    }
}

/// The entry of an index for a platform. Attestations are no images; an entry without a platform
/// counts only when it is the only one. Without a wanted variant the one without or with the
/// oldest variant is taken, which runs everywhere.
pub fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, PullError> {
    let images: Vec<&Descriptor> = entries
        .iter()
        .filter(|entry| {
            let attestation = entry
                .annotations
                .as_ref()
                .is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
            !attestation
                && entry
                    .platform
                    .as_ref()
                    .is_none_or(|p| p.os != "unknown" && p.architecture != "unknown")
        })
        .collect();
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut fitting: Vec<(&str, &Descriptor)> = images
        .iter()
        .filter_map(|entry| {
            let platform = entry.platform.as_ref()?;
            let fits = platform.os == wanted.os && platform.architecture == wanted.architecture;
            let variant = platform.variant.as_deref().unwrap_or("");
            (fits && wanted.variant.as_deref().is_none_or(|most| variant <= most)).then_some((variant, *entry))
        })
        .collect();
    fitting.sort_by(|a, b| a.0.cmp(b.0));
    let found = if wanted.variant.is_some() {
        fitting.last()
    } else {
        fitting.first()
    };
    found.map(|(_, entry)| *entry).ok_or_else(|| {
        let mut there: Vec<String> = images
            .iter()
            .filter_map(|entry| entry.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture)))
            .take(20)
            .collect();
        there.dedup();
        PullError::new(
            Reason::UnsupportedPlatform,
            format!("there is no image for {wanted}; there are: {}", there.join(", ")),
        )
    })
}
