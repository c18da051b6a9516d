use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// A VMNode is the agent of one node, as it describes itself.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vmlet.dev",
    version = "v1alpha1",
    kind = "VMNode",
    plural = "vmnodes",
    status = "VMNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vmn",
    category = "vmlet",
    doc = "A VMNode is written by the agent of the node it is named after: what the node can run, what it has cached, and how it is.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why the node can or cannot boot virtual machines"
    ),
    printcolumn(
        name = "VMs",
        type_ = "integer",
        json_path = ".status.runningMachines",
        description = "Virtual machines that run on the node"
    ),
    printcolumn(name = "Accelerator", type_ = "string", json_path = ".status.accelerator"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.allocatable.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.allocatable.memory"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VMNodeSpec {}

/// What the agent saw. Written by the agent of this node alone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VMNodeStatus {
    /// Ready: the agent works. QEMUUsable, KVMUsable, CgroupsUsable, IsolationUsable: what `vmlet check` finds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// VMMs found on the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vmms: Vec<VmmFound>,
    /// What runs guest code: KVM, or TCG where the processor's virtualization cannot be used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accelerator: String,
    /// All of the node: cpu (processors) and memory (bytes).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    /// What virtual machines may use in all: cpu (processors) and memory (bytes).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Number of virtual machines that run.
    #[serde(default)]
    pub running_machines: i32,
    /// Images and kernels that are present, the last used first; at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub cached: Vec<CachedArtifact>,
}

/// A virtual machine monitor on the node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmmFound {
    /// Kind of VMM, for example QEMU.
    #[serde(rename = "type")]
    pub type_: String,
    /// Version that the binary reports.
    pub version: String,
}

/// An image or kernel that is present on the node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachedArtifact {
    /// Image or Kernel.
    pub kind: String,
    /// Digest of the manifest that it was made from.
    pub digest: String,
    /// Bytes that it occupies on the node's disk.
    pub size_bytes: i64,
    /// Number of virtual machines that use it.
    pub users: i32,
    /// When it was last used, to the hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_time: Option<Time>,
}
