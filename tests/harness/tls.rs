//! Certificates for servers with TLS and for their clients, made for one test.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redis::{ClientTlsConfig, TlsCertificates};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An authority, and one certificate that it has signed for all nodes and clients. Each node requires a
/// certificate.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate for 127.0.0.1 and localhost.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    authority: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl Tls {
    /// Makes the certificates, in files of this folder.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(vec![])?;
        // Needs a name: with the default name, the other certificate would look self-signed.
        authority.distinguished_name.push(DnType::CommonName, "the tests' authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = Arc::new(CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?);
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
        let tls = Self { ca, cert, key, authority };
        fs::write(&tls.ca, tls.authority.pem())?;
        tls.renew()?;
        Ok(tls)
    }

    /// Replaces the certificate and the key with new ones, signed by the same authority.
    pub fn renew(&self) -> Result<()> {
        let key = KeyPair::generate()?;
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &*self.authority)?;
        fs::write(&self.cert, certificate.pem())?;
        fs::write(&self.key, key.serialize_pem())?;
        Ok(())
    }

    /// Whether a server shows the certificate that is in the file now.
    pub async fn is_shown_by(&self, server: SocketAddr) -> Result<bool> {
        let own = CertificateDer::from_pem_file(&self.cert)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let config = config.with_root_certificates(roots).with_client_auth_cert(vec![own.clone()], key)?;
        let stream = TcpStream::connect(server).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect(server.ip().into(), stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        Ok(shown == Some(&own))
    }

    /// The lines of a configuration file that make a server use TLS on this port, and no other port.
    pub(crate) fn config(&self, port: u16) -> String {
        let Self { ca, cert, key, .. } = self;
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
        // The first provider that is installed is used, and there is only this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = ClientTlsConfig { client_cert: fs::read(&self.cert)?, client_key: fs::read(&self.key)? };
        Ok(TlsCertificates { client_tls: Some(own), root_cert: Some(fs::read(&self.ca)?) })
    }
}
