//! Certificates for servers that speak TLS, and for their clients, made for one test.

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

/// An authority of its own, and one certificate, by it, for every node and client: each is told to ask for one.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate for 127.0.0.1 and localhost.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    authority: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl Tls {
    /// Makes them, in files of this folder.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(vec![])?;
        // A name of its own: the default one would make the other certificate look signed by itself.
        authority.distinguished_name.push(DnType::CommonName, "the tests' authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = Arc::new(CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?);
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
        let tls = Self { ca, cert, key, authority };
        fs::write(&tls.ca, tls.authority.pem())?;
        tls.renew()?;
        Ok(tls)
    }

    /// Puts another certificate and another key, by the same authority, in the place of the present ones.
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

    /// The lines of a configuration file that make a server speak it on this port, and nothing else on any.
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
        // The first to install one wins, and there is but this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = ClientTlsConfig { client_cert: fs::read(&self.cert)?, client_key: fs::read(&self.key)? };
        Ok(TlsCertificates { client_tls: Some(own), root_cert: Some(fs::read(&self.ca)?) })
    }
}
