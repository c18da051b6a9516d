//! The stored CustomResourceDefinitions, and what is served because of them. Whoever writes one holds `Inner::definitions`
//! from the decision on until it is served.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::Inner;
use crate::objects::rfc3339;
use crate::registry::{Registry, Resource, definition, naming};
use crate::schema;
use crate::status::{Failure, Subject};
use crate::storage::{Change, Key, ListRequest, Stored};

const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";

impl Inner {
    async fn stored_definitions(&self) -> Result<Vec<Stored>, Failure> {
        let request = ListRequest {
            resource: Arc::from(STORAGE),
            namespace: None,
            after: None,
            limit: 0,
        };
        Ok(self.store.list(request).await?.items)
    }

    /// Reads all definitions and serves those that are established. A broken one (of an older version) is left out and said.
    /// One that waits for names gets those that have become free.
    pub(crate) async fn reload(&self) -> Result<(), Failure> {
        let before = self.registry.borrow().clone();
        let mut custom: Vec<Arc<Resource>> = Vec::new();
        let mut waiting = Vec::new();
        for stored in self.stored_definitions().await? {
            let known = before.all().find(|r| {
                format!("{}.{}", r.plural, r.group) == stored.name && r.origin.1 == stored.version.to_string()
            });
            match known {
                Some(known) if !known.contested => custom.push(known.clone()),
                _ => {
                    let value = stored.value()?;
                    match naming::contested(&value) {
                        true => waiting.push(stored),
                        false => custom.extend(compiled(&value)),
                    }
                }
            }
        }
        // The oldest first, so that it is the same one after every start.
        waiting.sort_by_key(|stored| stored.version);
        for stored in waiting {
            let settled = self.settle_stored(&stored).await?;
            if naming::established(&settled) {
                custom.extend(compiled(&settled));
            }
        }
        self.registry
            .send_replace(Arc::new(Registry::new(custom, before.epoch + 1)));
        Ok(())
    }

    /// A definition that waits for names, with what it gets by now.
    async fn settle_stored(&self, stored: &Stored) -> Result<Value, Failure> {
        let value = stored.value()?;
        let mut settled = value.clone();
        self.settle_names(&mut settled).await?;
        if settled == value {
            return Ok(value);
        }
        let change = Change::Update {
            key: Key {
                resource: Arc::from(STORAGE),
                namespace: String::new(),
                name: stored.name.clone(),
            },
            base: stored.version,
            object: settled,
            expires: None,
        };
        match self.store.write(vec![change]).await {
            Ok(written) => Ok(written.into_iter().next().unwrap_or(value)),
            // Others are served nevertheless; the next change of a definition tries again.
            Err(error) => {
                tracing::warn!(definition = stored.name, %error, "accepted names cannot be stored");
                Ok(value)
            }
        }
    }

    /// Gives a definition the names that no other one has.
    pub(crate) async fn settle_names(&self, definition: &mut Value) -> Result<(), Failure> {
        let mut others = Vec::new();
        for stored in self.stored_definitions().await? {
            if definition["metadata"]["name"] != stored.name {
                others.push(stored.value()?);
            }
        }
        naming::settle(definition, &others, &rfc3339(Timestamp::now()));
        Ok(())
    }

    /// Judges a definition, its defaults filled in, before it is stored.
    pub(crate) fn check_definition(object: &Value, name: &str) -> Result<(), Failure> {
        match definition::resource(object) {
            Ok(_) => Ok(()),
            Err(errors) => {
                let subject = Subject {
                    group: "apiextensions.k8s.io",
                    kind: "CustomResourceDefinition",
                    name,
                };
                let causes: Vec<_> = errors.into_iter().map(Into::into).collect();
                Err(Failure::invalid(&subject, &causes))
            }
        }
    }
}

fn compiled(definition: &Value) -> Option<Arc<Resource>> {
    match definition::resource(definition) {
        Ok(resource) => Some(Arc::new(resource)),
        Err(errors) => {
            let why = schema::aggregate(&errors);
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            tracing::error!(definition = name, why, "a stored definition is not served");
            None
        }
    }
}
