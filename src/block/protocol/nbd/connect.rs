//! Connecting to a server, and listening: the part that names, addresses and the kernel have in it.
//!
//! Looking up a host and connecting can block, so both happen on a thread of the pool.

use super::target::Address;
use crate::block::aio::{Engine, Socket};
use crate::block::error::errno_text;
use crate::block::{Error, Kind, Result};
use crate::util::text;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

/// How long one address is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to a server.
///
/// # Errors
/// In qemu-img's words: "Failed to connect to 'localhost:1': Connection refused".
pub(super) async fn connect(engine: &Rc<Engine>, address: &Address) -> Result<Socket> {
    let wanted = address.clone();
    let fd = engine.offload(move || open(&wanted)).await?;
    Ok(Socket::new(engine, fd)?)
}

fn open(address: &Address) -> Result<OwnedFd> {
    let failed = |error| {
        Error::from_io(error)
            .context(format!("Failed to connect to '{address}'"))
            .remedy("check the address, and that the server is running")
    };
    match address {
        Address::Unix(path) => UnixStream::connect(text::to_path(path))
            .and_then(|stream| prepare(&stream).map(|()| stream.into()))
            .map_err(failed),
        Address::Tcp(host, port) => open_tcp(host, port).map_err(|error| match error {
            Refusal::Unknown(why) => {
                Error::new(Kind::NotFound, format!("address resolution failed for {address}: {why}"))
            }
            Refusal::Failed(error) => failed(error),
        }),
    }
}

enum Refusal {
    /// The host or the port is not known.
    Unknown(String),
    Failed(io::Error),
}

fn open_tcp(host: &str, port: &str) -> std::result::Result<OwnedFd, Refusal> {
    let port = port.parse::<u16>();
    let port = port.map_err(|_| Refusal::Unknown("Servname not supported for ai_socktype".to_owned()))?;
    let addresses = (host, port).to_socket_addrs().map_err(|error| Refusal::Unknown(lookup_text(&error)))?;
    let mut last = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                prepare(&stream).map_err(Refusal::Failed)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(Refusal::Failed(last))
}

/// When a connection without data is asked whether its peer is still there: after how many seconds, then how often, and
/// how many times without an answer.
const KEEPALIVE: [(libc::c_int, libc::c_int); 3] =
    [(libc::TCP_KEEPIDLE, 30), (libc::TCP_KEEPINTVL, 10), (libc::TCP_KEEPCNT, 3)];
/// What a Unix socket holds for its peer, in bytes, if the host allows that much: some replies, so that the two sides do not
/// wait for each other at each. TCP finds that out by itself.
const SEND_BUFFER: libc::c_int = 512 << 10;

/// Over TCP small messages go at once, and a peer whose host is gone is noticed after a minute where nothing is to be
/// sent. A Unix socket has room for long messages.
///
/// # Errors
/// When it is no such socket.
pub fn prepare(socket: &impl AsRawFd) -> io::Result<()> {
    let (fd, mut domain) = (socket.as_raw_fd(), 0);
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both places live during the call.
    let asked = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut size)
    };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    if domain == libc::AF_UNIX {
        return set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER);
    }
    set(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    KEEPALIVE.into_iter().try_for_each(|(option, value)| set(fd, libc::IPPROTO_TCP, option, value))
}

fn set(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int that lives during the call.
    match unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the C library says of a name that it cannot look up.
pub fn lookup_text(error: &io::Error) -> String {
    let text = errno_text(error);
    text.rsplit_once(": ").map_or(text.clone(), |(_, why)| why.to_owned())
}
