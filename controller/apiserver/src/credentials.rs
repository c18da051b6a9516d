//! Who may talk to the API: a certificate authority of its own, a serving certificate, one bearer token.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::OpenError;

/// Makes a directory that only its owner can enter.
pub fn make_dir(dir: &Path) -> Result<(), OpenError> {
    let failed = |source| io_error(dir, source);
    fs::create_dir_all(dir).map_err(failed)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        what: path.display().to_string(),
        source,
    }
}

/// Writes a file that only its owner can read: all of it or nothing, and durably.
pub fn publish(path: &Path, content: &[u8]) -> Result<(), OpenError> {
    let failed = |source| io_error(path, source);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let temporary: PathBuf = parent.join(format!(".{}.{}", name.to_string_lossy(), uuid::Uuid::new_v4()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    };
    write().map_err(|source| {
        // Already gone is fine.
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

/// Keys, certificate and token of one API.
pub struct Credentials {
    authority: String,
    authority_key: KeyPair,
    token: String,
}

impl Credentials {
    /// Reads the credentials below `dir`, or makes new ones.
    pub fn open(dir: &Path) -> Result<Credentials, OpenError> {
        let (key_path, token_path) = (dir.join("ca.key"), dir.join("token"));
        let authority_key = match read(&key_path)? {
            Some(text) => KeyPair::from_pem(&text).map_err(|e| broken(&key_path, e))?,
            None => {
                let key = KeyPair::generate().map_err(|e| broken(&key_path, e))?;
                publish(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let path = dir.join("ca.crt");
        let authority = match read(&path)? {
            Some(text) => text,
            None => {
                let certificate = authority_parameters()
                    .self_signed(&authority_key)
                    .map_err(|e| broken(&path, e))?;
                publish(&path, certificate.pem().as_bytes())?;
                certificate.pem()
            }
        };
        let token = match read(&token_path)? {
            Some(text) if text.trim().len() >= 32 => text.trim().to_owned(),
            Some(_) => return Err(broken(&token_path, "the token is too short")),
            None => {
                let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
                publish(&token_path, token.as_bytes())?;
                token
            }
        };
        Ok(Credentials {
            authority,
            authority_key,
            token,
        })
    }

    /// Compares in a time that says nothing about the token.
    pub fn is_token(&self, token: &str) -> bool {
        let (a, b) = (self.token.as_bytes(), token.as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }

    /// A kubeconfig for an address that the API listens on.
    pub fn kubeconfig(&self, address: SocketAddr) -> String {
        let host = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: vmlet\nclusters:\n- name: vmlet\n  cluster:\n    server: https://{host}:{}\n    certificate-authority-data: {}\ncontexts:\n- name: vmlet\n  context:\n    cluster: vmlet\n    user: vmlet-admin\nusers:\n- name: vmlet-admin\n  user:\n    token: {}\n",
            address.port(),
            BASE64_STANDARD.encode(&self.authority),
            self.token,
        )
    }

    /// A serving certificate for this start: it holds the names of this machine of today.
    pub fn tls(&self, address: SocketAddr) -> Result<Arc<ServerConfig>, OpenError> {
        let failed = |e: &dyn std::fmt::Display| OpenError::Credentials {
            what: "serving certificate".into(),
            why: e.to_string(),
        };
        let key = KeyPair::generate().map_err(|e| failed(&e))?;
        let mut parameters = CertificateParams::new(names()).map_err(|e| failed(&e))?;
        let mut ips: Vec<IpAddr> = vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        if !address.ip().is_unspecified() && !ips.contains(&address.ip()) {
            ips.push(address.ip());
        }
        parameters
            .subject_alt_names
            .extend(ips.into_iter().map(SanType::IpAddress));
        parameters.distinguished_name = name("vmlet-api");
        parameters.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority_parameters(), &self.authority_key);
        let certificate = parameters.signed_by(&key, &issuer).map_err(|e| failed(&e))?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|b| b.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|e| failed(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn names() -> Vec<String> {
    [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned)
    .into()
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// The same for the certificate on disk and for signing: an issuer is its name and its key.
fn authority_parameters() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name("vmlet-api-ca");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    parameters
}

fn read(path: &Path) -> Result<Option<String>, OpenError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, source)),
    }
}

fn broken(path: &Path, why: impl std::fmt::Display) -> OpenError {
    OpenError::Credentials {
        what: path.display().to_string(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_made_once_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Credentials::open(dir.path()).expect("made");
        let again = Credentials::open(dir.path()).expect("read");
        assert_eq!((&first.token, &first.authority), (&again.token, &again.authority));
        assert!(again.is_token(&first.token) && !again.is_token("") && !again.is_token(&first.token[1..]));
        for file in ["ca.key", "token"] {
            let mode = fs::metadata(dir.path().join(file)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        first
            .tls(([127, 0, 0, 1], 6440).into())
            .expect("a certificate signed by the authority");
    }

    #[test]
    fn a_damaged_key_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("ca.key"), "nonsense").expect("written");
        let error = Credentials::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("ca.key") && error.contains("start again"), "{error}");
    }
}
