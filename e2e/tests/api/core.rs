//! The built-in kinds that vmlet's users touch: secrets, config maps, leases, namespaces, reviews.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::target::{Cx, contains};
use crate::{Case, cases};

pub fn cases() -> Vec<Case> {
    cases![true;
        a_generic_secret_keeps_its_bytes,
        a_registry_secret_has_its_type,
        string_data_of_a_secret_becomes_data,
        the_type_of_a_secret_cannot_change,
        an_immutable_config_map_stays_as_it_is,
        config_maps_from_literals,
        built_in_kinds_print_their_columns,
        a_strategic_merge_patch_of_a_config_map_works,
        a_built_in_kind_refuses_unknown_fields,
        a_bad_name_is_refused,
        auth_can_i_answers,
        crds_print_their_columns,
        a_crd_that_is_not_structural_is_refused,
    ]
}

async fn a_generic_secret_keeps_its_bytes(cx: Cx) -> Result<()> {
    ensure!(
        cx.kubectl
            .ok(&["create", "secret", "generic", "s", "--from-literal=k=v"])
            .await?
            == "secret/s created\n"
    );
    let secret = cx.kubectl.json(&["get", "secret", "s"]).await?;
    ensure!(
        secret["data"] == json!({"k": "dg=="}) && secret["type"] == "Opaque",
        "{secret}"
    );
    Ok(())
}

async fn a_registry_secret_has_its_type(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok(&[
            "create",
            "secret",
            "docker-registry",
            "r",
            "--docker-server=127.0.0.1:5000",
            "--docker-username=u",
            "--docker-password=p",
        ])
        .await?;
    let secret = cx.kubectl.json(&["get", "secret", "r"]).await?;
    ensure!(
        secret["type"] == "kubernetes.io/dockerconfigjson" && secret["data"][".dockerconfigjson"].is_string(),
        "{secret}"
    );
    let bad = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}});
    contains(
        &cx.kubectl.fails(&["create", "-f", "-"], &bad.to_string()).await?,
        &["data[.dockerconfigjson]: Invalid value"],
    )
}

async fn string_data_of_a_secret_becomes_data(cx: Cx) -> Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}});
    cx.kubectl.ok_with(&["apply", "-f", "-"], &secret.to_string()).await?;
    let secret = cx.kubectl.json(&["get", "secret", "s"]).await?;
    ensure!(
        secret["data"] == json!({"k": "dg=="}) && secret.get("stringData").is_none(),
        "{secret}"
    );
    Ok(())
}

async fn the_type_of_a_secret_cannot_change(cx: Cx) -> Result<()> {
    cx.kubectl.ok(&["create", "secret", "generic", "s"]).await?;
    let complaint = cx
        .kubectl
        .fails(
            &["patch", "secret", "s", "--type=merge", "-p", r#"{"type":"other"}"#],
            "",
        )
        .await?;
    contains(&complaint, &["type: Invalid value: \"other\": field is immutable"])
}

async fn an_immutable_config_map_stays_as_it_is(cx: Cx) -> Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "immutable": true, "data": {"k": "v"}});
    cx.kubectl.ok_with(&["create", "-f", "-"], &map.to_string()).await?;
    let complaint = cx
        .kubectl
        .fails(
            &["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"k":"w"}}"#],
            "",
        )
        .await?;
    contains(
        &complaint,
        &["data: Forbidden: field is immutable when `immutable` is set"],
    )
}

async fn config_maps_from_literals(cx: Cx) -> Result<()> {
    ensure!(
        cx.kubectl
            .ok(&["create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=2"])
            .await?
            == "configmap/c created\n"
    );
    ensure!(cx.kubectl.json(&["get", "cm", "c"]).await?["data"] == json!({"a": "1", "b": "2"}));
    contains(
        &cx.kubectl.ok(&["describe", "configmap", "c"]).await?,
        &["Data\n====\n", "a:\n----\n1\n", "b:\n----\n2\n"],
    )
}

async fn built_in_kinds_print_their_columns(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok(&["create", "configmap", "c", "--from-literal=a=1"])
        .await?;
    cx.kubectl
        .ok(&["create", "secret", "generic", "s", "--from-literal=a=1"])
        .await?;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "me", "renewTime": "2026-01-02T03:04:05.000006Z"}});
    cx.kubectl.ok_with(&["create", "-f", "-"], &lease.to_string()).await?;
    for (name, header, row) in [
        ("configmap/c", "NAME DATA AGE", "c 1"),
        ("secret/s", "NAME TYPE DATA AGE", "s Opaque 1"),
        ("lease/l", "NAME HOLDER AGE", "l me"),
        ("namespace/default", "NAME STATUS AGE", "default Active"),
    ] {
        let table = cx.kubectl.ok(&["get", name]).await?;
        let lines: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        ensure!(lines[0] == header && lines[1].starts_with(row), "{name}: {table}");
    }
    Ok(())
}

async fn a_strategic_merge_patch_of_a_config_map_works(cx: Cx) -> Result<()> {
    cx.kubectl
        .ok(&["create", "configmap", "c", "--from-literal=a=1"])
        .await?;
    // kubectl's default patch type for built-in kinds, which apply uses too.
    cx.kubectl
        .ok(&["patch", "configmap", "c", "-p", r#"{"data":{"b":"2"}}"#])
        .await?;
    ensure!(cx.kubectl.json(&["get", "configmap", "c"]).await?["data"] == json!({"a": "1", "b": "2"}));
    Ok(())
}

async fn a_built_in_kind_refuses_unknown_fields(cx: Cx) -> Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "dada": {"k": "v"}});
    contains(
        &cx.kubectl.fails(&["create", "-f", "-"], &map.to_string()).await?,
        &["strict decoding error: unknown field \"dada\""],
    )
}

async fn a_bad_name_is_refused(cx: Cx) -> Result<()> {
    for kind in [("v1", "ConfigMap"), ("suite.example.org/v1", "Widget")] {
        let object =
            json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": "Bad_Name"}, "spec": {"size": 1}});
        let complaint = cx
            .kubectl
            .fails(&["create", "--validate=ignore", "-f", "-"], &object.to_string())
            .await?;
        contains(
            &complaint,
            &[
                "is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
            ],
        )?;
    }
    Ok(())
}

async fn auth_can_i_answers(cx: Cx) -> Result<()> {
    ensure!(cx.kubectl.ok(&["auth", "can-i", "create", "widgets"]).await? == "yes\n");
    contains(&cx.kubectl.ok(&["auth", "can-i", "--list"]).await?, &["*.*", "[*]"])?;
    contains(&cx.kubectl.ok(&["auth", "whoami"]).await?, &["Username"])
}

async fn crds_print_their_columns(cx: Cx) -> Result<()> {
    let table = cx.kubectl.ok(&["get", "crd", "widgets.suite.example.org"]).await?;
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(header == ["NAME", "CREATED", "AT"], "{table}");
    let names = cx.kubectl.json(&["get", "crd", "widgets.suite.example.org"]).await?["status"]["acceptedNames"].clone();
    ensure!(
        names["kind"] == "Widget" && names["shortNames"] == json!(["wdg"]),
        "{names}"
    );
    Ok(())
}

async fn a_crd_that_is_not_structural_is_refused(cx: Cx) -> Result<()> {
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "bads.suite.example.org"},
        "spec": {"group": "suite.example.org", "scope": "Cluster", "names": {"plural": "bads", "kind": "Bad"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"properties": {"spec": {"type": "object"}}}}}]},
    });
    let complaint = cx.kubectl.fails(&["create", "-f", "-"], &crd.to_string()).await?;
    contains(
        &complaint,
        &["spec.validation.openAPIV3Schema.type: Required value: must not be empty at the root"],
    )
}
