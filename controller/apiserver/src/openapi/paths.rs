//! `paths`: the operations on a resource.

use serde_json::{Map, Value, json};

use super::{meta, prefix, reference, schema_name};
use crate::registry::{Core, Resource, Version};
use crate::reviews::Review;

const LIST: [(&str, &str, &str); 10] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch may send bookmarks, which say how far it is.",
    ),
    (
        "continue",
        "string",
        "The next part of a list, as the part before it said.",
    ),
    (
        "fieldSelector",
        "string",
        "Only objects with such fields, like `metadata.name=x`.",
    ),
    (
        "labelSelector",
        "string",
        "Only objects with such labels, like `app=x,tier!=y`.",
    ),
    ("limit", "integer", "How many objects one part of a list has at most."),
    (
        "resourceVersion",
        "string",
        "The version of the whole to list, or after which a watch starts.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "Exact or NotOlderThan: how resourceVersion is meant.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether a watch starts with all objects that are there.",
    ),
    ("timeoutSeconds", "integer", "After how many seconds a watch ends."),
    (
        "watch",
        "boolean",
        "Whether to send changes as they come, in place of a list.",
    ),
];
const PRETTY: (&str, &str, &str) = ("pretty", "string", "Whether the answer is indented.");
const READ: (&str, &str, &str) = (
    "resourceVersion",
    "string",
    "The version of the whole that is new enough.",
);
const DRY_RUN: (&str, &str, &str) = ("dryRun", "string", "`All`: do everything but store the result.");
const MANAGER: (&str, &str, &str) = (
    "fieldManager",
    "string",
    "Who makes the change, at most 128 characters. An apply needs it.",
);
/// kubectl looks for this one: without it, it validates by itself.
const VALIDATION: (&str, &str, &str) = (
    "fieldValidation",
    "string",
    "What happens to fields that are unknown or there twice. Ignore: they are dropped. Warn: dropped with a warning. Strict: the request fails. Defaults to Warn.",
);
const FORCE: (&str, &str, &str) = (
    "force",
    "boolean",
    "Whether an apply takes fields that others own. Only for apply.",
);
const DELETE: [(&str, &str, &str); 4] = [
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How many seconds the object has to end.",
    ),
    ("orphanDependents", "boolean", "No longer used; see propagationPolicy."),
    (
        "propagationPolicy",
        "string",
        "Background, Foreground or Orphan: what happens to objects that belong to this one.",
    ),
];

fn parameters(list: &[(&str, &str, &str)]) -> Value {
    let parameter = |(name, kind, description): &(&str, &str, &str)| {
        json!({
            "name": name,
            "in": "query",
            "description": description,
            "schema": {"type": kind, "uniqueItems": true},
        })
    };
    list.iter().map(parameter).collect()
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({
        "name": name,
        "in": "path",
        "description": description,
        "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn content(types: &[&str], schema: &str) -> Value {
    let entry = |kind: &&str| ((*kind).to_owned(), json!({"schema": reference(schema)}));
    Value::Object(types.iter().map(entry).collect())
}

const FORMATS: [&str; 2] = ["application/json", "application/yaml"];

/// What all operations of one kind share.
struct Kind<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    tag: String,
}

impl Kind<'_> {
    /// One operation; `codes` are those of success, `answer` is the schema of what comes back.
    fn operation(&self, action: &str, what: &str, id: &str, codes: &[&str], answer: &str) -> Value {
        let mut responses = Map::new();
        for code in codes {
            let description = match *code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            responses.insert(
                (*code).to_owned(),
                json!({"description": description, "content": content(&FORMATS, answer)}),
            );
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        json!({
            "tags": [self.tag],
            "description": what,
            "operationId": id,
            "responses": responses,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind":
                {"group": self.group, "version": self.version, "kind": self.kind},
        })
    }
}

fn with(mut operation: Value, query: &[(&str, &str, &str)], body: Option<Value>, required: bool) -> Value {
    if !query.is_empty() {
        operation["parameters"] = parameters(query);
    }
    if let Some(content) = body {
        operation["requestBody"] = json!({"content": content});
        if required {
            operation["requestBody"]["required"] = true.into();
        }
    }
    operation
}

/// `vm.example.com` -> `VmExampleCom`, `` -> `Core`.
fn title(group: &str) -> String {
    let name = match group {
        "" => "core",
        _ => group.strip_suffix(".k8s.io").unwrap_or(group),
    };
    let parts = name.split(['.', '-']);
    parts.map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

fn tag(group: &str, version: &str) -> String {
    let title = title(group);
    let mut chars = title.chars();
    let lower: String = chars
        .next()
        .map(|c| c.to_lowercase().chain(chars).collect())
        .unwrap_or_default();
    format!("{lower}_{version}")
}

/// Adds the paths of a resource.
pub fn resource(paths: &mut Map<String, Value>, resource: &Resource, version: &Version) {
    let kind = Kind {
        group: &resource.group,
        version: &version.name,
        kind: &resource.kind,
        tag: tag(&resource.group, &version.name),
    };
    let schema = schema_name(&resource.group, &version.name, &resource.kind);
    let list = schema_name(&resource.group, &version.name, &resource.list_kind);
    let base = format!("/{}", prefix(&resource.group, &version.name));
    let scope = if resource.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let middle = format!("{}{}", title(&resource.group), capital(&version.name));
    let id = |verb: &str, part: &str| {
        let scope = if resource.namespaced { "Namespaced" } else { "" };
        format!("{verb}{middle}{scope}{}{part}", resource.kind)
    };
    let mut shared = parameters(&[PRETTY]);
    let mut add = |value: Value| {
        if let Some(list) = shared.as_array_mut() {
            list.insert(0, value);
        }
    };
    if resource.namespaced {
        add(path_parameter("namespace", "Namespace of the objects."));
    }
    let collection = format!("{base}{scope}/{}", resource.plural);
    let name = &resource.kind;
    let mut operations = json!({
        "get": with(kind.operation("list", &format!("list objects of kind {name}"), &id("list", ""), &["200"], &list), &LIST, None, false),
        "post": with(
            kind.operation("post", &format!("create {} {name}", article(name)), &id("create", ""), &["200", "201", "202"], &schema),
            &[DRY_RUN, MANAGER, VALIDATION],
            Some(content(&FORMATS, &schema)),
            true,
        ),
        "parameters": shared,
    });
    if resource.verbs().contains(&"deletecollection") {
        let what = format!("delete collection of {name}");
        let id = id("delete", "").replacen(&middle, &format!("{middle}Collection"), 1);
        let delete = kind.operation("deletecollection", &what, &id, &["200"], &meta("Status"));
        operations["delete"] = with(delete, &LIST, None, false);
    }
    paths.insert(collection.clone(), operations);
    if resource.namespaced {
        let what = format!("list objects of kind {name}");
        let id = format!("list{middle}{name}ForAllNamespaces");
        let get = with(kind.operation("list", &what, &id, &["200"], &list), &LIST, None, false);
        paths.insert(
            format!("{base}/{}", resource.plural),
            json!({"get": get, "parameters": parameters(&[PRETTY])}),
        );
    }
    if let Some(list) = shared.as_array_mut() {
        list.insert(0, path_parameter("name", &format!("Name of the {name}.")));
    }
    let item = format!("{collection}/{{name}}");
    let parts = resource.subresources(version);
    let whole: (&str, &[&str]) = ("", &["get", "update", "patch", "delete"]);
    for (part, verbs) in std::iter::once(whole).chain(parts) {
        let (path, part_id, of) = match part {
            "" => (item.clone(), String::new(), String::new()),
            _ => (format!("{item}/{part}"), capital(part), format!("{part} of ")),
        };
        let schema = match part {
            "scale" => "io.k8s.api.autoscaling.v1.Scale".to_owned(),
            _ => schema.clone(),
        };
        let mut operations = Map::new();
        operations.insert("parameters".into(), shared.clone());
        for verb in verbs {
            let (method, operation) = match *verb {
                "get" => {
                    let what = format!("read {of}the specified {name}");
                    (
                        "get",
                        with(
                            kind.operation("get", &what, &id("read", &part_id), &["200"], &schema),
                            &[READ],
                            None,
                            false,
                        ),
                    )
                }
                "update" => {
                    let what = format!("replace {of}the specified {name}");
                    let put = kind.operation("put", &what, &id("replace", &part_id), &["200", "201"], &schema);
                    let body = Some(content(&FORMATS, &schema));
                    ("put", with(put, &[DRY_RUN, MANAGER, VALIDATION], body, true))
                }
                "patch" => {
                    let what = format!("partially update {of}the specified {name}");
                    let patch = kind.operation("patch", &what, &id("patch", &part_id), &["200", "201"], &schema);
                    let body = Some(content(patch_types(resource), &meta("Patch")));
                    ("patch", with(patch, &[DRY_RUN, MANAGER, VALIDATION, FORCE], body, true))
                }
                _ => {
                    let what = format!("delete {} {name}", article(name));
                    let delete = kind.operation("delete", &what, &id("delete", ""), &["200", "202"], &meta("Status"));
                    let body = Some(content(&FORMATS, &meta("DeleteOptions")));
                    ("delete", with(delete, &DELETE, body, false))
                }
            };
            operations.insert(method.into(), operation);
        }
        paths.insert(path, operations.into());
    }
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}

/// The forms of patches, as kubectl is told.
///
/// Where a strategic merge patch is named, kubectl computes one for `apply` by the schemas of the same document.
/// Definitions take one as well, but their own schemas are of any shape, which kubectl cannot follow: it is better
/// off with a merge patch there, and the lists of definitions are replaced as a whole in any case.
fn patch_types(resource: &Resource) -> &'static [&'static str] {
    match resource.core {
        None | Some(Core::Definition) => &[
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
        ],
        Some(_) => &[
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ],
    }
}

/// Adds the path of a review.
pub fn review(paths: &mut Map<String, Value>, review: &Review) {
    let kind = Kind {
        group: review.group,
        version: "v1",
        kind: review.kind,
        tag: tag(review.group, "v1"),
    };
    let schema = schema_name(review.group, "v1", review.kind);
    let id = format!("create{}V1{}", title(review.group), review.kind);
    let what = format!("create a {}", review.kind);
    let post = kind.operation("post", &what, &id, &["200", "201", "202"], &schema);
    let post = with(
        post,
        &[DRY_RUN, MANAGER, VALIDATION],
        Some(content(&FORMATS, &schema)),
        true,
    );
    paths.insert(
        format!("/{}/{}", prefix(review.group, "v1"), review.plural),
        json!({"post": post}),
    );
}
