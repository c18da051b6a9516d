//! Whom TLS trusts: the system's certificate authorities, and those of an operator.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// What is offered to servers (ALPN).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Settings of TLS that trust the system's authorities and `own`.
///
/// # Errors
/// The process's cryptography has no version of TLS that we speak.
pub fn config(own: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Error> {
    let provider = CryptoProvider::get_default().ok_or_else(|| Error::General("no cryptography was chosen".into()))?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        // Dangerous for a verifier that does not verify; this one only puts off reading.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Lazy {
            own,
            provider: provider.clone(),
            verifier: Mutex::default(),
        }))
        .with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// The platform's verifier, made when first a certificate has to be judged: reading all authorities takes milliseconds and
/// memory, and a machine that speaks plain HTTP to its registries may have none.
#[derive(Debug)]
struct Lazy {
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    verifier: Mutex<Option<Arc<Verifier>>>,
}

impl Lazy {
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let mut verifier = self.verifier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verifier) = &*verifier {
            return Ok(verifier.clone());
        }
        let made = Verifier::new_with_extra_roots(self.own.iter().cloned(), self.provider.clone());
        let made = Arc::new(made.map_err(|error| {
            Error::General(format!(
                "the certificate authorities of this machine cannot be used ({error}); install them (Debian: ca-certificates), or name a file of them with ca in the registry configuration"
            ))
        })?);
        *verifier = Some(made.clone());
        Ok(made)
    }
}

impl ServerCertVerifier for Lazy {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier()?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()?.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()?.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
