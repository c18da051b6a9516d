//! From a VM's spec and what it refers to, to what is booted. Pure.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use vmlet_artifacts::types::{ImageDisk, KernelFiles};
use vmlet_crds::{GuestInit, Persistence, Protocol, VirtualMachine, VirtualMachineSpec, quantity_value};
use vmlet_init::config::{Content, EnvVar, GuestConfig, GuestFile, ImageProcess, InitMode, Network};
use vmlet_machines::{MachineSpec, PortForward};

/// The guest's address on the VMM's own network, and what stands beside it there.
pub const GUEST_ADDRESS: &str = "10.0.2.15/24";
const GATEWAY: &str = "10.0.2.2";
const NAME_SERVER: &str = "10.0.2.3";

/// What a machine spec is built from.
pub struct Parts<'a> {
    /// The object.
    pub vm: &'a VirtualMachine,
    /// Its uid.
    pub uid: &'a str,
    /// The base of its disk.
    pub image: &'a ImageDisk,
    /// Its kernel.
    pub kernel: &'a KernelFiles,
    /// defaultArgs of the Kernel.
    pub kernel_default_args: &'a [String],
    /// authorized_keys of spec and secrets.
    pub keys: &'a [String],
    /// Seed of its ssh host key.
    pub host_key_seed: &'a str,
    /// Whether the overlay is thrown away before this run.
    pub reset_disk: bool,
}

/// Why a machine spec cannot be built: for the condition DiskReady.
#[derive(Debug, PartialEq, Eq)]
pub struct Unbuildable {
    /// CamelCase.
    pub reason: &'static str,
    /// Names the object, the cause and what to do.
    pub message: String,
}

/// Builds what is booted.
///
/// # Errors
/// When the spec and the image do not go together.
pub fn machine_spec(parts: &Parts<'_>) -> Result<MachineSpec, Unbuildable> {
    let spec = &parts.vm.spec;
    let disk_size = match &spec.root_disk.size {
        None => None,
        Some(quantity) => {
            let size = quantity_value(quantity).ok_or_else(|| Unbuildable {
                reason: "InvalidDiskSize",
                message: format!("rootDisk.size {:?} is not a size such as 10Gi", quantity.0),
            })?;
            if size < parts.image.size_bytes {
                return Err(Unbuildable {
                    reason: "DiskTooSmall",
                    message: format!(
                        "rootDisk.size {} is smaller than the image's disk of {}: raise it to at least that, or leave it out",
                        quantity.0,
                        mebibytes(parts.image.size_bytes)
                    ),
                });
            }
            Some(size.next_multiple_of(1 << 20))
        }
    };
    Ok(MachineSpec {
        name: format!(
            "{}/{}",
            parts.vm.metadata.namespace.as_deref().unwrap_or("default"),
            parts.vm.metadata.name.as_deref().unwrap_or("")
        ),
        cpus: u32::try_from(spec.cpu.count).unwrap_or(1).max(1),
        memory_bytes: quantity_value(&spec.memory.size).unwrap_or(512 << 20),
        kernel: parts.kernel.kernel.clone(),
        modules_tar: parts.kernel.modules_tar.clone(),
        modules_disk: parts.kernel.modules_disk.clone(),
        kernel_initrd: parts.kernel.initrd.clone(),
        kernel_digest: parts.kernel.id.clone(),
        kernel_args: parts
            .kernel_default_args
            .iter()
            .chain(&spec.kernel_args)
            .cloned()
            .collect(),
        base: parts.image.path.clone(),
        base_id: parts.image.id.clone(),
        base_size: parts.image.size_bytes,
        disk_size,
        ephemeral: parts.reset_disk && spec.root_disk.persistence == Persistence::Ephemeral,
        ports: ports(spec),
        guest: guest_config(parts, disk_size.is_some()),
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

/// The port forwards of a spec. An address that is none is left to the VMM's refusal, with its name.
pub fn ports(spec: &VirtualMachineSpec) -> Vec<PortForward> {
    spec.interfaces
        .iter()
        .flat_map(|interface| &interface.nat.ports)
        .map(|port| PortForward {
            name: port.name.clone(),
            protocol: match port.protocol {
                Protocol::Tcp => vmlet_machines::Protocol::Tcp,
                Protocol::Udp => vmlet_machines::Protocol::Udp,
            },
            host_ip: port.host_ip.parse().unwrap_or(IpAddr::from([127, 0, 0, 1])),
            host_port: port.host_port.and_then(|p| u16::try_from(p).ok()),
            guest_port: u16::try_from(port.guest_port).unwrap_or_default(),
        })
        .collect()
}

fn guest_config(parts: &Parts<'_>, grow: bool) -> GuestConfig {
    let guest = &parts.vm.spec.guest;
    let image = &parts.image.config;
    let mut files: Vec<GuestFile> = if parts.keys.is_empty() {
        Vec::new()
    } else {
        crate::hostkey::files(parts.host_key_seed).unwrap_or_default()
    };
    files.extend(guest.files.iter().map(|file| GuestFile {
        path: file.path.clone(),
        content: Content(file.content.clone().into_bytes()),
        mode: u32::try_from(file.mode).unwrap_or(0o644),
        uid: 0,
        gid: 0,
    }));
    GuestConfig {
        hostname: guest
            .hostname
            .clone()
            .or_else(|| parts.vm.metadata.name.clone())
            .unwrap_or_default(),
        init: match guest.init {
            GuestInit::Auto => InitMode::Auto,
            GuestInit::Image => InitMode::Image,
            GuestInit::Entrypoint => InitMode::Entrypoint,
        },
        image: ImageProcess {
            entrypoint: image.entrypoint.clone(),
            cmd: image.cmd.clone(),
            env: image.env.clone(),
            user: image.user.clone().unwrap_or_default(),
            working_dir: image.working_dir.clone().unwrap_or_default(),
            stop_signal: image.stop_signal.clone().unwrap_or_default(),
        },
        command: (!guest.command.is_empty()).then(|| guest.command.clone()),
        args: (!guest.args.is_empty()).then(|| guest.args.clone()),
        env: guest
            .env
            .iter()
            .map(|v| EnvVar {
                name: v.name.clone(),
                value: v.value.clone(),
            })
            .collect(),
        network: Some(Network {
            address: GUEST_ADDRESS.to_owned(),
            gateway: Some(GATEWAY.to_owned()),
            dns: vec![NAME_SERVER.to_owned()],
        }),
        machine_id: machine_id(parts.uid),
        authorized_keys: parts.keys.to_vec(),
        files,
        root_serial: "root".to_owned(),
        modules_serial: parts.kernel.modules_disk.is_some().then(|| "modules".to_owned()),
        grow_root: grow,
    }
}

/// The guest's machine-id (machine-id(5)): it belongs to the VM, so it comes from its uid.
pub fn machine_id(uid: &str) -> String {
    let hash = Sha256::digest(format!("vmlet machine-id {uid}").as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of what takes effect at the next start only. Two specs with one fingerprint boot alike, but for root's
/// keys: those change in the running guest. That there are any does not: a guest's host key comes with them.
pub fn fingerprint(spec: &VirtualMachineSpec, keys: &[String]) -> String {
    let guest = vmlet_crds::Guest {
        ssh_authorized_keys: Vec::new(),
        ssh_key_secret_refs: Vec::new(),
        ..spec.guest.clone()
    };
    let relevant = serde_json::json!({
        "cpu": spec.cpu,
        "memory": spec.memory,
        "kernelRef": spec.kernel_ref,
        "kernelArgs": spec.kernel_args,
        "size": spec.root_disk.size,
        "interfaces": spec.interfaces.iter().map(|i| &i.name).collect::<Vec<_>>(),
        "guest": guest,
        "keys": !keys.is_empty(),
    });
    Sha256::digest(relevant.to_string().as_bytes())
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use vmlet_artifacts::types::{BootFormat, ImageConfig};
    use vmlet_crds::{Interface, Nat, Port};

    fn image() -> ImageDisk {
        ImageDisk {
            id: "disk-1".into(),
            digest: "sha256:1".into(),
            path: "/data/disk".into(),
            size_bytes: 1 << 30,
            allocated_bytes: 0,
            config: ImageConfig {
                entrypoint: vec!["/app".into()],
                ..ImageConfig::default()
            },
            content_hash: String::new(),
        }
    }

    fn kernel() -> KernelFiles {
        KernelFiles {
            id: "kernel-1".into(),
            digest: "sha256:2".into(),
            kernel: "/data/kernel".into(),
            boot_format: BootFormat::PvhElf,
            version: "6.1".into(),
            modules_tar: None,
            modules_disk: Some("/data/modules".into()),
            initrd: None,
        }
    }

    fn build(vm: &VirtualMachine, reset_disk: bool) -> Result<MachineSpec, Unbuildable> {
        machine_spec(&Parts {
            vm,
            uid: "u",
            image: &image(),
            kernel: &kernel(),
            kernel_default_args: &["a".to_owned()],
            keys: &[],
            host_key_seed: "",
            reset_disk,
        })
    }

    fn vm() -> VirtualMachine {
        let mut vm = VirtualMachine::new("web", VirtualMachineSpec::default());
        vm.metadata.namespace = Some("apps".into());
        vm
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused_with_both_sizes() {
        let mut vm = vm();
        vm.spec.root_disk.size = Some(Quantity("512Mi".into()));
        let error = build(&vm, false).expect_err("too small");
        assert_eq!(error.reason, "DiskTooSmall");
        assert!(
            error.message.contains("512Mi") && error.message.contains("1024Mi"),
            "{}",
            error.message
        );
    }

    #[test]
    fn only_an_ephemeral_disk_at_a_declared_start_is_thrown_away() {
        let mut vm = vm();
        assert!(!build(&vm, true).expect("builds").ephemeral);
        vm.spec.root_disk.persistence = Persistence::Ephemeral;
        assert!(build(&vm, true).expect("builds").ephemeral);
        assert!(!build(&vm, false).expect("builds").ephemeral);
    }

    #[test]
    fn kernel_arguments_of_the_kernel_come_before_those_of_the_vm() {
        let mut vm = vm();
        vm.spec.kernel_args = vec!["b".into()];
        assert_eq!(build(&vm, false).expect("builds").kernel_args, ["a", "b"]);
    }

    #[test]
    fn the_guest_gets_its_name_an_own_machine_id_and_the_images_process() {
        let built = build(&vm(), false).expect("builds");
        assert_eq!(built.guest.hostname, "web");
        assert_eq!(built.guest.machine_id.len(), 32);
        assert_ne!(machine_id("u"), machine_id("v"));
        assert_eq!(built.guest.image.entrypoint, ["/app"]);
        assert_eq!(
            built.guest.command, None,
            "absent, so that the image's entrypoint stays"
        );
    }

    #[test]
    fn port_forwards_do_not_ask_for_a_restart_and_memory_does() {
        let mut changed = vm().spec;
        let before = fingerprint(&changed, &[]);
        changed.interfaces = vec![Interface {
            name: "nat".into(),
            nat: Nat::default(),
        }];
        let with_interface = fingerprint(&changed, &[]);
        changed.interfaces[0].nat.ports = vec![Port {
            name: "ssh".into(),
            guest_port: 22,
            host_ip: "127.0.0.1".into(),
            ..Port::default()
        }];
        assert_eq!(fingerprint(&changed, &[]), with_interface);
        assert_ne!(with_interface, before);
        changed.memory.size = Quantity("1Gi".into());
        assert_ne!(fingerprint(&changed, &[]), with_interface);
    }

    #[test]
    fn other_keys_ask_for_no_restart_and_the_first_one_does() {
        let without = vm().spec;
        let mut with = without.clone();
        with.guest.ssh_authorized_keys = vec!["a".into()];
        let one = fingerprint(&with, &["a".into()]);
        assert_eq!(one, fingerprint(&without, &["of a secret".into()]));
        assert_ne!(one, fingerprint(&without, &[]));
        with.guest.hostname = Some("b".into());
        assert_ne!(one, fingerprint(&with, &["a".into()]));
    }
}
