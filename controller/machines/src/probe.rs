//! What this host can do for machines, and what to do about what it cannot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::Config;
use crate::qemu::argv::Accelerator;

/// Which accelerator is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM where it can be used, TCG otherwise.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Translation.
    Tcg,
}

/// What was found on this host.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The QEMU, or why there is none.
    pub qemu: Result<Qemu, String>,
    /// Whether KVM can be used, or why not.
    pub kvm: Result<(), String>,
    /// The accelerator that machines get, or why there is none.
    pub accelerator: Result<Accelerator, String>,
    /// What a person should know, each with a remedy where there is one.
    pub findings: Vec<Finding>,
}

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// `7.2.22`.
    pub version: String,
    /// Whether qboot.rom lies beside its other firmware.
    pub qboot: bool,
}

/// One thing to know about this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A word for it: `QEMU`, `KVM`, `Cgroups`, `Isolation`, `Lingering`.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Machines run, something is missing.
    Warning,
    /// No machine can run.
    Failure,
}

impl HostFacts {
    /// The group that may open /dev/kvm, where machines use it.
    pub fn kvm_group(&self) -> Option<u32> {
        use std::os::unix::fs::MetadataExt;
        match self.accelerator {
            Ok(Accelerator::Kvm) => Some(std::fs::metadata("/dev/kvm").ok()?.gid()),
            _ => None,
        }
    }
}

/// Looks at this host. Runs `qemu --version` (some 20 ms) and changes nothing.
pub fn probe(config: &Config) -> HostFacts {
    let qemu = find_qemu(config.qemu.as_deref());
    let kvm = kvm_usable(
        &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
        &|path| path.exists(),
        &|path| rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok(),
    );
    let accelerator = match (config.accelerator, &kvm) {
        (AcceleratorChoice::Tcg, _) => Ok(Accelerator::Tcg),
        (_, Ok(())) => Ok(Accelerator::Kvm),
        (AcceleratorChoice::Auto, Err(_)) => Ok(Accelerator::Tcg),
        (AcceleratorChoice::Kvm, Err(why)) => Err(why.clone()),
    };
    let mut findings = vec![qemu_finding(&qemu), kvm_finding(config.accelerator, &kvm)];
    findings.extend(isolation_findings(config));
    HostFacts {
        qemu,
        kvm,
        accelerator,
        findings,
    }
}

fn find_qemu(configured: Option<&Path>) -> Result<Qemu, String> {
    let path = match configured {
        Some(path) => path.to_owned(),
        None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join("qemu-system-x86_64"))
            .find(|path| path.is_file())
            .ok_or("qemu-system-x86_64 is not in PATH")?,
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be executed: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text)
        .ok_or_else(|| format!("{} --version says no version ({})", path.display(), output.status))?;
    Ok(Qemu {
        qboot: has_qboot(&path),
        path,
        version,
    })
}

fn parse_version(text: &str) -> Option<String> {
    let word = text.split("version ").nth(1)?.split_whitespace().next()?;
    word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.to_owned())
}

fn has_qboot(qemu: &Path) -> bool {
    let beside = qemu
        .parent()
        .and_then(Path::parent)
        .map(|prefix| prefix.join("share/qemu"));
    beside
        .into_iter()
        .chain([PathBuf::from("/usr/share/qemu"), PathBuf::from("/usr/share/qboot")])
        .any(|dir| dir.join("qboot.rom").is_file())
}

/// /dev/kvm that opens is not enough: kvm_pvm opens and boots no stock kernel.
fn kvm_usable(cpuinfo: &str, exists: &dyn Fn(&Path) -> bool, may_open: &dyn Fn(&Path) -> bool) -> Result<(), String> {
    let device = Path::new("/dev/kvm");
    if !exists(device) {
        return Err("there is no /dev/kvm".to_owned());
    }
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Err("the processor shows neither vmx nor svm".to_owned());
    }
    if exists(Path::new("/sys/module/kvm_pvm")) {
        return Err("the host's KVM is kvm_pvm, which boots no stock kernel".to_owned());
    }
    if !may_open(device) {
        return Err("/dev/kvm may not be opened by this user".to_owned());
    }
    Ok(())
}

fn qemu_finding(qemu: &Result<Qemu, String>) -> Finding {
    match qemu {
        Ok(qemu) => Finding {
            name: "QEMU",
            level: if qemu.qboot { Level::Ok } else { Level::Warning },
            message: format!("QEMU {} at {}", qemu.version, qemu.path.display()),
            remedy: (!qemu.qboot).then(|| {
                "qboot.rom was not found; machines boot by SeaBIOS, which is slower. On Debian: apt install qemu-system-data".to_owned()
            }),
        },
        Err(why) => Finding {
            name: "QEMU",
            level: Level::Failure,
            message: why.clone(),
            remedy: Some("install it (Debian: apt install qemu-system-x86), or put its directory into PATH".to_owned()),
        },
    }
}

fn kvm_finding(choice: AcceleratorChoice, kvm: &Result<(), String>) -> Finding {
    let (level, message, remedy) = match (kvm, choice) {
        (Ok(()), _) => (Level::Ok, "KVM can be used".to_owned(), None),
        (Err(why), AcceleratorChoice::Tcg) => (Level::Ok, format!("not asked for ({why})"), None),
        (Err(why), AcceleratorChoice::Auto) => (
            Level::Warning,
            format!("{why}; machines run by translation (TCG), several times slower"),
            Some(remedy_for_kvm(why)),
        ),
        (Err(why), AcceleratorChoice::Kvm) => (Level::Failure, why.clone(), Some(remedy_for_kvm(why))),
    };
    Finding {
        name: "KVM",
        level,
        message,
        remedy,
    }
}

fn remedy_for_kvm(why: &str) -> String {
    if why.contains("may not be opened") {
        "add this user to the group that owns /dev/kvm (often `kvm`), and log in again".to_owned()
    } else {
        "enable virtualisation in the firmware, or nested virtualisation where this host is a guest itself".to_owned()
    }
}

fn isolation_findings(config: &Config) -> Vec<Finding> {
    let finding = |name, ok: bool, good: &str, bad: &str, remedy: &str| Finding {
        name,
        level: if ok { Level::Ok } else { Level::Warning },
        message: if ok { good } else { bad }.to_owned(),
        remedy: (!ok).then(|| remedy.to_owned()),
    };
    let root = rustix::process::geteuid().is_root();
    let groups = config.isolate && crate::cgroup::Cgroups::find().available();
    let mut findings = vec![
        finding(
            "Cgroups",
            groups,
            "every machine has a cgroup of its own",
            "machines have no cgroup of their own: no memory limit, and OOMKilled cannot be told",
            "run the agent as root, where cgroups can be written",
        ),
        finding(
            "Isolation",
            root && config.isolate,
            "every machine runs as a user of its own",
            "machines run as the agent's own user",
            "run the agent as root",
        ),
    ];
    let user = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(ok) = lingers(user, &passwd, &|path| path.exists()) {
        findings.push(finding(
            "Lingering",
            ok,
            "machines run on after this user's last session",
            "systemd may end this user's processes, machines among them, with the last session",
            "loginctl enable-linger",
        ));
    }
    findings
}

/// Whether the processes of an ordinary user outlive a session. None: nobody would end them, as of root.
fn lingers(user: u32, passwd: &str, exists: &dyn Fn(&Path) -> bool) -> Option<bool> {
    if user == 0 || !exists(Path::new("/run/systemd/system")) {
        return None;
    }
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then_some(name)
    });
    Some(name.is_some_and(|name| exists(&Path::new("/var/lib/systemd/linger").join(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(cpuinfo: &str, there: &[&str], open: bool) -> Result<(), String> {
        kvm_usable(cpuinfo, &|p| there.iter().any(|t| Path::new(t) == p), &|_| open)
    }

    #[test]
    fn a_device_that_opens_is_not_enough_for_kvm() {
        let vmx = "processor: 0\nflags\t\t: fpu vmx sse\n";
        let all = ["/dev/kvm"];
        assert_eq!(kvm(vmx, &all, true), Ok(()));
        for (cpuinfo, there, open, word) in [
            (vmx, &[][..], true, "no /dev/kvm"),
            ("flags : fpu svmx\n", &all, true, "neither vmx nor svm"),
            (vmx, &["/dev/kvm", "/sys/module/kvm_pvm"], true, "kvm_pvm"),
            (vmx, &all, false, "may not be opened"),
        ] {
            let why = kvm(cpuinfo, there, open).expect_err("unusable");
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn an_ordinary_user_under_systemd_is_told_about_lingering() {
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        let there = |all: &'static [&str]| move |path: &Path| all.iter().any(|p| Path::new(p) == path);
        let (systemd, both) = (
            there(&["/run/systemd/system"]),
            there(&["/run/systemd/system", "/var/lib/systemd/linger/me"]),
        );
        assert_eq!(lingers(1000, passwd, &systemd), Some(false));
        assert_eq!(lingers(1000, passwd, &both), Some(true));
        assert_eq!(lingers(1001, passwd, &both), Some(false));
        assert_eq!(lingers(0, passwd, &systemd), None);
        assert_eq!(lingers(1000, passwd, &there(&[])), None);
    }

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("usage: true"), None);
    }

    #[test]
    fn a_missing_qemu_comes_with_a_remedy() {
        let facts = probe(&Config {
            qemu: Some("/nonexistent/qemu".into()),
            ..Config::new("/nonexistent".into())
        });
        let finding = &facts.findings[0];
        assert_eq!((finding.name, finding.level), ("QEMU", Level::Failure));
        assert!(finding.message.contains("/nonexistent/qemu") && finding.remedy.is_some());
        for finding in facts.findings.iter().filter(|finding| finding.level != Level::Ok) {
            assert!(finding.remedy.is_some(), "{finding:?}");
        }
    }
}
