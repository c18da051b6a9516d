use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ObjectRef, schema};

/// The desired state of a virtual machine.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vmlet.dev", version = "v1alpha1", kind = "VirtualMachine", plural = "virtualmachines", namespaced,
    status = "VirtualMachineStatus", derive = "PartialEq", derive = "Default",
    shortname = "vm", shortname = "vlvm", category = "vmlet",
    selectable = ".spec.nodeName", selectable = ".spec.imageRef.name", selectable = ".spec.runStrategy",
    doc = "A VirtualMachine runs on one node, from an Image and a Kernel, on a disk of its own.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must have at most 63 characters, because it is the guest's default hostname"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Status", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why the machine is or is not ready"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "CPU", type_ = "integer", json_path = ".spec.cpu.count"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.size"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restartCount"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.imageRef.name", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel.version", priority = 1),
    printcolumn(name = "VMM", type_ = "string", json_path = ".status.vmm.type", priority = 1),
    printcolumn(name = "Accelerator", type_ = "string", json_path = ".status.vmm.accelerator", priority = 1),
    printcolumn(name = "Port", type_ = "string", json_path = ".status.ports[0].hostPort", priority = 1, description = "Port of the host that leads to the first of spec's ports"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.nodeName) || (has(self.nodeName) && self.nodeName == oldSelf.nodeName)").message("nodeName cannot be changed or removed once set"))]
#[x_kube(validation = Rule::new("self.imageRef.name == oldSelf.imageRef.name").message("imageRef is immutable: create another VirtualMachine").field_path(".imageRef"))]
pub struct VirtualMachineSpec {
    /// Node that runs the machine. Set by the binder when absent; never changes afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// What happens when the machine ends. Always: it is started again, with a back-off. RerunOnFailure:
    /// only after a failure. Once: one run, then the condition Completed. Halted: it is stopped and stays
    /// so. A reboot inside the guest is not an end. Defaults to Always.
    #[serde(default)]
    pub run_strategy: RunStrategy,
    /// A new value asks for one restart: the machine is stopped gracefully and started again. Any
    /// RFC 3339 time, usually that of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Time>,
    /// Virtual processors. Changes take effect at the next start.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory of the guest. Changes take effect at the next start.
    #[serde(default)]
    pub memory: Memory,
    /// Image whose contents the root disk starts with, in the same namespace. Immutable.
    pub image_ref: ObjectRef,
    /// Kernel to boot, in the same namespace. Defaults to the kernelRef of the image. Changes take
    /// effect at the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ref: Option<ObjectRef>,
    /// Kernel command line arguments, after those of the Kernel. Changes take effect at the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256), regex(pattern = r"^[!-~]+$")))]
    pub kernel_args: Vec<String>,
    /// The root disk.
    #[serde(default)]
    pub root_disk: RootDisk,
    /// Network interfaces. Without one, the machine gets one NAT interface without port forwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<Interface>,
    /// What happens inside the guest. Changes take effect at the next start.
    #[serde(default)]
    pub guest: Guest,
    /// The virtual machine monitor.
    #[serde(default)]
    pub vmm: Vmm,
    /// Seconds that what runs in the guest gets to end before it is killed: at a stop, a restart and a deletion. The
    /// guest has 3 seconds more to sync and power off. With 0 the machine is killed at once. Defaults to 30.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 0, max = 3600))]
    pub termination_grace_period_seconds: i64,
}

fn default_grace() -> i64 {
    30
}

/// What happens when a machine ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RunStrategy {
    /// Any end is followed by a start, with a back-off.
    #[default]
    Always,
    /// Only a failure is followed by a start.
    RerunOnFailure,
    /// One run, then Completed.
    Once,
    /// Stopped.
    Halted,
}

/// Virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Number of virtual processors, 1 to 64. Defaults to 1.
    #[serde(default = "default_cpu_count")]
    #[schemars(range(min = 1, max = 64))]
    pub count: i32,
}

fn default_cpu_count() -> i32 {
    1
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            count: default_cpu_count(),
        }
    }
}

/// Memory of the guest.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Size of the guest's memory, for example 512Mi or 4Gi; at least 64Mi and at most 1Ti, in whole
    /// mebibytes. Defaults to 512Mi.
    #[serde(default = "default_memory_size")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('64Mi')) >= 0 && quantity(self).compareTo(quantity('1Ti')) <= 0").message("must be at least 64Mi and at most 1Ti"))]
    pub size: Quantity,
}

fn default_memory_size() -> Quantity {
    Quantity("512Mi".to_owned())
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            size: default_memory_size(),
        }
    }
}

/// The root disk: a copy-on-write overlay on the image's disk.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.size) || (has(self.size) && quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0)").message("size can grow, not shrink"))]
pub struct RootDisk {
    /// Size of the disk, for example 10Gi; at most 1Ti. The file system in it grows at the next start.
    /// Defaults to the size of the image's disk; a smaller size than that is refused by the condition DiskReady.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_quantity")]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('1Ti')) <= 0").message("must be at least 1Mi and at most 1Ti"))]
    pub size: Option<Quantity>,
    /// Persistent: what the guest writes is kept until the VirtualMachine is deleted. Ephemeral: it is
    /// thrown away at a declared stop or restart, but never at a crash or reboot. Immutable. Defaults to
    /// Persistent.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("persistence is immutable"))]
    pub persistence: Persistence,
}

/// What becomes of a root disk when its machine is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Persistence {
    /// Kept until the VirtualMachine is deleted.
    #[default]
    Persistent,
    /// Thrown away at a declared stop or restart.
    Ephemeral,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the interface, unique in the machine.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The guest reaches the network through the node, with the node's address; the network reaches the
    /// guest through forwarded ports. IPv4 only.
    #[serde(default)]
    pub nat: Nat,
}

/// Address translation with port forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nat {
    /// Ports of the node that lead to ports of the guest. Can be changed while the machine runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(p, !has(p.hostPort) || p.hostPort == 0 || self.exists_one(q, has(q.hostPort) && q.hostPort == p.hostPort && q.protocol == p.protocol && q.hostIP == p.hostIP))").message("hostPort must be unique for each hostIP and protocol"))]
    #[x_kube(validation = Rule::new("self.all(p, self.exists_one(q, q.guestPort == p.guestPort && q.protocol == p.protocol))").message("guestPort must be unique for each protocol"))]
    pub ports: Vec<Port>,
}

/// A port of the node that leads to a port of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name of the forward, unique in the interface. `vmlet ssh` uses the one named ssh, or guest port 22.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Port in the guest.
    #[schemars(range(min = 1, max = 65535))]
    pub guest_port: i32,
    /// Port of the node. Absent or 0: a free one is chosen and shown in .status.ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub host_port: Option<i32>,
    /// IPv4 address of the node to listen on. Defaults to 127.0.0.1; 0.0.0.0 means all.
    #[serde(default = "default_host_ip", rename = "hostIP")]
    #[schemars(length(max = 15), regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$"))]
    pub host_ip: String,
    /// TCP or UDP. Defaults to TCP.
    #[serde(default)]
    pub protocol: Protocol,
}

fn default_host_ip() -> String {
    "127.0.0.1".to_owned()
}

/// Transport protocol of a port forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// What happens inside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Who is process 1. Image: the image's own init. Entrypoint: vmlet-init, which runs the entrypoint and
    /// ends the machine with its exit code. Auto: the image's init if the entrypoint names it, or if the
    /// image has no entrypoint (or a bare shell) and an init; otherwise Entrypoint. Defaults to Auto.
    #[serde(default)]
    pub init: GuestInit,
    /// Replaces the image's entrypoint, as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 65536)))]
    pub command: Vec<String>,
    /// Replaces the image's arguments (CMD), as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 65536)))]
    pub args: Vec<String>,
    /// Environment variables, after those of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// Hostname. Defaults to the name of the VirtualMachine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Public keys, as lines of an authorized_keys file, that may log in as root. A running guest takes changes at
    /// once; the first key of a machine that had none takes effect at the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 16384), regex(pattern = r"^[^\n\r]+$"))
    )]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('(^|[[:blank:]])(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+[[:blank:]]+AAAA'))").message("each must be a public key as it stands in a .pub file: its type (ssh-ed25519, ssh-rsa, ...), the key, and what you like behind it; options may stand before it"))]
    pub ssh_authorized_keys: Vec<String>,
    /// Secrets in the same namespace, all of whose values are authorized_keys files. An absent Secret keeps the
    /// machine from starting; a running guest takes changes at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ssh_key_secret_refs: Vec<ObjectRef>,
    /// Files to write into the root file system at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub files: Vec<GuestFile>,
}

/// Who is process 1 in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum GuestInit {
    /// Decided by what the image holds.
    #[default]
    Auto,
    /// The image's own init.
    Image,
    /// vmlet-init, which runs the entrypoint.
    Entrypoint,
}

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^=\x00]+$"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 131072))]
    pub value: String,
}

/// A file to write into the guest's root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestFile {
    /// Absolute path inside the guest, not below /proc, /sys or /dev. Missing parent directories are made. What an image's
    /// own init mounts later (often /run and /tmp) hides what was written there before.
    #[schemars(length(min = 2, max = 1024), regex(pattern = r"^/[^\x00\n]*[^/\x00\n]$"))]
    #[x_kube(validation = Rule::new("!self.matches('//|/[.][.]?(/|$)|/[^/]{256}')").message("must consist of names of at most 255 characters between single slashes, none of them . or .."))]
    #[x_kube(validation = Rule::new("!self.matches('^/(proc|sys|dev)(/|$)')").message("must not be below /proc, /sys or /dev: the guest's kernel has file systems of its own there, which hide what was written before"))]
    pub path: String,
    /// Content of the file, as text.
    #[serde(default)]
    #[schemars(length(max = 262144))]
    pub content: String,
    /// Permission bits as a decimal number, for example 420 for octal 0644, which is the default.
    #[serde(default = "default_file_mode")]
    #[schemars(range(min = 0, max = 4095))]
    pub mode: i32,
}

fn default_file_mode() -> i32 {
    0o644
}

/// The virtual machine monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vmm {
    /// Kind of virtual machine monitor. Auto: the best that the node has. Immutable. Defaults to Auto.
    #[serde(default, rename = "type")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("vmm.type is immutable"))]
    pub type_: VmmType,
}

/// Kind of virtual machine monitor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum VmmType {
    /// The best that the node has.
    #[default]
    Auto,
    /// QEMU, with KVM where it works and TCG elsewhere.
    #[serde(rename = "QEMU")]
    Qemu,
}

/// The observed state of a virtual machine. Written by the agent of its node; while it has none, by
/// the controller.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Scheduled, ImageReady, KernelReady, DiskReady, NetworkReady, Running, GuestReady, RestartRequired,
    /// Completed, and Ready, which sums them up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Node whose agent writes this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// What the root disk was made from. It never changes while the disk lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PinnedImage>,
    /// What the last start booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PinnedKernel>,
    /// The virtual machine monitor of the last start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmStatus>,
    /// Addresses of the guest on its own network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Port forwards as they are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ports: Vec<PortStatus>,
    /// Boot id of the guest's kernel (/proc/sys/kernel/random/boot_id). It changes at each boot, and at nothing else.
    #[serde(skip_serializing_if = "Option::is_none", rename = "bootID")]
    pub boot_id: Option<String>,
    /// Public ssh host key that the last start gave the guest, as a known_hosts file has it behind the name of the
    /// host. Absent when the guest was given no ssh keys, and so makes its own host key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub ssh_host_key: Option<String>,
    /// When the machine was last started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// The restartedAt that has been acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_restarted_at: Option<Time>,
    /// Number of starts after an end that was not asked for.
    #[serde(default)]
    pub restart_count: i32,
    /// How the machine last ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_termination: Option<Termination>,
    /// When the next start is tried, during a back-off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_retry_time: Option<Time>,
    /// When the last start reached each of its steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub boot_timings: Vec<BootTiming>,
}

/// What a root disk was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PinnedImage {
    /// Name of the Image object.
    pub name: String,
    /// Digest of the manifest.
    pub digest: String,
}

/// What a start booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PinnedKernel {
    /// Name of the Kernel object.
    pub name: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Kernel version, for example 6.1.0-56-cloud-amd64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A virtual machine monitor that runs a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmmStatus {
    /// Kind of VMM, for example QEMU.
    #[serde(rename = "type")]
    pub type_: String,
    /// KVM or TCG.
    pub accelerator: String,
    /// Version of the VMM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A port forward as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// Name of the forward, as in spec.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the node that is listened on.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// Port of the node; absent when it could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<i32>,
    /// Port in the guest.
    pub guest_port: i32,
    /// Why the port could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Why, in one word: Completed, Error, GuestPanic, OOMKilled, ForcedKill, VMMDied, StartFailed, ...
    pub reason: String,
    /// Exit code of the entrypoint, where one ran and ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What is known, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When.
    pub finished_at: Time,
}

/// When a start reached a step.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootTiming {
    /// Name of the step.
    pub step: String,
    /// When it was reached.
    pub at: MicroTime,
}
