//! The kinds that are always there.

use std::sync::{Arc, LazyLock};

use crate::core::core_schema;
use crate::schema::Schema;

use super::{Core, Resource, Version};

/// All built-in resources; their schemas are compiled at the first call.
pub fn builtin() -> &'static [Arc<Resource>] {
    static BUILTIN: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| make().into_iter().map(Arc::new).collect());
    &BUILTIN
}

fn make() -> Vec<Resource> {
    let mut list = vec![
        resource(Core::Namespace, "", "namespaces", "Namespace", false, &["ns"]),
        resource(Core::Secret, "", "secrets", "Secret", true, &[]),
        resource(Core::ConfigMap, "", "configmaps", "ConfigMap", true, &["cm"]),
        resource(
            Core::ServiceAccount,
            "",
            "serviceaccounts",
            "ServiceAccount",
            true,
            &["sa"],
        ),
        resource(Core::Node, "", "nodes", "Node", false, &["no"]),
        resource(Core::CoreEvent, "", "events", "Event", true, &["ev"]),
        resource(Core::Event, "events.k8s.io", "events", "Event", true, &["ev"]),
        resource(Core::Lease, "coordination.k8s.io", "leases", "Lease", true, &[]),
        resource(
            Core::Definition,
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            false,
            &["crd", "crds"],
        ),
    ];
    for resource in &mut list {
        if resource.core == Some(Core::Definition) {
            resource.categories = vec!["api-extensions".into()];
        }
    }
    list
}

fn resource(core: Core, group: &str, plural: &str, kind: &str, namespaced: bool, short: &[&str]) -> Resource {
    // Both event groups are one storage, in core/v1 form.
    let (storage, stored_as) = match core {
        Core::Event => ("/events".to_owned(), "v1".to_owned()),
        _ if group.is_empty() => (format!("/{plural}"), "v1".to_owned()),
        _ => (format!("{group}/{plural}"), format!("{group}/v1")),
    };
    let selectable: &[&str] = match core {
        Core::Namespace => &["status.phase"],
        Core::Secret => &["type"],
        Core::Node => &["spec.unschedulable"],
        Core::CoreEvent => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Core::Event => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        _ => &[],
    };
    Resource {
        group: group.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        namespaced,
        short_names: short.iter().map(|s| (*s).to_owned()).collect(),
        categories: Vec::new(),
        versions: vec![Version {
            name: "v1".into(),
            status: matches!(core, Core::Namespace | Core::Node | Core::Definition),
            scale: None,
            selectable: selectable.iter().map(|s| (*s).to_owned()).collect(),
            columns: Vec::new(),
            // A test compiles them all.
            schema: Schema::compile(&core_schema(group, kind), "").ok().map(Arc::new),
            deprecation: None,
        }],
        stored_as,
        storage: Arc::from(storage),
        core: Some(core),
        origin: Default::default(),
        terminating: false,
        contested: false,
    }
}
