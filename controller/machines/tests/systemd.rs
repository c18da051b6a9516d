//! A guest with a real systemd as its own init. Slow (a minute under translation), so only where its root is
//! named: `VMLET_TEST_SYSTEMD=$(scripts/guest-image-systemd --layer)`, beside what `boot.rs` needs.

mod kit;

use std::io::{Read, Write};
use std::process::Command;

use kit::{Kit, stop, uid};
use vmlet_init::config::{Content, GuestFile, ImageProcess, InitMode};
use vmlet_machines::{ChosenInit, Goal, Terminal, TerminationReason as Reason};

const UNIT: &str = "\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo told by $(cat /proc/1/comm) of $(cat /proc/sys/kernel/hostname) $(cat /etc/machine-id) last: $(cat /var/last 2>&1) >/dev/console'
ExecStart=/bin/sh -c '[ ! -e /var/last ] || systemctl --no-block poweroff'
ExecStop=/bin/sh -c 'echo stopped in order >/var/last'
";

fn file(path: &str, text: &str) -> GuestFile {
    GuestFile {
        path: path.into(),
        content: Content(text.into()),
        mode: 0o644,
        uid: 0,
        gid: 0,
    }
}

#[tokio::test]
async fn systemd_boots_stops_in_order_and_powers_off() {
    let Some(layer) = std::env::var_os("VMLET_TEST_SYSTEMD") else {
        println!("skipped: VMLET_TEST_SYSTEMD names no root (scripts/guest-image-systemd --layer)");
        return;
    };
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can unpack a root whose files are root's");
        return;
    }
    let Some(mut kit) = Kit::linux() else { return };
    let root = kit.path.join("systemd");
    std::fs::create_dir(&root).expect("creates");
    let unpacked = Command::new("tar").arg("-xzf").arg(layer).arg("-C").arg(&root).status();
    assert!(unpacked.expect("tar runs").success());
    std::fs::remove_file(&kit.base).expect("replaced");
    assert!(kit::mke2fs(&root, &kit.base, "512M"));
    kit.memory = 512 << 20;

    let mut agent = kit.open().await;
    let uid = uid();
    let mut spec = kit.spec("");
    // As images of distributions come: no entrypoint and a bare shell. Auto boots the init then.
    spec.guest.init = InitMode::Auto;
    spec.guest.image = ImageProcess {
        cmd: vec!["/bin/bash".into()],
        ..ImageProcess::default()
    };
    spec.guest.machine_id = "0123456789abcdef0123456789abcdef".into();
    spec.guest.files = vec![
        file("/etc/systemd/system/tell.service", UNIT),
        file(
            "/etc/systemd/system/multi-user.target.d/tell.conf",
            "[Unit]\nWants=tell.service\n",
        ),
    ];
    let run = |run| Goal::Run {
        run,
        spec: spec.clone(),
    };
    agent.apply(&uid, run(1));
    agent.wait_ready(&uid, 1).await;
    let told = "told by systemd of test 0123456789abcdef0123456789abcdef last:";
    agent
        .wait_console(&uid, &format!("{told} cat: /var/last: No such file"))
        .await;
    let seen = agent.seen(&uid);
    assert_eq!((seen.init, seen.guest_warnings), (Some(ChosenInit::Image), Vec::new()));
    // Its own login is on the interactive console, as systemd-getty-generator(8) has it.
    let mut terminal = Terminal::open(&kit.config().dir, &uid).expect("opens");
    let wait = std::time::Duration::from_secs(120);
    terminal.stream.set_read_timeout(Some(wait)).expect("a socket");
    terminal.stream.write_all(b"\n").expect("types");
    let (mut said, mut buffer) = (String::new(), [0u8; 256]);
    while !said.contains("test login:") {
        let count = terminal.stream.read(&mut buffer).expect("a login");
        said += &String::from_utf8_lossy(&buffer[..count]);
    }
    let begun = std::time::Instant::now();
    agent.apply(&uid, stop(120.0));
    agent.expect_end(&uid, 1, Reason::Stopped).await;
    println!("stopped in {:?}", begun.elapsed());

    // What its unit wrote last and nobody synced is there, and its own power-off is a clean end.
    agent.apply(&uid, run(2));
    agent.wait_console(&uid, &format!("{told} stopped in order")).await;
    agent.expect_end(&uid, 2, Reason::Completed).await;
    println!("timings {:?}", agent.seen(&uid).timings);
    agent.delete(&uid).await;
}
