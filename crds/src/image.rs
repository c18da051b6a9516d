use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ObjectRef, ResolvedSource, Source, schema};

/// An Image names the contents of a root disk. Agents build one ext4 disk from it per node, which
/// virtual machines share read-only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vmlet.dev",
    version = "v1alpha1",
    kind = "Image",
    plural = "images",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "img",
    shortname = "vlimg",
    category = "vmlet",
    doc = "An Image names the contents of a root disk, such as a container image in a registry. Each node that needs it builds one ext4 disk from it, which virtual machines share read-only.",
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
    printcolumn(name = "Kernel", type_ = "string", json_path = ".spec.kernelRef.name", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Where the image comes from: exactly one of oci, http and path.
    pub source: Source,
    /// Secrets with registry credentials, in the same namespace, tried in order. Their type is
    /// kubernetes.io/dockerconfigjson, as `kubectl create secret docker-registry` makes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pull_secret_refs: Vec<ObjectRef>,
    /// Kernel that a VirtualMachine of this image boots when it names none itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<ObjectRef>,
    /// When nodes pull the image: OnReference (when a virtual machine on the node needs it) or Eager
    /// (each node that matches nodeSelector keeps it present). Defaults to OnReference.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Labels that a VMNode must have for an Eager pull. Empty selects every node. No effect on OnReference.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// When nodes pull an image or kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PullPolicy {
    /// When a virtual machine on the node needs it.
    #[default]
    OnReference,
    /// Each node that matches nodeSelector keeps it present.
    Eager,
}

/// What the resolver found. Written by the resolver alone (field manager vmlet-controller).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
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
    /// Size of the compressed layers in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed_bytes: Option<i64>,
}
