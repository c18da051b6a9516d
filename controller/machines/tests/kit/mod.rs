//! What tests of real VMMs share. A kit is a directory of machines that nobody else uses; when it goes,
//! its VMMs go. What a killed test left behind is swept by the next one.

// Every test takes what it needs of this.
#![allow(dead_code)]

pub mod kernel;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::sync::mpsc;
use vmlet_init::config::{GuestConfig, ImageProcess, InitMode, Network};
use vmlet_machines::{
    Config, Goal, MachineSpec, Machines, Observation, Phase, PortForward, Protocol, Termination, TerminationReason,
};

const PREFIX: &str = "vmlet-machines-test-";
const LOCK: &str = "lock";

/// Files for machines, and the machines.
pub struct Kit {
    pub path: PathBuf,
    pub kernel: PathBuf,
    pub modules: Option<PathBuf>,
    pub base: PathBuf,
    /// Bytes of memory of a machine.
    pub memory: u64,
    /// None: it belongs to the test that started this process.
    own: Option<(tempfile::TempDir, File)>,
}

impl Kit {
    /// With a kernel of a few instructions (see [`kernel`]). None, with a printed word: no QEMU.
    pub fn tiny(code: &[u8]) -> Option<Kit> {
        if vmlet_machines::probe(&Config::new("/nonexistent".into())).qemu.is_err() {
            println!("skipped: no QEMU");
            return None;
        }
        let dir = directory();
        let kernel = dir.0.path().join("kernel");
        std::fs::write(&kernel, kernel::elf(code)).expect("writes");
        let base = dir.0.path().join("base");
        File::create(&base)
            .and_then(|file| file.set_len(1 << 20))
            .expect("makes a base");
        Some(Kit {
            path: dir.0.path().to_owned(),
            kernel,
            modules: None,
            base,
            memory: 16 << 20,
            own: Some(dir),
        })
    }

    /// The kit of another process, of a tiny kernel.
    pub fn at(path: &Path) -> Kit {
        Kit {
            path: path.to_owned(),
            kernel: path.join("kernel"),
            modules: None,
            base: path.join("base"),
            memory: 16 << 20,
            own: None,
        }
    }

    /// With Linux and a root of busybox. None, with a printed word: something is missing.
    pub fn linux() -> Option<Kit> {
        Kit::linux_with(|_| ())
    }

    /// The same with more in the root.
    pub fn linux_with(fill: impl FnOnce(&Path)) -> Option<Kit> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.exists());
        let (Some(kernel), Some(modules)) = (path("VMLET_TEST_KERNEL"), path("VMLET_TEST_MODULES")) else {
            println!("skipped: VMLET_TEST_KERNEL and VMLET_TEST_MODULES name no files");
            return None;
        };
        let mut kit = Kit::tiny(&[])?;
        let root = kit.path.join("root");
        for sub in ["bin", "dev", "proc", "sys", "etc", "tmp", "run", "lib/modules", "srv"] {
            std::fs::create_dir_all(root.join(sub)).expect("creates");
        }
        if std::fs::copy("/bin/busybox", root.join("bin/busybox")).is_err() {
            println!("skipped: no /bin/busybox");
            return None;
        }
        std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("links");
        fill(&root);
        std::fs::remove_file(&kit.base).expect("replaced");
        if !mke2fs(&root, &kit.base, "64M") {
            println!("skipped: mke2fs made no disk");
            return None;
        }
        (kit.kernel, kit.modules, kit.memory) = (kernel, Some(modules), 256 << 20);
        Some(kit)
    }

    pub fn config(&self) -> Config {
        Config::new(self.path.join("machines"))
    }

    /// A machine that runs this in a shell.
    pub fn spec(&self, command: &str) -> Box<MachineSpec> {
        Box::new(MachineSpec {
            name: "test".into(),
            cpus: 1,
            memory_bytes: self.memory,
            kernel: self.kernel.clone(),
            modules_tar: self.modules.clone(),
            modules_disk: None,
            kernel_initrd: None,
            kernel_digest: "test".into(),
            kernel_args: Vec::new(),
            base_size: std::fs::metadata(&self.base).expect("made").len(),
            base: self.base.clone(),
            base_id: "test-base".into(),
            disk_size: None,
            ephemeral: false,
            ports: vec![port("ssh", None, 22)],
            guest: GuestConfig {
                hostname: "test".into(),
                init: InitMode::Entrypoint,
                image: ImageProcess {
                    entrypoint: ["/bin/busybox", "sh", "-c", command].map(String::from).to_vec(),
                    ..ImageProcess::default()
                },
                network: Some(Network {
                    address: "10.0.2.15/24".into(),
                    gateway: Some("10.0.2.2".into()),
                    dns: Vec::new(),
                }),
                root_serial: "root".into(),
                grow_root: true,
                ..GuestConfig::default()
            },
        })
    }

    pub fn run(&self, run: u64, command: &str) -> Goal {
        Goal::Run {
            run,
            spec: self.spec(command),
        }
    }

    /// An agent on this kit's machines.
    pub async fn open(&self) -> Agent {
        open(self.config()).await
    }

    /// The process ids of the VMMs of this kit.
    pub fn vmms(&self) -> Vec<i32> {
        vmms_below(&self.path)
    }

    pub fn file(&self, uid: &str, name: &str) -> PathBuf {
        self.config().dir.join(uid).join(name)
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        if self.own.is_some() {
            kill_below(&self.path);
        }
    }
}

pub async fn open(config: Config) -> Agent {
    let (wake, wakes) = mpsc::channel(16);
    let machines = Machines::open(config, wake).await.expect("opens");
    Agent { machines, wakes }
}

/// A uid that no other test has.
pub fn uid() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a uuid");
    text.trim().to_owned()
}

pub fn port(name: &str, host_port: Option<u16>, guest_port: u16) -> PortForward {
    PortForward {
        name: name.into(),
        protocol: Protocol::Tcp,
        host_ip: "127.0.0.1".parse().expect("an address"),
        host_port,
        guest_port,
    }
}

pub fn stop(seconds: f64) -> Goal {
    Goal::Stop {
        grace: Duration::from_secs_f64(seconds),
    }
}

pub fn delete(seconds: f64) -> Goal {
    Goal::Delete {
        grace: Duration::from_secs_f64(seconds),
    }
}

pub fn ready(seen: &Observation) -> bool {
    seen.phase == Phase::Running { guest_ready: true } && seen.boot_id.is_some()
}

/// The VMM of the present run lives and answers: its forwards are known.
pub fn answers(seen: &Observation) -> bool {
    !seen.ports.is_empty() && seen.vmm.as_ref().is_some_and(|vmm| vmm.pid.is_some())
}

pub fn pid(seen: &Observation) -> i32 {
    seen.vmm.as_ref().and_then(|vmm| vmm.pid).expect("a living VMM")
}

pub fn signal(pid: i32, signal: i32) {
    // SAFETY: a system call on numbers; the pid is of a child of this test that was not reaped.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "signal {signal} to {pid}");
}

/// An agent in this process, with the machines that it manages.
pub struct Agent {
    pub machines: Machines,
    wakes: mpsc::Receiver<String>,
}

impl Agent {
    pub fn apply(&self, uid: &str, goal: Goal) {
        self.machines.apply(uid, goal);
    }

    pub fn seen(&self, uid: &str) -> Observation {
        self.machines.observe(uid).expect("known")
    }

    /// Waits until what is seen of a machine is so; says what was seen last, and the console, when it never is.
    pub async fn wait(&mut self, uid: &str, what: &str, done: impl Fn(&Observation) -> bool) -> Observation {
        let until = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(seen) = self.machines.observe(uid).filter(|seen| done(seen)) {
                return seen;
            }
            if tokio::time::timeout_at(until, self.wakes.recv()).await.is_err() {
                let seen = self.machines.observe(uid);
                panic!(
                    "never {what}; last seen: {seen:#?}\nconsole: {}",
                    self.console(uid).await
                );
            }
        }
    }

    /// Runs, and has been ready in this run; an end instead fails with what is known of it.
    pub async fn wait_ready(&mut self, uid: &str, run: u64) -> Observation {
        let over = |seen: &Observation| {
            seen.run == run && (ready(seen) || seen.termination.as_ref().is_some_and(|t| t.run == run))
        };
        let seen = self.wait(uid, "ready", over).await;
        assert!(ready(&seen), "{seen:#?}\nconsole: {}", self.console(uid).await);
        seen
    }

    /// The end of a run, its VMM gone.
    pub async fn wait_end(&mut self, uid: &str, run: u64) -> Termination {
        let seen = self
            .wait(uid, "ended", |seen| {
                seen.termination.as_ref().is_some_and(|t| t.run == run) && seen.phase == Phase::Stopped
            })
            .await;
        seen.termination.expect("an end")
    }

    /// The same when it is to be of this reason.
    pub async fn expect_end(&mut self, uid: &str, run: u64, reason: TerminationReason) -> Termination {
        let end = self.wait_end(uid, run).await;
        assert_eq!(end.reason, reason, "{end:?}\nconsole: {}", self.console(uid).await);
        end
    }

    pub async fn console(&self, uid: &str) -> String {
        let chunk = self.machines.console(uid, 0).await.ok().flatten();
        String::from_utf8_lossy(&chunk.map(|chunk| chunk.bytes).unwrap_or_default()).into_owned()
    }

    /// Waits until the console holds this.
    pub async fn wait_console(&self, uid: &str, text: &str) -> String {
        let until = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            let console = self.console(uid).await;
            if console.contains(text) {
                return console;
            }
            assert!(
                tokio::time::Instant::now() < until,
                "the console never said {text:?}; it said: {console}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn delete(&mut self, uid: &str) {
        let lost = |seen: &Observation| matches!(seen.phase, Phase::Unmanageable { .. });
        let was_lost = self.machines.observe(uid).is_some_and(|seen| lost(&seen));
        self.apply(uid, delete(0.0));
        self.wait(uid, "deleted", |seen| {
            assert!(
                was_lost || !lost(seen),
                "nobody talks to a VMM that is being killed: {seen:#?}"
            );
            seen.phase == Phase::Deleted
        })
        .await;
    }
}

pub fn mke2fs(root: &Path, to: &Path, size: &str) -> bool {
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .arg(root)
        .arg(to)
        .arg(size)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output();
    made.is_ok_and(|output| output.status.success())
}

/// Runs tests of this program once more as an ordinary user (65534), with all that they need where that
/// user can reach it. None, with a printed word: this is one already.
pub fn as_ordinary_user(arguments: &[&str]) -> Option<String> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: this is an ordinary user already");
        return None;
    }
    let (dir, _lock) = directory();
    let path = dir.path();
    let mut command = Command::new(path.join("test"));
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("sets");
    std::fs::copy(std::env::current_exe().expect("this test"), path.join("test")).expect("copies");
    for name in ["VMLET_TEST_KERNEL", "VMLET_TEST_MODULES"] {
        if let Some(file) = std::env::var_os(name).filter(|file| Path::new(file).exists()) {
            let copy = path.join(name);
            std::fs::copy(file, &copy).expect("copies");
            command.env(name, copy);
        }
    }
    let tmp = path.join("tmp");
    std::fs::create_dir(&tmp).expect("creates");
    std::os::unix::fs::chown(&tmp, Some(65534), Some(65534)).expect("gives");
    let output = command
        .args(arguments)
        .arg("--nocapture")
        .env("TMPDIR", &tmp)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    Some(text)
}

fn directory() -> (tempfile::TempDir, File) {
    sweep();
    let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a directory");
    let lock = File::create(dir.path().join(LOCK)).expect("creates");
    lock.lock().expect("nobody else knows it");
    (dir, lock)
}

/// What is left of tests that were killed: their directory is there and nobody holds its lock.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // One that is just being made has no lock yet.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            kill_below(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

fn kill_below(dir: &Path) {
    for pid in vmms_below(dir) {
        // SAFETY: a system call on numbers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

fn vmms_below(dir: &Path) -> Vec<i32> {
    let mine = std::process::id() as i32;
    let mut found = HashSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid == mine || !cmdline.split(|b| *b == 0).any(|word| word == b"-uuid") {
            continue;
        }
        let files = std::fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let below = files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.starts_with(dir));
        if below {
            found.insert(pid);
        }
    }
    found.into_iter().collect()
}
