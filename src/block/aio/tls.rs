//! TLS under a [`super::Socket`]: the same bytes for those above, records of TLS on the wire.
//!
//! ```text
//!   Socket::recv ◀─ plain ─ Connection ◀─ records ─ Incoming ◀─ recv(2)
//!   Socket::send ── plain ─▶ Connection ── records ───────────▶ sendmsg(2)
//! ```
//!
//! One task receives while another sends, both on one thread: the connection is borrowed for single steps, never across
//! a wait. Invariant: once a send has ended, nothing of it is left in the connection. A stream that ends without the
//! peer's goodbye is an error, so that nobody on the way can cut it short unnoticed.

use super::Engine;
use crate::block::Iov;
use rustls::Connection;
use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

/// How much is received with one call, in bytes: some records.
const AHEAD: usize = 64 << 10;
/// How much is encrypted at a time, in bytes; no more than a connection keeps for sending.
const PIECE: usize = 32 << 10;

/// The TLS side of a socket.
pub(super) struct Session {
    connection: RefCell<Connection>,
    incoming: RefCell<Incoming>,
}

impl Session {
    /// Runs the handshake. Its arithmetic is done on a thread of the pool: whoever can connect can ask for it.
    pub(super) async fn shake_hands(
        engine: &Engine,
        fd: &Rc<OwnedFd>,
        connection: Connection,
    ) -> io::Result<Session> {
        let mut session = Session { connection: RefCell::new(connection), incoming: RefCell::default() };
        loop {
            session.flush(engine, fd).await?;
            if !session.connection.borrow().is_handshaking() {
                return Ok(session);
            }
            session.fill(engine, fd).await?;
            let (back, done) = engine.compute(move || session.decrypted()).await;
            session = back;
            if let Err(error) = done {
                // The peer may hear why, if it still listens.
                let _ = session.push(fd);
                return Err(error);
            }
        }
    }

    /// Receives what is there, at least one byte; 0 when the peer has said goodbye.
    pub(super) async fn recv(&self, engine: &Engine, fd: &Rc<OwnedFd>, into: &Iov) -> io::Result<usize> {
        loop {
            match self.take(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.pull(engine, fd).await?,
                done => return done,
            }
        }
    }

    /// Sends a part of the bytes, at least one.
    pub(super) async fn send(&self, engine: &Engine, fd: &Rc<OwnedFd>, from: &Iov) -> io::Result<usize> {
        let mut piece = vec![0; from.len().min(PIECE)];
        from.copy_to(0, &mut piece);
        loop {
            let taken = self.connection.borrow_mut().writer().write(&piece)?;
            self.flush(engine, fd).await?;
            // What the protocol itself had to say may have left no room.
            if taken > 0 || piece.is_empty() {
                return Ok(taken);
            }
        }
    }

    /// Says goodbye, if the socket takes it at once.
    pub(super) fn end(&self, fd: &OwnedFd) {
        self.connection.borrow_mut().send_close_notify();
        // The peer may be gone.
        let _ = self.push(fd);
    }

    /// Hands out decrypted bytes.
    fn take(&self, into: &Iov) -> io::Result<usize> {
        let mut connection = self.connection.borrow_mut();
        let mut reader = connection.reader();
        let mut done = 0;
        while done < into.len() {
            let bytes = match reader.fill_buf() {
                Ok([]) => break,
                Err(_) if done > 0 => break,
                bytes => bytes?,
            };
            let len = into.copy_from(done, bytes);
            reader.consume(len);
            done += len;
        }
        Ok(done)
    }

    /// Receives and decrypts some records.
    async fn pull(&self, engine: &Engine, fd: &Rc<OwnedFd>) -> io::Result<()> {
        self.fill(engine, fd).await?;
        self.decrypt()
    }

    /// Receives something, if nothing is there that was not decrypted yet.
    async fn fill(&self, engine: &Engine, fd: &Rc<OwnedFd>) -> io::Result<()> {
        while self.incoming.borrow().is_empty() {
            let filled = self.incoming.borrow_mut().fill(fd);
            match filled {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => engine.readable(fd).await?,
                Ok(0) => break,
                filled => drop(filled?),
            }
        }
        Ok(())
    }

    /// Decrypts what was received.
    fn decrypt(&self) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        // No bytes at all mean the end of the stream, which the connection must know too.
        let ended = connection.read_tls(&mut *self.incoming.borrow_mut())? == 0;
        connection
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match ended && connection.is_handshaking() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// As [`Session::decrypt`], for another thread.
    fn decrypted(self) -> (Session, io::Result<()>) {
        let done = self.decrypt();
        (self, done)
    }

    /// Sends all records that there are.
    async fn flush(&self, engine: &Engine, fd: &Rc<OwnedFd>) -> io::Result<()> {
        loop {
            match self.push(fd) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => engine.writable(fd).await?,
                done => return done,
            }
        }
    }

    /// Sends records for as long as the socket takes them.
    fn push(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        while connection.wants_write() {
            connection.write_tls(&mut Outgoing(fd))?;
        }
        Ok(())
    }
}

/// Bytes from the socket that the connection has not taken yet.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Receives what is there; 0 at the end of the stream.
    fn fill(&mut self, fd: &OwnedFd) -> io::Result<usize> {
        self.bytes.resize(AHEAD, 0);
        // SAFETY: pointer and length are those of one slice.
        let done = unsafe { libc::recv(fd.as_raw_fd(), self.bytes.as_mut_ptr().cast(), AHEAD, 0) };
        (self.start, self.end) = (0, usize::try_from(done).map_err(|_| io::Error::last_os_error())?);
        Ok(self.end)
    }
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.end - self.start);
        into[..len].copy_from_slice(&self.bytes[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }
}

/// A socket that is written to without waiting, and without a signal.
struct Outgoing<'a>(&'a OwnedFd);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // An `IoSlice` is an `iovec`, and is only read here.
        message.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: the slices live during the call.
        let done = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
