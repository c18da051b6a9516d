//! kubectl apply, create, patch, label, annotate, and what the server refuses.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::target::{Cx, contains, manifest};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![true;
        apply_creates_then_is_unchanged_then_configures,
        an_unchanged_apply_keeps_the_resource_version,
        apply_removes_what_left_the_manifest,
        server_side_apply_keeps_the_fields_of_other_managers,
        server_side_apply_reports_a_conflict_and_can_be_forced,
        server_side_apply_after_client_side_apply_migrates,
        server_side_apply_removes_what_left_the_manifest,
        create_twice_says_already_exists,
        an_unknown_kind_is_named_as_the_cause,
        an_unknown_field_is_refused,
        a_value_outside_the_schema_is_refused_with_its_field,
        a_missing_required_field_is_refused,
        a_validation_rule_is_refused_with_its_message,
        a_transition_rule_holds_on_update_only,
        defaults_are_filled_in,
        a_dry_run_changes_nothing,
        a_dry_run_is_validated,
        merge_patch_changes_and_removes_fields,
        json_patch_changes_and_tests_fields,
        a_strategic_merge_patch_of_a_custom_resource_is_refused,
        patch_of_the_status_leaves_the_spec,
        a_status_in_a_manifest_is_ignored,
        label_and_annotate_leave_the_generation,
        replace_needs_no_resource_version_in_the_file,
        diff_shows_what_apply_would_change,
        apply_takes_several_kinds_from_one_file,
        edit_of_an_absent_object_says_not_found,
    ]
}

async fn apply_creates_then_is_unchanged_then_configures(cx: Cx) -> Result<()> {
    let small = manifest("a", json!({"size": 1}));
    ensure!(cx.kubectl.ok_with(&["apply", "-f", "-"], &small).await? == "widget.suite.example.org/a created\n");
    ensure!(cx.kubectl.ok_with(&["apply", "-f", "-"], &small).await? == "widget.suite.example.org/a unchanged\n");
    let large = manifest("a", json!({"size": 2}));
    ensure!(cx.kubectl.ok_with(&["apply", "-f", "-"], &large).await? == "widget.suite.example.org/a configured\n");
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await?["metadata"]["generation"] == 2);
    Ok(())
}

async fn an_unchanged_apply_keeps_the_resource_version(cx: Cx) -> Result<()> {
    // The defaults inside of the list make kubectl send a patch each time.
    let text = manifest("a", json!({"size": 1, "parts": [{"name": "x"}]}));
    cx.kubectl.ok_with(&["apply", "-f", "-"], &text).await?;
    let before = cx.kubectl.json(&["get", "widget", "a"]).await?;
    cx.kubectl.ok_with(&["apply", "-f", "-"], &text).await?;
    cx.kubectl.ok_with(&["apply", "-f", "-"], &text).await?;
    let after = cx.kubectl.json(&["get", "widget", "a"]).await?;
    ensure!(
        before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"],
        "{before}\n{after}"
    );
    ensure!(before == after, "{before}\n{after}");
    Ok(())
}

async fn apply_removes_what_left_the_manifest(cx: Cx) -> Result<()> {
    let full = manifest("a", json!({"size": 1, "notes": {"x": "1", "y": "2"}, "tags": ["t"]}));
    cx.kubectl.ok_with(&["apply", "-f", "-"], &full).await?;
    let less = manifest("a", json!({"size": 1, "notes": {"y": "2"}}));
    cx.kubectl.ok_with(&["apply", "-f", "-"], &less).await?;
    let spec = cx.kubectl.json(&["get", "widget", "a"]).await?["spec"].clone();
    ensure!(
        spec == json!({"size": 1, "color": "green", "notes": {"y": "2"}}),
        "{spec}"
    );
    Ok(())
}

async fn server_side_apply_keeps_the_fields_of_other_managers(cx: Cx) -> Result<()> {
    let apply = |manager| ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
    let one = manifest("a", json!({"size": 1, "parts": [{"name": "x", "count": 5}]}));
    let out = cx.kubectl.ok_with(&apply("one"), &one).await?;
    ensure!(out == "widget.suite.example.org/a serverside-applied\n", "{out}");
    let two = manifest("a", json!({"parts": [{"name": "y"}], "notes": {"k": "v"}, "size": 1}));
    cx.kubectl.ok_with(&apply("two"), &two).await?;
    let object = cx
        .kubectl
        .json(&["get", "widget", "a", "--show-managed-fields"])
        .await?;
    let expected = json!({"size": 1, "color": "green", "notes": {"k": "v"}, "parts": [{"name": "x", "count": 5}, {"name": "y", "count": 1}]});
    ensure!(object["spec"] == expected, "{object}");
    let fields = &object["metadata"]["managedFields"];
    ensure!(fields.as_array().is_some_and(|list| list.len() == 2), "{fields}");
    ensure!(
        fields[0]["manager"] == "one"
            && fields[0]["operation"] == "Apply"
            && fields[0]["apiVersion"] == "suite.example.org/v1",
        "{fields}"
    );
    let owned =
        json!({"f:spec": {"f:size": {}, "f:parts": {"k:{\"name\":\"x\"}": {".": {}, "f:name": {}, "f:count": {}}}}});
    ensure!(fields[0]["fieldsV1"] == owned, "{fields}");
    Ok(())
}

async fn server_side_apply_reports_a_conflict_and_can_be_forced(cx: Cx) -> Result<()> {
    let apply = |manager| ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
    cx.kubectl
        .ok_with(&apply("one"), &manifest("a", json!({"size": 1})))
        .await?;
    let other = manifest("a", json!({"size": 2}));
    let complaint = cx.kubectl.fails(&apply("two"), &other).await?;
    contains(
        &complaint,
        &["Apply failed with 1 conflict: conflict with \"one\"", ".spec.size"],
    )?;
    let mut forced = apply("two").to_vec();
    forced.push("--force-conflicts");
    cx.kubectl.ok_with(&forced, &other).await?;
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await?["spec"]["size"] == 2);
    Ok(())
}

async fn server_side_apply_after_client_side_apply_migrates(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok_with(&["apply", "-f", "-"], &manifest("a", json!({"size": 1, "owner": "me"})))
        .await?;
    cx.kubectl
        .ok_with(
            &["apply", "--server-side", "-f", "-"],
            &manifest("a", json!({"size": 2, "owner": "me"})),
        )
        .await?;
    let object = cx
        .kubectl
        .json(&["get", "widget", "a", "--show-managed-fields"])
        .await?;
    let managers: Vec<_> = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| entry["manager"].clone())
        .collect();
    ensure!(
        managers.contains(&json!("kubectl")) && !managers.contains(&json!("kubectl-client-side-apply")),
        "{managers:?}"
    );
    ensure!(object["spec"]["size"] == 2, "{object}");
    Ok(())
}

async fn server_side_apply_removes_what_left_the_manifest(cx: Cx) -> Result<()> {
    let apply = ["apply", "--server-side", "-f", "-"];
    cx.kubectl
        .ok_with(
            &apply,
            &manifest("a", json!({"size": 1, "notes": {"x": "1"}, "tags": ["b", "a"]})),
        )
        .await?;
    cx.kubectl
        .ok_with(&apply, &manifest("a", json!({"size": 1, "tags": ["a"]})))
        .await?;
    let spec = cx.kubectl.json(&["get", "widget", "a"]).await?["spec"].clone();
    ensure!(spec == json!({"size": 1, "color": "green", "tags": ["a"]}), "{spec}");
    Ok(())
}

async fn create_twice_says_already_exists(cx: Cx) -> Result<()> {
    let text = manifest("a", json!({"size": 1}));
    ensure!(cx.kubectl.ok_with(&["create", "-f", "-"], &text).await? == "widget.suite.example.org/a created\n");
    let complaint = cx.kubectl.fails(&["create", "-f", "-"], &text).await?;
    contains(
        &complaint,
        &["(AlreadyExists)", "widgets.suite.example.org \"a\" already exists"],
    )
}

async fn an_unknown_kind_is_named_as_the_cause(cx: Cx) -> Result<()> {
    for (version, kind) in [
        ("suite.example.org/v1", "Gadget"),
        ("suite.example.org/v2", "Widget"),
        ("nobody.example.org/v1", "Widget"),
    ] {
        let text = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}).to_string();
        for arguments in [["apply", "-f", "-"], ["create", "-f", "-"]] {
            let said = cx.kubectl.fails(&arguments, &text).await?;
            let cause = format!("no matches for kind \"{kind}\" in version \"{version}\"");
            ensure!(said.contains(&cause), "{version} {kind}: {said}");
        }
    }
    let document: serde_json::Value = serde_json::from_str(&cx.kubectl.ok(&["get", "--raw", "/openapi/v2"]).await?)?;
    ensure!(document["swagger"] == "2.0" && document["paths"].is_object());
    Ok(())
}

async fn an_unknown_field_is_refused(cx: Cx) -> Result<()> {
    let text = manifest("a", json!({"size": 1, "sise": 2, "parts": [{"name": "x", "cuont": 1}]}));
    let complaint = cx.kubectl.fails(&["create", "-f", "-"], &text).await?;
    contains(
        &complaint,
        &[
            "(BadRequest)",
            "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: ",
        ],
    )?;
    contains(
        &complaint,
        &["unknown field \"spec.parts[0].cuont\"", "unknown field \"spec.sise\""],
    )?;
    // An apply is typed before it is decoded: its complaint is another.
    let complaint = cx
        .kubectl
        .fails(
            &["apply", "--server-side", "-f", "-"],
            &manifest("a", json!({"size": 1, "sise": 2})),
        )
        .await?;
    contains(
        &complaint,
        &[
            "failed to create typed patch object (",
            "/a; suite.example.org/v1, Kind=Widget): .spec.sise: field not declared in schema",
        ],
    )?;
    let out = cx.kubectl.run(&["create", "--validate=warn", "-f", "-"], &text).await?;
    contains(
        &String::from_utf8_lossy(&out.stderr),
        &["Warning: unknown field \"spec.sise\""],
    )?;
    ensure!(
        cx.kubectl.json(&["get", "widget", "a"]).await?["spec"]
            .get("sise")
            .is_none()
    );
    Ok(())
}

async fn a_value_outside_the_schema_is_refused_with_its_field(cx: Cx) -> Result<()> {
    let text = manifest("a", json!({"size": 99, "color": "pink", "tags": ["a", "a"]}));
    let complaint = cx.kubectl.fails(&["create", "-f", "-"], &text).await?;
    contains(
        &complaint,
        &[
            "The Widget \"a\" is invalid",
            "spec.size: Invalid value: 99: spec.size in body should be less than or equal to 64",
        ],
    )?;
    contains(
        &complaint,
        &[
            "spec.color: Unsupported value: \"pink\": supported values: \"red\", \"green\", \"blue\"",
            "spec.tags[1]: Duplicate value: \"a\"",
        ],
    )?;
    let complaint = cx
        .kubectl
        .fails(
            &["create", "--validate=ignore", "-f", "-"],
            &manifest("a", json!({"size": "big"})),
        )
        .await?;
    contains(
        &complaint,
        &["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""],
    )
}

async fn a_missing_required_field_is_refused(cx: Cx) -> Result<()> {
    let complaint = cx
        .kubectl
        .fails(&["create", "-f", "-"], &manifest("a", json!({})))
        .await?;
    contains(
        &complaint,
        &["The Widget \"a\" is invalid", "spec.size: Required value"],
    )
}

async fn a_validation_rule_is_refused_with_its_message(cx: Cx) -> Result<()> {
    let complaint = cx
        .kubectl
        .fails(&["create", "-f", "-"], &manifest("a", json!({"size": 11})))
        .await?;
    contains(
        &complaint,
        &[
            "The Widget \"a\" is invalid: spec.size: Invalid value: ",
            "only red widgets are larger than 10",
        ],
    )?;
    cx.kubectl
        .ok_with(
            &["create", "-f", "-"],
            &manifest("a", json!({"size": 11, "color": "red"})),
        )
        .await?;
    Ok(())
}

async fn a_transition_rule_holds_on_update_only(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok_with(&["create", "-f", "-"], &manifest("a", json!({"size": 1})))
        .await?;
    cx.kubectl
        .ok(&[
            "patch",
            "widget",
            "a",
            "--type=merge",
            "-p",
            r#"{"spec":{"owner":"x"}}"#,
        ])
        .await?;
    for patch in [r#"{"spec":{"owner":"y"}}"#, r#"{"spec":{"owner":null}}"#] {
        let complaint = cx
            .kubectl
            .fails(&["patch", "widget", "a", "--type=merge", "-p", patch], "")
            .await?;
        contains(
            &complaint,
            &["spec: Invalid value: ", "owner cannot be changed once set"],
        )?;
    }
    Ok(())
}

async fn defaults_are_filled_in(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok_with(
            &["create", "-f", "-"],
            &manifest(
                "a",
                json!({"size": 1, "parts": [{"name": "x"}], "port": "http", "free": {"any": [1, {"thing": true}]}}),
            ),
        )
        .await?;
    let spec = cx.kubectl.json(&["get", "widget", "a"]).await?["spec"].clone();
    let expected = json!({"size": 1, "color": "green", "parts": [{"name": "x", "count": 1}], "port": "http", "free": {"any": [1, {"thing": true}]}});
    ensure!(spec == expected, "{spec}");
    Ok(())
}

async fn a_dry_run_changes_nothing(cx: Cx) -> Result<()> {
    let dry = ["apply", "--dry-run=server", "-f", "-"];
    let out = cx.kubectl.ok_with(&dry, &manifest("a", json!({"size": 1}))).await?;
    ensure!(out == "widget.suite.example.org/a created (server dry run)\n", "{out}");
    contains(&cx.kubectl.fails(&["get", "widget", "a"], "").await?, &["NotFound"])?;
    cx.kubectl
        .ok_with(&["apply", "-f", "-"], &manifest("a", json!({"size": 1})))
        .await?;
    let before = cx.kubectl.json(&["get", "widget", "a"]).await?;
    cx.kubectl.ok_with(&dry, &manifest("a", json!({"size": 2}))).await?;
    cx.kubectl.ok(&["delete", "widget", "a", "--dry-run=server"]).await?;
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await? == before);
    Ok(())
}

async fn a_dry_run_is_validated(cx: Cx) -> Result<()> {
    let complaint = cx
        .kubectl
        .fails(
            &["apply", "--dry-run=server", "-f", "-"],
            &manifest("a", json!({"size": 11})),
        )
        .await?;
    contains(&complaint, &["only red widgets are larger than 10"])
}

async fn merge_patch_changes_and_removes_fields(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1, "notes": {"x": "1", "y": "2"}}))
        .await?;
    let out = cx
        .kubectl
        .ok(&[
            "patch",
            "widget",
            "a",
            "--type=merge",
            "-p",
            r#"{"spec":{"size":3,"notes":{"x":null}}}"#,
        ])
        .await?;
    ensure!(out == "widget.suite.example.org/a patched\n", "{out}");
    let out = cx
        .kubectl
        .ok(&["patch", "widget", "a", "--type=merge", "-p", r#"{"spec":{"size":3}}"#])
        .await?;
    ensure!(out == "widget.suite.example.org/a patched (no change)\n", "{out}");
    let spec = cx.kubectl.json(&["get", "widget", "a"]).await?["spec"].clone();
    ensure!(
        spec == json!({"size": 3, "color": "green", "notes": {"y": "2"}}),
        "{spec}"
    );
    Ok(())
}

async fn json_patch_changes_and_tests_fields(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1, "tags": ["x"]})).await?;
    let patch = r#"[{"op":"test","path":"/spec/size","value":1},{"op":"add","path":"/spec/tags/-","value":"y"}]"#;
    cx.kubectl
        .ok(&["patch", "widget", "a", "--type=json", "-p", patch])
        .await?;
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await?["spec"]["tags"] == json!(["x", "y"]));
    for patch in [
        r#"[{"op":"test","path":"/spec/size","value":2}]"#,
        r#"[{"op":"remove","path":"/spec/absent"}]"#,
    ] {
        let complaint = cx
            .kubectl
            .fails(&["patch", "widget", "a", "--type=json", "-p", patch], "")
            .await?;
        contains(
            &complaint,
            &["The request is invalid: the server rejected our request due to an error in our request"],
        )?;
    }
    Ok(())
}

async fn a_strategic_merge_patch_of_a_custom_resource_is_refused(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let complaint = cx
        .kubectl
        .fails(
            &[
                "patch",
                "widget",
                "a",
                "--type=strategic",
                "-p",
                r#"{"spec":{"size":2}}"#,
            ],
            "",
        )
        .await?;
    contains(
        &complaint,
        &[
            "application/strategic-merge-patch+json is not supported by suite.example.org/v1, Kind=Widget: the body of the request was in an unknown format",
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ],
    )
}

async fn patch_of_the_status_leaves_the_spec(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    let patch =
        r#"{"spec":{"size":5},"status":{"observedGeneration":1,"conditions":[{"type":"Ready","status":"True"}]}}"#;
    cx.kubectl
        .ok(&[
            "patch",
            "widget",
            "a",
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ])
        .await?;
    let object = cx.kubectl.json(&["get", "widget", "a"]).await?;
    ensure!(
        object["spec"]["size"] == 1 && object["metadata"]["generation"] == 1,
        "{object}"
    );
    ensure!(
        object["status"] == json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}),
        "{object}"
    );
    cx.kubectl
        .ok(&[
            "patch",
            "widget",
            "a",
            "--type=merge",
            "-p",
            r#"{"status":{"observedGeneration":7}}"#,
        ])
        .await?;
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await?["status"]["observedGeneration"] == 1);
    ensure!(
        cx.kubectl.json(&["get", "widget", "a", "--subresource=status"]).await?["status"]["observedGeneration"] == 1
    );
    Ok(())
}

async fn a_status_in_a_manifest_is_ignored(cx: Cx) -> Result<()> {
    let mut object: serde_json::Value = serde_json::from_str(&manifest("a", json!({"size": 1})))?;
    object["status"] = json!({"observedGeneration": 3});
    cx.kubectl.ok_with(&["create", "-f", "-"], &object.to_string()).await?;
    ensure!(cx.kubectl.json(&["get", "widget", "a"]).await?.get("status").is_none());
    Ok(())
}

async fn label_and_annotate_leave_the_generation(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1})).await?;
    ensure!(cx.kubectl.ok(&["label", "widget", "a", "tier=x"]).await? == "widget.suite.example.org/a labeled\n");
    let complaint = cx.kubectl.fails(&["label", "widget", "a", "tier=y"], "").await?;
    contains(&complaint, &["already has a value (x), and --overwrite is false"])?;
    cx.kubectl
        .ok(&["label", "widget", "a", "tier=y", "--overwrite"])
        .await?;
    ensure!(
        cx.kubectl.ok(&["annotate", "widget", "a", "note=hello"]).await? == "widget.suite.example.org/a annotated\n"
    );
    let metadata = cx.kubectl.json(&["get", "widget", "a"]).await?["metadata"].clone();
    ensure!(
        metadata["labels"] == json!({"tier": "y"})
            && metadata["annotations"] == json!({"note": "hello"})
            && metadata["generation"] == 1,
        "{metadata}"
    );
    ensure!(cx.kubectl.ok(&["label", "widget", "a", "tier-"]).await? == "widget.suite.example.org/a unlabeled\n");
    let complaint = cx.kubectl.fails(&["label", "widget", "a", "bad key=x"], "").await?;
    contains(&complaint, &["bad key"])
}

async fn replace_needs_no_resource_version_in_the_file(cx: Cx) -> Result<()> {
    cx.widget("a", json!({"size": 1, "owner": "me"})).await?;
    let out = cx
        .kubectl
        .ok_with(
            &["replace", "-f", "-"],
            &manifest("a", json!({"size": 4, "owner": "me"})),
        )
        .await?;
    ensure!(out == "widget.suite.example.org/a replaced\n", "{out}");
    let complaint = cx
        .kubectl
        .fails(&["replace", "-f", "-"], &manifest("b", json!({"size": 4})))
        .await?;
    contains(&complaint, &["(NotFound)", "widgets.suite.example.org \"b\" not found"])
}

async fn diff_shows_what_apply_would_change(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok_with(&["apply", "-f", "-"], &manifest("a", json!({"size": 1})))
        .await?;
    let output = cx
        .kubectl
        .run(&["diff", "-f", "-"], &manifest("a", json!({"size": 2})))
        .await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    contains(&String::from_utf8_lossy(&output.stdout), &["-  size: 1", "+  size: 2"])?;
    let output = cx
        .kubectl
        .run(&["diff", "-f", "-"], &manifest("a", json!({"size": 1})))
        .await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

async fn apply_takes_several_kinds_from_one_file(cx: Cx) -> Result<()> {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n---\napiVersion: suite.example.org/v1\nkind: Widget\nmetadata: {name: a}\nspec: {size: 1}\n";
    let out = cx.kubectl.ok_with(&["apply", "-f", "-"], text).await?;
    ensure!(
        out == "configmap/c created\nwidget.suite.example.org/a created\n",
        "{out}"
    );
    let out = cx.kubectl.ok_with(&["delete", "-f", "-"], text).await?;
    contains(
        &out,
        &["configmap \"c\" deleted", "widget.suite.example.org \"a\" deleted"],
    )
}

async fn edit_of_an_absent_object_says_not_found(cx: Cx) -> Result<()> {
    let complaint = cx.kubectl.fails(&["edit", "widget", "nope"], "").await?;
    contains(
        &complaint,
        &["Error from server (NotFound): widgets.suite.example.org \"nope\" not found"],
    )
}
