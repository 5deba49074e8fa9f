//! A TLS client made by hand: shows what a test wants it to show, and believes every server.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// A certificate and its key, as a client shows them.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);
/// A connection.
pub type Connection = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS client that believes every server, with this certificate or none. `None`: it was not let in so far.
pub fn connect(port: u16, identity: Option<Identity>) -> Option<Connection> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a certificate"),
    };
    handshake(port, config)
}

/// Connects with this configuration, and waits for the first byte of the other side.
pub fn handshake(port: u16, config: rustls::ClientConfig) -> Option<Connection> {
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    let connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let mut stream = rustls::StreamOwned::new(connection, stream);
    // The acceptor speaks first: a line means that the channel stands.
    let mut first = [0; 1];
    matches!(stream.read(&mut first), Ok(1)).then_some(stream)
}

/// Believes every server that proves its key; the test has no need to know it.
#[derive(Debug)]
pub struct Credulous(pub Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
