//! What the probe asks of a registry: a manifest, a configuration, blobs. Plain HTTP, no errors repaired.

use anyhow::{Context as _, Result, ensure};
use reqwest::header::ACCEPT;
use serde_json::Value;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layer's blob.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is.
    pub url: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// `sha256:...` of its bytes when inflated.
    pub diff_id: String,
}

/// The layers of the image `HOST:PORT/NAME:TAG`, the lowest first.
pub async fn layers(http: &reqwest::Client, reference: &str) -> Result<Vec<Layer>> {
    let (host, path) = reference.split_once('/').context("a reference is HOST:PORT/NAME:TAG")?;
    let (name, tag) = path.rsplit_once(':').context("a reference is HOST:PORT/NAME:TAG")?;
    let base = format!("http://{host}/v2/{name}");
    let manifest = json(http, &format!("{base}/manifests/{tag}")).await?;
    let config = text(&manifest, "/config/digest")?;
    let config = json(http, &format!("{base}/blobs/{config}")).await?;
    let list = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let (layers, diff_ids) = (list(&manifest, "/layers"), list(&config, "/rootfs/diff_ids"));
    ensure!(
        layers.len() == diff_ids.len(),
        "{reference}: layers and diff_ids do not match"
    );
    let layer = |(layer, diff_id): (&Value, &Value)| {
        let digest = text(layer, "/digest")?.to_owned();
        Ok(Layer {
            url: format!("{base}/blobs/{digest}"),
            diff_id: diff_id.as_str().context("a diff_id is no text")?.to_owned(),
            digest,
        })
    };
    layers.iter().zip(&diff_ids).map(layer).collect()
}

/// GET with success.
pub async fn get(http: &reqwest::Client, url: &str) -> Result<reqwest::Response> {
    Ok(http
        .get(url)
        .header(ACCEPT, MANIFEST)
        .send()
        .await?
        .error_for_status()?)
}

async fn json(http: &reqwest::Client, url: &str) -> Result<Value> {
    let bytes = get(http, url).await?.bytes().await?;
    serde_json::from_slice(&bytes).with_context(|| url.to_owned())
}

fn text<'a>(value: &'a Value, at: &str) -> Result<&'a str> {
    value
        .pointer(at)
        .and_then(Value::as_str)
        .with_context(|| format!("{at} is missing"))
}
