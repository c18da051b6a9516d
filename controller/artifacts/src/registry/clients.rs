//! The HTTP clients: one pair for everybody, and one for each file of authorities.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::addresses::{Filtered, Lookup};
use super::authorities;
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
        let usual = pair(&registries, stall, lookup, Vec::new())?;
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
                let pair = pair(&self.registries, self.stall, self.lookup, ca).map_err(|error| error.message)?;
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
pub fn read_ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let length = path.metadata().map_err(|error| error.to_string())?.len();
    if length > MAX_CA {
        return Err(format!("it is larger than {MAX_CA} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("it holds no certificates in PEM form: {error}"))?;
    if found.is_empty() {
        return Err("there is no certificate in PEM form in it".to_owned());
    }
    // Now, where it can still be said of this file.
    let mut store = RootCertStore::empty();
    for certificate in &found {
        let added = store.add(certificate.clone());
        added.map_err(|error| format!("a certificate in it is no authority's: {error}"))?;
    }
    Ok(found)
}

fn pair(
    registries: &Registries,
    stall: Duration,
    lookup: Lookup,
    ca: Vec<CertificateDer<'static>>,
) -> Result<Pair, PullError> {
    let failed =
        |error: &dyn std::fmt::Display| PullError::new(Reason::Internal, format!("cannot set up TLS: {error}"));
    let tls = authorities::config(ca).map_err(|error| failed(&error))?;
    let free: Arc<[String]> = registries.proxy_hosts().into();
    let client = |own| {
        let ways = registries.clone();
        Client::builder()
            .user_agent(concat!("vmlet/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(stall)
            .proxy(reqwest::Proxy::custom(move |url| ways.proxy(url)))
            .tls_backend_preconfigured(tls.clone())
            .dns_resolver(Arc::new(Filtered {
                own,
                lookup,
                free: free.clone(),
            }))
            .build()
            .map_err(|error| failed(&error))
    };
    Ok(Pair {
        named: client(true)?,
        led: client(false)?,
    })
}
