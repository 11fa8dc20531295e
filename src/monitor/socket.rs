//! Sockets of monitors: their addresses in QEMU's words, listeners, and clients that nobody waits for.
//!
//! Invariant: no call here blocks. What a client does not take waits in a buffer; one that leaves too much there is
//! cut off.

use super::{Error, Result};
use crate::util::keyval::Options;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Bytes that may wait for a client.
const BACKLOG: usize = 4 << 20;
/// Where a TCP address without a host listens: a monitor does everything, so not to the world.
const LOCALHOST: &str = "127.0.0.1";

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl Address {
    /// Reads `unix:PATH,server,nowait` and `tcp:HOST:PORT,server=on,wait=off`.
    ///
    /// # Errors
    /// Names what makes no sense, or what there is not.
    pub fn parse(text: &str) -> Result<Address> {
        let bad = |why: String| Error::new(format!("{text}: {why}"));
        let mut options = Options::parse(text, Some("address"));
        let address = options.take("address").unwrap_or_default();
        let server = options.take_switch("server").map_err(|error| bad(error.to_string()))?;
        let wait = options.take_switch("wait").map_err(|error| bad(error.to_string()))?;
        options.finish().map_err(|error| bad(error.to_string()))?;
        if server != Some(true) || wait != Some(false) {
            return Err(bad(
                "this monitor only listens, and nobody waits for its clients: add server,nowait".into(),
            ));
        }
        match address.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", place)) => match place.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() => {
                    let host = if host.is_empty() { LOCALHOST } else { host };
                    Ok(Address::Tcp(format!("{host}:{port}")))
                }
                _ => Err(bad("write tcp:HOST:PORT".to_owned())),
            },
            _ => Err(bad("write unix:PATH or tcp:HOST:PORT".to_owned())),
        }
    }
}

/// A socket that clients connect to. A socket in the file system is removed with it.
pub enum Listener {
    /// In the file system: where, and which file that is (device and number).
    Unix(UnixListener, PathBuf, (u64, u64)),
    /// On the network.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// When the address is in use or not ours.
    pub fn bind(address: &Address) -> Result<Listener> {
        let failed =
            |place: String| move |error: io::Error| Error::new(format!("cannot listen on {place}: {error}"));
        match address {
            Address::Unix(path) => Listener::unix(path).map_err(failed(path.display().to_string())),
            Address::Tcp(place) => {
                let bound = TcpListener::bind(place).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(Listener::Tcp(listener))
                });
                bound.map_err(failed(place.clone()))
            }
        }
    }

    fn unix(path: &Path) -> io::Result<Listener> {
        // The rest of a process that was killed: nobody listens there. A file of another kind is none of ours.
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let found = fs::symlink_metadata(path)?;
        Ok(Listener::Unix(listener, path.to_owned(), (found.dev(), found.ino())))
    }

    /// The next client, if there is one.
    pub fn accept(&self) -> Option<Stream> {
        let socket: OwnedFd = match self {
            Listener::Unix(listener, ..) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                socket.into()
            }
            Listener::Tcp(listener) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                // Answers are small and awaited.
                socket.set_nodelay(true).ok()?;
                socket.into()
            }
        };
        Some(Stream { socket: socket.into(), unsent: VecDeque::new(), broken: false })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Unix(listener, ..) => listener.as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whoever removed it before us did what we want, and may have put another there.
        if let Listener::Unix(_, path, ours) = self
            && fs::symlink_metadata(&*path).is_ok_and(|found| (found.dev(), found.ino()) == *ours)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// A client's connection.
pub struct Stream {
    socket: File,
    unsent: VecDeque<u8>,
    broken: bool,
}

/// What came from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The client will send no more.
    End,
}

impl Stream {
    /// Reads what is there, up to `limit` bytes.
    pub fn receive(&mut self, limit: usize) -> Received {
        let mut bytes = vec![0; limit];
        match self.socket.read(&mut bytes) {
            Ok(0) => Received::End,
            Ok(count) => {
                bytes.truncate(count);
                Received::Bytes(bytes)
            }
            Err(error) if is_temporary(&error) => Received::Nothing,
            Err(_) => {
                self.broken = true;
                Received::End
            }
        }
    }

    /// Sends, now or when the client takes it.
    pub fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
        self.flush();
        self.broken |= self.unsent.len() > BACKLOG;
    }

    /// Sends what the client takes.
    pub fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.broken {
            match self.socket.write(self.unsent.as_slices().0) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if is_temporary(&error) => return,
                Err(_) => self.broken = true,
            }
        }
    }

    /// Whether all was sent.
    pub fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Whether the connection is gone.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_of_qemus_spellings() {
        let unix = Address::Unix("/a,b".into());
        assert_eq!(Address::parse("unix:/a,,b,server,nowait").unwrap(), unix);
        assert_eq!(Address::parse("unix:/a,,b,server=on,wait=off").unwrap(), unix);
        assert_eq!(Address::parse("tcp:h:1,server,nowait").unwrap(), Address::Tcp("h:1".into()));
        assert_eq!(Address::parse("tcp::1,server,nowait").unwrap(), Address::Tcp("127.0.0.1:1".into()));
        for text in
            ["unix:/a", "unix:/a,server", "unix:,server,nowait", "tcp:1,server,nowait", "x,server,nowait"]
        {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        assert!(Address::parse("unix:/a,server,nowait,telnet").unwrap_err().description.contains("'telnet'"));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert!(Listener::bind(&address).is_err(), "taken away from a listener that lives");
        drop(listener);
        assert!(!path.exists());
        let first = Listener::bind(&address).unwrap();
        fs::rename(&path, folder.path().join("away")).unwrap();
        let _second = Listener::bind(&address).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_client_that_takes_nothing_is_cut_off_and_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
        let _dead = UnixStream::connect(&path).unwrap();
        let mut stream = listener.accept().unwrap();
        let mut sent = 0;
        while !stream.is_broken() {
            stream.send(&[b'x'; 65536]);
            sent += 65536;
            assert!(sent <= 4 * BACKLOG);
        }
        assert!(stream.unsent.len() <= BACKLOG + 65536);
    }
}
