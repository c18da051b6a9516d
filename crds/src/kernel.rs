use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ObjectRef, ResolvedSource, Source, schema};

/// A Kernel names a Linux kernel with its modules.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vmlet.dev",
    version = "v1alpha1",
    kind = "Kernel",
    plural = "kernels",
    namespaced,
    status = "KernelStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "krn",
    shortname = "vlkrn",
    category = "vmlet",
    doc = "A Kernel names a Linux kernel and its modules: an artifact made by `vmlet kernel package`.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether nodes can have it; Unknown for a path until a node has looked"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is or is not ready"
    ),
    printcolumn(
        name = "Reference",
        type_ = "string",
        json_path = ".spec.source['oci.reference','http.url','path.path']",
        description = "Reference, URL or path, as spec names it"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.resolved.digest",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct KernelSpec {
    /// Where the kernel comes from: exactly one of oci, http and path.
    pub source: Source,
    /// Secrets with registry credentials, in the same namespace, tried in order. Their type is
    /// kubernetes.io/dockerconfigjson, as `kubectl create secret docker-registry` makes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pull_secret_refs: Vec<ObjectRef>,
    /// Path of the kernel inside an ordinary image, archive or tar. By default the one boot/vmlinux*, vmlinux*,
    /// boot/vmlinuz*, vmlinuz* or lib/modules/*/vmlinuz is taken, the first of these that there is. Not for artifacts of
    /// `vmlet kernel package`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub kernel_path: Option<String>,
    /// Path of the directory of the kernel's modules inside an ordinary image, archive or tar. Defaults to
    /// lib/modules/RELEASE. Not for artifacts of `vmlet kernel package`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub modules_path: Option<String>,
    /// Path of an initrd inside an ordinary image, archive or tar, as the kernel takes it (a cpio archive, compressed or
    /// not). It is unpacked at each boot before vmlet's own, which brings /init: its files (modules, firmware,
    /// microcode) are there, its init is not run. By default there is none. Not for artifacts of
    /// `vmlet kernel package`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub initrd_path: Option<String>,
    /// Kernel command line arguments for every virtual machine that boots this kernel. They come after
    /// vmlet's own and before the virtual machine's kernelArgs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256), regex(pattern = r"^[!-~]+$")))]
    pub default_args: Vec<String>,
}

/// What the resolver found. Written by the resolver alone (field manager vmlet-controller).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Resolved: the reference has been resolved to a digest; Unknown for a path, which each node looks for itself.
    /// Ready: nodes can have it, as far as is known; a node that finds out otherwise is named in the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// What the reference was resolved to. A tag is resolved once; the digest holds for all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved: Option<ResolvedSource>,
    /// Size of the artifact's layers in bytes, as stored in the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed_bytes: Option<i64>,
}
