//! Structural schemas of custom resources: what `spec.versions[].schema.openAPIV3Schema` means.
//!
//! ```text
//! let schema = Schema::compile(&open_api_v3_schema, "spec.validation.openAPIV3Schema")?;   // at CRD apply
//! let unknown = schema.prune(&mut object);                    // ["spec.bogus", "spec.disks[0].x"]
//! schema.prune_nulls(&mut object); schema.apply_defaults(&mut object);
//! let errors = schema.validate(&object, old.as_ref());        // empty: valid
//! let errors = schema.validate_status(&object, &old);         // writes to /status
//! ```
//! The order of a write is: prune, defaults, (admission), validate. Messages, causes and their
//! reasons are those of kube-apiserver 1.36 (`k8s.io/apiextensions-apiserver`).

mod cel;
mod check;
mod embedded;
mod error;
mod fill;
mod formats;
mod lists;
mod node;
mod prune;
mod structural;

use serde_json::Value;

pub use error::{ErrorKind, FieldError, aggregate, go_json, quote};
pub(crate) use error::{child, go_number};
pub use node::{Additional, ListType, Node};

const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// A compiled structural schema.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    rules: cel::Rules,
}

impl Schema {
    /// Compiles and checks `openAPIV3Schema`; `path` names it in errors
    /// (the real server says `spec.validation.openAPIV3Schema` when all versions share one).
    ///
    /// # Errors
    /// Everything that makes the schema not structural, its defaults invalid or its rules meaningless.
    pub fn compile(source: &Value, path: &str) -> Result<Schema, Vec<FieldError>> {
        let mut errors = Vec::new();
        let root = Node::parse(source, path, &mut errors);
        structural::check(&root, path, &mut errors);
        if errors.is_empty() {
            structural::check_defaults(&root, path, &mut errors);
        }
        cel::check_sources(&root, path, &mut errors);
        let mut rules = cel::Rules::default();
        if errors.is_empty() {
            rules = cel::Rules::compile(&root, path, &mut errors);
        }
        if errors.is_empty() {
            Ok(Schema { root, rules })
        } else {
            errors.sort_by_key(FieldError::to_string);
            errors.dedup();
            Err(errors)
        }
    }

    /// The schema of the whole object (`managed_fields` reads list keys and map types from it).
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Removes fields that the schema does not name and returns their paths, sorted.
    ///
    /// `apiVersion`, `kind` and `metadata` of the object stay; unknown fields of ObjectMeta are reported and removed too.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        prune::prune(&self.root, object)
    }

    /// Removes nulls where the schema neither allows them nor has a default (before defaulting).
    pub fn prune_nulls(&self, object: &mut Value) {
        fill::prune_nulls(Some(&self.root), object);
    }

    /// Fills in defaults where the surrounding object exists.
    pub fn apply_defaults(&self, object: &mut Value) {
        fill::defaults(Some(&self.root), object);
    }

    /// Validates a new object, or with `old` an update: parts that did not change are not held
    /// against the writer, and transition rules are run.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = check::check(&self.root, "", object, old);
        embedded::check(&self.root, "", object, &mut errors);
        self.finish(&mut errors, object, old);
        errors
    }

    /// Validates an object whose `status` alone was written.
    pub fn validate_status(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let (Some(node), Some(status)) = (self.root.properties.get("status"), object.get("status")) {
            errors = check::check(node, "status", status, old.get("status"));
        }
        self.finish(&mut errors, object, Some(old));
        errors
    }

    fn finish(&self, errors: &mut Vec<FieldError>, object: &Value, old: Option<&Value>) {
        let broken_before = old.is_some_and(|old| {
            let mut errors = Vec::new();
            lists::check(&self.root, "", old, &mut errors);
            !errors.is_empty()
        });
        if !broken_before {
            lists::check(&self.root, "", object, errors);
        }
        if self.rules.is_empty() {
            return;
        }
        let blocking = [
            ErrorKind::NotSupported,
            ErrorKind::Required,
            ErrorKind::TooLong,
            ErrorKind::TooMany,
            ErrorKind::TypeInvalid,
        ];
        if errors.iter().any(|error| blocking.contains(&error.kind)) {
            // Rules may assume that types and limits hold.
            errors.push(FieldError::invalid("<nil>", Value::Null, UNCHECKED));
        } else {
            self.rules.run(&self.root, object, old, errors);
        }
    }
}
