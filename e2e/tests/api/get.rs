//! kubectl get, describe, explain, api-resources, wait: what a user sees.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::target::{Cx, LIMIT, contains};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![true;
        get_prints_the_columns_of_the_kind,
        get_of_nothing_says_so,
        get_of_an_absent_object_says_not_found,
        get_of_an_unknown_kind_says_so,
        get_as_yaml_and_json_and_names_and_jsonpath,
        get_selects_by_label_and_field,
        get_refuses_an_unknown_field_selector,
        get_in_all_namespaces_has_the_namespace_column,
        get_by_category_and_short_name,
        get_pages_through_a_long_list,
        pages_of_a_list_are_of_the_version_of_the_first,
        get_sorts_and_prints_custom_columns,
        watch_prints_changes,
        wait_for_a_condition,
        wait_for_a_jsonpath_and_for_creation,
        wait_gives_up_in_time,
        describe_shows_fields_and_events,
        explain_describes_fields,
        api_resources_lists_kinds_with_short_names_and_verbs,
        version_and_health_answer,
        raw_paths_that_are_not_served_are_not_found,
    ]
}

async fn get_prints_the_columns_of_the_kind(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1, "owner": "me"})).await?;
    cx.kubectl
        .ok(&[
            "patch",
            "widget",
            "a",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
        ])
        .await?;
    let table = cx.kubectl.ok(&["get", "widgets"]).await?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0] == ["NAME", "SIZE", "COLOR", "READY", "AGE"], "{table}");
    ensure!(
        rows[1][..4] == ["a", "1", "green", "True"] && rows[1][4].ends_with('s'),
        "{table}"
    );
    let wide = cx.kubectl.ok(&["get", "widgets", "-o", "wide"]).await?;
    let rows: Vec<Vec<&str>> = wide.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(
        rows[0] == ["NAME", "SIZE", "COLOR", "READY", "AGE", "OWNER"] && rows[1][5] == "me",
        "{wide}"
    );
    let bare = cx
        .kubectl
        .ok(&["get", "widget/a", "--no-headers", "--show-labels"])
        .await?;
    ensure!(bare.starts_with("a ") && bare.trim_end().ends_with("<none>"), "{bare}");
    Ok(())
}

async fn get_of_nothing_says_so(cx: Cx) -> Result<()> {
    let output = cx.kubectl.run(&["get", "widgets"], "").await?;
    ensure!(output.status.success() && output.stdout.is_empty());
    contains(&String::from_utf8_lossy(&output.stderr), &["No resources found in"])
}

async fn get_of_an_absent_object_says_not_found(cx: Cx) -> Result<()> {
    let complaint = cx.kubectl.fails(&["get", "widget", "nope"], "").await?;
    ensure!(
        complaint == "Error from server (NotFound): widgets.suite.example.org \"nope\" not found\n",
        "{complaint}"
    );
    ensure!(
        cx.kubectl
            .ok(&["get", "widget", "nope", "--ignore-not-found"])
            .await?
            .is_empty()
    );
    Ok(())
}

async fn get_of_an_unknown_kind_says_so(cx: Cx) -> Result<()> {
    let complaint = cx.kubectl.fails(&["get", "gadgets"], "").await?;
    contains(&complaint, &["the server doesn't have a resource type \"gadgets\""])
}

async fn get_as_yaml_and_json_and_names_and_jsonpath(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 7})).await?;
    let yaml = cx.kubectl.ok(&["get", "widget", "a", "-o", "yaml"]).await?;
    contains(
        &yaml,
        &[
            "apiVersion: suite.example.org/v1\nkind: Widget\nmetadata:\n",
            "  name: a\n",
            "spec:\n  color: green\n  size: 7\n",
        ],
    )?;
    let list = cx.kubectl.json(&["get", "widgets"]).await?;
    ensure!(
        list["kind"] == "List" && list["items"][0]["spec"]["size"] == 7,
        "{list}"
    );
    let metadata = &list["items"][0]["metadata"];
    ensure!(
        metadata["namespace"] == cx.namespace.as_str() && metadata["uid"].as_str().is_some_and(|uid| uid.len() == 36),
        "{metadata}"
    );
    ensure!(
        metadata["creationTimestamp"]
            .as_str()
            .is_some_and(|time| time.len() == 20 && time.ends_with('Z')),
        "{metadata}"
    );
    ensure!(cx.kubectl.ok(&["get", "widgets", "-o", "name"]).await? == "widget.suite.example.org/a\n");
    ensure!(
        cx.kubectl
            .ok(&["get", "widget", "a", "-o", "jsonpath={.spec.size}"])
            .await?
            == "7"
    );
    Ok(())
}

async fn get_selects_by_label_and_field(cx: Cx) -> Result<()> {
    for (name, owner, tier) in [("a", "x", "one"), ("b", "y", "two"), ("c", "x", "two")] {
        cx.widget(name, json!({"size": 1, "owner": owner})).await?;
        cx.kubectl
            .ok(&["label", "widget", name, &format!("tier={tier}")])
            .await?;
    }
    let names = |selector: &'static str| {
        let cx = cx.clone();
        async move {
            let out = cx
                .kubectl
                .ok(&["get", "widgets", selector, "-o", "jsonpath={.items[*].metadata.name}"])
                .await?;
            anyhow::Ok(out)
        }
    };
    for (selector, expected) in [
        ("--selector=tier=two", "b c"),
        ("--selector=tier!=two", "a"),
        ("--selector=tier in (one,two),tier notin (one)", "b c"),
        ("--selector=!tier", ""),
        ("--selector=tier", "a b c"),
        ("--field-selector=spec.owner=x", "a c"),
        ("--field-selector=spec.owner!=x", "b"),
        ("--field-selector=metadata.name=b", "b"),
        ("--field-selector=spec.owner=x,metadata.name=c", "c"),
    ] {
        let found = names(selector).await?;
        ensure!(found == expected, "{selector}: {found:?} instead of {expected:?}");
    }
    Ok(())
}

async fn get_refuses_an_unknown_field_selector(cx: Cx) -> Result<()> {
    let complaint = cx
        .kubectl
        .fails(&["get", "widgets", "--field-selector=spec.size=1"], "")
        .await?;
    contains(&complaint, &["BadRequest", "field label not supported: spec.size"])
}

async fn get_in_all_namespaces_has_the_namespace_column(cx: Cx) -> Result<()> {
    cx.widget("everywhere", json!({"size": 1})).await?;
    let table = cx.kubectl.ok(&["get", "widgets", "-A"]).await?;
    ensure!(table.starts_with("NAMESPACE"), "{table}");
    let row = table
        .lines()
        .find(|line| line.starts_with(&format!("{} ", cx.namespace)))
        .context(table.clone())?;
    ensure!(row.contains("everywhere"), "{table}");
    Ok(())
}

async fn get_by_category_and_short_name(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    for kind in [
        "suite",
        "wdg",
        "widget",
        "widgets",
        "Widget",
        "widgets.suite.example.org",
        "widgets.v1.suite.example.org",
    ] {
        let out = cx.kubectl.ok(&["get", kind, "-o", "name"]).await?;
        ensure!(out == "widget.suite.example.org/a\n", "{kind}: {out}");
    }
    Ok(())
}

async fn get_pages_through_a_long_list(cx: Cx) -> Result<()> {
    for number in 0..7 {
        cx.widget(&format!("w{number}"), json!({"size": 1})).await?;
    }
    let out = cx
        .kubectl
        .ok(&["get", "widgets", "--chunk-size=3", "-o", "name"])
        .await?;
    ensure!(out.lines().count() == 7, "{out}");
    let path = format!("/apis/suite.example.org/v1/namespaces/{}/widgets?limit=3", cx.namespace);
    let page: serde_json::Value = serde_json::from_str(&cx.kubectl.ok(&["get", "--raw", &path]).await?)?;
    ensure!(
        page["metadata"]["remainingItemCount"] == 4 && page["items"].as_array().is_some_and(|items| items.len() == 3),
        "{page}"
    );
    let token = page["metadata"]["continue"].as_str().context("no continue token")?;
    let next: serde_json::Value = serde_json::from_str(
        &cx.kubectl
            .ok(&["get", "--raw", &format!("{path}&continue={token}")])
            .await?,
    )?;
    ensure!(
        next["items"][0]["metadata"]["name"] == "w3"
            && next["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"],
        "{next}"
    );
    Ok(())
}

async fn pages_of_a_list_are_of_the_version_of_the_first(cx: Cx) -> Result<()> {
    for number in 0..5 {
        cx.widget(&format!("w{number}"), json!({"size": 1})).await?;
    }
    let path = format!("/apis/suite.example.org/v1/namespaces/{}/widgets?limit=2", cx.namespace);
    let mut page: serde_json::Value = serde_json::from_str(&cx.kubectl.ok(&["get", "--raw", &path]).await?)?;
    cx.kubectl.ok(&["delete", "widget", "w1", "w4"]).await?;
    cx.widget("w5", json!({"size": 1})).await?;
    cx.kubectl
        .ok(&["patch", "widget", "w3", "--type=merge", "-p", r#"{"spec":{"size":7}}"#])
        .await?;
    let mut seen = Vec::new();
    loop {
        for item in page["items"].as_array().into_iter().flatten() {
            seen.push(format!("{}={}", item["metadata"]["name"], item["spec"]["size"]));
        }
        let token = page["metadata"]["continue"].as_str().unwrap_or_default();
        if token.is_empty() {
            break;
        }
        let next = format!("{path}&continue={token}");
        page = serde_json::from_str(&cx.kubectl.ok(&["get", "--raw", &next]).await?)?;
    }
    let wanted: Vec<String> = (0..5).map(|number| format!("\"w{number}\"=1")).collect();
    ensure!(seen == wanted, "{seen:?}");
    Ok(())
}

async fn get_sorts_and_prints_custom_columns(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 9})).await?;
    cx.widget("b", json!({"size": 2})).await?;
    let out = cx
        .kubectl
        .ok(&[
            "get",
            "widgets",
            "--sort-by=.spec.size",
            "-o",
            "custom-columns=N:.metadata.name,S:.spec.size",
        ])
        .await?;
    let rows: Vec<String> = out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    ensure!(rows == ["N S", "b 2", "a 9"], "{out}");
    Ok(())
}

async fn watch_prints_changes(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let mut child = cx
        .kubectl
        .command(&["get", "widgets", "-w", "--output-watch-events"])
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut expect = async |event: &str, name: &str| -> Result<()> {
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .with_context(|| format!("no line for {event} {name}"))??
            .context("the watch ended")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words[..2] == [event, name], "{line:?} instead of {event} {name}");
        Ok(())
    };
    expect("EVENT", "NAME").await?;
    expect("ADDED", "a").await?;
    cx.widget("b", json!({"size": 1})).await?;
    expect("ADDED", "b").await?;
    cx.kubectl
        .ok(&["patch", "widget", "b", "--type=merge", "-p", r#"{"spec":{"size":2}}"#])
        .await?;
    expect("MODIFIED", "b").await?;
    cx.kubectl.ok(&["delete", "widget", "b"]).await?;
    expect("DELETED", "b").await
}

async fn wait_for_a_condition(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let waiting = cx
        .kubectl
        .ok(&["wait", "widget/a", "--for=condition=Ready", "--timeout=30s"]);
    let setting = async {
        for status in ["False", "True"] {
            let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}).to_string();
            cx.kubectl
                .ok(&[
                    "patch",
                    "widget",
                    "a",
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    &patch,
                ])
                .await?;
        }
        Ok(())
    };
    let (out, ()) = tokio::try_join!(waiting, setting)?;
    ensure!(out == "widget.suite.example.org/a condition met\n", "{out}");
    Ok(())
}

async fn wait_for_a_jsonpath_and_for_creation(cx: Cx) -> Result<()> {
    let waiting = cx.kubectl.ok(&["wait", "widget/a", "--for=create", "--timeout=30s"]);
    let creating = async { cx.widget("a", json!({"size": 3})).await };
    tokio::try_join!(waiting, creating)?;
    cx.kubectl
        .ok(&["wait", "widget/a", "--for=jsonpath={.spec.size}=3", "--timeout=30s"])
        .await?;
    Ok(())
}

async fn wait_gives_up_in_time(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let complaint = cx
        .kubectl
        .fails(&["wait", "widget/a", "--for=condition=Ready", "--timeout=1s"], "")
        .await?;
    contains(&complaint, &["timed out waiting for the condition on widgets/a"])
}

async fn describe_shows_fields_and_events(cx: Cx) -> Result<()> {
    let object = cx.widget("a", json!({"size": 1})).await?;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a.1", "namespace": cx.namespace},
        "eventTime": "2026-01-02T03:04:05.000006Z", "type": "Warning", "reason": "Rattles", "action": "Shake", "note": "it rattles when shaken",
        "reportingController": "suite", "reportingInstance": "suite-1",
        "regarding": {"apiVersion": "suite.example.org/v1", "kind": "Widget", "name": "a", "namespace": cx.namespace, "uid": object.metadata.uid},
    });
    cx.kubectl.ok_with(&["create", "-f", "-"], &event.to_string()).await?;
    let text = cx.kubectl.ok(&["describe", "widget", "a"]).await?;
    contains(
        &text,
        &[
            "Name:         a",
            "Kind:         Widget",
            "Size:   1",
            "Events:",
            "Warning",
            "Rattles",
            "it rattles when shaken",
        ],
    )?;
    let events = cx.kubectl.ok(&["events", "--for=widget/a"]).await?;
    contains(&events, &["Rattles"])?;
    let table = cx.kubectl.ok(&["get", "events"]).await?;
    contains(
        &table,
        &["LAST SEEN", "REASON", "OBJECT", "widget/a", "it rattles when shaken"],
    )
}

async fn explain_describes_fields(cx: Cx) -> Result<()> {
    let text = cx.kubectl.ok(&["explain", "widget.spec"]).await?;
    contains(
        &text,
        &[
            "KIND:       Widget",
            "GROUP:      suite.example.org",
            "What the widget should be.",
            "size\t<integer> -required-",
            "Size in millimetres.",
            "enum: red, green, blue",
        ],
    )?;
    let text = cx.kubectl.ok(&["explain", "widget", "--recursive"]).await?;
    contains(
        &text,
        &["A Widget is what the suite makes and breaks.", "parts\t<[]Object>"],
    )?;
    let complaint = cx.kubectl.fails(&["explain", "widget.spec.nope"], "").await?;
    contains(&complaint, &["field \"nope\" does not exist"])
}

async fn api_resources_lists_kinds_with_short_names_and_verbs(cx: Cx) -> Result<()> {
    let text = cx.kubectl.ok(&["api-resources", "-o", "wide", "--no-headers"]).await?;
    let row = text
        .lines()
        .find(|line| line.starts_with("widgets "))
        .context("widgets are not listed")?;
    let words: Vec<&str> = row.split_whitespace().collect();
    ensure!(
        words
            == [
                "widgets",
                "wdg",
                "suite.example.org/v1",
                "true",
                "Widget",
                "delete,deletecollection,get,list,patch,create,update,watch",
                "suite"
            ],
        "{row}"
    );
    for kind in [
        "namespaces",
        "secrets",
        "configmaps",
        "events",
        "leases",
        "customresourcedefinitions",
    ] {
        ensure!(
            text.lines().any(|line| line.starts_with(&format!("{kind} "))),
            "{kind} are not listed"
        );
    }
    contains(
        &cx.kubectl.ok(&["api-versions"]).await?,
        &["suite.example.org/v1\n", "v1\n", "apiextensions.k8s.io/v1\n"],
    )
}

async fn version_and_health_answer(cx: Cx) -> Result<()> {
    contains(&cx.kubectl.ok(&["version"]).await?, &["Server Version: v1."])?;
    for path in ["/readyz", "/livez", "/healthz"] {
        ensure!(cx.kubectl.ok(&["get", "--raw", path]).await? == "ok", "{path}");
    }
    Ok(())
}

async fn raw_paths_that_are_not_served_are_not_found(cx: Cx) -> Result<()> {
    for path in [
        "/apis/suite.example.org/v2/widgets",
        "/apis/nope.example.org",
        "/api/v1/nopes",
    ] {
        let complaint = cx.kubectl.fails(&["get", "--raw", path], "").await?;
        contains(
            &complaint,
            &["Error from server (NotFound): the server could not find the requested resource"],
        )?;
    }
    Ok(())
}
