//! Certificates of a control plane that lives for one test run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// A directory with a certificate authority, the API server's certificate, an administrator's and the
/// controller manager's, and the key that signs service account tokens.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes everything anew in `dir`.
    pub fn create(dir: &Path) -> Result<Pki> {
        std::fs::create_dir_all(dir)?;
        let pki = Pki { dir: dir.to_owned() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("vmlet-e2e-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key)?;
        std::fs::write(pki.certificate("ca"), certificate.pem())?;
        std::fs::write(pki.key("ca"), key.serialize_pem())?;
        let ca = Issuer::new(params, key);

        let hosts = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            "10.96.0.1",
        ];
        let mut server = CertificateParams::new(hosts.map(String::from))?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.distinguished_name = name("kube-apiserver", None);
        pki.issue("apiserver", server, &ca)?;
        pki.client("admin", "admin", Some("system:masters"), &ca)?;
        pki.client("controller-manager", "system:kube-controller-manager", None, &ca)?;

        let signing = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        std::fs::write(pki.key("sa"), signing.serialize_pem())?;
        std::fs::write(dir.join("sa.pub"), signing.public_key_pem())?;
        Ok(pki)
    }

    fn client(&self, file: &str, user: &str, group: Option<&str>, ca: &Issuer<'_, KeyPair>) -> Result<()> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name = name(user, group);
        self.issue(file, params, ca)
    }

    fn issue(&self, file: &str, mut params: CertificateParams, ca: &Issuer<'_, KeyPair>) -> Result<()> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        std::fs::write(self.certificate(file), params.signed_by(&key, ca)?.pem())?;
        std::fs::write(self.key(file), key.serialize_pem())?;
        Ok(())
    }

    /// Path of a certificate.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    /// Path of a private key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// Path of the public half of the key that signs service account tokens.
    pub fn service_account_public(&self) -> PathBuf {
        self.dir.join("sa.pub")
    }

    /// A kubeconfig (JSON, which is YAML too) of `user` for the server at 127.0.0.1:`port`.
    pub fn kubeconfig(&self, user: &str, port: u16) -> String {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": self.certificate("ca")}}],
            "users": [{"name": user, "user": {"client-certificate": self.certificate(user), "client-key": self.key(user)}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
        });
        config.to_string()
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}
