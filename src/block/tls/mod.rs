//! TLS credentials: X.509 certificates and keys of a folder (`--object tls-creds-x509,id=ID,dir=DIR,endpoint=…`), under
//! QEMU's names and in its words.
//!
//! | file | who needs it |
//! | --- | --- |
//! | `ca-cert.pem` | both: whom the other side's certificate must come from |
//! | `ca-crl.pem` | both, if it is there: certificates that are not good any more |
//! | `server-cert.pem`, `server-key.pem` | a server |
//! | `client-cert.pem`, `client-key.pem` | a client, if it has them |
//!
//! All is read when the object is defined; a file that changes later changes nothing. Names of servers stand in
//! `subjectAltName`; a common name alone is not looked at.

mod files;
mod trust;

use crate::block::{Error, Kind, Result};
use crate::util::keyval::{Options, parse_switch};
use files::Files;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use std::fmt;
use std::io;
use std::sync::Arc;
use trust::{Demand, Trust};

/// What stands for the name of a server whose name nobody knows; it is never sent.
const NAMELESS: &str = "localhost";

/// Credentials of one side.
#[derive(Clone)]
pub enum Credentials {
    /// For connections that this host makes.
    Client(Client),
    /// For connections that it takes.
    Server(Server),
}

/// What a client proves itself with, and whom it trusts.
#[derive(Clone)]
pub struct Client {
    named: Arc<ClientConfig>,
    /// For servers that have no name: those behind Unix sockets.
    nameless: Arc<ClientConfig>,
    /// The name that the server must prove.
    hostname: Option<String>,
}

/// What a server proves itself with, and whom it lets in.
#[derive(Clone)]
pub struct Server(Arc<ServerConfig>);

impl Credentials {
    /// Takes the options of the object, but for its ID, and reads the files.
    ///
    /// # Errors
    /// In QEMU's words: an option that makes no sense, a file that is missing or is not what it should be.
    pub fn take(options: &mut Options) -> Result<Credentials> {
        let verify = match options.take("verify-peer") {
            Some(value) => parse_switch("verify-peer", &value)
                .map_err(|error| Error::invalid_argument(error.to_string()))?,
            None => true,
        };
        let is_server = match options.take("endpoint").as_deref() {
            None | Some("client") => false,
            Some("server") => true,
            Some(other) => return Err(Error::not_accepted("endpoint", other)),
        };
        let dir =
            options.take("dir").ok_or_else(|| Error::invalid_argument("Missing 'dir' property value"))?;
        let files = Files { dir };
        match is_server {
            true => Server::read(&files, verify).map(Credentials::Server),
            false => Client::read(&files, verify).map(Credentials::Client),
        }
    }
}

impl Client {
    fn read(files: &Files, verify: bool) -> Result<Client> {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(files.authorities()?), provider());
        let builder = builder.with_crls(files.revoked()?).allow_unknown_revocation_status();
        let verifier = builder.build().map_err(|error| unusable(&error))?;
        let own = files.own("client", false)?;
        let config = |demand, sni| {
            let trust = Arc::new(Trust::new(verifier.clone(), demand));
            let builder =
                ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| unusable(&error))?.dangerous();
            let builder = builder.with_custom_certificate_verifier(trust);
            let mut config = match &own {
                Some(own) => builder
                    .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
                    .map_err(|error| own.unusable(&error))?,
                None => builder.with_no_client_auth(),
            };
            config.enable_sni = sni;
            // Every connection is checked anew.
            config.resumption = Resumption::disabled();
            Ok::<_, Error>(Arc::new(config))
        };
        let demand = |demand| if verify { demand } else { Demand::Nothing };
        Ok(Client {
            named: config(demand(Demand::Name), true)?,
            nameless: config(demand(Demand::AnyName), false)?,
            hostname: None,
        })
    }

    /// The same, for the server of this name, or one that has none.
    #[must_use]
    pub fn of(self, hostname: Option<String>) -> Client {
        Client { hostname, ..self }
    }

    /// The client's side of a new connection.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a name that no server can have.
    pub fn session(&self) -> Result<Connection> {
        let (config, name) = match self.hostname.as_deref() {
            Some(name) => (&self.named, name),
            None => (&self.nameless, NAMELESS),
        };
        let parsed = ServerName::try_from(name.to_owned());
        let parsed = parsed.map_err(|_| Error::invalid_argument(format!("Invalid hostname '{name}'")))?;
        let session = ClientConnection::new(config.clone(), parsed).map_err(|error| unusable(&error))?;
        Ok(Connection::Client(session))
    }

    /// Why a handshake did not succeed, in QEMU's words where there are any.
    pub fn explain(&self, error: io::Error) -> Error {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(cause) = cause else { return Error::from_io(error).context("TLS handshake failed") };
        use CertificateError as Bad;
        let words = match cause {
            rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
                let hostname = self.hostname.as_deref().unwrap_or(NAMELESS);
                format!("Certificate does not match the hostname {hostname}")
            }
            rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => {
                "The certificate hasn't got a known issuer".to_owned()
            }
            rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
                "The certificate has expired".to_owned()
            }
            rustls::Error::InvalidCertificate(Bad::Revoked) => "The certificate has been revoked".to_owned(),
            other => format!("TLS handshake failed: {other}"),
        };
        Error::new(Kind::Io, words)
    }
}

/// Shows nothing of keys.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS credentials for {:?}", self.hostname)
    }
}

impl Server {
    fn read(files: &Files, verify: bool) -> Result<Server> {
        let authorities = Arc::new(files.authorities()?);
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unusable(&error))?;
        let builder = if verify {
            let clients = WebPkiClientVerifier::builder_with_provider(authorities, provider());
            let clients = clients.with_crls(files.revoked()?).allow_unknown_revocation_status();
            builder.with_client_cert_verifier(clients.build().map_err(|error| unusable(&error))?)
        } else {
            builder.with_no_client_auth()
        };
        let own = files.own("server", true)?.ok_or_else(|| Error::invalid_argument("a server has no key"))?;
        let (chain, key) = (own.chain.clone(), own.key.clone_key());
        let mut config = builder.with_single_cert(chain, key).map_err(|error| own.unusable(&error))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Server(Arc::new(config)))
    }

    /// The server's side of a new connection.
    ///
    /// # Errors
    /// When the credentials cannot be used after all.
    pub fn session(&self) -> Result<Connection> {
        let session = ServerConnection::new(self.0.clone()).map_err(|error| unusable(&error))?;
        Ok(Connection::Server(session))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(error: &dyn std::fmt::Display) -> Error {
    Error::invalid_argument(format!("TLS credentials cannot be used: {error}"))
}
