//! Watches, through kube-rs and its reflectors.

use anyhow::{Context as _, Result, bail, ensure};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;

use crate::rest::merge;
use crate::target::{Cx, LIMIT};
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
    ]
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
