//! The HTTP clients: one pair for everybody, and one for each file of authorities.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client};

use super::addresses::{Filtered, Lookup};
use super::config::Registries;
use crate::error::{PullError, Reason};

const CONNECT: Duration = Duration::from_secs(15);
/// Largest file of authorities, in bytes.
const MAX_CA: u64 = 1 << 20;

/// Two clients with the same authorities.
#[derive(Clone)]
pub struct Pair {
    /// For hosts that the user named: they may be this machine.
    pub named: Client,
    /// For hosts that a server led to: they may not.
    pub led: Client,
}

/// Tells one state of a file from another.
type Stamp = (i64, i64, u64, u64);

/// Makes clients and keeps them.
pub struct Clients {
    registries: Registries,
    stall: Duration,
    lookup: Lookup,
    usual: Pair,
    own: Mutex<HashMap<PathBuf, (Stamp, Pair)>>,
}

impl Clients {
    /// Clients whose answers may stand still for `stall`.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(registries: Registries, stall: Duration, lookup: Lookup) -> Result<Clients, PullError> {
        // reqwest comes without cryptography of its own and takes the process's. Where the program has
        // chosen none yet, this is the choice; losing that race to somebody else is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let usual = pair(&registries, stall, lookup, &[])?;
        Ok(Clients {
            registries,
            stall,
            lookup,
            usual,
            own: Mutex::default(),
        })
    }

    /// The clients that trust the system's authorities, and those in `ca` if it is given. A file that changes is read
    /// again; while it cannot be read the authorities from before hold.
    ///
    /// # Errors
    /// The file cannot be used and never could.
    pub fn with(&self, ca: Option<&Path>) -> Result<Pair, PullError> {
        let Some(path) = ca else { return Ok(self.usual.clone()) };
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(path);
        let before = own.get(path);
        if let Some((then, pair)) = before
            && now.as_ref().is_ok_and(|now| now == then)
        {
            return Ok(pair.clone());
        }
        let fresh = now
            .map_err(|error| error.to_string())
            .and_then(|now| Ok((now, read_ca(path)?)))
            .and_then(|(now, ca)| {
                let pair = pair(&self.registries, self.stall, self.lookup, &ca).map_err(|error| error.message)?;
                Ok((now, pair))
            });
        match (fresh, before) {
            (Ok((now, pair)), _) => {
                own.insert(path.to_owned(), (now, pair.clone()));
                Ok(pair)
            }
            (Err(error), Some((_, pair))) => {
                tracing::warn!(file = %path.display(), error, "a file of authorities cannot be read; those from before hold");
                Ok(pair.clone())
            }
            (Err(error), None) => {
                let why = format!("the file of authorities {}: {error}", path.display());
                Err(PullError::new(Reason::StoreFailed, why))
            }
        }
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let it = path.metadata()?;
    Ok((it.mtime(), it.mtime_nsec(), it.len(), it.ino()))
}

/// The certificates in a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn read_ca(path: &Path) -> Result<Vec<Certificate>, String> {
    let length = path.metadata().map_err(|error| error.to_string())?.len();
    if length > MAX_CA {
        return Err(format!("it is larger than {MAX_CA} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    match Certificate::from_pem_bundle(&bytes) {
        Ok(found) if found.is_empty() => Err("there is no certificate in PEM form in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("it holds no certificates in PEM form: {error}")),
    }
}

fn pair(registries: &Registries, stall: Duration, lookup: Lookup, ca: &[Certificate]) -> Result<Pair, PullError> {
    let free: Arc<[String]> = registries.proxy_hosts().into();
    let client = |own| {
        let ways = registries.clone();
        Client::builder()
            .user_agent(concat!("vmlet/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(stall)
            .proxy(reqwest::Proxy::custom(move |url| ways.proxy(url)))
            .tls_certs_merge(ca.iter().cloned())
            .dns_resolver(Arc::new(Filtered {
                own,
                lookup,
                free: free.clone(),
            }))
            .build()
            .map_err(|error| PullError::new(Reason::Internal, format!("cannot set up TLS: {error}")))
    };
    Ok(Pair {
        named: client(true)?,
        led: client(false)?,
    })
}
