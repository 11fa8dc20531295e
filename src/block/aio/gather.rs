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
/// The most ranges of memory that one call takes.
const MOST_PARTS: usize = libc::UIO_MAXIOV as usize;

/// The writes of one file that become the next call.
#[derive(Default)]
pub(super) struct Gathering {
    /// Where the last write ended, in bytes, whether it became a part of a batch or not.
    end: Cell<u64>,
    /// The last batch. Those who take part own it: it ends with them.
    batch: RefCell<Weak<Batch>>,
}

/// Writes that become one call, each where the one before it ends.
struct Batch {
    /// Where it begins and ends in the file, in bytes.
    offset: u64,
    end: Cell<u64>,
    writes: RefCell<Vec<Iov>>,
    /// How many ranges of memory they are in.
    parts: Cell<usize>,
    /// Whether it was written, when somebody has tried; not written either, when somebody left.
    outcome: Cell<Option<bool>>,
}

/// A write that takes part in a batch. When it is dropped before the batch is written, it is not done, and the others are on
/// their own: who gives a write up may write something else there next.
pub(super) struct Member(Rc<Batch>);

impl Gathering {
    /// Makes `from` a part of a batch, if it is good for that; `alone` says that no other task might add to it.
    pub(super) fn add(&self, offset: u64, from: &Iov, alone: bool) -> Option<Member> {
        let follows = self.end.replace(offset + from.len() as u64) == offset;
        if let Some(open) = self.batch.borrow().upgrade().filter(|batch| batch.takes(offset, from)) {
            open.push(from);
            return Some(Member(open));
        }
        (follows && !alone).then(|| {
            let batch = Rc::new(Batch::at(offset));
            batch.push(from);
            self.batch.replace(Rc::downgrade(&batch));
            Member(batch)
        })
    }
}

impl Batch {
    fn at(offset: u64) -> Batch {
        let (end, writes) = (Cell::new(offset), RefCell::default());
        Batch { offset, end, writes, parts: Cell::new(0), outcome: Cell::new(None) }
    }

    fn takes(&self, offset: u64, from: &Iov) -> bool {
        self.outcome.get().is_none()
            && offset == self.end.get()
            && offset - self.offset + from.len() as u64 <= MOST
            && self.parts.get() + from.parts_for_one_call().len() <= MOST_PARTS
    }

    fn push(&self, from: &Iov) {
        self.end.set(self.end.get() + from.len() as u64);
        self.parts.set(self.parts.get() + from.parts_for_one_call().len());
        self.writes.borrow_mut().push(from.clone());
    }
}

impl Member {
    /// Whether the batch is written: by who came first, or now by `write`, which is told where and says whether it could.
    pub(super) fn finish(self, write: impl FnOnce(u64, &Iov) -> bool) -> bool {
        let batch = &self.0;
        batch.outcome.get().unwrap_or_else(|| {
            let done = write(batch.offset, &Iov::concat(&batch.writes.take()));
            batch.outcome.set(Some(done));
            done
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.0.outcome.get().is_none() {
            self.0.outcome.set(Some(false));
            self.0.writes.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, Engine, HostFile};
    use super::*;
    use crate::block::Buffer;
    use crate::seed::seed_or;
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use rustix::fs::{MemfdFlags, SealFlags};
    use std::fs::File;
    use std::io::Result;
    use std::os::unix::fs::FileExt;

    const PIECE: usize = 4096;

    fn bytes(len: usize, byte: u8) -> Iov {
        let iov = Buffer::new(len).iov(len);
        iov.fill(0, len, byte);
        iov
    }

    fn same(one: &Member, other: &Member) -> bool {
        Rc::ptr_eq(&one.0, &other.0)
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
        assert!(same(&first, &second));
        let third = gathering.add(9 << 20, &bytes(1, 2), false).unwrap();
        assert!(!same(&first, &third), "a call would be too long");
        assert!(gathering.add(1 << 20, &half, false).is_none(), "it goes on elsewhere");
        assert!(first.finish(|offset, all| (offset, all.len() as u64) == (8 << 20, MOST)));
        assert!(!third.finish(|_, _| false));
        assert!(second.finish(|_, _| panic!("it is written")));
        let fourth = gathering.add((1 << 20) + half_len, &half, false).unwrap();
        assert!(fourth.finish(|_, all| all.len() == half.len()));
        assert!(gathering.add(2 << 20, &half, true).is_none(), "what was written takes nobody");
    }

    #[test]
    fn what_follows_another_write_does_not_join() {
        let gathering = Gathering::default();
        let (piece, len) = (bytes(PIECE, 1), PIECE as u64);
        let first = gathering.add(0, &piece, false).unwrap();
        for other in [16 * len, 1 << 40] {
            assert!(gathering.add(other, &piece, false).is_none());
            assert!(gathering.add(other + len, &piece, true).is_none(), "it goes on where the other ended");
        }
        let second = gathering.add(len, &piece, true).unwrap();
        assert!(same(&first, &second), "where the batch ends there is still room");
        let apart =
            gathering.add(2 << 40, &piece, false).or_else(|| gathering.add((2 << 40) + len, &piece, false));
        assert!(!same(&first, &apart.unwrap()));
        assert!(gathering.add(0, &piece, true).is_none(), "before the batch");
        assert!(first.finish(|offset, all| (offset, all.len()) == (0, 2 * PIECE)));
    }

    #[test]
    fn a_call_has_no_more_ranges_than_the_host_takes() {
        let gathering = Gathering::default();
        let scattered = Iov::concat(&(0..MOST_PARTS - 1).map(|_| bytes(1, 1)).collect::<Vec<_>>());
        let first = gathering.add(0, &scattered, false).unwrap();
        let second = gathering.add(MOST_PARTS as u64 - 1, &bytes(1, 2), false).unwrap();
        let third = gathering.add(MOST_PARTS as u64, &bytes(1, 3), false).unwrap();
        assert!(same(&first, &second) && !same(&first, &third));
    }

    /// Writes `pieces`, numbers of places in the file, each by a task; what became of each, and how many calls that took as
    /// far as the host counts them.
    fn write_pieces(file: &File, pieces: &[u64]) -> (Vec<Result<()>>, Option<usize>) {
        let engine = Engine::new(Backend::Auto).unwrap();
        let host = Rc::new(HostFile::new(&engine, file.try_clone().unwrap().into(), false));
        let before = calls();
        let all = async {
            let tasks = pieces.iter().map(|&piece| {
                let (host, (done, outcome)) = (host.clone(), async_channel::bounded(1));
                engine.spawn(async move {
                    let from = bytes(PIECE, piece as u8 + 1);
                    done.try_send(host.write(piece * PIECE as u64, &from).await).unwrap();
                });
                async move { outcome.recv().await.unwrap() }
            });
            join_all(tasks.collect::<Vec<_>>()).await
        };
        let outcomes = engine.block_on(all).unwrap();
        (outcomes, before.and_then(|before| Some(calls()? - before)))
    }

    /// How many write calls this thread has made.
    fn calls() -> Option<usize> {
        let counts = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        counts.lines().find_map(|line| line.strip_prefix("syscw: "))?.parse().ok()
    }

    fn assert_written(file: &File, pieces: &[u64]) {
        for &piece in pieces {
            let mut found = [0; PIECE];
            file.read_exact_at(&mut found, piece * PIECE as u64).unwrap();
            assert!(found == [piece as u8 + 1; PIECE], "piece {piece} has {}", found[0]);
        }
    }

    #[test]
    fn a_stream_takes_few_calls() {
        let file = tempfile::tempfile().unwrap();
        let pieces: Vec<u64> = (0..64).collect();
        let (outcomes, calls) = write_pieces(&file, &pieces);
        assert!(outcomes.iter().all(Result::is_ok));
        assert_written(&file, &pieces);
        assert!(calls.is_none_or(|calls| calls < 16), "{calls:?} calls");
    }

    #[test]
    fn all_bytes_come_to_their_places_in_whatever_order_they_are_sent() {
        let mut rng = StdRng::seed_from_u64(seed_or(rand::random()));
        for _ in 0..200 {
            let file = tempfile::tempfile().unwrap();
            // A few streams, mixed; some go on where others begin.
            let stream = |first: u64, len: u64| (first..first + len).rev().collect::<Vec<_>>();
            let mut streams: Vec<_> = (0..8).map(|n| stream(n * 12, rng.random_range(1..=12))).collect();
            let mut pieces = Vec::new();
            while !streams.is_empty() {
                let stream = rng.random_range(0..streams.len());
                for _ in 0..rng.random_range(1..4) {
                    pieces.extend(streams[stream].pop());
                }
                streams.retain(|stream| !stream.is_empty());
            }
            let (outcomes, _) = write_pieces(&file, &pieces);
            assert!(outcomes.iter().all(Result::is_ok));
            assert_written(&file, &pieces);
            let end = (pieces.iter().max().unwrap() + 1) * PIECE as u64;
            assert_eq!(file.metadata().unwrap().len(), end);
        }
    }

    #[test]
    fn each_hears_of_its_own_failure() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        for outcome in write_pieces(&full, &[0, 1, 2, 3]).0 {
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        // A file that cannot grow: what lies within it is written.
        let fixed = File::from(rustix::fs::memfd_create("fixed", MemfdFlags::ALLOW_SEALING).unwrap());
        fixed.set_len(10 * PIECE as u64).unwrap();
        rustix::fs::fcntl_add_seals(&fixed, SealFlags::GROW).unwrap();
        let pieces: Vec<u64> = (0..16).collect();
        for (piece, outcome) in write_pieces(&fixed, &pieces).0.into_iter().enumerate() {
            assert_eq!(
                outcome.map_err(|error| error.raw_os_error()),
                if piece < 10 { Ok(()) } else { Err(Some(libc::EPERM)) }
            );
        }
        assert_written(&fixed, &pieces[..10]);
    }

    #[test]
    fn a_write_that_was_given_up_is_not_done_later() {
        let engine = Engine::new(Backend::Auto).unwrap();
        let file = tempfile::tempfile().unwrap();
        let host = HostFile::new(&engine, file.try_clone().unwrap().into(), false);
        let writes = async {
            // Something that is ready, so that there is a reason to wait.
            engine.spawn(async {});
            let (one, two) = (bytes(PIECE, 1), bytes(PIECE, 2));
            let kept = {
                let mut given_up = Box::pin(host.write(0, &one));
                let mut kept = Box::pin(host.write(PIECE as u64, &two));
                assert!((&mut given_up).now_or_never().is_none(), "it waits for others");
                assert!((&mut kept).now_or_never().is_none(), "it joins");
                kept
            };
            host.write(0, &bytes(PIECE, 3)).await.unwrap();
            kept.await.unwrap();
        };
        engine.block_on(writes).unwrap();
        let mut found = [0; 2 * PIECE];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..PIECE] == [3; PIECE] && found[PIECE..] == [2; PIECE]);
    }
}
