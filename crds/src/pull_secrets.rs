//! Pull secrets, as the resolver and the agents read them.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};

use crate::{ObjectRef, SeenSecret};

/// Why a pull secret cannot be used.
#[derive(Debug)]
pub enum PullSecretError {
    /// It does not exist, or is of another type.
    Unusable {
        /// Names it and says what to do.
        message: String,
        /// The secret as it was.
        seen: SeenSecret,
    },
    /// The API did not answer.
    Api(kube::Error),
}

/// A pull secret's docker configuration file. It has no `Debug`: it is a secret.
pub struct PullSecret {
    /// The file.
    pub config: Vec<u8>,
    /// The secret as it was.
    pub seen: SeenSecret,
}

/// Reads pull secrets and gives their docker configuration files, in order.
///
/// # Errors
/// The first secret that cannot be used.
pub async fn pull_secret_configs(
    client: &Client,
    namespace: &str,
    refs: &[ObjectRef],
) -> Result<Vec<PullSecret>, PullSecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut configs = Vec::with_capacity(refs.len());
    for reference in refs {
        let name = &reference.name;
        let unusable = |version, message| {
            let (namespace, name) = (namespace.to_owned(), name.clone());
            PullSecretError::Unusable {
                message,
                seen: SeenSecret {
                    namespace,
                    name,
                    version,
                },
            }
        };
        let Some(secret) = api.get_opt(name).await.map_err(PullSecretError::Api)? else {
            let message = format!(
                "pull secret \"{name}\" does not exist in namespace \"{namespace}\": create it with `kubectl create secret docker-registry {name}`"
            );
            return Err(unusable(None, message));
        };
        let version = secret.resource_version();
        let data = secret.data.unwrap_or_default();
        let Some(config) = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg")) else {
            let message = format!("secret \"{name}\" is not a pull secret: it has no key .dockerconfigjson");
            return Err(unusable(version, message));
        };
        configs.push(PullSecret {
            config: config.0.clone(),
            seen: SeenSecret {
                namespace: namespace.to_owned(),
                name: name.clone(),
                version,
            },
        });
    }
    Ok(configs)
}
