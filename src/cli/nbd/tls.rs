//! The options of TLS: `--tls-creds`, `--tls-hostname`, `--tls-authz`.

use super::Failure;
use super::task::Wish;
use crate::block::protocol::nbd::Address;
use crate::block::tls;

/// What begins messages about credentials.
const NO_CREDENTIALS: &str = "Failed to get TLS creds";

/// What was said of TLS.
#[derive(Default)]
pub(super) struct Tls {
    credentials: Option<String>,
    hostname: Option<String>,
    authorization: Option<String>,
}

impl Tls {
    /// Takes one of the options.
    pub(super) fn take(&mut self, name: &str, value: String) {
        match name {
            "tls-creds" => self.credentials = Some(value),
            "tls-hostname" => self.hostname = Some(value),
            _ => self.authorization = Some(value),
        }
    }

    /// Refuses options that do not go together.
    pub(super) fn check(&self, list: bool) -> Result<(), Failure> {
        let refuse = |what: &str| Err(Failure::message(what));
        if self.authorization.is_some() {
            return match (&self.credentials, list) {
                (None, _) => refuse("--tls-authz is not permitted without --tls-creds"),
                (Some(_), true) => refuse("TLS authorization is incompatible with export list"),
                (Some(_), false) => Err(Failure::unsupported(
                    "--tls-authz",
                    "let an authority of its own sign the certificates of those who may come in",
                )),
            };
        }
        match (&self.hostname, &self.credentials) {
            (Some(_), None) => refuse("--tls-hostname is not permitted without --tls-creds"),
            (Some(_), Some(_)) if !list => refuse("TLS hostname is only supported with export list"),
            _ => Ok(()),
        }
    }

    /// The credentials to serve with.
    pub(super) fn server(&self, wish: &Wish) -> Result<Option<tls::Server>, Failure> {
        let Some(id) = &self.credentials else { return Ok(None) };
        if wish.device.is_some() {
            return Err(Failure::message("TLS is not supported with a host device"));
        }
        let credentials = wish.open.secrets.tls_server(id);
        credentials.map(Some).map_err(|error| Failure::block(NO_CREDENTIALS, &error))
    }

    /// The credentials to ask the server at `address` with.
    pub(super) fn client(&self, wish: &Wish, address: &Address) -> Result<Option<tls::Client>, Failure> {
        let Some(id) = &self.credentials else { return Ok(None) };
        let credentials = wish.open.secrets.tls_client(id);
        let credentials = credentials.map_err(|error| Failure::block(NO_CREDENTIALS, &error))?;
        let host = address.host().map(str::to_owned);
        Ok(Some(credentials.of(self.hostname.clone().or(host))))
    }
}
