//! What a controller needs, through kube-rs: resource versions, conflicts, server-side apply.

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, ValidationDirective,
};
use kube::core::Status;
use serde_json::{Value, json};

use vmlet_e2e::wait::{self, Seen};

use crate::target::{Cx, LIMIT, widget};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![false;
        an_update_with_a_stale_version_conflicts,
        a_patch_with_a_stale_version_conflicts,
        an_update_without_a_version_is_refused,
        a_status_update_leaves_spec_and_generation,
        a_status_apply_is_owned_by_its_manager,
        an_apply_without_a_manager_is_refused,
        applies_that_create_one_object_at_once_all_succeed,
        an_apply_with_another_uid_is_refused,
        a_status_apply_ignores_the_uid_and_heeds_the_version,
        a_delete_with_another_uid_conflicts,
        a_delete_with_options_that_cannot_be_meant_is_refused,
        a_limit_below_zero_is_none,
        empty_metadata_is_not_kept,
        an_embedded_object_needs_a_type,
        a_name_can_be_generated,
        metadata_alone_can_be_read,
        a_list_names_its_version,
        a_version_of_the_future_times_out,
        a_bad_continue_token_is_refused,
        delete_collection_deletes_by_label,
        resource_versions_grow_over_all_kinds,
        a_json_patch_that_tests_the_uid_guards_a_finalizer,
    ]
}

/// No object has it.
const OTHER_UID: &str = "3b5d1c9e-0000-4000-8000-000000000000";

/// The Status of an error that must be one.
fn refused<T>(result: kube::Result<T>) -> Result<Box<Status>> {
    match result {
        Ok(_) => bail!("should have been refused"),
        Err(kube::Error::Api(status)) => Ok(status),
        Err(other) => Err(other.into()),
    }
}

pub async fn merge(cx: &Cx, name: &str, patch: Value) -> Result<DynamicObject> {
    Ok(cx
        .widgets()
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?)
}

async fn an_update_with_a_stale_version_conflicts(cx: Cx) -> Result<()> {
    let mut stale = cx.widget("a", json!({"size": 1})).await?;
    merge(&cx, "a", json!({"spec": {"size": 2}})).await?;
    stale.data["spec"]["size"] = json!(3);
    let status = refused(cx.widgets().replace("a", &PostParams::default(), &stale).await)?;
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    let message = "Operation cannot be fulfilled on widgets.suite.example.org \"a\": the object has been modified; please apply your changes to the latest version and try again";
    ensure!(status.message == message, "{status:?}");
    Ok(())
}

async fn a_patch_with_a_stale_version_conflicts(cx: Cx) -> Result<()> {
    let stale = cx.widget("a", json!({"size": 1})).await?;
    merge(&cx, "a", json!({"spec": {"size": 2}})).await?;
    let patch =
        Patch::Merge(json!({"metadata": {"resourceVersion": stale.metadata.resource_version}, "spec": {"size": 3}}));
    let status = refused(cx.widgets().patch("a", &PatchParams::default(), &patch).await)?;
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    Ok(())
}

async fn an_update_without_a_version_is_refused(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let status = refused(
        cx.widgets()
            .replace("a", &PostParams::default(), &widget("a", json!({"size": 2})))
            .await,
    )?;
    ensure!(
        status.code == 422
            && status
                .message
                .contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{status:?}"
    );
    let status = refused(
        cx.widgets()
            .replace("b", &PostParams::default(), &widget("a", json!({"size": 2})))
            .await,
    )?;
    ensure!(status.code == 400 && status.reason == "BadRequest", "{status:?}");
    Ok(())
}

async fn a_status_update_leaves_spec_and_generation(cx: Cx) -> Result<()> {
    let mut object = cx.widget("a", json!({"size": 1})).await?;
    object.data["spec"]["size"] = json!(9);
    object.data["status"] = json!({"observedGeneration": 1});
    object.metadata.labels = Some([("x".into(), "y".into())].into());
    let after = cx
        .widgets()
        .replace_status("a", &PostParams::default(), &object)
        .await?;
    ensure!(
        after.data["spec"]["size"] == 1 && after.data["status"]["observedGeneration"] == 1,
        "{after:?}"
    );
    ensure!(
        after.metadata.generation == Some(1) && after.metadata.labels.is_none(),
        "{after:?}"
    );
    let status = refused(
        cx.widgets()
            .patch_status(
                "a",
                &PatchParams::default(),
                &Patch::Merge(json!({"status": {"conditions": [{"type": "X"}]}})),
            )
            .await,
    )?;
    ensure!(
        status.code == 422 && status.message.contains("status.conditions[0].status: Required value"),
        "{status:?}"
    );
    Ok(())
}

async fn a_status_apply_is_owned_by_its_manager(cx: Cx) -> Result<()> {
    let object = cx.widget("a", json!({"size": 1})).await?;
    let apply = |conditions: Value| {
        Patch::Apply(
            json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "metadata": {"name": "a", "uid": object.metadata.uid}, "status": {"conditions": conditions}}),
        )
    };
    let condition = |name: &str| json!({"type": name, "status": "True"});
    cx.widgets()
        .patch_status(
            "a",
            &PatchParams::apply("one").force(),
            &apply(json!([condition("A"), condition("B")])),
        )
        .await?;
    cx.widgets()
        .patch_status("a", &PatchParams::apply("two").force(), &apply(json!([condition("C")])))
        .await?;
    let before = cx.widgets().get("a").await?;
    let again = cx
        .widgets()
        .patch_status("a", &PatchParams::apply("two").force(), &apply(json!([condition("C")])))
        .await?;
    ensure!(
        before.metadata.resource_version == again.metadata.resource_version,
        "the same apply changed something"
    );
    let after = cx
        .widgets()
        .patch_status("a", &PatchParams::apply("one").force(), &apply(json!([condition("B")])))
        .await?;
    ensure!(
        after.data["status"]["conditions"] == json!([condition("B"), condition("C")]),
        "{after:?}"
    );
    let fields = after.metadata.managed_fields.unwrap_or_default();
    ensure!(
        fields
            .iter()
            .any(|entry| entry.manager.as_deref() == Some("one") && entry.subresource.as_deref() == Some("status")),
        "{fields:?}"
    );
    Ok(())
}

async fn applies_that_create_one_object_at_once_all_succeed(cx: Cx) -> Result<()> {
    for round in 0..5 {
        let name = format!("a{round}");
        let widgets = cx.widgets();
        let apply = |manager: usize| {
            let (widgets, name) = (widgets.clone(), name.clone());
            async move {
                let note = format!("by-{manager}");
                let object = widget(&name, json!({"size": 1, "notes": {(note): "x"}}));
                let params = PatchParams::apply(&format!("manager-{manager}"));
                widgets.patch(&name, &params, &Patch::Apply(&object)).await
            }
        };
        futures::future::try_join_all((0..8).map(apply)).await?;
        let notes = widgets.get(&name).await?.data["spec"]["notes"].clone();
        ensure!(notes.as_object().is_some_and(|n| n.len() == 8), "{notes}");
    }
    Ok(())
}

async fn an_apply_without_a_manager_is_refused(cx: Cx) -> Result<()> {
    let body =
        json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 1}})
            .to_string()
            .into_bytes();
    let path = format!("/apis/suite.example.org/v1/namespaces/{}/widgets/a", cx.namespace);
    let request = http::Request::patch(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(body)?;
    let status = refused(cx.client.request_text(request).await)?;
    ensure!(
        status.code == 422
            && status
                .message
                .contains("fieldManager: Required value: is required for apply patch"),
        "{status:?}"
    );
    Ok(())
}

async fn an_apply_with_another_uid_is_refused(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let patch = |name: &str| {
        let metadata = json!({"name": name, "uid": OTHER_UID});
        Patch::Apply(
            json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "metadata": metadata, "spec": {"size": 2}}),
        )
    };
    let status = refused(
        cx.widgets()
            .patch("a", &PatchParams::apply("one").force(), &patch("a"))
            .await,
    )?;
    ensure!(
        status.code == 422
            && status
                .message
                .ends_with("metadata.uid: Invalid value: \"3b5d1c9e-0000-4000-8000-000000000000\": field is immutable"),
        "{status:?}"
    );
    let status = refused(
        cx.widgets()
            .patch("absent", &PatchParams::apply("one").force(), &patch("absent"))
            .await,
    )?;
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    Ok(())
}

/// The server takes all metadata of a status write from the stored object before it compares uids. So a
/// uid protects no successor of the same name from a late status; a resource version does.
async fn a_status_apply_ignores_the_uid_and_heeds_the_version(cx: Cx) -> Result<()> {
    let first = cx.widget("a", json!({"size": 1})).await?;
    cx.widgets().delete("a", &DeleteParams::default()).await?;
    let second = cx.widget("a", json!({"size": 1})).await?;
    let apply = |metadata: Value| {
        Patch::Apply(
            json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "metadata": metadata, "status": {"observedGeneration": 1}}),
        )
    };
    let params = PatchParams::apply("one").force();

    let late =
        apply(json!({"name": "a", "uid": first.metadata.uid, "resourceVersion": first.metadata.resource_version}));
    let status = refused(cx.widgets().patch_status("a", &params, &late).await)?;
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    let after = cx
        .widgets()
        .patch_status("a", &params, &apply(json!({"name": "a", "uid": first.metadata.uid})))
        .await?;
    ensure!(
        after.metadata.uid == second.metadata.uid && after.data["status"]["observedGeneration"] == 1,
        "{after:?}"
    );

    // An absent object is not made by a status apply.
    let status = refused(
        cx.widgets()
            .patch_status("b", &params, &apply(json!({"name": "b"})))
            .await,
    )?;
    ensure!(status.code == 404, "{status:?}");
    Ok(())
}

async fn a_delete_with_another_uid_conflicts(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(OTHER_UID.into()),
            resource_version: None,
        }),
        ..Default::default()
    };
    let status = refused(cx.widgets().delete("a", &params).await)?;
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    cx.widgets().get("a").await?;
    Ok(())
}

async fn a_delete_with_options_that_cannot_be_meant_is_refused(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let path = format!("/apis/suite.example.org/v1/namespaces/{}/widgets/a", cx.namespace);
    let both = r#"DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Invalid value: "Orphan": orphanDependents and deletionPropagation cannot be both set"#;
    let never = r#"DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "Never": supported values: "Foreground", "Background", "Orphan", "nil""#;
    let no = r#"DeleteOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["No"]: supported values: "All""#;
    for (query, body, code, message) in [
        (
            "gracePeriodSeconds=x",
            "",
            400,
            r#"strconv.ParseInt: parsing "x": invalid syntax"#,
        ),
        (
            "gracePeriodSeconds=",
            "",
            400,
            r#"strconv.ParseInt: parsing "": invalid syntax"#,
        ),
        ("orphanDependents=true&propagationPolicy=Orphan", "", 422, both),
        (
            "",
            r#"{"orphanDependents":false,"propagationPolicy":"Orphan"}"#,
            422,
            both,
        ),
        ("propagationPolicy=Never", "", 422, never),
        ("dryRun=No", "", 422, no),
        (
            "",
            r#"{"gracePeriodSeconds":"x"}"#,
            400,
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
        ),
    ] {
        let request = http::Request::delete(format!("{path}?{query}")).header("content-type", "application/json");
        let status = refused(cx.client.request::<Value>(request.body(body.into())?).await)?;
        ensure!(
            status.code == code && status.message == message,
            "{query} {body}: {status:?}"
        );
    }
    cx.widgets().get("a").await?;
    Ok(())
}

async fn a_limit_below_zero_is_none(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    cx.widget("b", json!({"size": 1})).await?;
    let path = format!("/apis/suite.example.org/v1/namespaces/{}/widgets", cx.namespace);
    let get = |query: &str| http::Request::get(format!("{path}?{query}")).body(Vec::new());
    let list: Value = cx.client.request(get("limit=-1")?).await?;
    ensure!(list["items"].as_array().map(Vec::len) == Some(2), "{list}");
    let status = refused(cx.client.request::<Value>(get("limit=x")?).await)?;
    ensure!(
        status.code == 400 && status.message == r#"strconv.ParseInt: parsing "x": invalid syntax"#,
        "{status:?}"
    );
    Ok(())
}

async fn empty_metadata_is_not_kept(cx: Cx) -> Result<()> {
    let empty = json!({"labels": {}, "annotations": {}, "finalizers": [], "ownerReferences": []});
    let namespace = &cx.namespace;
    let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    let widgets = format!("/apis/suite.example.org/v1/namespaces/{namespace}/widgets");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let widget = json!({"apiVersion": "suite.example.org/v1", "kind": "Widget", "spec": {"size": 1}});
    for (path, mut object) in [(maps, map), (widgets, widget)] {
        object["metadata"] = empty.clone();
        object["metadata"]["name"] = "empty".into();
        let request = http::Request::post(path).header("content-type", "application/json");
        let made: Value = cx.client.request(request.body(object.to_string().into())?).await?;
        for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
            ensure!(made["metadata"].get(field).is_none(), "{made}");
        }
    }
    let full = json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["suite.example.org/hold"]}});
    merge(&cx, "empty", full).await?;
    let less = merge(
        &cx,
        "empty",
        json!({"metadata": {"labels": {"a": null}, "finalizers": []}}),
    )
    .await?;
    ensure!(
        less.metadata.labels.is_none() && less.metadata.finalizers.is_none(),
        "{less:?}"
    );
    Ok(())
}

async fn an_embedded_object_needs_a_type(cx: Cx) -> Result<()> {
    let group = format!("{}.embedded.example.org", cx.namespace);
    let embedded =
        json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
    let spec = json!({"type": "object", "properties": {"object": embedded}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("boxes.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "boxes", "kind": "Box"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]},
    });
    let post = |path: &str, object: &Value| {
        let request = http::Request::post(path).header("content-type", "application/json");
        request.body(object.to_string().into_bytes())
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cx.client.request::<Value>(post(definitions, &definition)?).await?;
    let boxes = format!("/apis/{group}/v1/namespaces/{}/boxes", cx.namespace);
    let boxed = |object: Value| json!({"apiVersion": format!("{group}/v1"), "kind": "Box", "metadata": {"name": "a"}, "spec": {"object": object}});
    let named = format!(r#"Box.{group} "a" is invalid: "#);
    let refusal = wait::until("the kind is served", LIMIT, || async {
        let status = refused(cx.client.request::<Value>(post(&boxes, &boxed(json!({})))?).await)?;
        Ok(match status.code {
            422 => Seen::Done(status.message.clone()),
            _ => Seen::NotYet(format!("{status:?}")),
        })
    })
    .await?;
    ensure!(
        refusal == format!("{named}[spec.object.apiVersion: Required value, spec.object.kind: Required value]"),
        "{refusal}"
    );
    let wrong = boxed(json!({"apiVersion": "a/b/c", "kind": "A"}));
    let status = refused(cx.client.request::<Value>(post(&boxes, &wrong)?).await)?;
    ensure!(
        status.message
            == format!(
                r#"{named}spec.object.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#
            ),
        "{status:?}"
    );
    let fine = boxed(json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "any name"}}));
    cx.client.request::<Value>(post(&boxes, &fine)?).await?;
    let request = http::Request::delete(format!("{definitions}/boxes.{group}")).body(Vec::new())?;
    cx.client.request::<Value>(request).await?;
    Ok(())
}

async fn a_name_can_be_generated(cx: Cx) -> Result<()> {
    let mut object = widget("x", json!({"size": 1}));
    object.metadata.name = None;
    object.metadata.generate_name = Some("w-".into());
    let made = cx.widgets().create(&PostParams::default(), &object).await?;
    let name = made.metadata.name.context("no name")?;
    ensure!(name.starts_with("w-") && name.len() == 7, "{name}");
    Ok(())
}

async fn metadata_alone_can_be_read(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let one = cx.widgets().get_metadata("a").await?;
    ensure!(
        one.metadata.name.as_deref() == Some("a")
            && one
                .types
                .as_ref()
                .is_some_and(|types| types.kind == "PartialObjectMetadata"),
        "{one:?}"
    );
    let list = cx.widgets().list_metadata(&ListParams::default()).await?;
    ensure!(
        list.items.len() == 1 && list.types.kind == "PartialObjectMetadataList",
        "{list:?}"
    );
    Ok(())
}

async fn a_list_names_its_version(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let list = cx.widgets().list(&ListParams::default()).await?;
    let version: u64 = list.metadata.resource_version.context("no version")?.parse()?;
    let object: u64 = list.items[0]
        .metadata
        .resource_version
        .clone()
        .context("no version")?
        .parse()?;
    ensure!(version >= object, "{version} {object}");
    Ok(())
}

async fn a_version_of_the_future_times_out(cx: Cx) -> Result<()> {
    let path = format!(
        "/apis/suite.example.org/v1/namespaces/{}/widgets?resourceVersion=999999999",
        cx.namespace
    );
    // The default client takes this answer for a passing one and asks again for minutes.
    let client = vmlet_e2e::client_without_retries(&cx.kubeconfig).await?;
    let status = refused(client.request_text(http::Request::get(path).body(Vec::new())?).await)?;
    ensure!(
        status.code == 504 && status.reason == "Timeout" && status.message.contains("Too large resource version"),
        "{status:?}"
    );
    Ok(())
}

async fn a_bad_continue_token_is_refused(cx: Cx) -> Result<()> {
    let status = refused(
        cx.widgets()
            .list(&ListParams::default().limit(1).continue_token("nonsense"))
            .await,
    )?;
    ensure!(
        status.code == 400 && status.message.contains("continue key is not valid"),
        "{status:?}"
    );
    Ok(())
}

async fn delete_collection_deletes_by_label(cx: Cx) -> Result<()> {
    for name in ["a", "b"] {
        cx.widget(name, json!({"size": 1})).await?;
    }
    merge(&cx, "a", json!({"metadata": {"labels": {"x": "y"}}})).await?;
    cx.widgets()
        .delete_collection(&DeleteParams::default(), &ListParams::default().labels("x=y"))
        .await?;
    let left = cx.widgets().list(&ListParams::default()).await?;
    ensure!(
        left.items.len() == 1 && left.items[0].metadata.name.as_deref() == Some("b"),
        "{left:?}"
    );
    Ok(())
}

async fn resource_versions_grow_over_all_kinds(cx: Cx) -> Result<()> {
    let mut last = 0;
    for number in 0..5 {
        let object = cx.widget(&format!("w{number}"), json!({"size": 1})).await?;
        let map = serde_json::from_value(json!({"metadata": {"name": format!("c{number}")}}))?;
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(cx.client.clone(), &cx.namespace);
        let map = maps.create(&PostParams::default(), &map).await?;
        for version in [object.metadata.resource_version, map.metadata.resource_version] {
            let version: u64 = version.context("no version")?.parse()?;
            ensure!(version > last, "{version} after {last}");
            last = version;
        }
    }
    Ok(())
}

async fn a_json_patch_that_tests_the_uid_guards_a_finalizer(cx: Cx) -> Result<()> {
    let object = cx.widget("a", json!({"size": 1})).await?;
    let patch = |uid: &str| {
        let operations = json!([{"op": "test", "path": "/metadata/uid", "value": uid}, {"op": "add", "path": "/metadata/finalizers", "value": ["suite.example.org/hold"]}]);
        serde_json::from_value(operations).map(Patch::<DynamicObject>::Json)
    };
    let strict = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let status = refused(cx.widgets().patch("a", &strict, &patch("another")?).await)?;
    ensure!(status.code == 422 && status.reason == "Invalid", "{status:?}");
    let held = cx
        .widgets()
        .patch(
            "a",
            &strict,
            &patch(object.metadata.uid.as_deref().unwrap_or_default())?,
        )
        .await?;
    ensure!(
        held.metadata.finalizers.as_deref() == Some(&["suite.example.org/hold".to_owned()][..]),
        "{held:?}"
    );
    Ok(())
}
