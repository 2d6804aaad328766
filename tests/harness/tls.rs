//! Certificates for servers that speak TLS, and for their clients, made for one test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redis::{ClientTlsConfig, TlsCertificates};

/// An authority of its own, and one certificate, by it, for every node and client: each is told to ask for one.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate for 127.0.0.1 and localhost.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Tls {
    /// Makes them, in files of this folder.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(vec![])?;
        // A name of its own: the default one would make the other certificate look signed by itself.
        authority.distinguished_name.push(DnType::CommonName, "the tests' authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let tls = Self { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        fs::write(&tls.ca, authority.pem())?;
        fs::write(&tls.cert, certificate.pem())?;
        fs::write(&tls.key, key.serialize_pem())?;
        Ok(tls)
    }

    /// The lines of a configuration file that make a server speak it on this port, and nothing else on any.
    pub(crate) fn config(&self, port: u16) -> String {
        let Self { ca, cert, key } = self;
        format!(
            "port 0\ntls-port {port}\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients yes\n\
             tls-replication yes\n",
            ca.display(),
            cert.display(),
            key.display()
        )
    }

    /// What a client needs.
    pub(crate) fn client(&self) -> Result<TlsCertificates> {
        // The first to install one wins, and there is but this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = ClientTlsConfig { client_cert: fs::read(&self.cert)?, client_key: fs::read(&self.key)? };
        Ok(TlsCertificates { client_tls: Some(own), root_cert: Some(fs::read(&self.ca)?) })
    }
}
