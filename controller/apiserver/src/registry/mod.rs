//! Which resources are served: the built-in ones and those of the CustomResourceDefinitions.

mod builtin;
pub mod definition;
pub mod naming;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub use builtin::builtin;

/// Rules of a built-in kind; everything else follows its schema alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "CoreEvent is the event of the core group")]
pub enum Core {
    /// `namespaces`
    Namespace,
    /// `secrets`
    Secret,
    /// `configmaps`
    ConfigMap,
    /// `serviceaccounts`
    ServiceAccount,
    /// `nodes`
    Node,
    /// `events` of core/v1, the form in which they are stored.
    CoreEvent,
    /// The same events by their newer name.
    Event,
    /// `leases`
    Lease,
    /// `customresourcedefinitions`
    Definition,
}

/// A served resource.
#[derive(Debug)]
pub struct Resource {
    /// Empty for core.
    pub group: String,
    /// Lower case plural, as in the path.
    pub plural: String,
    /// Lower case singular.
    pub singular: String,
    /// CamelCase.
    pub kind: String,
    /// Usually kind + `List`.
    pub list_kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// For kubectl.
    pub short_names: Vec<String>,
    /// For kubectl.
    pub categories: Vec<String>,
    /// Served versions, the preferred one first.
    pub versions: Vec<Version>,
    /// `apiVersion` of the stored form.
    pub stored_as: String,
    /// `group/plural` under which objects are stored.
    pub storage: Arc<str>,
    /// Rules of a built-in kind.
    pub core: Option<Core>,
    /// Uid and version of the CustomResourceDefinition it came from; both empty for built-in ones.
    pub origin: (String, String),
    /// The CustomResourceDefinition is being deleted: no new objects.
    pub terminating: bool,
    /// The CustomResourceDefinition wants names that another one has.
    pub contested: bool,
}

/// One served version of a resource.
#[derive(Debug)]
pub struct Version {
    /// Like `v1alpha1`.
    pub name: String,
    /// `status` is a subresource.
    pub status: bool,
    /// JSON paths of the scale subresource.
    pub scale: Option<Scale>,
    /// Fields, besides name and namespace, that field selectors may name.
    pub selectable: Vec<String>,
    /// Columns of the Table form, in the shape of `additionalPrinterColumns`; empty means Name and Age.
    pub columns: Vec<Value>,
    /// What objects look like; none for built-in kinds whose rules are code.
    pub schema: Option<Arc<crate::schema::Schema>>,
    /// Text for a `Warning` header on every use of a deprecated version.
    pub deprecation: Option<String>,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Like `.spec.replicas`.
    pub spec: String,
    /// Like `.status.replicas`.
    pub status: String,
    /// Like `.status.selector`.
    pub selector: Option<String>,
}

impl Resource {
    /// `apiVersion` in this version.
    pub fn api_version(&self, version: &Version) -> String {
        if self.group.is_empty() {
            version.name.clone()
        } else {
            format!("{}/{}", self.group, version.name)
        }
    }

    /// Whether this is a custom resource.
    pub fn is_custom(&self) -> bool {
        self.core.is_none()
    }

    /// Verbs in discovery's order.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.core {
            Some(Core::Namespace) => &["create", "delete", "get", "list", "patch", "update", "watch"],
            _ => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        }
    }

    /// Subresources of a version with their verbs and the kind of the answer.
    pub fn subresources(&self, version: &Version) -> Vec<(&'static str, &'static [&'static str])> {
        let mut list: Vec<(&'static str, &'static [&'static str])> = Vec::new();
        if self.core == Some(Core::Namespace) {
            list.push(("finalize", &["update"]));
        }
        if version.status {
            list.push(("status", &["get", "patch", "update"]));
        }
        if version.scale.is_some() {
            list.push(("scale", &["get", "patch", "update"]));
        }
        list
    }
}

/// All that is served at one moment; replaced whole when a CustomResourceDefinition changes.
#[derive(Debug, Default)]
pub struct Registry {
    resources: BTreeMap<(String, String), Arc<Resource>>,
    /// Changes with every change of what is served; part of discovery's etags.
    pub epoch: u64,
}

impl Registry {
    /// Built-in resources and those given.
    pub fn new(custom: Vec<Arc<Resource>>, epoch: u64) -> Registry {
        let resources = builtin()
            .iter()
            .cloned()
            .chain(custom)
            .map(|r| ((r.group.clone(), r.plural.clone()), r))
            .collect();
        Registry { resources, epoch }
    }

    /// The resource under `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<(Arc<Resource>, usize)> {
        let resource = self.resources.get(&(group.to_owned(), plural.to_owned()))?;
        let index = resource.versions.iter().position(|v| v.name == version)?;
        Some((resource.clone(), index))
    }

    /// The resource that stores under `group/plural`.
    pub fn stored_at(&self, storage: &str) -> Option<Arc<Resource>> {
        let (group, plural) = storage.split_once('/')?;
        self.resources.get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    /// Every resource, ordered by group and name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Versions of a group, the preferred one first; empty when there is no such group.
    pub fn versions(&self, group: &str) -> Vec<String> {
        let mut versions: Vec<String> = Vec::new();
        for resource in self.all().filter(|r| r.group == group) {
            for version in &resource.versions {
                if !versions.contains(&version.name) {
                    versions.push(version.name.clone());
                }
            }
        }
        if group.is_empty() || group == "authorization.k8s.io" || group == "authentication.k8s.io" {
            versions = vec!["v1".into()];
        }
        versions.sort_by_key(|v| std::cmp::Reverse(definition::priority(v)));
        versions
    }

    /// Named groups in order, the review groups included.
    pub fn groups(&self) -> Vec<String> {
        let mut groups: Vec<String> = self.all().map(|r| r.group.clone()).filter(|g| !g.is_empty()).collect();
        groups.extend(["authentication.k8s.io".to_owned(), "authorization.k8s.io".to_owned()]);
        groups.sort();
        groups.dedup();
        groups
    }
}
