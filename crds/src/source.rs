use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where an image or a kernel comes from: exactly one of `oci`, `http` and `path`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.oci), has(self.http), has(self.path)].filter(x, x).size() == 1").message("exactly one of oci, http and path must be set"))]
pub struct Source {
    /// An image or artifact in an OCI registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// A file behind an http or https URL, identified by its sha256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A file or an OCI image layout below the directory that the agent was given with --import-dir.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSource>,
}

/// An image or artifact in a registry that speaks the OCI distribution specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// Reference by tag or digest, for example "docker.io/library/debian:bookworm" or
    /// "registry.example.org/app@sha256:...". A missing tag means "latest". A tag is resolved once
    /// to a digest, which then stands in .status.resolved.
    #[schemars(length(min = 1, max = 1024))]
    pub reference: String,
    /// Platform to take from an index, as os/architecture[/variant]. Defaults to the platform of the
    /// node, for example "linux/amd64".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$"))]
    pub platform: Option<String>,
}

/// A file behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// http or https URL of an OCI archive, a docker archive, a tar of a root file system or one bare ext4 file
    /// system; for kernels also of a vmlinux or bzImage. Plain, or compressed with gzip or zstd.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://"))]
    pub url: String,
    /// sha256 of the file, 64 hexadecimal digits in lower case. A file with another sum is refused.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[a-f0-9]{64}$"))]
    pub sha256: String,
}

/// A file or directory on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathSource {
    /// Path relative to the agent's --import-dir, which it cannot leave: a directory with an OCI image layout, or a
    /// file of the kinds that http takes.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^/].*$"))]
    pub path: String,
}

/// What a reference was resolved to, the same for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSource {
    /// The reference (or URL, or path) that was resolved.
    pub reference: String,
    /// Digest of the manifest (of the file for http sources), for example "sha256:...".
    pub digest: String,
    /// Media type of the manifest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Platform of the manifest, for example "linux/amd64".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
}
