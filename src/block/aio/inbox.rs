//! The receiving side of messages over a [`Socket`]: small ones are received many at a time, large ones without a copy.

use super::Socket;
use crate::block::{Buffer, Iov};
use std::io;
use std::rc::Rc;

/// How much is read ahead, in bytes.
const AHEAD: usize = 32 << 10;
/// From this length on, in bytes, what is received goes to its place directly.
const LONG: usize = 8 << 10;
/// How much is read ahead behind something long, in bytes: the head of the next message, which is likely as long.
const HEAD: usize = 512;

/// The receiving side of a connection.
pub struct Inbox {
    socket: Rc<Socket>,
    ahead: Iov,
    start: usize,
    end: usize,
    /// What came last was long.
    long: bool,
}

impl Inbox {
    /// What comes in on `socket`.
    pub fn new(socket: &Rc<Socket>) -> Inbox {
        Inbox { socket: socket.clone(), ahead: Buffer::new(AHEAD).iov(AHEAD), start: 0, end: 0, long: false }
    }

    /// As [`Inbox::new`], where these bytes (as many as [`Inbox::into_ahead`] gives) came before.
    pub fn with_ahead(socket: &Rc<Socket>, bytes: &[u8]) -> Inbox {
        let inbox = Inbox::new(socket);
        let end = inbox.ahead.copy_from(0, bytes);
        Inbox { end, ..inbox }
    }

    /// What was received and not taken.
    pub fn into_ahead(self) -> Vec<u8> {
        self.ahead.slice(self.start, self.end - self.start).to_vec()
    }

    /// Whether nothing was received that was not taken.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the stream ends here; waits for its next byte.
    ///
    /// # Errors
    /// What the host says.
    pub async fn at_end(&mut self) -> io::Result<bool> {
        if self.is_empty() {
            self.fill().await?;
        }
        Ok(self.is_empty())
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the stream ends before; what the host says.
    pub async fn exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            if self.at_end().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let len = (into.len() - done).min(self.end - self.start);
            self.ahead.copy_to(self.start, &mut into[done..done + len]);
            self.start += len;
            done += len;
        }
        Ok(())
    }

    /// Receives as many bytes as the array has.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Receives `len` bytes, which must have been checked against a limit.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn exact_iov(&mut self, into: &Iov) -> io::Result<()> {
        self.long = into.len() >= LONG;
        let mut done = self.take(into);
        while done < into.len() {
            let rest = into.slice(done, into.len() - done);
            let got = if self.long { self.receive(&rest).await? } else { self.take_next(&rest).await? };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += got;
        }
        Ok(())
    }

    /// Copies what was received already; how much.
    fn take(&mut self, into: &Iov) -> usize {
        let len = (self.end - self.start).min(into.len());
        into.copy_from_iov(0, &self.ahead.slice(self.start, len));
        self.start += len;
        len
    }

    async fn take_next(&mut self, into: &Iov) -> io::Result<usize> {
        self.fill().await?;
        Ok(self.take(into))
    }

    /// Receives to its place, and the head of the next message with the same call if that is there.
    async fn receive(&mut self, into: &Iov) -> io::Result<usize> {
        let both = Iov::concat(&[into.clone(), self.ahead.slice(0, HEAD)]);
        let got = self.socket.recv(&both).await?;
        let direct = got.min(into.len());
        (self.start, self.end) = (0, got - direct);
        Ok(direct)
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// As [`Inbox::exact`].
    pub async fn skip(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            if self.at_end().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = left.min((self.end - self.start) as u64);
            self.start += step as usize;
            left -= step;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        (self.start, self.end) = (0, 0);
        let wanted = if std::mem::take(&mut self.long) { HEAD } else { AHEAD };
        self.end = self.socket.recv(&self.ahead.slice(0, wanted)).await?;
        Ok(())
    }
}
