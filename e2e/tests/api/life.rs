//! Deletion: finalizers, propagation, owners, namespaces, and the kind itself.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::json;
use vmlet_e2e::wait::{self, Seen};

use crate::target::{Cx, LIMIT, contains, manifest};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![true;
        delete_waits_until_the_object_is_gone,
        delete_of_an_absent_object_says_not_found,
        a_finalizer_holds_an_object_until_it_is_removed,
        a_finalizer_cannot_be_added_to_what_is_being_deleted,
        background_deletion_takes_the_dependents_along,
        foreground_deletion_waits_for_the_dependents,
        orphaned_dependents_stay,
        delete_by_label_and_delete_all,
        a_namespace_takes_its_content_along,
        a_namespace_with_a_finalizer_inside_waits_for_it,
        nothing_can_be_created_in_an_absent_namespace,
        a_kind_can_be_added_and_removed_at_any_time,
        a_kind_whose_name_is_taken_waits_until_it_is_free,
    ]
}

async fn gone(cx: &Cx, kind: &str, name: &str) -> Result<()> {
    wait::until(&format!("{kind}/{name} is gone"), LIMIT, || async {
        let out = cx
            .kubectl
            .ok(&["get", kind, name, "--ignore-not-found", "-o", "json"])
            .await?;
        Ok(if out.is_empty() {
            Seen::Done(())
        } else {
            Seen::NotYet(out)
        })
    })
    .await
}

async fn delete_waits_until_the_object_is_gone(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let out = cx.kubectl.ok(&["delete", "widget", "a"]).await?;
    ensure!(out.starts_with("widget.suite.example.org \"a\" deleted"), "{out}");
    contains(&cx.kubectl.fails(&["get", "widget", "a"], "").await?, &["NotFound"])
}

async fn delete_of_an_absent_object_says_not_found(cx: Cx) -> Result<()> {
    contains(
        &cx.kubectl.fails(&["delete", "widget", "nope"], "").await?,
        &["widgets.suite.example.org \"nope\" not found"],
    )?;
    cx.kubectl
        .ok(&["delete", "widget", "nope", "--ignore-not-found"])
        .await?;
    Ok(())
}

async fn with_finalizer(cx: &Cx, name: &str) -> Result<()> {
    let mut object: serde_json::Value = serde_json::from_str(&manifest(name, json!({"size": 1})))?;
    object["metadata"]["finalizers"] = json!(["suite.example.org/hold"]);
    cx.kubectl.ok_with(&["create", "-f", "-"], &object.to_string()).await?;
    Ok(())
}

async fn release(cx: &Cx, name: &str) -> Result<()> {
    cx.kubectl
        .ok(&[
            "patch",
            "widget",
            name,
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ])
        .await?;
    Ok(())
}

async fn a_finalizer_holds_an_object_until_it_is_removed(cx: Cx) -> Result<()> {
    with_finalizer(&cx, "a").await?;
    cx.kubectl.ok(&["delete", "widget", "a", "--wait=false"]).await?;
    let held = cx.kubectl.json(&["get", "widget", "a"]).await?;
    ensure!(
        held["metadata"]["deletionTimestamp"].is_string()
            && held["metadata"]["deletionGracePeriodSeconds"] == 0
            && held["metadata"]["generation"] == 2,
        "{held}"
    );
    let complaint = cx.kubectl.fails(&["delete", "widget", "a", "--timeout=1s"], "").await?;
    contains(&complaint, &["timed out"])?;
    ensure!(
        cx.kubectl.json(&["get", "widget", "a"]).await? == held,
        "a second delete changed the object"
    );
    let waiting = cx.kubectl.ok(&["wait", "widget/a", "--for=delete", "--timeout=30s"]);
    tokio::try_join!(waiting, release(&cx, "a"))?;
    gone(&cx, "widget", "a").await
}

async fn a_finalizer_cannot_be_added_to_what_is_being_deleted(cx: Cx) -> Result<()> {
    with_finalizer(&cx, "a").await?;
    cx.kubectl.ok(&["delete", "widget", "a", "--wait=false"]).await?;
    let patch = r#"{"metadata":{"finalizers":["suite.example.org/hold","suite.example.org/more"]}}"#;
    let complaint = cx
        .kubectl
        .fails(&["patch", "widget", "a", "--type=merge", "-p", patch], "")
        .await?;
    contains(
        &complaint,
        &["metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted"],
    )?;
    release(&cx, "a").await
}

/// A config map whose owner is the widget.
async fn dependent(cx: &Cx, owner: &str) -> Result<()> {
    let uid = cx.widgets().get(owner).await?.metadata.uid;
    let reference = json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "name": owner, "uid": uid, "blockOwnerDeletion": true, "controller": true});
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "child", "ownerReferences": [reference]}}))?;
    Api::namespaced(cx.client.clone(), &cx.namespace)
        .create(&PostParams::default(), &map)
        .await?;
    Ok(())
}

async fn background_deletion_takes_the_dependents_along(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    dependent(&cx, "a").await?;
    cx.kubectl.ok(&["delete", "widget", "a"]).await?;
    gone(&cx, "configmap", "child").await
}

async fn foreground_deletion_waits_for_the_dependents(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    dependent(&cx, "a").await?;
    cx.kubectl
        .ok(&[
            "patch",
            "configmap",
            "child",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":["suite.example.org/hold"]}}"#,
        ])
        .await?;
    cx.kubectl
        .ok(&["delete", "widget", "a", "--cascade=foreground", "--wait=false"])
        .await?;
    wait::until("the dependent is being deleted", LIMIT, || async {
        let child = cx.kubectl.json(&["get", "configmap", "child"]).await?;
        Ok(if child["metadata"]["deletionTimestamp"].is_string() {
            Seen::Done(())
        } else {
            Seen::NotYet(child.to_string())
        })
    })
    .await?;
    let owner = cx.kubectl.json(&["get", "widget", "a"]).await?;
    ensure!(
        owner["metadata"]["finalizers"] == json!(["foregroundDeletion"]),
        "{owner}"
    );
    cx.kubectl
        .ok(&[
            "patch",
            "configmap",
            "child",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ])
        .await?;
    gone(&cx, "widget", "a").await?;
    gone(&cx, "configmap", "child").await
}

async fn orphaned_dependents_stay(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    dependent(&cx, "a").await?;
    cx.kubectl.ok(&["delete", "widget", "a", "--cascade=orphan"]).await?;
    gone(&cx, "widget", "a").await?;
    let child = cx.kubectl.json(&["get", "configmap", "child"]).await?;
    ensure!(
        child["metadata"].get("ownerReferences").is_none() && child["metadata"].get("deletionTimestamp").is_none(),
        "{child}"
    );
    Ok(())
}

async fn delete_by_label_and_delete_all(cx: Cx) -> Result<()> {
    for name in ["a", "b", "c"] {
        cx.widget(name, json!({"size": 1})).await?;
    }
    cx.kubectl.ok(&["label", "widget", "a", "x=y"]).await?;
    cx.kubectl.ok(&["delete", "widgets", "-l", "x=y"]).await?;
    ensure!(
        cx.kubectl
            .ok(&["get", "widgets", "-o", "jsonpath={.items[*].metadata.name}"])
            .await?
            == "b c"
    );
    cx.kubectl.ok(&["delete", "widgets", "--all"]).await?;
    ensure!(cx.kubectl.ok(&["get", "widgets", "-o", "name"]).await?.is_empty());
    Ok(())
}

async fn a_namespace_takes_its_content_along(cx: Cx) -> Result<()> {
    let name = format!("{}-more", cx.namespace);
    ensure!(cx.kubectl.ok(&["create", "namespace", &name]).await? == format!("namespace/{name} created\n"));
    let phase = cx
        .kubectl
        .ok(&["get", "namespace", &name, "-o", "jsonpath={.status.phase}"])
        .await?;
    ensure!(phase == "Active", "{phase}");
    let text = manifest("a", json!({"size": 1}));
    cx.kubectl.ok_with(&["create", "-n", &name, "-f", "-"], &text).await?;
    cx.kubectl
        .ok(&["create", "-n", &name, "configmap", "c", "--from-literal=k=v"])
        .await?;
    cx.kubectl.ok(&["delete", "namespace", &name]).await?;
    gone(&cx, "namespace", &name).await?;
    // A new one of that name is empty.
    cx.kubectl.ok(&["create", "namespace", &name]).await?;
    ensure!(
        cx.kubectl
            .ok(&["get", "-n", &name, "widgets", "-o", "name"])
            .await?
            .is_empty()
    );
    Ok(())
}

async fn a_namespace_with_a_finalizer_inside_waits_for_it(cx: Cx) -> Result<()> {
    with_finalizer(&cx, "a").await?;
    cx.kubectl
        .ok(&["delete", "namespace", &cx.namespace, "--wait=false"])
        .await?;
    wait::until(
        "the namespace is terminating, its content is being deleted, and it says what is left",
        LIMIT,
        || async {
            let namespace = cx.kubectl.json(&["get", "namespace", &cx.namespace]).await?;
            let widget = cx.kubectl.json(&["get", "widget", "a"]).await?;
            let said = namespace["status"]["conditions"].to_string();
            let done = namespace["status"]["phase"] == "Terminating"
                && widget["metadata"]["deletionTimestamp"].is_string()
                && said.contains("Some resources are remaining: widgets.suite.example.org has 1 resource instances")
                && said.contains("has finalizers remaining: suite.example.org/hold in 1 resource instances");
            Ok(if done {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{namespace} {widget}"))
            })
        },
    )
    .await?;
    let complaint = cx
        .kubectl
        .fails(&["create", "-f", "-"], &manifest("b", json!({"size": 1})))
        .await?;
    contains(
        &complaint,
        &[
            "Forbidden",
            &format!(
                "unable to create new content in namespace {} because it is being terminated",
                cx.namespace
            ),
        ],
    )?;
    release(&cx, "a").await?;
    gone(&cx, "namespace", &cx.namespace).await
}

async fn nothing_can_be_created_in_an_absent_namespace(cx: Cx) -> Result<()> {
    let complaint = cx
        .kubectl
        .fails(
            &["create", "-n", "never-there", "-f", "-"],
            &manifest("a", json!({"size": 1})),
        )
        .await?;
    contains(&complaint, &["NotFound", "namespaces \"never-there\" not found"])
}

async fn a_kind_can_be_added_and_removed_at_any_time(cx: Cx) -> Result<()> {
    let plural = format!("things{}", cx.namespace.trim_start_matches("case-"));
    let name = format!("{plural}.late.example.org");
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name},
        "spec": {"group": "late.example.org", "scope": "Cluster", "names": {"plural": plural, "kind": format!("Thing{plural}")},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    cx.kubectl.ok_with(&["apply", "-f", "-"], &crd.to_string()).await?;
    cx.kubectl
        .ok(&["wait", "crd", &name, "--for=condition=Established", "--timeout=30s"])
        .await?;
    let thing =
        json!({"apiVersion": "late.example.org/v1", "kind": format!("Thing{plural}"), "metadata": {"name": "t"}})
            .to_string();
    wait::until("a thing can be created", LIMIT, || async {
        let output = cx.kubectl.run(&["apply", "-f", "-"], &thing).await?;
        Ok(if output.status.success() {
            Seen::Done(())
        } else {
            Seen::NotYet(String::from_utf8_lossy(&output.stderr).into_owned())
        })
    })
    .await?;
    cx.kubectl.ok(&["delete", "crd", &name]).await?;
    let complaint = cx
        .kubectl
        .fails(&["get", "--raw", &format!("/apis/late.example.org/v1/{plural}/t")], "")
        .await?;
    contains(&complaint, &["NotFound"])
}

async fn a_kind_whose_name_is_taken_waits_until_it_is_free(cx: Cx) -> Result<()> {
    let group = format!("{}.names.example.org", cx.namespace);
    let definition = |plural: &str| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Cluster", "names": {"plural": plural, "kind": "Thing", "singular": plural},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
        })
        .to_string()
    };
    let (first, second) = (format!("firsts.{group}"), format!("seconds.{group}"));
    cx.kubectl
        .ok_with(&["create", "-f", "-"], &definition("firsts"))
        .await?;
    cx.kubectl
        .ok(&["wait", "crd", &first, "--for=condition=Established", "--timeout=30s"])
        .await?;
    cx.kubectl
        .ok_with(&["create", "-f", "-"], &definition("seconds"))
        .await?;
    cx.kubectl
        .ok(&[
            "wait",
            "crd",
            &second,
            "--for=condition=NamesAccepted=False",
            "--timeout=30s",
        ])
        .await?;
    let status = cx.kubectl.json(&["get", "crd", &second]).await?["status"].take();
    let said = |kind: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let found = conditions
            .clone()
            .find(|c| c["type"] == kind)
            .cloned()
            .unwrap_or_default();
        format!("{} {}: {}", found["status"], found["reason"], found["message"])
    };
    ensure!(
        said("NamesAccepted") == r#""False" "ListKindConflict": "\"ThingList\" is already in use""#
            && said("Established") == r#""False" "NotAccepted": "not all names are accepted""#
            && status["acceptedNames"] == json!({"plural": "seconds", "singular": "seconds", "kind": ""}),
        "{status}"
    );
    let raw = format!("/apis/{group}/v1/seconds");
    contains(&cx.kubectl.fails(&["get", "--raw", &raw], "").await?, &["NotFound"])?;
    cx.kubectl.ok(&["delete", "crd", &first]).await?;
    cx.kubectl
        .ok(&["wait", "crd", &second, "--for=condition=Established", "--timeout=30s"])
        .await?;
    cx.kubectl.ok(&["delete", "crd", &second]).await?;
    Ok(())
}
