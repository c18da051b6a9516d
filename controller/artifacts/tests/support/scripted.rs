//! A scripted registry: one repository `app` with one image, which misbehaves as a test says.

use serde_json::{Value, json};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::registry::config::Registries;
use vmlet_artifacts::types::*;

use super::web::{Reply, Request, Web};
use super::{MANIFEST, Tar, gzip};

/// What the registry has.
#[derive(Clone)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub blobs: Vec<(String, Vec<u8>)>,
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len() })
}

/// Bytes that hardly compress: so many words of four.
pub fn noise(words: u32) -> Vec<u8> {
    (0..words)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

impl Image {
    /// An image of these layers, compressed as they come.
    pub fn of(layers: &[(Vec<u8>, Vec<u8>)]) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::sha256(tar).to_string()).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": { "Cmd": ["/bin/app"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let descriptors: Vec<Value> = layers.iter().map(|(_, blob)| descriptor(layer, blob)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": descriptors,
        });
        let mut blobs = vec![(Digest::sha256(&config).to_string(), config)];
        blobs.extend(
            layers
                .iter()
                .map(|(_, blob)| (Digest::sha256(blob).to_string(), blob.clone())),
        );
        Image {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            blobs,
        }
    }

    /// Three layers, one of them large enough to be cut in many places.
    pub fn usual() -> Image {
        Image::with_noise(300_000)
    }

    /// The same, with so many words of noise in the middle one.
    pub fn with_noise(words: u32) -> Image {
        let noise = noise(words);
        let tars = [
            Tar::new().file("first", 0o644, b"first\n").done(),
            Tar::new().file("noise", 0o644, &noise).done(),
            Tar::new().file("last", 0o644, b"last\n").done(),
        ];
        Image::of(&tars.map(|tar| (tar.clone(), gzip(&tar))))
    }

    pub fn digest(&self) -> String {
        Digest::sha256(&self.manifest).to_string()
    }

    /// A layer's digest and bytes; 1 is the large one of [`Image::usual`].
    pub fn layer(&self, n: usize) -> (String, Vec<u8>) {
        self.blobs[n + 1].clone()
    }

    /// What a good registry answers.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path == "/v2/" {
            return Reply::new(200);
        }
        let by_digest = format!("/v2/app/manifests/{}", self.digest());
        if request.path == "/v2/app/manifests/latest" || request.path == by_digest {
            return Reply::new(200).header("content-type", MANIFEST).body(&self.manifest);
        }
        let blob = self
            .blobs
            .iter()
            .find(|(digest, _)| request.path == format!("/v2/app/blobs/{digest}"));
        blob.map_or_else(|| Reply::new(404), |(_, bytes)| Reply::ranged(request, bytes))
    }

    /// A registry that answers well unless `first` has something else to say.
    pub fn serve(&self, first: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Web {
        let image = self.clone();
        Web::start(move |request| first(request).unwrap_or_else(|| image.answer(request)))
    }
}

pub fn source(web: &Web) -> Source {
    Source::Oci {
        reference: format!("{}/app:latest", web.address),
        platform: Some("linux/amd64".into()),
    }
}

pub fn credential(web: &Web, password: &str) -> Credential {
    Credential {
        registry: web.address.clone(),
        username: "me".into(),
        password: password.into(),
    }
}

/// A handle whose transfers stand still for a moment at most.
pub async fn open_with(
    dir: &std::path::Path,
    limits: impl FnOnce(&mut Limits),
) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(16);
    let mut config = Config::new(dir.join("artifacts"));
    config.platform = "linux/amd64".into();
    limits(&mut config.limits);
    (Artifacts::open(config, wake).await.unwrap(), woken)
}

/// A handle with an operator's settings.
pub async fn open_with_registries(
    dir: &std::path::Path,
    registries: Registries,
) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(16);
    let mut config = Config::new(dir.join("artifacts"));
    config.platform = "linux/amd64".into();
    config.registries = registries;
    (Artifacts::open(config, wake).await.unwrap(), woken)
}
