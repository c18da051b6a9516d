//! An agent that is killed between any two lines leaves a state from which the next one goes on: a process
//! of its own owns the machines, ends as `kill -9` would at a named place, and another agent takes over.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::crash::AT;
use crate::kit::{Kit, answers, delete, kernel, stop, uid};
use crate::{Phase, TerminationReason};

const DIR: &str = "VMLET_TEST_CRASH_DIR";
const UID: &str = "VMLET_TEST_CRASH_UID";

/// The life of a machine, up to the place where this process is to end. As a test of its own it does nothing.
#[tokio::test]
async fn victim() {
    let (Ok(dir), Ok(uid)) = (std::env::var(DIR), std::env::var(UID)) else {
        return;
    };
    let kit = Kit::at(Path::new(&dir));
    let mut agent = kit.open().await;
    agent.apply(&uid, kit.run(1, ""));
    // A guest that ends by itself is waited for: a stop that came first would be another end.
    let ends = std::env::var(AT).is_ok_and(|place| ["end-read", "end-recorded"].contains(&place.as_str()));
    let seen = agent
        .wait(&uid, "up or over", |seen| {
            seen.phase == Phase::Stopped || (answers(seen) && !ends)
        })
        .await;
    if seen.phase != Phase::Stopped {
        agent.apply(&uid, stop(0.5));
        agent.wait(&uid, "stopped", |seen| seen.phase == Phase::Stopped).await;
    }
    agent.apply(&uid, delete(0.0));
    agent.wait(&uid, "deleted", |seen| seen.phase == Phase::Deleted).await;
}

/// Lets an agent run into `place`; what it left.
fn killed_at(place: &str, code: &[u8]) -> Option<(Kit, String)> {
    let (kit, uid) = (Kit::tiny(code)?, uid());
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "crash_tests::victim", "--nocapture"])
        .env(AT, place)
        .env(DIR, &kit.path)
        .env(UID, &uid)
        .stdout(Stdio::null())
        .status()
        .expect("runs");
    assert_eq!(status.signal(), Some(9), "{place}: it never came there");
    assert!(kit.vmms().len() <= 1, "{place}");
    Some((kit, uid))
}

/// Whatever was left, the machine can be run (again) with one VMM, and removed without a trace.
async fn goes_on(place: &str, kit: &Kit, uid: &str, run: u64) {
    let mut agent = kit.open().await;
    agent.apply(uid, kit.run(run, ""));
    let seen = agent
        .wait(uid, "running", |seen| seen.run == run && answers(seen))
        .await;
    assert_eq!(
        kit.vmms(),
        [seen.vmm.and_then(|vmm| vmm.pid).expect("lives")],
        "{place}"
    );
    agent.delete(uid).await;
    assert_eq!(kit.vmms(), Vec::<i32>::new(), "{place}");
    assert!(!kit.config().dir.join(uid).exists(), "{place}");
    drop(agent);
    assert_eq!(kit.open().await.machines.list(), Vec::<String>::new(), "{place}");
}

#[tokio::test]
async fn killed_in_a_start_the_run_is_begun_again_or_its_vmm_adopted() {
    for place in [
        "start-directory",
        "start-prepared",
        "start-before-record",
        "start-recorded",
        "start-executed",
        "start-noted",
    ] {
        let Some((kit, uid)) = killed_at(place, kernel::HALT) else {
            return;
        };
        let lives = kit.vmms();
        assert_eq!(
            lives.len(),
            usize::from(["start-executed", "start-noted"].contains(&place)),
            "{place}"
        );
        goes_on(place, &kit, &uid, 1).await;
    }
}

#[tokio::test]
async fn killed_in_a_stop_the_next_agent_ends_it_at_its_deadline_unasked() {
    for place in ["stop-begun", "stop-kill-recorded", "stop-killed"] {
        let Some((kit, uid)) = killed_at(place, kernel::HALT) else {
            return;
        };
        let mut agent = kit.open().await;
        agent.expect_end(&uid, 1, TerminationReason::ForcedKill).await;
        assert_eq!(kit.vmms(), Vec::<i32>::new(), "{place}");
        drop(agent);
        goes_on(place, &kit, &uid, 2).await;
    }
}

#[tokio::test]
async fn killed_at_the_end_of_a_run_the_next_agent_has_the_same_verdict_and_lets_the_vmm_go() {
    for (place, code, reason) in [
        ("end-gone", kernel::HALT, TerminationReason::ForcedKill),
        ("end-read", kernel::POWER_OFF, TerminationReason::BootFailed),
        ("end-recorded", kernel::POWER_OFF, TerminationReason::BootFailed),
    ] {
        let Some((kit, uid)) = killed_at(place, code) else {
            return;
        };
        let mut agent = kit.open().await;
        let end = agent.expect_end(&uid, 1, reason).await;
        assert_eq!(kit.vmms(), Vec::<i32>::new(), "{place}");
        drop(agent);
        let mut agent = kit.open().await;
        assert_eq!(agent.wait_end(&uid, 1).await, end, "{place}: told once");
        drop(agent);
        std::fs::write(&kit.kernel, kernel::elf(kernel::HALT)).expect("writes");
        goes_on(place, &kit, &uid, 2).await;
    }
}

#[tokio::test]
async fn killed_in_a_deletion_the_next_agent_deletes_what_is_left() {
    for place in ["delete-begun", "delete-removed"] {
        let Some((kit, uid)) = killed_at(place, kernel::HALT) else {
            return;
        };
        let mut agent = kit.open().await;
        agent.delete(&uid).await;
        assert!(!kit.config().dir.join(&uid).exists(), "{place}");
    }
}
