//! One real VM through its life. Needs QEMU, mke2fs, a static busybox, and a kernel:
//! `VMLET_TEST_KERNEL` (bzImage or vmlinux) and `VMLET_TEST_MODULES` (tar of lib/modules/<version>).

mod kit;

use kit::{Kit, stop, uid};
use vmlet_machines::{Phase, TerminationReason as Reason};

#[tokio::test]
async fn a_machine_runs_is_adopted_stopped_and_deleted() {
    let Some(kit) = Kit::linux() else { return };
    let (mut agent, uid) = (kit.open().await, uid());
    agent.apply(&uid, kit.run(1, "echo hello from the guest >/dev/console; sleep 1000"));
    let first = agent.wait_ready(&uid, 1).await;
    assert!(first.ports[0].host_port.is_some(), "{:?}", first.ports);
    println!("timings {:?}", first.timings);

    // The agent goes; the VM does not notice.
    drop(agent);
    let mut agent = kit.open().await;
    let adopted = agent.wait_ready(&uid, 1).await;
    assert_eq!(adopted.boot_id, first.boot_id);
    assert_eq!(adopted.vmm, first.vmm);
    assert_eq!(adopted.ports, first.ports);

    // So it is when its record is lost.
    drop(agent);
    std::fs::write(kit.file(&uid, "record.json"), "{").expect("tears");
    let mut agent = kit.open().await;
    let adopted = agent.wait_ready(&uid, 1).await;
    assert_eq!(adopted.boot_id, first.boot_id);
    assert_eq!(adopted.disk.expect("from the overlay").base_id, "test-base");

    // The ring is drained at the agent's leisure, and tells nobody.
    agent.wait_console(&uid, "hello from the guest").await;

    agent.apply(&uid, stop(30.0));
    agent.expect_end(&uid, 1, Reason::Stopped).await;

    agent.apply(&uid, kit.run(2, "exit 7"));
    let end = agent.expect_end(&uid, 2, Reason::Error).await;
    assert_eq!(end.exit_code, Some(7), "{end:?}");

    agent.delete(&uid).await;
    assert!(!kit.config().dir.join(&uid).exists());
    assert_eq!(agent.machines.list(), Vec::<String>::new());
    assert_eq!(agent.seen(&uid).phase, Phase::Deleted);
}

#[test]
fn an_ordinary_user_gets_the_whole_of_it() {
    let Some(text) = kit::as_ordinary_user(&["--exact", "a_machine_runs_is_adopted_stopped_and_deleted"]) else {
        return;
    };
    assert!(text.contains("1 passed"), "{text}");
    if Kit::linux().is_some() {
        assert!(!text.contains("skipped"), "{text}");
    }
}
