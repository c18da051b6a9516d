//! Orphans: only a live word of the right API about the very VM makes one.

use http::StatusCode;
use serde_json::json;
use vmlet_machines::Phase;

use super::world::{VM, World};
use crate::fake_api::failure;
use crate::orphans::{QUARANTINE, sweep};

/// A node with one stopped machine of VM `a`.
async fn with_a_machine() -> (World, String) {
    let mut world = World::with_qemu("/bin/false").await;
    world.declare("a");
    let uid = world.uid("a");
    world.until("a", |s| s.last_termination.is_some()).await;
    assert_eq!(
        world.cx.machines.list(),
        std::slice::from_ref(&uid),
        "something of it is on the host"
    );
    (world, uid)
}

fn orphan_since(world: &World, uid: &str) -> Option<u64> {
    world.cx.records.load(uid).expect("a record").orphan_since
}

#[tokio::test]
async fn an_api_that_is_down_or_wiped_or_does_not_know_the_kind_touches_nothing() {
    let (world, uid) = with_a_machine().await;
    world.api.remove(&format!("{VM}/a"));
    let untyped = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "the server could not find the requested resource"});
    for answer in [
        failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "a"),
        failure(StatusCode::FORBIDDEN, "Forbidden", "a"),
        failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "a"),
        (StatusCode::NOT_FOUND, untyped),
        // Typed, and yet every list says so too: the kind is not served.
        failure(StatusCode::NOT_FOUND, "NotFound", "a"),
    ] {
        world.api.always(Some(answer.clone()));
        sweep(&world.cx).await;
        assert_eq!(orphan_since(&world, &uid), None, "{answer:?}");
    }
}

#[tokio::test]
async fn a_vm_that_is_gone_is_quarantined_for_a_day_and_then_removed() {
    let (mut world, uid) = with_a_machine().await;
    world.api.remove(&format!("{VM}/a"));
    sweep(&world.cx).await;
    let since = orphan_since(&world, &uid).expect("an orphan");
    sweep(&world.cx).await;
    assert_eq!(orphan_since(&world, &uid), Some(since), "the day does not begin anew");
    assert!(
        !world.cx.dereferencer.artifacts.pinners().await.is_empty(),
        "its disk keeps its base"
    );

    let mut record = world.cx.records.load(&uid).expect("a record");
    record.orphan_since = Some(since - QUARANTINE.as_secs());
    world.cx.records.store(&uid, &record).expect("stores");
    sweep(&world.cx).await;
    while world
        .cx
        .machines
        .observe(&uid)
        .is_some_and(|o| o.phase != Phase::Deleted)
    {
        world.machine_woken().await;
    }
    sweep(&world.cx).await;
    assert_eq!(world.cx.machines.observe(&uid), None);
    assert_eq!(world.cx.records.load(&uid), None);
    assert!(world.cx.dereferencer.artifacts.pinners().await.is_empty());
}

#[tokio::test]
async fn another_vm_of_the_same_name_makes_an_orphan_and_the_same_uid_takes_it_back() {
    let (world, uid) = with_a_machine().await;
    let old = world.api.get(&format!("{VM}/a")).expect("there");
    world.api.remove(&format!("{VM}/a"));
    world.declare("a");
    assert_ne!(world.uid("a"), uid);
    sweep(&world.cx).await;
    assert!(orphan_since(&world, &uid).is_some());
    world.api.put(&format!("{VM}/a"), old);
    sweep(&world.cx).await;
    assert_eq!(orphan_since(&world, &uid), None);
}
