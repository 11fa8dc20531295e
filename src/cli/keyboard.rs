//! Stdin while a guest runs: bytes for the guest, for the monitor, or escapes.
//!
//! ```text
//!   stdin ─▶ Escape ─┬▶ Console (guest has the keyboard)
//!                    └▶ monitor (after Ctrl-A C, or -monitor stdio)
//! ```
//!
//! A terminal is read always, so that Ctrl-A works on a guest that does not read; a pipe or file only as far as
//! the guest keeps up, so that no script is lost.

use crate::cli::terminal::Stdin;
use crate::monitor::hmp::Hmp;
use crate::monitor::mux::{Escape, Event};
use crate::monitor::{Control, Dialogue, Pending, commit_all};
use crate::vm::console::Console;
use event_manager::{EventOps, EventSet, Events};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that are read from stdin at a time.
const CHUNK: usize = 1024;

/// Who stdin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The guest's console, and the monitor by the escape key.
    Shared,
    /// The guest's console alone; the escape key has its other commands.
    Console,
    /// The monitor alone.
    Monitor,
}

/// Stdin and who has it.
pub(super) struct Keyboard {
    console: Arc<Console>,
    stdin: Option<Stdin>,
    /// The number of stdin's events.
    number: u32,
    /// Whether epoll watches stdin. It refuses plain files, which are always ready.
    watched: bool,
    pollable: bool,
    /// Stdin should be looked at although epoll does not say so.
    again: EventFd,
    used: Use,
    escape: Escape,
    monitor: Hmp,
    /// The monitor has the keyboard.
    in_monitor: bool,
    saving: Option<Pending>,
}

impl Keyboard {
    /// Stdin for `used`, with `escape` as escape key.
    ///
    /// # Errors
    /// When the host has no file descriptor left.
    pub(super) fn new(console: Arc<Console>, number: u32, used: Use, escape: u8) -> io::Result<Keyboard> {
        let monitor = if used == Use::Monitor { Hmp::for_script() } else { Hmp::for_console() };
        Ok(Keyboard {
            console,
            stdin: Stdin::open(),
            number,
            watched: false,
            pollable: true,
            again: EventFd::new(EFD_NONBLOCK)?,
            used,
            escape: Escape::new(escape),
            monitor,
            in_monitor: used == Use::Monitor,
            saving: None,
        })
    }

    /// Readable when stdin is to be looked at although epoll does not say so.
    pub(super) fn again(&self) -> &EventFd {
        &self.again
    }

    /// Leaves stdin to somebody else.
    pub(super) fn leave(&mut self) {
        self.stdin = None;
    }

    /// Greets, and has stdin watched from now on.
    pub(super) fn begin(&mut self, ops: &mut EventOps) {
        if self.used == Use::Monitor && self.stdin.is_some() {
            self.console.write(&self.monitor.greeting());
        }
        self.watch(ops);
    }

    /// Reads stdin as far as it may be read now.
    pub(super) fn read(&mut self, control: &mut Control, ops: &mut EventOps) {
        // Empty when it was read before.
        let _ = self.again.read();
        let Some(stdin) = &mut self.stdin else { return };
        let limit = match (stdin.is_terminal(), self.in_monitor) {
            (true, _) => CHUNK,
            (false, false) => self.console.input_room().min(CHUNK),
            // What follows the key that leaves the monitor is the guest's, and may have to wait.
            (false, true) => usize::from(!self.monitor.is_busy()),
        };
        if limit == 0 {
            self.unwatch(ops);
            if !self.in_monitor {
                self.console.notify_room(&self.again);
            }
            return;
        }
        match stdin.read(limit) {
            None => self.watch(ops),
            Some(bytes) if bytes.is_empty() => {
                self.unwatch(ops);
                self.stdin = None;
            }
            Some(bytes) => {
                bytes.into_iter().for_each(|byte| self.typed(byte, control));
                self.watch(ops);
            }
        }
    }

    /// Goes on with what waited for work that is done now.
    pub(super) fn poll(&mut self, control: &mut Control, ops: &mut EventOps) {
        let mut shown = Vec::new();
        self.monitor.poll(control, &mut shown);
        self.console.write(&shown);
        if let Some(result) = self.saving.as_mut().and_then(Pending::poll) {
            self.saving = None;
            match result {
                Ok(()) => self.show("\nDisk data is saved.\n"),
                Err(error) => self.show(&format!("\n{error}\n")),
            }
        }
        self.watch(ops);
    }

    /// Comes back when there is more to read.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(stdin) = &self.stdin else { return };
        if self.pollable && !self.watched {
            self.watched = ops.add(Events::with_data(stdin, self.number, EventSet::IN)).is_ok();
            self.pollable = self.watched;
        }
        if !self.pollable {
            // It fails only when it is readable already.
            let _ = self.again.write(1);
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.watched) {
            // It was added, so it can be removed.
            let _ = ops.remove(Events::with_data(stdin, self.number, EventSet::IN));
            self.watched = false;
        }
    }

    fn typed(&mut self, byte: u8, control: &mut Control) {
        if self.used == Use::Monitor {
            return self.monitor_byte(byte, control);
        }
        match self.escape.feed(byte) {
            None => {}
            Some(Event::Exit) => control.quit("host-ui"),
            Some(Event::Help) => self.show(&self.escape.help()),
            Some(Event::Toggle) => self.toggle(),
            Some(Event::Save) => self.saving = Some(commit_all(control)),
            Some(Event::Timestamps) => self.console.toggle_timestamps(),
            Some(Event::Break) => control.machine.send_break(),
            Some(Event::Byte(byte)) if self.in_monitor => self.monitor_byte(byte, control),
            Some(Event::Byte(byte)) => self.console.push_input(&[byte]),
        }
    }

    fn toggle(&mut self) {
        if self.used == Use::Console {
            return;
        }
        self.in_monitor = !self.in_monitor;
        self.show("\n");
        if self.in_monitor {
            self.console.write(&self.monitor.greeting());
        }
    }

    fn monitor_byte(&mut self, byte: u8, control: &mut Control) {
        let mut shown = Vec::new();
        self.monitor.feed(&[byte], control, &mut shown);
        self.console.write(&shown);
    }

    fn show(&self, text: &str) {
        self.console.write(text.as_bytes());
    }
}
