//! The certificates and the key, looked at when the client is made: ureq would look at them in the first call, pass over what
//! it cannot read, and panic where a key and a certificate do not belong together.

use crate::config::{BadConfig, Config, read};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PrivateKey, TlsConfig};

pub fn config(config: &Config) -> Result<TlsConfig, BadConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut authorities = Vec::new();
    if !config.ca_file.is_empty() {
        authorities = certificates("ca_file", &config.ca_file)?;
        must_verify(&authorities, &config.ca_file)?;
    }
    let certificates_for_ureq = |from: &[CertificateDer]| -> Vec<Certificate<'static>> {
        from.iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .collect()
    };
    let mut tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider.clone())
        .root_certs(certificates_for_ureq(&authorities).into());
    if !config.cert_file.is_empty() {
        let chain = certificates("cert_file", &config.cert_file)?;
        let pem = read("key_file", &config.key_file)?;
        let key = PrivateKeyDer::from_pem_slice(&pem);
        let key = key.map_err(|_| {
            let reason = format!("no unencrypted private key in file \"{}\"", config.key_file);
            BadConfig::new("key_file", reason)
        })?;
        let for_ureq = certificates_for_ureq(&chain);
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_root_certificates(RootCertStore::empty()))
            .and_then(|builder| builder.with_client_auth_cert(chain, key))
            .map_err(|error| {
                let (key, certificate) = (&config.key_file, &config.cert_file);
                let reason = format!("\"{key}\" does not go with \"{certificate}\": {error}");
                BadConfig::new("key_file", reason)
            })?;
        let key = PrivateKey::from_pem(&pem)
            .map_err(|error| BadConfig::new("key_file", error.to_string()))?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&for_ureq, key)));
    }
    Ok(tls.build())
}

fn certificates(
    setting: &'static str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, BadConfig> {
    let pem = read(setting, file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let why = match certificates {
        Ok(certificates) if !certificates.is_empty() => return Ok(certificates),
        Ok(_) => String::new(),
        Err(error) => format!(": {error}"),
    };
    let reason = format!("no certificate in file \"{file}\"{why}");
    Err(BadConfig::new(setting, reason))
}

/// One of them at least must be of use: large collections have some that are not.
fn must_verify(authorities: &[CertificateDer<'static>], file: &str) -> Result<(), BadConfig> {
    let mut store = RootCertStore::empty();
    let (usable, _) = store.add_parsable_certificates(authorities.iter().cloned());
    if usable == 0 {
        let reason = format!("no certificate in file \"{file}\" can be used");
        return Err(BadConfig::new("ca_file", reason));
    }
    Ok(())
}
