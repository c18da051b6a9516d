//! What is particular about the built-in kinds: some of their fields are always there, if only empty.

use serde_json::{Value, json};

use super::Types;
use crate::registry::Core;
use crate::schema::Node;

impl<'a> Types<'a> {
    /// The types of a built-in kind with its schema.
    ///
    /// Fields that the kind always has are not owned by whoever creates an object without setting them.
    pub fn core(core: Core, schema: Option<&'a Node>) -> Types<'a> {
        let status = matches!(core, Core::Namespace | Core::Node | Core::Definition);
        Types {
            empty: empty(core),
            status_keeps_metadata: false,
            ..Types::new(schema, status)
        }
    }
}

fn empty(core: Core) -> Value {
    let names = json!({"kind": "", "plural": ""});
    match core {
        Core::Namespace => json!({"spec": {"finalizers": ["kubernetes"]}, "status": {}}),
        Core::Node => json!({"spec": {}, "status": {
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {"architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": ""}}}),
        Core::CoreEvent => json!({"involvedObject": {}, "source": {}, "eventTime": null, "firstTimestamp": null,
            "lastTimestamp": null, "reportingComponent": "", "reportingInstance": ""}),
        Core::Event => json!({"regarding": {}, "deprecatedSource": {}, "eventTime": null,
            "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null}),
        Core::Lease => json!({"spec": {}}),
        Core::Definition => json!({
            "spec": {"group": "", "names": names, "scope": "", "versions": null},
            "status": {"acceptedNames": names, "conditions": null, "storedVersions": null}}),
        Core::Secret | Core::ConfigMap | Core::ServiceAccount => json!({}),
    }
}
