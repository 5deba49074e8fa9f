//! TLS over TCP. The verifiers here check one thing: that the peer holds the key of the certificate it shows. Whether that
//! key is welcome is decided by [`trust`](super::trust) right after the handshake, with the same rules both ways.

use super::pki::Own;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{ring, verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage,
    ServerConfig, SignatureScheme,
};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Both directions of TLS with the own certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

/// Proof of possession only; see the module's first lines.
#[derive(Debug)]
struct Possession(Arc<CryptoProvider>);

impl Tls {
    /// Prepares both directions. With `mtls`, a client must show a certificate, and we show ours.
    pub fn new(own: &Own, mtls: bool) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let possession = Arc::new(Possession(provider.clone()));
        let server =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let server = if mtls {
            server.with_client_cert_verifier(possession.clone())
        } else {
            server.with_no_client_auth()
        };
        let server = server.with_single_cert(own.chain.clone(), own.key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(possession);
        let client = if mtls {
            client.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?
        } else {
            client.with_no_client_auth()
        };
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Answers a client's handshake.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, tcp: S) -> std::io::Result<TlsStream<S>> {
        self.acceptor.accept(tcp).await.map(TlsStream::from)
    }

    /// Begins a handshake as client. The name is the peer's address, as upstream has it; nothing depends on it.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        tcp: S,
        addr: SocketAddr,
    ) -> std::io::Result<TlsStream<S>> {
        self.connector.connect(ServerName::from(addr.ip()), tcp).await.map(TlsStream::from)
    }
}

/// The reason of a refusal by TLS itself, as far as it is about the peer and not about the connection.
pub fn refusal(error: &std::io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::NoCertificatesPresented => Some("client-certificate-missing"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some("not-tls"),
        Error::PeerIncompatible(_) => Some("tls-incompatible"),
        Error::InvalidCertificate(CertificateError::BadSignature) => Some("certificate-without-its-key"),
        Error::InvalidCertificate(_) => Some("certificate-invalid"),
        Error::InvalidMessage(_) | Error::PeerMisbehaved(_) => Some("tls-misbehaved"),
        _ => None, // the connection's end, or the peer's own refusal
    }
}

/// Certificates of a peer that are looked at.
const MAX_CHAIN: usize = 10;

/// The certificates that the peer showed, its own first; none if it showed none.
pub fn peer_certificates<S>(stream: &TlsStream<S>) -> Vec<CertificateDer<'static>> {
    let certificates = match stream {
        TlsStream::Client(stream) => stream.get_ref().1.peer_certificates(),
        TlsStream::Server(stream) => stream.get_ref().1.peer_certificates(),
    };
    certificates.unwrap_or_default().iter().take(MAX_CHAIN).map(|one| one.clone().into_owned()).collect()
}

impl ServerCertVerifier for Possession {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
