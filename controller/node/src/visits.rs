//! Tests of whole visits: a VM in a fake API, artefacts by script, machines whose VMM does not exist.

mod bad_input;
mod orphans;
mod watched;
pub(crate) mod world;

use std::collections::BTreeSet;

use vmlet_artifacts::error::Reason;
use vmlet_crds::VirtualMachineStatus;
use world::{IMAGE, VM, World, condition};

use crate::agent::NodeFacts;
use crate::vmnode::pull_eagerly;

#[tokio::test]
async fn image_and_kernel_are_told_apart_and_no_event_swallows_another() {
    let mut world = World::new().await;
    world.declare("a");
    world.until("a", |s| s.last_termination.is_some()).await;
    let events = world.api.events();
    for begin in [
        "Pulling image \"i\"",
        "Pulling kernel \"k\"",
        "Pulled image \"i\" in",
        "Pulled kernel \"k\" in",
    ] {
        let count = events.iter().filter(|(_, note)| note.starts_with(begin)).count();
        assert_eq!(count, 1, "{begin}: {events:?}");
    }
    let posts = world.api.requests().iter().filter(|r| r.contains("/events")).count();
    assert_eq!(posts, events.len(), "each was made, none was patched into another");
}

#[tokio::test]
async fn a_deleted_vm_leaves_nothing_behind() {
    let mut world = World::new().await;
    world.declare("a");
    let uid = world.uid("a");
    world.until("a", |s| s.last_termination.is_some()).await;
    assert!(world.cx.machines.observe(&uid).is_some());
    assert!(!world.cx.dereferencer.artifacts.pinners().await.is_empty());
    world.delete("a");
    world.gone("a").await;
    assert_eq!(world.cx.machines.observe(&uid), None, "its machine is forgotten");
    assert!(world.cx.records.uids().expect("lists").is_empty());
    assert!(world.cx.dereferencer.artifacts.pinners().await.is_empty());
    assert!(world.cx.memories.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn the_same_sight_gives_the_same_status_to_the_byte() {
    let mut world = World::new().await;
    world.declare("a");
    world
        .script
        .fail("r/i:1", vmlet_artifacts::error::Reason::NotFound, "no tag 1");
    world
        .until("a", |s| world::ready(s).1 == "NotFound" && world::settled(s))
        .await;
    let first = world.api.get(&format!("{VM}/a")).expect("there")["status"].to_string();
    world.visit("a").await.expect("visits");
    world.cx.memories.lock().expect("unpoisoned").clear();
    world
        .visit("a")
        .await
        .expect("visits, as an agent that was just started");
    let third = world.api.get(&format!("{VM}/a")).expect("there")["status"].to_string();
    assert_eq!(first, third);
}

#[tokio::test]
async fn visits_to_an_api_that_is_down_are_spaced_further_and_further_apart() {
    let world = World::new().await;
    world.declare("a");
    let object = std::sync::Arc::new(world.vm("a"));
    world.api.always(Some(crate::fake_api::failure(
        http::StatusCode::SERVICE_UNAVAILABLE,
        "ServiceUnavailable",
        "a",
    )));
    let mut waits = Vec::new();
    for _ in 0..8 {
        let error = crate::reconcile::reconcile(object.clone(), world.cx.clone())
            .await
            .expect_err("down");
        waits.push(crate::reconcile::error_policy(object.clone(), &error, world.cx.clone()));
    }
    let seconds = [1, 2, 4, 8, 16, 32, 60, 60]
        .map(|s| kube::runtime::controller::Action::requeue(std::time::Duration::from_secs(s)));
    assert_eq!(waits, seconds);
    assert_eq!(
        world.api.requests().len(),
        8,
        "one request a visit: nothing is retried behind its back"
    );
    world.api.always(None);
    world.visit("a").await.expect("up again");
    assert!(world.cx.failures.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn an_old_copy_of_a_vm_hides_no_status_and_what_stands_is_not_written_again() {
    let mut world = World::new().await;
    world.declare("a");
    let image = world.api.get(&format!("{IMAGE}/i")).expect("there");
    world.api.remove(&format!("{IMAGE}/i"));
    let kernel = |s: &VirtualMachineStatus| {
        s.conditions
            .iter()
            .any(|c| c.type_ == "KernelReady" && c.status == "True")
    };
    world.until("a", kernel).await;
    let copy = world.vm("a");
    let absent = copy.status.clone();
    let mut older = image;
    older["metadata"]["generation"] = serde_json::json!(2);
    world.api.put(&format!("{IMAGE}/i"), older);
    world.visit("a").await.expect("visits");
    assert_ne!(world.vm("a").status, absent, "the image is there, and not resolved");
    world.api.remove(&format!("{IMAGE}/i"));
    crate::reconcile::reconcile(std::sync::Arc::new(copy), world.cx.clone())
        .await
        .expect("visits");
    assert_eq!(world.vm("a").status, absent);
    world.api.requests();
    world.visit("a").await.expect("visits");
    let requests = world.api.requests();
    assert!(!requests.iter().any(|r| r.starts_with("PATCH")), "{requests:?}");
}

#[tokio::test]
async fn a_machine_starts_with_what_its_image_says_now_whatever_the_watch_told_last() {
    let mut world = World::new().await;
    let now = world.api.get(&format!("{IMAGE}/i")).expect("there");
    let mut older = now.clone();
    older["spec"]["source"]["oci"]["reference"] = serde_json::json!("r/older:1");
    world.api.put(&format!("{IMAGE}/i"), older);
    world.watch();
    world.api.put(&format!("{IMAGE}/i"), now);
    world.declare("a");
    world.until("a", |s| condition(s, "Ready").1 == "BackOff").await;
    let record = world.cx.records.load(&world.uid("a")).expect("it was to be started");
    let image = record.image.expect("with an image");
    assert_eq!(image.source.to_string(), "r/i:1");
    let jobs = world.script.jobs();
    assert!(
        jobs.contains(&"r/older:1".to_owned()),
        "what the watch told was not read: {jobs:?}"
    );
}

#[tokio::test]
async fn who_waits_asks_the_api_for_nothing_that_the_watch_has_told() {
    let mut world = World::new().await;
    world.script.fail("r/i:1", Reason::Unavailable, "no registry");
    world.watch();
    world.declare("a");
    world
        .until("a", |s| condition(s, "ImageReady").1 == "Unavailable")
        .await;
    let asked: Vec<String> = world.api.requests();
    let asked = asked.iter().filter(|r| r.starts_with("GET")).collect::<Vec<_>>();
    assert!(asked.is_empty(), "{asked:?}");
}

#[tokio::test]
async fn the_pull_of_an_eager_image_that_is_deleted_ends() {
    let world = World::new().await;
    let ended = world.script.hang("r/i:1");
    let mut image = world.api.get(&format!("{IMAGE}/i")).expect("there");
    image["spec"]["pullPolicy"] = serde_json::json!("Eager");
    world.api.put(&format!("{IMAGE}/i"), image);
    let (facts, mut asked) = (NodeFacts::default(), BTreeSet::new());
    pull_eagerly(&world.cx, &facts, &mut asked).await.expect("asks");
    pull_eagerly(&world.cx, &facts, &mut asked).await.expect("asks again");
    let patience = std::time::Duration::from_secs(30);
    let begun = async {
        while world.script.jobs().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(patience, begun).await.expect("nobody began it");
    assert_eq!(world.script.jobs(), ["r/i:1"]);
    assert!(!ended.is_cancelled());
    world.api.remove(&format!("{IMAGE}/i"));
    pull_eagerly(&world.cx, &facts, &mut asked).await.expect("looks");
    tokio::time::timeout(patience, ended.cancelled())
        .await
        .expect("nobody ended it");
    assert_eq!(asked, BTreeSet::new());
}
