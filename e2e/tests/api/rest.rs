//! What a controller needs, through kube-rs: watches, resource versions, conflicts, server-side apply.

use anyhow::{Context as _, Result, bail, ensure};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, ValidationDirective,
    WatchEvent, WatchParams,
};
use kube::core::Status;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

use crate::target::{Cx, LIMIT, widget};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![false;
        a_watch_goes_on_from_a_list,
        a_watch_from_zero_begins_with_what_is_there,
        a_watch_with_initial_events_ends_them_with_a_bookmark,
        a_watch_by_field_sees_an_object_leave_and_return,
        a_watch_by_label_sees_an_object_leave_and_return,
        a_watch_ends_at_its_time_limit,
        a_watch_from_too_old_a_version_is_expired,
        an_unchanged_update_sends_no_event,
        a_reflector_sees_deletion_and_recreation,
        a_streaming_watcher_lists_and_follows,
        an_update_with_a_stale_version_conflicts,
        a_patch_with_a_stale_version_conflicts,
        an_update_without_a_version_is_refused,
        a_status_update_leaves_spec_and_generation,
        a_status_apply_is_owned_by_its_manager,
        an_apply_without_a_manager_is_refused,
        an_apply_with_another_uid_is_refused,
        a_status_apply_ignores_the_uid_and_heeds_the_version,
        a_delete_with_another_uid_conflicts,
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

async fn next<T>(stream: &mut (impl Stream<Item = kube::Result<T>> + Unpin)) -> Result<T> {
    let item = tokio::time::timeout(LIMIT, stream.try_next())
        .await
        .context("no event in time")?;
    item?.context("the watch ended")
}

/// The event's word and its object's name.
fn word(event: &WatchEvent<DynamicObject>) -> String {
    let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
    match event {
        WatchEvent::Added(object) => format!("ADDED {}", name(object)),
        WatchEvent::Modified(object) => format!("MODIFIED {}", name(object)),
        WatchEvent::Deleted(object) => format!("DELETED {}", name(object)),
        WatchEvent::Bookmark(_) => "BOOKMARK".into(),
        WatchEvent::Error(status) => format!("ERROR {} {}", status.code, status.reason),
    }
}

async fn expect(
    stream: &mut (impl Stream<Item = kube::Result<WatchEvent<DynamicObject>>> + Unpin),
    expected: &str,
) -> Result<()> {
    loop {
        let seen = word(&next(stream).await?);
        // Bookmarks come when the server likes.
        if seen == "BOOKMARK" && expected != "BOOKMARK" {
            continue;
        }
        ensure!(seen == expected, "{seen} instead of {expected}");
        return Ok(());
    }
}

async fn merge(cx: &Cx, name: &str, patch: Value) -> Result<DynamicObject> {
    Ok(cx
        .widgets()
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?)
}

async fn a_watch_goes_on_from_a_list(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let version = cx
        .widgets()
        .list(&ListParams::default())
        .await?
        .metadata
        .resource_version
        .context("no version")?;
    cx.widget("b", json!({"size": 1})).await?;
    merge(&cx, "a", json!({"spec": {"size": 2}})).await?;
    cx.widgets().delete("b", &DeleteParams::default()).await?;
    let api = cx.widgets();
    let mut events = api.watch(&WatchParams::default(), &version).await?.boxed();
    for expected in ["ADDED b", "MODIFIED a", "DELETED b"] {
        expect(&mut events, expected).await?;
    }
    Ok(())
}

async fn a_watch_from_zero_begins_with_what_is_there(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    cx.widget("b", json!({"size": 1})).await?;
    let api = cx.widgets();
    let mut events = api
        .watch(&WatchParams::default().disable_bookmarks(), "0")
        .await?
        .boxed();
    let mut seen = [word(&next(&mut events).await?), word(&next(&mut events).await?)];
    seen.sort();
    ensure!(seen == ["ADDED a", "ADDED b"], "{seen:?}");
    Ok(())
}

async fn a_watch_with_initial_events_ends_them_with_a_bookmark(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let api = cx.widgets();
    let mut events = api.watch(&WatchParams::default().initial_events(), "0").await?.boxed();
    expect(&mut events, "ADDED a").await?;
    let WatchEvent::Bookmark(mark) = next(&mut events).await? else {
        bail!("no bookmark")
    };
    ensure!(
        mark.metadata
            .annotations
            .get("k8s.io/initial-events-end")
            .is_some_and(|end| end == "true"),
        "{:?}",
        mark.metadata.annotations
    );
    cx.widget("b", json!({"size": 1})).await?;
    expect(&mut events, "ADDED b").await
}

async fn a_watch_by_field_sees_an_object_leave_and_return(cx: Cx) -> Result<()> {
    let api = cx.widgets();
    let version = api
        .list(&ListParams::default())
        .await?
        .metadata
        .resource_version
        .context("no version")?;
    let mut events = api
        .watch(&WatchParams::default().fields("spec.owner=x"), &version)
        .await?
        .boxed();
    cx.widget("other", json!({"size": 1, "owner": "y"})).await?;
    cx.widget("a", json!({"size": 1})).await?;
    merge(&cx, "a", json!({"spec": {"owner": "x"}})).await?;
    expect(&mut events, "ADDED a").await?;
    merge(&cx, "a", json!({"spec": {"size": 2}})).await?;
    expect(&mut events, "MODIFIED a").await?;
    api.delete("a", &DeleteParams::default()).await?;
    expect(&mut events, "DELETED a").await
}

async fn a_watch_by_label_sees_an_object_leave_and_return(cx: Cx) -> Result<()> {
    let api = cx.widgets();
    let version = api
        .list(&ListParams::default())
        .await?
        .metadata
        .resource_version
        .context("no version")?;
    let mut events = api
        .watch(&WatchParams::default().labels("on=yes"), &version)
        .await?
        .boxed();
    cx.widget("a", json!({"size": 1})).await?;
    merge(&cx, "a", json!({"metadata": {"labels": {"on": "yes"}}})).await?;
    expect(&mut events, "ADDED a").await?;
    let left = merge(&cx, "a", json!({"metadata": {"labels": {"on": "no"}}})).await?;
    let WatchEvent::Deleted(old) = next(&mut events).await? else {
        bail!("no DELETED")
    };
    // The old object, at the version of the change.
    ensure!(
        old.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("on"))
            .is_some_and(|on| on == "yes"),
        "{old:?}"
    );
    ensure!(
        old.metadata.resource_version == left.metadata.resource_version,
        "{old:?}"
    );
    merge(&cx, "a", json!({"metadata": {"labels": {"on": "yes"}}})).await?;
    expect(&mut events, "ADDED a").await
}

async fn a_watch_ends_at_its_time_limit(cx: Cx) -> Result<()> {
    let api = cx.widgets();
    let params = WatchParams::default().timeout(1).disable_bookmarks();
    let events: Vec<_> = tokio::time::timeout(LIMIT, api.watch(&params, "0").await?.try_collect())
        .await
        .context("it goes on")??;
    ensure!(events.is_empty(), "{events:?}");
    Ok(())
}

async fn a_watch_from_too_old_a_version_is_expired(cx: Cx) -> Result<()> {
    let api = cx.widgets();
    let mut events = api.watch(&WatchParams::default(), "1").await?.boxed();
    expect(&mut events, "ERROR 410 Expired").await
}

async fn an_unchanged_update_sends_no_event(cx: Cx) -> Result<()> {
    let object = cx.widget("a", json!({"size": 1})).await?;
    let api = cx.widgets();
    let version = object.metadata.resource_version.clone().context("no version")?;
    let mut events = api.watch(&WatchParams::default(), &version).await?.boxed();
    let same = api.replace("a", &PostParams::default(), &object).await?;
    ensure!(
        same.metadata.resource_version.as_deref() == Some(version.as_str()),
        "{same:?}"
    );
    merge(&cx, "a", json!({"spec": {"size": 1}})).await?;
    cx.widget("b", json!({"size": 1})).await?;
    expect(&mut events, "ADDED b").await
}

async fn a_reflector_sees_deletion_and_recreation(cx: Cx) -> Result<()> {
    let first = cx.widget("a", json!({"size": 1})).await?;
    let stream = watcher(cx.widgets(), watcher::Config::default()).applied_objects();
    let mut stream = Box::pin(stream);
    let seen = tokio::time::timeout(LIMIT, stream.try_next())
        .await??
        .context("ended")?;
    ensure!(seen.metadata.uid == first.metadata.uid);
    cx.widgets().delete("a", &DeleteParams::default()).await?;
    let second = cx.widget("a", json!({"size": 2})).await?;
    let seen = tokio::time::timeout(LIMIT, stream.try_next())
        .await??
        .context("ended")?;
    ensure!(seen.metadata.uid == second.metadata.uid && first.metadata.uid != second.metadata.uid);
    Ok(())
}

async fn a_streaming_watcher_lists_and_follows(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let mut stream = Box::pin(watcher(cx.widgets(), watcher::Config::default().streaming_lists()).applied_objects());
    let seen = tokio::time::timeout(LIMIT, stream.try_next())
        .await??
        .context("ended")?;
    ensure!(seen.metadata.name.as_deref() == Some("a"));
    cx.widget("b", json!({"size": 1})).await?;
    let seen = tokio::time::timeout(LIMIT, stream.try_next())
        .await??
        .context("ended")?;
    ensure!(seen.metadata.name.as_deref() == Some("b"));
    Ok(())
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
