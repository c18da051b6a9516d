//! Bad input: a condition and an event that name object, cause and remedy; no retry storm; nobody else
//! disturbed; the object deletable.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use vmlet_artifacts::error::Reason;

use super::world::{IMAGE, KERNEL, World, condition, ready, settled};

/// A VM with something wrong says so in `type_` and in Ready and in an event, with these words; then it
/// can be deleted.
async fn says(world: &mut World, name: &str, type_: &str, reason: &str, words: &[&str]) {
    let status = world.until(name, |s| ready(s).1 == reason && settled(s)).await;
    for type_ in [type_, "Ready"] {
        let (is, why, message) = condition(&status, type_);
        assert_eq!((is.as_str(), why.as_str()), ("False", reason), "{type_}");
        for word in words {
            assert!(message.contains(word), "{type_} lacks {word:?}: {message}");
        }
    }
    let events = world.api.events();
    let told: Vec<_> = events.iter().filter(|(why, _)| why == reason).collect();
    assert_eq!(told.len(), 1, "{events:?}");
    assert!(words.iter().all(|word| told[0].1.contains(word)), "{told:?}");

    let jobs = world.script.jobs().len();
    for _ in 0..3 {
        world.visit(name).await.expect("visits");
    }
    assert_eq!(world.script.jobs().len(), jobs, "visits try nothing before it is due");
    assert_eq!(world.api.events().len(), events.len(), "and tell nothing twice");
    world.delete(name);
    world.gone(name).await;
}

#[tokio::test]
async fn a_pull_that_fails_reaches_its_vm_with_the_words_of_the_pull() {
    for (reason, word) in [
        (Reason::Unauthorized, "Unauthorized"),
        (Reason::WrongDigest, "WrongDigest"),
        (Reason::UnsupportedPlatform, "UnsupportedPlatform"),
        (Reason::NoSpace, "NoSpace"),
        (Reason::Malformed, "Malformed"),
    ] {
        let mut world = World::new().await;
        world.script.fail("r/i:1", reason, "r/i:1: it is so; do that");
        world.declare("a");
        says(
            &mut world,
            "a",
            "ImageReady",
            word,
            &["image \"i\"", "r/i:1", "do that"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_kernel_that_cannot_be_had_is_called_by_its_name() {
    let mut world = World::new().await;
    world
        .script
        .fail("r/k:1", Reason::MissingFile, "r/k:1: no kernel in it");
    world.declare("a");
    says(
        &mut world,
        "a",
        "KernelReady",
        "MissingFile",
        &["kernel \"k\"", "no kernel in it"],
    )
    .await;
}

#[tokio::test]
async fn a_bad_image_disturbs_no_vm_of_another() {
    let mut world = World::new().await;
    let mut bad = world.api.get(&format!("{IMAGE}/i")).expect("there");
    bad["metadata"] = json!({"name": "bad", "namespace": "default", "generation": 1});
    bad["spec"]["source"]["oci"]["reference"] = json!("r/bad:1");
    bad["status"]["resolved"]["digest"] = json!(format!("sha256:{}", "b".repeat(64)));
    world.api.put(&format!("{IMAGE}/bad"), bad);
    world
        .script
        .fail("r/bad:1", Reason::WrongDigest, "r/bad:1: other bytes");
    world.declare("a");
    world.declare_with("b", json!({"imageRef": {"name": "bad"}, "kernelRef": {"name": "k"}}));
    world.until("b", |s| ready(s).1 == "WrongDigest").await;
    let status = world.until("a", |s| s.last_termination.is_some()).await;
    assert_eq!(condition(&status, "ImageReady").0, "True");
}

#[tokio::test]
async fn what_the_resolver_found_wrong_reaches_the_vm() {
    let mut world = World::new().await;
    let mut image = world.api.get(&format!("{IMAGE}/i")).expect("there");
    image["status"] = json!({"observedGeneration": 1, "conditions": [{"type": "Resolved", "status": "False",
        "reason": "NotFound", "message": "r/i:1: there is no tag 1; there are 2, 3",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    world.api.put(&format!("{IMAGE}/i"), image);
    world.declare("a");
    says(&mut world, "a", "ImageReady", "NotFound", &["image \"i\"", "no tag 1"]).await;
}

#[tokio::test]
async fn missing_objects_are_named_with_their_namespace_and_where_they_are_named() {
    let mut world = World::new().await;
    world.api.remove(&format!("{IMAGE}/i"));
    world.declare("a");
    let words = [
        "image \"i\" does not exist",
        "\"default\"",
        "create it, or correct spec.imageRef",
    ];
    says(&mut world, "a", "ImageReady", "ImageNotFound", &words).await;

    let mut world = World::new().await;
    world.api.remove(&format!("{KERNEL}/k"));
    world.declare("a");
    let words = ["kernel \"k\" does not exist", "\"default\"", "create it, or correct"];
    says(&mut world, "a", "KernelReady", "KernelNotFound", &words).await;

    let mut world = World::new().await;
    world.declare_with("a", json!({"imageRef": {"name": "i"}}));
    let words = ["image \"i\"", "set spec.kernelRef"];
    says(&mut world, "a", "KernelReady", "NoKernel", &words).await;
}

#[tokio::test]
async fn an_absent_image_is_one_cause_with_one_word_also_for_the_kernel_that_it_would_name() {
    let mut world = World::new().await;
    world.api.remove(&format!("{IMAGE}/i"));
    world.declare_with("a", json!({"imageRef": {"name": "i"}}));
    let status = world.until("a", |s| ready(s).1 == "ImageNotFound").await;
    let (is, why, message) = condition(&status, "KernelReady");
    assert_eq!((is.as_str(), why.as_str()), ("Unknown", "ImageNotFound"));
    assert!(message.contains("image \"i\", which does not exist"), "{message}");
    let events = world.api.events();
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test]
async fn a_pull_that_fails_says_when_it_is_tried_again() {
    let mut world = World::new().await;
    world
        .script
        .fail("r/i:1", Reason::Unavailable, "r/i:1: connection refused");
    world.declare("a");
    let status = world.until("a", |s| ready(s).1 == "Unavailable").await;
    for type_ in ["ImageReady", "Ready"] {
        let (_, _, message) = condition(&status, type_);
        let (before, at) = message.split_once("; tried again at ").expect("says when");
        assert!(before.ends_with("connection refused"), "{message}");
        assert!(at.len() == 9 && at.ends_with('Z'), "{message}");
    }
    let events = world.api.events();
    let told: Vec<_> = events.iter().filter(|(why, _)| why == "Unavailable").collect();
    assert!(told.len() == 1 && !told[0].1.contains("tried again"), "{events:?}");
}

#[tokio::test]
async fn a_vm_that_a_secret_holds_up_is_woken_as_soon_as_the_secret_changes() {
    for (spec, status, path, seen, good) in [
        (
            json!({"imageRef": {"name": "i"}, "kernelRef": {"name": "k"}, "guest": {"sshKeySecretRefs": [{"name": "keys"}]}}),
            "SecretNotFound",
            "/api/v1/namespaces/default/secrets/keys",
            None,
            secret(&[("id.pub", &format!("{KEY} me\n"))]),
        ),
        (
            json!({"imageRef": {"name": "private"}, "kernelRef": {"name": "k"}}),
            "PullSecretUnusable",
            "/api/v1/namespaces/default/secrets/login",
            Some(secret(&[("other", "x")])),
            secret(&[(".dockerconfigjson", "{\"auths\": {}}")]),
        ),
    ] {
        let mut world = World::new().await;
        let mut image = world.api.get(&format!("{IMAGE}/i")).expect("there");
        image["metadata"] = json!({"name": "private", "namespace": "default", "generation": 1});
        image["spec"]["pullSecretRefs"] = json!([{"name": "login"}]);
        world.api.put(&format!("{IMAGE}/private"), image);
        if let Some(seen) = seen {
            world.api.put(path, seen);
        }
        world.declare_with("a", spec);
        world.until("a", |s| ready(s).1 == status).await;
        world.api.put(path, good);
        let woken = tokio::time::timeout(std::time::Duration::from_secs(30), world.secret_wakes.recv());
        assert_eq!(woken.await.expect("in time"), Some(world.uid("a")), "{status}");
        world.until("a", |s| ready(s).1 != status).await;
    }
}

#[tokio::test]
async fn a_disk_smaller_than_its_image_is_refused_with_both_sizes() {
    let mut world = World::new().await;
    let spec = json!({"imageRef": {"name": "i"}, "kernelRef": {"name": "k"}, "rootDisk": {"size": "1Mi"}});
    world.declare_with("a", spec);
    says(
        &mut world,
        "a",
        "DiskReady",
        "DiskTooSmall",
        &["1Mi", "2Mi", "raise it"],
    )
    .await;
}

/// A public key; nobody has the other half.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zl3uGqYQ5tq2wzWTo9mJ3j5hS1Uz6cJ7nqkQ2yqfB";

#[tokio::test]
async fn a_key_of_the_spec_that_is_none_is_told_with_its_place() {
    for (key, words) in [
        ("ssh-ed25519 AAAA me", "sshAuthorizedKeys[1] is no public key"),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "sshAuthorizedKeys[1] is a private key",
        ),
    ] {
        let mut world = World::new().await;
        let spec =
            json!({"imageRef": {"name": "i"}, "kernelRef": {"name": "k"}, "guest": {"sshAuthorizedKeys": [KEY, key]}});
        world.declare_with("a", spec);
        says(&mut world, "a", "DiskReady", "InvalidSshKey", &[words]).await;
    }
}

fn secret(data: &[(&str, &str)]) -> Secret {
    Secret {
        data: Some(
            data.iter()
                .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    }
}

#[tokio::test]
async fn a_secret_of_ssh_keys_must_be_there_and_hold_keys() {
    let spec = json!({"imageRef": {"name": "i"}, "kernelRef": {"name": "k"}, "guest": {"sshKeySecretRefs": [{"name": "keys"}]}});
    let path = "/api/v1/namespaces/default/secrets/keys";
    for (there, reason, words) in [
        (
            None,
            "SecretNotFound",
            &["secret \"keys\"", "create it, or correct spec.guest.sshKeySecretRefs"][..],
        ),
        (
            Some(secret(&[])),
            "SecretUnusable",
            &["secret \"keys\"", "no public key", "kubectl create secret generic keys"],
        ),
        (
            Some(secret(&[("a", "# none\n\n")])),
            "SecretUnusable",
            &["secret \"keys\"", "no public key"],
        ),
        (
            Some(secret(&[("id.pub", KEY), ("z", "hello world")])),
            "SecretUnusable",
            &["secret \"keys\"", "no public key in line 1 under \"z\""],
        ),
        (
            Some(secret(&[("id", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")])),
            "SecretUnusable",
            &["secret \"keys\"", "\"id\"", "private key", "replace the secret"],
        ),
    ] {
        let mut world = World::new().await;
        if let Some(secret) = there {
            world.api.put(path, secret);
        }
        world.declare_with("a", spec.clone());
        says(&mut world, "a", "DiskReady", reason, words).await;
    }
}

#[tokio::test]
async fn a_vmm_that_cannot_be_started_backs_off_with_its_cause_and_the_time_of_the_next_try() {
    let mut world = World::new().await;
    world.declare("a");
    let status = world.until("a", |s| ready(s).1 == "BackOff").await;
    assert!(status.next_retry_time.is_some());
    let (_, _, message) = ready(&status);
    assert!(message.contains("/nonexistent/qemu"), "{message}");
    let events = world.api.events();
    assert!(
        events
            .iter()
            .any(|(why, note)| why == "Exited" && note.starts_with("StartFailed") && note.contains("qemu")),
        "{events:?}"
    );
    assert_eq!(
        events.iter().filter(|(why, _)| why == "BackOff").count(),
        1,
        "{events:?}"
    );
    world.delete("a");
    world.gone("a").await;
}
