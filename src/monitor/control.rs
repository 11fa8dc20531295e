//! What commands work on: the machine, the jobs, the events that programs are told of, the end of it all.

use super::events;
use super::jobs::Jobs;
use super::nbd::Exports;
use super::{Error, Result};
use crate::block::drive::{Drive, Local};
use crate::block::secret::Secrets;
use crate::vm;
use crate::vm::machine::{Disk, Machine};
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long the main thread waits for what a drive should know at once.
const ANSWER: Duration = Duration::from_secs(5);

/// The control side of a machine. Belongs to the main thread.
pub struct Control {
    /// The machine.
    pub machine: Machine,
    /// What the command line defined for those who need secrets later.
    pub(super) secrets: Secrets,
    /// The NBD server that exports disks.
    pub(super) nbd: Option<Exports>,
    pub(super) jobs: Jobs,
    /// Written when work that a command began is done.
    pub(super) wake: Arc<EventFd>,
    /// The drives that stopped the guest: whether for want of space.
    pub(super) failing: BTreeMap<String, bool>,
    pub(super) events: Vec<Value>,
    pub(super) notices: Vec<String>,
    quit: Option<&'static str>,
}

impl Control {
    /// Controls `machine`.
    ///
    /// # Errors
    /// When the host has no file descriptor left.
    pub fn new(machine: Machine, secrets: Secrets) -> io::Result<Control> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (jobs, failing, events) = (Jobs::default(), BTreeMap::new(), Vec::new());
        let (nbd, notices, quit) = (None, Vec::new(), None);
        Ok(Control { machine, secrets, nbd, jobs, wake, failing, events, notices, quit })
    }

    /// Ends the guest and closes its disks, once no client of theirs is left.
    ///
    /// # Errors
    /// The first disk's that could not be written back.
    pub fn close(&mut self) -> vm::Result<()> {
        self.nbd = None;
        self.machine.close()
    }

    /// Readable when [`Control::advance`] and the dialogues' `poll` have something to do.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Main loop, when woken: ends the jobs whose work is done.
    pub fn advance(&mut self) {
        // Empty when it was read before.
        let _ = self.wake.read();
        self.advance_jobs();
    }

    /// Ends the process; `reason` as in the event SHUTDOWN.
    pub fn quit(&mut self, reason: &'static str) {
        self.quit.get_or_insert(reason);
    }

    /// Why the process is to end, if it is.
    pub fn wants_quit(&self) -> Option<&'static str> {
        self.quit
    }

    /// What programs have not been told of yet, as QMP's events.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.hear_machine();
        std::mem::take(&mut self.events)
    }

    /// Takes note of what has happened to the machine.
    pub(super) fn hear_machine(&mut self) {
        for (when, event) in self.machine.take_events() {
            events::note(self, when, &event);
        }
    }

    /// What a person should read at once.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// The disk of that name.
    pub(super) fn disk(&self, name: &str) -> Result<&Disk> {
        let found = self.machine.disks().iter().find(|disk| disk.drive.id() == name);
        found.ok_or_else(|| Error::plain(format!("Device '{name}' not found")))
    }

    /// Asks a drive for what its thread knows without any I/O.
    pub(super) fn ask<T, F>(
        drive: &Drive,
        question: impl FnOnce(Rc<Local>) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, answer) = channel();
        drive.spawn(move |local| {
            let task = question(local);
            async move {
                // Nobody listens when it comes too late.
                let _ = sender.send(task.await);
            }
        })?;
        let late = || Error::new(format!("Device '{}' does not answer: its storage hangs", drive.id()));
        answer.recv_timeout(ANSWER).map_err(|_| late())
    }
}
