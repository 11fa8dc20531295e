//! Cached writes that follow one another in a file become one call.
//!
//! A guest that fills an image has many requests in flight, and the format gives them places next to each other. ext4 takes
//! about 3 µs for a call, whatever its length, which is a third of what 64 KiB take. So a write that goes on where the last
//! one ended lets other tasks have their turn first: theirs may go on where it ends. Whose turn comes again first writes
//! for all, so that none waits for a task that may not be polled.

use crate::block::Iov;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// The longest call, in bytes.
const MOST: u64 = 1 << 20;

/// The writes of one file that become the next call.
#[derive(Default)]
pub(super) struct Gathering {
    /// Where the last write ended, in bytes.
    end: Cell<u64>,
    /// Those who take part own it: it ends with them.
    batch: RefCell<Weak<Batch>>,
}

/// Writes that become one call.
pub(super) struct Batch {
    /// Where it begins in the file, in bytes.
    pub(super) offset: u64,
    writes: RefCell<Vec<Iov>>,
    /// Whether it was written, when somebody has tried.
    pub(super) outcome: Cell<Option<bool>>,
}

impl Gathering {
    /// The batch that `from` becomes a part of, if it is good for that; `alone` says that no other task might add to it.
    pub(super) fn add(&self, offset: u64, from: &Iov, alone: bool) -> Option<Rc<Batch>> {
        let end = offset + from.len() as u64;
        let follows = self.end.replace(end) == offset;
        let open = self.batch.borrow().upgrade();
        let open =
            open.filter(|batch| follows && batch.outcome.get().is_none() && end - batch.offset <= MOST);
        if let Some(batch) = open {
            batch.writes.borrow_mut().push(from.clone());
            return Some(batch);
        }
        (follows && !alone).then(|| {
            let writes = RefCell::new(vec![from.clone()]);
            let batch = Rc::new(Batch { offset, writes, outcome: Cell::new(None) });
            self.batch.replace(Rc::downgrade(&batch));
            batch
        })
    }
}

impl Batch {
    /// Has all that was gathered written by `write`, which says whether it could.
    pub(super) fn write(&self, write: impl FnOnce(&Iov) -> bool) -> bool {
        let done = write(&Iov::concat(&self.writes.take()));
        self.outcome.set(Some(done));
        done
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, Engine, HostFile};
    use super::*;
    use crate::block::Buffer;
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn bytes(len: usize, byte: u8) -> Iov {
        let iov = Buffer::new(len).iov(len);
        iov.fill(0, len, byte);
        iov
    }

    #[test]
    fn what_follows_joins_until_it_is_written_or_long_enough() {
        let gathering = Gathering::default();
        let half = bytes(MOST as usize / 2, 1);
        let half_len = half.len() as u64;
        assert!(gathering.add(7 << 20, &half, false).is_none(), "nothing was written before");
        assert!(gathering.add((7 << 20) + half_len, &half, true).is_none(), "no other task could add to it");
        let first = gathering.add(8 << 20, &half, false).unwrap();
        let second = gathering.add((8 << 20) + half_len, &half, true).unwrap();
        assert!(Rc::ptr_eq(&first, &second));
        let third = gathering.add(9 << 20, &bytes(1, 2), false).unwrap();
        assert!(!Rc::ptr_eq(&first, &third), "a call would be too long");
        assert!(gathering.add(1 << 20, &half, false).is_none(), "it goes on elsewhere");
        assert!(first.write(|all| all.len() as u64 == MOST));
        assert!(!third.write(|_| false));
        assert_eq!((second.outcome.get(), third.outcome.get()), (Some(true), Some(false)));
        let fourth = gathering.add((1 << 20) + half_len, &half, false).unwrap();
        assert!(fourth.write(|all| all.len() == half.len()));
        assert!(gathering.add(2 << 20, &half, true).is_none(), "what was written takes nobody");
    }

    /// Writes 64 pieces of different lengths at once; what became of each.
    fn write_pieces(file: File) -> (Vec<std::io::Result<()>>, Vec<u8>) {
        let engine = Engine::new(Backend::Auto).unwrap();
        let file = HostFile::new(&engine, file.into(), false);
        let mut expected = Vec::new();
        let pieces: Vec<_> = (1..=64)
            .map(|number| {
                let from = bytes(number * 512, number as u8);
                let offset = expected.len() as u64;
                expected.extend(from.to_vec());
                (offset, from)
            })
            .collect();
        // Another task, which could have something to write.
        engine.spawn(std::future::pending());
        let writes = pieces.iter().map(|(offset, from)| file.write(*offset, from));
        (engine.block_on(join_all(writes)).unwrap(), expected)
    }

    #[test]
    fn all_bytes_come_to_their_places() {
        let file = tempfile::tempfile().unwrap();
        let (outcomes, expected) = write_pieces(file.try_clone().unwrap());
        assert!(outcomes.iter().all(Result::is_ok));
        let mut found = vec![0; expected.len() + 1];
        assert_eq!(file.read_at(&mut found, 0).unwrap(), expected.len());
        assert!(found[..expected.len()] == expected);
    }

    #[test]
    fn each_hears_of_its_own_failure() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        for outcome in write_pieces(full).0 {
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
    }

    #[test]
    fn a_write_that_was_given_up_is_not_done_later() {
        let engine = Engine::new(Backend::Auto).unwrap();
        let file = tempfile::tempfile().unwrap();
        let host = HostFile::new(&engine, file.try_clone().unwrap().into(), false);
        let writes = async {
            // Something that is ready, so that there is a reason to wait.
            engine.spawn(async {});
            let given_up = host.write(0, &bytes(4096, 1)).now_or_never();
            assert!(given_up.is_none(), "it waits for others");
            host.write(4096, &bytes(4096, 2)).await.unwrap();
        };
        engine.block_on(writes).unwrap();
        let mut found = [0; 8192];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..4096] == [0; 4096] && found[4096..] == [2; 4096]);
    }
}
