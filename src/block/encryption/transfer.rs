//! Guest bytes to and from a file that holds them encrypted.
//!
//! Memory of the guest is never encrypted in place: it may change at any time, and the guest must never see
//! ciphertext. All goes through buffers of our own, which are used again: memory that is fresh from the host costs more
//! than the cipher.

use crate::block::aio::Engine;
use crate::block::crypto::{SECTOR, Sectors};
use crate::block::graph::Node;
use crate::block::{Buffer, Error, Iov, Kind, Result};
use futures_util::future::join_all;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Up to this many bytes are worked on at once: 25 µs with AES-XTS (2.7 GB/s), about what it takes to hand them to
/// a thread and to hear from it.
const INLINE: usize = 64 << 10;
/// More are shared out in pieces of this many.
const PIECE: usize = 128 << 10;
/// Buffers that are kept for later requests: as many as a copy has in flight.
const SPARES: usize = 16;
/// Longer ones are not kept, in bytes.
const LONGEST_SPARE: usize = 1 << 20;

/// Moves sectors between memory and a file.
#[derive(Clone)]
pub struct Cipherer {
    engine: Rc<Engine>,
    sectors: Arc<Sectors>,
    spares: Rc<RefCell<Vec<Buffer>>>,
}

impl Cipherer {
    /// Encryption and decryption by `sectors`.
    pub fn new(engine: &Rc<Engine>, sectors: Sectors) -> Cipherer {
        Cipherer { engine: engine.clone(), sectors: Arc::new(sectors), spares: Rc::default() }
    }

    /// Reads whole sectors at `offset` of `file`, the first of which has the number `first`.
    ///
    /// # Errors
    /// Those of the file; [`Kind::OutOfRange`] for parts of sectors.
    pub async fn read(&self, file: &Node, offset: u64, first: u64, into: &Iov) -> Result<()> {
        check_whole(offset, into)?;
        let len = into.len();
        let mut bounce = self.buffer(len);
        file.read(offset, &bounce.iov(len)).await?;
        if len > INLINE {
            let decrypt = |sectors: &Sectors, first, data: &mut [u8]| sectors.decrypt(first, data);
            self.shared_out(first, &bounce.iov(len), into, decrypt).await?;
        } else {
            let bytes = &mut bounce.bytes().ok_or_else(still_held)?[..len];
            self.sectors.decrypt(first, bytes);
            into.copy_from(0, bytes);
        }
        self.keep(bounce);
        Ok(())
    }

    /// Writes whole sectors to `offset` of `file`, the first of which has the number `first`.
    ///
    /// # Errors
    /// Those of the file; [`Kind::OutOfRange`] for parts of sectors.
    pub async fn write(&self, file: &Node, offset: u64, first: u64, from: &Iov) -> Result<()> {
        check_whole(offset, from)?;
        let len = from.len();
        let mut bounce = self.buffer(len);
        if len > INLINE {
            let encrypt = |sectors: &Sectors, first, data: &mut [u8]| sectors.encrypt(first, data);
            self.shared_out(first, from, &bounce.iov(len), encrypt).await?;
        } else {
            let bytes = &mut bounce.bytes().ok_or_else(still_held)?[..len];
            from.copy_to(0, bytes);
            self.sectors.encrypt(first, bytes);
        }
        file.write(offset, &bounce.iov(len)).await?;
        self.keep(bounce);
        Ok(())
    }

    /// At least `len` bytes, in which anything may stand.
    fn buffer(&self, len: usize) -> Buffer {
        let mut spares = self.spares.borrow_mut();
        let fits = spares.iter().position(|spare| spare.len() >= len);
        fits.map_or_else(|| Buffer::new(len), |at| spares.swap_remove(at))
    }

    /// Keeps a buffer for later, unless somebody else still has it.
    fn keep(&self, mut buffer: Buffer) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES && buffer.len() <= LONGEST_SPARE && buffer.bytes().is_some() {
            spares.push(buffer);
        }
    }

    /// Lets worker threads, and this one, apply `work` to copies of all pieces of `from`; puts the results into `into`.
    async fn shared_out(
        &self,
        first: u64,
        from: &Iov,
        into: &Iov,
        work: impl Fn(&Sectors, u64, &mut [u8]) + Copy + Send + 'static,
    ) -> Result<()> {
        let pieces = (0..from.len()).step_by(PIECE).map(|at| {
            let mut bytes = from.slice(at, PIECE).to_vec();
            let (sectors, first) = (self.sectors.clone(), first + (at / SECTOR) as u64);
            let done = self.engine.share(move || {
                work(&sectors, first, &mut bytes);
                bytes
            });
            async move { into.copy_from(at, &done.await) }
        });
        join_all(pieces).await;
        Ok(())
    }
}

/// The file still has the buffer of a request that it said is done: nobody knows what is in it.
fn still_held() -> Error {
    Error::new(Kind::Io, "a request is still under way")
}

/// The pipeline aligns all requests; one that comes in another way must not destroy what is around it.
fn check_whole(offset: u64, iov: &Iov) -> Result<()> {
    if (offset | iov.len() as u64).is_multiple_of(SECTOR as u64) {
        return Ok(());
    }
    Err(Error::new(Kind::OutOfRange, "a request for a part of an encrypted sector"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::aio::Backend;
    use crate::block::crypto::luks;
    use crate::block::graph::{BlockStatus, ChildRole, Driver, Limits};
    use async_trait::async_trait;
    use std::cell::RefCell;

    /// A file that keeps the buffers of reads that are done.
    #[derive(Default)]
    struct Keeper(RefCell<Vec<Iov>>);

    #[async_trait(?Send)]
    impl Driver for Keeper {
        fn format_name(&self) -> &'static str {
            "keeper"
        }

        fn size(&self) -> u64 {
            1 << 20
        }

        fn children(&self) -> Vec<(ChildRole, Rc<Node>)> {
            Vec::new()
        }

        fn limits(&self) -> Limits {
            Limits { growable: true, ..Limits::ANY }
        }

        fn read_only(&self) -> bool {
            false
        }

        async fn read(&self, _offset: u64, into: &Iov) -> Result<()> {
            self.0.borrow_mut().push(into.clone());
            Ok(())
        }

        async fn write(&self, _offset: u64, _from: &Iov) -> Result<()> {
            Ok(())
        }

        async fn flush(&self) -> Result<()> {
            Ok(())
        }

        async fn block_status(&self, _offset: u64, len: u64) -> Result<BlockStatus> {
            Ok(BlockStatus::of_data(len))
        }
    }

    #[test]
    fn a_read_whose_buffer_is_still_held_is_no_success() {
        let engine = Engine::new(Backend::Threads).unwrap();
        let scheme = luks::CreateOptions::default().scheme;
        let sectors = Sectors::new(scheme, &vec![3; scheme.key_len()]).unwrap();
        let cipherer = Cipherer::new(&engine, sectors);
        let node = Node::new("keeper", Box::new(Keeper::default()));
        let into = Buffer::new(512).iov(512);
        let read = engine.block_on(cipherer.read(&node, 0, 0, &into)).unwrap();
        assert_eq!(read.unwrap_err().kind(), Kind::Io);
    }
}
