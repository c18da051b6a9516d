//! What is served, for clients to ask: aggregated discovery (`apidiscovery.k8s.io`) and the older documents.

use base64::Engine as _;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::registry::{Registry, Resource, Version};
use crate::reviews;

/// The Kubernetes release whose API this server follows.
const KUBERNETES: (u32, u32, u32) = (1, 36, 2);

/// Built-in groups in the order in which kube-apiserver prefers them; those of definitions follow.
const ORDER: [&str; 5] = [
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "apiextensions.k8s.io",
    "coordination.k8s.io",
];

/// Verbs of custom resources in the order of kube-apiserver.
const CUSTOM_VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];

/// `/version`.
pub fn version() -> Value {
    let (major, minor, patch) = KUBERNETES;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": major.to_string(),
        "minor": minor.to_string(),
        "emulationMajor": major.to_string(),
        "emulationMinor": minor.to_string(),
        "minCompatibilityMajor": major.to_string(),
        "minCompatibilityMinor": (minor - 1).to_string(),
        // Clients read a Kubernetes version here: kubectl warns about one too far from its own and helm compares
        // it with what a chart wants. So it is the version that is followed; the suffix says who answers.
        "gitVersion": format!("v{major}.{minor}.{patch}-vmlet.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        // These two are about kube-apiserver's build; kubectl prints none of them, client-go wants them there.
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{architecture}", std::env::consts::OS),
    })
}

/// `/api`: the old list of versions of the core group; `address` is `host:port` as clients reach it.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`: the old list of groups.
pub fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = ordered(registry).iter().map(|g| group_entry(registry, g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`, or none when there is no such group.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    if !registry.groups().iter().any(|g| g == group) {
        return None;
    }
    let mut entry = group_entry(registry, group);
    entry["kind"] = "APIGroup".into();
    entry["apiVersion"] = "v1".into();
    Some(entry)
}

/// `/api/v1` and `/apis/GROUP/VERSION`: the old list of resources, or none when there is no such version.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !registry.versions(group).iter().any(|v| v == version) {
        return None;
    }
    let mut list = Vec::new();
    for (resource, version) in served(registry, group, version) {
        legacy(resource, version, &mut list);
    }
    list.extend(reviews::served(group).map(|review| {
        json!({
            "name": review.plural,
            "singularName": review.kind.to_lowercase(),
            "namespaced": false,
            "kind": review.kind,
            "verbs": ["create"],
        })
    }));
    let mut body = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(group, version),
        "resources": list,
    });
    if !group.is_empty() {
        // kube-apiserver leaves it out for the core group.
        body["apiVersion"] = "v1".into();
    }
    Some(body)
}

/// Aggregated discovery of the core group (`/api`) or of all others (`/apis`); `version` is that of the document,
/// `v2` or `v2beta1`.
pub fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let groups = if core { vec![String::new()] } else { ordered(registry) };
    let items: Vec<Value> = groups.iter().map(|g| aggregated_group(registry, g)).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

/// The `ETag` of an aggregated document.
///
/// It is of the content: kubectl keeps documents on disk, and what is counted in this process starts anew with it.
pub fn etag(document: &[u8]) -> String {
    format!("\"{}\"", hex(&Sha256::digest(document)))
}

/// Upper case hexadecimal, as kube-apiserver writes hashes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

fn ordered(registry: &Registry) -> Vec<String> {
    let mut groups = registry.groups();
    groups.sort_by_key(|group| ORDER.iter().position(|o| o == group).unwrap_or(ORDER.len()));
    groups
}

/// `v1`, `GROUP/v1`.
pub fn group_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        _ => format!("{group}/{version}"),
    }
}

/// The resources of a group in a version.
pub fn served<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = (&'a Resource, &'a Version)> {
    let in_group = registry.all().filter(move |r| r.group == group);
    in_group.filter_map(move |r| Some((r.as_ref(), r.versions.iter().find(|v| v.name == version)?)))
}

fn group_entry(registry: &Registry, group: &str) -> Value {
    let versions = registry.versions(group).into_iter();
    let versions: Vec<Value> = versions
        .map(|v| json!({"groupVersion": group_version(group, &v), "version": v}))
        .collect();
    json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
}

fn verbs(resource: &Resource) -> &'static [&'static str] {
    if resource.is_custom() {
        &CUSTOM_VERBS
    } else {
        resource.verbs()
    }
}

fn names(entry: &mut Map<String, Value>, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry.insert("shortNames".into(), json!(resource.short_names));
    }
    if !resource.categories.is_empty() {
        entry.insert("categories".into(), json!(resource.categories));
    }
}

fn legacy(resource: &Resource, version: &Version, list: &mut Vec<Value>) {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs(resource),
        "storageVersionHash": storage_hash(resource),
    });
    if let Some(entry) = entry.as_object_mut() {
        names(entry, resource);
    }
    list.push(entry);
    for (name, verbs) in resource.subresources(version) {
        let mut entry = json!({
            "name": format!("{}/{name}", resource.plural),
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": verbs,
        });
        if name == "scale" {
            entry["group"] = "autoscaling".into();
            entry["version"] = "v1".into();
            entry["kind"] = "Scale".into();
        }
        list.push(entry);
    }
}

/// Changes when objects are stored in another version.
fn storage_hash(resource: &Resource) -> String {
    let stored = match resource.stored_as.split_once('/') {
        Some(_) => resource.stored_as.clone(),
        None => format!("/{}", resource.stored_as),
    };
    let hash = Sha256::digest(format!("{stored}/{}", resource.kind));
    base64::engine::general_purpose::STANDARD.encode(&hash[..8])
}

fn aggregated_group(registry: &Registry, group: &str) -> Value {
    let versions = registry.versions(group).into_iter().map(|version| {
        let resources = served(registry, group, &version).map(|(r, v)| aggregated_resource(r, v));
        let reviews = reviews::served(group).map(|review| {
            json!({
                "resource": review.plural,
                "responseKind": {"group": "", "version": "", "kind": review.kind},
                "scope": "Cluster",
                "singularResource": review.kind.to_lowercase(),
                "verbs": ["create"],
            })
        });
        let resources: Vec<Value> = resources.chain(reviews).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    });
    let versions: Vec<Value> = versions.collect();
    let mut metadata = Map::new();
    if !group.is_empty() {
        metadata.insert("name".into(), group.into());
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource, version: &Version) -> Value {
    // Of built-in kinds kube-apiserver names the kind alone; an empty group and version mean those of the document.
    let (group, api) = match resource.core {
        Some(_) => ("", ""),
        None => (resource.group.as_str(), version.name.as_str()),
    };
    let kind = json!({"group": group, "version": api, "kind": resource.kind});
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    let subresources = resource.subresources(version).into_iter().map(|(name, verbs)| {
        let kind = match name {
            "scale" => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
            _ => kind.clone(),
        };
        json!({"subresource": name, "responseKind": kind, "verbs": verbs})
    });
    let subresources: Vec<Value> = subresources.collect();
    if let Some(entry) = entry.as_object_mut() {
        names(entry, resource);
        if !subresources.is_empty() {
            entry.insert("subresources".into(), subresources.into());
        }
    }
    entry
}

#[cfg(test)]
mod tests;
