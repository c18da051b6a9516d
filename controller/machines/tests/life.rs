//! Real QEMUs with kernels of a few instructions: starts, ends, adoption and ports, without Linux.

mod kit;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kit::{Kit, answers, delete, kernel, pid, port, signal, stop, uid};
use vmlet_machines::{Config, Goal, Milestone, Phase, Terminal, TerminalError, TerminationReason as Reason};

#[tokio::test]
async fn a_guest_that_powers_off_or_resets_before_it_is_ready_failed_to_boot() {
    for code in [kernel::POWER_OFF, kernel::RESET] {
        let Some(kit) = Kit::tiny(code) else { return };
        let (mut agent, uid) = (kit.open().await, uid());
        agent.apply(&uid, kit.run(1, ""));
        let end = agent.expect_end(&uid, 1, Reason::BootFailed).await;
        assert!(end.message.contains("console log"), "{}", end.message);
        assert_eq!(kit.vmms(), Vec::<i32>::new());
    }
}

#[tokio::test]
async fn a_guest_that_is_never_ready_is_ended_at_its_deadline() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let config = Config {
        guest_deadline: Duration::from_secs(1),
        ..kit.config()
    };
    let (mut agent, uid) = (kit::open(config).await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let end = agent.expect_end(&uid, 1, Reason::BootFailed).await;
    assert!(end.message.contains("not ready within 1 s"), "{}", end.message);
}

#[tokio::test]
async fn a_vmm_that_is_killed_by_somebody_died_and_is_not_started_again_unasked() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let seen = agent.wait(&uid, "running", answers).await;
    signal(pid(&seen), libc::SIGKILL);
    let end = agent.expect_end(&uid, 1, Reason::VmmDied).await;
    assert!(end.message.contains("signal: 9"), "{}", end.message);
    agent.apply(&uid, kit.run(1, ""));
    agent.apply(&uid, kit.run(2, ""));
    let seen = agent
        .wait(&uid, "running again", |seen| seen.run == 2 && answers(seen))
        .await;
    assert_eq!(kit.vmms(), [pid(&seen)]);
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_vmm_that_fails_at_once_did_not_start_and_its_words_are_told() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    std::fs::write(&kit.kernel, "\x7fELFbut no more").expect("writes");
    agent.apply(&uid, kit.run(1, ""));
    let end = agent.expect_end(&uid, 1, Reason::StartFailed).await;
    assert!(
        end.message.contains("exit status: 1") && end.message.contains("kernel"),
        "{}",
        end.message
    );
}

#[tokio::test]
async fn a_configuration_that_no_guest_would_take_is_refused_before_the_start() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec("");
    spec.guest.hostname = "h".repeat(17 << 20);
    agent.apply(&uid, Goal::Run { run: 1, spec });
    let end = agent.expect_end(&uid, 1, Reason::StartFailed).await;
    assert!(
        end.message.contains("put large files into the image"),
        "{}",
        end.message
    );
    agent.delete(&uid).await;
}

/// A program that says it is QEMU, and then does nothing for ever.
fn sleeper(kit: &Kit) -> Config {
    let path = kit.path.join("qemu");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version 0.1' && exit\nexec sleep 1000\n";
    std::fs::write(&path, script).expect("writes");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("sets");
    // Its own user must be able to reach it.
    std::fs::set_permissions(&kit.path, PermissionsExt::from_mode(0o755)).expect("sets");
    Config {
        qemu: Some(path),
        ..kit.config()
    }
}

#[tokio::test]
async fn a_vmm_that_never_answers_is_given_up_at_its_deadline() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let config = Config {
        vmm_deadline: Duration::from_millis(300),
        ..sleeper(&kit)
    };
    let (mut agent, uid) = (kit::open(config).await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let end = agent.expect_end(&uid, 1, Reason::StartFailed).await;
    assert!(end.message.contains("the VMM did not start"), "{}", end.message);
}

#[tokio::test]
async fn who_waits_for_the_disk_of_a_new_machine_then_sees_it() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit::open(sleeper(&kit)).await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let patience = Duration::from_secs(60);
    agent.machines.reached(&uid, 1, Milestone::Disk, patience).await;
    let seen = agent.seen(&uid);
    assert!(seen.disk.is_some(), "{seen:?}");
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_vmm_that_hangs_at_its_start_is_deleted_at_once() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit::open(sleeper(&kit)).await, uid());
    agent.apply(&uid, kit.run(1, ""));
    agent.wait(&uid, "executed", |seen| seen.started_at.is_some()).await;
    let begun = Instant::now();
    agent.delete(&uid).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!kit.config().dir.join(&uid).exists());
}

#[tokio::test]
async fn a_hung_vmm_delays_neither_its_own_stop_nor_another_machine() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let config = Config {
        call_timeout: Duration::from_secs(600),
        ..kit.config()
    };
    let (mut agent, hung, other) = (kit::open(config).await, uid(), uid());
    agent.apply(&hung, kit.run(1, ""));
    let seen = agent.wait(&hung, "running", answers).await;
    signal(pid(&seen), libc::SIGSTOP);
    // A call is under way that is not answered: changed ports make one.
    let mut spec = kit.spec("");
    spec.ports.clear();
    agent.apply(&hung, Goal::Run { run: 1, spec });
    agent.apply(&other, kit.run(1, ""));
    agent.wait(&other, "running", answers).await;
    let begun = Instant::now();
    agent.apply(&hung, stop(1.0));
    agent.expect_end(&hung, 1, Reason::ForcedKill).await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    agent.delete(&other).await;
}

#[tokio::test]
async fn a_stop_before_the_vmm_is_executed_ends_the_run() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    agent.apply(&uid, stop(30.0));
    let seen = agent
        .wait(&uid, "stopped", |seen| {
            seen.phase == Phase::Stopped || seen.phase == Phase::Absent
        })
        .await;
    if let Some(end) = seen.termination {
        assert_eq!((end.run, end.reason), (1, Reason::Stopped), "{}", end.message);
    }
    agent.apply(&uid, kit.run(2, ""));
    agent.wait(&uid, "running", |seen| seen.run == 2 && answers(seen)).await;
    agent.apply(&uid, delete(0.0));
    agent.wait(&uid, "deleted", |seen| seen.phase == Phase::Deleted).await;
    assert_eq!(kit.vmms(), Vec::<i32>::new());
}

#[tokio::test]
async fn after_a_restart_of_the_host_a_run_has_ended_once() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let seen = agent.wait(&uid, "running", answers).await;
    drop(agent);
    signal(pid(&seen), libc::SIGKILL);
    let record = kit.file(&uid, "record.json");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("reads");
    let text = std::fs::read_to_string(&record).expect("reads");
    assert!(text.contains(boot.trim()));
    std::fs::write(&record, text.replace(boot.trim(), "another-boot")).expect("writes");

    let mut agent = kit.open().await;
    let end = agent.expect_end(&uid, 1, Reason::HostReboot).await;
    drop(agent);
    let mut agent = kit.open().await;
    assert_eq!(agent.expect_end(&uid, 1, Reason::HostReboot).await, end, "told once");
    agent.apply(&uid, kit.run(2, ""));
    agent.wait(&uid, "running", |seen| seen.run == 2 && answers(seen)).await;
    assert_eq!(kit.vmms().len(), 1);
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_vmm_of_an_older_vmlet_says_that_it_has_no_interactive_console() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    agent.wait(&uid, "running", answers).await;
    Terminal::open(&kit.config().dir, &uid).expect("it has one");
    // As it was before there were such sockets.
    std::fs::remove_file(kit.file(&uid, "console.sock")).expect("there");
    let error = Terminal::open(&kit.config().dir, &uid).expect_err("none");
    assert!(matches!(error, TerminalError::StartedByOlder), "{error}");
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_vmm_without_its_socket_is_unmanageable_never_started_twice_and_stops() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    let seen = agent.wait(&uid, "running", answers).await;
    drop(agent);
    std::fs::remove_file(kit.file(&uid, "monitor.sock")).expect("there");

    let mut agent = kit.open().await;
    let unmanageable = |seen: &vmlet_machines::Observation| matches!(&seen.phase, Phase::Unmanageable { message } if message.contains("cannot be talked to"));
    let lost = agent.wait(&uid, "unmanageable", unmanageable).await;
    assert_eq!(pid(&lost), pid(&seen));
    agent.apply(&uid, kit.run(2, ""));
    assert_eq!(kit.vmms(), [pid(&seen)]);
    assert_eq!(agent.seen(&uid).run, 1);
    // SIGTERM before the kill: QEMU writes out what it holds. It was never ready, so nobody is asked.
    agent.apply(&uid, stop(2.0));
    let end = agent.expect_end(&uid, 1, Reason::ForcedKill).await;
    assert!(end.message.contains("SIGTERM"), "{}", end.message);
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_vmm_whose_directory_is_gone_is_found_and_can_be_deleted() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(3, ""));
    let seen = agent.wait(&uid, "running", answers).await;
    drop(agent);
    std::fs::remove_dir_all(kit.config().dir.join(&uid)).expect("there");

    let mut agent = kit.open().await;
    let lost = agent.wait(&uid, "found", |seen| seen.run == 3).await;
    assert_eq!(pid(&lost), pid(&seen));
    agent.delete(&uid).await;
    assert_eq!(kit.vmms(), Vec::<i32>::new());
}

#[tokio::test]
async fn another_agents_machines_are_not_adopted() {
    let (Some(kit), Some(other)) = (Kit::tiny(kernel::HALT), Kit::tiny(kernel::HALT)) else {
        return;
    };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    agent.wait(&uid, "running", answers).await;
    let stranger = other.open().await;
    assert_eq!(stranger.machines.list(), Vec::<String>::new());
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_torn_or_foreign_record_is_set_aside_and_its_vmm_adopted() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(5, ""));
    let seen = agent.wait(&uid, "running", answers).await;
    drop(agent);
    for broken in ["{", r#"{"version":1,"uid":"somebody-else"}"#, "\0\0\0"] {
        std::fs::write(kit.file(&uid, "record.json"), broken).expect("writes");
        let mut agent = kit.open().await;
        let found = agent.wait(&uid, "adopted", |seen| seen.phase == Phase::Starting).await;
        assert_eq!((found.run, pid(&found)), (5, pid(&seen)));
        assert!(found.problem.is_some_and(|text| text.contains("set aside")));
        assert_eq!(
            std::fs::read(kit.file(&uid, "record.json.broken")).expect("kept"),
            broken.as_bytes()
        );
    }
    // Neither a directory nor a pipe in its place is more than that.
    std::fs::remove_file(kit.file(&uid, "record.json")).expect("there");
    std::fs::create_dir(kit.file(&uid, "record.json")).expect("made");
    let mut agent = kit.open().await;
    agent.wait(&uid, "adopted", |seen| seen.phase == Phase::Starting).await;
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_taken_port_is_its_own_trouble_and_ports_change_while_the_machine_runs() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let number = taken.local_addr().expect("an address").port();
    let mut spec = kit.spec("");
    spec.ports = vec![port("web", Some(number), 80), port("ssh", None, 22)];
    agent.apply(
        &uid,
        Goal::Run {
            run: 1,
            spec: spec.clone(),
        },
    );
    let seen = agent.wait(&uid, "forwarded", |seen| seen.ports.len() == 2).await;
    let error = seen.ports[0].error.as_deref().expect("taken");
    assert!(error.contains("the port is taken"), "{error}");
    let ssh = seen.ports[1].host_port.expect("a free one");

    // Nobody has to ask again.
    drop(taken);
    agent
        .wait(&uid, "the port that is free now", |seen| seen.ports[0].error.is_none())
        .await;
    spec.ports[0].guest_port = 8080;
    spec.ports.push(port("more", Some(0), 443));
    agent.apply(
        &uid,
        Goal::Run {
            run: 1,
            spec: spec.clone(),
        },
    );
    let seen = agent.wait(&uid, "changed", |seen| seen.ports.len() == 3).await;
    assert_eq!(
        (seen.ports[0].host_port, seen.ports[1].host_port),
        (Some(number), Some(ssh))
    );
    assert!(seen.ports[2].host_port.is_some_and(|port| port != 0));

    spec.ports.truncate(1);
    agent.apply(&uid, Goal::Run { run: 1, spec });
    agent.wait(&uid, "fewer", |seen| seen.ports.len() == 1).await;
    TcpListener::bind(("127.0.0.1", ssh)).expect("nobody listens there now");
    agent.delete(&uid).await;
}

#[tokio::test]
async fn a_low_port_is_a_privilege_of_the_vmm_that_asks_for_one() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 || start.trim() != "1024" {
        println!("skipped: only root has privileged ports to give");
        return;
    }
    let (mut agent, with, without) = (kit.open().await, uid(), uid());
    let low = (600..1024)
        .rev()
        .find(|low| TcpListener::bind(("127.0.0.1", *low)).is_ok())
        .expect("a free one");
    let mut spec = kit.spec("");
    spec.ports = vec![port("low", Some(low), 80)];
    agent.apply(
        &with,
        Goal::Run {
            run: 1,
            spec: spec.clone(),
        },
    );
    let seen = agent.wait(&with, "forwarded", |seen| seen.ports.len() == 1).await;
    assert_eq!(seen.ports[0].host_port, Some(low), "{:?}", seen.ports);
    assert_eq!(
        capabilities(pid(&seen)),
        1 << 10,
        "CAP_NET_BIND_SERVICE and nothing else"
    );

    // Without: nothing at all, and who asks while it runs is told when it can be had.
    agent.apply(&without, kit.run(1, ""));
    let seen = agent.wait(&without, "forwarded", |seen| seen.ports.len() == 1).await;
    assert_eq!(capabilities(pid(&seen)), 0);
    spec.ports[0].host_port = Some(low - 1);
    agent.apply(&without, Goal::Run { run: 1, spec });
    let seen = agent
        .wait(&without, "refused", |seen| {
            seen.ports.iter().any(|port| port.error.is_some())
        })
        .await;
    let error = seen.ports[0].error.as_deref().expect("refused");
    assert!(error.contains("from its next start"), "{error}");
    agent.delete(&with).await;
    agent.delete(&without).await;
}

fn capabilities(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .expect("a line");
    u64::from_str_radix(line.trim(), 16).expect("hex")
}

#[tokio::test]
async fn unused_initrds_are_swept_when_the_agent_starts() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, ""));
    agent.wait(&uid, "running", answers).await;
    drop(agent);
    let cache = kit.config().dir.join("initrds");
    let names = || {
        let entries = std::fs::read_dir(&cache).expect("lists").flatten();
        entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
    };
    let used = names();
    assert_eq!(used.len(), 1);
    for left in ["0123", ".tmp-1-1"] {
        std::fs::write(cache.join(left), "left behind").expect("writes");
    }
    let mut agent = kit.open().await;
    assert_eq!(names(), used);
    agent.delete(&uid).await;
    drop(agent);
    drop(kit.open().await);
    assert_eq!(names(), Vec::<std::ffi::OsString>::new());
}

#[tokio::test]
async fn a_vmm_that_the_kernel_kills_for_want_of_memory_is_told_so() {
    let Some(kit) = Kit::tiny(kernel::HOG) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let mut spec = kit.spec("");
    spec.memory_bytes = 300 << 20;
    agent.apply(&uid, Goal::Run { run: 1, spec });
    let seen = agent.wait(&uid, "running", answers).await;
    let limits =
        ["/sys/fs/cgroup/memory/vmlet", "/sys/fs/cgroup/vmlet"].map(|root| std::path::Path::new(root).join(&uid));
    let limit = limits
        .iter()
        .flat_map(|dir| ["memory.limit_in_bytes", "memory.max"].map(|file| dir.join(file)))
        .find(|file| file.exists());
    let Some(limit) = limit else {
        println!("skipped: no cgroup that limits memory may be made here");
        agent.delete(&uid).await;
        return;
    };
    assert!(pid(&seen) > 0);
    std::fs::write(&limit, (160u64 << 20).to_string()).expect("set");
    agent.expect_end(&uid, 1, Reason::OOMKilled).await;
    agent.delete(&uid).await;
    assert!(!limit.exists());
}

#[tokio::test]
async fn many_machines_are_adopted_at_once() {
    const MACHINES: u32 = 10;
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let mut agent = kit.open().await;
    let uids: Vec<String> = (0..MACHINES).map(|_| uid()).collect();
    for uid in &uids {
        agent.apply(uid, kit.run(1, ""));
    }
    for uid in &uids {
        agent.wait(uid, "running", answers).await;
    }
    drop(agent);
    let probing = Instant::now();
    vmlet_machines::probe(&kit.config());
    let probing = probing.elapsed();
    let (before, begun) = (private_memory(), Instant::now());
    let mut agent = kit.open().await;
    let took = begun.elapsed();
    println!(
        "adopting {MACHINES}: {took:?}, of it {probing:?} looking at the host: {:?} per machine; {} KiB of memory for all",
        took.saturating_sub(probing) / MACHINES,
        private_memory().saturating_sub(before)
    );
    for uid in &uids {
        assert_eq!(agent.seen(uid).phase, Phase::Starting, "adopted when open returns");
        agent.apply(uid, delete(0.0));
    }
    for uid in &uids {
        agent.wait(uid, "deleted", |seen| seen.phase == Phase::Deleted).await;
    }
    assert_eq!(kit.vmms(), Vec::<i32>::new());
}

#[test]
fn an_ordinary_user_has_the_same_life() {
    let skipped = ["an_ordinary_user_has_the_same_life", "many_machines"];
    let arguments: Vec<&str> = skipped.iter().flat_map(|name| ["--skip", name]).collect();
    let Some(text) = kit::as_ordinary_user(&arguments) else {
        return;
    };
    assert!(text.contains(" 0 failed"), "{text}");
    assert!(text.contains("what an ordinary user cannot have"), "{text}");
}

#[test]
fn what_an_ordinary_user_cannot_have_is_found_with_a_remedy() {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } == 0 {
        println!("skipped: root can have it all");
        return;
    }
    let facts = vmlet_machines::probe(&Config::new("/nonexistent".into()));
    for name in ["Cgroups", "Isolation"] {
        let finding = facts.findings.iter().find(|finding| finding.name == name).expect(name);
        assert_eq!(finding.level, vmlet_machines::Level::Warning, "{finding:?}");
        assert!(finding.remedy.is_some(), "{finding:?}");
    }
    println!("what an ordinary user cannot have was looked for");
}

/// KiB that are this process's own.
fn private_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kibibytes = |line: &str| {
        line.strip_prefix("Private_Dirty:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    text.lines().find_map(kibibytes).unwrap_or(0)
}

#[tokio::test]
async fn starts_that_are_held_go_no_further_than_their_disks_until_all_let_go() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let config = Config {
        longest_hold: Duration::from_secs(3600),
        ..kit.config()
    };
    let (mut agent, uids) = (kit::open(config).await, [uid(), uid()]);
    let holds = (agent.machines.hold(), agent.machines.hold());
    for uid in &uids {
        agent.apply(uid, kit.run(1, ""));
    }
    for uid in &uids {
        agent.wait(uid, "its disk", |seen| seen.disk.is_some()).await;
    }
    drop(holds.0);
    // As long as a whole start takes, which is what must not happen.
    let Some(another) = Kit::tiny(kernel::HALT) else { return };
    let (mut elsewhere, other) = (another.open().await, uid());
    elsewhere.apply(&other, another.run(1, ""));
    elsewhere.wait(&other, "running", answers).await;
    elsewhere.delete(&other).await;
    assert_eq!(kit.vmms(), Vec::<i32>::new());
    drop(holds.1);
    for uid in &uids {
        agent.wait(uid, "running", answers).await;
    }
    for uid in &uids {
        agent.delete(uid).await;
    }
}

#[tokio::test]
async fn nobody_is_held_for_longer_than_was_said() {
    let Some(kit) = Kit::tiny(kernel::HALT) else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    let _hold = agent.machines.hold();
    agent.apply(&uid, kit.run(1, ""));
    agent.wait(&uid, "running", answers).await;
    agent.delete(&uid).await;
}
