//! One real VM through its life. Needs QEMU, mke2fs, a static busybox, and a kernel:
//! `VMLET_TEST_KERNEL` (bzImage or vmlinux) and `VMLET_TEST_MODULES` (tar of lib/modules/<version>).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::sync::mpsc;
use vmlet_init::config::{GuestConfig, ImageProcess, InitMode, Network};
use vmlet_machines::{
    Config, Goal, MachineSpec, Machines, Observation, Phase, PortForward, Protocol, TerminationReason,
};

const UID: &str = "0b8e0c3e-6f4e-4a53-9a51-1d6f3f1f2a10";

struct Kit {
    dir: tempfile::TempDir,
    kernel: PathBuf,
    modules: PathBuf,
}

fn kit() -> Option<Kit> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.exists());
    let (Some(kernel), Some(modules)) = (path("VMLET_TEST_KERNEL"), path("VMLET_TEST_MODULES")) else {
        println!("skipped: VMLET_TEST_KERNEL and VMLET_TEST_MODULES name no files");
        return None;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    for sub in ["bin", "dev", "proc", "sys", "etc", "tmp", "run", "lib/modules"] {
        std::fs::create_dir_all(root.join(sub)).expect("creates");
    }
    if std::fs::copy("/bin/busybox", root.join("bin/busybox")).is_err() {
        println!("skipped: no /bin/busybox");
        return None;
    }
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
        .arg(&root)
        .arg(dir.path().join("base"))
        .arg("64M")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: mke2fs made no disk");
        return None;
    }
    Some(Kit { dir, kernel, modules })
}

impl Kit {
    fn config(&self) -> Config {
        Config::new(self.dir.path().join("machines"))
    }

    fn spec(&self, command: &str) -> Box<MachineSpec> {
        let base = self.dir.path().join("base");
        Box::new(MachineSpec {
            name: "test".into(),
            cpus: 1,
            memory_bytes: 256 << 20,
            kernel: self.kernel.clone(),
            modules_tar: Some(self.modules.clone()),
            modules_disk: None,
            kernel_digest: "test".into(),
            kernel_args: Vec::new(),
            base_size: std::fs::metadata(&base).expect("made").len(),
            base,
            base_id: "test-base".into(),
            disk_size: None,
            ephemeral: false,
            ports: vec![PortForward {
                name: "ssh".into(),
                protocol: Protocol::Tcp,
                host_ip: "127.0.0.1".parse().expect("an address"),
                host_port: None,
                guest_port: 22,
            }],
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
}

async fn wait(
    machines: &Machines,
    wakes: &mut mpsc::Receiver<String>,
    what: &str,
    done: impl Fn(&Observation) -> bool,
) -> Observation {
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let seen = machines.observe(UID).expect("known");
        if done(&seen) {
            return seen;
        }
        if tokio::time::timeout_at(until, wakes.recv()).await.is_err() {
            let log = machines.console(UID, 0).await.expect("reads");
            let log = log.map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned());
            machines.apply(UID, Goal::Delete { grace: Duration::ZERO });
            tokio::time::sleep(Duration::from_secs(2)).await;
            panic!(
                "never {what}; last seen: {seen:#?}\nconsole: {}",
                log.unwrap_or_default()
            );
        }
    }
}

fn ready(seen: &Observation) -> bool {
    seen.phase == Phase::Running { guest_ready: true } && seen.boot_id.is_some()
}

async fn open(config: Config) -> (Machines, mpsc::Receiver<String>) {
    let (wake, wakes) = mpsc::channel(16);
    (Machines::open(config, wake).await.expect("opens"), wakes)
}

#[tokio::test]
async fn a_machine_runs_is_adopted_stopped_and_deleted() {
    let Some(kit) = kit() else { return };
    let (machines, mut wakes) = open(kit.config()).await;
    if machines.facts().qemu.is_err() {
        println!("skipped: no QEMU");
        return;
    }
    let run = |run, command| Goal::Run {
        run,
        spec: kit.spec(command),
    };
    machines.apply(UID, run(1, "echo hello from the guest >/dev/console; sleep 1000"));
    let first = wait(&machines, &mut wakes, "ready", |seen| {
        ready(seen) || seen.termination.is_some()
    })
    .await;
    assert!(ready(&first), "{first:#?}");
    assert!(first.ports[0].host_port.is_some(), "{:?}", first.ports);
    println!("timings {:?}", first.timings);

    // The agent goes; the VM does not notice.
    drop((machines, wakes));
    let begun = std::time::Instant::now();
    let (machines, mut wakes) = open(kit.config()).await;
    println!("adoption with probing {:?}", begun.elapsed());
    let adopted = wait(&machines, &mut wakes, "adopted", ready).await;
    assert_eq!(adopted.boot_id, first.boot_id);
    assert_eq!(adopted.vmm, first.vmm);
    assert_eq!(adopted.ports, first.ports);

    // So it is when its record is lost.
    drop((machines, wakes));
    let record = Path::new(&kit.config().dir).join(UID).join("record.json");
    std::fs::write(&record, "{").expect("tears");
    let (machines, mut wakes) = open(kit.config()).await;
    let adopted = wait(&machines, &mut wakes, "adopted without a record", ready).await;
    assert_eq!((adopted.run, &adopted.boot_id), (1, &first.boot_id));
    assert_eq!(adopted.disk.expect("from the overlay").base_id, "test-base");

    // The ring is drained at the agent's leisure, and tells nobody.
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let log = machines.console(UID, 0).await.expect("reads").expect("known");
        let text = String::from_utf8_lossy(&log.bytes).into_owned();
        if text.contains("hello from the guest") {
            break;
        }
        assert!(
            tokio::time::Instant::now() < until,
            "the console never said hello; it said: {text}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    machines.apply(
        UID,
        Goal::Stop {
            grace: Duration::from_secs(30),
        },
    );
    let stopped = wait(&machines, &mut wakes, "stopped", |seen| seen.phase == Phase::Stopped).await;
    let end = stopped.termination.expect("an end");
    assert_eq!(end.reason, TerminationReason::Stopped, "{end:?}");

    machines.apply(UID, run(2, "exit 7"));
    let ended = wait(&machines, &mut wakes, "ended", |seen| {
        seen.run == 2 && seen.phase == Phase::Stopped
    })
    .await;
    let end = ended.termination.expect("an end");
    assert_eq!(
        (end.run, end.reason, end.exit_code),
        (2, TerminationReason::Error, Some(7)),
        "{end:?}"
    );

    machines.apply(UID, Goal::Delete { grace: Duration::ZERO });
    wait(&machines, &mut wakes, "deleted", |seen| seen.phase == Phase::Deleted).await;
    assert!(!kit.config().dir.join(UID).exists());
    assert_eq!(machines.list(), Vec::<String>::new());
}
