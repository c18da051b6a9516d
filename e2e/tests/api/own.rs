//! vmlet's own kinds: what their columns show and what their rules refuse.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::target::{Cx, contains};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![true;
        an_image_shows_where_it_comes_from_before_anybody_resolved_it,
        what_a_guest_cannot_take_is_refused_with_its_field,
    ]
}

/// vmlet's own columns: the reference is a union of paths, of which each Image has one.
async fn an_image_shows_where_it_comes_from_before_anybody_resolved_it(cx: Cx) -> Result<()> {
    cx.own_kinds().await?;
    let sum = "0".repeat(64);
    for (name, source) in [
        ("a", json!({"oci": {"reference": "registry.example.org/app:1"}})),
        (
            "b",
            json!({"http": {"url": "https://example.org/b.tar", "sha256": sum}}),
        ),
        ("c", json!({"path": {"path": "c.tar"}})),
    ] {
        let image = json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
            "spec": {"source": source}});
        cx.kubectl.ok_with(&["apply", "-f", "-"], &image.to_string()).await?;
    }
    let table = cx.kubectl.ok(&["get", "images.vmlet.dev"]).await?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0] == ["NAME", "READY", "STATUS", "REFERENCE", "AGE"], "{table}");
    let references = rows[1..].iter().map(|row| row[1]).collect::<Vec<_>>();
    ensure!(
        references == ["registry.example.org/app:1", "https://example.org/b.tar", "c.tar"],
        "{table}"
    );
    Ok(())
}

async fn what_a_guest_cannot_take_is_refused_with_its_field(cx: Cx) -> Result<()> {
    cx.own_kinds().await?;
    let machine = |key: &str, path: &str| {
        let guest = json!({"sshAuthorizedKeys": [key], "files": [{"path": path, "content": "x"}]});
        json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "a"},
            "spec": {"imageRef": {"name": "i"}, "guest": guest}})
        .to_string()
    };
    let key = "restrict ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zl3uGqYQ5tq2wzWTo9mJ3j5hS1Uz6cJ7nqkQ2yqfB me";
    let create = ["create", "--dry-run=server", "-f", "-"];
    for path in ["/etc/..data/x", "/processes", "/run/x"] {
        cx.kubectl.ok_with(&create, &machine(key, path)).await?;
    }
    for (key, path, wanted) in [
        ("hello world", "/a", "spec.guest.sshAuthorizedKeys: Invalid value: "),
        (key, "/a/../../b", "spec.guest.files[0].path: Invalid value: "),
        (key, "/a//b", "single slashes"),
        (key, "/dev/shm/x", "must not be below /proc, /sys or /dev"),
        (key, "/a\u{0}b", "spec.guest.files[0].path in body should match"),
    ] {
        let complaint = cx.kubectl.fails(&create, &machine(key, path)).await?;
        contains(&complaint, &["The VirtualMachine \"a\" is invalid", wanted])?;
    }
    let private = machine("-----BEGIN OPENSSH PRIVATE KEY-----", "/a");
    let complaint = cx.kubectl.fails(&create, &private).await?;
    ensure!(!complaint.contains("PRIVATE"), "{complaint}");
    Ok(())
}
