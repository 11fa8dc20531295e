//! A stream socket as tasks use it: what can be done at once is done inline, and else the engine waits until the
//! socket is ready. A slow peer holds up its own tasks and no others.
//!
//! The bytes may go over TLS, from [`Socket::start_tls`] on; whoever sends and receives sees no difference.

use super::tls::Session;
use super::{Engine, Loan};
use crate::block::Iov;
use rustls::Connection;
use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

/// An open socket: connected, or listening.
pub struct Socket {
    engine: Rc<Engine>,
    fd: Rc<OwnedFd>,
    tls: OnceCell<Session>,
    /// It may have more to receive than was taken with the last call.
    may_have_more: Cell<bool>,
}

/// A socket on its way to another thread's engine.
pub struct Detached {
    fd: OwnedFd,
    tls: OnceCell<Session>,
}

impl Socket {
    /// A socket whose waits run on `engine`.
    ///
    /// # Errors
    /// When the host refuses to make it non-blocking.
    pub fn new(engine: &Rc<Engine>, fd: OwnedFd) -> io::Result<Socket> {
        // SAFETY: plain system calls on a descriptor that is open.
        let done = unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Socket {
            engine: engine.clone(),
            fd: Rc::new(fd),
            tls: OnceCell::new(),
            may_have_more: Cell::new(true),
        })
    }

    /// A socket of another thread, whose waits run on `engine` now.
    pub fn attach(engine: &Rc<Engine>, socket: Detached) -> Socket {
        Socket {
            engine: engine.clone(),
            fd: Rc::new(socket.fd),
            tls: socket.tls,
            may_have_more: Cell::new(true),
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// From now on all bytes go over TLS. Nothing else may be sent or received until this has ended; if it fails, ever.
    ///
    /// # Errors
    /// What the host says; a [`rustls::Error`] within where the handshake does not succeed.
    pub async fn start_tls(&self, connection: Connection) -> io::Result<()> {
        let session = Session::shake_hands(&self.engine, &self.fd, connection).await?;
        self.tls.set(session).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// Receives what is there, at least one byte; 0 when the peer has ended the stream.
    ///
    /// # Errors
    /// What the host says.
    pub async fn recv(&self, into: &Iov) -> io::Result<usize> {
        if let Some(session) = self.tls.get() {
            return self.after(session.recv(&self.engine, &self.fd, into).await).await;
        }
        let mut done = Err(io::ErrorKind::WouldBlock.into());
        while would_block(&done) {
            // Who got less than there was room for has emptied the socket: to look again at once is mostly in vain.
            if self.may_have_more.replace(true) {
                // SAFETY: the list keeps its ranges mapped during the call.
                done = self.message(into, |fd, message| unsafe { libc::recvmsg(fd, message, 0) });
            }
            if would_block(&done) {
                done = self.engine.receive(&self.fd, into).await;
            }
        }
        self.may_have_more.set(done.as_ref().is_ok_and(|len| *len == into.len()));
        self.after(done).await
    }

    /// Sends a part of the bytes, at least one. A peer that is gone is an error, never a signal.
    async fn send(&self, from: &Iov, flags: libc::c_int) -> io::Result<usize> {
        if let Some(session) = self.tls.get() {
            return self.after(session.send(&self.engine, &self.fd, from).await).await;
        }
        loop {
            // SAFETY: as in `recv`.
            let send =
                |fd, message: *mut _| unsafe { libc::sendmsg(fd, message, libc::MSG_NOSIGNAL | flags) };
            match self.message(from, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.engine.writable(&self.fd).await?;
                }
                done => return self.after(done).await,
            }
        }
    }

    /// Sends all of the bytes.
    ///
    /// # Errors
    /// What the host says.
    pub async fn send_all(&self, from: &Iov) -> io::Result<()> {
        self.send_flagged(from, 0).await
    }

    /// As [`Socket::send_all`], where others follow at once.
    ///
    /// # Errors
    /// What the host says.
    pub async fn send_before(&self, from: &Iov) -> io::Result<()> {
        self.send_flagged(from, libc::MSG_MORE).await
    }

    async fn send_flagged(&self, from: &Iov, flags: libc::c_int) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            done += self.send(&from.slice(done, from.len() - done), flags).await?;
        }
        Ok(())
    }

    /// Whether pages can be lent to it: TLS must have the bytes.
    pub fn takes_loans(&self) -> bool {
        self.tls.get().is_none()
    }

    /// Sends all bytes of a loan.
    ///
    /// # Errors
    /// What the host says.
    pub async fn send_loan(&self, loan: &Loan) -> io::Result<()> {
        while !loan.is_empty() {
            // The runtime has it that a peer that is gone is no signal.
            match loan.send(self.fd.as_raw_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.engine.writable(&self.fd).await?;
                }
                done => {
                    self.after(done.map(|()| 0)).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until there is something to receive, or the stream has ended.
    ///
    /// # Errors
    /// What the host says.
    pub async fn readable(&self) -> io::Result<()> {
        self.engine.readable(&self.fd).await
    }

    /// The next connection of a listening socket.
    ///
    /// # Errors
    /// What the host says; a shortage of descriptors may pass.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: no address is asked for.
            let fd = unsafe {
                libc::accept4(self.fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
            };
            if fd >= 0 {
                // SAFETY: a fresh descriptor that nobody else owns.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => self.engine.readable(&self.fd).await?,
                // The peer has given up meanwhile.
                error if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                error => return Err(error),
            }
        }
    }

    /// Ends the stream both ways: whoever waits for it wakes up.
    pub fn shutdown(&self) {
        if let Some(session) = self.tls.get() {
            session.end(&self.fd);
        }
        // SAFETY: a plain system call. A socket that is not connected any more is what is wanted.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// For another thread's engine. A wait that was given up may still hold the descriptor here: until something happens
    /// on the socket, its end at the latest.
    ///
    /// # Errors
    /// When the host has no descriptors left.
    pub fn detach(self) -> io::Result<Detached> {
        let fd = Rc::try_unwrap(self.fd).or_else(|shared| shared.try_clone())?;
        Ok(Detached { fd, tls: self.tls })
    }

    async fn after(&self, done: io::Result<usize>) -> io::Result<usize> {
        if self.engine.inline_budget_spent() {
            self.engine.yield_now().await;
        }
        done
    }

    fn message(&self, iov: &Iov, call: impl Fn(i32, *mut libc::msghdr) -> isize) -> io::Result<usize> {
        let parts = iov.parts_for_one_call();
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut();
        message.msg_iovlen = parts.len() as _;
        loop {
            let done = call(self.fd.as_raw_fd(), &raw mut message);
            match usize::try_from(done) {
                Ok(done) => return Ok(done),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

fn would_block(done: &io::Result<usize>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
