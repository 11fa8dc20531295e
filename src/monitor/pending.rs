//! Work of the drives that goes on while the monitor serves others.
//!
//! ```text
//!   Control::start, start_on ─▶ a task on each drive's thread ─▶ result, wake ─▶ main loop ─▶ Pending::poll
//! ```
//! The main thread does not wait for the disk; who gave the command waits for its answer.

use super::{Control, Error, Result};
use crate::block;
use crate::block::drive::Local;
use crate::vm::machine::Disk;
use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What became of the work on one disk.
type Step = (String, block::Result<()>);

/// Work that has begun and whose end somebody waits for.
pub struct Pending {
    results: Receiver<Step>,
    left: usize,
    failure: Option<Error>,
    /// Puts a disk's error into words.
    describe: fn(&str, block::Error) -> Error,
}

impl Pending {
    /// Whether all is done: then the first error, if there was one.
    pub fn poll(&mut self) -> Option<Result<()>> {
        while self.left > 0 {
            let (disk, result) = self.results.try_recv().ok()?;
            self.left -= 1;
            if let Err(error) = result {
                self.failure.get_or_insert((self.describe)(&disk, error));
            }
        }
        Some(self.failure.take().map_or(Ok(()), Err))
    }
}

impl Control {
    /// Has `work` done on the threads of `disks`.
    pub(super) fn start<F>(
        &self,
        disks: &[&Disk],
        describe: fn(&str, block::Error) -> Error,
        work: impl Fn(Rc<Local>) -> F + Clone + Send + 'static,
    ) -> Pending
    where
        F: Future<Output = block::Result<()>> + 'static,
    {
        let (sender, results) = channel();
        for disk in disks {
            self.start_one(disk, work.clone(), sender.clone());
        }
        Pending { results, left: disks.len(), failure: None, describe }
    }

    /// Has `work` done on the thread of one disk, whose errors say enough.
    pub(super) fn start_on<F>(
        &self,
        disk: &Disk,
        work: impl FnOnce(Rc<Local>) -> F + Send + 'static,
    ) -> Pending
    where
        F: Future<Output = block::Result<()>> + 'static,
    {
        let (sender, results) = channel();
        self.start_one(disk, work, sender);
        Pending { results, left: 1, failure: None, describe: |_, error| error.into() }
    }

    /// Work of another thread, and what that thread calls when it is done.
    pub(super) fn pend(&self) -> (Pending, impl FnOnce() + Send + 'static) {
        let ((sender, results), wake) = (channel(), self.wake.clone());
        let done = move || {
            // As below.
            let _ = (sender.send((String::new(), Ok(()))), wake.write(1));
        };
        (Pending { results, left: 1, failure: None, describe: |_, error| error.into() }, done)
    }

    fn start_one<F>(
        &self,
        disk: &Disk,
        work: impl FnOnce(Rc<Local>) -> F + Send + 'static,
        sender: Sender<Step>,
    ) where
        F: Future<Output = block::Result<()>> + 'static,
    {
        let (id, wake, to_loop) = (disk.drive.id().to_owned(), self.wake.clone(), sender.clone());
        let done = move |result| {
            // Who gave the command may be gone; a counter that is full wakes too.
            let _ = (to_loop.send((id, result)), wake.write(1));
        };
        if let Err(error) = disk.start(work, done) {
            let _ = (sender.send((disk.drive.id().to_owned(), Err(error))), self.wake.write(1));
        }
    }
}
