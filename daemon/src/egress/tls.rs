//! The encryption of outgoing connections: whom they trust, and how they show who they are. There is no way to trust
//! everybody; a certificate of one's own making is trusted by naming it.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio_rustls::TlsConnector;

use crate::config::broker::Secured;

/// What encrypts connections that trust what the machine trusts.
pub(super) fn usual() -> Result<TlsConnector, String> {
    connector(&Secured::default())
}

/// What encrypts connections as `secured` says; reads the files it names.
pub(super) fn connector(secured: &Secured) -> Result<TlsConnector, String> {
    let roots = match &secured.ca {
        Some(file) => named(file)?,
        None => of_the_machine()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match &secured.client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
            config.with_client_auth_cert(certificates(cert)?, private).map_err(|error| unusable(cert, &error))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn of_the_machine() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (good, _bad) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if good == 0 {
        return Err("this machine has no trusted certificates; install ca-certificates".to_owned());
    }
    Ok(roots)
}

fn named(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| unusable(file, &error))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|error| unusable(file, &error))?;
    if all.is_empty() {
        return Err(unusable(file, &"it holds no certificate in PEM form"));
    }
    Ok(all)
}

fn unusable(file: &Path, why: &dyn Display) -> String {
    format!("{} cannot be used: {why}", file.display())
}
