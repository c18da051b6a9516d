//! Manifests and indexes (OCI image specification, Docker schema 2), and choosing a platform. Pure.

use serde::{Deserialize, Deserializer};

use crate::error::{PullError, Reason};
use crate::reference::{Digest, Platform};

/// Media types asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// One image.
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Several.
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// `artifactType` of vmlet's own artefacts: kernels.
pub const KERNEL: &str = "application/vnd.vmlet.kernel.v1";

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
    /// For entries of an index that are no images.
    pub artifact_type: Option<String>,
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
    #[serde(deserialize_with = "or_null")]
    pub layers: Vec<Descriptor>,
}

/// A list, or `null`, as Go's encoders write an empty one.
pub fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// What a manifest URL answered.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// Several.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    layers: Option<serde_json::Value>,
    fs_layers: Option<serde_json::Value>,
}

/// Reads a document by its shape, which its optional `mediaType` must not contradict: others would take it for something
/// else.
pub fn parse(bytes: &[u8], max_layers: usize) -> Result<Document, PullError> {
    let broken = |why: String| PullError::new(Reason::Malformed, format!("the manifest is broken: {why}"));
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(PullError::new(
            Reason::UnsupportedFormat,
            "the image has a schema 1 manifest; push it again with a current tool",
        ));
    }
    if shape.schema_version != Some(2) {
        return Err(broken("its schemaVersion is not 2".into()));
    }
    let says = |kinds: &[&str]| shape.media_type.as_deref().is_some_and(|said| kinds.contains(&said));
    match (shape.manifests, shape.layers) {
        (Some(_), Some(_)) => Err(broken("it has both `manifests` and `layers`".into())),
        (Some(_), None) if says(&MANIFESTS) => Err(broken(
            "its mediaType is that of a manifest, but it lists manifests".into(),
        )),
        (None, _) if says(&INDEXES) => Err(broken(
            "its mediaType is that of an index, but it lists no manifests".into(),
        )),
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
            Ok(Document::Manifest(Box::new(manifest)))
        }
    }
}

/// Whether an entry of an index can lead to an image or to a kernel. Media types that are not known must be ignored (OCI
/// image specification, image-index.md).
fn counts(entry: &Descriptor) -> bool {
    let artifact = entry.artifact_type.as_deref().unwrap_or_default();
    let manifest = MANIFESTS.contains(&&*entry.media_type) && matches!(artifact, "" | KERNEL);
    let attestation = entry
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
    let unknown = |p: &IndexPlatform| p.os == "unknown" || p.architecture == "unknown";
    (manifest || INDEXES.contains(&&*entry.media_type)) && !attestation && !entry.platform.as_ref().is_some_and(unknown)
}

/// The entry of an index for a platform. What is neither an image nor an index does not count, nor do attestations; an
/// entry without a platform counts only when there is no other, but for itself once more. Without a wanted variant the one without or with the
/// oldest variant is taken, which runs everywhere. Of several that are as good it is the first (OCI image
/// specification, image-index.md).
pub fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, PullError> {
    let images: Vec<&Descriptor> = entries.iter().filter(|entry| counts(entry)).collect();
    if let Some(only) = images.first()
        && images
            .iter()
            .all(|entry| entry.platform.is_none() && entry.digest == only.digest)
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
    // Of equal ones the first: the sorts are stable.
    match wanted.variant {
        Some(_) => fitting.sort_by(|a, b| b.0.cmp(a.0)),
        None => fitting.sort_by(|a, b| a.0.cmp(b.0)),
    }
    fitting.first().map(|(_, entry)| *entry).ok_or_else(|| {
        let mut there: Vec<String> = images
            .iter()
            .filter_map(|entry| entry.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture)))
            .take(20)
            .collect();
        there.dedup();
        let there = match there[..] {
            [] => format!(
                "none of the {} entries of its index is an image that names its platform",
                entries.len()
            ),
            _ => format!("there are: {}", there.join(", ")),
        };
        PullError::new(
            Reason::UnsupportedPlatform,
            format!("there is no image for {wanted}; {there}; build it for that, or set platform"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HEX: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

    fn entry(name: &str, platform: Value) -> Value {
        json!({ "mediaType": MANIFESTS[0], "digest": Digest::sha256(name.as_bytes()).to_string(), "size": 1,
            "platform": platform, "annotations": { "name": name } })
    }

    fn chosen(entries: &[Value], platform: &str) -> Result<String, PullError> {
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        let bytes = serde_json::to_vec(&index).expect("JSON");
        let Document::Index(entries) = parse(&bytes, 512)? else {
            panic!("not an index")
        };
        let platform = platform.parse().expect("a platform");
        let entry = choose(&entries, &platform)?;
        Ok(entry.annotations.clone().expect("annotations")["name"].clone())
    }

    fn on(os: &str, architecture: &str) -> Value {
        json!({ "os": os, "architecture": architecture })
    }

    fn arm(variant: &str) -> Value {
        json!({ "os": "linux", "architecture": "arm", "variant": variant })
    }

    #[test]
    fn the_entry_of_the_platform_is_taken_and_attestations_never() {
        let entries = [
            entry("proof", on("unknown", "unknown")),
            entry("windows", on("windows", "amd64")),
            entry("arm", on("linux", "arm64")),
            entry("amd", on("linux", "amd64")),
        ];
        assert_eq!(chosen(&entries, "linux/amd64").expect("there"), "amd");
        let error = chosen(&entries[..3], "linux/amd64").expect_err("not there");
        assert_eq!(error.reason, Reason::UnsupportedPlatform);
        assert!(error.message.contains("windows/amd64, linux/arm64"), "{error}");
        let mut annotated = entry("proof", on("linux", "amd64"));
        annotated["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        chosen(&[annotated], "linux/amd64").expect_err("an attestation is no image");
    }

    #[test]
    fn an_entry_without_a_platform_counts_only_when_it_is_the_only_one() {
        let bare = entry("bare", Value::Null);
        assert_eq!(
            chosen(std::slice::from_ref(&bare), "linux/amd64").expect("alone"),
            "bare"
        );
        let proof = entry("proof", on("unknown", "unknown"));
        assert_eq!(chosen(&[bare.clone(), proof], "linux/amd64").expect("alone"), "bare");
        chosen(&[bare.clone(), entry("other", Value::Null)], "linux/amd64").expect_err("two");
        assert_eq!(
            chosen(&[bare.clone(), bare], "linux/amd64").expect("one, twice"),
            "bare"
        );
    }

    #[test]
    fn entries_that_are_neither_images_nor_indexes_are_ignored() {
        for platform in [on("linux", "amd64"), Value::Null] {
            let image = entry("image", platform.clone());
            let with = |key: &str, value: &str| {
                let mut foreign = entry("foreign", platform.clone());
                foreign[key] = value.into();
                foreign
            };
            for foreign in [
                with("mediaType", "application/vnd.foo+json"),
                with("mediaType", "application/vnd.cncf.notary.signature"),
                with("mediaType", ""),
                with("mediaType", LAYERS[0]),
                with("artifactType", "application/vnd.foo"),
            ] {
                for entries in [[foreign.clone(), image.clone()], [image.clone(), foreign.clone()]] {
                    assert_eq!(
                        chosen(&entries, "linux/amd64").expect("the image"),
                        "image",
                        "{foreign}"
                    );
                }
                chosen(&[foreign], "linux/amd64").expect_err("it is ignored");
            }
            for known in [MANIFESTS[1], INDEXES[0], INDEXES[1]] {
                let known = with("mediaType", known);
                assert_eq!(chosen(&[known], "linux/amd64").expect("known"), "foreign");
            }
            // As `vmlet kernel package` writes it.
            assert_eq!(
                chosen(&[with("artifactType", KERNEL)], "linux/amd64").expect("ours"),
                "foreign"
            );
        }
    }

    #[test]
    fn the_best_variant_that_is_not_newer_than_the_wanted_one_is_taken() {
        let entries = [entry("v7", arm("v7")), entry("v5", arm("v5")), entry("v6", arm("v6"))];
        assert_eq!(chosen(&entries, "linux/arm/v6").expect("there"), "v6");
        assert_eq!(chosen(&entries, "linux/arm/v8").expect("there"), "v7");
        assert_eq!(
            chosen(&entries, "linux/arm").expect("there"),
            "v5",
            "it runs everywhere"
        );
        chosen(&entries[..1], "linux/arm/v6").expect_err("too new");
    }

    #[test]
    fn of_entries_that_fit_as_well_the_first_is_taken() {
        for wanted in ["linux/arm/v7", "linux/arm/v6", "linux/arm"] {
            let entries = [entry("first", arm("v6")), entry("second", arm("v6"))];
            assert_eq!(chosen(&entries, wanted).expect("there"), "first", "{wanted}");
        }
    }

    #[test]
    fn a_manifest_is_known_by_its_shape_and_bounded() {
        let layer = json!({ "mediaType": LAYERS[0], "digest": format!("sha256:{HEX}"), "size": 1 });
        let manifest = |count: usize| {
            let manifest = json!({ "schemaVersion": 2, "config": layer, "layers": vec![layer.clone(); count] });
            serde_json::to_vec(&manifest).expect("JSON")
        };
        // No mediaType in it, and 512 layers: fine.
        assert!(matches!(parse(&manifest(512), 512), Ok(Document::Manifest(m)) if m.layers.len() == 512));
        assert_eq!(
            parse(&manifest(513), 512).expect_err("too many").reason,
            Reason::TooLarge
        );
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert_eq!(parse(both, 512).expect_err("both").reason, Reason::Malformed);
        let old = br#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[],"history":[]}"#;
        assert_eq!(parse(old, 512).expect_err("schema 1").reason, Reason::UnsupportedFormat);
        for version in ["", r#""schemaVersion":null,"#, r#""schemaVersion":3,"#] {
            let manifest = format!(r#"{{{version}"config":{layer},"layers":[]}}"#);
            let index = format!(r#"{{{version}"manifests":[]}}"#);
            for document in [manifest, index] {
                let error = parse(document.as_bytes(), 512).expect_err(version);
                assert_eq!(error.reason, Reason::Malformed);
                assert!(error.message.contains("schemaVersion is not 2"), "{error}");
            }
        }
        let negative = br#"{"schemaVersion":2,"config":{"digest":"sha256:x","size":-1},"layers":[]}"#;
        assert_eq!(parse(negative, 512).expect_err("negative").reason, Reason::Malformed);
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes(), 512).expect_err("deep").reason, Reason::Malformed);
    }

    #[test]
    fn a_document_that_names_itself_as_something_else_is_refused() {
        let document = |media_type: &str, index: bool| {
            let mut document = json!({ "schemaVersion": 2, "mediaType": media_type });
            if index {
                document["manifests"] = json!([]);
            } else {
                document["config"] = json!({ "digest": format!("sha256:{HEX}"), "size": 1 });
                document["layers"] = json!([]);
            }
            parse(document.to_string().as_bytes(), 512)
        };
        for (one, several) in MANIFESTS.into_iter().zip(INDEXES) {
            document(one, false).expect("a manifest");
            document(several, true).expect("an index");
            for lie in [document(one, true), document(several, false)] {
                let error = lie.expect_err("a lie");
                assert_eq!(error.reason, Reason::Malformed);
                assert!(error.message.contains("its mediaType is that of"), "{error}");
            }
        }
    }

    #[test]
    fn layers_that_are_null_are_none_and_missing_ones_an_error() {
        let parse = |layers: &str| {
            let text = format!(r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{HEX}","size":1}}{layers}}}"#);
            parse(text.as_bytes(), 512)
        };
        assert!(matches!(parse(r#","layers":null"#), Ok(Document::Manifest(m)) if m.layers.is_empty()));
        assert_eq!(parse("").expect_err("missing").reason, Reason::Malformed);
    }

    #[test]
    fn media_types_are_compared_whole() {
        for good in LAYERS {
            assert!(is_layer(good) && !is_config(good), "{good}");
        }
        for bad in [
            "",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.v1.tar+gzip ",
            "text/plain; x=.tar",
            "application/vnd.in-toto+json",
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        ] {
            assert!(!is_layer(bad), "{bad}");
        }
        assert!(is_config("application/vnd.docker.container.image.v1+json"));
        assert!(!is_config("application/vnd.oci.empty.v1+json") && !is_config("x/image.config"));
    }
}
