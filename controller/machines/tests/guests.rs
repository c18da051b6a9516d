//! Real guests with Linux: what runs in them and as whom, how they end, and what becomes of their disks.
//! Needs what `boot.rs` needs.

mod kit;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use kit::{Kit, pid, signal, stop, uid};
use vmlet_init::config::{Content, EnvVar, GuestFile};
use vmlet_machines::{Goal, MachineSpec, Phase, Terminal, TerminalError, TerminationReason as Reason};

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn run(run: u64, spec: &MachineSpec) -> Goal {
    Goal::Run {
        run,
        spec: Box::new(spec.clone()),
    }
}

fn users(root: &Path) {
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:77:78::/srv:/bin/sh\n",
    )
    .expect("writes");
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:78:\nlog:x:79:app\n").expect("writes");
}

const TELL: &str =
    r#"echo "[$(busybox id -u):$(busybox id -g):$(busybox id -G)] [$PWD] [$A] [$B] [$HOME] [$0] [$*]"; exit 3"#;

#[tokio::test]
async fn a_workload_runs_as_the_images_user_with_the_command_of_a_pod() {
    let Some(kit) = Kit::linux_with(users) else { return };
    let mut agent = kit.open().await;
    let env = |name: &str, value: &str| EnvVar {
        name: name.into(),
        value: value.into(),
    };
    let mut named = kit.spec("");
    let image = &mut named.guest.image;
    image.entrypoint = words(&["sh", "-c", TELL]);
    image.cmd = words(&["zero", "one"]);
    image.env = words(&["PATH=/bin", "A=image", "B=image"]);
    image.user = "app".into();
    image.working_dir = "/srv".into();
    named.guest.env = vec![env("A", "mine")];
    // Command and args replace both; a reference is expanded; a user that nobody knows is a number.
    let mut numeric = named.clone();
    numeric.guest.image.user = "1000:2000".into();
    numeric.guest.image.working_dir = "/srv/made".into();
    numeric.guest.command = Some(words(&["/bin/sh", "-c", TELL]));
    numeric.guest.args = Some(words(&["cmd", "$(A)", "$$(A)", "$(NOBODY)"]));
    // An initrd of the kernel's own: its init is not the one that runs.
    let own = kit.path.join("own.cpio");
    let mut archive = vmlet_init::cpio::Writer::new();
    archive.file("init", 0o755, b"#!/nothing\n");
    std::fs::write(&own, archive.finish()).expect("written");
    numeric.kernel_initrd = Some(own);
    for (spec, told) in [
        (named, "[77:78:78 79] [/srv] [mine] [image] [/srv] [zero] [one]"),
        (
            numeric,
            "[1000:2000:2000] [/srv/made] [mine] [image] [/] [cmd] [mine $(A) $(NOBODY)]",
        ),
    ] {
        let uid = uid();
        agent.apply(&uid, run(1, &spec));
        let end = agent.expect_end(&uid, 1, Reason::Error).await;
        assert_eq!(end.exit_code, Some(3), "{end:?}");
        let console = agent.console(&uid).await;
        assert!(console.contains(told), "{told}: {console}");
        agent.delete(&uid).await;
    }
}

#[tokio::test]
async fn a_guest_that_cannot_go_on_powers_off_and_says_why() {
    let Some(kit) = Kit::linux() else { return };
    let mut agent = kit.open().await;
    let mut cases = Vec::new();
    let mut case = |why: &'static str, code: Option<i32>, change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = kit.spec("exit 0");
        change(&mut spec);
        cases.push((uid(), spec, why, code));
    };
    case(
        "CannotExecute: /bin/absent: not found in the image",
        Some(127),
        &|spec| {
            spec.guest.command = Some(words(&["/bin/absent"]));
        },
    );
    case("SetupFailed: the image's /etc/passwd has no user", None, &|spec| {
        spec.guest.image.user = "nobody-here".into();
    });
    case("NothingToRun: the image has no entrypoint", None, &|spec| {
        spec.guest.image = Default::default();
        spec.guest.init = Default::default();
    });
    case("SetupFailed", None, &|spec| {
        spec.guest.files = vec![GuestFile {
            path: "/bin/busybox/below/a/file".into(),
            content: Content(b"x".to_vec()),
            mode: 0o644,
            uid: 0,
            gid: 0,
        }];
    });
    let zeros = kit.path.join("zeros");
    std::fs::File::create(&zeros)
        .and_then(|file| file.set_len(64 << 20))
        .expect("makes");
    case("RootNotMountable", None, &|spec| {
        spec.base = zeros.clone();
        spec.base_id = "zeros".into();
    });
    for (uid, spec, why, code) in &cases {
        agent.apply(uid, run(1, spec));
        let end = agent.expect_end(uid, 1, Reason::BootFailed).await;
        assert!(end.message.starts_with(why), "{why}: {}", end.message);
        assert_eq!(end.exit_code, *code, "{end:?}");
        agent.delete(uid).await;
    }
}

#[tokio::test]
async fn halt_and_power_off_inside_are_clean_ends_and_a_panic_is_none() {
    let Some(kit) = Kit::linux() else { return };
    let mut agent = kit.open().await;
    for (command, reason) in [
        ("busybox halt; busybox sleep 1000", Reason::Completed),
        ("echo c >/proc/sysrq-trigger; busybox sleep 1000", Reason::GuestPanic),
    ] {
        let uid = uid();
        agent.apply(&uid, kit.run(1, command));
        agent.expect_end(&uid, 1, reason).await;
        agent.delete(&uid).await;
    }
    assert_eq!(kit.vmms(), Vec::<i32>::new());
}

/// Says on each boot of a disk the how manieth it is. The first one reboots; only the third one syncs nothing.
const COUNT: &str = r#"
    n=$(busybox cat /srv/boots 2>/dev/null || echo 0); n=$((n+1)); echo $n >/srv/boots
    echo "boot $n of $(busybox cat /etc/machine-id) $(busybox cat /etc/key)"
    [ $n = 3 ] || busybox sync
    [ $n = 1 ] && busybox reboot
    busybox sleep 1000"#;

#[tokio::test]
async fn an_ephemeral_disk_is_thrown_away_at_a_declared_start_and_never_else() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec(COUNT);
    spec.guest.machine_id = "0123456789abcdef0123456789abcdef".into();
    spec.guest.files = vec![GuestFile {
        path: "/etc/key".into(),
        content: Content(b"host-key".to_vec()),
        mode: 0o600,
        uid: 0,
        gid: 0,
    }];
    let same = "of 0123456789abcdef0123456789abcdef host-key";
    // A reboot inside: the same VMM, the same disk, another boot.
    agent.apply(&uid, run(1, &spec));
    agent.wait_console(&uid, &format!("boot 2 {same}")).await;
    let seen = agent
        .wait(&uid, "rebooted", |seen| seen.reboots == 1 && kit::ready(seen))
        .await;
    let first = pid(&seen);

    // An agent that comes later, and a crash.
    drop(agent);
    let mut agent = kit.open().await;
    let adopted = agent.wait_ready(&uid, 1).await;
    assert_eq!(
        (pid(&adopted), &adopted.boot_id, adopted.reboots),
        (first, &seen.boot_id, 1)
    );
    signal(first, libc::SIGKILL);
    agent.expect_end(&uid, 1, Reason::VmmDied).await;
    agent.apply(&uid, run(2, &spec));
    agent.wait_console(&uid, &format!("boot 3 {same}")).await;

    // Graceful: what was written and not synced is there afterwards.
    agent.wait_ready(&uid, 2).await;
    agent.apply(&uid, stop(30.0));
    agent.expect_end(&uid, 2, Reason::Stopped).await;
    agent.apply(&uid, run(3, &spec));
    agent.wait_console(&uid, &format!("boot 4 {same}")).await;

    // The declared restart.
    agent.apply(&uid, stop(0.0));
    agent.wait_end(&uid, 3).await;
    spec.ephemeral = true;
    agent.apply(&uid, run(4, &spec));
    agent.wait_console(&uid, &format!("boot 1 {same}")).await;
    // Its own reboot is none.
    agent.wait_console(&uid, &format!("boot 2 {same}")).await;
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_disk_whose_growth_was_cut_off_grows_at_the_next_start() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec(
        "busybox dmesg | busybox grep -i ext4; busybox df -m / | busybox tail -1; echo size told; busybox sleep 1000",
    );
    spec.disk_size = Some(100 << 30);
    spec.kernel_args = words(&["loglevel=7"]);
    agent.apply(&uid, run(1, &spec));
    agent.wait_console(&uid, "resizing filesystem").await;
    let vmm = kit.vmms();
    signal(vmm[0], libc::SIGKILL);
    let end = agent.wait_end(&uid, 1).await;
    assert_eq!(end.reason, Reason::VmmDied, "{end:?}");
    let console = agent.console(&uid).await;
    assert!(
        !console.contains("size told"),
        "killed too late to be of use: {console}"
    );

    spec.kernel_args.clear();
    agent.apply(&uid, run(2, &spec));
    let console = agent.wait_console(&uid, "size told").await;
    let megabytes = console
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
                .filter(|_| line.trim_end().ends_with('/'))
        })
        .next_back();
    assert!(megabytes.is_some_and(|m| m > 90_000), "{console}");
    assert!(
        !console.contains("BUG") && !console.contains("EXT4-fs error"),
        "{console}"
    );
    agent.wait_ready(&uid, 2).await;
    assert_eq!(agent.seen(&uid).guest_warnings, Vec::<String>::new());
    // It is sound: it can be stopped, and mounted again.
    agent.apply(&uid, stop(30.0));
    agent.expect_end(&uid, 2, Reason::Stopped).await;
    agent.delete(&uid).await;
}

/// A file system of so many MiB for a kit's machines; unmounted when it goes.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(dir: &Path, megabytes: u32) -> Option<Small> {
        std::fs::create_dir_all(dir).expect("creates");
        Small::call(dir, &format!("size={megabytes}m")).then(|| Small(dir.to_owned()))
    }

    fn resize(&self, megabytes: u32) {
        assert!(Small::call(&self.0, &format!("remount,size={megabytes}m")));
    }

    fn call(dir: &Path, options: &str) -> bool {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).output();
        status.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_host_pauses_the_guest_which_goes_on_when_there_is_space() {
    let Some(kit) = Kit::linux() else { return };
    let Some(small) = Small::mount(&kit.config().dir, 40) else {
        println!("skipped: nothing may be mounted here");
        return;
    };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec(
        "busybox dd if=/dev/urandom of=/srv/big bs=64k count=1200 2>/dev/null && busybox sync && echo all written; busybox sleep 1000",
    );
    spec.disk_size = Some(256 << 20);
    agent.apply(&uid, run(1, &spec));
    let paused = agent
        .wait(&uid, "paused", |seen| matches!(seen.phase, Phase::Paused { .. }))
        .await;
    assert!(
        matches!(&paused.phase, Phase::Paused { reason } if reason.contains("no space")),
        "{:?}",
        paused.phase
    );
    small.resize(200);
    agent
        .wait(&uid, "running again", |seen| {
            seen.phase == Phase::Running { guest_ready: true }
        })
        .await;
    agent.wait_console(&uid, "all written").await;
    agent.delete(&uid).await;
    // The VMM, the agent and its log let go of it.
    drop(agent);
}

#[tokio::test]
async fn a_guest_whose_vmm_lost_its_socket_still_stops_gracefully() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, "busybox sleep 1000"));
    agent.wait_ready(&uid, 1).await;
    drop(agent);
    std::fs::remove_file(kit.file(&uid, "monitor.sock")).expect("there");
    let mut agent = kit.open().await;
    agent
        .wait(&uid, "unmanageable", |seen| {
            matches!(seen.phase, Phase::Unmanageable { .. })
        })
        .await;
    agent.apply(&uid, stop(12.0));
    let end = agent.expect_end(&uid, 1, Reason::Stopped).await;
    assert!(end.message.contains("SIGTERM"), "{}", end.message);
    agent.delete(&uid).await;
}

#[tokio::test]
async fn all_modules_are_there_where_the_kernel_has_a_disk_of_them() {
    let Some(kit) = Kit::linux() else { return };
    let Some(disk) = modules_disk(&kit) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec(
        "busybox modprobe vfat && busybox grep vfat /proc/filesystems && busybox grep /lib/modules /proc/mounts && exit 9",
    );
    spec.modules_disk = Some(disk);
    spec.guest.modules_serial = Some("modules".into());
    agent.apply(&uid, run(1, &spec));
    let end = agent.expect_end(&uid, 1, Reason::Error).await;
    assert_eq!(end.exit_code, Some(9), "{}", agent.console(&uid).await);
    let console = agent.console(&uid).await;
    assert!(console.contains(" ext4 ro,nosuid,nodev"), "{console}");
    agent.delete(&uid).await;
}

/// What artefacts come with, made by other means: the modules of one file system and their index.
fn modules_disk(kit: &Kit) -> Option<std::path::PathBuf> {
    if let Some(given) = std::env::var_os("VMLET_TEST_MODULES_DISK") {
        return Some(given.into());
    }
    let to = kit.path.join("modules");
    std::fs::create_dir_all(&to).expect("creates");
    let done = std::process::Command::new("tar")
        .args(["--wildcards", "--strip-components=3", "-xf"])
        .arg(kit.modules.as_ref()?)
        .arg("-C")
        .arg(&to)
        .args(["lib/modules/*/kernel/fs/fat", "lib/modules/*/kernel/fs/nls"])
        .status();
    if !done.is_ok_and(|status| status.success()) {
        println!("skipped: this kernel has fat elsewhere");
        return None;
    }
    std::fs::write(
        to.join("modules.dep"),
        "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/fs/fat/fat.ko:\n",
    )
    .expect("writes");
    let disk = kit.path.join("modules.ext4");
    kit::mke2fs(&to, &disk, "16M").then_some(disk)
}

#[tokio::test]
async fn a_stop_during_the_boot_waits_for_the_guest_to_hear_it() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, "busybox sleep 1000"));
    agent.wait(&uid, "running", kit::answers).await;
    agent.apply(&uid, stop(60.0));
    let begun = std::time::Instant::now();
    agent.expect_end(&uid, 1, Reason::Stopped).await;
    assert!(begun.elapsed() < Duration::from_secs(59));
    agent.delete(&uid).await;
}

#[tokio::test]
async fn what_ignores_its_signal_runs_for_all_of_the_grace_period_and_is_killed_inside() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let stubborn = r#"trap 'while :; do read up idle </proc/uptime; echo "tick $up."; busybox usleep 50000; done' TERM
        echo stubborn; busybox sleep 1000 & wait"#;
    agent.apply(&uid, kit.run(1, stubborn));
    agent.wait_ready(&uid, 1).await;
    agent.wait_console(&uid, "stubborn").await;
    agent.apply(&uid, stop(3.0));
    let end = agent.expect_end(&uid, 1, Reason::Stopped).await;
    assert!(
        end.message.contains("after the grace period was killed"),
        "{}",
        end.message
    );
    let console = agent.console(&uid).await;
    let ticks = console.lines().filter_map(|line| line.trim().strip_prefix("tick "));
    let ticks: Vec<f64> = ticks.filter_map(|tick| tick.strip_suffix('.')?.parse().ok()).collect();
    let ran = ticks.last().unwrap_or(&0.0) - ticks.first().unwrap_or(&0.0);
    assert!((2.5..5.0).contains(&ran), "{ran} s of 3 s: {console}");
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_grace_period_that_is_shortened_ends_in_the_guest_too() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let stubborn = "trap 'echo asked' TERM; echo stubborn; while :; do busybox usleep 50000; done";
    agent.apply(&uid, kit.run(1, stubborn));
    agent.wait_ready(&uid, 1).await;
    agent.wait_console(&uid, "stubborn").await;
    agent.apply(&uid, stop(600.0));
    agent.wait_console(&uid, "asked").await;
    agent.apply(&uid, stop(1.0));
    let end = agent.expect_end(&uid, 1, Reason::Stopped).await;
    let killed_inside = end.message.contains("after the grace period was killed");
    assert!(killed_inside, "{}", end.message);
    agent.delete(&uid).await;
}

/// Types `line` and reads until the guest has said `until`.
fn type_in(terminal: &mut Terminal, line: &str, until: &str) -> String {
    let stream = &mut terminal.stream;
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .expect("a socket");
    stream.write_all(format!("{line}\n").as_bytes()).expect("types");
    let (mut said, mut buffer) = (String::new(), [0u8; 512]);
    while !said.contains(until) {
        let count = stream.read(&mut buffer).expect("the guest answers");
        assert_ne!(count, 0, "the console ended; it said: {said}");
        said += &String::from_utf8_lossy(&buffer[..count]);
    }
    said
}

#[tokio::test]
async fn the_interactive_console_has_a_shell_that_holds_up_no_stop() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let dir = kit.config().dir;
    agent.apply(&uid, kit.run(1, "echo the log >/dev/console; sleep 1000"));
    agent.wait_ready(&uid, 1).await;
    let mut terminal = Terminal::open(&dir, &uid).expect("opens");
    // The echo of what is typed is not the answer.
    type_in(&mut terminal, "echo pid $((40+2)) of $(busybox id -u)", "pid 42 of 0");
    // Another shell comes after the first.
    type_in(&mut terminal, "A=1; exit", "Press Enter");
    type_in(&mut terminal, "echo A=[$A] on $(busybox tty)", "A=[] on /dev/hvc0");
    assert!(matches!(Terminal::open(&dir, &uid), Err(TerminalError::Busy { .. })));
    // A session ends and the guest does not notice; the agent goes, and the console stays.
    drop(terminal);
    drop(agent);
    let mut agent = kit.open().await;
    agent.wait_ready(&uid, 1).await;
    let mut terminal = Terminal::open(&dir, &uid).expect("opens again");
    type_in(&mut terminal, "echo $((6*7)) again", "42 again");
    // Nothing of it is in the log.
    let log = agent.wait_console(&uid, "the log").await;
    assert!(!log.contains("again"), "{log}");

    agent.apply(&uid, stop(100.0));
    let begun = std::time::Instant::now();
    agent.expect_end(&uid, 1, Reason::Stopped).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    terminal
        .stream
        .read_to_end(&mut Vec::new())
        .expect("ends with the machine");
    drop(terminal);
    assert!(matches!(Terminal::open(&dir, &uid), Err(TerminalError::NotRunning)));
    agent.delete(&uid).await;
    assert!(matches!(Terminal::open(&dir, &uid), Err(TerminalError::Absent { .. })));
}

#[tokio::test]
async fn a_bare_shell_is_on_the_interactive_console_and_its_exit_ends_the_machine() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec("");
    spec.guest.image.entrypoint = words(&["/bin/sh"]);
    agent.apply(&uid, run(1, &spec));
    agent.wait_ready(&uid, 1).await;
    let mut terminal = Terminal::open(&kit.config().dir, &uid).expect("opens");
    type_in(&mut terminal, "echo it is $((1+1))", "it is 2");
    terminal.stream.write_all(b"exit 9\n").expect("types");
    let end = agent.expect_end(&uid, 1, Reason::Error).await;
    assert_eq!(end.exit_code, Some(9), "{end:?}");
}
