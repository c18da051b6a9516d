//! A machine as QEMU's command line. Pure: no file is touched here.
//!
//! Everything that QEMU opens is opened before and passed by descriptor: a VMM with a uid of its own
//! needs no right on any directory, paths may be as long as they like, and no name from outside
//! becomes an option (QEMU reads commas in many of them).

use std::os::fd::RawFd;

use vmlet_init::channel::{CONTROL_PORT, EXIT_PORT, READY_PORT};

/// Bytes of console that QEMU keeps for an agent that is away.
pub const CONSOLE_RING: u64 = 1 << 20;
/// Bytes of exit records that QEMU keeps.
pub const EXIT_RING: u64 = 4096;
/// The chardev behind the console.
pub const CONSOLE: &str = "console";
/// The chardev behind the interactive console.
pub const TERMINAL: &str = "terminal";
/// The chardev behind the port of exit records.
pub const EXIT: &str = "exit";
/// The chardev and the device of the port that the guest holds open while it is ready.
pub const READY: &str = "ready";
/// The network backend.
pub const NETDEV: &str = "net0";
/// Address of the guest on QEMU's user network.
pub const GUEST_ADDRESS: &str = "10.0.2.15";
/// Serial of the root disk.
pub const ROOT_SERIAL: &str = "root";
/// Serial of the modules disk.
pub const MODULES_SERIAL: &str = "modules";

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation: slow, and works everywhere.
    Tcg,
}

impl Accelerator {
    /// `kvm` or `tcg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// The descriptors that QEMU inherits, by number.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// Kernel, read-only.
    pub kernel: RawFd,
    /// Initrd with the configuration behind it, read-only.
    pub initrd: RawFd,
    /// Overlay of the root disk, read-write.
    pub overlay: RawFd,
    /// Base of the root disk, read-only.
    pub base: RawFd,
    /// Modules disk, read-only.
    pub modules: Option<RawFd>,
    /// Listening socket of the monitor.
    pub monitor: RawFd,
    /// Listening socket of the guest's control port.
    pub control: RawFd,
    /// Listening socket of the interactive console.
    pub terminal: RawFd,
}

/// What the command line says, apart from descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The machine's uid, a UUID: by it a VMM is found when all records are lost.
    pub uid: &'a str,
    /// The run, so that it is known then too.
    pub run: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// `qboot.rom` is there, and the kernel is an ELF: a bzImage is left to SeaBIOS.
    pub qboot: bool,
    /// Words added to the kernel command line.
    pub kernel_args: &'a [String],
}

/// The arguments for QEMU, program name left out.
pub fn arguments(line: &Line<'_>, fds: &Descriptors) -> Vec<String> {
    let mut argv = Argv(Vec::new());
    argv.pair("-name", run_name(line.run));
    argv.pair("-uuid", line.uid);
    argv.pair("-machine", "q35");
    match line.accelerator {
        Accelerator::Kvm => argv.pair("-accel", "kvm"),
        Accelerator::Tcg => argv.pair("-accel", "tcg,thread=multi,tb-size=128"),
    }
    argv.pair("-cpu", "max");
    argv.pair("-smp", line.cpus.to_string());
    argv.pair("-m", format!("{}K", line.memory_bytes / 1024));
    for flag in ["-nodefaults", "-no-user-config"] {
        argv.0.push(flag.to_owned());
    }
    argv.pair("-display", "none");
    if line.qboot {
        argv.pair("-bios", "qboot.rom");
    }
    argv.pair("-kernel", format!("/proc/self/fd/{}", fds.kernel));
    argv.pair("-initrd", format!("/proc/self/fd/{}", fds.initrd));
    argv.pair("-append", kernel_command_line(line.accelerator, line.kernel_args));
    // An early panic must end, not loop, so a reset ends the guest until it was ready once. QEMU
    // outlives its guest, so an agent that was away still learns why it ended.
    argv.pair("-action", "reboot=shutdown,shutdown=pause,panic=pause");
    argv.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    argv.pair(
        "-chardev",
        format!("socket,id=monitor,fd={},server=on,wait=off", fds.monitor),
    );
    argv.pair("-mon", "chardev=monitor,mode=control");

    argv.pair("-chardev", ring(CONSOLE, CONSOLE_RING));
    argv.pair("-serial", format!("chardev:{CONSOLE}"));

    argv.pair("-add-fd", format!("fd={},set=1", fds.overlay));
    argv.pair("-add-fd", format!("fd={},set=2", fds.base));
    argv.pair(
        "-blockdev",
        concat!(
            r#"{"driver":"qcow2","node-name":"root","discard":"unmap","#,
            r#""file":{"driver":"file","filename":"/dev/fdset/1","discard":"unmap"},"#,
            r#""backing":{"driver":"raw","read-only":true,"file":"#,
            r#"{"driver":"file","filename":"/dev/fdset/2","read-only":true}}}"#
        ),
    );
    argv.pair("-device", format!("virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"));
    if let Some(modules) = fds.modules {
        argv.pair("-add-fd", format!("fd={modules},set=3"));
        argv.pair(
            "-blockdev",
            concat!(
                r#"{"driver":"raw","node-name":"modules","read-only":true,"file":"#,
                r#"{"driver":"file","filename":"/dev/fdset/3","read-only":true}}"#
            ),
        );
        argv.pair(
            "-device",
            format!("virtio-blk-pci,drive=modules,serial={MODULES_SERIAL}"),
        );
    }

    argv.pair("-device", "virtio-serial-pci,max_ports=4");
    // The guest's /dev/hvc0, first so that it is there before the ports of the channel have names. Without a
    // client QEMU drops what is written to it: unlike a port, a console never blocks its writer.
    argv.pair(
        "-chardev",
        format!("socket,id={TERMINAL},fd={},server=on,wait=off", fds.terminal),
    );
    argv.pair("-device", format!("virtconsole,chardev={TERMINAL}"));
    argv.pair("-chardev", format!("null,id={READY}"));
    argv.pair("-device", port(READY, READY_PORT));
    argv.pair("-chardev", ring(EXIT, EXIT_RING));
    argv.pair("-device", port(EXIT, EXIT_PORT));
    argv.pair(
        "-chardev",
        format!("socket,id=control,fd={},server=on,wait=off", fds.control),
    );
    argv.pair("-device", port("control", CONTROL_PORT));
    argv.pair("-device", "pvpanic-pci");

    // No forward here: a port that is taken must not stop the boot. They are added by the monitor.
    argv.pair("-netdev", format!("user,id={NETDEV}"));
    argv.pair(
        "-device",
        format!("virtio-net-pci,netdev={NETDEV},mac={},romfile=", mac(line.uid)),
    );
    argv.0
}

/// The run number as it stands in `-name`.
pub fn run_name(run: u64) -> String {
    format!("vmlet-run-{run}")
}

/// The run number of a command line that [`arguments`] wrote.
pub fn run_of(argv: &[String]) -> Option<u64> {
    value_of(argv, "-name")?.strip_prefix("vmlet-run-")?.parse().ok()
}

/// The value behind an option.
pub fn value_of<'a>(argv: &'a [String], option: &str) -> Option<&'a str> {
    let at = argv.iter().position(|a| a == option)?;
    argv.get(at + 1).map(String::as_str)
}

fn kernel_command_line(accelerator: Accelerator, extra: &[String]) -> String {
    let fixed = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t cryptomgr.notests";
    // An emulated timer that a busy host keeps waiting is no broken one: checked, the kernel panics over it.
    // Under KVM it knows by itself not to check.
    let tcg = (accelerator == Accelerator::Tcg).then_some("no_timer_check");
    std::iter::once(fixed)
        .chain(tcg)
        .chain(extra.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

fn ring(id: &str, size: u64) -> String {
    format!("ringbuf,id={id},size={size}")
}

// `id=` on the device: without it no VSERPORT_CHANGE is sent.
fn port(id: &str, name: &str) -> String {
    format!("virtserialport,chardev={id},id={id},name={name}")
}

/// A MAC address that stays with the uid (FNV-1a of it behind QEMU's own prefix).
fn mac(uid: &str) -> String {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, ..] = hash.to_le_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

struct Argv(Vec<String>);

impl Argv {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDS: Descriptors = Descriptors {
        kernel: 10,
        initrd: 11,
        overlay: 12,
        base: 13,
        modules: None,
        monitor: 14,
        control: 15,
        terminal: 17,
    };

    fn line(args: &[String]) -> Line<'_> {
        Line {
            uid: "0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10",
            run: 3,
            cpus: 2,
            memory_bytes: 256 << 20,
            accelerator: Accelerator::Tcg,
            qboot: true,
            kernel_args: args,
        }
    }

    fn values<'a>(argv: &'a [String], option: &str) -> Vec<&'a str> {
        argv.windows(2)
            .filter(|w| w[0] == option)
            .map(|w| w[1].as_str())
            .collect()
    }

    #[test]
    fn a_run_is_told_by_its_command_line() {
        let argv = arguments(&line(&[]), &FDS);
        assert_eq!(run_of(&argv), Some(3));
        assert_eq!(value_of(&argv, "-uuid"), Some("0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10"));
        assert_eq!(run_of(&["-name".to_owned(), "other".to_owned()]), None);
        assert_eq!(run_of(&["-name".to_owned()]), None);
    }

    #[test]
    fn nothing_is_forwarded_at_start_and_nothing_goes_to_a_file() {
        let argv = arguments(&line(&[]), &FDS).join(" ");
        assert!(!argv.contains("hostfwd"), "{argv}");
        assert!(!argv.contains("-chardev file"), "{argv}");
    }

    #[test]
    fn a_reset_ends_the_guest_until_it_was_ready() {
        let argv = arguments(&line(&[]), &FDS);
        assert_eq!(values(&argv, "-action"), ["reboot=shutdown,shutdown=pause,panic=pause"]);
    }

    #[test]
    fn a_modules_disk_is_attached_only_if_there_is_one() {
        let without = arguments(&line(&[]), &FDS);
        assert_eq!(values(&without, "-blockdev").len(), 1);
        let with = arguments(
            &line(&[]),
            &Descriptors {
                modules: Some(16),
                ..FDS
            },
        );
        assert_eq!(values(&with, "-blockdev").len(), 2);
        assert!(values(&with, "-device").contains(&"virtio-blk-pci,drive=modules,serial=modules"));
    }

    #[test]
    fn kernel_arguments_come_last_and_a_bzimage_gets_no_qboot() {
        let args = ["a=b".to_owned(), "c,d".to_owned()];
        let argv = arguments(
            &Line {
                qboot: false,
                ..line(&args)
            },
            &FDS,
        );
        assert!(values(&argv, "-append")[0].ends_with("cryptomgr.notests no_timer_check a=b c,d"));
        assert!(!argv.contains(&"-bios".to_owned()));
    }

    #[test]
    fn only_an_emulated_timer_goes_unchecked() {
        let argv = arguments(
            &Line {
                accelerator: Accelerator::Kvm,
                ..line(&[])
            },
            &FDS,
        );
        assert!(!values(&argv, "-append")[0].contains("no_timer_check"));
    }

    #[test]
    fn the_mac_address_stays_with_the_uid() {
        assert_eq!(mac("a"), mac("a"));
        assert_ne!(mac("a"), mac("b"));
        assert!(mac("a").starts_with("52:54:00:"));
    }

    #[test]
    fn the_blockdev_documents_are_json() {
        let with = Descriptors {
            modules: Some(16),
            ..FDS
        };
        for text in values(&arguments(&line(&[]), &with), "-blockdev") {
            serde_json::from_str::<serde_json::Value>(text).expect("json");
        }
    }
}
