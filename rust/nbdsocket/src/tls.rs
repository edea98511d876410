//! TLS: a session without I/O, of either side. Certificates are PEM.

use rustix::io::Errno;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore};
use rustls::{ServerConfig, ServerConnection};
use std::fmt::Display;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

/// What a client's session is made of.
pub struct Client<'a> {
    /// Certificates of the authorities that sign the server's.
    pub authorities: &'a [u8],
    /// The client's certificate and what it is signed by, and its key, where servers ask for them.
    pub own: Option<(&'a [u8], &'a [u8])>,
    /// A DNS name or an IP address: the server's certificate must be for it (its subject
    /// alternative names).
    pub host: &'a str,
}

/// What a server's session is made of.
pub struct Server<'a> {
    /// The server's certificate and what it is signed by.
    pub chain: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// Certificates of the authorities that must have signed the client's; `None`: clients need
    /// none.
    pub authorities: Option<&'a [u8]>,
}

/// A session, from the first hello on.
pub struct Tls(Connection);

/// Why there is no session, or no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

/// What a session's input has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// So many bytes of plaintext.
    Bytes(usize),
    /// More is needed, and not there now.
    Nothing,
    /// The other side ends the session.
    End,
}

impl Tls {
    /// A client's. Not PEM, or no name: [`Failure`].
    pub fn client(given: &Client<'_>) -> Result<Tls, Failure> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(because("TLS"))?
            .with_root_certificates(roots(given.authorities)?);
        let config = match given.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let (chain, key) = own("the client's", chain, key)?;
                let config = builder.with_client_auth_cert(chain, key);
                config.map_err(because("the client's certificate"))?
            }
        };
        let name = ServerName::try_from(given.host.to_string());
        let name = name.map_err(|_| because(given.host)("neither a DNS name nor an IP address"))?;
        let session = ClientConnection::new(Arc::new(config), name);
        Ok(Tls(session.map_err(because("TLS"))?.into()))
    }

    /// A server's. Not PEM: [`Failure`].
    pub fn server(given: &Server<'_>) -> Result<Tls, Failure> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(because("TLS"))?;
        let builder = match given.authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let roots = Arc::new(roots(authorities)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = verifier.build().map_err(because(AUTHORITIES))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, key) = own("the server's", given.chain, given.key)?;
        let config = builder.with_single_cert(chain, key);
        let config = config.map_err(because("the server's certificate"))?;
        let session = ServerConnection::new(Arc::new(config)).map_err(because("TLS"))?;
        Ok(Tls(session.into()))
    }

    /// Until it can carry data.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes bytes of the other side; the plaintext that they bring. [`Failure`]: the session has
    /// failed, and what [`Tls::take_output`] gives tells the other side.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut plain = Vec::new();
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).map_err(failed)?;
            self.0.process_new_packets().map_err(failed)?;
            let mut part = [0; 4096];
            while let Ok(len @ 1..) = self.0.reader().read(&mut part) {
                plain.extend_from_slice(&part[..len]);
            }
        }
        Ok(plain)
    }

    /// Plaintext for the other side.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.writer().write_all(bytes).map_err(failed)
    }

    /// What is to go over the wire, once.
    pub fn take_output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        while self.0.wants_write() {
            // A vector takes everything.
            if self.0.write_tls(&mut output).is_err() {
                break;
            }
        }
        output
    }

    /// Whether something is to go over the wire.
    pub(crate) fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Takes plaintext: how many bytes, and none while much waits for the wire.
    pub(crate) fn write(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        self.0.writer().write_vectored(pieces).unwrap_or(0)
    }

    /// Hands what waits to the wire, until that takes no more.
    pub(crate) fn write_to(&mut self, wire: &mut impl Write) -> Result<(), Errno> {
        while self.0.wants_write() {
            self.0.write_tls(wire).map_err(|error| errno(&error))?;
        }
        Ok(())
    }

    /// Takes from the wire until there is plaintext, and puts that into `to`. `Err`: why the session
    /// cannot go on.
    pub(crate) fn read_from(
        &mut self,
        wire: &mut impl Read,
        to: &mut [u8],
    ) -> Result<Input, String> {
        loop {
            match self.0.reader().read(to) {
                Ok(0) => return Ok(Input::End),
                Ok(len) => return Ok(Input::Bytes(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Without a farewell.
                Err(_) => return Ok(Input::End),
            }
            match self.0.read_tls(wire) {
                Ok(0) => return Ok(Input::End),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Input::Nothing),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(errno(&error).to_string()),
            }
            if let Err(error) = self.0.process_new_packets() {
                return Err(error.to_string());
            }
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

const AUTHORITIES: &str = "the authorities' certificates";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(because(AUTHORITIES))?;
        roots.add(certificate).map_err(because(AUTHORITIES))?;
    }
    match roots.is_empty() {
        true => Err(because(AUTHORITIES)("there are none")),
        false => Ok(roots),
    }
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(whose: &str, chain: &[u8], key: &[u8]) -> Result<Own, Failure> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(because(&format!("{whose} certificate")))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(because(&format!("{whose} key")))?;
    Ok((chain, key))
}

fn because<E: Display>(what: &str) -> impl Fn(E) -> Failure {
    move |why| Failure(format!("{what}: {why}"))
}

fn failed(error: impl Display) -> Failure {
    Failure(error.to_string())
}
