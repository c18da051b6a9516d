//! Pull secrets, as the resolver and the agents read them.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::ObjectRef;

/// Why a pull secret cannot be used.
#[derive(Debug)]
pub enum PullSecretError {
    /// It does not exist, or is of another type. The text names it and says what to do.
    Unusable(String),
    /// The API did not answer.
    Api(kube::Error),
}

/// Reads pull secrets and gives their docker configuration files, in order.
///
/// # Errors
/// The first secret that cannot be used.
pub async fn pull_secret_configs(
    client: &Client,
    namespace: &str,
    refs: &[ObjectRef],
) -> Result<Vec<Vec<u8>>, PullSecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut configs = Vec::with_capacity(refs.len());
    for reference in refs {
        let name = &reference.name;
        let secret = api.get_opt(name).await.map_err(PullSecretError::Api)?.ok_or_else(|| {
            PullSecretError::Unusable(format!(
                "pull secret \"{name}\" does not exist in namespace \"{namespace}\": create it with `kubectl create secret docker-registry {name}`"
            ))
        })?;
        let data = secret.data.unwrap_or_default();
        let config = data
            .get(".dockerconfigjson")
            .or_else(|| data.get(".dockercfg"))
            .ok_or_else(|| {
                PullSecretError::Unusable(format!(
                    "secret \"{name}\" is not a pull secret: it has no key .dockerconfigjson"
                ))
            })?;
        configs.push(config.0.clone());
    }
    Ok(configs)
}
