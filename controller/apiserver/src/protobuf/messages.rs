//! The messages, field by field, after the `generated.proto` files of `k8s.io/api` and `apimachinery` 0.36.

use super::{Field, Kind, Shape};
use Kind::{Bool, Bytes, Integer, Json, Message, MicroTime, Text, Time};

const fn field(number: u32, name: &'static str, shape: Shape, kind: Kind) -> Field {
    Field {
        number,
        name,
        shape,
        kind,
    }
}

const fn plain(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Shape::Plain, kind)
}

const fn pointer(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Shape::Pointer, kind)
}

const fn list(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Shape::List, kind)
}

const fn map(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Shape::Map, kind)
}

/// The message of a kind; none for kinds that are not read from protobuf.
pub(super) fn find(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => NAMESPACE,
        ("v1", "Secret") => SECRET,
        ("v1", "ConfigMap") => CONFIG_MAP,
        ("v1", "ServiceAccount") => SERVICE_ACCOUNT,
        ("v1", "Event") => CORE_EVENT,
        ("events.k8s.io/v1", "Event") => EVENT,
        ("coordination.k8s.io/v1", "Lease") => LEASE,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => ACCESS_REVIEW,
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => RULES_REVIEW,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => SUBJECT_REVIEW,
        // Registered in every group; clients name whichever they are talking to.
        (_, "DeleteOptions") => DELETE_OPTIONS,
        _ => return None,
    })
}

const METADATA: Field = plain(1, "metadata", Message(OBJECT_META));

const OBJECT_META: &[Field] = &[
    plain(1, "name", Text),
    plain(2, "generateName", Text),
    plain(3, "namespace", Text),
    plain(4, "selfLink", Text),
    plain(5, "uid", Text),
    plain(6, "resourceVersion", Text),
    plain(7, "generation", Integer),
    plain(8, "creationTimestamp", Time),
    pointer(9, "deletionTimestamp", Time),
    pointer(10, "deletionGracePeriodSeconds", Integer),
    map(11, "labels", Text),
    map(12, "annotations", Text),
    list(13, "ownerReferences", Message(OWNER)),
    list(14, "finalizers", Text),
    list(17, "managedFields", Message(MANAGED_FIELDS)),
];

const OWNER: &[Field] = &[
    plain(1, "kind", Text),
    plain(3, "name", Text),
    plain(4, "uid", Text),
    plain(5, "apiVersion", Text),
    pointer(6, "controller", Bool),
    pointer(7, "blockOwnerDeletion", Bool),
];

const MANAGED_FIELDS: &[Field] = &[
    plain(1, "manager", Text),
    plain(2, "operation", Text),
    plain(3, "apiVersion", Text),
    pointer(4, "time", Time),
    plain(6, "fieldsType", Text),
    pointer(7, "fieldsV1", Json),
    plain(8, "subresource", Text),
];

const NAMESPACE: &[Field] = &[
    METADATA,
    plain(2, "spec", Message(&[list(1, "finalizers", Text)])),
    plain(
        3,
        "status",
        Message(&[plain(1, "phase", Text), list(2, "conditions", Message(CONDITION))]),
    ),
];

const CONDITION: &[Field] = &[
    plain(1, "type", Text),
    plain(2, "status", Text),
    plain(4, "lastTransitionTime", Time),
    plain(5, "reason", Text),
    plain(6, "message", Text),
];

const SECRET: &[Field] = &[
    METADATA,
    map(2, "data", Bytes),
    plain(3, "type", Text),
    map(4, "stringData", Text),
    pointer(5, "immutable", Bool),
];

const CONFIG_MAP: &[Field] = &[
    METADATA,
    map(2, "data", Text),
    map(3, "binaryData", Bytes),
    pointer(4, "immutable", Bool),
];

const SERVICE_ACCOUNT: &[Field] = &[
    METADATA,
    list(2, "secrets", Message(REFERENCE)),
    list(3, "imagePullSecrets", Message(&[plain(1, "name", Text)])),
    pointer(4, "automountServiceAccountToken", Bool),
];

const REFERENCE: &[Field] = &[
    plain(1, "kind", Text),
    plain(2, "namespace", Text),
    plain(3, "name", Text),
    plain(4, "uid", Text),
    plain(5, "apiVersion", Text),
    plain(6, "resourceVersion", Text),
    plain(7, "fieldPath", Text),
];

const SOURCE: &[Field] = &[plain(1, "component", Text), plain(2, "host", Text)];

const SERIES: &[Field] = &[plain(1, "count", Integer), plain(2, "lastObservedTime", MicroTime)];

const CORE_EVENT: &[Field] = &[
    METADATA,
    plain(2, "involvedObject", Message(REFERENCE)),
    plain(3, "reason", Text),
    plain(4, "message", Text),
    plain(5, "source", Message(SOURCE)),
    plain(6, "firstTimestamp", Time),
    plain(7, "lastTimestamp", Time),
    plain(8, "count", Integer),
    plain(9, "type", Text),
    plain(10, "eventTime", MicroTime),
    pointer(11, "series", Message(SERIES)),
    plain(12, "action", Text),
    pointer(13, "related", Message(REFERENCE)),
    plain(14, "reportingComponent", Text),
    plain(15, "reportingInstance", Text),
];

const EVENT: &[Field] = &[
    METADATA,
    plain(2, "eventTime", MicroTime),
    pointer(3, "series", Message(SERIES)),
    plain(4, "reportingController", Text),
    plain(5, "reportingInstance", Text),
    plain(6, "action", Text),
    plain(7, "reason", Text),
    plain(8, "regarding", Message(REFERENCE)),
    pointer(9, "related", Message(REFERENCE)),
    plain(10, "note", Text),
    plain(11, "type", Text),
    plain(12, "deprecatedSource", Message(SOURCE)),
    plain(13, "deprecatedFirstTimestamp", Time),
    plain(14, "deprecatedLastTimestamp", Time),
    plain(15, "deprecatedCount", Integer),
];

const LEASE: &[Field] = &[METADATA, plain(2, "spec", Message(LEASE_SPEC))];

const LEASE_SPEC: &[Field] = &[
    pointer(1, "holderIdentity", Text),
    pointer(2, "leaseDurationSeconds", Integer),
    pointer(3, "acquireTime", MicroTime),
    pointer(4, "renewTime", MicroTime),
    pointer(5, "leaseTransitions", Integer),
    pointer(6, "strategy", Text),
    pointer(7, "preferredHolder", Text),
];

const RULES_REVIEW: &[Field] = &[METADATA, plain(2, "spec", Message(&[plain(1, "namespace", Text)]))];

const ACCESS_REVIEW: &[Field] = &[
    METADATA,
    plain(
        2,
        "spec",
        Message(&[
            pointer(1, "resourceAttributes", Message(RESOURCE_ATTRIBUTES)),
            pointer(
                2,
                "nonResourceAttributes",
                Message(&[plain(1, "path", Text), plain(2, "verb", Text)]),
            ),
        ]),
    ),
];

const RESOURCE_ATTRIBUTES: &[Field] = &[
    plain(1, "namespace", Text),
    plain(2, "verb", Text),
    plain(3, "group", Text),
    plain(4, "version", Text),
    plain(5, "resource", Text),
    plain(6, "subresource", Text),
    plain(7, "name", Text),
    pointer(8, "fieldSelector", Message(SELECTOR)),
    pointer(9, "labelSelector", Message(SELECTOR)),
];

const SELECTOR: &[Field] = &[
    plain(1, "rawSelector", Text),
    list(
        2,
        "requirements",
        Message(&[
            plain(1, "key", Text),
            plain(2, "operator", Text),
            list(3, "values", Text),
        ]),
    ),
];

const SUBJECT_REVIEW: &[Field] = &[METADATA];

const DELETE_OPTIONS: &[Field] = &[
    pointer(1, "gracePeriodSeconds", Integer),
    pointer(
        2,
        "preconditions",
        Message(&[pointer(1, "uid", Text), pointer(2, "resourceVersion", Text)]),
    ),
    pointer(3, "orphanDependents", Bool),
    pointer(4, "propagationPolicy", Text),
    list(5, "dryRun", Text),
    pointer(6, "ignoreStoreReadErrorWithClusterBreakingPotential", Bool),
];
