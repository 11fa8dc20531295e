//! The listening socket: an address of the host, or a path.

use crate::block::protocol::nbd::Address;
use crate::block::protocol::nbd::connect::lookup_text;
use crate::block::{Error, Result};
use crate::util::text;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A socket that listens; its path, if it has one, is removed with it.
pub struct Listening {
    /// The socket.
    pub fd: OwnedFd,
    /// What to tell people who ask where.
    pub place: String,
    path: Option<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody else may have taken it away.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens. A socket that a server has left behind is replaced.
///
/// # Errors
/// In qemu-nbd's words.
pub fn listen(address: &Address) -> Result<Listening> {
    match address {
        Address::Unix(path) => {
            let host_path = text::to_path(path).into_owned();
            if std::fs::symlink_metadata(&host_path).is_ok_and(|file| file.file_type().is_socket()) {
                // Binding says what is wrong, if something is.
                let _ = std::fs::remove_file(&host_path);
            }
            let listener = UnixListener::bind(&host_path)
                .map_err(|error| Error::from_io(error).context(format!("Failed to bind socket to {path}")))?;
            Ok(Listening { fd: listener.into(), place: path.clone(), path: Some(host_path) })
        }
        Address::Tcp(host, port) => {
            let unknown = |why: &str| {
                Error::invalid_argument(format!("address resolution failed for {address}: {why}"))
            };
            let number =
                port.parse::<u16>().map_err(|_| unknown("Servname not supported for ai_socktype"))?;
            let addresses = (host.as_str(), number).to_socket_addrs();
            let addresses: Vec<_> = addresses.map_err(|error| unknown(&lookup_text(&error)))?.collect();
            let listener = TcpListener::bind(&addresses[..])
                .map_err(|error| Error::from_io(error).context("Failed to bind socket"))?;
            let place = listener.local_addr()?.to_string();
            Ok(Listening { fd: listener.into(), place, path: None })
        }
    }
}
